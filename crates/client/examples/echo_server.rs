//! An agent that answers other agents: mutual TLS by SPIFFE ID and tier, keys wherever custody puts them.
//!
//! ```text
//! cargo run -p hallmark-client --example echo_server -- --listen 127.0.0.1:7443 --min-tier foundation
//! ```
//!
//! It prints `listening ADDR`, then one line for each peer, and sends back what it is sent.
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use clap::Parser;
use hallmark_client::{
    HallmarkClient, IdentitySource, PeerPolicy, PeerRefusal, SpiffeId, Tier, default_socket,
};
use tokio::io::{copy, split};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

#[derive(Parser)]
struct Args {
    /// Where to listen
    #[arg(long, default_value = "127.0.0.1:7443")]
    listen: SocketAddr,
    /// The tier that a peer must have at least
    #[arg(long, default_value = "foundation")]
    min_tier: Tier,
    /// Only these peers; all agents of the trust domain when none is named
    #[arg(long)]
    peer: Vec<SpiffeId>,
    /// Accept keys in a software TPM
    #[arg(long)]
    accept_simulated: bool,
    /// The host daemon's socket
    #[arg(long)]
    socket: Option<PathBuf>,
    /// The registration wanted, where more than one matches this process
    #[arg(long, default_value = "")]
    agent: String,
    /// End after this many connections
    #[arg(long)]
    connections: Option<usize>,
}

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args = Args::parse();
    let socket = args.socket.unwrap_or_else(default_socket);
    let mut identity = HallmarkClient::connect_to(socket).await?.watch_as(&args.agent)?;
    let own = identity.wait_ready(Duration::from_secs(30)).await?;
    println!("identity {} {} {}", own.spiffe_id, own.tier, own.custody);

    let mut policy = PeerPolicy::at_least(args.min_tier).accept_simulated(args.accept_simulated);
    if !args.peer.is_empty() {
        policy = policy.spiffe_ids(args.peer);
    }
    // Made once: each handshake takes the identity and the roots of its moment.
    let acceptor = TlsAcceptor::from(Arc::new(identity.tls_server(policy)?));
    let listener = TcpListener::bind(args.listen).await?;
    println!("listening {}", listener.local_addr()?);

    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..args.connections.unwrap_or(usize::MAX) {
        let (stream, _) = listener.accept().await?;
        tasks.spawn(serve(stream, acceptor.clone(), identity.clone()));
        while tasks.try_join_next().is_some() {}
    }
    tasks.join_all().await;
    Ok(())
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, identity: IdentitySource) {
    let handshake = tokio::time::timeout(Duration::from_secs(20), acceptor.accept(stream)).await;
    let stream = match handshake {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => match PeerRefusal::cause(&error) {
            Some(refusal) => return println!("refused: {refusal}"),
            None => return println!("refused: {error}"),
        },
        Err(_) => return println!("refused: no handshake within 20 s"),
    };
    let peer = match identity.peer(stream.get_ref().1) {
        Ok(peer) => peer,
        Err(refusal) => return println!("refused: {refusal}"),
    };
    println!("accepted {} {} {}", peer.spiffe_id, peer.tier, peer.agent_info.custody);
    // A connection must not outlive the certificates it was opened with.
    let end = identity.connection_end(&peer).duration_since(SystemTime::now()).unwrap_or_default();
    let (mut from, mut to) = split(stream);
    let _ = tokio::time::timeout(end, async {
        copy(&mut from, &mut to).await?;
        tokio::io::AsyncWriteExt::shutdown(&mut to).await
    })
    .await;
}
