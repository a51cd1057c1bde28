//! One caller's many requests do not become another's wait, and nobody works for callers that have gone.

#![allow(clippy::unwrap_used)]

mod common;

use common::Rig;
use hallmark_tpm::{HOST, KeySpec, TpmConfig, TpmError};
use rustix::process::Signal;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::task::JoinSet;

/// A caller that keeps its lane full against one that asks once in a while: the quiet one waits for at most the request
/// in progress and one of the busy one's, counted in requests served.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_busy_caller_does_not_starve_a_quiet_one() {
    const BUSY: u64 = 7;
    const QUIET: u64 = 8;
    let rig = Rig::new();
    let tpm = hallmark_tpm::Tpm::open(TpmConfig { lane: 40, ..rig.config() }).await.unwrap();
    let key = tpm.create_key(&KeySpec::default(), HOST).await.unwrap();
    let (busy_served, stop) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let mut busy = JoinSet::new();
    for _ in 0..40 {
        let (tpm, key, served, stop) =
            (tpm.clone(), key.clone(), Arc::clone(&busy_served), Arc::clone(&stop));
        busy.spawn(async move {
            while stop.load(Ordering::Relaxed) == 0 {
                match tpm.sign(&key, [1; 32], BUSY).await {
                    Ok(_) => served.fetch_add(1, Ordering::Relaxed),
                    Err(TpmError::Busy { .. }) => 0,
                    Err(other) => panic!("{other:?}"),
                };
            }
        });
    }
    let mut fewest = u64::MAX;
    for _ in 0..20 {
        while tpm.queued() < 30 {
            tokio::task::yield_now().await;
        }
        let before = tpm.served();
        tpm.sign(&key, [2; 32], QUIET).await.unwrap();
        fewest = fewest.min(tpm.served() - before);
    }
    // One that was taken up before ours, one of the other lane, ours, and what was served before we looked again; in
    // one queue for all it would be 31 every time.
    assert!(fewest < 10, "{fewest} requests were served until the quiet caller's was");
    stop.store(1, Ordering::Relaxed);
    while busy.join_next().await.is_some() {}
    assert!(busy_served.load(Ordering::Relaxed) > 0);
}

#[tokio::test]
async fn requests_whose_callers_gave_up_are_not_taken_to_the_tpm() {
    let rig = Rig::new();
    let tpm = rig.open().await;
    let key = tpm.create_key(&KeySpec::default(), HOST).await.unwrap();
    let before = tpm.served();
    rig.signal(Signal::STOP);
    let mut abandoned = JoinSet::new();
    for _ in 0..60 {
        let (tpm, key) = (tpm.clone(), key.clone());
        abandoned.spawn(async move { tpm.sign(&key, [0; 32], 5).await });
    }
    while tpm.queued() < 59 || tpm.served() == before {
        tokio::task::yield_now().await;
    }
    abandoned.shutdown().await;
    rig.signal(Signal::CONT);
    tpm.sign(&key, [0; 32], 5).await.unwrap();
    assert_eq!(before + 2, tpm.served(), "the one in progress and the last");
    assert_eq!(0, tpm.queued());
}
