//! Logs: text, JSON or journald, with a level that a reload can change.

use std::io::IsTerminal;

use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;
use tracing_subscriber::{EnvFilter, Registry, reload};

use crate::config::LogFormat;

/// Changes the log level of a running process.
#[derive(Clone, Debug)]
pub struct LogLevel(reload::Handle<EnvFilter, Registry>);

impl LogLevel {
    /// Filters by `level` from now on.
    ///
    /// # Errors
    /// `level` is not in `tracing`'s filter syntax.
    pub fn change(&self, level: &str) -> Result<(), String> {
        let filter = EnvFilter::try_new(level).map_err(|e| format!("log.level: {e}"))?;
        self.0.reload(filter).map_err(|e| e.to_string())
    }
}

/// Starts logging to standard error, or to journald.
///
/// # Errors
/// The level is not in filter syntax, or journald cannot be reached.
pub fn start(format: LogFormat, level: &str) -> Result<LogLevel, String> {
    let filter = EnvFilter::try_new(level).map_err(|e| format!("log.level: {e}"))?;
    let (filter, handle) = reload::Layer::new(filter);
    let registry = tracing_subscriber::registry().with(filter);
    let started = match format {
        LogFormat::Text => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .with_writer(std::io::stderr)
                    .with_ansi(std::io::stderr().is_terminal())
                    .with_target(false),
            )
            .try_init(),
        LogFormat::Json => registry
            .with(tracing_subscriber::fmt::layer().json().flatten_event(true).with_writer(std::io::stderr))
            .try_init(),
        LogFormat::Journald => {
            let journald = tracing_journald::layer().map_err(|e| format!("log.format: journald: {e}"))?;
            registry.with(journald).try_init()
        }
    };
    started.map_err(|e| e.to_string())?;
    Ok(LogLevel(handle))
}
