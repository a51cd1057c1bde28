//! What happens when the TPM is reset, goes away, hangs, or was left untidy.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Rig, sha256, verify};
use hallmark_tpm::{HOST, KeySpec, Tpm, TpmConfig, TpmError};
use rustix::process::Signal;
use std::time::Duration;

/// Every operation there is, with a key and a credential from before.
async fn everything_works(rig: &Rig, tpm: &Tpm, key: &hallmark_tpm::TpmKey) {
    verify(key, b"m", &tpm.sign(key, sha256(b"m"), 1).await.unwrap());
    tpm.quote([1; 32], &[0, 7]).await.unwrap();
    tpm.certify(key, [1; 32], HOST).await.unwrap();
    tpm.certified_key(&KeySpec { policy_pcrs: vec![7] }, [1; 32], 2).await.unwrap();
    let host = tpm.identity().await.unwrap();
    let (id_object, encrypted) = rig.credential_for(&host, &[2; 32]);
    assert_eq!([2; 32], tpm.activate_credential(&id_object, &encrypted).await.unwrap()[..]);
}

#[tokio::test]
async fn each_operation_recovers_by_itself_from_a_reset() {
    let rig = Rig::new();
    let tpm = rig.open().await;
    let key = tpm.create_key(&KeySpec::default(), HOST).await.unwrap();
    let before = tpm.identity().await.unwrap();
    everything_works(&rig, &tpm, &key).await;
    let (id_object, encrypted) = rig.credential_for(&before, &[6; 32]);
    // Each as the first to meet the reset TPM.
    rig.swtpm.reset().unwrap();
    verify(&key, b"m", &tpm.sign(&key, sha256(b"m"), 1).await.unwrap());
    rig.swtpm.reset().unwrap();
    tpm.quote([1; 32], &[0]).await.unwrap();
    rig.swtpm.reset().unwrap();
    tpm.certify(&key, [1; 32], HOST).await.unwrap();
    rig.swtpm.reset().unwrap();
    tpm.create_key(&KeySpec::default(), HOST).await.unwrap();
    rig.swtpm.reset().unwrap();
    tpm.certified_key(&KeySpec { policy_pcrs: vec![7] }, [1; 32], HOST).await.unwrap();
    rig.swtpm.reset().unwrap();
    assert_eq!([6; 32], tpm.activate_credential(&id_object, &encrypted).await.unwrap()[..]);
    rig.swtpm.reset().unwrap();
    assert_eq!(before, tpm.identity().await.unwrap(), "EK and AK are the same after a reset");
    everything_works(&rig, &tpm, &key).await;
    let health = tpm.health().await.unwrap();
    assert_eq!((7, 1, 0), (health.reopened, health.transient_objects, health.loaded_sessions));
}

#[tokio::test]
async fn a_tpm_that_went_away_is_reported_and_found_again() {
    let mut rig = Rig::new();
    let tpm = rig.open().await;
    let key = tpm.create_key(&KeySpec::default(), HOST).await.unwrap();
    rig.swtpm.restart().unwrap();
    everything_works(&rig, &tpm, &key).await;

    rig.swtpm.stop().unwrap();
    for _ in 0..3 {
        let gone = tpm.sign(&key, [0; 32], 1).await.unwrap_err();
        assert!(matches!(&gone, TpmError::Device { tcti, .. } if *tcti == rig.swtpm.tcti()), "{gone:?}");
    }
    rig.swtpm.start().unwrap();
    everything_works(&rig, &tpm, &key).await;

    // Without warning, as in a power cut.
    rig.swtpm.kill().unwrap();
    rig.swtpm.start().unwrap();
    everything_works(&rig, &tpm, &key).await;
}

#[tokio::test]
async fn what_a_process_left_in_the_tpm_is_flushed_by_the_next() {
    let rig = Rig::new();
    for _ in 0..2 {
        rig.swtpm.tool("tpm2_createprimary", ["-C", "o", "-c", "left.ctx"]).unwrap();
        rig.swtpm.tool("tpm2_contextload", ["left.ctx"]).ok();
    }
    rig.swtpm.tool("tpm2_startauthsession", ["-S", "policy.ctx", "--policy-session"]).unwrap();
    rig.swtpm.tool("tpm2_startauthsession", ["-S", "hmac.ctx", "--hmac-session"]).unwrap();
    rig.swtpm.tool("tpm2_createprimary", ["-C", "e", "-c", "other.ctx"]).unwrap();
    assert!(!rig.swtpm.handles("handles-transient").unwrap().is_empty());
    let left = rig.swtpm.handles("handles-loaded-session").unwrap().len()
        + rig.swtpm.handles("handles-saved-session").unwrap().len();
    assert_eq!(2, left);

    let tpm = rig.open().await;
    assert_eq!(1, tpm.health().await.unwrap().transient_objects, "the storage root key");
    drop(tpm);
    for property in ["handles-transient", "handles-loaded-session", "handles-saved-session"] {
        assert_eq!(Vec::<String>::new(), rig.swtpm.handles(property).unwrap(), "{property}");
    }
}

