//! Issuing CAs that a root elsewhere signs: the request for one, and what may come back.
//!
//! A root elsewhere is somebody's own, with the subject and the key identifiers of its own habit. What it signs must be
//! what [`issuing`](super::issuing) would have made, as far as anybody depends on it; every fault is named at once.

use rcgen::CertificateParams;
use x509_parser::extensions::ParsedExtension;
use x509_parser::oid_registry::{OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384};

use super::csr::canonical;
use super::key::{CaKey, Curve, PublicKey};
use super::names::CaName;
use super::oid::OidArc;
use super::parse::{CRL_SIGN, Certificate, KEY_CERT_SIGN, San, signed};
use super::profile::{CaParams, ProfileError, ca_params, policies_extension, signing};
use super::serial::Serial;
use crate::id::TrustDomain;
use crate::tier::Hierarchy;

/// A request (PKCS#10, DER) for an issuing CA's certificate: subject, and as extensions all that the certificate is to
/// have but its authority key identifier. The subject's serialNumber follows from the key: asked again, it is the same.
///
/// # Errors
/// The key does not sign.
pub fn ca_request(wanted: &IssuingWanted<'_>, key: &dyn CaKey) -> Result<Vec<u8>, ProfileError> {
    let public = PublicKey::from_spki_der(key.spki_der())?;
    let mut serial = [0; 16];
    serial.copy_from_slice(&super::fingerprint(key.spki_der())[..16]);
    let serial = Serial::from_random(serial);
    let name = CaName::new(wanted.trust_domain, wanted.hierarchy, "issuing CA", wanted.lab, serial);
    let params = CaParams {
        trust_domain: wanted.trust_domain,
        hierarchy: wanted.hierarchy,
        lab: wanted.lab,
        arc: wanted.arc,
        serial,
        now: 0,
        lifetime: std::time::Duration::ZERO,
    };
    let mut request: CertificateParams = ca_params(&params, &name, &public, 0)?;
    request.serial_number = None;
    if let Hierarchy::Tier(tier) = wanted.hierarchy {
        request.custom_extensions.push(policies_extension(wanted.arc, tier));
    }
    signing(key, &public, |signer| Ok(request.serialize_request(signer)?.der().to_vec()))
}

/// What an issuing CA is to be.
#[derive(Debug, Clone, Copy)]
pub struct IssuingWanted<'a> {
    /// Its trust domain.
    pub trust_domain: &'a TrustDomain,
    /// Which of the four.
    pub hierarchy: Hierarchy,
    /// Whether this is a lab trust domain.
    pub lab: bool,
    /// The trust domain's arc.
    pub arc: &'a OidArc,
}

