//! Is this issuer sound? Checks that need its own eyes, each with what was found and the remedy.

use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;

use hallmark_core::tier::{Hierarchy, Tier};
use hallmark_core::x509::OidArc;
use hallmark_proto::admin::{CaStatus, Check};

use crate::admin::cas;
use crate::config::{CaBackend, Enrolment};
use crate::issuer::Issuer;

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

fn ok(name: &str, found: impl Into<String>) -> Check {
    Check { name: name.to_owned(), result: "ok".to_owned(), found: found.into(), remedy: String::new() }
}

fn warning(name: &str, found: impl Into<String>, remedy: &str) -> Check {
    Check {
        name: name.to_owned(),
        result: "warning".to_owned(),
        found: found.into(),
        remedy: remedy.to_owned(),
    }
}

fn failure(name: &str, found: impl Into<String>, remedy: &str) -> Check {
    Check {
        name: name.to_owned(),
        result: "failure".to_owned(),
        found: found.into(),
        remedy: remedy.to_owned(),
    }
}

/// Examines this issuer.
pub async fn examine(issuer: &Arc<Issuer>) -> Vec<Check> {
    let mut checks = vec![ca_keys(issuer).await];
    checks.extend(ca_ages(issuer).await);
    checks.push(overlap(issuer));
    checks.push(trust_domain(issuer));
    checks.push(arc(issuer));
    checks.push(clock(issuer).await);
    checks.extend(files(issuer));
    checks.extend(attestation(issuer));
    checks.extend(witnesses(issuer));
    checks
}

/// Whether enough of the log's witnesses cosign, and each of them.
fn witnesses(issuer: &Issuer) -> Vec<Check> {
    let Some(witnessing) = issuer.store().witnessing() else { return Vec::new() };
    let board = witnessing.board().clone();
    let (all, needed) = (board.len(), witnessing.needed());
    let well = board.iter().filter(|standing| standing.problem.is_none()).count();
    let found = format!("{well} of {all} cosign, {needed} are needed");
    let mut checks = vec![if well >= needed {
        ok("witnesses", found)
    } else if witnessing.is_required() {
        failure("witnesses", found, "nothing is released until enough of them cosign (witness.required)")
    } else {
        warning("witnesses", found, "auditors who demand the quorum refuse the log's newest checkpoints")
    }];
    if needed * 2 <= all {
        checks.push(warning(
            "witness-quorum",
            format!("{needed} of {all}: two histories could each have a quorum, and no witness lie"),
            "raise witness.quorum to more than half of the witnesses",
        ));
    }
    let now = issuer.now();
    for standing in board {
        let name = format!("witness.{}", standing.name);
        let age = now - i64::try_from(standing.at).unwrap_or(now);
        let last = match standing.size {
            0 => "it has cosigned nothing yet".to_owned(),
            size => format!("it cosigned {size} entries {age} s ago"),
        };
        checks.push(match standing.problem {
            None => ok(&name, last),
            Some(problem) => failure(
                &name,
                format!("{problem}; {last}"),
                "it is asked again without end; the issuer's log has each change of its answer",
            ),
        });
    }
    checks
}

async fn ca_keys(issuer: &Arc<Issuer>) -> Check {
    const NAME: &str = "ca-keys";
    let signer = issuer.clone();
    match tokio::task::spawn_blocking(move || signer.ca().health()).await {
        Ok(Ok(())) if issuer.trust_domain().dev => warning(
            NAME,
            "CA keys are in this process's memory (--dev)",
            "for anything but development, make a trust domain with ca.backend = \"pkcs11\"",
        ),
        Ok(Ok(())) => ok(NAME, "each issuing CA's key made a signature in the token, and it verified"),
        Ok(Err(error)) => failure(
            NAME,
            error.to_string(),
            "is the token there and the module's configuration readable? see ca.pkcs11",
        ),
        Err(error) => failure(NAME, error.to_string(), "see the issuer's log"),
    }
}

