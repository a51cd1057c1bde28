//! The bare parts, measured by the examples of the crates they belong to, each in a process of its own.

use std::process::Command;

use anyhow::{Context, Result, bail};
use hallmark_e2e::example;
use serde_json::Value;

use crate::report::Report;

/// What one issuance consists of at least, in CPU microseconds.
#[derive(Clone, Copy)]
pub(crate) struct Parts {
    /// One P-256 verification.
    pub(crate) verify: f64,
    /// One P-256 signature, the key in memory.
    pub(crate) sign: f64,
    /// One certificate built.
    pub(crate) build: f64,
}

impl Parts {
    /// Measures them now, on every CPU at once, and takes the mean: under load every CPU is busy, too, and
    /// a busy machine is slower (clock, caches, hardware threads that share a core).
    pub(crate) fn now() -> Result<Self> {
        let busy = std::thread::available_parallelism()?.get();
        let runs = std::thread::scope(|scope| {
            let runs: Vec<_> = (0..busy).map(|_| scope.spawn(Self::alone)).collect();
            runs.into_iter().map(join).collect::<Result<Vec<_>>>()
        })?;
        let mean = |part: fn(&Self) -> f64| runs.iter().map(part).sum::<f64>() / busy as f64;
        Ok(Self { verify: mean(|p| p.verify), sign: mean(|p| p.sign), build: mean(|p| p.build) })
    }

    /// Measures them in one process, whatever else runs.
    pub(crate) fn alone() -> Result<Self> {
        let json = run("parts")?;
        let us = |key: &str| json[key].as_f64().with_context(|| format!("parts: no {key}"));
        Ok(Self { verify: us("verify_us")?, sign: us("sign_us")?, build: us("build_us")? })
    }

    /// The middle between two measurements: machines change pace.
    pub(crate) fn between(self, other: Self) -> Self {
        let mean = |a: f64, b: f64| f64::midpoint(a, b);
        Self {
            verify: mean(self.verify, other.verify),
            sign: mean(self.sign, other.sign),
            build: mean(self.build, other.build),
        }
    }

    /// Their sum.
    pub(crate) fn sum(self) -> f64 {
        self.verify + self.sign + self.build
    }
}

/// CPU microseconds of one P-256 signature in SoftHSM.
pub(crate) fn softhsm_sign() -> Result<f64> {
    let json = run("hsm_ops")?;
    json["sign_p256"]["cpu_us"].as_f64().context("ops: no sign_p256")
}

/// What each TPM operation takes on a software TPM.
pub(crate) fn tpm(report: &mut Report) -> Result<()> {
    let json = run("tpm_ops")?;
    let ops = json["ops"].as_object().context("ops: none")?;
    for (name, times) in ops {
        let at = |key: &str| times[key].as_f64().unwrap_or_default();
        report.row(
            &format!("TPM {}", name.replace('_', " ")),
            at("p50"),
            "ms",
            &format!("p95 {}", at("p95")),
        );
    }
    report.set("tpm_ops_ms", Value::Object(ops.clone()));
    Ok(())
}

fn join<T>(thread: std::thread::ScopedJoinHandle<'_, Result<T>>) -> Result<T> {
    thread.join().unwrap_or_else(|_| bail!("a measurement panicked"))
}

fn run(name: &str) -> Result<Value> {
    let output = Command::new(example(name)?).env("TSS2_LOG", "all+NONE").output()?;
    if !output.status.success() {
        bail!("{name}: {}\n{}", output.status, String::from_utf8_lossy(&output.stderr));
    }
    Ok(serde_json::from_slice(&output.stdout)?)
}
