//! Registrations: the operator's declaration of one agent: who may be it, on which hosts, at which tier,
//! on whose responsibility, with which capabilities at most.
//!
//! ```toml
//! [[agent]]
//! name = "summarizer"
//! owner = "mail-team@example.org"
//! tier = "enterprise"
//! hosts = ["web-01", "web-*"]
//! selectors = ["unix:user:mailbot", "systemd:unit:mailbot.service"]
//! lifetime = "30m"
//!
//! [[agent.capability]]
//! action = "mail.read"
//! resource = "mailbox/alice/*"
//! ```
//!
//! Files are read with [`parse_files`], which reports every fault of every file at once. A [`Registration`]
//! has passed all checks that can be made without a host: its fields are private, and the only ways to one
//! are `parse_files` and deserialisation, which checks the same. Its canonical text is one line of JSON,
//! with defaults filled in and lists in order, so that two files that mean the same have the same digest.
//!
//! **Not in scope:** whether a host or a process meets a registration: that is [`crate::decide`].

mod check;
mod file;
mod raw;
mod warning;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use sha2::{Digest, Sha256};

use crate::capability::CapabilitySet;
use crate::id::{AgentName, HostId, NameError};
use crate::selector::Selector;
use crate::tier::{Custody, Tier};

pub use file::{MAX_FILE, parse_files};
pub use warning::{Warning, warnings};

/// Shortest lifetime a registration may ask for: below it, renewal is all that an agent does.
pub const MIN_LIFETIME: Duration = Duration::from_secs(30);
/// Most host patterns in one registration.
pub const MAX_HOSTS: usize = 256;
/// Most selectors in one registration.
pub const MAX_SELECTORS: usize = 32;
/// Most DNS names in one registration.
pub const MAX_DNS_NAMES: usize = 16;
/// Longest owner, in bytes (the longest e-mail address: RFC 5321 section 4.5.3.1.3, less the brackets).
pub const MAX_OWNER: usize = 254;
/// Longest description, in bytes.
pub const MAX_DESCRIPTION: usize = 512;

/// One agent as its operator declared it.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(into = "raw::RawAgent", try_from = "raw::RawAgent")]
pub struct Registration {
    name: AgentName,
    owner: String,
    tier: Tier,
    hosts: BTreeSet<HostPattern>,
    selectors: Vec<Selector>,
    lifetime: Duration,
    key: KeyDemand,
    dns_names: BTreeSet<String>,
    description: String,
    capabilities: CapabilitySet,
    /// Of the canonical text; kept, because every issuance names it.
    digest: [u8; 32],
}

/// The key that a registration demands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeyDemand {
    /// Where the key must live: software, pkcs11-asserted or tpm-certified (never simulated: whether a TPM
    /// is one of hardware shows in its evidence).
    pub custody: Custody,
    /// PCRs (bank sha256) whose state the key's use must be bound to; empty for none. Only tpm-certified.
    pub bind_pcrs: BTreeSet<u8>,
}

/// A registration in force, with the revision under which the store took it up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registered {
    /// What was declared.
    pub registration: Registration,
    /// Grows by one with every change to the set of registrations.
    pub revision: u64,
}

impl Registration {
    /// The agent's name: a SPIFFE path segment.
    pub fn name(&self) -> &AgentName {
        &self.name
    }

    /// The accountable party's address.
    pub fn owner(&self) -> &str {
        &self.owner
    }

    /// The tier the agent must have.
    pub fn tier(&self) -> Tier {
        self.tier
    }

    /// The hosts that may run it.
    pub fn hosts(&self) -> &BTreeSet<HostPattern> {
        &self.hosts
    }

    /// Whether `host` may run it.
    pub fn names_host(&self, host: &HostId) -> bool {
        self.hosts.iter().any(|pattern| pattern.matches(host))
    }

    /// What must be observed of its process: all of these, in order, each once.
    pub fn selectors(&self) -> &[Selector] {
        &self.selectors
    }

    /// How long its credentials live: what was asked for, or the tier's default.
    pub fn lifetime(&self) -> Duration {
        self.lifetime
    }

    /// The key it must have.
    pub fn key(&self) -> &KeyDemand {
        &self.key
    }

    /// DNS names for its certificate, in order.
    pub fn dns_names(&self) -> &BTreeSet<String> {
        &self.dns_names
    }

    /// What it is for, in the operator's words; may be empty.
    pub fn description(&self) -> &str {
        &self.description
    }

    /// The most it can ever be granted.
    pub fn capabilities(&self) -> &CapabilitySet {
        &self.capabilities
    }

    /// The canonical text: one line of JSON with defaults filled in and every list in order. Parsing it
    /// again (serde) gives an equal registration.
    pub fn canonical(&self) -> String {
        // A struct of strings, numbers and lists has no way to fail.
        serde_json::to_string(self).unwrap_or_default()
    }

    /// SHA-256 of the canonical text.
    pub fn digest(&self) -> [u8; 32] {
        self.digest
    }

    fn with_digest(mut self) -> Self {
        self.digest = Sha256::digest(self.canonical().as_bytes()).into();
        self
    }
}

/// A host id, or the beginning of one followed by `*`; `*` alone is every host of the trust domain.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPattern {
    text: String,
    open: bool,
}

impl HostPattern {
    /// Whether this names `host`.
    pub fn matches(&self, host: &HostId) -> bool {
        if self.open { host.as_str().starts_with(&self.text) } else { host.as_str() == self.text }
    }

    /// Whether some host id could be named by both.
    pub fn overlaps(&self, other: &HostPattern) -> bool {
        match (self.open, other.open) {
            (false, false) => self.text == other.text,
            (true, false) => other.text.starts_with(&self.text),
            (false, true) => self.text.starts_with(&other.text),
            (true, true) => self.text.starts_with(&other.text) || other.text.starts_with(&self.text),
        }
    }
}

impl fmt::Display for HostPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.text, if self.open { "*" } else { "" })
    }
}

impl FromStr for HostPattern {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        let (text, open) = s.strip_suffix('*').map_or((s, false), |prefix| (prefix, true));
        // What stands before the '*' is the beginning of a host id, and so a host id itself, or nothing.
        if !(open && text.is_empty()) {
            text.parse::<HostId>()?;
        }
        Ok(Self { text: text.to_owned(), open })
    }
}

/// One fault in a registration file. Nothing of a set with faults is applied.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Fault {
    /// The file's name as it was given.
    pub file: String,
    /// Where in it: `line 3, column 7`, or `agent "summarizer" lifetime`.
    pub key: String,
    /// What is wrong, and what to write instead.
    pub problem: String,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.file, self.key, self.problem)
    }
}

#[cfg(test)]
mod tests;
