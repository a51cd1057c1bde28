//! What operators are shown, as the wire carries it.

use hallmark_core::decide;
use hallmark_core::rotation::{Role, Stage};
use hallmark_core::tier::Hierarchy;
use hallmark_proto::admin as wire;

use crate::authority;
use crate::issuer::Issuer;
use crate::store::{Authority, InstanceRow, Witnessing};

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

/// The CAs that are not over, or all; in order of their hierarchy, roots first.
pub(crate) async fn cas(issuer: &Issuer, all: bool) -> Result<Vec<wire::CaStatus>, crate::store::StoreError> {
    let stored = issuer.store().authorities().await?;
    if issuer.token().is_none() {
        return Ok(Hierarchy::ALL.into_iter().flat_map(|h| in_memory(issuer, h)).collect());
    }
    Ok(shown(issuer, &stored, all))
}

/// As [`cas`], of these.
pub(super) fn shown(issuer: &Issuer, stored: &[Authority], all: bool) -> Vec<wire::CaStatus> {
    let config = issuer.config();
    let mut shown = Vec::new();
    for hierarchy in Hierarchy::ALL {
        let (issuing_due, root_due) = authority::due(&config, stored, hierarchy);
        let of = stored.iter().filter(|a| a.hierarchy == hierarchy && (all || a.stage != Stage::Retired));
        shown.extend(of.map(|a| {
            let due = match a.role {
                Role::Issuing if a.issuer == config.issuer_id.as_str() => issuing_due,
                Role::Issuing => None,
                Role::Root => root_due,
            };
            let at = Option::unwrap_or_default;
            wire::CaStatus {
                generation: a.generation,
                issuer: a.issuer.clone(),
                root: a.root,
                state: a.stage.as_str().to_owned(),
                made_at: a.made_at,
                published_at: at(a.published_at),
                activated_at: at(a.activated_at),
                replaced_at: at(a.replaced_at),
                tainted_at: at(a.tainted_at),
                withdrawn_at: at(a.withdrawn_at),
                retired_at: at(a.retired_at),
                last_not_after: at(a.last_not_after),
                due_at: at(due.filter(|_| a.stage == Stage::Active)),
                ..ca_status(hierarchy, a.role.as_str(), &a.certificate, &a.key_label)
            }
        }));
    }
    shown
}

fn in_memory(issuer: &Issuer, hierarchy: Hierarchy) -> Vec<wire::CaStatus> {
    let in_force = issuer.ca().in_force();
    let status = |role: Role, der: &[u8]| wire::CaStatus {
        generation: 1,
        root: u32::from(role == Role::Issuing),
        state: Stage::Active.as_str().to_owned(),
        ..ca_status(hierarchy, role.as_str(), der, "in memory (--dev)")
    };
    let roots = in_force.roots(hierarchy).into_iter().map(|der| status(Role::Root, &der));
    roots.chain(in_force.issuing(hierarchy).map(|i| status(Role::Issuing, &i.der))).collect()
}

/// A CA certificate as status shows it; one that cannot be read shows as such instead of failing.
pub(crate) fn ca_status(hierarchy: Hierarchy, kind: &str, der: &[u8], key: &str) -> wire::CaStatus {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let mut out = wire::CaStatus {
        hierarchy: hierarchy.to_string(),
        kind: kind.to_owned(),
        key: key.to_owned(),
        subject: if der.is_empty() { "no certificate yet" } else { "unreadable" }.to_owned(),
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

/// The log's witnesses, and what each last said.
pub(super) fn witnesses(witnessing: &Witnessing) -> wire::WitnessesStatus {
    let shown = witnessing.shown();
    let board = witnessing.board().clone();
    let at = board.into_iter().map(|standing| wire::WitnessStatus {
        name: standing.name,
        url: standing.url,
        cosigned_size: standing.size,
        cosigned_at: i64::try_from(standing.at).unwrap_or(i64::MAX),
        problem: standing.problem.unwrap_or_default(),
    });
    wire::WitnessesStatus {
        quorum: u32::try_from(witnessing.needed()).unwrap_or(u32::MAX),
        required: witnessing.is_required(),
        published_size: shown.as_ref().map_or(0, |shown| shown.checkpoint.size),
        witnessed: shown.is_some_and(|shown| shown.witnessed),
        at: at.collect(),
    }
}
