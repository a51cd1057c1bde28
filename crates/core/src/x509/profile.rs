//! The CA certificates: one root for each tier and one for infrastructure, each with its issuing CA.

use std::cell::RefCell;
use std::time::Duration;

use rcgen::{BasicConstraints, CertificateParams, IsCa, KeyIdMethod, KeyUsagePurpose, SanType, SerialNumber};
use rustls_pki_types::CertificateDer;
use time::OffsetDateTime;

use super::agent_info::AgentInfoError;
use super::key::{CaKey, Curve, KeyError, PublicKey, PublicKeyError};
use super::names::CaName;
use super::oid::{CERTIFICATE_POLICIES, OidArc};
use super::parse::{Certificate, CertificateError, signed};
use super::serial::Serial;
use super::{BACKDATE, SerialError};
use crate::id::TrustDomain;
use crate::tier::{Custody, Hierarchy, Tier};

/// Longest life of a root or an issuing CA: 20 years.
pub const MAX_CA_LIFETIME: Duration = Duration::from_secs(20 * 366 * 86_400);

/// What a root or an issuing CA is to be.
#[derive(Debug, Clone)]
pub struct CaParams<'a> {
    /// The trust domain: organizationName, and the SPIFFE ID `spiffe://TD` that names a signing
    /// authority (X.509-SVID §4.2).
    pub trust_domain: &'a TrustDomain,
    /// Which of the four.
    pub hierarchy: Hierarchy,
    /// Whether this is a lab trust domain: the subject then ends in [`LAB_MARK`](super::LAB_MARK).
    pub lab: bool,
    /// The trust domain's arc, for the policies of issuing CAs.
    pub arc: &'a OidArc,
    /// The serial number, which is in the subject too.
    pub serial: Serial,
    /// Now, seconds since 1970-01-01 UTC.
    pub now: i64,
    /// How long the certificate lives.
    pub lifetime: Duration,
}

