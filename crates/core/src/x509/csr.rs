//! Certification requests (PKCS#10, RFC 2986) with proof of possession.
//!
//! A request carries the key and proves that its sender holds it. Nothing else in it reaches the
//! certificate, which the profile alone shapes; but a request that asks for what it will not get is
//! refused rather than quietly answered otherwise:
//! - the subject is ignored;
//! - the only attribute allowed is one extensionRequest, its only extensions subjectAltName, keyUsage,
//!   extendedKeyUsage and basicConstraints, each at most once;
//! - keyUsage may ask for digitalSignature only, extendedKeyUsage for clientAuth and serverAuth only,
//!   basicConstraints must not say CA;
//! - subjectAltName, where present, is exactly the one SPIFFE ID ([`Csr::check_san`]).

use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::cri_attributes::{ParsedCriAttribute, X509CriAttribute};
use x509_parser::extensions::{ExtendedKeyUsage, ParsedExtension, X509Extension};
use x509_parser::oid_registry::{OID_SIG_ECDSA_WITH_SHA256, OID_SIG_ECDSA_WITH_SHA384};
use x509_parser::prelude::FromDer;
use x509_parser::x509::{AlgorithmIdentifier, X509Version};

use super::key::{Curve, PublicKey, PublicKeyError};
use super::oid::{BASIC_CONSTRAINTS, EXT_KEY_USAGE, KEY_USAGE, SUBJECT_ALT_NAME};
use super::parse::{DIGITAL_SIGNATURE, San};
use crate::id::SpiffeId;

/// Longest request accepted, in bytes.
pub const MAX_CSR: usize = 8 * 1024;

/// A request whose signature proved possession of its key.
#[derive(Debug, Clone)]
pub struct Csr {
    key: PublicKey,
    names: Option<Vec<San>>,
}

