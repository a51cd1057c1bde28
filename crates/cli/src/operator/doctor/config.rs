//! A daemon's configuration as far as it names files, devices and secrets. The daemon itself checks the
//! rest when it starts.

use std::path::{Path, PathBuf};

use toml::Value;

use super::{Report, paths};

/// Keys whose values would be secrets in the file.
const SECRETS: [&str; 5] = ["pin", "so_pin", "password", "join_token", "token"];

/// The TPM device where the configuration names none.
const TPM_DEVICE: &str = "/dev/tpmrm0";

pub(super) fn examine(scope: &'static str, path: &Path, report: &mut Report) {
    const NAME: &str = "configuration";
    if path.symlink_metadata().is_err_and(|error| error.kind() == std::io::ErrorKind::NotFound) {
        let remedy = format!("name it with --{}-config", if scope == "host" { "hostd" } else { "issuer" });
        return report.warn(scope, NAME, format!("{} is missing", path.display()), remedy);
    }
    if !paths::public_file(scope, NAME, path, report) {
        return;
    }
    let text = match std::fs::read_to_string(path) {
        Ok(text) => text,
        Err(error) => {
            let found = format!("{} cannot be read: {error}", path.display());
            return report.warn(scope, NAME, found, "run `hallmark doctor` as root");
        }
    };
    match toml::from_str::<Value>(&text) {
        Ok(config) => {
            entries(scope, "", &config, report);
            metrics(scope, &config, report);
            if scope == "host" {
                tpm(&config, report);
            }
        }
        Err(error) => {
            let found = format!("{} is no TOML: {}", path.display(), error.message());
            report.fail(scope, NAME, found, "correct it; the daemon says the line at its start");
        }
    }
}

fn entries(scope: &'static str, prefix: &str, value: &Value, report: &mut Report) {
    match value {
        Value::Table(table) => {
            for (key, value) in table {
                let name = if prefix.is_empty() { key.clone() } else { format!("{prefix}.{key}") };
                entry(scope, key, &name, value, report);
                entries(scope, &name, value, report);
            }
        }
        Value::Array(values) => values.iter().for_each(|value| entries(scope, prefix, value, report)),
        _ => {}
    }
}

fn entry(scope: &'static str, key: &str, name: &str, value: &Value, report: &mut Report) {
    let Value::String(text) = value else { return };
    let path = Path::new(text);
    if SECRETS.contains(&key) {
        let remedy = format!(
            "move it to a file with mode 0600 and write {key}_file = \"PATH\" instead; then change the secret"
        );
        report.fail(scope, name, "a secret in the configuration file", remedy);
    } else if key.ends_with("pin_file") || key.ends_with("token_file") || key.ends_with("key_file") {
        paths::secret_file(scope, name, path, report);
    } else if matches!(key, "module" | "infrastructure_root" | "ek_roots") && path.is_absolute() {
        paths::public_file(scope, name, path, report);
    }
}

/// Who can read the metrics: a port on loopback is open to every user of this machine, a socket to whom its mode
/// lets.
fn metrics(scope: &'static str, config: &Value, report: &mut Report) {
    let Some(socket) = config.get("metrics").and_then(|m| m.get("socket")).and_then(Value::as_str) else {
        return;
    };
    let unit = if scope == "host" { "hallmark-hostd" } else { "hallmark-issuer" };
    paths::socket(scope, "metrics socket", Path::new(socket), unit, report);
}

/// The TPM's device node, where the host proves itself by a TPM behind one.
fn tpm(config: &Value, report: &mut Report) {
    let Some(tpm) = config.get("tpm") else { return };
    let tcti = tpm.get("tcti").and_then(Value::as_str).unwrap_or("device");
    let device = match tcti.split_once(':') {
        Some(("device", path)) => PathBuf::from(path),
        None if tcti == "device" => PathBuf::from(TPM_DEVICE),
        _ => {
            let remedy = "on a machine of its own a host speaks to its TPM by device:/dev/tpmrm0";
            let word = tcti.split(':').next().unwrap_or(tcti);
            return match word {
                "swtpm" | "mssim" => report.warn(
                    "host",
                    "TPM device",
                    format!("a software TPM ({tcti})"),
                    "it proves no hardware: laboratories only",
                ),
                _ => report.warn("host", "TPM device", format!("reached by {tcti}"), remedy),
            };
        }
    };
    paths::device("host", &device, report);
}

#[cfg(test)]
mod tests {
    use super::super::Outcome;
    use super::*;

    fn examined(text: &str) -> Vec<(String, Outcome)> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("hostd.toml");
        std::fs::write(&path, text).unwrap();
        let mut report = Report { checks: Vec::new() };
        examine("host", &path, &mut report);
        report.checks.into_iter().map(|check| (check.name, check.result)).collect()
    }

    fn outcome(text: &str, name: &str) -> Option<Outcome> {
        examined(text).into_iter().rev().find(|(n, _)| n == name).map(|(_, outcome)| outcome)
    }

    #[test]
    fn secrets_do_not_belong_in_it() {
        assert_eq!(outcome("[pkcs11]\npin = \"1234\"", "pkcs11.pin"), Some(Outcome::Failure));
        assert_eq!(outcome("[pkcs11]\npin_file = \"/no/such\"", "pkcs11.pin_file"), Some(Outcome::Failure));
        assert_eq!(outcome("[pkcs11]\npin_credential = \"pin\"", "pkcs11.pin_credential"), None);
        assert_eq!(outcome("[[token]]\npin = \"1234\"", "token.pin"), Some(Outcome::Failure));
    }

    #[test]
    fn devices_and_software_tpms_are_told_apart() {
        assert_eq!(outcome("[tpm]\ntcti = \"swtpm:port=1\"", "TPM device"), Some(Outcome::Warning));
        assert_eq!(outcome("[tpm]\ntcti = \"device:/dev/null\"", "TPM device"), Some(Outcome::Failure));
        assert_eq!(outcome("host_id = \"a\"", "TPM device"), None);
    }

    #[test]
    fn a_metrics_socket_is_looked_at_and_a_port_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("m.sock");
        let text = format!("[metrics]\nsocket = {socket:?}");
        assert_eq!(outcome(&text, "metrics socket"), Some(Outcome::Failure), "it is not there");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        for (mode, expected) in [(0o666, Outcome::Failure), (0o660, Outcome::Ok)] {
            std::fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
            assert_eq!(outcome(&text, "metrics socket"), Some(expected));
        }
        assert_eq!(outcome("[metrics]\nlisten = \"127.0.0.1:9464\"", "metrics socket"), None);
    }

    #[test]
    fn a_file_that_is_no_toml_fails() {
        assert_eq!(outcome("[", "configuration"), Some(Outcome::Failure));
        assert_eq!(outcome("", "configuration"), Some(Outcome::Ok));
    }
}
