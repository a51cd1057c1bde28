//! `hallmark log`

use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use hallmark_core::log::{AuditError, Checkpoint, Facts, LogVerifier, audit, check_proof, open_checkpoint};
use hallmark_core::x509::{Serial, UnverifiedSvid, fingerprint};
use hallmark_proto::admin::{ProveRecordRequest, StatusRequest};
use serde::Serialize;

use crate::admin::{connect, failed};
use crate::agent::verify::read_chain;
use crate::failure::{Failure, REFUSED};
use crate::files::{Content, PUBLIC, write_files};
use crate::output::{Output, Page, Present, Tone, toned, word};

/// Files of a kept proof.
const RECORD: &str = "record.json";
const PROOF: &str = "record.tlog-proof";

#[derive(Debug, Subcommand)]
pub(crate) enum LogCommand {
    /// What the log's checkpoints are verified with: give it to auditors (operators)
    Key,
    /// Prove that the log has the record of a certificate (operators)
    Prove(ProveArgs),
    /// Check a proof that was kept: needs nobody (anyone)
    Check(CheckArgs),
    /// Verify a whole log, from its files: needs nobody (anyone)
    Verify(LogVerifyArgs),
}

/// Shows the record of a certificate and proves that the log has it. What --dir writes can be checked by anybody,
/// at any time, with `hallmark log check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hallmark log prove ./id/chain.pem --dir ./evidence
  hallmark log prove --serial 4f2a…")]
pub(crate) struct ProveArgs {
    /// PEM file with the certificate; - for standard input
    #[arg(required_unless_present = "serial", conflicts_with = "serial")]
    certificate: Option<PathBuf>,
    /// The certificate's serial number instead, 32 hex digits
    #[arg(long, value_name = "HEX")]
    serial: Option<Serial>,
    /// Write the record and its proof to this directory
    #[arg(long, value_name = "DIRECTORY")]
    dir: Option<PathBuf>,
}

/// Checks that a log had a record when it signed the proof's checkpoint, and with a certificate that the record is
/// that certificate's.
#[derive(Debug, Args)]
#[command(after_help = "\
The key is what `hallmark log key` says, given to you by somebody you trust.

Exit code 0 when the proof holds, 1 when it does not.

Example:
  hallmark log check ./evidence --key \"$KEY\" --certificate ./id/chain.pem")]
pub(crate) struct CheckArgs {
    /// Directory as `hallmark log prove --dir` writes it
    directory: PathBuf,
    /// The log's verifier key
    #[arg(long, value_name = "KEY")]
    key: LogVerifier,
    /// PEM file: the record must be this certificate's
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
}

/// Verifies a log as the issuer writes it to its data directory (`log`), or as it was copied from there: every
/// entry, every tile, the signature, that it goes on from an earlier checkpoint, and that no record contradicts
/// another.
#[derive(Debug, Args)]
#[command(after_help = "\
Keep the checkpoint file of today: verifying against it tomorrow shows that nothing of today was changed or lost.

Exit code 0 when the log holds, 1 when something is wrong with it, which is named.

Example:
  hallmark log verify /var/lib/hallmark-issuer/log --key \"$KEY\" --since ./checkpoint-of-last-week")]
pub(crate) struct LogVerifyArgs {
    /// Directory with `checkpoint` and `tile`
    directory: PathBuf,
    /// The log's verifier key, as `hallmark log key` says it
    #[arg(long, value_name = "KEY")]
    key: LogVerifier,
    /// A checkpoint that was kept
    #[arg(long, value_name = "FILE")]
    since: Option<PathBuf>,
}

