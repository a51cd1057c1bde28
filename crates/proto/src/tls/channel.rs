//! Channels: gRPC over TLS to an issuer, and over a Unix socket on one machine.

use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::{TcpStream, UnixStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::transport::{Channel, Endpoint};

use super::accept::explain;
use super::{CappedStream, PeerInfo, SwappableCert};

/// How a channel behaves.
#[derive(Debug, Clone)]
pub struct ChannelOptions {
    /// Connecting, handshake included, is given up after this long.
    pub connect_timeout: Duration,
    /// An idle connection is probed this often.
    pub keepalive_interval: Duration,
    /// A probe unanswered this long ends the connection.
    pub keepalive_timeout: Duration,
    /// The certificate that the TLS configuration shows: the connection ends with it.
    pub identity: Option<Arc<SwappableCert>>,
    /// The longest a connection lives, certificates aside.
    pub max_age: Option<Duration>,
    /// At which of a name's addresses to begin: clients that differ in it spread over all of them.
    pub spread: usize,
}

impl Default for ChannelOptions {
    fn default() -> Self {
        Self {
            connect_timeout: Duration::from_secs(10),
            keepalive_interval: Duration::from_secs(20),
            keepalive_timeout: Duration::from_secs(10),
            identity: None,
            max_age: None,
            spread: 0,
        }
    }
}

/// Why a channel could not be made.
#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    /// Not an address that can be connected to.
    #[error("{address:?} is not an address of the form https://HOST:PORT: {why}")]
    Address {
        /// The text read.
        address: String,
        /// What is wrong.
        why: String,
    },
}

/// A channel to `https://HOST:PORT`. It connects at the first call, and again whenever the connection has
/// ended.
///
/// # Errors
/// The address is not of that form.
pub fn channel(
    address: &str,
    config: Arc<ClientConfig>,
    options: ChannelOptions,
) -> Result<Channel, ChannelError> {
    let bad =
        |why: &dyn ToString| ChannelError::Address { address: address.to_owned(), why: why.to_string() };
    let uri: Uri = address.parse().map_err(|e| bad(&e))?;
    if uri.scheme_str() != Some("https") {
        return Err(bad(&"the scheme is not https"));
    }
    let host = uri.host().ok_or_else(|| bad(&"there is no host"))?.trim_matches(['[', ']']).to_owned();
    let port = uri.port_u16().ok_or_else(|| bad(&"there is no port"))?;
    if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
        return Err(bad(&"there is a path"));
    }
    let name = ServerName::try_from(host.clone()).map_err(|e| bad(&e))?;
    // tonic would insist on its own TLS for https; the connector below brings TLS, the origin says so.
    let plain = format!("http://{}", uri.authority().map_or("", |a| a.as_str()));
    let endpoint = Endpoint::from_shared(plain)
        .map_err(|e| bad(&e))?
        .origin(uri.clone())
        .connect_timeout(options.connect_timeout)
        .http2_keep_alive_interval(options.keepalive_interval)
        .keep_alive_timeout(options.keepalive_timeout)
        .keep_alive_while_idle(true);
    let first = AtomicUsize::new(options.spread);
    let target = Arc::new(Target { host, port, name, config, options, first });
    Ok(endpoint.connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let target = target.clone();
        async move { target.connect().await.map(TokioIo::new) }
    })))
}

/// A channel over the Unix socket at `path`. It connects at the first call.
pub fn unix_channel(path: impl AsRef<Path>) -> Channel {
    let path: PathBuf = path.as_ref().to_owned();
    // The authority means nothing on a Unix socket, but HTTP/2 wants one.
    Endpoint::from_static("http://localhost").connect_with_connector_lazy(tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    }))
}

struct Target {
    host: String,
    port: u16,
    name: ServerName<'static>,
    config: Arc<ClientConfig>,
    options: ChannelOptions,
    /// The address to begin at: the one that answered last.
    first: AtomicUsize,
}

impl Target {
    /// Tries a name's addresses one after the other: each has its share of the time, so that one that swallows
    /// everything does not keep the others from being tried.
    async fn connect(&self) -> io::Result<CappedStream<TlsStream<TcpStream>>> {
        let late = || io::Error::new(io::ErrorKind::TimedOut, "connecting took too long");
        let whole = self.options.connect_timeout;
        let looked_up = tokio::net::lookup_host((self.host.as_str(), self.port));
        let mut addresses: Vec<SocketAddr> =
            tokio::time::timeout(whole, looked_up).await.map_err(|_| late())??.collect();
        // Resolvers turn the list as they like.
        addresses.sort_unstable();
        addresses.dedup();
        let share = whole / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
        let begin = self.first.load(Ordering::Relaxed);
        let mut failed = io::Error::new(io::ErrorKind::NotFound, format!("{} has no address", self.host));
        for turn in 0..addresses.len() {
            let place = begin.wrapping_add(turn);
            match tokio::time::timeout(share, self.handshake(addresses[place % addresses.len()])).await {
                Ok(Ok(stream)) => {
                    self.first.store(place, Ordering::Relaxed);
                    return Ok(stream);
                }
                Ok(Err(error)) => failed = error,
                Err(_) => failed = late(),
            }
        }
        // The next try begins elsewhere.
        self.first.store(begin.wrapping_add(1), Ordering::Relaxed);
        Err(failed)
    }

    async fn handshake(&self, address: SocketAddr) -> io::Result<CappedStream<TlsStream<TcpStream>>> {
        let socket = TcpStream::connect(address).await?;
        socket.set_nodelay(true)?;
        let remote = socket.peer_addr().ok();
        // Read before the handshake: should the certificate be swapped meanwhile, the earlier end counts.
        let own_not_after = self.options.identity.as_ref().and_then(|i| i.not_after());
        let connecting = TlsConnector::from(self.config.clone()).connect(self.name.clone(), socket);
        let stream = connecting.await.map_err(explain)?;
        let certificates = stream.get_ref().1.peer_certificates();
        let peer = PeerInfo::of_verified(certificates, remote).map_err(io::Error::other)?;
        let time = self.config.time_provider.clone();
        Ok(CappedStream::new(stream, peer, own_not_after, self.options.max_age, time))
    }
}
