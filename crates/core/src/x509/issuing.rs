//! An issuing CA at work: leaves for agents, tasks, hosts and issuers.

use std::sync::Arc;
use std::time::Duration;

use rcgen::{
    CertificateParams, CrlDistributionPoint, CustomExtension, ExtendedKeyUsagePurpose, IsCa, KeyIdMethod,
    KeyUsagePurpose, SanType, SerialNumber,
};
use rustls_pki_types::CertificateDer;

use super::agent_info::AgentInfo;
use super::key::{CaKey, PublicKey};
use super::names::{CaName, leaf_name};
use super::oid::{NO_REV_AVAIL, OidArc};
use super::parse::{CRL_SIGN, Certificate, KEY_CERT_SIGN};
use super::profile::{
    ProfileError, SubjectKey, check_own_signature, check_pair, datetime, encoding, issuer_params,
    policies_extension, sign_with, validity,
};
use super::serial::Serial;
use crate::id::{InstanceId, SpiffeId, Subject, TrustDomain};
use crate::tier::{Custody, Hierarchy, Tier};

/// Longest life of a host's certificate: a day.
const MAX_HOST_LIFETIME: Duration = Duration::from_secs(86_400);
/// Longest life of an issuer's own certificate: a week.
const MAX_ISSUER_LIFETIME: Duration = Duration::from_secs(7 * 86_400);

/// What a leaf is to be.
#[derive(Debug, Clone)]
pub struct LeafParams<'a> {
    /// The one URI name.
    pub spiffe_id: &'a SpiffeId,
    /// The subject's key: SubjectPublicKeyInfo as [`Csr::spki_der`](super::Csr::spki_der) gives it.
    pub spki_der: &'a [u8],
    /// DNS names, for servers whose registration lists them. Lower case, no wildcards.
    pub dns_names: &'a [String],
    /// The serial number.
    pub serial: Serial,
    /// Now, seconds since 1970-01-01 UTC.
    pub now: i64,
    /// From now until the end; cut to the issuing CA's own end.
    pub lifetime: Duration,
    /// For agents and tasks: what is theirs alone. None for hosts and issuers.
    pub agent: Option<AgentLeaf<'a>>,
}

/// What only an agent's or a task's leaf carries.
#[derive(Debug, Clone)]
pub struct AgentLeaf<'a> {
    /// The instance, in the subject's serialNumber.
    pub instance: InstanceId,
    /// The extension.
    pub info: &'a AgentInfo,
}

/// A leaf that was signed. It may be released only once it is recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Leaf {
    /// The certificate.
    pub der: CertificateDer<'static>,
    /// Its serial number.
    pub serial: Serial,
    /// Its beginning, seconds since 1970-01-01 UTC.
    pub not_before: i64,
    /// Its end, seconds since 1970-01-01 UTC.
    pub not_after: i64,
}

/// An issuing CA: certificate, key, and everything that is the same in each of its leaves, prepared once.
pub struct IssuingCa {
    certificate: CertificateDer<'static>,
    hierarchy: Hierarchy,
    trust_domain: TrustDomain,
    lab: bool,
    arc: Option<OidArc>,
    serial: Serial,
    not_before: i64,
    not_after: i64,
    pub(super) public: PublicKey,
    pub(super) key: Arc<dyn CaKey>,
    /// Its subject key identifier, as its root computed it.
    pub(super) key_id: Vec<u8>,
    pub(super) issuer: CertificateParams,
    template: CertificateParams,
    crl: Option<CrlDistributionPoint>,
}

