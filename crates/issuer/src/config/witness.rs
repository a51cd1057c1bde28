//! Witnesses: who cosigns the log's checkpoints, and whether anything is released before they have.

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use hallmark_core::log::{Quorum, WitnessVerifier};
use http::Uri;
use serde::Deserialize;

use super::check::Faults;

/// Witnesses, and what is demanded of them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WitnessConfig {
    /// How many of which must have cosigned a checkpoint.
    pub quorum: Quorum,
    /// Nothing is released before they have.
    pub required: bool,
    /// Longest wait for one answer of a witness, and for the quorum where it is required.
    pub timeout: Duration,
    /// Where each is, in the order of the quorum's list.
    pub at: Vec<WitnessAt>,
}

/// Where a witness is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WitnessAt {
    /// Its submission prefix, without a slash at the end.
    pub url: Uri,
    /// PEM file of the roots that its server is known by; none for the system's.
    pub ca: Option<PathBuf>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawWitness {
    quorum: Option<usize>,
    required: Option<bool>,
    timeout: Option<String>,
    #[serde(default)]
    at: Vec<RawAt>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RawAt {
    url: String,
    key: String,
    ca: Option<PathBuf>,
}

impl Faults {
    pub(super) fn witness(&mut self, raw: RawWitness) -> Option<WitnessConfig> {
        let RawWitness { quorum, required, timeout, at } = raw;
        if at.is_empty() {
            if quorum.is_some() || required.is_some() || timeout.is_some() {
                self.note("witness.at", "is missing: a [[witness.at]] with url and key for each witness");
            }
            return None;
        }
        let timeout = self.duration("witness.timeout", timeout, 5, 1..=30);
        let (mut keys, mut places) = (Vec::new(), Vec::new());
        for (n, RawAt { url, key, ca }) in at.into_iter().enumerate() {
            let place = place(&url).map_err(|problem| self.note(&format!("witness.at[{n}].url"), problem));
            if let Ok(url) = place {
                places.push(WitnessAt { url, ca });
            }
            keys.extend(self.parsed(&format!("witness.at[{n}].key"), key.parse::<WitnessVerifier>()));
        }
        let Some(needed) = quorum else {
            self.note("witness.quorum", "is missing: how many of the witnesses must cosign a checkpoint");
            return None;
        };
        if keys.len() < places.len() {
            // A fault was noted for the key.
            return None;
        }
        let quorum = self.parsed("witness.quorum", Quorum::new(keys, needed))?;
        Some(WitnessConfig { quorum, required: required.unwrap_or(false), timeout, at: places })
    }
}

/// A submission prefix (tlog-witness, "HTTP Interface"), over TLS or on this machine.
fn place(text: &str) -> Result<Uri, String> {
    let form = "write https://HOST[:PORT][/PATH], the witness's submission prefix";
    let url: Uri = text.trim_end_matches('/').parse().map_err(|e| format!("{text:?}: {e}; {form}"))?;
    let host = url.host().unwrap_or_default();
    if host.is_empty() || url.query().is_some() || url.authority().is_some_and(|a| a.as_str().contains('@')) {
        return Err(format!("{text:?} names no host, or more than a place; {form}"));
    }
    let here = host == "localhost"
        || host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback());
    match url.scheme_str() {
        Some("https") => Ok(url),
        Some("http") if here => Ok(url),
        Some("http") => {
            Err(format!("{text:?}: http is for a witness on this machine alone, as behind a proxy; {form}"))
        }
        _ => Err(format!("{text:?} is no address; {form}")),
    }
}
