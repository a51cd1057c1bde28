//! `hallmark log tail`

use std::time::Duration;

use clap::Args;
use hallmark_core::log::{AuditError, Checkpoint, Reader, TILE_WIDTH};
use serde::Serialize;

use super::line::{Line, json_line, table};
use super::source::{Log, LogArgs};
use super::wrong;
use crate::failure::Failure;
use crate::output::{Output, Page, Present};

/// Shows the newest records, each verified against the log's signed checkpoint.
#[derive(Debug, Args)]
#[command(after_help = "\
With --follow each record comes on a line of its own as it is made (with --output json: a JSON
document a line), until the command is ended, or the log turns out not to go on from what it was:
exit code 1.

Examples:
  hallmark log tail -f
  hallmark log tail https://log.example.org/issuer-1 --key \"$KEY\" -n 100 --output json")]
pub(crate) struct TailArgs {
    #[command(flatten)]
    pub(super) log: LogArgs,
    /// How many
    #[arg(short = 'n', long, value_name = "COUNT", default_value_t = 20, value_parser = clap::value_parser!(u64).range(0..=100_000))]
    lines: u64,
    /// Show those to come, too
    #[arg(short, long)]
    follow: bool,
    /// How often to look for new ones
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = humantime::parse_duration)]
    interval: Duration,
}

pub(super) fn run(mut log: Log, args: &TailArgs, output: Output) -> Result<u8, Failure> {
    let mut reader = log.open().map_err(|error| wrong(&log, &error))?;
    let size = reader.checkpoint().size;
    let mut next = size.saturating_sub(args.lines);
    if !args.follow {
        let mut lines = Vec::new();
        let mut take = |index: u64, entry: &[u8]| {
            lines.push(Line::new(index, entry));
            Ok(true)
        };
        each(&mut log, &mut reader, next, size, &mut take)?;
        output.show(&Records { records: lines })?;
        return Ok(0);
    }
    let name = log.key().name().clone();
    let mut show = |index: u64, entry: &[u8]| {
        let line = if output.is_json() {
            json_line(&name, index, entry)
        } else {
            Line::new(index, entry).text() + "\n"
        };
        output.stream(line.as_bytes())
    };
    let mut away = false;
    loop {
        let size = reader.checkpoint().size;
        if !each(&mut log, &mut reader, next, size, &mut show)? {
            return Ok(0);
        }
        next = size;
        reader = loop {
            std::thread::sleep(args.interval);
            match again(&mut log, reader.checkpoint()) {
                Ok(newer) => break newer,
                Err(error @ AuditError::Unserved { .. }) => {
                    if !std::mem::replace(&mut away, true) {
                        output.warn(&format!("{}: {error}; trying on", log.shown()));
                    }
                }
                Err(error) => return Err(wrong(&log, &error)),
            }
        };
        away = false;
    }
}

fn again(log: &mut Log, before: &Checkpoint) -> Result<Reader, AuditError> {
    log.open_after(Some(before))
}

/// Is given an entry with its index; says whether it wants more.
pub(super) type Take<'a> = dyn FnMut(u64, &[u8]) -> Result<bool, Failure> + 'a;

/// Gives each entry from `from` to before `to` to `take`, until that says false: then false comes out.
pub(super) fn each(
    log: &mut Log,
    reader: &mut Reader,
    from: u64,
    to: u64,
    take: &mut Take<'_>,
) -> Result<bool, Failure> {
    let width = u64::from(TILE_WIDTH);
    let mut number = from / width;
    while number * width < to.min(reader.checkpoint().size) {
        let entries = log.bundle(reader, number).map_err(|error| wrong(log, &error))?;
        for (index, entry) in (number * width..).zip(&entries) {
            if (from..to).contains(&index) && !take(index, entry)? {
                return Ok(false);
            }
        }
        number += 1;
    }
    Ok(true)
}

#[derive(Serialize)]
struct Records {
    records: Vec<Line>,
}

impl Present for Records {
    fn present(&self, page: &mut Page) {
        table(page, &self.records);
    }
}
