//! A software TPM for one test: manufactured with EK certificates, on its own ports, in its own directory.

mod ca;
#[cfg(test)]
mod tests;

pub use ca::{EkProfile, SWTPM_MANUFACTURER, SwtpmCa};

use anyhow::{Context, Result, bail, ensure};
use rand::Rng;
use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// NV index of the RSA-2048 EK certificate (TCG EK Credential Profile 2.6, 2.2.1.4).
pub const NV_EK_RSA2048: u32 = 0x01c0_0002;
/// NV index of the P-256 EK certificate; `swtpm_setup` makes none.
pub const NV_EK_P256: u32 = 0x01c0_000a;
/// NV index of the P-384 EK certificate.
pub const NV_EK_P384: u32 = 0x01c0_0016;

/// How long anything a software TPM does may take before the test is given up: generous, it only bounds a hang.
const PATIENCE: Duration = Duration::from_secs(60);

/// A software TPM; its process, if it runs, ends with the value.
pub struct Swtpm {
    dir: TempDir,
    running: Option<Running>,
    /// Kept over [`Swtpm::restart`], so that a client's TCTI string stays true.
    port: Option<u16>,
    lockout_raised: bool,
}

struct Running {
    child: Child,
    port: u16,
}

impl Swtpm {
    /// Makes a TPM that holds an RSA-2048 and a P-384 EK with certificates from `ca`. It does not run yet.
    ///
    /// # Errors
    /// `swtpm_setup` missing or failing; its output is in the error.
    pub fn manufacture(ca: &SwtpmCa, name: &str) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("hallmark-swtpm-").tempdir()?;
        let state = dir.path().join("state");
        fs::create_dir(&state)?;
        let mut setup = Command::new("swtpm_setup");
        setup.args([
            "--tpm2",
            "--create-ek-cert",
            "--create-platform-cert",
            "--lock-nvram",
            "--not-overwrite",
        ]);
        setup.args(["--pcr-banks", "sha256", "--vmid", name]);
        setup.arg("--tpmstate").arg(&state).arg("--config").arg(ca.setup_conf());
        run(&mut setup)?;
        Ok(Self { dir, running: None, port: None, lockout_raised: false })
    }

    /// Makes a TPM without any EK certificate; much quicker than [`Swtpm::manufacture`].
    ///
    /// # Errors
    /// A temporary directory that cannot be made.
    pub fn blank() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("hallmark-swtpm-").tempdir()?;
        fs::create_dir(dir.path().join("state"))?;
        Ok(Self { dir, running: None, port: None, lockout_raised: false })
    }

    /// [`Swtpm::manufacture`], then [`Swtpm::start`].
    ///
    /// # Errors
    /// As those two.
    pub fn started(ca: &SwtpmCa, name: &str) -> Result<Self> {
        let mut tpm = Self::manufacture(ca, name)?;
        tpm.start()?;
        Ok(tpm)
    }

    /// Powers the TPM on and returns when it answers.
    ///
    /// # Errors
    /// `swtpm` missing, or no pair of ports to be had.
    pub fn start(&mut self) -> Result<()> {
        if self.running.is_some() {
            return Ok(());
        }
        let mut last = None;
        for _ in 0..20 {
            let Some(port) = self.port.or_else(free_pair) else { continue };
            match self.spawn(port) {
                Ok(running) => {
                    self.running = Some(running);
                    self.port = Some(port);
                    return self.raise_lockout();
                }
                Err(error) => last = Some(error),
            }
        }
        Err(last.unwrap_or_else(|| anyhow::anyhow!("no free pair of ports"))).context("start swtpm")
    }

    /// The TCTI string a client of this TPM uses.
    #[must_use]
    pub fn tcti(&self) -> String {
        format!("swtpm:host=127.0.0.1,port={}", self.port.unwrap_or_default())
    }

    /// The TCP port of the command channel; the control channel is one above.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.port.unwrap_or_default()
    }

    /// The process id, while it runs.
    #[must_use]
    pub fn pid(&self) -> Option<u32> {
        self.running.as_ref().map(|r| r.child.id())
    }

    /// Ends the process in an orderly way (TPM2_Shutdown, then SIGTERM). State and ports are kept.
    ///
    /// # Errors
    /// A process that cannot be ended.
    pub fn stop(&mut self) -> Result<()> {
        if let Some(running) = &self.running {
            command(running.port, &SHUTDOWN_CLEAR).ok();
        }
        self.kill()
    }

    /// Ends the process without any warning to the TPM, as a power cut would.
    ///
    /// # Errors
    /// A process that cannot be ended.
    pub fn kill(&mut self) -> Result<()> {
        let Some(mut running) = self.running.take() else { return Ok(()) };
        running.child.kill().context("end swtpm")?;
        running.child.wait().context("wait for swtpm")?;
        Ok(())
    }

    /// Stops and starts the process on the same ports: the client's connection breaks and the TPM is reset.
    ///
    /// # Errors
    /// As [`Swtpm::stop`] and [`Swtpm::start`].
    pub fn restart(&mut self) -> Result<()> {
        self.stop()?;
        self.start()
    }

    /// A TPM Reset (Part 1, 12.2.3.2) under a process that stays: transient objects, sessions and saved contexts are
    /// gone, PCRs are zero, the reset counter moves.
    ///
    /// # Errors
    /// A TPM that does not run.
    pub fn reset(&self) -> Result<()> {
        let port = self.running.as_ref().context("swtpm does not run")?.port;
        command(port, &SHUTDOWN_CLEAR)?;
        let answer = exchange(port + 1, &[0, 0, 0, CMD_INIT, 0, 0, 0, 0], 4)?;
        ensure!(answer == [0; 4], "CMD_INIT refused: {answer:02x?}");
        command(port, &STARTUP_CLEAR)
    }

    /// Runs one of the tpm2-tools against this TPM and returns its standard output.
    ///
    /// # Errors
    /// A tool that is missing or fails; its output is in the error.
    pub fn tool<I, S>(&self, name: &str, args: I) -> Result<Vec<u8>>
    where
        I: IntoIterator<Item = S>,
        S: AsRef<std::ffi::OsStr>,
    {
        run(Command::new(name).args(args).current_dir(self.dir.path()).env("TPM2TOOLS_TCTI", self.tcti()))
    }

    /// A directory of this TPM's own for a test's files; the working directory of [`Swtpm::tool`].
    #[must_use]
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// The handles `tpm2_getcap` lists for a property such as `handles-transient` or `handles-loaded-session`.
    ///
    /// # Errors
    /// As [`Swtpm::tool`].
    pub fn handles(&self, property: &str) -> Result<Vec<String>> {
        let out = String::from_utf8(self.tool("tpm2_getcap", [property])?)?;
        Ok(out.lines().filter_map(|line| line.trim().strip_prefix("- ")).map(str::to_owned).collect())
    }

    /// Extends a SHA-256 PCR.
    ///
    /// # Errors
    /// As [`Swtpm::tool`].
    pub fn extend(&self, pcr: u8, digest: &[u8; 32]) -> Result<()> {
        self.tool("tpm2_pcrextend", [format!("{pcr}:sha256={}", hex::encode(digest))]).map(drop)
    }

    /// Writes `content` to an NV index the way a platform maker does, in place of what was there.
    ///
    /// # Errors
    /// As [`Swtpm::tool`].
    pub fn write_nv(&self, index: u32, content: &[u8]) -> Result<()> {
        self.remove_nv(index)?;
        let index = format!("{index:#x}");
        let path = self.scratch("nv", content)?;
        let attributes = "ppwrite|ppread|ownerread|authread|no_da|platformcreate";
        self.tool("tpm2_nvdefine", [&index, "-C", "p", "-s", &content.len().to_string(), "-a", attributes])?;
        self.tool("tpm2_nvwrite", [&index, "-C", "p", "-i", &path.to_string_lossy()]).map(drop)
    }

    /// Removes an NV index if it is there.
    ///
    /// # Errors
    /// As [`Swtpm::tool`].
    pub fn remove_nv(&self, index: u32) -> Result<()> {
        let present = self.handles("handles-nv-index")?.iter().any(|h| parse_handle(h) == Some(index));
        if present {
            self.tool("tpm2_nvundefine", [format!("{index:#x}"), "-C".into(), "p".into()]).map(drop)
        } else {
            Ok(())
        }
    }

    /// Reads an NV index whole, as the owner.
    ///
    /// # Errors
    /// As [`Swtpm::tool`].
    pub fn read_nv(&self, index: u32) -> Result<Vec<u8>> {
        self.tool("tpm2_nvread", [format!("{index:#x}"), "-C".into(), "o".into()])
    }

    /// The SubjectPublicKeyInfo (DER) of the EK made by the TCG's default template for `algorithm` (`rsa` or `ecc`,
    /// the latter P-256).
    ///
    /// # Errors
    /// As [`Swtpm::tool`].
    pub fn default_ek_spki(&self, algorithm: &str) -> Result<Vec<u8>> {
        self.tool("tpm2_createek", ["-c", "ek.ctx", "-G", algorithm, "-u", "ek.pub.pem", "-f", "pem"])?;
        self.tool("tpm2_flushcontext", ["-t"])?;
        Ok(pem::parse(fs::read(self.dir.path().join("ek.pub.pem"))?)?.into_contents())
    }

    /// Gives the TPM a P-256 EK certificate at [`NV_EK_P256`], as many hardware TPMs have, and returns it.
    ///
    /// # Errors
    /// As [`Swtpm::tool`].
    pub fn add_p256_ek(&self, ca: &SwtpmCa, profile: &EkProfile) -> Result<Vec<u8>> {
        let der = ca.ek_certificate(&self.default_ek_spki("ecc")?, profile)?;
        self.write_nv(NV_EK_P256, &der)?;
        Ok(der)
    }

    fn scratch(&self, name: &str, content: &[u8]) -> Result<PathBuf> {
        let path = self.dir.path().join(name);
        fs::write(&path, content)?;
        Ok(path)
    }

    fn spawn(&self, port: u16) -> Result<Running> {
        let pid_file = self.dir.path().join("pid");
        let log = fs::File::create(self.dir.path().join("swtpm.log"))?;
        fs::remove_file(&pid_file).ok();
        let child = Command::new("swtpm")
            .args(["socket", "--tpm2", "--flags", "not-need-init,startup-clear"])
            .arg("--tpmstate")
            .arg(format!("dir={}", self.dir.path().join("state").display()))
            .arg("--server")
            .arg(format!("type=tcp,port={port},bindaddr=127.0.0.1"))
            .arg("--ctrl")
            .arg(format!("type=tcp,port={},bindaddr=127.0.0.1", port + 1))
            .arg("--pid")
            .arg(format!("file={}", pid_file.display()))
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .context("run swtpm (package swtpm)")?;
        let mut running = Running { child, port };
        let deadline = Instant::now() + PATIENCE;
        // The pid file is written once the ports are bound: another process answering there is thus told apart.
        while fs::read_to_string(&pid_file).ok().and_then(|s| s.trim().parse().ok())
            != Some(running.child.id())
        {
            if let Some(status) = running.child.try_wait()? {
                bail!("swtpm ended with {status}: {}", self.log());
            }
            ensure!(Instant::now() < deadline, "swtpm is not ready: {}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
        while let Err(error) = command(port, &GET_TEST_RESULT) {
            if let Some(status) = running.child.try_wait()? {
                bail!("swtpm ended with {status}: {}", self.log());
            }
            ensure!(Instant::now() < deadline, "swtpm does not answer: {error:#}; {}", self.log());
            std::thread::sleep(Duration::from_millis(2));
        }
        Ok(running)
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("swtpm.log")).unwrap_or_default()
    }

    /// Without this, three kills without an orderly shutdown lock a TPM out (Part 1, 19.8).
    fn raise_lockout(&mut self) -> Result<()> {
        if !self.lockout_raised {
            self.tool(
                "tpm2_dictionarylockout",
                ["--setup-parameters", "--max-tries=4294967295", "--clear-lockout"],
            )?;
            self.lockout_raised = true;
        }
        Ok(())
    }
}

