//! Operators' commands as processes, against a fake issuer.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;

use common::{FakeIssuer, code, hallmark, json, stderr, stdout};

const REGISTRATION: &str = r#"
[[agent]]
name = "mailer"
owner = "mail-team@example.org"
tier = "foundation"
hosts = ["web-01"]
selectors = ["unix:uid:1001"]
"#;

#[test]
fn every_answer_is_one_json_document_and_a_table_without_colours() {
    let issuer = FakeIssuer::start();
    for (args, field) in [
        (&["status"][..], "cas"),
        (&["host", "list"], "hosts"),
        (&["host", "show", "web-01"], "pcrs"),
        (&["host", "pcrs", "web-01"], "toml"),
        (&["agent", "list"], "agents"),
        (&["agent", "show", "mailer"], "instances"),
        (&["explain", "mailer", "--host", "web-01"], "tiers"),
        (&["records"], "records"),
        (&["bundle"], "entries"),
        (&["log", "key"], "key"),
        (&["ca", "list"], "cas"),
    ] {
        let output = issuer.run(&[args, &["--output", "json"]].concat());
        assert_eq!(code(&output), 0, "{args:?}: {}", stderr(&output));
        assert!(json(&output).get(field).is_some(), "{args:?}: {}", stdout(&output));
        assert!(output.stderr.is_empty(), "{args:?}: {}", stderr(&output));
        let table = issuer.run(args);
        assert_eq!(code(&table), 0);
        assert!(!stdout(&table).is_empty() && !stdout(&table).contains('\u{1b}'), "{}", stdout(&table));
    }
}

#[test]
fn orders_about_cas_reach_the_issuer_and_faults_come_back_whole() {
    let issuer = FakeIssuer::start();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    let block = "-----BEGIN CERTIFICATE-----\nZ29vZA==\n-----END CERTIFICATE-----\n";
    let (good, bad) = (file("good.pem", block), file("bad.der", "bad"));
    let two = file("two.pem", &block.repeat(2));
    for args in [
        &["ca", "list", "--all"][..],
        &["ca", "rotate"],
        &["ca", "rotate", "enterprise", "--root"],
        &["ca", "taint", "advanced", "--generation", "3", "--reason", "stolen"],
        &["ca", "taint", "infrastructure", "--root", "--reason", "stolen"],
        &["ca", "install", "enterprise", &good, "--root", &good],
    ] {
        assert_eq!(code(&issuer.run(args)), 0, "{args:?}: {}", stderr(&issuer.run(args)));
    }
    assert_eq!(
        issuer.asked().orders,
        [
            "list cas, all: true",
            "rotate \"\", root: false",
            "rotate \"enterprise\", root: true",
            "taint advanced 3, root: false: stolen",
            "taint infrastructure 0, root: true: stolen",
            "install enterprise 4 4",
        ]
    );
    let csr = issuer.run(&["ca", "csr", "enterprise"]);
    assert!(stdout(&csr).starts_with("-----BEGIN CERTIFICATE REQUEST-----"), "{}", stdout(&csr));
    let refused = issuer.run(&["ca", "install", "enterprise", &bad]);
    assert_eq!(code(&refused), 1);
    assert!(stderr(&refused).contains("2 faults") && stderr(&refused).contains("- policies"));
    assert_eq!(code(&issuer.run(&["ca", "install", "enterprise", &two])), 1, "which of the two is meant?");
    assert_eq!(code(&issuer.run(&["ca", "install", "enterprise", "/nonexistent"])), 1);
    assert_eq!(code(&issuer.run(&["ca", "rotate", "gold"])), 2);
    assert_eq!(code(&issuer.run(&["ca", "taint", "enterprise"])), 2, "a reason is demanded");
}

#[test]
fn colours_come_when_they_are_asked_for() {
    let issuer = FakeIssuer::start();
    assert!(stdout(&issuer.run(&["status", "--color", "always"])).contains("\u{1b}["));
    let plain = issuer.run(&["status", "-o", "json", "--color", "always"]);
    assert!(!stdout(&plain).contains('\u{1b}'), "JSON is never coloured");
}

