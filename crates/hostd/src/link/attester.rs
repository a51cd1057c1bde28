//! How this host proves itself: by its TPM, or once by a join token. A new way is a new implementation
//! here and a new verifier in `hallmark-core`; nothing else moves.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use hallmark_core::id::HostId;
use hallmark_proto::issuer as wire;
use rustls::sign::SigningKey;

use crate::keys::{KeyError, KeyFuture};

/// Why this host could not prove itself.
#[derive(Debug, thiserror::Error)]
pub enum AttestError {
    /// The TPM.
    #[error("TPM: {0}")]
    Tpm(String),
    /// The host's key.
    #[error("host key: {0}")]
    Key(#[from] KeyError),
    /// The join token.
    #[error("join token: {0}")]
    JoinToken(String),
    /// The issuer asked for what cannot be given.
    #[error("challenge: {0}")]
    Challenge(&'static str),
}

/// The result of asking an attester.
pub type AttestFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, AttestError>> + Send + 'a>>;

/// See the module.
pub trait Attester: Send + Sync {
    /// In a word, for logs.
    fn name(&self) -> &'static str;

    /// What the hello says.
    fn proof(&self) -> AttestFuture<'_, wire::host_hello::Proof>;

    /// The host key's public half: an uncompressed point on P-256.
    fn public_point(&self) -> &[u8];

    /// The host key signs this digest.
    fn sign(&self, digest: [u8; 32]) -> KeyFuture<'_, Vec<u8>>;

    /// The host key as TLS uses it.
    fn tls_key(&self) -> Result<Arc<dyn SigningKey>, KeyError>;

    /// The answer to a challenge, bound to this CSR; none where the hello was the whole proof.
    fn evidence<'a>(
        &'a self,
        challenge: &'a wire::Challenge,
        csr: &'a [u8],
    ) -> AttestFuture<'a, Option<wire::TpmEvidence>>;

    /// A fresh quote on an attestation that stands.
    fn quote<'a>(
        &'a self,
        challenge: &'a wire::RefreshChallenge,
        host: &'a HostId,
    ) -> AttestFuture<'a, wire::Quote>;

    /// Notes that the issuer accepted the proof.
    fn accepted(&self);

    /// What an operator can do when the issuer refuses.
    fn remedy(&self) -> &'static str;
}
