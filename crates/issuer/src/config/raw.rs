//! The file as it is written: every key there is, and no other.

use std::collections::BTreeMap;
use std::path::PathBuf;

use hallmark_telemetry::{RawMetrics, RawTraces};
use serde::Deserialize;

use super::limits::RawLimits;
use super::rotation::{RawRotation, RootKeys};
use super::store::RawStore;
use super::witness::RawWitness;
use super::{Enrolment, LogFormat};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    pub(super) trust_domain: String,
    pub(super) issuer_id: String,
    pub(super) listen: String,
    #[serde(default)]
    pub(super) dns_names: Vec<String>,
    pub(super) data_dir: PathBuf,
    pub(super) oid_arc: Option<String>,
    pub(super) ca: RawCa,
    #[serde(default)]
    pub(super) admin: RawAdmin,
    #[serde(default)]
    pub(super) attestation: RawAttestation,
    #[serde(default)]
    pub(super) crl: RawCrl,
    #[serde(default)]
    pub(super) limits: RawLimits,
    #[serde(default)]
    pub(super) store: RawStore,
    #[serde(default)]
    pub(super) witness: RawWitness,
    #[serde(default)]
    pub(super) metrics: RawMetrics,
    #[serde(default)]
    pub(super) traces: RawTraces,
    #[serde(default)]
    pub(super) log: RawLog,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCa {
    pub(super) backend: String,
    pub(super) curve: Option<String>,
    pub(super) pkcs11: Option<RawPkcs11>,
    pub(super) root_lifetime: Option<String>,
    pub(super) issuing_lifetime: Option<String>,
    pub(super) root: Option<RootKeys>,
    pub(super) root_token: Option<RawPkcs11>,
    #[serde(default)]
    pub(super) rotation: RawRotation,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPkcs11 {
    pub(super) module: PathBuf,
    pub(super) token_label: String,
    pub(super) pin_file: Option<PathBuf>,
    pub(super) pin_credential: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAdmin {
    pub(super) socket: Option<PathBuf>,
    pub(super) mode: Option<String>,
    pub(super) group: Option<String>,
    #[serde(default)]
    pub(super) users: Vec<String>,
    #[serde(default)]
    pub(super) groups: Vec<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAttestation {
    pub(super) pcrs: Option<Vec<u32>>,
    pub(super) ek_roots: Option<PathBuf>,
    pub(super) simulated_ek_roots: Option<PathBuf>,
    pub(super) enrolment: Option<Enrolment>,
    pub(super) max_age: Option<String>,
    pub(super) host_svid_lifetime: Option<String>,
    pub(super) join_token_svid_lifetime: Option<String>,
    #[serde(default)]
    pub(super) accept_pkcs11_asserted: bool,
    #[serde(default)]
    pub(super) pcr_policy: BTreeMap<String, RawPcrPolicy>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawPcrPolicy {
    pub(super) hosts: Vec<String>,
    pub(super) pcrs: BTreeMap<String, Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCrl {
    pub(super) url: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLog {
    pub(super) format: Option<LogFormat>,
    pub(super) level: Option<String>,
}
