//! Pauses between attempts: each twice as long as the one before, up to a most, and none the same as another's.

use std::time::Duration;

use rand::Rng as _;

/// The first.
const FIRST: Duration = Duration::from_millis(500);

/// Pauses.
#[derive(Debug)]
pub(in crate::operator::log) struct Backoff {
    most: Duration,
    pause: Duration,
}

impl Backoff {
    /// Up to a longest.
    pub(in crate::operator::log) fn new(most: Duration) -> Self {
        Self { most, pause: FIRST.min(most) }
    }

    /// The next pause: between half of what it could be and all of it, so that many who wait do not come at once.
    pub(in crate::operator::log) fn next(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(self.most);
        pause.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// It went well.
    pub(in crate::operator::log) fn reset(&mut self) {
        self.pause = FIRST.min(self.most);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_to_a_most_and_begin_anew() {
        let mut backoff = Backoff::new(Duration::from_secs(3));
        for most in [0.5, 1.0, 2.0, 3.0, 3.0] {
            let pause = backoff.next().as_secs_f64();
            assert!((most / 2.0..=most).contains(&pause), "{pause} of {most}");
        }
        backoff.reset();
        assert!(backoff.next() <= FIRST);
    }
}
