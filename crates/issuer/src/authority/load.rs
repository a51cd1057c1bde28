//! From what is stored to what is in force.

use std::sync::Arc;

use anyhow::Context;
use hallmark_core::rotation::{Role, Stage};
use hallmark_core::tier::{Hierarchy, Tier};
use hallmark_core::x509::{
    CaKey, CaParams, Curve, IssuingCa, OidArc, Serial, SoftwareCaKey, issuing, key_fingerprint, root,
};
use hallmark_hsm::Token;
use prost::bytes::Bytes;
use rand::TryRngCore;
use zeroize::Zeroizing;

use crate::ca::{Authority as Hold, InForce, Issuing, Renewal};
use crate::config::Config;
use crate::store::{Authority, TrustDomainRow};

/// What is in force by these rows: keys from the token, those that `known` holds already as they are.
///
/// # Errors
/// The key of an active CA is missing, or a certificate does not fit its key.
pub fn in_force(
    config: &Config,
    stored: &[Authority],
    token: &Token,
    known: &InForce,
) -> anyhow::Result<InForce> {
    let mut in_force = InForce::default();
    for row in stored {
        let hold = in_force.authorities.entry(row.hierarchy).or_default();
        match row.role {
            Role::Root => {
                if row.seen("", false).is_in_bundle() {
                    hold.roots.push(Bytes::from(row.certificate.clone()));
                }
                // A root counts once when it comes into the bundle, and once when it goes.
                let gone = row.stage == Stage::Retired || row.withdrawn_at.is_some();
                let changes = u64::from(row.published_at.is_some()) * (1 + u64::from(gone));
                match row.hierarchy {
                    Hierarchy::Tier(_) => in_force.bundle_revision += changes,
                    Hierarchy::Infrastructure => in_force.infrastructure_revision += changes,
                }
            }
            Role::Issuing => {
                note_taint(&mut in_force, row)?;
                if row.issuer == config.issuer_id.as_str() {
                    own(config, row, token, known, &mut in_force)?;
                }
            }
        }
    }
    Ok(in_force)
}

/// Whoever holds what a tainted CA signed is told so, until that is revoked. What an infrastructure CA signed is refused
/// from then on, for ever: whoever has its key may sign more, also once it is retired here.
fn note_taint(in_force: &mut InForce, row: &Authority) -> anyhow::Result<()> {
    let Some(at) = row.tainted_at else { return Ok(()) };
    if row.certificate.is_empty() {
        return Ok(());
    }
    let authority = key_fingerprint(&row.certificate).with_context(|| row.name())?;
    if row.withdrawn_at.is_none() {
        in_force.renewals.push(Renewal { authority, until: at.saturating_add(row.renew_within) });
    } else if row.hierarchy == Hierarchy::Infrastructure {
        in_force.denied.insert(authority);
    }
    Ok(())
}

fn own(
    config: &Config,
    row: &Authority,
    token: &Token,
    known: &InForce,
    in_force: &mut InForce,
) -> anyhow::Result<()> {
    let active = row.stage == Stage::Active;
    if !active && !matches!(row.stage, Stage::Retiring | Stage::Tainted) || row.certificate.is_empty() {
        return Ok(());
    }
    let held = known.issuing(row.hierarchy).find(|i| i.generation == row.generation);
    let issuing = match held {
        Some(held) => held.clone(),
        None => match from_token(config, row, token) {
            Ok(loaded) => loaded,
            Err(error) if !active => {
                // Its lists stay as they are; nothing else needs it.
                tracing::error!(authority = row.name(), error = format!("{error:#}"), "CA key not found");
                return Ok(());
            }
            Err(error) => return Err(error),
        },
    };
    let hold = in_force.authorities.entry(row.hierarchy).or_default();
    if active {
        hold.active = Some(issuing);
    } else {
        hold.past.push(issuing);
    }
    Ok(())
}

fn from_token(config: &Config, row: &Authority, token: &Token) -> anyhow::Result<Arc<Issuing>> {
    let key = token.ca_key(&row.key_label).with_context(|| format!("CA key {:?}", row.key_label))?;
    issuing_of(config, row.hierarchy, row.generation, &row.certificate, Arc::new(key))
}

fn issuing_of(
    config: &Config,
    hierarchy: Hierarchy,
    generation: u32,
    der: &[u8],
    key: Arc<dyn CaKey>,
) -> anyhow::Result<Arc<Issuing>> {
    let revocable = matches!(hierarchy, Hierarchy::Tier(Tier::Enterprise | Tier::Advanced));
    let url = config.crl_url.as_ref().filter(|_| revocable);
    let url = url.map(|url| format!("{url}/{}", list_name(hierarchy, generation)));
    let ca = IssuingCa::new(der, key.clone())
        .and_then(|ca| ca.with_crl_url(url.as_deref()))
        .with_context(|| format!("{hierarchy} issuing CA {generation}"))?;
    Ok(Issuing::new(generation, ca, der.to_vec(), key))
}

/// File name of an issuing CA's list of what is revoked.
pub fn list_name(hierarchy: Hierarchy, generation: u32) -> String {
    format!("{hierarchy}-{generation}.crl")
}

/// CAs made now, in memory (`--dev`).
///
/// # Errors
/// No random bytes.
pub fn in_memory(config: &Config, row: &TrustDomainRow, now: i64) -> anyhow::Result<InForce> {
    let arc = OidArc::parse(&row.oid_arc)?;
    let mut in_force = InForce { bundle_revision: 1, infrastructure_revision: 1, ..InForce::default() };
    for hierarchy in Hierarchy::ALL {
        let params = |lifetime| -> anyhow::Result<CaParams<'_>> {
            let mut bytes = [0; 16];
            rand::rngs::OsRng.try_fill_bytes(&mut bytes).context("random bytes")?;
            let (trust_domain, lab, serial) = (&row.name, row.lab, Serial::from_random(bytes));
            Ok(CaParams { trust_domain, hierarchy, lab, arc: &arc, serial, now, lifetime })
        };
        let (root_key, key) = (software_key(config.curve)?, Arc::new(software_key(config.curve)?));
        let root_der = root(&params(config.root_lifetime)?, &root_key)?;
        let der = issuing(&params(config.issuing_lifetime)?, key.spki_der(), &root_der, &root_key)?;
        let issuing = issuing_of(config, hierarchy, 1, &der, key)?;
        let roots = vec![Bytes::from(root_der.to_vec())];
        in_force.authorities.insert(hierarchy, Hold { roots, active: Some(issuing), past: Vec::new() });
    }
    Ok(in_force)
}

fn software_key(curve: Curve) -> anyhow::Result<SoftwareCaKey> {
    use aws_lc_rs::signature::{
        ECDSA_P256_SHA256_ASN1_SIGNING, ECDSA_P384_SHA384_ASN1_SIGNING, EcdsaKeyPair,
    };
    let algorithm = match curve {
        Curve::P256 => &ECDSA_P256_SHA256_ASN1_SIGNING,
        Curve::P384 => &ECDSA_P384_SHA384_ASN1_SIGNING,
    };
    let random = aws_lc_rs::rand::SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(algorithm, &random)
        .map_err(|_| anyhow::anyhow!("no key could be generated"))?;
    let pkcs8 = Zeroizing::new(pkcs8.as_ref().to_vec());
    Ok(SoftwareCaKey::from_pkcs8(&pkcs8)?)
}
