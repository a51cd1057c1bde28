//! One identity as the host daemon served it, checked before anything uses it.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hallmark_core::id::{InstanceId, NameError, SpiffeId, Subject, TrustDomain};
use hallmark_core::tier::{Custody, Tier, UnknownWord};
use hallmark_core::x509::{RootsError, TierRoots};
use hallmark_proto::agent as wire;
use rustls::sign::{CertifiedKey, SigningKey};
use rustls_pki_types::{CertificateDer, PrivatePkcs8KeyDer};
use zeroize::Zeroizing;

use crate::sign::{HardwareKey, SignLink};

/// Longest chain accepted, leaf included: leaf and issuing CA, with room for an overlap of CAs.
const MAX_CHAIN: usize = 8;
/// Most roots accepted for one tier: the present one and some that are being rotated.
const MAX_ROOTS: usize = 64;

/// What this process is, until `not_after`.
pub struct Identity {
    /// The SPIFFE ID in the leaf's subject alternative name.
    pub spiffe_id: SpiffeId,
    /// This run of the agent.
    pub instance_id: InstanceId,
    /// The grade of the credential.
    pub tier: Tier,
    /// Where the private key lives.
    pub custody: Custody,
    /// Leaf first, then the issuing CA; the root is not in it.
    pub chain: Vec<CertificateDer<'static>>,
    /// The roots of this trust domain.
    pub bundle: Arc<Bundle>,
    /// Start of validity, seconds since 1970-01-01 UTC.
    pub not_before: i64,
    /// End of validity, seconds since 1970-01-01 UTC.
    pub not_after: i64,
    /// When the host daemon means to renew it, seconds since 1970-01-01 UTC.
    pub renew_at: i64,
    key: Key,
    certified: Option<Arc<CertifiedKey>>,
}

/// The private key, or the name of one that cannot leave its hardware.
enum Key {
    Software(Zeroizing<Vec<u8>>),
    Hardware(Vec<u8>),
}

/// The roots a relying party of this trust domain may trust, by tier.
#[derive(Debug, Clone)]
pub struct Bundle {
    /// Grows with every change.
    pub revision: u64,
    /// The roots, and the trust domain whose SPIFFE IDs alone they authenticate.
    pub roots: TierRoots,
}

