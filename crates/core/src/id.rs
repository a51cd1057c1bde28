//! Names: trust domains, SPIFFE IDs, hosts, agents and instances.
//!
//! Source: SPIFFE-ID, sections 2.1 (trust domain), 2.2 (path) and 2.3 (maximum length).

use std::fmt;
use std::str::FromStr;

/// Longest trust domain Hallmark accepts, in bytes. SPIFFE allows 255; the certificate subject carries
/// the trust domain as organizationName, which X.520 (`ub-organization-name`, RFC 5280 appendix A.1)
/// bounds at 64.
pub const MAX_TRUST_DOMAIN: usize = 64;
/// Longest agent name, host id, issuer id or task id, in bytes: X.520 bounds commonName at 64.
pub const MAX_NAME: usize = 64;

/// Why a name was refused. Each variant carries what was read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// The name has no characters.
    #[error("{what} is empty")]
    Empty {
        /// Which kind of name.
        what: &'static str,
    },
    /// The name is longer than its limit.
    #[error("{what} has {len} bytes, more than {max}")]
    TooLong {
        /// Which kind of name.
        what: &'static str,
        /// Its length in bytes.
        len: usize,
        /// The limit in bytes.
        max: usize,
    },
    /// A character outside the allowed set.
    #[error("{what} {name:?} holds {found:?}: {allowed}")]
    Character {
        /// Which kind of name.
        what: &'static str,
        /// The whole name.
        name: String,
        /// The first character that is not allowed.
        found: char,
        /// What is allowed, in words.
        allowed: &'static str,
    },
    /// Not a SPIFFE ID of a form that Hallmark issues.
    #[error("{uri:?} is not a Hallmark SPIFFE ID: {why}")]
    Uri {
        /// The text read.
        uri: String,
        /// What is wrong with it.
        why: &'static str,
    },
}

/// The namespace and root of trust, as in `spiffe://TRUST-DOMAIN/…`: lower-case letters, digits,
/// `.`, `-` and `_` (SPIFFE-ID section 2.1).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct TrustDomain(String);

impl TrustDomain {
    /// The trust domain's text, without the scheme.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for TrustDomain {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        const WHAT: &str = "trust domain";
        bounded(WHAT, s, MAX_TRUST_DOMAIN)?;
        for c in s.chars() {
            if !(c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '.' | '-' | '_')) {
                return Err(NameError::Character {
                    what: WHAT,
                    name: s.to_owned(),
                    found: c,
                    allowed: "allowed are a-z, 0-9, '.', '-' and '_'",
                });
            }
        }
        Ok(Self(s.to_owned()))
    }
}

impl fmt::Display for TrustDomain {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

fn bounded(what: &'static str, s: &str, max: usize) -> Result<(), NameError> {
    if s.is_empty() {
        return Err(NameError::Empty { what });
    }
    if s.len() > max {
        return Err(NameError::TooLong { what, len: s.len(), max });
    }
    Ok(())
}

fn segment(what: &'static str, s: &str) -> Result<(), NameError> {
    const ALLOWED: &str =
        "allowed are a-z, 0-9, and inside the name '.', '-' and '_'; it begins with a letter or a digit";
    bounded(what, s, MAX_NAME)?;
    for (i, c) in s.chars().enumerate() {
        let inner = i > 0 && matches!(c, '.' | '-' | '_');
        if !(c.is_ascii_lowercase() || c.is_ascii_digit() || inner) {
            return Err(NameError::Character { what, name: s.to_owned(), found: c, allowed: ALLOWED });
        }
    }
    Ok(())
}

macro_rules! name {
    ($(#[$doc:meta])* $ty:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub struct $ty(String);

        impl $ty {
            /// The name's text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl FromStr for $ty {
            type Err = NameError;
            fn from_str(s: &str) -> Result<Self, NameError> {
                segment($what, s)?;
                Ok(Self(s.to_owned()))
            }
        }

        impl fmt::Display for $ty {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

name!(
    /// The name of an agent in its registration: one SPIFFE path segment of at most 64 bytes.
    AgentName,
    "agent name"
);
name!(
    /// The id of a host: bound to one endorsement key at first enrolment, for ever.
    HostId,
    "host id"
);
name!(
    /// The id of an issuer within its trust domain.
    IssuerId,
    "issuer id"
);
name!(
    /// The id of a task.
    TaskId,
    "task id"
);

/// One run of an agent: 16 bytes chosen by the host daemon, written as 32 hex digits. Host daemons begin it
/// with the time ([`InstanceId::drawn_at`]): the issuer takes a new one only near that time, so that one which has
/// ended need not be remembered for ever; and its store is the faster for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct InstanceId([u8; 16]);

impl InstanceId {
    /// An instance id of these 16 bytes.
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }

    /// A new instance id: 48 bits of time, then 80 random ones. Ids of about the same time lie side by side in
    /// an index, so that a batch of them changes few of its pages (the reason for RFC 9562 section 5.7, UUIDv7).
    pub fn drawn_at(unix_ms: u64, random: [u8; 10]) -> Self {
        let mut bytes = [0; 16];
        bytes[..6].copy_from_slice(&unix_ms.to_be_bytes()[2..]);
        bytes[6..].copy_from_slice(&random);
        Self(bytes)
    }

    /// When it was drawn, by its own word: milliseconds since 1970.
    pub fn drawn_ms(&self) -> u64 {
        self.0[..6].iter().fold(0, |ms, byte| ms << 8 | u64::from(*byte))
    }

    /// The 16 bytes.
    pub fn as_bytes(&self) -> &[u8; 16] {
        &self.0
    }
}

impl fmt::Display for InstanceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(self.0))
    }
}

impl FromStr for InstanceId {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        let mut bytes = [0; 16];
        let lower = s.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
        if !lower || hex::decode_to_slice(s, &mut bytes).is_err() {
            return Err(NameError::Character {
                what: "instance id",
                name: s.chars().take(64).collect(),
                found: s.chars().find(|c| !c.is_ascii_hexdigit()).unwrap_or(' '),
                allowed: "it is 32 lower-case hexadecimal digits",
            });
        }
        Ok(Self(bytes))
    }
}

