//! A tonic service behind [`Listener`], called through [`channel`] and [`unix_channel`].

use std::net::SocketAddr;
use std::pin::Pin;

use tokio_stream::Stream;
use tonic::transport::Server;
use tonic::{Code, Request, Response, Status};

use super::*;
use crate::agent::agent_identity_client::AgentIdentityClient;
use crate::agent::agent_identity_server::{AgentIdentity, AgentIdentityServer};
use crate::agent::{
    Identity as WireIdentity, SignRequest, SignResponse, WatchIdentityRequest, WhoAmIRequest, WhoAmIResponse,
};

/// Says who the caller is, by the connection's word.
struct Mirror;

#[tonic::async_trait]
impl AgentIdentity for Mirror {
    type WatchIdentityStream = Pin<Box<dyn Stream<Item = Result<WireIdentity, Status>> + Send>>;

    async fn watch_identity(
        &self,
        _: Request<WatchIdentityRequest>,
    ) -> Result<Response<Self::WatchIdentityStream>, Status> {
        Ok(Response::new(Box::pin(tokio_stream::pending())))
    }

    async fn sign(&self, _: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        Err(Status::unimplemented("not here"))
    }

    async fn who_am_i(&self, request: Request<WhoAmIRequest>) -> Result<Response<WhoAmIResponse>, Status> {
        let peer = request.extensions().get::<PeerInfo>().cloned().unwrap_or_default();
        let host_id = peer.spiffe_id.map(|id| id.to_string()).unwrap_or_default();
        Ok(Response::new(WhoAmIResponse { host_id, ..Default::default() }))
    }
}

async fn serve(domain: &TestDomain, options: ListenerOptions) -> SocketAddr {
    let identity = cert(domain, INFRA, "issuer/a");
    let config = server_config(identity.clone(), ClientAuth::Optional(hosts(domain))).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listener = Listener::new(tcp, Arc::new(config), identity, options);
    let address = listener.local_addr().unwrap();
    let service = AgentIdentityServer::new(Mirror);
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(listener.incoming()));
    address
}

fn dial(
    domain: &TestDomain,
    address: SocketAddr,
    identity: Option<Arc<SwappableCert>>,
) -> AgentIdentityClient<tonic::transport::Channel> {
    let resolver = identity.clone().map(|i| i as Arc<dyn rustls::client::ResolvesClientCert>);
    let config = Arc::new(client_config(issuers(domain), resolver).unwrap());
    let options = ChannelOptions { identity, ..ChannelOptions::default() };
    AgentIdentityClient::new(channel(&format!("https://{address}"), config, options).unwrap())
}

#[tokio::test]
async fn requests_carry_the_peer() {
    let domain = TestDomain::lab("example.org").unwrap();
    let address = serve(&domain, ListenerOptions::default()).await;
    let host = cert(&domain, INFRA, "host/web-01");
    let reply = dial(&domain, address, Some(host)).who_am_i(WhoAmIRequest {}).await.unwrap();
    assert_eq!(reply.into_inner().host_id, "spiffe://example.org/host/web-01");
    let reply = dial(&domain, address, None).who_am_i(WhoAmIRequest {}).await.unwrap();
    assert_eq!(reply.into_inner().host_id, "");
}

#[tokio::test]
async fn a_refusal_says_why_to_its_own_side() {
    let domain = TestDomain::lab("example.org").unwrap();
    let address = serve(&domain, ListenerOptions::default()).await;
    let elsewhere = TestDomain::lab("example.org").unwrap();
    let status = dial(&elsewhere, address, None).who_am_i(WhoAmIRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    let text = chain_of_sources(&status);
    assert!(text.contains("none of the trusted roots (infrastructure)"), "{text}");
}

fn chain_of_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        text = format!("{text}: {error}");
        source = error.source();
    }
    text
}

#[tokio::test]
async fn a_stream_ends_with_its_connection_and_the_next_call_connects_anew() {
    let domain = TestDomain::lab("example.org").unwrap();
    let options = ListenerOptions { max_age: Some(Duration::from_millis(300)), ..Default::default() };
    let address = serve(&domain, options).await;
    let mut client = dial(&domain, address, None);
    let mut stream = client.watch_identity(WatchIdentityRequest::default()).await.unwrap().into_inner();
    stream.message().await.unwrap_err();
    client.who_am_i(WhoAmIRequest {}).await.unwrap();
}

#[tokio::test]
async fn unix_sockets() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("agent.sock");
    let listener = tokio::net::UnixListener::bind(&path).unwrap();
    let incoming = tokio_stream::wrappers::UnixListenerStream::new(listener);
    let service = AgentIdentityServer::new(Mirror);
    tokio::spawn(Server::builder().add_service(service).serve_with_incoming(incoming));
    AgentIdentityClient::new(unix_channel(&path)).who_am_i(WhoAmIRequest {}).await.unwrap();
    let nobody = unix_channel(directory.path().join("none.sock"));
    let status = AgentIdentityClient::new(nobody).who_am_i(WhoAmIRequest {}).await.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
}

#[test]
fn addresses() {
    let domain = TestDomain::lab("example.org").unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let _inside = runtime.enter();
    let config = Arc::new(client_config(issuers(&domain), None).unwrap());
    let make = |address: &str| channel(address, config.clone(), ChannelOptions::default());
    for good in ["https://issuer.example.org:8443", "https://192.0.2.1:1", "https://[2001:db8::1]:443/"] {
        make(good).unwrap();
    }
    for bad in ["", "issuer:1", "http://issuer:1", "https://issuer", "https://issuer:1/path", "https://:1"] {
        assert!(matches!(make(bad), Err(ChannelError::Address { .. })), "{bad}");
    }
}
