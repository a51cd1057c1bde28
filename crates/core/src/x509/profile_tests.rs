//! The CA certificates, field by field, and each one that is refused.

use std::sync::Arc;

use x509_parser::prelude::{FromDer, X509Certificate};

use super::*;
use crate::x509::testing::{NOW, ca, domain, domain_named, leaf, software_key};
use crate::x509::{IssuingCa, LAB_MARK, SoftwareCaKey};

const INFRA: Hierarchy = Hierarchy::Infrastructure;

fn parsed(der: &[u8]) -> X509Certificate<'_> {
    X509Certificate::from_der(der).unwrap().1
}

#[test]
fn policies_are_cumulative_on_leaves_and_issuing_cas() {
    let domain = domain();
    for tier in Tier::ALL {
        let ca = domain.ca(Hierarchy::Tier(tier)).certificate();
        let leaf = domain.agent_leaf(tier).der;
        for der in [ca, &leaf] {
            let cert = Certificate::parse(der).unwrap();
            assert_eq!(OidArc::from_policies(&cert.policies), Some((OidArc::documentation(), tier)));
        }
        assert!(Certificate::parse(domain.root(Hierarchy::Tier(tier))).unwrap().policies.is_empty());
    }
    assert!(Certificate::parse(domain.ca(INFRA).certificate()).unwrap().policies.is_empty());
}

#[test]
fn cas_say_what_they_are() {
    for lab in [true, false] {
        let domain = domain_named("example.org", lab);
        for hierarchy in Hierarchy::ALL {
            let ca = domain.ca(hierarchy);
            for (der, path_len) in [(domain.root(hierarchy), 1), (ca.certificate(), 0)] {
                let cert = Certificate::parse(der).unwrap();
                assert!(cert.is_ca && cert.path_len == Some(path_len));
                assert_eq!(cert.only_uri(), Ok("spiffe://example.org"));
                let name = cert.ca_name().unwrap();
                assert_eq!(name.common_name.contains(LAB_MARK), lab);
                assert_eq!(name.common_name.contains("LAB"), lab);
                assert!(name.common_name.contains(hierarchy.as_str()), "{}", name.common_name);
            }
            assert_eq!((ca.is_lab(), ca.hierarchy()), (lab, hierarchy));
            assert_eq!(ca.trust_domain().as_str(), "example.org");
        }
    }
}

#[test]
fn no_two_cas_share_a_name() {
    let domain = domain();
    let mut names: Vec<_> = Vec::new();
    for hierarchy in Hierarchy::ALL {
        names.push(parsed(domain.root(hierarchy)).subject().as_raw().to_vec());
        names.push(parsed(domain.ca(hierarchy).certificate()).subject().as_raw().to_vec());
    }
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count);
}

#[test]
fn p384_keys_and_cas() {
    let domain = domain();
    let root_key = software_key(Curve::P384);
    let params = ca(&domain, Hierarchy::Tier(Tier::Enterprise));
    let root_der = root(&params, &root_key).unwrap();
    let key = software_key(Curve::P384);
    let issuing_der = issuing(&params, key.spki_der(), &root_der, &root_key).unwrap();
    let ca = IssuingCa::new(&issuing_der, Arc::new(key)).unwrap();
    let leaf = leaf(&ca, |_| {}).unwrap();
    ca.check(&leaf.der).unwrap();
}

#[test]
fn lifetimes() {
    let domain = domain();
    let secs = Duration::from_secs;
    for tier in Tier::ALL {
        let ca = domain.ca(Hierarchy::Tier(tier));
        let lasting = |lifetime| leaf(ca, |p| p.lifetime = lifetime);
        lasting(tier.max_lifetime()).unwrap();
        for bad in [secs(0), tier.max_lifetime() + secs(1), Duration::MAX] {
            assert!(matches!(lasting(bad), Err(ProfileError::Lifetime { .. })), "{tier} {bad:?}");
        }
    }
    let root_key = software_key(Curve::P256);
    for bad in [secs(0), MAX_CA_LIFETIME + secs(1)] {
        let params = CaParams { lifetime: bad, ..ca(&domain, INFRA) };
        assert!(matches!(root(&params, &root_key), Err(ProfileError::Lifetime { .. })));
    }
}

