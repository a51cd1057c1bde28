//! The host daemon's configuration: one TOML file, read whole; every fault is reported at once, with its
//! key and what to write instead. No secrets stand in it: the token's PIN and the join token come from
//! files or systemd credentials.

mod check;
mod raw;
mod secret;

use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::{Path, PathBuf};

use hallmark_core::id::{HostId, TrustDomain};
use hallmark_telemetry::{Endpoint, TracesConfig};
use serde::Deserialize;

use crate::agents::Limits;
use check::Faults;
use raw::Raw;

pub use secret::SecretSource;

/// One thing wrong with a configuration file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fault {
    /// The key, as in `agent_socket.mode`; empty for the file as a whole.
    pub key: String,
    /// What is wrong and what to write instead.
    pub problem: String,
}

impl Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.key.is_empty() {
            f.write_str(&self.problem)
        } else {
            write!(f, "{}: {}", self.key, self.problem)
        }
    }
}

/// Everything wrong with a configuration file.
#[derive(Debug, thiserror::Error)]
#[error("{file}: {}", .faults.iter().map(ToString::to_string).collect::<Vec<_>>().join("\n  "))]
pub struct ConfigError {
    /// The file.
    pub file: String,
    /// All faults found.
    pub faults: Vec<Fault>,
}

/// How this host proves itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Proof {
    /// By its TPM.
    Tpm {
        /// How the TPM is reached, as tpm2-tss writes it.
        tcti: String,
        /// Where the firmware left its event log.
        event_log: PathBuf,
    },
    /// By a join token: foundation only, once.
    JoinToken(SecretSource),
}

/// The PKCS#11 token of agents' keys.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pkcs11Config {
    /// The module's file.
    pub module: PathBuf,
    /// The token's label.
    pub token_label: String,
    /// Where its PIN is read from.
    pub pin: SecretSource,
}

/// The agents' socket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SocketConfig {
    /// Its path.
    pub path: PathBuf,
    /// Its mode.
    pub mode: u32,
    /// Its group, by name or number.
    pub group: Option<String>,
}

/// In which order the issuers are tried.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IssuerOrder {
    /// Each host in an order of its own: they spread over all issuers.
    Spread,
    /// As they are listed.
    Listed,
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
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// The file it was read from.
    pub file: PathBuf,
    /// The trust domain.
    pub trust_domain: TrustDomain,
    /// This host.
    pub host_id: HostId,
    /// In which order the issuers are tried.
    pub order: IssuerOrder,
    /// The issuers.
    pub endpoints: Vec<String>,
    /// The root that the issuer's own certificate must chain to, PEM.
    pub infrastructure_root: PathBuf,
    /// Where the infrastructure roots that the issuer sends are kept for the next start; nowhere if none.
    pub root_cache: Option<PathBuf>,
    /// How this host proves itself.
    pub proof: Proof,
    /// Agents' keys in a token.
    pub pkcs11: Option<Pkcs11Config>,
    /// The agents' socket.
    pub socket: SocketConfig,
    /// What agents may ask for, at most.
    pub limits: Limits,
    /// Where metrics are served, if they are.
    pub metrics: Option<Endpoint>,
    /// Where spans are sent, if they are.
    pub traces: Option<TracesConfig>,
    /// Log form.
    pub log_format: LogFormat,
    /// Log filter: `LEVEL[,TARGET=LEVEL…]`.
    pub log_level: String,
}

