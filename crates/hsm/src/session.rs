//! One login and a pool of sessions with one token, and what to do when the token goes away.
//!
//! Login belongs to the application, not to a session, and lasts while any session is open (PKCS#11 §5.6,
//! C_Login). One session, the *anchor*, is kept open for that; it also makes the agents' keys, because a
//! session object ends with the session that made it. All other work is done on sessions of the pool.
//!
//! A *generation* is the time between two connections. Whatever is left of an older one is thrown away.
//!
//! Locks, in the order in which they are taken: the module's epoch, the link, the pool.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLockReadGuard};
use std::time::{Duration, Instant};

use cryptoki::context::Function;
use cryptoki::error::{Error as CkError, RvError};
use cryptoki::object::ObjectHandle;
use cryptoki::session::{Session, SessionState, UserType};
use cryptoki::slot::{Limit, Slot, TokenInfo};
use cryptoki::types::AuthPin;
use zeroize::Zeroizing;

use crate::HsmError;
use crate::module::Module;
use crate::pool::{self, Pool, Taken};

/// After a failed attempt to reach the token none is made for this long: callers are told at once.
const RECONNECT_PAUSE: Duration = Duration::from_millis(250);
/// Longest wait for a free session.
const PATIENCE: Duration = Duration::from_secs(20);

/// How often a connection did what costs time; for status and tests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// Connections to the token: one, and one more each time it came back.
    pub connections: u64,
    /// Sessions opened, without those that hold the login.
    pub sessions: u64,
    /// Searches for a key by its label.
    pub lookups: u64,
}

/// A connection to one token, shared by all that use it.
pub(crate) struct Sessions {
    module: Arc<Module>,
    label: String,
    pin: Zeroizing<String>,
    /// The module's epoch that link and pool belong to.
    epoch: AtomicU64,
    link: Mutex<Link>,
    pool: Pool,
    connections: AtomicU64,
    opened: AtomicU64,
    pub(crate) lookups: AtomicU64,
}

#[derive(Default)]
struct Link {
    generation: u64,
    up: Option<Up>,
    /// The last attempt failed then, for this reason.
    failed: Option<(Instant, String)>,
    pin_refused: bool,
}

struct Up {
    slot: Slot,
    anchor: Session,
}

/// A failure, with the generation that it happened in.
type Attempt<T> = Result<T, (HsmError, u64)>;

impl Sessions {
    /// Finds the token and logs in; opens no session of the pool yet.
    pub(crate) fn open(
        module: Arc<Module>,
        label: String,
        pin: Zeroizing<String>,
        max: usize,
    ) -> Result<Self, HsmError> {
        let sessions = Self {
            module,
            label,
            pin,
            epoch: AtomicU64::new(0),
            link: Mutex::new(Link::default()),
            pool: Pool::new(max),
            connections: AtomicU64::new(0),
            opened: AtomicU64::new(0),
            lookups: AtomicU64::new(0),
        };
        sessions.with_anchor(|_| Ok(()))?;
        let (_, info) = sessions.token_info()?;
        if let Limit::Max(limit) = info.max_session_count() {
            // One is the anchor.
            let most = usize::try_from(limit.saturating_sub(1)).unwrap_or(usize::MAX);
            sessions.pool.limit(most);
        }
        Ok(sessions)
    }

    /// Runs `work` on a session of the pool, in the generation that it is told; once more on a new
    /// connection if the first one proves dead.
    pub(crate) fn with<T>(
        &self,
        mut work: impl FnMut(&Session, u64) -> Result<T, HsmError>,
    ) -> Result<T, HsmError> {
        self.twice(|| {
            let (session, generation) = self.borrow()?;
            let result = work(&session, generation);
            match &result {
                Err(e) if e.spoils_session() => self.pool.discard(session),
                _ => self.pool.give_back(session, generation),
            }
            result.map_err(|e| (e, generation))
        })
    }

    /// Runs `work` on the anchor; its session objects live until the end of the generation returned.
    pub(crate) fn with_anchor<T>(
        &self,
        mut work: impl FnMut(&Session) -> Result<T, HsmError>,
    ) -> Result<(T, u64), HsmError> {
        self.twice(|| {
            let mut link = self.link();
            let generation = link.generation;
            let made = self.connect(&mut link).and_then(|up| work(&up.anchor));
            made.map(|made| (made, generation)).map_err(|e| (e, generation))
        })
    }

