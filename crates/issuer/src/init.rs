//! Making a trust domain, once: four roots and their issuing CAs, and what anybody may have of them.

use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use hallmark_core::log::{LogKey, LogName, LogVerifier, SoftwareLogKey};
use hallmark_core::rotation::{Role, Stage};
use hallmark_core::tier::Hierarchy;
use hallmark_core::x509::OidArc;
use hallmark_hsm::{HsmError, Token};
use rand::TryRngCore;
use zeroize::Zeroizing;

use crate::authority::{Maker, issuing_label, root_label};
use crate::config::{CaBackend, Config, Roots, StoreConfig};
use crate::record::{Kind, Record};
use crate::store::{Authority, LogSigner, Opened, Store, TrustDomainRow, Write};
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
        return join(config, options, store, there).await;
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
    let token = match &config.ca {
        CaBackend::Pkcs11(pkcs11) => Some(token::open(pkcs11)?),
        CaBackend::Software => None,
    };
    let made = match &token {
        Some(token) => make(&Maker { config: &config, trust_domain: &row, token }, now)?,
        None => Vec::new(),
    };
    for made in &made {
        writes.push(Write::Authority(Box::new(made.clone())));
        writes.push(Write::Record(made_entry(&row, made, now)));
    }
    let signer = log_signer(&config, token.as_ref(), true)?;
    store.write_with(signer).await?.commit(writes).await?;
    let roots: Vec<_> = made.iter().filter(|a| a.role == Role::Root).collect();
    if !roots.is_empty() {
        let roots: Vec<_> = roots.iter().map(|a| (a.hierarchy, a.certificate.clone())).collect();
        publish(&config.public_dir(), &roots)?;
    }
    report(&config, &row, &arc);
    Ok(())
}

/// Joins a trust domain that another issuer has made in a store that both share: with a log and issuing CAs of its own,
/// under the roots that are there.
async fn join(config: Config, options: Options, store: Opened, row: TrustDomainRow) -> anyhow::Result<()> {
    let place = match &config.store {
        StoreConfig::Sqlite => config.data_dir.display().to_string(),
        StoreConfig::Postgres(postgres) => postgres.place(),
    };
    let stored = store.authorities().await?;
    let own = config.issuer_id.as_str();
    if config.store == StoreConfig::Sqlite || stored.iter().any(|a| a.issuer == own) {
        bail!("{place} already holds trust domain {}, with issuer {own}; nothing was changed", row.name);
    }
    if row.name != config.trust_domain {
        bail!("{place} holds trust domain {}, and the configuration says {}", row.name, config.trust_domain);
    }
    if options.lab && !row.lab {
        bail!(
            "{place} holds trust domain {}, which was made without --lab: that cannot be changed",
            row.name
        );
    }
    let CaBackend::Pkcs11(pkcs11) = &config.ca else {
        bail!("ca.backend = \"software\": an issuer that joins needs its CA keys in a token");
    };
    let token = token::open(pkcs11)?;
    let now = unix_now();
    let maker = Maker { config: &config, trust_domain: &row, token: &token };
    let mut writes = Vec::new();
    for hierarchy in Hierarchy::ALL {
        let of = |role| stored.iter().filter(move |a| a.hierarchy == hierarchy && a.role == role);
        // Counted over all issuers.
        let generation = of(Role::Issuing).map(|a| a.generation).max().unwrap_or_default() + 1;
        let made = if config.roots == Roots::Offline {
            maker.request(hierarchy, generation, now)?
        } else {
            let root = of(Role::Root)
                .filter(|a| a.stage == Stage::Active)
                .max_by_key(|a| a.generation)
                .with_context(|| format!("no {hierarchy} root is in force in {place}"))?;
            let made = maker.issuing(generation, root, now).with_context(|| {
                format!(
                    "the {hierarchy} root's key must be within reach: in this token, or in ca.root_token; or set ca.root = \"offline\" and have the requests signed"
                )
            })?;
            Authority { stage: Stage::Active, activated_at: Some(now), ..made }
        };
        writes.push(Write::Record(made_entry(&row, &made, now)));
        writes.push(Write::Authority(Box::new(made)));
    }
    let signer = log_signer(&config, Some(&token), true)?;
    let store = store.write_with(signer).await?;
    store.commit(writes).await.context("another issuer changed the CAs at the same moment: run it again")?;
    let in_bundle = stored.iter().filter(|a| a.role == Role::Root && a.seen("", false).is_in_bundle());
    let roots: Vec<_> = in_bundle.map(|a| (a.hierarchy, a.certificate.clone())).collect();
    publish(&config.public_dir(), &roots)?;
    println!("Issuer {own} joined trust domain {} in {place}.", row.name);
    println!("  It has issuing CAs and a log of its own (hallmark log key); the roots are those of before.");
    if config.roots == Roots::Offline {
        println!(
            "  Its CAs cannot sign until the roots have signed their requests: hallmark ca csr, hallmark ca install."
        );
    }
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
    } else if config.roots == Roots::Offline {
        println!(
            "  CA keys: four issuing CAs, in the PKCS#11 token. None can sign until a root has signed its request:"
        );
        println!("  start the issuer, then for each of foundation, enterprise, advanced, infrastructure:");
        println!("    hallmark ca csr HIERARCHY > HIERARCHY.csr");
        println!("    hallmark ca install HIERARCHY CERTIFICATE.pem --root ROOT.pem");
    } else {
        println!(
            "  CA keys: four roots and four issuing CAs, in the PKCS#11 token{}.",
            match config.roots {
                Roots::Token(_) => "s of ca.root_token and ca.pkcs11",
                _ => "",
            }
        );
        println!("  For host daemons:    {}", config.public_dir().join("infrastructure.pem").display());
        println!("  For relying parties: {}", config.public_dir().join("bundle.pem").display());
    }
    if arc.is_documentation() {
        println!(
            "  OIDs stand under the documentation arc (RFC 5612); set oid_arc to your own enterprise number before production."
        );
    }
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

