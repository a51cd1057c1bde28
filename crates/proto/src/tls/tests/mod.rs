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

mod lifetime;
mod resumption;
mod service;

fn untrusted(e: &PeerError) -> bool {
    matches!(e, PeerError::Chain(ChainError::UntrustedRoot { .. }))
}

#[tokio::test]
async fn issuer_door_refuses_what_is_no_host_of_its_domain() {
    let domain = TestDomain::lab("example.org").unwrap();
    let elsewhere = TestDomain::lab("other.example").unwrap();
    let namesake = TestDomain::lab("example.org").unwrap();
    let knock = async |identity: Arc<SwappableCert>| {
        connect(issuer_door(&domain), client_config(issuers(&domain), Some(identity)).unwrap()).await
    };
    for tier in Tier::ALL {
        let agent = cert(&domain, Hierarchy::Tier(tier), "agent/mailer");
        knock(agent).await.refused_by_server(untrusted);
    }
    knock(cert(&elsewhere, INFRA, "host/web-01")).await.refused_by_server(untrusted);
    knock(cert(&namesake, INFRA, "host/web-01")).await.refused_by_server(untrusted);
    let another_issuer = knock(cert(&domain, INFRA, "issuer/b")).await;
    another_issuer.refused_by_server(|e| matches!(e, PeerError::Kind { expected: "a host", .. }));
}

#[tokio::test]
async fn a_host_talks_to_its_issuer_only() {
    let domain = TestDomain::lab("example.org").unwrap();
    let elsewhere = TestDomain::lab("other.example").unwrap();
    let talk = async |identity: Arc<SwappableCert>| {
        let server = server_config(identity, ClientAuth::None).unwrap();
        connect(server, client_config(issuers(&domain), None).unwrap()).await
    };
    talk(cert(&domain, INFRA, "issuer/a")).await.both_fine();
    talk(cert(&elsewhere, INFRA, "issuer/a")).await.refused_by_client(untrusted);
    talk(cert(&domain, Hierarchy::Tier(Tier::Advanced), "agent/a")).await.refused_by_client(untrusted);
    let a_host = talk(cert(&domain, INFRA, "host/web-02")).await;
    a_host.refused_by_client(|e| matches!(e, PeerError::Kind { expected: "an issuer", .. }));
}

#[tokio::test]
async fn agents_by_tier() {
    let domain = TestDomain::lab("example.org").unwrap();
    for shown in Tier::ALL {
        for demanded in Tier::ALL {
            let identity = cert(&domain, Hierarchy::Tier(shown), "agent/a");
            // The same demand on both sides.
            let accept = || Accept::Agents(agents(&domain, demanded));
            let server = server_config(identity.clone(), ClientAuth::Required(accept())).unwrap();
            let client = client_config(accept(), Some(identity)).unwrap();
            let ends = connect(server, client).await;
            if shown >= demanded {
                ends.both_fine();
            } else {
                ends.refused_by_client(untrusted);
            }
        }
    }
}

#[tokio::test]
async fn agents_by_name_serial_and_custody() {
    let domain = TestDomain::lab("example.org").unwrap();
    let tier = Hierarchy::Tier(Tier::Advanced);
    let identity = domain.identity(tier, "agent/a").unwrap();
    let offer = async |identity: &Identity, demand: AgentDemand| {
        let server =
            server_config(cert(&domain, tier, "agent/server"), ClientAuth::Required(Accept::Agents(demand)))
                .unwrap();
        let anyone = Accept::Agents(agents(&domain, Tier::Foundation));
        connect(server, client_config(anyone, Some(shown(identity))).unwrap()).await
    };
    let demand = || agents(&domain, Tier::Advanced);

    let named =
        |path: &str| AgentDemand { allowed: Some(BTreeSet::from([domain.id(path).unwrap()])), ..demand() };
    offer(&identity, named("agent/a")).await.both_fine();
    let other = offer(&identity, named("agent/b")).await;
    other.refused_by_server(|e| matches!(e, PeerError::NotAllowed { .. }));
    let task = domain.identity(tier, "agent/a/task/t1").unwrap();
    offer(&task, named("agent/a/task/t1")).await.both_fine();
    let other = offer(&task, named("agent/a")).await;
    other.refused_by_server(|e| matches!(e, PeerError::NotAllowed { .. }));

    let revoking = demand();
    revoking.denied.store([identity.leaf.serial].into());
    let revoked = offer(&identity, revoking).await;
    revoked.refused_by_server(|e| matches!(e, PeerError::Revoked { .. }));

    let mut shape = domain.shape();
    shape.custody = Some(Custody::Simulated);
    let simulated = domain.identity_shaped(tier, "agent/a", &shape).unwrap();
    let refused = offer(&simulated, demand()).await;
    refused.refused_by_server(|e| matches!(e, PeerError::Chain(ChainError::Simulated { .. })));
    offer(&simulated, AgentDemand { accept_simulated: true, ..demand() }).await.both_fine();
}