    /// Runs `work` on a read-write session of its own, which changing the token's objects needs.
    pub(crate) fn with_writer<T>(
        &self,
        mut work: impl FnMut(&Session) -> Result<T, HsmError>,
    ) -> Result<T, HsmError> {
        self.twice(|| {
            let (slot, generation) = self.slot()?;
            let session = self.module.context.open_rw_session(slot).map_err(|e| self.call(e));
            session.and_then(|session| work(&session)).map_err(|e| (e, generation))
        })
    }

    /// Destroys a session object: at once if a session is free, else as soon as one is. Never waits for
    /// one, since it is called from `Drop`.
    pub(crate) fn condemn(&self, object: ObjectHandle, generation: u64) {
        let _epoch = self.enter();
        let left = self.pool.condemn(object, generation);
        if left.is_empty() {
            return;
        }
        let link = self.link();
        if let (Some(up), true) = (&link.up, link.generation == generation) {
            pool::destroy(&up.anchor, left);
        }
    }

    /// What the token says of itself now.
    pub(crate) fn token_info(&self) -> Result<(Slot, TokenInfo), HsmError> {
        let _epoch = self.enter();
        self.module.find_token(&self.label)
    }

    /// Why a search found nothing though the key was expected, if it is not that the key is missing.
    pub(crate) fn why_nothing(&self, session: &Session) -> Result<(), HsmError> {
        session.get_session_info().map_err(|e| self.call(e))?;
        self.module.find_token(&self.label).map(drop)
    }

    pub(crate) fn counters(&self) -> Counters {
        Counters {
            connections: self.connections.load(Ordering::Relaxed),
            sessions: self.opened.load(Ordering::Relaxed),
            lookups: self.lookups.load(Ordering::Relaxed),
        }
    }

    pub(crate) fn label(&self) -> &str {
        &self.label
    }

    pub(crate) fn module(&self) -> &Module {
        &self.module
    }

    pub(crate) fn call(&self, source: CkError) -> HsmError {
        HsmError::Call { token: self.label.clone(), source }
    }

    /// Attempts it once more after the connection proved dead, and after initialising the module anew where
    /// the token is no longer listed. Never a third time: the caller is told instead.
    fn twice<T>(&self, mut attempt: impl FnMut() -> Attempt<T>) -> Result<T, HsmError> {
        let mut guarded = || {
            let epoch = self.enter();
            attempt().map_err(|(error, generation)| (error, generation, *epoch))
        };
        let (error, generation, epoch) = match guarded() {
            Ok(done) => return Ok(done),
            Err(failed) => failed,
        };
        if !error.link_lost() && !error.token_missing() {
            return Err(error);
        }
        self.disconnect(generation, &error);
        if error.token_missing() {
            let restarted = self.module.restart(epoch, &self.label);
            let mut link = self.link();
            if let Err(e) = restarted {
                let because = e.to_string();
                link.failed = Some((Instant::now(), because.clone()));
                return Err(HsmError::TokenAway { label: self.label.clone(), because });
            }
            link.failed = None;
        }
        guarded().map_err(|(error, generation, _)| {
            if error.link_lost() {
                self.disconnect(generation, &error);
            }
            error
        })
    }

