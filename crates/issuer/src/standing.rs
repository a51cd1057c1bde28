//! What the issuer knows of a host: what its last attestation showed, kept so that a restart loses
//! nothing, and turned into [`HostStanding`] for each decision.

use std::collections::BTreeMap;

use hallmark_core::decide::{EkTrust, HostProof, HostStanding, PcrStanding};
use hallmark_core::id::HostId;
use hallmark_core::pcr::PcrValues;
use hallmark_core::tpm::{self, ClockInfo};
use serde::{Deserialize, Serialize};

use crate::config::HostPolicy;

/// Version of the stored form.
const VERSION: u32 = 1;

/// One host, as its last attestation showed it.
#[derive(Debug, Clone)]
pub struct HostState {
    /// Its id.
    pub host_id: HostId,
    /// When it enrolled.
    pub enrolled_at: i64,
    /// What is stored.
    pub stored: Stored,
    /// The attested AK; none for a join token.
    pub ak: Option<tpm::Public>,
    /// The quoted PCRs.
    pub pcrs: PcrValues,
    /// What decisions are made on, under the PCR policies in force.
    pub standing: HostStanding,
    /// Counts the changes of what is known of this host, in this process: what was decided upon one is not
    /// recorded under the next.
    pub epoch: u64,
}

/// The stored part, versioned JSON.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Stored {
    v: u32,
    /// How the host was proved; absent for a join token.
    pub tpm: Option<TpmState>,
    /// Last full attestation.
    pub attested_at: i64,
    /// Last accepted quote; 0 for a join token.
    pub quote_at: i64,
    /// SHA-256 of the evidence of the last attestation or quote.
    #[serde(with = "hex::serde")]
    pub evidence_sha256: [u8; 32],
    /// Version of the host daemon, as it says.
    pub version: String,
    /// When the host SVID ends.
    pub svid_not_after: i64,
}

/// What is kept of a TPM.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TpmState {
    /// SHA-256 of the EK's SubjectPublicKeyInfo.
    #[serde(with = "hex::serde")]
    pub ek_sha256: [u8; 32],
    /// Who says that it is to be trusted.
    pub ek_trust: StoredEkTrust,
    /// Software: by the roots that signed its EK certificate, or, in a lab trust domain, because nobody says
    /// otherwise.
    pub simulated: bool,
    /// The manufacturer the EK certificate names, if there is one.
    pub manufacturer: Option<String>,
    /// TPMT_PUBLIC of the AK.
    #[serde(with = "hex::serde")]
    pub ak_public: Vec<u8>,
    /// Clock and counters of the last quote.
    pub clock: ClockInfo,
    /// Values of the quoted PCRs, hex.
    pub pcrs: BTreeMap<u8, String>,
    /// What the event log added.
    pub event_log: String,
}

/// How an EK came to be trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum StoredEkTrust {
    /// Its certificate chains to a known root.
    Certificate,
    /// An operator put its digest on the allow-list.
    AllowList,
    /// An operator put its digest on the allow-list and vouched that it is hardware.
    Vouched,
}

impl Stored {
    /// A host just attested.
    pub fn new(
        tpm: Option<TpmState>,
        now: i64,
        evidence_sha256: [u8; 32],
        version: String,
        svid_not_after: i64,
    ) -> Self {
        let quote_at = if tpm.is_some() { now } else { 0 };
        Self { v: VERSION, tpm, attested_at: now, quote_at, evidence_sha256, version, svid_not_after }
    }

    /// The stored text.
    pub fn to_json(&self) -> String {
        // Strings, numbers and maps with number keys: JSON has a form for all of them.
        serde_json::to_string(self).unwrap_or_default()
    }
}

impl HostState {
    /// Reads the stored text back.
    ///
    /// # Errors
    /// It is not of a version, or not of a form, that this program reads.
    pub fn from_json(
        host_id: HostId,
        enrolled_at: i64,
        text: &str,
        policies: &[HostPolicy],
    ) -> Result<Self, String> {
        let stored: Stored = serde_json::from_str(text).map_err(|e| format!("standing of {host_id}: {e}"))?;
        if stored.v != VERSION {
            return Err(format!("standing of {host_id}: version {}, this program reads {VERSION}", stored.v));
        }
        Self::new(host_id, enrolled_at, stored, policies)
    }