/// What is wrong with a certificate that a root elsewhere made, or with that root. `of` is `certificate` or `root`.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamFault {
    /// It cannot be read.
    #[error("{of}: {why}")]
    Unreadable {
        /// Of which.
        of: &'static str,
        /// What the parser said.
        why: String,
    },
    /// It is for another key.
    #[error("certificate: its key is not the requested one (hallmark ca csr)")]
    Key,
    /// Its key is of a kind that no verifier of ours accepts.
    #[error("{of}: {why}")]
    KeyKind {
        /// Of which.
        of: &'static str,
        /// What is accepted.
        why: String,
    },
    /// The subject is not the requested one.
    #[error(
        "certificate: the subject is {found:?}, and the request's is \"{expected}\": O, CN and serialNumber are to be taken over as they are"
    )]
    Subject {
        /// What it is.
        found: String,
        /// What was asked for.
        expected: String,
    },
    /// The issuer's name is not the root's subject.
    #[error("certificate: its issuer {found:?} is not the root's subject {root:?}")]
    Issuer {
        /// The name in the certificate.
        found: String,
        /// The root's.
        root: String,
    },
    /// It is not signed by the root.
    #[error("{of}: its signature is not the root's, by {expected}")]
    Signature {
        /// Of which.
        of: &'static str,
        /// The algorithm that goes with the root's key.
        expected: &'static str,
    },
    /// basicConstraints.
    #[error("{of}: basicConstraints must be {expected}")]
    BasicConstraints {
        /// Of which.
        of: &'static str,
        /// What they must be.
        expected: &'static str,
    },
    /// keyUsage.
    #[error("{of}: keyUsage must be {expected}")]
    KeyUsage {
        /// Of which.
        of: &'static str,
        /// What it must be.
        expected: &'static str,
    },
    /// The policies are not the tier's cumulative set.
    #[error("certificate: certificatePolicies must be exactly {expected} (DESIGN: cumulative)")]
    Policies {
        /// Those that it must have, or `none`.
        expected: String,
    },
    /// An extension that must not be there.
    #[error("{of}: extension {name} must not be there: {why}")]
    Forbidden {
        /// Of which.
        of: &'static str,
        /// Which extension.
        name: &'static str,
        /// Why.
        why: &'static str,
    },
    /// A critical extension beyond those that every verifier knows.
    #[error("{of}: extension {oid} is critical; webpki and Java refuse what they do not know")]
    Critical {
        /// Of which.
        of: &'static str,
        /// Its identifier.
        oid: String,
    },
    /// A name beside the trust domain's.
    #[error("{of}: subjectAltName is {found}; it may be spiffe://{expected} alone, or absent")]
    Names {
        /// Of which.
        of: &'static str,
        /// The names.
        found: String,
        /// The trust domain.
        expected: String,
    },
    /// No subject key identifier.
    #[error("{of}: the subject key identifier is missing")]
    SubjectKeyId {
        /// Of which.
        of: &'static str,
    },
    /// The authority key identifier is not the root's subject key identifier.
    #[error(
        "certificate: the authority key identifier is {found}, the root's subject key identifier {expected}"
    )]
    AuthorityKeyId {
        /// In hex, or `missing`.
        found: String,
        /// In hex, or `missing`.
        expected: String,
    },
    /// The serial number is zero, negative, or too long.
    #[error("{of}: the serial number must be positive, of at most 20 bytes (RFC 5280 section 4.1.2.2)")]
    Serial {
        /// Of which.
        of: &'static str,
    },
    /// Out of its time.
    #[error("{of}: valid from {not_before} to {not_after}: {why}")]
    Validity {
        /// Of which.
        of: &'static str,
        /// Its beginning, seconds since 1970-01-01 UTC.
        not_before: i64,
        /// Its end.
        not_after: i64,
        /// What is wrong with that.
        why: String,
    },
    /// Not self-issued.
    #[error("root: it is no root: issuer and subject differ")]
    NotRoot,
    /// The root's key is another hierarchy's, too.
    #[error(
        "root: its key is the {other} root's: each hierarchy has a root of its own, by which relying parties tell the tier"
    )]
    SharedRoot {
        /// That hierarchy.
        other: Hierarchy,
    },
    /// The subject says that it is a lab's, or does not.
    #[error("root: {why}")]
    Lab {
        /// Which way.
        why: String,
    },
}

/// Holds a certificate that a root elsewhere made for `spki` against the profile (DESIGN section 5), and the root, too.
/// `roots` are all roots of the trust domain that are known, `least` the seconds that the certificate must have left.
///
/// # Errors
/// Every fault there is.
pub fn appraise_upstream(
    certificate: &[u8],
    root: &[u8],
    wanted: &IssuingWanted<'_>,
    spki: &[u8],
    roots: &[(Hierarchy, Vec<u8>)],
    now: i64,
    least: i64,
) -> Result<(), Vec<UpstreamFault>> {
    let mut faults = Vec::new();
    let root_cert = Certificate::parse(root)
        .map_err(|e| faults.push(UpstreamFault::Unreadable { of: ROOT, why: e.to_string() }))
        .ok();
    let cert = Certificate::parse(certificate)
        .map_err(|e| faults.push(UpstreamFault::Unreadable { of: CERTIFICATE, why: e.to_string() }))
        .ok();
    let by = root_cert.as_ref().and_then(|root_cert| {
        appraise_root(root, root_cert, wanted, roots, now, &mut faults);
        PublicKey::from_spki_der(root_cert.spki_der()).ok()
    });
    if let Some(cert) = &cert {
        appraise_issuing(cert, wanted, spki, now, least, &mut faults);
        if let Some(root_cert) = &root_cert {
            appraise_pair(certificate, cert, root_cert, by.as_ref(), &mut faults);
        }
    }
    if faults.is_empty() { Ok(()) } else { Err(faults) }
}

const CERTIFICATE: &str = "certificate";
const ROOT: &str = "root";
const BASIC_CONSTRAINTS: &str = "2.5.29.19";
const KEY_USAGE: &str = "2.5.29.15";

