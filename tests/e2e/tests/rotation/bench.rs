//! A bed with one host in the advanced tier and an agent of each tier, and openssl as judge of what they get.
#![allow(dead_code, reason = "each test program uses its part")]

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use hallmark_e2e::{Agent, Bed, BedOptions, Host, Shown, example, registration};
use hallmark_kit::softhsm::run;

pub(crate) struct Bench {
    pub(crate) bed: Bed,
    pub(crate) host: Host,
    files: std::sync::atomic::AtomicUsize,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Good,
    Revoked,
}

/// A CA as `hallmark ca list` shows it.
#[derive(Debug, Clone)]
pub(crate) struct Listed {
    pub(crate) hierarchy: String,
    pub(crate) kind: String,
    pub(crate) state: String,
    pub(crate) generation: u64,
    pub(crate) root: u64,
    pub(crate) withdrawn_at: Option<String>,
}

impl Listed {
    pub(crate) fn signs(&self, hierarchy: &str) -> bool {
        self.hierarchy == hierarchy && self.kind == "issuing" && self.state == "active"
    }
}

pub(crate) fn json(bed: &Bed, args: &[&str]) -> Result<serde_json::Value> {
    let args: Vec<&str> = args.iter().copied().chain(["--output", "json"]).collect();
    let output = bed.hallmark(&args)?;
    // Doctor fails when a check does; its answer is an answer.
    serde_json::from_slice(&output.stdout)
        .with_context(|| format!("{args:?}: {}", String::from_utf8_lossy(&output.stderr)))
}

pub(crate) fn cas(bed: &Bed, args: &[&str]) -> Result<Vec<Listed>> {
    let shown = json(bed, &[&["ca", "list"], args].concat())?;
    let text = |ca: &serde_json::Value, key: &str| ca[key].as_str().unwrap_or_default().to_owned();
    let cas = shown["cas"].as_array().context("no CAs")?;
    Ok(cas
        .iter()
        .map(|ca| Listed {
            hierarchy: text(ca, "hierarchy"),
            kind: text(ca, "kind"),
            state: text(ca, "state"),
            generation: ca["generation"].as_u64().unwrap_or_default(),
            root: ca["root"].as_u64().unwrap_or_default(),
            withdrawn_at: ca["withdrawn_at"].as_str().map(str::to_owned),
        })
        .collect())
}

