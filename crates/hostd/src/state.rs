//! What the host daemon knows from its issuer: written by the link, watched by everyone else. It outlives
//! connections: agents are served from it while the issuer is away.

use std::collections::BTreeSet;
use std::sync::Arc;

use hallmark_core::id::{AgentName, HostId, TrustDomain};
use hallmark_core::selector::{Selector, SelectorSet, unmatched};
use hallmark_core::tier::{Custody, Tier};
use hallmark_core::x509::key_fingerprint;
use hallmark_proto::{agent, issuer};
use tokio::sync::{mpsc, watch};
use tonic::codegen::Bytes;

use crate::pulse::Pulse;

/// What this host needs of one registration.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Its name.
    pub agent: AgentName,
    /// Grows with each change of it.
    pub revision: u64,
    /// The tier the agent must have.
    pub tier: Tier,
    /// What must all be observed of the agent's process; never empty.
    pub selectors: Vec<Selector>,
    /// Where its key shall live.
    pub custody: Custody,
    /// PCRs to which a TPM key is bound.
    pub bind_pcrs: BTreeSet<u8>,
}

impl Registration {
    /// Those of its selectors that `seen` lacks; empty when the process matches.
    pub fn missing<'a>(&'a self, seen: &SelectorSet) -> Vec<&'a Selector> {
        unmatched(&self.selectors, seen)
    }
}

/// The registrations of this host, by name; `None` until the issuer has sent them.
pub type Registrations = Option<Arc<Vec<Registration>>>;

/// CAs that are trusted no more, and the time over which what they signed is renewed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewals {
    authorities: BTreeSet<[u8; 32]>,
    until: i64,
}

impl Renewals {
    /// As the issuer says; what is no digest names no CA.
    pub fn new(renew: &issuer::Renew, now: i64) -> Self {
        let authorities = renew.authorities.iter().filter_map(|a| a.as_ref().try_into().ok()).collect();
        let within = i64::try_from(renew.within_seconds).unwrap_or(i64::MAX);
        Self { authorities, until: now.saturating_add(within) }
    }

    /// When to renew a certificate of this CA, at `place` (0 to 1) of the time that is left; none if it is not meant.
    pub fn due(&self, issuing_der: &[u8], now: i64, place: f64) -> Option<i64> {
        let authority = key_fingerprint(issuing_der).ok()?;
        let left = self.until.saturating_sub(now).max(0);
        self.authorities.contains(&authority).then(|| now + (left as f64 * place) as i64)
    }
}

/// How this host stands with its issuer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Standing {
    /// It has been attested since the daemon began.
    pub attested: bool,
    /// The connection to the issuer is up.
    pub connected: bool,
    /// An operator has disabled this host at the issuer; no agent has an identity here.
    pub disabled: bool,
    /// The highest tier its evidence supports, as the issuer said.
    pub highest_tier: String,
    /// What keeps it from more.
    pub unmet: Vec<String>,
    /// Why the issuer is away or refuses; empty when all is well.
    pub last_error: String,
    /// Until when the last quote counts for the advanced tier, seconds since 1970; 0 for none.
    pub quote_valid_until: i64,
}

/// The parts, each watched by itself.
#[derive(Debug)]
pub struct State {
    /// This host.
    pub host_id: HostId,
    /// Its trust domain.
    pub trust_domain: TrustDomain,
    /// Its registrations.
    pub registrations: watch::Sender<Registrations>,
    /// The roots agents may trust; `None` until the issuer has sent them.
    pub bundle: watch::Sender<Option<Arc<agent::Bundle>>>,
    /// How it stands.
    pub standing: watch::Sender<Standing>,
    /// CAs whose certificates are to be renewed; `None` until the issuer has named any.
    pub renewals: watch::Sender<Option<Arc<Renewals>>>,
    /// Changes when the issuer is back, or has said something by which what failed may now succeed.
    pub news: watch::Sender<()>,
    /// Signs of life of the agents' server.
    pub server_pulse: Pulse,
    /// Signs of life of the link to the issuer.
    pub link_pulse: Pulse,
    /// Serials that were revoked, on their way to whoever holds the instances.
    pub revoked: mpsc::Sender<Vec<Bytes>>,
}

