//! The wall clock: the one that certificates are written by.

use std::time::{Duration, UNIX_EPOCH};

/// Longest uninterrupted sleep. A machine that was suspended, or whose clock was corrected, moves the wall
/// clock without waking a timer.
const LONGEST_NAP: Duration = Duration::from_secs(30);

/// Seconds since 1970.
pub(crate) fn now() -> i64 {
    UNIX_EPOCH.elapsed().map_or(0, |d| i64::try_from(d.as_secs()).unwrap_or(i64::MAX))
}

/// Returns once the wall clock shows `at` (seconds since 1970).
pub(crate) async fn until(at: i64) {
    loop {
        let left = at.saturating_sub(now());
        if left <= 0 {
            return;
        }
        tokio::time::sleep(Duration::from_secs(left.unsigned_abs()).min(LONGEST_NAP)).await;
    }
}
