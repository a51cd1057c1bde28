//! A record as it is shown: one line for people, its own JSON for programs.

use hallmark_core::log::LogName;
use hallmark_core::log::siem::Event;
use serde::Serialize;
use serde_json::Value;

use crate::moment::Moment;
use crate::operator::records::summary;
use crate::output::{Page, Word, word};

/// One entry.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Line {
    pub(super) index: u64,
    /// The record; a string where the entry is none.
    pub(super) record: Value,
}

impl Line {
    pub(super) fn new(index: u64, entry: &[u8]) -> Self {
        let text = || Value::String(String::from_utf8_lossy(entry).into_owned());
        Self { index, record: serde_json::from_slice(entry).unwrap_or_else(|_| text()) }
    }

    fn field(&self, name: &str) -> &str {
        self.record.get(name).and_then(Value::as_str).unwrap_or("-")
    }

    fn at(&self) -> String {
        let at = self.record.get("at").and_then(Value::as_i64).unwrap_or_default();
        Moment(at).rfc3339().unwrap_or_else(|| "-".to_owned())
    }

    pub(super) fn cells(&self) -> Vec<Word> {
        vec![
            word(self.index),
            word(self.at()),
            word(self.field("kind")),
            word(self.field("outcome")),
            word(summary(&self.record)),
        ]
    }

    /// For people who watch them come.
    pub(super) fn text(&self) -> String {
        let (kind, outcome) = (self.field("kind"), self.field("outcome"));
        let text = format!("{:>8}  {}  {kind} {outcome}  {}", self.index, self.at(), summary(&self.record));
        one_line(&text)
    }
}

/// What came from others can neither command a terminal nor begin a line of its own.
pub(super) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}

/// Lines as a table.
pub(super) fn table(page: &mut Page, lines: &[Line]) {
    let rows = lines.iter().map(Line::cells).collect();
    page.table(&["index", "at", "kind", "outcome", "about"], rows, "No record.");
}

/// An entry as a line of JSON: its index, and the record to the byte.
pub(super) fn json_line(log: &LogName, index: u64, entry: &[u8]) -> String {
    use base64::Engine as _;
    match Event::new(log, index, entry).verbatim() {
        Some(record) => format!("{{\"index\":{index},\"record\":{record}}}\n"),
        None => {
            let entry = base64::prelude::BASE64_STANDARD.encode(entry);
            format!("{{\"index\":{index},\"entry_base64\":\"{entry}\"}}\n")
        }
    }
}
