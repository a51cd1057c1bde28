//! Making a trust domain, once: four roots and their issuing CAs, and what anybody may have of them.

use std::collections::HashMap;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use hallmark_core::id::TrustDomain;
use hallmark_core::log::{LogKey, LogName, LogVerifier, SoftwareLogKey};
use hallmark_core::tier::{Hierarchy, Tier};
use hallmark_core::x509::{CaKey, CaParams, Curve, IssuingCa, OidArc, Serial, SoftwareCaKey, issuing, root};
use hallmark_hsm::{HsmError, Token};
use rand::TryRngCore;
use zeroize::Zeroizing;

use crate::ca::{Authority, Ca};
use crate::config::{CaBackend, Config};
use crate::record::{Kind, Record};
use crate::store::{self, AuthorityKind, LogSigner, Store, TrustDomainRow, Write};
use crate::token;

/// How `init` was called.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// `--lab`
    pub lab: bool,
    /// `--dev`
    pub dev: bool,
}

/// Makes the trust domain of this configuration.
///
/// # Errors
/// There is one already, the token refuses, or the configuration does not allow it.
pub async fn init(config: Config, options: Options) -> anyhow::Result<()> {
    let dev = config.ca == CaBackend::Software;
    if dev && !options.dev {
        bail!("ca.backend is \"software\": CA keys in memory are for development only, and need --dev");
    }
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o750)
        .create(&config.data_dir)
        .with_context(|| format!("data_dir {}", config.data_dir.display()))?;
    let store = Store::open(&token::store(&config)?, &config.issuer_id).await?;
    if let Some(there) = store.trust_domain().await? {
        bail!("{} already holds trust domain {}; nothing was changed", config.data_dir.display(), there.name);
    }
    let arc = config.oid_arc.as_deref().map_or_else(|| Ok(OidArc::documentation()), OidArc::parse)?;
    let now = unix_now();
    let row = TrustDomainRow {
        name: config.trust_domain.clone(),
        lab: options.lab,
        dev,
        oid_arc: arc.to_string(),
        made_at: now,
    };
    let entry = Record {
        reason: Some(format!("trust domain {} made{}", row.name, if row.lab { ", lab" } else { "" })),
        lab: row.lab,
        ..Record::default()
    }
    .entry(now, Kind::TrustDomain, "made", None);
    let mut writes = vec![Write::TrustDomain(row.clone()), Write::Record(entry)];
    let mut roots = Vec::new();
    let token = match &config.ca {
        CaBackend::Pkcs11(pkcs11) => Some(token::open(pkcs11)?),
        CaBackend::Software => None,
    };
    if let Some(token) = &token {
        for made in make_in_token(&config, &row, &arc, token, now)? {
            if made.kind == AuthorityKind::Root {
                roots.push((made.hierarchy, made.certificate.clone()));
            }
            writes.push(Write::Authority(made));
        }
    }
    let signer = log_signer(&config, token.as_ref(), true)?;
    store.write_with(signer).await?.commit(writes).await?;
    if !roots.is_empty() {
        publish(&config.public_dir(), &roots)?;
    }
    report(&config, &row, &arc);
    Ok(())
}

fn report(config: &Config, row: &TrustDomainRow, arc: &OidArc) {
    let kind = if row.lab { "lab trust domain" } else { "trust domain" };
    println!("Made {kind} {} in {}.", row.name, config.data_dir.display());
    if row.lab {
        println!("  LAB: software TPMs may count above foundation here; every certificate says so.");
    }
    if row.dev {
        println!("  DEV: CA keys are made in memory at each start and are gone when the issuer ends.");
    } else {
        println!("  CA keys: four roots and four issuing CAs, in the PKCS#11 token.");
        println!("  For host daemons:    {}", config.public_dir().join("infrastructure.pem").display());
        println!("  For relying parties: {}", config.public_dir().join("bundle.pem").display());
    }
    if arc.is_documentation() {
        println!(
            "  OIDs stand under the documentation arc (RFC 5612); set oid_arc to your own enterprise number before production."
        );
    }
}

/// Label of a CA key in the token.
pub fn key_label(
    trust_domain: &TrustDomain,
    hierarchy: Hierarchy,
    kind: AuthorityKind,
    generation: u32,
) -> String {
    format!("hallmark {trust_domain} {hierarchy} {} {generation}", kind.as_str())
}

fn log_key_label(config: &Config) -> String {
    format!("hallmark {} log {} 1", config.trust_domain, config.issuer_id)
}

