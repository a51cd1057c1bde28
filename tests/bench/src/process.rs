//! What the kernel counts of a process, and order in samples.

use std::time::Duration;

use anyhow::{Context, Result};

/// CPU time of a process so far, user and system, ended threads included (proc_pid_stat(5), utime and
/// stime): in ticks of 10 ms (USER_HZ is 100), so measure over seconds.
pub(crate) fn cpu(pid: u32) -> Result<Duration> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat"))?;
    // The second field is the program's name, in brackets, and may hold anything.
    let (_, rest) = stat.rsplit_once(')').context("stat has no name")?;
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let ticks = |n: usize| -> Result<u64> { Ok(fields.get(n).context("stat is short")?.parse()?) };
    Ok(Duration::from_millis(10 * (ticks(11)? + ticks(12)?)))
}

/// CPU time so far of a process and of everything it has begun.
pub(crate) fn cpu_of_tree(pid: u32) -> Result<Duration> {
    let mut sum = cpu(pid)?;
    for task in std::fs::read_dir(format!("/proc/{pid}/task"))? {
        let children = std::fs::read_to_string(task?.path().join("children")).unwrap_or_default();
        for child in children.split_whitespace().filter_map(|child| child.parse().ok()) {
            // One that has ended meanwhile counts no more.
            sum += cpu_of_tree(child).unwrap_or_default();
        }
    }
    Ok(sum)
}

/// Resident memory of a process in MiB: now, and what of it is its own rather than files' pages.
pub(crate) fn resident(pid: u32) -> Result<(f64, f64)> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let mib = |name: &str| -> Result<f64> {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).context("status is short")?;
        let kib: f64 = line.trim_start_matches(':').trim().trim_end_matches("kB").trim().parse()?;
        Ok(round(kib / 1024.0))
    };
    Ok((mib("VmRSS")?, mib("RssAnon")?))
}

/// The sample below which this share of all lies.
pub(crate) fn quantile(sorted: &[f64], share: f64) -> f64 {
    let at = ((sorted.len() as f64 - 1.0) * share).round() as usize;
    sorted.get(at).copied().map_or(0.0, round)
}

/// To two places.
pub(crate) fn round(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