/// Four roots and issuing CAs under them, in force from here on; with an offline root, keys that wait for certificates.
fn make(maker: &Maker<'_>, now: i64) -> anyhow::Result<Vec<Authority>> {
    let Maker { config, trust_domain, token } = *maker;
    let offline = config.roots == Roots::Offline;
    let name = &trust_domain.name;
    let issuing = Hierarchy::ALL.map(|h| issuing_label(name, &config.issuer_id, h, 1));
    unused(token, issuing.into_iter().chain([log_key_label(config)]))?;
    if !offline {
        unused(&maker.roots()?, Hierarchy::ALL.map(|h| root_label(name, h, 1)))?;
    }
    let mut made = Vec::new();
    for hierarchy in Hierarchy::ALL {
        if offline {
            made.push(maker.request(hierarchy, 1, now)?);
            continue;
        }
        let root = maker.root(hierarchy, 1, now)?;
        let issuing = maker.issuing(1, &root, now)?;
        let (stage, activated_at) = (Stage::Active, Some(now));
        made.push(Authority { stage, activated_at, published_at: Some(now), ..root });
        made.push(Authority { stage, activated_at, ..issuing });
    }
    Ok(made)
}

fn unused(token: &Token, labels: impl IntoIterator<Item = String>) -> anyhow::Result<()> {
    let there = token.list_keys().context("listing the token's keys")?;
    for label in labels {
        if there.iter().any(|key| key.label == label) {
            bail!(
                "the token already holds a key {label:?}: it belongs to a trust domain whose store is elsewhere; use another token, or remove those keys if that trust domain is no more"
            );
        }
    }
    Ok(())
}

fn made_entry(row: &TrustDomainRow, made: &Authority, now: i64) -> crate::record::Entry {
    let certificate = &made.certificate;
    Record {
        authority: Some(made.name()),
        certificate_sha256: (!certificate.is_empty()).then(|| hex::encode(crate::sha256(certificate))),
        not_after: made.validity().map(|(_, end)| end),
        lab: row.lab,
        ..Record::default()
    }
    .entry(now, Kind::Ca, "made", None)
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

fn unix_now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|d| i64::try_from(d.as_secs()).ok())
        .unwrap_or_default()
}
