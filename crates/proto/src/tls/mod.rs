//! TLS as every Hallmark connection uses it: version 1.3 only, peers known by SPIFFE ID and tier, no
//! resumption, and no connection that outlives a certificate.
//!
//! - [`server_config`] and [`client_config`] make the rustls configurations; whom they let in is an
//!   [`Accept`]. Roots and certificates are swapped while they run ([`Shared`], [`SwappableCert`]).
//! - [`Listener`] accepts connections for a tonic server; each request then carries a [`PeerInfo`].
//! - [`channel`] opens a tonic channel; [`unix_channel`] one over a Unix socket, without TLS.
//!
//! Resumption is off on both sides: a resumed session skips the certificate checks, so a peer whose root
//! was withdrawn would still come in. ALPN is `h2`; a caller with another protocol sets
//! `alpn_protocols` on the configuration it gets.

mod accept;
mod cert;
mod channel;
mod listener;
mod shared;
mod stream;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::CryptoProvider;
use rustls::server::{NoServerSessionStorage, ResolvesServerCert};
use rustls::{ClientConfig, ServerConfig};

pub use accept::{Accept, AgentDemand, PeerError, Policy};
pub use cert::{CertError, SwappableCert, software_key, token_key};
pub use channel::{ChannelError, ChannelOptions, channel, unix_channel};
pub use listener::{Acceptor, Incoming, Listener, ListenerOptions, TlsConnection};
pub use shared::Shared;
pub use stream::{CappedStream, PeerInfo};

/// HTTP/2, as gRPC speaks it.
const ALPN_H2: &[u8] = b"h2";

/// What a server asks of its clients.
#[derive(Debug, Clone)]
pub enum ClientAuth {
    /// No certificate is asked for.
    None,
    /// A client may come without; one that it shows must be acceptable.
    Optional(Accept),
    /// A client must show an acceptable certificate.
    Required(Accept),
}

/// A server's configuration. Fields such as `alpn_protocols` and `time_provider` may be changed before use.
///
/// # Errors
/// The crypto provider does not support TLS 1.3: our own bug.
pub fn server_config(
    identity: Arc<dyn ResolvesServerCert>,
    client_auth: ClientAuth,
) -> Result<ServerConfig, rustls::Error> {
    let builder = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .with_client_cert_verifier(accept::client_verifier(client_auth));
    let mut config = builder.with_cert_resolver(identity);
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.session_storage = Arc::new(NoServerSessionStorage {});
    config.send_tls13_tickets = 0;
    Ok(config)
}

/// A client's configuration: `accept` says which servers, `identity` what to show them.
///
/// # Errors
/// The crypto provider does not support TLS 1.3: our own bug.
pub fn client_config(
    accept: Accept,
    identity: Option<Arc<dyn ResolvesClientCert>>,
) -> Result<ClientConfig, rustls::Error> {
    let builder = ClientConfig::builder_with_provider(provider())
        .with_protocol_versions(&[&rustls::version::TLS13])?
        .dangerous() // rustls's word for "own verifier"; it checks by SPIFFE ID instead of by host name
        .with_custom_certificate_verifier(accept::server_verifier(accept));
    let mut config = match identity {
        Some(resolver) => builder.with_client_cert_resolver(resolver),
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![ALPN_H2.to_vec()];
    config.resumption = Resumption::disabled();
    Ok(config)
}

/// aws-lc-rs, with the hybrid X25519MLKEM768 first.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::aws_lc_rs::default_provider())
}
