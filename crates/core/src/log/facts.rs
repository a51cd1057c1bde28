//! Whether the records of a log contradict each other: what one decision rules out, no later one does.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;

/// Version of the records that are understood.
const VERSION: u32 = 1;

/// What the records so far say.
#[derive(Debug, Default)]
pub struct Facts {
    serials: HashSet<String>,
    instances: HashMap<String, Run>,
    eks: HashMap<String, String>,
    hosts: HashMap<String, String>,
    /// Records by kind and outcome.
    counts: std::collections::BTreeMap<(String, String), u64>,
}

#[derive(Debug)]
struct Run {
    agent: String,
    host: String,
    ended: bool,
}

/// Why a record cannot stand beside those before it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Contradiction {
    /// Not a record.
    #[error("it is not a record: {0}")]
    Form(String),
    /// Of another version.
    #[error("it is a record of version {0}; this program reads {VERSION}")]
    Version(u32),
    /// A field that such a record has is missing.
    #[error("a record of {kind} without {field}")]
    Missing {
        /// Its kind.
        kind: String,
        /// The field.
        field: &'static str,
    },
    /// Two certificates have one serial number.
    #[error("serial {0} was issued before")]
    Serial(String),
    /// An instance changed its agent or its host.
    #[error("instance {instance} was of {before}, and is of {now} here")]
    Instance {
        /// Its id.
        instance: String,
        /// Agent and host before.
        before: String,
        /// Agent and host now.
        now: String,
    },
    /// An ended instance got a certificate.
    #[error("instance {0} had ended, and was issued a certificate")]
    Ended(String),
    /// A host id and an EK belong together for ever.
    #[error("host {host} attested with EK {ek}, and one of them was bound otherwise before")]
    Binding {
        /// The host.
        host: String,
        /// Its EK's digest.
        ek: String,
    },
}

#[derive(Deserialize)]
struct Record {
    v: u32,
    kind: String,
    outcome: String,
    host: Option<String>,
    agent: Option<String>,
    instance: Option<String>,
    serial: Option<String>,
    ek_sha256: Option<String>,
}

impl Facts {
    /// Takes one record, in the order of the log.
    ///
    /// # Errors
    /// It is none, or contradicts one before.
    pub fn take(&mut self, entry: &[u8]) -> Result<(), Contradiction> {
        let record: Record = serde_json::from_slice(entry).map_err(|e| Contradiction::Form(e.to_string()))?;
        if record.v != VERSION {
            return Err(Contradiction::Version(record.v));
        }
        *self.counts.entry((record.kind.clone(), record.outcome.clone())).or_default() += 1;
        if let Some(serial) = &record.serial
            && !self.serials.insert(serial.clone())
        {
            return Err(Contradiction::Serial(serial.clone()));
        }
        match (record.kind.as_str(), record.outcome.as_str()) {
            ("svid", "issued") => self.issued(&record),
            ("instance-end", "ended") => {
                let instance = field(&record, record.instance.as_ref(), "instance")?;
                if let Some(run) = self.instances.get_mut(instance) {
                    run.ended = true;
                }
                Ok(())
            }
            ("host-attestation", "attested") => self.attested(&record),
            _ => Ok(()),
        }
    }

    /// How many records there were, by kind and outcome.
    pub fn counts(&self) -> impl Iterator<Item = (&str, &str, u64)> {
        self.counts.iter().map(|((kind, outcome), count)| (kind.as_str(), outcome.as_str(), *count))
    }

    fn issued(&mut self, record: &Record) -> Result<(), Contradiction> {
        field(record, record.serial.as_ref(), "serial")?;
        let instance = field(record, record.instance.as_ref(), "instance")?;
        let agent = field(record, record.agent.as_ref(), "agent")?;
        let host = field(record, record.host.as_ref(), "host")?;
        let new = || Run { agent: agent.clone(), host: host.clone(), ended: false };
        let run = self.instances.entry(instance.clone()).or_insert_with(new);
        if (&run.agent, &run.host) != (agent, host) {
            return Err(Contradiction::Instance {
                instance: instance.clone(),
                before: format!("{} on {}", run.agent, run.host),
                now: format!("{agent} on {host}"),
            });
        }
        if run.ended { Err(Contradiction::Ended(instance.clone())) } else { Ok(()) }
    }

