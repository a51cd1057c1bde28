//! A host with a TPM: its EK says which TPM, its AK that the state is the TPM's word, and its client key
//! lives there too, so that stealing the disk gives nothing.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use aws_lc_rs::digest::{SHA256, digest};
use hallmark_core::ek;
use hallmark_core::evidence;
use hallmark_core::id::HostId;
use hallmark_core::tpm::Public;
use hallmark_core::x509::{self, CaKey, Curve};
use hallmark_proto::issuer as wire;
use hallmark_proto::tls;
use hallmark_tpm::{Certification, HOST, HostTpm, KeySpec, Tpm, TpmError, TpmKey};
use rustls::sign::SigningKey;

use super::attester::{AttestError, AttestFuture, Attester};
use crate::keys::{KeyError, KeyFuture, certification, public_point, refused};

/// Largest event log sent. Real ones have some tens of KiB.
const MAX_EVENT_LOG: u64 = 2 << 20;

/// See the module.
pub struct TpmAttester {
    tpm: Tpm,
    event_log: PathBuf,
    identity: HostTpm,
    ak: Public,
    key: TpmKey,
    key_certification: Certification,
    key_point: Vec<u8>,
}

/// SHA-256 of the EK's SubjectPublicKeyInfo, hex: what an operator allows this host by.
///
/// # Errors
/// The TPM's EK is none that can be written as a key.
pub fn ek_digest(identity: &HostTpm) -> Result<String, AttestError> {
    let ek = Public::parse(&identity.ek_public).map_err(|e| AttestError::Tpm(format!("EK: {e}")))?;
    ek::public_digest(&ek).map(hex::encode).map_err(|e| AttestError::Tpm(format!("EK: {e}")))
}

impl TpmAttester {
    /// Reads the TPM's identity, and makes the host key: anew each time, so that nothing of it is on disk.
    ///
    /// # Errors
    /// The TPM cannot do its part.
    pub async fn new(tpm: Tpm, event_log: PathBuf) -> Result<Self, AttestError> {
        let identity = tpm.identity().await.map_err(broken)?;
        if identity.ek_certificates.is_empty() {
            tracing::warn!(
                "this TPM holds no EK certificate: the issuer accepts it only if its EK is on the allow-list"
            );
        }
        let ak = Public::parse(&identity.ak_public).map_err(|e| AttestError::Tpm(format!("AK: {e}")))?;
        tracing::info!(
            ek_sha256 = ek_digest(&identity)?,
            "this TPM's EK: what `hallmark host allow` names it by"
        );
        let made = tpm.certified_key(&KeySpec::default(), [0; 32], HOST).await;
        let (key, key_certification) = made.map_err(broken)?;
        let key_point = public_point(key.spki_der())?;
        Ok(Self { tpm, event_log, identity, ak, key, key_certification, key_point })
    }

    async fn quoted(&self, qualifying: [u8; 32], pcrs: &[u32]) -> Result<wire::Quote, AttestError> {
        let pcrs: Result<Vec<u8>, _> = pcrs.iter().map(|pcr| u8::try_from(*pcr)).collect();
        let pcrs = pcrs.map_err(|_| AttestError::Challenge("it wants a PCR that does not exist"))?;
        let quote = self.tpm.quote(qualifying, &pcrs).await.map_err(broken)?;
        let path = self.event_log.clone();
        let log = tokio::task::spawn_blocking(move || event_log(&path)).await.unwrap_or_default();
        let value = |(index, sha256): hallmark_tpm::PcrValue| wire::PcrValue {
            index: u32::from(index),
            sha256: sha256.to_vec().into(),
        };
        Ok(wire::Quote {
            attest: quote.attest.into(),
            signature: quote.signature.into(),
            pcrs: quote.pcrs.into_iter().map(value).collect(),
            event_log: log.into(),
        })
    }
}

