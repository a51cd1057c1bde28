//! One check for each requirement.

use std::collections::BTreeSet;

use super::{
    AgentStanding, CLOCK_SKEW, EkTrust, HostProof, HostStanding, KeyStanding, PcrStanding, Requirement,
    TrustRules,
};
use crate::registration::Registration;
use crate::selector::unmatched;
use crate::tier::{Custody, Tier};

/// Everything one decision looks at. Without an agent it is a question asked beforehand.
pub(super) struct Case<'a> {
    /// The tier in question: the registration's, except where another is being explained.
    pub(super) tier: Tier,
    pub(super) registration: &'a Registration,
    pub(super) host: &'a HostStanding,
    pub(super) agent: Option<&'a AgentStanding>,
    pub(super) rules: &'a TrustRules,
    pub(super) now: i64,
    pub(super) words: Words,
}

/// Whether a requirement that is met is put into words.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Words {
    /// It is: somebody wants to read it.
    Always,
    /// It is not: a decision lists what is missing alone.
    Unmet,
}

impl Words {
    fn met(self, found: impl FnOnce() -> String) -> Finding {
        let found = if self == Words::Always { found() } else { String::new() };
        Finding { state: State::Met, found }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Met,
    Unmet,
    /// There is no agent to look at yet.
    AtIssuance,
}

/// What a check found.
pub(super) struct Finding {
    pub(super) state: State,
    pub(super) found: String,
}

fn unmet(found: impl Into<String>) -> Finding {
    Finding { state: State::Unmet, found: found.into() }
}

fn at_issuance(found: impl Into<String>) -> Finding {
    Finding { state: State::AtIssuance, found: found.into() }
}

impl Case<'_> {
    /// What the tier and the registered custody demand, in order.
    pub(super) fn requirements(&self) -> impl Iterator<Item = Requirement> + use<> {
        let (tier, custody) = (self.tier, self.registration.key().custody);
        Requirement::ALL.into_iter().filter(move |r| r.of_tier(tier) || r.of_custody(custody))
    }

    pub(super) fn check(&self, requirement: Requirement) -> Finding {
        match requirement {
            Requirement::HostNamed => self.host_named(),
            Requirement::Selectors => self.selectors(),
            Requirement::CodeIdentity => self.code_identity(),
            Requirement::KeyCustody => self.key_custody(),
            Requirement::HardwareKey => self.hardware_key(),
            Requirement::KeyPcrBinding => self.key_pcr_binding(),
            Requirement::Pkcs11Accepted => pkcs11_accepted(self.rules, self.words),
            Requirement::Pkcs11Attributes => self.pkcs11_attributes(),
            Requirement::HostEnabled
            | Requirement::HostProved
            | Requirement::HostTpm
            | Requirement::HardwareTpm
            | Requirement::PcrPolicy
            | Requirement::FreshQuote => check_host(requirement, self.host, self.rules, self.now, self.words),
        }
    }

    fn host_named(&self) -> Finding {
        let (host, name) = (&self.host.host_id, self.registration.name());
        match self.registration.hosts().iter().find(|pattern| pattern.matches(host)) {
            Some(pattern) => self
                .words
                .met(|| format!("host {host} is named by {pattern:?}", pattern = pattern.to_string())),
            None => {
                let hosts: Vec<String> = self.registration.hosts().iter().map(ToString::to_string).collect();
                unmet(format!("registration {name} names {}, not {host}", hosts.join(", ")))
            }
        }
    }

    fn selectors(&self) -> Finding {
        let demanded = self.registration.selectors();
        let Some(agent) = self.agent else {
            let all: Vec<String> = demanded.iter().map(ToString::to_string).collect();
            return at_issuance(format!("the process must show {}", all.join(", ")));
        };
        // A registration has at least one; a list without any must not match everything.
        if demanded.is_empty() {
            return unmet("the registration has no selectors");
        }
        let missing: Vec<String> =
            unmatched(demanded, &agent.selectors).iter().map(ToString::to_string).collect();
        if missing.is_empty() {
            self.words.met(|| format!("all {} were observed", demanded.len()))
        } else {
            unmet(format!("not observed of the process: {}", missing.join(", ")))
        }
    }

