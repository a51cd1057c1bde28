//! Reading a certificate: the fields that this profile looks at, and nothing lenient about them.

use x509_parser::der_parser::Oid;
use x509_parser::extensions::{GeneralName, ParsedExtension, X509Extension};
use x509_parser::oid_registry::OID_X509_SERIALNUMBER;
use x509_parser::prelude::{FromDer, X509Certificate, X509Version};

use super::names::{CaName, LAB_MARK};

/// Longest certificate that is looked at. Ours have about 700 bytes.
pub(super) const MAX_CERTIFICATE: usize = 16 * 1024;

/// Why bytes are not a certificate that this profile can read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    /// Over the limit.
    #[error("{len} bytes, more than {max}")]
    TooLarge {
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// Not a certificate in DER.
    #[error("not a DER certificate: {why}")]
    Der {
        /// What the parser said.
        why: String,
    },
    /// Bytes after the certificate.
    #[error("{count} bytes follow the certificate")]
    Trailing {
        /// How many.
        count: usize,
    },
    /// Not version 3 (RFC 5280 §4.1.2.1: with extensions, version is 3).
    #[error("X.509 version {found}, not 3")]
    Version {
        /// The version found.
        found: u32,
    },
    /// An extension that occurs twice (RFC 5280 §4.2).
    #[error("extension {oid} occurs twice")]
    Duplicate {
        /// Its identifier.
        oid: String,
    },
    /// An extension whose content cannot be read.
    #[error("extension {oid} cannot be read")]
    Extension {
        /// Its identifier.
        oid: String,
    },
}

/// What was read of a certificate, unverified.
pub(super) struct Certificate<'a> {
    x509: X509Certificate<'a>,
    pub(super) names: Vec<San>,
    pub(super) is_ca: bool,
    pub(super) path_len: Option<u32>,
    /// keyUsage bits, bit 0 is digitalSignature; none where the extension is absent.
    pub(super) key_usage: Option<u16>,
    pub(super) policies: Vec<Vec<u64>>,
    pub(super) client_auth: bool,
    pub(super) server_auth: bool,
    pub(super) subject_key_id: Option<Vec<u8>>,
    pub(super) authority_key_id: Option<Vec<u8>>,
}

/// The bytes of a certificate or list that are signed, and the signature (RFC 5280 §4.1.1), without looking
/// into either.
pub(super) fn signed(der: &[u8]) -> Result<(Vec<u8>, Vec<u8>), CertificateError> {
    let read = yasna::parse_der(der, |r| {
        r.read_sequence(|r| {
            let tbs = r.next().read_der()?;
            r.next().read_der()?;
            Ok((tbs, r.next().read_bitvec_bytes()?.0))
        })
    });
    read.map_err(|e| CertificateError::Der { why: e.to_string() })
}

/// One subject alternative name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum San {
    Uri(String),
    Dns(String),
    Other(String),
}

pub(super) const DIGITAL_SIGNATURE: u16 = 1;
pub(super) const KEY_CERT_SIGN: u16 = 1 << 5;
pub(super) const CRL_SIGN: u16 = 1 << 6;

impl<'a> Certificate<'a> {
    pub(super) fn parse(der: &'a [u8]) -> Result<Self, CertificateError> {
        if der.len() > MAX_CERTIFICATE {
            return Err(CertificateError::TooLarge { len: der.len(), max: MAX_CERTIFICATE });
        }
        let (rest, x509) =
            X509Certificate::from_der(der).map_err(|e| CertificateError::Der { why: e.to_string() })?;
        if !rest.is_empty() {
            return Err(CertificateError::Trailing { count: rest.len() });
        }
        if x509.version() != X509Version::V3 {
            return Err(CertificateError::Version { found: x509.version().0.saturating_add(1) });
        }
        let mut this = Self {
            x509,
            names: Vec::new(),
            is_ca: false,
            path_len: None,
            key_usage: None,
            policies: Vec::new(),
            client_auth: false,
            server_auth: false,
            subject_key_id: None,
            authority_key_id: None,
        };
        this.read_extensions()?;
        Ok(this)
    }