#[tokio::test]
async fn what_another_program_leaves_in_the_way_is_cleared() {
    let rig = Rig::new();
    let tpm = rig.open().await;
    let key = tpm.create_key(&KeySpec::default(), HOST).await.unwrap();
    for name in ["1.ctx", "2.ctx"] {
        rig.swtpm.tool("tpm2_createprimary", ["-C", "o", "-c", name]).unwrap();
    }
    assert_eq!(3, rig.swtpm.handles("handles-transient").unwrap().len(), "all slots are taken");
    everything_works(&rig, &tpm, &key).await;
    assert_eq!(1, tpm.health().await.unwrap().transient_objects);
    // And the opposite: it flushes what is ours.
    rig.swtpm.tool("tpm2_flushcontext", ["-t"]).unwrap();
    assert_eq!(0, rig.swtpm.handles("handles-transient").unwrap().len());
    everything_works(&rig, &tpm, &key).await;
}

#[tokio::test]
async fn a_tpm_shared_with_others_is_not_tidied() {
    let rig = Rig::new();
    rig.swtpm.tool("tpm2_createprimary", ["-C", "o", "-c", "left.ctx"]).unwrap();
    let others = rig.swtpm.handles("handles-transient").unwrap();
    assert_eq!(1, others.len());
    let tpm = Tpm::open(TpmConfig { owned_alone: Some(false), ..rig.config() }).await.unwrap();
    drop(tpm);
    assert_eq!(others, rig.swtpm.handles("handles-transient").unwrap());
}

#[tokio::test]
async fn a_hanging_tpm_costs_no_more_than_the_deadline_and_a_full_queue_says_so() {
    let rig = Rig::new();
    let tpm = Tpm::open(TpmConfig { queue: 6, lane: 2, ..rig.config() }).await.unwrap();
    let key = tpm.create_key(&KeySpec::default(), HOST).await.unwrap();
    let served = tpm.served();
    rig.signal(Signal::STOP);

    // One request is with the TPM, two wait in the lane, and the fourth is refused; another lane has room.
    let hurried = tpm.with_deadline(Duration::from_millis(1500));
    let ask = |lane| {
        let (hurried, key) = (hurried.clone(), key.clone());
        tokio::spawn(async move { hurried.sign(&key, [0; 32], lane).await })
    };
    let first = ask(1);
    while tpm.served() == served {
        tokio::task::yield_now().await;
    }
    let waiting = [ask(1), ask(1), ask(2), ask(2), ask(3), ask(3)];
    while tpm.queued() < 6 {
        tokio::task::yield_now().await;
    }
    let lane_full = hurried.sign(&key, [0; 32], 1).await.unwrap_err();
    assert!(matches!(lane_full, TpmError::Busy { queued: 6, limit: 6 }), "{lane_full:?}");
    for request in [first].into_iter().chain(waiting) {
        let late = request.await.unwrap().unwrap_err();
        assert!(matches!(late, TpmError::DeadlinePassed { operation: "sign" }), "{late:?}");
    }
    rig.signal(Signal::CONT);
    verify(&key, b"m", &tpm.sign(&key, sha256(b"m"), 9).await.unwrap());
    assert_eq!(served + 2, tpm.served(), "those that waited in vain were not taken to the TPM");
}

#[tokio::test]
async fn one_callers_lane_is_bounded_and_leaves_room_for_others() {
    let rig = Rig::new();
    let tpm = Tpm::open(TpmConfig { queue: 100, lane: 2, ..rig.config() }).await.unwrap();
    let key = tpm.create_key(&KeySpec::default(), HOST).await.unwrap();
    let served = tpm.served();
    rig.signal(Signal::STOP);
    let ask = |lane| {
        let (tpm, key) = (tpm.clone(), key.clone());
        tokio::spawn(async move { tpm.sign(&key, [0; 32], lane).await })
    };
    let mut accepted = vec![ask(1)];
    while tpm.served() == served {
        tokio::task::yield_now().await;
    }
    accepted.extend([ask(1), ask(1)]);
    while tpm.queued() < 2 {
        tokio::task::yield_now().await;
    }
    assert!(matches!(tpm.sign(&key, [0; 32], 1).await, Err(TpmError::Busy { queued: 2, limit: 2 })));
    accepted.push(ask(2));
    while tpm.queued() < 3 {
        tokio::task::yield_now().await;
    }
    rig.signal(Signal::CONT);
    for request in accepted {
        request.await.unwrap().unwrap();
    }
}

#[tokio::test]
async fn a_tpm_that_is_not_there_says_what_to_do() {
    let open = async |tcti: &str| Tpm::open(TpmConfig::new(tcti)).await.unwrap_err();
    let absent = open("device:/dev/no-such-tpm").await;
    assert!(absent.to_string().contains("enable the TPM in the firmware"), "{absent}");
    let nobody = open("swtpm:host=127.0.0.1,port=9").await;
    assert!(nobody.to_string().contains("see that the simulator runs"), "{nobody}");
    assert!(matches!(open("carrier-pigeon:").await, TpmError::UnknownTcti { .. }));
    assert!(matches!(open("").await, TpmError::UnknownTcti { .. }));
}
