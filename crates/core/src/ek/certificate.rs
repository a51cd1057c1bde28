//! One certificate, parsed into the facts that appraisal needs, with every leniency that was needed named.

use std::collections::BTreeSet;
use std::fmt;

use x509_parser::prelude::{FromDer, GeneralName, ParsedExtension, X509Certificate, X509Version};
use x509_parser::x509::{AlgorithmIdentifier, X509Name};

use super::der;

/// Longest certificate read; real ones with their NV padding stay below 4 KiB.
pub(super) const MAX_CERTIFICATE: usize = 8 * 1024;

/// A departure from RFC 5280 or DER that real EK certificates show, accepted by name. Anything else that
/// departs is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Leniency {
    /// After the certificate the buffer holds nothing but one repeated byte, 0xFF or 0x00: NV indices are
    /// made with a fixed size and filled up.
    NvPadding {
        /// The byte.
        fill: u8,
    },
    /// The subject is empty and a subjectAltName that is not critical names the TPM; RFC 5280, section
    /// 4.1.2.6 wants it critical then.
    EmptySubjectPlainSan,
    /// A name has a SET that is out of DER order (X.690, clause 11.6). Names are compared as the bytes they
    /// are, so this cannot make two names equal.
    NameSetOrder,
    /// basicConstraints write out the FALSE that DER leaves out (X.690, clause 11.5).
    ExplicitFalse,
    /// A certificate names its issuer with the same characters in another string type (UTF8String and
    /// PrintableString). RFC 5280, section 7.1 makes the names equal; many verifiers compare bytes.
    NameStringType,
}

impl fmt::Display for Leniency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Leniency::NvPadding { fill } => write!(f, "NV padding of {fill:#04x}"),
            Leniency::EmptySubjectPlainSan => f.write_str("empty subject with a subjectAltName not critical"),
            Leniency::NameSetOrder => f.write_str("a name's SET out of DER order"),
            Leniency::ExplicitFalse => f.write_str("basicConstraints with FALSE written out"),
            Leniency::NameStringType => f.write_str("an issuer named in another string type"),
        }
    }
}

/// Why bytes are not a certificate this verifier can use.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateFault {
    /// Longer than any EK certificate.
    #[error("{len} bytes, at most {MAX_CERTIFICATE} are read")]
    TooLong {
        /// Its length.
        len: usize,
    },
    /// Not a DER certificate.
    #[error("not a DER certificate: {why}")]
    Malformed {
        /// What is wrong.
        why: &'static str,
    },
    /// Something other than padding follows the certificate.
    #[error("{len} bytes follow the certificate that are not padding")]
    Trailing {
        /// How many.
        len: usize,
    },
    /// Not version 3.
    #[error("X.509 version {found}, not 3")]
    Version {
        /// The version.
        found: u32,
    },
    /// Signed with an algorithm that is broken.
    #[error("signed with {algorithm}, which is broken")]
    WeakSignature {
        /// The algorithm.
        algorithm: &'static str,
    },
    /// Signed with an algorithm this verifier does not know.
    #[error("signed with an algorithm that is not supported: {oid}")]
    SignatureAlgorithm {
        /// Its object identifier.
        oid: String,
    },
    /// A critical extension that this verifier does not process.
    #[error("critical extension {oid} is not known here")]
    CriticalExtension {
        /// Its object identifier.
        oid: String,
    },
    /// An extension that is malformed or appears twice.
    #[error("extension {oid} is {why}")]
    Extension {
        /// Its object identifier.
        oid: String,
        /// What is wrong.
        why: &'static str,
    },
}

/// How a certificate was signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SignatureAlgorithm {
    RsaPkcs1(Hash),
    RsaPss(Hash),
    Ecdsa(Hash),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Hash {
    Sha256,
    Sha384,
    Sha512,
}