impl Config {
    /// Reads and checks a file.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn load(file: &Path) -> Result<Self, ConfigError> {
        let text = std::fs::read_to_string(file).map_err(|e| ConfigError {
            file: file.display().to_string(),
            faults: vec![Fault {
                key: String::new(),
                problem: format!(
                    "cannot be read: {e} (--config names another file; deploy/example in the sources has one)"
                ),
            }],
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
        match faults.config(file, raw) {
            Some(config) if faults.0.is_empty() => Ok(config),
            _ => Err(error(faults.0)),
        }
    }

    /// The keys in which `new` differs and that only a restart takes over.
    pub fn needs_restart(&self, new: &Config) -> BTreeSet<&'static str> {
        let mut keys = BTreeSet::new();
        let mut compare = |key, same: bool| {
            if !same {
                keys.insert(key);
            }
        };
        compare("trust_domain", self.trust_domain == new.trust_domain);
        compare("host_id", self.host_id == new.host_id);
        compare(
            "issuer",
            self.endpoints == new.endpoints
                && self.order == new.order
                && self.infrastructure_root == new.infrastructure_root
                && self.root_cache == new.root_cache,
        );
        compare("tpm, event_log or join token", self.proof == new.proof);
        compare("pkcs11", self.pkcs11 == new.pkcs11);
        compare("agent_socket", self.socket == new.socket);
        compare("metrics", self.metrics == new.metrics);
        compare("traces", self.traces == new.traces);
        compare("log.format", self.log_format == new.log_format);
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
trust_domain = "example.org"
host_id = "web-01"
[issuer]
endpoints = ["https://127.0.0.1:8443"]
[tpm]
"#;

    fn parse(text: &str) -> Result<Config, ConfigError> {
        Config::parse(Path::new("hostd.toml"), text)
    }

    fn keys(text: &str) -> Vec<String> {
        parse(text).unwrap_err().faults.into_iter().map(|f| f.key).collect()
    }

    #[test]
    fn the_shortest_configuration_has_the_usual_values() {
        let config = parse(GOOD).unwrap();
        assert_eq!(config.socket.mode, 0o660);
        assert_eq!(config.limits, Limits::default());
        assert!(matches!(config.proof, Proof::Tpm { ref tcti, .. } if tcti == "device:/dev/tpmrm0"));
        assert_eq!(config.log_format, LogFormat::Text);
    }

    #[test]
    fn every_fault_is_reported_at_once() {
        let found = keys(
            r#"
trust_domain = "Example.org"
host_id = ""
[issuer]
endpoints = ["http://a:1", "https://b", "https://c:1/x"]
[pkcs11]
module = "softhsm.so"
token_label = ""
[agent_socket]
path = "agent.sock"
mode = "rw"
[limits]
max_agents = 0
[log]
level = "=="
"#,
        );
        assert_eq!(
            found,
            [
                "trust_domain",
                "host_id",
                "issuer.endpoints[0]",
                "issuer.endpoints[1]",
                "issuer.endpoints[2]",
                "tpm",
                "pkcs11.module",
                "pkcs11.token_label",
                "pkcs11",
                "agent_socket.path",
                "agent_socket.mode",
                "limits.max_agents",
                "log.level",
            ]
        );
    }

    #[test]
    fn a_host_proves_itself_in_exactly_one_way() {
        assert_eq!(keys(&format!("join_token_file = \"/t\"\n{GOOD}")), ["tpm"]);
        assert_eq!(keys(&GOOD.replace("[tpm]", "")), ["tpm"]);
        let token = format!("join_token_credential = \"join\"\n{}", GOOD.replace("[tpm]", ""));
        let config = parse(&token).unwrap();
        assert_eq!(config.proof, Proof::JoinToken(SecretSource::Credential("join".into())));
        assert_eq!(keys(&format!("join_token_file = \"/t\"\n{token}")), ["join_token_file", "tpm"]);
    }

    #[test]
    fn a_users_share_follows_from_the_whole() {
        let limits =
            parse(&format!("{GOOD}\n[limits]\nmax_agents = 2000\nsign_per_second = 50")).unwrap().limits;
        assert_eq!((limits.max_agents_per_user, limits.begin_burst_per_user), (500, 500));
        assert_eq!(limits.sign_per_second_per_user, 200);
        assert_eq!(
            keys(&format!("{GOOD}\n[limits]\nmax_agents_per_user = 0")),
            ["limits.max_agents_per_user"]
        );
    }

    #[test]
    fn metrics_are_off_and_then_for_this_machine_alone() {
        assert_eq!(parse(GOOD).unwrap().metrics, None);
        let on = parse(&format!("{GOOD}\n[metrics]\nlisten = \"127.0.0.1:9465\"")).unwrap();
        assert_eq!(on.metrics, Some(Endpoint::Tcp("127.0.0.1:9465".parse().unwrap())));
        let error = parse(&format!("{GOOD}\n[metrics]\nlisten = \"0.0.0.0:9465\"")).unwrap_err();
        assert!(
            error.to_string().contains("metrics.listen: \"0.0.0.0:9465\" is not a loopback address"),
            "{error}"
        );
        assert_eq!(parse(GOOD).unwrap().needs_restart(&on), ["metrics"].into());
    }

    #[test]
    fn unknown_keys_are_faults() {
        assert!(parse(&format!("{GOOD}\npin = \"1234\"")).unwrap_err().to_string().contains("pin"));
    }

    #[test]
    fn a_reload_names_what_it_cannot_take_over() {
        let old = parse(GOOD).unwrap();
        let same = parse(&format!("{GOOD}\n[log]\nlevel = \"debug\"\n[limits]\nmax_agents = 3")).unwrap();
        assert!(old.needs_restart(&same).is_empty());
        let other = parse(&GOOD.replace("web-01", "web-02").replace("[tpm]", "[tpm]\ntcti = \"x\"")).unwrap();
        assert_eq!(
            old.needs_restart(&other).into_iter().collect::<Vec<_>>(),
            ["host_id", "tpm, event_log or join token"]
        );
    }
}
