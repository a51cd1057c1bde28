//! Whether the parts of the daemon make progress: what systemd is told as `WATCHDOG=1` must be true of
//! each of them, not of the task that says it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How often a part that has nothing to do shows that it could.
pub(crate) const BEAT: Duration = Duration::from_secs(1);

/// Counts the signs of life of one part.
#[derive(Debug, Clone, Default)]
pub struct Pulse(Arc<AtomicU64>);

impl Pulse {
    /// A sign of life.
    pub(crate) fn beat(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }

    /// How many there were.
    pub(crate) fn count(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Does `work`, with a sign of life for as long as the task that does it gets on.
    pub(crate) async fn while_doing<T>(&self, work: impl Future<Output = T>) -> T {
        let mut beat = tokio::time::interval(BEAT);
        let mut work = std::pin::pin!(work);
        loop {
            tokio::select! {
                done = &mut work => return done,
                _ = beat.tick() => self.beat(),
            }
        }
    }
}

/// Looks at the pulses of all parts.
pub(crate) struct Watch {
    patience: Duration,
    parts: Vec<Part>,
}

struct Part {
    name: &'static str,
    progress: Box<dyn Fn() -> u64 + Send>,
    seen: u64,
    since: Instant,
}

impl Watch {
    /// Parts may be silent for so long.
    pub(crate) fn new(patience: Duration) -> Self {
        Self { patience, parts: Vec::new() }
    }

    /// One more part; `progress` changes when it gets on.
    pub(crate) fn over(
        mut self,
        name: &'static str,
        progress: impl Fn() -> u64 + Send + 'static,
        now: Instant,
    ) -> Self {
        let seen = progress();
        self.parts.push(Part { name, progress: Box::new(progress), seen, since: now });
        self
    }

    /// The parts that have been silent for too long.
    pub(crate) fn stalled(&mut self, now: Instant) -> Vec<&'static str> {
        for part in &mut self.parts {
            let progress = (part.progress)();
            if progress != part.seen {
                (part.seen, part.since) = (progress, now);
            }
        }
        let silent = |part: &&Part| now.saturating_duration_since(part.since) > self.patience;
        self.parts.iter().filter(silent).map(|part| part.name).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_part_must_get_on_by_itself() {
        let (one, two, began) = (Pulse::default(), Pulse::default(), Instant::now());
        let at = |seconds| began + Duration::from_secs(seconds);
        let (a, b) = (one.clone(), two.clone());
        let mut watch = Watch::new(Duration::from_secs(15)).over("one", move || a.count(), began).over(
            "two",
            move || b.count(),
            began,
        );
        assert!(watch.stalled(at(15)).is_empty());
        one.beat();
        assert_eq!(watch.stalled(at(16)), ["two"]);
        two.beat();
        assert!(watch.stalled(at(31)).is_empty());
        two.beat();
        assert_eq!(watch.stalled(at(32)), ["one"]);
        one.beat();
        assert!(watch.stalled(at(33)).is_empty(), "it got on after all");
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_waits_shows_life_and_one_that_is_done_shows_no_more() {
        let pulse = Pulse::default();
        pulse.while_doing(tokio::time::sleep(BEAT * 5)).await;
        let shown = pulse.count();
        assert!(shown >= 5);
        tokio::time::sleep(BEAT * 5).await;
        assert_eq!(pulse.count(), shown);
    }
}
