//! A PostgreSQL server for tests: a real one, in a directory of its own, on a Unix socket there.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

/// Where Debian and Ubuntu put the programs, a directory for each version.
const VERSIONS: &str = "/usr/lib/postgresql";
/// The server does not run as root; as one of these then.
const USERS: [&str; 2] = ["postgres", "nobody"];
/// How long anything it does may take before the test is given up: generous, it only bounds a hang.
const PATIENCE: Duration = Duration::from_secs(60);
const USER: &str = "hallmark";

/// A server; its process ends with the value.
#[derive(Debug)]
pub struct Postgres {
    dir: TempDir,
    bin: PathBuf,
    run_as: Option<(u32, u32)>,
    running: Mutex<Option<Child>>,
    databases: AtomicU32,
}

static SHARED: Mutex<Weak<Postgres>> = Mutex::new(Weak::new());

impl Postgres {
    /// Makes a cluster and starts it.
    ///
    /// # Errors
    /// PostgreSQL is not installed, or does not start; its log is in the error.
    pub fn started() -> Result<Self> {
        let bin = programs()?;
        let run_as = rustix::process::geteuid().is_root().then(unprivileged).transpose()?;
        let dir = tempfile::Builder::new().prefix("hallmark-postgres-").tempdir()?;
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
        if let Some((uid, gid)) = run_as {
            chown(dir.path(), Some(uid), Some(gid))?;
        }
        let server = Self { dir, bin, run_as, running: Mutex::new(None), databases: AtomicU32::new(0) };
        let mut initdb = server.command("initdb");
        initdb.args(["--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync", "--username", USER]);
        initdb.arg("-D").arg(server.data());
        run(&mut initdb)?;
        server.start()?;
        Ok(server)
    }

    /// The one that tests of this process share: each in a database of its own.
    ///
    /// # Errors
    /// As [`Postgres::started`].
    pub fn shared() -> Result<Arc<Self>> {
        let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(there) = shared.upgrade() {
            return Ok(there);
        }
        let new = Arc::new(Self::started()?);
        *shared = Arc::downgrade(&new);
        Ok(new)
    }

    /// Starts it, and returns when it answers.
    ///
    /// # Errors
    /// It does not start; its log is in the error.
    pub fn start(&self) -> Result<()> {
        self.start_with(&[])
    }

    /// As [`Postgres::start`], with settings such as `fsync=off`.
    ///
    /// # Errors
    /// As [`Postgres::start`].
    pub fn start_with(&self, settings: &[&str]) -> Result<()> {
        let log = fs::File::options().create(true).append(true).open(self.log())?;
        if let Some((uid, gid)) = self.run_as {
            chown(self.log(), Some(uid), Some(gid))?;
        }
        let mut postgres = self.command("postgres");
        postgres.arg("-D").arg(self.data());
        for setting in
            ["listen_addresses=", "max_connections=60", "shared_buffers=32MB"].iter().chain(settings)
        {
            postgres.arg("-c").arg(setting);
        }
        postgres.arg("-c").arg(format!("unix_socket_directories={}", self.dir.path().display()));
        postgres.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log);
        let begun = Instant::now();
        *self.running() = Some(postgres.spawn().with_context(|| format!("start {postgres:?}"))?);
        while self.psql("postgres", "SELECT 1").is_err() {
            ensure!(begun.elapsed() < PATIENCE, "postgres does not answer");
            let ended = self.running().as_mut().map(Child::try_wait).transpose()?.flatten();
            if let Some(status) = ended {
                let log = fs::read_to_string(self.log()).unwrap_or_default();
                let last = log.lines().rev().take(3).collect::<Vec<_>>().join("; ");
                // What was killed has children that are still on their way out.
                ensure!(last.contains("shared memory block"), "postgres ended with {status}: {last}");
                *self.running() = Some(postgres.spawn()?);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    /// Ends it at once (SIGKILL), as a crash would; [`Postgres::start`] brings it back.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&self) -> Result<()> {
        let mut child = self.running().take().context("postgres does not run")?;
        child.kill()?;
        child.wait()?;
        Ok(())
    }

    /// Ends it in order ("fast shutdown").
    ///
    /// # Errors
    /// It does not run.
    pub fn stop(&self) -> Result<()> {
        let mut child = self.running().take().context("postgres does not run")?;
        let pid = Pid::from_child(&child);
        kill_process(pid, Signal::INT)?;
        child.wait()?;
        Ok(())
    }

    /// Its process id, while it runs.
    pub fn pid(&self) -> Option<u32> {
        self.running().as_ref().map(Child::id)
    }

    /// Makes an empty database, and returns the URL that leads to it.
    ///
    /// # Errors
    /// The server refuses.
    pub fn database(&self) -> Result<String> {
        let name = format!("test{}", self.databases.fetch_add(1, Ordering::Relaxed));
        self.psql("postgres", &format!("CREATE DATABASE {name}"))?;
        Ok(format!("postgres://{USER}@localhost/{name}?host={}", self.dir.path().display()))
    }

    /// Runs SQL with `psql`, and returns what it prints.
    ///
    /// # Errors
    /// The server refuses it.
    pub fn psql(&self, database: &str, sql: &str) -> Result<String> {
        let mut psql = Command::new("psql");
        psql.args(["-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-U", USER, "-d", database, "-c", sql]);
        psql.arg("-h").arg(self.dir.path()).env_remove("PGOPTIONS");
        run(&mut psql)
    }

    fn running(&self) -> std::sync::MutexGuard<'_, Option<Child>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.bin.join(program));
        command.current_dir(self.dir.path());
        if let Some((uid, gid)) = self.run_as {
            command.uid(uid).gid(gid);
        }
        command
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        // A test that ended it itself has nothing left to end.
        let _ = self.stop();
    }
}

/// Name of the database that a URL of [`Postgres::database`] leads to.
#[must_use]
pub fn name_in(url: &str) -> &str {
    let path = url.rsplit_once('?').map_or(url, |(before, _)| before);
    path.rsplit('/').next().unwrap_or_default()
}

fn programs() -> Result<PathBuf> {
    let mut versions: Vec<(u32, PathBuf)> = fs::read_dir(VERSIONS)
        .with_context(|| format!("{VERSIONS}: PostgreSQL is not installed (scripts/setup does it)"))?
        .filter_map(|entry| {
            let path = entry.ok()?.path();
            let version = path.file_name()?.to_str()?.parse().ok()?;
            path.join("bin/postgres").exists().then(|| (version, path.join("bin")))
        })
        .collect();
    versions.sort();
    Ok(versions.pop().with_context(|| format!("no server under {VERSIONS}"))?.1)
}

fn unprivileged() -> Result<(u32, u32)> {
    let passwd = fs::read_to_string("/etc/passwd")?;
    let of = |user: &str| {
        let line = passwd.lines().find(|line| line.split(':').next() == Some(user))?;
        let mut ids = line.split(':').skip(2);
        Some((ids.next()?.parse().ok()?, ids.next()?.parse().ok()?))
    };
    USERS.iter().find_map(|user| of(user)).context("no user to run PostgreSQL as")
}

fn run(command: &mut Command) -> Result<String> {
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("run {command:?}"))?;
    let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
    ensure!(output.status.success(), "{command:?}: {} {}", text(&output.stdout), text(&output.stderr));
    Ok(text(&output.stdout))
}
