//! Appraising what a host sends to prove itself and its keys (RFC 9334: evidence in, attestation result
//! out).
//!
//! **In scope:** the attestation key, the activated secret, quotes with their PCR values, event log and
//! counters, and keys certified by the attestation key. **Not in scope:** the EK's certificate
//! ([`crate::ek`]), whether the PCR values are the accepted ones ([`crate::pcr::PcrPolicy`]), the CSR's own
//! signature (`crate::x509`), and what tier the result earns.
//!
//! The issuer appraises in the order of the protocol: [`appraise_ak`] before it makes a credential,
//! [`appraise_host`] on the evidence, [`appraise_refresh`] on each later quote, [`appraise_key`] on each
//! agent's key.

mod key;
mod quote;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq as _;

pub use key::{KeyAppraisal, KeyCertification, KeyRefusal, appraise_key};
pub use quote::{
    ClockChange, ClockRefusal, EventLogFinding, Quote, QuoteAppraisal, QuoteRefusal, appraise_clock,
};

use crate::ek;
use crate::pcr::{PcrSelection, PcrValues};
use crate::tpm::{ClockInfo, Name, ObjectAttributes, Public, Scheme, SpkiError};

/// What the quote of a host attestation carries as qualifying data: it binds the issuer's nonce to the AK
/// and to the CSR of the key that the host will hold its SVID with.
pub fn transcript(nonce: &[u8; 32], ak: &Name, csr: &[u8]) -> [u8; 32] {
    tagged_digest("hallmark host attestation v1", &[nonce, ak.as_bytes(), csr])
}

/// What the quote of a refresh carries as qualifying data: nonce, AK and the host it speaks for.
pub fn refresh_transcript(nonce: &[u8; 32], ak: &Name, host_id: &str) -> [u8; 32] {
    tagged_digest("hallmark quote refresh v1", &[nonce, ak.as_bytes(), host_id.as_bytes()])
}

/// SHA-256 of a domain and parts, each with its length before it: no two inputs collide by shifting bytes.
fn tagged_digest(domain: &str, parts: &[&[u8]]) -> [u8; 32] {
    let mut hash = Sha256::new();
    for part in std::iter::once(&domain.as_bytes()).chain(parts) {
        hash.update((part.len() as u64).to_be_bytes());
        hash.update(part);
    }
    hash.finalize().into()
}

/// Everything a host sent in one attestation. The EK and AK were parsed when the challenge was made.
#[derive(Debug, Clone, Copy)]
pub struct HostEvidence<'a> {
    /// The endorsement key the credential was made for.
    pub ek: &'a Public,
    /// The attestation key it was made for.
    pub ak: &'a Public,
    /// What TPM2_ActivateCredential returned.
    pub activated_secret: &'a [u8],
    /// The quote.
    pub quote: Quote<'a>,
    /// The host's client key, certified by the AK.
    pub host_key: KeyCertification<'a>,
    /// The CSR, DER: part of the transcript.
    pub csr: &'a [u8],
    /// The CSR's SubjectPublicKeyInfo, DER, from the parsed CSR.
    pub csr_spki: &'a [u8],
}

/// What the issuer knows and the evidence is held against.
#[derive(Debug, Clone, Copy)]
pub struct Expectation<'a> {
    /// The challenge's nonce.
    pub nonce: &'a [u8; 32],
    /// The secret in the challenge's credential.
    pub secret: &'a [u8],
    /// The PCRs the challenge asked for.
    pub pcrs: &'a PcrSelection,
    /// [`ek::public_digest`] of the EK this host id is bound to; `None` at first enrolment.
    pub bound_ek: Option<[u8; 32]>,
    /// Clock and counters of the last accepted quote of this TPM.
    pub previous_clock: Option<&'a ClockInfo>,
}

