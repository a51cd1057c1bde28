//! TLS between agents with a fake host daemon each: what is accepted, what is refused, and why.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io;
use std::sync::Arc;
use std::time::Duration;

use hallmark_client::{
    ChainError, Custody, HallmarkClient, IdentitySource, PeerPolicy, PeerRefusal, Tier, any_server_name,
};
use hallmark_kit::agents::{Agents, Issued, Wanted};
use hallmark_kit::fake_hostd::FakeHostd;
use hallmark_kit::pki::{TestDomain, pkcs8, unix_now as now};
use rustls::{ClientConfig, HandshakeKind, RootCertStore, ServerConfig};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_rustls::{TlsAcceptor, TlsConnector, client, server};

const PATIENCE: Duration = Duration::from_secs(30);
const HANDLE: &[u8] = b"key-1";

/// An agent with a host daemon of its own.
struct Agent {
    hostd: FakeHostd,
    source: IdentitySource,
    issued: Issued,
}

async fn agent(domain: &TestDomain, wanted: Wanted) -> Agent {
    let hostd = FakeHostd::start().unwrap();
    let issued = domain.issue(wanted).unwrap();
    hostd.serve(domain.serve(&issued, None));
    ready(hostd, issued).await
}

/// One whose key is held by the daemon.
async fn hardware_agent(domain: &TestDomain, wanted: Wanted) -> Agent {
    let hostd = FakeHostd::start().unwrap();
    let issued = domain.issue(wanted).unwrap();
    hostd.hold_key(HANDLE, &issued.pkcs8);
    hostd.serve(domain.serve(&issued, Some(HANDLE)));
    ready(hostd, issued).await
}

async fn ready(hostd: FakeHostd, issued: Issued) -> Agent {
    let mut source = HallmarkClient::connect_to(hostd.socket()).await.unwrap().watch().unwrap();
    source.wait_ready(PATIENCE).await.unwrap();
    Agent { hostd, source, issued }
}

fn any() -> PeerPolicy {
    PeerPolicy::at_least(Tier::Foundation)
}

impl Agent {
    fn client(&self, policy: PeerPolicy) -> Arc<ClientConfig> {
        Arc::new(self.source.tls_client(policy).unwrap())
    }

    fn server(&self, policy: PeerPolicy) -> Arc<ServerConfig> {
        Arc::new(self.source.tls_server(policy).unwrap())
    }

    /// Serves something else, and waits until the source has it.
    async fn renew(&mut self, identity: hallmark_proto::agent::Identity) {
        self.hostd.serve(identity);
        tokio::time::timeout(PATIENCE, self.source.changed()).await.unwrap().unwrap();
    }
}

type Pipe = tokio::io::DuplexStream;

/// A handshake and one byte each way: in TLS 1.3 a client hears of its refusal only then.
async fn meet(
    client: Arc<ClientConfig>,
    server: Arc<ServerConfig>,
) -> (io::Result<client::TlsStream<Pipe>>, io::Result<server::TlsStream<Pipe>>) {
    let (near, far) = tokio::io::duplex(64 * 1024);
    let client = async {
        let mut stream = TlsConnector::from(client).connect(any_server_name(), near).await?;
        stream.write_all(b"?").await?;
        stream.read_u8().await?;
        Ok(stream)
    };
    let server = async {
        let mut stream = TlsAcceptor::from(server).accept(far).await?;
        stream.read_u8().await?;
        stream.write_all(b"!").await?;
        Ok(stream)
    };
    tokio::time::timeout(PATIENCE, async { tokio::join!(client, server) }).await.expect("no deadlock")
}

/// The reason for which one side refused the other.
fn reason<T>(result: &io::Result<T>) -> &PeerRefusal {
    let error = result.as_ref().err().expect("a refusal");
    PeerRefusal::cause(error).unwrap_or_else(|| panic!("no refusal: {error:?}"))
}

