//! Child processes that end with the test, by id, and waiting for what they do.

use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// Longest wait for anything: generous, since other tests run beside this one.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// A program of this workspace, of the same profile as the running one.
///
/// # Errors
/// It was not built.
pub fn binary(name: &str) -> Result<PathBuf> {
    beside(Path::new(name))
}

/// An example of this workspace.
///
/// # Errors
/// It was not built.
pub fn example(name: &str) -> Result<PathBuf> {
    beside(&Path::new("examples").join(name))
}

fn beside(name: &Path) -> Result<PathBuf> {
    let this = std::env::current_exe()?;
    let mut profile = this.parent().context("this program has no directory")?;
    // Tests lie one below the programs.
    if profile.ends_with("deps") {
        profile = profile.parent().context("this program has no target directory")?;
    }
    let path = profile.join(name);
    if !path.exists() {
        bail!("{} is not built: run cargo build --workspace --bins --examples first", path.display());
    }
    Ok(path)
}

/// A running daemon; ended by SIGKILL when dropped, if it has not ended before.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    log: PathBuf,
}

impl Daemon {
    /// Starts `command` with its output in `log`.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(command: &mut Command, log: &Path) -> Result<Self> {
        let file = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let child = command
            .stdin(Stdio::null())
            .stdout(file.try_clone()?)
            .stderr(file)
            .spawn()
            .with_context(|| format!("starting {command:?}"))?;
        Ok(Self { child, log: log.to_owned() })
    }

    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Everything it has logged so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until its log, from byte `from` on, holds `text`; returns the log's length then.
    ///
    /// # Errors
    /// It ended, or the text did not come.
    pub fn wait_for_log(&mut self, text: &str, from: u64) -> Result<u64> {
        self.wait_for_log_within(text, from, PATIENCE)
    }

    /// As [`Daemon::wait_for_log`], with another patience.
    ///
    /// # Errors
    /// It ended, or the text did not come in that time.
    pub fn wait_for_log_within(&mut self, text: &str, from: u64, patience: Duration) -> Result<u64> {
        let start = Instant::now();
        loop {
            let mut file = std::fs::File::open(&self.log)?;
            file.seek(SeekFrom::Start(from))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            if String::from_utf8_lossy(&bytes).contains(text) {
                return Ok(from + bytes.len() as u64);
            }
            if let Some(status) = self.child.try_wait()? {
                bail!("ended with {status} before saying {text:?}:\n{}", self.log());
            }
            if start.elapsed() > patience {
                bail!("never said {text:?}:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        let pid =
            i32::try_from(self.child.id()).ok().and_then(rustix::process::Pid::from_raw).context("pid")?;
        Ok(rustix::process::kill_process(pid, signal)?)
    }

    /// Asks it to end, and waits until it has.
    ///
    /// # Errors
    /// It did not end in time, or not with success.
    pub fn stop(&mut self) -> Result<()> {
        self.signal(rustix::process::Signal::TERM)?;
        let start = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait()? {
                if status.success() {
                    return Ok(());
                }
                bail!("ended with {status}:\n{}", self.log());
            }
            if start.elapsed() > PATIENCE {
                bail!("did not end after SIGTERM:\n{}", self.log());
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    /// Ends it at once, without warning.
    ///
    /// # Errors
    /// It cannot be waited for.
    pub fn kill(&mut self) -> Result<()> {
        self.child.kill()?;
        self.child.wait()?;
        Ok(())
    }

    /// Whether it still runs.
    pub fn is_alive(&mut self) -> bool {
        matches!(self.child.try_wait(), Ok(None))
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits until `ready` gives a value.
///
/// # Errors
/// It never did; `what` was waited for.
pub fn wait_until<T>(what: &str, mut ready: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = ready() {
            return Ok(value);
        }
        if start.elapsed() > PATIENCE {
            bail!("waited in vain for {what}");
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
