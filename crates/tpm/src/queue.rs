//! A bounded queue that serves its callers in turn.

use std::collections::{HashMap, VecDeque};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

/// Requests wait in one lane for each caller; lanes are served round-robin, one request at a time. A caller with a
/// thousand requests thus delays another by one request, not by a thousand.
pub(crate) struct FairQueue<T> {
    state: Mutex<State<T>>,
    filled: Condvar,
    limit: usize,
    lane_limit: usize,
}

struct State<T> {
    lanes: HashMap<u64, VecDeque<T>>,
    /// Lanes that are not empty, the next one to serve first.
    turn: VecDeque<u64>,
    queued: usize,
    closed: bool,
}

/// Why a request was not taken.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// The whole queue, or this caller's lane, is full.
    Full { queued: usize, limit: usize },
    /// Nobody serves the queue any more.
    Closed,
}

impl<T> FairQueue<T> {
    /// A queue for at most `limit` requests, of one caller at most `lane_limit`.
    pub(crate) fn new(limit: usize, lane_limit: usize) -> Self {
        let state = State { lanes: HashMap::new(), turn: VecDeque::new(), queued: 0, closed: false };
        Self { state: Mutex::new(state), filled: Condvar::new(), limit, lane_limit }
    }

    pub(crate) fn push(&self, lane: u64, item: T) -> Result<(), Refused> {
        let mut state = self.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        self.room(&state, lane)?;
        let waiting = state.lanes.entry(lane).or_default();
        waiting.push_back(item);
        let first = waiting.len() == 1;
        state.queued += 1;
        if first {
            state.turn.push_back(lane);
        }
        drop(state);
        self.filled.notify_one();
        Ok(())
    }

    /// Whether a request of this caller would be refused now.
    pub(crate) fn is_full(&self, lane: u64) -> bool {
        self.room(&self.lock(), lane).is_err()
    }

    /// Throws out the requests that `gone` says nobody waits for any more.
    pub(crate) fn purge(&self, gone: impl Fn(&T) -> bool) {
        let mut state = self.lock();
        let State { lanes, turn, queued, .. } = &mut *state;
        lanes.retain(|_, waiting| {
            let before = waiting.len();
            waiting.retain(|item| !gone(item));
            *queued -= before - waiting.len();
            !waiting.is_empty()
        });
        turn.retain(|lane| lanes.contains_key(lane));
    }

    /// Waits for the next request; `None` once the queue is closed and empty.
    pub(crate) fn pop(&self) -> Option<T> {
        let mut state = self.lock();
        loop {
            if let Some(item) = state.take() {
                return Some(item);
            }
            if state.closed {
                return None;
            }
            state = self.filled.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// Takes no more requests. Those that wait are dropped.
    pub(crate) fn close(&self) {
        let mut state = self.lock();
        state.closed = true;
        state.lanes.clear();
        state.turn.clear();
        state.queued = 0;
        drop(state);
        self.filled.notify_all();
    }

    pub(crate) fn len(&self) -> usize {
        self.lock().queued
    }

    fn room(&self, state: &State<T>, lane: u64) -> Result<(), Refused> {
        if state.queued >= self.limit {
            return Err(Refused::Full { queued: state.queued, limit: self.limit });
        }
        let in_lane = state.lanes.get(&lane).map_or(0, VecDeque::len);
        if in_lane >= self.lane_limit {
            return Err(Refused::Full { queued: in_lane, limit: self.lane_limit });
        }
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> State<T> {
    fn take(&mut self) -> Option<T> {
        let lane = self.turn.pop_front()?;
        let waiting = self.lanes.get_mut(&lane)?;
        let item = waiting.pop_front();
        if waiting.is_empty() {
            self.lanes.remove(&lane);
        } else {
            self.turn.push_back(lane);
        }
        self.queued -= usize::from(item.is_some());
        item
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_quiet_lane_waits_for_one_request_of_the_busy_one() {
        let queue = FairQueue::new(100, 50);
        for n in 0..50 {
            queue.push(1, (1, n)).unwrap();
        }
        queue.push(2, (2, 0)).unwrap();
        let order: Vec<_> = (0..51).map(|_| queue.pop().unwrap()).collect();
        assert_eq!(Some(1), order.iter().position(|&(lane, _)| lane == 2));
        let busy: Vec<_> = order.iter().filter(|(lane, _)| *lane == 1).map(|&(_, n)| n).collect();
        assert_eq!((0..50).collect::<Vec<_>>(), busy, "a lane keeps its own order");
    }

    #[test]
    fn both_limits_hold_and_room_returns() {
        let queue = FairQueue::new(3, 2);
        queue.push(1, ()).unwrap();
        queue.push(1, ()).unwrap();
        assert_eq!(Err(Refused::Full { queued: 2, limit: 2 }), queue.push(1, ()));
        queue.push(2, ()).unwrap();
        assert_eq!(Err(Refused::Full { queued: 3, limit: 3 }), queue.push(3, ()));
        queue.pop().unwrap();
        queue.push(3, ()).unwrap();
        assert_eq!(3, queue.len());
    }

    #[test]
    fn what_nobody_waits_for_makes_room() {
        let queue = FairQueue::new(4, 2);
        for (lane, item) in [(1, 10), (1, 11), (2, 20), (3, 31)] {
            queue.push(lane, item).unwrap();
        }
        queue.purge(|item| item % 10 == 0);
        assert_eq!(2, queue.len());
        queue.push(1, 12).unwrap();
        queue.push(2, 21).unwrap();
        assert_eq!([11, 31, 21, 12], [(); 4].map(|()| queue.pop().unwrap()));
    }

    #[test]
    fn a_refused_lane_leaves_nothing_behind() {
        let queue = FairQueue::new(10, 0);
        assert!(queue.push(1, ()).is_err());
        queue.close();
        assert_eq!(None, queue.pop());
        assert_eq!(Err(Refused::Closed), queue.push(1, ()));
    }
}