/// Why a request was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CsrError {
    /// Over the limit.
    #[error("the request has {len} bytes, more than {max}")]
    TooLarge {
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// Not PKCS#10 in DER, or bytes after it.
    #[error("the request is not PKCS#10 in DER: {why}")]
    Der {
        /// What the parser said.
        why: String,
    },
    /// The key is not usable.
    #[error("the request: {0}")]
    Key(#[from] PublicKeyError),
    /// The signature algorithm is not the one of the key's curve.
    #[error("the request is signed with {found}, its {curve} key signs with {expected}")]
    Algorithm {
        /// The curve of the key.
        curve: Curve,
        /// What the profile expects.
        expected: &'static str,
        /// The algorithm's identifier.
        found: String,
    },
    /// The signature is not the key's: no proof of possession.
    #[error("the request's signature does not verify with its own key")]
    ProofOfPossession,
    /// An attribute other than one extensionRequest.
    #[error("the request carries attribute {oid}, or carries it twice")]
    Attribute {
        /// Its identifier.
        oid: String,
    },
    /// An extension that no request may ask for, or that is asked for twice or unreadably.
    #[error("the request asks for extension {oid} in a way that is not allowed: {why}")]
    Extension {
        /// Its identifier.
        oid: String,
        /// What is wrong.
        why: &'static str,
    },
    /// It asks to be a CA.
    #[error("the request asks for CA:TRUE")]
    CertificateAuthority,
    /// It asks for key usages other than digitalSignature, such as keyCertSign.
    #[error("the request asks for key usage bits {found:#05x}; digitalSignature alone is given")]
    KeyUsage {
        /// The bits, bit 0 being digitalSignature.
        found: u16,
    },
    /// It asks for extended key usages other than clientAuth and serverAuth.
    #[error("the request asks for an extended key usage other than clientAuth and serverAuth")]
    ExtendedKeyUsage,
    /// It asks for another name.
    #[error("the request asks for the names {found}, and {expected} alone would be given")]
    Names {
        /// The SPIFFE ID that would be certified.
        expected: String,
        /// The names asked for, cut to 256 characters.
        found: String,
    },
}

impl Csr {
    /// Reads a request, verifies its signature with its own key, and refuses what no request may ask for.
    ///
    /// # Errors
    /// See [`CsrError`]. The signature is checked before the contents are looked at.
    pub fn parse(der: &[u8]) -> Result<Self, CsrError> {
        if der.len() > MAX_CSR {
            return Err(CsrError::TooLarge { len: der.len(), max: MAX_CSR });
        }
        let malformed = |why: String| CsrError::Der { why };
        let (rest, request) =
            X509CertificationRequest::from_der(der).map_err(|e| malformed(e.to_string()))?;
        if !rest.is_empty() {
            return Err(malformed(format!("{} bytes follow it", rest.len())));
        }
        let info = &request.certification_request_info;
        if info.version != X509Version::V1 {
            return Err(malformed("its version is not v1 (RFC 2986 §4.1)".to_owned()));
        }
        let key = PublicKey::from_spki_der(info.subject_pki.raw)?;
        check_algorithm(key.curve(), &request.signature_algorithm)?;
        if canonical(info.raw, key.curve(), &request.signature_value.data) != der {
            return Err(malformed("it is not in canonical DER".to_owned()));
        }
        if request.signature_value.unused_bits != 0 || !key.verifies(info.raw, &request.signature_value.data)
        {
            return Err(CsrError::ProofOfPossession);
        }
        let names = read_attributes(info.attributes())?;
        Ok(Self { key, names })
    }

    /// The key: SubjectPublicKeyInfo, DER, canonical.
    pub fn spki_der(&self) -> &[u8] {
        self.key.spki_der()
    }

    /// The key.
    pub fn public_key(&self) -> &PublicKey {
        &self.key
    }

    /// Checks that the request asks for this name and no other, or for none.
    ///
    /// # Errors
    /// Any other name, or more than one.
    pub fn check_san(&self, expected: &SpiffeId) -> Result<(), CsrError> {
        let expected = expected.to_string();
        match self.names.as_deref() {
            None => Ok(()),
            Some([San::Uri(uri)]) if *uri == expected => Ok(()),
            Some(names) => {
                let shown: Vec<&str> = names.iter().map(San::as_str).collect();
                Err(CsrError::Names { expected, found: format!("{shown:?}").chars().take(256).collect() })
            }
        }
    }
}

fn check_algorithm(curve: Curve, found: &AlgorithmIdentifier<'_>) -> Result<(), CsrError> {
    let (expected, oid) = match curve {
        Curve::P256 => ("ecdsa-with-SHA256", OID_SIG_ECDSA_WITH_SHA256),
        Curve::P384 => ("ecdsa-with-SHA384", OID_SIG_ECDSA_WITH_SHA384),
    };
    // RFC 5758 §3.2: the parameters field is absent.
    if found.algorithm != oid || found.parameters.is_some() {
        return Err(CsrError::Algorithm { curve, expected, found: found.algorithm.to_id_string() });
    }
    Ok(())
}

/// The one encoding of these parts (RFC 2986 §4.2, and alike RFC 5280 §5.1): the parser overlooks odd tags
/// outside what is signed.
pub(super) fn canonical(info: &[u8], curve: Curve, signature: &[u8]) -> Vec<u8> {
    let algorithm: &[u8] = match curve {
        Curve::P256 => &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02],
        Curve::P384 => &[0x30, 0x0a, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x03],
    };
    let mut der = Vec::with_capacity(info.len() + algorithm.len() + signature.len() + 16);
    der.extend_from_slice(info);
    der.extend_from_slice(algorithm);
    der.push(0x03);
    push_length(&mut der, signature.len() + 1);
    der.push(0);
    der.extend_from_slice(signature);
    let mut whole = Vec::with_capacity(der.len() + 4);
    whole.push(0x30);
    push_length(&mut whole, der.len());
    whole.extend_from_slice(&der);
    whole
}

/// A length in DER (X.690 section 10.1).
fn push_length(der: &mut Vec<u8>, length: usize) {
    match u8::try_from(length) {
        Ok(short @ 0..0x80) => der.push(short),
        _ => {
            let bytes = length.to_be_bytes();
            let first = bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len() - 1);
            der.push(0x80 | (bytes.len() - first) as u8);
            der.extend_from_slice(&bytes[first..]);
        }
    }
}

