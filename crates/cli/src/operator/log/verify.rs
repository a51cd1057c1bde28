//! `hallmark log verify`

use std::path::{Path, PathBuf};

use clap::Args;
use hallmark_core::log::{Checkpoint, Facts, LogVerifier, open_checkpoint};
use serde::Serialize;

use super::progress::Progress;
use super::prove::read;
use super::source::{Log, LogArgs};
use super::wrong;
use crate::failure::{Failure, REFUSED};
use crate::output::{Output, Page, Present, Tone, toned, word};

/// Verifies a log as the issuer writes it to its data directory (`log`), or as a web server serves a copy: every
/// entry, every tile, the signature, that it goes on from an earlier checkpoint, and that no record contradicts
/// another.
#[derive(Debug, Args)]
#[command(after_help = "\
Keep the checkpoint file of today: verifying against it tomorrow shows that nothing of today was changed or lost.

Exit code 0 when the log holds, 1 when something is wrong with it, which is named.

Examples:
  hallmark log verify https://log.example.org/issuer-1 --key \"$KEY\"
  hallmark log verify /var/lib/hallmark-issuer/log --key \"$KEY\" --since ./checkpoint-of-last-week
  hallmark log verify https://log.example.org/issuer-1 --key \"$KEY\" \\
      --witness \"$W1\" --witness \"$W2\" --witness \"$W3\" --quorum 2")]
pub(crate) struct LogVerifyArgs {
    #[command(flatten)]
    pub(super) log: LogArgs,
    /// A checkpoint that was kept
    #[arg(long, value_name = "FILE")]
    since: Option<PathBuf>,
}

pub(super) fn run(mut log: Log, args: &LogVerifyArgs, output: Output) -> Result<u8, Failure> {
    let since = args.since.as_deref().map(|file| kept(file, log.key())).transpose()?;
    let mut facts = Facts::default();
    let progress = Progress::new(output, "entries verified");
    let mut entry = |index: u64, entry: &[u8]| {
        progress.at(index + 1);
        facts.take(entry).map_err(|e| e.to_string())
    };
    let audited = log.audit(since.as_ref(), |size| progress.until(size), &mut entry);
    let checkpoint = audited.map_err(|error| wrong(&log, &error))?;
    progress.done();
    let counts = facts.counts().map(|(kind, outcome, count)| Count {
        kind: kind.to_owned(),
        outcome: outcome.to_owned(),
        count,
    });
    output.show(&Verified {
        log: log.key().name().to_string(),
        size: checkpoint.size,
        root: checkpoint.root.to_string(),
        since: since.map(|since| since.size),
        quorum: (log.quorum().needed() > 0).then(|| log.quorum().needed()),
        counts: counts.collect(),
    })?;
    Ok(0)
}

fn kept(file: &Path, key: &LogVerifier) -> Result<Checkpoint, Failure> {
    open_checkpoint(&read(file)?, key).map_err(|error| {
        let message = format!("{}: {error}", file.display());
        Failure { exit: REFUSED, ..Failure::usage(message) }
    })
}

#[derive(Serialize)]
struct Verified {
    log: String,
    size: u64,
    root: String,
    since: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    quorum: Option<usize>,
    counts: Vec<Count>,
}

#[derive(Serialize)]
struct Count {
    kind: String,
    outcome: String,
    count: u64,
}

impl Present for Verified {
    fn present(&self, page: &mut Page) {
        let since = match self.since {
            Some(size) => format!("goes on from the kept checkpoint of {size} entries"),
            None => "no earlier checkpoint was given: what the log said before is not known".to_owned(),
        };
        page.facts(&[
            ("log", word(&self.log)),
            ("entries", toned(Tone::Good, format!("{}, every one verified", self.size))),
            ("root hash", word(&self.root)),
            ("history", word(since)),
        ]);
        if let Some(needed) = self.quorum {
            page.facts(&[("witnesses", toned(Tone::Good, format!("{needed} or more have cosigned it")))]);
        }
        page.gap();
        let rows = self.counts.iter().map(|c| vec![word(&c.kind), word(&c.outcome), word(c.count)]);
        page.table(&["kind", "outcome", "records"], rows.collect(), "No record.");
    }
}
