//! A host daemon with a fake issuer behind it, and agents in front: in one process, over real sockets.
#![allow(dead_code, unreachable_pub, missing_docs, clippy::unwrap_used, clippy::expect_used)]

pub mod fake_issuer;
pub mod hardware;
pub mod tls_issuer;

use std::path::PathBuf;
use std::sync::Arc;

use hallmark_hostd::agents::{Agents, Limits, Socket, serve};
use hallmark_hostd::keys::KeyStores;
use hallmark_hostd::link::issuer::{Issuer, QuoteWanted};
use hallmark_hostd::state::State;
use hallmark_proto::agent::agent_identity_client::AgentIdentityClient;
use hallmark_proto::agent::{Identity, WatchIdentityRequest};
use hallmark_proto::issuer as wire;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tokio::sync::{mpsc, oneshot, watch};
use tonic::transport::{Channel, Endpoint, Uri};

use fake_issuer::FakeIssuer;
use hardware::FakeHardware;

pub const TRUST_DOMAIN: &str = "example.org";

pub struct Host {
    pub state: Arc<State>,
    pub agents: Arc<Agents>,
    pub issuer: FakeIssuer,
    pub hardware: Arc<FakeHardware>,
    pub connection: watch::Sender<Option<Channel>>,
    pub socket: PathBuf,
    pub quotes: mpsc::UnboundedReceiver<()>,
    stop: Option<oneshot::Sender<()>>,
    server: tokio::task::JoinHandle<()>,
    _dir: tempfile::TempDir,
}

impl Host {
    pub async fn start() -> Self {
        Self::start_with(Limits::default()).await
    }

    pub async fn start_with(limits: Limits) -> Self {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let issuer = FakeIssuer::start(dir.path().join("issuer")).await;
        let (connection, connected) = watch::channel(Some(channel(issuer.socket.clone()).await));
        let (state, revoked) = State::new("host-1".parse().unwrap(), TRUST_DOMAIN.parse().unwrap());
        state.accept_bundles(bundle(1)).unwrap();
        let (asks, mut wanted) = Issuer::new(connected, state.clone());
        let (seen, quotes) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Some(answer) = wanted.recv().await {
                let QuoteWanted { answer, .. } = answer;
                let _ = seen.send(());
                let _ = answer.send(Ok(()));
            }
        });
        let hardware = Arc::new(FakeHardware::default());
        let stores = KeyStores::new(None, Some(hardware.clone()));
        let agents = Agents::new(state.clone(), asks, stores, limits, revoked);
        let socket = dir.path().join("agents");
        let bound = Socket::bind(&socket, 0o666, None).unwrap();
        let (stop, stopped) = oneshot::channel::<()>();
        let served = serve(agents.clone(), bound, async {
            let _ = stopped.await;
        });
        let server = tokio::spawn(served);
        Self {
            state,
            agents,
            issuer,
            hardware,
            connection,
            socket,
            quotes,
            stop: Some(stop),
            server,
            _dir: dir,
        }
    }

    pub fn register(&self, registrations: Vec<wire::Registration>) {
        self.state.accept_registrations(wire::RegistrationSet { revision: 1, registrations }, &mut 0);
    }

    pub async fn agent(&self) -> AgentIdentityClient<Channel> {
        AgentIdentityClient::new(channel(self.socket.clone()).await)
    }

    /// Another connection of this process, and the first identity on it.
    pub async fn watch(&self, agent: &str) -> Result<(Identity, tonic::Streaming<Identity>), tonic::Status> {
        let mut client = self.agent().await;
        let request = WatchIdentityRequest { agent: agent.into() };
        let mut stream = client.watch_identity(request).await?.into_inner();
        let first = stream.message().await?.expect("an identity");
        Ok((first, stream))
    }

    pub async fn stop(mut self) {
        drop(self.stop.take());
        self.server.await.unwrap();
    }
}

/// A software registration that this very process matches.
pub fn mine(agent: &str) -> wire::Registration {
    wire::Registration {
        agent: agent.into(),
        revision: 1,
        tier: "foundation".into(),
        selectors: vec![format!("unix:uid:{}", nix::unistd::geteuid())],
        custody: "software".into(),
        bind_pcrs: vec![],
        lifetime_seconds: 900,
    }
}

pub fn bundle(revision: u64) -> wire::BundleSet {
    let root = format!("root {revision}").into_bytes().into();
    let tiers = vec![wire::TierRoots { tier: "foundation".into(), roots: vec![root] }];
    wire::BundleSet { trust_domain: TRUST_DOMAIN.into(), revision, tiers }
}

pub async fn channel(path: PathBuf) -> Channel {
    Endpoint::from_static("http://localhost")
        .connect_with_connector(tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { UnixStream::connect(path).await.map(TokioIo::new) }
        }))
        .await
        .unwrap()
}

pub async fn until(mut done: impl FnMut() -> bool) {
    for _ in 0..4000 {
        if done() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("it did not come to pass");
}