/// What a certificate says, owned.
#[derive(Debug, Clone)]
pub(super) struct Certificate {
    /// Without padding.
    pub(super) der: Vec<u8>,
    pub(super) tbs: Vec<u8>,
    pub(super) signature_algorithm: SignatureAlgorithm,
    pub(super) signature: Vec<u8>,
    pub(super) subject_name: Name,
    pub(super) issuer_name: Name,
    /// For people; control characters replaced.
    pub(super) subject: String,
    pub(super) issuer: String,
    pub(super) serial: Vec<u8>,
    pub(super) not_before: i64,
    pub(super) not_after: i64,
    pub(super) spki: Vec<u8>,
    /// basicConstraints cA
    pub(super) ca: bool,
    pub(super) path_len: Option<u32>,
    /// keyUsage keyCertSign; `None` without keyUsage.
    pub(super) key_cert_sign: Option<bool>,
    /// Object identifiers of extendedKeyUsage; `None` without it.
    pub(super) purposes: Option<Vec<String>>,
    pub(super) authority_key_id: Option<Vec<u8>>,
    pub(super) subject_key_id: Option<Vec<u8>>,
    /// TCG attributes of the subjectAltName: manufacturer, model, version.
    pub(super) tcg: [Option<String>; 3],
    pub(super) leniencies: BTreeSet<Leniency>,
}

impl Certificate {
    /// Reads a certificate that may be followed by NV padding.
    pub(super) fn parse_padded(bytes: &[u8]) -> Result<Self, CertificateFault> {
        let mut leniencies = BTreeSet::new();
        let exact = strip_padding(bytes, &mut leniencies)?;
        Self::parse(exact, leniencies)
    }

    /// Reads a certificate, nothing left over.
    pub(super) fn parse_exact(der: &[u8]) -> Result<Self, CertificateFault> {
        if der.len() > MAX_CERTIFICATE {
            return Err(CertificateFault::TooLong { len: der.len() });
        }
        Self::parse(der, BTreeSet::new())
    }

    fn parse(der: &[u8], mut leniencies: BTreeSet<Leniency>) -> Result<Self, CertificateFault> {
        let malformed = |why| CertificateFault::Malformed { why };
        let (rest, x) = X509Certificate::from_der(der).map_err(|_| malformed("it does not parse"))?;
        if !rest.is_empty() {
            return Err(CertificateFault::Trailing { len: rest.len() });
        }
        if x.version() != X509Version::V3 {
            return Err(CertificateFault::Version { found: x.version().0.saturating_add(1) });
        }
        let raw = der::raw_parts(der).ok_or(malformed("its fields are not in DER"))?;
        if !raw.algorithms_agree {
            return Err(malformed("inner and outer signature algorithm differ"));
        }
        if !raw.strict_times {
            return Err(malformed("a time is not in the form of RFC 5280, section 4.1.2.5"));
        }
        let (issuer_name, issuer_ordered) = Name::parse(raw.issuer)?;
        let (subject_name, subject_ordered) = Name::parse(raw.subject)?;
        if !(issuer_ordered && subject_ordered) {
            leniencies.insert(Leniency::NameSetOrder);
        }
        if x.signature_value.unused_bits != 0 {
            return Err(malformed("the signature is not whole bytes"));
        }
        let mut certificate = Self {
            der: der.to_vec(),
            tbs: x.tbs_certificate.as_ref().to_vec(),
            signature_algorithm: signature_algorithm(&x.signature_algorithm)?,
            signature: x.signature_value.data.to_vec(),
            subject_name,
            issuer_name,
            subject: display_name(x.subject()),
            issuer: display_name(x.issuer()),
            serial: x.raw_serial().to_vec(),
            not_before: x.validity().not_before.timestamp(),
            not_after: x.validity().not_after.timestamp(),
            spki: x.public_key().raw.to_vec(),
            ca: false,
            path_len: None,
            key_cert_sign: None,
            purposes: None,
            authority_key_id: None,
            subject_key_id: None,
            tcg: [None, None, None],
            leniencies,
        };
        certificate.read_extensions(&x)?;
        Ok(certificate)
    }

