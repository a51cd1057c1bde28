//! A host without a TPM: a join token, once, for the foundation tier.

use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::digest::{SHA256, digest};
use hallmark_core::id::HostId;
use hallmark_proto::issuer as wire;
use hallmark_proto::tls;
use rustls::sign::SigningKey;

use super::attester::{AttestError, AttestFuture, Attester};
use crate::config::SecretSource;
use crate::keys::{AgentKey, KeyError, KeyFuture, SoftwareKey};

/// The token is read anew at each attestation, so that an operator can leave a new one; the host key lives
/// in memory, so that a new one is needed after a restart.
pub struct JoinToken {
    source: SecretSource,
    key: SoftwareKey,
    /// Digests of the token shown last and of the one accepted last.
    seen: Mutex<Seen>,
}

#[derive(Default)]
struct Seen {
    shown: Option<Vec<u8>>,
    accepted: Option<Vec<u8>>,
}

impl JoinToken {
    /// With a new host key.
    ///
    /// # Errors
    /// The key could not be made.
    pub fn new(source: SecretSource) -> Result<Self, KeyError> {
        Ok(Self { source, key: SoftwareKey::generate()?, seen: Mutex::default() })
    }
}

impl Attester for JoinToken {
    fn name(&self) -> &'static str {
        "join-token"
    }

    fn proof(&self) -> AttestFuture<'_, wire::host_hello::Proof> {
        Box::pin(async {
            let token = self.source.read().map_err(AttestError::JoinToken)?;
            let hash = digest(&SHA256, token.as_bytes()).as_ref().to_vec();
            let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
            if seen.accepted.as_ref() == Some(&hash) {
                return Err(AttestError::JoinToken(
                    "this one was used already, and a token counts once: make a new one with `hallmark join-token create HOST` and put it in its place".into(),
                ));
            }
            seen.shown = Some(hash);
            Ok(wire::host_hello::Proof::JoinToken(wire::JoinToken { token: token.to_string() }))
        })
    }

    fn public_point(&self) -> &[u8] {
        self.key.public_point()
    }

    fn sign(&self, digest: [u8; 32]) -> KeyFuture<'_, Vec<u8>> {
        self.key.sign(digest)
    }

    fn tls_key(&self) -> Result<Arc<dyn SigningKey>, KeyError> {
        let pkcs8 = self.key.pkcs8().ok_or(KeyError::Software("the key cannot be written"))?;
        tls::software_key(&pkcs8).map_err(|_| KeyError::Software("the key cannot be used for TLS"))
    }

    fn evidence<'a>(
        &'a self,
        _challenge: &'a wire::Challenge,
        _csr: &'a [u8],
    ) -> AttestFuture<'a, Option<wire::TpmEvidence>> {
        Box::pin(async { Ok(None) })
    }

    fn quote<'a>(
        &'a self,
        _challenge: &'a wire::RefreshChallenge,
        _host: &'a HostId,
    ) -> AttestFuture<'a, wire::Quote> {
        Box::pin(async { Err(AttestError::Challenge("a host with a join token has nothing to quote with")) })
    }

    fn accepted(&self) {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        seen.accepted = seen.shown.take();
    }

    fn remedy(&self) -> &'static str {
        "a join token counts once and for a limited time, also across restarts of this daemon: make a new one with `hallmark join-token create HOST` and put it where the configuration says"
    }
}
