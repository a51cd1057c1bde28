//! What a Rust agent links to have, and to demand, a Hallmark identity.
//!
//! **In scope:** the identity of this process as the host daemon serves it, renewed by itself; TLS
//! configurations that follow it; signing with a key that this process cannot see; what is demanded of a
//! peer. **Not in scope:** deciding who may have an identity, network connections, revocation lists (the
//! credentials live for minutes, and the host daemon ends what was revoked).
//!
//! ```no_run
//! use std::{sync::Arc, time::Duration};
//! use hallmark_client::{HallmarkClient, PeerPolicy, Tier};
//!
//! # async fn agent() -> Result<(), Box<dyn std::error::Error>> {
//! // The host daemon knows this process from the kernel: there is nothing to configure here.
//! let mut identity = HallmarkClient::connect().await?.watch()?;
//! identity.wait_ready(Duration::from_secs(10)).await?;
//!
//! // Made once, right for as long as the process lives.
//! let demanded = PeerPolicy::at_least(Tier::Enterprise)
//!     .spiffe_ids(["spiffe://example.org/agent/mail-gateway".parse()?]);
//! let config = Arc::new(identity.tls_client(demanded)?);
//!
//! let mut connection = rustls::ClientConnection::new(config, hallmark_client::any_server_name())?;
//! // … after the handshake:
//! let peer = identity.peer(&connection)?;
//! println!("{} {} {}", peer.spiffe_id, peer.tier, peer.agent_info.custody);
//! # Ok(()) }
//! ```
//!
//! `examples/echo_server.rs` and `examples/echo_client.rs` are a whole pair;
//! `examples/relying_party.rs` demands a tier and says why it refuses.
//!
//! # What blocks
//! rustls signs inside the handshake, on the thread that drives it. With a key in hardware that takes as
//! long as the TPM does: some 0.2 s on real ones. Keep connections open rather than opening one per
//! request, and drive many handshakes on a runtime with several threads. The identity itself is kept by a
//! thread of its own, so nothing deadlocks on a runtime with one.
#![forbid(unsafe_code)]

mod connect;
mod error;
mod identity;
mod peer;
mod sign;
mod source;
mod tls;

pub use connect::{DEFAULT_SOCKET, HallmarkClient, SOCKET_ENV, default_socket};
pub use error::ClientError;
pub use hallmark_core::id::{InstanceId, NameError, SpiffeId, Subject, TrustDomain};
pub use hallmark_core::tier::{Custody, Tier};
pub use hallmark_core::trace::{TraceParent, TraceParentError};
pub use hallmark_core::x509::{AgentInfo, ChainError, Serial, TierRoots, VerifiedPeer};
pub use identity::{Bundle, Identity, IdentityError};
pub use peer::{PeerPolicy, PeerRefusal};
pub use rustls_pki_types::CertificateDer;
pub use source::IdentitySource;
pub use tls::any_server_name;