fn appraise_issuing(
    cert: &Certificate<'_>,
    wanted: &IssuingWanted<'_>,
    spki: &[u8],
    now: i64,
    least: i64,
    faults: &mut Vec<UpstreamFault>,
) {
    let of = CERTIFICATE;
    if cert.spki_der() != spki {
        faults.push(UpstreamFault::Key);
    }
    let name = cert.ca_name();
    let serial = name.as_ref().and_then(|name| name.serial_number.parse().ok());
    let expected =
        |serial| CaName::new(wanted.trust_domain, wanted.hierarchy, "issuing CA", wanted.lab, serial);
    if name.is_none() || serial.map(&expected) != name {
        let expected = expected(serial.unwrap_or(Serial::from_random([0; 16])));
        let CaName { organization, common_name, .. } = expected;
        let expected = format!("O={organization}, CN={common_name}, serialNumber=…");
        faults.push(UpstreamFault::Subject { found: cert.subject_text(), expected });
    }
    if !cert.is_ca || cert.path_len != Some(0) || !cert.is_critical(BASIC_CONSTRAINTS) {
        faults.push(UpstreamFault::BasicConstraints { of, expected: "critical, CA:TRUE, pathlen:0" });
    }
    if cert.key_usage != Some(KEY_CERT_SIGN | CRL_SIGN) || !cert.is_critical(KEY_USAGE) {
        faults.push(UpstreamFault::KeyUsage {
            of,
            expected: "critical, keyCertSign, cRLSign, and nothing else",
        });
    }
    let policies = match wanted.hierarchy {
        Hierarchy::Infrastructure => Vec::new(),
        Hierarchy::Tier(tier) => wanted.arc.cumulative_policies(tier),
    };
    if policies.len() != cert.policies.len() || policies.iter().any(|p| !cert.policies.contains(p)) {
        let text = |p: &Vec<u64>| p.iter().map(u64::to_string).collect::<Vec<_>>().join(".");
        let expected = policies.iter().map(text).collect::<Vec<_>>().join(", ");
        let expected = if expected.is_empty() { "none".to_owned() } else { expected };
        faults.push(UpstreamFault::Policies { expected });
    }
    appraise_common(cert, of, wanted, now, faults);
    let (not_before, not_after) = (cert.not_before(), cert.not_after());
    if not_after > now && not_after - now < least {
        let why = format!("less than {least} seconds are left");
        faults.push(UpstreamFault::Validity { of, not_before, not_after, why });
    }
}

fn appraise_pair(
    der: &[u8],
    cert: &Certificate<'_>,
    root: &Certificate<'_>,
    by: Option<&PublicKey>,
    faults: &mut Vec<UpstreamFault>,
) {
    if cert.issuer_raw() != root.subject_raw() {
        faults.push(UpstreamFault::Issuer { found: cert.issuer_text(), root: root.subject_text() });
    }
    let shown = |id: &Option<Vec<u8>>| id.as_ref().map_or_else(|| "missing".to_owned(), hex::encode);
    if cert.authority_key_id.is_none() || cert.authority_key_id != root.subject_key_id {
        faults.push(UpstreamFault::AuthorityKeyId {
            found: shown(&cert.authority_key_id),
            expected: shown(&root.subject_key_id),
        });
    }
    if let Some(by) = by
        && !is_signed_by(der, cert, by)
    {
        faults.push(UpstreamFault::Signature { of: CERTIFICATE, expected: algorithm(by.curve()) });
    }
    if cert.not_after() > root.not_after() || cert.not_before() < root.not_before() {
        let (not_before, not_after) = (cert.not_before(), cert.not_after());
        let why = "that is not within the root's own time".to_owned();
        faults.push(UpstreamFault::Validity { of: CERTIFICATE, not_before, not_after, why });
    }
}

fn appraise_root(
    der: &[u8],
    root: &Certificate<'_>,
    wanted: &IssuingWanted<'_>,
    roots: &[(Hierarchy, Vec<u8>)],
    now: i64,
    faults: &mut Vec<UpstreamFault>,
) {
    let of = ROOT;
    if root.issuer_raw() != root.subject_raw() {
        faults.push(UpstreamFault::NotRoot);
    }
    match PublicKey::from_spki_der(root.spki_der()) {
        Ok(key) if !is_signed_by(der, root, &key) => {
            faults.push(UpstreamFault::Signature { of, expected: algorithm(key.curve()) });
        }
        Ok(_) => {}
        Err(e) => faults.push(UpstreamFault::KeyKind { of, why: e.to_string() }),
    }
    if !root.is_ca || root.path_len == Some(0) || !root.is_critical(BASIC_CONSTRAINTS) {
        faults.push(UpstreamFault::BasicConstraints {
            of,
            expected: "critical, CA:TRUE, and leave room for one CA below",
        });
    }
    if root.key_usage.is_none_or(|usage| usage & KEY_CERT_SIGN == 0) {
        faults.push(UpstreamFault::KeyUsage { of, expected: "at least keyCertSign" });
    }
    for (other, known) in roots.iter().filter(|(h, _)| *h != wanted.hierarchy) {
        if Certificate::parse(known).is_ok_and(|known| known.spki_der() == root.spki_der()) {
            faults.push(UpstreamFault::SharedRoot { other: *other });
        }
    }
    let is_lab = root.is_lab();
    if is_lab != wanted.lab {
        let mark = super::LAB_MARK;
        let why = if wanted.lab {
            format!("this is a lab trust domain: the last of its common names must end in {mark:?}")
        } else {
            format!("it says {mark:?}, and this is no lab trust domain")
        };
        faults.push(UpstreamFault::Lab { why });
    }
    appraise_common(root, of, wanted, now, faults);
}

