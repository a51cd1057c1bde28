//! Real TLS over loopback: what comes in, and each thing that must not.

#![allow(missing_docs)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use hallmark_core::tier::{Custody, Hierarchy, Tier};
use hallmark_core::x509::ChainError;
use hallmark_kit::pki::{Identity, TestDomain};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::time_provider::TimeProvider;
use rustls::{CertificateError, ClientConfig, ProtocolVersion, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::*;

const INFRA: Hierarchy = Hierarchy::Infrastructure;

fn shown(identity: &Identity) -> Arc<SwappableCert> {
    let cert = SwappableCert::new();
    let chain = identity.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    cert.set(chain, software_key(&identity.pkcs8).unwrap()).unwrap();
    cert
}

fn cert(domain: &TestDomain, hierarchy: Hierarchy, path: &str) -> Arc<SwappableCert> {
    shown(&domain.identity(hierarchy, path).unwrap())
}

fn hosts(domain: &TestDomain) -> Accept {
    Accept::Hosts(domain.infra_roots().unwrap().into())
}

fn issuers(domain: &TestDomain) -> Accept {
    Accept::Issuers(domain.infra_roots().unwrap().into())
}

fn agents(domain: &TestDomain, minimum: Tier) -> AgentDemand {
    AgentDemand::at_least(minimum, domain.tier_roots().unwrap().into())
}

/// A server's and a client's end of one connection.
struct Ends {
    server: std::io::Result<(PeerInfo, ProtocolVersion)>,
    client: std::io::Result<PeerInfo>,
}

/// One connection: both sides' handshake, then one byte each way (a TLS 1.3 client learns of its refusal
/// only when it reads).
async fn connect(server: ServerConfig, client: ClientConfig) -> Ends {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let server = tokio::spawn(async move {
        let (socket, remote) = listener.accept().await?;
        let mut stream = TlsAcceptor::from(Arc::new(server)).accept(socket).await?;
        let peer = PeerInfo::of_verified(stream.get_ref().1.peer_certificates(), Some(remote)).unwrap();
        let version = stream.get_ref().1.protocol_version().unwrap();
        stream.write_u8(7).await?;
        assert_eq!(stream.read_u8().await?, 8);
        Ok((peer, version))
    });
    let client = async move {
        let socket = TcpStream::connect(address).await?;
        let name = ServerName::try_from("issuer.invalid").unwrap();
        let mut stream = TlsConnector::from(Arc::new(client)).connect(name, socket).await?;
        let peer = PeerInfo::of_verified(stream.get_ref().1.peer_certificates(), None).unwrap();
        assert_eq!(stream.read_u8().await?, 7);
        stream.write_u8(8).await?;
        Ok(peer)
    };
    let client = client.await;
    Ends { server: server.await.unwrap(), client }
}

/// What our own verifier said.
fn reason(error: &std::io::Error) -> &PeerError {
    let Some(rustls::Error::InvalidCertificate(CertificateError::Other(other))) =
        error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>())
    else {
        panic!("not refused by the verifier: {error:?}");
    };
    other.0.downcast_ref().unwrap()
}

impl Ends {
    #[track_caller]
    fn both_fine(self) -> (PeerInfo, PeerInfo) {
        (self.server.unwrap().0, self.client.unwrap())
    }

    #[track_caller]
    fn refused_by_server(self, expected: impl Fn(&PeerError) -> bool) {
        let error = self.server.unwrap_err();
        assert!(expected(reason(&error)), "{error:?}");
        self.client.unwrap_err();
    }

    #[track_caller]
    fn refused_by_client(self, expected: impl Fn(&PeerError) -> bool) {
        let error = self.client.unwrap_err();
        assert!(expected(reason(&error)), "{error:?}");
        self.server.unwrap_err();
    }
}

fn issuer_door(domain: &TestDomain) -> ServerConfig {
    server_config(cert(domain, INFRA, "issuer/a"), ClientAuth::Optional(hosts(domain))).unwrap()
}

#[tokio::test]
async fn host_and_issuer_know_each_other() {
    let domain = TestDomain::lab("example.org").unwrap();
    let client = client_config(issuers(&domain), Some(cert(&domain, INFRA, "host/web-01"))).unwrap();
    let (at_server, at_client) = connect(issuer_door(&domain), client).await.both_fine();
    assert_eq!(at_server.spiffe_id, Some(domain.id("host/web-01").unwrap()));
    assert_eq!(at_client.spiffe_id, Some(domain.id("issuer/a").unwrap()));
    assert_eq!(at_server.not_after, Some(domain.now + 600));
}

#[tokio::test]
async fn a_host_without_certificate_may_knock() {
    let domain = TestDomain::lab("example.org").unwrap();
    let client = client_config(issuers(&domain), None).unwrap();
    let (at_server, _) = connect(issuer_door(&domain), client).await.both_fine();
    assert_eq!(at_server.spiffe_id, None);
    let required =
        server_config(cert(&domain, INFRA, "issuer/a"), ClientAuth::Required(hosts(&domain))).unwrap();
    let ends = connect(required, client_config(issuers(&domain), None).unwrap()).await;
    ends.server.unwrap_err();
    ends.client.unwrap_err();
}