#[test]
fn what_an_issuer_sends_cannot_command_the_terminal() {
    let issuer = FakeIssuer::start();
    let shown = stdout(&issuer.run(&["host", "show", "web-01"]));
    assert!(shown.contains("herring") && !shown.contains('\u{1b}'), "{shown}");
}

#[test]
fn status_says_what_is_not_for_production() {
    let issuer = FakeIssuer::start();
    let shown = stdout(&issuer.run(&["status"]));
    for warning in ["Lab trust domain", "in software (--dev)", "RFC 5612"] {
        assert!(shown.contains(warning), "{shown}");
    }
    let json = json(&issuer.run(&["status", "-o", "json"]));
    assert_eq!((json["lab"].as_bool(), json["hosts_connected"].as_u64()), (Some(true), Some(1)));
    assert!(json["started_at"].as_str().unwrap().ends_with('Z'));
}

#[test]
fn pcrs_come_as_the_configuration_takes_them() {
    let issuer = FakeIssuer::start();
    let text = stdout(&issuer.run(&["host", "pcrs", "web-01"]));
    let config: toml::Value = toml::from_str(&text).unwrap();
    let policy = &config["attestation"]["pcr_policy"]["web-01"];
    assert_eq!(policy["hosts"][0].as_str(), Some("web-01"));
    assert_eq!(policy["pcrs"]["7"][0].as_str(), Some("cd".repeat(32).as_str()));
    let none = issuer.run(&["host", "pcrs", "web-02"]);
    assert_eq!(code(&none), 1);
    assert!(stderr(&none).contains("no PCR values"));
}

#[test]
fn orders_reach_the_issuer_as_they_were_given() {
    let issuer = FakeIssuer::start();
    let disabled = issuer.run(&["host", "disable", "web-01", "--reason", "stolen"]);
    assert!(stdout(&disabled).contains("disabled; 2 instances ended"), "{}", stdout(&disabled));
    assert_eq!(code(&issuer.run(&["host", "disable", "web-01"])), 2, "a reason is demanded");
    assert_eq!(code(&issuer.run(&["host", "enable", "web-01"])), 0);
    let slip = issuer.run(&["host", "remove", "web-01"]);
    assert!(code(&slip) == 1 && stderr(&slip).contains("hallmark host remove web-01 --yes"));
    assert_eq!(code(&issuer.run(&["host", "remove", "web-01", "--yes"])), 0);
    let id = "1a".repeat(16);
    let ended = issuer.run(&["agent", "end", "mailer", "--host", "web-01", "--instance", &id]);
    assert!(stdout(&ended).contains(&format!("1 instance of mailer ended.\n  {id}")), "{}", stdout(&ended));
    assert_eq!(code(&issuer.run(&["agent", "end", "mailer", "--instance", "1a"])), 2);
    let wanted = [
        "disable web-01: stolen".to_owned(),
        "enable web-01".to_owned(),
        "remove web-01".to_owned(),
        format!("end mailer web-01 {id}"),
    ];
    assert_eq!(issuer.asked().orders, wanted);
}

