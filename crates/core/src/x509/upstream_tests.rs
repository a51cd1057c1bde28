use rcgen::{
    BasicConstraints, CertificateParams, CustomExtension, DistinguishedName, DnType, DnValue,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};

use super::*;
use crate::tier::Tier;
use crate::x509::testing::{NOW, domain, software_key};
use crate::x509::{IssuingCa, SoftwareCaKey};

const DAY: i64 = 86_400;
const ENTERPRISE: Hierarchy = Hierarchy::Tier(Tier::Enterprise);

/// A root as somebody's own PKI has it, and what it is asked to sign.
struct Upstream {
    td: TrustDomain,
    arc: OidArc,
    lab: bool,
    hierarchy: Hierarchy,
    key: SoftwareCaKey,
    root_key: KeyPair,
    root: CertificateParams,
    signer: Option<KeyPair>,
    certificate: CertificateParams,
    known: Vec<(Hierarchy, Vec<u8>)>,
    least: i64,
    /// The key that was asked for, where it is another.
    asked: Option<Vec<u8>>,
}

fn at(seconds: i64) -> time::OffsetDateTime {
    time::OffsetDateTime::from_unix_timestamp(seconds).unwrap()
}

fn ext(oid: &[u64], content: &[u8], critical: bool) -> CustomExtension {
    let mut ext = CustomExtension::from_oid_content(oid, content.to_vec());
    ext.set_criticality(critical);
    ext
}

impl Upstream {
    fn new(hierarchy: Hierarchy) -> Self {
        let td: TrustDomain = "example.org".parse().unwrap();
        let arc = OidArc::documentation();
        let mut root = CertificateParams::default();
        root.distinguished_name = DistinguishedName::new();
        root.distinguished_name.push(DnType::OrganizationName, "Example Corporation");
        root.distinguished_name.push(DnType::CommonName, "Corporate Root G7");
        root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        root.key_identifier_method = KeyIdMethod::PreSpecified(vec![0xcd; 20]);
        root.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        (root.not_before, root.not_after) = (at(NOW - 100 * DAY), at(NOW + 3650 * DAY));
        let key = software_key(Curve::P256);
        let serial = Serial::from_random([9; 16]);
        let params = CaParams {
            trust_domain: &td,
            hierarchy,
            lab: false,
            arc: &arc,
            serial,
            now: NOW,
            lifetime: std::time::Duration::from_secs(1),
        };
        let name = CaName::new(&td, hierarchy, "issuing CA", false, serial);
        let public = PublicKey::from_spki_der(key.spki_der()).unwrap();
        let mut certificate = ca_params(&params, &name, &public, 0).unwrap();
        // As a foreign CA would: a number and key identifiers of its own habit.
        certificate.serial_number = Some(SerialNumber::from_slice(&[0x1e, 7]));
        certificate.key_identifier_method = KeyIdMethod::PreSpecified(vec![0xab; 20]);
        certificate.use_authority_key_identifier_extension = true;
        (certificate.not_before, certificate.not_after) = (at(NOW - 60), at(NOW + 365 * DAY));
        if let Hierarchy::Tier(tier) = hierarchy {
            certificate.custom_extensions.push(policies_extension(&arc, tier));
        }
        Self {
            td,
            arc,
            lab: false,
            hierarchy,
            key,
            root_key: KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap(),
            root,
            signer: None,
            certificate,
            known: Vec::new(),
            least: DAY,
            asked: None,
        }
    }

    fn with(hierarchy: Hierarchy, change: impl FnOnce(&mut Self)) -> Self {
        let mut this = Self::new(hierarchy);
        change(&mut this);
        this
    }

    fn made(&self) -> (Vec<u8>, Vec<u8>) {
        let root = self.root.self_signed(&self.root_key).unwrap();
        let issuer = Issuer::from_params(&self.root, self.signer.as_ref().unwrap_or(&self.root_key));
        let public = PublicKey::from_spki_der(self.key.spki_der()).unwrap();
        let subject = super::super::profile::SubjectKey(&public);
        let certificate = self.certificate.signed_by(&subject, &issuer).unwrap();
        (certificate.der().to_vec(), root.der().to_vec())
    }

    fn appraise(&self, certificate: &[u8], root: &[u8]) -> Result<(), Vec<UpstreamFault>> {
        let wanted = IssuingWanted {
            trust_domain: &self.td,
            hierarchy: self.hierarchy,
            lab: self.lab,
            arc: &self.arc,
        };
        let spki = self.asked.as_deref().unwrap_or(self.key.spki_der());
        appraise_upstream(certificate, root, &wanted, spki, &self.known, NOW, self.least)
    }

