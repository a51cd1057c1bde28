//! `hallmark exec`

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{ExitStatus, Stdio};
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use hallmark_client::{ClientError, HallmarkClient, Identity, IdentitySource, SOCKET_ENV};
use rustix::process::{Pid, Signal, kill_process};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use crate::agent::{BUNDLE, CHAIN, KEY, contents};
use crate::failure::Failure;
use crate::files::{LinkedDir, is_memory};
use crate::output::Output;

/// Exit code where the program is found and cannot be run, and where it is not found: as shells have them.
const CANNOT_RUN: u8 = 126;
const NOT_FOUND: u8 = 127;

/// Runs a program with an identity: as files in memory that are replaced at each renewal, and removed when
/// the program ends.
///
/// The identity is that of this `hallmark` process, which the registration's selectors must match: its
/// user, group, unit or control group, which the program shares; not the program's own exe:path or
/// exe:sha256. A program that speaks the agent API has an identity of its own and needs only the socket
/// (--socket-only). A key held in hardware signs for the process it was made for, so with such custody the
/// program gets chain and roots, and must use the socket to sign.
#[derive(Debug, Args)]
#[command(after_help = "\
The program's environment:
  HALLMARK_AGENT_SOCKET  the host daemon's socket
  HALLMARK_CHAIN_FILE    leaf, then issuing CA (PEM)
  HALLMARK_BUNDLE_FILE   the roots of every tier (PEM); beside it, at-least-T.pem for each tier T
  HALLMARK_KEY_FILE      the private key (PKCS#8 PEM); software custody only
  HALLMARK_SPIFFE_ID     who it is
  HALLMARK_TIER          the tier

The files lie in a directory of tmpfs that only this user can enter. Signals go on to the program; its exit
code is this command's (128 + N when signal N ended it; 126 and 127 when it cannot be run or is not found).

Examples:
  hallmark exec -- python3 agent.py
  hallmark exec --renew-signal HUP -- nginx -g 'daemon off;'")]
pub(crate) struct ExecArgs {
    /// The registration wanted, where more than one matches this process
    #[arg(long, value_name = "AGENT", default_value = "")]
    agent: String,
    /// Give the program no private key
    #[arg(long)]
    no_key: bool,
    /// Give the program the socket alone, and take no identity for this process
    #[arg(long, conflicts_with_all = ["no_key", "renew_signal", "agent"])]
    socket_only: bool,
    /// Signal the program after each renewal: HUP, USR1 or USR2
    #[arg(long, value_name = "SIGNAL", value_parser = renew_signal)]
    renew_signal: Option<Signal>,
    /// How long to wait for the first identity
    #[arg(long, value_name = "TIME", default_value = "30s", value_parser = humantime::parse_duration)]
    timeout: Duration,
    /// How long the program may take to end once its identity was withdrawn
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = humantime::parse_duration)]
    grace: Duration,
    /// The program and its arguments
    #[arg(required = true, last = true, value_name = "PROGRAM")]
    program: Vec<std::ffi::OsString>,
}

fn renew_signal(name: &str) -> Result<Signal, String> {
    match name.trim_start_matches("SIG") {
        "HUP" => Ok(Signal::HUP),
        "USR1" => Ok(Signal::USR1),
        "USR2" => Ok(Signal::USR2),
        _ => Err("one of HUP, USR1, USR2".to_owned()),
    }
}

pub(crate) async fn run(socket: &Path, args: ExecArgs, output: &Output) -> Result<u8, Failure> {
    let signals = Signals::listen()?;
    let mut command = program(&args, socket);
    if args.socket_only {
        return ended(spawn(&mut command, &args)?, signals, None, &args, output).await;
    }
    let client = HallmarkClient::connect_to(socket).await?;
    // A refusal is told at once rather than after the timeout.
    let source = client.watch_as(&args.agent)?;
    let (source, first) = first_identity(source, &args).await?;
    let with_key = !args.no_key;
    let mut files = Files { dir: private_dir()?, with_key };
    files.publish(&first)?;
    if with_key && first.is_hardware_held() {
        output.warn(&format!(
            "no key file: the key is held in hardware ({}); the program signs through {SOCKET_ENV}",
            first.custody
        ));
    }
    files.environment(&mut command, &first);
    drop(first);
    let child = spawn(&mut command, &args)?;
    ended(child, signals, Some((source, files)), &args, output).await
}

