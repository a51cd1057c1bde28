//! Reading an SVID without verifying it: one's own, or a peer's that a verifier has already accepted.

use super::agent_info::AgentInfo;
use super::key::{PublicKey, PublicKeyError};
use super::oid::OidArc;
use super::parse::{Certificate, CertificateError, San};
use super::serial::{Serial, SerialError};
use crate::id::{InstanceId, NameError, SpiffeId};
use crate::tier::Tier;

/// What a leaf says. **Nothing here is verified**: see [`verify_chain`](super::verify_chain).
#[derive(Debug, Clone)]
pub struct UnverifiedSvid {
    /// The SPIFFE ID.
    pub spiffe_id: SpiffeId,
    /// The DNS names.
    pub dns_names: Vec<String>,
    /// The serial number.
    pub serial: Serial,
    /// Its beginning, seconds since 1970-01-01 UTC.
    pub not_before: i64,
    /// Its end, seconds since 1970-01-01 UTC.
    pub not_after: i64,
    /// Its key.
    pub public_key: PublicKey,
    /// The tier whose policies it asserts; none for hosts and issuers.
    pub tier: Option<Tier>,
    /// Its AgentInfo; none for hosts and issuers.
    pub agent_info: Option<AgentInfo>,
    /// The instance named in the subject.
    pub instance: Option<InstanceId>,
}

/// Why bytes are not an SVID of Hallmark's form.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SvidError {
    /// Not a certificate.
    #[error(transparent)]
    Certificate(#[from] CertificateError),
    /// Not exactly one URI name.
    #[error("it has {count} URI names, not one")]
    UriNames {
        /// How many.
        count: usize,
    },
    /// The URI is not a SPIFFE ID of Hallmark's form.
    #[error(transparent)]
    SpiffeId(#[from] NameError),
    /// The serial number is not of our form.
    #[error(transparent)]
    Serial(#[from] SerialError),
    /// The key is not of our form.
    #[error(transparent)]
    PublicKey(#[from] PublicKeyError),
}

impl UnverifiedSvid {
    /// Reads a leaf.
    ///
    /// # Errors
    /// Not a certificate, or without a Hallmark SPIFFE ID, serial or key.
    pub fn parse(der: &[u8]) -> Result<Self, SvidError> {
        let cert = Certificate::parse(der)?;
        let spiffe_id = cert.only_uri().map_err(|count| SvidError::UriNames { count })?.parse()?;
        let policies = OidArc::from_policies(&cert.policies);
        let agent_info = policies.as_ref().and_then(|(arc, _)| cert.extension(&arc.agent_info()));
        let dns = cert.names.iter().filter_map(|name| match name {
            San::Dns(dns) => Some(dns.clone()),
            San::Uri(_) | San::Other(_) => None,
        });
        Ok(Self {
            spiffe_id,
            dns_names: dns.collect(),
            serial: Serial::from_bytes(cert.serial())?,
            not_before: cert.not_before(),
            not_after: cert.not_after(),
            public_key: PublicKey::from_spki_der(cert.spki_der())?,
            tier: policies.as_ref().map(|(_, tier)| *tier),
            agent_info: agent_info.and_then(|der| AgentInfo::decode(der).ok()),
            instance: cert.subject_serial_number().and_then(|s| s.parse().ok()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x509::testing::{NOW, domain, info, serial};

    #[test]
    fn reads_what_the_profile_wrote() {
        let domain = domain();
        let svid = UnverifiedSvid::parse(&domain.agent_leaf(Tier::Enterprise).der).unwrap();
        assert_eq!(svid.spiffe_id, domain.agent_id());
        assert_eq!((svid.serial, svid.not_after), (serial(30), NOW + 600));
        assert_eq!((svid.tier, svid.agent_info), (Some(Tier::Enterprise), Some(info(Tier::Enterprise))));
        let host = "spiffe://example.org/host/h".parse().unwrap();
        let svid = UnverifiedSvid::parse(&domain.infra_leaf(&host).unwrap().der).unwrap();
        assert_eq!((svid.spiffe_id, svid.tier, svid.agent_info), (host, None, None));
        assert!(matches!(UnverifiedSvid::parse(b"junk"), Err(SvidError::Certificate(_))));
    }
}
