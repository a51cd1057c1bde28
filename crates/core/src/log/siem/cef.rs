//! Common Event Format, version 0 (ArcSight, "Implementing ArcSight Common Event Format", version 26).

use super::{Event, is_break, short};

/// Longest value of most fields of text, by the specification's dictionary.
const MAX_TEXT: usize = 1023;
/// Longest value of a custom string.
const MAX_CUSTOM: usize = 4000;

/// Severities, of 0 to 10.
const USUAL: u8 = 3;
const REFUSED: u8 = 6;

pub(super) fn event(event: &Event<'_>) -> String {
    let record = event.record();
    let severity = if record.is_refusal() { REFUSED } else { USUAL };
    let mut line = String::from("CEF:0");
    let class = format!("{}:{}", record.kind, record.outcome);
    let name = event.message();
    for field in ["Hallmark", "Hallmark", env!("CARGO_PKG_VERSION"), &class, &name, &severity.to_string()] {
        line.push('|');
        header(&mut line, &short(field, 512));
    }
    line.push('|');
    let mut extension = Extension { line, begun: false };
    extension.put("rt", &record.at.saturating_mul(1000).to_string(), MAX_TEXT);
    extension.put("externalId", &event.uid(), MAX_TEXT);
    extension.put("cat", &record.kind, MAX_TEXT);
    extension.put("outcome", &record.outcome, 63);
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    extension.put("duser", &text(&record.agent), MAX_TEXT);
    extension.put("duid", &record.spiffe_id(event.log).unwrap_or_default(), MAX_TEXT);
    extension.put("dhost", &text(&record.host), MAX_TEXT);
    extension.put("suser", &text(&record.operator), MAX_TEXT);
    extension.put("reason", &record.why().unwrap_or_default(), MAX_TEXT);
    let custom = [
        ("owner", &record.owner),
        ("instance", &record.instance),
        ("serial", &record.serial),
        ("tier", &record.tier),
        ("custody", &record.custody),
        ("certificateSha256", &record.certificate_sha256),
    ];
    for (number, (label, value)) in (1..).zip(custom) {
        if let Some(value) = value {
            extension.put(&format!("cs{number}Label"), label, MAX_TEXT);
            extension.put(&format!("cs{number}"), value, MAX_CUSTOM);
        }
    }
    if let Some(task) = &record.task {
        extension.put("flexString1Label", "task", 128);
        extension.put("flexString1", task, MAX_TEXT);
    }
    if !record.selectors.is_empty() {
        extension.put("flexString2Label", "selectors", 128);
        extension.put("flexString2", &record.selectors.join(" "), MAX_TEXT);
    }
    extension.put("cn1Label", "logIndex", MAX_TEXT);
    extension.put("cn1", &event.index.to_string(), MAX_TEXT);
    extension.line
}

/// Pipes and backslashes are escaped; an equals sign need not be ("Character Encoding"). The header has no way to
/// write a line break.
fn header(line: &mut String, text: &str) {
    for c in text.chars() {
        match c {
            '|' | '\\' => line.extend(['\\', c]),
            c if is_break(c) => line.push(' '),
            c => line.push(c),
        }
    }
}

struct Extension {
    line: String,
    begun: bool,
}

impl Extension {
    /// Equals signs and backslashes are escaped, line breaks written `\n` and `\r`; a pipe need not be. Of other
    /// control characters none means anything here. Empty values are left out.
    fn put(&mut self, key: &str, value: &str, most: usize) {
        // The end of a value is where the next key begins: white space at its ends would be lost or doubled.
        let value = value.trim();
        if value.is_empty() {
            return;
        }
        if std::mem::replace(&mut self.begun, true) {
            self.line.push(' ');
        }
        self.line.push_str(key);
        self.line.push('=');
        for c in short(value, most).chars() {
            match c {
                '=' | '\\' => self.line.extend(['\\', c]),
                '\n' => self.line.push_str("\\n"),
                '\r' => self.line.push_str("\\r"),
                c if is_break(c) => self.line.push(' '),
                c => self.line.push(c),
            }
        }
    }
}
