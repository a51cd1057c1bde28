//! `hallmark`: the command of operators and agents.
//!
//! **In scope:** asking the issuer's admin socket and the host daemon's agent socket, showing the answers
//! to people (tables) and programs (JSON), keeping an identity in files for programs that read files.
//! **Not in scope:** deciding anything that the issuer decides.
#![forbid(unsafe_code)]

mod admin;
mod agent;
mod args;
mod failure;
mod files;
mod moment;
mod operator;
mod output;

use std::process::ExitCode;

use clap::{CommandFactory, Parser};

use args::{Cli, Command};
use failure::Failure;
use output::Output;

fn main() -> ExitCode {
    let cli = match Cli::try_parse() {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { failure::USAGE } else { 0 };
            let _ = error.print();
            return ExitCode::from(code);
        }
    };
    let output = Output::new(cli.output, cli.color);
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return output.fail(&Failure::refused(format!("cannot start: {error}"))),
    };
    match runtime.block_on(run(cli, &output)) {
        Ok(code) => ExitCode::from(code),
        Err(failure) => output.fail(&failure),
    }
}

async fn run(cli: Cli, output: &Output) -> Result<u8, Failure> {
    let admin = &cli.admin_socket;
    let socket = &cli.socket;
    match cli.command {
        Command::Status => operator::status::run(admin, output).await,
        Command::Doctor(args) => operator::doctor::run(admin, socket, args, output).await,
        Command::Host(command) => operator::host::run(admin, command, output).await,
        Command::JoinToken(command) => operator::join_token::run(admin, command, output).await,
        Command::Apply(args) => operator::apply::run(admin, args, output).await,
        Command::Agent(command) => operator::agents::run(admin, command, output).await,
        Command::Explain(args) => operator::explain::run(admin, args, output).await,
        Command::Records(args) => operator::records::run(admin, args, output).await,
        Command::Log(command) => operator::log::run(admin, *command, output).await,
        Command::Ca(command) => operator::ca::run(admin, command, output).await,
        Command::Bundle(args) => operator::bundle::run(admin, args, output).await,
        Command::Whoami => agent::whoami::run(socket, output).await,
        Command::Fetch(args) => agent::fetch::run(socket, args, output).await,
        Command::Exec(args) => agent::exec::run(socket, args, output).await,
        Command::Verify(args) => agent::verify::run(admin, socket, args, output).await,
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "hallmark", &mut script);
            output.raw(&script)?;
            Ok(0)
        }
        Command::ManPages { directory } => clap_mangen::generate_to(Cli::command(), &directory)
            .map(|()| 0)
            .map_err(|error| Failure::refused(format!("cannot write to {}: {error}", directory.display()))),
    }
}