    fn read_extensions(&mut self, x: &X509Certificate<'_>) -> Result<(), CertificateFault> {
        let mut seen = BTreeSet::new();
        let mut critical_san = None;
        for extension in x.extensions() {
            let oid = extension.oid.to_id_string();
            if !seen.insert(oid.clone()) {
                return Err(CertificateFault::Extension { oid, why: "there twice" });
            }
            match extension.parsed_extension() {
                ParsedExtension::BasicConstraints(constraints) => {
                    self.ca = constraints.ca;
                    self.path_len = constraints.path_len_constraint;
                    if extension.value == [0x30, 0x03, 0x01, 0x01, 0x00] {
                        self.leniencies.insert(Leniency::ExplicitFalse);
                    }
                }
                ParsedExtension::KeyUsage(usage) => self.key_cert_sign = Some(usage.key_cert_sign()),
                ParsedExtension::ExtendedKeyUsage(usage) => self.purposes = Some(purposes(usage)),
                ParsedExtension::SubjectAlternativeName(names) => {
                    critical_san = Some(extension.critical);
                    for name in &names.general_names {
                        if let GeneralName::DirectoryName(name) = name {
                            read_tcg_attributes(name, &mut self.tcg);
                        }
                    }
                }
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    self.authority_key_id = id.key_identifier.as_ref().map(|k| k.0.to_vec());
                }
                ParsedExtension::SubjectKeyIdentifier(id) => self.subject_key_id = Some(id.0.to_vec()),
                // No explicit policy is demanded here: policies inform (RFC 5280, section 6.1.1 (e)).
                ParsedExtension::CertificatePolicies(_) => {}
                ParsedExtension::ParseError { .. } if extension.critical => {
                    return Err(CertificateFault::Extension { oid, why: "critical and malformed" });
                }
                _ if extension.critical => return Err(CertificateFault::CriticalExtension { oid }),
                _ => {}
            }
        }
        if x.subject().iter_rdn().next().is_none() && critical_san == Some(false) {
            self.leniencies.insert(Leniency::EmptySubjectPlainSan);
        }
        Ok(())
    }

    /// Whether issuer and subject are the same name.
    pub(super) fn is_self_issued(&self) -> bool {
        self.subject_name.comparable == self.issuer_name.comparable
    }

    /// Whether `issuer` may have signed this, by name and, where both state them, by key identifiers.
    pub(super) fn names_issuer(&self, issuer: &Certificate) -> bool {
        let same_key_id = match (&self.authority_key_id, &issuer.subject_key_id) {
            (Some(wanted), Some(found)) => wanted == found,
            _ => true,
        };
        self.issuer_name.comparable == issuer.subject_name.comparable && same_key_id
    }
}

/// A distinguished name.
#[derive(Debug, Clone)]
pub(super) struct Name {
    /// As it is.
    pub(super) der: Vec<u8>,
    /// As it is compared.
    pub(super) comparable: Vec<u8>,
}

impl Name {
    fn parse(der: &[u8]) -> Result<(Self, bool), CertificateFault> {
        let malformed = CertificateFault::Malformed { why: "a name is not in DER" };
        let (comparable, ordered) = der::comparable_name(der).ok_or(malformed)?;
        Ok((Self { der: der.to_vec(), comparable }, ordered))
    }
}

fn strip_padding<'a>(
    bytes: &'a [u8],
    leniencies: &mut BTreeSet<Leniency>,
) -> Result<&'a [u8], CertificateFault> {
    if bytes.len() > MAX_CERTIFICATE {
        return Err(CertificateFault::TooLong { len: bytes.len() });
    }
    let first =
        der::element(bytes).filter(|e| e.tag == der::SEQUENCE).ok_or(CertificateFault::Malformed {
            why: "it does not begin with a DER SEQUENCE that ends inside the buffer",
        })?;
    if let Some(fill) = first.rest.first().copied() {
        if !matches!(fill, 0x00 | 0xff) || first.rest.iter().any(|b| *b != fill) {
            return Err(CertificateFault::Trailing { len: first.rest.len() });
        }
        leniencies.insert(Leniency::NvPadding { fill });
    }
    Ok(first.whole)
}