impl IssuingCa {
    /// The issuing CA of this certificate, which [`issuing`](super::issuing) made, and this key.
    /// Trust domain, hierarchy, arc and whether it is a lab are read from the certificate.
    ///
    /// # Errors
    /// The certificate is not of that form, or the key is not its key.
    pub fn new(certificate: &[u8], key: Arc<dyn CaKey>) -> Result<Self, ProfileError> {
        let cert = Certificate::parse(certificate)?;
        let form = |why| ProfileError::CaForm { expected: "issuing CA", why };
        if !cert.is_ca || cert.path_len != Some(0) {
            return Err(form("basicConstraints is not CA with pathLen 0"));
        }
        if cert.key_usage != Some(KEY_CERT_SIGN | CRL_SIGN) {
            return Err(form("keyUsage is not keyCertSign and cRLSign"));
        }
        let name = cert.ca_name().ok_or_else(|| form("the subject lacks O, CN or serialNumber"))?;
        let trust_domain: TrustDomain =
            name.organization.parse().map_err(|_| form("organizationName is no trust domain"))?;
        let (hierarchy, arc) = match (cert.policies.as_slice(), OidArc::from_policies(&cert.policies)) {
            ([], _) => (Hierarchy::Infrastructure, None),
            (_, Some((arc, tier))) => (Hierarchy::Tier(tier), Some(arc)),
            (_, None) => return Err(form("its policies are not a tier's cumulative set")),
        };
        // A root elsewhere numbers its certificates as it likes; the number in the name is the CA's own.
        let serial: Serial = name
            .serial_number
            .parse()
            .map_err(|_| form("the subject's serialNumber is not 32 hexadecimal digits of our form"))?;
        let lab = name.is_lab();
        if name != CaName::new(&trust_domain, hierarchy, "issuing CA", lab, serial) {
            return Err(form("the subject is not that of its trust domain, hierarchy and serial number"));
        }
        let public = PublicKey::from_spki_der(cert.spki_der())?;
        let key_id =
            cert.subject_key_id.clone().ok_or_else(|| form("the subject key identifier is missing"))?;
        check_pair(&public, &*key)?;
        let this = Self {
            certificate: CertificateDer::from(certificate.to_vec()),
            hierarchy,
            lab,
            serial,
            not_before: cert.not_before(),
            not_after: cert.not_after(),
            issuer: issuer_params(&name, key_id.clone())?,
            key_id,
            template: template(hierarchy, arc.as_ref()),
            trust_domain,
            arc,
            public,
            key,
            crl: None,
        };
        this.check_issuer_name(cert.subject_raw())?;
        Ok(this)
    }

    /// The same CA, whose revocable leaves name this URL as CRL distribution point.
    ///
    /// # Errors
    /// Not a URL that a certificate can carry.
    pub fn with_crl_url(mut self, url: Option<&str>) -> Result<Self, ProfileError> {
        self.crl = match url {
            None => None,
            Some(url) => {
                let http = url.starts_with("http://") || url.starts_with("https://");
                if !http || url.len() > 512 || !url.bytes().all(|b| b.is_ascii_graphic()) {
                    return Err(ProfileError::CrlUrl { url: url.chars().take(600).collect() });
                }
                Some(CrlDistributionPoint { uris: vec![url.to_owned()] })
            }
        };
        Ok(self)
    }

    /// Builds and signs a leaf, without checking the signature: see [`IssuingCa::check`].
    ///
    /// # Errors
    /// The subject does not belong to this CA, a name, time or lifetime is out of bounds, the CA has
    /// ended, or the key does not sign.
    pub fn leaf(&self, params: &LeafParams<'_>) -> Result<Leaf, ProfileError> {
        self.check_subject(params)?;
        let (not_before, not_after) = self.validity(params)?;
        let public = PublicKey::from_spki_der(params.spki_der)?;
        let mut cert = self.template.clone();
        cert.serial_number = Some(SerialNumber::from_slice(params.serial.as_bytes()));
        cert.not_before = datetime(not_before)?;
        cert.not_after = datetime(not_after)?;
        let instance = params.agent.as_ref().map(|a| a.instance);
        cert.distinguished_name =
            leaf_name(&self.trust_domain, &params.spiffe_id.subject, instance).map_err(encoding)?;
        cert.subject_alt_names = alt_names(params)?;
        cert.key_identifier_method = KeyIdMethod::PreSpecified(public.key_id().to_vec());
        self.add_revocation(&mut cert, &params.spiffe_id.subject);
        if let (Some(agent), Some(arc)) = (&params.agent, &self.arc) {
            let content = agent.info.encode()?;
            cert.custom_extensions
                .push(CustomExtension::from_oid_content(&arc.agent_info_components(), content));
        }
        let der = sign_with(&*self.key, &self.public, |signer| {
            cert.signed_by(&SubjectKey(&public), &rcgen::Issuer::from_params(&self.issuer, signer))
        })?;
        Ok(Leaf { der, serial: params.serial, not_before, not_after })
    }

