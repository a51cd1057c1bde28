//! What a monitor expects of a log: which certificates there should be, and which of those there are should not.
//!
//! Each `[[watch]]` is one statement: *whatever is about this must be like that*. A certificate must satisfy every
//! statement that is about it. One that no statement is about is unexpected under `default = "deny"`.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::LogName;
use super::record::Record;

/// Longest pattern.
const MAX_PATTERN: usize = 512;

/// What becomes of a certificate that no statement is about.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Unlisted {
    /// It is unexpected.
    #[default]
    Deny,
    /// It is nobody's business here.
    Allow,
}

/// One statement, as it is written. The first four say what it is about, and all that are given must fit; the others
/// say what is expected, each a list of which one must fit. A list that is empty expects nothing at all. In every
/// text `*` stands for any characters.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Watch {
    /// About agents of this name.
    pub agent: Option<String>,
    /// About whoever has this SPIFFE ID: agents, hosts, issuers.
    pub spiffe_id: Option<String>,
    /// About what this owner is accountable for.
    pub owner: Option<String>,
    /// About this host: its own certificates, and those of agents on it.
    pub host: Option<String>,
    /// The agents expected.
    pub agents: Option<Vec<String>>,
    /// The owners expected.
    pub owners: Option<Vec<String>>,
    /// The hosts expected.
    pub hosts: Option<Vec<String>>,
    /// The tiers expected.
    pub tiers: Option<Vec<String>>,
    /// The custodies expected.
    pub custody: Option<Vec<String>>,
    /// The EKs expected, by the SHA-256 of their SubjectPublicKeyInfo: of hosts' own certificates.
    pub ek_sha256: Option<Vec<String>>,
}

/// What is wrong with a statement.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("watch[{at}]{key}: {problem}")]
pub struct WatchFault {
    /// Which statement, from 0.
    pub at: usize,
    /// Which of its keys, after a dot; empty for the statement as a whole.
    pub key: String,
    /// What is wrong, and what to write instead.
    pub problem: &'static str,
}

/// All statements.
#[derive(Debug, Clone, Default)]
pub struct Expectations {
    unlisted: Unlisted,
    watches: Vec<Watch>,
}

/// Why a certificate is unexpected.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case", tag = "why")]
pub enum Unexpected {
    /// No statement is about it.
    Unlisted,
    /// A statement is about it, and expects another.
    Differs {
        /// Which statement, from 0.
        watch: usize,
        /// In what it differs: `agent`, `owner`, `host`, `tier`, `custody` or `ek_sha256`.
        field: &'static str,
        /// What was found; none where the record does not say.
        found: Option<String>,
        /// What was expected.
        expected: Vec<String>,
    },
}

impl fmt::Display for Unexpected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unlisted => f.write_str("no [[watch]] is about it, and the default is to deny"),
            Self::Differs { watch, field, found, expected } => {
                let found = found.as_deref().unwrap_or("not said");
                let expected =
                    if expected.is_empty() { "none at all".to_owned() } else { expected.join(" or ") };
                write!(f, "its {field} is {found}; watch[{watch}] expects {expected}")
            }
        }
    }
}

impl Expectations {
    /// Takes statements as they are written.
    ///
    /// # Errors
    /// Every fault.
    pub fn new(unlisted: Unlisted, watches: Vec<Watch>) -> Result<Self, Vec<WatchFault>> {
        let faults: Vec<WatchFault> =
            watches.iter().enumerate().flat_map(|(at, watch)| watch.faults(at)).collect();
        if faults.is_empty() { Ok(Self { unlisted, watches }) } else { Err(faults) }
    }

    /// Why the certificate that this record gave is not expected; nothing where it is, or where it gave none.
    ///
    /// A log's own issuer is expected to have certificates, which no statement need be about.
    pub fn unexpected(&self, log: &LogName, record: &Record) -> Vec<Unexpected> {
        if !record.gave_certificate() {
            return Vec::new();
        }
        let id = record.spiffe_id(log);
        let about: Vec<(usize, &Watch)> = self
            .watches
            .iter()
            .enumerate()
            .filter(|(_, watch)| watch.is_about(record, id.as_deref()))
            .collect();
        if about.is_empty() && self.unlisted == Unlisted::Deny && record.kind != "issuer-svid" {
            return vec![Unexpected::Unlisted];
        }
        about.into_iter().flat_map(|(at, watch)| watch.differences(at, record)).collect()
    }
}

