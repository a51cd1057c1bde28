//! The identity of this process, kept current by a thread of its own.
//!
//! One thread with a current-thread runtime holds the one connection to the host daemon: it watches for
//! renewals and carries signatures. It is independent of the caller's runtime, so an identity renews
//! itself, and a handshake gets its signature, even while the caller's runtime is blocked; and a program
//! without a runtime can use it too.

use std::fmt;
use std::hash::{BuildHasher, Hasher, RandomState};
use std::path::PathBuf;
use std::sync::{Arc, mpsc as reply};
use std::time::{Duration, SystemTime};

use hallmark_core::trace::TraceParent;
use hallmark_proto::agent::agent_identity_client::AgentIdentityClient;
use hallmark_proto::agent::{self as wire, WatchIdentityRequest};
use tokio::sync::{Semaphore, mpsc, watch};
use tonic::Streaming;
use tonic::transport::Channel;

use crate::connect::{channel, sign, traced};
use crate::error::ClientError;
use crate::identity::Identity;
use crate::sign::{DEADLINE, QUEUE, SignLink, SignRequest};

/// First and longest wait between two attempts to reach the host daemon.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// Signatures asked of the daemon at once.
const SIGNING_AT_ONCE: usize = 2;

/// The identity of this process, now and as it is renewed. Clones share one connection.
#[derive(Clone)]
pub struct IdentitySource {
    state: watch::Receiver<State>,
    // Its last clone's end ends the thread.
    requests: mpsc::Sender<SignRequest>,
}

#[derive(Clone, Default)]
struct State {
    identity: Option<Arc<Identity>>,
    error: Option<ClientError>,
    refused: bool,
}

impl IdentitySource {
    /// The identity, if there is one and it is still valid.
    pub fn current(&self) -> Option<Arc<Identity>> {
        let state = self.state.borrow();
        state.identity.as_ref().filter(|identity| identity.is_valid_at(SystemTime::now())).cloned()
    }

    /// What keeps the source from the host daemon at the moment, if anything does. An identity that is
    /// still valid goes on being served meanwhile, unless the daemon has withdrawn it.
    pub fn last_error(&self) -> Option<ClientError> {
        self.state.borrow().error.clone()
    }

    /// Whether the daemon was asked anew and refused. When a registration changes, the daemon withdraws the
    /// identity, and a new one follows at once: then this stays false.
    pub fn is_refused(&self) -> bool {
        self.state.borrow().refused
    }

    /// Waits for the next change that neither this nor [`wait_ready`](Self::wait_ready) of this handle has
    /// told of: a renewal, a new bundle, the loss of the identity (`None`), or trouble in reaching the
    /// daemon ([`last_error`](Self::last_error)).
    ///
    /// # Errors
    /// The background thread has ended.
    pub async fn changed(&mut self) -> Result<Option<Arc<Identity>>, ClientError> {
        self.state.changed().await.map_err(|_| thread_ended())?;
        Ok(self.state.borrow_and_update().identity.clone())
    }

    /// Waits until there is a valid identity. A refusal does not end the wait: a registration may be
    /// applied at any moment.
    ///
    /// # Errors
    /// [`ClientError::TimedOut`] with what was in the way.
    pub async fn wait_ready(&mut self, timeout: Duration) -> Result<Arc<Identity>, ClientError> {
        let valid = |s: &State| s.identity.as_ref().is_some_and(|i| i.is_valid_at(SystemTime::now()));
        let waited = tokio::time::timeout(timeout, self.state.wait_for(valid)).await;
        let ready = waited.map(|state| state.ok().and_then(|state| state.identity.clone()));
        match ready {
            Ok(identity) => identity.ok_or_else(thread_ended),
            Err(_) => Err(ClientError::TimedOut { waited: timeout, last: self.last_error().map(Box::new) }),
        }
    }

    pub(crate) fn start(
        socket: PathBuf,
        agent: String,
        trace: Option<TraceParent>,
    ) -> Result<Self, ClientError> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .map_err(|error| ClientError::Thread { why: error.to_string() })?;
        let (publish, state) = watch::channel(State::default());
        let (requests, incoming) = mpsc::channel(QUEUE);
        let link = SignLink::new(&requests);
        let keeper = Keeper { socket, agent, trace, publish, incoming, link };
        std::thread::Builder::new()
            .name("hallmark-identity".to_owned())
            .spawn(move || runtime.block_on(keeper.run()))
            .map_err(|error| ClientError::Thread { why: error.to_string() })?;
        Ok(Self { state, requests })
    }
}

fn thread_ended() -> ClientError {
    ClientError::Thread { why: "it has ended".to_owned() }
}

impl fmt::Debug for IdentitySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("IdentitySource")
            .field("identity", &self.state.borrow().identity)
            .field("open", &!self.requests.is_closed())
            .finish()
    }
}

/// What the background thread owns.
struct Keeper {
    socket: PathBuf,
    agent: String,
    trace: Option<TraceParent>,
    publish: watch::Sender<State>,
    incoming: mpsc::Receiver<SignRequest>,
    link: SignLink,
}

/// All sources are gone: the thread ends.
struct Abandoned;

/// How a connection ended.
struct Ended {
    error: ClientError,
    /// Whether the daemon had served an identity on it.
    served: bool,
}

