//! Modes and owners of what lies in the file system.

use std::fs::Metadata;
use std::io::ErrorKind;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use super::Report;

const OTHERS: u32 = 0o007;
const WRITE_BEYOND_OWNER: u32 = 0o022;

/// A daemon's socket: a socket, closed to others, in a directory that others cannot change.
pub(super) fn socket(scope: &'static str, name: &str, path: &Path, unit: &str, report: &mut Report) {
    let found = match path.symlink_metadata() {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return report.fail(
                scope,
                name,
                format!("{} is missing", path.display()),
                format!("systemctl start {unit}"),
            );
        }
        Err(error) => return unseen(scope, name, path, &error, report),
    };
    let shown = describe(path, &found);
    if !found.file_type().is_socket() {
        let remedy = format!("remove it and restart {unit}");
        return report.fail(scope, name, format!("{shown} is no socket"), remedy);
    }
    if found.mode() & OTHERS != 0 {
        let remedy = format!("chmod o= {}, and set mode 0660 in the configuration of {unit}", path.display());
        return report.fail(scope, name, format!("{shown}: open to every user"), remedy);
    }
    report.ok(scope, name, shown);
    if let Some(dir) = path.parent() {
        directory(scope, &format!("{name}'s directory"), dir, report);
    }
}

/// A directory whose entries only its owner can replace.
fn directory(scope: &'static str, name: &str, path: &Path, report: &mut Report) {
    match path.metadata() {
        // In a sticky directory others cannot replace what is not theirs.
        Ok(found) if found.mode() & WRITE_BEYOND_OWNER != 0 && found.mode() & 0o1000 == 0 => report.fail(
            scope,
            name,
            format!("{}: others may put something else in its place", describe(path, &found)),
            format!("chmod go-w {}", path.display()),
        ),
        Ok(found) => report.ok(scope, name, describe(path, &found)),
        Err(error) => unseen(scope, name, path, &error, report),
    }
}

/// A file that others may read and only its owner may change.
pub(super) fn public_file(scope: &'static str, name: &str, path: &Path, report: &mut Report) -> bool {
    match path.metadata() {
        Ok(found) if found.mode() & WRITE_BEYOND_OWNER != 0 => {
            let remedy = format!("chmod go-w {}", path.display());
            report.fail(scope, name, format!("{}: others may change it", describe(path, &found)), remedy);
            true
        }
        Ok(found) => {
            report.ok(scope, name, describe(path, &found));
            true
        }
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let remedy = "create it, or correct the path in the configuration";
            report.fail(scope, name, format!("{} is missing", path.display()), remedy);
            false
        }
        Err(error) => {
            unseen(scope, name, path, &error, report);
            false
        }
    }
}

/// A file with a secret in it: its owner's alone, or readable by one group at most.
pub(super) fn secret_file(scope: &'static str, name: &str, path: &Path, report: &mut Report) {
    let found = match path.metadata() {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let remedy =
                "create it with mode 0600, owned by the daemon's user, or pass it with LoadCredential=";
            return report.fail(scope, name, format!("{} is missing", path.display()), remedy);
        }
        Err(error) => return unseen(scope, name, path, &error, report),
    };
    let shown = describe(path, &found);
    if found.mode() & (OTHERS | 0o030) != 0 {
        let remedy =
            format!("chmod 0600 {}, and change the secret if others may have read it", path.display());
        return report.fail(scope, name, format!("{shown}: open to others"), remedy);
    }
    if found.mode() & 0o040 != 0 {
        let remedy = format!("chmod 0600 {} and chown it to the daemon's user", path.display());
        return report.warn(scope, name, format!("{shown}: its group may read it"), remedy);
    }
    report.ok(scope, name, shown);
}

