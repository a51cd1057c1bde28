//! The example configuration is sound, and agrees with the unit that runs on it.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::path::{Path, PathBuf};

use hallmark_hostd::config::{Config, Proof, SecretSource};
use hallmark_telemetry::Endpoint;

fn deploy(file: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../deploy").join(file)
}

#[test]
fn example_agrees_with_the_unit() {
    let file = deploy("example/hostd.toml");
    let config = Config::load(&file).unwrap();
    let unit = std::fs::read_to_string(deploy("systemd/hallmark-hostd.service")).unwrap();
    let has = |line: &str| assert!(unit.lines().any(|l| l == line), "the unit lacks {line}");
    let Proof::Tpm { tcti, .. } = &config.proof else { panic!("{:?}", config.proof) };
    has(&format!("DeviceAllow={} rw", tcti.strip_prefix("device:").unwrap()));
    let run = config.socket.path.parent().unwrap().strip_prefix("/run").unwrap();
    has(&format!("RuntimeDirectory={}", run.display()));
    let state = config.root_cache.as_ref().unwrap().parent().unwrap().strip_prefix("/var/lib").unwrap();
    has(&format!("StateDirectory={}", state.display()));
    // Changing a group takes a system call that the unit denies; Group= gives it instead.
    assert_eq!(config.socket.group, None);
    has("Group=hallmark-agents");

    // What the comments offer instead is sound too.
    let text = std::fs::read_to_string(&file).unwrap();
    let join = text
        .replacen("\n[issuer]", "\njoin_token_credential = \"join-token\"\n[issuer]", 1)
        .replacen("\n[tpm]\ntcti = \"device:/dev/tpmrm0\"\n", "\n", 1)
        .replace("# [pkcs11]", "[pkcs11]")
        .replace("# module =", "module =")
        .replace("# token_label =", "token_label =")
        .replace("# pin_credential =", "pin_credential =");
    let config = Config::parse(Path::new("hostd.toml"), &join).unwrap();
    let credentials = [config.proof, Proof::JoinToken(config.pkcs11.unwrap().pin)].map(|proof| match proof {
        Proof::JoinToken(SecretSource::Credential(name)) => name,
        other => panic!("{other:?}"),
    });
    for name in credentials {
        has(&format!("LoadCredential={name}:hallmark-hostd.{name}"));
    }
}

#[test]
fn metrics_of_the_example_are_bound_by_the_drop_in() {
    let text = std::fs::read_to_string(deploy("example/hostd.toml")).unwrap();
    let text = text.replace("# [metrics]", "[metrics]").replace("# listen =", "listen =");
    let config = Config::parse(Path::new("hostd.toml"), &text).unwrap();
    let Some(Endpoint::Tcp(address)) = config.metrics else { panic!("{:?}", config.metrics) };
    let drop_in = std::fs::read_to_string(deploy("example/metrics-port.conf")).unwrap();
    assert!(drop_in.lines().any(|line| line == format!("SocketBindAllow=tcp:{}", address.port())));
    let prometheus = std::fs::read_to_string(deploy("prometheus/prometheus.yml")).unwrap();
    assert!(prometheus.contains(&format!("\"{address}\"")));
}
