//! What Hallmark costs, measured on its own release binaries: `scripts/bench` builds and runs this.
//!
//! In scope: CPU of the issuer for each issuance and attestation beside the sum of the bare parts, latency,
//! time to an agent's first SVID, TPM operations, resident memory. A table goes to standard output, the
//! same as JSON to a file. Not in scope: judging. Targets are printed beside what was got, and nothing here
//! fails because a machine is slow.
//!
//! CPU time is that of the daemon's process, user and system, as the kernel counts it: it does not depend
//! on how busy the machine is otherwise, or much less than wall time does.
#![forbid(unsafe_code)]

mod agents;
mod attestation;
mod durable;
mod issuance;
mod parts;
mod process;
mod report;
mod store;

use std::path::PathBuf;

use anyhow::Result;
use clap::{Parser, Subcommand, ValueEnum};
use hallmark_e2e::{Bed, BedOptions};

use report::Report;

/// Measures Hallmark's daemons.
#[derive(Parser)]
#[command(name = "hallmark-bench", max_term_width = 100)]
struct Cli {
    /// A short run: fewer rounds, so coarser numbers.
    #[arg(long)]
    quick: bool,
    /// Where the JSON goes.
    #[arg(long, default_value = "target/bench.json")]
    json: PathBuf,
    /// Measure this only; may be repeated. The JSON then holds this only, too.
    #[arg(long, value_enum)]
    only: Vec<Section>,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// One agent: asks for its identity, says how many milliseconds that took, and keeps it until its
    /// standard input ends.
    #[command(hide = true)]
    Agent {
        /// The host daemon's socket.
        socket: PathBuf,
        /// The registration.
        name: String,
    },
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Section {
    Issuance,
    Softhsm,
    Attestation,
    Tpm,
    Agents,
    Durable,
    Store,
}

fn main() -> Result<()> {
    let cli = Cli::parse();
    if let Some(Command::Agent { socket, name }) = cli.command {
        return agents::one(&socket, &name);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let report = runtime.block_on(measure(&cli))?;
    println!("{}", report.table());
    if let Some(dir) = cli.json.parent() {
        std::fs::create_dir_all(dir)?;
    }
    std::fs::write(&cli.json, format!("{:#}\n", report.json()))?;
    println!("The same as JSON: {}", cli.json.display());
    Ok(())
}

async fn measure(cli: &Cli) -> Result<Report> {
    let wanted = |section| cli.only.is_empty() || cli.only.contains(&section);
    let scale = if cli.quick { 10 } else { 1 };
    let mut report = Report::new(cli.quick);
    if wanted(Section::Issuance) {
        say("issuance, CA key in memory");
        let mut bed = Bed::start(BedOptions { dev: true, ..BedOptions::default() })?;
        issuance::in_memory(&mut bed, scale, &mut report).await?;
    }
    if wanted(Section::Softhsm) {
        say("issuance, CA key in SoftHSM");
        let mut bed = Bed::start(BedOptions::default())?;
        issuance::in_softhsm(&mut bed, scale, &mut report).await?;
    }
    if wanted(Section::Attestation) {
        say("attestation");
        // All of them come from one address.
        let extra = "[limits]\nattestations_per_minute = 1000000\naddress_attestations_per_minute = 1000000";
        let options = BedOptions { dev: true, extra: extra.to_owned(), ..BedOptions::default() };
        let mut bed = Bed::start(options)?;
        attestation::measure(&mut bed, scale, &mut report).await?;
    }
    if wanted(Section::Tpm) {
        say("TPM operations on swtpm");
        parts::tpm(&mut report)?;
    }
    if wanted(Section::Agents) {
        say("agents");
        let mut bed = Bed::start(BedOptions::default())?;
        agents::measure(&mut bed, scale, &mut report)?;
    }
    if wanted(Section::Durable) {
        say("durability: the store by itself, and two issuers on one PostgreSQL");
        durable::measure(scale, &mut report).await?;
    }
    if wanted(Section::Store) {
        say("a store of ten million records (some minutes, and 10 GB for as long)");
        let mut bed = Bed::start(BedOptions::default())?;
        store::measure(&mut bed, scale, &mut report).await?;
    }
    Ok(report)
}

fn say(what: &str) {
    eprintln!("bench: {what}");
}
