//! The agents' API (`hallmark.agent.v1`) on a Unix socket.
//!
//! Each stream of identities is one instance, with an id and a key of its own. It ends with the stream,
//! with the process, when the process replaces its image, when its registration no longer matches, when
//! its certificate is revoked; and with it its key.

mod body;
mod caller;
mod instance;
mod registry;
mod retry;
mod select;
mod server;
mod share;
mod socket;
mod trace;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::{Duration, Instant};

use hallmark_proto::agent::agent_identity_server::AgentIdentity;
use hallmark_proto::agent::{
    HostState, Identity, Match, SignRequest, SignResponse, WatchIdentityRequest, WhoAmIRequest,
    WhoAmIResponse,
};
use hallmark_telemetry::Span;
use tokio::sync::{mpsc, watch};
use tonic::codegen::Bytes;
use tonic::{Request, Response, Status};

use crate::keys::{KeyError, KeyStores};
use crate::link::issuer::{EndReason, Issuer};
use crate::metrics::{SignRefusal, metrics};
use crate::state::State;
use instance::Instance;
use registry::Registry;
use share::Shares;

pub use caller::CallerError;
pub use instance::InstanceError;
pub use select::SelectError;
pub use server::serve;
pub use share::ShareError;
pub use socket::{Socket, SocketError};

/// What agents may ask for, at most.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Limits {
    /// Instances at once.
    pub max_agents: usize,
    /// Instances of one user at once.
    pub max_agents_per_user: usize,
    /// Instances that one user may begin in a second, in the long run.
    pub begin_per_second_per_user: u32,
    /// Instances that one user may begin at a stroke.
    pub begin_burst_per_user: u32,
    /// Connections at once.
    pub max_connections: usize,
    /// Connections of one user at once.
    pub max_connections_per_user: usize,
    /// Signatures of one instance in a second, in the long run.
    pub sign_per_second: u32,
    /// Signatures of one instance at a stroke.
    pub sign_burst: u32,
    /// Signatures of all instances of one user in a second, in the long run.
    pub sign_per_second_per_user: u32,
    /// Signatures of all instances of one user at a stroke.
    pub sign_burst_per_user: u32,
    /// Signatures of one instance at once.
    pub sign_concurrency: usize,
    /// Largest image that is hashed, in bytes.
    pub max_image_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_agents: 1024,
            max_agents_per_user: 256,
            begin_per_second_per_user: 20,
            begin_burst_per_user: 256,
            max_connections: 2048,
            max_connections_per_user: 1024,
            sign_per_second: 20,
            sign_burst: 40,
            sign_per_second_per_user: 80,
            sign_burst_per_user: 160,
            sign_concurrency: 4,
            max_image_bytes: 1 << 30,
        }
    }
}

/// Everything the agents' API works with.
pub struct Agents {
    state: Arc<State>,
    issuer: Issuer,
    stores: KeyStores,
    limits: RwLock<Arc<Limits>>,
    registry: Registry,
    shares: Arc<Shares>,
    chains: Mutex<VecDeque<Bytes>>,
}

/// CA certificates that instances share: those of three tiers, twice while they are being rotated.
const MAX_AUTHORITIES: usize = 8;

/// How often every process is looked at, besides at each request.
const SWEEP: Duration = Duration::from_secs(1);

impl Agents {
    /// Serves nobody yet: see [`serve`]. Revoked serials come in by `revoked`.
    pub fn new(
        state: Arc<State>,
        issuer: Issuer,
        stores: KeyStores,
        limits: Limits,
        mut revoked: mpsc::Receiver<Vec<Bytes>>,
    ) -> Arc<Self> {
        let agents = Arc::new(Self {
            state,
            issuer,
            stores,
            limits: RwLock::new(Arc::new(limits)),
            registry: Registry::default(),
            shares: Arc::default(),
            chains: Mutex::default(),
        });
        let weak = Arc::downgrade(&agents);
        let mut standing = agents.state.standing.subscribe();
        tokio::spawn(async move {
            let mut sweep = tokio::time::interval(SWEEP);
            sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            loop {
                let serials = tokio::select! {
                    _ = sweep.tick() => None,
                    Some(serials) = revoked.recv() => Some(serials),
                    Ok(()) = standing.changed() => None,
                };
                let Some(agents) = weak.upgrade() else { return };
                if standing.borrow_and_update().disabled {
                    agents.registry.end_all(EndReason::HostDisabled);
                }
                match serials {
                    Some(serials) => agents.registry.revoke(&serials),
                    None => agents.registry.sweep(),
                }
            }
        });
        agents
    }

