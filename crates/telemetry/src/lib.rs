//! What both daemons show of themselves: metrics to a monitoring system, traces to a collector.
//!
//! **In scope:** the place where metrics are served and its configuration ([`endpoint`]), the server
//! ([`server`]), what every process has to show ([`process`]); spans and their way to a collector ([`traces`]).
//! **Not in scope:** what is measured and traced: each daemon's own code says it.
//!
//! Whoever can read metrics learns how much a daemon does and how it fares. They name no agent, no host, no
//! user and no certificate: every label has a fixed, small set of values.
#![forbid(unsafe_code)]

pub mod endpoint;
pub mod process;
pub mod server;
pub mod traces;

pub use endpoint::{Endpoint, RawMetrics};
pub use server::Served;
pub use traces::{RawTraces, Span, TracesConfig};

/// Bounds of histograms of what takes from tens of microseconds to some seconds.
pub const SECONDS: [f64; 14] =
    [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0];

/// Bounds of histograms of how many things were taken in one go.
pub const COUNTS: [f64; 9] = [1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0];

/// Bounds of histograms of ages, from seconds to a day.
pub const AGES: [f64; 12] =
    [1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 900.0, 1800.0, 3600.0, 14_400.0, 86_400.0];