/// Why a certificate was not made.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// The CA key did not sign.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The public key to be certified is not usable.
    #[error(transparent)]
    PublicKey(#[from] PublicKeyError),
    /// The extension's content is not encodable.
    #[error(transparent)]
    AgentInfo(#[from] AgentInfoError),
    /// The CA certificate cannot be read.
    #[error("the CA certificate: {0}")]
    CaCertificate(#[from] CertificateError),
    /// The CA certificate is not one this profile made.
    #[error("the CA certificate is not a Hallmark {expected}: {why}")]
    CaForm {
        /// What was expected: `issuing CA` or `root`.
        expected: &'static str,
        /// What is different.
        why: &'static str,
    },
    /// The CA certificate's serial number.
    #[error("the CA certificate: {0}")]
    CaSerial(#[from] SerialError),
    /// The key is not the certificate's.
    #[error("the CA key (key id {key}) is not that of the CA certificate (key id {certificate})")]
    KeyMismatch {
        /// Key identifier of the key.
        key: String,
        /// Key identifier of the certificate's key.
        certificate: String,
    },
    /// The root is of another trust domain, hierarchy or kind of domain than the CA it should sign.
    #[error("the root's {what} differs from the issuing CA's")]
    RootMismatch {
        /// What differs.
        what: &'static str,
    },
    /// A lifetime of zero, or over the limit.
    #[error("a lifetime of {asked:?} is not between 1 second and {max:?}")]
    Lifetime {
        /// The lifetime asked for.
        asked: Duration,
        /// The longest allowed.
        max: Duration,
    },
    /// A time outside the years 1950 to 9999.
    #[error("{at} is not a time that certificates can carry")]
    Time {
        /// Seconds since 1970-01-01 UTC.
        at: i64,
    },
    /// The issuing CA has ended or not begun.
    #[error("the issuing CA is valid from {not_before} to {not_after}, and it is {now}")]
    CaNotValid {
        /// When it begins.
        not_before: i64,
        /// When it ends.
        not_after: i64,
        /// The time of issue.
        now: i64,
    },
    /// The subject belongs to another trust domain.
    #[error("the subject is of trust domain {found}, the CA of {expected}")]
    TrustDomain {
        /// The CA's.
        expected: String,
        /// The subject's.
        found: String,
    },
    /// The subject's kind or its AgentInfo does not belong to this hierarchy.
    #[error("{subject} cannot be certified by the {hierarchy} CA: {why}")]
    Subject {
        /// The SPIFFE ID.
        subject: String,
        /// The CA's hierarchy.
        hierarchy: Hierarchy,
        /// What does not fit.
        why: &'static str,
    },
    /// AgentInfo names another tier than the CA's.
    #[error("AgentInfo says {found}, the CA is {expected}")]
    Tier {
        /// The CA's tier.
        expected: Tier,
        /// The extension's tier.
        found: Tier,
    },
    /// A custody that this CA never certifies.
    #[error("custody {custody} is never certified here: {why}")]
    Custody {
        /// The custody.
        custody: Custody,
        /// The rule.
        why: &'static str,
    },
    /// Not a host name in lower case.
    #[error("{name:?} is not a DNS name in lower case without wildcard")]
    DnsName {
        /// The name, cut to 255 characters.
        name: String,
    },
    /// Not a URL that certificates can carry.
    #[error("{url:?} is not an http or https URL of at most 512 visible ASCII characters")]
    CrlUrl {
        /// The URL, cut to 600 characters.
        url: String,
    },
    /// The CA's signature does not verify with the CA's own public key.
    #[error("the signature just made does not verify with the CA's public key")]
    OwnSignature,
    /// Our own bug, or rcgen's.
    #[error("the certificate could not be encoded: {why}")]
    Encoding {
        /// What the encoder said.
        why: String,
    },
}

/// A self-signed root for one hierarchy.
///
/// # Errors
/// A bad lifetime, or the key does not sign.
pub fn root(params: &CaParams<'_>, key: &dyn CaKey) -> Result<CertificateDer<'static>, ProfileError> {
    let public = PublicKey::from_spki_der(key.spki_der())?;
    let name = CaName::new(params.trust_domain, params.hierarchy, "root", params.lab, params.serial);
    let mut cert = ca_params(params, &name, &public, 1)?;
    let (not_before, not_after) = validity(params.now, params.lifetime, MAX_CA_LIFETIME)?;
    (cert.not_before, cert.not_after) = (datetime(not_before)?, datetime(not_after)?);
    let der = sign_with(key, &public, |signer| cert.self_signed(signer))?;
    check_own_signature(&der, &public)?;
    Ok(der)
}

/// An issuing CA's certificate for the key `issuing_spki`, signed by the hierarchy's root. It ends with
/// the root if that is sooner.
///
/// # Errors
/// The root is not this hierarchy's, its key does not belong to it, a bad lifetime, or the key does not
/// sign.
pub fn issuing(
    params: &CaParams<'_>,
    issuing_spki: &[u8],
    root_der: &[u8],
    root_key: &dyn CaKey,
) -> Result<CertificateDer<'static>, ProfileError> {
    let root = RootCertificate::parse(root_der, params, root_key)?;
    let public = PublicKey::from_spki_der(issuing_spki)?;
    let name = CaName::new(params.trust_domain, params.hierarchy, "issuing CA", params.lab, params.serial);
    let mut cert = ca_params(params, &name, &public, 0)?;
    let (not_before, not_after) = validity(params.now, params.lifetime, MAX_CA_LIFETIME)?;
    if params.now < root.not_before || params.now >= root.not_after {
        return Err(ProfileError::CaNotValid {
            not_before: root.not_before,
            not_after: root.not_after,
            now: params.now,
        });
    }
    cert.not_before = datetime(not_before.max(root.not_before))?;
    cert.not_after = datetime(not_after.min(root.not_after))?;
    cert.use_authority_key_identifier_extension = true;
    if let Hierarchy::Tier(tier) = params.hierarchy {
        cert.custom_extensions.push(policies_extension(params.arc, tier));
    }
    let issuer = issuer_params(&root.name, root.public.key_id().to_vec())?;
    let der = sign_with(root_key, &root.public, |signer| {
        cert.signed_by(&SubjectKey(&public), &rcgen::Issuer::from_params(&issuer, signer))
    })?;
    check_own_signature(&der, &root.public)?;
    Ok(der)
}

pub(super) fn ca_params(
    params: &CaParams<'_>,
    name: &CaName,
    public: &PublicKey,
    path_len: u8,
) -> Result<CertificateParams, ProfileError> {
    let mut cert = CertificateParams::default();
    cert.serial_number = Some(SerialNumber::from_slice(params.serial.as_bytes()));
    cert.distinguished_name = name.to_rcgen().map_err(encoding)?;
    cert.is_ca = IsCa::Ca(BasicConstraints::Constrained(path_len));
    cert.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    cert.key_identifier_method = KeyIdMethod::PreSpecified(public.key_id().to_vec());
    let id = format!("spiffe://{}", params.trust_domain);
    cert.subject_alt_names = vec![SanType::URI(id.try_into().map_err(encoding)?)];
    Ok(cert)
}

struct RootCertificate {
    name: CaName,
    public: PublicKey,
    not_before: i64,
    not_after: i64,
}

impl RootCertificate {
    fn parse(der: &[u8], params: &CaParams<'_>, key: &dyn CaKey) -> Result<Self, ProfileError> {
        let cert = Certificate::parse(der)?;
        let form = |why| ProfileError::CaForm { expected: "root", why };
        let name = cert.ca_name().ok_or_else(|| form("the subject lacks O, CN or serialNumber"))?;
        let serial = Serial::from_bytes(cert.serial())?;
        let expected = CaName::new(params.trust_domain, params.hierarchy, "root", params.lab, serial);
        if name.organization != expected.organization {
            return Err(ProfileError::RootMismatch { what: "trust domain" });
        }
        if name.is_lab() != params.lab {
            return Err(ProfileError::RootMismatch { what: "kind (lab or production)" });
        }
        if name != expected {
            return Err(ProfileError::RootMismatch { what: "hierarchy" });
        }
        if !cert.is_ca {
            return Err(form("it is no CA"));
        }
        let public = PublicKey::from_spki_der(cert.spki_der())?;
        check_pair(&public, key)?;
        Ok(Self { name, public, not_before: cert.not_before(), not_after: cert.not_after() })
    }
}

pub(super) fn check_pair(public: &PublicKey, key: &dyn CaKey) -> Result<(), ProfileError> {
    let of_key = PublicKey::from_spki_der(key.spki_der())?;
    if of_key != *public || of_key.curve() != key.curve() {
        return Err(ProfileError::KeyMismatch {
            key: hex::encode(of_key.key_id()),
            certificate: hex::encode(public.key_id()),
        });
    }
    Ok(())
}

/// rcgen's view of an issuer: its name, and its subject key identifier, which the AKI repeats to the byte.
pub(super) fn issuer_params(name: &CaName, key_id: Vec<u8>) -> Result<CertificateParams, ProfileError> {
    let mut params = CertificateParams::default();
    params.distinguished_name = name.to_rcgen().map_err(encoding)?;
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.key_identifier_method = KeyIdMethod::PreSpecified(key_id);
    Ok(params)
}

/// certificatePolicies, non-critical, cumulative (RFC 5280 §4.2.1.4).
pub(super) fn policies_extension(arc: &OidArc, tier: Tier) -> rcgen::CustomExtension {
    let content = yasna::construct_der(|w| {
        w.write_sequence(|w| {
            for policy in arc.cumulative_policies(tier) {
                w.next().write_sequence(|w| {
                    w.next().write_oid(&yasna::models::ObjectIdentifier::from_slice(&policy));
                });
            }
        });
    });
    rcgen::CustomExtension::from_oid_content(&CERTIFICATE_POLICIES, content)
}

/// From `now`, backdated, for `lifetime`.
pub(super) fn validity(now: i64, lifetime: Duration, max: Duration) -> Result<(i64, i64), ProfileError> {
    if lifetime < Duration::from_secs(1) || lifetime > max {
        return Err(ProfileError::Lifetime { asked: lifetime, max });
    }
    let seconds = i64::try_from(lifetime.as_secs()).unwrap_or(i64::MAX);
    let time = || ProfileError::Time { at: now };
    let not_before = now.checked_sub(BACKDATE).ok_or_else(time)?;
    Ok((not_before, now.checked_add(seconds).ok_or_else(time)?))
}

pub(super) fn datetime(at: i64) -> Result<OffsetDateTime, ProfileError> {
    let time = OffsetDateTime::from_unix_timestamp(at).map_err(|_| ProfileError::Time { at })?;
    if (1950..=9999).contains(&time.year()) { Ok(time) } else { Err(ProfileError::Time { at }) }
}

pub(super) fn encoding(e: rcgen::Error) -> ProfileError {
    ProfileError::Encoding { why: e.to_string() }
}

/// The key to be certified, as rcgen wants it.
pub(super) struct SubjectKey<'a>(pub(super) &'a PublicKey);

impl rcgen::PublicKeyData for SubjectKey<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.0.point()
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.0.curve().rcgen()
    }
}

