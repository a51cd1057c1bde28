//! The file as it is written: every key that there is, and no other.

use std::path::PathBuf;

use hallmark_telemetry::{RawMetrics, RawTraces};
use serde::Deserialize;

use super::{IssuerOrder, LogFormat};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Raw {
    pub(super) trust_domain: String,
    pub(super) host_id: String,
    pub(super) issuer: RawIssuer,
    pub(super) tpm: Option<RawTpm>,
    pub(super) event_log: Option<PathBuf>,
    pub(super) join_token_file: Option<PathBuf>,
    pub(super) join_token_credential: Option<String>,
    pub(super) pkcs11: Option<RawPkcs11>,
    #[serde(default)]
    pub(super) agent_socket: RawSocket,
    #[serde(default)]
    pub(super) limits: RawLimits,
    #[serde(default)]
    pub(super) metrics: RawMetrics,
    #[serde(default)]
    pub(super) traces: RawTraces,
    #[serde(default)]
    pub(super) log: RawLog,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawIssuer {
    pub(super) endpoints: Vec<String>,
    pub(super) order: Option<IssuerOrder>,
    pub(super) infrastructure_root: Option<PathBuf>,
    pub(super) root_cache: Option<PathBuf>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawTpm {
    pub(super) tcti: Option<String>,
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
pub(super) struct RawSocket {
    pub(super) path: Option<PathBuf>,
    pub(super) mode: Option<String>,
    pub(super) group: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLimits {
    pub(super) max_agents: Option<usize>,
    pub(super) max_agents_per_user: Option<usize>,
    pub(super) begin_per_second_per_user: Option<u32>,
    pub(super) begin_burst_per_user: Option<u32>,
    pub(super) max_connections: Option<usize>,
    pub(super) max_connections_per_user: Option<usize>,
    pub(super) sign_per_second: Option<u32>,
    pub(super) sign_burst: Option<u32>,
    pub(super) sign_per_second_per_user: Option<u32>,
    pub(super) sign_burst_per_user: Option<u32>,
    pub(super) sign_concurrency: Option<usize>,
    pub(super) max_image_mib: Option<u64>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLog {
    pub(super) format: Option<LogFormat>,
    pub(super) level: Option<String>,
}
