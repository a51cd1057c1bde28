//! One trust domain for one test.

use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::{Command, Output};
use std::sync::Arc;

use anyhow::{Context, Result, bail};
use hallmark_kit::postgres::Postgres;
use hallmark_kit::softhsm::SoftHsm;
use hallmark_kit::swtpm::SwtpmCa;

use crate::child::{Daemon, PATIENCE, binary};

/// What a test needs to be different.
#[derive(Debug, Clone)]
pub struct BedOptions {
    /// `init --lab`
    pub lab: bool,
    /// CA keys in memory (`--dev`) instead of a SoftHSM token.
    pub dev: bool,
    /// Trust domain.
    pub trust_domain: String,
    /// `attestation.enrolment`
    pub open: bool,
    /// Further lines of the issuer's configuration, whole tables; `{dir}` stands for the bed's directory.
    pub extra: String,
    /// Further lines of its `[ca]` table.
    pub ca: String,
    /// The roots' keys are in a token of their own, [`ROOT_TOKEN`].
    pub root_token: bool,
    /// Further lines of its `[attestation]` table.
    pub attestation: String,
    /// `issuer_id`
    pub issuer_id: String,
    /// The issuer runs in this network namespace, at this address there.
    pub network: Option<(String, String)>,
    /// The store is this database on this server, which several issuers may share.
    pub postgres: Option<(Arc<Postgres>, String)>,
}

impl Default for BedOptions {
    fn default() -> Self {
        Self {
            lab: true,
            dev: false,
            trust_domain: "test.example".to_owned(),
            open: true,
            extra: String::new(),
            ca: String::new(),
            root_token: false,
            attestation: String::new(),
            issuer_id: "issuer-1".to_owned(),
            network: None,
            postgres: None,
        }
    }
}

/// Label of the roots' token, where they have one.
pub const ROOT_TOKEN: &str = "hallmark-roots";

/// One trust domain: its issuer, its token, and the CA of its hosts' software TPMs.
pub struct Bed {
    dir: tempfile::TempDir,
    options: BedOptions,
    token: Arc<SoftHsm>,
    tpm_ca: Arc<SwtpmCa>,
    port: u16,
    issuer: Option<Daemon>,
    policies: String,
    /// Environment of the issuer, besides its token's.
    pub environment: Vec<(&'static str, std::ffi::OsString)>,
}

impl Bed {
    /// Makes the trust domain and starts its issuer.
    ///
    /// # Errors
    /// A program is missing or fails; its output is in the error.
    pub fn start(options: BedOptions) -> Result<Self> {
        let mut bed = Self::made(options)?;
        bed.start_issuer()?;
        Ok(bed)
    }

    /// Makes the trust domain, without starting its issuer.
    ///
    /// # Errors
    /// A program is missing or fails; its output is in the error.
    pub fn made(options: BedOptions) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("hallmark-e2e-").tempdir()?;
        let tpm_ca = Arc::new(SwtpmCa::new(dir.path().join("tpm-ca"))?);
        let token = Arc::new(SoftHsm::new()?);
        Self::in_dir(dir, options, token, tpm_ca)
    }

