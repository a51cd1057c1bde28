//! A SoftHSM token of its own for each test, and a way to use it inside the test's own code.
//!
//! SoftHSM reads its configuration's path from `SOFTHSM2_CONF` at `C_Initialize`, once a process. A test
//! that loads the module therefore runs its body in a process of its own: see [`in_child`]. A test that
//! only starts other programs gives them [`SoftHsm::env`].

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};

/// Where Debian, Ubuntu, Fedora and a build from source put the module; `*` stands for one directory, the
/// multiarch triplet.
const MODULES: [&str; 5] = [
    "/usr/lib/softhsm/libsofthsm2.so",
    "/usr/lib/*/softhsm/libsofthsm2.so",
    "/usr/lib64/pkcs11/libsofthsm2.so",
    "/usr/lib64/softhsm/libsofthsm2.so",
    "/usr/local/lib/softhsm/libsofthsm2.so",
];
const CONF: &str = "SOFTHSM2_CONF";
/// Tells a child of [`in_child`] which token is its own.
const CHILD: &str = "HALLMARK_KIT_SOFTHSM";
/// Longest run of a test in its own process: one that hangs is ended and shown.
const PATIENCE: Duration = Duration::from_secs(120);
const LABEL: &str = "hallmark-test";
const PIN: &str = "8437-user";
const SO_PIN: &str = "1932-officer";

/// A SoftHSM configuration with one initialised token, removed when dropped.
#[derive(Debug)]
pub struct SoftHsm {
    dir: PathBuf,
    module: PathBuf,
    _owned: Option<tempfile::TempDir>,
}

impl SoftHsm {
    /// A new token, labelled [`SoftHsm::label`], in a directory of its own.
    ///
    /// # Errors
    /// SoftHSM is not installed, or cannot write to the temporary directory.
    pub fn new() -> anyhow::Result<Self> {
        let owned = tempfile::Builder::new().prefix("hallmark-softhsm-").tempdir()?;
        let dir = owned.path().to_owned();
        let hsm = Self { module: find_module()?, dir, _owned: Some(owned) };
        fs::create_dir(hsm.tokens())?;
        fs::write(
            hsm.conf_path(),
            format!(
                "directories.tokendir = {}\nobjectstore.backend = file\nlog.level = ERROR\nslots.removable = false\n",
                hsm.tokens().display()
            ),
        )?;
        fs::write(hsm.pin_file(), PIN)?;
        fs::set_permissions(hsm.pin_file(), fs::Permissions::from_mode(0o600))?;
        hsm.add_token(LABEL)?;
        Ok(hsm)
    }

    /// The PKCS#11 module to load.
    pub fn module_path(&self) -> &Path {
        &self.module
    }

    /// The configuration that `SOFTHSM2_CONF` must name.
    pub fn conf_path(&self) -> PathBuf {
        self.dir.join("softhsm2.conf")
    }

    /// The first token's label.
    pub fn label(&self) -> &'static str {
        LABEL
    }

    /// The user PIN of every token here.
    pub fn pin(&self) -> &'static str {
        PIN
    }

    /// A file with the user PIN in it, mode 0600, without a newline.
    pub fn pin_file(&self) -> PathBuf {
        self.dir.join("pin")
    }

    /// What a program that loads the module needs in its environment.
    pub fn env(&self) -> [(&'static str, PathBuf); 1] {
        [(CONF, self.conf_path())]
    }

    /// `program`, to be run with this SoftHSM in its environment.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.envs(self.env());
        command
    }

    /// `pkcs11-tool` (OpenSC), logged in to the token `label`: the independent view of what is on it.
    pub fn pkcs11_tool(&self, label: &str) -> Command {
        let mut command = self.command("pkcs11-tool");
        command.arg("--module").arg(&self.module).args(["--login", "--pin", PIN, "--token-label", label]);
        command
    }

    /// Initialises one more token, with the same PINs; the label may be one that is taken.
    ///
    /// # Errors
    /// `softhsm2-util` is missing or fails.
    pub fn add_token(&self, label: &str) -> anyhow::Result<()> {
        let mut util = self.command("softhsm2-util");
        util.args(["--init-token", "--free", "--label", label, "--pin", PIN, "--so-pin", SO_PIN]);
        run(&mut util).map(drop)
    }

    /// Takes the tokens away, as if the device had been pulled.
    ///
    /// # Errors
    /// They are away already.
    pub fn vanish(&self) -> anyhow::Result<()> {
        fs::rename(self.tokens(), self.away()).context("take the tokens away")?;
        fs::create_dir(self.tokens()).context("leave an empty token directory")
    }

    /// Puts back what [`SoftHsm::vanish`] took.
    ///
    /// # Errors
    /// They are not away.
    pub fn restore(&self) -> anyhow::Result<()> {
        ensure!(self.away().exists(), "the tokens are not away");
        fs::remove_dir_all(self.tokens())?;
        fs::rename(self.away(), self.tokens()).context("put the tokens back")
    }

    fn tokens(&self) -> PathBuf {
        self.dir.join("tokens")
    }

    fn away(&self) -> PathBuf {
        self.dir.join("tokens.away")
    }
}

