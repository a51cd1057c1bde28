//! The decision, case by case.

use super::*;
use Requirement as R;

#[test]
fn a_grant_says_what_was_decided() {
    let registered = registered(Tier::Advanced, TPM_PCR);
    let grant = decide(&registered, &host(), &agent(tpm_key(&[7, 0])), &rules(), NOW).unwrap();
    assert_eq!(grant.subject(), &Subject::Agent("a".parse().unwrap()));
    assert_eq!((grant.tier(), grant.custody()), (Tier::Advanced, Custody::TpmCertified));
    assert_eq!(grant.lifetime(), Tier::Advanced.default_lifetime());
    assert_eq!(grant.instance(), InstanceId::from_bytes([1; 16]));
    assert_eq!(grant.spki(), [1, 2, 3]);
    assert_eq!(grant.dns_names(), &["a.org".to_owned()].into());
    assert_eq!(grant.owner(), "a@example.org");
    assert_eq!(grant.host_id().as_str(), "h-1");
    assert_eq!(grant.attested_at(), NOW - 60);
    assert_eq!(grant.evidence_digest(), &[5; 32]);
    assert_eq!(grant.registration_digest(), &registered.registration.digest());
    assert_eq!(grant.registration_revision(), 4);
}

#[test]
fn a_lifetime_is_cut_to_what_the_trust_domain_and_the_tier_allow() {
    let mut rules = rules();
    let lifetime = |rules: &TrustRules| {
        let registered = registered(Tier::Enterprise, SOFTWARE);
        decide(&registered, &host(), &agent(KeyStanding::Software), rules, NOW).unwrap().lifetime().as_secs()
    };
    assert_eq!(lifetime(&rules), 30 * 60);
    rules.lifetimes.enterprise = Duration::from_secs(90);
    assert_eq!(lifetime(&rules), 90);
    rules.lifetimes.enterprise = Duration::from_secs(1_000_000);
    assert_eq!(rules.lifetimes.max(Tier::Enterprise), Tier::Enterprise.max_lifetime());
    assert_eq!(rules.lifetimes.max(Tier::Advanced), Tier::Advanced.max_lifetime());
}

/// Every tier and every kind of host, each with the key that the tier asks for: what is missing.
#[test]
fn each_tier_against_each_kind_of_host() {
    let simulated = || HostStanding {
        proof: HostProof::Tpm { simulated: true, ek_trust: EkTrust::Certificate },
        ..host()
    };
    let listed = |ek_trust| HostStanding { proof: HostProof::Tpm { simulated: false, ek_trust }, ..host() };
    let unpoliced = || HostStanding { pcr: PcrStanding::NoPolicy, ..host() };
    let stale = || HostStanding { quote_at: Some(NOW - 301), ..host() };
    let hosts: [(&str, HostStanding); 7] = [
        ("tpm", host()),
        ("vouched for", listed(EkTrust::Vouched)),
        ("allow-listed", listed(EkTrust::AllowList)),
        ("join token", join_token_host()),
        ("simulated", simulated()),
        ("no policy", unpoliced()),
        ("stale", stale()),
    ];
    let tiers = [
        (Tier::Foundation, SOFTWARE, KeyStanding::Software),
        (Tier::Enterprise, SOFTWARE, KeyStanding::Software),
        (Tier::Advanced, TPM, tpm_key(&[])),
    ];
    let mut table = vec![];
    for (name, host) in &hosts {
        for (tier, key, shown) in &tiers {
            let registered = registered(*tier, key);
            for lab in [false, true] {
                let rules = TrustRules { lab, ..rules() };
                let lacking = codes(decide(&registered, host, &agent(shown.clone()), &rules, NOW)).join(" ");
                table.push((*name, *tier, lab, lacking));
            }
        }
    }
    let lacking = |name: &str, tier: Tier, lab: bool| match (name, tier) {
        (_, Tier::Foundation) | ("tpm" | "vouched for", _) => "",
        // The allow-list says who may enrol, not what the TPM is made of.
        ("allow-listed", _) => "hardware-tpm",
        ("join token", Tier::Enterprise) => "host-tpm hardware-tpm pcr-policy",
        ("join token", Tier::Advanced) => "host-tpm hardware-tpm pcr-policy fresh-quote",
        ("simulated", _) => {
            if lab {
                ""
            } else {
                "hardware-tpm"
            }
        }
        ("no policy", _) => "pcr-policy",
        ("stale", Tier::Advanced) => "fresh-quote",
        _ => "",
    };
    for (name, tier, lab, found) in table {
        assert_eq!(found, lacking(name, tier, lab), "{name}, {tier}, lab {lab}");
    }
}