impl Keeper {
    async fn run(mut self) {
        let mut wait = BACKOFF.0;
        loop {
            let Ok(Ended { error, served }) = self.connected().await else { return };
            tracing::debug!(%error, served, "no stream of identities");
            let withdrawn = error.withdraws();
            self.publish.send_modify(|state| {
                if withdrawn {
                    state.identity = None;
                }
                state.refused = withdrawn && !served;
                state.error = Some(error);
            });
            // What was served may have ended for a reason that asking anew mends: begin with short waits.
            wait = if served { BACKOFF.0 } else { (wait * 2).min(BACKOFF.1) };
            if self.pause(jittered(wait)).await.is_err() {
                return;
            }
        }
    }

    /// One connection from its start to its end; tells why it ended.
    async fn connected(&mut self) -> Result<Ended, Abandoned> {
        let unserved = |error| Ok(Ended { error, served: false });
        let channel = match channel(&self.socket).await {
            Ok(channel) => channel,
            Err(error) => return unserved(error),
        };
        let request = WatchIdentityRequest { agent: self.agent.clone() };
        let mut rpc = AgentIdentityClient::new(channel.clone());
        let opened = tokio::select! {
            opened = rpc.watch_identity(traced(request, self.trace)) => opened,
            // A request for a signature before the first identity can only be for an old key.
            () = refuse_until_closed(&mut self.incoming) => return Err(Abandoned),
        };
        let stream = match opened {
            Ok(stream) => stream.into_inner(),
            Err(status) => return unserved(ClientError::from_status(&self.socket, &status)),
        };
        self.follow(stream, channel).await
    }

    async fn follow(
        &mut self,
        mut stream: Streaming<wire::Identity>,
        channel: Channel,
    ) -> Result<Ended, Abandoned> {
        let signing = Signing::new(self.socket.clone(), channel, self.trace);
        let mut served = false;
        let error = loop {
            tokio::select! {
                message = stream.message() => match message {
                    Ok(Some(identity)) => match Identity::accept(identity, Some(&self.link)) {
                        Ok(identity) => {
                            served = true;
                            self.put(identity);
                        }
                        Err(error) => break error.into(),
                    },
                    Ok(None) => break ClientError::StreamEnded,
                    Err(status) => break ClientError::from_status(&self.socket, &status),
                },
                request = self.incoming.recv() => match request {
                    Some(request) => signing.begin(request),
                    None => return Err(Abandoned),
                },
            }
        };
        Ok(Ended { error, served })
    }

    fn put(&self, identity: Identity) {
        tracing::debug!(spiffe_id = %identity.spiffe_id, tier = %identity.tier, not_after = identity.not_after, "identity");
        self.publish.send_replace(State { identity: Some(Arc::new(identity)), ..State::default() });
    }

    /// Sleeps, and answers meanwhile that nobody can sign.
    async fn pause(&mut self, wait: Duration) -> Result<(), Abandoned> {
        tokio::select! {
            () = tokio::time::sleep(wait) => Ok(()),
            () = refuse_until_closed(&mut self.incoming) => Err(Abandoned),
        }
    }
}

async fn refuse_until_closed(incoming: &mut mpsc::Receiver<SignRequest>) {
    while let Some(request) = incoming.recv().await {
        let reason = "the connection to the host daemon is down".to_owned();
        answer(&request.answer, Err(ClientError::NotReady { reason }));
    }
}

/// Signatures over one connection. The daemon bounds how many one key makes at once, so a burst of
/// handshakes waits here.
#[derive(Clone)]
struct Signing {
    socket: PathBuf,
    channel: Channel,
    trace: Option<TraceParent>,
    at_once: Arc<Semaphore>,
}

impl Signing {
    fn new(socket: PathBuf, channel: Channel, trace: Option<TraceParent>) -> Self {
        Self { socket, channel, trace, at_once: Arc::new(Semaphore::new(SIGNING_AT_ONCE)) }
    }

    fn begin(&self, request: SignRequest) {
        let this = self.clone();
        tokio::spawn(async move {
            let _turn = this.at_once.acquire().await;
            let signature = this.sign(&request).await;
            answer(&request.answer, signature);
        });
    }

    async fn sign(&self, request: &SignRequest) -> Result<Vec<u8>, ClientError> {
        let mut wait = BACKOFF.0;
        loop {
            let channel = self.channel.clone();
            let signed = sign(&self.socket, channel, self.trace, &request.key_handle, &request.digest).await;
            match signed {
                Err(ClientError::Busy { .. }) if request.asked.elapsed() < DEADLINE => {
                    tokio::time::sleep(jittered(wait)).await;
                    wait *= 2;
                }
                signed => return signed,
            }
        }
    }
}

fn answer(to: &reply::SyncSender<Result<Vec<u8>, ClientError>>, result: Result<Vec<u8>, ClientError>) {
    // The handshake may have given up waiting.
    let _ = to.try_send(result);
}

/// Between half and all of `wait`, so that agents do not come back in step. Not secret: the hasher's
/// random keys are random enough.
fn jittered(wait: Duration) -> Duration {
    let random = RandomState::new().build_hasher().finish();
    let half = wait / 2;
    half + half.mul_f64((random % 1024) as f64 / 1024.0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jitter_stays_in_its_half() {
        for _ in 0..200 {
            let wait = jittered(Duration::from_secs(2));
            assert!(wait >= Duration::from_secs(1) && wait <= Duration::from_secs(2), "{wait:?}");
        }
    }
}
