use super::*;
use proptest::prelude::*;

const GOOD: &str = r#"
[[agent]]
name = "summarizer"
owner = "mail-team@example.org"
tier = "enterprise"
hosts = ["web-01", "db-*"]
selectors = ["unix:user:mailbot", "systemd:unit:mailbot.service"]
lifetime = "45m"
key = { custody = "tpm-certified", bind_pcrs = [7, 0] }
dns_names = ["mail.example.org"]
description = "reads and sums up"

[[agent.capability]]
action = "mail.read"
resource = "mailbox/alice/*"

[[agent]]
name = "signer"
owner = "ops@example.org"
tier = "advanced"
hosts = ["*"]
selectors = ["unix:uid:1001", "unix:supplementary-gid:4", "unix:supplementary-gid:5", "systemd:unit:signer.service"]
"#;

fn parse(text: &str) -> Result<Vec<Registration>, Vec<Fault>> {
    parse_files(&[("a.toml", text)])
}

/// A registration of these keys over good ones; `key=` with nothing after it leaves a key out.
fn agent(changes: &[(&str, &str)]) -> String {
    let mut keys = vec![
        ("name", "\"a\""),
        ("owner", "\"a@example.org\""),
        ("tier", "\"foundation\""),
        ("hosts", "[\"*\"]"),
        ("selectors", "[\"unix:uid:1\"]"),
    ];
    for &(key, value) in changes {
        keys.retain(|(k, _)| *k != key);
        keys.push((key, value));
    }
    let lines: Vec<String> =
        keys.iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| format!("{k} = {v}")).collect();
    format!("[[agent]]\n{}\n", lines.join("\n"))
}

#[test]
fn a_whole_file_is_read() {
    let all = parse(GOOD).unwrap();
    let [mail, signer] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!(mail.name().as_str(), "summarizer");
    assert_eq!(mail.owner(), "mail-team@example.org");
    assert_eq!(mail.tier(), Tier::Enterprise);
    assert_eq!(mail.lifetime(), Duration::from_secs(45 * 60));
    assert_eq!(mail.key().custody, Custody::TpmCertified);
    assert_eq!(mail.key().bind_pcrs, [0, 7].into());
    assert_eq!(mail.capabilities().len(), 1);
    let named = |host: &str| mail.names_host(&host.parse().unwrap());
    assert!(named("web-01") && named("db-1") && named("db-"));
    assert!(!named("web-011") && !named("web-0") && !named("db"));
    assert_eq!(signer.key().custody, Custody::TpmCertified, "the default of advanced");
    assert_eq!(signer.lifetime(), Tier::Advanced.default_lifetime());
    assert_eq!(signer.selectors().len(), 4);
}

