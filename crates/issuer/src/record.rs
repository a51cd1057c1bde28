//! The record: one canonical, versioned entry for each decision, allowed or refused.
//!
//! An entry names who is accountable (owner), under which registration revision, on which evidence. It
//! holds digests of evidence, never secrets. Fields that a decision does not have are left out; a reader
//! of version 1 ignores fields it does not know.

use std::borrow::Cow;

use hallmark_proto::issuer::Unmet;
use serde::{Deserialize, Serialize};

/// Version of the entry's form.
const VERSION: u32 = 1;
/// Room for the usual entry, in bytes.
const USUAL: usize = 1024;

/// An entry ready for the store.
#[derive(Debug, Clone)]
pub struct Entry {
    pub(crate) at: i64,
    pub(crate) kind: Cow<'static, str>,
    pub(crate) outcome: Cow<'static, str>,
    pub(crate) host_id: Option<String>,
    pub(crate) agent: Option<String>,
    pub(crate) serial: Option<[u8; 16]>,
    pub(crate) certificate: Option<[u8; 32]>,
    pub(crate) body: String,
}

/// What was decided, by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A trust domain was made.
    TrustDomain,
    /// A host attested.
    HostAttestation,
    /// A host showed a fresh quote.
    HostQuote,
    /// An SVID was asked for.
    Svid,
    /// An instance ended.
    InstanceEnd,
    /// A registration was applied or removed.
    Registration,
    /// An operator's order that changes who may enrol.
    Enrolment,
    /// The issuer's own credential.
    IssuerSvid,
    /// A CA was made, published, activated, tainted, retired.
    Ca,
    /// The store was put back from a backup.
    Restore,
}

impl Kind {
    /// The kind's name in records.
    pub fn as_str(self) -> &'static str {
        match self {
            Kind::TrustDomain => "trust-domain",
            Kind::HostAttestation => "host-attestation",
            Kind::HostQuote => "host-quote",
            Kind::Svid => "svid",
            Kind::InstanceEnd => "instance-end",
            Kind::Registration => "registration",
            Kind::Enrolment => "enrolment",
            Kind::IssuerSvid => "issuer-svid",
            Kind::Ca => "ca",
            Kind::Restore => "restore",
        }
    }
}

/// Fields of an entry; all but the first three are optional.
#[derive(Debug, Default, Serialize)]
pub struct Record<'a> {
    // The first four and the serial are set by `entry`.
    pub(crate) v: u32,
    pub(crate) at: i64,
    pub(crate) kind: &'static str,
    pub(crate) outcome: &'static str,
    /// The host concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub host: Option<&'a str>,
    /// The agent concerned.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub agent: Option<&'a str>,
    /// The run of the agent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub instance: Option<String>,
    /// The accountable party.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub owner: Option<&'a str>,
    /// Revision of the registration the decision was made under.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registration_revision: Option<u64>,
    /// Digest of that registration.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub registration_digest: Option<String>,
    /// The CA concerned, as in `enterprise issuing CA 2`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub authority: Option<String>,
    /// Generation of the issuing CA that signed, in the hierarchy of the tier.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ca: Option<u32>,
    /// Tier granted or attained.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tier: Option<&'a str>,
    /// Custody of the key.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub custody: Option<&'a str>,
    /// The certificate's serial, hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub serial: Option<String>,
    /// SHA-256 of the certificate, hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub certificate_sha256: Option<String>,
    /// The certificate's end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub not_after: Option<i64>,
    /// SHA-256 of the host's evidence, hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub evidence_sha256: Option<String>,
    /// SHA-256 of the EK's SubjectPublicKeyInfo, hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ek_sha256: Option<String>,
    /// What the host observed of the process.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub selectors: Option<&'a [String]>,
    /// The reason, in the words of the check that failed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// An operator's own words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
    /// Serials of the certificates that this ends before their time, hex.
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    pub revoked: Vec<String>,
    /// Refusals of strangers since the last recorded one that were only counted.
    #[serde(skip_serializing_if = "is_zero")]
    pub unrecorded: u64,
    /// Every requirement not met.
    #[serde(skip_serializing_if = "<[UnmetEntry]>::is_empty")]
    pub unmet: Vec<UnmetEntry>,
    /// Software TPMs may count in this trust domain.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub lab: bool,
    /// The trace that the request was part of, as whoever asked said, hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub trace_id: Option<String>,
    /// Who ordered it, for an operator's order.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub operator: Option<String>,
}

// serde hands over a reference.
#[allow(clippy::trivially_copy_pass_by_ref)]
fn is_zero(number: &u64) -> bool {
    *number == 0
}

/// What is read back of the record of a credential.
#[derive(Debug, Deserialize)]
pub(crate) struct Shown {
    pub(crate) owner: Option<String>,
    #[serde(default)]
    pub(crate) selectors: Vec<String>,
}

/// One requirement not met.
#[derive(Debug, Clone, Serialize)]
pub struct UnmetEntry {
    code: String,
    detail: String,
}

impl From<&Unmet> for UnmetEntry {
    fn from(unmet: &Unmet) -> Self {
        Self { code: unmet.code.clone(), detail: unmet.detail.clone() }
    }
}

impl Record<'_> {
    /// The entry for a decision of `kind` made at `at`. `serial` is what the entry can be found by.
    pub fn entry(mut self, at: i64, kind: Kind, outcome: &'static str, serial: Option<[u8; 16]>) -> Entry {
        self.v = VERSION;
        self.at = at;
        self.kind = kind.as_str();
        self.outcome = outcome;
        self.serial = serial.map(crate::hex);
        let certificate = self.certificate_sha256.as_ref().and_then(|digest| {
            let mut bytes = [0; 32];
            hex::decode_to_slice(digest, &mut bytes).ok().map(|()| bytes)
        });
        let mut body = Vec::with_capacity(USUAL);
        // A struct of strings and numbers has no way to fail in JSON; an empty body would still be a record.
        let body = match serde_json::to_writer(&mut body, &self) {
            Ok(()) => String::from_utf8(body).unwrap_or_default(),
            Err(_) => String::new(),
        };
        Entry {
            at,
            kind: self.kind.into(),
            outcome: outcome.into(),
            host_id: self.host.map(str::to_owned),
            agent: self.agent.map(str::to_owned),
            serial,
            certificate,
            body,
        }
    }
}