/// Every custody demanded against every custody shown, on a host that meets all.
#[test]
fn each_custody_against_each_key() {
    let demanded =
        [(SOFTWARE, Custody::Software), (TPM, Custody::TpmCertified), (PKCS11, Custody::Pkcs11Asserted)];
    let shown = [KeyStanding::Software, tpm_key(&[]), pkcs11_key()];
    for tier in Tier::ALL {
        for (text, custody) in demanded {
            if tier == Tier::Advanced && custody == Custody::Software {
                continue; // no such registration can be written
            }
            for key in &shown {
                let decision = decide(&registered(tier, text), &host(), &agent(key.clone()), &rules(), NOW);
                let mut expected = vec![];
                if key.custody() != custody {
                    expected.push("key-custody");
                    if tier == Tier::Advanced && *key == KeyStanding::Software {
                        expected.push("hardware-key");
                    }
                    if custody == Custody::Pkcs11Asserted {
                        expected.push("pkcs11-attributes");
                    }
                }
                assert_eq!(codes(decision.clone()), expected, "{tier}: {custody} demanded, {key:?} shown");
                if let Ok(grant) = decision {
                    assert_eq!(grant.custody(), custody);
                }
            }
        }
    }
}

/// For each requirement, a case in which exactly that one fails.
#[test]
fn each_requirement_alone_refuses() {
    let advanced = || registered(Tier::Advanced, TPM);
    let key = || agent(tpm_key(&[]));
    let with = |change: &dyn Fn(&mut HostStanding)| {
        let mut host = host();
        change(&mut host);
        host
    };
    let mut gone = key();
    gone.selectors.retain(|s| s.to_string() != "unix:uid:7");
    let exportable = KeyStanding::Pkcs11(Pkcs11Assertion {
        token_label: "agents".to_owned(),
        sensitive: true,
        always_sensitive: true,
        never_extractable: false,
        local: true,
    });
    let strict = TrustRules::default();
    let cases: Vec<(Requirement, Registered, HostStanding, AgentStanding, TrustRules)> = vec![
        (R::HostNamed, advanced(), with(&|h| h.host_id = "x-1".parse().unwrap()), key(), rules()),
        (R::HostEnabled, advanced(), with(&|h| h.disabled = Some("stolen".to_owned())), key(), rules()),
        (R::HostProved, advanced(), with(&|h| h.attested_at = NOW - 3601), key(), rules()),
        (R::HostProved, advanced(), with(&|h| h.attested_at = NOW + 31), key(), rules()),
        (
            R::HardwareTpm,
            advanced(),
            with(&|h| h.proof = HostProof::Tpm { simulated: true, ek_trust: EkTrust::Vouched }),
            key(),
            rules(),
        ),
        (
            R::HardwareTpm,
            advanced(),
            with(&|h| h.proof = HostProof::Tpm { simulated: false, ek_trust: EkTrust::AllowList }),
            key(),
            rules(),
        ),
        (
            R::PcrPolicy,
            advanced(),
            with(&|h| {
                h.pcr = PcrStanding::NotMet { policy: "p".to_owned(), mismatches: vec!["PCR 7".to_owned()] }
            }),
            key(),
            rules(),
        ),
        (R::PcrPolicy, advanced(), with(&|h| h.pcr = PcrStanding::NoPolicy), key(), rules()),
        (R::FreshQuote, advanced(), with(&|h| h.quote_at = Some(NOW - 301)), key(), rules()),
        (R::FreshQuote, advanced(), with(&|h| h.quote_at = Some(NOW + 31)), key(), rules()),
        (R::FreshQuote, advanced(), with(&|h| h.quote_at = None), key(), rules()),
        (R::Selectors, advanced(), host(), gone, rules()),
        (R::KeyCustody, advanced(), host(), agent(pkcs11_key()), rules()),
        (R::KeyCustody, registered(Tier::Foundation, SOFTWARE), host(), key(), rules()),
        (R::KeyPcrBinding, registered(Tier::Advanced, TPM_PCR), host(), agent(tpm_key(&[0])), rules()),
        (R::KeyPcrBinding, registered(Tier::Advanced, TPM_PCR), host(), agent(tpm_key(&[0, 7, 8])), rules()),
        (R::KeyPcrBinding, advanced(), host(), agent(tpm_key(&[0])), rules()),
        (R::Pkcs11Accepted, registered(Tier::Advanced, PKCS11), host(), agent(pkcs11_key()), strict.clone()),
        (R::Pkcs11Accepted, registered(Tier::Foundation, PKCS11), host(), agent(pkcs11_key()), strict),
        (R::Pkcs11Attributes, registered(Tier::Advanced, PKCS11), host(), agent(exportable), rules()),
    ];
    for (requirement, registered, host, agent, rules) in cases {
        let refusal = decide(&registered, &host, &agent, &rules, NOW).unwrap_err();
        let found: Vec<Requirement> = refusal.unmet.iter().map(|u| u.requirement).collect();
        assert_eq!(found, [requirement], "{refusal}");
        let retry = matches!(requirement, R::HostProved | R::FreshQuote);
        assert_eq!(refusal.retryable(), retry, "{refusal}");
    }
}