async fn ca_ages(issuer: &Issuer) -> Vec<Check> {
    let shown = match cas(issuer, false).await {
        Ok(shown) => shown,
        Err(error) => return vec![failure("ca-age", error.to_string(), "see the issuer's log")],
    };
    let now = issuer.now();
    let own = issuer.config().issuer_id.to_string();
    let mut checks = Vec::new();
    for hierarchy in Hierarchy::ALL {
        let of = |kind: &str| {
            shown.iter().find(|ca| {
                ca.hierarchy == hierarchy.as_str()
                    && ca.kind == kind
                    && ca.state == "active"
                    && (ca.issuer == own || ca.issuer.is_empty())
            })
        };
        let name = format!("ca-age.{hierarchy}");
        checks.push(match of("issuing") {
            None => failure(
                &name,
                "no issuing CA: nothing of this hierarchy can be signed",
                "hallmark ca list says what is awaited",
            ),
            Some(ca) => ca_age(&name, "issuing CA", ca, now),
        });
        if let Some(root) = of("root") {
            checks.push(ca_age(&format!("root-age.{hierarchy}"), "root", root, now));
        }
    }
    let waiting = shown.iter().filter(|ca| ca.state == "tainted" && ca.withdrawn_at == 0);
    for ca in waiting.filter(|ca| ca.kind == "issuing") {
        checks.push(warning(
            &format!("ca-tainted.{}", ca.hierarchy),
            format!("issuing CA {} is tainted, and what it signed is not revoked yet", ca.generation),
            "hallmark ca list says by when; a host that is away renews when it is back",
        ));
    }
    checks
}

fn ca_age(name: &str, what: &str, ca: &CaStatus, now: i64) -> Check {
    let days = |seconds: i64| seconds / DAY;
    let generation = ca.generation;
    let due = match ca.due_at {
        0 => "it is not replaced by itself".to_owned(),
        at if at <= now => "its replacement is due".to_owned(),
        at => format!("it is replaced by itself in {} days", days(at - now)),
    };
    let found = format!("{what} {generation} ends in {} days; {due}", days(ca.not_after - now));
    let life = (ca.not_after - ca.not_before).max(1);
    if ca.not_after <= now {
        failure(name, format!("{what} {generation} has expired"), "make a new trust domain or rotate the CA")
    } else if ca.due_at != 0 && ca.due_at + HOUR < now {
        warning(name, found, "it should have been replaced an hour ago: the issuer's log says why it was not")
    } else if (ca.not_after - now) * 10 < life && ca.due_at == 0 {
        warning(name, found, "less than a tenth of its life is left: hallmark ca rotate")
    } else {
        ok(name, found)
    }
}

/// Whoever holds an older bundle must have the new one before the last leaf under the old root has ended.
fn overlap(issuer: &Issuer) -> Check {
    const NAME: &str = "ca-overlap";
    let overlap = issuer.config().rotation.overlap;
    let longest = Tier::ALL.map(Tier::max_lifetime).into_iter().max().unwrap_or_default();
    let show = |d| humantime::format_duration(d).to_string();
    let found = format!("{}; the longest credential lives {}", show(overlap), show(longest));
    if overlap < longest {
        return warning(
            NAME,
            found,
            "relying parties have less time to take up a new root than a credential lives: raise ca.rotation.overlap",
        );
    }
    ok(NAME, found)
}

fn trust_domain(issuer: &Issuer) -> Check {
    const NAME: &str = "trust-domain";
    let row = issuer.trust_domain();
    if row.lab {
        return warning(
            NAME,
            format!("{} is a LAB trust domain: software TPMs count above foundation", row.name),
            "never let a production relying party trust its roots",
        );
    }
    ok(NAME, format!("{}: no software TPM counts above foundation", row.name))
}

fn arc(issuer: &Issuer) -> Check {
    const NAME: &str = "oid-arc";
    let text = &issuer.trust_domain().oid_arc;
    if OidArc::parse(text).is_ok_and(|arc| arc.is_documentation()) {
        return warning(
            NAME,
            format!("{text} is the documentation arc (RFC 5612)"),
            "get a private enterprise number from IANA and set oid_arc before init",
        );
    }
    ok(NAME, text.clone())
}