/// A TPM's device node: there, and closed to others.
pub(super) fn device(scope: &'static str, path: &Path, report: &mut Report) {
    const NAME: &str = "TPM device";
    let found = match path.metadata() {
        Ok(found) => found,
        Err(error) if error.kind() == ErrorKind::NotFound => {
            let remedy =
                "enable the TPM in the firmware's settings; `ls /sys/class/tpm` shows what the kernel found";
            return report.fail(scope, NAME, format!("{} is missing", path.display()), remedy);
        }
        Err(error) => return unseen(scope, NAME, path, &error, report),
    };
    let shown = describe(path, &found);
    if !found.file_type().is_char_device() {
        return report.fail(
            scope,
            NAME,
            format!("{shown} is no device"),
            "name the device in tpm.tcti, as in device:/dev/tpmrm0",
        );
    }
    if found.mode() & 0o006 != 0 {
        let remedy = "a udev rule should give it mode 0660, owner tss, group tss: whoever opens it can use the host's keys";
        return report.fail(scope, NAME, format!("{shown}: open to every user"), remedy);
    }
    report.ok(scope, NAME, shown);
}

fn unseen(scope: &'static str, name: &str, path: &Path, error: &std::io::Error, report: &mut Report) {
    let found = format!("{} cannot be examined: {error}", path.display());
    report.warn(scope, name, found, "run `hallmark doctor` as root");
}

/// As `/run/x (0660 root:hallmark-agents)`.
fn describe(path: &Path, found: &Metadata) -> String {
    use nix::unistd::{Gid, Group, Uid, User};
    let user = User::from_uid(Uid::from_raw(found.uid())).ok().flatten();
    let group = Group::from_gid(Gid::from_raw(found.gid())).ok().flatten();
    format!(
        "{} ({:04o} {}:{})",
        path.display(),
        found.mode() & 0o7777,
        user.map_or_else(|| found.uid().to_string(), |user| user.name),
        group.map_or_else(|| found.gid().to_string(), |group| group.name),
    )
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::PermissionsExt;
    use std::os::unix::net::UnixListener;
    use std::path::PathBuf;

    use super::super::{Outcome, Report};
    use super::*;

    fn examined(check: impl FnOnce(&mut Report)) -> Vec<(Outcome, String)> {
        let mut report = Report { checks: Vec::new() };
        check(&mut report);
        report.checks.into_iter().map(|check| (check.result, check.remedy)).collect()
    }

    fn with_mode(path: &Path, mode: u32) -> PathBuf {
        fs::set_permissions(path, Permissions::from_mode(mode)).unwrap();
        path.to_owned()
    }

    #[test]
    fn sockets() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let of = |path: &Path| examined(|r| socket("host", "agent socket", path, "hallmark-hostd", r));
        assert_eq!(of(&path), [(Outcome::Failure, "systemctl start hallmark-hostd".into())]);
        let _listener = UnixListener::bind(&path).unwrap();
        with_mode(&path, 0o660);
        assert!(of(&path).iter().all(|(outcome, _)| *outcome == Outcome::Ok));
        with_mode(&path, 0o666);
        assert!(matches!(&of(&path)[..], [(Outcome::Failure, remedy)] if remedy.contains("chmod o=")));
        with_mode(&path, 0o660);
        with_mode(dir.path(), 0o777);
        assert!(matches!(&of(&path)[..], [_, (Outcome::Failure, remedy)] if remedy.contains("go-w")));
        let file = dir.path().join("f");
        fs::write(&file, "").unwrap();
        assert_eq!(of(&file)[0].0, Outcome::Failure);
    }

    #[test]
    fn secrets() {
        let dir = tempfile::tempdir().unwrap();
        let pin = dir.path().join("pin");
        let of = |path: &Path| examined(|r| secret_file("host", "pin_file", path, r))[0].0;
        assert_eq!(of(&pin), Outcome::Failure);
        fs::write(&pin, "1234").unwrap();
        for (mode, expected) in [
            (0o600, Outcome::Ok),
            (0o400, Outcome::Ok),
            (0o640, Outcome::Warning),
            (0o660, Outcome::Failure),
            (0o604, Outcome::Failure),
        ] {
            assert_eq!(of(&with_mode(&pin, mode)), expected, "{mode:o}");
        }
    }

    #[test]
    fn devices() {
        let of = |path: &str| examined(|r| device("host", Path::new(path), r))[0].clone();
        assert_eq!(of("/dev/no-such-tpm").0, Outcome::Failure);
        assert!(of("/dev/null").1.contains("udev"), "open to every user");
        assert!(of("/etc/hostname").1.contains("tpm.tcti") || !Path::new("/etc/hostname").exists());
    }
}
