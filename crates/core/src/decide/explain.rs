//! The same checks, asked beforehand.

use serde::Serialize;

use super::check::{Case, State, Words, check_host};
use super::{Attack, HostStanding, Requirement, TrustRules, Unmet};
use crate::registration::Registration;
use crate::tier::Tier;

/// One tier, held against a registration on a host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct TierExplanation {
    /// The tier.
    pub tier: Tier,
    /// Nothing known so far keeps the registration from it.
    pub reachable: bool,
    /// Each of its requirements.
    pub requirements: Vec<Explained>,
}

/// One requirement, held against what is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Explained {
    /// Which.
    #[serde(rename = "code")]
    pub requirement: Requirement,
    /// Met or not.
    pub state: ExplainedState,
    /// What was found.
    pub found: String,
    /// What this control does to the attack it is there for.
    pub attack: Attack,
    /// That attack, and what is left over, for people.
    pub attack_detail: &'static str,
}

/// Whether a requirement is met.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum ExplainedState {
    /// It is.
    Met,
    /// It is not.
    Unmet,
    /// Only the request itself can tell.
    AtIssuance,
}

impl ExplainedState {
    /// `met`, `unmet` or `at-issuance`.
    pub fn as_str(self) -> &'static str {
        match self {
            ExplainedState::Met => "met",
            ExplainedState::Unmet => "unmet",
            ExplainedState::AtIssuance => "at-issuance",
        }
    }
}

/// For each tier, in rising order, what it demands of this registration on this host and what is met at
/// `now`.
pub fn explain(
    registration: &Registration,
    host: &HostStanding,
    rules: &TrustRules,
    now: i64,
) -> Vec<TierExplanation> {
    Tier::ALL
        .into_iter()
        .map(|tier| {
            explain_tier(&Case { tier, registration, host, agent: None, rules, now, words: Words::Always })
        })
        .collect()
}

fn explain_tier(case: &Case<'_>) -> TierExplanation {
    let requirements: Vec<Explained> = case
        .requirements()
        .map(|requirement| {
            let finding = case.check(requirement);
            let (attack, attack_detail) = requirement.attack();
            let state = match finding.state {
                State::Met => ExplainedState::Met,
                State::Unmet => ExplainedState::Unmet,
                State::AtIssuance => ExplainedState::AtIssuance,
            };
            Explained { requirement, state, found: finding.found, attack, attack_detail }
        })
        .collect();
    let reachable = requirements.iter().all(|r| r.state != ExplainedState::Unmet);
    TierExplanation { tier: case.tier, reachable, requirements }
}

/// The highest tier that the host's own evidence supports at `now`, whatever agent runs on it, and
/// everything that keeps it from the highest of all. `None`: not even foundation.
pub fn highest_tier(host: &HostStanding, rules: &TrustRules, now: i64) -> (Option<Tier>, Vec<Unmet>) {
    let lacking = |tier: Tier| -> Vec<Unmet> {
        Requirement::ALL
            .into_iter()
            .filter(|r| r.of_host() && r.of_tier(tier))
            .map(|requirement| (requirement, check_host(requirement, host, rules, now, Words::Unmet)))
            .filter(|(_, finding)| finding.state != State::Met)
            .map(|(requirement, finding)| Unmet { requirement, detail: finding.found })
            .collect()
    };
    let highest = Tier::ALL.into_iter().rev().find(|&tier| lacking(tier).is_empty());
    (highest, lacking(Tier::Advanced))
}
