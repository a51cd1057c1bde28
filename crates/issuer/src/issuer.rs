//! The issuer as one value: configuration, store, CA, hosts, registrations, links.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};
use std::time::{SystemTime, UNIX_EPOCH};

use hallmark_core::decide::TrustRules;
use hallmark_core::ek::EkRoots;
use hallmark_core::id::{AgentName, HostId, InstanceId, SpiffeId, Subject, TrustDomain};
use hallmark_hsm::Token;
use tokio::sync::{Mutex as AsyncMutex, MutexGuard, Notify};

use crate::ca::{Ca, Signed};
use crate::config::Config;
use crate::convert;
use crate::link::Hub;
use crate::registry::Registry;
use crate::standing::HostState;
use crate::store::{AllowedEk, Store, StoreError, TrustDomainRow};

/// Why an issuer could not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// The store.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// What is stored cannot be read.
    #[error("store: {0}")]
    Stored(String),
}

/// The EK roots of the two directories.
#[derive(Debug, Default)]
pub struct Roots {
    /// Manufacturers'.
    pub vendor: EkRoots,
    /// Software TPMs'.
    pub simulated: EkRoots,
}

/// One issuer.
#[derive(Debug)]
pub struct Issuer {
    config: RwLock<Arc<Config>>,
    trust_domain: TrustDomainRow,
    store: Store,
    ca: Ca,
    token: Option<Token>,
    roots: RwLock<Arc<Roots>>,
    hosts: RwLock<HashMap<HostId, Arc<HostState>>>,
    allowed: RwLock<HashMap<[u8; 32], AllowedEk>>,
    registry: RwLock<Arc<Registry>>,
    registry_turn: AsyncMutex<()>,
    instances: Mutex<HashMap<InstanceId, Owner>>,
    hub: Hub,
    counters: Counters,
    crl_due: Notify,
    started_at: i64,
    draining: AtomicBool,
}

/// Whose an instance id is.
#[derive(Debug, Clone)]
struct Owner {
    agent: AgentName,
    host: HostId,
    until: i64,
}

/// Decisions since the start.
#[derive(Debug, Default)]
pub struct Counters {
    issued: AtomicU64,
    refused: AtomicU64,
}

impl Counters {
    /// One credential was released.
    pub fn issued(&self, _released: &Signed) {
        self.issued.fetch_add(1, Ordering::Relaxed);
    }

    /// One request was refused.
    pub fn refused(&self) {
        self.refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Issued and refused.
    pub fn read(&self) -> (u64, u64) {
        (self.issued.load(Ordering::Relaxed), self.refused.load(Ordering::Relaxed))
    }
}

/// Everything one decision looks at, taken at one moment.
#[derive(Debug)]
pub struct Snapshot {
    /// Seconds since 1970.
    pub now: i64,
    /// The host that asks, and what it has proved.
    pub host: Arc<HostState>,
    /// The registrations.
    pub registry: Arc<Registry>,
    /// The trust domain's rules.
    pub rules: TrustRules,
    /// The trust domain.
    pub trust_domain: TrustDomain,
}

impl Snapshot {
    /// The SPIFFE ID of an agent.
    pub fn spiffe_id(&self, agent: &AgentName) -> SpiffeId {
        SpiffeId::new(self.trust_domain.clone(), Subject::Agent(agent.clone()))
    }
}

impl Issuer {
    /// Reads what is stored and is then ready to serve.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn start(
        config: Config,
        trust_domain: TrustDomainRow,
        store: Store,
        ca: Ca,
        roots: Roots,
        token: Option<Token>,
    ) -> Result<Arc<Self>, StartError> {
        let now = unix_now();
        let mut hosts = HashMap::new();
        for row in store.hosts().await? {
            let state = HostState::from_json(
                row.host_id.clone(),
                row.enrolled_at,
                &row.standing,
                &config.attestation.pcr_policies,
            )
            .map_err(StartError::Stored)?;
            hosts.insert(row.host_id, Arc::new(state));
        }
        let revision = store.registrations_revision().await?;
        let registry =
            Registry::from_rows(store.registrations().await?, revision).map_err(StartError::Stored)?;
        let mut instances = HashMap::new();
        for row in store.live_instances(now).await? {
            if let (Ok(agent), Ok(host)) = (row.agent.parse(), row.host_id.parse()) {
                instances.insert(row.instance_id, Owner { agent, host, until: row.not_after });
            }
        }
        let issuer = Arc::new(Self {
            config: RwLock::new(Arc::new(config)),
            trust_domain,
            store,
            ca,
            token,
            roots: RwLock::new(Arc::new(roots)),
            hosts: RwLock::new(hosts),
            allowed: RwLock::default(),
            registry: RwLock::new(Arc::new(registry)),
            registry_turn: AsyncMutex::new(()),
            instances: Mutex::new(instances),
            hub: Hub::default(),
            counters: Counters::default(),
            crl_due: Notify::new(),
            started_at: now,
            draining: AtomicBool::new(false),
        });
        issuer.reload_allowed().await?;
        Ok(issuer)
    }

