//! The leaves, field by field, and each one that is refused.

use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{FromDer, X509Certificate};

use super::*;
use crate::x509::testing::{Domain, NOW, domain, domain_named, info, leaf, leaf_with, serial, software_key};
use crate::x509::{Curve, Delegation, TaskInfo};

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
