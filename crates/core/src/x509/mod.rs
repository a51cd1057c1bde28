//! Certificates: the profile, building them, requests for them, and verifying them.
//!
//! **In scope:** the four hierarchies' roots and issuing CAs, leaves for agents, tasks, hosts and issuers,
//! the [`AgentInfo`] extension, certification requests with proof of possession, CRLs, and path
//! validation that yields the tier from the root.
//!
//! **Not in scope:** where CA keys live (see [`CaKey`]), the clock and random numbers (arguments), and who
//! may have a certificate (`decide`).
//!
//! The tier is enforced by the root: a relying party that demands "at least enterprise" trusts the
//! enterprise and the advanced root and no other. Policy identifiers and `AgentInfo` inform.
//!
//! One exception to "no randomness in core": ECDSA nonces of [`SoftwareCaKey`] come from aws-lc's own
//! generator, which offers no way to pass them in.

mod agent_info;
mod crl;
mod csr;
mod issuing;
mod key;
mod names;
mod oid;
mod parse;
mod profile;
mod roots;
mod serial;
mod svid;
#[cfg(test)]
pub(crate) mod testing;
mod upstream;
mod verify;

pub use agent_info::{AgentInfo, AgentInfoError, Delegation, TaskInfo};
pub use crl::{Crl, CrlError, CrlParams, Reason, Revoked};
pub use csr::{Csr, CsrError, MAX_CSR};
pub use issuing::{AgentLeaf, IssuingCa, Leaf, LeafParams};
pub use key::{CaKey, Curve, KeyError, PublicKey, PublicKeyError, SoftwareCaKey};
pub use names::LAB_MARK;
pub use oid::{OidArc, OidArcError};
pub use parse::CertificateError;
pub use profile::{CaParams, MAX_CA_LIFETIME, ProfileError, issuing, root};
pub use roots::{InfraRoots, RootsError, TierRoots};
pub use serial::{Serial, SerialError};
pub use svid::{SvidError, UnverifiedSvid};
pub use upstream::{IssuingWanted, UpstreamFault, appraise_upstream, ca_request};
pub use verify::{
    ChainError, Demand, Usage, VerifiedInfra, VerifiedPeer, verify_chain, verify_infrastructure,
};

/// SHA-256 of a certificate in DER: what records name it by.
pub fn fingerprint(der: &[u8]) -> [u8; 32] {
    let mut sha256 = [0; 32];
    sha256.copy_from_slice(aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, der).as_ref());
    sha256
}

/// SHA-256 of a certificate's SubjectPublicKeyInfo: what a CA is told by, whatever its certificate.
///
/// # Errors
/// Not a certificate.
pub fn key_fingerprint(der: &[u8]) -> Result<[u8; 32], CertificateError> {
    Ok(fingerprint(parse::Certificate::parse(der)?.spki_der()))
}

/// How far back `notBefore` lies before the time of issue, in seconds: for peers whose clocks are slow.
pub const BACKDATE: i64 = 30;