#[test]
fn a_host_is_allowed_by_a_whole_digest_only() {
    let issuer = FakeIssuer::start();
    let digest = "AB".repeat(32);
    let output = issuer.run(&["host", "allow", "web-03", "--ek-sha256", &digest, "--note", "rack 7"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let asked = &issuer.asked().allowed[0];
    assert_eq!(
        (asked.host_id.as_str(), &asked.ek_sha256, asked.note.as_str()),
        ("web-03", &digest.to_lowercase(), "rack 7")
    );
    assert!(!asked.vouch_hardware, "nobody vouches by default");
    issuer.run(&["host", "allow", "web-03", "--ek-sha256", &digest, "--vouch-hardware"]);
    assert!(issuer.asked().allowed[1].vouch_hardware);
    let short = issuer.run(&["host", "allow", "web-03", "--ek-sha256", &digest[2..]]);
    assert_eq!(code(&short), 2);
    assert_eq!(code(&issuer.run(&["host", "allow", "Web 03", "--ek-sha256", &digest])), 2);
    assert_eq!(issuer.asked().allowed.len(), 2);
}

#[test]
fn a_join_token_stands_alone_on_standard_output() {
    let issuer = FakeIssuer::start();
    let output = issuer.run(&["join-token", "create", "web-02", "--ttl", "30m"]);
    assert_eq!(stdout(&output), "hjt-secret\n");
    assert!(stderr(&output).contains("foundation tier only"));
    assert_eq!(issuer.asked().tokens[0].ttl_seconds, 1_800);
    let json = json(&issuer.run(&["join-token", "create", "web-02", "-o", "json"]));
    assert_eq!(json["token"], "hjt-secret");
}

#[test]
fn registrations_are_checked_here_first() {
    let issuer = FakeIssuer::start();
    let dir = tempfile::tempdir().unwrap();
    let (good, bad) = (dir.path().join("good.toml"), dir.path().join("bad.toml"));
    fs::write(&good, REGISTRATION).unwrap();
    fs::write(&bad, REGISTRATION.replace("foundation", "gold")).unwrap();
    let refused = issuer.run(&["apply", bad.to_str().unwrap(), "-o", "json"]);
    assert_eq!(code(&refused), 1);
    let answer = json(&refused);
    assert_eq!(answer["applied"], false);
    assert!(answer["faults"][0]["file"].as_str().unwrap().ends_with("bad.toml"), "{answer}");
    assert!(issuer.asked().applied.is_empty(), "the issuer was not asked");

    // A directory is its *.toml files: here one is at fault, so nothing goes.
    assert_eq!(code(&issuer.run(&["apply", dir.path().to_str().unwrap()])), 1);
    fs::remove_file(&bad).unwrap();
    let applied = issuer.run(&["apply", dir.path().to_str().unwrap(), "--prune"]);
    assert_eq!(code(&applied), 0, "{}", stderr(&applied));
    assert!(stdout(&applied).contains("created") && stdout(&applied).contains("revision 5"));
    let dry = issuer.run(&["apply", good.to_str().unwrap(), "--dry-run", "-o", "json"]);
    assert_eq!(json(&dry)["applied"], false);
    let asked = issuer.asked().applied;
    assert_eq!((asked[0].prune, asked[0].dry_run, asked[1].dry_run), (true, false, true));
    assert_eq!(asked[0].files[0].toml, REGISTRATION);
}

#[test]
fn what_the_issuer_finds_wrong_is_shown_too() {
    let issuer = FakeIssuer::start();
    let mut child = hallmark(&["apply", "-"])
        .env("HALLMARK_ADMIN_SOCKET", issuer.socket())
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let text = REGISTRATION.replace("mailer", "refuse-me");
    std::io::Write::write_all(&mut child.stdin.take().unwrap(), text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(code(&output), 1);
    assert!(stdout(&output).contains("the issuer says no"), "{}", stdout(&output));
    assert_eq!(issuer.asked().applied[0].files[0].name, "standard input");
}

#[test]
fn explain_fails_where_the_registered_tier_is_out_of_reach() {
    let issuer = FakeIssuer::start();
    let output = issuer.run(&["explain", "mailer", "--host", "web-09"]);
    assert_eq!(code(&output), 1);
    let shown = stdout(&output);
    assert!(shown.contains("not reachable") && shown.contains("tedious: until the next quote"), "{shown}");
}

#[test]
fn records_are_asked_for_as_they_are_wanted() {
    let issuer = FakeIssuer::start();
    let output = issuer.run(&[
        "records", "--agent", "mailer", "--host", "web-01", "--after", "7", "--limit", "9", "-o", "json",
    ]);
    assert_eq!(json(&output)["records"][0]["body"]["unmet"][0], "quote-too-old");
    let asked = &issuer.asked().records[0];
    assert_eq!(
        (asked.agent.as_str(), asked.host_id.as_str(), asked.after, asked.limit),
        ("mailer", "web-01", 7, 9)
    );
    assert!(stdout(&issuer.run(&["records"])).contains("agent=mailer"));
}

#[test]
fn a_proof_is_checked_and_not_believed() {
    let issuer = FakeIssuer::start();
    let output = issuer.run(&["log", "prove", "--serial", "51d67fc56306231cac860aeafb8f93f3"]);
    assert_eq!(code(&output), 1);
    assert!(stderr(&output).contains("the issuer's proof does not hold"), "{}", stderr(&output));
    assert_eq!(code(&issuer.run(&["log", "prove"])), 2);
}

#[test]
fn a_kept_proof_shows_a_certificate_only_by_a_record_that_gave_it() {
    use hallmark_core::log::{
        Checkpoint, LogKey, LogVerifier, SoftwareLogKey, leaf_hash, sign_checkpoint, write_proof,
    };
    use hallmark_core::tier::Hierarchy;
    let issuer = FakeIssuer::start();
    let issued = issuer.domain.identity(Hierarchy::Infrastructure, "host/web-01").unwrap();
    let other = issuer.domain.identity(Hierarchy::Infrastructure, "host/web-02").unwrap();
    let der = |identity: &hallmark_kit::pki::Identity| identity.chain[0].to_vec();
    let dir = tempfile::tempdir().unwrap();
    let file = |name: &str, bytes: &[u8]| {
        let path = dir.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.display().to_string()
    };
    let own = file("own.pem", hallmark_kit::pki::pem(&der(&issued)).as_bytes());
    let another = file("another.pem", hallmark_kit::pki::pem(&der(&other)).as_bytes());
    let key = SoftwareLogKey::from_seed(&[7; 32]).unwrap();
    let verifier = LogVerifier::new("log.example.org/1".parse().unwrap(), key.public());
    let check = |outcome: &str, certificate: &str| {
        let svid = hallmark_core::x509::UnverifiedSvid::parse(&der(&issued)).unwrap();
        let sha256 = hex::encode(hallmark_core::x509::fingerprint(&der(&issued)));
        let record = format!(
            r#"{{"v":1,"outcome":"{outcome}","serial":"{}","certificate_sha256":"{sha256}"}}"#,
            svid.serial
        );
        let root = leaf_hash(record.as_bytes());
        let signed = sign_checkpoint(&verifier, &key, &Checkpoint { size: 1, root }).unwrap();
        file("record.json", record.as_bytes());
        file("record.tlog-proof", &write_proof(0, &[], &signed));
        let (dir, verifier) = (dir.path().display().to_string(), verifier.to_string());
        hallmark(&["log", "check", &dir, "--key", &verifier, "--certificate", certificate]).output().unwrap()
    };
    assert_eq!(code(&check("attested", &own)), 0, "{}", stderr(&check("attested", &own)));
    assert!(stderr(&check("refused", &own)).contains("it says \"refused\""));
    assert!(stderr(&check("attested", &another)).contains("it is not that of"));
}

#[test]
fn bundles_are_the_way_to_trust() {
    let issuer = FakeIssuer::start();
    let count = |args: &[&str]| stdout(&issuer.run(args)).matches("BEGIN CERTIFICATE").count();
    assert_eq!(count(&["bundle"]), 3, "infrastructure is not in it");
    assert_eq!(count(&["bundle", "--at-least", "enterprise"]), 2);
    assert_eq!(count(&["bundle", "--tier", "foundation"]), 1);
    assert!(stdout(&issuer.run(&["bundle", "--infrastructure"])).contains("# example.org, infrastructure"));
    assert_eq!(code(&issuer.run(&["bundle", "--infrastructure", "--tier", "foundation"])), 2);
    let dir = tempfile::tempdir().unwrap();
    let target = dir.path().join("bundle");
    assert_eq!(code(&issuer.run(&["bundle", "--dir", target.to_str().unwrap()])), 0);
    let blocks = |name| fs::read_to_string(target.join(name)).unwrap().matches("BEGIN").count();
    assert_eq!(
        (blocks("bundle.pem"), blocks("at-least-enterprise.pem"), blocks("tier-advanced.pem")),
        (3, 2, 1)
    );
}

#[test]
fn refusals_carry_their_exit_code_and_what_to_do() {
    let issuer = FakeIssuer::start();
    let missing = issuer.run(&["host", "show", "nobody", "-o", "json"]);
    assert_eq!(code(&missing), 1);
    let error: serde_json::Value = serde_json::from_str(&stderr(&missing)).unwrap();
    assert_eq!(error["error"]["code"], "not-found");
    let denied = issuer.run(&["agent", "show", "secret"]);
    assert!(
        stderr(&denied).contains("uid 1001 is no operator") && stderr(&denied).contains("run this as root")
    );
    assert_eq!(code(&hallmark(&["status"]).output().unwrap()), 3);
    let away = hallmark(&["status", "-o", "json"]).output().unwrap();
    let error: serde_json::Value = serde_json::from_str(&stderr(&away)).unwrap();
    assert_eq!(error["error"]["code"], "unreachable");
    assert!(error["error"]["remedy"].as_str().unwrap().contains("systemctl status hallmark-issuer"));
    assert_eq!(code(&hallmark(&["no-such-thing"]).output().unwrap()), 2);
    assert_eq!(code(&hallmark(&[]).output().unwrap()), 2);
}

#[test]
fn help_and_completions_work_without_anybody() {
    for args in [
        &["--help"][..],
        &["apply", "--help"],
        &["exec", "--help"],
        &["completions", "bash"],
        &["completions", "fish"],
    ] {
        let output = hallmark(args).output().unwrap();
        assert_eq!(code(&output), 0);
        assert!(stdout(&output).len() > 300, "{args:?}");
    }
    let help = stdout(&hallmark(&["--help"]).output().unwrap());
    assert!(help.contains("Exit codes:") && help.contains("NO_COLOR"), "{help}");
    assert!(stdout(&hallmark(&["fetch", "--help"]).output().unwrap()).contains("Examples:"));
}

#[test]
fn doctor_merges_both_eyes() {
    let issuer = FakeIssuer::start();
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("issuer.toml");
    fs::write(&config, "[ca]\npin = \"1234\"\n").unwrap();
    let config = config.to_str().unwrap();
    let none = ["--hostd-config", "/nonexistent"];
    let output = issuer.run(&[&["doctor", "--issuer-config", config, "-o", "json"], &none[..]].concat());
    assert_eq!(code(&output), 1, "a PIN in the configuration fails");
    let report = json(&output);
    let result = |name: &str| {
        let checks = report["checks"].as_array().unwrap();
        checks.iter().find(|c| c["name"] == name).unwrap_or_else(|| panic!("{name}: {report}"))["result"]
            .clone()
    };
    assert_eq!(
        (result("ca.pin"), result("CA keys"), result("issuer answers")),
        ("failure".into(), "warning".into(), "ok".into())
    );

    fs::write(config, "").unwrap();
    let args = [&["doctor", "--issuer-config", config], &none[..]].concat();
    let output = issuer.run(&args);
    assert_eq!(code(&output), 0, "{}", stdout(&output));
    assert!(stdout(&output).contains("CA keys (issuer): mend it"), "{}", stdout(&output));
    assert_eq!(code(&issuer.run(&[&args[..], &["--strict"]].concat())), 1);
    common::set_mode(issuer.socket(), 0o666);
    assert_eq!(code(&issuer.run(&args)), 1, "an admin socket open to all fails");
}

#[test]
fn doctor_finds_nothing_where_nothing_is() {
    let args = ["doctor", "--hostd-config", "/nonexistent/h", "--issuer-config", "/nonexistent/i"];
    let output = hallmark(&args).output().unwrap();
    assert_eq!(code(&output), 3);
    assert!(stderr(&output).contains("nothing of Hallmark"));
}
