//! Each check of `verify`, made to fail alone. Certificates that our own CA refuses to make are made here
//! with its key, field by field.

use std::time::Duration;

use rcgen::{CertificateParams, CustomExtension, ExtendedKeyUsagePurpose, IsCa, KeyUsagePurpose, SanType};

use super::*;
use crate::tier::Hierarchy;
use crate::x509::testing::{Domain, NOW, domain, domain_named, info, serial, software_key};
use crate::x509::{BACKDATE, CaKey, Curve, OidArc, TaskInfo};

fn demand(now: i64) -> Demand {
    let now = UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(now).unwrap()));
    Demand { usage: Usage::Client, now, accept_simulated: false }
}

fn verify(chain: &[CertificateDer<'_>], roots: &TierRoots) -> Result<VerifiedPeer, ChainError> {
    verify_chain(chain, roots, &demand(NOW))
}

/// A leaf as our CA would make it, but for what `shape` changes.
fn forge(
    domain: &Domain,
    tier: Tier,
    shape: impl FnOnce(&mut CertificateParams),
) -> Vec<CertificateDer<'static>> {
    let at = |t: i64| time::OffsetDateTime::from_unix_timestamp(t).unwrap();
    let mut params = CertificateParams::default();
    params.serial_number = Some(rcgen::SerialNumber::from_slice(serial(7).as_bytes()));
    params.not_before = at(NOW - 30);
    params.not_after = at(NOW + 600);
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.subject_alt_names = vec![uri(&domain.agent_id().to_string())];
    params.custom_extensions = vec![policies(tier), agent_info(&info(tier))];
    shape(&mut params);
    let der = domain.ca(Hierarchy::Tier(tier)).sign_anything(&params, software_key(Curve::P256).spki_der());
    vec![der, domain.ca(Hierarchy::Tier(tier)).certificate().clone()]
}

fn uri(text: &str) -> SanType {
    SanType::URI(text.try_into().unwrap())
}

fn policies(tier: Tier) -> CustomExtension {
    crate::x509::profile::policies_extension(&OidArc::documentation(), tier)
}

fn agent_info(info: &AgentInfo) -> CustomExtension {
    let oid = OidArc::documentation().agent_info_components();
    CustomExtension::from_oid_content(&oid, info.encode().unwrap())
}

#[test]
fn roots_give_the_tier_and_nothing_below_passes() {
    let domain = domain();
    assert!(domain.tier_roots().is_lab());
    for demanded in Tier::ALL {
        let roots = domain.tier_roots().at_least(demanded);
        for shown in Tier::ALL {
            let result = verify(&domain.chain(shown), &roots);
            if shown >= demanded {
                let peer = result.unwrap();
                assert_eq!((peer.tier, peer.spiffe_id), (shown, domain.agent_id()));
                assert!(peer.lab, "the root says so");
                assert_eq!(peer.agent_info, info(shown));
                assert_eq!((peer.not_before, peer.not_after), (NOW - BACKDATE, NOW + 600));
                assert_eq!(peer.serial, serial(30));
                assert_eq!(peer.instance, Some(InstanceId::from_bytes([5; 16])));
            } else {
                assert!(matches!(result, Err(ChainError::UntrustedRoot { .. })), "{shown} at {demanded}");
            }
        }
    }
}

#[test]
fn both_roles() {
    let domain = domain();
    for usage in [Usage::Client, Usage::Server] {
        let demand = Demand { usage, ..demand(NOW) };
        verify_chain(&domain.chain(Tier::Enterprise), &domain.tier_roots(), &demand).unwrap();
    }
}

#[test]
fn a_forged_leaf_that_changes_nothing_passes() {
    let domain = domain();
    verify(&forge(&domain, Tier::Enterprise, |_| {}), &domain.tier_roots()).unwrap();
}

#[test]
fn time() {
    let domain = domain();
    let chain = domain.chain(Tier::Foundation);
    let roots = domain.tier_roots();
    let at = |now| verify_chain(&chain, &roots, &demand(now));
    at(NOW + 600).unwrap();
    assert!(matches!(at(NOW + 601), Err(ChainError::Expired { .. })));
    at(NOW - BACKDATE).unwrap();
    assert!(matches!(at(NOW - BACKDATE - 1), Err(ChainError::NotYetValid { .. })));
}

#[test]
fn chains_of_another_shape() {
    let domain = domain();
    let roots = domain.tier_roots();
    let chain = domain.chain(Tier::Foundation);
    assert!(matches!(verify(&[], &roots), Err(ChainError::Empty)));
    assert!(matches!(verify(&chain[..1], &roots), Err(ChainError::UntrustedRoot { .. })));
    let long = vec![chain[0].clone(); 5];
    assert!(matches!(verify(&long, &roots), Err(ChainError::TooLong { len: 5, max: 4 })));
    let swapped = [chain[1].clone(), chain[0].clone()];
    assert!(matches!(verify(&swapped, &roots), Err(ChainError::CertificateAuthority)));
    let other_ca = [chain[0].clone(), domain.chain(Tier::Advanced)[1].clone()];
    assert!(matches!(verify(&other_ca, &roots), Err(ChainError::UntrustedRoot { .. })));
    let none = TierRoots::new(domain.trust_domain.clone());
    assert!(matches!(verify(&chain, &none), Err(ChainError::UntrustedRoot { .. })));
}

