//! Verifying a peer's chain: the path (RFC 5280 §6, by rustls-webpki), then the leaf's form (X.509-SVID).
//!
//! The root that anchors the path gives the tier. What the leaf says of its tier must agree: a CA that
//! contradicts its own root is broken, and its certificates are refused.

use rustls_pki_types::{CertificateDer, TrustAnchor, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use super::agent_info::{AgentInfo, AgentInfoError};
use super::oid::OidArc;
use super::parse::{Certificate, CertificateError, DIGITAL_SIGNATURE, San};
use super::roots::{InfraRoots, TierRoots};
use super::serial::{Serial, SerialError};
use crate::id::{InstanceId, NameError, SpiffeId, Subject, TrustDomain};
use crate::tier::{Custody, Tier};

/// Longest chain looked at: leaf, issuing CA, and room for a cross-signed one during rotation.
const MAX_CHAIN: usize = 4;

/// The peer's role.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Usage {
    /// The peer opened the connection.
    Client,
    /// The peer was connected to.
    Server,
}

/// What a relying party demands, besides its roots. (A minimum tier is the choice of roots:
/// [`TierRoots::at_least`].)
#[derive(Debug, Clone, Copy)]
pub struct Demand {
    /// The peer's role.
    pub usage: Usage,
    /// Now.
    pub now: UnixTime,
    /// Whether a key in a software TPM is good enough. Only a lab trust domain has such certificates.
    pub accept_simulated: bool,
}

/// An agent or a task, whose chain was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedPeer {
    /// Who it is.
    pub spiffe_id: SpiffeId,
    /// The tier of the root that anchored its chain.
    pub tier: Tier,
    /// Whether that root is a lab trust domain's, in which software TPMs count.
    pub lab: bool,
    /// What its certificate says of it.
    pub agent_info: AgentInfo,
    /// The instance, as the subject names it: for logs.
    pub instance: Option<InstanceId>,
    /// When the certificate began, seconds since 1970-01-01 UTC.
    pub not_before: i64,
    /// When the certificate ends, seconds since 1970-01-01 UTC.
    pub not_after: i64,
    /// Its serial number.
    pub serial: Serial,
}

/// A host or an issuer, whose chain was verified.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedInfra {
    /// Who it is: `Subject::Host` or `Subject::Issuer`.
    pub spiffe_id: SpiffeId,
    /// When the certificate ends, seconds since 1970-01-01 UTC.
    pub not_after: i64,
    /// Its serial number.
    pub serial: Serial,
}