/// The log of this issuer: its key from the token, or with `--dev` made now, in memory. `new` makes a key where
/// there is none.
///
/// # Errors
/// The key is missing, or the token refuses.
pub fn log_signer(config: &Config, token: Option<&Token>, new: bool) -> anyhow::Result<LogSigner> {
    let name: LogName = format!("{}/log/{}", config.trust_domain, config.issuer_id).parse()?;
    let Some(token) = token else {
        let mut seed = Zeroizing::new([0; 32]);
        rand::rngs::OsRng.try_fill_bytes(&mut *seed)?;
        let key = SoftwareLogKey::from_seed(&*seed)?;
        return Ok(LogSigner::in_memory(LogVerifier::new(name, key.public()), Arc::new(key)));
    };
    let label = log_key_label(config);
    let key = match token.log_key(&label) {
        Err(HsmError::KeyNotFound { .. }) if new => {
            token.generate_log_key(&label, &crate::sha256(label.as_bytes())[..16])
        }
        other => other,
    };
    let key = key.with_context(|| format!("the log's key {label:?}"))?;
    Ok(LogSigner::in_token(LogVerifier::new(name, key.public()), Arc::new(key))?)
}

fn make_in_token(
    config: &Config,
    row: &TrustDomainRow,
    arc: &OidArc,
    token: &Token,
    now: i64,
) -> anyhow::Result<Vec<store::Authority>> {
    let labels: Vec<String> = Hierarchy::ALL
        .into_iter()
        .flat_map(|h| [AuthorityKind::Root, AuthorityKind::Issuing].map(|k| key_label(&row.name, h, k, 1)))
        .chain([log_key_label(config)])
        .collect();
    let there = token.list_keys().context("listing the token's keys")?;
    if let Some(label) = labels.iter().find(|label| there.iter().any(|key| key.label == **label)) {
        bail!(
            "the token already holds a key {label:?}: it belongs to a trust domain whose store is elsewhere; use another token, or remove those keys if that trust domain is no more"
        );
    }
    let mut made = Vec::new();
    for hierarchy in Hierarchy::ALL {
        let key = |kind| -> anyhow::Result<(String, Arc<dyn CaKey>)> {
            let label = key_label(&row.name, hierarchy, kind, 1);
            let key = token
                .generate_ca_key(&label, &crate::sha256(label.as_bytes())[..16], config.curve)
                .with_context(|| format!("making {label:?}"))?;
            Ok((label, Arc::new(key)))
        };
        let (root_label, root_key) = key(AuthorityKind::Root)?;
        let (issuing_label, issuing_key) = key(AuthorityKind::Issuing)?;
        let (root_der, issuing_der) =
            certificates(config, row, arc, hierarchy, &*root_key, issuing_key.spki_der(), now)?;
        for (kind, key_label, certificate) in [
            (AuthorityKind::Root, root_label, root_der),
            (AuthorityKind::Issuing, issuing_label, issuing_der),
        ] {
            made.push(store::Authority { hierarchy, kind, generation: 1, key_label, certificate });
        }
    }
    Ok(made)
}

fn certificates(
    config: &Config,
    row: &TrustDomainRow,
    arc: &OidArc,
    hierarchy: Hierarchy,
    root_key: &dyn CaKey,
    issuing_spki: &[u8],
    now: i64,
) -> anyhow::Result<(Vec<u8>, Vec<u8>)> {
    let params = |lifetime: Duration| -> anyhow::Result<CaParams<'_>> {
        Ok(CaParams {
            trust_domain: &row.name,
            hierarchy,
            lab: row.lab,
            arc,
            serial: serial()?,
            now,
            lifetime,
        })
    };
    let root_der = root(&params(config.root_lifetime)?, root_key)?;
    let issuing_der = issuing(&params(config.issuing_lifetime)?, issuing_spki, &root_der, root_key)?;
    Ok((root_der.to_vec(), issuing_der.to_vec()))
}