    fn read_extensions(&mut self) -> Result<(), CertificateError> {
        let mut seen: Vec<String> = Vec::new();
        for ext in self.x509.tbs_certificate.extensions() {
            let oid = ext.oid.to_id_string();
            if seen.contains(&oid) {
                return Err(CertificateError::Duplicate { oid });
            }
            match ext.parsed_extension() {
                ParsedExtension::ParseError { .. } => return Err(CertificateError::Extension { oid }),
                ParsedExtension::SubjectAlternativeName(san) => {
                    self.names = san.general_names.iter().map(San::from).collect();
                }
                ParsedExtension::BasicConstraints(bc) => {
                    self.is_ca = bc.ca;
                    self.path_len = bc.path_len_constraint;
                }
                ParsedExtension::KeyUsage(ku) => self.key_usage = Some(ku.flags),
                ParsedExtension::ExtendedKeyUsage(eku) => {
                    self.client_auth = eku.client_auth;
                    self.server_auth = eku.server_auth;
                }
                ParsedExtension::CertificatePolicies(policies) => {
                    for policy in policies.iter() {
                        let components = policy
                            .policy_id
                            .iter()
                            .ok_or(CertificateError::Extension { oid: oid.clone() })?;
                        self.policies.push(components.collect());
                    }
                }
                ParsedExtension::SubjectKeyIdentifier(id) => self.subject_key_id = Some(id.0.to_vec()),
                ParsedExtension::AuthorityKeyIdentifier(id) => {
                    self.authority_key_id = id.key_identifier.as_ref().map(|id| id.0.to_vec());
                }
                _ => {}
            }
            seen.push(oid);
        }
        Ok(())
    }

    pub(super) fn serial(&self) -> &'a [u8] {
        self.x509.raw_serial()
    }

    pub(super) fn spki_der(&self) -> &'a [u8] {
        self.x509.tbs_certificate.subject_pki.raw
    }

    pub(super) fn subject_raw(&self) -> &[u8] {
        self.x509.subject().as_raw()
    }

    pub(super) fn issuer_raw(&self) -> &[u8] {
        self.x509.issuer().as_raw()
    }

    pub(super) fn not_before(&self) -> i64 {
        self.x509.validity().not_before.timestamp()
    }

    pub(super) fn not_after(&self) -> i64 {
        self.x509.validity().not_after.timestamp()
    }

    /// The content of the extension with this identifier.
    pub(super) fn extension(&self, oid: &str) -> Option<&'a [u8]> {
        let found = self.x509.extensions().iter().find(|e| e.oid.to_id_string() == oid);
        found.map(|e| e.value)
    }

    /// The SPIFFE ID text where the certificate has exactly one URI name (X.509-SVID §2).
    pub(super) fn only_uri(&self) -> Result<&str, usize> {
        let mut uris = self.names.iter().filter_map(|n| match n {
            San::Uri(uri) => Some(uri.as_str()),
            San::Dns(_) | San::Other(_) => None,
        });
        match (uris.next(), uris.count()) {
            (Some(uri), 0) => Ok(uri),
            (None, _) => Err(0),
            (Some(_), more) => Err(more + 1),
        }
    }

    /// Whether it has this extension, and as a critical one.
    pub(super) fn is_critical(&self, oid: &str) -> bool {
        self.x509.extensions().iter().any(|e| e.critical && e.oid.to_id_string() == oid)
    }

    pub(super) fn extensions(&self) -> &[X509Extension<'a>] {
        self.x509.extensions()
    }

    /// The signature's algorithm.
    pub(super) fn signature_algorithm(&self) -> &Oid<'a> {
        &self.x509.signature_algorithm.algorithm
    }

    /// Whether the last commonName of its subject says that it is a lab's.
    pub(super) fn is_lab(&self) -> bool {
        let last = self.x509.subject().iter_common_name().last();
        last.and_then(|name| name.as_str().ok()).is_some_and(|name| name.ends_with(LAB_MARK))
    }

    /// The issuer for people, cut to 256 characters.
    pub(super) fn issuer_text(&self) -> String {
        self.x509.issuer().to_string().chars().take(256).collect()
    }

    /// The subject for people, cut to 256 characters.
    pub(super) fn subject_text(&self) -> String {
        self.x509.subject().to_string().chars().take(256).collect()
    }

    /// The subject's serialNumber: in a leaf, the instance.
    pub(super) fn subject_serial_number(&self) -> Option<&str> {
        self.x509.subject().iter_by_oid(&OID_X509_SERIALNUMBER).next()?.as_str().ok()
    }

    /// The subject, where it is a CA's name of our form.
    pub(super) fn ca_name(&self) -> Option<CaName> {
        let subject = self.x509.subject();
        let one = |text: Option<&str>| text.map(str::to_owned);
        Some(CaName {
            organization: one(subject.iter_organization().next()?.as_str().ok())?,
            common_name: one(subject.iter_common_name().next()?.as_str().ok())?,
            serial_number: one(self.subject_serial_number())?,
        })
    }
}

impl From<&GeneralName<'_>> for San {
    fn from(name: &GeneralName<'_>) -> Self {
        match name {
            GeneralName::URI(uri) => San::Uri((*uri).to_owned()),
            GeneralName::DNSName(dns) => San::Dns((*dns).to_owned()),
            other => San::Other(other.to_string().chars().take(128).collect()),
        }
    }
}

impl San {
    pub(super) fn as_str(&self) -> &str {
        match self {
            San::Uri(text) | San::Dns(text) | San::Other(text) => text,
        }
    }
}
