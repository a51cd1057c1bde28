//! Why a host was refused, in full for the operator and in one word for the host.

use hallmark_core::ek::EkError;
use hallmark_core::evidence::{AkRefusal, HostRefusal, QuoteRefusal};
use hallmark_core::id::HostId;
use hallmark_core::x509::CsrError;

use crate::ca::SignError;
use crate::store::{Conflict, StoreError};

/// Why a host was refused. The host is told the code word, the log and the record the whole.
#[derive(Debug, thiserror::Error)]
pub enum AttestRefusal {
    /// The stream does not follow the protocol.
    #[error("protocol: {0}")]
    Protocol(String),
    /// It took longer than `limits.attestation_timeout`.
    #[error("it was not finished within limits.attestation_timeout")]
    Deadline,
    /// The EK is on no list and its certificate does not hold.
    #[error("EK: {0}")]
    Ek(#[from] EkError),
    /// The EK has no certificate and is not on the allow-list.
    #[error(
        "EK {ek_sha256} has no certificate and is not on the allow-list: hallmark host allow {host_id} --ek-sha256 {ek_sha256}"
    )]
    EkUnknown {
        /// The host id asked for.
        host_id: HostId,
        /// The EK's digest, hex.
        ek_sha256: String,
    },
    /// Enrolment is by allow-list, and this EK is not on it under this host id.
    #[error(
        "host {host_id} with EK {ek_sha256} is not on the allow-list: hallmark host allow {host_id} --ek-sha256 {ek_sha256}"
    )]
    NotAllowed {
        /// The host id asked for.
        host_id: HostId,
        /// The EK's digest, hex.
        ek_sha256: String,
    },
    /// The EK is none of the profile's, or cannot be written as a key.
    #[error("EK: {0}")]
    EkForm(String),
    /// The AK is not one.
    #[error(transparent)]
    Ak(#[from] AkRefusal),
    /// No credential could be made for this EK and AK.
    #[error("challenge: {0}")]
    Challenge(String),
    /// The certificate request.
    #[error("CSR: {0}")]
    Csr(#[from] CsrError),
    /// The evidence.
    #[error(transparent)]
    Evidence(#[from] HostRefusal),
    /// The quote of a refresh.
    #[error("quote: {0}")]
    Quote(#[from] QuoteRefusal),
    /// A binding is taken, or the join token bought nothing.
    #[error(transparent)]
    Conflict(Conflict),
    /// The CA could not sign.
    #[error(transparent)]
    Sign(#[from] SignError),
    /// The store failed.
    #[error(transparent)]
    Store(StoreError),
}

impl AttestRefusal {
    /// One word for machines and strangers.
    pub fn code(&self) -> &'static str {
        match self {
            AttestRefusal::Protocol(_) => "protocol",
            AttestRefusal::Deadline => "deadline",
            AttestRefusal::Ek(e) => e.code(),
            AttestRefusal::EkUnknown { .. } => "ek-unknown",
            AttestRefusal::NotAllowed { .. } => "host-not-allowed",
            AttestRefusal::Challenge(_) => "challenge",
            AttestRefusal::EkForm(_) => "ek-template",
            AttestRefusal::Ak(e) => e.code(),
            AttestRefusal::Quote(e) => e.code(),
            AttestRefusal::Csr(_) => "csr",
            AttestRefusal::Evidence(e) => e.code(),
            AttestRefusal::Conflict(Conflict::HostIdTaken { .. }) => "host-id-taken",
            AttestRefusal::Conflict(Conflict::EkTaken { .. }) => "ek-taken",
            AttestRefusal::Conflict(Conflict::Disabled { .. }) => "host-disabled",
            AttestRefusal::Conflict(Conflict::Removed { .. } | Conflict::NotEnrolled { .. }) => {
                "host-removed"
            }
            AttestRefusal::Conflict(Conflict::Overtaken) => "overtaken",
            AttestRefusal::Conflict(Conflict::Simulated { .. }) => "ek-simulated",
            // Which of unknown, spent, expired it is stays with the issuer: a guesser learns nothing.
            AttestRefusal::Conflict(Conflict::JoinToken(_)) => "join-token",
            AttestRefusal::Sign(_) | AttestRefusal::Conflict(Conflict::Authority { .. }) => "ca-unavailable",
            AttestRefusal::Store(_) => "store-unavailable",
        }
    }
}

impl AttestRefusal {
    /// An operator disabled this host.
    pub(super) fn disabled(host: &HostId, reason: &str) -> Self {
        Self::Conflict(Conflict::Disabled { host_id: host.to_string(), reason: reason.to_owned() })
    }
}

impl From<StoreError> for AttestRefusal {
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Conflict(conflict) => Self::Conflict(conflict),
            other => Self::Store(other),
        }
    }
}
