//! The issuer as one value: configuration, store, CA, hosts, registrations, links.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, RwLock};

use hallmark_core::decide::TrustRules;
use hallmark_core::ek::EkRoots;
use hallmark_core::id::{AgentName, HostId, SpiffeId, Subject, TrustDomain};
use hallmark_core::tier::Hierarchy;
use hallmark_core::x509::InfraRoots;
use hallmark_hsm::Token;
use hallmark_proto::tls::Shared;
use tokio::sync::{Mutex as AsyncMutex, Notify, OwnedMutexGuard};

use crate::ca::{Ca, Signed};
use crate::config::Config;
use crate::convert;
use crate::flow::RefusalBook;
use crate::link::Hub;
use crate::registry::Registry;
use crate::standing::HostState;
use crate::store::{AllowedEk, Ended, Heard, HostRow, Store, StoreError, TrustDomainRow, unix_now};

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
    removals: RwLock<HashMap<HostId, i64>>,
    allowed: RwLock<HashMap<[u8; 32], AllowedEk>>,
    registry: RwLock<Arc<Registry>>,
    registry_turn: Arc<AsyncMutex<()>>,
    host_turns: Box<[Arc<AsyncMutex<()>>]>,
    refusals: RefusalBook,
    hub: Hub,
    counters: Counters,
    crl_due: Notify,
    host_roots: Shared<InfraRoots>,
    ca_turn: Arc<AsyncMutex<()>>,
    ca_due: Notify,
    own_due: Notify,
    started_at: i64,
    draining: AtomicBool,
}

/// The right to change something, one holder at a time; it goes with the change until that is in force.
pub type Turn = OwnedMutexGuard<()>;