    /// What agents may ask for now, at most.
    pub fn limits(&self) -> Arc<Limits> {
        self.limits.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes it, for whatever begins from now on.
    pub fn limit(&self, limits: Limits) {
        *self.limits.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(limits);
    }

    /// What the daemon knows from its issuer.
    pub fn state(&self) -> &State {
        &self.state
    }

    /// How many instances are alive.
    pub fn live(&self) -> usize {
        self.registry.len()
    }

    /// When the first of the agents' present certificates ends, seconds since 1970; none where nobody has one.
    pub fn soonest_end(&self) -> Option<i64> {
        self.registry.soonest_end()
    }

    /// How many hardware keys may be signed with.
    pub fn handles(&self) -> usize {
        self.registry.handles()
    }

    /// The leaf by itself, without the message that it came in, and what all agents share once for all.
    fn interned(&self, chain: &[Bytes]) -> Vec<Bytes> {
        let mut shared = self.chains.lock().unwrap_or_else(PoisonError::into_inner);
        let (leaf, authorities) = chain.split_at(chain.len().min(1));
        let known = authorities.iter().map(|der| match shared.iter().find(|known| *known == der) {
            Some(known) => known.clone(),
            None => {
                let der = Bytes::copy_from_slice(der);
                shared.push_front(der.clone());
                shared.truncate(MAX_AUTHORITIES);
                der
            }
        });
        let authorities: Vec<Bytes> = known.collect();
        leaf.iter().map(|der| Bytes::copy_from_slice(der)).chain(authorities).collect()
    }

    /// Ends every instance and tells the issuer; returns when it knows, or after `deadline`.
    pub async fn drain(&self, deadline: Duration) {
        let until = Instant::now() + deadline;
        self.registry.end_all(EndReason::HostShutdown);
        while !self.registry.is_empty() && Instant::now() < until {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        self.issuer.flush(until.saturating_duration_since(Instant::now())).await;
    }
}

/// The service, as tonic calls it.
#[derive(Clone)]
struct Service(Arc<Agents>);

type IdentityStream = tokio_stream::Empty<Result<Identity, Status>>;

#[tonic::async_trait]
impl AgentIdentity for Service {
    type WatchIdentityStream = IdentityStream;

    async fn watch_identity(
        &self,
        request: Request<WatchIdentityRequest>,
    ) -> Result<Response<IdentityStream>, Status> {
        let caller = self.caller(&request)?;
        let span = trace::begin("AgentIdentity/WatchIdentity", &request);
        let wanted = request.into_inner().agent;
        let instance = Instance::begin(self.0.clone(), caller, wanted, span).await.map_err(|error| {
            metrics().not_issued(&error);
            Status::from(&error)
        })?;
        let first = instance.shown().ok_or_else(|| Status::internal("no identity"))?;
        let (sender, receiver) = watch::channel(first);
        tokio::spawn(instance.serve(sender));
        // What is shown becomes the body in `body::fill`.
        let mut answer = Response::new(tokio_stream::empty());
        answer.extensions_mut().insert(body::Watched(receiver));
        Ok(answer)
    }

    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        let span = trace::begin("AgentIdentity/Sign", &request);
        let answer = self.signature(request, &span).await;
        trace::answered(span, answer)
    }

    async fn who_am_i(&self, request: Request<WhoAmIRequest>) -> Result<Response<WhoAmIResponse>, Status> {
        let span = trace::begin("AgentIdentity/WhoAmI", &request);
        trace::answered(span, self.seen(&request))
    }
}

impl Service {
    async fn signature(
        &self,
        request: Request<SignRequest>,
        span: &Span,
    ) -> Result<Response<SignResponse>, Status> {
        let caller = self.caller(&request)?;
        let SignRequest { key_handle, digest } = request.into_inner();
        let digest: [u8; 32] = digest
            .as_ref()
            .try_into()
            .map_err(|_| Status::invalid_argument(format!("a digest of {} bytes, not 32", digest.len())))
            .inspect_err(|_| metrics().sign_refused(SignRefusal::Digest))?;
        let (process, _) = caller.present()?;
        // One answer for a handle that is another's and for one that is nobody's. The same process may run
        // another image than the one the key was made for, and have connected anew.
        let no_key = || {
            metrics().sign_refused(SignRefusal::NoKey);
            Status::permission_denied("no key of this process has that handle")
        };
        let signer = self
            .0
            .registry
            .signer(&key_handle, process.key())
            .filter(|signer| signer.live.caller.present().is_ok())
            .ok_or_else(no_key)?;
        let busy = |why, what: &str| {
            metrics().sign_refused(why);
            Status::resource_exhausted(format!("{what}: wait, and ask again"))
        };
        let _permit = signer.concurrency.try_acquire().map_err(|_| {
            busy(
                SignRefusal::Concurrency,
                "this instance has as many signatures under way as limits.sign_concurrency lets it",
            )
        })?;
        let now = Instant::now();
        if !signer.allow(now) {
            let what = "this instance asks for signatures faster than limits.sign_per_second";
            return Err(busy(SignRefusal::Rate, what));
        }
        if !self.0.shares.sign(process.uid(), &self.0.limits(), now) {
            return Err(busy(
                SignRefusal::UserRate,
                "this user's agents ask for signatures faster than limits.sign_per_second_per_user",
            ));
        }
        let mut signing = span.child("sign");
        signing.say("hallmark.custody", &signer.key.custody());
        signing.say("hallmark.instance", &signer.live.id);
        let signed = signer.key.sign(digest).await;
        drop(signing);
        // Whoever asked must still be there, as he was, when he is answered; and so must the key's owner.
        caller.present().inspect_err(|_| metrics().sign_refused(SignRefusal::Gone))?;
        signer.live.caller.present().map_err(|_| no_key())?;
        match signed {
            Ok(signature) => {
                metrics().signed(signer.key.custody(), now);
                Ok(Response::new(SignResponse { signature: signature.into() }))
            }
            Err(error) => {
                let live = &signer.live;
                metrics().sign_refused((&error).into());
                tracing::warn!(
                    host_id = %self.0.state.host_id, agent = %live.agent, instance = %live.id,
                    reason = %error, "signature not made"
                );
                if matches!(error, KeyError::Hardware { lost: true, .. }) {
                    live.key_lost();
                }
                Err((&error).into())
            }
        }
    }