/// Waits for an identity; a refusal is told at once, since whoever runs a program by hand wants to know.
async fn first_identity(
    mut source: IdentitySource,
    args: &ExecArgs,
) -> Result<(IdentitySource, Arc<Identity>), Failure> {
    let mut watched = source.clone();
    let refused = async {
        loop {
            match watched.last_error() {
                Some(error @ ClientError::Refused { .. }) => return error,
                _ => {
                    if let Err(error) = watched.changed().await {
                        return error;
                    }
                }
            }
        }
    };
    tokio::select! {
        biased;
        ready = source.wait_ready(args.timeout) => { let first = ready?; Ok((source, first)) }
        error = refused => Err(error.into()),
    }
}

fn program(args: &ExecArgs, socket: &Path) -> Command {
    let mut command = Command::new(&args.program[0]);
    command.args(&args.program[1..]).env(SOCKET_ENV, socket);
    command.stdin(Stdio::inherit()).kill_on_drop(true);
    command
}

fn spawn(command: &mut Command, args: &ExecArgs) -> Result<Child, Failure> {
    command.spawn().map_err(|error| {
        let exit = if error.kind() == std::io::ErrorKind::NotFound { NOT_FOUND } else { CANNOT_RUN };
        let message = format!("cannot run {}: {error}", args.program[0].display());
        Failure { exit, code: "cannot-run", message, remedy: None }
    })
}

/// The identity's files; they go when this goes.
struct Files {
    dir: LinkedDir,
    with_key: bool,
}

impl Files {
    fn publish(&mut self, identity: &Identity) -> Result<(), Failure> {
        self.dir.publish(&contents(identity, self.with_key))
    }

    fn environment(&self, command: &mut Command, identity: &Identity) {
        let file = |name: &str| self.dir.path().join(name);
        command
            .env("HALLMARK_CHAIN_FILE", file(CHAIN))
            .env("HALLMARK_BUNDLE_FILE", file(BUNDLE))
            .env("HALLMARK_SPIFFE_ID", identity.spiffe_id.to_string())
            .env("HALLMARK_TIER", identity.tier.as_str());
        if self.with_key && !identity.is_hardware_held() {
            command.env("HALLMARK_KEY_FILE", file(KEY));
        }
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        let _ = self.dir.remove();
    }
}

/// A new directory in memory that only this user can enter.
fn private_dir() -> Result<LinkedDir, Failure> {
    let candidates = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from).into_iter().chain([
        PathBuf::from(format!("/run/user/{}", rustix::process::geteuid().as_raw())),
        PathBuf::from("/dev/shm"),
    ]);
    for parent in candidates.filter(|parent| is_memory(parent).unwrap_or(false)) {
        let mut made = tempfile::Builder::new();
        made.prefix("hallmark-exec-").permissions(Permissions::from_mode(0o700));
        if let Ok(dir) = made.tempdir_in(&parent) {
            // From here on `Files` removes it.
            return LinkedDir::open(&dir.keep());
        }
    }
    Err(Failure::refused(
        "no directory on tmpfs for the identity's files: neither XDG_RUNTIME_DIR, /run/user/UID nor /dev/shm",
    )
    .remedy("mount a tmpfs and set XDG_RUNTIME_DIR to it"))
}

