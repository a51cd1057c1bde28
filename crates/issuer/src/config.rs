//! The issuer's configuration: a TOML file, read whole, every fault reported at once.
//!
//! No secrets stand in it: the token's PIN comes from a file or a systemd credential.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hallmark_core::id::{IssuerId, TrustDomain};
use hallmark_core::pcr::{PcrPolicy, PcrSelection};
use hallmark_core::registration::HostPattern;
use hallmark_core::x509::Curve;
use serde::Deserialize;

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
    /// Arc of Hallmark's OIDs, used by `init`.
    pub oid_arc: Option<String>,
    /// CA keys.
    pub ca: CaBackend,
    /// Curve of the CA keys made by `init`: P-256 with SHA-256, or P-384 with SHA-384.
    pub curve: Curve,
    /// Lifetime of roots made by `init`.
    pub root_lifetime: Duration,
    /// Lifetime of issuing CAs made by `init`.
    pub issuing_lifetime: Duration,
    /// Operators.
    pub admin: AdminConfig,
    /// Hosts.
    pub attestation: AttestationConfig,
    /// Base URL of the CRLs, without a trailing slash.
    pub crl_url: Option<String>,
    /// Connections at once.
    pub max_connections: usize,
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
        let text = std::fs::read_to_string(file).map_err(|e| whole(format!("cannot be read: {e}")))?;
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

    /// Directory of what may be given to anybody: roots, bundles, CRLs.
    pub fn public_dir(&self) -> PathBuf {
        self.data_dir.join("public")
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Raw {
    trust_domain: String,
    issuer_id: String,
    listen: String,
    #[serde(default)]
    dns_names: Vec<String>,
    data_dir: PathBuf,
    oid_arc: Option<String>,
    ca: RawCa,
    #[serde(default)]
    admin: RawAdmin,
    #[serde(default)]
    attestation: RawAttestation,
    #[serde(default)]
    crl: RawCrl,
    #[serde(default)]
    limits: RawLimits,
    #[serde(default)]
    log: RawLog,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawCa {
    backend: String,
    curve: Option<String>,
    pkcs11: Option<RawPkcs11>,
    root_lifetime: Option<String>,
    issuing_lifetime: Option<String>,
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
struct RawAdmin {
    socket: Option<PathBuf>,
    mode: Option<String>,
    group: Option<String>,
    #[serde(default)]
    users: Vec<String>,
    #[serde(default)]
    groups: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawAttestation {
    pcrs: Option<Vec<u32>>,
    ek_roots: Option<PathBuf>,
    simulated_ek_roots: Option<PathBuf>,
    enrolment: Option<Enrolment>,
    max_age: Option<String>,
    host_svid_lifetime: Option<String>,
    join_token_svid_lifetime: Option<String>,
    #[serde(default)]
    accept_pkcs11_asserted: bool,
    #[serde(default)]
    pcr_policy: BTreeMap<String, RawPcrPolicy>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawPcrPolicy {
    hosts: Vec<String>,
    pcrs: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawCrl {
    url: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawLimits {
    max_connections: Option<usize>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct RawLog {
    format: Option<LogFormat>,
    level: Option<String>,
}

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// Gathers faults while the raw file is turned into a [`Config`].
#[derive(Default)]
struct Faults(Vec<Fault>);

impl Faults {
    fn note(&mut self, key: &str, problem: impl Into<String>) {
        self.0.push(Fault { key: key.to_owned(), problem: problem.into() });
    }

    fn parsed<T, E: std::fmt::Display>(&mut self, key: &str, value: Result<T, E>) -> Option<T> {
        value.map_err(|e| self.note(key, e.to_string())).ok()
    }

    fn duration(
        &mut self,
        key: &str,
        text: Option<String>,
        default: u64,
        range: std::ops::RangeInclusive<u64>,
    ) -> Duration {
        let Some(text) = text else { return Duration::from_secs(default) };
        match humantime::parse_duration(&text) {
            Ok(d) if range.contains(&d.as_secs()) => d,
            Ok(d) => {
                let show = |s| humantime::format_duration(Duration::from_secs(s));
                self.note(
                    key,
                    format!(
                        "{} is outside {} to {}",
                        humantime::format_duration(d),
                        show(*range.start()),
                        show(*range.end())
                    ),
                );
                Duration::from_secs(default)
            }
            Err(e) => {
                self.note(key, format!("{text:?} is no duration ({e}); write for example \"5m\" or \"12h\""));
                Duration::from_secs(default)
            }
        }
    }

    fn config(&mut self, file: &Path, raw: Raw) -> Option<Config> {
        let trust_domain = self.parsed("trust_domain", raw.trust_domain.parse());
        let issuer_id = self.parsed("issuer_id", raw.issuer_id.parse());
        let listen = raw.listen.parse().map_err(|_| {
            self.note("listen", format!("{:?} is not ADDRESS:PORT, as in \"0.0.0.0:8443\"", raw.listen));
        });
        if raw.data_dir.is_relative() {
            self.note("data_dir", "must be an absolute path");
        }
        if let Some(arc) = &raw.oid_arc {
            self.parsed("oid_arc", hallmark_core::x509::OidArc::parse(arc));
        }
        let root_lifetime =
            self.duration("ca.root_lifetime", raw.ca.root_lifetime.clone(), 3650 * DAY, DAY..=9131 * DAY);
        let issuing_lifetime = self.duration(
            "ca.issuing_lifetime",
            raw.ca.issuing_lifetime.clone(),
            365 * DAY,
            HOUR..=3650 * DAY,
        );
        if issuing_lifetime > root_lifetime {
            self.note(
                "ca.issuing_lifetime",
                "is longer than ca.root_lifetime: an issuing CA ends with its root",
            );
        }
        let curve = match raw.ca.curve.as_deref() {
            None | Some("p256") => Curve::P256,
            Some("p384") => Curve::P384,
            Some(other) => {
                self.note("ca.curve", format!("{other:?} is neither \"p256\" nor \"p384\""));
                Curve::P256
            }
        };
        let ca = self.ca(raw.ca);
        let admin = self.admin(raw.admin);
        let attestation = self.attestation(raw.attestation);
        if let Some(url) = &raw.crl.url
            && (!url.starts_with("http://") || url.ends_with('/'))
        {
            self.note("crl.url", "must begin with http:// (RFC 5280 section 8: a CRL is signed; https would need a CRL to fetch a CRL) and not end with '/'");
        }
        Some(Config {
            file: file.to_owned(),
            trust_domain: trust_domain?,
            issuer_id: issuer_id?,
            listen: listen.ok()?,
            dns_names: raw.dns_names,
            data_dir: raw.data_dir,
            oid_arc: raw.oid_arc,
            ca: ca?,
            curve,
            root_lifetime,
            issuing_lifetime,
            admin,
            attestation,
            crl_url: raw.crl.url,
            max_connections: raw.limits.max_connections.unwrap_or(4096),
            log_format: raw.log.format.unwrap_or(LogFormat::Text),
            log_level: raw.log.level.unwrap_or_else(|| "info".to_owned()),
        })
    }

    fn pcr_policy(
        &mut self,
        key: &str,
        name: String,
        raw: RawPcrPolicy,
        quoted: &PcrSelection,
    ) -> HostPolicy {
        let hosts =
            raw.hosts.iter().filter_map(|h| self.parsed(&format!("{key}.hosts"), h.parse())).collect();
        if raw.hosts.is_empty() {
            self.note(&format!("{key}.hosts"), "name the hosts, or [\"*\"] for every host");
        }
        if raw.pcrs.is_empty() {
            self.note(&format!("{key}.pcrs"), "a policy without PCRs would accept every state");
        }
        let mut accepted: BTreeMap<u8, BTreeSet<[u8; 32]>> = BTreeMap::new();
        for (index, values) in &raw.pcrs {
            let key = format!("{key}.pcrs.{index}");
            let Some(index) = index.parse().ok().filter(|index| quoted.contains(*index)) else {
                self.note(&key, "this PCR is not in attestation.pcrs, so no quote would cover it");
                continue;
            };
            let values = values.iter().filter_map(|value| {
                let mut digest = [0; 32];
                hex::decode_to_slice(value, &mut digest)
                    .map_err(|e| self.note(&key, format!("{value:?} is no sha256 value in hex: {e}")))
                    .ok()
                    .map(|()| digest)
            });
            accepted.insert(index, values.collect());
        }
        HostPolicy { policy: PcrPolicy { name, hosts: raw.hosts, accepted }, hosts }
    }

    fn ca(&mut self, raw: RawCa) -> Option<CaBackend> {
        match (raw.backend.as_str(), raw.pkcs11) {
            ("pkcs11", Some(p)) => {
                let pin = match (p.pin_file, p.pin_credential) {
                    (Some(file), None) => SecretSource::File(file),
                    (None, Some(name)) => SecretSource::Credential(name),
                    _ => {
                        self.note("ca.pkcs11", "give exactly one of pin_file and pin_credential");
                        return None;
                    }
                };
                Some(CaBackend::Pkcs11(Pkcs11Config { module: p.module, token_label: p.token_label, pin }))
            }
            ("pkcs11", None) => {
                self.note(
                    "ca.pkcs11",
                    "is missing: give module, token_label, and pin_file or pin_credential",
                );
                None
            }
            ("software", None) => Some(CaBackend::Software),
            ("software", Some(_)) => {
                self.note("ca.pkcs11", "has no meaning with backend = \"software\": remove it");
                None
            }
            (other, _) => {
                self.note(
                    "ca.backend",
                    format!("{other:?} is none of \"pkcs11\" and, with --dev only, \"software\""),
                );
                None
            }
        }
    }

    fn admin(&mut self, raw: RawAdmin) -> AdminConfig {
        let mode = raw.mode.as_deref().unwrap_or("0660");
        let mode = u32::from_str_radix(mode, 8).ok().filter(|m| m & !0o660 == 0).unwrap_or_else(|| {
            self.note(
                "admin.mode",
                format!("{mode:?} is not an octal mode within 0660: nobody else may reach this socket"),
            );
            0o600
        });
        AdminConfig {
            socket: raw.socket.unwrap_or_else(|| PathBuf::from("/run/hallmark-issuer/admin.sock")),
            mode,
            group: raw.group,
            users: raw.users,
            groups: raw.groups,
        }
    }

    fn attestation(&mut self, raw: RawAttestation) -> AttestationConfig {
        let pcrs = match PcrSelection::new(raw.pcrs.unwrap_or_else(|| (0..=7).collect())) {
            Ok(pcrs) => {
                if pcrs.is_empty() {
                    self.note("attestation.pcrs", "must name at least one PCR");
                }
                pcrs
            }
            Err(e) => {
                self.note("attestation.pcrs", e.to_string());
                PcrSelection::default()
            }
        };
        let mut pcr_policies = Vec::new();
        for (name, policy) in raw.pcr_policy {
            let key = format!("attestation.pcr_policy.{name}");
            pcr_policies.push(self.pcr_policy(&key, name, policy, &pcrs));
        }
        AttestationConfig {
            pcrs,
            ek_roots: raw.ek_roots,
            simulated_ek_roots: raw.simulated_ek_roots,
            enrolment: raw.enrolment.unwrap_or(Enrolment::AllowList),
            max_age: self.duration("attestation.max_age", raw.max_age, 5 * MINUTE, 10..=HOUR),
            host_svid_lifetime: self.duration(
                "attestation.host_svid_lifetime",
                raw.host_svid_lifetime,
                HOUR,
                MINUTE..=DAY,
            ),
            join_token_svid_lifetime: self.duration(
                "attestation.join_token_svid_lifetime",
                raw.join_token_svid_lifetime,
                DAY,
                MINUTE..=7 * DAY,
            ),
            pcr_policies,
            accept_pkcs11_asserted: raw.accept_pkcs11_asserted,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GOOD: &str = r#"
trust_domain = "example.org"
issuer_id = "issuer-1"
listen = "127.0.0.1:8443"
data_dir = "/var/lib/hallmark-issuer"
[ca]
backend = "software"
"#;

    fn faults(text: &str) -> Vec<String> {
        Config::parse(Path::new("t.toml"), text).unwrap_err().faults.into_iter().map(|f| f.key).collect()
    }

    #[test]
    fn the_smallest_file_is_enough() {
        let config = Config::parse(Path::new("t.toml"), GOOD).unwrap();
        assert_eq!(config.attestation.pcrs.to_string(), "0,1,2,3,4,5,6,7");
        assert_eq!(config.attestation.enrolment, Enrolment::AllowList);
        assert_eq!(config.attestation.max_age, Duration::from_secs(300));
    }

    #[test]
    fn all_faults_at_once() {
        let bad = GOOD.replace("example.org", "Example.org").replace("127.0.0.1:8443", "8443")
            + "[attestation]\nmax_age = \"9h\"\npcrs = [24]\n[admin]\nmode = \"0666\"\n[crl]\nurl = \"https://x/\"\n";
        assert_eq!(
            faults(&bad),
            ["trust_domain", "listen", "admin.mode", "attestation.pcrs", "attestation.max_age", "crl.url"]
        );
    }

    #[test]
    fn unknown_keys_are_faults() {
        let error = Config::parse(Path::new("t.toml"), &format!("{GOOD}\nbackendd = 1\n")).unwrap_err();
        assert!(error.to_string().contains("backendd"), "{error}");
    }

    #[test]
    fn a_policy_on_a_pcr_that_no_quote_covers_is_a_fault() {
        let bad = format!(
            "{GOOD}\n[attestation.pcr_policy.p]\nhosts = [\"*\"]\n[attestation.pcr_policy.p.pcrs]\n11 = [\"{}\"]\n",
            "00".repeat(32)
        );
        assert_eq!(faults(&bad), ["attestation.pcr_policy.p.pcrs.11"]);
    }
}
