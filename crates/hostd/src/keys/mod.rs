//! Agents' keys, in three custodies behind one trait. A signature is always asked of a key, never made
//! with one in hand; only a software key can be given away, and only to the agent it was made for.

pub mod csr;
mod pkcs11;
mod software;
mod tpm;

use std::collections::BTreeSet;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use hallmark_core::tier::Custody;
use hallmark_proto::issuer::issue_item;
use tonic::codegen::Bytes;

pub use pkcs11::Pkcs11Keys;
pub(crate) use software::SoftwareKey;
pub use software::SoftwareKeys;
pub use tpm::TpmKeys;
pub(crate) use tpm::{certification, refused};

/// Why a key was not made, or did not sign.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// This host has nothing that holds keys of this custody.
    #[error("this host holds no {custody} keys: {remedy}")]
    NoStore {
        /// The custody asked for.
        custody: Custody,
        /// What the operator can do.
        remedy: &'static str,
    },
    /// A software key or signature could not be made.
    #[error("software key: {0}")]
    Software(&'static str),
    /// The hardware refused or is away.
    #[error("{custody} key: {reason}")]
    Hardware {
        /// The custody.
        custody: Custody,
        /// What it said.
        reason: String,
        /// Whether the key is lost for good, so that a new one must be made.
        lost: bool,
    },
    /// Too many wait for the hardware.
    #[error("{custody} key: busy, try again later")]
    Busy {
        /// The custody.
        custody: Custody,
    },
    /// The request for a certificate could not be built.
    #[error("CSR: {0}")]
    Csr(String),
}

/// What a key is made for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeySpec {
    /// PCRs (bank sha256) to which the TPM shall bind the key's use; empty for none.
    pub bind_pcrs: BTreeSet<u8>,
    /// Whose agent it is for: users take turns at the hardware.
    pub user: u32,
}

/// The result of asking a key or a store.
pub type KeyFuture<'a, T> = Pin<Box<dyn Future<Output = Result<T, KeyError>> + Send + 'a>>;

/// A private key of one instance. Dropping it destroys it.
pub trait AgentKey: Send + Sync {
    /// Where it lives.
    fn custody(&self) -> Custody;

    /// Its public half: an EC point on P-256, uncompressed (SEC 1, section 2.3.3).
    fn public_point(&self) -> &[u8];

    /// An ECDSA-Sig-Value (RFC 3279, section 2.2.3) over this SHA-256 digest.
    fn sign(&self, digest: [u8; 32]) -> KeyFuture<'_, Vec<u8>>;

    /// Whether it would also do for a certificate with this custody and specification.
    fn fits(&self, custody: Custody, spec: &KeySpec) -> bool;

    /// What the issuer is shown for it.
    fn evidence(&self) -> issue_item::Key;

    /// The key itself as PKCS#8, wiped when the last copy is dropped; none for keys that cannot leave.
    fn release(&self) -> Option<Bytes>;
}

/// What makes keys of one custody.
pub trait KeyStore: Send + Sync {
    /// A new key.
    fn create<'a>(&'a self, spec: &'a KeySpec) -> KeyFuture<'a, Arc<dyn AgentKey>>;
}

/// The stores of this host.
#[derive(Clone)]
pub struct KeyStores {
    software: Arc<dyn KeyStore>,
    pkcs11: Option<Arc<dyn KeyStore>>,
    tpm: Option<Arc<dyn KeyStore>>,
}

impl KeyStores {
    /// Software keys, and those of the hardware this host has.
    pub fn new(pkcs11: Option<Arc<dyn KeyStore>>, tpm: Option<Arc<dyn KeyStore>>) -> Self {
        Self { software: Arc::new(SoftwareKeys), pkcs11, tpm }
    }

    /// The store for a custody that a registration names.
    ///
    /// # Errors
    /// This host has none.
    pub fn of(&self, custody: Custody) -> Result<&Arc<dyn KeyStore>, KeyError> {
        let (store, remedy) = match custody {
            Custody::Software => (Some(&self.software), ""),
            Custody::Pkcs11Asserted => {
                (self.pkcs11.as_ref(), "configure [pkcs11] with the module and the token's label")
            }
            Custody::TpmCertified | Custody::Simulated => {
                (self.tpm.as_ref(), "configure [tpm]; hosts with a join token have none")
            }
        };
        store.ok_or(KeyError::NoStore { custody, remedy })
    }
}

/// The point in the SubjectPublicKeyInfo of a P-256 key (RFC 5480, section 2).
pub(crate) fn public_point(spki: &[u8]) -> Result<Vec<u8>, KeyError> {
    const PREFIX: [u8; 26] = [
        0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86,
        0x48, 0xce, 0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
    ];
    match spki.strip_prefix(&PREFIX) {
        Some(point) if point.len() == 65 && point[0] == 4 => Ok(point.to_vec()),
        _ => Err(KeyError::Csr("the key is not on P-256, uncompressed".into())),
    }
}