/// Why what the host daemon sent is no identity.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdentityError {
    /// A name of it is not of its form.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Its tier or custody is unknown.
    #[error(transparent)]
    Word(#[from] UnknownWord),
    /// Hosts and issuers have no business on this socket.
    #[error("{0} is not an agent's or a task's SPIFFE ID")]
    NotAnAgent(SpiffeId),
    /// The instance id has not 16 bytes.
    #[error("the instance id has {0} bytes, not 16")]
    InstanceId(usize),
    /// There is no certificate, or an absurd number of them.
    #[error("the chain has {0} certificates, not 1 to {MAX_CHAIN}")]
    Chain(usize),
    /// There is no bundle.
    #[error("the bundle is missing")]
    NoBundle,
    /// The bundle is for another trust domain than the identity.
    #[error("the identity is of trust domain {identity}, its bundle of {bundle}")]
    ForeignBundle {
        /// The identity's trust domain.
        identity: TrustDomain,
        /// The bundle's.
        bundle: TrustDomain,
    },
    /// A root of the bundle is none.
    #[error("the bundle: {0}")]
    Root(#[from] RootsError),
    /// A tier has an absurd number of roots.
    #[error("the bundle has {count} roots for {tier}, more than {MAX_ROOTS}")]
    TooManyRoots {
        /// The tier.
        tier: Tier,
        /// How many.
        count: usize,
    },
    /// A key in the clear where hardware was promised, or the other way about.
    #[error("custody is {custody}, and what came with it is {found}")]
    KeyForm {
        /// The custody named.
        custody: Custody,
        /// What was found in the message.
        found: &'static str,
    },
    /// The private key cannot be read, or belongs to another certificate.
    #[error("the private key does not fit the certificate: {0}")]
    Key(String),
    /// Validity that ends before it starts.
    #[error("validity ends at {not_after}, before its start at {not_before}")]
    Validity {
        /// Start, seconds since 1970.
        not_before: i64,
        /// End, seconds since 1970.
        not_after: i64,
    },
}

impl Identity {
    /// Whether the private key stays in a TPM or token.
    pub fn is_hardware_held(&self) -> bool {
        matches!(self.key, Key::Hardware(_))
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.spiffe_id.trust_domain
    }

    /// The agent's name: that of its registration.
    pub fn agent(&self) -> &str {
        match &self.spiffe_id.subject {
            Subject::Agent(agent) | Subject::Task(agent, _) => agent.as_str(),
            Subject::Host(_) | Subject::Issuer(_) => "",
        }
    }

    /// The end of validity.
    pub fn expires(&self) -> SystemTime {
        instant(self.not_after)
    }

    /// Whether it is still valid at `now`.
    pub fn is_valid_at(&self, now: SystemTime) -> bool {
        now < self.expires()
    }

    /// The private key as PKCS#8, or none where it is held in hardware. The bytes are wiped when the
    /// identity is dropped; whoever copies them must see to the copy.
    pub fn private_key_pkcs8(&self) -> Option<&[u8]> {
        match &self.key {
            Key::Software(der) => Some(der),
            Key::Hardware(_) => None,
        }
    }

    /// The handle that names the key to [`HallmarkClient::sign`](crate::HallmarkClient::sign), or none
    /// where the key is in this process's memory.
    pub fn key_handle(&self) -> Option<&[u8]> {
        match &self.key {
            Key::Software(_) => None,
            Key::Hardware(handle) => Some(handle),
        }
    }

    /// Chain and key as rustls takes them; none for a hardware key without a link to sign through.
    pub(crate) fn certified(&self) -> Option<Arc<CertifiedKey>> {
        self.certified.clone()
    }

    pub(crate) fn accept(wire: wire::Identity, link: Option<&SignLink>) -> Result<Self, IdentityError> {
        let spiffe_id: SpiffeId = wire.spiffe_id.parse()?;
        if !matches!(spiffe_id.subject, Subject::Agent(_) | Subject::Task(..)) {
            return Err(IdentityError::NotAnAgent(spiffe_id));
        }
        let instance: [u8; 16] = wire
            .instance_id
            .as_ref()
            .try_into()
            .map_err(|_| IdentityError::InstanceId(wire.instance_id.len()))?;
        let tier: Tier = wire.tier.parse()?;
        let custody: Custody = wire.custody.parse()?;
        if !(1..=MAX_CHAIN).contains(&wire.chain.len()) {
            return Err(IdentityError::Chain(wire.chain.len()));
        }
        let chain: Vec<CertificateDer<'static>> =
            wire.chain.iter().map(|der| CertificateDer::from(der.to_vec())).collect();
        let bundle = Bundle::accept(wire.bundle.ok_or(IdentityError::NoBundle)?)?;
        if *bundle.roots.trust_domain() != spiffe_id.trust_domain {
            return Err(IdentityError::ForeignBundle {
                bundle: bundle.roots.trust_domain().clone(),
                identity: spiffe_id.trust_domain,
            });
        }
        if wire.not_after <= wire.not_before {
            let (not_before, not_after) = (wire.not_before, wire.not_after);
            return Err(IdentityError::Validity { not_before, not_after });
        }
        let key = Key::accept(custody, wire.key)?;
        let certified = match (&key, link) {
            (Key::Software(pkcs8), _) => Some(software_key(&chain, pkcs8)?),
            (Key::Hardware(handle), Some(link)) => {
                let key: Arc<dyn SigningKey> = Arc::new(HardwareKey::new(handle.clone(), link.clone()));
                Some(CertifiedKey::new(chain.clone(), key))
            }
            (Key::Hardware(_), None) => None,
        };
        Ok(Self {
            spiffe_id,
            instance_id: InstanceId::from_bytes(instance),
            tier,
            custody,
            chain,
            bundle: Arc::new(bundle),
            not_before: wire.not_before,
            not_after: wire.not_after,
            renew_at: wire.renew_at,
            key,
            certified: certified.map(Arc::new),
        })
    }
}

impl Key {
    fn accept(custody: Custody, key: Option<wire::identity::Key>) -> Result<Self, IdentityError> {
        use wire::identity::Key as Sent;
        match (custody, key) {
            // A simulated custody may stand for either: the host's TPM is software, so the word warns of
            // the host and not of the key's form.
            (Custody::Software | Custody::Simulated, Some(Sent::PrivateKey(der))) if !der.is_empty() => {
                let key = Key::Software(Zeroizing::new(der.to_vec()));
                wipe(der);
                Ok(key)
            }
            (custody, Some(Sent::KeyHandle(handle)))
                if custody != Custody::Software && !handle.is_empty() =>
            {
                Ok(Key::Hardware(handle.to_vec()))
            }
            (custody, Some(Sent::PrivateKey(der))) => {
                wipe(der);
                Err(IdentityError::KeyForm { custody, found: "a private key in the clear" })
            }
            (custody, Some(Sent::KeyHandle(_))) => {
                Err(IdentityError::KeyForm { custody, found: "a key handle" })
            }
            (custody, None) => Err(IdentityError::KeyForm { custody, found: "no key at all" }),
        }
    }
}

/// Wipes what came over the wire where nobody else holds it; the transport's own buffers in this
/// process are reused rather than wiped, and out of reach.
fn wipe(bytes: tonic::codegen::Bytes) {
    if let Ok(mut unique) = bytes.try_into_mut() {
        zeroize::Zeroize::zeroize(unique.as_mut());
    }
}

fn software_key(chain: &[CertificateDer<'static>], pkcs8: &[u8]) -> Result<CertifiedKey, IdentityError> {
    let der = PrivatePkcs8KeyDer::from(pkcs8).into();
    let key = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&der)
        .map_err(|error| IdentityError::Key(error.to_string()))?;
    let certified = CertifiedKey::new(chain.to_vec(), key);
    certified.keys_match().map_err(|error| IdentityError::Key(error.to_string()))?;
    Ok(certified)
}

impl Bundle {
    fn accept(wire: wire::Bundle) -> Result<Self, IdentityError> {
        let mut roots = TierRoots::new(wire.trust_domain.parse()?);
        for entry in wire.tiers {
            let tier: Tier = entry.tier.parse()?;
            if entry.roots.len() > MAX_ROOTS {
                return Err(IdentityError::TooManyRoots { tier, count: entry.roots.len() });
            }
            for der in entry.roots {
                roots.add(tier, &der)?;
            }
        }
        Ok(Self { revision: wire.revision, roots })
    }
}

impl fmt::Debug for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Identity")
            .field("spiffe_id", &format_args!("{}", self.spiffe_id))
            .field("instance_id", &format_args!("{}", self.instance_id))
            .field("tier", &self.tier)
            .field("custody", &self.custody)
            .field("not_after", &self.not_after)
            .field(
                "key",
                &format_args!("{}", if self.is_hardware_held() { "in hardware" } else { "in memory" }),
            )
            .finish_non_exhaustive()
    }
}

pub(crate) fn instant(seconds: i64) -> SystemTime {
    SystemTime::UNIX_EPOCH + Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}

#[cfg(test)]
#[path = "identity_tests.rs"]
mod tests;