    /// [`IssuingCa::leaf`], then [`IssuingCa::check`].
    ///
    /// # Errors
    /// As both.
    pub fn leaf_checked(&self, params: &LeafParams<'_>) -> Result<Leaf, ProfileError> {
        let leaf = self.leaf(params)?;
        self.check(&leaf.der)?;
        Ok(leaf)
    }

    /// Verifies that this CA signed the certificate: a faulty token must not show outside.
    ///
    /// # Errors
    /// Not a certificate, or not this CA's signature.
    pub fn check(&self, leaf_der: &[u8]) -> Result<(), ProfileError> {
        check_own_signature(leaf_der, &self.public)
    }

    /// The CA's certificate: the second of every chain.
    pub fn certificate(&self) -> &CertificateDer<'static> {
        &self.certificate
    }

    /// Which of the four it belongs to.
    pub fn hierarchy(&self) -> Hierarchy {
        self.hierarchy
    }

    /// Its trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// Whether it belongs to a lab trust domain.
    pub fn is_lab(&self) -> bool {
        self.lab
    }

    /// The serial number in its name.
    pub fn serial(&self) -> Serial {
        self.serial
    }

    /// Its beginning and end, seconds since 1970-01-01 UTC.
    pub fn validity_period(&self) -> (i64, i64) {
        (self.not_before, self.not_after)
    }

    fn check_subject(&self, params: &LeafParams<'_>) -> Result<(), ProfileError> {
        let id = params.spiffe_id;
        if id.trust_domain != self.trust_domain {
            return Err(ProfileError::TrustDomain {
                expected: self.trust_domain.to_string(),
                found: id.trust_domain.to_string(),
            });
        }
        let wrong =
            |why| Err(ProfileError::Subject { subject: id.to_string(), hierarchy: self.hierarchy, why });
        match (self.hierarchy, &id.subject, &params.agent) {
            (Hierarchy::Tier(tier), Subject::Agent(_), Some(agent)) => {
                if agent.info.task.is_some() {
                    return wrong("AgentInfo names a task, the SPIFFE ID does not");
                }
                self.check_info(tier, agent.info)
            }
            (Hierarchy::Tier(tier), Subject::Task(_, task), Some(agent)) => {
                if agent.info.task.as_ref().map(|t| &t.task_id) != Some(task) {
                    return wrong("AgentInfo does not name the SPIFFE ID's task");
                }
                self.check_info(tier, agent.info)
            }
            (Hierarchy::Tier(_), Subject::Agent(_) | Subject::Task(..), None) => {
                wrong("AgentInfo is missing")
            }
            (Hierarchy::Infrastructure, Subject::Host(_) | Subject::Issuer(_), None) => Ok(()),
            (Hierarchy::Infrastructure, Subject::Host(_) | Subject::Issuer(_), Some(_)) => {
                wrong("hosts and issuers carry no AgentInfo")
            }
            (Hierarchy::Tier(_), ..) => wrong("hosts and issuers are certified by infrastructure alone"),
            (Hierarchy::Infrastructure, ..) => wrong("agents and tasks are certified by tiers alone"),
        }
    }

    fn check_info(&self, tier: Tier, info: &AgentInfo) -> Result<(), ProfileError> {
        if info.tier != tier {
            return Err(ProfileError::Tier { expected: tier, found: info.tier });
        }
        let never = |why| Err(ProfileError::Custody { custody: info.custody, why });
        match info.custody {
            Custody::Simulated if !self.lab => never("this is not a lab trust domain"),
            Custody::Software if tier == Tier::Advanced => never("advanced keys are held by hardware"),
            _ => Ok(()),
        }
    }

    fn validity(&self, params: &LeafParams<'_>) -> Result<(i64, i64), ProfileError> {
        let max = match (self.hierarchy, &params.spiffe_id.subject) {
            (Hierarchy::Tier(tier), _) => tier.max_lifetime(),
            (Hierarchy::Infrastructure, Subject::Issuer(_)) => MAX_ISSUER_LIFETIME,
            (Hierarchy::Infrastructure, _) => MAX_HOST_LIFETIME,
        };
        let (not_before, not_after) = validity(params.now, params.lifetime, max)?;
        if params.now < self.not_before || params.now >= self.not_after {
            return Err(ProfileError::CaNotValid {
                not_before: self.not_before,
                not_after: self.not_after,
                now: params.now,
            });
        }
        Ok((not_before.max(self.not_before), not_after.min(self.not_after)))
    }

    /// A CRL distribution point where there is something to look up, noRevAvail (RFC 9608) where there
    /// never will be; never both.
    fn add_revocation(&self, cert: &mut CertificateParams, subject: &Subject) {
        match (self.hierarchy, subject) {
            (Hierarchy::Tier(Tier::Foundation), Subject::Agent(_)) => {
                const NULL: [u8; 2] = [5, 0];
                cert.custom_extensions.push(CustomExtension::from_oid_content(&NO_REV_AVAIL, NULL.to_vec()));
            }
            _ => cert.crl_distribution_points.extend(self.crl.clone()),
        }
    }

    /// The issuer name that rcgen will write must be the certificate's subject to the byte (RFC 5280
    /// §4.1.2.4): proved once, on a leaf signed by nobody.
    fn check_issuer_name(&self, subject: &[u8]) -> Result<(), ProfileError> {
        struct Nobody<'a>(&'a PublicKey);
        impl CaKey for Nobody<'_> {
            fn spki_der(&self) -> &[u8] {
                self.0.spki_der()
            }
            fn curve(&self) -> super::Curve {
                self.0.curve()
            }
            fn sign(&self, _: &[u8]) -> Result<Vec<u8>, super::KeyError> {
                Ok(vec![0])
            }
        }
        let mut cert = self.template.clone();
        cert.serial_number = Some(SerialNumber::from_slice(self.serial.as_bytes()));
        let der = sign_with(&Nobody(&self.public), &self.public, |signer| {
            cert.signed_by(&SubjectKey(&self.public), &rcgen::Issuer::from_params(&self.issuer, signer))
        })?;
        if Certificate::parse(&der)?.issuer_raw() != subject {
            let why = "the subject is not encoded as this profile encodes it";
            return Err(ProfileError::CaForm { expected: "issuing CA", why });
        }
        Ok(())
    }
}

