//! `hallmark log export`

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use clap::Args;
use hallmark_core::log::{LogName, Reader, TILE_WIDTH};
use serde::Serialize;

use super::kept::{Kept, Position, beside};
use super::line::json_line;
use super::progress::Progress;
use super::source::{Log, LogArgs};
use super::tail::each;
use super::wrong;
use crate::failure::Failure;
use crate::output::{Output, Page, Present, word};

/// Writes records as JSON lines, each verified against the log's signed checkpoint: `{"index":7,"record":{…}}`, the
/// record to the byte.
#[derive(Debug, Args)]
#[command(after_help = "\
With --file the export can be ended and begun again: it goes on where FILE.state says it is, and
only if the log goes on from what it was then. Without it, records go to standard output, and the
next index to standard error.

Examples:
  hallmark log export --file decisions.jsonl
  hallmark log export https://log.example.org/issuer-1 --key \"$KEY\" --from 1000 | jq .record")]
pub(crate) struct ExportArgs {
    #[command(flatten)]
    pub(super) log: LogArgs,
    /// Index of the first record
    #[arg(long, value_name = "INDEX", default_value_t = 0)]
    from: u64,
    /// How many; without it, to the end
    #[arg(long, value_name = "COUNT")]
    count: Option<u64>,
    /// Append to this file, and keep in FILE.state how far it is
    #[arg(long, value_name = "FILE")]
    file: Option<PathBuf>,
}

pub(super) fn run(mut log: Log, args: &ExportArgs, output: Output) -> Result<u8, Failure> {
    match &args.file {
        None => to_stdout(&mut log, args, output),
        Some(file) => to_file(&mut log, args, file, output),
    }
}

fn to_stdout(log: &mut Log, args: &ExportArgs, output: Output) -> Result<u8, Failure> {
    let mut reader = log.open().map_err(|error| wrong(log, &error))?;
    let (size, name) = (reader.checkpoint().size, log.key().name().clone());
    let to = end(args.from, args.count, size);
    let mut next = args.from.min(size);
    let mut take = |index: u64, entry: &[u8]| {
        let more = output.stream(json_line(&name, index, entry).as_bytes())?;
        next = index + u64::from(more);
        Ok(more)
    };
    each(log, &mut reader, args.from, to, &mut take)?;
    output.note(&format!("next: --from {next} (the log has {size})"));
    Ok(0)
}

/// Index after the last one.
fn end(from: u64, count: Option<u64>, size: u64) -> u64 {
    count.map_or(size, |count| from.saturating_add(count)).min(size)
}

fn to_file(log: &mut Log, args: &ExportArgs, path: &Path, output: Output) -> Result<u8, Failure> {
    let kept = Kept::open(&beside(path, ".state"))?;
    let before = kept.read(log.key())?;
    let mut reader = log
        .open_after(before.as_ref().map(|(_, checkpoint)| checkpoint))
        .map_err(|error| wrong(log, &error))?;
    let mut export = Export::open(path, before.map(|(position, _)| position), args.from)?;
    let (first, size) = (export.next, reader.checkpoint().size);
    if first > size {
        return Err(Failure::usage(format!("the log has {size} records: none has index {first} yet")));
    }
    export.keep(&kept, log, &reader)?;
    let to = end(first, args.count, size);
    let progress = Progress::new(output, "records exported");
    progress.until(to);
    let (width, name) = (u64::from(TILE_WIDTH), log.key().name().clone());
    while export.next < to {
        let until = ((export.next / width + 1) * width).min(to);
        export.part(log, &mut reader, &name, until)?;
        export.keep(&kept, log, &reader)?;
        progress.at(export.next);
    }
    progress.done();
    output.show(&Exported {
        file: path.display().to_string(),
        records: export.next.saturating_sub(first),
        next: export.next,
        size,
    })?;
    Ok(0)
}

struct Export {
    file: File,
    path: PathBuf,
    next: u64,
    bytes: u64,
}

impl Export {
    /// Goes on where the state says, and no further: what was written after it is written again.
    fn open(path: &Path, before: Option<Position>, from: u64) -> Result<Self, Failure> {
        let shown = path.display();
        let failed = |error: io::Error| Failure::usage(format!("cannot write {shown}: {error}"));
        let mut options = OpenOptions::new();
        options.write(true);
        let file = if before.is_some() { options.open(path) } else { options.create_new(true).open(path) };
        let (next, bytes) = before.map_or((from, 0), |position| (position.next, position.bytes.unwrap_or(0)));
        let mut file = file.map_err(|error| match error.kind() {
            io::ErrorKind::AlreadyExists => {
                Failure::usage(format!("{shown} is there, and {shown}.state does not say what it is"))
                    .remedy("name another file, or move this one away")
            }
            _ => failed(error),
        })?;
        let length = file.metadata().map_err(failed)?.len();
        if length < bytes {
            return Err(Failure::refused(format!(
                "{shown} has {length} bytes, and {shown}.state says {bytes}: records were cut off"
            ))
            .remedy("move both away and export anew"));
        }
        file.set_len(bytes).and_then(|()| file.seek(SeekFrom::End(0))).map_err(failed)?;
        Ok(Self { file, path: path.to_owned(), next, bytes })
    }

    fn keep(&self, kept: &Kept, log: &Log, reader: &Reader) -> Result<(), Failure> {
        kept.write(&Position::new(log.key(), reader, self.next).with_bytes(self.bytes))
    }

    /// Writes the records up to `until`: on disk before this returns.
    fn part(
        &mut self,
        log: &mut Log,
        reader: &mut Reader,
        name: &LogName,
        until: u64,
    ) -> Result<(), Failure> {
        let mut lines = Vec::new();
        let mut take = |index: u64, entry: &[u8]| {
            lines.extend_from_slice(json_line(name, index, entry).as_bytes());
            Ok(true)
        };
        each(log, reader, self.next, until, &mut take)?;
        self.file
            .write_all(&lines)
            .and_then(|()| self.file.sync_data())
            .map_err(|error| Failure::refused(format!("cannot write {}: {error}", self.path.display())))?;
        (self.next, self.bytes) = (until, self.bytes + lines.len() as u64);
        Ok(())
    }
}

#[derive(Serialize)]
struct Exported {
    file: String,
    records: u64,
    next: u64,
    size: u64,
}

impl Present for Exported {
    fn present(&self, page: &mut Page) {
        page.facts(&[
            ("file", word(&self.file)),
            ("records", word(format!("{} more", self.records))),
            ("next", word(format!("{} of {}", self.next, self.size))),
        ]);
    }
}