async fn clock(issuer: &Issuer) -> Check {
    const NAME: &str = "clock";
    let now = issuer.now();
    match issuer.store().newest_record_at().await {
        Ok(Some(newest)) if newest > now + 5 => failure(
            NAME,
            format!("the newest record is {} s in the future: the clock was set back", newest - now),
            "set the clock right (chrony, systemd-timesyncd); certificates made now begin too early",
        ),
        Ok(_)
            if !Path::new("/run/systemd/timesync/synchronized").exists()
                && !Path::new("/run/chrony").exists() =>
        {
            warning(
                NAME,
                "no sign of a time service (systemd-timesyncd, chrony)",
                "certificates live minutes: keep the clock synchronised",
            )
        }
        Ok(_) => ok(NAME, "not behind the newest record; a time service runs"),
        Err(error) => failure(NAME, error.to_string(), "see the issuer's log"),
    }
}

fn files(issuer: &Issuer) -> Vec<Check> {
    let config = issuer.config();
    let mut checks = vec![
        mode(
            "admin-socket",
            &config.admin.socket,
            0o660,
            "chmod 0660, owned by the issuer, group of operators only",
        ),
        mode("data-dir", &config.data_dir, 0o750, "chmod 0750 and owned by the issuer's user"),
        mode("database", &config.database(), 0o640, "chmod 0640 and owned by the issuer's user"),
        mode("configuration", &config.file, 0o644, "it must not be writable by anybody but root: chmod 0644"),
    ];
    if let CaBackend::Pkcs11(pkcs11) = &config.ca
        && let Some(path) = pkcs11.pin.path()
    {
        checks.push(mode(
            "pin-file",
            &path,
            0o400 | 0o040 | 0o200,
            "chmod 0400; better, LoadCredential= in the unit",
        ));
    }
    checks
}

/// The file has no permission bit outside `most`, and belongs to root or to this process's user.
fn mode(name: &str, path: &Path, most: u32, remedy: &str) -> Check {
    let meta = match std::fs::metadata(path) {
        Ok(meta) => meta,
        Err(error) => return failure(name, format!("{}: {error}", path.display()), remedy),
    };
    let bits = meta.permissions().mode() & 0o7777;
    let own = rustix::process::geteuid().as_raw();
    let found = format!("{} mode {bits:04o} uid {}", path.display(), meta.uid());
    if bits & !most & 0o777 != 0 {
        return failure(name, found, remedy);
    }
    if meta.uid() != 0 && meta.uid() != own {
        return failure(name, format!("{found}, neither root nor the issuer (uid {own})"), remedy);
    }
    ok(name, found)
}

fn attestation(issuer: &Issuer) -> Vec<Check> {
    let config = issuer.config();
    let roots = issuer.roots();
    let vendor = roots.vendor.iter().count();
    let simulated = roots.simulated.iter().count();
    let mut checks = vec![match (vendor, simulated) {
        (0, 0) => warning(
            "ek-roots",
            "no EK roots: only EKs on the allow-list can enrol",
            "hallmark-issuer ek-roots import with your vendors' bundle",
        ),
        _ => ok("ek-roots", format!("{vendor} of manufacturers, {simulated} of software TPMs")),
    }];
    if simulated > 0 && !issuer.is_lab() {
        checks.push(warning(
            "simulated-ek-roots",
            "roots of software TPMs in a production trust domain: such hosts stay at foundation",
            "unset attestation.simulated_ek_roots",
        ));
    }
    if config.attestation.enrolment == Enrolment::Open {
        checks.push(warning(
            "enrolment",
            "open: any TPM with a good EK certificate may take any free host id",
            "set attestation.enrolment = \"allow-list\"",
        ));
    }
    checks.push(match config.attestation.pcr_policies.len() {
        0 => warning(
            "pcr-policy",
            "none: no host can reach enterprise",
            "hallmark host pcrs HOST prints one from a host's present values",
        ),
        n => ok("pcr-policy", format!("{n} policies")),
    });
    if config.attestation.accept_pkcs11_asserted {
        checks.push(warning("pkcs11-asserted", "a PKCS#11 module's word is enough for the advanced tier", "it is an assertion, not an attestation; unset attestation.accept_pkcs11_asserted if TPMs suffice"));
    }
    checks
}