/// What holds for either.
fn appraise_common(
    cert: &Certificate<'_>,
    of: &'static str,
    wanted: &IssuingWanted<'_>,
    now: i64,
    faults: &mut Vec<UpstreamFault>,
) {
    let mut forbid = |name, why| faults.push(UpstreamFault::Forbidden { of, name, why });
    for extension in cert.extensions() {
        match extension.parsed_extension() {
            ParsedExtension::NameConstraints(_) => {
                forbid("nameConstraints", "rustls-webpki fails closed on constraints of URI names");
            }
            ParsedExtension::PolicyConstraints(_) => forbid("policyConstraints", "webpki and Java refuse it"),
            ParsedExtension::InhibitAnyPolicy(_) => forbid("inhibitAnyPolicy", "webpki and Java refuse it"),
            ParsedExtension::PolicyMappings(_) => forbid("policyMappings", "no policy stands for another"),
            ParsedExtension::ExtendedKeyUsage(_) => {
                forbid("extendedKeyUsage", "verifiers hold it against every leaf below");
            }
            _ => {}
        }
    }
    for extension in cert.extensions().iter().filter(|e| e.critical) {
        let oid = extension.oid.to_id_string();
        let named = matches!(
            extension.parsed_extension(),
            ParsedExtension::NameConstraints(_)
                | ParsedExtension::PolicyConstraints(_)
                | ParsedExtension::InhibitAnyPolicy(_)
                | ParsedExtension::PolicyMappings(_)
                | ParsedExtension::ExtendedKeyUsage(_)
        );
        if oid != BASIC_CONSTRAINTS && oid != KEY_USAGE && !named {
            faults.push(UpstreamFault::Critical { of, oid });
        }
    }
    let expected = format!("spiffe://{}", wanted.trust_domain);
    let foreign = cert.names.iter().any(|name| *name != San::Uri(expected.clone()));
    if foreign || cert.names.len() > 1 {
        let found: Vec<&str> = cert.names.iter().map(San::as_str).collect();
        let found = found.join(", ").chars().take(256).collect();
        faults.push(UpstreamFault::Names { of, found, expected: wanted.trust_domain.to_string() });
    }
    if cert.subject_key_id.is_none() {
        faults.push(UpstreamFault::SubjectKeyId { of });
    }
    let serial = cert.serial();
    let positive = serial.first().is_some_and(|first| first & 0x80 == 0) && serial.iter().any(|b| *b != 0);
    if !positive || serial.len() > 20 {
        faults.push(UpstreamFault::Serial { of });
    }
    let (not_before, not_after) = (cert.not_before(), cert.not_after());
    if now < not_before || now >= not_after {
        let why = if now < not_before { "it has not begun" } else { "it has ended" }.to_owned();
        faults.push(UpstreamFault::Validity { of, not_before, not_after, why });
    }
}

/// RFC 5758 section 3.2: the algorithm of the signer's curve, without parameters.
fn is_signed_by(der: &[u8], cert: &Certificate<'_>, by: &PublicKey) -> bool {
    let oid = match by.curve() {
        Curve::P256 => OID_SIG_ECDSA_WITH_SHA256,
        Curve::P384 => OID_SIG_ECDSA_WITH_SHA384,
    };
    // One encoding: the parser overlooks odd tags outside what is signed.
    let verified = signed(der).is_ok_and(|(message, signature)| {
        by.verifies(&message, &signature) && canonical(&message, by.curve(), &signature) == der
    });
    *cert.signature_algorithm() == oid && verified
}

fn algorithm(curve: Curve) -> &'static str {
    match curve {
        Curve::P256 => "ecdsa-with-SHA256",
        Curve::P384 => "ecdsa-with-SHA384",
    }
}

#[cfg(test)]
#[path = "upstream_tests.rs"]
mod tests;
