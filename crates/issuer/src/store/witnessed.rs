//! From what is on disk to what may be released.
//!
//! Without `witness.required` the two are the same. With it, a record may be released once a checkpoint that covers it
//! has its quorum of witnesses: its caller waits for that, and nobody else does. Commits go on meanwhile, and what an
//! operator orders, as a revocation, takes effect as soon as it is durable.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use hallmark_core::log::{Checkpoint, Cosigned, Witnessed};
use tokio::sync::{Notify, Semaphore, SemaphorePermit, watch};

use super::StoreError;
use super::live::Stale;
use super::write::Durable;
use crate::metrics::metrics;

/// Most records whose callers wait for the witnesses at one time: each may hold a credential of some thousand bytes.
const ROOM: u32 = 4096;

/// Proof that a decision's record is on disk and, where witnesses are required, under a checkpoint that has their
/// quorum. Only [`Place`] and `release_whenever` make one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    number: u64,
}

impl Recorded {
    /// The record's number at this issuer.
    pub fn number(&self) -> u64 {
        self.number
    }

    fn all(durable: Vec<Result<Durable, Stale>>, _: &Cleared) -> Vec<Result<Self, Stale>> {
        durable.into_iter().map(|durable| durable.map(|d| Self { number: d.number() })).collect()
    }
}

/// Says that records may be released: those up to a checkpoint with its quorum, or all that are durable. Made here alone.
struct Cleared(());

/// How far the log is witnessed, and what is published of it.
#[derive(Debug)]
pub struct Witnessing {
    gate: Option<Gate>,
    shown: watch::Sender<Option<Arc<Shown>>>,
    wanted: Notify,
    board: Mutex<Vec<Standing>>,
    needed: usize,
}

/// What those who release wait for.
#[derive(Debug)]
struct Gate {
    room: Semaphore,
    reached: watch::Sender<Reached>,
    timeout: Duration,
}

#[derive(Debug, Clone, Copy, Default)]
struct Reached {
    /// Records under the newest checkpoint that has its quorum.
    size: u64,
    /// The last attempt at a quorum failed.
    away: bool,
}

/// A checkpoint as it is published, with the cosignatures that it has.
#[derive(Debug)]
pub struct Shown {
    /// The checkpoint.
    pub checkpoint: Checkpoint,
    /// The note.
    pub note: Vec<u8>,
    /// Whether it has its quorum.
    pub witnessed: bool,
}

/// What a witness last said.
#[derive(Debug, Clone, Default)]
pub struct Standing {
    /// Its name.
    pub name: String,
    /// Where it is.
    pub url: String,
    /// Entries at the last checkpoint that it cosigned; 0 if it has none.
    pub size: u64,
    /// When, by its clock, in seconds since 1970.
    pub at: u64,
    /// Why its last answer was none.
    pub problem: Option<String>,
}

impl Witnessing {
    /// Of these witnesses, of which so many are needed; with a time where they are required.
    pub fn new(board: Vec<Standing>, needed: usize, required: Option<Duration>) -> Self {
        let gate = |timeout| Gate {
            room: Semaphore::new(ROOM as usize),
            reached: watch::Sender::new(Reached::default()),
            timeout,
        };
        let (shown, wanted) = (watch::Sender::new(None), Notify::new());
        Self { gate: required.map(gate), shown, wanted, board: Mutex::new(board), needed }
    }

    /// Whether nothing is released without the quorum.
    pub fn is_required(&self) -> bool {
        self.gate.is_some()
    }

    /// How many witnesses are needed.
    pub fn needed(&self) -> usize {
        self.needed
    }

    /// The newest checkpoint as it is published.
    pub fn shown(&self) -> Option<Arc<Shown>> {
        self.shown.borrow().clone()
    }

    /// What each witness last said.
    pub fn board(&self) -> MutexGuard<'_, Vec<Standing>> {
        // What a panic left behind is whole: each entry is written at once.
        self.board.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Publishes a checkpoint: where the quorum is required, with the proof of it alone.
    pub fn show(&self, cosigned: &Cosigned, witnessed: Option<&Witnessed>) {
        if self.is_required() && witnessed.is_none() {
            return;
        }
        let (checkpoint, note) = (*cosigned.checkpoint(), cosigned.note());
        self.shown.send_replace(Some(Arc::new(Shown { checkpoint, note, witnessed: witnessed.is_some() })));
    }