#[tokio::test]
async fn both_sides_know_each_other() {
    let domain = TestDomain::new("example.org", false, now() - 3_600).unwrap();
    let caller = hardware_agent(&domain, Wanted::new("caller", Tier::Advanced)).await;
    let callee = agent(&domain, Wanted::new("callee", Tier::Enterprise)).await;
    let id = callee.issued.spiffe_id.clone();
    let (near, far) = meet(
        caller.client(PeerPolicy::at_least(Tier::Enterprise).spiffe_ids([id.clone()])),
        callee
            .server(PeerPolicy::at_least(Tier::Advanced).matching(|id| id.to_string().ends_with("/caller"))),
    )
    .await;
    let seen = caller.source.peer(near.unwrap().get_ref().1).unwrap();
    assert_eq!(
        (seen.spiffe_id, seen.tier, seen.agent_info.custody),
        (id, Tier::Enterprise, Custody::Software)
    );
    let seen = callee.source.peer(far.unwrap().get_ref().1).unwrap();
    assert_eq!((seen.tier, seen.agent_info.custody), (Tier::Advanced, Custody::TpmCertified));
    assert_eq!(seen.serial, caller.issued.serial);
    assert_eq!(caller.hostd.signatures(), 1, "the handshake was signed by the daemon");
    let end = callee.source.connection_end(&seen).duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    assert_eq!(end.cast_signed(), caller.issued.not_after.min(callee.issued.not_after));
}

