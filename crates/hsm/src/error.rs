//! Why a token or a key on it could not be used.

use std::path::PathBuf;
use std::time::Duration;

use cryptoki::error::{Error as CkError, RvError};
use hallmark_core::x509::Curve;

/// Why a token or a key on it could not be used. No variant holds a PIN.
#[derive(Debug, thiserror::Error)]
pub enum HsmError {
    /// The PKCS#11 module cannot be loaded.
    #[error("PKCS#11 module {} cannot be loaded: {source}", module.display())]
    Load {
        /// The module's file.
        module: PathBuf,
        /// What the loader said.
        source: CkError,
    },
    /// C_Initialize failed.
    #[error("PKCS#11 module {} does not initialise: {source}", module.display())]
    Initialize {
        /// The module's file.
        module: PathBuf,
        /// What the module said.
        source: CkError,
    },
    /// No slot holds a token with this label.
    #[error("no token is labelled {label:?} in {}: found {found:?}{}", module.display(), where_to_look(found))]
    TokenNotFound {
        /// The label looked for.
        label: String,
        /// The labels found.
        found: Vec<String>,
        /// The module's file.
        module: PathBuf,
    },
    /// Several tokens have this label: which one is meant cannot be known.
    #[error("{} tokens are labelled {label:?} (serial numbers {serials:?}): relabel all but one", serials.len())]
    TokenAmbiguous {
        /// The label looked for.
        label: String,
        /// Their serial numbers.
        serials: Vec<String>,
    },
    /// The token was there and is away, and was looked for a moment ago.
    #[error("token {label:?} is away: {because}")]
    TokenAway {
        /// The token's label.
        label: String,
        /// What the last attempt to reach it met.
        because: String,
    },
    /// The token refused the PIN. It is not tried again.
    #[error("token {label:?} refused the PIN; it is not tried again, so that the token does not lock")]
    PinIncorrect {
        /// The token's label.
        label: String,
    },
    /// The token is locked after too many wrong PINs.
    #[error("token {label:?} is locked after wrong PINs: its security officer must reset the user PIN")]
    PinLocked {
        /// The token's label.
        label: String,
    },
    /// One wrong PIN more would lock the token, so none was tried.
    #[error(
        "token {label:?} has one PIN attempt left, so none was made: log in by hand once to reset the count"
    )]
    PinFinalTry {
        /// The token's label.
        label: String,
    },
    /// All sessions stayed in use.
    #[error("all {max} sessions with token {label:?} stayed in use for {waited:?}")]
    Busy {
        /// The token's label.
        label: String,
        /// How many sessions there are.
        max: usize,
        /// How long this call waited.
        waited: Duration,
    },
    /// No private key has this label.
    #[error("token {token:?} holds no private key labelled {label:?}")]
    KeyNotFound {
        /// The key's label.
        label: String,
        /// The token's label.
        token: String,
    },
    /// Several private keys have this label.
    #[error("token {token:?} holds {count} private keys labelled {label:?}: relabel all but one")]
    KeyAmbiguous {
        /// The key's label.
        label: String,
        /// The token's label.
        token: String,
        /// How many there are.
        count: usize,
    },
    /// A key to be made has the label of one that is there.
    #[error("token {token:?} already holds a key labelled {label:?}")]
    KeyExists {
        /// The key's label.
        label: String,
        /// The token's label.
        token: String,
    },
    /// Not an elliptic-curve key on P-256 or P-384.
    #[error("key {label:?} is not on P-256 or P-384")]
    KeyCurve {
        /// The key's label.
        label: String,
    },
    /// Not an Ed25519 key.
    #[error("key {label:?} is not an Ed25519 key")]
    KeyNotEd25519 {
        /// The key's label.
        label: String,
    },
    /// The private key has no public key beside it (same CKA_ID).
    #[error("key {label:?} (id {id}) has no public key with the same id on the token")]
    PublicKeyMissing {
        /// The key's label.
        label: String,
        /// Its CKA_ID, in hex.
        id: String,
    },
    /// CKA_EC_POINT is not a point of the key's curve.
    #[error("CKA_EC_POINT of {len} bytes is not an uncompressed point on {curve}")]
    PublicPoint {
        /// The key's curve.
        curve: Curve,
        /// Length of the attribute.
        len: usize,
    },
    /// A CA key that could leave the token.
    #[error(
        "key {label:?} can leave the token (sensitive {sensitive}, extractable {extractable}): make one that cannot"
    )]
    KeyExportable {
        /// The key's label.
        label: String,
        /// CKA_SENSITIVE.
        sensitive: bool,
        /// CKA_EXTRACTABLE.
        extractable: bool,
    },
    /// A CA key that may not sign, or may also derive.
    #[error("key {label:?} must sign and not derive: found sign {sign}, derive {derive}")]
    KeyUsage {
        /// The key's label.
        label: String,
        /// CKA_SIGN.
        sign: bool,
        /// CKA_DERIVE.
        derive: bool,
    },
    /// A signature does not verify under the public key known for this label.
    #[error(
        "what key {label:?} signed does not verify under its public key: the key was replaced, or the token is at fault"
    )]
    KeyMismatch {
        /// The key's label.
        label: String,
    },
    /// The session that made this agent's key has ended, and the key with it.
    #[error("the agent's key ended with its session on token {token:?}: make another")]
    AgentKeyLost {
        /// The token's label.
        token: String,
    },
    /// A digest that is not of the curve's hash.
    #[error("a key on {curve} signs a digest of {expected} bytes, not {found}")]
    DigestLength {
        /// The key's curve.
        curve: Curve,
        /// Length of the curve's hash.
        expected: usize,
        /// Length given.
        found: usize,
    },
    /// The token returned something other than r‖s.
    #[error("the token returned a signature of {found} bytes on {curve}, not {expected}")]
    SignatureForm {
        /// The key's curve.
        curve: Curve,
        /// Length of r‖s.
        expected: usize,
        /// Length returned.
        found: usize,
    },
    /// The token does not report an attribute that every key must have.
    #[error("the token does not report {attribute} of its key")]
    AttributeMissing {
        /// Its PKCS#11 name.
        attribute: &'static str,
    },
    /// Another PKCS#11 function failed; the source names it.
    #[error("token {token:?}: {source}")]
    Call {
        /// The token's label.
        token: String,
        /// Function and return value.
        source: CkError,
    },
}

