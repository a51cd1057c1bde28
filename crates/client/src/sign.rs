//! Signing with a key that this process cannot see.
//!
//! rustls signs synchronously, inside the handshake, on whichever thread drives the connection. The
//! request therefore goes to the identity's own thread and the caller blocks on a plain channel: a
//! caller in a current-thread runtime cannot deadlock with it, since nothing waits for that runtime.

use std::fmt;
use std::sync::mpsc as reply;
use std::time::{Duration, Instant};

use rustls::sign::{Signer, SigningKey};
use rustls::{Error, SignatureAlgorithm, SignatureScheme};
use tokio::sync::mpsc;

use crate::error::ClientError;

/// Signatures of one process that may wait at once.
pub(crate) const QUEUE: usize = 64;
/// How long a handshake waits for its signature. A hardware TPM takes 0.2 s in the middle and shares
/// itself among all agents of the host.
pub(crate) const DEADLINE: Duration = Duration::from_secs(10);

/// One digest on its way to the identity's thread.
pub(crate) struct SignRequest {
    pub(crate) key_handle: Vec<u8>,
    pub(crate) digest: [u8; 32],
    pub(crate) asked: Instant,
    pub(crate) answer: reply::SyncSender<Result<Vec<u8>, ClientError>>,
}

/// The way to the identity's thread; the thread ends when all of them are gone.
#[derive(Clone)]
pub(crate) struct SignLink(mpsc::WeakSender<SignRequest>);

impl SignLink {
    /// Weak, because the identity's thread itself holds identities, and must not keep itself alive.
    pub(crate) fn new(sender: &mpsc::Sender<SignRequest>) -> Self {
        Self(sender.downgrade())
    }

    fn sign(&self, key_handle: &[u8], message: &[u8]) -> Result<Vec<u8>, ClientError> {
        let gone = || ClientError::Thread { why: "the identity source was dropped".to_owned() };
        let sender = self.0.upgrade().ok_or_else(gone)?;
        let (answer, answered) = reply::sync_channel(1);
        let digest = sha256(message);
        let request = SignRequest { key_handle: key_handle.to_vec(), digest, asked: Instant::now(), answer };
        sender.try_send(request).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => ClientError::SignQueueFull { limit: QUEUE },
            mpsc::error::TrySendError::Closed(_) => gone(),
        })?;
        match answered.recv_timeout(DEADLINE) {
            Ok(result) => result,
            Err(reply::RecvTimeoutError::Timeout) => Err(ClientError::SignTimedOut { waited: DEADLINE }),
            Err(reply::RecvTimeoutError::Disconnected) => Err(gone()),
        }
    }
}

fn sha256(message: &[u8]) -> [u8; 32] {
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, message);
    let mut out = [0; 32];
    out.copy_from_slice(digest.as_ref());
    out
}

/// A P-256 key behind the host daemon, as rustls sees it.
pub(crate) struct HardwareKey {
    handle: Vec<u8>,
    link: SignLink,
}

impl HardwareKey {
    pub(crate) fn new(handle: Vec<u8>, link: SignLink) -> Self {
        Self { handle, link }
    }
}

impl SigningKey for HardwareKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&SCHEME).then(|| {
            Box::new(HardwareSigner { handle: self.handle.clone(), link: self.link.clone() })
                as Box<dyn Signer>
        })
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

/// The agent API signs SHA-256 digests, and TLS 1.3 ties that digest to P-256 (RFC 8446 section 4.2.3).
const SCHEME: SignatureScheme = SignatureScheme::ECDSA_NISTP256_SHA256;

struct HardwareSigner {
    handle: Vec<u8>,
    link: SignLink,
}

impl Signer for HardwareSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, Error> {
        self.link.sign(&self.handle, message).map_err(|error| {
            tracing::warn!(%error, "the hardware key did not sign");
            Error::General(format!("the hardware key did not sign: {error}"))
        })
    }

    fn scheme(&self) -> SignatureScheme {
        SCHEME
    }
}

// Handles are no secrets, but they name a key: they stay out of logs.
impl fmt::Debug for HardwareKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HardwareKey")
    }
}

impl fmt::Debug for HardwareSigner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("HardwareSigner")
    }
}
