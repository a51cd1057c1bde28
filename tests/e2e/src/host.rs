//! One host of a bed: a host daemon, its software TPM or its join token, its agents' socket.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output};

use anyhow::{Context, Result, bail};
use hallmark_kit::softhsm::SoftHsm;
use hallmark_kit::swtpm::Swtpm;

use crate::bed::Bed;
use crate::child::{Daemon, binary, wait_until};

/// How a host proves itself.
pub enum Proof {
    /// By this TPM.
    Tpm(Swtpm),
    /// By this join token.
    JoinToken(String),
}

/// One host.
pub struct Host {
    dir: PathBuf,
    id: String,
    /// Its TPM or token.
    pub proof: Proof,
    token: Option<SoftHsm>,
    /// Further lines of its configuration, whole tables; `{dir}` stands for its directory.
    pub extra: String,
    daemon: Option<Daemon>,
    /// Further issuers, besides its bed's, and the order in which all are tried.
    pub issuers: Vec<String>,
    /// A copy of the infrastructure root, as it was when this was made.
    root: Option<PathBuf>,
}

impl Host {
    /// A host with a TPM of the bed's own manufacture, not yet started.
    ///
    /// # Errors
    /// The TPM cannot be made.
    pub fn with_tpm(bed: &Bed, id: &str) -> Result<Self> {
        let tpm = Swtpm::started(bed.tpm_ca(), id)?;
        Self::new(bed, id, Proof::Tpm(tpm))
    }

    /// A host with a join token that the bed's issuer makes now, not yet started.
    ///
    /// # Errors
    /// The issuer makes none.
    pub fn with_join_token(bed: &Bed, id: &str) -> Result<Self> {
        let out = bed.hallmark_ok(&["join-token", "create", id, "--output", "json"])?;
        let json: serde_json::Value = serde_json::from_str(&out)?;
        let token = json["token"].as_str().context("no token in the answer")?.to_owned();
        Self::new(bed, id, Proof::JoinToken(token))
    }

    /// A host with this proof, not yet started.
    ///
    /// # Errors
    /// Its directory cannot be made.
    pub fn new(bed: &Bed, id: &str, proof: Proof) -> Result<Self> {
        let dir = bed.path(&format!("host-{id}"));
        std::fs::create_dir_all(&dir)?;
        Ok(Self {
            dir,
            id: id.to_owned(),
            proof,
            token: None,
            extra: String::new(),
            daemon: None,
            issuers: Vec::new(),
            root: None,
        })
    }

    /// Gives it a PKCS#11 token for agents' keys.
    ///
    /// # Errors
    /// The token cannot be made.
    pub fn with_token(mut self) -> Result<Self> {
        self.token = Some(SoftHsm::new()?);
        Ok(self)
    }

    /// Gives it a copy of the infrastructure root of now, as a host on another machine has it.
    ///
    /// # Errors
    /// There is none to copy.
    pub fn with_root_of_now(mut self, bed: &Bed) -> Result<Self> {
        let copy = self.dir.join("infrastructure.pem");
        std::fs::copy(bed.infrastructure_root(), &copy)?;
        self.root = Some(copy);
        Ok(self)
    }

    /// The agents' socket.
    pub fn socket(&self) -> PathBuf {
        self.dir.join("agent.sock")
    }

    /// A path in its directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// Its TPM.
    ///
    /// # Errors
    /// It has none.
    pub fn tpm(&mut self) -> Result<&mut Swtpm> {
        match &mut self.proof {
            Proof::Tpm(tpm) => Ok(tpm),
            Proof::JoinToken(_) => bail!("host {} has no TPM", self.id),
        }
    }

    /// Its daemon.
    ///
    /// # Errors
    /// It is not running.
    pub fn daemon(&mut self) -> Result<&mut Daemon> {
        self.daemon.as_mut().context("the host daemon is not running")
    }