    fn faults(&self) -> Vec<UpstreamFault> {
        let (certificate, root) = self.made();
        self.appraise(&certificate, &root).err().unwrap_or_default()
    }
}

/// The one fault that this change alone leads to.
#[track_caller]
fn only(change: impl FnOnce(&mut Upstream)) -> UpstreamFault {
    let mut faults = Upstream::with(ENTERPRISE, change).faults();
    assert_eq!(faults.len(), 1, "{faults:#?}");
    faults.remove(0)
}

#[test]
fn what_a_foreign_root_made_well_is_taken_and_issues() {
    for hierarchy in Hierarchy::ALL {
        let upstream = Upstream::new(hierarchy);
        let (certificate, root) = upstream.made();
        upstream.appraise(&certificate, &root).unwrap();
        let ca = IssuingCa::new(&certificate, std::sync::Arc::new(upstream.key)).unwrap();
        assert_eq!(ca.hierarchy(), hierarchy);
        assert!(ca.key_id.iter().all(|b| *b == 0xab), "leaves repeat the identifier that the root chose");
    }
    let own = domain();
    for hierarchy in Hierarchy::ALL {
        let mut upstream = Upstream::new(hierarchy);
        (upstream.td, upstream.lab) = (own.trust_domain.clone(), true);
        let ca = own.ca(hierarchy);
        upstream.known = own.roots.iter().map(|(h, der, _)| (*h, der.to_vec())).collect();
        let spki = ca.public.spki_der().to_vec();
        let wanted = IssuingWanted { trust_domain: &upstream.td, hierarchy, lab: true, arc: &upstream.arc };
        let root = own.root(hierarchy);
        appraise_upstream(ca.certificate(), root, &wanted, &spki, &upstream.known, NOW, DAY).unwrap();
    }
}

#[test]
fn the_request_asks_for_what_is_taken() {
    let upstream = Upstream::new(ENTERPRISE);
    let wanted =
        IssuingWanted { trust_domain: &upstream.td, hierarchy: ENTERPRISE, lab: false, arc: &upstream.arc };
    let request = ca_request(&wanted, &upstream.key).unwrap();
    let asked = rcgen::CertificateSigningRequestParams::from_der(&request.clone().into());
    // rcgen reads no policies; the names and the key are what it can see.
    assert!(asked.is_err() || asked.is_ok_and(|a| a.params.distinguished_name.iter().count() == 3));
    let again = ca_request(&wanted, &upstream.key).unwrap();
    let subject = |der: &[u8]| {
        use x509_parser::prelude::FromDer;
        let (_, csr) = x509_parser::certification_request::X509CertificationRequest::from_der(der).unwrap();
        csr.verify_signature().unwrap();
        csr.certification_request_info.subject.to_string()
    };
    assert_eq!(subject(&request), subject(&again), "asked again, the name is the same");
}

