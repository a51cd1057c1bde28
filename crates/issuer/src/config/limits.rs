//! What the issuer lets anybody hold: connections, attestations, bytes, time.

use std::time::Duration;

use serde::Deserialize;

use super::check::Faults;

/// Largest attestation a stranger may send: evidence with an event log of 2 MiB.
pub const MAX_ATTESTATION: usize = 3 << 20;

/// The bounds at the issuer's door. A *stranger* is whoever shows no valid host certificate, an *address*
/// an IPv4 address or the /64 of an IPv6 address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Connections open at one time.
    pub max_connections: usize,
    /// Of them, strangers'; one whose handshake is under way counts as a stranger's.
    pub max_strangers: usize,
    /// Strangers' connections from one address.
    pub connections_per_address: usize,
    /// Connections of one host that shows its certificate.
    pub connections_per_host: usize,
    /// Attestations under way at one time.
    pub max_attestations: usize,
    /// Of them, those kept for hosts that show their certificate and attest again.
    pub reserved_attestations: usize,
    /// Attestations under way for strangers of one address.
    pub attestations_per_address: usize,
    /// Attestations that strangers may begin in a minute: each is recorded, and records fill the disk.
    pub attestations_per_minute: usize,
    /// Of them, those of one address.
    pub address_attestations_per_minute: usize,
    /// Bytes of strangers' requests held at one time; one address may hold a quarter.
    pub max_stranger_bytes: usize,
    /// Longest an attestation may take, the waits for the host included.
    pub attestation_timeout: Duration,
    /// Longest a TLS handshake may take.
    pub handshake_timeout: Duration,
    /// Longest a stranger's connection stays open without an attestation.
    pub stranger_idle: Duration,
    /// Longest a host may take to send a request.
    pub request_timeout: Duration,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawLimits {
    max_connections: Option<usize>,
    max_strangers: Option<usize>,
    connections_per_address: Option<usize>,
    connections_per_host: Option<usize>,
    max_attestations: Option<usize>,
    reserved_attestations: Option<usize>,
    attestations_per_address: Option<usize>,
    attestations_per_minute: Option<usize>,
    address_attestations_per_minute: Option<usize>,
    max_stranger_bytes: Option<usize>,
    attestation_timeout: Option<String>,
    handshake_timeout: Option<String>,
    stranger_idle: Option<String>,
    request_timeout: Option<String>,
}

impl Default for Limits {
    fn default() -> Self {
        Faults::default().limits(RawLimits::default())
    }
}

impl Faults {
    /// What is not given follows from what is: a file that lowers one bound need not name the others.
    pub(super) fn limits(&mut self, raw: RawLimits) -> Limits {
        let max_connections = self.count("limits.max_connections", raw.max_connections, 4096, 2..=1 << 20);
        let max_strangers =
            self.count("limits.max_strangers", raw.max_strangers, max_connections.div_ceil(4), 1..=1 << 20);
        if max_strangers >= max_connections {
            self.note(
                "limits.max_strangers",
                format!("must be below limits.max_connections ({max_connections}): hosts need the rest"),
            );
        }
        let connections_per_address = self.count(
            "limits.connections_per_address",
            raw.connections_per_address,
            64.min(max_strangers),
            1..=max_strangers.max(1),
        );
        let max_attestations = self.count("limits.max_attestations", raw.max_attestations, 64, 2..=4096);
        let reserved_attestations = self.count(
            "limits.reserved_attestations",
            raw.reserved_attestations,
            max_attestations.div_ceil(4),
            1..=4096,
        );
        if reserved_attestations >= max_attestations {
            self.note(
                "limits.reserved_attestations",
                format!(
                    "must be below limits.max_attestations ({max_attestations}): new hosts need the rest"
                ),
            );
        }
        let per_minute =
            self.count("limits.attestations_per_minute", raw.attestations_per_minute, 1200, 1..=1 << 20);
        let open = max_attestations.saturating_sub(reserved_attestations).max(1);
        Limits {
            max_connections,
            max_strangers,
            connections_per_address,
            connections_per_host: self.count(
                "limits.connections_per_host",
                raw.connections_per_host,
                32.min(max_connections),
                1..=max_connections.max(1),
            ),
            max_attestations,
            reserved_attestations,
            attestations_per_address: self.count(
                "limits.attestations_per_address",
                raw.attestations_per_address,
                8.min(open),
                1..=open,
            ),
            attestations_per_minute: per_minute,
            address_attestations_per_minute: self.count(
                "limits.address_attestations_per_minute",
                raw.address_attestations_per_minute,
                240.min(per_minute),
                1..=per_minute,
            ),
            max_stranger_bytes: self.count(
                "limits.max_stranger_bytes",
                raw.max_stranger_bytes,
                64 << 20,
                16 << 20..=1 << 32,
            ),
            attestation_timeout: self.duration(
                "limits.attestation_timeout",
                raw.attestation_timeout,
                60,
                5..=600,
            ),
            handshake_timeout: self.duration("limits.handshake_timeout", raw.handshake_timeout, 10, 1..=60),
            stranger_idle: self.duration("limits.stranger_idle", raw.stranger_idle, 10, 1..=600),
            request_timeout: self.duration("limits.request_timeout", raw.request_timeout, 30, 1..=600),
        }
    }

    fn count(
        &mut self,
        key: &str,
        given: Option<usize>,
        default: usize,
        range: std::ops::RangeInclusive<usize>,
    ) -> usize {
        match given {
            None => default,
            Some(n) if range.contains(&n) => n,
            Some(n) => {
                self.note(key, format!("{n} is not within {} to {}", range.start(), range.end()));
                default
            }
        }
    }
}
