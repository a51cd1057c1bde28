//! `hallmark log`

mod export;
mod find;
mod kept;
mod line;
mod monitor;
mod progress;
mod prove;
mod show;
mod source;
mod stream;
mod tail;
mod verify;
mod web;

use std::path::Path;

use clap::Subcommand;
use hallmark_core::log::{AuditError, CheckpointError};
use hallmark_proto::admin::StatusRequest;
use serde::Serialize;

use crate::admin::{connect, failed};
use crate::failure::{Failure, UNREACHABLE};
use crate::output::{Output, Page, Present};

use source::Log;

#[derive(Debug, Subcommand)]
pub(crate) enum LogCommand {
    /// What the log's checkpoints are verified with: give it to auditors (operators)
    Key,
    /// The newest records, and with --follow those to come (operators, auditors)
    Tail(tail::TailArgs),
    /// One record, by its index or by its certificate's serial number (operators, auditors)
    Show(show::ShowArgs),
    /// The records about an agent, a host, an owner, … (operators, auditors)
    Find(find::FindArgs),
    /// Write records as JSON lines, and go on later where it ended (operators, auditors)
    Export(export::ExportArgs),
    /// Send each record to a SIEM, at least once (operators, auditors)
    Stream(stream::StreamArgs),
    /// Watch logs, and raise an alert for what nobody expects (anyone)
    Monitor(monitor::MonitorArgs),
    /// Prove that the log has the record of a certificate (operators)
    Prove(prove::ProveArgs),
    /// Check a proof that was kept: needs nobody (anyone)
    Check(prove::CheckArgs),
    /// Verify a whole log, from its files or a web server: needs nobody (anyone)
    Verify(verify::LogVerifyArgs),
}

pub(crate) async fn run(admin: &Path, command: LogCommand, output: &Output) -> Result<u8, Failure> {
    let output = *output;
    match command {
        LogCommand::Key => key(admin, &output).await,
        LogCommand::Prove(args) => prove::prove(admin, args, &output).await,
        LogCommand::Check(args) => prove::check(&args, &output),
        LogCommand::Tail(args) => {
            let log = args.log.open(admin).await?;
            blocking(move || tail::run(log, &args, output)).await
        }
        LogCommand::Show(args) => show::run(admin, args, output).await,
        LogCommand::Find(args) => {
            let log = args.log.open(admin).await?;
            blocking(move || find::run(log, &args, output)).await
        }
        LogCommand::Export(args) => {
            let log = args.log.open(admin).await?;
            blocking(move || export::run(log, &args, output)).await
        }
        LogCommand::Stream(args) => {
            let log = args.log.open(admin).await?;
            blocking(move || stream::run(log, &args, output)).await
        }
        LogCommand::Monitor(args) => blocking(move || monitor::run(&args, output)).await,
        LogCommand::Verify(args) => {
            let log = args.log.open(admin).await?;
            blocking(move || verify::run(log, &args, output)).await
        }
    }
}

/// What reads a log, or writes to the network, waits for both: it has a thread of its own.
async fn blocking(work: impl FnOnce() -> Result<u8, Failure> + Send + 'static) -> Result<u8, Failure> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(Failure::refused(format!("our own fault: {error}"))),
    }
}

async fn key(admin: &Path, output: &Output) -> Result<u8, Failure> {
    let status = connect(admin).await?.status(StatusRequest {}).await.map_err(failed)?.into_inner();
    output.show(&KeyView { key: status.log_verifier, size: status.log_size })?;
    Ok(0)
}

#[derive(Serialize)]
struct KeyView {
    key: String,
    size: u64,
}

impl Present for KeyView {
    fn present(&self, page: &mut Page) {
        page.line(&self.key);
    }
}

/// What is wrong with a log, and what to do about it.
fn wrong(log: &Log, error: &AuditError) -> Failure {
    let failure = Failure::refused(format!("{}: {error}", log.shown()));
    match error {
        AuditError::Unserved { .. } if log.is_remote() => {
            Failure { exit: UNREACHABLE, code: "unreachable", ..failure }.remedy(
                "is it the log's address, where `checkpoint` and `tile` are? A copy on a web server may lag behind its own checkpoint: try again",
            )
        }
        AuditError::Unserved { .. } => failure.remedy("copy the whole directory again; if it is the issuer's own, its log has lost files, which it writes anew at its next start once `checkpoint` is moved away"),
        AuditError::Checkpoint(CheckpointError::Quorum { .. }) => failure.remedy(
            "the newest checkpoint may be waiting for its witnesses: try again in a moment. If it stays so, they refuse it or are away: ask the log's operators (`hallmark doctor`) and the witnesses' own",
        ),
        AuditError::Checkpoint(_) => failure.remedy("is --key what the log's operators gave you (`hallmark log key`), and is this their log?"),
        _ => failure.remedy("keep what you have of this log as it is: it is evidence. Then compare with another copy, and ask who can write where it came from"),
    }
}