pub(crate) async fn run(admin: &Path, command: LogCommand, output: &Output) -> Result<u8, Failure> {
    match command {
        LogCommand::Key => key(admin, output).await,
        LogCommand::Prove(args) => prove(admin, args, output).await,
        LogCommand::Check(args) => check(&args, output),
        LogCommand::Verify(args) => verify(&args, output),
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

async fn prove(admin: &Path, args: ProveArgs, output: &Output) -> Result<u8, Failure> {
    let serial = match (&args.certificate, args.serial) {
        (_, Some(serial)) => serial,
        (Some(file), None) => certificate(file)?.1,
        (None, None) => return Err(Failure::usage("neither a certificate nor --serial is given")),
    };
    let request = ProveRecordRequest { serial: serial.as_bytes().to_vec().into(), ..Default::default() };
    let mut issuer = connect(admin).await?;
    let key = issuer.status(StatusRequest {}).await.map_err(failed)?.into_inner().log_verifier;
    let proven = issuer.prove_record(request).await.map_err(failed)?.into_inner();
    // The issuer's word is not taken for it.
    let verifier: LogVerifier =
        key.parse().map_err(|e| Failure::refused(format!("the issuer's log key: {e}")))?;
    let (index, checkpoint) = check_proof(&proven.proof, proven.body.as_bytes(), &verifier)
        .map_err(|e| Failure::refused(format!("the issuer's proof does not hold: {e}")))?;
    let mut written = Vec::new();
    if let Some(dir) = &args.dir {
        let contents = [
            Content::new(RECORD, PUBLIC, proven.body.clone().into_bytes()),
            Content::new(PROOF, PUBLIC, proven.proof.to_vec()),
        ];
        written = write_files(dir, &contents)?;
    }
    output.show(&ProofView::new(index, &checkpoint, &verifier, proven.body.as_bytes(), written))?;
    Ok(0)
}

fn check(args: &CheckArgs, output: &Output) -> Result<u8, Failure> {
    let (record, proof) = (read(&args.directory.join(RECORD))?, read(&args.directory.join(PROOF))?);
    let (index, checkpoint) =
        check_proof(&proof, &record, &args.key).map_err(|e| Failure::refused(e.to_string()))?;
    if let Some(file) = &args.certificate {
        let (sha256, serial) = certificate(file)?;
        let said: Named = serde_json::from_slice(&record)
            .map_err(|e| Failure::refused(format!("the entry is not a record: {e}")))?;
        if !matches!(said.outcome.as_str(), "issued" | "attested") {
            return Err(Failure::refused(format!("the log has this record, but it says {:?}", said.outcome)));
        }
        if said.certificate_sha256.as_deref() != Some(&sha256) || said.serial != Some(serial.to_string()) {
            return Err(Failure::refused(format!(
                "the log has this record, but it is not that of {}: that one has serial {serial} and SHA-256 {sha256}",
                file.display()
            )));
        }
    }
    output.show(&ProofView::new(index, &checkpoint, &args.key, &record, Vec::new()))?;
    Ok(0)
}

#[derive(serde::Deserialize)]
struct Named {
    outcome: String,
    serial: Option<String>,
    certificate_sha256: Option<String>,
}

/// SHA-256 in hex, and serial.
fn certificate(file: &Path) -> Result<(String, Serial), Failure> {
    let chain = read_chain(file)?;
    let leaf = chain.first().ok_or_else(|| Failure::usage(format!("{} is empty", file.display())))?;
    let svid = UnverifiedSvid::parse(leaf).map_err(|e| {
        Failure::usage(format!("{} is no certificate of an agent or a host: {e}", file.display()))
    })?;
    Ok((hex::encode(fingerprint(leaf)), svid.serial))
}

#[derive(Serialize)]
struct ProofView {
    log: String,
    index: u64,
    size: u64,
    root: String,
    record: serde_json::Value,
    files: Vec<String>,
}

impl ProofView {
    fn new(index: u64, at: &Checkpoint, verifier: &LogVerifier, record: &[u8], files: Vec<String>) -> Self {
        let text = || serde_json::Value::String(String::from_utf8_lossy(record).into_owned());
        Self {
            log: verifier.name().to_string(),
            index,
            size: at.size,
            root: at.root.to_string(),
            record: serde_json::from_slice(record).unwrap_or_else(|_| text()),
            files,
        }
    }
}

impl Present for ProofView {
    fn present(&self, page: &mut Page) {
        page.facts(&[
            ("log", word(&self.log)),
            ("entry", toned(Tone::Good, format!("{} of {}, proven", self.index, self.size))),
            ("root hash", word(&self.root)),
        ]);
        page.gap();
        page.line(serde_json::to_string_pretty(&self.record).unwrap_or_default());
        if !self.files.is_empty() {
            page.gap();
            page.line(format!("Written: {}", self.files.join(", ")));
        }
    }
}

fn verify(args: &LogVerifyArgs, output: &Output) -> Result<u8, Failure> {
    let since = args.since.as_deref().map(|file| kept(file, &args.key)).transpose()?;
    let mut served = |path: &str| std::fs::read(args.directory.join(path)).map_err(|e| e.to_string());
    let mut facts = Facts::default();
    let mut entry = |index: u64, entry: &[u8]| {
        if index > 0 && index.is_multiple_of(100_000) {
            output.note(&format!("{index} entries verified"));
        }
        facts.take(entry).map_err(|e| e.to_string())
    };
    let audited = audit(&mut served, &args.key, since.as_ref(), &mut entry);
    let checkpoint = audited.map_err(|error| {
        let failure = Failure::refused(format!("{}: {error}", args.directory.display()));
        match error {
            AuditError::Unserved { .. } => failure.remedy("copy the whole directory again; if it is the issuer's own, its log has lost files, which it writes anew at its next start once `checkpoint` is moved away"),
            _ => failure.remedy("keep this directory as it is: it is evidence. Then compare with another copy, and ask who can write where it came from"),
        }
    })?;
    let counts = facts.counts().map(|(kind, outcome, count)| Count {
        kind: kind.to_owned(),
        outcome: outcome.to_owned(),
        count,
    });
    output.show(&Verified {
        log: args.key.name().to_string(),
        size: checkpoint.size,
        root: checkpoint.root.to_string(),
        since: since.map(|since| since.size),
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

fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(file).map_err(|error| Failure::usage(format!("cannot read {}: {error}", file.display())))
}

#[derive(Serialize)]
struct Verified {
    log: String,
    size: u64,
    root: String,
    since: Option<u64>,
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
        page.gap();
        let rows = self.counts.iter().map(|c| vec![word(&c.kind), word(&c.outcome), word(c.count)]);
        page.table(&["kind", "outcome", "records"], rows.collect(), "No record.");
    }
}