    fn code_identity(&self) -> Finding {
        let mut binding = self.registration.selectors().iter().filter(|s| s.kind().binds_code()).peekable();
        if binding.peek().is_none() {
            return unmet(format!(
                "{} demands a selector exe:sha256, systemd:unit or container:image-digest; the registration has none",
                self.tier
            ));
        }
        let all: Vec<String> = binding.clone().map(ToString::to_string).collect();
        match self.agent {
            Some(agent) if !binding.any(|s| agent.selectors.contains(s)) => {
                unmet(format!("not observed of the process: {}", all.join(", ")))
            }
            Some(_) => self.words.met(|| format!("observed: {}", all.join(", "))),
            None => self.words.met(|| format!("registered: {}", all.join(", "))),
        }
    }

    fn key_custody(&self) -> Finding {
        let demanded = self.registration.key().custody;
        match self.agent.map(|a| a.key.custody()) {
            None => at_issuance(format!("the key must be {demanded}")),
            Some(shown) if shown == demanded => self.words.met(|| format!("the key is {shown}")),
            Some(shown) => {
                unmet(format!("the registration demands a {demanded} key; the one presented is {shown}"))
            }
        }
    }

    fn hardware_key(&self) -> Finding {
        let custody = self.agent.map_or(self.registration.key().custody, |a| a.key.custody());
        match (custody, self.agent) {
            (Custody::Software, _) => unmet(format!(
                "{} demands a key in hardware (tpm-certified, or pkcs11-asserted where accepted); this one is software",
                self.tier
            )),
            (_, Some(_)) => self.words.met(|| format!("the key is {custody}")),
            (_, None) => self.words.met(|| format!("the registration demands {custody}")),
        }
    }

    fn key_pcr_binding(&self) -> Finding {
        let demanded = &self.registration.key().bind_pcrs;
        let shown = match self.agent.map(|a| &a.key) {
            None => return at_issuance(format!("the key must be bound to {}", pcrs(demanded))),
            Some(KeyStanding::Tpm { policy_pcrs }) => policy_pcrs.clone(),
            Some(KeyStanding::Software | KeyStanding::Pkcs11(_)) => BTreeSet::new(),
        };
        if shown == *demanded {
            self.words.met(|| format!("the key is bound to {}", pcrs(&shown)))
        } else {
            let (demanded, shown) = (pcrs(demanded), pcrs(&shown));
            unmet(format!("the registration demands a key bound to {demanded}; this one is bound to {shown}"))
        }
    }

    fn pkcs11_attributes(&self) -> Finding {
        match self.agent.map(|a| &a.key) {
            None => at_issuance("the module must say sensitive, always sensitive, never extractable, local"),
            Some(KeyStanding::Pkcs11(assertion)) => {
                let (token, lacking) = (&assertion.token_label, assertion.lacking());
                if lacking.is_empty() {
                    self.words.met(|| format!("token {token:?} says it was made there and cannot leave"))
                } else {
                    unmet(format!("token {token:?} does not say {} of this key", lacking.join(", ")))
                }
            }
            Some(key) => unmet(format!("no PKCS#11 module speaks for this key: it is {}", key.custody())),
        }
    }
}

/// The requirements that are about the host alone; for the others there is nothing to see here.
pub(super) fn check_host(
    requirement: Requirement,
    host: &HostStanding,
    rules: &TrustRules,
    now: i64,
    words: Words,
) -> Finding {
    match requirement {
        Requirement::HostEnabled => match &host.disabled {
            None => words.met(|| "not disabled".to_owned()),
            Some(reason) => unmet(format!("an operator disabled host {}: {reason}", host.host_id)),
        },
        Requirement::HostProved => host_proved(host, rules, now, words),
        Requirement::HostTpm => match &host.proof {
            HostProof::Tpm { ek_trust: EkTrust::Certificate, .. } => {
                words.met(|| "TPM, EK certificate trusted".to_owned())
            }
            HostProof::Tpm { ek_trust: EkTrust::AllowList, .. } => {
                words.met(|| "TPM, EK on the operator's allow-list".to_owned())
            }
            HostProof::Tpm { ek_trust: EkTrust::Vouched, .. } => {
                words.met(|| "TPM, EK on the operator's allow-list, vouched for as hardware".to_owned())
            }
            HostProof::JoinToken => unmet("the host proved itself by a join token; a TPM is needed"),
        },
        Requirement::HardwareTpm => hardware_tpm(host, rules, words),
        Requirement::PcrPolicy => pcr_policy(host, words),
        Requirement::FreshQuote => fresh_quote(host, rules, now, words),
        _ => unmet("not a matter of the host alone"),
    }
}

