//! When a credential is renewed, and when a renewal that failed is tried again: after a wait that grows, or soon after there is a reason to
//! think that it would now succeed; never all agents at once.

use std::time::Duration;

use tokio::time::Instant;

/// Shortest and longest wait.
const WAIT: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// What each agent on the host adds to the time over which the woken spread: a hundred in a second, which
/// the issuer takes in a few batches.
const SPREAD_EACH: Duration = Duration::from_millis(10);
/// The longest such time.
const SPREAD: Duration = Duration::from_secs(20);

/// See the module. Places in time are drawn by the caller, from 0 to 1.
#[derive(Debug)]
pub(super) struct Retry {
    wait: Duration,
    at: Option<Instant>,
}

impl Retry {
    /// Nothing has failed.
    pub(super) fn new() -> Self {
        Self { wait: WAIT.0, at: None }
    }

    /// A renewal has failed: the next is tried within the present wait, and the wait after that is longer;
    /// but never later than `left` from now.
    pub(super) fn failed(&mut self, left: Duration, place: f64) {
        let wait = self.wait.mul_f64(0.5 + place / 2.0);
        self.at = Some(Instant::now() + wait.min(left));
        self.wait = (self.wait * 2).min(WAIT.1);
    }

    /// The issuer is back, or has said something new: what waits is tried soon, spread over a time that
    /// grows with the number of `agents`.
    pub(super) fn wake(&mut self, agents: usize, place: f64) {
        let Some(at) = self.at else { return };
        let spread = SPREAD_EACH.saturating_mul(u32::try_from(agents).unwrap_or(u32::MAX)).min(SPREAD);
        self.at = Some(at.min(Instant::now() + spread.mul_f64(place)));
        self.wait = WAIT.0;
    }

    /// When the failed renewal is tried again; none while nothing has failed.
    pub(super) fn at(&self) -> Option<Instant> {
        self.at
    }
}

/// When a credential that is fresh now and ends at `not_after` is renewed: after this part of its life.
pub(super) fn renewal(now: i64, not_after: i64, part: f64) -> i64 {
    now + ((not_after - now).max(0) as f64 * part) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn renewal_falls_between_half_and_seven_tenths() {
        assert_eq!(renewal(1000, 1900, 0.5), 1450);
        assert_eq!(renewal(1000, 1900, 0.7), 1630);
        assert_eq!(renewal(1000, 900, 0.7), 1000);
    }

    const LONG: Duration = Duration::from_secs(3600);

    fn wait(retry: &Retry) -> Duration {
        retry.at().unwrap() - Instant::now()
    }

    #[tokio::test(start_paused = true)]
    async fn waits_grow_and_end_before_the_credential_does() {
        let mut retry = Retry::new();
        assert!(retry.at().is_none());
        let waits = [1, 2, 4, 8, 16, 30, 30].map(|_| {
            retry.failed(LONG, 1.0);
            wait(&retry).as_secs()
        });
        assert_eq!(waits, [1, 2, 4, 8, 16, 30, 30]);
        retry.failed(LONG, 0.0);
        assert_eq!(wait(&retry), Duration::from_secs(15));
        retry.failed(Duration::from_secs(3), 1.0);
        assert_eq!(wait(&retry), Duration::from_secs(3));
    }

    #[tokio::test(start_paused = true)]
    async fn five_hundred_woken_come_soon_and_not_at_once() {
        let mut all: Vec<Retry> = (0..500).map(|_| Retry::new()).collect();
        for retry in &mut all {
            (0..6).for_each(|_| retry.failed(LONG, 1.0));
            assert_eq!(wait(retry), Duration::from_secs(30));
        }
        for (n, retry) in all.iter_mut().enumerate() {
            retry.wake(500, n as f64 / 500.0);
        }
        let mut in_second = [0; 5];
        all.iter().for_each(|retry| in_second[wait(retry).as_secs() as usize] += 1);
        assert!(in_second.iter().all(|n| *n <= 101), "{in_second:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn waking_hurries_whoever_waits_and_nobody_else() {
        let mut retry = Retry::new();
        retry.wake(1, 0.0);
        assert!(retry.at().is_none());
        retry.failed(LONG, 0.0);
        let before = retry.at();
        retry.wake(1_000_000, 1.0);
        assert_eq!(retry.at(), before, "it is not put off");
        retry.wake(1, 0.0);
        assert_eq!(wait(&retry), Duration::ZERO);
        retry.failed(LONG, 1.0);
        assert_eq!(wait(&retry), WAIT.0, "the waits begin anew");
    }
}