impl Drop for Swtpm {
    fn drop(&mut self) {
        self.kill().ok();
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
    }
}

/// swtpm's control channel: CMD_INIT powers the TPM on anew.
const CMD_INIT: u8 = 2;
const STARTUP_CLEAR: [u8; 12] = [0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x44, 0, 0];
const SHUTDOWN_CLEAR: [u8; 12] = [0x80, 0x01, 0, 0, 0, 12, 0, 0, 0x01, 0x45, 0, 0];
const GET_TEST_RESULT: [u8; 10] = [0x80, 0x01, 0, 0, 0, 10, 0, 0, 0x01, 0x7c];

/// Sends one sessionless TPM command and demands success.
fn command(port: u16, bytes: &[u8]) -> Result<()> {
    let answer = exchange(port, bytes, 10)?;
    ensure!(answer[6..10] == [0; 4], "TPM answered {:02x?}", &answer[6..10]);
    Ok(())
}

fn exchange(port: u16, bytes: &[u8], at_least: usize) -> Result<Vec<u8>> {
    let address = SocketAddr::from(([127, 0, 0, 1], port));
    let mut stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.write_all(bytes)?;
    let mut answer = vec![0; at_least];
    stream.read_exact(&mut answer)?;
    Ok(answer)
}

/// Two neighbouring ports, below the range the kernel hands out by itself.
fn free_pair() -> Option<u16> {
    let port = rand::rng().random_range(10_000..32_000u16);
    let bound = |port| TcpListener::bind(("127.0.0.1", port)).is_ok();
    (bound(port) && bound(port + 1)).then_some(port)
}

fn parse_handle(text: &str) -> Option<u32> {
    u32::from_str_radix(text.trim_start_matches("0x").trim_start_matches("0X"), 16).ok()
}

fn run(command: &mut Command) -> Result<Vec<u8>> {
    let name = command.get_program().to_string_lossy().into_owned();
    let out = command.stdin(Stdio::null()).output().with_context(|| format!("run {name}"))?;
    if !out.status.success() {
        let text = String::from_utf8_lossy(&out.stderr);
        bail!("{name} failed ({}): {text}{}", out.status, String::from_utf8_lossy(&out.stdout));
    }
    Ok(out.stdout)
}