fn hardware_tpm(host: &HostStanding, rules: &TrustRules, words: Words) -> Finding {
    let HostProof::Tpm { simulated, ek_trust } = &host.proof else { return unmet("the host showed no TPM") };
    match (simulated, rules.lab, ek_trust) {
        (true, true, _) => {
            words.met(|| "simulated TPM, which counts in this lab trust domain only".to_owned())
        }
        (true, false, _) => {
            unmet("the TPM is simulated, and this is a production trust domain: a hardware TPM is needed")
        }
        (false, _, EkTrust::Certificate) => {
            words.met(|| "a manufacturer's root signed its EK certificate".to_owned())
        }
        (false, _, EkTrust::Vouched) => {
            words.met(|| "an operator vouched for it; no certificate says so".to_owned())
        }
        (false, _, EkTrust::AllowList) => unmet(format!(
            "nothing says that this TPM is hardware: no EK certificate leads to a manufacturer's root, and no operator \
             vouched for it (`hallmark host allow {} --ek-sha256 … --vouch-hardware`)",
            host.host_id
        )),
    }
}

fn host_proved(host: &HostStanding, rules: &TrustRules, now: i64, words: Words) -> Finding {
    let age = now.saturating_sub(host.attested_at);
    if age < -CLOCK_SKEW {
        return unmet(format!("its attestation lies {} s in the future: check the clocks", -age));
    }
    match host.proof {
        HostProof::JoinToken => words.met(|| format!("by join token, {} s ago", age.max(0))),
        HostProof::Tpm { .. } if within(age, rules.attestation_max_age) => {
            words.met(|| format!("by its TPM, {} s ago", age.max(0)))
        }
        HostProof::Tpm { .. } => unmet(format!(
            "its attestation is {age} s old, more than {} s: it must attest again",
            rules.attestation_max_age.as_secs()
        )),
    }
}

fn pcr_policy(host: &HostStanding, words: Words) -> Finding {
    match &host.pcr {
        PcrStanding::Met { policy } => words.met(|| format!("policy {policy:?} met")),
        PcrStanding::NotMet { policy, mismatches } => {
            unmet(format!("policy {policy:?} not met: {}", mismatches.join("; ")))
        }
        PcrStanding::NoPolicy => unmet(format!(
            "no PCR policy names host {}: write one (`hallmark host pcrs {0}` prints its present values in that form)",
            host.host_id
        )),
    }
}

fn fresh_quote(host: &HostStanding, rules: &TrustRules, now: i64, words: Words) -> Finding {
    let Some(quote_at) = host.quote_at else { return unmet("the host gave no quote") };
    let (age, max) = (now.saturating_sub(quote_at), rules.quote_max_age.as_secs());
    if age < -CLOCK_SKEW {
        unmet(format!("its last quote lies {} s in the future: check the clocks", -age))
    } else if within(age, rules.quote_max_age) {
        words.met(|| format!("its last quote is {} s old, at most {max} s", age.max(0)))
    } else {
        unmet(format!("its last quote is {age} s old, more than {max} s"))
    }
}

fn within(age: i64, max: std::time::Duration) -> bool {
    u64::try_from(age.max(0)).is_ok_and(|age| age <= max.as_secs())
}

fn pkcs11_accepted(rules: &TrustRules, words: Words) -> Finding {
    if rules.accept_pkcs11_asserted {
        words.met(|| "this trust domain accepts pkcs11-asserted keys".to_owned())
    } else {
        unmet("this trust domain does not accept a PKCS#11 module's word for a key's custody")
    }
}

fn pcrs(set: &BTreeSet<u8>) -> String {
    if set.is_empty() {
        return "no PCR".to_owned();
    }
    format!("PCR {}", set.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "))
}