impl State {
    /// Knows nothing yet. Revoked serials come out of the receiver.
    pub fn new(host_id: HostId, trust_domain: TrustDomain) -> (Arc<Self>, mpsc::Receiver<Vec<Bytes>>) {
        let (revoked, receiver) = mpsc::channel(64);
        let state = Self {
            host_id,
            trust_domain,
            registrations: watch::Sender::default(),
            bundle: watch::Sender::default(),
            standing: watch::Sender::default(),
            renewals: watch::Sender::default(),
            news: watch::Sender::default(),
            server_pulse: Pulse::default(),
            link_pulse: Pulse::default(),
            revoked,
        };
        (Arc::new(state), receiver)
    }

    /// Takes the registrations from the wire. One that cannot be read is left out, and named in the log:
    /// its agents are refused rather than half understood. `newest` is the revision that this stream has
    /// brought: a set that was overtaken on its way is passed over.
    pub fn accept_registrations(&self, set: issuer::RegistrationSet, newest: &mut u64) {
        if set.revision < *newest {
            tracing::debug!(revision = set.revision, newest, "registrations were overtaken");
            return;
        }
        *newest = set.revision;
        let mut read = Vec::with_capacity(set.registrations.len());
        for wire in set.registrations {
            let name = wire.agent.clone();
            match registration(wire) {
                Ok(registration) => read.push(registration),
                Err(why) => {
                    tracing::error!(agent = name, why, "registration cannot be read, its agents are refused");
                }
            }
        }
        tracing::info!(revision = set.revision, count = read.len(), "registrations received");
        self.registrations.send_replace(Some(Arc::new(read)));
        self.news.send_replace(());
    }

    /// Takes the bundles from the wire. An unknown tier is left out: nobody here could ask for it.
    ///
    /// # Errors
    /// They are of another trust domain.
    pub fn accept_bundles(&self, set: issuer::BundleSet) -> Result<(), String> {
        if set.trust_domain != self.trust_domain.as_str() {
            return Err(format!(
                "bundle of trust domain {:?}, ours is {}",
                set.trust_domain, self.trust_domain
            ));
        }
        let known = |t: &issuer::TierRoots| t.tier.parse::<Tier>().is_ok();
        let tiers = set.tiers.into_iter().filter(known);
        let bundle = agent::Bundle {
            trust_domain: set.trust_domain,
            revision: set.revision,
            tiers: tiers.map(|t| agent::TierRoots { tier: t.tier, roots: t.roots }).collect(),
        };
        self.bundle.send_if_modified(|present| {
            let changed = present.as_deref() != Some(&bundle);
            if changed {
                *present = Some(Arc::new(bundle));
            }
            changed
        });
        Ok(())
    }
}

