//! The example configuration is sound, and agrees with the units that run on it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::path::{Path, PathBuf};

use hallmark_issuer::config::{CaBackend, Config, Limits, Roots, Rotation, SecretSource, StoreConfig};
use hallmark_kit::softhsm::SoftHsm;
use hallmark_telemetry::Endpoint;

fn deploy(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../deploy").join(file)
}

#[test]
fn example_agrees_with_the_units() {
    let config = Config::load(&deploy("example/issuer.toml")).unwrap();
    let CaBackend::Pkcs11(pkcs11) = &config.ca else { panic!("{:?}", config.ca) };
    let SecretSource::Credential(pin) = &pkcs11.pin else { panic!("{:?}", pkcs11.pin) };
    let state = config.data_dir.strip_prefix("/var/lib").unwrap().to_str().unwrap();
    let run = config.admin.socket.parent().unwrap().to_str().unwrap();

    for unit in ["hallmark-issuer.service", "hallmark-issuer-init.service"] {
        let text = std::fs::read_to_string(deploy("systemd").join(unit)).unwrap();
        let has = |line: String| assert!(text.lines().any(|l| l == line), "{unit} lacks {line}");
        has(format!("StateDirectory={state}"));
        has(format!("LoadCredential={pin}:hallmark-issuer.{pin}"));
        if unit == "hallmark-issuer.service" {
            has(format!("SocketBindAllow=tcp:{}", config.listen.port()));
            has(format!("ReadWritePaths={run}"));
        }
    }
    // Changing the socket's group takes a system call that the unit denies; its directory gives it instead.
    assert_eq!(config.admin.group, None);
    let tmpfiles = std::fs::read_to_string(deploy("tmpfiles.d/hallmark-issuer.conf")).unwrap();
    let [group] = config.admin.groups.as_slice() else { panic!("{:?}", config.admin.groups) };
    assert!(tmpfiles.contains(&format!("d {run} 2750 hallmark-issuer {group} -")));
    let roots = config.attestation.ek_roots.unwrap();
    assert!(tmpfiles.contains(&format!("d {} ", roots.display())));
}

/// The example shows every limit, and what it says of defaults is true.
#[test]
fn example_shows_the_default_limits() {
    let config = Config::load(&deploy("example/issuer.toml")).unwrap();
    assert_eq!(config.limits, Limits::default());
    let text = std::fs::read_to_string(deploy("example/issuer.toml")).unwrap();
    let shown: Vec<_> = text
        .lines()
        .skip_while(|line| *line != "[limits]")
        .skip(1)
        .take_while(|line| !line.trim_start_matches("# ").starts_with('['))
        .filter_map(|line| line.split_once(" = ").map(|(key, _)| key.to_owned()))
        .collect();
    let debug = format!("{:?}", config.limits);
    let all: Vec<_> =
        debug.trim_start_matches("Limits {").split(", ").filter_map(|f| f.split_once(": ")).collect();
    assert_eq!(shown, all.iter().map(|(key, _)| key.trim()).collect::<Vec<_>>());
}

/// What the comments offer for metrics is sound, and the drop-in lets it be bound.
#[test]
fn metrics_of_the_example_are_bound_by_the_drop_in() {
    let text = std::fs::read_to_string(deploy("example/issuer.toml")).unwrap();
    let on = |key: &str| {
        text.replace("# [metrics]", "[metrics]").replace(&format!("# {key} ="), &format!("{key} ="))
    };
    let config = Config::parse(Path::new("issuer.toml"), &on("listen")).unwrap();
    let Some(Endpoint::Tcp(address)) = config.metrics else { panic!("{:?}", config.metrics) };
    let drop_in = std::fs::read_to_string(deploy("example/metrics-port.conf")).unwrap();
    assert!(drop_in.lines().any(|line| line == format!("SocketBindAllow=tcp:{}", address.port())));
    let prometheus = std::fs::read_to_string(deploy("prometheus/prometheus.yml")).unwrap();
    assert!(prometheus.contains(&format!("\"{address}\"")));
    let config = Config::parse(Path::new("issuer.toml"), &on("socket")).unwrap();
    assert!(matches!(config.metrics, Some(Endpoint::Unix { mode: 0o660, .. })));
    assert!(Config::load(&deploy("example/issuer.toml")).unwrap().metrics.is_none(), "off by default");
}