/// Runs until the program ends: hands signals on, replaces the files at renewals.
async fn ended(
    mut child: Child,
    mut signals: Signals,
    identity: Option<(IdentitySource, Files)>,
    args: &ExecArgs,
    output: &Output,
) -> Result<u8, Failure> {
    let pid = child.id().and_then(|id| Pid::from_raw(id.cast_signed()));
    let tell = |signal| pid.is_some_and(|pid| kill_process(pid, signal).is_ok());
    let (mut source, mut files) = identity.unzip();
    let mut deadline = None;
    loop {
        tokio::select! {
            status = child.wait() => {
                let status = status.map_err(|error| Failure::refused(format!("lost sight of the program: {error}")))?;
                return Ok(exit_code(status));
            }
            Some(signal) = signals.next() => {
                tell(signal);
            }
            change = changed(&mut source), if deadline.is_none() => match change {
                Change::Renewed(identity) => {
                    if let Some(files) = &mut files {
                        files.publish(&identity)?;
                    }
                    if let Some(signal) = args.renew_signal {
                        tell(signal);
                    }
                }
                Change::Withdrawn(why) => {
                    output.warn(&format!("the identity was withdrawn, the program is asked to end: {why}"));
                    files = None;
                    tell(Signal::TERM);
                    deadline = Some(tokio::time::Instant::now() + args.grace);
                }
            },
            () = reached(deadline) => {
                output.warn("the program has not ended in time and is killed");
                deadline = Some(tokio::time::Instant::now() + args.grace);
                tell(Signal::KILL);
            }
        }
    }
}

enum Change {
    Renewed(Arc<Identity>),
    Withdrawn(String),
}

async fn changed(source: &mut Option<IdentitySource>) -> Change {
    let Some(source) = source else { return std::future::pending().await };
    loop {
        match source.changed().await {
            Ok(Some(identity)) if source.last_error().is_none() => return Change::Renewed(identity),
            // The daemon is away; the identity is still good.
            Ok(Some(_)) => {}
            Ok(None) if source.is_refused() => {
                return Change::Withdrawn(source.last_error().map(|e| e.to_string()).unwrap_or_default());
            }
            // Withdrawn, and asked for anew: a changed registration, or the end.
            Ok(None) => {}
            Err(error) => return Change::Withdrawn(error.to_string()),
        }
    }
}

async fn reached(deadline: Option<tokio::time::Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

fn exit_code(status: ExitStatus) -> u8 {
    let code = status.code().unwrap_or_else(|| 128 + status.signal().unwrap_or(0));
    u8::try_from(code).unwrap_or(1)
}

/// Signals that are handed on to the program.
struct Signals(mpsc::UnboundedReceiver<Signal>);

impl Signals {
    fn listen() -> Result<Self, Failure> {
        use tokio::signal::unix::{SignalKind, signal};
        let (send, receive) = mpsc::unbounded_channel();
        for (kind, forwarded) in [
            (SignalKind::terminate(), Signal::TERM),
            (SignalKind::hangup(), Signal::HUP),
            (SignalKind::user_defined1(), Signal::USR1),
            (SignalKind::user_defined2(), Signal::USR2),
            (SignalKind::interrupt(), Signal::INT),
            (SignalKind::quit(), Signal::QUIT),
        ] {
            let mut arriving = signal(kind)
                .map_err(|error| Failure::refused(format!("cannot wait for signals: {error}")))?;
            let send = send.clone();
            tokio::spawn(async move {
                while arriving.recv().await.is_some() {
                    // The keys of a terminal signal the whole foreground group: the program has heard.
                    let keyed = matches!(forwarded, Signal::INT | Signal::QUIT) && in_foreground();
                    if !keyed && send.send(forwarded).is_err() {
                        return;
                    }
                }
            });
        }
        Ok(Self(receive))
    }

    async fn next(&mut self) -> Option<Signal> {
        self.0.recv().await
    }
}

fn in_foreground() -> bool {
    rustix::termios::tcgetpgrp(std::io::stdin()).is_ok_and(|group| group == rustix::process::getpgrp())
}