    fn attested(&mut self, record: &Record) -> Result<(), Contradiction> {
        let host = field(record, record.host.as_ref(), "host")?;
        let Some(ek) = &record.ek_sha256 else { return Ok(()) };
        let host_of_ek = self.eks.entry(ek.clone()).or_insert_with(|| host.clone());
        let ek_of_host = self.hosts.entry(host.clone()).or_insert_with(|| ek.clone());
        if host_of_ek == host && ek_of_host == ek {
            Ok(())
        } else {
            Err(Contradiction::Binding { host: host.clone(), ek: ek.clone() })
        }
    }
}

fn field<'a>(
    record: &Record,
    value: Option<&'a String>,
    field: &'static str,
) -> Result<&'a String, Contradiction> {
    value.ok_or_else(|| Contradiction::Missing { kind: record.kind.clone(), field })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(facts: &mut Facts, json: &str) -> Result<(), Contradiction> {
        facts.take(json.as_bytes())
    }

    fn svid(serial: u8, instance: &str, agent: &str, host: &str) -> String {
        format!(
            r#"{{"v":1,"at":1,"kind":"svid","outcome":"issued","host":"{host}","agent":"{agent}","instance":"{instance}","serial":"{serial:032x}"}}"#
        )
    }

    fn attested(host: &str, ek: &str) -> String {
        format!(
            r#"{{"v":1,"kind":"host-attestation","outcome":"attested","host":"{host}","ek_sha256":"{ek}"}}"#
        )
    }

    #[test]
    fn each_contradiction_is_found() {
        let mut facts = Facts::default();
        take(&mut facts, &svid(1, "i1", "x", "a")).unwrap();
        take(&mut facts, &svid(2, "i1", "x", "a")).unwrap();
        assert_eq!(
            take(&mut facts, &svid(1, "i2", "x", "a")),
            Err(Contradiction::Serial(format!("{:032x}", 1)))
        );
        assert!(matches!(take(&mut facts, &svid(3, "i1", "y", "a")), Err(Contradiction::Instance { .. })));
        assert!(matches!(take(&mut facts, &svid(4, "i1", "x", "b")), Err(Contradiction::Instance { .. })));
        take(&mut facts, r#"{"v":1,"kind":"instance-end","outcome":"ended","instance":"i1"}"#).unwrap();
        assert_eq!(take(&mut facts, &svid(5, "i1", "x", "a")), Err(Contradiction::Ended("i1".to_owned())));
        take(&mut facts, &attested("a", "e1")).unwrap();
        take(&mut facts, &attested("a", "e1")).unwrap();
        take(&mut facts, &attested("b", "e2")).unwrap();
        assert!(matches!(take(&mut facts, &attested("a", "e3")), Err(Contradiction::Binding { .. })));
        assert!(matches!(take(&mut facts, &attested("c", "e2")), Err(Contradiction::Binding { .. })));
        assert_eq!(take(&mut facts, r#"{"v":2,"kind":"x","outcome":"y"}"#), Err(Contradiction::Version(2)));
        assert!(matches!(take(&mut facts, "{"), Err(Contradiction::Form(_))));
        let bare = r#"{"v":1,"kind":"svid","outcome":"issued","serial":"00"}"#;
        assert!(matches!(take(&mut facts, bare), Err(Contradiction::Missing { field: "instance", .. })));
        let refused = r#"{"v":1,"kind":"svid","outcome":"refused"}"#;
        take(&mut facts, refused).unwrap();
        assert!(facts.counts().any(|count| count == ("svid", "refused", 1)));
    }
}