fn registration(wire: issuer::Registration) -> Result<Registration, String> {
    let text = |e: &dyn std::fmt::Display| e.to_string();
    let selectors: Result<Vec<Selector>, _> = wire.selectors.iter().map(|s| s.parse()).collect();
    let selectors = selectors.map_err(|e| text(&e))?;
    if selectors.is_empty() {
        return Err("it has no selectors, so that every process would match".into());
    }
    let pcr = |p: &u32| u8::try_from(*p).ok().filter(|p| *p < 24).ok_or(format!("there is no PCR {p}"));
    Ok(Registration {
        agent: wire.agent.parse().map_err(|e| text(&e))?,
        revision: wire.revision,
        tier: wire.tier.parse().map_err(|e| text(&e))?,
        selectors,
        custody: wire.custody.parse().map_err(|e| text(&e))?,
        bind_pcrs: wire.bind_pcrs.iter().map(pcr).collect::<Result<_, _>>()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire(agent: &str) -> issuer::Registration {
        issuer::Registration {
            agent: agent.into(),
            revision: 1,
            tier: "foundation".into(),
            selectors: vec!["unix:uid:1".into()],
            custody: "software".into(),
            bind_pcrs: vec![7],
            lifetime_seconds: 900,
        }
    }

    #[tokio::test]
    async fn a_registration_that_cannot_be_read_takes_no_other_with_it() {
        let (state, _revoked) = State::new("h".parse().unwrap(), "example.org".parse().unwrap());
        let broken = [
            issuer::Registration { selectors: vec![], ..wire("no-selectors") },
            issuer::Registration { selectors: vec!["future:kind:1".into()], ..wire("unknown-selector") },
            issuer::Registration { tier: "platinum".into(), ..wire("unknown-tier") },
            issuer::Registration { custody: "paper".into(), ..wire("unknown-custody") },
            issuer::Registration { bind_pcrs: vec![24], ..wire("no-such-pcr") },
            wire("Bad Name"),
        ];
        let registrations = broken.into_iter().chain([wire("good")]).collect();
        state.accept_registrations(issuer::RegistrationSet { revision: 3, registrations }, &mut 0);
        let read = state.registrations.borrow().clone().unwrap();
        assert_eq!(read.iter().map(|r| r.agent.as_str()).collect::<Vec<_>>(), ["good"]);
    }

    #[tokio::test]
    async fn registrations_that_were_overtaken_are_passed_over() {
        let (state, _revoked) = State::new("h".parse().unwrap(), "example.org".parse().unwrap());
        let set = |revision, agent| issuer::RegistrationSet { revision, registrations: vec![wire(agent)] };
        let known = || state.registrations.borrow().clone().unwrap()[0].agent.to_string();
        let mut newest = 0;
        state.accept_registrations(set(5, "new"), &mut newest);
        state.accept_registrations(set(4, "old"), &mut newest);
        assert_eq!(known(), "new");
        // Another stream begins anew: an issuer's store may have been put back.
        state.accept_registrations(set(4, "old"), &mut 0);
        assert_eq!(known(), "old");
    }

    #[test]
    fn renewals_fall_into_the_time_given_and_concern_the_named_ca_alone() {
        let domain = hallmark_kit::pki::TestDomain::lab("example.org").unwrap();
        let [meant, other] = [Tier::Enterprise, Tier::Advanced]
            .map(|tier| domain.ca(hallmark_core::tier::Hierarchy::Tier(tier)).certificate().to_vec());
        let authorities =
            vec![key_fingerprint(&meant).unwrap().to_vec().into(), Bytes::from_static(b"no digest")];
        let renewals = Renewals::new(&issuer::Renew { authorities, within_seconds: 100 }, 1000);
        assert_eq!(renewals.due(&meant, 1000, 0.0), Some(1000));
        assert_eq!(renewals.due(&meant, 1000, 1.0), Some(1100));
        assert_eq!(renewals.due(&meant, 1060, 0.5), Some(1080), "whoever comes later has what is left");
        assert_eq!(renewals.due(&meant, 2000, 1.0), Some(2000), "late is at once");
        assert_eq!(renewals.due(&other, 1000, 0.0), None);
        assert_eq!(renewals.due(b"junk", 1000, 0.0), None);
    }

    #[tokio::test]
    async fn bundles_of_another_trust_domain_are_refused() {
        let (state, _revoked) = State::new("h".parse().unwrap(), "example.org".parse().unwrap());
        let tiers = vec![
            issuer::TierRoots { tier: "foundation".into(), roots: vec![Bytes::from_static(b"root")] },
            issuer::TierRoots { tier: "infrastructure".into(), roots: vec![Bytes::from_static(b"root")] },
        ];
        let set = issuer::BundleSet { trust_domain: "example.org".into(), revision: 1, tiers };
        let foreign = issuer::BundleSet { trust_domain: "example.com".into(), ..set.clone() };
        assert!(state.accept_bundles(foreign).is_err());
        state.accept_bundles(set).unwrap();
        let bundle = state.bundle.borrow().clone().unwrap();
        assert_eq!(bundle.tiers.len(), 1, "the infrastructure root is never among them");
    }
}
