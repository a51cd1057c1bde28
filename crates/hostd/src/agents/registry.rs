//! The instances alive now, and the hardware keys they may sign with.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use hallmark_core::id::{AgentName, InstanceId};
use tokio::sync::{Notify, Semaphore};
use tonic::codegen::Bytes;

use super::Limits;
use super::caller::Caller;
use super::share::Bucket;
use crate::clock;
use crate::keys::AgentKey;
use crate::link::issuer::EndReason;
use crate::observe::{ObserveError, ProcessKey};

/// Names a hardware key to `Sign`: 16 random bytes, new for each key.
pub(super) type KeyHandle = [u8; 16];

/// All of them.
#[derive(Default)]
pub(super) struct Registry {
    live: Mutex<HashMap<InstanceId, Arc<Live>>>,
    keys: Mutex<HashMap<KeyHandle, Arc<Signer>>>,
    /// Serials revoked of late: a certificate may be on its way here when its revocation arrives.
    revoked: Mutex<VecDeque<Bytes>>,
}

/// Revoked serials remembered; one is needed for as long as an answer of the issuer is under way.
const MAX_REVOKED: usize = 4096;

/// One instance, as others may reach it.
pub(super) struct Live {
    /// Its id.
    pub(super) id: InstanceId,
    /// Its registration's name.
    pub(super) agent: AgentName,
    /// Its process.
    pub(super) caller: Caller,
    /// Serials of its certificates that have not expired, and when they do.
    serials: Mutex<Vec<(Bytes, i64)>>,
    end: OnceLock<EndReason>,
    key_lost: AtomicBool,
    told: Notify,
}

impl Live {
    /// Orders it to end; the first reason stands.
    pub(super) fn end(&self, reason: EndReason) {
        if self.end.set(reason).is_ok() {
            self.told.notify_one();
        }
    }

    /// Says that its hardware key signs no more.
    pub(super) fn key_lost(&self) {
        if !self.key_lost.swap(true, Ordering::Relaxed) {
            self.told.notify_one();
        }
    }

    /// Whether its hardware key signs no more; asked once for each key.
    pub(super) fn take_key_lost(&self) -> bool {
        self.key_lost.swap(false, Ordering::Relaxed)
    }

    /// Why it is to end, if it is.
    pub(super) fn ending(&self) -> Option<EndReason> {
        self.end.get().copied()
    }

    /// Returns when it is told something.
    pub(super) async fn told(&self) {
        self.told.notified().await;
    }

    /// Notes the serial of its present certificate, besides those of earlier ones that still count.
    pub(super) fn holds(&self, serial: Bytes, not_after: i64) {
        let mut serials = lock(&self.serials);
        let now = clock::now();
        serials.retain(|(_, end)| *end > now);
        serials.push((serial, not_after));
    }
}

impl Registry {
    /// Enters an instance, if there is room.
    pub(super) fn enter(
        &self,
        id: InstanceId,
        agent: AgentName,
        caller: Caller,
        max: usize,
    ) -> Option<Arc<Live>> {
        let mut live = lock(&self.live);
        if live.len() >= max {
            return None;
        }
        let entry = Arc::new(Live {
            id,
            agent,
            caller,
            serials: Mutex::default(),
            end: OnceLock::new(),
            key_lost: AtomicBool::new(false),
            told: Notify::new(),
        });
        live.insert(id, entry.clone());
        Some(entry)
    }

    /// Removes it.
    pub(super) fn leave(&self, id: &InstanceId) {
        lock(&self.live).remove(id);
    }

    /// When the first of their present certificates ends; none where nobody has one.
    pub(super) fn soonest_end(&self) -> Option<i64> {
        // Of each the newest, which ends last: the older ones have been replaced.
        self.all().iter().filter_map(|live| lock(&live.serials).iter().map(|(_, end)| *end).max()).min()
    }

    /// How many are alive.
    pub(super) fn len(&self) -> usize {
        lock(&self.live).len()
    }

    /// Whether none is alive.
    pub(super) fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends those of which a certificate was revoked, the present or an earlier one: each of them speaks
    /// for the whole instance.
    pub(super) fn revoke(&self, serials: &[Bytes]) {
        // First remembered, then looked for: an instance notes its serial before it asks here.
        let mut revoked = lock(&self.revoked);
        revoked.extend(serials.iter().cloned());
        let surplus = revoked.len().saturating_sub(MAX_REVOKED);
        revoked.drain(..surplus);
        drop(revoked);
        for live in self.all() {
            if lock(&live.serials).iter().any(|(serial, _)| serials.contains(serial)) {
                live.end(EndReason::Operator);
            }
        }
    }

    /// Whether this serial was revoked before its certificate arrived.
    pub(super) fn was_revoked(&self, serial: &Bytes) -> bool {
        lock(&self.revoked).contains(serial)
    }

    /// Ends those whose process has ended or replaced its image.
    pub(super) fn sweep(&self) {
        for live in self.all() {
            if let Some((process, _)) = live.caller.known()
                && let Err(error) = process.check()
            {
                live.end(reason_of(&error));
            }
        }
    }

    /// Ends all.
    pub(super) fn end_all(&self, reason: EndReason) {
        self.all().iter().for_each(|live| live.end(reason));
    }

    fn all(&self) -> Vec<Arc<Live>> {
        lock(&self.live).values().cloned().collect()
    }

    /// Lets an instance sign with a hardware key, by this handle.
    pub(super) fn offer(&self, handle: KeyHandle, signer: Arc<Signer>) {
        lock(&self.keys).insert(handle, signer);
    }

    /// Takes the handle back.
    pub(super) fn withdraw(&self, handle: &KeyHandle) {
        lock(&self.keys).remove(handle);
    }

    /// The key of this handle, if it is that process's own.
    pub(super) fn signer(&self, handle: &[u8], process: ProcessKey) -> Option<Arc<Signer>> {
        let handle: &KeyHandle = handle.try_into().ok()?;
        lock(&self.keys).get(handle).filter(|signer| signer.process == process).cloned()
    }

    /// How many handles are out.
    pub(super) fn handles(&self) -> usize {
        lock(&self.keys).len()
    }
}

/// What a look at a process says of its instances.
pub(super) fn reason_of(error: &ObserveError) -> EndReason {
    match error {
        ObserveError::ImageReplaced { .. } => EndReason::ImageReplaced,
        _ => EndReason::ProcessExited,
    }
}

/// A hardware key with the bounds on its use.
pub(super) struct Signer {
    /// The process that may use it.
    pub(super) process: ProcessKey,
    /// Whose it is.
    pub(super) live: Arc<Live>,
    /// The key.
    pub(super) key: Arc<dyn AgentKey>,
    /// Signatures at once.
    pub(super) concurrency: Semaphore,
    /// Signatures in a second, and at a stroke.
    pace: (u32, u32),
    bucket: Mutex<Bucket>,
}

impl Signer {
    /// A key of `live`, within these limits.
    pub(super) fn new(live: Arc<Live>, process: ProcessKey, key: Arc<dyn AgentKey>, limits: &Limits) -> Self {
        let pace = (limits.sign_per_second, limits.sign_burst);
        let bucket = Mutex::new(Bucket::full(limits.sign_burst, Instant::now()));
        let concurrency = Semaphore::new(limits.sign_concurrency);
        Self { process, live, key, concurrency, pace, bucket }
    }

    /// Takes one signature from the allowance, if there is one left at `now`.
    pub(super) fn allow(&self, now: Instant) -> bool {
        lock(&self.bucket).take(self.pace.0, self.pace.1, now)
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