    /// Another issuer of the same trust domain, on the same PostgreSQL, with its keys in the same token; not started.
    ///
    /// # Errors
    /// It cannot join.
    pub fn sibling(&self, issuer_id: &str, network: Option<(String, String)>) -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("hallmark-e2e-").tempdir()?;
        let options = BedOptions { issuer_id: issuer_id.to_owned(), network, ..self.options.clone() };
        Self::in_dir(dir, options, self.token.clone(), self.tpm_ca.clone())
    }

    fn in_dir(
        dir: tempfile::TempDir,
        options: BedOptions,
        token: Arc<SoftHsm>,
        tpm_ca: Arc<SwtpmCa>,
    ) -> Result<Self> {
        if options.root_token {
            token.add_token(ROOT_TOKEN)?;
        }
        let port = free_port()?;
        let bed = Self {
            dir,
            options,
            token,
            tpm_ca,
            port,
            issuer: None,
            policies: String::new(),
            environment: Vec::new(),
        };
        for sub in ["data", "vendor-roots", "simulated-roots", "registrations"] {
            std::fs::create_dir_all(bed.path(sub))?;
        }
        bed.write_config()?;
        let pem = bed.path("swtpm-ca.pem");
        let mut bundle = String::new();
        for der in [bed.tpm_ca.root_der(), bed.tpm_ca.issuer_der()] {
            bundle.push_str(&pem::encode(&pem::Pem::new("CERTIFICATE", der)));
        }
        std::fs::write(&pem, bundle)?;
        bed.issuer_command(&["ek-roots", "import", "--simulated", &pem.display().to_string()], false)?;
        let mut init = vec!["init"];
        init.extend(bed.options.lab.then_some("--lab"));
        init.extend(bed.options.dev.then_some("--dev"));
        bed.issuer_command(&init, false)?;
        Ok(bed)
    }

    /// A path in this bed's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The CA that manufactures this bed's software TPMs.
    pub fn tpm_ca(&self) -> &SwtpmCa {
        &self.tpm_ca
    }

    /// The token of the CA keys.
    pub fn token(&self) -> &SoftHsm {
        &self.token
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &str {
        &self.options.trust_domain
    }

    /// `https://127.0.0.1:PORT`
    pub fn endpoint(&self) -> String {
        format!("https://{}:{}", self.address(), self.port)
    }

    fn address(&self) -> &str {
        self.options.network.as_ref().map_or("127.0.0.1", |(_, address)| address)
    }

    /// Its options, as they were given.
    pub fn options(&self) -> &BedOptions {
        &self.options
    }

    /// The admin socket.
    pub fn admin_socket(&self) -> PathBuf {
        self.path("admin.sock")
    }

    /// The infrastructure root, PEM.
    pub fn infrastructure_root(&self) -> PathBuf {
        self.path("data/public/infrastructure.pem")
    }

    /// The running issuer.
    ///
    /// # Errors
    /// It is not running.
    pub fn issuer(&mut self) -> Result<&mut Daemon> {
        self.issuer.as_mut().context("the issuer is not running")
    }

    /// Starts the issuer and waits until it serves.
    ///
    /// # Errors
    /// It does not start.
    pub fn start_issuer(&mut self) -> Result<()> {
        self.start_issuer_within(PATIENCE)
    }

    /// As [`Bed::start_issuer`], with more to do before it serves.
    ///
    /// # Errors
    /// It does not start in that time.
    pub fn start_issuer_within(&mut self, time: std::time::Duration) -> Result<()> {
        let log = self.path("issuer.log");
        let from = std::fs::metadata(&log).map_or(0, |m| m.len());
        let program = binary("hallmark-issuer")?;
        let mut command = match &self.options.network {
            // Executes the program: it is this very process.
            Some((namespace, _)) => {
                let mut command = Command::new("ip");
                command.args(["netns", "exec", namespace]).arg(program);
                command
            }
            None => Command::new(program),
        };
        command.arg("run").arg("--config").arg(self.path("issuer.toml")).envs(self.token.env());
        command.envs(self.environment.iter().cloned());
        if self.options.dev {
            command.arg("--dev");
        }
        let mut daemon = Daemon::start(&mut command, &log)?;
        daemon.wait_for_log_within("serving", from, time)?;
        self.issuer = Some(daemon);
        Ok(())
    }

    /// Ends the issuer at once.
    ///
    /// # Errors
    /// It is not running.
    pub fn kill_issuer(&mut self) -> Result<()> {
        self.issuer.take().context("the issuer is not running")?.kill()
    }

    /// Ends the issuer in good order.
    ///
    /// # Errors
    /// It is not running, or does not end well.
    pub fn stop_issuer(&mut self) -> Result<()> {
        self.issuer.take().context("the issuer is not running")?.stop()
    }

    /// Adds a PCR policy (TOML as `hallmark host pcrs` prints it) and has the issuer take it up.
    ///
    /// # Errors
    /// The issuer does not take it.
    pub fn add_policy(&mut self, toml: &str) -> Result<()> {
        self.policies.push_str(toml);
        self.policies.push('\n');
        self.write_config()?;
        if let Some(issuer) = &mut self.issuer {
            let from = issuer.log().len() as u64;
            issuer.signal(rustix::process::Signal::HUP)?;
            issuer.wait_for_log("reloaded", from)?;
        }
        Ok(())
    }

    /// Takes all PCR policies away again.
    ///
    /// # Errors
    /// The issuer does not take it.
    pub fn clear_policies(&mut self) -> Result<()> {
        self.policies.clear();
        self.add_policy("")
    }

    /// Runs `hallmark` as an operator and returns its output; a failure is the caller's to judge.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn hallmark(&self, args: &[&str]) -> Result<Output> {
        let mut command = Command::new(binary("hallmark")?);
        command.arg("--admin-socket").arg(self.admin_socket()).args(args);
        Ok(command.output()?)
    }

    /// Runs `hallmark` as an operator; its standard output.
    ///
    /// # Errors
    /// It failed; both its outputs are in the error.
    pub fn hallmark_ok(&self, args: &[&str]) -> Result<String> {
        let output = self.hallmark(args)?;
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() {
            bail!(
                "hallmark {args:?}: {}\n{stdout}\n{}",
                output.status,
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(stdout)
    }

    /// Applies registrations.
    ///
    /// # Errors
    /// They are refused.
    pub fn apply(&self, toml: &str) -> Result<String> {
        let file = self.path("registrations/test.toml");
        std::fs::write(&file, toml)?;
        self.hallmark_ok(&["apply", &file.display().to_string()])
    }

    /// Runs a subcommand of `hallmark-issuer` on this bed's configuration.
    ///
    /// # Errors
    /// It ended otherwise than expected; its output is in the error.
    pub fn issuer_command(&self, args: &[&str], may_fail: bool) -> Result<Output> {
        let mut command = Command::new(binary("hallmark-issuer")?);
        let config = self.path("issuer.toml");
        // `--config` belongs to the innermost subcommand.
        let at = if args.first() == Some(&"ek-roots") { 2 } else { 1 };
        command.args(&args[..at]).arg("--config").arg(&config).args(&args[at..]).envs(self.token.env());
        let output = command.output()?;
        if !may_fail && !output.status.success() {
            bail!(
                "hallmark-issuer {args:?}: {}\n{}\n{}",
                output.status,
                String::from_utf8_lossy(&output.stdout),
                String::from_utf8_lossy(&output.stderr)
            );
        }
        Ok(output)
    }

    fn write_config(&self) -> Result<()> {
        let dir = self.dir.path().display();
        let mut text = String::new();
        writeln!(text, "trust_domain = {:?}", self.options.trust_domain)?;
        writeln!(
            text,
            "issuer_id = {:?}\nlisten = \"{}:{}\"\ndata_dir = \"{dir}/data\"",
            self.options.issuer_id,
            self.address(),
            self.port
        )?;
        if let Some((_, url)) = &self.options.postgres {
            writeln!(text, "[store]\nbackend = \"postgres\"\nurl = {url:?}")?;
        }
        if self.options.dev {
            writeln!(text, "[ca]\nbackend = \"software\"")?;
        } else {
            writeln!(
                text,
                "[ca]\nbackend = \"pkcs11\"\n{}\n[ca.pkcs11]\nmodule = {:?}",
                if self.options.root_token { "root = \"other-token\"" } else { &self.options.ca },
                self.token.module_path()
            )?;
            writeln!(text, "token_label = {:?}\npin_file = {:?}", self.token.label(), self.token.pin_file())?;
            if self.options.root_token {
                writeln!(text, "[ca.root_token]\nmodule = {:?}", self.token.module_path())?;
                writeln!(text, "token_label = {ROOT_TOKEN:?}\npin_file = {:?}", self.token.pin_file())?;
            }
        }
        writeln!(text, "[admin]\nsocket = \"{dir}/admin.sock\"\nmode = \"0660\"")?;
        let enrolment = if self.options.open { "open" } else { "allow-list" };
        writeln!(
            text,
            "[attestation]\nek_roots = \"{dir}/vendor-roots\"\nsimulated_ek_roots = \"{dir}/simulated-roots\""
        )?;
        writeln!(text, "enrolment = \"{enrolment}\"\n{}", self.options.attestation)?;
        writeln!(text, "{}", self.policies)?;
        writeln!(text, "{}", self.options.extra.replace("{dir}", &dir.to_string()))?;
        std::fs::write(self.path("issuer.toml"), text)?;
        Ok(())
    }
}

/// A port of 127.0.0.1 that was free a moment ago.
fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind(("127.0.0.1", 0))?.local_addr()?.port())
}
