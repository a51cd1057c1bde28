//! The key that signs a log's checkpoints: Ed25519 (RFC 8032), made once, on the token for good.

use std::sync::{Arc, Mutex, PoisonError};

use aws_lc_rs::signature::{ED25519, UnparsedPublicKey};
use cryptoki::mechanism::Mechanism;
use cryptoki::mechanism::eddsa::{EddsaParams, EddsaSignatureScheme};
use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;
use hallmark_core::log::{LogKey, LogKeyError};

use crate::HsmError;
use crate::object::{self, Lasting, Objects};
use crate::session::Sessions;

/// A private Ed25519 key on the token. Clones share the token's sessions and the handle.
#[derive(Debug, Clone)]
pub struct Pkcs11LogKey {
    sessions: Arc<Sessions>,
    known: Arc<Known>,
}

#[derive(Debug)]
struct Known {
    label: String,
    public: [u8; 32],
    /// Found once; looked up again when the token no longer knows it.
    handle: Mutex<Option<ObjectHandle>>,
}

impl Pkcs11LogKey {
    /// Makes the key pair, and reads it back as [`Pkcs11LogKey::load`] does.
    pub(crate) fn generate(sessions: &Arc<Sessions>, label: &str, id: &[u8]) -> Result<Self, HsmError> {
        let lasting = Lasting::Token { label, id };
        object::make_lasting(sessions, label, |session| object::generate_ed25519(session, &lasting))?;
        Self::load(sessions, label)
    }

    /// Finds the key and its public key, refuses one that can leave the token, and proves by a signature that
    /// the two belong together.
    pub(crate) fn load(sessions: &Arc<Sessions>, label: &str) -> Result<Self, HsmError> {
        let known = sessions.with(|session, _| {
            let objects = Objects { sessions, session };
            let handle = objects.private_key(label)?;
            let public = objects.ed25519_public_key(label, handle)?;
            objects.check_stays(label, handle)?;
            objects.check_usage(label, handle)?;
            Ok(Known { label: label.to_owned(), public, handle: Mutex::new(Some(handle)) })
        })?;
        let key = Self { sessions: Arc::clone(sessions), known: Arc::new(known) };
        // No checkpoint: its text does not end with a newline.
        key.sign(b"hallmark health check")?;
        Ok(key)
    }

    /// CKA_LABEL.
    pub fn label(&self) -> &str {
        &self.known.label
    }

    /// The public key, 32 bytes.
    pub fn public(&self) -> [u8; 32] {
        self.known.public
    }

    /// An Ed25519 signature over `message`, 64 bytes, verified.
    ///
    /// # Errors
    /// The token is away, no longer holds this key, or signs falsely.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>, HsmError> {
        let signature = self.sessions.with(|session, _| {
            if let Some(handle) = self.cached() {
                match self.sign_with(session, handle, message) {
                    Err(e) if e.handle_stale() => self.cache(None),
                    result => return result,
                }
            }
            let handle = Objects { sessions: &self.sessions, session }.private_key(self.label())?;
            let signature = self.sign_with(session, handle, message)?;
            self.cache(Some(handle));
            Ok(signature)
        })?;
        // The label may name another key by now: a token was swapped, or the key made anew.
        match UnparsedPublicKey::new(&ED25519, self.known.public).verify(message, &signature) {
            Ok(()) => Ok(signature),
            Err(_) => Err(HsmError::KeyMismatch { label: self.label().to_owned() }),
        }
    }

    fn sign_with(
        &self,
        session: &Session,
        handle: ObjectHandle,
        message: &[u8],
    ) -> Result<Vec<u8>, HsmError> {
        let mechanism = Mechanism::Eddsa(EddsaParams::new(EddsaSignatureScheme::Ed25519));
        session.sign(&mechanism, handle, message).map_err(|e| self.sessions.call(e))
    }

    fn cached(&self) -> Option<ObjectHandle> {
        *self.known.handle.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn cache(&self, handle: Option<ObjectHandle>) {
        *self.known.handle.lock().unwrap_or_else(PoisonError::into_inner) = handle;
    }
}

impl LogKey for Pkcs11LogKey {
    fn public(&self) -> [u8; 32] {
        Pkcs11LogKey::public(self)
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, LogKeyError> {
        Pkcs11LogKey::sign(self, message).map_err(|e| LogKeyError(e.to_string()))
    }
}