#[tokio::test]
async fn roots_and_certificates_change_while_running() {
    let (old, new) = (TestDomain::lab("example.org").unwrap(), TestDomain::lab("example.org").unwrap());
    let roots: Shared<_> = old.infra_roots().unwrap().into();
    let identity = cert(&old, INFRA, "issuer/a");
    let server = server_config(identity.clone(), ClientAuth::None).unwrap();
    let client = client_config(Accept::Issuers(roots.clone()), None).unwrap();
    let again = async || connect(server.clone(), client.clone()).await;
    again().await.both_fine();
    roots.store(new.infra_roots().unwrap());
    again().await.refused_by_client(untrusted);
    let next = new.identity(INFRA, "issuer/a").unwrap();
    let chain = next.chain.iter().map(|der| CertificateDer::from(der.clone())).collect();
    identity.set(chain, software_key(&next.pkcs8).unwrap()).unwrap();
    let (_, at_client) = again().await.both_fine();
    assert_eq!(at_client.serial, Some(next.leaf.serial));
    identity.clear();
    let ends = again().await;
    ends.server.unwrap_err();
    ends.client.unwrap_err();
}

#[test]
fn a_key_must_be_the_leafs() {
    let domain = TestDomain::lab("example.org").unwrap();
    let (one, other) = (domain.identity(INFRA, "host/a").unwrap(), domain.identity(INFRA, "host/b").unwrap());
    let cert = SwappableCert::new();
    let chain = || one.chain.iter().map(|der| CertificateDer::from(der.clone())).collect::<Vec<_>>();
    let wrong = cert.set(chain(), software_key(&other.pkcs8).unwrap());
    assert!(matches!(wrong, Err(CertError::KeyMismatch)));
    assert!(cert.svid().is_none(), "nothing was taken over");
    assert!(matches!(cert.set(vec![], software_key(&one.pkcs8).unwrap()), Err(CertError::Empty)));
    let junk = cert.set(vec![vec![1, 2, 3].into()], software_key(&one.pkcs8).unwrap());
    assert!(matches!(junk, Err(CertError::Svid(_))));
    assert!(matches!(software_key(b"junk"), Err(CertError::Key(_))));
    cert.set(chain(), software_key(&one.pkcs8).unwrap()).unwrap();
    assert_eq!(cert.not_after(), Some(one.leaf.not_after));
}

async fn token_key_signs() {
    use hallmark_core::x509::{CaKey as _, Curve, SoftwareCaKey};
    let domain = TestDomain::lab("example.org").unwrap();
    for curve in [Curve::P256, Curve::P384] {
        let key = SoftwareCaKey::from_pkcs8(&hallmark_kit::pki::pkcs8(curve)).unwrap();
        let id = domain.id("host/a").unwrap();
        let leaf = domain.leaf(INFRA, &id, key.spki_der(), &domain.shape()).unwrap();
        let identity = SwappableCert::new();
        let chain = vec![leaf.der, domain.ca(INFRA).certificate().clone()];
        identity.set(chain, token_key(Arc::new(key))).unwrap();
        let client = client_config(issuers(&domain), Some(identity)).unwrap();
        connect(issuer_door(&domain), client).await.both_fine();
    }
}

#[tokio::test]
async fn token_keys_on_one_thread() {
    token_key_signs().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn token_keys_on_several_threads() {
    token_key_signs().await;
}