impl std::fmt::Debug for IssuingCa {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("IssuingCa")
            .field("hierarchy", &self.hierarchy)
            .field("trust_domain", &self.trust_domain)
            .field("serial", &self.serial)
            .finish_non_exhaustive()
    }
}

/// What all leaves of a CA have in common.
fn template(hierarchy: Hierarchy, arc: Option<&OidArc>) -> CertificateParams {
    let mut cert = CertificateParams::default();
    cert.is_ca = IsCa::ExplicitNoCa;
    cert.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    cert.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    cert.use_authority_key_identifier_extension = true;
    if let (Hierarchy::Tier(tier), Some(arc)) = (hierarchy, arc) {
        cert.custom_extensions.push(policies_extension(arc, tier));
    }
    cert
}

fn alt_names(params: &LeafParams<'_>) -> Result<Vec<SanType>, ProfileError> {
    let uri = params.spiffe_id.to_string();
    let mut names = vec![SanType::URI(uri.try_into().map_err(encoding)?)];
    for dns in params.dns_names {
        if !is_dns_name(dns) {
            return Err(ProfileError::DnsName { name: dns.chars().take(255).collect() });
        }
        names.push(SanType::DnsName(dns.as_str().try_into().map_err(encoding)?));
    }
    Ok(names)
}

/// A host name in the preferred syntax (RFC 5280 §4.2.1.6 through RFC 1034 §3.5, RFC 1123 §2.1), lower
/// case; no wildcard, no trailing dot.
fn is_dns_name(name: &str) -> bool {
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
            && !l.starts_with('-')
            && !l.ends_with('-')
    };
    let last_is_number = name.rsplit('.').next().is_some_and(|l| l.bytes().all(|b| b.is_ascii_digit()));
    name.len() <= 253 && name.split('.').all(label) && !last_is_number
}

#[cfg(test)]
#[path = "issuing_tests.rs"]
mod tests;