#[test]
fn each_fault_of_the_certificate_alone_is_named() {
    use UpstreamFault as F;
    assert_eq!(only(|u| u.asked = Some(software_key(Curve::P256).spki_der().to_vec())), F::Key);
    let other = only(|u| {
        let td = "example.com".parse().unwrap();
        let name = CaName::new(&td, ENTERPRISE, "issuing CA", false, Serial::from_random([9; 16]));
        u.certificate.distinguished_name = name.to_rcgen().unwrap();
    });
    assert!(matches!(other, F::Subject { .. }), "{other}");
    let unnumbered = only(|u| {
        let mut name = DistinguishedName::new();
        name.push(DnType::OrganizationName, "example.org");
        name.push(DnType::CommonName, "Hallmark enterprise issuing CA");
        u.certificate.distinguished_name = name;
    });
    assert!(matches!(unnumbered, F::Subject { .. }), "{unnumbered}");
    for is_ca in [
        IsCa::Ca(BasicConstraints::Unconstrained),
        IsCa::Ca(BasicConstraints::Constrained(1)),
        IsCa::ExplicitNoCa,
    ] {
        let fault = only(|u| u.certificate.is_ca = is_ca);
        assert!(matches!(fault, F::BasicConstraints { of: "certificate", .. }), "{fault}");
    }
    for usages in [
        vec![],
        vec![KeyUsagePurpose::KeyCertSign],
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature],
    ] {
        let fault = only(|u| u.certificate.key_usages = usages);
        assert!(matches!(fault, F::KeyUsage { of: "certificate", .. }), "{fault}");
    }
    let policies = |tier: Option<Tier>| {
        only(|u| {
            u.certificate.custom_extensions.clear();
            u.certificate.custom_extensions.extend(tier.map(|tier| policies_extension(&u.arc, tier)));
        })
    };
    for tier in [None, Some(Tier::Foundation), Some(Tier::Advanced)] {
        assert!(matches!(policies(tier), F::Policies { .. }), "{tier:?}");
    }
    let other_arc = only(|u| {
        let arc = OidArc::parse("1.3.6.1.4.1.1").unwrap();
        u.certificate.custom_extensions = vec![policies_extension(&arc, Tier::Enterprise)];
    });
    assert!(matches!(other_arc, F::Policies { .. }));
    let mut infrastructure = Upstream::new(Hierarchy::Infrastructure);
    infrastructure
        .certificate
        .custom_extensions
        .push(policies_extension(&infrastructure.arc, Tier::Foundation));
    assert!(matches!(infrastructure.faults()[..], [F::Policies { .. }]));

    let named = only(|u| {
        u.certificate.name_constraints = Some(rcgen::NameConstraints {
            permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("example.org".into())],
            excluded_subtrees: vec![],
        });
    });
    assert!(matches!(named, F::Forbidden { of: "certificate", name: "nameConstraints", .. }), "{named}");
    let purposes = only(|u| u.certificate.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth]);
    assert!(matches!(purposes, F::Forbidden { name: "extendedKeyUsage", .. }), "{purposes}");
    // requireExplicitPolicy 0, as RFC 5280 wants it: critical.
    let constraints = ext(&[2, 5, 29, 36], &[0x30, 3, 0x80, 1, 0], true);
    let policy = only(|u| u.certificate.custom_extensions.push(constraints));
    assert!(matches!(policy, F::Forbidden { name: "policyConstraints", .. }), "{policy}");
    let any = only(|u| u.certificate.custom_extensions.push(ext(&[2, 5, 29, 54], &[2, 1, 0], true)));
    assert!(matches!(any, F::Forbidden { name: "inhibitAnyPolicy", .. }), "{any}");
    let unknown = only(|u| u.certificate.custom_extensions.push(ext(&[1, 2, 3, 4], &[5, 0], true)));
    assert_eq!(unknown, F::Critical { of: "certificate", oid: "1.2.3.4".into() });
    let harmless = Upstream::with(ENTERPRISE, |u| {
        u.certificate.custom_extensions.push(ext(&[1, 2, 3, 4], &[5, 0], false));
    });
    assert_eq!(harmless.faults(), []);

    for name in ["spiffe://example.com", "spiffe://example.org/issuer/x", "https://example.org"] {
        let fault = only(|u| u.certificate.subject_alt_names = vec![SanType::URI(name.try_into().unwrap())]);
        assert!(matches!(fault, F::Names { of: "certificate", .. }), "{fault}");
    }
    let second =
        only(|u| u.certificate.subject_alt_names.push(SanType::DnsName("example.org".try_into().unwrap())));
    assert!(matches!(second, F::Names { .. }), "{second}");
    let none = Upstream::with(ENTERPRISE, |u| u.certificate.subject_alt_names.clear());
    assert_eq!(none.faults(), []);

    let anonymous = only(|u| u.certificate.use_authority_key_identifier_extension = false);
    assert!(matches!(anonymous, F::AuthorityKeyId { ref found, .. } if found == "missing"), "{anonymous}");
    for serial in [vec![0], vec![1; 21]] {
        let fault = only(|u| u.certificate.serial_number = Some(SerialNumber::from(serial)));
        assert_eq!(fault, F::Serial { of: "certificate" });
    }
    for (from, until, word) in [
        (NOW + 1, NOW + 90 * DAY, "begun"),
        (NOW - 90 * DAY, NOW, "ended"),
        (NOW - 60, NOW + DAY - 1, "left"),
        (NOW - 60, NOW + 4000 * DAY, "within the root"),
        (NOW - 101 * DAY, NOW + 90 * DAY, "within the root"),
    ] {
        let fault = only(|u| (u.certificate.not_before, u.certificate.not_after) = (at(from), at(until)));
        assert!(
            matches!(&fault, F::Validity { of: "certificate", why, .. } if why.contains(word)),
            "{fault}"
        );
    }
    // Another root of the same name: whoever made it holds another key.
    let forged = only(|u| u.signer = Some(KeyPair::generate_for(&rcgen::PKCS_ECDSA_P384_SHA384).unwrap()));
    assert!(matches!(forged, F::Signature { of: "certificate", .. }), "{forged}");
}