    /// Seconds since 1970, by this machine's clock.
    pub fn now(&self) -> i64 {
        unix_now()
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        read(&self.config).clone()
    }

    /// Puts a reloaded configuration and reloaded roots in force. What cannot change while running keeps
    /// its old value: the caller has said so.
    pub fn reconfigure(&self, config: Config, roots: Roots) {
        for state in write(&self.hosts).values_mut() {
            *state = Arc::new(state.under(&config.attestation.pcr_policies));
        }
        *write(&self.config) = Arc::new(config);
        *write(&self.roots) = Arc::new(roots);
    }

    /// The trust domain as `init` fixed it.
    pub fn trust_domain(&self) -> &TrustDomainRow {
        &self.trust_domain
    }

    /// Whether software TPMs may count above foundation.
    pub fn is_lab(&self) -> bool {
        self.trust_domain.lab
    }

    /// The store.
    pub fn store(&self) -> &Store {
        &self.store
    }

    /// The CA.
    pub fn ca(&self) -> &Ca {
        &self.ca
    }

    /// The token of the CA keys; none with `--dev`.
    pub fn token(&self) -> Option<&Token> {
        self.token.as_ref()
    }

    /// The EK roots in force.
    pub fn roots(&self) -> Arc<Roots> {
        read(&self.roots).clone()
    }

    /// The listening hosts.
    pub fn hub(&self) -> &Hub {
        &self.hub
    }

    /// Decisions since the start.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// When this process began to serve.
    pub fn started_at(&self) -> i64 {
        self.started_at
    }

    /// The trust domain's rules.
    pub fn rules(&self) -> TrustRules {
        let config = self.config();
        TrustRules {
            lab: self.trust_domain.lab,
            accept_pkcs11_asserted: config.attestation.accept_pkcs11_asserted,
            quote_max_age: config.attestation.max_age,
            attestation_max_age: config.attestation.host_svid_lifetime,
            ..TrustRules::default()
        }
    }

    /// What a decision for `host` looks at; none if the host is not enrolled.
    pub fn snapshot(&self, host: &HostId) -> Option<Snapshot> {
        Some(Snapshot {
            now: unix_now(),
            host: self.host(host)?,
            registry: self.registry(),
            rules: self.rules(),
            trust_domain: self.trust_domain.name.clone(),
        })
    }

    /// One host.
    pub fn host(&self, host: &HostId) -> Option<Arc<HostState>> {
        read(&self.hosts).get(host).cloned()
    }

    /// All hosts, by id.
    pub fn hosts(&self) -> Vec<Arc<HostState>> {
        let mut hosts: Vec<_> = read(&self.hosts).values().cloned().collect();
        hosts.sort_by(|a, b| a.host_id.cmp(&b.host_id));
        hosts
    }

    /// Puts a host's new standing, already stored, in force.
    pub fn replace_host(&self, state: HostState) {
        write(&self.hosts).insert(state.host_id.clone(), Arc::new(state));
    }

