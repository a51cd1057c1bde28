//! From core types to the wire: small, and in one place.

use hallmark_core::decide::Unmet;
use hallmark_core::evidence::EventLogFinding;
use hallmark_core::pcr::{PcrError, PcrValues};
use hallmark_core::tier::{Hierarchy, Tier};
use hallmark_proto::issuer as wire;
use prost::bytes::Bytes;

use crate::ca::{Ca, Renewal};

/// One requirement not met.
pub fn unmet(unmet: &Unmet) -> wire::Unmet {
    wire::Unmet { code: unmet.requirement.code().to_owned(), detail: unmet.detail.clone() }
}

/// The roots of each tier; never the infrastructure root.
pub fn bundles(trust_domain: &str, ca: &Ca) -> wire::BundleSet {
    let in_force = ca.in_force();
    let tiers = Tier::ALL
        .into_iter()
        .map(|tier| wire::TierRoots { tier: tier.to_string(), roots: in_force.roots(Hierarchy::Tier(tier)) })
        .collect();
    wire::BundleSet { trust_domain: trust_domain.to_owned(), revision: in_force.bundle_revision, tiers }
}

/// An update that carries the infrastructure roots.
pub fn infrastructure_update(ca: &Ca) -> wire::HostUpdate {
    let in_force = ca.in_force();
    let roots = wire::InfrastructureRoots {
        revision: in_force.infrastructure_revision,
        roots: in_force.roots(Hierarchy::Infrastructure),
        denied: in_force.denied.iter().map(|key| Bytes::copy_from_slice(key)).collect(),
    };
    wire::HostUpdate { update: Some(wire::host_update::Update::Infrastructure(roots)) }
}

/// An order to renew what tainted CAs signed, within what is left of the time for it.
pub fn renew_update(renewals: &[Renewal], now: i64) -> wire::HostUpdate {
    let latest = renewals.iter().map(|r| r.until).max().unwrap_or(now);
    let renew = wire::Renew {
        authorities: renewals.iter().map(|r| Bytes::copy_from_slice(&r.authority)).collect(),
        within_seconds: u64::try_from(latest.saturating_sub(now)).unwrap_or_default(),
    };
    wire::HostUpdate { update: Some(wire::host_update::Update::Renew(renew)) }
}

/// An update that carries registrations.
pub fn registrations_update(set: wire::RegistrationSet) -> wire::HostUpdate {
    wire::HostUpdate { update: Some(wire::host_update::Update::Registrations(set)) }
}

/// An update that carries bundles.
pub fn bundles_update(set: wire::BundleSet) -> wire::HostUpdate {
    wire::HostUpdate { update: Some(wire::host_update::Update::Bundles(set)) }
}

/// An update that carries revoked serials.
pub fn revocations_update(serials: impl IntoIterator<Item = Vec<u8>>) -> wire::HostUpdate {
    let serials = serials.into_iter().map(Bytes::from).collect();
    wire::HostUpdate { update: Some(wire::host_update::Update::Revocations(wire::Revocations { serials })) }
}

/// An order to attest again at once.
pub fn attest_now(reason: &str) -> wire::HostUpdate {
    let order = wire::AttestNow { reason: reason.to_owned() };
    wire::HostUpdate { update: Some(wire::host_update::Update::AttestNow(order)) }
}

/// Quoted PCR values as a host sent them.
///
/// # Errors
/// An index over 23, one twice, or a value that is not 32 bytes.
pub fn pcr_values(values: &[wire::PcrValue]) -> Result<PcrValues, PcrError> {
    PcrValues::new(values.iter().map(|v| (v.index, v.sha256.as_ref())))
}

/// What an event log added, in one line for status.
pub fn event_log(finding: &EventLogFinding) -> String {
    match finding {
        EventLogFinding::Absent => "none".to_owned(),
        EventLogFinding::Sha1Only => "old form, sha1 only: says nothing of the quoted bank".to_owned(),
        EventLogFinding::Consistent { events, matching, other_mismatches, .. } => {
            let beyond = if other_mismatches.is_empty() {
                String::new()
            } else {
                format!(", {} later PCRs beyond it", other_mismatches.len())
            };
            format!("{events} events account for {} quoted PCRs{beyond}", matching.len())
        }
    }
}
