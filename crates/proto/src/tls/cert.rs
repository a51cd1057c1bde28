//! The certificate a side shows, swapped while it runs, and the keys behind it.

use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};

use hallmark_core::x509::{CaKey, Curve, SvidError, UnverifiedSvid};
use rustls::client::ResolvesClientCert;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, SubjectPublicKeyInfoDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::{CertifiedKey, Signer, SigningKey};
use rustls::{InconsistentKeys, SignatureAlgorithm, SignatureScheme};
use tokio::runtime::{Handle, RuntimeFlavor};

use super::provider;

/// A certificate chain and its key, replaced as a whole at each renewal. Connections that are open keep
/// what they began with; they end with it.
#[derive(Debug, Default)]
pub struct SwappableCert(RwLock<Option<Held>>);

#[derive(Debug, Clone)]
struct Held {
    key: Arc<CertifiedKey>,
    svid: Arc<UnverifiedSvid>,
}

/// Why a chain was not taken over.
#[derive(Debug, thiserror::Error)]
pub enum CertError {
    /// No certificate in it.
    #[error("the chain is empty")]
    Empty,
    /// The leaf is not an SVID.
    #[error("the leaf: {0}")]
    Svid(#[from] SvidError),
    /// The key is not the leaf's.
    #[error("the key is not that of the leaf")]
    KeyMismatch,
    /// Not a private key that TLS can use.
    #[error("not a usable private key: {0}")]
    Key(rustls::Error),
}

impl SwappableCert {
    /// None yet: a server refuses handshakes, a client shows nothing.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Shows this chain, leaf first, from the next handshake on.
    ///
    /// # Errors
    /// The leaf is not an SVID or the key is not its key; what was shown before stays.
    pub fn set(
        &self,
        chain: Vec<CertificateDer<'static>>,
        key: Arc<dyn SigningKey>,
    ) -> Result<(), CertError> {
        let leaf = chain.first().ok_or(CertError::Empty)?;
        let svid = Arc::new(UnverifiedSvid::parse(leaf)?);
        let key = CertifiedKey::new(chain, key);
        match key.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(InconsistentKeys::Unknown)) => {}
            Err(_) => return Err(CertError::KeyMismatch),
        }
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = Some(Held { key: Arc::new(key), svid });
        Ok(())
    }

    /// Shows nothing any more.
    pub fn clear(&self) {
        *self.0.write().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// The leaf that is shown now.
    pub fn svid(&self) -> Option<Arc<UnverifiedSvid>> {
        self.held().map(|h| h.svid)
    }

    /// The end of the leaf that is shown now, seconds since 1970-01-01 UTC.
    pub fn not_after(&self) -> Option<i64> {
        self.held().map(|h| h.svid.not_after)
    }

    fn held(&self) -> Option<Held> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl ResolvesServerCert for SwappableCert {
    fn resolve(&self, _hello: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.held().map(|h| h.key)
    }
}

impl ResolvesClientCert for SwappableCert {
    fn resolve(&self, _hints: &[&[u8]], _schemes: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.held().map(|h| h.key)
    }

    fn has_certs(&self) -> bool {
        self.held().is_some()
    }
}

/// A private key in memory, PKCS#8, as TLS uses it.
///
/// # Errors
/// Not such a key.
pub fn software_key(pkcs8: &[u8]) -> Result<Arc<dyn SigningKey>, CertError> {
    let key = PrivateKeyDer::Pkcs8(pkcs8.to_vec().into());
    provider().key_provider.load_private_key(key).map_err(CertError::Key)
}

/// A key held elsewhere (TPM, PKCS#11 token, another process), as TLS uses it. Signing may take
/// long: on a multi-threaded runtime the worker is released meanwhile.
pub fn token_key(key: Arc<dyn CaKey>) -> Arc<dyn SigningKey> {
    Arc::new(TokenKey(key))
}

#[derive(Clone)]
struct TokenKey(Arc<dyn CaKey>);

impl TokenKey {
    fn own_scheme(&self) -> SignatureScheme {
        match self.0.curve() {
            Curve::P256 => SignatureScheme::ECDSA_NISTP256_SHA256,
            Curve::P384 => SignatureScheme::ECDSA_NISTP384_SHA384,
        }
    }
}

impl SigningKey for TokenKey {
    fn choose_scheme(&self, offered: &[SignatureScheme]) -> Option<Box<dyn Signer>> {
        offered.contains(&self.own_scheme()).then(|| Box::new(self.clone()) as Box<dyn Signer>)
    }

    fn public_key(&self) -> Option<SubjectPublicKeyInfoDer<'_>> {
        Some(SubjectPublicKeyInfoDer::from(self.0.spki_der()))
    }

    fn algorithm(&self) -> SignatureAlgorithm {
        SignatureAlgorithm::ECDSA
    }
}

impl Signer for TokenKey {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rustls::Error> {
        let sign = || self.0.sign(message).map_err(|e| rustls::Error::General(e.to_string()));
        let multi = |h: Handle| h.runtime_flavor() == RuntimeFlavor::MultiThread;
        if Handle::try_current().is_ok_and(multi) { tokio::task::block_in_place(sign) } else { sign() }
    }

    fn scheme(&self) -> SignatureScheme {
        self.own_scheme()
    }
}

impl fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenKey").field("curve", &self.0.curve()).finish_non_exhaustive()
    }
}
