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

const TOKEN: &str = r#"
trust_domain = "example.org"
issuer_id = "issuer-1"
listen = "127.0.0.1:8443"
data_dir = "/var/lib/hallmark-issuer"
[ca]
backend = "pkcs11"
[ca.pkcs11]
module = "/usr/lib/softhsm/libsofthsm2.so"
token_label = "hallmark"
pin_file = "/etc/hallmark/pin"
"#;

#[test]
fn a_database_elsewhere_must_prove_which_one_it_is() {
    let at = |url: &str| {
        let text = format!("{TOKEN}\n[store]\nbackend = \"postgres\"\nurl = \"{url}\"\n");
        Config::parse(Path::new("t.toml"), &text).map(|config| match config.store {
            StoreConfig::Postgres(postgres) => {
                (postgres.place(), format!("{:?}", postgres.options.get_ssl_mode()))
            }
            StoreConfig::Sqlite => panic!("not PostgreSQL"),
        })
    };
    let there = at("postgres://hallmark@db.example.org/hallmark").unwrap();
    assert_eq!(
        there,
        ("postgres://hallmark@db.example.org:5432/hallmark".to_owned(), "VerifyFull".to_owned())
    );
    let here = at("postgres://hallmark@localhost/hallmark?host=/run/postgresql").unwrap();
    assert_eq!(here.0, "postgres://hallmark@/run/postgresql/hallmark");
    assert!(
        at("postgres://hallmark@db.example.org/hallmark?sslmode=verify-full&sslrootcert=/etc/ca.pem").is_ok()
    );
    for (url, word) in [
        ("postgres://hallmark@db.example.org/hallmark?sslmode=require", "verify-full"),
        ("postgres://hallmark@db.example.org/hallmark?sslmode=disable", "verify-full"),
        ("postgres://hallmark:hunter2@db.example.org/hallmark", "password"),
        ("postgres://db.example.org/hallmark", "no user"),
        ("postgres://hallmark@db.example.org", "no database"),
        ("mysql://hallmark@db.example.org/hallmark", "postgres://USER@HOST"),
    ] {
        let error = at(url).unwrap_err().to_string();
        assert!(error.contains("store.url") && error.contains(word), "{url}: {error}");
        assert!(!error.contains("hunter2"), "{error}");
    }
}

