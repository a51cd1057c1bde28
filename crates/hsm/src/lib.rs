//! Keys on a PKCS#11 token: the issuer's CA keys and, where a host has an HSM, its agents' keys.
//!
//! **In scope:** finding a token by its label, logging in once, a bounded pool of sessions, keys that never
//! leave the token, ECDSA signatures in the form X.509 wants, and getting over a token that went away and
//! came back. Specification: OASIS PKCS#11 2.40, cited as `PKCS#11 §` (base) and `PKCS#11-M §` (current
//! mechanisms).
//!
//! **Not in scope:** deciding what a key may sign, or what a token's word about a key is worth.
//!
//! # What a caller must know
//! - Calls block while the token works: an async program makes them where blocking is allowed.
//! - A module is loaded once in a process, and initialised anew only when its token is gone. **Never fork without
//!   exec after [`Token::open`]**: a child shares the module's sessions and locks but none of its threads
//!   (PKCS#11 §5.4, C_Initialize). Starting another program is safe.
//! - A PIN that the token refused is never tried again: three guesses lock most tokens.
#![forbid(unsafe_code)]

mod agent_key;
mod ca_key;
mod ec;
mod error;
mod log_key;
mod module;
mod object;
mod pool;
mod session;
mod token;

pub use agent_key::{AgentKey, Pkcs11Assertion};
pub use ca_key::Pkcs11Key;
pub use error::{EXIT_PIN_REFUSED, HsmError};
pub use hallmark_core::x509::Curve;
pub use log_key::Pkcs11LogKey;
pub use object::{KeyAttributes, KeyEntry};
pub use session::Counters;
pub use token::{PinState, Token, TokenConfig, TokenInfo};
