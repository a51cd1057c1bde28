//! `hallmark doctor`: is this deployment sound, and what is to be done where it is not.

mod config;
mod paths;

use std::path::{Path, PathBuf};

use clap::Args;
use hallmark_client::HallmarkClient;
use hallmark_proto::admin::DoctorRequest;
use hallmark_proto::agent::WhoAmIResponse;
use serde::Serialize;

use crate::admin;
use crate::failure::{Failure, REFUSED};
use crate::output::{Output, Page, Present, word};

/// Examines what of Hallmark is on this machine: the issuer's own view of itself over the admin socket, the
/// host daemon's over the agent socket, and the files, sockets and devices of both.
#[derive(Debug, Args)]
#[command(after_help = "\
Run it as root: another user sees less, and is told so. Exit code 1 when a check fails, with --strict also
when one warns; 3 when nothing of Hallmark is on this machine.

Examples:
  hallmark doctor
  hallmark doctor -o json | jq '.checks[] | select(.result == \"failure\")'")]
pub(crate) struct DoctorArgs {
    /// The host daemon's configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/hallmark/hostd.toml")]
    hostd_config: PathBuf,
    /// The issuer's configuration
    #[arg(long, value_name = "FILE", default_value = "/etc/hallmark/issuer.toml")]
    issuer_config: PathBuf,
    /// Warnings fail too
    #[arg(long)]
    strict: bool,
}

pub(crate) async fn run(
    admin: &Path,
    socket: &Path,
    args: DoctorArgs,
    output: &Output,
) -> Result<u8, Failure> {
    let issuer = admin.symlink_metadata().is_ok() || args.issuer_config.is_file();
    let host = socket.symlink_metadata().is_ok() || args.hostd_config.is_file();
    if !issuer && !host {
        return Err(Failure::unreachable("nothing of Hallmark is on this machine").remedy(
            "looked for the admin socket, the agent socket and the configuration of both; name them with --admin-socket, --socket, --issuer-config, --hostd-config",
        ));
    }
    let mut report = Report { checks: Vec::new() };
    if issuer {
        issuer_side(admin, &args.issuer_config, &mut report).await;
    }
    if host {
        host_side(socket, &args.hostd_config, &mut report).await;
    }
    output.show(&report)?;
    let bad =
        |check: &Check| check.result == Outcome::Failure || args.strict && check.result == Outcome::Warning;
    Ok(if report.checks.iter().any(bad) { REFUSED } else { 0 })
}

/// How one check went.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    Ok,
    Warning,
    Failure,
}

#[derive(Debug, Serialize)]
struct Check {
    /// issuer or host
    scope: &'static str,
    name: String,
    result: Outcome,
    found: String,
    remedy: String,
}

#[derive(Debug, Serialize)]
struct Report {
    checks: Vec<Check>,
}

impl Report {
    fn ok(&mut self, scope: &'static str, name: &str, found: impl Into<String>) {
        self.add(scope, name, Outcome::Ok, found.into(), String::new());
    }

    fn warn(&mut self, scope: &'static str, name: &str, found: impl Into<String>, remedy: impl Into<String>) {
        self.add(scope, name, Outcome::Warning, found.into(), remedy.into());
    }

    fn fail(&mut self, scope: &'static str, name: &str, found: impl Into<String>, remedy: impl Into<String>) {
        self.add(scope, name, Outcome::Failure, found.into(), remedy.into());
    }

    fn add(&mut self, scope: &'static str, name: &str, result: Outcome, found: String, remedy: String) {
        self.checks.push(Check { scope, name: name.to_owned(), result, found, remedy });
    }
}

