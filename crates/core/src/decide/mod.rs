//! The decision on one issuance, and why.
//!
//! [`decide`] takes a registration, what is known of the host and of the agent, and the trust domain's
//! rules, and gives a [`Grant`] or a [`Refusal`] that lists every requirement not met. A tier is earned by
//! evidence: the registration names the tier that the agent must have, and there is no grant below it.
//!
//! [`explain`] and [`highest_tier`] answer from the same checks, so they cannot say other than what
//! `decide` would do.
//!
//! **Not in scope:** appraising evidence. What comes in here has been appraised; nothing here reads a quote
//! or a signature.

mod check;
mod explain;
mod requirement;
mod standing;

use std::collections::BTreeSet;
use std::time::Duration;

use crate::id::{HostId, InstanceId, Subject};
use crate::registration::{Registered, Registration};
use crate::tier::{Custody, Tier};

use check::{Case, State, Words};

pub use explain::{Explained, ExplainedState, TierExplanation, explain, highest_tier};
pub use requirement::{Attack, Requirement};
pub use standing::{
    AgentStanding, EkTrust, HostProof, HostStanding, KeyStanding, Lifetimes, PcrStanding, Pkcs11Assertion,
    TrustRules,
};

/// How far ahead of our clock an attestation or a quote may lie, in seconds: the record of another issuer,
/// whose clock differs.
pub const CLOCK_SKEW: i64 = 30;

/// Decides one issuance at `now` (seconds since 1970-01-01 UTC).
///
/// # Errors
/// A [`Refusal`] with every requirement that was not met, never only the first.
pub fn decide(
    registered: &Registered,
    host: &HostStanding,
    agent: &AgentStanding,
    rules: &TrustRules,
    now: i64,
) -> Result<Grant, Refusal> {
    let registration = &registered.registration;
    let (tier, agent_shown) = (registration.tier(), Some(agent));
    let case = Case { tier, registration, host, agent: agent_shown, rules, now, words: Words::Unmet };
    let unmet: Vec<Unmet> = case
        .requirements()
        .map(|requirement| (requirement, case.check(requirement)))
        .filter(|(_, finding)| finding.state != State::Met)
        .map(|(requirement, finding)| Unmet { requirement, detail: finding.found })
        .collect();
    if unmet.is_empty() { Ok(Grant::new(registered, host, agent, rules)) } else { Err(Refusal { unmet }) }
}

/// The permission to issue one certificate, and all that the certificate will say. Only [`decide`] makes one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Grant {
    subject: Subject,
    instance: InstanceId,
    spki: Vec<u8>,
    tier: Tier,
    custody: Custody,
    lifetime: Duration,
    dns_names: BTreeSet<String>,
    owner: String,
    host_id: HostId,
    attested_at: i64,
    evidence_digest: [u8; 32],
    registration_digest: [u8; 32],
    registration_revision: u64,
}

impl Grant {
    fn new(registered: &Registered, host: &HostStanding, agent: &AgentStanding, rules: &TrustRules) -> Self {
        let registration: &Registration = &registered.registration;
        let tier = registration.tier();
        let simulated = matches!(host.proof, HostProof::Tpm { simulated: true, .. });
        let custody = match agent.key.custody() {
            Custody::TpmCertified if simulated => Custody::Simulated,
            shown => shown,
        };
        Self {
            subject: Subject::Agent(registration.name().clone()),
            instance: agent.instance,
            spki: agent.spki.clone(),
            tier,
            custody,
            lifetime: registration.lifetime().min(rules.lifetimes.max(tier)),
            dns_names: registration.dns_names().clone(),
            owner: registration.owner().to_owned(),
            host_id: host.host_id.clone(),
            attested_at: host.quote_at.unwrap_or(host.attested_at),
            evidence_digest: host.evidence_digest,
            registration_digest: registration.digest(),
            registration_revision: registered.revision,
        }
    }

    /// Whom the certificate names, within the issuer's trust domain.
    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    /// Which run of the agent.
    pub fn instance(&self) -> InstanceId {
        self.instance
    }

    /// The key to certify: SubjectPublicKeyInfo, DER. No other may be signed under this grant.
    pub fn spki(&self) -> &[u8] {
        &self.spki
    }

    /// The tier earned, which is the one registered.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// How the key is kept, as was shown.
    pub fn custody(&self) -> Custody {
        self.custody
    }

    /// From now to notAfter.
    pub fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// DNS names to certify, in order.
    pub fn dns_names(&self) -> &BTreeSet<String> {
        &self.dns_names
    }

    /// The accountable party.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// The host through which it is issued.
    pub fn host_id(&self) -> &HostId {
        &self.host_id
    }

    /// When the host last proved itself: its last quote, or its attestation where there is none.
    pub fn attested_at(&self) -> i64 {
        self.attested_at
    }

    /// Digest of the host's evidence.
    pub fn evidence_digest(&self) -> &[u8; 32] {
        &self.evidence_digest
    }

    /// Digest of the registration's canonical text.
    pub fn registration_digest(&self) -> &[u8; 32] {
        &self.registration_digest
    }

    /// Revision under which the registration was in force.
    pub fn registration_revision(&self) -> u64 {
        self.registration_revision
    }
}

/// A decision not to issue.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, thiserror::Error)]
#[error("requirements not met: {}", .unmet.iter().map(ToString::to_string).collect::<Vec<_>>().join("; "))]
pub struct Refusal {
    /// Every requirement not met, in the order of [`Requirement::ALL`]; at least one.
    pub unmet: Vec<Unmet>,
}

impl Refusal {
    /// The refusal in one word for machines.
    pub const CODE: &'static str = "requirements-not-met";

    /// Whether trying again can help without anyone's change: all that is missing is a newer proof of the host.
    pub fn retryable(&self) -> bool {
        self.unmet.iter().all(|u| matches!(u.requirement, Requirement::HostProved | Requirement::FreshQuote))
    }
}

/// One requirement that was not met.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Unmet {
    /// Which.
    #[serde(rename = "code")]
    pub requirement: Requirement,
    /// What was found and what would be needed, for people.
    pub detail: String,
}

impl std::fmt::Display for Unmet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.requirement, self.detail)
    }
}

#[cfg(test)]
mod tests;
