//! `hallmark-issuer`: the daemon's command line.
#![forbid(unsafe_code)]

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{CommandFactory, Parser, Subcommand};
use hallmark_hsm::{EXIT_PIN_REFUSED, HsmError};
use hallmark_issuer::backup::{self, Newer};
use hallmark_issuer::config::Config;
use hallmark_issuer::{ek_roots, init, logging, run};

#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Verifies hosts by their TPM, decides, and issues agents' short-lived certificates at three tiers.
#[derive(Parser)]
#[command(name = "hallmark-issuer", version, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Make the trust domain: four roots and their issuing CAs in the token, and the store.
    ///
    /// Run once for each issuer. On a PostgreSQL store that another issuer has made the trust domain in, this one joins
    /// it, with issuing CAs and a log of its own. It refuses where its trust domain already is, and where the token
    /// already holds keys of the names it would use.
    Init {
        /// Configuration file.
        #[arg(long, default_value = "/etc/hallmark/issuer.toml")]
        config: PathBuf,
        /// Make a lab trust domain: software TPMs may count above foundation, and every certificate,
        /// log and status says so. It cannot be changed later.
        #[arg(long)]
        lab: bool,
        /// Allow CA keys in this process's memory (ca.backend = "software"): gone when it ends.
        #[arg(long)]
        dev: bool,
    },
    /// Serve hosts and operators.
    Run {
        /// Configuration file.
        #[arg(long, default_value = "/etc/hallmark/issuer.toml")]
        config: PathBuf,
        /// Allow CA keys in this process's memory (ca.backend = "software"): made anew at each start.
        #[arg(long)]
        dev: bool,
    },
    /// Write a backup of the store into a new file; the issuer may run meanwhile.
    ///
    /// The backup is verified: its records lead to their signed checkpoint. It holds no key: CA keys and the log's key
    /// are in the token, which has backups of its own.
    Backup {
        /// Configuration file.
        #[arg(long, default_value = "/etc/hallmark/issuer.toml")]
        config: PathBuf,
        /// The file to make; it must not exist.
        file: PathBuf,
    },
    /// Put a backup back, where no store is; the issuer must not run.
    ///
    /// The backup is verified first. If the log in files (data_dir/log) has records that the backup lacks, nothing is
    /// done until you say what becomes of them.
    Restore {
        /// Configuration file.
        #[arg(long, default_value = "/etc/hallmark/issuer.toml")]
        config: PathBuf,
        /// Take the records that the backup lacks from the log's files, after verifying them. What they do not say is
        /// decided against whoever it would favour; what is left to do is printed.
        #[arg(long, conflicts_with = "discard_newer")]
        from_log: bool,
        /// Give up the records that the backup lacks: the log's files are moved aside. Whoever kept a later checkpoint
        /// can prove that the log lost records. Credentials given out since are unknown here, join tokens are void, and
        /// what was disabled, removed, ended or revoked since is as it was before the backup.
        #[arg(long)]
        discard_newer: bool,
        /// The backup.
        file: PathBuf,
    },
    /// Check a configuration file and say everything that is wrong with it.
    CheckConfig {
        /// Configuration file.
        #[arg(long, default_value = "/etc/hallmark/issuer.toml")]
        config: PathBuf,
    },
    /// The directory of TPM manufacturers' roots.
    EkRoots {
        #[command(subcommand)]
        command: EkRootsCommand,
    },
    /// Write the manual pages, one for each subcommand, for packages.
    #[command(hide = true)]
    ManPages {
        /// Where to: a directory.
        directory: PathBuf,
    },
}

#[derive(Subcommand)]
enum EkRootsCommand {
    /// Check each certificate of a PEM bundle and put the good ones into the roots directory; what is
    /// refused is named, with the reason.
    Import {
        /// Configuration file.
        #[arg(long, default_value = "/etc/hallmark/issuer.toml")]
        config: PathBuf,
        /// Into the directory for software TPMs (attestation.simulated_ek_roots).
        #[arg(long)]
        simulated: bool,
        /// Take a CA that nothing in the bundle vouches for as a root too: for a vendor's CA whose own
        /// root is not published.
        #[arg(long)]
        anchors: bool,
        /// PEM bundles: roots, intermediates, or both.
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// List the certificates that EK certificates may chain to.
    List {
        /// Configuration file.
        #[arg(long, default_value = "/etc/hallmark/issuer.toml")]
        config: PathBuf,
    },
}

fn main() -> ExitCode {
    // What the issuer keeps is its own; what anybody may have is given its mode by name.
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o027));
    match command(Cli::parse().command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("hallmark-issuer: {error:#}");
            if HsmError::is_pin_refusal(error.as_ref()) {
                return ExitCode::from(EXIT_PIN_REFUSED);
            }
            ExitCode::FAILURE
        }
    }
}

fn command(command: Command) -> anyhow::Result<()> {
    match command {
        Command::Init { config, lab, dev } => {
            let config = Config::load(&config)?;
            runtime()?.block_on(init::init(config, init::Options { lab, dev }))
        }
        Command::Run { config, dev } => {
            let config = Config::load(&config)?;
            let level = logging::start(config.log_format, &config.log_level).map_err(anyhow::Error::msg)?;
            runtime()?.block_on(run::run(config, dev, level))
        }
        Command::Backup { config, file } => {
            runtime()?.block_on(backup::backup(&Config::load(&config)?, &file))
        }
        Command::Restore { config, from_log, discard_newer, file } => {
            let newer = match (from_log, discard_newer) {
                (true, _) => Newer::FromLog,
                (_, true) => Newer::Discard,
                _ => Newer::Refuse,
            };
            runtime()?.block_on(backup::restore(&Config::load(&config)?, &file, newer))
        }
        Command::CheckConfig { config } => {
            Config::load(&config)?;
            println!("{}: no faults", config.display());
            Ok(())
        }
        Command::EkRoots { command: EkRootsCommand::Import { config, simulated, anchors, files } } => {
            ek_roots::import(&Config::load(&config)?, simulated, anchors, &files)
        }
        Command::EkRoots { command: EkRootsCommand::List { config } } => {
            ek_roots::list(&Config::load(&config)?)
        }
        Command::ManPages { directory } => clap_mangen::generate_to(Cli::command(), &directory)
            .with_context(|| format!("writing to {}", directory.display())),
    }
}

fn runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().enable_all().build().context("starting the runtime")
}