/// A CA key as rcgen wants it. rcgen's error cannot say why a key did not sign, so it is kept here.
pub(super) struct Signer<'a> {
    key: &'a dyn CaKey,
    curve: Curve,
    public: &'a PublicKey,
    failure: RefCell<Option<KeyError>>,
}

impl rcgen::PublicKeyData for Signer<'_> {
    fn der_bytes(&self) -> &[u8] {
        self.public.point()
    }
    fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
        self.curve.rcgen()
    }
}

impl rcgen::SigningKey for Signer<'_> {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        self.key.sign(message).map_err(|e| {
            *self.failure.borrow_mut() = Some(e);
            rcgen::Error::RemoteKeyError
        })
    }
}

/// Runs `build` with `key` as signer, and gives the key's own error where it was the key that failed.
pub(super) fn sign_with<T: Into<CertificateDer<'static>>>(
    key: &dyn CaKey,
    public: &PublicKey,
    build: impl FnOnce(&Signer<'_>) -> Result<T, rcgen::Error>,
) -> Result<CertificateDer<'static>, ProfileError> {
    signing(key, public, build).map(Into::into)
}

/// As [`sign_with`], for anything rcgen signs.
pub(super) fn signing<T>(
    key: &dyn CaKey,
    public: &PublicKey,
    build: impl FnOnce(&Signer<'_>) -> Result<T, rcgen::Error>,
) -> Result<T, ProfileError> {
    let signer = Signer { key, curve: public.curve(), public, failure: RefCell::new(None) };
    build(&signer).map_err(|e| match signer.failure.borrow_mut().take() {
        Some(failure) => ProfileError::Key(failure),
        None => encoding(e),
    })
}

/// A CA checks its own signature before anyone else sees it: a faulty token must not show outside.
pub(super) fn check_own_signature(der: &[u8], public: &PublicKey) -> Result<(), ProfileError> {
    let (message, signature) = signed(der)?;
    if public.verifies(&message, &signature) { Ok(()) } else { Err(ProfileError::OwnSignature) }
}

#[cfg(test)]
#[path = "profile_tests.rs"]
mod tests;