#[test]
fn another_domain() {
    let (ours, theirs) = (domain(), domain_named("example.org", false));
    let own = verify(&theirs.chain(Tier::Advanced), &theirs.tier_roots()).unwrap();
    assert!(!own.lab && !theirs.tier_roots().is_lab());
    let result = verify(&ours.chain(Tier::Advanced), &theirs.tier_roots());
    assert!(matches!(result, Err(ChainError::UntrustedRoot { .. })), "lab against production, same name");
    let foreign = forge(&ours, Tier::Foundation, |p| {
        p.subject_alt_names = vec![uri("spiffe://other.example/agent/mailer")];
    });
    assert!(matches!(verify(&foreign, &ours.tier_roots()), Err(ChainError::TrustDomain { .. })));
}

#[test]
fn each_flipped_bit_is_refused() {
    let domain = domain();
    let roots = domain.tier_roots();
    let chain = domain.chain(Tier::Advanced);
    let flipped = |der: &[u8], bit: usize| {
        let mut bad = der.to_vec();
        bad[bit / 8] ^= 1 << (bit % 8);
        CertificateDer::from(bad)
    };
    for bit in 0..chain[0].len() * 8 {
        let bad = [flipped(&chain[0], bit), chain[1].clone()];
        assert!(verify(&bad, &roots).is_err(), "leaf bit {bit}");
    }
    for bit in 0..chain[1].len() * 8 {
        let bad = [chain[0].clone(), flipped(&chain[1], bit)];
        assert!(verify(&bad, &roots).is_err(), "CA bit {bit}");
    }
}

#[test]
fn names() {
    let domain = domain();
    let roots = domain.tier_roots();
    let with = |names: Vec<SanType>| {
        verify(&forge(&domain, Tier::Foundation, |p| p.subject_alt_names = names), &roots)
    };
    let dns = || SanType::DnsName("mail.example.org".try_into().unwrap());
    let id = || uri("spiffe://example.org/agent/mailer");
    with(vec![id(), dns()]).unwrap();
    assert!(matches!(with(vec![]), Err(ChainError::UriNames { count: 0 })));
    assert!(matches!(with(vec![dns()]), Err(ChainError::UriNames { count: 0 })));
    let two = with(vec![id(), uri("spiffe://example.org/agent/other")]);
    assert!(matches!(two, Err(ChainError::UriNames { count: 2 })));
    let mail = SanType::Rfc822Name("a@example.org".try_into().unwrap());
    assert!(matches!(with(vec![id(), mail]), Err(ChainError::OtherName { .. })));
    for odd in ["https://example.org/agent/mailer", "spiffe://example.org", "spiffe://example.org/agent/a/b"]
    {
        assert!(matches!(with(vec![uri(odd)]), Err(ChainError::SpiffeId(_))), "{odd}");
    }
    let host = with(vec![uri("spiffe://example.org/host/web-01")]);
    assert!(matches!(host, Err(ChainError::Kind { expected: "agents and tasks", .. })));
}

#[test]
fn usages() {
    let domain = domain();
    let roots = domain.tier_roots();
    let with =
        |f: &dyn Fn(&mut CertificateParams)| verify(&forge(&domain, Tier::Foundation, |p| f(p)), &roots);
    let ku = |usages: &[KeyUsagePurpose]| with(&|p| p.key_usages = usages.to_vec());
    assert!(matches!(ku(&[]), Err(ChainError::KeyUsage { found: None })));
    assert!(matches!(ku(&[KeyUsagePurpose::KeyAgreement]), Err(ChainError::KeyUsage { .. })));
    let signer = ku(&[KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyCertSign]);
    assert!(matches!(signer, Err(ChainError::KeyUsage { found: Some(0x21) })));
    let eku = |usages: &[ExtendedKeyUsagePurpose]| with(&|p| p.extended_key_usages = usages.to_vec());
    assert!(matches!(eku(&[]), Err(ChainError::ExtendedKeyUsage)));
    assert!(matches!(eku(&[ExtendedKeyUsagePurpose::ClientAuth]), Err(ChainError::ExtendedKeyUsage)));
    assert!(matches!(eku(&[ExtendedKeyUsagePurpose::ServerAuth]), Err(ChainError::Path(_))));
    let ca = with(&|p| p.is_ca = IsCa::Ca(rcgen::BasicConstraints::Unconstrained));
    assert!(matches!(ca, Err(ChainError::CertificateAuthority)));
    let critical = with(&|p| {
        let mut odd = CustomExtension::from_oid_content(&[1, 3, 6, 1, 4, 1, 32473, 9], vec![5, 0]);
        odd.set_criticality(true);
        p.custom_extensions.push(odd);
    });
    assert!(matches!(critical, Err(ChainError::Path(_))));
    let odd_serial = with(&|p| p.serial_number = Some(rcgen::SerialNumber::from(9)));
    assert!(matches!(odd_serial, Err(ChainError::Serial(_))));
}

