//! `hallmark log find`

use clap::Args;
use hallmark_core::log::Record;
use serde::Serialize;

use super::line::{Line, table};
use super::progress::Progress;
use super::source::{Log, LogArgs};
use super::tail::each;
use super::wrong;
use crate::failure::Failure;
use crate::moment::{Moment, now};
use crate::output::{Output, Page, Present};

/// Finds records: all that is given must fit. The whole log is read, and what is shown is verified against its
/// signed checkpoint.
#[derive(Debug, Args)]
#[command(after_help = "\
Times are written as 2026-01-31T12:00:00Z, as @ and the seconds since 1970, or as a span before
now: 2h, 30days.

Exit code 0 when something was found, 1 when nothing was.

Examples:
  hallmark log find --agent mailer --outcome refused --since 7days
  hallmark log find ./log --key \"$KEY\" --owner mail-team@example.org --kind svid --output json")]
pub(crate) struct FindArgs {
    #[command(flatten)]
    pub(super) log: LogArgs,
    #[command(flatten)]
    filter: Filter,
    /// At most this many, the newest
    #[arg(long, value_name = "COUNT", default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    limit: u32,
}

/// What a record must be like.
#[derive(Debug, Clone, Default, Args)]
struct Filter {
    /// About this agent
    #[arg(long, value_name = "AGENT")]
    agent: Option<String>,
    /// About this run of an agent
    #[arg(long, value_name = "ID")]
    instance: Option<String>,
    /// About what this owner is accountable for
    #[arg(long, value_name = "OWNER")]
    owner: Option<String>,
    /// About this host
    #[arg(long, value_name = "HOST")]
    host: Option<String>,
    /// About the certificate with this serial number: its issuance, and its revocation
    #[arg(long, value_name = "HEX")]
    serial: Option<String>,
    /// About this task
    #[arg(long, value_name = "TASK")]
    task: Option<String>,
    /// Not before
    #[arg(long, value_name = "TIME", value_parser = moment)]
    since: Option<i64>,
    /// Before
    #[arg(long, value_name = "TIME", value_parser = moment)]
    until: Option<i64>,
    /// Of this kind, as svid, host-attestation, instance-end, registration
    #[arg(long, value_name = "KIND")]
    kind: Option<String>,
    /// With this outcome, as issued, attested, refused, ended
    #[arg(long, value_name = "OUTCOME")]
    outcome: Option<String>,
}

/// A time, or a span before now.
fn moment(text: &str) -> Result<i64, String> {
    if let Ok(ago) = humantime::parse_duration(text) {
        return Ok(now().saturating_sub_unsigned(ago.as_secs()));
    }
    Moment::parse(text)
        .map_err(|failure| format!("{}; {}", failure.message, failure.remedy.unwrap_or_default()))
}

impl Filter {
    fn fits(&self, record: &Record) -> bool {
        let is = |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;
        let serial = |serial: &String| {
            let serial = serial.to_ascii_lowercase();
            record.serial.as_ref() == Some(&serial) || record.revoked.contains(&serial)
        };
        is(&self.agent, &record.agent)
            && is(&self.instance, &record.instance)
            && is(&self.owner, &record.owner)
            && is(&self.host, &record.host)
            && is(&self.task, &record.task)
            && self.serial.as_ref().is_none_or(serial)
            && self.since.is_none_or(|since| record.at >= since)
            && self.until.is_none_or(|until| record.at < until)
            && self.kind.as_ref().is_none_or(|kind| *kind == record.kind)
            && self.outcome.as_ref().is_none_or(|outcome| *outcome == record.outcome)
    }
}

pub(super) fn run(mut log: Log, args: &FindArgs, output: Output) -> Result<u8, Failure> {
    let mut reader = log.open().map_err(|error| wrong(&log, &error))?;
    let size = reader.checkpoint().size;
    let progress = Progress::new(output, "records looked through");
    progress.until(size);
    let (mut found, mut left_out) = (std::collections::VecDeque::new(), 0_u64);
    let mut take = |index: u64, entry: &[u8]| {
        progress.at(index + 1);
        if Record::parse(entry).is_ok_and(|record| args.filter.fits(&record)) {
            if found.len() >= args.limit as usize {
                found.pop_front();
                left_out += 1;
            }
            found.push_back(Line::new(index, entry));
        }
        Ok(true)
    };
    each(&mut log, &mut reader, 0, size, &mut take)?;
    progress.done();
    let records = Vec::from(found);
    let any = !records.is_empty();
    output.show(&Found { size, records, left_out })?;
    if left_out > 0 {
        output.note(&format!("{left_out} older ones are not shown; --limit shows more"));
    }
    Ok(u8::from(!any))
}

#[derive(Serialize)]
struct Found {
    /// Records looked through.
    size: u64,
    records: Vec<Line>,
    /// Older ones that fit, too.
    left_out: u64,
}

impl Present for Found {
    fn present(&self, page: &mut Page) {
        table(page, &self.records);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_that_is_given_must_fit() {
        let record = Record::parse(
            br#"{"v":1,"at":100,"kind":"instance-end","outcome":"ended","agent":"a","host":"h","revoked":["0f"],"task":"t"}"#,
        )
        .unwrap();
        let some = |text: &str| Some(text.to_owned());
        let fits = |filter: Filter| filter.fits(&record);
        assert!(fits(Filter::default()));
        assert!(fits(Filter { agent: some("a"), host: some("h"), task: some("t"), ..Filter::default() }));
        assert!(!fits(Filter { agent: some("a"), host: some("x"), ..Filter::default() }));
        assert!(!fits(Filter { owner: some("o"), ..Filter::default() }), "it names no owner");
        assert!(
            fits(Filter { serial: some("0F"), ..Filter::default() }),
            "a revocation is found by what it revokes"
        );
        assert!(fits(Filter { since: Some(100), until: Some(101), ..Filter::default() }));
        assert!(!fits(Filter { since: Some(101), ..Filter::default() }));
        assert!(!fits(Filter { until: Some(100), ..Filter::default() }));
        assert!(!fits(Filter { kind: some("svid"), ..Filter::default() }));
        assert!(!fits(Filter { outcome: some("refused"), ..Filter::default() }));
    }

    #[test]
    fn times_are_moments_or_spans_before_now() {
        assert_eq!(moment("@77"), Ok(77));
        assert!((moment("1h").unwrap() - (now() - 3600)).abs() < 60);
        assert!(moment("yesterday").unwrap_err().contains("2026-01-31"));
    }
}
