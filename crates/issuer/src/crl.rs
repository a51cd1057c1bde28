//! Certificate revocation lists: written to the public directory, for any web server to serve.
//!
//! One list for each issuing CA of a tier that has revocation (enterprise, advanced), signed by that CA for as long as
//! what it signed may live, also once another has taken its place; written anew when a certificate is revoked, and at the
//! latest every half of its validity.

use std::sync::Arc;
use std::time::Duration;

use hallmark_core::tier::{Hierarchy, Tier};
use hallmark_core::x509::{CrlParams, Reason, Revoked, Serial};

use crate::authority::list_name;
use crate::init::replace_file;
use crate::issuer::Issuer;
use crate::metrics::metrics;

/// From thisUpdate to nextUpdate.
const VALIDITY: Duration = Duration::from_secs(3600);
/// After a list could not be written.
const RETRY: Duration = Duration::from_secs(10);
/// Revocations that come together go into one list. A whole second: the next list has another number.
const GATHER: Duration = Duration::from_secs(1);

/// Writes the lists whenever they are due, until the issuer drains.
pub async fn run(issuer: Arc<Issuer>) {
    loop {
        let again = match write(&issuer).await {
            Ok(()) => {
                metrics().crl_written(issuer.now());
                VALIDITY / 2
            }
            Err(error) => {
                tracing::error!(%error, again_s = RETRY.as_secs(), "a CRL could not be written; the old one stands for now");
                RETRY
            }
        };
        let _ = tokio::time::timeout(again, issuer.crl_wanted()).await;
        if issuer.is_draining() {
            return;
        }
        tokio::time::sleep(GATHER).await;
    }
}

async fn write(issuer: &Arc<Issuer>) -> anyhow::Result<()> {
    let now = issuer.now();
    // RFC 5280 section 3.3: an entry stays until one list after its certificate's end has been issued.
    let listed = now - i64::try_from(VALIDITY.as_secs())?;
    let revocations = issuer.store().revocations(listed).await?;
    let dir = issuer.config().public_dir().join("crl");
    tokio::fs::create_dir_all(&dir).await?;
    let mut failed = None;
    let in_force = issuer.ca().in_force();
    for hierarchy in [Tier::Enterprise, Tier::Advanced].map(Hierarchy::Tier) {
        for issuing in in_force.issuing(hierarchy).cloned() {
            let of = revocations.iter().filter(|r| r.hierarchy == hierarchy && r.ca == issuing.generation);
            let revoked: Vec<Revoked> = of
                .filter_map(|r| {
                    let serial = Serial::from_bytes(&r.serial).ok()?;
                    Some(Revoked { serial, at: r.revoked_at, reason: reason(&r.reason) })
                })
                .collect();
            let name = list_name(hierarchy, issuing.generation);
            let path = dir.join(&name);
            let written = tokio::task::spawn_blocking(move || -> anyhow::Result<()> {
                let next_update = now.saturating_add(i64::try_from(VALIDITY.as_secs())?);
                // RFC 5280 section 5.2.3: numbers grow; seconds do, and a restart cannot take them back.
                let number = u64::try_from(now)?;
                let der = issuing.ca.crl(&CrlParams {
                    this_update: now,
                    next_update,
                    number,
                    revoked: &revoked,
                })?;
                replace_file(&path, &der)
            })
            .await?;
            // One that fails does not keep the others back.
            if let Err(error) = written {
                failed = Some(error.context(name));
            }
        }
    }
    failed.map_or(Ok(()), Err)
}

/// RFC 5280 section 5.3.1.
fn reason(word: &str) -> Reason {
    match word {
        "superseded" | "ca-tainted" => Reason::Superseded,
        "registration-changed"
        | "registration-removed"
        | "host-disabled"
        | "host-removed"
        | "host-standing"
        | "revoked"
        | "operator" => Reason::PrivilegeWithdrawn,
        _ => Reason::CessationOfOperation,
    }
}