/// Runs `body` in a process of its own that has a fresh token and `SOFTHSM2_CONF` set from its start.
///
/// `test` is the calling test's full name, as the test harness prints it (in a file under `tests/` just the
/// function's name). The process is this test program again, told to run that test alone; there this call
/// runs `body`, and here it waits and shows what the child printed.
///
/// ```ignore
/// #[test]
/// fn signs() {
///     softhsm::in_child("signs", |hsm| { /* load hsm.module_path() here */ });
/// }
/// ```
///
/// # Panics
/// The body failed, or no test has that name.
pub fn in_child(test: &str, body: impl FnOnce(&SoftHsm)) {
    if let Some(dir) = std::env::var_os(CHILD) {
        let hsm = SoftHsm { dir: dir.into(), module: must(find_module()), _owned: None };
        body(&hsm);
        must(fs::write(hsm.dir.join("done"), b"").context("mark the test as run"));
        return;
    }
    let hsm = must(SoftHsm::new());
    let (status, said) = must(run_alone(&hsm, test));
    let Some(status) = status else { panic!("{test} did not end within {PATIENCE:?}:\n{said}") };
    assert!(status.success(), "{test} failed in its own process ({status}):\n{said}");
    assert!(hsm.dir.join("done").exists(), "no test is called {test:?}:\n{said}");
    print!("{said}");
}

/// Runs this test program again for one test; no status when it had to be ended.
fn run_alone(hsm: &SoftHsm, test: &str) -> anyhow::Result<(Option<ExitStatus>, String)> {
    // A file, unlike a pipe, never fills up and so never holds the child back.
    let said = hsm.dir.join("said");
    let output = fs::File::create(&said)?;
    let mut child = Command::new(std::env::current_exe()?)
        .args(["--exact", test, "--nocapture", "--include-ignored"])
        .env(CHILD, &hsm.dir)
        .envs(hsm.env())
        .stdout(output.try_clone()?)
        .stderr(output)
        .spawn()
        .context("start this test program again")?;
    let started = Instant::now();
    let status = loop {
        match child.try_wait()? {
            Some(status) => break Some(status),
            None if started.elapsed() > PATIENCE => {
                child.kill()?;
                child.wait()?;
                break None;
            }
            None => std::thread::sleep(Duration::from_millis(5)),
        }
    };
    Ok((status, String::from_utf8_lossy(&fs::read(said)?).into_owned()))
}

/// Runs a command to its end and returns what it printed.
///
/// # Errors
/// It cannot be started, or fails; with what it printed.
pub fn run(command: &mut Command) -> anyhow::Result<String> {
    let output = command.output().with_context(|| format!("start {:?}", command.get_program()))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "{:?} ended with {}: {said}{}",
            command.get_program(),
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(said)
}

fn must<T>(result: anyhow::Result<T>) -> T {
    result.unwrap_or_else(|e| panic!("{e:#}"))
}

fn find_module() -> anyhow::Result<PathBuf> {
    for pattern in MODULES {
        let candidates = match pattern.split_once("/*/") {
            None => vec![PathBuf::from(pattern)],
            Some((before, after)) => fs::read_dir(before)
                .map(|entries| entries.flatten().map(|e| e.path().join(after)).collect())
                .unwrap_or_default(),
        };
        if let Some(found) = candidates.into_iter().find(|p| p.exists()) {
            return Ok(found);
        }
    }
    bail!("libsofthsm2.so is in none of {MODULES:?}: install softhsm2")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_is_there_vanishes_and_returns() {
        let hsm = SoftHsm::new().unwrap();
        let slots = |hsm: &SoftHsm| run(hsm.command("softhsm2-util").arg("--show-slots")).unwrap();
        assert!(slots(&hsm).contains(LABEL));
        hsm.vanish().unwrap();
        assert!(!slots(&hsm).contains(LABEL));
        hsm.restore().unwrap();
        assert!(slots(&hsm).contains(LABEL));
    }

    #[test]
    fn child_has_its_own_token() {
        in_child("softhsm::tests::child_has_its_own_token", |hsm| {
            assert_eq!(std::env::var_os(CONF).unwrap(), hsm.conf_path().as_os_str());
        });
    }

    #[test]
    #[should_panic(expected = "no test is called")]
    fn a_wrong_name_is_noticed() {
        in_child("softhsm::tests::no_such_test", |_| ());
    }
}