/// What a SPIFFE ID of a Hallmark trust domain names.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Subject {
    /// `spiffe://TD/agent/NAME`
    Agent(AgentName),
    /// `spiffe://TD/agent/NAME/task/TASK`: hangs from its agent.
    Task(AgentName, TaskId),
    /// `spiffe://TD/host/ID`: infrastructure, in no bundle that agents receive.
    Host(HostId),
    /// `spiffe://TD/issuer/ID`: infrastructure.
    Issuer(IssuerId),
}

/// A SPIFFE ID of one of the forms that Hallmark issues.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SpiffeId {
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// What the path names.
    pub subject: Subject,
}

impl SpiffeId {
    /// The id of `subject` in `trust_domain`.
    pub fn new(trust_domain: TrustDomain, subject: Subject) -> Self {
        Self { trust_domain, subject }
    }

    /// The subject that this one hangs from: a task's agent; none for the others.
    pub fn parent(&self) -> Option<SpiffeId> {
        match &self.subject {
            Subject::Task(agent, _) => {
                Some(Self::new(self.trust_domain.clone(), Subject::Agent(agent.clone())))
            }
            Subject::Agent(_) | Subject::Host(_) | Subject::Issuer(_) => None,
        }
    }
}

impl fmt::Display for SpiffeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "spiffe://{}/", self.trust_domain)?;
        match &self.subject {
            Subject::Agent(agent) => write!(f, "agent/{agent}"),
            Subject::Task(agent, task) => write!(f, "agent/{agent}/task/{task}"),
            Subject::Host(host) => write!(f, "host/{host}"),
            Subject::Issuer(issuer) => write!(f, "issuer/{issuer}"),
        }
    }
}

impl FromStr for SpiffeId {
    type Err = NameError;
    fn from_str(s: &str) -> Result<Self, NameError> {
        let bad = |why| NameError::Uri { uri: s.chars().take(256).collect(), why };
        let rest = s.strip_prefix("spiffe://").ok_or_else(|| bad("it does not begin with spiffe://"))?;
        let mut parts = rest.split('/');
        let trust_domain = parts.next().unwrap_or_default().parse()?;
        let path: Vec<&str> = parts.take(6).collect();
        let subject = match path.as_slice() {
            ["agent", agent] => Subject::Agent(agent.parse()?),
            ["agent", agent, "task", task] => Subject::Task(agent.parse()?, task.parse()?),
            ["host", host] => Subject::Host(host.parse()?),
            ["issuer", issuer] => Subject::Issuer(issuer.parse()?),
            _ => {
                return Err(bad("the path is none of agent/NAME, agent/NAME/task/TASK, host/ID, issuer/ID"));
            }
        };
        Ok(Self { trust_domain, subject })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_survive_a_round_trip() {
        for id in [
            "spiffe://example.org/agent/mailer",
            "spiffe://example.org/agent/mailer/task/t-1",
            "spiffe://example.org/host/web-01",
            "spiffe://example.org/issuer/a",
        ] {
            assert_eq!(id.parse::<SpiffeId>().unwrap().to_string(), id);
        }
    }

    #[test]
    fn other_forms_are_refused() {
        for id in [
            "",
            "https://example.org/agent/a",
            "spiffe:///agent/a",
            "spiffe://Example.org/agent/a",
            "spiffe://example.org",
            "spiffe://example.org/agent",
            "spiffe://example.org/agent/",
            "spiffe://example.org/agent/a/",
            "spiffe://example.org/agent/a/task",
            "spiffe://example.org/agent/a/b",
            "spiffe://example.org/agent/..",
            "spiffe://example.org/agent/a?x",
            "spiffe://example.org/agent/a#x",
            "spiffe://example.org:443/agent/a",
            "spiffe://user@example.org/agent/a",
            "spiffe://example.org/agent/%61",
            "spiffe://example.org/agent/a/task/t/task/u",
        ] {
            assert!(id.parse::<SpiffeId>().is_err(), "{id}");
        }
    }

    #[test]
    fn instance_ids_are_in_the_order_of_their_time() {
        let (early, late) = (
            InstanceId::drawn_at(0x0199_0000_00ff, [0xff; 10]),
            InstanceId::drawn_at(0x0199_0000_0100, [0; 10]),
        );
        assert!(early < late);
        assert_eq!(early.to_string(), "0199000000ffffffffffffffffffffff");
        assert_eq!(early.drawn_ms(), 0x0199_0000_00ff);
    }

    #[test]
    fn limits_hold() {
        assert!("a".repeat(64).parse::<AgentName>().is_ok());
        assert!("a".repeat(65).parse::<AgentName>().is_err());
        assert!("A".parse::<HostId>().is_err());
        assert!("0123456789abcdef0123456789abcdef".parse::<InstanceId>().is_ok());
        assert!("0123456789ABCDEF0123456789abcdef".parse::<InstanceId>().is_err());
    }
}
