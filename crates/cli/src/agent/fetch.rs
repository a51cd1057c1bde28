//! `hallmark fetch`

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use hallmark_client::{HallmarkClient, Identity, IdentitySource};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};

use crate::agent::{contents, names};
use crate::failure::Failure;
use crate::files::LinkedDir;
use crate::moment::{Moment, now};
use crate::output::{Output, Page, Present, Tone, toned, word};

/// Writes the certificate chain and the roots; the private key only when it is asked for.
///
/// The identity belongs to this very process: when it ends, the host daemon retires the instance, and from
/// the enterprise tier up the issuer revokes its certificate. To use the files, let it run with --watch, or
/// use `hallmark exec`.
#[derive(Debug, Args)]
#[command(after_help = "\
Files (each set replaced at once):
  chain.pem          leaf, then issuing CA
  bundle.pem         the roots of every tier
  tier-T.pem         the roots of tier T alone
  at-least-T.pem     the roots of T and above: what a relying party that demands T trusts
  key.pem            only with --with-key, only for software custody

A key held in memory alone is gone when the machine is off. Written to a disk it is not: --with-key wants a
directory on tmpfs or ramfs that nobody else can enter.

Examples:
  hallmark fetch ./id                                    chain and roots, once
  hallmark fetch /run/user/1000/id --with-key --watch    kept fresh until it is stopped")]
pub(crate) struct FetchArgs {
    /// The directory; made with mode 0700 where it does not exist
    dir: PathBuf,
    /// The registration wanted, where more than one matches this process
    #[arg(long, value_name = "AGENT", default_value = "")]
    agent: String,
    /// Keep running, and replace the files at each renewal
    #[arg(long)]
    watch: bool,
    /// Write the private key too
    #[arg(long)]
    with_key: bool,
    /// Write the private key even to a disk
    #[arg(long, requires = "with_key")]
    key_on_disk: bool,
    /// How long to wait for the first identity with --watch
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

pub(crate) async fn run(socket: &Path, args: FetchArgs, output: &Output) -> Result<u8, Failure> {
    let client = HallmarkClient::connect_to(socket).await?;
    // Whoever is refused leaves no directory behind.
    if !args.watch {
        let identity = client.identity(&args.agent).await?;
        let mut dir = open(&identity, &args, output)?;
        write(&identity, &mut dir, &args, output)?;
        return Ok(0);
    }
    let mut source = client.watch_as(&args.agent)?;
    let first = source.wait_ready(args.timeout).await?;
    let mut dir = open(&first, &args, output)?;
    write(&first, &mut dir, &args, output)?;
    keep_fresh(source, &mut dir, &args, output).await
}

/// The directory, fit for the private key where one will be written.
fn open(identity: &Identity, args: &FetchArgs, output: &Output) -> Result<LinkedDir, Failure> {
    let dir = LinkedDir::open(&args.dir)?;
    if args.with_key && !identity.is_hardware_held() {
        check_for_key(&dir, args.key_on_disk)?;
        output.warn(&format!(
            "the private key leaves memory: whoever reads {} is this agent",
            args.dir.display()
        ));
    }
    Ok(dir)
}

async fn keep_fresh(
    mut source: IdentitySource,
    dir: &mut LinkedDir,
    args: &FetchArgs,
    output: &Output,
) -> Result<u8, Failure> {
    let no_signals = |error| Failure::refused(format!("cannot wait for signals: {error}"));
    let mut terminate = signal(SignalKind::terminate()).map_err(no_signals)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(no_signals)?;
    let mut lost = false;
    loop {
        tokio::select! {
            changed = source.changed() => match changed? {
                // The daemon is away; what was written is still good.
                Some(_) if source.last_error().is_some() => {}
                Some(identity) => {
                    lost = false;
                    write(&identity, dir, args, output)?;
                }
                None if !lost && source.is_refused() => {
                    lost = true;
                    let why = source.last_error().map(|e| e.to_string()).unwrap_or_default();
                    output.warn(&format!("the identity was withdrawn; the files stay as they are: {why}"));
                }
                None => {}
            },
            _ = terminate.recv() => return Ok(0),
            _ = interrupt.recv() => return Ok(0),
        }
    }
}

/// A key goes where only its owner can read it and where no disk keeps it.
pub(super) fn check_for_key(dir: &LinkedDir, on_disk: bool) -> Result<(), Failure> {
    let path = dir.path().display();
    let unknown = |error: std::io::Error| Failure::refused(format!("cannot examine {path}: {error}"));
    if !dir.is_private().map_err(unknown)? {
        return Err(Failure::refused(format!("{path} is open to others: no private key goes there")).remedy(
            format!("chmod 0700 {path}, as its owner, or name a directory that does not exist yet"),
        ));
    }
    if !on_disk && !dir.is_memory().map_err(unknown)? {
        return Err(Failure::refused(format!("{path} is on a disk: no private key on disk")).remedy(
            "name a directory on tmpfs, as in /run/user/$UID or /dev/shm; or use `hallmark exec`; --key-on-disk overrules this",
        ));
    }
    Ok(())
}

fn write(identity: &Identity, dir: &mut LinkedDir, args: &FetchArgs, output: &Output) -> Result<(), Failure> {
    let contents = contents(identity, args.with_key);
    dir.publish(&contents)?;
    if args.with_key && identity.is_hardware_held() {
        output.warn(&format!(
            "no key.pem: the key is held in hardware ({}) and cannot leave it",
            identity.custody
        ));
    }
    output.show(&Fetched {
        dir: args.dir.display().to_string(),
        files: names(&contents),
        spiffe_id: identity.spiffe_id.to_string(),
        instance_id: identity.instance_id.to_string(),
        tier: identity.tier.to_string(),
        custody: identity.custody.to_string(),
        not_after: Moment(identity.not_after),
        key_written: args.with_key && !identity.is_hardware_held(),
        watching: args.watch,
    })
}

#[derive(Serialize)]
struct Fetched {
    dir: String,
    files: Vec<String>,
    spiffe_id: String,
    instance_id: String,
    tier: String,
    custody: String,
    not_after: Moment,
    key_written: bool,
    /// Whether this command goes on, and with it the instance.
    watching: bool,
}

impl Present for Fetched {
    fn present(&self, page: &mut Page) {
        page.facts(&[
            ("SPIFFE ID", word(&self.spiffe_id)),
            ("tier", word(&self.tier)),
            ("custody", word(&self.custody)),
            ("ends", word(self.not_after.text(now()))),
            ("written to", word(&self.dir)),
            ("files", word(self.files.join(" "))),
            (
                "private key",
                if self.key_written { toned(Tone::Warning, "written") } else { word("not written") },
            ),
        ]);
    }
}
