//! A CA key: made once, on the token for good, found again by its label.

use std::sync::{Arc, Mutex, PoisonError};

use cryptoki::mechanism::Mechanism;
use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;
use hallmark_core::x509::{CaKey, Curve, KeyError};

use crate::ec::{self, PublicKey};
use crate::object::{self, Lasting, Objects};
use crate::session::Sessions;
use crate::{HsmError, KeyAttributes};

/// What a health check signs begins with this: no certificate does (DER begins with 0x30).
const HEALTH_PREFIX: &[u8] = b"hallmark health check\0";

/// A private key on the token that signs certificates. Clones share the token's sessions and the handle.
#[derive(Debug, Clone)]
pub struct Pkcs11Key {
    sessions: Arc<Sessions>,
    known: Arc<Known>,
}

#[derive(Debug)]
struct Known {
    label: String,
    public: PublicKey,
    attributes: KeyAttributes,
    /// Found once; looked up again when the token no longer knows it.
    handle: Mutex<Option<ObjectHandle>>,
}

impl Pkcs11Key {
    /// Makes the key pair, and reads it back as [`Pkcs11Key::load`] does.
    pub(crate) fn generate(
        sessions: &Arc<Sessions>,
        label: &str,
        id: &[u8],
        curve: Curve,
    ) -> Result<Self, HsmError> {
        let lasting = Lasting::Token { label, id };
        object::make_lasting(sessions, label, |session| object::generate(session, curve, &lasting))?;
        Self::load(sessions, label)
    }

    /// Finds the key and its public key, refuses one that can leave the token or that derives, and
    /// proves by a signature that the two belong together.
    pub(crate) fn load(sessions: &Arc<Sessions>, label: &str) -> Result<Self, HsmError> {
        let known = sessions.with(|session, _| {
            let objects = Objects { sessions, session };
            let handle = objects.private_key(label)?;
            let public = objects.public_key(label, handle)?;
            let attributes = objects.check_stays(label, handle)?;
            objects.check_usage(label, handle)?;
            Ok(Known { label: label.to_owned(), public, attributes, handle: Mutex::new(Some(handle)) })
        })?;
        let key = Self { sessions: Arc::clone(sessions), known: Arc::new(known) };
        key.prove()?;
        Ok(key)
    }

    /// CKA_LABEL.
    pub fn label(&self) -> &str {
        &self.known.label
    }

    /// SubjectPublicKeyInfo, DER, uncompressed point.
    pub fn spki_der(&self) -> &[u8] {
        &self.known.public.spki
    }

    /// Its curve, which fixes the hash: SHA-256 for P-256, SHA-384 for P-384.
    pub fn curve(&self) -> Curve {
        self.known.public.curve
    }

    /// What the token said of the key when it was found.
    pub fn attributes(&self) -> KeyAttributes {
        self.known.attributes
    }

    /// An ECDSA signature over `message` with the curve's hash: DER ECDSA-Sig-Value (RFC 3279 §2.2.3).
    ///
    /// # Errors
    /// The token is away, or no longer holds this key.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, HsmError> {
        self.sign_digest(ec::digest(self.curve(), message).as_ref())
    }

    /// As [`Pkcs11Key::sign`], over a digest made by the caller with the curve's hash.
    ///
    /// # Errors
    /// Also: the digest has another length than the curve's hash.
    pub fn sign_digest(&self, digest: &[u8]) -> Result<Vec<u8>, HsmError> {
        ec::check_digest(self.curve(), digest)?;
        self.sessions.with(|session, _| {
            if let Some(handle) = self.cached() {
                match sign_raw(&self.sessions, session, self.curve(), handle, digest) {
                    Err(e) if e.handle_stale() => self.cache(None),
                    result => return result,
                }
            }
            let handle = Objects { sessions: &self.sessions, session }.private_key(self.label())?;
            let signature = sign_raw(&self.sessions, session, self.curve(), handle, digest)?;
            // The label may name another key by now: a token was swapped, or the key made anew.
            if !self.known.public.verifies(digest, &signature) {
                return Err(self.mismatch());
            }
            self.cache(Some(handle));
            Ok(signature)
        })
    }

    /// One real signature over fresh random bytes, verified: nothing less shows that the key is there.
    pub(crate) fn prove(&self) -> Result<(), HsmError> {
        let mut message = HEALTH_PREFIX.to_vec();
        let mut fresh = [0; 32];
        aws_lc_rs::rand::fill(&mut fresh).map_err(|_| self.mismatch())?;
        message.extend(fresh);
        let digest = ec::digest(self.curve(), &message);
        let signature = self.sign_digest(digest.as_ref())?;
        self.known.public.verifies(digest.as_ref(), &signature).then_some(()).ok_or_else(|| self.mismatch())
    }

    fn mismatch(&self) -> HsmError {
        HsmError::KeyMismatch { label: self.label().to_owned() }
    }

    fn cached(&self) -> Option<ObjectHandle> {
        *self.known.handle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cache(&self, handle: Option<ObjectHandle>) {
        *self.known.handle.lock().unwrap_or_else(PoisonError::into_inner) = handle;
    }
}

impl CaKey for Pkcs11Key {
    fn spki_der(&self) -> &[u8] {
        Pkcs11Key::spki_der(self)
    }

    fn curve(&self) -> Curve {
        Pkcs11Key::curve(self)
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        const BACKEND: &str = "pkcs11";
        Pkcs11Key::sign(self, message).map_err(|e| match e.is_transient() {
            true => KeyError::Unavailable { backend: BACKEND, reason: e.to_string() },
            false => KeyError::Failed { backend: BACKEND, reason: e.to_string() },
        })
    }
}

/// Signs a digest whose length was checked.
pub(crate) fn sign_raw(
    sessions: &Sessions,
    session: &Session,
    curve: Curve,
    key: ObjectHandle,
    digest: &[u8],
) -> Result<Vec<u8>, HsmError> {
    let raw = session.sign(&Mechanism::Ecdsa, key, digest).map_err(|e| sessions.call(e))?;
    ec::der_signature(curve, &raw)
}
