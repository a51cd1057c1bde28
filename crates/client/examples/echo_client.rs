//! An agent that calls another one over mutual TLS and says who answered.
//!
//! ```text
//! cargo run -p hallmark-client --example echo_client -- --connect 127.0.0.1:7443 --min-tier foundation hello
//! ```
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use hallmark_client::{
    HallmarkClient, PeerPolicy, PeerRefusal, SpiffeId, Tier, any_server_name, default_socket,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

#[derive(Parser)]
struct Args {
    /// Whom to call
    #[arg(long, default_value = "127.0.0.1:7443")]
    connect: SocketAddr,
    /// The tier that the server must have at least
    #[arg(long, default_value = "foundation")]
    min_tier: Tier,
    /// Only this server; any agent of the trust domain when it is not named
    #[arg(long)]
    peer: Option<SpiffeId>,
    /// Accept a key in a software TPM
    #[arg(long)]
    accept_simulated: bool,
    /// The host daemon's socket
    #[arg(long)]
    socket: Option<PathBuf>,
    /// The registration wanted, where more than one matches this process
    #[arg(long, default_value = "")]
    agent: String,
    /// How many seconds to wait for an identity
    #[arg(long, default_value_t = 30)]
    wait: u64,
    /// What to say
    #[arg(default_value = "hello")]
    message: String,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> ExitCode {
    match call(Args::parse()).await {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            match PeerRefusal::cause(error.as_ref()) {
                Some(refusal) => eprintln!("refused: {refusal}"),
                None => eprintln!("failed: {error}"),
            }
            ExitCode::FAILURE
        }
    }
}

async fn call(args: Args) -> Result<(), Box<dyn std::error::Error>> {
    let socket = args.socket.unwrap_or_else(default_socket);
    let mut identity = HallmarkClient::connect_to(socket).await?.watch_as(&args.agent)?;
    let own = identity.wait_ready(Duration::from_secs(args.wait)).await?;
    println!("identity {} {} {}", own.spiffe_id, own.tier, own.custody);

    let mut policy = PeerPolicy::at_least(args.min_tier).accept_simulated(args.accept_simulated);
    if let Some(peer) = args.peer {
        policy = policy.spiffe_ids([peer]);
    }
    let connector = TlsConnector::from(Arc::new(identity.tls_client(policy)?));
    let stream = TcpStream::connect(args.connect).await?;
    let mut stream = connector.connect(any_server_name(), stream).await?;
    let peer = identity.peer(stream.get_ref().1)?;
    println!("peer {} {} {}", peer.spiffe_id, peer.tier, peer.agent_info.custody);

    // In TLS 1.3 a client hears that the server refused its certificate when it first reads.
    stream.write_all(args.message.as_bytes()).await?;
    stream.shutdown().await?;
    let mut answer = String::new();
    stream.take(1 << 20).read_to_string(&mut answer).await?;
    println!("echo {answer}");
    Ok(())
}