// `tokio::test` runs on one thread: the signer must not wait for the runtime that waits for it.
#[tokio::test]
async fn hardware_on_both_sides_of_one_thread() {
    let domain = TestDomain::new("example.org", false, now() - 3_600).unwrap();
    let caller = hardware_agent(&domain, Wanted::new("caller", Tier::Advanced)).await;
    let callee = hardware_agent(&domain, Wanted::new("callee", Tier::Advanced)).await;
    let (near, far) = meet(caller.client(any()), callee.server(any())).await;
    assert!(near.is_ok() && far.is_ok());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_busy_daemon_is_asked_again() {
    let domain = TestDomain::new("example.org", false, now() - 3_600).unwrap();
    let caller = hardware_agent(&domain, Wanted::new("caller", Tier::Advanced)).await;
    let callee = agent(&domain, Wanted::new("callee", Tier::Enterprise)).await;
    caller.hostd.be_busy(3);
    let handshakes: Vec<_> =
        (0..4).map(|_| tokio::spawn(meet(caller.client(any()), callee.server(any())))).collect();
    for handshake in handshakes {
        assert!(handshake.await.unwrap().0.is_ok());
    }
    assert_eq!(caller.hostd.signatures(), 4);
}

#[tokio::test]
async fn a_living_configuration_follows_renewal_and_resumes_nothing() {
    let domain = TestDomain::new("example.org", false, now() - 3_600).unwrap();
    let mut caller = agent(&domain, Wanted::new("caller", Tier::Enterprise)).await;
    let callee = agent(&domain, Wanted::new("callee", Tier::Enterprise)).await;
    let (client, server) = (caller.client(any()), callee.server(any()));
    let before = meet(client.clone(), server.clone()).await.1.unwrap();
    let first = callee.source.peer(before.get_ref().1).unwrap().serial;
    let renewed = domain.issue(Wanted::new("caller", Tier::Enterprise)).unwrap();
    caller.renew(domain.serve(&renewed, None)).await;
    let (near, after) = meet(client, server).await;
    let second = callee.source.peer(after.unwrap().get_ref().1).unwrap().serial;
    assert_eq!((first, second), (caller.issued.serial, renewed.serial));
    assert_eq!(near.unwrap().get_ref().1.handshake_kind(), Some(HandshakeKind::Full));
}

#[tokio::test]
async fn a_living_configuration_follows_the_bundle() {
    let domain = TestDomain::new("example.org", false, now() - 3_600).unwrap();
    let caller = agent(&domain, Wanted::new("caller", Tier::Enterprise)).await;
    let mut callee = agent(&domain, Wanted::new("callee", Tier::Enterprise)).await;
    let server = callee.server(any());
    let whole = domain.serve(&callee.issued, None);
    let mut without = whole.clone();
    without.bundle.as_mut().unwrap().tiers.retain(|t| t.tier != "enterprise");
    callee.renew(without).await;
    let refused = meet(caller.client(any()), server.clone()).await.1;
    assert!(matches!(reason(&refused), PeerRefusal::Chain(ChainError::UntrustedRoot { .. })));
    callee.renew(whole).await;
    assert!(meet(caller.client(any()), server).await.1.is_ok());
}

#[tokio::test]
async fn too_low_a_tier_is_refused_by_either_side() {
    let domain = TestDomain::new("example.org", false, now() - 3_600).unwrap();
    let low = agent(&domain, Wanted::new("low", Tier::Foundation)).await;
    let high = agent(&domain, Wanted::new("high", Tier::Enterprise)).await;
    let demand = || PeerPolicy::at_least(Tier::Enterprise);
    let (near, far) = meet(low.client(any()), high.server(demand())).await;
    let says = reason(&far).to_string();
    assert_eq!(
        says,
        "spiffe://example.org/agent/low is of tier foundation, and at least enterprise is demanded"
    );
    assert!(near.is_err(), "the refused side hears of it");
    let (near, _) = meet(high.client(demand()), low.server(any())).await;
    assert!(matches!(reason(&near), PeerRefusal::TierTooLow { tier: Tier::Foundation, .. }));
    let (near, far) = meet(high.client(any()), high.server(demand())).await;
    assert!(near.is_ok() && far.is_ok());
}

#[tokio::test]
async fn a_foreign_trust_domain_is_refused() {
    let (ours, theirs) = (
        TestDomain::new("example.org", false, now() - 3_600).unwrap(),
        TestDomain::new("evil.example", false, now() - 3_600).unwrap(),
    );
    // The same name does not help: the roots differ.
    let namesake = TestDomain::new("example.org", false, now() - 3_600).unwrap();
    let callee = agent(&ours, Wanted::new("callee", Tier::Foundation)).await;
    for foreign in [&theirs, &namesake] {
        let mut caller = agent(foreign, Wanted::new("caller", Tier::Enterprise)).await;
        let refused = meet(caller.client(any()), callee.server(any())).await;
        // The client, first to see a certificate, is the one that refuses.
        assert!(matches!(reason(&refused.0), PeerRefusal::Chain(ChainError::UntrustedRoot { .. })));
        let mut bundle = foreign.bundle(1);
        bundle.tiers = ours.bundle(1).tiers;
        let identity = foreign.serve(&caller.issued, None);
        caller.renew(hallmark_proto::agent::Identity { bundle: Some(bundle), ..identity }).await;
        let refused = meet(caller.client(any()), callee.server(any())).await;
        let refused = (refused.0.is_err(), refused.1.is_err());
        assert!(refused.0 || refused.1, "a caller who pretends to trust us is no more trusted by us");
    }
}

#[tokio::test]
async fn a_simulated_key_counts_only_where_it_is_asked_for() {
    let domain = TestDomain::lab("example.org").unwrap();
    let caller =
        hardware_agent(&domain, Wanted::new("caller", Tier::Advanced).custody(Custody::Simulated)).await;
    let callee = agent(&domain, Wanted::new("callee", Tier::Enterprise)).await;
    let refused = meet(caller.client(any()), callee.server(any())).await.1;
    assert!(matches!(reason(&refused), PeerRefusal::Chain(ChainError::Simulated { .. })));
    let accepted = meet(caller.client(any()), callee.server(any().accept_simulated(true))).await.1.unwrap();
    assert_eq!(callee.source.peer(accepted.get_ref().1).unwrap().agent_info.custody, Custody::Simulated);
}

#[tokio::test]
async fn somebody_else_is_refused() {
    let domain = TestDomain::new("example.org", false, now() - 3_600).unwrap();
    let mut task = Wanted::new("caller", Tier::Enterprise);
    task.task = Some("t-1".into());
    let caller = agent(&domain, task).await;
    let callee = agent(&domain, Wanted::new("callee", Tier::Enterprise)).await;
    // The agent's id does not stand for its tasks.
    let parent = caller.issued.spiffe_id.parent().unwrap();
    let refused = meet(caller.client(any()), callee.server(any().spiffe_ids([parent]))).await.1;
    assert!(matches!(reason(&refused), PeerRefusal::NotAccepted { .. }));
}

#[tokio::test]
async fn an_expired_certificate_is_refused() {
    let domain = TestDomain::new("example.org", false, now() - 3_600).unwrap();
    let mut old = Wanted::new("caller", Tier::Foundation);
    old.issued_at = now() - 3_000;
    let mut caller = agent(&domain, Wanted::new("caller", Tier::Foundation)).await;
    let callee = agent(&domain, Wanted::new("callee", Tier::Foundation)).await;
    let issued = domain.issue(old).unwrap();
    // A daemon that lies about the end gains nothing.
    let identity = domain.serve(&issued, None);
    caller.renew(hallmark_proto::agent::Identity { not_after: now() + 600, ..identity }).await;
    let refused = meet(caller.client(any()), callee.server(any())).await.1;
    assert!(matches!(reason(&refused), PeerRefusal::Chain(ChainError::Expired { .. })));
}

#[tokio::test]
async fn a_key_that_is_not_the_certificates_is_refused() {
    let domain = TestDomain::new("example.org", false, now() - 3_600).unwrap();
    let caller = hardware_agent(&domain, Wanted::new("caller", Tier::Advanced)).await;
    let callee = agent(&domain, Wanted::new("callee", Tier::Foundation)).await;
    caller.hostd.hold_key(HANDLE, &pkcs8(hallmark_core::x509::Curve::P256));
    let (_, far) = meet(caller.client(any()), callee.server(any())).await;
    let error = far.err().unwrap().to_string();
    assert!(error.contains("BadSignature") || error.contains("signature"), "{error}");
}

#[tokio::test]
async fn a_daemon_that_is_away_fails_the_handshake_at_once() {
    let domain = TestDomain::new("example.org", false, now() - 3_600).unwrap();
    let mut caller = hardware_agent(&domain, Wanted::new("caller", Tier::Advanced)).await;
    let callee = agent(&domain, Wanted::new("callee", Tier::Foundation)).await;
    caller.hostd.stop();
    while caller.source.last_error().is_none() {
        caller.source.changed().await.unwrap();
    }
    let error = meet(caller.client(any()), callee.server(any())).await.0.err().unwrap().to_string();
    assert!(error.contains("hardware key did not sign"), "{error}");
}

#[tokio::test]
async fn strangers_and_old_protocols_are_refused() {
    let domain = TestDomain::new("example.org", false, now() - 3_600).unwrap();
    let callee = agent(&domain, Wanted::new("callee", Tier::Foundation)).await;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let stranger = |version| {
        let mut roots = RootCertStore::empty();
        let tier = hallmark_client::Tier::Foundation;
        roots.add(callee.source.current().unwrap().bundle.roots.of(tier).next().unwrap().clone()).unwrap();
        Arc::new(
            ClientConfig::builder_with_provider(provider.clone())
                .with_protocol_versions(&[version])
                .unwrap()
                .with_root_certificates(roots)
                .with_no_client_auth(),
        )
    };
    let (_, anonymous) = meet(stranger(&rustls::version::TLS13), callee.server(any())).await;
    assert!(anonymous.is_err());
    let (_, old) = meet(stranger(&rustls::version::TLS12), callee.server(any())).await;
    let error = old.err().unwrap().to_string();
    assert!(
        error.contains("Tls13") || error.contains("version") || error.contains("incompatible"),
        "{error}"
    );
}
