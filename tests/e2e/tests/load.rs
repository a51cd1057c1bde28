//! Under load nothing leaks: 500 agents, each a process of its own, on one host daemon.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use hallmark_e2e::{Agent, Bed, BedOptions, Host, example, registration, wait_until};

/// Agents of a wave: name of the registration, how many.
const WAVE: [(&str, usize); 3] =
    [("agent-foundation", 400), ("agent-enterprise", 80), ("agent-advanced", 20)];
/// Waves. The first ones fill the allocator's free lists, which it does not give back; a leak goes on.
const WAVES: usize = 4;
/// What either daemon's resident memory may still grow by in the last wave: 8 KiB an agent, less than one
/// connection holds.
const GROWTH_KIB: u64 = 4 * 1024;
/// Resident memory of a debug build of either daemon, at the most.
const MEMORY_KIB: u64 = 96 * 1024;

/// What a process holds.
#[derive(Debug, Clone, Copy)]
struct Held {
    descriptors: usize,
    threads: u64,
    resident_kib: u64,
}

fn held(pid: u32) -> Result<Held> {
    let proc = Path::new("/proc").join(pid.to_string());
    let status = std::fs::read_to_string(proc.join("status"))?;
    let number = |key: &str| {
        let line = status.lines().find_map(|l| l.strip_prefix(key)).context("no such line")?;
        anyhow::Ok(line.trim().trim_end_matches(" kB").parse::<u64>()?)
    };
    Ok(Held {
        descriptors: std::fs::read_dir(proc.join("fd"))?.count(),
        threads: number("Threads:")?,
        resident_kib: number("VmRSS:")?,
    })
}

/// Waits until `pid` holds no more descriptors and threads than `before`.
fn returned(what: &str, pid: u32, before: Held) -> Result<Held> {
    let mut last = None;
    let back = wait_until(what, || {
        let now = held(pid).ok()?;
        last = Some(now);
        (now.descriptors <= before.descriptors && now.threads <= before.threads).then_some(now)
    });
    back.with_context(|| format!("{what}: {before:?} before, {last:?} after"))
}

fn tpm_handles(host: &mut Host) -> Result<BTreeMap<&'static str, Vec<String>>> {
    let tpm = host.tpm()?;
    let kinds = ["handles-transient", "handles-loaded-session", "handles-saved-session"];
    kinds.into_iter().map(|kind| Ok((kind, tpm.handles(kind)?))).collect()
}

/// Starts all, sees all served, has the advanced ones sign, ends all: one half in good order, one half
/// without a word.
fn wave(host: &Host, digest: &str) -> Result<()> {
    let mut agents = Vec::new();
    for (name, count) in WAVE {
        for _ in 0..count {
            agents.push((name, Agent::watching(host, name)?));
        }
    }
    let mut instances = std::collections::BTreeSet::new();
    let mut leaves = std::collections::BTreeSet::new();
    for (name, agent) in &mut agents {
        let shown = agent.identity().with_context(|| format!("an agent of {name}"))?;
        ensure!(*name == format!("agent-{}", shown.tier), "{name} was graded {}", shown.tier);
        ensure!(instances.insert(shown.instance), "an instance id was given twice");
        ensure!(leaves.insert(shown.chain), "a certificate was given twice");
        if let Some(handle) = shown.handle {
            agent.tell(&format!("sign {handle} {digest}"))?;
        }
    }
    for (name, agent) in &agents {
        if *name == "agent-advanced" {
            agent.says("signed")?;
        }
    }
    for (turn, (_, agent)) in agents.iter_mut().enumerate() {
        if turn % 2 == 0 { agent.release() } else { agent.kill()? }
    }
    for (turn, (_, agent)) in agents.iter_mut().enumerate() {
        if turn % 2 == 0 {
            agent.wait()?;
        }
    }
    Ok(())
}

/// How many instances of the bed are alive, by the issuer's own count.
fn live(bed: &Bed) -> Option<u64> {
    let out = bed.hallmark_ok(&["agent", "list", "--output", "json"]).ok()?;
    let agents: serde_json::Value = serde_json::from_str(&out).ok()?;
    agents["agents"].as_array()?.iter().map(|a| a["live_instances"].as_u64()).sum()
}

#[test]
fn five_hundred_agents_wave_after_wave_and_nothing_is_left() -> Result<()> {
    let mut bed = Bed::start(BedOptions::default())?;
    let mut host = Host::with_tpm(&bed, "host-1")?;
    host.start(&bed)?;
    let policy = bed.hallmark_ok(&["host", "pcrs", "host-1"])?;
    bed.add_policy(&policy)?;
    let program = example("stub_agent")?;
    let mut toml = String::new();
    for tier in ["foundation", "enterprise", "advanced"] {
        toml.push_str(&registration(&format!("agent-{tier}"), tier, &program, "")?);
    }
    bed.apply(&toml)?;
    let digest = "5a".repeat(32);

    // One agent of each kind first: what is opened once and kept is not a leak.
    for (name, _) in WAVE {
        let mut first = Agent::watching(&host, name)?;
        first.identity()?;
        first.wait()?;
    }
    wait_until("the first agents to be retired", || (live(&bed)? == 0).then_some(()))?;

    let (hostd, issuer) = (host.daemon()?.pid(), bed.issuer()?.pid());
    let before = (held(hostd)?, held(issuer)?);
    let handles = tpm_handles(&mut host)?;
    println!("before: host daemon {:?}, issuer {:?}, TPM {handles:?}", before.0, before.1);

    let mut after = Vec::new();
    for number in 1..=WAVES {
        wave(&host, &digest)?;
        wait_until("every instance to be retired", || (live(&bed)? == 0).then_some(()))?;
        let now = (
            returned("the host daemon to let go", hostd, before.0)?,
            returned("the issuer to let go", issuer, before.1)?,
        );
        let left = tpm_handles(&mut host)?;
        println!("after wave {number}: host daemon {:?}, issuer {:?}, TPM {left:?}", now.0, now.1);
        assert_eq!(left, handles, "TPM handles after wave {number}");
        after.push(now);
    }
    let (last, previous) = (after[WAVES - 1], after[WAVES - 2]);
    for (what, one, two) in [("host daemon", previous.0, last.0), ("issuer", previous.1, last.1)] {
        assert!(two.resident_kib <= MEMORY_KIB, "{what} holds {} KiB", two.resident_kib);
        assert!(
            two.resident_kib <= one.resident_kib + GROWTH_KIB,
            "{what} grew from {} to {} KiB in the last wave",
            one.resident_kib,
            two.resident_kib
        );
    }

    // Ended in good order, the daemon leaves the TPM empty.
    host.stop()?;
    for (kind, left) in tpm_handles(&mut host)? {
        assert!(left.is_empty(), "{kind} after the host daemon ended: {left:?}");
    }
    Ok(())
}