#[test]
fn nothing_outlives_its_issuer() {
    let domain = domain();
    let root_key = software_key(Curve::P256);
    let params = ca(&domain, Hierarchy::Tier(Tier::Enterprise));
    let root_der = root(&params, &root_key).unwrap();
    let key = software_key(Curve::P256);
    // The issuing CA asks for longer than its root has, and half a day later.
    let late = CaParams { now: NOW + 43_200, lifetime: Duration::from_secs(86_400 * 9), ..params.clone() };
    let issuing_der = issuing(&late, key.spki_der(), &root_der, &root_key).unwrap();
    let ca = IssuingCa::new(&issuing_der, Arc::new(key)).unwrap();
    assert_eq!(ca.validity_period(), (NOW + 43_200 - 30, NOW + 86_400));
    let at = |now| leaf(&ca, |p| p.now = now);
    let last = at(NOW + 86_400 - 10).unwrap();
    assert_eq!(last.not_after, NOW + 86_400, "cut to the CA's end");
    assert_eq!(parsed(&last.der).validity().not_after.timestamp(), NOW + 86_400);
    let first = at(NOW + 43_200 - 20).unwrap();
    assert_eq!(first.not_before, NOW + 43_200 - 30, "cut to the CA's beginning");
    assert!(matches!(at(NOW + 86_400), Err(ProfileError::CaNotValid { .. })));
    assert!(matches!(at(NOW), Err(ProfileError::CaNotValid { .. })));
    for now in [NOW + 86_400, NOW - 31] {
        let params = CaParams { now, ..params.clone() };
        let refused = issuing(&params, software_key(Curve::P256).spki_der(), &root_der, &root_key);
        assert!(matches!(refused, Err(ProfileError::CaNotValid { .. })));
    }
}

#[test]
fn times_certificates_cannot_carry() {
    let domain = domain();
    let key = software_key(Curve::P256);
    for now in [i64::MAX, i64::MIN, 253_402_300_800, -700_000_000] {
        let params = CaParams { now, ..ca(&domain, INFRA) };
        assert!(matches!(root(&params, &key), Err(ProfileError::Time { .. })), "{now}");
    }
}

#[test]
fn the_right_root_signs() {
    let domain = domain();
    let enterprise = Hierarchy::Tier(Tier::Enterprise);
    let (_, root_der, root_key) = &domain.roots[1];
    let key = software_key(Curve::P256);
    let sign = |params: &CaParams<'_>| issuing(params, key.spki_der(), root_der, root_key);
    sign(&ca(&domain, enterprise)).unwrap();
    let what = |r: Result<_, ProfileError>| match r {
        Err(ProfileError::RootMismatch { what }) => what,
        other => panic!("{other:?}"),
    };
    assert_eq!(what(sign(&ca(&domain, Hierarchy::Tier(Tier::Advanced)))), "hierarchy");
    assert_eq!(what(sign(&ca(&domain, INFRA))), "hierarchy");
    let production = CaParams { lab: false, ..ca(&domain, enterprise) };
    assert_eq!(what(sign(&production)), "kind (lab or production)");
    let elsewhere = domain_named("other.example", true);
    assert_eq!(what(sign(&ca(&elsewhere, enterprise))), "trust domain");
    let stranger = software_key(Curve::P384);
    let refused = issuing(&ca(&domain, enterprise), key.spki_der(), root_der, &stranger);
    assert!(matches!(refused, Err(ProfileError::KeyMismatch { .. })));
    // An issuing CA is no root, though its key could sign.
    let below = domain.ca(enterprise);
    let refused = issuing(&ca(&domain, enterprise), key.spki_der(), below.certificate(), &*below.key);
    assert_eq!(what(refused), "hierarchy");
}

#[test]
fn an_issuing_ca_of_another_form() {
    let domain = domain();
    let key = || Arc::new(software_key(Curve::P256));
    let ca = domain.ca(Hierarchy::Tier(Tier::Enterprise));
    let mismatch = IssuingCa::new(ca.certificate(), key());
    assert!(matches!(mismatch, Err(ProfileError::KeyMismatch { .. })));
    let root = IssuingCa::new(domain.root(Hierarchy::Tier(Tier::Enterprise)), key());
    assert!(matches!(root, Err(ProfileError::CaForm { why, .. }) if why.contains("pathLen")));
    let leaf = IssuingCa::new(&domain.agent_leaf(Tier::Enterprise).der, key());
    assert!(matches!(leaf, Err(ProfileError::CaForm { why, .. }) if why.contains("pathLen")));
    assert!(matches!(IssuingCa::new(b"junk", key()), Err(ProfileError::CaCertificate(_))));
}

