//! Names and keys of logs and of witnesses: Ed25519, in the textual form of signed notes.

use std::fmt;
use std::str::FromStr;

use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;

/// The signature type of Ed25519 (signed-note, "Signature types"): a log's.
const ALG_ED25519: u8 = 1;
/// That of Ed25519 with a time (tlog-cosignature, "Format"): a witness's.
pub(super) const ALG_COSIGNATURE: u8 = 4;

/// The origin of a log's checkpoints, and the name of its key: a URL without its scheme, as in
/// `log.example.org/issuer-1`. Not empty, without spaces and plus signs, at most 255 bytes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct LogName(String);

/// Why a verifier key, or a log's name, was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum VerifierError {
    /// Not a name.
    #[error("a key's name has 1 to 255 bytes and neither spaces, control characters nor plus signs")]
    Name,
    /// Not a verifier key.
    #[error("a verifier key reads NAME+8 hex digits in lower case+base64")]
    Form,
    /// Another algorithm.
    #[error(
        "the verifier key is of signature type {found}, not {expected}: a log's is {ALG_ED25519} (Ed25519), a witness's {ALG_COSIGNATURE} (cosignature/v1)"
    )]
    Algorithm {
        /// The type that it should be of.
        expected: u8,
        /// The type.
        found: u8,
    },
    /// The id is not that of the name and the key.
    #[error("the verifier key's id is {found:08x}; that of its name and key is {expected:08x}")]
    Id {
        /// Of the name and the key.
        expected: u32,
        /// In the text.
        found: u32,
    },
}

/// Why a checkpoint was not signed.
#[derive(Debug, thiserror::Error)]
#[error("the log's key cannot sign: {0}")]
pub struct LogKeyError(pub String);

/// The private key that signs a log's checkpoints.
pub trait LogKey: Send + Sync + fmt::Debug {
    /// The public key, 32 bytes (RFC 8032).
    fn public(&self) -> [u8; 32];

    /// Signs. A key that is not in this process's own memory verifies what came back before it gives it on.
    ///
    /// # Errors
    /// The key, or the token that it is in, cannot sign.
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, LogKeyError>;
}

impl LogName {
    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for LogName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&self.0)
    }
}

impl FromStr for LogName {
    type Err = VerifierError;

    fn from_str(name: &str) -> Result<Self, VerifierError> {
        let valid = signed_note::is_key_name_valid(name) && !name.chars().any(char::is_control);
        if valid && name.len() <= 255 { Ok(Self(name.to_owned())) } else { Err(VerifierError::Name) }
    }
}

/// What a log's checkpoints are verified with. Its text is what auditors are given:
/// `log.example.org/issuer-1+c74f20a3+ARpc2QcU…`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LogVerifier {
    name: LogName,
    id: u32,
    key: [u8; 32],
}

impl LogVerifier {
    /// Of a name and a public key.
    pub fn new(name: LogName, key: [u8; 32]) -> Self {
        let id = id(&name, ALG_ED25519, &key);
        Self { name, id, key }
    }

    /// The log's name.
    pub fn name(&self) -> &LogName {
        &self.name
    }

    /// Whether this is its public key.
    pub fn is_of(&self, key: &[u8; 32]) -> bool {
        self.key == *key
    }

    /// The key's id: the first four bytes of the SHA-256 of the name and the key.
    pub fn id(&self) -> u32 {
        self.id
    }
}

impl signed_note::Verifier for LogVerifier {
    fn name(&self) -> &str {
        self.name.as_str()
    }

    fn key_id(&self) -> u32 {
        self.id
    }

    fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        is_signed(&self.key, message, signature)
    }
}

/// Whether this is the key's Ed25519 signature of the message.
pub(super) fn is_signed(key: &[u8; 32], message: &[u8], signature: &[u8]) -> bool {
    UnparsedPublicKey::new(&ED25519, key).verify(message, signature).is_ok()
}

fn encoded(algorithm: u8, key: &[u8; 32]) -> Vec<u8> {
    [&[algorithm], key.as_slice()].concat()
}

impl fmt::Display for LogVerifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write(f, &self.name, ALG_ED25519, &self.key)
    }
}

impl FromStr for LogVerifier {
    type Err = VerifierError;

    fn from_str(text: &str) -> Result<Self, VerifierError> {
        let (name, key) = parse(text, ALG_ED25519)?;
        Ok(Self::new(name, key))
    }
}

/// The id of a key of this name and signature type.
pub(super) fn id(name: &LogName, algorithm: u8, key: &[u8; 32]) -> u32 {
    signed_note::key_id(name.as_str(), &encoded(algorithm, key))
}

/// A verifier key's text (signed-note, "Verifier keys").
pub(super) fn write(
    f: &mut fmt::Formatter<'_>,
    name: &LogName,
    algorithm: u8,
    key: &[u8; 32],
) -> fmt::Result {
    let encoded = BASE64_STANDARD.encode(encoded(algorithm, key));
    write!(f, "{name}+{:08x}+{encoded}", id(name, algorithm, key))
}

/// Reads a verifier key of this signature type.
pub(super) fn parse(text: &str, algorithm: u8) -> Result<(LogName, [u8; 32]), VerifierError> {
    let mut parts = text.splitn(3, '+');
    let (Some(name), Some(digits), Some(key)) = (parts.next(), parts.next(), parts.next()) else {
        return Err(VerifierError::Form);
    };
    let name: LogName = name.parse()?;
    // One key, one text.
    if digits.len() != 8 || !digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(VerifierError::Form);
    }
    let found = u32::from_str_radix(digits, 16).map_err(|_| VerifierError::Form)?;
    let key = BASE64_STANDARD.decode(key).map_err(|_| VerifierError::Form)?;
    let (&of, key) = key.split_first().ok_or(VerifierError::Form)?;
    if of != algorithm {
        return Err(VerifierError::Algorithm { expected: algorithm, found: of });
    }
    let key = key.try_into().map_err(|_| VerifierError::Form)?;
    match id(&name, algorithm, &key) {
        expected if expected == found => Ok((name, key)),
        expected => Err(VerifierError::Id { expected, found }),
    }
}

/// A key in memory.
pub struct SoftwareLogKey(Ed25519KeyPair);

impl SoftwareLogKey {
    /// From its 32 secret bytes (RFC 8032 section 5.1.5).
    ///
    /// # Errors
    /// They are not 32.
    pub fn from_seed(seed: &[u8]) -> Result<Self, LogKeyError> {
        let pair = Ed25519KeyPair::from_seed_unchecked(seed);
        pair.map(Self).map_err(|e| LogKeyError(e.to_string()))
    }
}

impl fmt::Debug for SoftwareLogKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("SoftwareLogKey").field(&hex::encode(self.public())).finish()
    }
}

impl LogKey for SoftwareLogKey {
    fn public(&self) -> [u8; 32] {
        let mut public = [0; 32];
        public.copy_from_slice(self.0.public_key().as_ref());
        public
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, LogKeyError> {
        Ok(self.0.sign(message).as_ref().to_vec())
    }
}