/// A host whose evidence holds. What it earns is decided elsewhere.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostAppraisal {
    /// [`ek::public_digest`] of its EK.
    pub ek_digest: [u8; 32],
    /// Name of its AK.
    pub ak_name: Name,
    /// The host key's SubjectPublicKeyInfo, DER: equals the CSR's.
    pub host_key_spki: Vec<u8>,
    /// What the quote proved.
    pub quote: QuoteAppraisal,
}

/// Why a host's evidence is refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostRefusal {
    /// The attestation key is not one.
    #[error(transparent)]
    Ak(#[from] AkRefusal),
    /// The EK cannot be used.
    #[error(transparent)]
    Spki(#[from] SpkiError),
    /// The host id belongs to another TPM.
    #[error("this host id is bound to EK {bound}, the evidence is of EK {found}")]
    OtherEk {
        /// Digest of the EK it is bound to, hex.
        bound: String,
        /// Digest of the EK that came, hex.
        found: String,
    },
    /// The TPM with this EK did not open the credential for this AK.
    #[error("the activated secret is not the one in the credential ({len} bytes came)")]
    Secret {
        /// Length of what came.
        len: usize,
    },
    /// The quote proves nothing.
    #[error("quote: {0}")]
    Quote(#[from] QuoteRefusal),
    /// The host key is not certified.
    #[error("host key: {0}")]
    HostKey(#[from] KeyRefusal),
}

impl HostRefusal {
    /// One word for machines, and for strangers.
    pub fn code(&self) -> &'static str {
        match self {
            HostRefusal::Ak(refusal) => refusal.code(),
            HostRefusal::Spki(_) => "ek-malformed",
            HostRefusal::OtherEk { .. } => "host-bound-to-other-ek",
            HostRefusal::Secret { .. } => "credential-not-activated",
            HostRefusal::Quote(refusal) => refusal.code(),
            HostRefusal::HostKey(refusal) => refusal.code(),
        }
    }
}

/// Why a key is no attestation key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AkRefusal {
    /// Attributes that every AK has are absent.
    #[error("an AK has {wanted}; key {ak} lacks {lacking} (it has {found})")]
    Lacks {
        /// The key.
        ak: Name,
        /// What every AK has.
        wanted: ObjectAttributes,
        /// What is absent.
        lacking: ObjectAttributes,
        /// What it has.
        found: ObjectAttributes,
    },
    /// It may decrypt as well.
    #[error("an AK only signs; key {ak} has {found}")]
    Decrypts {
        /// The key.
        ak: Name,
        /// Its attributes.
        found: ObjectAttributes,
    },
    /// Its scheme is none that signs.
    #[error("key {ak} has scheme {found:?}, which does not sign")]
    Scheme {
        /// The key.
        ak: Name,
        /// Its scheme.
        found: Scheme,
    },
    /// The EK in the AK's place.
    #[error("AK and EK are the same key {ak}")]
    IsTheEk {
        /// The key.
        ak: Name,
    },
}

impl AkRefusal {
    /// One word for machines, and for strangers.
    pub fn code(&self) -> &'static str {
        match self {
            AkRefusal::Lacks { .. } | AkRefusal::Decrypts { .. } => "ak-attributes",
            AkRefusal::Scheme { .. } => "ak-scheme",
            AkRefusal::IsTheEk { .. } => "ak-is-ek",
        }
    }
}

/// What every AK has: it signs nothing but what its TPM made (restricted), was made there and never leaves.
/// Without `restricted`, its holder could sign a forged quote (Part 2, clause 8.3).
const AK_ATTRIBUTES: ObjectAttributes = ObjectAttributes::RESTRICTED
    .union(ObjectAttributes::SIGN)
    .union(ObjectAttributes::FIXED_TPM)
    .union(ObjectAttributes::FIXED_PARENT)
    .union(ObjectAttributes::SENSITIVE_DATA_ORIGIN);