    /// A checkpoint has its quorum: what it covers may be released.
    pub fn clear(&self, witnessed: &Witnessed) {
        let size = witnessed.checkpoint().size;
        metrics().witnessed(size);
        if let Some(gate) = &self.gate {
            gate.reached.send_modify(|reached| {
                *reached = Reached { size: reached.size.max(size), away: false };
            });
        }
    }

    /// An attempt at a quorum has failed: whoever comes now waits before anything is recorded for them.
    pub fn away(&self) {
        if let Some(gate) = &self.gate {
            gate.reached.send_if_modified(|reached| !std::mem::replace(&mut reached.away, true));
        }
    }

    /// Returns when somebody waits for a quorum.
    pub async fn wanted(&self) {
        self.wanted.notified().await;
    }
}

/// A place among those whose records are to be released. Taken before anything is recorded, so that those who wait are
/// bounded; whoever finds none waits for one.
#[derive(Debug)]
pub struct Place<'a>(Option<(&'a Witnessing, &'a Gate, SemaphorePermit<'a>)>);

impl<'a> Place<'a> {
    /// For so many records.
    ///
    /// # Errors
    /// The witnesses are away, or too many wait for them already, and that did not change in time. Nothing is recorded.
    pub(super) async fn take(
        witnessing: Option<&'a Witnessing>,
        records: usize,
    ) -> Result<Place<'a>, StoreError> {
        let Some((witnessing, gate)) = witnessing.and_then(|w| Some((w, w.gate.as_ref()?))) else {
            return Ok(Place(None));
        };
        let records = u32::try_from(records).unwrap_or(ROOM).min(ROOM);
        let enter = async {
            witnessing.wanted.notify_one();
            // Both ends are the gate's own: neither closes.
            let _ = gate.reached.subscribe().wait_for(|reached| !reached.away).await;
            gate.room.acquire_many(records).await
        };
        match tokio::time::timeout(gate.timeout, enter).await {
            Ok(Ok(permit)) => Ok(Place(Some((witnessing, gate, permit)))),
            Ok(Err(_)) | Err(_) => Err(unwitnessed()),
        }
    }

    /// Makes what is on disk releasable: at once, or when a checkpoint that covers it has its quorum.
    ///
    /// # Errors
    /// There was no quorum in time: the records stay, and nothing of them may be released.
    pub async fn release(
        &self,
        durable: Vec<Result<Durable, Stale>>,
    ) -> Result<Vec<Result<Recorded, Stale>>, StoreError> {
        let Some((witnessing, gate, _)) = &self.0 else { return Ok(Recorded::all(durable, &Cleared(()))) };
        let covered = reach(witnessing, gate, &durable);
        match tokio::time::timeout(gate.timeout, covered).await {
            Ok(cleared) => Ok(Recorded::all(durable, &cleared)),
            Err(_) => Err(unwitnessed()),
        }
    }
}

/// As [`Place::release`], with all the time that it takes: for the issuer's own, whom nobody waits for.
pub(super) async fn release_whenever(
    witnessing: Option<&Witnessing>,
    durable: Vec<Result<Durable, Stale>>,
) -> Vec<Result<Recorded, Stale>> {
    let cleared = match witnessing.and_then(|w| Some((w, w.gate.as_ref()?))) {
        Some((witnessing, gate)) => reach(witnessing, gate, &durable).await,
        None => Cleared(()),
    };
    Recorded::all(durable, &cleared)
}

/// Waits until all of these are under a checkpoint that has its quorum.
async fn reach(witnessing: &Witnessing, gate: &Gate, durable: &[Result<Durable, Stale>]) -> Cleared {
    let last = durable.iter().flatten().map(Durable::number).max().unwrap_or_default();
    witnessing.wanted.notify_one();
    // As above: it does not close.
    let _ = gate.reached.subscribe().wait_for(|reached| reached.size >= last).await;
    Cleared(())
}

fn unwitnessed() -> StoreError {
    metrics().unwitnessed();
    StoreError::Unwitnessed
}
