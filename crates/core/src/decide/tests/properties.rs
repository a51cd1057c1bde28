//! Properties over every combination of evidence.

use proptest::prelude::*;

use super::*;

fn any_host() -> impl Strategy<Value = HostStanding> {
    let proof = prop_oneof![
        Just(HostProof::JoinToken),
        (any::<bool>(), 0..3usize).prop_map(|(simulated, trust)| HostProof::Tpm {
            simulated,
            ek_trust: [EkTrust::AllowList, EkTrust::Vouched, EkTrust::Certificate][trust]
        }),
    ];
    let pcr = prop_oneof![
        Just(PcrStanding::Met { policy: "p".to_owned() }),
        Just(PcrStanding::NotMet { policy: "p".to_owned(), mismatches: vec!["PCR 7".to_owned()] }),
        Just(PcrStanding::NoPolicy),
    ];
    let quote = prop_oneof![Just(None), (-400i64..400).prop_map(|d| Some(NOW - d))];
    let id = prop_oneof![Just("h-1"), Just("x-1")];
    (id, proof, pcr, quote, -100i64..4000, any::<bool>()).prop_map(|(id, proof, pcr, quote_at, age, off)| {
        HostStanding {
            host_id: id.parse().unwrap(),
            proof,
            pcr,
            attested_at: NOW - age,
            quote_at,
            evidence_digest: [0; 32],
            disabled: off.then(|| "off".to_owned()),
        }
    })
}

fn any_key() -> impl Strategy<Value = KeyStanding> {
    prop_oneof![
        Just(KeyStanding::Software),
        prop_oneof![Just(vec![]), Just(vec![0]), Just(vec![0, 7])].prop_map(|p| tpm_key(&p)),
        any::<[bool; 4]>().prop_map(|[a, b, c, d]| KeyStanding::Pkcs11(Pkcs11Assertion {
            token_label: "t".to_owned(),
            sensitive: a,
            always_sensitive: b,
            never_extractable: c,
            local: d,
        })),
    ]
}

fn any_agent() -> impl Strategy<Value = AgentStanding> {
    (any_key(), any::<[bool; 2]>()).prop_map(|(key, [uid, unit])| {
        let mut agent = agent(key);
        agent.selectors.retain(|s| match s.to_string().as_str() {
            "unix:uid:7" => uid,
            "systemd:unit:a.service" => unit,
            _ => true,
        });
        agent
    })
}

fn any_registered() -> impl Strategy<Value = Registered> {
    let key = prop_oneof![Just(SOFTWARE), Just(TPM), Just(TPM_PCR), Just(PKCS11)];
    (0usize..3, key)
        .prop_filter("no such registration", |(tier, key)| !(*tier == 2 && *key == SOFTWARE))
        .prop_map(|(tier, key)| registered(Tier::ALL[tier], key))
}

fn any_rules() -> impl Strategy<Value = TrustRules> {
    any::<[bool; 2]>().prop_map(|[lab, accept]| TrustRules { lab, accept_pkcs11_asserted: accept, ..rules() })
}

/// The table of the tiers, written a second time and in another way: what must be true of a grant.
fn holds(r: &Registered, h: &HostStanding, a: &AgentStanding, rules: &TrustRules) -> bool {
    let tier = r.registration.tier();
    let tpm = match h.proof {
        HostProof::Tpm { simulated: true, .. } => rules.lab,
        HostProof::Tpm { ek_trust, .. } => ek_trust != EkTrust::AllowList,
        HostProof::JoinToken => false,
    };
    let proved = match h.proof {
        HostProof::JoinToken => h.attested_at <= NOW + CLOCK_SKEW,
        HostProof::Tpm { .. } => (NOW - 3600..=NOW + CLOCK_SKEW).contains(&h.attested_at),
    };
    let base = h.host_id.as_str() == "h-1"
        && h.disabled.is_none()
        && proved
        && r.registration.selectors().iter().all(|s| a.selectors.contains(s))
        && a.key.custody() == r.registration.key().custody;
    let key = match &a.key {
        KeyStanding::Software => tier < Tier::Advanced,
        KeyStanding::Tpm { policy_pcrs } => tpm && *policy_pcrs == r.registration.key().bind_pcrs,
        KeyStanding::Pkcs11(p) => {
            tpm && rules.accept_pkcs11_asserted
                && p.sensitive
                && p.always_sensitive
                && p.never_extractable
                && p.local
        }
    };
    let enterprise = tpm && matches!(h.pcr, PcrStanding::Met { .. });
    let advanced = h.quote_at.is_some_and(|q| (NOW - 300..=NOW + CLOCK_SKEW).contains(&q));
    base && key && (tier < Tier::Enterprise || enterprise) && (tier < Tier::Advanced || advanced)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4096, ..ProptestConfig::default() })]

    #[test]
    fn a_grant_is_made_exactly_where_the_table_holds(
        r in any_registered(), h in any_host(), a in any_agent(), rules in any_rules()
    ) {
        let decision = decide(&r, &h, &a, &rules, NOW);
        prop_assert_eq!(decision.is_ok(), holds(&r, &h, &a, &rules), "{:?}", decision);
        if let Ok(grant) = decision {
            prop_assert_eq!(grant.tier(), r.registration.tier());
            prop_assert!(grant.lifetime() <= grant.tier().max_lifetime());
            prop_assert!(highest_tier(&h, &rules, NOW).0 >= Some(grant.tier()), "the host alone supports the tier");
            prop_assert!(grant.custody() != Custody::Simulated || rules.lab);
        }
    }

    #[test]
    fn what_is_explained_is_what_is_decided(
        r in any_registered(), h in any_host(), a in any_agent(), rules in any_rules()
    ) {
        let explained = explain(&r.registration, &h, &rules, NOW);
        let ours = explained.iter().find(|t| t.tier == r.registration.tier()).unwrap();
        match decide(&r, &h, &a, &rules, NOW) {
            Ok(_) => prop_assert!(ours.reachable),
            Err(refusal) => for e in &ours.requirements {
                let unmet = refusal.unmet.iter().any(|u| u.requirement == e.requirement);
                // Where the agent matters too, it can only make a met requirement unmet.
                if e.state == ExplainedState::Unmet { prop_assert!(unmet, "{}", e.requirement) }
                if e.requirement.of_host() { prop_assert_eq!(unmet, e.state == ExplainedState::Unmet) }
            },
        }
    }

    #[test]
    fn more_evidence_never_lowers(h in any_host(), r in any_registered(), a in any_agent(), rules in any_rules()) {
        let (before, _) = highest_tier(&h, &rules, NOW);
        let granted = decide(&r, &h, &a, &rules, NOW).is_ok();
        let hardware = HostProof::Tpm { simulated: false, ek_trust: EkTrust::Certificate };
        let better: [HostStanding; 3] = [
            HostStanding { proof: hardware, attested_at: NOW, ..h.clone() },
            HostStanding { pcr: PcrStanding::Met { policy: "p".to_owned() }, ..h.clone() },
            HostStanding { quote_at: Some(NOW), ..h.clone() },
        ];
        for more in better {
            prop_assert!(highest_tier(&more, &rules, NOW).0 >= before, "{:?}", more);
            prop_assert!(!granted || decide(&r, &more, &a, &rules, NOW).is_ok(), "{:?}", more);
        }
        let mut more = a.clone();
        more.selectors.extend(agent(KeyStanding::Software).selectors);
        prop_assert!(!granted || decide(&r, &h, &more, &rules, NOW).is_ok());
    }
}