/// Waits for longer than is usual: for something that takes its time by design.
pub(crate) fn patiently<T>(what: &str, limit: Duration, mut ready: impl FnMut() -> Option<T>) -> Result<T> {
    let begun = Instant::now();
    loop {
        if let Some(value) = ready() {
            return Ok(value);
        }
        ensure!(begun.elapsed() < limit, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

impl Bench {
    pub(crate) fn start(options: BedOptions, more: &str) -> Result<Self> {
        Self::of(Bed::start(options)?, more)
    }

    /// Gives a bed whose issuer runs its host and its agents.
    pub(crate) fn of(mut bed: Bed, more: &str) -> Result<Self> {
        let mut host = Host::with_tpm(&bed, "host-1")?;
        host.start(&bed)?;
        let policy = bed.hallmark_ok(&["host", "pcrs", "host-1"])?;
        bed.add_policy(&policy)?;
        let program = example("stub_agent")?;
        let mut toml = String::new();
        for tier in ["foundation", "enterprise", "advanced"] {
            toml.push_str(&registration(&format!("agent-{tier}"), tier, &program, more)?);
        }
        bed.apply(&toml)?;
        Ok(Self { bed, host, files: Default::default() })
    }

    pub(crate) fn watch(&self, tier: &str) -> Result<Agent> {
        Agent::watching(&self.host, &format!("agent-{tier}"))
    }

    pub(crate) fn write(&self, name: &str, content: &str) -> Result<PathBuf> {
        let number = self.files.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = self.bed.path(&format!("{number}-{name}"));
        std::fs::write(&path, content)?;
        Ok(path)
    }

    /// The bundle as anybody may have it now.
    pub(crate) fn bundle(&self) -> Result<String> {
        Ok(std::fs::read_to_string(self.bed.path("data/public/bundle.pem"))?)
    }

    /// Has openssl hold a chain against the bundle of now.
    pub(crate) fn verify(&self, shown: &Shown) -> Result<()> {
        self.verify_by(shown, &self.bundle()?)
    }

    /// Has openssl hold a chain against these roots.
    pub(crate) fn verify_by(&self, shown: &Shown, roots: &str) -> Result<()> {
        let pem = |der: &[u8]| pem::encode(&pem::Pem::new("CERTIFICATE", der));
        let roots = self.write("roots.pem", roots)?;
        let (leaf, issuing) = (
            self.write("leaf.pem", &pem(&shown.chain[0]))?,
            self.write("issuing.pem", &pem(&shown.chain[1]))?,
        );
        let output = Command::new("openssl")
            .args(["verify", "-x509_strict", "-no-CApath", "-no-CAstore", "-CAfile"])
            .arg(roots)
            .arg("-untrusted")
            .arg(issuing)
            .arg(leaf)
            .output()?;
        if output.status.success() {
            return Ok(());
        }
        bail!(
            "openssl verify: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        )
    }

    /// What openssl makes of a leaf with the list of the issuing CA of this generation.
    pub(crate) fn crl_verdict(&self, shown: &Shown, generation: u32) -> Result<Verdict> {
        let pem = |der: &[u8]| pem::encode(&pem::Pem::new("CERTIFICATE", der));
        let list = std::fs::read(self.bed.path(&format!("data/public/crl/{}-{generation}.crl", shown.tier)))?;
        let list = self.write("list.pem", &pem::encode(&pem::Pem::new("X509 CRL", list)))?;
        let roots = self.write("roots.pem", &self.bundle()?)?;
        let (leaf, issuing) = (
            self.write("leaf.pem", &pem(&shown.chain[0]))?,
            self.write("issuing.pem", &pem(&shown.chain[1]))?,
        );
        let output = Command::new("openssl")
            .args(["verify", "-crl_check", "-no-CApath", "-no-CAstore", "-CAfile"])
            .arg(roots)
            .arg("-CRLfile")
            .arg(list)
            .arg("-untrusted")
            .arg(issuing)
            .arg(leaf)
            .output()?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        match (output.status.success(), said.contains("certificate revoked")) {
            (true, _) => Ok(Verdict::Good),
            (false, true) => Ok(Verdict::Revoked),
            (false, false) => bail!("openssl verify: {said}"),
        }
    }

    /// Labels of the private keys on the CA's token, as OpenSC sees them.
    pub(crate) fn keys(&self) -> Result<Vec<String>> {
        let token = self.bed.token();
        let seen = run(token.pkcs11_tool(token.label()).args(["--list-objects", "--type", "privkey"]))?;
        let label = |line: &str| line.trim().strip_prefix("label:").map(|l| l.trim().to_owned());
        Ok(seen.lines().filter_map(label).collect())
    }

    pub(crate) fn records(&self, kind: &str) -> Result<Vec<serde_json::Value>> {
        let shown = json(&self.bed, &["records", "--limit", "10000"])?;
        let records = shown["records"].as_array().context("no records")?;
        Ok(records.iter().filter(|r| r["kind"] == kind).cloned().collect())
    }

    pub(crate) fn state_of(&self, agent: &str, instance: &str) -> Result<String> {
        let shown = json(&self.bed, &["agent", "show", agent])?;
        let instances = shown["instances"].as_array().context("instances")?;
        let found = instances.iter().find(|i| i["instance_id"] == instance).context("no such instance")?;
        Ok(found["state"].as_str().unwrap_or_default().to_owned())
    }
}
