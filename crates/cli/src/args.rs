//! The command line: what there is to ask for, and the help that explains it.

use std::path::PathBuf;

use clap::{Parser, Subcommand, ValueEnum};

use crate::agent::{exec::ExecArgs, fetch::FetchArgs, verify::VerifyArgs};
use crate::operator::{
    agents::AgentCommand, apply::ApplyArgs, bundle::BundleArgs, ca::CaCommand, doctor::DoctorArgs,
    explain::ExplainArgs, host::HostCommand, join_token::JoinTokenCommand, log::LogCommand,
    records::RecordsArgs,
};

/// Where the issuer listens for operators.
pub(crate) const ADMIN_SOCKET: &str = "/run/hallmark-issuer/admin.sock";

const EXIT_CODES: &str = "\
Exit codes:
  0  done; every check passed
  1  refused, or a check failed
  2  the command line is wrong
  3  the issuer or the host daemon cannot be reached

Environment:
  HALLMARK_ADMIN_SOCKET  as --admin-socket
  HALLMARK_AGENT_SOCKET  as --socket
  NO_COLOR               no colours, whatever the terminal";

/// Identities for AI agents: short-lived, graded, and tied to the machine they run on.
///
/// Operators ask the issuer, on the machine it runs on, over its admin socket. Agents, and whoever sets
/// them up, ask the host daemon of their own machine, which knows them from the kernel.
#[derive(Debug, Parser)]
#[command(name = "hallmark", version, after_help = EXIT_CODES, max_term_width = 100, propagate_version = true)]
pub(crate) struct Cli {
    /// The issuer's admin socket
    #[arg(
        long, global = true, value_name = "PATH", env = "HALLMARK_ADMIN_SOCKET", default_value = ADMIN_SOCKET,
        hide_env = true, help_heading = "Connection"
    )]
    pub(crate) admin_socket: PathBuf,

    /// The host daemon's agent socket
    #[arg(
        long, global = true, value_name = "PATH", env = hallmark_client::SOCKET_ENV,
        default_value = hallmark_client::DEFAULT_SOCKET, hide_env = true, help_heading = "Connection"
    )]
    pub(crate) socket: PathBuf,

    /// Answers as a table for people, or as json for programs (errors too)
    #[arg(
        hide_possible_values = true,
        short, long, global = true, value_name = "FORMAT", value_enum, default_value_t = Format::Table,
        help_heading = "Output"
    )]
    pub(crate) output: Format,

    /// Colours: auto (on a terminal, unless NO_COLOR is set), always or never
    #[arg(
        hide_possible_values = true,
        long, global = true, value_name = "WHEN", value_enum, default_value_t = Colour::Auto,
        help_heading = "Output"
    )]
    pub(crate) color: Colour,

    #[command(subcommand)]
    pub(crate) command: Command,
}

/// How answers are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// Tables and sentences
    Table,
    /// One JSON document on standard output; errors as JSON on standard error
    Json,
}

/// When colours are used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Colour {
    /// On a terminal, unless NO_COLOR is set
    Auto,
    /// Always
    Always,
    /// Never
    Never,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// What the issuer is and what it has done (operators)
    Status,
    /// Whether this deployment is sound, and what to do where it is not (operators)
    Doctor(DoctorArgs),
    /// The hosts of the trust domain (operators)
    #[command(subcommand)]
    Host(HostCommand),
    /// Join tokens, for hosts without a TPM: foundation tier only (operators)
    #[command(subcommand)]
    JoinToken(JoinTokenCommand),
    /// Apply registrations from files (operators)
    Apply(ApplyArgs),
    /// The registered agents and their instances (operators)
    #[command(subcommand)]
    Agent(AgentCommand),
    /// Which requirements of which tier an agent meets on a host, and what each control is worth (operators)
    Explain(ExplainArgs),
    /// The issuer's decisions, newest last (operators)
    Records(RecordsArgs),
    /// The log of those decisions: read it, prove and verify it, send it on, watch it (operators, auditors)
    #[command(subcommand)]
    Log(Box<LogCommand>),
    /// The CAs: rotate them, take the trust from one, have an offline root sign one (operators)
    #[command(subcommand)]
    Ca(CaCommand),
    /// The roots that relying parties trust, by tier (operators)
    Bundle(BundleArgs),
    /// What the host daemon sees of the calling process, and which registration it matches (agents)
    Whoami,
    /// Write this process's identity to a directory (agents)
    Fetch(FetchArgs),
    /// Run a program with an identity, and end both together (agents)
    Exec(ExecArgs),
    /// Check a certificate against the roots: tier, custody, who (anyone)
    Verify(VerifyArgs),
    /// Print a completion script for a shell
    #[command(after_help = "Example:\n  hallmark completions bash > /etc/bash_completion.d/hallmark")]
    Completions {
        /// The shell
        shell: clap_complete::Shell,
    },
    /// Write the manual pages, one for each subcommand (for packages)
    #[command(hide = true)]
    ManPages {
        /// Where to: a directory
        directory: PathBuf,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        <Cli as clap::CommandFactory>::command().debug_assert();
    }
}
