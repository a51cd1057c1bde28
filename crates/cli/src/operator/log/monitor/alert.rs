//! Alerts, and where they go.

use std::time::Duration;

use hallmark_core::log::Unexpected;
use serde::Serialize;
use serde_json::Value;

use super::super::line::one_line;
use super::super::stream::Backoff;
use super::super::web::{Limits, Trust, Web};
use super::config::Webhook;
use crate::failure::Failure;
use crate::moment::{Moment, now};
use crate::output::Output;

/// How often a webhook is asked to take one alert, before the log is read on later from where it was.
const ATTEMPTS: u32 = 5;
const TIMEOUT: Duration = Duration::from_secs(10);
const MAX_PAUSE: Duration = Duration::from_secs(10);

/// What is wrong. The names are kept stable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum What {
    /// A certificate that nobody expects.
    UnexpectedCertificate,
    /// A record that cannot stand beside those before it, or is none.
    Contradiction,
    /// The log is shorter than it was.
    RolledBack,
    /// Two histories, both signed.
    Forked,
    /// What is served is not what was signed.
    Tampered,
    /// The checkpoint is not signed by the log's key.
    Unsigned,
    /// The checkpoint lacks its quorum of witnesses.
    Unwitnessed,
    /// Nothing new for too long.
    Stale,
    /// It cannot be read.
    Unreachable,
}

/// One alert.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Alert {
    version: u32,
    alert: What,
    /// When it was raised.
    at: Moment,
    /// The log's name here.
    log: String,
    /// The log's own name.
    log_name: String,
    /// In words.
    text: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    spiffe_id: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    unexpected: Vec<Unexpected>,
    #[serde(skip_serializing_if = "Option::is_none")]
    record: Option<Value>,
    /// Signed checkpoints that show it.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    checkpoints: Vec<String>,
}

impl Alert {
    pub(super) fn new(alert: What, log: &str, log_name: &str, text: impl Into<String>) -> Self {
        Self {
            version: 1,
            alert,
            at: Moment(now()),
            log: log.to_owned(),
            log_name: log_name.to_owned(),
            text: text.into(),
            index: None,
            spiffe_id: None,
            unexpected: Vec::new(),
            record: None,
            checkpoints: Vec::new(),
        }
    }

    /// About a record.
    pub(super) fn record(self, index: u64, spiffe_id: Option<String>, entry: &[u8]) -> Self {
        let text = || Value::String(String::from_utf8_lossy(entry).into_owned());
        let record = serde_json::from_slice(entry).unwrap_or_else(|_| text());
        Self { index: Some(index), spiffe_id, record: Some(record), ..self }
    }

    pub(super) fn unexpected(self, unexpected: Vec<Unexpected>) -> Self {
        Self { unexpected, ..self }
    }

    /// The signed checkpoints that show it.
    pub(super) fn shown_by(self, checkpoints: Vec<String>) -> Self {
        Self { checkpoints, ..self }
    }

    fn line(&self) -> String {
        let record = self.index.map(|index| format!(", record {index}")).unwrap_or_default();
        let what = serde_json::to_value(self.alert).ok();
        let what = what.as_ref().and_then(Value::as_str).unwrap_or_default();
        one_line(&format!("{what}: log {}{record}: {}", self.log, self.text))
    }
}

/// Raises alerts.
pub(super) struct Alarm {
    webhook: Option<(Web, String, Option<zeroize::Zeroizing<String>>)>,
    output: Output,
    journal: bool,
    /// Those raised since they were taken last.
    pub(super) raised: Vec<Alert>,
    /// Those that the webhook did not take.
    pub(super) undelivered: u64,
}

impl Alarm {
    pub(super) fn new(webhook: Option<&Webhook>, output: Output) -> Result<Self, Failure> {
        let open = |hook: &Webhook| -> Result<_, Failure> {
            let web = Web::new(&Trust::of(hook.ca.as_deref()), Limits { whole: TIMEOUT })?;
            Ok((web, hook.url.clone(), hook.authorization.clone()))
        };
        Ok(Self {
            webhook: webhook.map(open).transpose()?,
            output,
            // systemd.exec(5): set where standard error is the journal's.
            journal: std::env::var_os("JOURNAL_STREAM").is_some(),
            raised: Vec::new(),
            undelivered: 0,
        })
    }

    /// Raises an alert. False: the webhook did not take it, and it must be raised again.
    pub(super) fn raise(&mut self, alert: Alert) -> bool {
        // sd-daemon(3): a line's priority, here LOG_ALERT.
        let priority = if self.journal { "<1>" } else { "" };
        if self.output.is_json() {
            eprintln!("{priority}{}", serde_json::json!({ "alert": alert }));
        } else {
            eprintln!("{priority}alert: {}", alert.line());
        }
        let delivered = self.post(&alert);
        self.raised.push(alert);
        if let Err(why) = &delivered {
            self.undelivered += 1;
            self.output.warn(&format!("the webhook did not take an alert, which is raised again: {why}"));
        }
        delivered.is_ok()
    }

    fn post(&self, alert: &Alert) -> Result<(), String> {
        let Some((web, url, authorization)) = &self.webhook else { return Ok(()) };
        let body = serde_json::to_vec(alert).map_err(|error| error.to_string())?;
        let authorization = authorization.as_ref().map(|value| value.as_str());
        let mut backoff = Backoff::new(MAX_PAUSE);
        let mut attempt = 1;
        loop {
            match web.post(url, "application/json", authorization, &body) {
                Err(_) if attempt < ATTEMPTS => std::thread::sleep(backoff.next()),
                done => return done,
            }
            attempt += 1;
        }
    }
}