/// The CAs of a trust domain that `init` made: keys from the token, or with `--dev` made now, in memory.
///
/// # Errors
/// A key is missing from the token, or a certificate does not fit its key.
pub fn load_ca(
    config: &Config,
    row: &TrustDomainRow,
    stored: &[store::Authority],
    token: Option<&Token>,
) -> anyhow::Result<Ca> {
    let mut authorities = HashMap::new();
    for hierarchy in Hierarchy::ALL {
        let authority = match token {
            Some(token) => from_token(row, stored, token, hierarchy)?,
            None => in_memory(config, row, hierarchy)?,
        };
        let revocable = matches!(hierarchy, Hierarchy::Tier(Tier::Enterprise | Tier::Advanced));
        let url = config.crl_url.as_ref().filter(|_| revocable).map(|url| format!("{url}/{hierarchy}.crl"));
        let (roots, issuing_der, issuing, key) = authority;
        let issuing = issuing.with_crl_url(url.as_deref())?;
        authorities.insert(hierarchy, Authority { roots, issuing, issuing_der: issuing_der.into(), key });
    }
    Ok(Ca::new(row.name.clone(), authorities, token.is_some()))
}

type Parts = (Vec<prost::bytes::Bytes>, Vec<u8>, IssuingCa, Arc<dyn CaKey>);

fn from_token(
    row: &TrustDomainRow,
    stored: &[store::Authority],
    token: &Token,
    hierarchy: Hierarchy,
) -> anyhow::Result<Parts> {
    let of = |kind| stored.iter().filter(move |a| a.hierarchy == hierarchy && a.kind == kind);
    let newest = of(AuthorityKind::Issuing)
        .max_by_key(|a| a.generation)
        .with_context(|| format!("the store of {} has no {hierarchy} issuing CA", row.name))?;
    let key = token.ca_key(&newest.key_label).with_context(|| format!("CA key {:?}", newest.key_label))?;
    let key: Arc<dyn CaKey> = Arc::new(key);
    let roots = of(AuthorityKind::Root).map(|a| a.certificate.clone().into()).collect();
    let issuing = IssuingCa::new(&newest.certificate, key.clone())
        .with_context(|| format!("{hierarchy} issuing CA"))?;
    Ok((roots, newest.certificate.clone(), issuing, key))
}

fn in_memory(config: &Config, row: &TrustDomainRow, hierarchy: Hierarchy) -> anyhow::Result<Parts> {
    let arc = OidArc::parse(&row.oid_arc)?;
    let (root_key, key) = (software_key(config.curve)?, Arc::new(software_key(config.curve)?));
    let (root_der, issuing_der) =
        certificates(config, row, &arc, hierarchy, &root_key, key.spki_der(), unix_now())?;
    let issuing = IssuingCa::new(&issuing_der, key.clone())?;
    Ok((vec![root_der.into()], issuing_der, issuing, key))
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

/// Writes what anybody may have: each root by itself, and the three tiers' together. The infrastructure
/// root is in a file of its own, for host daemons.
///
/// # Errors
/// The directory cannot be written.
pub fn publish(dir: &Path, roots: &[(Hierarchy, Vec<u8>)]) -> anyhow::Result<()> {
    std::fs::create_dir_all(dir).with_context(|| dir.display().to_string())?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o755))?;
    let mut bundle = String::new();
    for hierarchy in Hierarchy::ALL {
        let pem: String = roots.iter().filter(|(h, _)| *h == hierarchy).map(|(_, der)| to_pem(der)).collect();
        if hierarchy != Hierarchy::Infrastructure {
            bundle.push_str(&pem);
        }
        replace_file(&dir.join(format!("{hierarchy}.pem")), pem.as_bytes())?;
    }
    replace_file(&dir.join("bundle.pem"), bundle.as_bytes())
}

fn to_pem(der: &[u8]) -> String {
    pem::encode_config(
        &pem::Pem::new("CERTIFICATE", der),
        pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF),
    )
}

/// Writes a file that readers see whole or not at all, mode 0644.
///
/// # Errors
/// The directory cannot be written.
pub fn replace_file(path: &Path, content: &[u8]) -> anyhow::Result<()> {
    use std::io::Write;
    let new = path.with_extension("new");
    let mut file = std::fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o644)
        .open(&new)
        .with_context(|| new.display().to_string())?;
    file.set_permissions(std::fs::Permissions::from_mode(0o644))?;
    file.write_all(content)?;
    file.sync_all()?;
    std::fs::rename(&new, path).with_context(|| path.display().to_string())
}

fn serial() -> anyhow::Result<Serial> {
    let mut bytes = [0; 16];
    rand::rngs::OsRng.try_fill_bytes(&mut bytes).context("random bytes")?;
    Ok(Serial::from_random(bytes))
}

fn unix_now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|d| i64::try_from(d.as_secs()).ok())
        .unwrap_or_default()
}