    /// A host with this standing.
    ///
    /// # Errors
    /// The AK's public area or a PCR value does not parse.
    pub fn new(
        host_id: HostId,
        enrolled_at: i64,
        stored: Stored,
        policies: &[HostPolicy],
    ) -> Result<Self, String> {
        let ak = match &stored.tpm {
            Some(tpm) => {
                Some(tpm::Public::parse(&tpm.ak_public).map_err(|e| format!("AK of {host_id}: {e}"))?)
            }
            None => None,
        };
        let pcrs = pcr_values(stored.tpm.as_ref()).map_err(|e| format!("PCRs of {host_id}: {e}"))?;
        let standing = standing(&host_id, &stored, &pcrs, policies);
        Ok(Self { host_id, enrolled_at, stored, ak, pcrs, standing, epoch: 0 })
    }

    /// The same host under the PCR policies in force, disabled or not, at this epoch.
    pub fn under(&self, policies: &[HostPolicy], disabled: Option<String>, epoch: u64) -> Self {
        let standing =
            HostStanding { disabled, ..standing(&self.host_id, &self.stored, &self.pcrs, policies) };
        Self { standing, epoch, ..self.clone() }
    }
}

fn pcr_values(tpm: Option<&TpmState>) -> Result<PcrValues, String> {
    let Some(tpm) = tpm else { return Ok(PcrValues::default()) };
    let decoded: Vec<(u32, Vec<u8>)> = tpm
        .pcrs
        .iter()
        .map(|(index, value)| hex::decode(value).map(|v| (u32::from(*index), v)))
        .collect::<Result<_, _>>()
        .map_err(|e| e.to_string())?;
    PcrValues::new(decoded.iter().map(|(index, value)| (*index, value.as_slice()))).map_err(|e| e.to_string())
}

fn standing(host_id: &HostId, stored: &Stored, pcrs: &PcrValues, policies: &[HostPolicy]) -> HostStanding {
    let proof = match &stored.tpm {
        None => HostProof::JoinToken,
        Some(tpm) => HostProof::Tpm {
            simulated: tpm.simulated,
            ek_trust: match tpm.ek_trust {
                StoredEkTrust::Certificate => EkTrust::Certificate,
                StoredEkTrust::AllowList => EkTrust::AllowList,
                StoredEkTrust::Vouched => EkTrust::Vouched,
            },
        },
    };
    HostStanding {
        host_id: host_id.clone(),
        proof,
        pcr: pcr_standing(host_id, pcrs, policies),
        attested_at: stored.attested_at,
        quote_at: stored.tpm.as_ref().map(|_| stored.quote_at),
        evidence_digest: stored.evidence_sha256,
        disabled: None,
    }
}

/// Met if any policy that names the host is met; else what is wrong by the first of them.
fn pcr_standing(host_id: &HostId, values: &PcrValues, policies: &[HostPolicy]) -> PcrStanding {
    let mut first_miss = None;
    for HostPolicy { policy, .. } in policies.iter().filter(|p| p.hosts.iter().any(|h| h.matches(host_id))) {
        match policy.appraise(values) {
            Ok(()) => return PcrStanding::Met { policy: policy.name.clone() },
            Err(found) => {
                let mismatches = found.iter().map(ToString::to_string).collect();
                first_miss.get_or_insert(PcrStanding::NotMet { policy: policy.name.clone(), mismatches });
            }
        }
    }
    first_miss.unwrap_or(PcrStanding::NoPolicy)
}

impl StoredEkTrust {
    /// `ek-certificate`, `allow-list` or `vouched`.
    pub fn as_str(self) -> &'static str {
        match self {
            StoredEkTrust::Certificate => "ek-certificate",
            StoredEkTrust::AllowList => "allow-list",
            StoredEkTrust::Vouched => "vouched",
        }
    }
}