/// What the issuer says of itself, and its socket and configuration as they look from here.
async fn issuer_side(admin: &Path, config: &Path, report: &mut Report) {
    const SCOPE: &str = "issuer";
    let mut local = Report { checks: Vec::new() };
    paths::socket(SCOPE, "admin socket", admin, "hallmark-issuer", &mut local);
    config::examine(SCOPE, config, &mut local);
    let answer = match admin::connect(admin).await {
        Ok(mut issuer) => issuer.doctor(DoctorRequest {}).await.map_err(admin::failed),
        Err(failure) => Err(failure),
    };
    match answer {
        Ok(answer) => {
            // The issuer examines its own files too; what is well need not be said twice.
            local.checks.retain(|check| check.result != Outcome::Ok);
            report.ok(SCOPE, "issuer answers", format!("on {}", admin.display()));
            for check in answer.into_inner().checks {
                let result = match check.result.as_str() {
                    "ok" => Outcome::Ok,
                    "warning" => Outcome::Warning,
                    // What is not known to be well is not well.
                    _ => Outcome::Failure,
                };
                report.add(SCOPE, &check.name, result, check.found, check.remedy);
            }
        }
        Err(failure) => {
            report.fail(SCOPE, "issuer answers", failure.message, failure.remedy.unwrap_or_default());
        }
    }
    report.checks.append(&mut local.checks);
}

/// What the host daemon says of itself, and its socket, configuration and devices.
async fn host_side(socket: &Path, config: &Path, report: &mut Report) {
    const SCOPE: &str = "host";
    paths::socket(SCOPE, "agent socket", socket, "hallmark-hostd", report);
    config::examine(SCOPE, config, report);
    let answer = match HallmarkClient::connect_to(socket).await {
        Ok(client) => client.who_am_i().await,
        Err(error) => Err(error),
    };
    match answer {
        Ok(answer) => host_state(&answer, report),
        Err(error) => report.fail(SCOPE, "host daemon answers", "it does not", error.to_string()),
    }
}

fn host_state(answer: &WhoAmIResponse, report: &mut Report) {
    const SCOPE: &str = "host";
    report.ok(SCOPE, "host daemon answers", format!("as {} of {}", answer.host_id, answer.trust_domain));
    let Some(host) = &answer.host else {
        return report.warn(
            SCOPE,
            "host state",
            "the daemon told nothing of it",
            "compare the versions of daemon and command",
        );
    };
    if host.attested {
        report.ok(SCOPE, "attested", format!("highest tier {}", host.highest_tier));
    } else {
        let found = if host.last_error.is_empty() { "not attested" } else { &host.last_error };
        report.fail(
            SCOPE,
            "attested",
            found,
            "see `journalctl -u hallmark-hostd`, and `hallmark records` on the issuer for the refusal",
        );
    }
    for unmet in &host.unmet {
        report.warn(
            SCOPE,
            "higher tier",
            unmet,
            "needed only where an agent of a higher tier is to run here",
        );
    }
    if host.issuer_connected {
        report.ok(SCOPE, "issuer link", "connected");
    } else {
        let found = if host.last_error.is_empty() { "away" } else { &host.last_error };
        report.fail(SCOPE, "issuer link", found, "agents are served from what is still valid; check the network, and `systemctl status hallmark-issuer` on the issuer");
    }
}

impl Present for Report {
    fn present(&self, page: &mut Page) {
        let rows = self.checks.iter().map(|check| {
            let result = match check.result {
                Outcome::Ok => word("ok"),
                Outcome::Warning => word("warning"),
                Outcome::Failure => word("failure"),
            };
            vec![result, word(check.scope), word(&check.name), word(&check.found)]
        });
        page.table(&["result", "where", "check", "found"], rows.collect(), "Nothing was checked.");
        let count = |outcome| self.checks.iter().filter(|check| check.result == outcome).count();
        for (outcome, heading) in
            [(Outcome::Failure, "To be put right:"), (Outcome::Warning, "To be considered:")]
        {
            let remedies =
                self.checks.iter().filter(|check| check.result == outcome && !check.remedy.is_empty());
            let lines: Vec<String> = remedies
                .map(|check| format!("  {} ({}): {}", check.name, check.scope, check.remedy))
                .collect();
            if !lines.is_empty() {
                page.gap();
                page.line(heading);
                lines.iter().for_each(|line| page.line(line));
            }
        }
        page.gap();
        let (ok, warnings, failures) = (count(Outcome::Ok), count(Outcome::Warning), count(Outcome::Failure));
        page.line(format!("{ok} ok, {warnings} warnings, {failures} failures."));
    }
}
