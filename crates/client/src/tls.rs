//! TLS configurations that renew themselves: TLS 1.3 alone, mutual, without resumption.
//!
//! Each handshake asks the identity source for chain, key and roots, so a configuration made once stays
//! right over renewals and bundle changes. Resumption is off because a resumed session verifies nothing:
//! a peer would outlive its certificate and its root.

use std::sync::Arc;
use std::time::SystemTime;

use hallmark_core::tier::Tier;
use hallmark_core::x509::{TierRoots, Usage, VerifiedPeer};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, Resumption};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use rustls::{
    CertificateError, ClientConfig, CommonState, DigitallySignedStruct, DistinguishedName, Error, OtherError,
    ServerConfig, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};

use crate::identity::instant;
use crate::peer::{PeerPolicy, PeerRefusal, appraise};
use crate::source::IdentitySource;

/// The signature schemes of the certificate profile's keys, and no other.
const SCHEMES: [SignatureScheme; 2] =
    [SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ECDSA_NISTP384_SHA384];

/// A server name for [`rustls::ClientConnection::new`], which wants one. Peers are known by SPIFFE ID: the
/// name is neither sent nor compared.
pub fn any_server_name() -> ServerName<'static> {
    // An IP address has no SNI form, so nothing could be sent even by a configuration that sends it.
    ServerName::IpAddress(std::net::Ipv4Addr::UNSPECIFIED.into())
}

impl IdentitySource {
    /// A client configuration that shows this identity and accepts servers by `policy`.
    ///
    /// Before the first identity has arrived, and after it was withdrawn, handshakes fail; wait with
    /// [`wait_ready`](Self::wait_ready) first.
    ///
    /// # Errors
    /// The crypto provider cannot do TLS 1.3.
    pub fn tls_client(&self, policy: PeerPolicy) -> Result<ClientConfig, Error> {
        let (verifier, shown) = self.parts(policy);
        let mut config = ClientConfig::builder_with_provider(verifier.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_client_cert_resolver(shown);
        config.resumption = Resumption::disabled();
        config.enable_sni = false;
        Ok(config)
    }

    /// A server configuration that shows this identity, demands a certificate of every client, and
    /// accepts clients by `policy`.
    ///
    /// # Errors
    /// The crypto provider cannot do TLS 1.3.
    pub fn tls_server(&self, policy: PeerPolicy) -> Result<ServerConfig, Error> {
        let (verifier, shown) = self.parts(policy);
        let mut config = ServerConfig::builder_with_provider(verifier.provider.clone())
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_client_cert_verifier(verifier)
            .with_cert_resolver(shown);
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
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

    fn parts(&self, policy: PeerPolicy) -> (Arc<PeerVerifier>, Arc<Shown>) {
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        (Arc::new(PeerVerifier { source: self.clone(), policy, provider }), Arc::new(Shown(self.clone())))
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

/// Verifies the peer by the present roots.
#[derive(Debug)]
struct PeerVerifier {
    source: IdentitySource,
    policy: PeerPolicy,
    provider: Arc<CryptoProvider>,
}

impl PeerVerifier {
    fn verify(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
    ) -> Result<(), Error> {
        let appraised = self.source.current().ok_or(PeerRefusal::NoBundle).and_then(|identity| {
            let roots: &TierRoots = &identity.bundle.roots;
            let chain: Vec<_> = std::iter::once(leaf.clone()).chain(intermediates.iter().cloned()).collect();
            appraise(&self.policy, roots, &chain, usage, now)
        });
        let refusal = match appraised {
            Ok(peer) => {
                tracing::debug!(spiffe_id = %peer.spiffe_id, tier = %peer.tier, "peer accepted");
                return Ok(());
            }
            Err(refusal) => refusal,
        };
        tracing::debug!(%refusal, "peer refused");
        Err(Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(refusal)))))
    }

    fn verify_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signed, &self.provider.signature_verification_algorithms)
    }
}

/// TLS 1.2 is not offered; an implementation that comes here anyway has lost its way.
fn no_tls12() -> Result<HandshakeSignatureValid, Error> {
    Err(Error::General("TLS 1.2 is not spoken here".to_owned()))
}

impl ServerCertVerifier for PeerVerifier {
    fn verify_server_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(leaf, intermediates, Usage::Server, now).map(|()| ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}

impl ClientCertVerifier for PeerVerifier {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        // None are named: the roots change while the configuration lives.
        &[]
    }

    fn verify_client_cert(
        &self,
        leaf: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(leaf, intermediates, Usage::Client, now).map(|()| ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        no_tls12()
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        SCHEMES.to_vec()
    }
}
