use super::*;

const GOOD: &str = r#"
trust_domain = "example.org"
issuer_id = "issuer-1"
listen = "127.0.0.1:8443"
data_dir = "/var/lib/hallmark-issuer"
[ca]
backend = "software"
"#;

fn faults(text: &str) -> Vec<String> {
    Config::parse(Path::new("t.toml"), text).unwrap_err().faults.into_iter().map(|f| f.key).collect()
}

#[test]
fn the_smallest_file_is_enough() {
    let config = Config::parse(Path::new("t.toml"), GOOD).unwrap();
    assert_eq!(config.attestation.pcrs.to_string(), "0,1,2,3,4,5,6,7");
    assert_eq!(config.attestation.enrolment, Enrolment::AllowList);
    assert_eq!(config.attestation.max_age, Duration::from_secs(300));
}

#[test]
fn all_faults_at_once() {
    let bad = GOOD.replace("example.org", "Example.org").replace("127.0.0.1:8443", "8443")
        + "[attestation]\nmax_age = \"9h\"\npcrs = [24]\n[admin]\nmode = \"0666\"\n[crl]\nurl = \"https://x/\"\n";
    assert_eq!(
        faults(&bad),
        ["trust_domain", "listen", "admin.mode", "attestation.pcrs", "attestation.max_age", "crl.url"]
    );
}

#[test]
fn unknown_keys_are_faults() {
    let error = Config::parse(Path::new("t.toml"), &format!("{GOOD}\nbackendd = 1\n")).unwrap_err();
    assert!(error.to_string().contains("backendd"), "{error}");
}

#[test]
fn a_policy_on_a_pcr_that_no_quote_covers_is_a_fault() {
    let bad = format!(
        "{GOOD}\n[attestation.pcr_policy.p]\nhosts = [\"*\"]\n[attestation.pcr_policy.p.pcrs]\n11 = [\"{}\"]\n",
        "00".repeat(32)
    );
    assert_eq!(faults(&bad), ["attestation.pcr_policy.p.pcrs.11"]);
}

#[test]
fn limits_follow_from_those_given_and_each_fault_names_its_key() {
    let limits = |text: &str| Config::parse(Path::new("t.toml"), &format!("{GOOD}\n[limits]\n{text}"));
    let small = limits("max_connections = 8\nmax_attestations = 4\n").unwrap().limits;
    assert_eq!((small.max_strangers, small.connections_per_address), (2, 2));
    assert_eq!((small.reserved_attestations, small.attestations_per_address), (1, 3));
    for (key, bad) in [
        ("max_connections", "1"),
        ("max_strangers", "0"),
        ("max_strangers", "4096"),
        ("connections_per_address", "1025"),
        ("connections_per_host", "0"),
        ("max_attestations", "1"),
        ("reserved_attestations", "0"),
        ("reserved_attestations", "64"),
        ("attestations_per_address", "49"),
        ("attestations_per_minute", "0"),
        ("address_attestations_per_minute", "1201"),
        ("max_stranger_bytes", "1000"),
        ("attestation_timeout", "\"1s\""),
        ("handshake_timeout", "\"0s\""),
        ("stranger_idle", "\"never\""),
        ("request_timeout", "\"1h\""),
    ] {
        let error = limits(&format!("{key} = {bad}\n")).unwrap_err();
        let keys: Vec<_> = error.faults.iter().map(|f| f.key.as_str()).collect();
        assert_eq!(keys, [format!("limits.{key}")], "{key} = {bad}: {error}");
    }
}

#[test]
fn metrics_are_off_and_then_for_this_machine_alone() {
    assert_eq!(Config::parse(Path::new("t.toml"), GOOD).unwrap().metrics, None);
    let on = format!("{GOOD}\n[metrics]\nlisten = \"[::1]:9464\"\n");
    let metrics = Config::parse(Path::new("t.toml"), &on).unwrap().metrics;
    assert_eq!(metrics, Some(Endpoint::Tcp("[::1]:9464".parse().unwrap())));
    assert_eq!(faults(&on.replace("[::1]", "192.0.2.7")), ["metrics.listen"]);
    assert_eq!(faults(&format!("{GOOD}\n[metrics]\nsocket = \"/m\"\nmode = \"0666\"\n")), ["metrics.mode"]);
}