/// The three that the cases above cannot show alone: they hang together with others by nature.
#[test]
fn requirements_that_never_fail_alone() {
    // No TPM is also no hardware TPM.
    let key = agent(tpm_key(&[]));
    let mut host_without = host();
    host_without.proof = HostProof::JoinToken;
    let decision = decide(&registered(Tier::Foundation, TPM), &host_without, &key, &rules(), NOW);
    assert_eq!(codes(decision), ["host-tpm", "hardware-tpm"]);
    // The selector that binds the code is one of those that must match.
    let mut other_unit = key.clone();
    other_unit.selectors.retain(|s| !s.kind().binds_code());
    let decision = decide(&registered(Tier::Enterprise, TPM), &host(), &other_unit, &rules(), NOW);
    assert_eq!(codes(decision), ["selectors", "code-identity"]);
    // An advanced registration always demands hardware, so a software key also has the wrong custody.
    let software = agent(KeyStanding::Software);
    let decision = decide(&registered(Tier::Advanced, TPM), &host(), &software, &rules(), NOW);
    assert_eq!(codes(decision), ["key-custody", "hardware-key"]);
    // Each of them alone, in the checks beneath.
    let foundation = registered_with(Tier::Foundation, SOFTWARE, "[\"unix:uid:7\"]");
    let case = Case {
        tier: Tier::Advanced,
        registration: &foundation.registration,
        host: &host(),
        agent: Some(&software),
        rules: &rules(),
        now: NOW,
        words: check::Words::Unmet,
    };
    let found: Vec<Requirement> =
        case.requirements().filter(|&r| case.check(r).state != State::Met).collect();
    assert_eq!(found, [R::CodeIdentity, R::HardwareKey]);
}

#[test]
fn each_pkcs11_attribute_is_needed() {
    for lacking in 0..4 {
        let set = |i| i != lacking;
        let assertion = Pkcs11Assertion {
            token_label: "t".to_owned(),
            sensitive: set(0),
            always_sensitive: set(1),
            never_extractable: set(2),
            local: set(3),
        };
        assert_eq!(assertion.lacking().len(), 1);
        let key = agent(KeyStanding::Pkcs11(assertion));
        let decision = decide(&registered(Tier::Advanced, PKCS11), &host(), &key, &rules(), NOW);
        assert_eq!(codes(decision), ["pkcs11-attributes"]);
    }
}

