//! `hallmark log stream`

mod backoff;
mod syslog;
mod target;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};
use hallmark_core::log::siem::{Event, Form, OCSF_SCHEMA};
use hallmark_core::log::{AuditError, Checkpoint, CheckpointError, Reader, TILE_WIDTH};

use super::kept::{Kept, Position};
use super::source::{Log, LogArgs};
use super::wrong;
use crate::failure::Failure;
use crate::output::Output;

pub(super) use backoff::Backoff;
use target::{Receiver, Target, TargetArgs};

/// Follows a log and sends each of its records to a SIEM, each at least once.
///
/// A record counts as delivered once the receiver has shown that it has it; then the state file says so, and holds the
/// log's signed checkpoint. While the receiver or the log is away, nothing is lost and it is tried again. A log that
/// does not go on from what it was ends the stream with exit code 1.
#[derive(Debug, Args)]
#[command(after_help = EXPLAINED)]
pub(crate) struct StreamArgs {
    #[command(flatten)]
    pub(super) log: LogArgs,
    #[command(flatten)]
    target: TargetArgs,
    /// The form of the events
    #[arg(long, value_enum, value_name = "FORMAT", default_value_t = Format::Ocsf)]
    format: Format,
    /// Keeps how far the stream is
    #[arg(long, value_name = "FILE")]
    state: PathBuf,
    /// Index of the first record, where there is no state yet
    #[arg(long, value_name = "INDEX", default_value_t = 0)]
    from: u64,
    /// Most records in one delivery
    #[arg(long, value_name = "COUNT", default_value_t = 256, value_parser = clap::value_parser!(u16).range(1..=256))]
    batch: u16,
    /// How often to look for new records
    #[arg(long, value_name = "DURATION", default_value = "1s", value_parser = humantime::parse_duration)]
    interval: Duration,
    /// Longest pause between two attempts
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = humantime::parse_duration)]
    max_pause: Duration,
    /// Deliver what there is and end; the first failure ends it, too, with exit code 3
    #[arg(long)]
    once: bool,
}

const EXPLAINED: &str = "\
Receivers, and when a record counts as delivered:
  https://… http://…      POST of lines; the server answered 2xx
  syslog+tls://HOST:PORT  RFC 5425; the receiver read all of a connection and closed it
  syslog+tcp://HOST:PORT  RFC 6587, octet counting; the same
  syslog+unix:///dev/log  the socket took it
  syslog+udp://HOST:PORT  it was sent: the network may lose it

Formats: ocsf (schema 1.5.0: Authentication and Entity Management), cef (version 0), json (the
record as it is in the log, with its index). Each event names the log and the record's index: one
that comes twice is known by it.

Examples:
  hallmark log stream --to syslog+tls://siem.example.org:6514 --state /var/lib/hallmark-stream/state
  hallmark log stream https://log.example.org/issuer-1 --key \"$KEY\" --format json \\
    --to https://siem.example.org/ingest --authorization-file /etc/hallmark/siem-token --state ./state";

/// A form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Format {
    /// Open Cybersecurity Schema Framework
    Ocsf,
    /// Common Event Format
    Cef,
    /// The record and its index
    Json,
}

impl From<Format> for Form {
    fn from(format: Format) -> Self {
        match format {
            Format::Ocsf => Self::Ocsf,
            Format::Cef => Self::Cef,
            Format::Json => Self::Json,
        }
    }
}

pub(super) fn run(log: Log, args: &StreamArgs, output: Output) -> Result<u8, Failure> {
    debug_assert!(EXPLAINED.contains(OCSF_SCHEMA));
    let receiver = args.target.open()?;
    let kept = Kept::open(&args.state)?;
    let before = kept.read(log.key())?;
    let (next, seen) = match before {
        Some((position, checkpoint)) => (position.next, Some(checkpoint)),
        None => (args.from, None),
    };
    let shown = args.target.to.clone();
    Stream { log, receiver, kept, next, seen, shown, args, output }.run()
}

