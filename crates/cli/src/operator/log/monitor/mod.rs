//! `hallmark log monitor`

mod alert;
mod config;
mod watched;

use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use hallmark_core::log::{LogVerifier, Quorum};
use serde::Serialize;

use super::source::{Location, WebArgs, WitnessArgs};
use crate::failure::{Failure, REFUSED};
use crate::output::{Output, Page, Present, Tone, toned, word};

use alert::{Alarm, Alert};
use config::Config;
use watched::Watched;

/// Follows logs, one for each issuer, and raises an alert for what nobody expects: a certificate for an agent, an owner
/// or on a host that the expectations do not know; a log that was rewritten, rolled back or is shown in two versions,
/// or that stands still; records that contradict each other. It needs to read the logs, and nothing else.
#[derive(Debug, Args)]
#[command(after_help = "\
The file says which logs there are and what is expected; deploy/example/monitor.toml shows all of
it. Without a file the logs themselves are watched, and certificates are not looked at.

Alerts go to standard error, where the journal takes them with their priority, and to the webhook
as JSON by POST, each at least once. What was read is kept in the state directory, with the log's
own checkpoint: a log that shows another history later is found out, and both signed checkpoints
are in the alert.

Exit code with --once: 0 without an alert, 1 with any.

Examples:
  hallmark log monitor --config /etc/hallmark/monitor.toml
  hallmark log monitor --once --state ./state --log a=https://log.example.org/issuer-1,$KEY")]
pub(crate) struct MonitorArgs {
    /// TOML file: logs, expectations, webhook
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// A log, besides those of the file: a name for it here, where it is, and its verifier key
    #[arg(long, value_name = "NAME=URL|DIRECTORY,KEY")]
    log: Vec<Named>,
    /// Keeps how far each log was read, in place of the file's
    #[arg(long, value_name = "DIRECTORY")]
    state: Option<PathBuf>,
    /// Read each log once and end
    #[arg(long)]
    once: bool,
    /// How often to look, in place of the file's
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    interval: Option<Duration>,
    /// Raise an alert when a log's newest record is older, in place of the file's
    #[arg(long, value_name = "DURATION", value_parser = humantime::parse_duration)]
    stale_after: Option<Duration>,
    /// Of a log that was not read before, look at what comes from now on alone
    #[arg(long)]
    from_now: bool,
    /// Do not read again what earlier runs have read: a contradiction with it goes unnoticed
    #[arg(long)]
    skip_history: bool,
    #[command(flatten)]
    witnesses: WitnessArgs,
    #[command(flatten)]
    web: WebArgs,
}

/// A log on the command line.
#[derive(Debug, Clone)]
struct Named {
    name: String,
    location: Location,
    key: LogVerifier,
    /// Those of the file; none for those of the command line.
    quorum: Option<Quorum>,
}

impl FromStr for Named {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, rest) = text.split_once('=').ok_or("it reads NAME=URL,KEY or NAME=DIRECTORY,KEY")?;
        // Neither a log's name nor base64 has a comma that would not be the key's.
        let (location, key) = rest.rsplit_once(',').ok_or("the key is missing, after a comma")?;
        config::check_name(name)?;
        let key = key.parse().map_err(|error| format!("the key: {error}"))?;
        let location = location.parse().unwrap_or_else(|never| match never {});
        Ok(Self { name: name.to_owned(), location, key, quorum: None })
    }
}

pub(super) fn run(args: &MonitorArgs, output: Output) -> Result<u8, Failure> {
    let config = Config::of(args)?;
    let mut alarm = Alarm::new(config.webhook.as_ref(), output)?;
    let mut logs = Vec::new();
    let quorum = args.witnesses.quorum()?;
    for named in &config.logs {
        let quorum = named.quorum.clone().unwrap_or_else(|| quorum.clone());
        let log = args.web.open(&named.location, named.key.clone(), quorum)?;
        logs.push(Watched::open(&named.name, log, &config, args)?);
    }
    loop {
        look(&mut logs, &config, &mut alarm)?;
        if args.once {
            let looked = Looked {
                logs: logs.iter().map(Watched::view).collect(),
                alerts: std::mem::take(&mut alarm.raised),
                undelivered: alarm.undelivered,
            };
            output.show(&looked)?;
            let quiet = looked.alerts.is_empty() && looked.undelivered == 0;
            return Ok(if quiet { 0 } else { REFUSED });
        }
        alarm.raised.clear();
        std::thread::sleep(config.interval);
    }
}

/// Looks at each log, and at each two that are said to be one.
fn look(logs: &mut [Watched], config: &Config, alarm: &mut Alarm) -> Result<(), Failure> {
    for log in &mut *logs {
        log.look(config, alarm)?;
    }
    for at in 1..logs.len() {
        let (before, rest) = logs.split_at_mut(at);
        let Some(log) = rest.first_mut() else { continue };
        for other in before {
            if other.key() == log.key() {
                other.compare(log, alarm);
            }
        }
    }
    Ok(())
}

#[derive(Serialize)]
struct Looked {
    logs: Vec<watched::View>,
    alerts: Vec<Alert>,
    /// Alerts that the webhook did not take: they are raised again by the next run.
    undelivered: u64,
}

impl Present for Looked {
    fn present(&self, page: &mut Page) {
        let rows = self.logs.iter().map(|log| {
            let state = if log.seen { toned(Tone::Good, "read") } else { toned(Tone::Bad, "not read") };
            vec![word(&log.log), word(&log.name), state, word(log.size), word(log.new)]
        });
        page.table(&["log", "name", "state", "records", "new"], rows.collect(), "No log.");
        page.gap();
        match self.alerts.len() {
            0 => page.line("No alert."),
            1 => page.warning("1 alert"),
            count => page.warning(format!("{count} alerts")),
        }
    }
}
