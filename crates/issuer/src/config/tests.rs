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
