//! A relying party: it demands a tier of whoever calls, and says of each whether and why not.
//!
//! ```text
//! cargo run -p hallmark-client --example relying_party -- --listen 127.0.0.1:7444 --min-tier enterprise
//! ```
//!
//! It prints `listening ADDR`, then a line for each caller:
//! `accepted SPIFFE-ID tier=TIER custody=CUSTODY serial=SERIAL` or `refused PEER-ADDRESS: REASON`.
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Parser;
use hallmark_client::{
    HallmarkClient, IdentitySource, PeerPolicy, PeerRefusal, Tier, VerifiedPeer, default_socket,
};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;

#[derive(Parser)]
struct Args {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:7444")]
    listen: SocketAddr,
    /// The tier that a caller must have at least
    #[arg(long)]
    min_tier: Tier,
    /// Accept keys in a software TPM
    #[arg(long)]
    accept_simulated: bool,
    /// The host daemon's socket
    #[arg(long)]
    socket: Option<PathBuf>,
    /// The registration wanted, where more than one matches this process
    #[arg(long, default_value = "")]
    agent: String,
    /// End after this many callers
    #[arg(long)]
    connections: Option<usize>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    let socket = args.socket.unwrap_or_else(default_socket);
    let mut identity = HallmarkClient::connect_to(socket).await?.watch_as(&args.agent)?;
    identity.wait_ready(Duration::from_secs(30)).await?;
    let policy = PeerPolicy::at_least(args.min_tier).accept_simulated(args.accept_simulated);
    let acceptor = TlsAcceptor::from(Arc::new(identity.tls_server(policy)?));
    let listener = TcpListener::bind(args.listen).await?;
    println!("listening {}", listener.local_addr()?);

    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..args.connections.unwrap_or(usize::MAX) {
        let (stream, from) = listener.accept().await?;
        tasks.spawn(receive(stream, from, acceptor.clone(), identity.clone()));
        while tasks.try_join_next().is_some() {}
    }
    tasks.join_all().await;
    Ok(())
}

async fn receive(stream: TcpStream, from: SocketAddr, acceptor: TlsAcceptor, identity: IdentitySource) {
    let patience = Duration::from_secs(20);
    let (stream, peer) = match tokio::time::timeout(patience, meet(stream, acceptor, identity)).await {
        Ok(Ok(met)) => met,
        Ok(Err(reason)) => return println!("refused {from}: {reason}"),
        Err(_) => return println!("refused {from}: no handshake within {patience:?}"),
    };
    let VerifiedPeer { spiffe_id, tier, agent_info, serial, .. } = &peer;
    println!("accepted {spiffe_id} tier={tier} custody={} serial={serial}", agent_info.custody);
    // Whether the caller waits for its welcome is its own affair.
    let _ = tokio::time::timeout(patience, welcome(stream, &peer)).await;
}

async fn meet(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    identity: IdentitySource,
) -> Result<(TlsStream<TcpStream>, VerifiedPeer), String> {
    let stream = acceptor.accept(stream).await.map_err(|error| match PeerRefusal::cause(&error) {
        Some(refusal) => refusal.to_string(),
        None => error.to_string(),
    })?;
    let peer = identity.peer(stream.get_ref().1).map_err(|refusal| refusal.to_string())?;
    Ok((stream, peer))
}

/// Reads what the caller says, to its end, and answers by its name.
async fn welcome(mut stream: TlsStream<TcpStream>, peer: &VerifiedPeer) -> std::io::Result<()> {
    let mut said = Vec::new();
    (&mut stream).take(64 * 1024).read_to_end(&mut said).await?;
    stream.write_all(format!("welcome {} of tier {}", peer.spiffe_id, peer.tier).as_bytes()).await?;
    stream.shutdown().await
}