#[test]
fn what_does_not_go_with_a_store_is_a_fault() {
    let url = "url = \"postgres://h@localhost/h\"\n";
    assert_eq!(faults(&format!("{GOOD}\n[store]\nbackend = \"postgres\"\n{url}")), ["store.backend"]);
    assert_eq!(faults(&format!("{TOKEN}\n[store]\n{url}")), ["store"]);
    assert_eq!(faults(&format!("{TOKEN}\n[store]\nbackend = \"oracle\"\n")), ["store.backend"]);
    assert_eq!(faults(&format!("{TOKEN}\n[store]\nbackend = \"postgres\"\n")), ["store.url"]);
    let long = TOKEN.replace("issuer-1", &"i".repeat(57));
    assert_eq!(faults(&format!("{long}\n[store]\nbackend = \"postgres\"\n{url}")), ["issuer_id"]);
    let two = "password_file = \"/a\"\npassword_credential = \"b\"\n";
    assert_eq!(faults(&format!("{TOKEN}\n[store]\nbackend = \"postgres\"\n{url}{two}")), ["store"]);
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

#[test]
fn rotation_has_defaults_and_each_fault_names_its_key() {
    let config = Config::parse(Path::new("t.toml"), GOOD).unwrap();
    assert_eq!(config.roots, Roots::Here);
    assert_eq!(config.rotation.issuing_after, Some(config.issuing_lifetime / 2));
    assert_eq!(config.rotation.root_after, None);
    let never =
        Config::parse(Path::new("t.toml"), &format!("{GOOD}[ca.rotation]\nissuing_after = \"never\"\n"));
    assert_eq!(never.unwrap().rotation.issuing_after, None);
    for (key, bad) in [
        ("issuing_after", "\"365d\""),
        ("issuing_after", "\"soon\""),
        ("root_after", "\"1s\""),
        ("overlap", "\"0s\""),
        ("taint_grace", "\"2d\""),
        ("renewals_per_second", "0"),
    ] {
        assert_eq!(faults(&format!("{GOOD}[ca.rotation]\n{key} = {bad}\n")), [format!("ca.rotation.{key}")]);
    }
    let pkcs11 = "module = \"/m\"\ntoken_label = \"t\"\npin_file = \"/p\"\n";
    let good = GOOD.replace("\"software\"\n", "\"pkcs11\"\nROOT\n") + "[ca.pkcs11]\n" + pkcs11;
    let with = |root: &str, more: &str| good.replace("ROOT", root) + more;
    let token = format!("[ca.root_token]\n{pkcs11}");
    let roots = |text: &str| Config::parse(Path::new("t.toml"), text).unwrap().roots;
    assert_eq!(roots(&with("root = \"offline\"", "")), Roots::Offline);
    assert!(matches!(roots(&with("root = \"other-token\"", &token)), Roots::Token(_)));
    assert_eq!(faults(&with("root = \"other-token\"", "")), ["ca.root_token"]);
    assert_eq!(faults(&with("root = \"offline\"", &token)), ["ca.root_token"]);
    assert_eq!(faults(&with("", &token)), ["ca.root_token"]);
    assert_eq!(faults(&GOOD.replace("\"software\"\n", "\"software\"\nroot = \"offline\"\n")), ["ca.root"]);
}

#[test]
fn witnesses_are_named_and_each_fault_names_its_key() {
    let with = |text: &str| Config::parse(Path::new("t.toml"), &format!("{GOOD}\n{text}"));
    assert!(with("").unwrap().witness.is_none());
    let key = {
        use hallmark_core::log::{LogKey, SoftwareLogKey, WitnessVerifier};
        let key = SoftwareLogKey::from_seed(&[1; 32]).unwrap();
        WitnessVerifier::new("witness.example.org/w1".parse().unwrap(), key.public()).to_string()
    };
    let at = |url: &str, key: &str| format!("[[witness.at]]\nurl = \"{url}\"\nkey = \"{key}\"\n");
    let good = at("https://witness.example.org/", &key);
    let witness = with(&format!("[witness]\nquorum = 1\n{good}")).unwrap().witness.unwrap();
    assert_eq!(
        (witness.required, witness.timeout, witness.quorum.needed()),
        (false, Duration::from_secs(5), 1)
    );
    assert!(with(&format!("[witness]\nquorum = 1\n{}", at("http://127.0.0.1:8080/w", &key))).is_ok());
    let log = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";
    for (key, text) in [
        ("witness.at", "[witness]\nquorum = 1\n".to_owned()),
        ("witness.at", "[witness]\nrequired = true\n".to_owned()),
        ("witness.quorum", good.clone()),
        ("witness.quorum", format!("[witness]\nquorum = 0\n{good}")),
        ("witness.quorum", format!("[witness]\nquorum = 2\n{good}")),
        ("witness.quorum", format!("[witness]\nquorum = 1\n{good}{good}")),
        ("witness.timeout", format!("[witness]\nquorum = 1\ntimeout = \"2m\"\n{good}")),
        ("witness.at[0].key", format!("[witness]\nquorum = 1\n{}", at("https://w.example.org", log))),
        ("witness.at[0].url", format!("[witness]\nquorum = 1\n{}", at("http://w.example.org", &key))),
        ("witness.at[0].url", format!("[witness]\nquorum = 1\n{}", at("https://a@w.example.org", &key))),
        ("witness.at[0].url", format!("[witness]\nquorum = 1\n{}", at("w.example.org", &key))),
    ] {
        let error = with(&text).unwrap_err();
        assert!(error.faults.iter().any(|fault| fault.key == key), "{text}: {error}");
    }
    assert!(with("[witness]\nquorums = 1\n").is_err());
}
