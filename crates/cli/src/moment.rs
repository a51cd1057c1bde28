//! Moments as the wire has them (seconds since 1970, 0 for never) shown to people and programs.

use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::failure::Failure;

/// A moment, or never.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Moment(pub(crate) i64);

/// Seconds since 1970, now.
pub(crate) fn now() -> i64 {
    let elapsed = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(elapsed.as_secs()).unwrap_or(i64::MAX)
}

impl Moment {
    /// RFC 3339 in UTC; none for never, and for years that no calendar here reaches.
    pub(crate) fn rfc3339(self) -> Option<String> {
        if self.0 == 0 {
            return None;
        }
        OffsetDateTime::from_unix_timestamp(self.0).ok()?.format(&Rfc3339).ok()
    }

    /// As `2026-01-31T12:00:00Z (in 5m)`, or `-`.
    pub(crate) fn text(self, now: i64) -> String {
        match self.rfc3339() {
            Some(at) => format!("{at} ({})", self.relative(now)),
            None => "-".to_owned(),
        }
    }

    /// As `5m ago`, `in 2h`, or `-`.
    pub(crate) fn relative(self, now: i64) -> String {
        if self.0 == 0 {
            return "-".to_owned();
        }
        let seconds = now.saturating_sub(self.0);
        let span = span(seconds.unsigned_abs());
        if seconds >= 0 { format!("{span} ago") } else { format!("in {span}") }
    }

    /// Reads RFC 3339 or `@SECONDS`.
    pub(crate) fn parse(text: &str) -> Result<i64, Failure> {
        let seconds = match text.strip_prefix('@') {
            Some(seconds) => seconds.parse().ok(),
            None => OffsetDateTime::parse(text, &Rfc3339).ok().map(OffsetDateTime::unix_timestamp),
        };
        seconds.ok_or_else(|| {
            Failure::usage(format!("{text:?} is no time"))
                .remedy("write it as 2026-01-31T12:00:00Z, or as @ and the seconds since 1970")
        })
    }
}

/// A span in its two coarsest units' worth, as people say it.
pub(crate) fn span(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3_600 => format!("{}m{}s", seconds / 60, seconds % 60),
        3_600..86_400 => format!("{}h{}m", seconds / 3_600, seconds % 3_600 / 60),
        _ => format!("{}d{}h", seconds / 86_400, seconds % 86_400 / 3_600),
    }
}

impl Serialize for Moment {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.rfc3339().serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_read_as_they_are_written() {
        let at = Moment(1_800_000_000);
        let text = at.rfc3339().unwrap();
        assert_eq!(text, "2027-01-15T08:00:00Z");
        assert_eq!(Moment::parse(&text), Ok(at.0));
        assert_eq!(Moment::parse("@1800000000"), Ok(at.0));
        assert!(Moment::parse("tomorrow").is_err() && Moment::parse("@x").is_err());
    }

    #[test]
    fn people_read_spans() {
        assert_eq!(Moment(1_000).relative(1_065), "1m5s ago");
        assert_eq!(Moment(1_000 + 7_260).relative(1_000), "in 2h1m");
        assert_eq!(Moment(1).relative(1 + 90_000), "1d1h ago");
        assert_eq!(Moment(0).text(5), "-");
        assert_eq!(Moment(i64::MIN).rfc3339(), None);
    }

    #[test]
    fn never_is_null_in_json() {
        assert_eq!(serde_json::to_string(&Moment(0)).unwrap(), "null");
    }
}
