//! From the file as it is written to a [`Config`], with every fault on the way.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::time::Duration;

use hallmark_core::pcr::{PcrPolicy, PcrSelection};
use hallmark_core::x509::Curve;

use super::raw::{Raw, RawAdmin, RawAttestation, RawPcrPolicy, RawPkcs11};
use super::{
    AdminConfig, AttestationConfig, CaBackend, Config, Enrolment, Fault, HostPolicy, LogFormat, Pkcs11Config,
    SecretSource,
};

const MINUTE: u64 = 60;
const HOUR: u64 = 60 * MINUTE;
const DAY: u64 = 24 * HOUR;

/// Gathers faults while the raw file is turned into a [`Config`].
#[derive(Default)]
pub(super) struct Faults(pub(super) Vec<Fault>);

impl Faults {
    pub(super) fn note(&mut self, key: &str, problem: impl Into<String>) {
        self.0.push(Fault { key: key.to_owned(), problem: problem.into() });
    }

    pub(super) fn parsed<T, E: std::fmt::Display>(&mut self, key: &str, value: Result<T, E>) -> Option<T> {
        value.map_err(|e| self.note(key, e.to_string())).ok()
    }

    pub(super) fn duration(
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

    pub(super) fn config(&mut self, file: &Path, raw: Raw) -> Option<Config> {
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
        let rotation = self.rotation(raw.ca.rotation, issuing_lifetime);
        let root_token = raw.ca.root_token.and_then(|token| self.pkcs11("ca.root_token", token));
        let roots = self.roots(raw.ca.root, root_token, raw.ca.backend == "software");
        let ca = self.ca(&raw.ca.backend, raw.ca.pkcs11);
        let admin = self.admin(raw.admin);
        let attestation = self.attestation(raw.attestation);
        if let Some(url) = &raw.crl.url
            && (!url.starts_with("http://") || url.ends_with('/'))
        {
            self.note("crl.url", "must begin with http:// (RFC 5280 section 8: a CRL is signed; https would need a CRL to fetch a CRL) and not end with '/'");
        }
        let limits = self.limits(raw.limits);
        let store = self.store(raw.store, &raw.issuer_id, ca.as_ref());
        let witness = self.witness(raw.witness);
        let metrics = raw.metrics.check(&mut |key, problem| self.note(key, problem));
        let traces = raw.traces.check(&mut |key, problem| self.note(key, problem));
        Some(Config {
            file: file.to_owned(),
            trust_domain: trust_domain?,
            issuer_id: issuer_id?,
            listen: listen.ok()?,
            dns_names: raw.dns_names,
            data_dir: raw.data_dir,
            store,
            oid_arc: raw.oid_arc,
            ca: ca?,
            curve,
            root_lifetime,
            issuing_lifetime,
            roots,
            rotation,
            admin,
            attestation,
            crl_url: raw.crl.url,
            limits,
            witness,
            metrics,
            traces,
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

    fn pkcs11(&mut self, key: &str, raw: RawPkcs11) -> Option<Pkcs11Config> {
        let pin = match (raw.pin_file, raw.pin_credential) {
            (Some(file), None) => SecretSource::File(file),
            (None, Some(name)) => SecretSource::Credential(name),
            _ => {
                self.note(key, "give exactly one of pin_file and pin_credential");
                return None;
            }
        };
        Some(Pkcs11Config { module: raw.module, token_label: raw.token_label, pin })
    }

    fn ca(&mut self, backend: &str, pkcs11: Option<RawPkcs11>) -> Option<CaBackend> {
        match (backend, pkcs11) {
            ("pkcs11", Some(token)) => self.pkcs11("ca.pkcs11", token).map(CaBackend::Pkcs11),
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
