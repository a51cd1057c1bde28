//! Syslog messages (RFC 5424), and their frame on a stream (RFC 6587 section 3.4.1, RFC 5425 section 4.3).

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::{Event, is_break};

/// Facility 13, "log audit" (RFC 5424 section 6.2.1, table 1).
const FACILITY: u8 = 13;
const WARNING: u8 = 4;
const INFORMATIONAL: u8 = 6;

/// Who sends: the machine and the process.
#[derive(Debug, Clone)]
pub struct Origin {
    /// The machine's name.
    pub host: String,
    /// The process id.
    pub process: u32,
}

impl Origin {
    /// A message about an event, with a line in one of the forms.
    ///
    /// The text is UTF-8 without a byte order mark: RFC 5424 section 6.4 then calls it `MSG-ANY`, and parsers of
    /// JSON and CEF, which know no such mark, are not disturbed.
    pub fn message(&self, event: &Event<'_>, line: &str) -> String {
        let severity = if event.record().is_refusal() { WARNING } else { INFORMATIONAL };
        let at = OffsetDateTime::from_unix_timestamp(event.record().at).ok();
        let at = at.and_then(|at| at.format(&Rfc3339).ok());
        let line: String = line.chars().map(|c| if is_break(c) { ' ' } else { c }).collect();
        format!(
            "<{}>1 {} {} hallmark {} {} - {line}",
            FACILITY * 8 + severity,
            at.as_deref().unwrap_or("-"),
            name(&self.host, 255),
            self.process,
            name(&event.record().kind, 32),
        )
    }
}

/// A name of the header: printable US-ASCII without spaces, or `-` (RFC 5424 section 6).
fn name(text: &str, most: usize) -> String {
    let name: String = text.chars().filter(char::is_ascii_graphic).take(most).collect();
    if name.is_empty() { "-".to_owned() } else { name }
}

/// A message in its frame: its length in bytes, a space, the message.
pub fn octet_counted(message: &str) -> String {
    format!("{} {message}", message.len())
}
