//! A token: found by its label, opened once, shared by all that use it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use cryptoki::slot::Limit;
use hallmark_core::x509::Curve;
use zeroize::Zeroizing;

use crate::module::Module;
use crate::object::{self, Objects};
use crate::session::Sessions;
use crate::{AgentKey, Counters, HsmError, KeyEntry, Pkcs11Key, Pkcs11LogKey};

/// Which token, and how to log in to it.
#[derive(Clone)]
pub struct TokenConfig {
    /// The PKCS#11 module's file.
    pub module: PathBuf,
    /// The token's label: slot numbers change.
    pub label: String,
    /// The user PIN.
    pub pin: Zeroizing<String>,
    /// Most sessions that work at the same time; one more holds the login. At least one, and no more than
    /// the token allows.
    pub max_sessions: usize,
}

impl fmt::Debug for TokenConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenConfig")
            .field("module", &self.module)
            .field("label", &self.label)
            .field("pin", &"(secret)")
            .field("max_sessions", &self.max_sessions)
            .finish()
    }
}

/// What a token says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TokenInfo {
    /// Its label.
    pub label: String,
    /// Its maker.
    pub manufacturer: String,
    /// Its model.
    pub model: String,
    /// Its serial number.
    pub serial: String,
    /// Its firmware's version.
    pub firmware: String,
    /// The slot that holds it now.
    pub slot: u64,
    /// Most sessions it allows; none when it does not say or has no limit.
    pub max_sessions: Option<u64>,
    /// How close the user PIN is to being locked.
    pub pin: PinState,
    /// The PKCS#11 module's file.
    pub module: PathBuf,
}

/// How close a user PIN is to being locked (PKCS#11 §3.2, CK_TOKEN_INFO flags).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PinState {
    /// No wrong PIN since the last right one, as far as the token says.
    Fresh,
    /// At least one wrong PIN since the last right one.
    CountLow,
    /// The next wrong PIN locks it.
    FinalTry,
    /// Locked.
    Locked,
}

/// An open token. Clones share the login and the sessions; all are closed with the last one.
#[derive(Debug, Clone)]
pub struct Token {
    sessions: Arc<Sessions>,
}

impl Token {
    /// Loads the module, finds the token by its label and logs in.
    ///
    /// # Errors
    /// No such module; no or more than one such token; the PIN is wrong (tried once) or locked.
    pub fn open(config: TokenConfig) -> Result<Self, HsmError> {
        let module = Module::load(&config.module)?;
        let sessions = Sessions::open(module, config.label, config.pin, config.max_sessions)?;
        Ok(Self { sessions: Arc::new(sessions) })
    }

    /// Makes a CA key pair on the token for good: sensitive, not extractable, signs and does nothing else.
    /// `id` (CKA_ID) ties the private and the public object to each other.
    ///
    /// # Errors
    /// [`HsmError::KeyExists`] when any object on the token has this label.
    pub fn generate_ca_key(&self, label: &str, id: &[u8], curve: Curve) -> Result<Pkcs11Key, HsmError> {
        Pkcs11Key::generate(&self.sessions, label, id, curve)
    }

    /// The CA key with this label, proved by a signature.
    ///
    /// # Errors
    /// No or more than one such key; a key that could leave the token, does not sign or also derives; a public key
    /// that is not its own.
    pub fn ca_key(&self, label: &str) -> Result<Pkcs11Key, HsmError> {
        Pkcs11Key::load(&self.sessions, label)
    }

    /// Destroys the key pair with this label, private key first; one that is not there is destroyed already.
    ///
    /// # Errors
    /// The token is away or refuses.
    pub fn destroy_key(&self, label: &str) -> Result<(), HsmError> {
        object::destroy_lasting(&self.sessions, label)
    }

    /// Makes an Ed25519 key pair on the token for good, for a log's checkpoints: sensitive, not extractable.
    ///
    /// # Errors
    /// [`HsmError::KeyExists`] when any object on the token has this label; the token knows no Ed25519.
    pub fn generate_log_key(&self, label: &str, id: &[u8]) -> Result<Pkcs11LogKey, HsmError> {
        Pkcs11LogKey::generate(&self.sessions, label, id)
    }

    /// The log's key with this label, proved by a signature.
    ///
    /// # Errors
    /// As [`Token::ca_key`].
    pub fn log_key(&self, label: &str) -> Result<Pkcs11LogKey, HsmError> {
        Pkcs11LogKey::load(&self.sessions, label)
    }

    /// Makes a P-256 key for one run of an agent; it is gone when dropped.
    ///
    /// # Errors
    /// The token is away or cannot make keys.
    pub fn generate_agent_key(&self) -> Result<AgentKey, HsmError> {
        AgentKey::generate(&self.sessions)
    }

    /// Signs with the key and verifies the signature: no cheaper check shows that a token works. SoftHSM,
    /// for one, opens sessions on a token whose files are gone.
    ///
    /// # Errors
    /// What keeps the key from signing.
    pub fn health(&self, key: &Pkcs11Key) -> Result<(), HsmError> {
        key.prove()
    }

    /// What the token says of itself now.
    ///
    /// # Errors
    /// The token is away.
    pub fn info(&self) -> Result<TokenInfo, HsmError> {
        let (slot, info) = self.sessions.token_info()?;
        Ok(TokenInfo {
            label: info.label().to_owned(),
            manufacturer: info.manufacturer_id().to_owned(),
            model: info.model().to_owned(),
            serial: info.serial_number().to_owned(),
            firmware: info.firmware_version().to_string(),
            slot: slot.id(),
            max_sessions: match info.max_session_count() {
                Limit::Max(max) => Some(max),
                Limit::Unavailable | Limit::Infinite => None,
            },
            pin: if info.user_pin_locked() {
                PinState::Locked
            } else if info.user_pin_final_try() {
                PinState::FinalTry
            } else if info.user_pin_count_low() {
                PinState::CountLow
            } else {
                PinState::Fresh
            },
            module: self.sessions.module().path.clone(),
        })
    }

    /// The private keys on the token, for status and doctor.
    ///
    /// # Errors
    /// The token is away.
    pub fn list_keys(&self) -> Result<Vec<KeyEntry>, HsmError> {
        let sessions = &self.sessions;
        sessions.with(|session, _| Objects { sessions, session }.list())
    }

    /// How many agents' keys live on the token for this process, for status and tests.
    ///
    /// # Errors
    /// The token is away.
    pub fn agent_keys(&self) -> Result<usize, HsmError> {
        let sessions = &self.sessions;
        sessions.with(|session, _| Objects { sessions, session }.count_session_keys())
    }

    /// How often the connection did what costs time.
    pub fn counters(&self) -> Counters {
        self.sessions.counters()
    }
}
