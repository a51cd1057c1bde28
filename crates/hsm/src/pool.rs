//! The bounded pool of sessions with one token.

use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use cryptoki::object::ObjectHandle;
use cryptoki::session::Session;

/// Sessions of one generation: what a new one begins with is what was opened in it.
#[derive(Debug)]
pub(crate) struct Pool {
    state: Mutex<State>,
    freed: Condvar,
}

#[derive(Debug)]
struct State {
    generation: u64,
    max: usize,
    /// Idle, in use or being opened.
    open: usize,
    idle: Vec<Session>,
    /// Session objects nobody wants any more, to be destroyed by the next session at hand.
    condemned: Vec<ObjectHandle>,
}

/// What [`Pool::take`] gives.
pub(crate) enum Taken {
    /// A session that was idle, and its generation.
    Idle(Session, u64),
    /// Leave to open one; [`Pool::give_back`], [`Pool::discard`] or [`Pool::not_opened`] must follow.
    MayOpen,
    /// All stayed in use.
    Busy {
        /// For this long.
        waited: Duration,
        max: usize,
        generation: u64,
    },
}

impl Pool {
    pub(crate) fn new(max: usize) -> Self {
        let max = max.max(1);
        let state = State { generation: 0, max, open: 0, idle: Vec::new(), condemned: Vec::new() };
        Self { state: Mutex::new(state), freed: Condvar::new() }
    }

    /// Lowers the number of sessions to what the token allows, but not to none.
    pub(crate) fn limit(&self, most: usize) {
        let mut state = self.state();
        state.max = state.max.min(most).max(1);
    }

    /// An idle session, or leave to open one, or neither within `patience`.
    pub(crate) fn take(&self, patience: Duration) -> Taken {
        let started = Instant::now();
        let mut state = self.state();
        loop {
            if let Some(session) = state.idle.pop() {
                return Taken::Idle(session, state.generation);
            }
            if state.open < state.max {
                state.open += 1;
                return Taken::MayOpen;
            }
            let left = patience.saturating_sub(started.elapsed());
            if left.is_zero() {
                let State { max, generation, .. } = *state;
                return Taken::Busy { waited: started.elapsed(), max, generation };
            }
            state = self.freed.wait_timeout(state, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Makes a session idle again, after it has destroyed what was condemned; or closes it, if its
    /// generation is over.
    pub(crate) fn give_back(&self, session: Session, generation: u64) {
        loop {
            let mut state = self.state();
            if state.generation != generation {
                drop(state);
                return self.discard(session);
            }
            if state.condemned.is_empty() {
                state.idle.push(session);
                drop(state);
                return self.freed.notify_one();
            }
            let condemned = std::mem::take(&mut state.condemned);
            drop(state);
            destroy(&session, condemned);
        }
    }

    /// Closes a session.
    pub(crate) fn discard(&self, session: Session) {
        drop(session);
        self.not_opened();
    }

    /// The leave to open one was not used.
    pub(crate) fn not_opened(&self) {
        self.state().open -= 1;
        self.freed.notify_one();
    }

    /// Destroys a session object: at once if a session is idle, else when one is given back. Never waits.
    /// What it returns, the caller must destroy by other means: no session is open.
    pub(crate) fn condemn(&self, object: ObjectHandle, generation: u64) -> Vec<ObjectHandle> {
        let mut state = self.state();
        if state.generation != generation {
            return Vec::new();
        }
        state.condemned.push(object);
        if let Some(session) = state.idle.pop() {
            drop(state);
            self.give_back(session, generation);
        } else if state.open == 0 {
            return std::mem::take(&mut state.condemned);
        }
        Vec::new()
    }

    /// Begins a generation, and returns the idle sessions of the one before.
    pub(crate) fn begin(&self, generation: u64) -> Vec<Session> {
        let mut state = self.state();
        state.generation = generation;
        state.condemned.clear();
        let stale = std::mem::take(&mut state.idle);
        state.open -= stale.len();
        drop(state);
        self.freed.notify_all();
        stale
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Destroys session objects; one that cannot be is gone already.
pub(crate) fn destroy(session: &Session, objects: Vec<ObjectHandle>) {
    for object in objects {
        if let Err(error) = session.destroy_object(object) {
            tracing::debug!(%error, "session object was gone already");
        }
    }
}
