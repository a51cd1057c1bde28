//! What a monitor is told: its file and its command line, with all faults at once.

use std::path::{Path, PathBuf};
use std::time::Duration;

use hallmark_core::log::{Expectations, Unlisted, Watch};
use serde::Deserialize;
use zeroize::Zeroizing;

use super::super::source::{Location, quorum};
use super::super::web::{authorization, may_carry_secret};
use super::{MonitorArgs, Named};
use crate::failure::Failure;

const INTERVAL: Duration = Duration::from_secs(30);
const STALE_AFTER: Duration = Duration::from_secs(24 * 3600);
/// Longest name of a log here.
const MAX_NAME: usize = 64;

/// The file, as it is written.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Raw {
    state: Option<PathBuf>,
    interval: Option<String>,
    stale_after: Option<String>,
    default: Option<Unlisted>,
    log: Vec<RawLog>,
    watch: Vec<Watch>,
    webhook: Option<RawWebhook>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawLog {
    name: String,
    source: String,
    key: String,
    #[serde(default)]
    witnesses: Vec<String>,
    quorum: Option<usize>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RawWebhook {
    url: String,
    ca: Option<PathBuf>,
    authorization_file: Option<PathBuf>,
}

/// What a monitor does.
#[derive(Debug)]
pub(super) struct Config {
    pub(super) logs: Vec<Named>,
    pub(super) state: PathBuf,
    pub(super) interval: Duration,
    pub(super) stale_after: Duration,
    pub(super) expectations: Expectations,
    pub(super) webhook: Option<Webhook>,
}

/// Where alerts are posted.
#[derive(Debug)]
pub(super) struct Webhook {
    pub(super) url: String,
    pub(super) ca: Option<PathBuf>,
    pub(super) authorization: Option<Zeroizing<String>>,
}

impl Config {
    pub(super) fn of(args: &MonitorArgs) -> Result<Self, Failure> {
        let raw = match &args.config {
            None => Raw { default: Some(Unlisted::Allow), ..Raw::default() },
            Some(file) => read(file)?,
        };
        let mut faults = Vec::new();
        let mut logs: Vec<Named> = Vec::new();
        for (at, log) in raw.log.into_iter().enumerate() {
            match log.parse(at) {
                Ok(log) => logs.push(log),
                Err(fault) => faults.push(fault),
            }
        }
        logs.extend(args.log.iter().cloned());
        for (at, log) in logs.iter().enumerate() {
            if logs[..at].iter().any(|other| other.name == log.name) {
                faults.push(format!("two logs are named {}: give each a name of its own", log.name));
            }
        }
        if logs.is_empty() {
            faults.push("no log is named: give a [[log]] or --log".to_owned());
        }
        let mut span = |key: &str, text: Option<String>, or: Duration| match text
            .map(|t| humantime::parse_duration(&t))
        {
            None => or,
            Some(Ok(span)) if !span.is_zero() => span,
            Some(_) => {
                faults.push(format!("{key}: a span is written as 30s, 5m or 1day"));
                or
            }
        };
        let interval = span("interval", raw.interval, INTERVAL);
        let stale_after = span("stale_after", raw.stale_after, STALE_AFTER);
        let expectations =
            Expectations::new(raw.default.unwrap_or_default(), raw.watch).unwrap_or_else(|found| {
                faults.extend(found.iter().map(ToString::to_string));
                Expectations::default()
            });
        let state = args.state.clone().or(raw.state).unwrap_or_else(|| {
            faults.push(
                "state: name a directory where the monitor keeps how far it is (or --state)".to_owned(),
            );
            PathBuf::new()
        });
        let webhook = raw.webhook.map(RawWebhook::parse).transpose().unwrap_or_else(|fault| {
            faults.push(fault);
            None
        });
        if !faults.is_empty() {
            let from =
                args.config.as_deref().map_or("the command line".to_owned(), |f| f.display().to_string());
            return Err(Failure::usage(format!("{from}:\n  {}", faults.join("\n  "))));
        }
        let interval = args.interval.unwrap_or(interval);
        let stale_after = args.stale_after.unwrap_or(stale_after);
        Ok(Self { logs, state, interval, stale_after, expectations, webhook })
    }
}

fn read(file: &Path) -> Result<Raw, Failure> {
    let text = std::fs::read_to_string(file)
        .map_err(|error| Failure::usage(format!("cannot read {}: {error}", file.display())))?;
    toml::from_str(&text).map_err(|error| Failure::usage(format!("{}: {error}", file.display())))
}

impl RawLog {
    fn parse(self, at: usize) -> Result<Named, String> {
        check_name(&self.name).map_err(|why| format!("log[{at}].name: {why}"))?;
        let key = self.key.parse().map_err(|error| format!("log[{at}].key: {error}"))?;
        let location: Location = self.source.parse().unwrap_or_else(|never| match never {});
        let witnesses = self.witnesses.iter().map(|key| key.parse()).collect::<Result<Vec<_>, _>>();
        let witnesses = witnesses.map_err(|error| format!("log[{at}].witnesses: {error}"))?;
        let demanded = !witnesses.is_empty() || self.quorum.is_some();
        let quorum = quorum(&witnesses, self.quorum).map_err(|error| format!("log[{at}].quorum: {error}"))?;
        Ok(Named { name: self.name, location, key, quorum: demanded.then_some(quorum) })
    }
}

impl RawWebhook {
    fn parse(self) -> Result<Webhook, String> {
        let url = self.url;
        if !url.starts_with("https://") && !url.starts_with("http://") {
            return Err("webhook.url: it begins with https://".to_owned());
        }
        let secret = self.authorization_file.as_deref().map(authorization).transpose();
        let authorization = secret.map_err(|f| format!("webhook.authorization_file: {}", f.message))?;
        if authorization.is_some() && !may_carry_secret(&url) {
            return Err("webhook.authorization_file: a secret goes over https:// alone".to_owned());
        }
        Ok(Webhook { url, ca: self.ca, authorization })
    }
}

/// A log's name here is the name of its file, too.
pub(super) fn check_name(name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if name.is_empty() || name.len() > MAX_NAME || name.starts_with('.') || !name.chars().all(plain) {
        return Err(format!("a name has 1 to {MAX_NAME} letters, digits, dashes, dots and underscores"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: MonitorArgs,
    }

    const KEY: &str = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW";

    fn config(toml: &str, line: &[&str]) -> Result<Config, Failure> {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("monitor.toml");
        std::fs::write(&file, toml).unwrap();
        let file = file.display().to_string();
        let args = [&["monitor", "--config", &file], line].concat();
        Config::of(&Line::try_parse_from(args).unwrap().args)
    }

    #[test]
    fn the_example_is_whole() {
        let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/example/monitor.toml");
        let text = std::fs::read_to_string(file).unwrap();
        let config = config(&text, &[]).unwrap();
        assert_eq!(config.logs.len(), 2);
        assert!(config.webhook.is_none(), "the webhook is commented out: its token would have to be there");
        let webhook = text.lines().skip_while(|line| !line.starts_with("# [webhook]"));
        let webhook: String = webhook.map(|line| format!("{}\n", line.trim_start_matches("# "))).collect();
        let offered =
            |line: &str| ["# witnesses", "#   \"", "# ]", "# quorum"].iter().any(|it| line.starts_with(it));
        let whole: String = text
            .lines()
            .map(|line| format!("{}\n", if offered(line) { line.trim_start_matches('#') } else { line }))
            .collect();
        let quorum = self::config(&whole, &[]).unwrap().logs[0].quorum.clone().unwrap();
        assert_eq!((quorum.witnesses().len(), quorum.needed()), (3, 2));
        let raw: Raw = toml::from_str(&webhook).unwrap();
        assert!(raw.webhook.is_some_and(|webhook| webhook.authorization_file.is_some()));
    }

    #[test]
    fn all_faults_at_once() {
        let toml = "interval = \"soon\"\n[[log]]\nname = \"../a\"\nsource = \"x\"\nkey = \"k\"\n[[watch]]\nhosts = []\n\
             [webhook]\nurl = \"ftp://x\"";
        let message = config(toml, &[]).unwrap_err().message;
        for fault in ["interval", "log[0].name", "no log", "watch[0]", "state:", "webhook.url"] {
            assert!(message.contains(fault), "{fault}: {message}");
        }
        assert!(config("nonsense = 1", &[]).unwrap_err().message.contains("nonsense"));
    }

    #[test]
    fn the_command_line_comes_before_the_file() {
        let toml = format!(
            "state = \"/a\"\ninterval = \"5m\"\n[[log]]\nname = \"a\"\nsource = \"x\"\nkey = \"{KEY}\""
        );
        let own = config(&toml, &[]).unwrap();
        assert_eq!((own.state, own.interval), (PathBuf::from("/a"), Duration::from_secs(300)));
        let b = format!("b=https://log/x,{KEY}");
        let both = config(&toml, &["--state", "/b", "--interval", "1s", "--log", &b]).unwrap();
        assert_eq!((both.logs.len(), both.state), (2, PathBuf::from("/b")));
        assert_eq!(both.logs[1].location.to_string(), "https://log/x");
        let again = format!("a=./x,{KEY}");
        assert!(config(&toml, &["--log", &again]).unwrap_err().message.contains("two logs"));
        for wrong in ["a", "a=b", "a/b=x,k", &format!("=x,{KEY}")] {
            assert!(wrong.parse::<Named>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn a_token_does_not_go_over_a_network_in_the_open() {
        let dir = tempfile::tempdir().unwrap();
        let token = dir.path().join("token");
        std::fs::write(&token, "Bearer x\n").unwrap();
        let toml = |url: &str| {
            format!(
                "state = \"/a\"\n[[log]]\nname = \"a\"\nsource = \"x\"\nkey = \"{KEY}\"\n[webhook]\nurl = \"{url}\"\nauthorization_file = \"{}\"",
                token.display()
            )
        };
        assert!(config(&toml("https://hook.example.org/x"), &[]).is_ok());
        assert!(
            config(&toml("http://hook.example.org/x"), &[]).unwrap_err().message.contains("https:// alone")
        );
        std::fs::write(&token, "two\nlines").unwrap();
        assert!(config(&toml("https://hook.example.org/x"), &[]).is_err());
    }
}
