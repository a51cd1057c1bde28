//! `hallmark log prove` and `hallmark log check`: one record, and the proof that the log has it.

use std::path::{Path, PathBuf};

use clap::Args;
use hallmark_core::log::{Checkpoint, LogVerifier, Trust, check_proof};
use hallmark_core::x509::{Serial, UnverifiedSvid, fingerprint};
use hallmark_proto::admin::{ProveRecordRequest, StatusRequest};
use serde::Serialize;

use super::source::WitnessArgs;
use crate::admin::{connect, failed};
use crate::agent::verify::read_chain;
use crate::failure::Failure;
use crate::files::{Content, PUBLIC, write_files};
use crate::output::{Output, Page, Present, Tone, toned, word};

/// Files of a kept proof.
const RECORD: &str = "record.json";
const PROOF: &str = "record.tlog-proof";

/// Shows the record of a certificate and proves that the log has it. What --dir writes can be checked by anybody,
/// at any time, with `hallmark log check`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hallmark log prove ./id/chain.pem --dir ./evidence
  hallmark log prove --serial 4f2a…
  hallmark log prove --sha256 91bc…")]
pub(crate) struct ProveArgs {
    /// PEM file with the certificate; - for standard input
    #[arg(required_unless_present_any = ["serial", "sha256"], conflicts_with_all = ["serial", "sha256"])]
    certificate: Option<PathBuf>,
    /// The certificate's serial number instead, 32 hex digits
    #[arg(long, value_name = "HEX")]
    serial: Option<Serial>,
    /// Or SHA-256 of the certificate's DER, 64 hex digits
    #[arg(long, value_name = "HEX", conflicts_with = "serial", value_parser = digest)]
    sha256: Option<Digest>,
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
  hallmark log check ./evidence --key \"$KEY\" --certificate ./id/chain.pem
  hallmark log check ./evidence --key \"$KEY\" --witness \"$W1\" --witness \"$W2\"")]
pub(crate) struct CheckArgs {
    /// Directory as `hallmark log prove --dir` writes it
    directory: PathBuf,
    /// The log's verifier key
    #[arg(long, value_name = "KEY")]
    key: LogVerifier,
    #[command(flatten)]
    witnesses: WitnessArgs,
    /// PEM file: the record must be this certificate's
    #[arg(long, value_name = "FILE")]
    certificate: Option<PathBuf>,
}

/// A SHA-256 digest.
#[derive(Debug, Clone, Copy)]
struct Digest([u8; 32]);

fn digest(text: &str) -> Result<Digest, String> {
    let mut bytes = [0; 32];
    let hex = text.replace(':', "");
    hex::decode_to_slice(hex, &mut bytes).map_err(|e| format!("no SHA-256 in hex: {e}"))?;
    Ok(Digest(bytes))
}

pub(super) async fn prove(admin: &Path, args: ProveArgs, output: &Output) -> Result<u8, Failure> {
    let by_serial = |serial: Serial| ProveRecordRequest {
        serial: serial.as_bytes().to_vec().into(),
        ..ProveRecordRequest::default()
    };
    let request = match (&args.certificate, args.serial, args.sha256) {
        (_, Some(serial), _) => by_serial(serial),
        (_, None, Some(Digest(sha256))) => {
            ProveRecordRequest { certificate_sha256: sha256.to_vec().into(), ..ProveRecordRequest::default() }
        }
        (Some(file), None, None) => by_serial(certificate(file)?.1),
        (None, None, None) => {
            return Err(Failure::usage("neither a certificate nor --serial or --sha256 is given"));
        }
    };
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

pub(super) fn check(args: &CheckArgs, output: &Output) -> Result<u8, Failure> {
    let (record, proof) = (read(&args.directory.join(RECORD))?, read(&args.directory.join(PROOF))?);
    let trust = Trust { log: args.key.clone(), quorum: args.witnesses.quorum()? };
    let (index, checkpoint) =
        check_proof(&proof, &record, &trust).map_err(|e| Failure::refused(e.to_string()))?;
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

pub(super) fn read(file: &Path) -> Result<Vec<u8>, Failure> {
    std::fs::read(file).map_err(|error| Failure::usage(format!("cannot read {}: {error}", file.display())))
}