/// What the comments offer is sound, and what they say of rotation's defaults is true.
#[test]
fn example_shows_the_default_rotation_and_roots_in_another_token() {
    let file = deploy("example/issuer.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    let shown = Config::parse(&file, &text).unwrap();
    let table = text.find("\n[ca.rotation]").unwrap();
    let without = [&text[..table], &text[table..][text[table..].find("\n[admin]").unwrap()..]].concat();
    let default = Config::parse(&file, &without).unwrap();
    assert_eq!(default.rotation.issuing_after, Some(default.issuing_lifetime / 2));
    assert_eq!(
        Rotation { issuing_after: default.rotation.issuing_after, ..shown.rotation },
        default.rotation
    );
    assert_eq!(shown.roots, Roots::Here);
    let other = text
        .replace("root = \"token\"", "root = \"other-token\"")
        .replace("# [ca.root_token]", "[ca.root_token]")
        .replace("# module =", "module =")
        .replace("# token_label =", "token_label =")
        .replace("# pin_credential =", "pin_credential =");
    let Roots::Token(token) = Config::parse(&file, &other).unwrap().roots else { panic!("no other token") };
    assert_eq!(token.pin, SecretSource::Credential("root-pin".to_owned()));
    for unit in ["hallmark-issuer.service", "hallmark-issuer-init.service"] {
        let text = std::fs::read_to_string(deploy("systemd").join(unit)).unwrap();
        assert!(text.lines().any(|l| l == "LoadCredential=root-pin:hallmark-issuer.root-pin"), "{unit}");
    }
}

/// What the comments offer of witnesses is sound; without it there are none.
#[test]
fn example_shows_witnesses() {
    let file = deploy("example/issuer.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    assert!(Config::parse(&file, &text).unwrap().witness.is_none());
    let (before, rest) = text.split_once("# [witness]\n").unwrap();
    let (offered, after) = rest.split_once("\n\n").unwrap();
    let offered: String =
        offered.lines().map(|line| format!("{}\n", line.trim_start_matches("# "))).collect();
    let shown = Config::parse(&file, &format!("{before}[witness]\n{offered}\n{after}")).unwrap();
    let witness = shown.witness.unwrap();
    assert_eq!((witness.at.len(), witness.quorum.needed(), witness.required), (3, 2, false));
    assert!(witness.at[1].ca.is_some());
}

/// The unit does not start a daemon again that ended so: three attempts would lock most tokens.
#[test]
fn a_refused_pin_has_an_exit_status_of_its_own() {
    let unit = std::fs::read_to_string(deploy("systemd/hallmark-issuer.service")).unwrap();
    let status = unit.lines().find_map(|l| l.strip_prefix("RestartPreventExitStatus=")).unwrap();

    let hsm = SoftHsm::new().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let (config, pin) = (dir.path().join("issuer.toml"), dir.path().join("pin"));
    std::fs::write(&pin, "0000-wrong\n").unwrap();
    let text = std::fs::read_to_string(deploy("example/issuer.toml"))
        .unwrap()
        .replace("/usr/lib/softhsm/libsofthsm2.so", hsm.module_path().to_str().unwrap())
        .replace("\"hallmark-ca\"", &format!("{:?}", hsm.label()))
        .replace("pin_credential = \"pkcs11-pin\"", &format!("pin_file = {pin:?}"))
        .replace("/var/lib/hallmark-issuer", dir.path().to_str().unwrap());
    std::fs::write(&config, text).unwrap();
    let init = || {
        let mut command = hsm.command(env!("CARGO_BIN_EXE_hallmark-issuer"));
        command.arg("init").arg("--config").arg(&config).output().unwrap()
    };
    let refused = init();
    let said = String::from_utf8_lossy(&refused.stderr);
    assert_eq!(refused.status.code().unwrap().to_string(), status, "{said}");
    assert!(said.contains("refused the PIN") && !said.contains("0000-wrong"), "{said}");

    std::fs::copy(hsm.pin_file(), &pin).unwrap();
    let made = init();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

/// What the comments offer of a shared store is sound, and the units pass its password on.
#[test]
fn example_offers_a_shared_store() {
    let file = deploy("example/issuer.toml");
    let text = std::fs::read_to_string(&file).unwrap();
    assert_eq!(Config::parse(&file, &text).unwrap().store, StoreConfig::Sqlite);
    let (before, table) = text.split_once("# [store]\n").unwrap();
    let (table, after) = table.split_once("\n\n").unwrap();
    let on = format!("{before}[store]\n{}\n\n{after}", table.replace("# ", ""));
    let StoreConfig::Postgres(store) = Config::parse(&file, &on).unwrap().store else { panic!("not shared") };
    assert_eq!(store.place(), "postgres://hallmark@db.example.org:5432/hallmark");
    assert_eq!(store.password, Some(SecretSource::Credential("store-password".to_owned())));
    for unit in ["hallmark-issuer.service", "hallmark-issuer-init.service"] {
        let text = std::fs::read_to_string(deploy("systemd").join(unit)).unwrap();
        let wanted = "LoadCredential=store-password:hallmark-issuer.store-password";
        assert!(text.lines().any(|line| line == wanted), "{unit}");
    }
}
