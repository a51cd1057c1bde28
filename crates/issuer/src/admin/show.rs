//! What operators are shown, as the wire carries it.

use hallmark_core::decide;
use hallmark_core::tier::Hierarchy;
use hallmark_proto::admin as wire;

use crate::issuer::Issuer;
use crate::store::{AuthorityKind, InstanceRow};

pub(super) fn pending(allowed: &crate::store::AllowedEk) -> wire::Host {
    wire::Host {
        host_id: allowed.host_id.to_string(),
        proof: "tpm".to_owned(),
        ek_digest: hex::encode(allowed.ek_digest),
        ek_trust: if allowed.hardware { "vouched" } else { "allow-list" }.to_owned(),
        highest_tier: "none".to_owned(),
        pending: true,
        ..wire::Host::default()
    }
}

pub(super) fn instance(row: &InstanceRow, now: i64) -> wire::Instance {
    let state = match &row.end_reason {
        Some(reason) => reason.clone(),
        None if row.not_after <= now => "expired".to_owned(),
        None => "live".to_owned(),
    };
    wire::Instance {
        instance_id: row.instance_id.to_string(),
        host_id: row.host_id.clone(),
        serial: hex::encode(&row.serial),
        custody: row.custody.clone(),
        begun_at: i64::try_from(row.instance_id.drawn_ms() / 1000).unwrap_or_default(),
        issued_at: row.issued_at,
        not_after: row.not_after,
        state,
    }
}

pub(super) fn explained(tier: decide::TierExplanation) -> wire::TierExplanation {
    wire::TierExplanation {
        tier: tier.tier.to_string(),
        reachable: tier.reachable,
        requirements: tier
            .requirements
            .into_iter()
            .map(|r| wire::Requirement {
                code: r.requirement.code().to_owned(),
                title: r.requirement.title().to_owned(),
                state: r.state.as_str().to_owned(),
                found: r.found,
                attack: r.attack.as_str().to_owned(),
                attack_detail: r.attack_detail.to_owned(),
            })
            .collect(),
    }
}

pub(super) async fn cas(issuer: &Issuer) -> Result<Vec<wire::CaStatus>, crate::store::StoreError> {
    let stored = issuer.store().authorities().await?;
    if stored.is_empty() {
        return Ok(Hierarchy::ALL.into_iter().flat_map(|h| in_memory(issuer, h)).collect());
    }
    Ok(stored.iter().map(|a| ca_status(a.hierarchy, a.kind.as_str(), &a.certificate, &a.key_label)).collect())
}

fn in_memory(issuer: &Issuer, hierarchy: Hierarchy) -> Vec<wire::CaStatus> {
    let Some(authority) = issuer.ca().authority(hierarchy) else { return Vec::new() };
    let key = "in memory (--dev)";
    let roots =
        authority.roots.iter().map(|der| ca_status(hierarchy, AuthorityKind::Root.as_str(), der, key));
    roots
        .chain([ca_status(hierarchy, AuthorityKind::Issuing.as_str(), &authority.issuing_der, key)])
        .collect()
}

/// A CA certificate as status shows it; one that cannot be read shows as such instead of failing.
pub(crate) fn ca_status(hierarchy: Hierarchy, kind: &str, der: &[u8], key: &str) -> wire::CaStatus {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let mut out = wire::CaStatus {
        hierarchy: hierarchy.to_string(),
        kind: kind.to_owned(),
        key: key.to_owned(),
        subject: "unreadable".to_owned(),
        ..wire::CaStatus::default()
    };
    if let Ok((_, certificate)) = X509Certificate::from_der(der) {
        out.subject = certificate.subject().to_string();
        out.serial = hex::encode(certificate.raw_serial());
        out.not_before = certificate.validity().not_before.timestamp();
        out.not_after = certificate.validity().not_after.timestamp();
    }
    out
}