#[test]
fn each_fault_of_the_root_alone_is_named() {
    use UpstreamFault as F;
    for is_ca in [IsCa::Ca(BasicConstraints::Constrained(0)), IsCa::ExplicitNoCa] {
        let mut upstream = Upstream::new(ENTERPRISE);
        let identified =
            PublicKey::from_spki_der(&rcgen::PublicKeyData::subject_public_key_info(&upstream.root_key));
        upstream.root.key_identifier_method =
            KeyIdMethod::PreSpecified(identified.unwrap().key_id().to_vec());
        upstream.root.is_ca = is_ca;
        let faults = upstream.faults();
        assert!(faults.iter().any(|f| matches!(f, F::BasicConstraints { of: "root", .. })), "{faults:?}");
    }
    let idle =
        only(|u| u.root.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::CrlSign]);
    assert!(matches!(idle, F::KeyUsage { of: "root", .. }), "{idle}");
    let named = only(|u| {
        u.root.name_constraints = Some(rcgen::NameConstraints {
            permitted_subtrees: vec![rcgen::GeneralSubtree::DnsName("example.org".into())],
            excluded_subtrees: vec![],
        });
    });
    assert!(matches!(named, F::Forbidden { of: "root", name: "nameConstraints", .. }), "{named}");
    let critical = only(|u| u.root.custom_extensions.push(ext(&[1, 2, 3, 4], &[5, 0], true)));
    assert!(matches!(critical, F::Critical { of: "root", .. }), "{critical}");
    let lab = only(|u| {
        u.root.distinguished_name.push(DnType::CommonName, format!("Root {}", crate::x509::LAB_MARK))
    });
    assert!(matches!(lab, F::Lab { .. }), "{lab}");
    let over = Upstream::with(ENTERPRISE, |u| u.root.not_after = at(NOW)).faults();
    assert!(over.iter().any(|f| matches!(f, F::Validity { of: "root", .. })), "{over:?}");
    let ed25519 = Upstream::with(ENTERPRISE, |u| {
        u.root_key = KeyPair::generate_for(&rcgen::PKCS_ED25519).unwrap();
    });
    let ed25519 = ed25519.faults();
    assert!(matches!(ed25519[..], [F::KeyKind { of: "root", .. }]), "{ed25519:?}");
    let shared = only(|u| {
        let root = u.root.self_signed(&u.root_key).unwrap();
        u.known =
            vec![(ENTERPRISE, root.der().to_vec()), (Hierarchy::Tier(Tier::Advanced), root.der().to_vec())];
    });
    assert_eq!(shared, F::SharedRoot { other: Hierarchy::Tier(Tier::Advanced) });
}

#[test]
fn another_root_than_the_one_that_signed_is_refused_for_its_name_and_key() {
    let (ours, theirs) = (
        Upstream::new(ENTERPRISE),
        Upstream::with(ENTERPRISE, |u| {
            u.root.distinguished_name.push(DnType::CommonName, DnValue::Utf8String("Other".into()));
            u.root.key_identifier_method = KeyIdMethod::PreSpecified(vec![0xce; 20]);
        }),
    );
    let faults = ours.appraise(&ours.made().0, &theirs.made().1).unwrap_err();
    use UpstreamFault as F;
    assert!(faults.iter().any(|f| matches!(f, F::Issuer { .. })));
    assert!(faults.iter().any(|f| matches!(f, F::AuthorityKeyId { .. })));
    assert!(faults.iter().any(|f| matches!(f, F::Signature { of: "certificate", .. })));
    // A certificate that is no root, in the root's place.
    let (certificate, _) = ours.made();
    let faults = ours.appraise(&certificate, &certificate).unwrap_err();
    assert!(faults.iter().any(|f| matches!(f, F::NotRoot)), "{faults:?}");
}

#[test]
fn no_flipped_byte_of_a_good_certificate_is_taken() {
    let upstream = Upstream::new(ENTERPRISE);
    let (certificate, root) = upstream.made();
    for place in 0..certificate.len() {
        let mut flipped = certificate.clone();
        flipped[place] ^= 1;
        assert!(upstream.appraise(&flipped, &root).is_err(), "byte {place}");
    }
    assert!(matches!(
        upstream.appraise(b"junk", b"junk").unwrap_err()[..],
        [UpstreamFault::Unreadable { of: "root", .. }, UpstreamFault::Unreadable { of: "certificate", .. }]
    ));
}
