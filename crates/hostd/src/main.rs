//! `hallmark-hostd`: see the library.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use hallmark_hostd::config::Config;
use hallmark_hostd::{daemon, logging};
use hallmark_hsm::{EXIT_PIN_REFUSED, HsmError};
use rustix::process::{DumpableBehavior, Resource, Rlimit};

/// Gives the memory of agents that have gone back to the system, which the C library's does not: at once, as
/// `allocator.c` sets it up.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Two workers: one may be held up by a signature of the host key while the other serves.
const WORKERS: usize = 2;
/// Threads for what blocks (procfs, images, tokens); more would only cost stacks.
const BLOCKING: usize = 8;

/// The host daemon: attests this host, and gives the agents on it their identities.
#[derive(Parser)]
#[command(name = "hallmark-hostd", version, about, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Runs the daemon.
    Run {
        /// Its configuration.
        #[arg(long, default_value = "/etc/hallmark/hostd.toml")]
        config: PathBuf,
    },
    /// Prints the digest of this TPM's endorsement key, which `hallmark host allow` names the host by.
    Ek {
        /// The daemon's configuration. The daemon must not be running on a TPM that it alone owns.
        #[arg(long, default_value = "/etc/hallmark/hostd.toml")]
        config: PathBuf,
    },
    /// Checks a configuration, says everything that is wrong with it, and runs nothing.
    CheckConfig {
        /// The configuration.
        #[arg(long, default_value = "/etc/hallmark/hostd.toml")]
        config: PathBuf,
    },
    /// Writes the manual pages, one for each subcommand, for packages.
    #[command(hide = true)]
    ManPages {
        /// Where to: a directory.
        directory: PathBuf,
    },
}

fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Run { config } => run(&config),
        Command::Ek { config } => ek(&config),
        Command::CheckConfig { config } => check(&config),
        Command::ManPages { directory } => clap_mangen::generate_to(Cli::command(), &directory)
            .with_context(|| format!("writing to {}", directory.display())),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hallmark-hostd: {error:#}");
            if HsmError::is_pin_refusal(error.as_ref()) {
                return ExitCode::from(EXIT_PIN_REFUSED);
            }
            ExitCode::FAILURE
        }
    }
}

fn check(file: &std::path::Path) -> anyhow::Result<()> {
    let config = Config::load(file)?;
    println!("{}: sound; host {} of {}", file.display(), config.host_id, config.trust_domain);
    Ok(())
}

fn ek(file: &std::path::Path) -> anyhow::Result<()> {
    let config = Config::load(file)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    println!("{}", runtime.block_on(daemon::ek(&config))?);
    Ok(())
}

fn run(file: &std::path::Path) -> anyhow::Result<()> {
    let config = Config::load(file)?;
    let log = logging::start(config.log_format, &config.log_level).map_err(anyhow::Error::msg)?;
    protect_memory().context("keys in memory cannot be kept out of core dumps")?;
    raise_descriptors();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(WORKERS)
        .max_blocking_threads(BLOCKING)
        .enable_all()
        .build()
        .context("the runtime cannot be started")?;
    let ended = runtime.block_on(daemon::run(config, log));
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    Ok(ended?)
}

/// No core dump, and no debugger of the same user: software keys are in this memory until they are given
/// away, and the PIN of the token while it is open.
fn protect_memory() -> std::io::Result<()> {
    rustix::process::setrlimit(Resource::Core, Rlimit { current: Some(0), maximum: Some(0) })?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    Ok(())
}

/// Each agent takes three descriptors, and 1024 is the usual soft limit.
fn raise_descriptors() {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit { current: limit.maximum, ..limit };
    if let Err(error) = rustix::process::setrlimit(Resource::Nofile, raised) {
        tracing::warn!(%error, "the limit of open files cannot be raised");
    }
}