/// Whether `ak` is fit to be the attestation key beside `ek`. That the same TPM holds both, the credential's
/// activation proves.
pub fn appraise_ak(ak: &Public, ek: &Public) -> Result<(), AkRefusal> {
    let (name, found) = (|| ak.name().clone(), ak.attributes());
    if ak.key() == ek.key() {
        return Err(AkRefusal::IsTheEk { ak: name() });
    }
    let lacking = found.lacking(AK_ATTRIBUTES);
    if lacking.bits() != 0 {
        return Err(AkRefusal::Lacks { ak: name(), wanted: AK_ATTRIBUTES, lacking, found });
    }
    if found.intersects(ObjectAttributes::DECRYPT) {
        return Err(AkRefusal::Decrypts { ak: name(), found });
    }
    match ak.scheme() {
        Scheme::RsaSsa(_) | Scheme::RsaPss(_) | Scheme::Ecdsa(_) => Ok(()),
        found => Err(AkRefusal::Scheme { ak: name(), found }),
    }
}

/// Appraises a host's whole evidence against what the issuer asked for and knows.
pub fn appraise_host(
    evidence: &HostEvidence<'_>,
    expected: &Expectation<'_>,
) -> Result<HostAppraisal, HostRefusal> {
    let HostEvidence { ek, ak, .. } = *evidence;
    appraise_ak(ak, ek)?;
    let ek_digest = ek::public_digest(ek)?;
    if let Some(bound) = expected.bound_ek.filter(|bound| *bound != ek_digest) {
        return Err(HostRefusal::OtherEk { bound: hex::encode(bound), found: hex::encode(ek_digest) });
    }
    // An empty expectation would be met by an empty answer.
    let secret = evidence.activated_secret;
    if expected.secret.is_empty() || !bool::from(secret.ct_eq(expected.secret)) {
        return Err(HostRefusal::Secret { len: secret.len() });
    }
    let nonce = transcript(expected.nonce, ak.name(), evidence.csr);
    let quote = quote::appraise(&evidence.quote, ak, &nonce, expected.pcrs, expected.previous_clock)?;
    let host_key =
        appraise_key(&evidence.host_key, ak, evidence.csr_spki, &PcrSelection::default(), &quote.pcrs)?;
    Ok(HostAppraisal { ek_digest, ak_name: ak.name().clone(), host_key_spki: host_key.spki, quote })
}

/// Appraises a fresh quote of a host that is already attested, by the AK it attested with.
pub fn appraise_refresh(
    quote: &Quote<'_>,
    ak: &Public,
    host_id: &str,
    nonce: &[u8; 32],
    pcrs: &PcrSelection,
    previous_clock: &ClockInfo,
) -> Result<QuoteAppraisal, QuoteRefusal> {
    let nonce = refresh_transcript(nonce, ak.name(), host_id);
    quote::appraise(quote, ak, &nonce, pcrs, Some(previous_clock))
}

/// SHA-256 of what proved a host, for its record and for certificates: quote, signature and PCR values.
fn evidence_digest(quote: &Quote<'_>, pcrs: &PcrValues, ak: &Name) -> [u8; 32] {
    let parts: [&[u8]; 4] = [ak.as_bytes(), quote.attest, quote.signature, &pcrs.digest()];
    tagged_digest("hallmark evidence v1", &parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transcripts_bind_every_part() {
        let ak = Name::parse(&[&[0, 0x0b], [7; 32].as_slice()].concat()).unwrap();
        let other = Name::parse(&[&[0, 0x0b], [8; 32].as_slice()].concat()).unwrap();
        let base = transcript(&[1; 32], &ak, b"csr");
        assert_ne!(base, transcript(&[2; 32], &ak, b"csr"));
        assert_ne!(base, transcript(&[1; 32], &other, b"csr"));
        assert_ne!(base, transcript(&[1; 32], &ak, b"csr2"));
        // One kind of quote never passes for the other.
        assert_ne!(base, refresh_transcript(&[1; 32], &ak, "csr"));
    }
}