    /// The module's epoch, to be held around every call into it; forgets what is left of an earlier one.
    fn enter(&self) -> RwLockReadGuard<'_, u64> {
        let epoch = self.module.enter();
        if self.epoch.load(Ordering::Acquire) != *epoch {
            let mut link = self.link();
            if self.epoch.load(Ordering::Acquire) != *epoch {
                // Not closed: the module no longer knows them, or knows others by their handles.
                std::mem::forget(self.end_generation(&mut link));
                self.epoch.store(*epoch, Ordering::Release);
            }
        }
        epoch
    }

    /// Ends a generation, unless another thread has already.
    fn disconnect(&self, generation: u64, because: &HsmError) {
        let _epoch = self.enter();
        let mut link = self.link();
        if link.generation != generation || link.up.is_none() {
            return;
        }
        tracing::warn!(token = %self.label, generation, error = %because, "lost the PKCS#11 token");
        let stale = self.end_generation(&mut link);
        drop(link);
        drop(stale);
    }

    /// What it returns is to be closed or forgotten.
    fn end_generation(&self, link: &mut Link) -> (Option<Up>, Vec<Session>) {
        link.generation += 1;
        let up = link.up.take();
        if up.is_some() {
            self.module.disconnect(&self.label);
        }
        (up, self.pool.begin(link.generation))
    }

    /// The slot, connecting if need be.
    fn slot(&self) -> Attempt<(Slot, u64)> {
        let mut link = self.link();
        let generation = link.generation;
        let slot = self.connect(&mut link).map_err(|e| (e, generation))?.slot;
        Ok((slot, generation))
    }

    fn connect<'a>(&self, link: &'a mut Link) -> Result<&'a Up, HsmError> {
        let up = match link.up.take() {
            Some(up) => up,
            None => self.connect_anew(link)?,
        };
        Ok(link.up.insert(up))
    }

    fn connect_anew(&self, link: &mut Link) -> Result<Up, HsmError> {
        if link.pin_refused {
            return Err(HsmError::PinIncorrect { label: self.label.clone() });
        }
        if let Some((at, because)) = &link.failed
            && at.elapsed() < RECONNECT_PAUSE
        {
            return Err(HsmError::TokenAway { label: self.label.clone(), because: because.clone() });
        }
        let up = self.login().inspect_err(|e| {
            link.pin_refused = matches!(e, HsmError::PinIncorrect { .. });
            link.failed = Some((Instant::now(), e.to_string()));
        })?;
        link.failed = None;
        self.module.connect(&self.label);
        self.connections.fetch_add(1, Ordering::Relaxed);
        tracing::info!(token = %self.label, generation = link.generation, "connected to the PKCS#11 token");
        Ok(up)
    }

    fn login(&self) -> Result<Up, HsmError> {
        let (slot, info) = self.module.find_token(&self.label)?;
        let anchor = self.module.context.open_ro_session(slot).map_err(|e| self.call(e))?;
        let label = || self.label.clone();
        if logged_in(&anchor).map_err(|e| self.call(e))? {
            return Ok(Up { slot, anchor });
        }
        if info.user_pin_locked() {
            return Err(HsmError::PinLocked { label: label() });
        }
        if info.user_pin_final_try() {
            return Err(HsmError::PinFinalTry { label: label() });
        }
        let pin = AuthPin::new(self.pin.as_str().into());
        match anchor.login(UserType::User, Some(&pin)) {
            // Already: by another connection of this process, between the look and the login.
            Ok(()) | Err(CkError::Pkcs11(RvError::UserAlreadyLoggedIn, _)) => Ok(Up { slot, anchor }),
            Err(CkError::Pkcs11(RvError::PinIncorrect | RvError::PinLenRange, _)) => {
                Err(HsmError::PinIncorrect { label: label() })
            }
            Err(CkError::Pkcs11(RvError::PinLocked, _)) => Err(HsmError::PinLocked { label: label() }),
            Err(e) => Err(self.call(e)),
        }
    }

    /// A session of the pool, to be given back or discarded.
    fn borrow(&self) -> Attempt<(Session, u64)> {
        match self.pool.take(PATIENCE) {
            Taken::Idle(session, generation) => Ok((session, generation)),
            Taken::MayOpen => self.open_one().inspect_err(|_| self.pool.not_opened()),
            Taken::Busy { waited, max, generation } => {
                Err((HsmError::Busy { label: self.label.clone(), max, waited }, generation))
            }
        }
    }

    fn open_one(&self) -> Attempt<(Session, u64)> {
        let (slot, generation) = self.slot()?;
        let open = || {
            let session = self.module.context.open_ro_session(slot)?;
            // Without a login a search finds nothing and says nothing, so look before using it.
            if !logged_in(&session)? {
                return Err(CkError::Pkcs11(RvError::UserNotLoggedIn, Function::GetSessionInfo));
            }
            Ok(session)
        };
        let session = open().map_err(|e| (self.call(e), generation))?;
        self.opened.fetch_add(1, Ordering::Relaxed);
        Ok((session, generation))
    }

    fn link(&self) -> MutexGuard<'_, Link> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Sessions {
    fn drop(&mut self) {
        let this = &*self;
        let _epoch = this.enter();
        let stale = this.end_generation(&mut this.link());
        drop(stale);
    }
}

fn logged_in(session: &Session) -> Result<bool, CkError> {
    let state = session.get_session_info()?.session_state();
    Ok(matches!(state, SessionState::RoUser | SessionState::RwUser))
}

impl std::fmt::Debug for Sessions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sessions")
            .field("module", &self.module.path)
            .field("token", &self.label)
            .finish_non_exhaustive()
    }
}
