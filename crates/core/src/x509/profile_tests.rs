//! What the profile writes, field by field, and each thing it refuses to write.

use std::sync::Arc;

use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::*;
use crate::id::{InstanceId, SpiffeId};
use crate::x509::testing::{Domain, NOW, domain, domain_named, info, serial, software_key};
use crate::x509::{
    AgentInfo, AgentLeaf, Delegation, IssuingCa, LAB_MARK, LeafParams, SoftwareCaKey, TaskInfo,
};

const INFRA: Hierarchy = Hierarchy::Infrastructure;

fn parsed(der: &[u8]) -> X509Certificate<'_> {
    X509Certificate::from_der(der).unwrap().1
}

/// (identifier, critical) of each extension, in order.
fn extensions(der: &[u8]) -> Vec<(String, bool)> {
    parsed(der).extensions().iter().map(|e| (e.oid.to_id_string(), e.critical)).collect()
}

fn has(der: &[u8], oid: &str) -> bool {
    extensions(der).iter().any(|(found, _)| found == oid)
}

const CRL_DISTRIBUTION_POINTS: &str = "2.5.29.31";
const NO_REV_AVAIL: &str = "2.5.29.56";

#[test]
fn an_advanced_leaf_to_the_letter() {
    let domain = domain();
    let leaf = domain.agent_leaf(Tier::Advanced);
    let cert = parsed(&leaf.der);
    let ca = parsed(domain.ca(Hierarchy::Tier(Tier::Advanced)).certificate());
    assert_eq!(cert.version().0, 2);
    assert_eq!(cert.raw_serial(), serial(30).as_bytes());
    assert_eq!(
        cert.subject().to_string(),
        format!("O=example.org, CN=mailer, serialNumber={}", "05".repeat(16))
    );
    assert_eq!(cert.issuer().as_raw(), ca.subject().as_raw());
    assert_eq!(cert.validity().not_before.timestamp(), NOW - 30);
    assert_eq!(cert.validity().not_after.timestamp(), NOW + 600);
    let critical: Vec<_> = extensions(&leaf.der).into_iter().filter(|e| e.1).map(|e| e.0).collect();
    assert_eq!(critical, ["2.5.29.15", "2.5.29.19"], "keyUsage and basicConstraints, no other");
    let mut keys = Vec::new();
    for ext in cert.extensions() {
        match ext.parsed_extension() {
            ParsedExtension::AuthorityKeyIdentifier(id) => {
                assert!(id.authority_cert_issuer.is_none() && id.authority_cert_serial.is_none());
                keys.push(id.key_identifier.clone().unwrap().0.to_vec());
            }
            ParsedExtension::KeyUsage(usage) => assert_eq!(usage.flags, 1),
            ParsedExtension::ExtendedKeyUsage(usage) => assert!(usage.client_auth && usage.server_auth),
            ParsedExtension::BasicConstraints(bc) => assert!(!bc.ca && bc.path_len_constraint.is_none()),
            _ => {}
        }
    }
    let issuer_id = ca.extensions().iter().find_map(|e| match e.parsed_extension() {
        ParsedExtension::SubjectKeyIdentifier(id) => Some(id.0.to_vec()),
        _ => None,
    });
    assert_eq!(keys, [issuer_id.unwrap()], "AKI is the issuer's SKI");
    assert!(leaf.der.len() < 900, "{} bytes", leaf.der.len());
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

/// A domain whose CAs know a CRL URL.
fn with_crl(mut domain: Domain) -> Domain {
    let url = Some("http://crl.example.org/x.crl");
    domain.cas = domain.cas.into_iter().map(|ca| ca.with_crl_url(url).unwrap()).collect();
    domain
}

fn task_leaf(domain: &Domain, tier: Tier) -> Vec<u8> {
    let mut info = info(tier);
    info.task = Some(TaskInfo { task_id: "t1".parse().unwrap(), grant_digest: [3; 32] });
    let id = "spiffe://example.org/agent/mailer/task/t1".parse().unwrap();
    domain.agent_leaf_with(tier, &info, &id).unwrap().der.to_vec()
}

#[test]
fn revocation_is_said_once() {
    let (plain, with_url) = (domain(), with_crl(domain()));
    let kinds = |der: &[u8]| (has(der, CRL_DISTRIBUTION_POINTS), has(der, NO_REV_AVAIL));
    for tier in Tier::ALL {
        let foundation = tier == Tier::Foundation;
        assert_eq!(kinds(&with_url.agent_leaf(tier).der), (!foundation, foundation), "{tier}");
        assert_eq!(kinds(&plain.agent_leaf(tier).der), (false, foundation), "{tier} without URL");
        assert_eq!(kinds(&task_leaf(&with_url, tier)), (true, false), "task of {tier}");
        assert_eq!(kinds(&task_leaf(&plain, tier)), (false, false), "task of {tier} without URL");
    }
    let host = "spiffe://example.org/host/h".parse().unwrap();
    assert_eq!(kinds(&with_url.infra_leaf(&host).unwrap().der), (true, false));
    let without = with_crl(domain()).cas.remove(2).with_crl_url(None).unwrap();
    assert_eq!(kinds(&leaf(&without, |_| {}).unwrap().der), (false, false));
}

#[test]
fn crl_urls() {
    let url = |url: &str| domain().cas.remove(0).with_crl_url(Some(url));
    url("https://crl.example.org/a?b=c").unwrap();
    let long = format!("http://{}", "a".repeat(600));
    for bad in ["", "ftp://x/", "ldap://x", "http://with space/", "http://ümlaut/", &long] {
        assert!(matches!(url(bad), Err(ProfileError::CrlUrl { .. })), "{bad}");
    }
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

// What it refuses to write.

fn ca(domain: &Domain, hierarchy: Hierarchy) -> CaParams<'_> {
    static ARC: std::sync::OnceLock<OidArc> = std::sync::OnceLock::new();
    CaParams {
        trust_domain: &domain.trust_domain,
        hierarchy,
        lab: true,
        arc: ARC.get_or_init(OidArc::documentation),
        serial: serial(77),
        now: NOW,
        lifetime: Duration::from_secs(86_400),
    }
}

/// An advanced or enterprise agent's leaf as usual, but for what `shape` changes.
fn leaf(ca: &IssuingCa, shape: impl FnOnce(&mut LeafParams<'_>)) -> Result<crate::x509::Leaf, ProfileError> {
    let Hierarchy::Tier(tier) = ca.hierarchy() else { panic!("agents only") };
    leaf_with(ca, &info(tier), shape)
}

fn leaf_with(
    ca: &IssuingCa,
    info: &AgentInfo,
    shape: impl FnOnce(&mut LeafParams<'_>),
) -> Result<crate::x509::Leaf, ProfileError> {
    let id: SpiffeId = "spiffe://example.org/agent/mailer".parse().unwrap();
    let key = software_key(Curve::P256);
    let spki = key.spki_der().to_vec();
    let mut params = LeafParams {
        spiffe_id: &id,
        spki_der: &spki,
        dns_names: &[],
        serial: serial(30),
        now: NOW,
        lifetime: Duration::from_secs(600),
        agent: Some(AgentLeaf { instance: InstanceId::from_bytes([5; 16]), info }),
    };
    shape(&mut params);
    ca.leaf(&params)
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
fn subjects_of_another_kind() {
    let domain = domain();
    let id = |path: &str| -> SpiffeId { format!("spiffe://example.org/{path}").parse().unwrap() };
    let enterprise = |id: &SpiffeId, info: &AgentInfo| domain.agent_leaf_with(Tier::Enterprise, info, id);
    let plain = info(Tier::Enterprise);
    let wrong = |r: Result<crate::x509::Leaf, ProfileError>| match r {
        Err(ProfileError::Subject { why, .. }) => why,
        other => panic!("{other:?}"),
    };
    for infra in ["host/h", "issuer/i"] {
        assert!(wrong(enterprise(&id(infra), &plain)).contains("infrastructure alone"));
    }
    for agent in ["agent/a", "agent/a/task/t"] {
        assert!(wrong(domain.infra_leaf(&id(agent))).contains("tiers alone"));
    }
    assert!(wrong(enterprise(&id("agent/a/task/t1"), &plain)).contains("does not name"));
    let mut task = plain.clone();
    task.task = Some(TaskInfo { task_id: "t2".parse().unwrap(), grant_digest: [3; 32] });
    assert!(wrong(enterprise(&id("agent/a/task/t1"), &task)).contains("does not name"));
    assert!(wrong(enterprise(&id("agent/a"), &task)).contains("names a task"));
    let ca = domain.ca(Hierarchy::Tier(Tier::Enterprise));
    assert!(wrong(leaf(ca, |p| p.agent = None)).contains("missing"));
    let foreign = "spiffe://other.example/agent/a".parse().unwrap();
    assert!(matches!(enterprise(&foreign, &plain), Err(ProfileError::TrustDomain { .. })));
    // A host with AgentInfo.
    let host = id("host/h");
    let key = software_key(Curve::P256);
    let refused = domain.ca(INFRA).leaf(&LeafParams {
        spiffe_id: &host,
        spki_der: key.spki_der(),
        dns_names: &[],
        serial: serial(1),
        now: NOW,
        lifetime: Duration::from_secs(60),
        agent: Some(AgentLeaf { instance: InstanceId::from_bytes([5; 16]), info: &plain }),
    });
    assert!(wrong(refused).contains("no AgentInfo"));
}

#[test]
fn a_ca_certifies_its_own_tier_only() {
    let domain = domain();
    for of_ca in Tier::ALL {
        for of_info in Tier::ALL {
            let result = leaf_with(domain.ca(Hierarchy::Tier(of_ca)), &info(of_info), |_| {});
            match result {
                Ok(_) => assert_eq!(of_ca, of_info),
                Err(ProfileError::Tier { expected, found }) => {
                    assert_eq!((expected, found), (of_ca, of_info));
                    assert_ne!(of_ca, of_info);
                }
                Err(other) => panic!("{other}"),
            }
        }
    }
}

#[test]
fn custodies_never_certified() {
    let (lab, production) = (domain_named("example.org", true), domain_named("example.org", false));
    let with = |domain: &Domain, tier, custody| {
        let info = AgentInfo { custody, ..info(tier) };
        leaf_with(domain.ca(Hierarchy::Tier(tier)), &info, |_| {})
    };
    for tier in Tier::ALL {
        with(&lab, tier, Custody::Simulated).unwrap();
        let refused = with(&production, tier, Custody::Simulated);
        assert!(matches!(refused, Err(ProfileError::Custody { custody: Custody::Simulated, .. })));
    }
    for domain in [&lab, &production] {
        let refused = with(domain, Tier::Advanced, Custody::Software);
        assert!(matches!(refused, Err(ProfileError::Custody { custody: Custody::Software, .. })));
        with(domain, Tier::Enterprise, Custody::Software).unwrap();
    }
}

#[test]
fn dns_names() {
    let domain = domain();
    let ca = domain.ca(Hierarchy::Tier(Tier::Enterprise));
    let named = |name: &str| {
        let names = vec![name.to_owned()];
        let id: SpiffeId = "spiffe://example.org/agent/mailer".parse().unwrap();
        ca.leaf(&LeafParams {
            spiffe_id: &id,
            spki_der: software_key(Curve::P256).spki_der(),
            dns_names: &names,
            serial: serial(30),
            now: NOW,
            lifetime: Duration::from_secs(600),
            agent: Some(AgentLeaf {
                instance: InstanceId::from_bytes([5; 16]),
                info: &info(Tier::Enterprise),
            }),
        })
    };
    let leaf = named("mail-1.example.org").unwrap();
    let names = Certificate::parse(&leaf.der).unwrap().names;
    assert_eq!(names[0], crate::x509::parse::San::Uri("spiffe://example.org/agent/mailer".to_owned()));
    assert_eq!(names[1], crate::x509::parse::San::Dns("mail-1.example.org".to_owned()));
    let long_label = format!("{}.example.org", "a".repeat(64));
    let long = ["a"; 128].join(".");
    for bad in [
        "",
        "*.example.org",
        "Mail.example.org",
        "-a.example.org",
        "a-.example.org",
        "a..b",
        "a.example.org.",
        "192.0.2.1",
        "a b",
        "a_b.example.org",
        "spiffe://x",
        &long_label,
        &long,
    ] {
        assert!(matches!(named(bad), Err(ProfileError::DnsName { .. })), "{bad}");
    }
}

#[test]
fn keys_that_cannot_be_certified() {
    let domain = domain();
    let ca = domain.ca(Hierarchy::Tier(Tier::Enterprise));
    assert!(matches!(leaf(ca, |p| p.spki_der = b"junk"), Err(ProfileError::PublicKey(_))));
    let mut bad = info(Tier::Enterprise);
    bad.attested_at = i64::MAX;
    assert!(matches!(leaf_with(ca, &bad, |_| {}), Err(ProfileError::AgentInfo(_))));
    bad = info(Tier::Enterprise);
    let parent = "spiffe://example.org/agent/boss".parse().unwrap();
    bad.delegation = Some(Delegation { parent, chain_digest: [0; 32], depth: 0 });
    assert!(matches!(leaf_with(ca, &bad, |_| {}), Err(ProfileError::AgentInfo(_))));
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
