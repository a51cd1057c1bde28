//! Whom a connection accepts, and the rustls verifiers that ask.

use std::collections::{BTreeSet, HashSet};
use std::fmt;
use std::io;
use std::sync::Arc;

use hallmark_core::id::{SpiffeId, Subject};
use hallmark_core::tier::Tier;
use hallmark_core::x509::{
    ChainError, Demand, InfraRoots, Serial, TierRoots, Usage, verify_chain, verify_infrastructure,
};
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::WebPkiSupportedAlgorithms;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, OtherError, PeerIncompatible,
    SignatureScheme,
};

use super::{ClientAuth, Shared, provider};

/// Whom one side of a connection accepts as its peer.
#[derive(Debug, Clone)]
pub enum Accept {
    /// Hosts of the roots' trust domain: what an issuer accepts.
    Hosts(Shared<InfraRoots>),
    /// Issuers of the roots' trust domain: what a host daemon accepts.
    Issuers(Shared<InfraRoots>),
    /// Agents and tasks: what agents and relying parties accept.
    Agents(AgentDemand),
    /// Whoever somebody else's policy accepts.
    By(Arc<dyn Policy>),
}

/// A policy kept elsewhere: what an agent demands of its peers.
pub trait Policy: fmt::Debug + Send + Sync {
    /// Holds a chain, leaf first, against the policy; gives who it is.
    ///
    /// # Errors
    /// Why the peer is refused.
    fn appraise(
        &self,
        chain: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
    ) -> Result<SpiffeId, Box<dyn std::error::Error + Send + Sync>>;
}

/// What an agent or a task must show.
#[derive(Debug, Clone)]
pub struct AgentDemand {
    /// The trust domain's roots by tier. Higher tiers than `minimum` are accepted too.
    pub roots: Shared<TierRoots>,
    /// The lowest tier accepted.
    pub minimum: Tier,
    /// Who is accepted; none means everybody of the trust domain.
    pub allowed: Option<BTreeSet<SpiffeId>>,
    /// Whether a key in a software TPM is good enough (lab trust domains only).
    pub accept_simulated: bool,
    /// Serial numbers that were revoked.
    pub denied: Shared<HashSet<Serial>>,
}

impl AgentDemand {
    /// Everybody of at least this tier, simulated TPMs refused.
    pub fn at_least(minimum: Tier, roots: Shared<TierRoots>) -> Self {
        Self { roots, minimum, allowed: None, accept_simulated: false, denied: Shared::new(HashSet::new()) }
    }
}

/// Why a peer was refused.
#[derive(Debug, thiserror::Error)]
pub enum PeerError {
    /// Its chain does not verify.
    #[error(transparent)]
    Chain(#[from] ChainError),
    /// A host where an issuer was expected, or the other way round.
    #[error("the peer is {found}, expected was {expected}")]
    Kind {
        /// What would have been accepted.
        expected: &'static str,
        /// Who it is.
        found: SpiffeId,
    },
    /// Not one of those accepted here.
    #[error("the peer is {found}, which is not accepted here")]
    NotAllowed {
        /// Who it is.
        found: SpiffeId,
    },
    /// Refused by a policy kept elsewhere.
    #[error(transparent)]
    Policy(Box<dyn std::error::Error + Send + Sync>),
    /// Its certificate was revoked.
    #[error("the certificate {serial} of {found} was revoked")]
    Revoked {
        /// Who it is.
        found: SpiffeId,
        /// The certificate's serial number.
        serial: Serial,
    },
}

impl Accept {
    /// Verifies a peer's chain, leaf first.
    ///
    /// # Errors
    /// Why the peer is refused.
    pub fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
    ) -> Result<SpiffeId, PeerError> {
        match self {
            Accept::Hosts(roots) => {
                let id = verify_infrastructure(chain, &roots.load(), usage, now)?.spiffe_id;
                match id.subject {
                    Subject::Host(_) => Ok(id),
                    _ => Err(PeerError::Kind { expected: "a host", found: id }),
                }
            }
            Accept::Issuers(roots) => {
                let id = verify_infrastructure(chain, &roots.load(), usage, now)?.spiffe_id;
                match id.subject {
                    Subject::Issuer(_) => Ok(id),
                    _ => Err(PeerError::Kind { expected: "an issuer", found: id }),
                }
            }
            Accept::Agents(demand) => demand.verify(chain, usage, now),
            Accept::By(policy) => policy.appraise(chain, usage, now).map_err(PeerError::Policy),
        }
    }
}