/// The names asked for, none where subjectAltName is absent.
fn read_attributes(attributes: &[X509CriAttribute<'_>]) -> Result<Option<Vec<San>>, CsrError> {
    let attribute = match attributes {
        [] => return Ok(None),
        [one] => one,
        [_, second, ..] => return Err(CsrError::Attribute { oid: second.oid.to_id_string() }),
    };
    let ParsedCriAttribute::ExtensionRequest(request) = attribute.parsed_attribute() else {
        return Err(CsrError::Attribute { oid: attribute.oid.to_id_string() });
    };
    check_single_value(attribute)?;
    let mut names = None;
    let mut seen: Vec<String> = Vec::new();
    for ext in &request.extensions {
        let oid = ext.oid.to_id_string();
        if seen.contains(&oid) {
            return Err(CsrError::Extension { oid, why: "it occurs twice" });
        }
        if let Some(found) = read_extension(ext, &oid)? {
            names = Some(found);
        }
        seen.push(oid);
    }
    Ok(names)
}

/// extensionRequest is single-valued (RFC 2985 §5.4.2); the parser reads the first value and leaves others.
fn check_single_value(attribute: &X509CriAttribute<'_>) -> Result<(), CsrError> {
    let mut count = 0;
    let read = yasna::parse_der(attribute.value, |r| {
        r.read_set_of(|r| {
            r.read_der()?;
            count += 1;
            Ok(())
        })
    });
    if read.is_err() || count != 1 {
        return Err(CsrError::Attribute { oid: attribute.oid.to_id_string() });
    }
    Ok(())
}

fn read_extension(ext: &X509Extension<'_>, oid: &str) -> Result<Option<Vec<San>>, CsrError> {
    let refuse = |why| Err(CsrError::Extension { oid: oid.to_owned(), why });
    match (oid, ext.parsed_extension()) {
        (SUBJECT_ALT_NAME, ParsedExtension::SubjectAlternativeName(san)) => {
            Ok(Some(san.general_names.iter().map(San::from).collect()))
        }
        (BASIC_CONSTRAINTS, ParsedExtension::BasicConstraints(bc)) if bc.ca => {
            Err(CsrError::CertificateAuthority)
        }
        (BASIC_CONSTRAINTS, ParsedExtension::BasicConstraints(_)) => Ok(None),
        (KEY_USAGE, ParsedExtension::KeyUsage(ku)) if ku.flags & !DIGITAL_SIGNATURE != 0 => {
            Err(CsrError::KeyUsage { found: ku.flags })
        }
        (KEY_USAGE, ParsedExtension::KeyUsage(_)) => Ok(None),
        (EXT_KEY_USAGE, ParsedExtension::ExtendedKeyUsage(eku)) if !only_tls(eku) => {
            Err(CsrError::ExtendedKeyUsage)
        }
        (EXT_KEY_USAGE, ParsedExtension::ExtendedKeyUsage(_)) => Ok(None),
        (SUBJECT_ALT_NAME | BASIC_CONSTRAINTS | KEY_USAGE | EXT_KEY_USAGE, _) => refuse("it cannot be read"),
        _ => refuse("it is not one that a request may ask for"),
    }
}

fn only_tls(eku: &ExtendedKeyUsage<'_>) -> bool {
    let others = [
        eku.any,
        eku.code_signing,
        eku.email_protection,
        eku.time_stamping,
        eku.ocsp_signing,
        !eku.other.is_empty(),
    ];
    !others.contains(&true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x509::testing::{csr, csr_signed_by, software_key};
    use rcgen::{BasicConstraints, CustomExtension, IsCa, KeyUsagePurpose, SanType};

    fn id() -> SpiffeId {
        "spiffe://example.org/agent/mailer".parse().unwrap()
    }

    fn uri(text: &str) -> SanType {
        SanType::URI(text.try_into().unwrap())
    }

    #[test]
    fn plain_requests_are_read() {
        for curve in [Curve::P256, Curve::P384] {
            let key = software_key(curve);
            let der = csr_signed_by(&key, |_| {});
            let csr = Csr::parse(&der).unwrap();
            assert_eq!(csr.spki_der(), crate::x509::CaKey::spki_der(&key));
            csr.check_san(&id()).unwrap();
        }
        let full = csr(|p| {
            p.subject_alt_names = vec![uri(&id().to_string())];
            p.key_usages = vec![KeyUsagePurpose::DigitalSignature];
            p.is_ca = IsCa::ExplicitNoCa;
            p.extended_key_usages =
                vec![rcgen::ExtendedKeyUsagePurpose::ClientAuth, rcgen::ExtendedKeyUsagePurpose::ServerAuth];
        });
        Csr::parse(&full).unwrap().check_san(&id()).unwrap();
    }

    #[test]
    fn each_flipped_bit_is_refused() {
        let good = csr(|p| p.subject_alt_names = vec![uri(&id().to_string())]);
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Csr::parse(&bad).is_err(), "bit {bit}");
        }
        for len in 0..good.len() {
            assert!(Csr::parse(&good[..len]).is_err(), "cut to {len}");
        }
        let trailing = [&good[..], &[0]].concat();
        assert!(matches!(Csr::parse(&trailing), Err(CsrError::Der { .. })));
        assert!(matches!(Csr::parse(&vec![0x30; MAX_CSR + 1]), Err(CsrError::TooLarge { .. })));
    }

    #[test]
    fn signature_of_another_key_is_no_proof() {
        let (mine, theirs) = (csr(|_| {}), csr(|_| {}));
        // The request info of one with the signature of the other.
        let (_, parsed) = X509CertificationRequest::from_der(&theirs).unwrap();
        let stolen = parsed.signature_value.data.to_vec();
        let (_, parsed) = X509CertificationRequest::from_der(&mine).unwrap();
        let info = parsed.certification_request_info.raw.to_vec();
        let forged = canonical(&info, Curve::P256, &stolen);
        assert_eq!(Csr::parse(&forged).unwrap_err(), CsrError::ProofOfPossession);
    }

    #[test]
    fn what_no_request_may_ask_for() {
        let refused = |f: &dyn Fn(&mut rcgen::CertificateParams)| Csr::parse(&csr(f)).unwrap_err();
        assert_eq!(
            refused(&|p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)),
            CsrError::CertificateAuthority
        );
        assert_eq!(
            refused(&|p| p.key_usages = vec![KeyUsagePurpose::KeyCertSign]),
            CsrError::KeyUsage { found: 0x20 }
        );
        assert_eq!(
            refused(&|p| p.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign]),
            CsrError::KeyUsage { found: 0x41 }
        );
        assert_eq!(
            refused(&|p| p.extended_key_usages = vec![rcgen::ExtendedKeyUsagePurpose::CodeSigning]),
            CsrError::ExtendedKeyUsage
        );
        let policies = CustomExtension::from_oid_content(&[2, 5, 29, 32], vec![0x30, 0]);
        assert!(matches!(
            refused(&|p| p.custom_extensions = vec![policies.clone()]),
            CsrError::Extension { why: "it is not one that a request may ask for", .. }
        ));
        let ca_again = CustomExtension::from_oid_content(&[2, 5, 29, 19], vec![0x30, 3, 1, 1, 0xff]);
        assert!(matches!(
            refused(&|p| {
                p.is_ca = IsCa::ExplicitNoCa;
                p.custom_extensions = vec![ca_again.clone()];
            }),
            CsrError::Extension { why: "it occurs twice", .. }
        ));
        let garbage = CustomExtension::from_oid_content(&[2, 5, 29, 17], vec![0x04, 1, 0]);
        assert!(matches!(
            refused(&|p| p.custom_extensions = vec![garbage.clone()]),
            CsrError::Extension { why: "it cannot be read", .. }
        ));
    }

    #[test]
    fn other_keys_and_hashes() {
        let ed25519 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
        let der = rcgen::CertificateParams::default().serialize_request(&ed25519).unwrap();
        assert_eq!(Csr::parse(der.der()).unwrap_err(), CsrError::Key(PublicKeyError::Form));
        let p521 = rcgen::KeyPair::generate_for(&rcgen::PKCS_ECDSA_P521_SHA512).unwrap();
        let der = rcgen::CertificateParams::default().serialize_request(&p521).unwrap();
        assert_eq!(Csr::parse(der.der()).unwrap_err(), CsrError::Key(PublicKeyError::Form));
    }

    #[test]
    fn other_attributes() {
        let key = rcgen::KeyPair::generate().unwrap();
        let challenge = rcgen::Attribute {
            oid: &[1, 2, 840, 113549, 1, 9, 7],
            values: vec![0x31, 4, 0x0c, 2, b'h', b'i'],
        };
        let params = rcgen::CertificateParams::default();
        let der = params.serialize_request_with_attributes(&key, vec![challenge]).unwrap();
        assert_eq!(
            Csr::parse(der.der()).unwrap_err(),
            CsrError::Attribute { oid: "1.2.840.113549.1.9.7".to_owned() }
        );
        // A second value in extensionRequest's SET.
        let twice =
            rcgen::Attribute { oid: &[1, 2, 840, 113549, 1, 9, 14], values: vec![0x31, 4, 0x30, 0, 0x30, 0] };
        let der = params.serialize_request_with_attributes(&key, vec![twice]).unwrap();
        assert!(matches!(Csr::parse(der.der()), Err(CsrError::Attribute { .. } | CsrError::Der { .. })));
    }

    #[test]
    fn only_the_expected_name() {
        let names = |names: Vec<SanType>| {
            Csr::parse(&csr(|p| p.subject_alt_names = names.clone())).unwrap().check_san(&id())
        };
        names(vec![uri("spiffe://example.org/agent/mailer")]).unwrap();
        for bad in [
            vec![uri("spiffe://example.org/agent/other")],
            vec![uri("spiffe://example.org/agent/mailer"), uri("spiffe://example.org/agent/other")],
            vec![
                uri("spiffe://example.org/agent/mailer"),
                SanType::DnsName("example.org".try_into().unwrap()),
            ],
            vec![SanType::DnsName("example.org".try_into().unwrap())],
        ] {
            assert!(matches!(names(bad), Err(CsrError::Names { .. })));
        }
    }

    proptest::proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400)) {
            let _ = Csr::parse(&bytes);
        }
    }
}
