//! TLS configurations that renew themselves: TLS 1.3 alone, mutual, without resumption.
//!
//! Each handshake asks the identity source for chain, key and roots, so a configuration made once stays
//! right over renewals and bundle changes. Resumption is off because a resumed session verifies nothing:
//! a peer would outlive its certificate and its root.

use std::sync::Arc;
use std::time::SystemTime;

use hallmark_core::id::SpiffeId;
use hallmark_core::tier::Tier;
use hallmark_core::x509::{Usage, VerifiedPeer};
use hallmark_proto::tls::{Accept, ClientAuth, Policy, client_config, server_config};
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{ClientConfig, CommonState, Error, ServerConfig, SignatureScheme};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::identity::instant;
use crate::peer::{PeerPolicy, PeerRefusal, appraise};
use crate::source::IdentitySource;

/// A server name for [`rustls::ClientConnection::new`], which wants one. Peers are known by SPIFFE ID: the
/// name is neither sent nor compared.
pub fn any_server_name() -> ServerName<'static> {
    // An IP address has no SNI form, so nothing could be sent even by a configuration that sends it.
    ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into())
}

impl IdentitySource {
    /// A client configuration that shows this identity and accepts servers by `policy`. It names no
    /// application protocol; set `alpn_protocols` where one is spoken.
    ///
    /// Before the first identity has arrived, and after it was withdrawn, handshakes fail; wait with
    /// [`wait_ready`](Self::wait_ready) first.
    ///
    /// # Errors
    /// The crypto provider cannot do TLS 1.3.
    pub fn tls_client(&self, policy: PeerPolicy) -> Result<ClientConfig, Error> {
        let mut config = client_config(self.demanding(policy), Some(self.shown()))?;
        config.alpn_protocols.clear();
        config.enable_sni = false;
        Ok(config)
    }

    /// A server configuration that shows this identity, demands a certificate of every client, and
    /// accepts clients by `policy`. It names no application protocol, as in
    /// [`tls_client`](Self::tls_client).
    ///
    /// # Errors
    /// The crypto provider cannot do TLS 1.3.
    pub fn tls_server(&self, policy: PeerPolicy) -> Result<ServerConfig, Error> {
        let mut config = server_config(self.shown(), ClientAuth::Required(self.demanding(policy)))?;
        config.alpn_protocols.clear();
        Ok(config)
    }

    /// Who is at the other end of a connection made with one of these configurations, after its
    /// handshake: SPIFFE ID, tier, custody and the rest of what its certificate says.
    ///
    /// # Errors
    /// The handshake is not done, or the roots have changed since and the peer's is no longer among them.
    pub fn peer(&self, connection: &CommonState) -> Result<VerifiedPeer, PeerRefusal> {
        let chain = connection.peer_certificates().ok_or(PeerRefusal::NoCertificate)?;
        let identity = self.current().ok_or(PeerRefusal::NoBundle)?;
        // The policy was enforced in the handshake; this names the peer. An X.509-SVID is good for either
        // role, so which one is named here makes no difference.
        let any = PeerPolicy::at_least(Tier::Foundation).accept_simulated(true);
        appraise(&any, &identity.bundle.roots, chain, Usage::Client, UnixTime::now())
    }

    /// When a connection to this peer should end: with its certificate or with the own one, whichever ends
    /// first. TLS does not see to it.
    pub fn connection_end(&self, peer: &VerifiedPeer) -> SystemTime {
        let own = self.current().map_or(i64::MAX, |identity| identity.not_after);
        instant(own.min(peer.not_after))
    }

    fn demanding(&self, policy: PeerPolicy) -> Accept {
        Accept::By(Arc::new(Demanded { source: self.clone(), policy }))
    }

    fn shown(&self) -> Arc<Shown> {
        Arc::new(Shown(self.clone()))
    }
}

/// What this process shows of itself.
#[derive(Debug)]
struct Shown(IdentitySource);

impl Shown {
    fn certified(&self) -> Option<Arc<CertifiedKey>> {
        let certified = self.0.current().and_then(|identity| identity.certified());
        if certified.is_none() {
            tracing::warn!(error = ?self.0.last_error(), "a handshake without an identity to show");
        }
        certified
    }
}

impl ResolvesClientCert for Shown {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        self.certified()
    }

    fn has_certs(&self) -> bool {
        true
    }
}

impl ResolvesServerCert for Shown {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.certified()
    }
}

/// What is demanded of peers, by the roots of the moment.
#[derive(Debug)]
struct Demanded {
    source: IdentitySource,
    policy: PeerPolicy,
}

impl Policy for Demanded {
    fn appraise(
        &self,
        chain: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
    ) -> Result<SpiffeId, Box<dyn std::error::Error + Send + Sync>> {
        let appraised = self
            .source
            .current()
            .ok_or(PeerRefusal::NoBundle)
            .and_then(|identity| appraise(&self.policy, &identity.bundle.roots, chain, usage, now));
        match appraised {
            Ok(peer) => {
                tracing::debug!(spiffe_id = %peer.spiffe_id, tier = %peer.tier, "peer accepted");
                Ok(peer.spiffe_id)
            }
            Err(refusal) => {
                tracing::debug!(%refusal, "peer refused");
                Err(refusal.into())
            }
        }
    }
}
