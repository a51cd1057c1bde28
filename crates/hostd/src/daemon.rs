//! The daemon as a whole: everything is made, wired, watched and taken down here.

use std::sync::Arc;
use std::time::{Duration, Instant};

use hallmark_hsm::{HsmError, Token, TokenConfig};
use hallmark_telemetry::Served;
use hallmark_telemetry::server::ServeError;
use hallmark_telemetry::traces::{self, TracesError};
use hallmark_tpm::{Tpm, TpmConfig, TpmError};
use sd_notify::NotifyState;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{oneshot, watch};

use crate::agents::{Agents, Socket, SocketError, serve};
use crate::config::{Config, IssuerOrder, Pkcs11Config, Proof, SocketConfig};
use crate::keys::{KeyError, KeyStore, KeyStores, Pkcs11Keys, TpmKeys};
use crate::link::attester::{AttestError, Attester};
use crate::link::issuer::Issuer;
use crate::link::{self, JoinToken, Link, RootFileError, TpmAttester, ek_digest};
use crate::logging::LogLevel;
use crate::metrics::metrics;
use crate::pulse::{Pulse, Watch};
use crate::state::State;

/// How long the ends of instances may take to reach the issuer when the daemon stops.
const DRAIN: Duration = Duration::from_secs(10);
/// How long connections may take to end after that.
const CLOSE: Duration = Duration::from_secs(3);
/// Requests that may wait for the TPM, in all and of one user.
const TPM_QUEUE: usize = 8192;
const TPM_LANE: usize = 1024;
/// PKCS#11 sessions that work at the same time.
const SESSIONS: usize = 4;

/// The digest of this host's endorsement key, hex.
///
/// # Errors
/// The configuration names no TPM, or it cannot be read.
pub async fn ek(config: &Config) -> Result<String, DaemonError> {
    let Proof::Tpm { tcti, .. } = &config.proof else {
        return Err(AttestError::Tpm(
            "the configuration names no TPM: this host joins by a token".to_owned(),
        )
        .into());
    };
    let identity = Tpm::open(TpmConfig::new(tcti)).await?.identity().await?;
    Ok(ek_digest(&identity)?)
}