impl AgentDemand {
    fn verify(
        &self,
        chain: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
    ) -> Result<SpiffeId, PeerError> {
        let roots = self.roots.load().at_least(self.minimum);
        let demand = Demand { usage, now, accept_simulated: self.accept_simulated };
        let peer = verify_chain(chain, &roots, &demand)?;
        if self.denied.load().contains(&peer.serial) {
            return Err(PeerError::Revoked { found: peer.spiffe_id, serial: peer.serial });
        }
        if self.allowed.as_ref().is_some_and(|ids| !ids.contains(&peer.spiffe_id)) {
            return Err(PeerError::NotAllowed { found: peer.spiffe_id });
        }
        Ok(peer.spiffe_id)
    }
}

/// rustls shows our reason only for debugging; this puts it into words again.
pub(super) fn explain(error: io::Error) -> io::Error {
    let rustls = error.get_ref().and_then(|e| e.downcast_ref::<Error>());
    match rustls {
        Some(Error::InvalidCertificate(CertificateError::Other(OtherError(reason)))) => {
            io::Error::new(error.kind(), format!("the peer was refused: {reason}"))
        }
        _ => error,
    }
}

pub(super) fn server_verifier(accept: Accept) -> Arc<dyn ServerCertVerifier> {
    Arc::new(Verifier::new(Some(accept), true))
}

pub(super) fn client_verifier(auth: ClientAuth) -> Arc<dyn ClientCertVerifier> {
    Arc::new(match auth {
        ClientAuth::None => Verifier::new(None, false),
        ClientAuth::Optional(accept) => Verifier::new(Some(accept), false),
        ClientAuth::Required(accept) => Verifier::new(Some(accept), true),
    })
}

#[derive(Debug)]
struct Verifier {
    accept: Option<Accept>,
    mandatory: bool,
    algorithms: WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn new(accept: Option<Accept>, mandatory: bool) -> Self {
        Self { accept, mandatory, algorithms: provider().signature_verification_algorithms }
    }

    fn verify(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        usage: Usage,
        now: UnixTime,
    ) -> Result<(), Error> {
        let accept = self.accept.as_ref().ok_or(Error::NoCertificatesPresented)?;
        let chain: Vec<_> = std::iter::once(end_entity).chain(intermediates).cloned().collect();
        // The peer gets an alert by kind; the reason stays here, in the error's source.
        accept
            .verify(&chain, usage, now)
            .map(drop)
            .map_err(|e| Error::InvalidCertificate(CertificateError::Other(OtherError(Arc::new(e)))))
    }

    fn verify_handshake(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        rustls::crypto::verify_tls13_signature(message, cert, dss, &self.algorithms)
    }

    fn no_tls12() -> Error {
        Error::PeerIncompatible(PeerIncompatible::Tls12NotOffered)
    }

    /// Those of the profile's two curves.
    fn schemes() -> Vec<SignatureScheme> {
        vec![SignatureScheme::ECDSA_NISTP256_SHA256, SignatureScheme::ECDSA_NISTP384_SHA384]
    }
}

impl ServerCertVerifier for Verifier {
    // The server is known by its SPIFFE ID; the host name only led to its address.
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        self.verify(end_entity, intermediates, Usage::Server, now)?;
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Self::no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_handshake(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::schemes()
    }
}

impl ClientCertVerifier for Verifier {
    fn offer_client_auth(&self) -> bool {
        self.accept.is_some()
    }

    fn client_auth_mandatory(&self) -> bool {
        self.mandatory
    }

    // No hints: a client of ours has one certificate, and the roots change while the server runs.
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        &[]
    }

    fn verify_client_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        self.verify(end_entity, intermediates, Usage::Client, now)?;
        Ok(ClientCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Self::no_tls12())
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        dss: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.verify_handshake(message, cert, dss)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        Self::schemes()
    }
}