    /// The allow-list's entry for an EK.
    pub fn allowed(&self, ek_digest: &[u8; 32]) -> Option<AllowedEk> {
        read(&self.allowed).get(ek_digest).cloned()
    }

    /// The allow-list.
    pub fn all_allowed(&self) -> Vec<AllowedEk> {
        let mut all: Vec<_> = read(&self.allowed).values().cloned().collect();
        all.sort_by(|a, b| a.host_id.cmp(&b.host_id));
        all
    }

    /// Reads the allow-list again.
    ///
    /// # Errors
    /// The store cannot be read.
    pub async fn reload_allowed(&self) -> Result<(), StoreError> {
        let allowed = self.store.allowed_eks().await?;
        *write(&self.allowed) = allowed.into_iter().map(|a| (a.ek_digest, a)).collect();
        Ok(())
    }

    /// The registrations in force.
    pub fn registry(&self) -> Arc<Registry> {
        read(&self.registry).clone()
    }

    /// The right to change the registrations, one holder at a time.
    pub async fn registry_turn(&self) -> MutexGuard<'_, ()> {
        self.registry_turn.lock().await
    }

    /// Puts new registrations, already stored, in force and pushes them to every host they concern.
    pub fn replace_registry(&self, next: Registry) {
        let next = Arc::new(next);
        *write(&self.registry) = next.clone();
        self.hub.send_each(|host| convert::registrations_update(next.for_host(host)));
    }

    /// Checks that an instance id is free, or this agent's on this host.
    ///
    /// # Errors
    /// The id belongs to another agent or host.
    pub fn check_instance(&self, id: InstanceId, agent: &AgentName, host: &HostId) -> Result<(), String> {
        match self.lock_instances().get(&id) {
            Some(owner) if owner.agent != *agent || owner.host != *host => {
                Err(format!("instance {id} belongs to another agent or host"))
            }
            _ => Ok(()),
        }
    }

    /// Holds an instance id for an agent on a host, for longer than any credential lives. Only what was
    /// granted is held, so that refused requests fill nothing.
    pub fn hold_instance(&self, id: InstanceId, agent: &AgentName, host: &HostId, now: i64) {
        const HELD: i64 = 5 * 3600;
        let mut instances = self.lock_instances();
        if let Some(owner) = instances.get_mut(&id) {
            owner.until = now + HELD;
            return;
        }
        if instances.len() % 4096 == 4095 {
            instances.retain(|_, owner| owner.until > now);
        }
        instances.insert(id, Owner { agent: agent.clone(), host: host.clone(), until: now + HELD });
    }

    /// Whose an instance is, if it is this host's.
    pub fn instance_agent(&self, id: InstanceId, host: &HostId) -> Option<AgentName> {
        let instances = self.lock_instances();
        instances.get(&id).filter(|owner| owner.host == *host).map(|owner| owner.agent.clone())
    }

    /// Forgets instances that have ended.
    pub fn forget_instances(&self, ids: &[InstanceId]) {
        let mut instances = self.lock_instances();
        for id in ids {
            instances.remove(id);
        }
    }

    fn lock_instances(&self) -> std::sync::MutexGuard<'_, HashMap<InstanceId, Owner>> {
        self.instances.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// A certificate was revoked: new CRLs should be written soon.
    pub fn crl_is_due(&self) {
        self.crl_due.notify_one();
    }

    /// Waits until CRLs should be written.
    pub async fn crl_wanted(&self) {
        self.crl_due.notified().await;
    }

    /// Begins the end: streams to hosts are closed, health turns to not serving.
    pub fn drain(&self) {
        self.draining.store(true, Ordering::Release);
        self.hub.close();
    }

    /// Whether the end has begun.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Acquire)
    }
}

fn unix_now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|d| i64::try_from(d.as_secs()).ok())
        .unwrap_or_default()
}

// A panic while one of these locks was held cannot leave a half-written value: each holds a map or a
// pointer that is replaced whole.
fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(std::sync::PoisonError::into_inner)
}