/// Why the daemon does not run.
#[derive(Debug, thiserror::Error)]
pub enum DaemonError {
    /// The infrastructure root cannot be read, or is none.
    #[error("issuer.infrastructure_root: {0}")]
    Root(#[from] RootFileError),
    /// The TPM.
    #[error("tpm: {0}")]
    Tpm(#[from] TpmError),
    /// The TPM cannot be made ready to attest.
    #[error("tpm: {0}")]
    Attester(#[from] AttestError),
    /// The PKCS#11 token.
    #[error("pkcs11: {0}")]
    Hsm(#[from] HsmError),
    /// The token's PIN.
    #[error("pkcs11: PIN: {0}")]
    Pin(String),
    /// A key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The agents' socket.
    #[error("agent_socket: {0}")]
    Socket(#[from] SocketError),
    /// The socket's group.
    #[error("agent_socket.group: there is no group {0:?}")]
    Group(String),
    /// The metrics' address or socket.
    #[error(transparent)]
    Metrics(#[from] ServeError),
    /// The collector of spans.
    #[error(transparent)]
    Traces(#[from] TracesError),
    /// The system.
    #[error("{what}: {error}")]
    System {
        /// What was tried.
        what: &'static str,
        /// What the system said.
        error: std::io::Error,
    },
}

/// Runs until SIGTERM or SIGINT.
///
/// # Errors
/// It cannot start, or the agents' socket failed.
pub async fn run(config: Config, log: LogLevel) -> Result<(), DaemonError> {
    let mut signals = Signals::new()?;
    let (roots, cache) =
        link::roots(&config.trust_domain, &config.infrastructure_root, config.root_cache.as_deref())?;
    let (attester, tpm_keys, tpm) = attester(&config.proof).await?;
    let pkcs11_keys = config.pkcs11.as_ref().map(pkcs11).transpose()?;
    let stores = KeyStores::new(pkcs11_keys, tpm_keys);

    let (state, revoked) = State::new(config.host_id.clone(), config.trust_domain.clone());
    let (connection, connected) = watch::channel(None);
    let (issuer, quotes) = Issuer::new(connected, state.clone());
    let agents = Agents::new(state.clone(), issuer, stores, config.limits.clone(), revoked);
    let SocketConfig { path, mode, group } = &config.socket;
    let socket = Socket::bind(path, *mode, group.as_deref().map(group_id).transpose()?)?;
    let shown = config.metrics.as_ref().map(|at| Served::bind(at, metrics().registry(&agents, tpm.clone())));
    let shown = shown.transpose()?.map(|shown| tokio::spawn(shown.run()));
    let spans = config
        .traces
        .as_ref()
        .map(|to| traces::start(to, "hallmark-hostd", config.host_id.to_string(), env!("CARGO_PKG_VERSION")));
    let spans = spans.transpose()?;
    let link = Link::new(config.endpoints.clone(), roots, attester, state.clone(), connection, quotes)
        .remember_roots_in(cache);
    let link = match config.order {
        IssuerOrder::Spread => link,
        IssuerOrder::Listed => link.in_order(config.endpoints.clone()),
    };
    let link = tokio::spawn(link.run());
    let (stop, stopped) = oneshot::channel::<()>();
    let mut server = tokio::spawn(serve(agents.clone(), socket, async {
        // Resolves, too, when the sender is gone.
        let _ = stopped.await;
    }));
    tracing::info!(host_id = %config.host_id, socket = %path.display(), version = env!("CARGO_PKG_VERSION"), "started");
    notify(&[NotifyState::Ready]);

    let watchdog = watchdog();
    let mut watch = watch(&state, watchdog, tpm);
    let ended = signals.follow(&agents, config, &log, &mut server, (watchdog, &mut watch)).await;
    notify(&[NotifyState::Stopping]);
    tracing::info!(host_id = %state.host_id, agents = agents.live(), "stopping");
    agents.drain(DRAIN).await;
    drop(stop);
    link.abort();
    if let Some(spans) = spans {
        spans.stop().await;
    }
    if let Some(shown) = shown {
        shown.abort();
        // Its socket's file goes with it.
        let _ = shown.await;
    }
    // Connections that do not end by themselves are dropped with the runtime.
    let _ = tokio::time::timeout(CLOSE, &mut server).await;
    ended
}

type Proving = (Arc<dyn Attester>, Option<Arc<dyn KeyStore>>, Option<Tpm>);

async fn attester(proof: &Proof) -> Result<Proving, DaemonError> {
    match proof {
        Proof::Tpm { tcti, event_log } => {
            // A lane is a user's, and a user's agents may all begin at once.
            let told = |operation, took, well| metrics().tpm_done(operation, took, well);
            let queue =
                TpmConfig { queue: TPM_QUEUE, lane: TPM_LANE, told: Some(told), ..TpmConfig::new(tcti) };
            let tpm = Tpm::open(queue).await?;
            let attester = TpmAttester::new(tpm.clone(), event_log.clone()).await?;
            Ok((Arc::new(attester), Some(Arc::new(TpmKeys::new(tpm.clone()))), Some(tpm)))
        }
        Proof::JoinToken(source) => Ok((Arc::new(JoinToken::new(source.clone())?), None, None)),
    }
}

fn pkcs11(config: &Pkcs11Config) -> Result<Arc<dyn KeyStore>, DaemonError> {
    let token = Token::open(TokenConfig {
        module: config.module.clone(),
        label: config.token_label.clone(),
        pin: config.pin.read().map_err(DaemonError::Pin)?,
        max_sessions: SESSIONS,
    })?;
    Ok(Arc::new(Pkcs11Keys::new(token)))
}

fn group_id(group: &str) -> Result<u32, DaemonError> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    let found = nix::unistd::Group::from_name(group).ok().flatten();
    found.map(|g| g.gid.as_raw()).ok_or_else(|| DaemonError::Group(group.to_owned()))
}

struct Signals {
    terminate: tokio::signal::unix::Signal,
    interrupt: tokio::signal::unix::Signal,
    hangup: tokio::signal::unix::Signal,
}

impl Signals {
    fn new() -> Result<Self, DaemonError> {
        let listen = |kind| signal(kind).map_err(|error| DaemonError::System { what: "signals", error });
        Ok(Self {
            terminate: listen(SignalKind::terminate())?,
            interrupt: listen(SignalKind::interrupt())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// Returns when the daemon is to stop: well when it was told to.
    async fn follow(
        &mut self,
        agents: &Arc<Agents>,
        mut config: Config,
        log: &LogLevel,
        server: &mut tokio::task::JoinHandle<()>,
        (watchdog, watch): (Option<Duration>, &mut Watch),
    ) -> Result<(), DaemonError> {
        let mut standing = agents.state().standing.subscribe();
        let mut tick = tokio::time::interval(watchdog.map_or(Duration::from_secs(60), |w| w / 4));
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return Ok(()),
                _ = self.interrupt.recv() => return Ok(()),
                _ = self.hangup.recv() => config = reload(agents, config, log),
                result = &mut *server => return match result {
                    Ok(()) => Ok(()),
                    Err(error) => Err(DaemonError::System { what: "agent server", error: error.into() }),
                },
                _ = tick.tick() => say_how_it_is(agents, watch),
                Ok(()) = standing.changed() => notify(&[NotifyState::Status(&status(agents))]),
            }
        }
    }
}

/// The interval after which systemd takes the daemon for hung.
fn watchdog() -> Option<Duration> {
    let mut microseconds = 0;
    sd_notify::watchdog_enabled(false, &mut microseconds).then(|| Duration::from_micros(microseconds))
}

/// Over the agents' server, the link and the TPM. A part may be silent for half of the watchdog's interval:
/// that is how long a slow TPM may take over one request, and then as long again until systemd acts.
fn watch(state: &State, watchdog: Option<Duration>, tpm: Option<Tpm>) -> Watch {
    let patience = watchdog.unwrap_or(Duration::from_secs(60)) / 2;
    let (server, link, now) = (state.server_pulse.clone(), state.link_pulse.clone(), Instant::now());
    let watch = Watch::new(patience).over("the agents' server", move || server.count(), now).over(
        "the link to the issuer",
        move || link.count(),
        now,
    );
    let Some(tpm) = tpm else { return watch };
    let answers = Pulse::default();
    tokio::spawn(ping(tpm.clone(), answers.clone(), patience / 3));
    // A busy TPM takes requests one after the other, and may come to the ping late.
    watch.over("the TPM", move || answers.count().wrapping_add(tpm.served()), now)
}

/// Whatever the TPM answers, even that something is wrong with it, its thread is not hung.
async fn ping(tpm: Tpm, answers: Pulse, every: Duration) {
    loop {
        match tpm.health().await {
            Err(TpmError::DeadlinePassed { .. } | TpmError::Busy { .. } | TpmError::Stopped) => {}
            _ => answers.beat(),
        }
        tokio::time::sleep(every).await;
    }
}

fn say_how_it_is(agents: &Agents, watch: &mut Watch) {
    let stalled = watch.stalled(Instant::now()).join(", ");
    if stalled.is_empty() {
        notify(&[NotifyState::Watchdog, NotifyState::Status(&status(agents))]);
    } else {
        tracing::error!(host_id = %agents.state().host_id, stalled, "no progress: systemd's watchdog is not answered");
        notify(&[NotifyState::Status(&format!("stalled: {stalled}"))]);
    }
}

fn status(agents: &Agents) -> String {
    let standing = agents.state().standing.borrow().clone();
    let issuer = if standing.connected { "issuer connected" } else { "issuer away" };
    let tier = if standing.disabled {
        "host disabled"
    } else if standing.attested {
        standing.highest_tier.as_str()
    } else {
        "not attested"
    };
    let mut text = format!("{tier}, {issuer}, {} agents", agents.live());
    if !standing.last_error.is_empty() {
        text.push_str(": ");
        // One line: a newline would begin another assignment (sd_notify(3)).
        text.extend(standing.last_error.chars().map(|c| if c.is_control() { ' ' } else { c }));
    }
    text
}

/// Takes over what can be taken over, and names what cannot. A file with faults changes nothing.
fn reload(agents: &Agents, old: Config, log: &LogLevel) -> Config {
    let began = NotifyState::monotonic_usec_now();
    notify(&[NotifyState::Reloading]);
    if let Ok(began) = began {
        notify(&[began]);
    }
    let new = match Config::load(&old.file) {
        Ok(new) => new,
        Err(error) => {
            tracing::error!(reason = %error, "configuration not reloaded, the old one stays in force");
            notify(&[NotifyState::Ready]);
            return old;
        }
    };
    if let Err(reason) = log.change(&new.log_level) {
        tracing::error!(reason, "log level not changed");
    }
    agents.limit(new.limits.clone());
    let waiting: Vec<&str> = old.needs_restart(&new).into_iter().collect();
    tracing::info!(
        needs_restart = waiting.join(", "),
        "configuration reloaded: log.level and limits are in force"
    );
    notify(&[NotifyState::Ready]);
    Config { limits: new.limits, log_level: new.log_level, ..old }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(false, states) {
        tracing::warn!(%error, "systemd cannot be notified");
    }
}
