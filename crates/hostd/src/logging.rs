//! Logs: text, JSON or journald, with a level that a reload can change.

use std::io::IsTerminal;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{Registry, fmt, reload};

use crate::config::LogFormat;

/// Changes the log level of a running process.
#[derive(Clone, Debug)]
pub struct LogLevel(reload::Handle<Targets, Registry>);

impl LogLevel {
    /// Filters by `level` from now on.
    ///
    /// # Errors
    /// `level` is not of the form `LEVEL[,TARGET=LEVEL…]`.
    pub fn change(&self, level: &str) -> Result<(), String> {
        let filter = targets(level).map_err(|e| format!("log.level: {e}"))?;
        self.0.reload(filter).map_err(|e| e.to_string())
    }
}

/// Reads `LEVEL[,TARGET=LEVEL…]`.
///
/// # Errors
/// It is not of that form.
pub fn targets(level: &str) -> Result<Targets, String> {
    level.parse().map_err(|e: tracing_subscriber::filter::ParseError| e.to_string())
}

/// Starts logging to standard error, or to journald.
///
/// # Errors
/// The level is not in filter syntax, or journald cannot be reached.
pub fn start(format: LogFormat, level: &str) -> Result<LogLevel, String> {
    let filter = targets(level).map_err(|e| format!("log.level: {e}"))?;
    let (filter, handle) = reload::Layer::new(filter);
    let registry = tracing_subscriber::registry().with(filter);
    let started = match format {
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal();
            let text = fmt::layer().with_writer(std::io::stderr).with_target(false).with_ansi(colours);
            registry.with(text).try_init()
        }
        LogFormat::Json => {
            registry.with(fmt::layer().json().flatten_event(true).with_writer(std::io::stderr)).try_init()
        }
        LogFormat::Journald => {
            let journald = tracing_journald::layer().map_err(|e| format!("log.format: journald: {e}"))?;
            registry.with(journald).try_init()
        }
    };
    started.map_err(|e| e.to_string())?;
    Ok(LogLevel(handle))
}