fn signature_algorithm(algorithm: &AlgorithmIdentifier<'_>) -> Result<SignatureAlgorithm, CertificateFault> {
    let oid = algorithm.algorithm.to_id_string();
    let weak = |algorithm| Err(CertificateFault::WeakSignature { algorithm });
    Ok(match oid.as_str() {
        "1.2.840.113549.1.1.11" => SignatureAlgorithm::RsaPkcs1(Hash::Sha256),
        "1.2.840.113549.1.1.12" => SignatureAlgorithm::RsaPkcs1(Hash::Sha384),
        "1.2.840.113549.1.1.13" => SignatureAlgorithm::RsaPkcs1(Hash::Sha512),
        "1.2.840.113549.1.1.10" => SignatureAlgorithm::RsaPss(pss_hash(algorithm)?),
        "1.2.840.10045.4.3.2" => SignatureAlgorithm::Ecdsa(Hash::Sha256),
        "1.2.840.10045.4.3.3" => SignatureAlgorithm::Ecdsa(Hash::Sha384),
        "1.2.840.10045.4.3.4" => SignatureAlgorithm::Ecdsa(Hash::Sha512),
        "1.2.840.113549.1.1.2" => return weak("md2WithRSAEncryption"),
        "1.2.840.113549.1.1.4" => return weak("md5WithRSAEncryption"),
        "1.2.840.113549.1.1.5" | "1.3.14.3.2.29" => return weak("sha1WithRSAEncryption"),
        "1.2.840.10045.4.1" => return weak("ecdsa-with-SHA1"),
        _ => return Err(CertificateFault::SignatureAlgorithm { oid }),
    })
}

fn pss_hash(algorithm: &AlgorithmIdentifier<'_>) -> Result<Hash, CertificateFault> {
    use x509_parser::signature_algorithm::RsaSsaPssParams;
    let parsed = algorithm.parameters.as_ref().and_then(|p| RsaSsaPssParams::try_from(p).ok());
    // RFC 4055, section 3.1: without a hash the default is SHA-1.
    let hash = parsed.map(|p| p.hash_algorithm_oid().to_id_string()).unwrap_or_default();
    match hash.as_str() {
        "2.16.840.1.101.3.4.2.1" => Ok(Hash::Sha256),
        "2.16.840.1.101.3.4.2.2" => Ok(Hash::Sha384),
        "2.16.840.1.101.3.4.2.3" => Ok(Hash::Sha512),
        _ => Err(CertificateFault::WeakSignature { algorithm: "RSASSA-PSS with SHA-1" }),
    }
}

fn purposes(usage: &x509_parser::extensions::ExtendedKeyUsage<'_>) -> Vec<String> {
    let mut oids: Vec<String> = usage.other.iter().map(|oid| oid.to_id_string()).collect();
    if usage.any {
        oids.push(super::ANY_PURPOSE.to_owned());
    }
    oids
}

/// TCG EK Credential Profile, clause 3.2.9: TPM manufacturer, model and version in a directoryName.
fn read_tcg_attributes(name: &X509Name<'_>, tcg: &mut [Option<String>; 3]) {
    for attribute in name.iter_attributes() {
        let slot = match attribute.attr_type().to_id_string().as_str() {
            "2.23.133.2.1" => 0,
            "2.23.133.2.2" => 1,
            "2.23.133.2.3" => 2,
            _ => continue,
        };
        tcg[slot] = attribute.as_str().ok().map(printable);
    }
}

fn display_name(name: &X509Name<'_>) -> String {
    printable(&name.to_string())
}

/// A name from outside for logs and terminals: bounded, without control characters.
fn printable(text: &str) -> String {
    text.chars().take(256).map(|c| if c.is_control() { '\u{fffd}' } else { c }).collect()
}
