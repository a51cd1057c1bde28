//! From what is written to what is meant, with every fault on the way noted.

use std::fmt::Display;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use super::raw::{Raw, RawLimits, RawPkcs11, RawSocket, RawTpm};
use super::{Config, Fault, IssuerOrder, LogFormat, Pkcs11Config, Proof, SecretSource, SocketConfig};
use crate::agents::Limits;

/// All faults found so far.
#[derive(Default)]
pub(super) struct Faults(pub(super) Vec<Fault>);

impl Faults {
    fn note(&mut self, key: &str, problem: impl Display) {
        self.0.push(Fault { key: key.to_owned(), problem: problem.to_string() });
    }

    fn parsed<T: FromStr<Err: Display>>(&mut self, key: &str, text: &str) -> Option<T> {
        text.parse().map_err(|e| self.note(key, e)).ok()
    }

    /// The configuration that `raw` means, unless it lacks what none can be made without. Sound only if no
    /// fault was noted.
    pub(super) fn config(&mut self, file: &Path, raw: Raw) -> Option<Config> {
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
        let metrics = raw.metrics.check(&mut |key, problem| self.note(key, problem));
        let traces = raw.traces.check(&mut |key, problem| self.note(key, problem));
        let log_level = raw.log.level.unwrap_or_else(|| "info".to_owned());
        if let Err(e) = crate::logging::targets(&log_level) {
            self.note("log.level", format!("{e}; write e.g. \"info\" or \"info,hallmark_hostd=debug\""));
        }
        Some(Config {
            file: file.to_owned(),
            trust_domain: trust_domain?,
            host_id: host_id?,
            order: raw.issuer.order.unwrap_or(IssuerOrder::Spread),
            endpoints: raw.issuer.endpoints,
            infrastructure_root,
            root_cache: raw.issuer.root_cache,
            proof: proof?,
            pkcs11,
            socket,
            limits,
            metrics,
            traces,
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