#[test]
fn a_leaf_that_contradicts_its_root() {
    let domain = domain();
    let roots = domain.tier_roots();
    let with = |extensions: Vec<CustomExtension>| {
        verify(&forge(&domain, Tier::Foundation, |p| p.custom_extensions = extensions), &roots)
    };
    let foundation = || info(Tier::Foundation);
    let climbs = with(vec![policies(Tier::Foundation), agent_info(&info(Tier::Advanced))]);
    assert!(matches!(climbs, Err(ChainError::Tier { root: Tier::Foundation, found: Tier::Advanced })));
    let asserts = with(vec![policies(Tier::Enterprise), agent_info(&foundation())]);
    assert!(matches!(asserts, Err(ChainError::Policies { found: Some(Tier::Enterprise), .. })));
    let bare = with(vec![agent_info(&foundation())]);
    assert!(matches!(bare, Err(ChainError::Policies { found: None, .. })));
    assert!(matches!(with(vec![policies(Tier::Foundation)]), Err(ChainError::NoAgentInfo { .. })));
    let oid = OidArc::documentation().agent_info_components();
    let junk = CustomExtension::from_oid_content(&oid, vec![0x30, 0]);
    assert!(matches!(with(vec![policies(Tier::Foundation), junk]), Err(ChainError::AgentInfo(_))));
    let mut task = foundation();
    task.task = Some(TaskInfo { task_id: "t".parse().unwrap(), grant_digest: [0; 32] });
    let task = with(vec![policies(Tier::Foundation), agent_info(&task)]);
    assert!(matches!(task, Err(ChainError::Task { .. })));
}

#[test]
fn simulated_only_where_accepted() {
    let domain = domain();
    let mut info = info(Tier::Advanced);
    info.custody = Custody::Simulated;
    let leaf = domain.agent_leaf_with(Tier::Advanced, &info, &domain.agent_id()).unwrap();
    let chain = [leaf.der, domain.ca(Hierarchy::Tier(Tier::Advanced)).certificate().clone()];
    assert!(matches!(verify(&chain, &domain.tier_roots()), Err(ChainError::Simulated { .. })));
    let lenient = Demand { accept_simulated: true, ..demand(NOW) };
    let peer = verify_chain(&chain, &domain.tier_roots(), &lenient).unwrap();
    assert_eq!(peer.agent_info.custody, Custody::Simulated);
}

#[test]
fn infrastructure_and_tiers_are_worlds_apart() {
    let domain = domain();
    let host: SpiffeId = "spiffe://example.org/host/web-01".parse().unwrap();
    let leaf = domain.infra_leaf(&host).unwrap();
    let chain = [leaf.der, domain.ca(Hierarchy::Infrastructure).certificate().clone()];
    let now = demand(NOW).now;
    let infra = |chain: &[CertificateDer<'_>]| {
        verify_infrastructure(chain, &domain.infra_roots(), Usage::Client, now)
    };
    assert_eq!(infra(&chain).unwrap().spiffe_id, host);
    assert!(matches!(verify(&chain, &domain.tier_roots()), Err(ChainError::UntrustedRoot { .. })));
    for tier in Tier::ALL {
        let refused = infra(&domain.chain(tier));
        assert!(matches!(refused, Err(ChainError::UntrustedRoot { .. })), "{tier}");
    }
    // An issuing CA that was tainted, known by its key, whatever else the peer sends along.
    let tainted = crate::x509::key_fingerprint(&chain[1]).unwrap();
    let denying = domain.infra_roots().denying([tainted]);
    let filler = domain.ca(Hierarchy::Tier(Tier::Foundation)).certificate().clone();
    for chain in [chain.to_vec(), vec![chain[0].clone(), filler, chain[1].clone()]] {
        let refused = verify_infrastructure(&chain, &denying, Usage::Client, now);
        assert!(matches!(refused, Err(ChainError::Tainted { .. })), "{refused:?}");
    }
    verify_infrastructure(&chain, &domain.infra_roots().denying([[7; 32]]), Usage::Client, now).unwrap();
    // An agent's name under the infrastructure root.
    let ca = domain.ca(Hierarchy::Infrastructure);
    let mut params = CertificateParams::default();
    params.serial_number = Some(rcgen::SerialNumber::from_slice(serial(7).as_bytes()));
    params.not_after = time::OffsetDateTime::from_unix_timestamp(NOW + 60).unwrap();
    params.is_ca = IsCa::ExplicitNoCa;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
    params.subject_alt_names = vec![uri("spiffe://example.org/agent/mailer")];
    let agent = ca.sign_anything(&params, software_key(Curve::P256).spki_der());
    let refused = infra(&[agent, ca.certificate().clone()]);
    assert!(matches!(refused, Err(ChainError::Kind { expected: "hosts and issuers", .. })));
}

proptest::proptest! {
    #[test]
    fn never_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..400)) {
        let _ = Certificate::parse(&bytes);
    }
}