/// Hosts share this many turns.
const HOST_TURNS: usize = 64;

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
    /// How long ago, in seconds, the host last attested or had a quote accepted.
    pub fn standing_age(&self) -> i64 {
        let standing = &self.host.standing;
        self.now - standing.attested_at.max(standing.quote_at.unwrap_or_default())
    }

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
        let host_roots = ca.roots(Hierarchy::Infrastructure);
        let host_roots = InfraRoots::new(trust_domain.name.clone(), host_roots)
            .map_err(|e| StartError::Stored(e.to_string()))?
            .denying(ca.in_force().denied.iter().copied());
        let mut hosts = HashMap::new();
        for row in store.hosts().await? {
            let state = HostState::from_json(
                row.host_id.clone(),
                row.enrolled_at,
                &row.standing,
                &config.attestation.pcr_policies,
            )
            .map_err(StartError::Stored)?
            .under(&config.attestation.pcr_policies, row.disabled, 0);
            hosts.insert(row.host_id, Arc::new(state));
        }
        let removals = store.removals().await?.into_iter().collect();
        let allowed = store.allowed_eks().await?.into_iter().map(|a| (a.ek_digest, a)).collect();
        let revision = store.registrations_revision().await?;
        let registry =
            Registry::from_rows(store.registrations().await?, revision).map_err(StartError::Stored)?;
        let issuer = Arc::new(Self {
            config: RwLock::new(Arc::new(config)),
            trust_domain,
            store,
            ca,
            token,
            roots: RwLock::new(Arc::new(roots)),
            hosts: RwLock::new(hosts),
            removals: RwLock::new(removals),
            allowed: RwLock::new(allowed),
            registry: RwLock::new(Arc::new(registry)),
            registry_turn: Arc::default(),
            host_turns: (0..HOST_TURNS).map(|_| Arc::default()).collect(),
            refusals: RefusalBook::default(),
            hub: Hub::default(),
            counters: Counters::default(),
            crl_due: Notify::new(),
            host_roots: Shared::new(host_roots),
            ca_turn: Arc::default(),
            ca_due: Notify::new(),
            own_due: Notify::new(),
            started_at: now,
            draining: AtomicBool::new(false),
        });
        let memory = Arc::downgrade(&issuer);
        issuer.store.observe(move |heard| {
            if let Some(issuer) = memory.upgrade() {
                issuer.take_in(heard);
            }
        });
        Ok(issuer)
    }

    /// Another issuer has changed something: memory follows.
    fn take_in(&self, heard: &Heard) {
        match heard {
            Heard::Host { host_id, row, allowed, last_removed, epoch } => {
                match allowed {
                    Some(entry) => self.put_allowed(entry.clone()),
                    None => self.drop_allowed(host_id),
                }
                if let Some(at) = last_removed {
                    write(&self.removals).insert(host_id.clone(), *at);
                }
                self.take_in_host(host_id, row.as_ref(), *epoch);
            }
            Heard::Registrations { revision, rows } => match Registry::from_rows(rows.clone(), *revision) {
                Ok(registry) => self.replace_registry(registry),
                Err(problem) => {
                    tracing::error!(
                        problem,
                        "another issuer's registrations cannot be read here: those of before stay, and what was changed is refused"
                    );
                }
            },
            Heard::Ended(ended) => self.tell_of_ended(std::slice::from_ref(ended)),
            Heard::Authorities => self.ca_is_due(),
            Heard::Anew => write(&self.allowed).clear(),
        }
    }

    fn take_in_host(&self, host: &HostId, row: Option<&HostRow>, epoch: u64) {
        let policies = &self.config().attestation.pcr_policies;
        let state = row.map(|row| {
            let state = HostState::from_json(host.clone(), row.enrolled_at, &row.standing, policies)?;
            Ok::<_, String>(state.under(policies, row.disabled.clone(), epoch))
        });
        match state.transpose() {
            Ok(Some(state)) => {
                let stays = state.standing.disabled.is_none();
                write(&self.hosts).insert(host.clone(), Arc::new(state));
                if stays {
                    return;
                }
            }
            Ok(None) => drop(write(&self.hosts).remove(host)),
            Err(problem) => {
                tracing::error!(%host, problem, "another issuer's word on a host cannot be read here: it is not served");
                write(&self.hosts).remove(host);
            }
        }
        self.hub.close_one(host);
    }

    /// Seconds since 1970, by this machine's clock.
    pub fn now(&self) -> i64 {
        unix_now()
    }

    /// The configuration in force.
    pub fn config(&self) -> Arc<Config> {
        read(&self.config).clone()
    }

    /// Puts a reloaded configuration and reloaded roots in force, and every host under the new PCR policies.
    /// What cannot change while running keeps its old value: the caller has said so.
    pub fn reconfigure(&self, config: Config, roots: Roots) {
        let mut hosts = write(&self.hosts);
        *write(&self.config) = Arc::new(config);
        *write(&self.roots) = Arc::new(roots);
        let policies = &read(&self.config).attestation.pcr_policies;
        for state in hosts.values_mut() {
            let disabled = state.standing.disabled.clone();
            *state = Arc::new(state.under(policies, disabled, state.epoch));
        }
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

    /// The roots by which hosts are known.
    pub fn host_roots(&self) -> &Shared<InfraRoots> {
        &self.host_roots
    }

    /// The right to change the CAs, one holder at a time.
    pub async fn ca_turn(&self) -> Turn {
        self.ca_turn.clone().lock_owned().await
    }

    /// Something about CAs may be due now.
    pub fn ca_is_due(&self) {
        self.ca_due.notify_one();
    }

    /// Waits until something about CAs may be due.
    pub async fn ca_wanted(&self) {
        self.ca_due.notified().await;
    }

    /// This issuer's own certificate should be made anew.
    pub fn own_is_due(&self) {
        self.own_due.notify_one();
    }

    /// Waits until this issuer's own certificate should be made anew.
    pub async fn own_wanted(&self) {
        self.own_due.notified().await;
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

    /// How many refusals of strangers are recorded one by one.
    pub fn refusals(&self) -> &RefusalBook {
        &self.refusals
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

    /// The right to change what is known of a host.
    pub async fn host_turn(&self, host: &HostId) -> Turn {
        let mut hasher = DefaultHasher::new();
        host.hash(&mut hasher);
        // A remainder by the length is an index.
        let place = usize::try_from(hasher.finish() % HOST_TURNS as u64).unwrap_or_default();
        self.host_turns[place].clone().lock_owned().await
    }

    /// The standing of a host as decisions are held against it: read before the host itself, and asked for by
    /// [`crate::store::Write::Stands`].
    pub fn stands(&self, host: &HostId) -> u64 {
        self.store.live().epoch(host)
    }

    /// A number that no host's standing has had in this process.
    pub fn next_epoch(&self) -> u64 {
        self.store.next_epoch()
    }

    /// Puts a host's new standing, already stored, in force, under the policies of this moment. A host that
    /// is disabled stays so.
    pub fn put_host(&self, state: HostState, epoch: u64) {
        let mut hosts = write(&self.hosts);
        let disabled = hosts.get(&state.host_id).and_then(|h| h.standing.disabled.clone());
        let state = state.under(&self.config().attestation.pcr_policies, disabled, epoch);
        hosts.insert(state.host_id.clone(), Arc::new(state));
    }

    /// Puts a host's being disabled, or enabled, already stored, in force.
    pub fn put_disabled(&self, host: &HostId, disabled: Option<String>, epoch: u64) {
        let mut hosts = write(&self.hosts);
        if let Some(state) = hosts.get_mut(host) {
            *state = Arc::new(state.under(&self.config().attestation.pcr_policies, disabled, epoch));
        }
    }

    /// Puts a turn of a host's epoch, already taken by the writer, in force.
    pub fn put_epoch(&self, host: &HostId, epoch: u64) {
        if let Some(state) = write(&self.hosts).get_mut(host) {
            *state = Arc::new(HostState { epoch, ..HostState::clone(state) });
        }
    }

    /// Forgets a host that was removed from the store.
    pub fn drop_host(&self, host: &HostId, at: i64) {
        write(&self.hosts).remove(host);
        write(&self.removals).insert(host.clone(), at);
    }

    /// When a host was last removed. No credential that it got until then counts, though it enrol anew.
    pub fn last_removed(&self, host: &HostId) -> Option<i64> {
        read(&self.removals).get(host).copied()
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

    /// Puts an entry of the allow-list, already stored, in force; it replaces the host's earlier one.
    pub fn put_allowed(&self, entry: AllowedEk) {
        let mut allowed = write(&self.allowed);
        allowed.retain(|_, other| other.host_id != entry.host_id);
        allowed.insert(entry.ek_digest, entry);
    }

    /// Forgets a host's entry of the allow-list.
    pub fn drop_allowed(&self, host: &HostId) {
        write(&self.allowed).retain(|_, entry| entry.host_id != *host);
    }

    /// The registrations in force.
    pub fn registry(&self) -> Arc<Registry> {
        read(&self.registry).clone()
    }

    /// The right to change the registrations, one holder at a time.
    pub async fn registry_turn(&self) -> Turn {
        self.registry_turn.clone().lock_owned().await
    }

    /// Puts new registrations, already stored, in force and pushes them to every host they concern.
    pub fn replace_registry(&self, next: Registry) {
        let next = Arc::new(next);
        *write(&self.registry) = next.clone();
        self.hub.send_each(|host| convert::registrations_update(next.for_host(host)));
    }

    /// Instances have ended, by whosever word: their hosts are told which certificates that ends, and new
    /// CRLs are due.
    pub fn tell_of_ended(&self, ended: &[Ended]) {
        let mut serials: HashMap<&HostId, Vec<Vec<u8>>> = HashMap::new();
        for instance in ended {
            serials.entry(&instance.host).or_default().extend(instance.serials.iter().cloned());
        }
        for (host, serials) in serials.into_iter().filter(|(_, serials)| !serials.is_empty()) {
            self.hub.send(host, convert::revocations_update(serials));
        }
        if !ended.is_empty() {
            self.crl_is_due();
        }
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

// A panic while one of these locks was held cannot leave a half-written value: each holds a map or a
// pointer that is replaced whole.
fn read<T>(lock: &RwLock<T>) -> std::sync::RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(std::sync::PoisonError::into_inner)
}

fn write<T>(lock: &RwLock<T>) -> std::sync::RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(std::sync::PoisonError::into_inner)
}