impl Attester for TpmAttester {
    fn name(&self) -> &'static str {
        "tpm"
    }

    fn proof(&self) -> AttestFuture<'_, wire::host_hello::Proof> {
        let HostTpm { ek_certificates, ek_public, ak_public, .. } = &self.identity;
        let hello = wire::TpmHello {
            ek_certificates: ek_certificates.iter().cloned().map(Into::into).collect(),
            ek_public: ek_public.clone().into(),
            ak_public: ak_public.clone().into(),
        };
        Box::pin(async { Ok(wire::host_hello::Proof::Tpm(hello)) })
    }

    fn public_point(&self) -> &[u8] {
        &self.key_point
    }

    fn sign(&self, digest: [u8; 32]) -> KeyFuture<'_, Vec<u8>> {
        Box::pin(async move { self.tpm.sign(&self.key, digest, HOST).await.map_err(refused) })
    }

    fn tls_key(&self) -> Result<Arc<dyn SigningKey>, KeyError> {
        Ok(tls::token_key(Arc::new(HostKey { tpm: self.tpm.clone(), key: self.key.clone() })))
    }

    fn evidence<'a>(
        &'a self,
        challenge: &'a wire::Challenge,
        csr: &'a [u8],
    ) -> AttestFuture<'a, Option<wire::TpmEvidence>> {
        Box::pin(async move {
            let nonce = nonce(&challenge.nonce)?;
            let secret = self
                .tpm
                .activate_credential(&challenge.credential_blob, &challenge.encrypted_secret)
                .await
                .map_err(broken)?;
            let qualifying = evidence::transcript(&nonce, self.ak.name(), csr);
            let quote = self.quoted(qualifying, &challenge.pcrs).await?;
            Ok(Some(wire::TpmEvidence {
                activated_secret: secret.to_vec().into(),
                quote: Some(quote),
                host_key: Some(certification(&self.key_certification)),
            }))
        })
    }

    fn quote<'a>(
        &'a self,
        challenge: &'a wire::RefreshChallenge,
        host: &'a HostId,
    ) -> AttestFuture<'a, wire::Quote> {
        Box::pin(async move {
            let nonce = nonce(&challenge.nonce)?;
            let qualifying = evidence::refresh_transcript(&nonce, self.ak.name(), host.as_str());
            self.quoted(qualifying, &challenge.pcrs).await
        })
    }

    fn accepted(&self) {}

    fn remedy(&self) -> &'static str {
        "the issuer's log and `hallmark doctor` say which check failed: EK certificate or allow-list, PCR policy, or a host id that is bound to another TPM"
    }
}

fn nonce(bytes: &[u8]) -> Result<[u8; 32], AttestError> {
    bytes.try_into().map_err(|_| AttestError::Challenge("the nonce has not 32 bytes"))
}

fn broken(error: TpmError) -> AttestError {
    AttestError::Tpm(error.to_string())
}

/// The log as the firmware left it; empty where there is none. What it says is for the issuer to judge.
fn event_log(path: &Path) -> Vec<u8> {
    let read = || {
        let mut bytes = Vec::new();
        std::fs::File::open(path)?.take(MAX_EVENT_LOG + 1).read_to_end(&mut bytes)?;
        Ok::<_, std::io::Error>(bytes)
    };
    match read() {
        Ok(bytes) if bytes.len() as u64 > MAX_EVENT_LOG => {
            tracing::warn!(path = %path.display(), "the event log is larger than {MAX_EVENT_LOG} bytes and is not sent");
            Vec::new()
        }
        Ok(bytes) => bytes,
        Err(error) => {
            tracing::debug!(path = %path.display(), %error, "no event log");
            Vec::new()
        }
    }
}

/// The host key as TLS asks for it, which cannot wait otherwise than by blocking.
struct HostKey {
    tpm: Tpm,
    key: TpmKey,
}

impl CaKey for HostKey {
    fn spki_der(&self) -> &[u8] {
        self.key.spki_der()
    }

    fn curve(&self) -> Curve {
        Curve::P256
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, x509::KeyError> {
        let mut hash = [0; 32];
        hash.copy_from_slice(digest(&SHA256, message).as_ref());
        futures::executor::block_on(self.tpm.sign(&self.key, hash, HOST))
            .map_err(|e| x509::KeyError::Unavailable { backend: "tpm", reason: e.to_string() })
    }
}
