//! A log's entries as readers see them: the records of an issuer's decisions.

use serde::Deserialize;

use super::LogName;

/// What a record says, as far as readers look at it; an entry's bytes stay what counts.
///
/// Fields that a decision does not have are none or empty. Fields that are not known are passed over; a field that
/// stands there twice, or is of another type, makes the entry unreadable: two readers must not see two records.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Record {
    /// Version of its form.
    pub v: u32,
    /// When it was decided, in seconds since 1970.
    pub at: i64,
    /// What was decided about, as `svid` or `host-attestation`.
    pub kind: String,
    /// How it was decided, as `issued` or `refused`.
    pub outcome: String,
    /// The host concerned.
    pub host: Option<String>,
    /// The agent concerned.
    pub agent: Option<String>,
    /// The run of the agent.
    pub instance: Option<String>,
    /// The task.
    pub task: Option<String>,
    /// The accountable party.
    pub owner: Option<String>,
    /// Tier granted or attained.
    pub tier: Option<String>,
    /// Custody of the key.
    pub custody: Option<String>,
    /// The certificate's serial, hex.
    pub serial: Option<String>,
    /// SHA-256 of the certificate, hex.
    pub certificate_sha256: Option<String>,
    /// The certificate's end, in seconds since 1970.
    pub not_after: Option<i64>,
    /// SHA-256 of the EK's SubjectPublicKeyInfo, hex.
    pub ek_sha256: Option<String>,
    /// What the host observed of the process.
    pub selectors: Vec<String>,
    /// Why.
    pub reason: Option<String>,
    /// An operator's own words.
    pub note: Option<String>,
    /// Who ordered it.
    pub operator: Option<String>,
    /// Serials of the certificates that this ends before their time, hex.
    pub revoked: Vec<String>,
    /// Every requirement not met.
    pub unmet: Vec<Unmet>,
    /// Software TPMs may count in this trust domain.
    pub lab: bool,
}

/// A requirement not met.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Unmet {
    /// Its name.
    pub code: String,
    /// What was found.
    pub detail: String,
}

/// Why an entry is no record.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the entry is no record: {0}")]
pub struct RecordError(pub String);

impl Record {
    /// Reads an entry.
    ///
    /// # Errors
    /// It is no JSON object, or a field of it is of another type or stands there twice.
    pub fn parse(entry: &[u8]) -> Result<Self, RecordError> {
        let record: Self = serde_json::from_slice(entry).map_err(|e| RecordError(e.to_string()))?;
        if record.kind.is_empty() || record.outcome.is_empty() {
            return Err(RecordError("it has no kind or no outcome".to_owned()));
        }
        Ok(record)
    }

    /// Whether it gave somebody a certificate.
    pub fn gave_certificate(&self) -> bool {
        self.serial.is_some() && matches!(self.outcome.as_str(), "issued" | "attested")
    }

    /// Whether something was refused.
    pub fn is_refusal(&self) -> bool {
        self.outcome == "refused"
    }

    /// The SPIFFE ID of whom it is about, in the log's trust domain; none where it is about nobody.
    pub fn spiffe_id(&self, log: &LogName) -> Option<String> {
        let (trust_domain, issuer) = log.issuer()?;
        let path = match (self.kind.as_str(), &self.agent, &self.host) {
            ("issuer-svid", ..) => format!("issuer/{issuer}"),
            (_, Some(agent), _) => match &self.task {
                Some(task) => format!("agent/{agent}/task/{task}"),
                None => format!("agent/{agent}"),
            },
            (_, None, Some(host)) => format!("host/{host}"),
            (_, None, None) => return None,
        };
        Some(format!("spiffe://{trust_domain}/{path}"))
    }

    /// Why it was decided so, in one line: the reason, what was not met, and an operator's words.
    pub fn why(&self) -> Option<String> {
        let unmet = self.unmet.iter().map(|unmet| match unmet.detail.as_str() {
            "" => unmet.code.clone(),
            detail => format!("{}: {detail}", unmet.code),
        });
        let words = self.reason.iter().chain(&self.note).filter(|text| !text.is_empty()).cloned();
        let all: Vec<String> = words.chain(unmet).collect();
        (!all.is_empty()).then(|| all.join("; "))
    }
}

impl LogName {
    /// The trust domain and the issuer whose log has this name, `TRUST-DOMAIN/log/ISSUER`; none for another log.
    pub fn issuer(&self) -> Option<(&str, &str)> {
        let (trust_domain, rest) = self.as_str().split_once('/')?;
        let issuer = rest.strip_prefix("log/")?;
        (!trust_domain.is_empty() && !issuer.is_empty()).then_some((trust_domain, issuer))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn two_readers_see_one_record() {
        let parse = |json: &str| Record::parse(json.as_bytes());
        let record =
            parse(r#"{"v":1,"at":5,"kind":"svid","outcome":"issued","agent":"a","new":[{}]}"#).unwrap();
        assert_eq!((record.agent.as_deref(), record.at), (Some("a"), 5));
        for json in [
            r#"{"v":1,"kind":"svid","outcome":"issued","agent":"a","agent":"b"}"#,
            r#"{"v":1,"kind":"svid","outcome":"issued","agent":7}"#,
            r#"{"v":1,"kind":"","outcome":"issued"}"#,
            r#"{"v":1,"kind":"svid"}"#,
            r#"{"v":1,"kind":"svid","outcome":"issued"} {}"#,
            "[]",
        ] {
            assert!(parse(json).is_err(), "{json}");
        }
    }

    #[test]
    fn whom_a_record_is_about() {
        let log: LogName = "example.org/log/issuer-1".parse().unwrap();
        let of = |json: &str| Record::parse(json.as_bytes()).unwrap().spiffe_id(&log);
        let svid = r#"{"kind":"svid","outcome":"issued","host":"h","agent":"a""#;
        assert_eq!(of(&format!("{svid}}}")).as_deref(), Some("spiffe://example.org/agent/a"));
        assert_eq!(
            of(&format!(r#"{svid},"task":"t1"}}"#)).as_deref(),
            Some("spiffe://example.org/agent/a/task/t1")
        );
        let host = r#"{"kind":"host-attestation","outcome":"attested","host":"h"}"#;
        assert_eq!(of(host).as_deref(), Some("spiffe://example.org/host/h"));
        let own = r#"{"kind":"issuer-svid","outcome":"issued"}"#;
        assert_eq!(of(own).as_deref(), Some("spiffe://example.org/issuer/issuer-1"));
        assert_eq!(of(r#"{"kind":"trust-domain","outcome":"made"}"#), None);
        for name in ["example.org", "/log/x", "example.org/log/", "example.org/x"] {
            assert_eq!(name.parse::<LogName>().unwrap().issuer(), None, "{name}");
        }
    }
}