    /// The digest of its EK, by its own word (`hallmark-hostd ek`).
    ///
    /// # Errors
    /// The daemon cannot read its TPM.
    pub fn ek(&self, bed: &Bed) -> Result<String> {
        std::fs::write(self.dir.join("hostd.toml"), self.config(bed)?)?;
        let mut command = Command::new(binary("hallmark-hostd")?);
        let output = command.arg("ek").arg("--config").arg(self.dir.join("hostd.toml")).output()?;
        if !output.status.success() {
            bail!("hallmark-hostd ek: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(String::from_utf8(output.stdout)?.trim().to_owned())
    }

    /// Starts its daemon, without waiting for anything.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn spawn(&mut self, bed: &Bed) -> Result<()> {
        std::fs::write(self.dir.join("hostd.toml"), self.config(bed)?)?;
        let mut command = Command::new(binary("hallmark-hostd")?);
        command.arg("run").arg("--config").arg(self.dir.join("hostd.toml")).env("TSS2_LOG", "all+NONE");
        if let Some(token) = &self.token {
            command.envs(token.env());
        }
        self.daemon = Some(Daemon::start(&mut command, &self.dir.join("hostd.log"))?);
        Ok(())
    }

    /// Starts its daemon and waits until it has attested and is connected.
    ///
    /// # Errors
    /// It is refused, or ends.
    pub fn start(&mut self, bed: &Bed) -> Result<()> {
        self.spawn(bed)?;
        self.wait_connected(bed)
    }

    /// Waits until the issuer sees the host connected.
    ///
    /// # Errors
    /// It never does.
    pub fn wait_connected(&mut self, bed: &Bed) -> Result<()> {
        let id = self.id.clone();
        let connected = wait_until(&format!("host {id} to be connected"), || {
            let output = bed.hallmark(&["host", "show", &id, "--output", "json"]).ok()?;
            let json: serde_json::Value = serde_json::from_slice(&output.stdout).ok()?;
            (json["connected"] == true).then_some(())
        });
        connected.with_context(|| self.daemon.as_ref().map(Daemon::log).unwrap_or_default())
    }

    /// Ends its daemon in good order.
    ///
    /// # Errors
    /// It does not end.
    pub fn stop(&mut self) -> Result<()> {
        self.daemon.take().context("the host daemon is not running")?.stop()
    }

    /// Ends its daemon at once.
    ///
    /// # Errors
    /// It is not running.
    pub fn kill(&mut self) -> Result<()> {
        self.daemon.take().context("the host daemon is not running")?.kill()
    }

    /// Runs `hallmark` as an agent on this host.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn hallmark(&self, args: &[&str]) -> Result<Output> {
        Ok(Command::new(binary("hallmark")?).arg("--socket").arg(self.socket()).args(args).output()?)
    }

    fn config(&self, bed: &Bed) -> Result<String> {
        let dir = self.dir.display();
        let mut text = String::new();
        writeln!(text, "trust_domain = {:?}\nhost_id = {:?}", bed.trust_domain(), self.id)?;
        if let Proof::JoinToken(token) = &self.proof {
            std::fs::write(self.dir.join("join-token"), token)?;
            writeln!(text, "join_token_file = \"{dir}/join-token\"")?;
        }
        let mut endpoints = vec![bed.endpoint()];
        endpoints.extend(self.issuers.iter().cloned());
        writeln!(text, "[issuer]\nendpoints = {endpoints:?}\norder = \"listed\"")?;
        let root = self.root.clone().unwrap_or_else(|| bed.infrastructure_root());
        writeln!(text, "infrastructure_root = {root:?}\nroot_cache = \"{dir}/learned.pem\"")?;
        if let Proof::Tpm(tpm) = &self.proof {
            writeln!(text, "[tpm]\ntcti = {:?}", tpm.tcti())?;
        }
        if let Some(token) = &self.token {
            writeln!(
                text,
                "[pkcs11]\nmodule = {:?}\ntoken_label = {:?}",
                token.module_path(),
                token.label()
            )?;
            writeln!(text, "pin_file = {:?}", token.pin_file())?;
        }
        writeln!(text, "[agent_socket]\npath = \"{dir}/agent.sock\"\nmode = \"0666\"")?;
        // Every agent of these tests is of one user.
        writeln!(text, "[limits]\nmax_agents_per_user = 1024\nbegin_burst_per_user = 100000")?;
        writeln!(text, "sign_per_second_per_user = 10000\nsign_burst_per_user = 100000")?;
        writeln!(text, "{}", self.extra.replace("{dir}", &dir.to_string()))?;
        Ok(text)
    }
}
