//! What is demanded of a peer, and whether its chain meets it.

use std::collections::BTreeSet;
use std::error::Error;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hallmark_core::id::SpiffeId;
use hallmark_core::tier::Tier;
use hallmark_core::x509::{ChainError, Demand, TierRoots, Usage, VerifiedPeer, verify_chain};
use hallmark_proto::tls::PeerError;
use rustls::CertificateError;
use rustls_pki_types::{CertificateDer, UnixTime};

/// Whom to talk to: a minimum tier, and which agents of the own trust domain.
///
/// The tier is that of the root that anchors the peer's chain, whatever the certificate says of itself.
#[derive(Clone)]
pub struct PeerPolicy {
    min_tier: Tier,
    who: Who,
    accept_simulated: bool,
}

#[derive(Clone)]
enum Who {
    Any,
    OneOf(BTreeSet<SpiffeId>),
    Matching(Arc<dyn Fn(&SpiffeId) -> bool + Send + Sync>),
}

impl PeerPolicy {
    /// Any agent or task of the own trust domain, of this tier or a higher one.
    pub fn at_least(min_tier: Tier) -> Self {
        Self { min_tier, who: Who::Any, accept_simulated: false }
    }

    /// Only these, and exactly these: an agent's id does not stand for its tasks.
    pub fn spiffe_ids(mut self, ids: impl IntoIterator<Item = SpiffeId>) -> Self {
        self.who = Who::OneOf(ids.into_iter().collect());
        self
    }

    /// Only those of which `accept` holds.
    pub fn matching(mut self, accept: impl Fn(&SpiffeId) -> bool + Send + Sync + 'static) -> Self {
        self.who = Who::Matching(Arc::new(accept));
        self
    }

    /// Also those whose key is in a software TPM. Such a key proves no hardware: for laboratories.
    pub fn accept_simulated(mut self, accept: bool) -> Self {
        self.accept_simulated = accept;
        self
    }

    /// Holds a chain, leaf first, against this policy and these roots, at a time since 1970: what the TLS
    /// configurations do in a handshake.
    ///
    /// # Errors
    /// Why the peer is refused.
    pub fn appraise(
        &self,
        roots: &TierRoots,
        chain: &[CertificateDer<'_>],
        at: Duration,
    ) -> Result<VerifiedPeer, PeerRefusal> {
        // An X.509-SVID is good for either role (X.509-SVID section 4.4), so it does not matter which.
        appraise(self, roots, chain, Usage::Client, UnixTime::since_unix_epoch(at))
    }

    fn admits(&self, id: &SpiffeId) -> bool {
        match &self.who {
            Who::Any => true,
            Who::OneOf(ids) => ids.contains(id),
            Who::Matching(accept) => accept(id),
        }
    }
}

impl fmt::Debug for PeerPolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let who: &dyn fmt::Debug = match &self.who {
            Who::Any => &"any",
            Who::OneOf(ids) => ids,
            Who::Matching(_) => &"by predicate",
        };
        f.debug_struct("PeerPolicy")
            .field("min_tier", &self.min_tier)
            .field("who", who)
            .field("accept_simulated", &self.accept_simulated)
            .finish()
    }
}

/// Why a peer was refused.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum PeerRefusal {
    /// This process has no bundle to verify by.
    #[error("no roots to verify the peer by: this process has no identity yet")]
    NoBundle,
    /// The peer showed no certificate.
    #[error("the peer showed no certificate")]
    NoCertificate,
    /// Its chain does not verify.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// Its chain verifies, at too low a tier.
    #[error("{found} is of tier {tier}, and at least {min_tier} is demanded")]
    TierTooLow {
        /// Who it is.
        found: Box<SpiffeId>,
        /// The tier of the root that anchors its chain.
        tier: Tier,
        /// The tier demanded.
        min_tier: Tier,
    },
    /// It is somebody else.
    #[error("{found} is not among those accepted here")]
    NotAccepted {
        /// Who it is.
        found: Box<SpiffeId>,
    },
}

impl PeerRefusal {
    /// The refusal at the bottom of a handshake's error, if a refusal was the cause: a `rustls::Error`, or
    /// an `io::Error` that carries one.
    pub fn cause<'a>(error: &'a (dyn Error + 'static)) -> Option<&'a PeerRefusal> {
        if let Some(io) = error.downcast_ref::<std::io::Error>() {
            return Self::cause(io.get_ref()?);
        }
        match error.downcast_ref::<rustls::Error>()? {
            rustls::Error::InvalidCertificate(CertificateError::Other(other)) => {
                match other.0.downcast_ref::<PeerError>()? {
                    PeerError::Policy(refusal) => refusal.downcast_ref(),
                    _ => None,
                }
            }
            _ => None,
        }
    }
}

/// Holds a peer's chain against a policy.
pub(crate) fn appraise(
    policy: &PeerPolicy,
    roots: &TierRoots,
    chain: &[CertificateDer<'_>],
    usage: Usage,
    now: UnixTime,
) -> Result<VerifiedPeer, PeerRefusal> {
    let demand = Demand { usage, now, accept_simulated: policy.accept_simulated };
    let trusted = roots.at_least(policy.min_tier);
    let peer = verify_chain(chain, &trusted, &demand).map_err(|refusal| match refusal {
        // The roots below the demanded tier are asked for the reason alone, never to accept.
        ChainError::UntrustedRoot { .. } => match verify_chain(chain, roots, &demand) {
            Ok(peer) => PeerRefusal::TierTooLow {
                found: Box::new(peer.spiffe_id),
                tier: peer.tier,
                min_tier: policy.min_tier,
            },
            Err(_) => refusal.into(),
        },
        other => other.into(),
    })?;
    if !policy.admits(&peer.spiffe_id) {
        return Err(PeerRefusal::NotAccepted { found: Box::new(peer.spiffe_id) });
    }
    Ok(peer)
}
