//! `hallmark log show`

use std::path::Path;
use std::str::FromStr;

use clap::Args;
use hallmark_core::log::{Record, TILE_WIDTH};
use hallmark_core::x509::Serial;
use hallmark_proto::admin::ProveRecordRequest;
use serde::Serialize;

use super::blocking;
use super::line::Line;
use super::progress::Progress;
use super::source::{Log, LogArgs};
use super::wrong;
use crate::admin::{connect, failed};
use crate::failure::Failure;
use crate::output::{Output, Page, Present, Tone, toned, word};

/// Shows one record whole, verified against the log's signed checkpoint.
#[derive(Debug, Args)]
#[command(after_help = "\
The issuer finds a serial number at once. In a directory or on a web server the whole log is read
for it, from its end.

Examples:
  hallmark log show 1041
  hallmark log show 4f2a0c… ./log --key \"$KEY\"")]
pub(crate) struct ShowArgs {
    /// The record's index, or the serial number of its certificate, 32 hex digits
    #[arg(value_name = "INDEX|SERIAL")]
    which: Which,
    #[command(flatten)]
    log: LogArgs,
}

#[derive(Debug, Clone, Copy)]
enum Which {
    Index(u64),
    Serial(Serial),
}

impl FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.len() == 32 {
            return text
                .parse()
                .map(Self::Serial)
                .map_err(|_| "a serial number has 32 hex digits".to_owned());
        }
        text.parse().map(Self::Index).map_err(|_| "neither an index nor 32 hex digits".to_owned())
    }
}

pub(super) async fn run(admin: &Path, args: ShowArgs, output: Output) -> Result<u8, Failure> {
    let mut which = args.which;
    if let (Which::Serial(serial), true) = (which, args.log.is_issuers()) {
        let request =
            ProveRecordRequest { serial: serial.as_bytes().to_vec().into(), ..ProveRecordRequest::default() };
        let proven = connect(admin).await?.prove_record(request).await.map_err(failed)?;
        which = Which::Index(proven.into_inner().index);
    }
    let log = args.log.open(admin).await?;
    blocking(move || show(log, which, args.which, output)).await
}

fn show(mut log: Log, which: Which, asked: Which, output: Output) -> Result<u8, Failure> {
    let mut reader = log.open().map_err(|error| wrong(&log, &error))?;
    let (size, width) = (reader.checkpoint().size, u64::from(TILE_WIDTH));
    let progress = Progress::new(output, "records looked through");
    progress.until(size);
    let numbers = match which {
        Which::Index(index) if index >= size => {
            return Err(not_found(format!(
                "the log has {size} records; the last has index {}",
                size.saturating_sub(1)
            )));
        }
        Which::Index(index) => index / width..index / width + 1,
        Which::Serial(_) => 0..reader.bundles(),
    };
    for number in numbers.rev() {
        let entries = log.bundle(&mut reader, number).map_err(|error| wrong(&log, &error))?;
        for (place, entry) in entries.iter().enumerate().rev() {
            let index = number * width + place as u64;
            if which.is(index, entry) && asked.is(index, entry) {
                progress.done();
                output.show(&Shown {
                    log: log.key().name().to_string(),
                    size,
                    line: Line::new(index, entry),
                })?;
                return Ok(0);
            }
        }
        progress.at(size - number * width);
    }
    progress.done();
    Err(not_found(format!("none of the log's {size} records is of this certificate")))
}

fn not_found(message: String) -> Failure {
    Failure { code: "not-found", ..Failure::refused(message) }
}

impl Which {
    fn is(self, index: u64, entry: &[u8]) -> bool {
        match self {
            Self::Index(wanted) => wanted == index,
            Self::Serial(serial) => {
                Record::parse(entry).is_ok_and(|record| record.serial == Some(serial.to_string()))
            }
        }
    }
}

#[derive(Serialize)]
struct Shown {
    log: String,
    size: u64,
    #[serde(flatten)]
    line: Line,
}

impl Present for Shown {
    fn present(&self, page: &mut Page) {
        page.facts(&[
            ("log", word(&self.log)),
            ("record", toned(Tone::Good, format!("{} of {}, verified", self.line.index, self.size))),
        ]);
        page.gap();
        page.line(serde_json::to_string_pretty(&self.line.record).unwrap_or_default());
    }
}
