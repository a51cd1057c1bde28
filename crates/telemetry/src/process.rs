//! What Prometheus expects to know of every process (`process_*`), from `/proc/self`.

use std::fmt;
use std::time::{SystemTime, UNIX_EPOCH};

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::{Registry, Unit};
use rustix::process::Resource;
use rustix::time::ClockId;

/// Adds `process_*` and, under `prefix`, `build_info`.
pub fn register(registry: &mut Registry, prefix: &str, version: &'static str) {
    let info = Family::<[(&'static str, &'static str); 1], Gauge>::default();
    info.get_or_create(&[("version", version)]).set(1);
    registry.sub_registry_with_prefix(prefix).register("build_info", "The version that runs; always 1", info);
    registry.register_collector(Box::new(Process { started: unix_seconds() }));
}

/// Seconds since 1970, with their fraction.
pub fn unix_seconds() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |d| d.as_secs_f64())
}

#[derive(Debug)]
struct Process {
    started: f64,
}

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let cpu = rustix::time::clock_gettime(ClockId::ProcessCPUTime);
        let cpu = cpu.tv_sec as f64 + cpu.tv_nsec as f64 / 1e9;
        counter(&mut encoder, "process_cpu", "User and system time spent", Some(&Unit::Seconds), cpu)?;
        let started = "Start of the process, since 1970";
        gauge(&mut encoder, "process_start_time", started, Some(&Unit::Seconds), self.started)?;
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        let number = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key))?;
            line.trim().trim_end_matches(" kB").parse::<f64>().ok()
        };
        let memory = [
            ("process_resident_memory", "Resident memory", "VmRSS:"),
            ("process_virtual_memory", "Virtual memory", "VmSize:"),
        ];
        for (name, help, key) in memory {
            if let Some(kib) = number(key) {
                gauge(&mut encoder, name, help, Some(&Unit::Bytes), kib * 1024.0)?;
            }
        }
        if let Some(threads) = number("Threads:") {
            gauge(&mut encoder, "process_threads", "Threads", None, threads)?;
        }
        if let Ok(open) = std::fs::read_dir("/proc/self/fd") {
            // One of them is the directory that is being read.
            let open = open.count().saturating_sub(1);
            gauge(&mut encoder, "process_open_fds", "Open file descriptors", None, open as f64)?;
        }
        // No limit is no number.
        if let Some(most) = rustix::process::getrlimit(Resource::Nofile).current {
            gauge(&mut encoder, "process_max_fds", "Most file descriptors", None, most as f64)?;
        }
        Ok(())
    }
}

/// Writes one gauge that is read at this moment.
///
/// # Errors
/// The page cannot be written to.
pub fn gauge(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: f64,
) -> Result<(), fmt::Error> {
    let metric = ConstGauge::new(value);
    let encoder = encoder.encode_descriptor(name, &format!("{help}."), unit, metric.metric_type())?;
    metric.encode(encoder)
}

/// Writes one counter that is kept elsewhere.
///
/// # Errors
/// The page cannot be written to.
pub fn counter(
    encoder: &mut DescriptorEncoder<'_>,
    name: &str,
    help: &str,
    unit: Option<&Unit>,
    value: f64,
) -> Result<(), fmt::Error> {
    let metric = ConstCounter::new(value);
    let encoder = encoder.encode_descriptor(name, &format!("{help}."), unit, metric.metric_type())?;
    metric.encode(encoder)
}

/// Writes one gauge for each value of one label.
///
/// # Errors
/// The page cannot be written to.
pub fn gauges<'a>(
    encoder: &mut DescriptorEncoder<'_>,
    (name, help, unit): (&str, &str, Option<&Unit>),
    label: &'static str,
    values: impl IntoIterator<Item = (&'a str, f64)>,
) -> Result<(), fmt::Error> {
    use prometheus_client::metrics::MetricType;
    let mut family = encoder.encode_descriptor(name, &format!("{help}."), unit, MetricType::Gauge)?;
    for (value, number) in values {
        ConstGauge::new(number).encode(family.encode_family(&[(label, value)])?)?;
    }
    Ok(())
}