    fn seen(&self, request: &Request<WhoAmIRequest>) -> Result<Response<WhoAmIResponse>, Status> {
        let caller = self.caller(request)?;
        let (process, seen) = caller.present()?;
        let registrations = self.0.state.registrations.borrow().clone().unwrap_or_default();
        let matches = registrations.iter().map(|registration| {
            let missing: Vec<String> =
                registration.missing(&seen.selectors).iter().map(ToString::to_string).collect();
            Match {
                agent: registration.agent.to_string(),
                tier: registration.tier.to_string(),
                custody: registration.custody.to_string(),
                matches: missing.is_empty(),
                missing,
            }
        });
        let standing = self.0.state.standing.borrow().clone();
        Ok(Response::new(WhoAmIResponse {
            host_id: self.0.state.host_id.to_string(),
            trust_domain: self.0.state.trust_domain.to_string(),
            pid: process.pid(),
            selectors: seen.selectors.iter().map(ToString::to_string).collect(),
            unobserved: seen.unobserved.iter().map(ToString::to_string).collect(),
            matches: matches.collect(),
            host: Some(HostState {
                attested: standing.attested,
                highest_tier: standing.highest_tier,
                unmet: standing.unmet,
                issuer_connected: standing.connected,
                last_error: standing.last_error,
            }),
        }))
    }

    fn caller<T>(&self, request: &Request<T>) -> Result<caller::Caller, Status> {
        let caller = request.extensions().get::<caller::Caller>().cloned();
        let caller = caller.ok_or_else(|| Status::internal("a connection without a caller"))?;
        if let Err(error) = caller.present() {
            tracing::warn!(host_id = %self.0.state.host_id, reason = %error, "request refused");
            return Err(error.into());
        }
        Ok(caller)
    }
}