impl Watch {
    fn subjects(&self) -> [(&'static str, Option<&String>); 4] {
        let Self { agent, spiffe_id, owner, host, .. } = self;
        [
            ("agent", agent.as_ref()),
            ("spiffe_id", spiffe_id.as_ref()),
            ("owner", owner.as_ref()),
            ("host", host.as_ref()),
        ]
    }

    fn lists(&self) -> [(&'static str, Option<&Vec<String>>); 6] {
        [
            ("agents", self.agents.as_ref()),
            ("owners", self.owners.as_ref()),
            ("hosts", self.hosts.as_ref()),
            ("tiers", self.tiers.as_ref()),
            ("custody", self.custody.as_ref()),
            ("ek_sha256", self.ek_sha256.as_ref()),
        ]
    }

    fn faults(&self, at: usize) -> Vec<WatchFault> {
        let mut faults = Vec::new();
        let mut fault = |key: &str, problem| faults.push(WatchFault { at, key: key.to_owned(), problem });
        if self.subjects().iter().all(|(_, text)| text.is_none()) {
            fault("", "says not what it is about: give agent, spiffe_id, owner or host (\"*\" for any)");
        }
        if self.spiffe_id.as_ref().is_some_and(|id| !id.starts_with("spiffe://") && id != "*") {
            fault(".spiffe_id", "a SPIFFE ID begins with spiffe://");
        }
        let subjects = self.subjects().into_iter().filter_map(|(key, text)| Some((key, text?)));
        let listed = self
            .lists()
            .into_iter()
            .flat_map(|(key, list)| list.into_iter().flatten().map(move |text| (key, text)));
        for (key, text) in subjects.chain(listed) {
            if text.is_empty() || text.len() > MAX_PATTERN {
                fault(&format!(".{key}"), "a pattern has 1 to 512 characters; * stands for any");
            }
        }
        faults
    }

    fn is_about(&self, record: &Record, id: Option<&str>) -> bool {
        let Self { agent, spiffe_id, owner, host, .. } = self;
        let fits = |pattern: &Option<String>, value: Option<&str>| match pattern {
            None => true,
            Some(pattern) => value.is_some_and(|value| matches(pattern, value)),
        };
        fits(agent, record.agent.as_deref())
            && fits(spiffe_id, id)
            && fits(owner, record.owner.as_deref())
            && fits(host, record.host.as_deref())
    }

    fn differences(&self, at: usize, record: &Record) -> Vec<Unexpected> {
        // A host's own certificate has no agent, owner or custody that could differ, an agent's no EK.
        let of_agent = record.agent.is_some() || record.kind == "svid";
        let of_host = record.kind == "host-attestation";
        let checks = [
            ("agent", of_agent, &record.agent, &self.agents),
            ("owner", of_agent, &record.owner, &self.owners),
            ("host", of_agent || of_host, &record.host, &self.hosts),
            ("tier", of_agent || of_host, &record.tier, &self.tiers),
            ("custody", of_agent, &record.custody, &self.custody),
            ("ek_sha256", of_host, &record.ek_sha256, &self.ek_sha256),
        ];
        let differs =
            |(field, applies, found, expected): (_, bool, &Option<String>, &Option<Vec<String>>)| {
                let expected = expected.as_ref().filter(|_| applies)?;
                let fits = found.as_ref().is_some_and(|found| expected.iter().any(|p| matches(p, found)));
                let differs = || Unexpected::Differs {
                    watch: at,
                    field,
                    found: found.clone(),
                    expected: expected.clone(),
                };
                (!fits).then(differs)
            };
        checks.into_iter().filter_map(differs).collect()
    }
}

/// Whether a pattern fits a whole text; `*` stands for any characters, also none.
fn matches(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = parts.next().and_then(|first| text.strip_prefix(first)) else { return false };
    let Some(last) = parts.next_back() else { return rest.is_empty() };
    for part in parts {
        match rest.find(part) {
            Some(at) => rest = &rest[at + part.len()..],
            None => return false,
        }
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    #[serde(deny_unknown_fields)]
    struct File {
        #[serde(default)]
        default: Unlisted,
        watch: Vec<Watch>,
    }

    fn expectations(toml: &str) -> Result<Expectations, Vec<WatchFault>> {
        let file: File = toml::from_str(toml).unwrap();
        Expectations::new(file.default, file.watch)
    }

    fn unexpected(expectations: &Expectations, json: &str) -> Vec<String> {
        let log = "example.org/log/issuer-1".parse().unwrap();
        let record = Record::parse(json.as_bytes()).unwrap();
        expectations.unexpected(&log, &record).iter().map(ToString::to_string).collect()
    }

    fn svid(agent: &str, host: &str, owner: &str) -> String {
        format!(
            r#"{{"kind":"svid","outcome":"issued","serial":"00","agent":"{agent}","host":"{host}","owner":"{owner}","tier":"advanced"}}"#
        )
    }

    #[test]
    fn what_is_about_an_agent_holds_for_each_of_its_certificates() {
        let mailer = expectations(
            "[[watch]]\nagent = \"mail*\"\nowners = [\"mail@x\"]\nhosts = [\"web-1\", \"db-*\"]\ntiers = [\"advanced\"]",
        )
        .unwrap();
        assert_eq!(unexpected(&mailer, &svid("mailer", "web-1", "mail@x")), Vec::<String>::new());
        assert_eq!(unexpected(&mailer, &svid("mail", "db-7", "mail@x")), Vec::<String>::new());
        assert_eq!(
            unexpected(&mailer, &svid("mailer", "web-2", "eve@x")),
            [
                "its owner is eve@x; watch[0] expects mail@x",
                "its host is web-2; watch[0] expects web-1 or db-*"
            ]
        );
        assert_eq!(
            unexpected(&mailer, &svid("gmail", "web-1", "mail@x")),
            ["no [[watch]] is about it, and the default is to deny"]
        );
        // A certificate without an owner is not one of the owner's.
        let bare = svid("mailer", "web-1", "").replace(r#""owner":"","#, "");
        assert_eq!(unexpected(&mailer, &bare), ["its owner is not said; watch[0] expects mail@x"]);
        let refused = svid("eve", "web-9", "eve@x").replace("issued", "refused");
        assert_eq!(unexpected(&mailer, &refused), Vec::<String>::new(), "nobody got anything");
    }

    #[test]
    fn every_statement_about_a_certificate_counts() {
        let both = expectations(
            "default = \"allow\"\n[[watch]]\nowner = \"mail@x\"\nagents = [\"mailer\"]\n\
             [[watch]]\nspiffe_id = \"spiffe://example.org/agent/*\"\nhosts = [\"web-*\"]\n\
             [[watch]]\nagent = \"retired\"\nhosts = []",
        )
        .unwrap();
        assert_eq!(unexpected(&both, &svid("mailer", "web-1", "mail@x")), Vec::<String>::new());
        assert_eq!(
            unexpected(&both, &svid("other", "web-1", "mail@x")),
            ["its agent is other; watch[0] expects mailer"]
        );
        assert_eq!(
            unexpected(&both, &svid("other", "db-1", "eve@x")),
            ["its host is db-1; watch[1] expects web-*"]
        );
        assert_eq!(
            unexpected(&both, &svid("retired", "web-1", "x")),
            ["its host is web-1; watch[2] expects none at all"]
        );
    }

    #[test]
    fn hosts_and_issuers_have_certificates_too() {
        let ek = "ab".repeat(32);
        let hosts =
            expectations(&format!("[[watch]]\nhost = \"web-*\"\nagents = [\"a\"]\nek_sha256 = [\"{ek}\"]"))
                .unwrap();
        let host = |name: &str, ek: &str| {
            format!(
                r#"{{"kind":"host-attestation","outcome":"attested","serial":"00","host":"{name}","ek_sha256":"{ek}"}}"#
            )
        };
        assert_eq!(unexpected(&hosts, &host("web-1", &ek)), Vec::<String>::new());
        assert_eq!(unexpected(&hosts, &host("web-1", "cd")).len(), 1);
        assert_eq!(unexpected(&hosts, &host("db-1", &ek)).len(), 1, "it is not listed");
        let own = r#"{"kind":"issuer-svid","outcome":"issued","serial":"00"}"#;
        assert_eq!(unexpected(&hosts, own), Vec::<String>::new());
        // Of a kind that nobody thought of.
        let new = r#"{"kind":"new","outcome":"issued","serial":"00"}"#;
        assert_eq!(unexpected(&hosts, new).len(), 1);
    }

    #[test]
    fn statements_about_nothing_are_faults() {
        let faults = expectations(
            "[[watch]]\nhosts = [\"a\"]\n[[watch]]\nagent = \"\"\nhosts = [\"\"]\n[[watch]]\nspiffe_id = \"agent/x\"",
        )
        .unwrap_err();
        let keys: Vec<String> = faults.iter().map(|f| format!("{}{}", f.at, f.key)).collect();
        assert_eq!(keys, ["0", "1.agent", "1.hosts", "2.spiffe_id"]);
        assert!(toml::from_str::<File>("[[watch]]\nagnet = \"a\"").is_err());
    }

    #[test]
    fn patterns() {
        for (pattern, text, fits) in [
            ("a", "a", true),
            ("a", "ab", false),
            ("*", "", true),
            ("a*", "a", true),
            ("a*a", "a", false),
            ("a*a", "aa", true),
            ("*b*", "abc", true),
            ("a*b*c", "aXbYbc", true),
            ("a*b*c", "acb", false),
            ("*ab", "aab", true),
            ("ab*ab", "ab", false),
        ] {
            assert_eq!(matches(pattern, text), fits, "{pattern} {text}");
        }
    }
}
