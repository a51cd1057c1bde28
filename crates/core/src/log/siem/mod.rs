//! Records in the forms that SIEMs take in: OCSF, CEF, or as they are; and in syslog's frame.
//!
//! What a record holds came partly from hosts and operators: names, reasons, selectors. None of it can end a line,
//! begin another field or command a terminal, whatever it is.

mod cef;
mod ocsf;
mod syslog;

use std::borrow::Cow;

use super::record::{Record, RecordError};
use super::{LogName, MAX_ENTRY};

pub use ocsf::SCHEMA as OCSF_SCHEMA;
pub use syslog::{Origin, octet_counted};

/// One entry of a log, on its way to a SIEM.
#[derive(Debug, Clone)]
pub struct Event<'a> {
    /// The log.
    pub log: &'a LogName,
    /// The entry's index.
    pub index: u64,
    /// The entry, to the byte.
    pub entry: &'a [u8],
    record: Record,
    /// Why it could not be read, if so.
    unreadable: Option<RecordError>,
}

/// A form.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Form {
    /// Open Cybersecurity Schema Framework, one JSON object.
    Ocsf,
    /// Common Event Format, version 0.
    Cef,
    /// The record as it stands in the log, with its index.
    Json,
}

impl<'a> Event<'a> {
    /// Of an entry. One that is no record becomes an event that says so: it is not left out.
    pub fn new(log: &'a LogName, index: u64, entry: &'a [u8]) -> Self {
        let (record, unreadable) = match Record::parse(entry) {
            Ok(record) => (record, None),
            Err(error) => {
                let reason = Some(error.to_string());
                let word = || "unreadable".to_owned();
                (Record { kind: word(), outcome: word(), reason, ..Record::default() }, Some(error))
            }
        };
        Self { log, index, entry, record, unreadable }
    }

    /// What it says.
    pub fn record(&self) -> &Record {
        &self.record
    }

    /// What names it wherever it goes: the log and its index. It is the same if it is sent again.
    pub fn uid(&self) -> String {
        format!("{}/{}", self.log, self.index)
    }

    /// One line, without its end.
    pub fn line(&self, form: Form) -> String {
        match form {
            Form::Ocsf => escaped(&ocsf::event(self).to_string()),
            Form::Cef => cef::event(self),
            Form::Json => self.json(),
        }
    }

    /// One line of at most `most` bytes, for transports that carry no more: what does not fit is left out, and the
    /// line says so. It can be found in the log by its index.
    pub fn short_line(&self, form: Form, most: usize) -> String {
        let line = self.line(form);
        if line.len() <= most {
            return line;
        }
        let record = &self.record;
        let stub = Record {
            v: record.v,
            at: record.at,
            kind: short(&record.kind, 64).into_owned(),
            outcome: short(&record.outcome, 64).into_owned(),
            agent: record.agent.as_deref().map(|text| short(text, 128).into_owned()),
            host: record.host.as_deref().map(|text| short(text, 128).into_owned()),
            serial: record.serial.as_deref().map(|text| short(text, 64).into_owned()),
            reason: Some(format!("left out: the record has {} bytes", self.entry.len())),
            ..Record::default()
        };
        let entry = serde_json::json!({
            "v": stub.v, "at": stub.at, "kind": stub.kind, "outcome": stub.outcome, "agent": stub.agent,
            "host": stub.host, "serial": stub.serial, "left_out_bytes": self.entry.len(),
        });
        let entry = entry.to_string();
        Event { entry: entry.as_bytes(), record: stub, unreadable: None, ..*self }.line(form)
    }

    /// `{"log":…,"index":…,"record":…}`, the record to the byte where it can stand in a line.
    fn json(&self) -> String {
        let head = format!("{{\"log\":{},\"index\":{}", quoted(self.log.as_str()), self.index);
        match self.verbatim() {
            Some(record) => format!("{head},\"record\":{}}}", escaped(record)),
            None => {
                use base64::Engine as _;
                let entry = base64::prelude::BASE64_STANDARD.encode(self.entry);
                format!("{head},\"entry_base64\":\"{entry}\"}}")
            }
        }
    }

    /// The entry's own text, if it is a record and can stand in a line: JSON has control characters of US-ASCII
    /// between its words only, where an issuer writes none.
    pub fn verbatim(&self) -> Option<&'a str> {
        let text = std::str::from_utf8(self.entry).ok()?;
        let fits = self.unreadable.is_none()
            && text.len() <= MAX_ENTRY
            && !text.contains(|c: char| c.is_ascii_control());
        fits.then_some(text)
    }

    /// What happened, for people.
    fn message(&self) -> String {
        let record = &self.record;
        let of = |word: &str, value: &Option<String>| value.as_ref().map(|value| format!(" {word} {value}"));
        let parts = [of("agent", &record.agent), of("on host", &record.host), of("for owner", &record.owner)];
        let about: String = parts.into_iter().flatten().collect();
        format!(
            "{} {}{}",
            record.kind,
            record.outcome,
            if about.is_empty() { String::new() } else { format!(":{about}") }
        )
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

/// JSON with the characters escaped that are no control characters to JSON, and are to others: in JSON they stand
/// within strings only, where an escape means the same.
fn escaped(json: &str) -> String {
    let mut text = String::with_capacity(json.len());
    for c in json.chars() {
        if is_break(c) { text.push_str(&format!("\\u{:04x}", u32::from(c))) } else { text.push(c) }
    }
    text
}

/// Whether some receiver would end a line here, or a terminal obey it.
fn is_break(c: char) -> bool {
    c.is_control() || matches!(c, '\u{2028}' | '\u{2029}')
}

/// At most so many bytes of a text, cut between characters.
fn short(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return text.into();
    }
    let end = (0..=most.saturating_sub(3)).rev().find(|at| text.is_char_boundary(*at)).unwrap_or(0);
    format!("{}...", &text[..end]).into()
}

#[cfg(test)]
mod tests;
