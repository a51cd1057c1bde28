//! Records of refused strangers: bounded, because anyone who reaches the port can ask for one.
//!
//! Refusals at the ordinary pace are recorded one by one. Beyond it they are counted, and the count is
//! recorded with the next one: that somebody tried, and how often, is never lost; what each said is.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Refusals recorded one by one in a burst.
const BURST: u32 = 64;
/// One more after each of these.
const EVERY: Duration = Duration::from_secs(2);

/// How many records strangers may cause.
#[derive(Debug)]
pub struct RefusalBook(Mutex<State>);

#[derive(Debug)]
struct State {
    left: u32,
    since: Option<Instant>,
    unrecorded: u64,
}

impl Default for RefusalBook {
    fn default() -> Self {
        Self(Mutex::new(State { left: BURST, since: None, unrecorded: 0 }))
    }
}

impl RefusalBook {
    /// Whether a refusal at `now` is recorded by itself; and if so, how many before it were not.
    pub(super) fn take(&self, now: Instant) -> Option<u64> {
        // Numbers that a panic could leave behind are still numbers.
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let since = *state.since.get_or_insert(now);
        let gained = now.saturating_duration_since(since).as_secs() / EVERY.as_secs();
        if gained > 0 {
            state.left = BURST.min(state.left.saturating_add(u32::try_from(gained).unwrap_or(BURST)));
            state.since = Some(now);
        }
        if state.left == 0 {
            state.unrecorded += 1;
            return None;
        }
        state.left -= 1;
        Some(std::mem::take(&mut state.unrecorded))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_refusals_is_counted_and_not_recorded_one_by_one() {
        let book = RefusalBook::default();
        let start = Instant::now();
        let recorded = (0..1000).filter(|_| book.take(start).is_some()).count();
        assert_eq!(recorded, 64);
        assert_eq!(book.take(start + EVERY), Some(936));
        assert_eq!(book.take(start + EVERY), None);
        let later = start + EVERY * 1000;
        assert_eq!(book.take(later), Some(1));
        assert_eq!((1..200).filter(|_| book.take(later).is_some()).count(), 63);
    }
}
