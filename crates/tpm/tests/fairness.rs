//! One caller's many requests do not become another's wait, and nobody works for callers that have gone.

#![allow(clippy::unwrap_used)]

mod common;

use common::Rig;
use hallmark_tpm::{HOST, KeySpec, TpmConfig, TpmError};
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
    for _ in 0..20 {
        while tpm.queued() < 30 {
            tokio::task::yield_now().await;
        }
        let before = tpm.served();
        tpm.sign(&key, [2; 32], QUIET).await.unwrap();
        // One that was taken up before ours, one of the other lane, ours, and what was served before we looked again.
        let between = tpm.served() - before;
        assert!(
            between < 30,
            "{between} requests were served before the quiet caller's: the whole busy lane"
        );
    }
    stop.store(1, Ordering::Relaxed);
    while busy.join_next().await.is_some() {}
    assert!(busy_served.load(Ordering::Relaxed) > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_whose_callers_gave_up_are_not_taken_to_the_tpm() {
    let rig = Rig::new();
    let tpm = rig.open().await;
    let key = tpm.create_key(&KeySpec::default(), HOST).await.unwrap();
    let before = tpm.served();
    let mut abandoned = JoinSet::new();
    for _ in 0..60 {
        let (tpm, key) = (tpm.clone(), key.clone());
        abandoned.spawn(async move { tpm.sign(&key, [0; 32], 5).await });
    }
    while tpm.queued() < 10 && tpm.served() - before < 50 {
        tokio::task::yield_now().await;
    }
    abandoned.shutdown().await;
    tpm.sign(&key, [0; 32], 5).await.unwrap();
    assert!(tpm.served() - before < 61);
    assert_eq!(0, tpm.queued());
}
