//! `hallmark join-token create`

use std::path::Path;

use clap::Subcommand;
use hallmark_core::id::HostId;
use hallmark_proto::admin::CreateJoinTokenRequest;
use serde::Serialize;

use crate::admin::{connect, failed};
use crate::failure::Failure;
use crate::moment::{Moment, now};
use crate::output::{Output, Page, Present};

#[derive(Debug, Subcommand)]
pub(crate) enum JoinTokenCommand {
    /// Make a token with which one host may join, once
    #[command(after_help = "\
The token goes to standard output alone; hand it to the host over a way you trust. On the host it is read
from a file or a systemd credential named join-token, never from the command line.

Example:
  hallmark join-token create web-02 --ttl 30m > web-02.token")]
    Create {
        /// The id the host will have
        host: HostId,
        /// How long it may be used, as in 30m or 1h
        #[arg(long, value_name = "TIME", default_value = "1h", value_parser = humantime::parse_duration)]
        ttl: std::time::Duration,
    },
}

pub(crate) async fn run(admin: &Path, command: JoinTokenCommand, output: &Output) -> Result<u8, Failure> {
    let JoinTokenCommand::Create { host, ttl } = command;
    if ttl.as_secs() == 0 {
        return Err(
            Failure::usage("a token must live for at least a second").remedy("for instance --ttl 30m")
        );
    }
    let request = CreateJoinTokenRequest { host_id: host.to_string(), ttl_seconds: ttl.as_secs() };
    let made = connect(admin).await?.create_join_token(request).await.map_err(failed)?.into_inner();
    let expires_at = Moment(made.expires_at);
    output.show(&Token { host_id: host.to_string(), token: made.token, expires_at })?;
    output.note(&format!(
        "For {host}, once, until {}. A host that joins by token reaches the foundation tier only.",
        expires_at.text(now())
    ));
    Ok(0)
}

#[derive(Serialize)]
struct Token {
    host_id: String,
    token: String,
    expires_at: Moment,
}

impl Present for Token {
    fn present(&self, page: &mut Page) {
        page.line(&self.token);
    }
}