#[test]
fn every_fault_is_listed_at_once() {
    let mut bare = agent(KeyStanding::Software);
    bare.selectors.clear();
    let mut host = join_token_host();
    host.host_id = "x".parse().unwrap();
    host.disabled = Some("lost".to_owned());
    host.attested_at = NOW + 100;
    let decision = decide(&registered(Tier::Advanced, TPM_PCR), &host, &bare, &rules(), NOW);
    let pkcs11_only = |r: &Requirement| !matches!(r, R::Pkcs11Accepted | R::Pkcs11Attributes);
    let all: Vec<&str> = Requirement::ALL.iter().filter(|r| pkcs11_only(r)).map(|r| r.code()).collect();
    assert_eq!(codes(decision), all);
}

#[test]
fn a_simulated_tpm_in_production_is_foundation_and_no_more() {
    let simulated =
        HostStanding { proof: HostProof::Tpm { simulated: true, ek_trust: EkTrust::Certificate }, ..host() };
    let (highest, unmet) = highest_tier(&simulated, &rules(), NOW);
    assert_eq!(highest, Some(Tier::Foundation));
    assert_eq!(unmet.iter().map(|u| u.requirement).collect::<Vec<_>>(), [R::HardwareTpm]);
    // Not even as a key's custody below enterprise.
    let decision =
        decide(&registered(Tier::Foundation, TPM), &simulated, &agent(tpm_key(&[])), &rules(), NOW);
    assert_eq!(codes(decision), ["hardware-tpm"]);
    let lab = TrustRules { lab: true, ..rules() };
    assert_eq!(highest_tier(&simulated, &lab, NOW), (Some(Tier::Advanced), vec![]));
    let grant =
        decide(&registered(Tier::Advanced, TPM), &simulated, &agent(tpm_key(&[])), &lab, NOW).unwrap();
    assert_eq!(grant.custody(), Custody::Simulated);
}

#[test]
fn the_highest_tier_of_a_host() {
    assert_eq!(highest_tier(&host(), &rules(), NOW), (Some(Tier::Advanced), vec![]));
    let (highest, unmet) = highest_tier(&join_token_host(), &rules(), NOW);
    assert_eq!((highest, unmet.len()), (Some(Tier::Foundation), 4));
    let stale = HostStanding { quote_at: Some(NOW - 1000), ..host() };
    assert_eq!(highest_tier(&stale, &rules(), NOW).0, Some(Tier::Enterprise));
    let disabled = HostStanding { disabled: Some("x".to_owned()), ..host() };
    assert_eq!(highest_tier(&disabled, &rules(), NOW).0, None);
}

#[test]
fn explanations_show_every_tier() {
    let registration = registered(Tier::Enterprise, SOFTWARE).registration;
    let [foundation, enterprise, advanced] =
        explain(&registration, &host(), &rules(), NOW).try_into().unwrap();
    assert!(foundation.reachable && enterprise.reachable && !advanced.reachable);
    assert_eq!((foundation.requirements.len(), enterprise.requirements.len()), (5, 9));
    let states = |t: &TierExplanation, state| -> Vec<&str> {
        t.requirements.iter().filter(|r| r.state == state).map(|r| r.requirement.code()).collect()
    };
    assert_eq!(states(&advanced, ExplainedState::Unmet), ["hardware-key"]);
    assert_eq!(states(&enterprise, ExplainedState::AtIssuance), ["selectors", "key-custody"]);
    let json = serde_json::to_value(&advanced).unwrap();
    assert_eq!(json["requirements"][0]["code"], "host-named");
    assert_eq!(json["requirements"][0]["attack"], "impossible");
}

#[test]
fn words_are_unique_and_hosts_requirements_are_checked() {
    let codes: std::collections::BTreeSet<&str> = Requirement::ALL.iter().map(|r| r.code()).collect();
    assert_eq!(codes.len(), Requirement::ALL.len());
    for r in Requirement::ALL {
        // Each is demanded somewhere, and what is called a host's has a check of its own.
        let demanded = r.of_tier(Tier::Advanced) || Custody::ALL.iter().any(|&c| r.of_custody(c));
        assert!(demanded && !r.title().is_empty() && !r.attack().1.is_empty(), "{r}");
        assert_eq!(
            check::check_host(r, &host(), &rules(), NOW, check::Words::Unmet).state == State::Met,
            r.of_host(),
            "{r}"
        );
    }
}