#[test]
fn the_canonical_text_is_one_for_one_meaning() {
    let plain = parse(&agent(&[("hosts", r#"["b", "a"]"#)])).unwrap().remove(0);
    let full = parse(&agent(&[
        ("hosts", r#"["a", "b"]"#),
        ("lifetime", "\"900s\""),
        ("key", "{ custody = \"software\" }"),
        ("description", "\"\""),
    ]));
    let full = full.unwrap().remove(0);
    assert_eq!(plain.canonical(), full.canonical());
    assert_eq!(plain.digest(), full.digest());
    assert_eq!(plain.digest(), <[u8; 32]>::from(Sha256::digest(plain.canonical())));
    let other = parse(&agent(&[("hosts", r#"["b"]"#)])).unwrap().remove(0);
    assert_ne!(plain.digest(), other.digest());
    assert_eq!(
        plain.canonical(),
        concat!(
            r#"{"name":"a","owner":"a@example.org","tier":"foundation","hosts":["a","b"],"#,
            r#""selectors":["unix:uid:1"],"lifetime":"15m","key":{"custody":"software","bind_pcrs":[]},"#,
            r#""dns_names":[],"description":"","capability":[]}"#
        )
    );
    for r in parse(GOOD).unwrap() {
        assert_eq!(serde_json::from_str::<Registration>(&r.canonical()).unwrap(), r);
    }
}

#[test]
fn deserialisation_checks_the_same() {
    let text = parse(&agent(&[])).unwrap()[0].canonical();
    let bad = text.replace("foundation", "advanced");
    let why = serde_json::from_str::<Registration>(&bad).unwrap_err().to_string();
    assert!(why.contains("selectors: ") && why.contains("key.custody: "), "{why}");
    assert!(serde_json::from_str::<Registration>(&text.replace("\"owner\"", "\"over\"")).is_err());
}

/// Keys changed beforehand, the change at fault, where the fault stands, a word that its text must hold.
type Case<'a> = (&'a [(&'a str, &'a str)], (&'a str, &'a str), &'a str, &'a str);

#[test]
fn each_fault_is_found_alone() {
    let enterprise: &[(&str, &str)] =
        &[("tier", "\"enterprise\""), ("selectors", "[\"systemd:unit:a.service\"]")];
    let advanced: &[(&str, &str)] =
        &[("tier", "\"advanced\""), ("selectors", "[\"systemd:unit:a.service\"]")];
    let long = format!("\"{}@x\"", "a".repeat(300));
    let wide = format!("\"{}\"", "d".repeat(600));
    let hosts = format!("[{}]", (0..257).map(|i| format!("\"h{i}\"")).collect::<Vec<_>>().join(","));
    let groups = (0..33).map(|i| format!("\"unix:supplementary-gid:{i}\"")).collect::<Vec<_>>().join(",");
    let (groups, labels) = (format!("[{groups}]"), format!("[\"{}.org\"]", "a".repeat(64)));
    let cases: &[Case<'_>] = &[
        (&[], ("name", ""), "name", "missing"),
        (&[], ("name", "\"A\""), "name", "a-z"),
        (&[], ("name", "\"a/b\""), "name", "a-z"),
        (&[], ("owner", ""), "owner", "missing"),
        (&[], ("owner", "\"somebody\""), "owner", "address"),
        (&[], ("owner", "\"a@b c\""), "owner", "address"),
        (&[], ("owner", "\"a@b@c\""), "owner", "address"),
        (&[], ("owner", &long), "owner", "254"),
        (&[], ("tier", ""), "tier", "missing"),
        (&[], ("tier", "\"gold\""), "tier", "enterprise"),
        (&[], ("hosts", ""), "hosts", "missing"),
        (&[], ("hosts", "[]"), "hosts", "[\"*\"]"),
        (&[], ("hosts", &hosts), "hosts", "257"),
        (&[], ("hosts", "[\"a\", \"a\"]"), "hosts[2]", "twice"),
        (&[], ("hosts", "[\"a*b\"]"), "hosts[1]", "end"),
        (&[], ("hosts", "[\"a**\"]"), "hosts[1]", "end"),
        (&[], ("hosts", "[\"\"]"), "hosts[1]", "empty"),
        (&[], ("selectors", ""), "selectors", "missing"),
        (&[], ("selectors", "[]"), "selectors", "1 to 32"),
        (&[], ("selectors", &groups), "selectors", "33"),
        (&[], ("selectors", "[\"unix:uid:x\"]"), "selectors[1]", "decimal"),
        (&[], ("selectors", "[\"pid:1\"]"), "selectors[1]", "unix:uid:"),
        (&[], ("selectors", "[\"unix:uid:1\", \"unix:uid:1\"]"), "selectors[2]", "twice"),
        (&[], ("selectors", "[\"unix:uid:1\", \"unix:uid:2\"]"), "selectors[2]", "contradicts unix:uid:1"),
        (enterprise, ("selectors", "[\"unix:uid:1\"]"), "selectors", "systemd:unit"),
        (advanced, ("selectors", "[\"exe:path:/bin/a\"]"), "selectors", "exe:sha256"),
        (&[], ("lifetime", "\"soon\""), "lifetime", "30m"),
        (&[], ("lifetime", "\"61m\""), "lifetime", "1h"),
        (&[], ("lifetime", "\"29s\""), "lifetime", "30s"),
        (&[], ("lifetime", "\"30s 1ms\""), "lifetime", "whole"),
        (enterprise, ("lifetime", "\"4h 1s\""), "lifetime", "4h"),
        (advanced, ("lifetime", "\"2h\""), "lifetime", "1h"),
        (&[], ("key", "{ custody = \"cloud\" }"), "key.custody", "tpm-certified"),
        (&[], ("key", "{ custody = \"simulated\" }"), "key.custody", "never asked for"),
        (advanced, ("key", "{ custody = \"software\" }"), "key.custody", "hardware"),
        (&[], ("key", "{ bind_pcrs = [7] }"), "key.bind_pcrs", "tpm-certified"),
        (
            advanced,
            ("key", "{ custody = \"pkcs11-asserted\", bind_pcrs = [7] }"),
            "key.bind_pcrs",
            "tpm-certified",
        ),
        (advanced, ("key", "{ bind_pcrs = [24] }"), "key.bind_pcrs", "0 to 23"),
        (advanced, ("key", "{ bind_pcrs = [300] }"), "key.bind_pcrs", "0 to 23"),
        (advanced, ("key", "{ bind_pcrs = [7, 7] }"), "key.bind_pcrs", "twice"),
        (&[], ("dns_names", "[\"a.org\", \"a.org\"]"), "dns_names[2]", "twice"),
        (&[], ("dns_names", "[\"*.a.org\"]"), "dns_names[1]", "no DNS name"),
        (&[], ("dns_names", "[\"A.org\"]"), "dns_names[1]", "no DNS name"),
        (&[], ("dns_names", "[\"a.org.\"]"), "dns_names[1]", "no DNS name"),
        (&[], ("dns_names", "[\"10.0.0.1\"]"), "dns_names[1]", "no DNS name"),
        (&[], ("dns_names", "[\"-a.org\"]"), "dns_names[1]", "no DNS name"),
        (&[], ("dns_names", &labels), "dns_names[1]", "no DNS name"),
        (&[], ("description", "\"a\\nb\""), "description", "one line"),
        (&[], ("description", &wide), "description", "512"),
        (&[], ("capability", "[{ action = \"A\", resource = \"b\" }]"), "capability[1]", "a-z"),
        (&[], ("capability", "[{ action = \"a\", resource = \"/b\" }]"), "capability[1]", "segments"),
        (
            &[],
            ("capability", "[{ action = \"a\", resource = \"b\" }, { action = \"a\", resource = \"b\" }]"),
            "capability[2]",
            "twice",
        ),
        (&[], ("capability", "[{ action = \"a\" }]"), "", "resource"),
        (&[], ("colour", "\"red\""), "", "colour"),
        (&[], ("lifetime", "30"), "", "lifetime"),
    ];
    for (base, change, key, word) in cases {
        let mut changes = base.to_vec();
        changes.push(*change);
        let faults = parse(&agent(&changes)).expect_err(&format!("{changes:?}"));
        let [fault] = faults.as_slice() else { panic!("{changes:?}: {faults:?}") };
        let table = if change.0 == "name" { "agent at line 1" } else { "agent \"a\"" };
        assert_eq!(fault.key, format!("{table} {key}").trim(), "{fault}");
        assert!(fault.problem.contains(word), "{fault}");
    }
}

#[test]
fn all_faults_of_all_files_are_reported_at_once() {
    let one =
        agent(&[("owner", "\"x\""), ("tier", "\"gold\""), ("lifetime", "\"soon\""), ("name", "\"dup\"")]);
    let two =
        format!("# a comment\n\n{}{}", agent(&[("name", "\"dup\"")]), agent(&[("name", ""), ("hosts", "")]));
    let faults = parse_files(&[("one.toml", one), ("two.toml", two), ("three.toml", "[[agent".to_owned())]);
    let text: Vec<String> = faults.unwrap_err().iter().map(|f| format!("{}: {}", f.file, f.key)).collect();
    assert_eq!(
        text,
        [
            "one.toml: agent \"dup\" owner",
            "one.toml: agent \"dup\" tier",
            "one.toml: agent \"dup\" lifetime",
            "two.toml: agent \"dup\" name",
            "two.toml: agent at line 9 name",
            "two.toml: agent at line 9 hosts",
            "three.toml: line 1, column 8",
        ]
    );
}

#[test]
fn what_is_no_registration_file_is_refused() {
    for (text, key, word) in [
        ("", "file", "[[agent]]"),
        ("agents = []", "line 1, column 1", "agents"),
        ("[[agent]]\nname = \"a\"\nname = \"b\"\n", "line 3, column 1", "dup"),
        ("agent = 3", "line 1, column 9", "sequence"),
        ("agent = [3]", "agent at line 1", "struct"),
    ] {
        let faults = parse(text).unwrap_err();
        assert_eq!(faults[0].key, key, "{faults:?}");
        assert!(faults[0].problem.contains(word), "{faults:?}");
    }
    let huge = " ".repeat(MAX_FILE + 1);
    assert!(parse(&huge).unwrap_err()[0].problem.contains("split"));
}

#[test]
fn what_is_probably_not_meant_is_said() {
    let set = [
        agent(&[("name", "\"wide\""), ("hosts", "[\"web-*\"]")]),
        agent(&[
            ("name", "\"narrow\""),
            ("hosts", "[\"web-01\"]"),
            ("selectors", "[\"unix:gid:3\", \"unix:uid:1\"]"),
            ("key", "{ custody = \"tpm-certified\", bind_pcrs = [7, 16] }"),
        ]),
        agent(&[("name", "\"twin\""), ("hosts", "[\"web-0*\"]"), ("dns_names", "[\"a.org\"]")]),
        agent(&[("name", "\"elsewhere\""), ("hosts", "[\"db-1\"]"), ("dns_names", "[\"a.org\"]")]),
    ]
    .concat();
    let found = warnings(&parse(&set).unwrap());
    let agents: Vec<Vec<&str>> =
        found.iter().map(|w| w.agents.iter().map(String::as_str).collect()).collect();
    assert_eq!(
        agents,
        [
            vec!["wide", "twin"],
            vec!["narrow", "wide"],
            vec!["narrow", "twin"],
            vec!["twin", "elsewhere"],
            vec!["narrow"]
        ]
    );
    assert!(found[4].problem.contains("PCR 16"), "{found:?}");
    assert_eq!(warnings(&parse(GOOD).unwrap()), []);
}

fn host_text() -> impl Strategy<Value = String> {
    "[a-b]{0,3}\\*?"
}

proptest! {
    #[test]
    fn no_text_panics(text in "\\PC{0,200}") {
        let _ = parse(&text);
    }

    #[test]
    fn no_value_panics(key in "(name|owner|tier|hosts|selectors|lifetime|key|dns_names|capability)", value in "\\PC{0,40}") {
        let _ = parse(&agent(&[(&key, &format!("'{}'", value.replace('\'', "")))]));
        let _ = parse(&agent(&[(&key, &format!("['{}']", value.replace('\'', "")))]));
    }

    #[test]
    fn hosts_meet_where_some_host_matches_both(a in host_text(), b in host_text()) {
        if let (Ok(a), Ok(b)) = (a.parse::<HostPattern>(), b.parse::<HostPattern>()) {
            // Patterns have at most three letters: names of up to four tell any two apart.
            let mut names = (0..256).map(|n: usize| (0..4).map(|i| ["", "a", "b", "b"][n >> (2 * i) & 3]).collect::<String>());
            let meet = names.any(|n| n.parse().is_ok_and(|h: HostId| a.matches(&h) && b.matches(&h)));
            prop_assert_eq!(a.overlaps(&b), meet, "{} {}", a, b);
        }
    }
}
