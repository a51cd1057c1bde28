//! The issuer's configuration: a TOML file, read whole, every fault reported at once.
//!
//! No secrets stand in it: the token's PIN comes from a file or a systemd credential.

mod check;
mod limits;
mod raw;
mod rotation;
mod store;
#[cfg(test)]
mod tests;
mod witness;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hallmark_core::id::{IssuerId, TrustDomain};
use hallmark_core::pcr::{PcrPolicy, PcrSelection};
use hallmark_core::registration::HostPattern;
use hallmark_core::x509::Curve;
use hallmark_telemetry::{Endpoint, TracesConfig};
use serde::Deserialize;

use check::Faults;
pub use limits::{Limits, MAX_ATTESTATION};
use raw::Raw;
pub use rotation::{Roots, Rotation};
pub use store::{PostgresConfig, StoreConfig};
pub use witness::{WitnessAt, WitnessConfig};

/// One thing wrong with a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The key, as in `attestation.max_age`; empty for the file as a whole.
    pub key: String,
    /// What is wrong and what to write instead.
    pub problem: String,
}

/// Everything wrong with a configuration file.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {}", faults.iter().map(|f| if f.key.is_empty() { f.problem.clone() } else { format!("{}: {}", f.key, f.problem) }).collect::<Vec<_>>().join("\n  "))]
pub struct ConfigError {
    /// The file.
    pub file: String,
    /// All faults found.
    pub faults: Vec<Fault>,
}

/// Where the CA keys live.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CaBackend {
    /// In a PKCS#11 token.
    Pkcs11(Pkcs11Config),
    /// In this process's memory, gone when it ends: `--dev` only.
    Software,
}

/// The PKCS#11 token of the CA keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pkcs11Config {
    /// Path of the module.
    pub module: PathBuf,
    /// The token's label.
    pub token_label: String,
    /// Where its PIN is read from.
    pub pin: SecretSource,
}

/// Where a secret is read from when it is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// A file.
    File(PathBuf),
    /// A systemd credential of this name (`LoadCredential=`).
    Credential(String),
}

impl SecretSource {
    /// The file to read: the path, or the credential's file under `$CREDENTIALS_DIRECTORY`.
    pub fn path(&self) -> Option<PathBuf> {
        match self {
            SecretSource::File(path) => Some(path.clone()),
            SecretSource::Credential(name) => {
                std::env::var_os("CREDENTIALS_DIRECTORY").map(|dir| PathBuf::from(dir).join(name))
            }
        }
    }
}

/// How a host that is not known yet may enrol.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Enrolment {
    /// Only EKs on the allow-list (`hallmark host allow`), each under the host id allowed for it.
    AllowList,
    /// Any TPM whose EK certificate chains to a known root may take any host id that is free.
    Open,
}

/// Accepted PCR values, and the hosts they are for.
#[derive(Debug, Clone)]
pub struct HostPolicy {
    /// The values.
    pub policy: PcrPolicy,
    /// The hosts.
    pub hosts: Vec<HostPattern>,
}

/// What hosts must show.
#[derive(Debug, Clone)]
pub struct AttestationConfig {
    /// PCRs that every quote covers.
    pub pcrs: PcrSelection,
    /// Directory of manufacturer roots.
    pub ek_roots: Option<PathBuf>,
    /// Directory of roots of software TPMs.
    pub simulated_ek_roots: Option<PathBuf>,
    /// Who may enrol.
    pub enrolment: Enrolment,
    /// How old a quote may be for the advanced tier.
    pub max_age: Duration,
    /// Lifetime of a host SVID.
    pub host_svid_lifetime: Duration,
    /// Lifetime of the host SVID that a join token buys: a new token is needed after it.
    pub join_token_svid_lifetime: Duration,
    /// Sets of accepted PCR values.
    pub pcr_policies: Vec<HostPolicy>,
    /// A PKCS#11 module's word is enough for the advanced tier.
    pub accept_pkcs11_asserted: bool,
}

/// Who may use the admin socket.
#[derive(Debug, Clone)]
pub struct AdminConfig {
    /// Where it is.
    pub socket: PathBuf,
    /// Its mode.
    pub mode: u32,
    /// Its group, by name or number.
    pub group: Option<String>,
    /// Users admitted, besides root and the issuer's own, by name or number.
    pub users: Vec<String>,
    /// Groups admitted, by name or number.
    pub groups: Vec<String>,
}

/// How the log is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
    /// Straight to journald, with fields.
    Journald,
}

/// A configuration without faults.
#[derive(Debug, Clone)]
pub struct Config {
    /// The file it was read from.
    pub file: PathBuf,
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// This issuer's id in it.
    pub issuer_id: IssuerId,
    /// Where hosts connect.
    pub listen: SocketAddr,
    /// Names that hosts connect by; informative DNS names in the issuer's own certificate.
    pub dns_names: Vec<String>,
    /// State.
    pub data_dir: PathBuf,
    /// Where the state is kept.
    pub store: StoreConfig,
    /// Arc of Hallmark's OIDs, used by `init`.
    pub oid_arc: Option<String>,
    /// CA keys.
    pub ca: CaBackend,
    /// Curve of the CA keys made from here on: P-256 with SHA-256, or P-384 with SHA-384.
    pub curve: Curve,
    /// Lifetime of roots.
    pub root_lifetime: Duration,
    /// Lifetime of issuing CAs.
    pub issuing_lifetime: Duration,
    /// Where the roots' keys are.
    pub roots: Roots,
    /// When CAs are replaced.
    pub rotation: Rotation,
    /// Operators.
    pub admin: AdminConfig,
    /// Hosts.
    pub attestation: AttestationConfig,
    /// Base URL of the CRLs, without a trailing slash.
    pub crl_url: Option<String>,
    /// What the door lets anybody hold.
    pub limits: Limits,
    /// Who cosigns the log's checkpoints, if anybody does.
    pub witness: Option<WitnessConfig>,
    /// Where metrics are served, if they are.
    pub metrics: Option<Endpoint>,
    /// Where spans are sent, if they are.
    pub traces: Option<TracesConfig>,
    /// Log form.
    pub log_format: LogFormat,
    /// Log filter, in `tracing` syntax.
    pub log_level: String,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let name = file.display().to_string();
        let whole = |problem: String| ConfigError {
            file: name.clone(),
            faults: vec![Fault { key: String::new(), problem }],
        };
        let text = std::fs::read_to_string(file).map_err(|e| {
            whole(format!(
                "cannot be read: {e} (--config names another file; deploy/example in the sources has one)"
            ))
        })?;
        Self::parse(file, &text)
    }

    /// Checks a file's text.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(file: &Path, text: &str) -> Result<Self, ConfigError> {
        let error = |faults| ConfigError { file: file.display().to_string(), faults };
        let raw: Raw = toml::from_str(text).map_err(|e| {
            error(vec![Fault { key: String::new(), problem: e.to_string().trim_end().to_owned() }])
        })?;
        let mut faults = Faults::default();
        let config = faults.config(file, raw);
        match config {
            Some(config) if faults.0.is_empty() => Ok(config),
            _ => Err(error(faults.0)),
        }
    }

    /// The database file.
    pub fn database(&self) -> PathBuf {
        self.data_dir.join("hallmark.db")
    }

    /// Directory of the log in files, for auditors.
    pub fn log_dir(&self) -> PathBuf {
        self.data_dir.join("log")
    }

    /// Directory of what may be given to anybody: roots, bundles, CRLs.
    pub fn public_dir(&self) -> PathBuf {
        self.data_dir.join("public")
    }
}
