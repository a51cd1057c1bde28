//! Many callers at once, and nothing leaks. Alone in its program, since it counts the process's descriptors.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Rig, sha256, verify};
use hallmark_tpm::{HOST, KeySpec};
use tokio::task::JoinSet;

const TASKS: u64 = 64;
const SIGNATURES: u64 = 1000;
const KEYS: u64 = 200;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_signatures_and_two_hundred_keys_from_64_tasks_leave_nothing_behind() {
    let rig = Rig::new();
    let tpm = rig.open().await;
    let free = tpm.create_key(&KeySpec::default(), HOST).await.unwrap();
    let bound = tpm.create_key(&KeySpec { policy_pcrs: vec![7] }, HOST).await.unwrap();
    let baseline = tpm.health().await.unwrap();
    assert_eq!((1, 0), (baseline.transient_objects, baseline.loaded_sessions));
    let descriptors = std::fs::read_dir("/proc/self/fd").unwrap().count();

    let mut tasks = JoinSet::new();
    for task in 0..TASKS {
        let (tpm, free, bound) = (tpm.clone(), free.clone(), bound.clone());
        tasks.spawn(async move {
            for n in (task..SIGNATURES).step_by(TASKS as usize) {
                let key = if n % 8 == 0 { &bound } else { &free };
                let message = n.to_be_bytes();
                verify(key, &message, &tpm.sign(key, sha256(&message), task).await.unwrap());
            }
            for n in (task..KEYS).step_by(TASKS as usize) {
                let spec = KeySpec { policy_pcrs: if n % 2 == 0 { vec![] } else { vec![0, 7] } };
                let (key, certification) = tpm.certified_key(&spec, [n as u8; 32], task).await.unwrap();
                assert_eq!(key.public(), certification.public);
                if n % 10 == 0 {
                    tpm.quote([n as u8; 32], &[0, 7]).await.unwrap();
                }
            }
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }

    let health = tpm.health().await.unwrap();
    assert_eq!((1, 0, 0), (health.transient_objects, health.loaded_sessions, health.queued));
    assert_eq!(0, health.reopened, "it never got in its own way");
    assert_eq!(descriptors, std::fs::read_dir("/proc/self/fd").unwrap().count());
    drop((tpm, free, bound));
    for property in ["handles-transient", "handles-loaded-session", "handles-saved-session"] {
        assert_eq!(Vec::<String>::new(), rig.swtpm.handles(property).unwrap(), "{property}");
    }
}
