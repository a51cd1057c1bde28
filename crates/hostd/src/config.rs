//! The host daemon's configuration: one TOML file, read whole; every fault is reported at once, with its
//! key and what to write instead. No secrets stand in it: the token's PIN and the join token come from
//! files or systemd credentials.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use hallmark_core::id::{HostId, TrustDomain};
use serde::Deserialize;
use zeroize::Zeroizing;

use crate::agents::Limits;

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

/// Where a secret is read from, each time that it is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// A file.
    File(PathBuf),
    /// A systemd credential of this name (`LoadCredential=`).
    Credential(String),
}

impl SecretSource {
    /// The secret, without the newline that editors leave at its end.
    ///
    /// # Errors
    /// The file cannot be read, is empty, or there are no credentials.
    pub fn read(&self) -> Result<Zeroizing<String>, String> {
        let path = match self {
            SecretSource::File(path) => path.clone(),
            SecretSource::Credential(name) => std::env::var_os("CREDENTIALS_DIRECTORY")
                .map(|dir| PathBuf::from(dir).join(name))
                .ok_or_else(|| format!("credential {name}: systemd passed none; is LoadCredential= set?"))?,
        };
        let text = std::fs::read_to_string(&path).map(Zeroizing::new);
        let text = text.map_err(|e| format!("{}: {e}", path.display()))?;
        let trimmed = text.trim_end_matches(['\r', '\n']);
        if trimmed.is_empty() {
            return Err(format!("{} is empty", path.display()));
        }
        Ok(Zeroizing::new(trimmed.to_owned()))
    }
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
    /// The issuers, in the order in which they are tried.
    pub endpoints: Vec<String>,
    /// The root that the issuer's own certificate must chain to, PEM.
    pub infrastructure_root: PathBuf,
    /// How this host proves itself.
    pub proof: Proof,
    /// Agents' keys in a token.
    pub pkcs11: Option<Pkcs11Config>,
    /// The agents' socket.
    pub socket: SocketConfig,
    /// What agents may ask for, at most.
    pub limits: Limits,
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
            faults: vec![Fault { key: String::new(), problem: format!("cannot be read: {e}") }],
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
            self.endpoints == new.endpoints && self.infrastructure_root == new.infrastructure_root,
        );
        compare("tpm, event_log or join token", self.proof == new.proof);
        compare("pkcs11", self.pkcs11 == new.pkcs11);
        compare("agent_socket", self.socket == new.socket);
        compare("log.format", self.log_format == new.log_format);
        keys
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    trust_domain: String,
    host_id: String,
    issuer: RawIssuer,
    tpm: Option<RawTpm>,
    event_log: Option<PathBuf>,
    join_token_file: Option<PathBuf>,
    join_token_credential: Option<String>,
    pkcs11: Option<RawPkcs11>,
    #[serde(default)]
    agent_socket: RawSocket,
    #[serde(default)]
    limits: RawLimits,
    #[serde(default)]
    log: RawLog,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawIssuer {
    endpoints: Vec<String>,
    infrastructure_root: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawTpm {
    tcti: Option<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPkcs11 {
    module: PathBuf,
    token_label: String,
    pin_file: Option<PathBuf>,
    pin_credential: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawSocket {
    path: Option<PathBuf>,
    mode: Option<String>,
    group: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    max_agents: Option<usize>,
    max_agents_per_user: Option<usize>,
    begin_per_second_per_user: Option<u32>,
    begin_burst_per_user: Option<u32>,
    max_connections: Option<usize>,
    max_connections_per_user: Option<usize>,
    sign_per_second: Option<u32>,
    sign_burst: Option<u32>,
    sign_per_second_per_user: Option<u32>,
    sign_burst_per_user: Option<u32>,
    sign_concurrency: Option<usize>,
    max_image_mib: Option<u64>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawLog {
    format: Option<LogFormat>,
    level: Option<String>,
}

#[derive(Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn note(&mut self, key: &str, problem: impl Display) {
        self.0.push(Fault { key: key.to_owned(), problem: problem.to_string() });
    }

    fn parsed<T: FromStr<Err: Display>>(&mut self, key: &str, text: &str) -> Option<T> {
        text.parse().map_err(|e| self.note(key, e)).ok()
    }

    fn config(&mut self, file: &Path, raw: Raw) -> Option<Config> {
        let trust_domain = self.parsed("trust_domain", &raw.trust_domain);
        let host_id = self.parsed("host_id", &raw.host_id);
        let infrastructure_root = raw
            .issuer
            .infrastructure_root
            .unwrap_or_else(|| PathBuf::from("/etc/hallmark/infrastructure.pem"));
        self.endpoints(&raw.issuer.endpoints);
        let join = self.secret(
            ("join_token_file", raw.join_token_file),
            ("join_token_credential", raw.join_token_credential),
        );
        let proof = self.proof(raw.tpm, raw.event_log, join);
        let pkcs11 = raw.pkcs11.and_then(|raw| self.pkcs11(raw));
        let socket = self.socket(raw.agent_socket);
        let limits = self.limits(&raw.limits);
        let log_level = raw.log.level.unwrap_or_else(|| "info".to_owned());
        if let Err(e) = crate::logging::targets(&log_level) {
            self.note("log.level", format!("{e}; write e.g. \"info\" or \"info,hallmark_hostd=debug\""));
        }
        Some(Config {
            file: file.to_owned(),
            trust_domain: trust_domain?,
            host_id: host_id?,
            endpoints: raw.issuer.endpoints,
            infrastructure_root,
            proof: proof?,
            pkcs11,
            socket,
            limits,
            log_format: raw.log.format.unwrap_or(LogFormat::Text),
            log_level,
        })
    }

    fn endpoints(&mut self, endpoints: &[String]) {
        if endpoints.is_empty() {
            self.note(
                "issuer.endpoints",
                "name at least one issuer, as in [\"https://issuer.example.org:8443\"]",
            );
        }
        for (n, endpoint) in endpoints.iter().enumerate() {
            let good = endpoint.parse::<http::Uri>().is_ok_and(|uri| {
                uri.scheme_str() == Some("https")
                    && uri.port_u16().is_some()
                    && matches!(uri.path(), "" | "/")
                    && uri.query().is_none()
            });
            if !good {
                self.note(
                    &format!("issuer.endpoints[{n}]"),
                    format!("{endpoint:?} is not of the form https://HOST:PORT"),
                );
            }
        }
    }

    fn secret(
        &mut self,
        (file_key, file): (&str, Option<PathBuf>),
        (credential_key, credential): (&str, Option<String>),
    ) -> Option<SecretSource> {
        match (file, credential) {
            (Some(_), Some(_)) => {
                self.note(file_key, format!("give it or {credential_key}, not both"));
                None
            }
            (Some(file), None) => Some(SecretSource::File(file)),
            (None, Some(name)) if name.is_empty() || name.contains('/') => {
                self.note(credential_key, "must be a credential's name, not a path");
                None
            }
            (None, Some(name)) => Some(SecretSource::Credential(name)),
            (None, None) => None,
        }
    }

    fn proof(
        &mut self,
        tpm: Option<RawTpm>,
        event_log: Option<PathBuf>,
        join: Option<SecretSource>,
    ) -> Option<Proof> {
        match (tpm, join) {
            (Some(tpm), None) => Some(Proof::Tpm {
                tcti: tpm.tcti.unwrap_or_else(|| "device:/dev/tpmrm0".to_owned()),
                event_log: event_log
                    .unwrap_or_else(|| "/sys/kernel/security/tpm0/binary_bios_measurements".into()),
            }),
            (None, Some(source)) => {
                if event_log.is_some() {
                    self.note("event_log", "has no meaning without a TPM: remove it");
                }
                Some(Proof::JoinToken(source))
            }
            (Some(_), Some(_)) => {
                self.note("tpm", "a host proves itself by its TPM or by a join token: remove one of the two");
                None
            }
            (None, None) => {
                self.note(
                    "tpm",
                    "is missing: write [tpm], or, for a foundation host without a TPM, join_token_file or join_token_credential",
                );
                None
            }
        }
    }

    fn pkcs11(&mut self, raw: RawPkcs11) -> Option<Pkcs11Config> {
        if !raw.module.is_absolute() {
            self.note("pkcs11.module", "must be an absolute path, as in /usr/lib/softhsm/libsofthsm2.so");
        }
        if raw.token_label.is_empty() {
            self.note("pkcs11.token_label", "is empty: write the label that the token was initialised with");
        }
        if raw.pin_file.is_none() && raw.pin_credential.is_none() {
            self.note("pkcs11", "give pin_file or pin_credential");
        }
        let pin =
            self.secret(("pkcs11.pin_file", raw.pin_file), ("pkcs11.pin_credential", raw.pin_credential))?;
        Some(Pkcs11Config { module: raw.module, token_label: raw.token_label, pin })
    }

    fn socket(&mut self, raw: RawSocket) -> SocketConfig {
        let path = raw.path.unwrap_or_else(|| PathBuf::from("/run/hallmark-hostd/agent.sock"));
        // sun_path holds 108 bytes with its terminating zero (unix(7)).
        if !path.is_absolute() || path.as_os_str().len() > 107 {
            self.note("agent_socket.path", "must be an absolute path of at most 107 bytes");
        }
        let text = raw.mode.as_deref().unwrap_or("0660");
        let mode = u32::from_str_radix(text, 8).ok().filter(|mode| mode & !0o777 == 0);
        if mode.is_none() {
            self.note("agent_socket.mode", format!("{text:?} is not an octal mode, as in \"0660\""));
        }
        SocketConfig { path, mode: mode.unwrap_or(0o600), group: raw.group }
    }

    fn limits(&mut self, raw: &RawLimits) -> Limits {
        let usual = Limits::default();
        let max_agents = raw.max_agents.unwrap_or(usual.max_agents);
        let max_agents_per_user = raw.max_agents_per_user.unwrap_or(max_agents.div_ceil(4));
        let sign_per_second = raw.sign_per_second.unwrap_or(usual.sign_per_second);
        let sign_burst = raw.sign_burst.unwrap_or(usual.sign_burst);
        let limits = Limits {
            max_agents,
            max_agents_per_user,
            begin_per_second_per_user: raw
                .begin_per_second_per_user
                .unwrap_or(usual.begin_per_second_per_user),
            // All that he may have, at a stroke: as when his service starts.
            begin_burst_per_user: raw
                .begin_burst_per_user
                .unwrap_or(u32::try_from(max_agents_per_user).unwrap_or(u32::MAX)),
            max_connections: raw.max_connections.unwrap_or(usual.max_connections),
            max_connections_per_user: raw.max_connections_per_user.unwrap_or(usual.max_connections_per_user),
            sign_per_second,
            sign_burst,
            sign_per_second_per_user: raw
                .sign_per_second_per_user
                .unwrap_or(sign_per_second.saturating_mul(4)),
            sign_burst_per_user: raw.sign_burst_per_user.unwrap_or(sign_burst.saturating_mul(4)),
            sign_concurrency: raw.sign_concurrency.unwrap_or(usual.sign_concurrency),
            max_image_bytes: raw
                .max_image_mib
                .map_or(usual.max_image_bytes, |mib| mib.saturating_mul(1 << 20)),
        };
        let zero = [
            ("limits.max_agents", limits.max_agents == 0),
            ("limits.max_agents_per_user", limits.max_agents_per_user == 0 && limits.max_agents != 0),
            ("limits.begin_per_second_per_user", limits.begin_per_second_per_user == 0),
            ("limits.begin_burst_per_user", limits.begin_burst_per_user == 0 && max_agents_per_user != 0),
            ("limits.sign_per_second_per_user", limits.sign_per_second_per_user == 0 && sign_per_second != 0),
            ("limits.sign_burst_per_user", limits.sign_burst_per_user == 0 && sign_burst != 0),
            ("limits.max_connections", limits.max_connections == 0),
            ("limits.max_connections_per_user", limits.max_connections_per_user == 0),
            ("limits.sign_per_second", limits.sign_per_second == 0),
            ("limits.sign_burst", limits.sign_burst == 0),
            ("limits.sign_concurrency", limits.sign_concurrency == 0),
            ("limits.max_image_mib", limits.max_image_bytes == 0),
        ];
        for (key, is_zero) in zero {
            if is_zero {
                self.note(key, "must be at least 1");
            }
        }
        limits
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