/// Why a chain was refused.
#[derive(Debug, thiserror::Error)]
pub enum ChainError {
    /// No certificates.
    #[error("the chain is empty")]
    Empty,
    /// More certificates than any chain of ours has.
    #[error("the chain has {len} certificates, more than {max}")]
    TooLong {
        /// How many.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// The leaf cannot be read.
    #[error("the leaf: {0}")]
    Certificate(#[from] CertificateError),
    /// The path ends at no root that is trusted here.
    #[error("the chain ends at none of the trusted roots ({trusted})")]
    UntrustedRoot {
        /// The tiers whose roots are trusted, or `infrastructure`.
        trusted: String,
    },
    /// A certificate of the chain has ended.
    #[error("a certificate of the chain ended at {not_after}, and it is {now}")]
    Expired {
        /// Its end, seconds since 1970-01-01 UTC.
        not_after: u64,
        /// The time of verification.
        now: u64,
    },
    /// A certificate of the chain has not begun.
    #[error("a certificate of the chain begins at {not_before}, and it is {now}")]
    NotYetValid {
        /// Its beginning, seconds since 1970-01-01 UTC.
        not_before: u64,
        /// The time of verification.
        now: u64,
    },
    /// An issuing CA of the chain was tainted.
    #[error("the chain's issuing CA (key {authority}) was tainted")]
    Tainted {
        /// SHA-256 of its SubjectPublicKeyInfo, hex.
        authority: String,
    },
    /// Path validation failed otherwise.
    #[error("path validation: {0:?}")]
    Path(webpki::Error),
    /// Not exactly one URI name (X.509-SVID §2).
    #[error("the leaf has {count} URI names, not one")]
    UriNames {
        /// How many.
        count: usize,
    },
    /// A name that is neither the SPIFFE ID nor a DNS name.
    #[error("the leaf has a name of another kind: {name}")]
    OtherName {
        /// The name.
        name: String,
    },
    /// The URI is not a SPIFFE ID of Hallmark's form.
    #[error("the leaf: {0}")]
    SpiffeId(#[from] NameError),
    /// The leaf is of another trust domain than the roots.
    #[error("the leaf is of trust domain {found}, the roots of {expected}")]
    TrustDomain {
        /// The roots'.
        expected: TrustDomain,
        /// The leaf's.
        found: TrustDomain,
    },
    /// A host under a tier's root, or an agent under the infrastructure root.
    #[error("{found} under a root for {expected}")]
    Kind {
        /// What the root certifies.
        expected: &'static str,
        /// Who the leaf says it is.
        found: SpiffeId,
    },
    /// The leaf is a CA (X.509-SVID §4.1).
    #[error("the leaf is a CA certificate")]
    CertificateAuthority,
    /// keyUsage is not exactly digitalSignature (X.509-SVID §4.3).
    #[error("the leaf's key usage bits are {found:?}, not digitalSignature alone")]
    KeyUsage {
        /// The bits, bit 0 being digitalSignature; none where the extension is absent.
        found: Option<u16>,
    },
    /// extendedKeyUsage lacks clientAuth or serverAuth (X.509-SVID §4.4).
    #[error("the leaf's extended key usage lacks clientAuth or serverAuth")]
    ExtendedKeyUsage,
    /// The serial number is not of our form.
    #[error("the leaf: {0}")]
    Serial(#[from] SerialError),
    /// The policies are not the cumulative set of the root's tier.
    #[error("the leaf's policies are those of {found:?}, its root is {root}'s")]
    Policies {
        /// The tier of the root.
        root: Tier,
        /// The tier whose set they are, none where they are no such set.
        found: Option<Tier>,
    },
    /// No AgentInfo.
    #[error("the leaf has no AgentInfo extension ({oid})")]
    NoAgentInfo {
        /// Where it should have been.
        oid: String,
    },
    /// AgentInfo cannot be read.
    #[error("the leaf: {0}")]
    AgentInfo(#[from] AgentInfoError),
    /// AgentInfo names another tier than the root's.
    #[error("the leaf's AgentInfo says {found}, its root is {root}'s")]
    Tier {
        /// The tier of the root.
        root: Tier,
        /// The tier that AgentInfo names.
        found: Tier,
    },
    /// AgentInfo names another task than the SPIFFE ID, or one of them names none.
    #[error("the leaf's AgentInfo names another task than {found}")]
    Task {
        /// Who the leaf says it is.
        found: SpiffeId,
    },
    /// The key is in a software TPM, and that is not accepted here.
    #[error("{found} holds its key in a simulated TPM, which is not accepted here")]
    Simulated {
        /// Who the leaf says it is.
        found: SpiffeId,
    },
}

/// Verifies an agent's or a task's chain, leaf first, against `roots`.
///
/// # Errors
/// The first check that failed.
pub fn verify_chain(
    chain: &[CertificateDer<'_>],
    roots: &TierRoots,
    demand: &Demand,
) -> Result<VerifiedPeer, ChainError> {
    let trusted = || roots.tiers().iter().map(|t| t.as_str()).collect::<Vec<_>>().join(", ");
    let (tier, lab) =
        verify_path(chain, roots.anchors(), demand.usage, demand.now, trusted, |a| roots.meaning_of(a))?;
    let leaf = Certificate::parse(chain.first().ok_or(ChainError::Empty)?)?;
    let spiffe_id = check_svid(&leaf, roots.trust_domain())?;
    if !matches!(spiffe_id.subject, Subject::Agent(_) | Subject::Task(..)) {
        return Err(ChainError::Kind { expected: "agents and tasks", found: spiffe_id });
    }
    let agent_info = check_agent_info(&leaf, tier, &spiffe_id)?;
    if agent_info.custody == Custody::Simulated && !demand.accept_simulated {
        return Err(ChainError::Simulated { found: spiffe_id });
    }
    Ok(VerifiedPeer {
        spiffe_id,
        tier,
        lab,
        agent_info,
        instance: leaf.subject_serial_number().and_then(|s| s.parse().ok()),
        not_before: leaf.not_before(),
        not_after: leaf.not_after(),
        serial: Serial::from_bytes(leaf.serial())?,
    })
}

/// Verifies a host's or an issuer's chain, leaf first, against the infrastructure roots.
///
/// # Errors
/// The first check that failed.
pub fn verify_infrastructure(
    chain: &[CertificateDer<'_>],
    roots: &InfraRoots,
    usage: Usage,
    now: UnixTime,
) -> Result<VerifiedInfra, ChainError> {
    verify_path(chain, roots.anchors(), usage, now, || "infrastructure".to_owned(), |_| Some(()))?;
    // Whichever of them is in the path: an honest peer sends none that was tainted.
    for authority in chain.iter().skip(1) {
        let key = super::key_fingerprint(authority)?;
        if roots.is_denied(&key) {
            return Err(ChainError::Tainted { authority: hex::encode(key) });
        }
    }
    let leaf = Certificate::parse(chain.first().ok_or(ChainError::Empty)?)?;
    let spiffe_id = check_svid(&leaf, roots.trust_domain())?;
    if !matches!(spiffe_id.subject, Subject::Host(_) | Subject::Issuer(_)) {
        return Err(ChainError::Kind { expected: "hosts and issuers", found: spiffe_id });
    }
    Ok(VerifiedInfra { spiffe_id, not_after: leaf.not_after(), serial: Serial::from_bytes(leaf.serial())? })
}

/// RFC 5280 §6 by rustls-webpki; gives what the anchor stands for.
fn verify_path<T>(
    chain: &[CertificateDer<'_>],
    anchors: &[TrustAnchor<'_>],
    usage: Usage,
    now: UnixTime,
    trusted: impl Fn() -> String,
    meaning: impl Fn(&TrustAnchor<'_>) -> Option<T>,
) -> Result<T, ChainError> {
    let (leaf, intermediates) = chain.split_first().ok_or(ChainError::Empty)?;
    if chain.len() > MAX_CHAIN {
        return Err(ChainError::TooLong { len: chain.len(), max: MAX_CHAIN });
    }
    // The two signature algorithms of the profile, and no other.
    let algorithms = [webpki::aws_lc_rs::ECDSA_P256_SHA256, webpki::aws_lc_rs::ECDSA_P384_SHA384];
    let usage = match usage {
        Usage::Client => KeyUsage::client_auth(),
        Usage::Server => KeyUsage::server_auth(),
    };
    let refuse = |e| match e {
        webpki::Error::UnknownIssuer => ChainError::UntrustedRoot { trusted: trusted() },
        webpki::Error::CertExpired { time, not_after } => {
            ChainError::Expired { not_after: not_after.as_secs(), now: time.as_secs() }
        }
        webpki::Error::CertNotValidYet { time, not_before } => {
            ChainError::NotYetValid { not_before: not_before.as_secs(), now: time.as_secs() }
        }
        webpki::Error::CaUsedAsEndEntity => ChainError::CertificateAuthority,
        other => ChainError::Path(other),
    };
    let leaf = EndEntityCert::try_from(leaf).map_err(refuse)?;
    let path =
        leaf.verify_for_usage(&algorithms, anchors, intermediates, now, usage, None, None).map_err(refuse)?;
    meaning(path.anchor()).ok_or_else(|| ChainError::UntrustedRoot { trusted: trusted() })
}

/// The leaf is a well-formed X.509-SVID of this trust domain, in Hallmark's form.
fn check_svid(leaf: &Certificate<'_>, trust_domain: &TrustDomain) -> Result<SpiffeId, ChainError> {
    if leaf.is_ca {
        return Err(ChainError::CertificateAuthority);
    }
    if leaf.key_usage != Some(DIGITAL_SIGNATURE) {
        return Err(ChainError::KeyUsage { found: leaf.key_usage });
    }
    if !(leaf.client_auth && leaf.server_auth) {
        return Err(ChainError::ExtendedKeyUsage);
    }
    let uri = leaf.only_uri().map_err(|count| ChainError::UriNames { count })?;
    if let Some(San::Other(name)) = leaf.names.iter().find(|n| matches!(n, San::Other(_))) {
        return Err(ChainError::OtherName { name: name.clone() });
    }
    let id: SpiffeId = uri.parse()?;
    if id.trust_domain != *trust_domain {
        return Err(ChainError::TrustDomain { expected: trust_domain.clone(), found: id.trust_domain });
    }
    Ok(id)
}

/// Policies and AgentInfo agree with the root. The policies give the arc, so that a relying party need not
/// be told it; a CA that the root vouches for wrote them.
fn check_agent_info(leaf: &Certificate<'_>, root: Tier, id: &SpiffeId) -> Result<AgentInfo, ChainError> {
    let (arc, asserted) =
        OidArc::from_policies(&leaf.policies).ok_or(ChainError::Policies { root, found: None })?;
    if asserted != root {
        return Err(ChainError::Policies { root, found: Some(asserted) });
    }
    let oid = arc.agent_info();
    let content = leaf.extension(&oid).ok_or(ChainError::NoAgentInfo { oid })?;
    let info = AgentInfo::decode(content)?;
    if info.tier != root {
        return Err(ChainError::Tier { root, found: info.tier });
    }
    let task = match &id.subject {
        Subject::Task(_, task) => Some(task),
        Subject::Agent(_) | Subject::Host(_) | Subject::Issuer(_) => None,
    };
    if info.task.as_ref().map(|t| &t.task_id) != task {
        return Err(ChainError::Task { found: id.clone() });
    }
    Ok(info)
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
