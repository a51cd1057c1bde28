//! What a token's operations cost this process, as JSON: microseconds of CPU and of wall time for each.
//!
//! Usage: `hsm_ops MODULE TOKEN-LABEL PIN-FILE [ROUNDS]`, or without arguments on a SoftHSM token of its own.
//! Leaves a CA key behind on a token that it is given.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::Context;
use hallmark_hsm::{Curve, Token, TokenConfig};
use hallmark_kit::softhsm::SoftHsm;
use rustix::time::{ClockId, clock_gettime};

fn main() -> anyhow::Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    match args.as_slice() {
        [] => on_softhsm(),
        [module, label, pin_file, rest @ ..] => {
            let pin = std::fs::read_to_string(pin_file).context("read the PIN file")?;
            let rounds = rest.first().map_or(Ok(500), |n| n.parse()).context("ROUNDS is a number")?;
            measure(PathBuf::from(module), label, pin.trim_end(), rounds)
        }
        _ => anyhow::bail!("usage: hsm_ops [MODULE TOKEN-LABEL PIN-FILE [ROUNDS]]"),
    }
}

/// SoftHSM reads its configuration's path from the environment it is started with.
fn on_softhsm() -> anyhow::Result<()> {
    let hsm = SoftHsm::new()?;
    let status = std::process::Command::new(std::env::current_exe()?)
        .arg(hsm.module_path())
        .arg(hsm.label())
        .arg(hsm.pin_file())
        .envs(hsm.env())
        .status()?;
    anyhow::ensure!(status.success(), "the measuring process ended with {status}");
    Ok(())
}

fn measure(module: PathBuf, label: &str, pin: &str, rounds: u32) -> anyhow::Result<()> {
    let token = Token::open(TokenConfig {
        module,
        label: label.to_owned(),
        pin: pin.to_owned().into(),
        max_sessions: 4,
    })?;
    let name = format!("bench-{}", std::process::id());
    let p256 = token.generate_ca_key(&name, name.as_bytes(), Curve::P256)?;
    let name = format!("{name}-p384");
    let p384 = token.generate_ca_key(&name, name.as_bytes(), Curve::P384)?;
    let agent = token.generate_agent_key()?;
    let info = token.info()?;
    let report = serde_json::json!({
        "token": { "model": info.model, "manufacturer": info.manufacturer, "firmware": info.firmware },
        "rounds": rounds,
        "sign_p256": each(rounds, || p256.sign(b"message").map(drop))?,
        "sign_p384": each(rounds, || p384.sign(b"message").map(drop))?,
        "ca_key_found_and_proved": each(rounds, || token.ca_key(p256.label()).map(drop))?,
        "agent_key_sign": each(rounds, || agent.sign_digest([7; 32]).map(drop))?,
        "agent_key_generate_and_destroy": each(rounds, || token.generate_agent_key().map(drop))?,
    });
    println!("{report:#}");
    Ok(())
}

fn each<E>(rounds: u32, mut run: impl FnMut() -> Result<(), E>) -> Result<serde_json::Value, E> {
    for _ in 0..10 {
        run()?;
    }
    let (cpu, wall) = (cpu_time(), Instant::now());
    for _ in 0..rounds {
        run()?;
    }
    let micros = |d: Duration| (d.as_secs_f64() * 1e7 / f64::from(rounds)).round() / 10.0;
    Ok(serde_json::json!({
        "cpu_us": micros(cpu_time().saturating_sub(cpu)),
        "wall_us": micros(wall.elapsed()),
    }))
}

fn cpu_time() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.unsigned_abs(), u32::try_from(now.tv_nsec).unwrap_or(0))
}
