//! An agent's key: made on the token for one run of one agent, destroyed with it.

use std::sync::Arc;

use cryptoki::object::ObjectHandle;
use hallmark_core::x509::Curve;

use crate::ca_key::sign_raw;
use crate::ec::{self, PublicKey};
use crate::object::{self, Lasting, Objects};
use crate::session::Sessions;
use crate::{HsmError, KeyAttributes};

/// A P-256 private key on the token as a session object: it is in no token's store, ends with the process
/// at the latest, and is destroyed when dropped.
#[derive(Debug)]
pub struct AgentKey {
    sessions: Arc<Sessions>,
    handle: ObjectHandle,
    generation: u64,
    public: PublicKey,
    assertion: Pkcs11Assertion,
}

/// What the module says of a key and of the token that holds it: an assertion, not an attestation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pkcs11Assertion {
    /// The token's label.
    pub token_label: String,
    /// The token's model.
    pub token_model: String,
    /// The token's serial number.
    pub token_serial: String,
    /// CKA_SENSITIVE: the key cannot be read in the clear.
    pub sensitive: bool,
    /// CKA_ALWAYS_SENSITIVE: it never could.
    pub always_sensitive: bool,
    /// CKA_NEVER_EXTRACTABLE: it cannot leave wrapped and never could.
    pub never_extractable: bool,
    /// CKA_LOCAL: it was made on the token.
    pub local: bool,
}

impl AgentKey {
    pub(crate) fn generate(sessions: &Arc<Sessions>) -> Result<Self, HsmError> {
        let (_, token) = sessions.token_info()?;
        let ((handle, public, attributes), generation) = sessions.with_anchor(|session| {
            let (public, private) =
                object::generate(session, Curve::P256, &Lasting::Session).map_err(|e| sessions.call(e))?;
            let objects = Objects { sessions, session };
            let read = objects.point(public).and_then(|point| {
                Ok((PublicKey::from_ec_point(Curve::P256, &point)?, objects.attributes(private)?))
            });
            // Only its bytes are wanted; two objects an agent would be one too many.
            let destroyed = session.destroy_object(public).map_err(|e| sessions.call(e));
            match read.and_then(|read| destroyed.map(|()| read)) {
                Ok((point, attributes)) => Ok((private, point, attributes)),
                Err(e) => {
                    let _ = session.destroy_object(private);
                    Err(e)
                }
            }
        })?;
        let KeyAttributes { sensitive, always_sensitive, never_extractable, local, .. } = attributes;
        let assertion = Pkcs11Assertion {
            token_label: token.label().to_owned(),
            token_model: token.model().to_owned(),
            token_serial: token.serial_number().to_owned(),
            sensitive,
            always_sensitive,
            never_extractable,
            local,
        };
        Ok(Self { sessions: Arc::clone(sessions), handle, generation, public, assertion })
    }

    /// SubjectPublicKeyInfo, DER, uncompressed point.
    pub fn spki_der(&self) -> &[u8] {
        &self.public.spki
    }

    /// What the module says of this key, read back after it was made.
    pub fn assertion(&self) -> &Pkcs11Assertion {
        &self.assertion
    }

    /// An ECDSA signature over a SHA-256 digest: DER ECDSA-Sig-Value (RFC 3279 §2.2.3).
    ///
    /// # Errors
    /// [`HsmError::AgentKeyLost`] when the token went away in the meantime: the key cannot come back.
    pub fn sign_digest(&self, digest: [u8; 32]) -> Result<Vec<u8>, HsmError> {
        ec::check_digest(Curve::P256, &digest)?;
        let lost = || HsmError::AgentKeyLost { token: self.sessions.label().to_owned() };
        self.sessions.with(|session, generation| {
            // Handles are numbers: after a new connection this one may name another key.
            if generation != self.generation {
                return Err(lost());
            }
            sign_raw(&self.sessions, session, Curve::P256, self.handle, &digest)
                .map_err(|e| if e.handle_stale() { lost() } else { e })
        })
    }
}

impl Drop for AgentKey {
    fn drop(&mut self) {
        self.sessions.condemn(self.handle, self.generation);
    }
}
