//! Agents as processes of their own.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc;

use anyhow::{Context, Result, bail};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};

use crate::child::{PATIENCE, example};
use crate::host::Host;

/// A running `stub_agent`; it ends with the value, by id.
#[derive(Debug)]
pub struct Agent {
    child: Child,
    orders: Option<ChildStdin>,
    lines: mpsc::Receiver<String>,
}

/// An identity as an [`Agent`] says it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Shown {
    /// Tier.
    pub tier: String,
    /// Custody.
    pub custody: String,
    /// Instance id, hex.
    pub instance: String,
    /// End of validity.
    pub not_after: i64,
    /// Key handle, hex, where the key is in hardware.
    pub handle: Option<String>,
    /// The leaf, then its issuing CA, DER.
    pub chain: Vec<Vec<u8>>,
}

impl Shown {
    /// The chain, PEM.
    pub fn pem(&self) -> String {
        self.chain.iter().map(|der| pem::encode(&pem::Pem::new("CERTIFICATE", der.as_slice()))).collect()
    }
}

impl Agent {
    /// A process that asks `host` for the identity of registration `name` and holds its stream.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn watching(host: &Host, name: &str) -> Result<Self> {
        Self::start(Command::new(example("stub_agent")?).arg(host.socket()).args(["watch", name]))
    }

    /// The same, with these values of the metadata `traceparent`, sound or not.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn watching_in(host: &Host, name: &str, traceparents: &[&str]) -> Result<Self> {
        Self::start(
            Command::new(example("stub_agent")?).arg(host.socket()).args(["watch", name]).args(traceparents),
        )
    }

    /// The same as another user (needs root), from a copy of the program that this user can reach.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn watching_as(host: &Host, name: &str, uid: u32) -> Result<Self> {
        let copy = host.path("stub_agent");
        std::fs::copy(example("stub_agent")?, &copy)?;
        for directory in copy.ancestors().skip(1).take(2) {
            std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755))?;
        }
        let mut command = Command::new(copy);
        Self::start(command.arg(host.socket()).args(["watch", name]).uid(uid).gid(uid).current_dir("/"))
    }

    /// A process that asks for a signature by the key of `handle` (hex), whosesoever it is.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn signing(host: &Host, handle: &str) -> Result<Self> {
        Self::start(Command::new(example("stub_agent")?).arg(host.socket()).args(["sign", handle]))
    }

    fn start(command: &mut Command) -> Result<Self> {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
        let orders = child.stdin.take();
        let stdout = child.stdout.take().context("no standard output")?;
        let (send, lines) = mpsc::channel();
        std::thread::Builder::new().stack_size(64 * 1024).spawn(move || {
            for line in BufReader::new(stdout).lines().map_while(Result::ok) {
                if send.send(line).is_err() {
                    return;
                }
            }
        })?;
        Ok(Self { child, orders, lines })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Gives it an order: `sign HANDLE DIGEST`, `whoami` or `exec HANDLE`.
    ///
    /// # Errors
    /// It has ended.
    pub fn tell(&mut self, order: &str) -> Result<()> {
        let orders = self.orders.as_mut().context("its input is closed")?;
        Ok(writeln!(orders, "{order}")?)
    }

    /// The next line that begins with `word`, without it; other lines are passed over.
    ///
    /// # Errors
    /// It ended, or the line did not come.
    pub fn says(&self, word: &str) -> Result<String> {
        let mut passed = Vec::new();
        loop {
            match self.lines.recv_timeout(PATIENCE) {
                Ok(line) => match line.strip_prefix(word).and_then(|rest| rest.strip_prefix(' ')) {
                    Some(rest) => return Ok(rest.to_owned()),
                    None => passed.push(line),
                },
                Err(error) => bail!("the agent never said {word:?} ({error}), but {passed:?}"),
            }
        }
    }

    /// The next identity it is shown.
    ///
    /// # Errors
    /// It is shown none, but told why.
    pub fn identity(&self) -> Result<Shown> {
        let line = self.lines.recv_timeout(PATIENCE).context("the agent was shown nothing")?;
        let words: Vec<&str> = line.split(' ').collect();
        let ["identity", tier, custody, instance, not_after, handle, chain] = words[..] else {
            bail!("no identity, but: {line}");
        };
        Ok(Shown {
            tier: tier.to_owned(),
            custody: custody.to_owned(),
            instance: instance.to_owned(),
            not_after: not_after.parse()?,
            handle: (handle != "-").then(|| handle.to_owned()),
            chain: chain.split(',').map(hex::decode).collect::<Result<_, _>>()?,
        })
    }

    /// Holds its sockets open from here, so that whatever becomes of it is not seen by their closing.
    ///
    /// # Errors
    /// The process cannot be looked into.
    pub fn sockets(&self) -> Result<Vec<OwnedFd>> {
        let pidfd = pidfd_open(Pid::from_child(&self.child), PidfdFlags::empty())?;
        let mut held = Vec::new();
        for entry in std::fs::read_dir(format!("/proc/{}/fd", self.pid()))?.flatten() {
            let to = std::fs::read_link(entry.path()).unwrap_or_default();
            if to.to_string_lossy().starts_with("socket:") {
                let number = entry.file_name().to_string_lossy().parse()?;
                held.push(pidfd_getfd(&pidfd, number, PidfdGetfdFlags::empty())?);
            }
        }
        Ok(held)
    }

    /// Whether it still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }

    /// Tells it to end, by the end of its input.
    pub fn release(&mut self) {
        self.orders = None;
    }

    /// Ends it at once.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Waits until it has ended after [`Agent::release`].
    ///
    /// # Errors
    /// It ended with a failure.
    pub fn wait(&mut self) -> Result<()> {
        self.release();
        let status = self.child.wait()?;
        if !status.success() {
            bail!("the agent ended with {status}");
        }
        Ok(())
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// SHA-256 of a file, hex.
///
/// # Errors
/// It cannot be read.
pub fn sha256_file(path: &Path) -> Result<String> {
    let output = Command::new("sha256sum").arg(path).output()?;
    let text = String::from_utf8(output.stdout)?;
    Ok(text.get(..64).context("no digest")?.to_owned())
}

/// A registration of whoever runs `program` as the user of this test, with further lines of its own.
///
/// # Errors
/// The program cannot be read.
pub fn registration(name: &str, tier: &str, program: &Path, more: &str) -> Result<String> {
    let uid = rustix::process::getuid().as_raw();
    let digest = sha256_file(program)?;
    Ok(format!(
        "[[agent]]\nname = \"{name}\"\nowner = \"team@test.example\"\ntier = \"{tier}\"\nhosts = [\"host-*\"]\n\
         selectors = [\"unix:uid:{uid}\", \"exe:sha256:{digest}\"]\n{more}\n\n"
    ))
}
