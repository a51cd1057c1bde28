//! What one user may take of this host: places for instances, and how fast he may begin them and have
//! them sign. Agents of one user share it; those of others lose nothing to them.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use super::Limits;

/// Users remembered. Those who hold nothing, and are owed a full allowance, are forgotten beyond it.
const MAX_USERS: usize = 1024;

/// An allowance that fills by the second up to a burst.
#[derive(Debug)]
pub(super) struct Bucket {
    tokens: f64,
    filled: Instant,
}

impl Bucket {
    /// A full one.
    pub(super) fn full(burst: u32, now: Instant) -> Self {
        Self { tokens: f64::from(burst), filled: now }
    }

    /// Takes one from it, if there is one left at `now`.
    pub(super) fn take(&mut self, per_second: u32, burst: u32, now: Instant) -> bool {
        self.fill(per_second, burst, now);
        let allowed = self.tokens >= 1.0;
        if allowed {
            self.tokens -= 1.0;
        }
        allowed
    }

    fn fill(&mut self, per_second: u32, burst: u32, now: Instant) {
        let gained = now.saturating_duration_since(self.filled).as_secs_f64() * f64::from(per_second);
        self.tokens = (self.tokens + gained).min(f64::from(burst));
        self.filled = now;
    }

    fn is_full(&mut self, per_second: u32, burst: u32, now: Instant) -> bool {
        self.fill(per_second, burst, now);
        self.tokens >= f64::from(burst)
    }
}

/// Why a user gets no more for now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum ShareError {
    /// He has as many instances as he may have.
    #[error(
        "user {uid} has {max} instances here and may have no more: end some, or have the operator raise limits.max_agents_per_user"
    )]
    Places {
        /// The user.
        uid: u32,
        /// His limit.
        max: usize,
    },
    /// He begins instances too fast.
    #[error(
        "user {uid} asks for new identities faster than {per_second} a second: wait and ask again, keep streams open rather than begin new ones, or have the operator raise limits.begin_per_second_per_user"
    )]
    Begin {
        /// The user.
        uid: u32,
        /// His rate.
        per_second: u32,
    },
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Shares {
    users: Mutex<HashMap<u32, User>>,
}

#[derive(Debug)]
struct User {
    instances: usize,
    begin: Bucket,
    sign: Bucket,
}

/// A place that an instance holds; dropping it makes room.
#[derive(Debug)]
pub(super) struct Place {
    shares: Arc<Shares>,
    uid: u32,
}

impl Shares {
    /// A place for one more instance of this user.
    ///
    /// # Errors
    /// He has taken his share.
    pub(super) fn begin(
        self: &Arc<Self>,
        uid: u32,
        limits: &Limits,
        now: Instant,
    ) -> Result<Place, ShareError> {
        let mut users = self.lock();
        let user = user(&mut users, uid, limits, now);
        if user.instances >= limits.max_agents_per_user {
            return Err(ShareError::Places { uid, max: limits.max_agents_per_user });
        }
        let per_second = limits.begin_per_second_per_user;
        if !user.begin.take(per_second, limits.begin_burst_per_user, now) {
            return Err(ShareError::Begin { uid, per_second });
        }
        user.instances += 1;
        Ok(Place { shares: self.clone(), uid })
    }

    /// Takes one signature from what this user may have, if there is one left at `now`.
    pub(super) fn sign(&self, uid: u32, limits: &Limits, now: Instant) -> bool {
        let mut users = self.lock();
        let user = user(&mut users, uid, limits, now);
        user.sign.take(limits.sign_per_second_per_user, limits.sign_burst_per_user, now)
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<u32, User>> {
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn user<'a>(users: &'a mut HashMap<u32, User>, uid: u32, limits: &Limits, now: Instant) -> &'a mut User {
    if users.len() >= MAX_USERS && !users.contains_key(&uid) {
        users.retain(|_, user| {
            user.instances > 0
                || !user.begin.is_full(limits.begin_per_second_per_user, limits.begin_burst_per_user, now)
                || !user.sign.is_full(limits.sign_per_second_per_user, limits.sign_burst_per_user, now)
        });
    }
    users.entry(uid).or_insert_with(|| User {
        instances: 0,
        begin: Bucket::full(limits.begin_burst_per_user, now),
        sign: Bucket::full(limits.sign_burst_per_user, now),
    })
}

impl Drop for Place {
    fn drop(&mut self) {
        if let Some(user) = self.shares.lock().get_mut(&self.uid) {
            user.instances = user.instances.saturating_sub(1);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn limits() -> Limits {
        Limits {
            max_agents_per_user: 2,
            begin_per_second_per_user: 1,
            begin_burst_per_user: 3,
            sign_per_second_per_user: 1,
            sign_burst_per_user: 2,
            ..Limits::default()
        }
    }

    #[test]
    fn places_are_bounded_by_user_and_return() {
        let (shares, limits, now) = (Arc::new(Shares::default()), limits(), Instant::now());
        let one = shares.begin(1, &limits, now).unwrap();
        let _two = shares.begin(1, &limits, now).unwrap();
        assert_eq!(shares.begin(1, &limits, now).unwrap_err(), ShareError::Places { uid: 1, max: 2 });
        let _other = shares.begin(2, &limits, now).unwrap();
        drop(one);
        shares.begin(1, &limits, now).unwrap();
    }

    #[test]
    fn beginning_and_signing_are_paced_by_user() {
        let (shares, limits, now) = (Arc::new(Shares::default()), limits(), Instant::now());
        for _ in 0..3 {
            shares.begin(1, &limits, now).unwrap();
        }
        assert_eq!(shares.begin(1, &limits, now).unwrap_err(), ShareError::Begin { uid: 1, per_second: 1 });
        shares.begin(2, &limits, now).unwrap();
        shares.begin(1, &limits, now + Duration::from_secs(1)).unwrap();

        assert!(shares.sign(1, &limits, now) && shares.sign(1, &limits, now));
        assert!(!shares.sign(1, &limits, now));
        assert!(shares.sign(2, &limits, now));
    }

    #[test]
    fn users_who_took_something_are_not_forgotten_for_others() {
        let (shares, limits, now) = (Arc::new(Shares::default()), limits(), Instant::now());
        let _held = shares.begin(0, &limits, now).unwrap();
        while shares.sign(1, &limits, now) {}
        for uid in 2..MAX_USERS as u32 + 10 {
            shares.sign(uid, &limits, now);
        }
        assert!(!shares.sign(1, &limits, now), "a crowd of users buys no new allowance");
        let later = now + Duration::from_secs(60);
        shares.sign(u32::MAX, &limits, later);
        assert_eq!(shares.lock().len(), 2, "those who are owed all are forgotten, but for who holds a place");
    }
}