/// The enterprise root signs what `issuing` would not make; each difference is seen.
#[test]
fn each_difference_of_an_issuing_ca_is_seen() {
    let domain = domain();
    let params = ca(&domain, Hierarchy::Tier(Tier::Enterprise));
    let (_, root_der, root_key) = &domain.roots[1];
    let root = RootCertificate::parse(root_der, &params, root_key).unwrap();
    let pkcs8 = crate::x509::testing::pkcs8(Curve::P256);
    let key = SoftwareCaKey::from_pkcs8(&pkcs8).unwrap();
    let public = PublicKey::from_spki_der(key.spki_der()).unwrap();
    let name = |hierarchy, what| CaName::new(params.trust_domain, hierarchy, what, true, params.serial);
    let enterprise = name(params.hierarchy, "issuing CA");
    let forge = |shape: &dyn Fn(&mut CertificateParams)| {
        let mut cert = ca_params(&params, &enterprise, &public, 0).unwrap();
        (cert.not_before, cert.not_after) = (datetime(NOW).unwrap(), datetime(NOW + 600).unwrap());
        cert.custom_extensions.push(policies_extension(params.arc, Tier::Enterprise));
        shape(&mut cert);
        let issuer = issuer_params(&root.name, root.public.key_id().to_vec()).unwrap();
        let der = sign_with(root_key, &root.public, |signer| {
            cert.signed_by(&SubjectKey(&public), &rcgen::Issuer::from_params(&issuer, signer))
        });
        IssuingCa::new(&der.unwrap(), Arc::new(SoftwareCaKey::from_pkcs8(&pkcs8).unwrap()))
    };
    forge(&|_| {}).unwrap();
    let why = |shape: &dyn Fn(&mut CertificateParams)| match forge(shape) {
        Err(ProfileError::CaForm { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    let renamed = |name: &CaName| why(&|c| c.distinguished_name = name.to_rcgen().unwrap());
    assert!(why(&|c| c.is_ca = IsCa::Ca(BasicConstraints::Unconstrained)).contains("pathLen"));
    assert!(why(&|c| c.key_usages = vec![KeyUsagePurpose::KeyCertSign]).contains("keyUsage"));
    // Key identifiers and serial numbers are the root's to choose.
    let other = forge(&|c| c.key_identifier_method = KeyIdMethod::PreSpecified(vec![7; 20])).unwrap();
    assert_eq!(other.key_id, [7; 20]);
    let numbered = forge(&|c| c.serial_number = Some(SerialNumber::from(5))).unwrap();
    assert_eq!(numbered.serial(), params.serial);
    assert!(renamed(&name(Hierarchy::Tier(Tier::Advanced), "issuing CA")).contains("the subject is not"));
    assert!(renamed(&name(params.hierarchy, "root")).contains("the subject is not"));
    let nowhere = CaName { organization: "Example Org".to_owned(), ..enterprise.clone() };
    assert!(renamed(&nowhere).contains("no trust domain"));
    let claims = |tier| {
        why(&move |c: &mut CertificateParams| {
            c.custom_extensions = vec![policies_extension(&OidArc::documentation(), tier)];
        })
    };
    assert!(claims(Tier::Foundation).contains("the subject is not"), "a lower tier than its name's");
    assert!(claims(Tier::Advanced).contains("the subject is not"), "a higher tier than its name's");
    assert!(why(&|c| c.custom_extensions.clear()).contains("the subject is not"), "no policies");
    let odd = rcgen::CustomExtension::from_oid_content(
        &CERTIFICATE_POLICIES,
        vec![0x30, 8, 0x30, 6, 6, 4, 0x55, 0x1d, 0x20, 0],
    );
    let odd = why(&|c| c.custom_extensions = vec![odd.clone()]);
    assert!(odd.contains("cumulative"), "anyPolicy");
    let printable = |text: &str| rcgen::string::PrintableString::try_from(text).unwrap();
    let spelled = why(&|c| {
        let cn = rcgen::DnValue::PrintableString(printable(&enterprise.common_name));
        c.distinguished_name.push(rcgen::DnType::CommonName, cn);
    });
    assert!(spelled.contains("encoded"), "the same name in another string type");
    let odd = renamed(&CaName { serial_number: "5".to_owned(), ..enterprise.clone() });
    assert!(odd.contains("serialNumber"), "{odd}");
}

/// A token gone wrong, or away.
struct Broken {
    good: SoftwareCaKey,
    says: Result<Vec<u8>, KeyError>,
}

impl CaKey for Broken {
    fn spki_der(&self) -> &[u8] {
        self.good.spki_der()
    }
    fn curve(&self) -> Curve {
        self.good.curve()
    }
    fn sign(&self, _: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.says.clone()
    }
}

#[test]
fn a_faulty_token_does_not_show_outside() {
    let domain = domain();
    let params = ca(&domain, Hierarchy::Tier(Tier::Enterprise));
    let pkcs8 = crate::x509::testing::pkcs8(Curve::P256);
    let good = || SoftwareCaKey::from_pkcs8(&pkcs8).unwrap();
    let root_der = root(&params, &good()).unwrap();
    let issuing_der = issuing(&params, good().spki_der(), &root_der, &good()).unwrap();

    let wrong = || Broken { good: good(), says: Ok(good().sign(b"something else").unwrap()) };
    assert!(matches!(root(&params, &wrong()), Err(ProfileError::OwnSignature)));
    let refused = issuing(&params, good().spki_der(), &root_der, &wrong());
    assert!(matches!(refused, Err(ProfileError::OwnSignature)));
    let ca = IssuingCa::new(&issuing_der, Arc::new(wrong())).unwrap();
    let bad = leaf(&ca, |_| {}).unwrap();
    assert!(matches!(ca.check(&bad.der), Err(ProfileError::OwnSignature)));
    assert!(matches!(ca.check(b"junk"), Err(ProfileError::CaCertificate(_))));

    let unplugged = KeyError::Unavailable { backend: "pkcs11", reason: "the token is gone".to_owned() };
    let away = Broken { good: good(), says: Err(unplugged.clone()) };
    let ca = IssuingCa::new(&issuing_der, Arc::new(away)).unwrap();
    assert!(matches!(leaf(&ca, |_| {}), Err(ProfileError::Key(e)) if e == unplugged));
}