struct Stream<'a> {
    log: Log,
    receiver: Box<dyn Receiver>,
    kept: Kept,
    /// Index of the first record that is not delivered.
    next: u64,
    /// The checkpoint that the log was last seen at.
    seen: Option<Checkpoint>,
    shown: Target,
    args: &'a StreamArgs,
    output: Output,
}

/// What keeps the stream from going on.
enum Stopped {
    /// For now: it is tried again.
    Away(String),
    /// For good.
    Over(Failure),
}

impl Stream<'_> {
    fn run(mut self) -> Result<u8, Failure> {
        let mut backoff = Backoff::new(self.args.max_pause);
        let mut told = None;
        loop {
            match self.catch_up() {
                Ok(()) if self.args.once => return Ok(0),
                Ok(()) => {
                    if told.take().is_some() {
                        self.output.note(&format!("on again: delivered up to record {}", self.next));
                    }
                    backoff.reset();
                    std::thread::sleep(self.args.interval);
                }
                Err(Stopped::Over(failure)) => return Err(failure),
                Err(Stopped::Away(why)) if self.args.once => {
                    return Err(Failure::unreachable(why).remedy("run it again: it goes on where it ended"));
                }
                Err(Stopped::Away(why)) => {
                    if told.as_ref() != Some(&why) {
                        self.output.warn(&format!("{why}; trying on"));
                    }
                    told = Some(why);
                    std::thread::sleep(backoff.next());
                }
            }
        }
    }

    fn catch_up(&mut self) -> Result<(), Stopped> {
        let mut reader = self.log.open_after(self.seen.as_ref()).map_err(|error| self.stopped(&error))?;
        let size = reader.checkpoint().size;
        if self.next > size {
            return Err(Stopped::Over(Failure::usage(format!(
                "the log has {size} records: none has index {} yet",
                self.next
            ))));
        }
        if self.seen.as_ref() != Some(reader.checkpoint()) {
            // What the log signed is kept before anything is sent that it holds.
            self.keep(&reader)?;
        }
        let width = u64::from(TILE_WIDTH);
        while self.next < size {
            let number = self.next / width;
            let entries = self.log.bundle(&mut reader, number).map_err(|error| self.stopped(&error))?;
            let skipped = usize::try_from(self.next % width).unwrap_or_default();
            for batch in entries[skipped.min(entries.len())..].chunks(usize::from(self.args.batch)) {
                self.deliver(&reader, batch)?;
            }
        }
        Ok(())
    }

    fn deliver(&mut self, reader: &Reader, batch: &[Vec<u8>]) -> Result<(), Stopped> {
        let name = self.log.key().name().clone();
        let events = (self.next..).zip(batch).map(|(index, entry)| Event::new(&name, index, entry));
        let events: Vec<Event<'_>> = events.collect();
        let delivered = self.receiver.deliver(&events, self.args.format.into());
        delivered.map_err(|why| Stopped::Away(format!("{}: {why}", self.shown)))?;
        self.next += events.len() as u64;
        self.keep(reader)
    }

    fn keep(&mut self, reader: &Reader) -> Result<(), Stopped> {
        let position = Position::new(self.log.key(), reader, self.next);
        self.kept.write(&position).map_err(Stopped::Over)?;
        self.seen = Some(*reader.checkpoint());
        Ok(())
    }

    fn stopped(&self, error: &AuditError) -> Stopped {
        match error {
            // A checkpoint whose cosignatures are on their way is as good as none.
            AuditError::Unserved { .. } | AuditError::Checkpoint(CheckpointError::Quorum { .. }) => {
                Stopped::Away(format!("{}: {error}", self.log.shown()))
            }
            error => {
                let failure = wrong(&self.log, error);
                let evidence =
                    format!("{} holds the checkpoint that it does not go on from", self.args.state.display());
                Stopped::Over(match error {
                    AuditError::Forked { .. } | AuditError::RolledBack { .. } => failure.remedy(evidence),
                    _ => failure,
                })
            }
        }
    }
}