/// Exit status of a daemon whose token refused the PIN: EX_CONFIG of sysexits.h. The units do not start one
/// again that ended with it, so that the token does not lock.
pub const EXIT_PIN_REFUSED: u8 = 78;

impl HsmError {
    /// Whether this error, or one that caused it, is a token's refusal of the PIN: nobody may try again by
    /// himself.
    pub fn is_pin_refusal(error: &(dyn std::error::Error + 'static)) -> bool {
        std::iter::successors(Some(error), |e| e.source()).any(|e| {
            matches!(
                e.downcast_ref(),
                Some(Self::PinIncorrect { .. } | Self::PinLocked { .. } | Self::PinFinalTry { .. })
            )
        })
    }

    /// Whether the token may come back by itself: trying again later can help without anyone's change.
    pub fn is_transient(&self) -> bool {
        match self {
            Self::TokenAway { .. } | Self::TokenNotFound { .. } | Self::Busy { .. } => true,
            // A key whose handle went away right after it was found is looked up again next time, and is there
            // or is not.
            Self::Call { .. } => self.link_lost() || self.handle_stale(),
            _ => false,
        }
    }

    /// The session, the login or the token itself is gone; a new connection may help.
    pub(crate) fn link_lost(&self) -> bool {
        use RvError::{
            CryptokiNotInitialized, DeviceError, DeviceRemoved, SessionClosed, SessionHandleInvalid,
            SlotIdInvalid, TokenNotPresent, TokenNotRecognized, UserNotLoggedIn,
        };
        matches!(
            self.rv(),
            Some(
                CryptokiNotInitialized
                    | DeviceError
                    | DeviceRemoved
                    | SessionClosed
                    | SessionHandleInvalid
                    | SlotIdInvalid
                    | TokenNotPresent
                    | TokenNotRecognized
                    | UserNotLoggedIn
            )
        )
    }

    /// The module does not list the token; some do again only after they were initialised anew.
    pub(crate) fn token_missing(&self) -> bool {
        matches!(self, Self::TokenNotFound { .. }) || self.rv() == Some(RvError::CryptokiNotInitialized)
    }

    /// The key's handle is no longer valid; looking the key up again may help.
    pub(crate) fn handle_stale(&self) -> bool {
        matches!(self.rv(), Some(RvError::ObjectHandleInvalid | RvError::KeyHandleInvalid))
    }

    /// The session met a failure in the module and may be in the middle of an operation: not to be reused.
    pub(crate) fn spoils_session(&self) -> bool {
        matches!(self, Self::Call { .. })
    }

    fn rv(&self) -> Option<RvError> {
        match self {
            Self::Call { source: CkError::Pkcs11(rv, _), .. } => Some(*rv),
            _ => None,
        }
    }
}

/// A module that lists no token at all looks elsewhere, most likely.
fn where_to_look(found: &[String]) -> &'static str {
    if found.is_empty() {
        " (with SoftHSM: SOFTHSM2_CONF must be what it was when the token was made, and its user must be this one)"
    } else {
        ""
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("outer")]
    struct Outer(#[source] HsmError);

    #[test]
    fn a_pin_refusal_is_known_wherever_it_stands() {
        let label = || "t".to_owned();
        assert!(HsmError::is_pin_refusal(&HsmError::PinFinalTry { label: label() }));
        assert!(HsmError::is_pin_refusal(&Outer(HsmError::PinIncorrect { label: label() })));
        let away = HsmError::TokenAway { label: label(), because: String::new() };
        assert!(!HsmError::is_pin_refusal(&Outer(away)));
    }
}
