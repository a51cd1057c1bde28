use std::sync::Arc;
use std::time::Duration;

use hallmark_core::log::{
    Accepts, LogKey, LogVerifier, SoftwareLogKey, Trust, check_proof, open_checkpoint, write_proof,
};
use hallmark_kit::witness::{Manner, Witness};
use tokio::task::JoinHandle;

use super::*;
use crate::config::WitnessAt;
use crate::record::{Kind, Record};
use crate::store::{FoundBy, Location, LogSigner, Recorded, Shown, StoreError, Write};

const LOG: &str = "example.org/log/issuer-1";
const NAMES: [&str; 3] = ["witness.example/a", "witness.example/b", "witness.example/c"];

/// A store with witnesses.
struct Bed {
    dir: tempfile::TempDir,
    witnesses: Vec<Witness>,
    needed: usize,
    required: bool,
    timeout: Duration,
}

/// It as it runs: until it is dropped.
struct Running {
    store: Store,
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn signer() -> LogSigner {
    let key = SoftwareLogKey::from_seed(&[7; 32]).unwrap();
    let verifier = LogVerifier::new(LOG.parse().unwrap(), key.public());
    LogSigner::in_token(verifier, Arc::new(key)).unwrap()
}

impl Bed {
    fn new(witnesses: usize, needed: usize, required: bool) -> Self {
        let start = |(name, n): (&&str, u8)| {
            let witness = Witness::start(name, [n; 32]).unwrap();
            witness.knows(&signer().verifier().to_string()).unwrap();
            witness
        };
        let witnesses = NAMES[..witnesses].iter().zip(31..).map(start).collect();
        // Long enough for a machine that is busy; what must fail by time has less.
        let timeout = Duration::from_secs(20);
        Self { dir: tempfile::tempdir().unwrap(), witnesses, needed, required, timeout }
    }

    fn impatient(self) -> Self {
        Self { timeout: Duration::from_millis(300), ..self }
    }

    fn config(&self) -> WitnessConfig {
        let at = self.witnesses.iter().enumerate().map(|(n, witness)| {
            let ca = self.dir.path().join(format!("{n}.pem"));
            std::fs::write(&ca, witness.ca()).unwrap();
            WitnessAt { url: witness.url().parse().unwrap(), ca: Some(ca) }
        });
        let keys = self.witnesses.iter().map(|witness| witness.key().parse().unwrap()).collect();
        WitnessConfig {
            quorum: Quorum::new(keys, self.needed).unwrap(),
            required: self.required,
            timeout: self.timeout,
            at: at.collect(),
        }
    }

    fn trust(&self) -> Trust {
        Trust { log: signer().verifier().clone(), quorum: self.config().quorum }
    }

    async fn start(&self, database: &str, published: &[u8]) -> Running {
        let location = Location::Sqlite(self.dir.path().join(database));
        let opened = Store::open(&location, &"issuer-1".parse().unwrap()).await.unwrap();
        let store = opened.write_with(signer()).await.unwrap();
        let (witnesses, store) = Witnesses::new(&self.config(), store, published).unwrap();
        Running { store, task: tokio::spawn(witnesses.run()) }
    }
}

fn entry(n: u64) -> Write {
    let record = Record { reason: Some(format!("entry {n}")), ..Record::default() };
    Write::Record(record.entry(1_700_000_000, Kind::Enrolment, "allowed", None))
}

impl Running {
    /// As a flow does it.
    async fn release(&self, n: u64) -> Result<Recorded, StoreError> {
        let place = self.store.place(1).await?;
        let made = self.store.commit(vec![entry(n)]).await?;
        Ok(place.release(made.records).await?.remove(0).unwrap())
    }

    fn witnessing(&self) -> &Witnessing {
        self.store.witnessing().unwrap()
    }

    async fn size(&self) -> u64 {
        self.store.checkpoint().await.unwrap().map_or(0, |(checkpoint, _)| checkpoint.size)
    }

    /// The note that is published once this holds of it.
    async fn shown(&self, holds: impl Fn(&Shown) -> bool) -> Vec<u8> {
        self.until(|| self.witnessing().shown().filter(|shown| holds(shown)).map(|shown| shown.note.clone()))
            .await
    }

    async fn problem(&self, witness: usize) -> String {
        self.until(|| self.witnessing().board()[witness].problem.clone()).await
    }

    async fn until<T>(&self, ready: impl Fn() -> Option<T>) -> T {
        let waiting = async {
            loop {
                if let Some(value) = ready() {
                    return value;
                }
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(60), waiting).await.expect("it did not come to it")
    }
}

#[tokio::test]
async fn nothing_is_released_before_its_quorum_and_each_after() {
    let bed = Bed::new(3, 2, true);
    let running = bed.start("a.db", b"").await;
    for n in 1..=5 {
        let recorded = running.release(n).await.unwrap();
        assert_eq!(recorded.number(), n);
        // What is published covers it, and has the quorum.
        let note = running.witnessing().shown().unwrap().note.clone();
        assert!(bed.trust().open(&note).unwrap().size >= n);
        let have = bed.witnesses.iter().filter(|witness| witness.latest(LOG) >= n).count();
        assert!(have >= 2, "{have}");
    }
    // The last one cosigns, too, and its line is added.
    let all =
        Trust { quorum: Quorum::new(bed.trust().quorum.witnesses().to_vec(), 3).unwrap(), ..bed.trust() };
    running.shown(|shown| all.open(&shown.note).is_ok()).await;
}

#[tokio::test]
async fn commits_go_on_while_many_wait_and_one_round_serves_them_all() {
    let bed = Bed::new(2, 2, true);
    let running = bed.start("a.db", b"").await;
    running.release(0).await.unwrap();
    let asked = bed.witnesses[0].asked();
    let all = (1..=200).map(|n| running.release(n));
    let all = futures::future::join_all(all).await;
    assert!(all.iter().all(Result::is_ok));
    assert!(bed.witnesses[0].asked() - asked < 200, "{}", bed.witnesses[0].asked());
}

#[tokio::test]
async fn one_short_of_the_quorum_nothing_is_released_until_it_is_back() {
    let bed = Bed::new(3, 2, true).impatient();
    let running = bed.start("a.db", b"").await;
    running.shown_after_first(&bed).await;
    for witness in &bed.witnesses[1..] {
        witness.behave(Manner::Away);
    }
    let before = running.size().await;
    let refused = running.release(2).await;
    assert!(matches!(refused, Err(StoreError::Unwitnessed)), "{refused:?}");
    assert_eq!(running.size().await, before + 1, "it is recorded, and not released");
    // Now that they are known to be away, nothing more is recorded for those who come.
    running.problem(1).await;
    running.problem(2).await;
    let refused = running.release(3).await;
    assert!(matches!(refused, Err(StoreError::Unwitnessed)));
    assert_eq!(running.size().await, before + 1);
    // What is published has its quorum still; and what releases nothing is answered.
    let shown = running.witnessing().shown().unwrap();
    assert!(bed.trust().open(&shown.note).unwrap().size <= before);
    running.store.commit(vec![entry(4)]).await.unwrap();
    // One is back: without anybody's help, those who try again are answered.
    bed.witnesses[1].behave(Manner::Honest);
    running.until_released(5).await;
    assert!(running.witnessing().shown().unwrap().checkpoint.size >= before + 2);
}

impl Running {
    /// With little time, the first connections may take too long: tries as agents do.
    async fn until_released(&self, n: u64) -> Recorded {
        for _ in 0..200 {
            match self.release(n).await {
                Ok(recorded) => return recorded,
                Err(StoreError::Unwitnessed) => {}
                Err(other) => panic!("{other}"),
            }
        }
        panic!("never released")
    }

    async fn shown_after_first(&self, bed: &Bed) {
        self.until_released(1).await;
        let trust = bed.trust();
        self.shown(|shown| trust.open(&shown.note).is_ok()).await;
    }
}

#[tokio::test]
async fn without_required_nothing_waits_and_what_there_is_is_published() {
    let bed = Bed::new(2, 2, false);
    bed.witnesses[1].behave(Manner::Busy);
    let running = bed.start("a.db", b"").await;
    // With the other's answer still to come, too.
    running.release(1).await.unwrap();
    let half = running.shown(|shown| shown.checkpoint.size == 1).await;
    assert!(running.problem(1).await.contains("503"));
    assert!(open_checkpoint(&half, signer().verifier()).is_ok());
    assert!(bed.trust().open(&half).is_err());
    bed.witnesses[1].behave(Manner::Honest);
    let whole = running.shown(|shown| shown.witnessed).await;
    assert_eq!(bed.trust().open(&whole).unwrap().size, 1);
    let standing = running.until(|| {
        let board = running.witnessing().board();
        board.iter().all(|standing| standing.size == 1 && standing.problem.is_none()).then(|| board.clone())
    });
    assert!(standing.await.iter().all(|standing| standing.at > 1_700_000_000));
}

#[tokio::test]
async fn a_witness_that_misbehaves_adds_nothing_and_is_named() {
    let elsewhere = Witness::start("witness.example/elsewhere", [77; 32]).unwrap();
    for (manner, why) in [
        (Manner::SignsAnother, "does not verify"),
        (Manner::Forges, "does not verify"),
        (Manner::Poses("witness.example/a", [31; 32]), "no signature in the answer"),
        (Manner::Poses("witness.example/z", [99; 32]), "no signature in the answer"),
        (Manner::Endless, "more than 16384 bytes"),
        (Manner::Stalled, "did not answer"),
        (Manner::Silent, "did not answer"),
        (Manner::Redirects(elsewhere.url()), "points to"),
        (Manner::Restless, "another size each time"),
    ] {
        let bed = Bed::new(2, 2, true).impatient();
        let running = bed.start("a.db", b"").await;
        running.shown_after_first(&bed).await;
        bed.witnesses[1].behave(manner.clone());
        let refused = running.release(2).await;
        assert!(matches!(refused, Err(StoreError::Unwitnessed)), "{manner:?}: {refused:?}");
        // Slow machines break off before they hear it.
        running
            .until(|| {
                let problem = running.witnessing().board()[1].problem.clone()?;
                (problem.contains(why) || problem.contains("did not answer")).then_some(())
            })
            .await;
        assert!(running.witnessing().board()[0].problem.is_none(), "{manner:?}");
        bed.witnesses[1].behave(Manner::Honest);
        running.until_released(3).await;
    }
    assert_eq!(elsewhere.asked(), 0, "nobody is led elsewhere");
}

#[tokio::test]
async fn an_old_cosignature_shown_again_is_of_no_use() {
    let bed = Bed::new(1, 1, true).impatient();
    bed.witnesses[0].behave(Manner::Replays);
    let running = bed.start("a.db", b"").await;
    running.until_released(1).await;
    let refused = running.release(2).await;
    assert!(matches!(refused, Err(StoreError::Unwitnessed)), "{refused:?}");
    assert!(running.problem(0).await.contains("does not verify"));
    assert_eq!(running.witnessing().shown().unwrap().checkpoint.size, 1);
}

#[tokio::test]
async fn one_witness_many_times_is_no_quorum() {
    let bed = Bed::new(2, 2, true).impatient();
    bed.witnesses[0].behave(Manner::Repeats);
    bed.witnesses[1].behave(Manner::Away);
    let running = bed.start("a.db", b"").await;
    assert!(matches!(running.release(1).await, Err(StoreError::Unwitnessed)));
    assert!(running.witnessing().shown().is_none());
    bed.witnesses[1].behave(Manner::Honest);
    running.until_released(2).await;
}

#[tokio::test]
async fn a_witness_that_is_elsewhere_is_proven_to_from_there() {
    let bed = Bed::new(1, 1, true);
    let published = {
        let running = bed.start("a.db", b"").await;
        for n in 1..=300 {
            running.store.commit(vec![entry(n)]).await.unwrap();
        }
        running.release(301).await.unwrap();
        running.witnessing().shown().unwrap().note.clone()
    };
    // Restarted, and nothing is known: it says where it is.
    let running = bed.start("a.db", b"").await;
    running.release(302).await.unwrap();
    assert_eq!(bed.witnesses[0].latest(LOG), 302);
    drop(running);
    // Ahead of what was published: the files were behind.
    let running = bed.start("a.db", &published).await;
    assert_eq!(running.witnessing().board()[0].size, 301);
    running.release(303).await.unwrap();
    drop(running);
    // It has forgotten, or was put back: behind.
    bed.witnesses[0].remember(LOG, 0, [0; 32]);
    let running = bed.start("a.db", &published).await;
    running.release(304).await.unwrap();
    assert_eq!(bed.witnesses[0].latest(LOG), 304);
}

#[tokio::test]
async fn another_history_is_refused_and_named() {
    let bed = Bed::new(2, 1, true).impatient();
    let running = bed.start("a.db", b"").await;
    running.shown_after_first(&bed).await;
    for n in 2..=5 {
        running.store.commit(vec![entry(n)]).await.unwrap();
    }
    running.until(|| bed.witnesses.iter().all(|witness| witness.latest(LOG) == 5).then_some(())).await;
    drop(running);
    // The same key, and a store that begins anew: shorter than what was witnessed, then as long, then longer.
    let other = bed.start("b.db", b"").await;
    let refused = other.release(100).await;
    assert!(matches!(refused, Err(StoreError::Unwitnessed)), "{refused:?}");
    let problem = other.problem(0).await;
    assert!(problem.contains("older copy of the store"), "{problem}");
    assert!(other.witnessing().shown().is_none());
    for n in 101..=104 {
        other.store.commit(vec![entry(n)]).await.unwrap();
    }
    drop(other);
    for more in [0, 1] {
        let other = bed.start("b.db", b"").await;
        for n in 0..more {
            other.store.commit(vec![entry(200 + n)]).await.unwrap();
        }
        let problem = other.problem(1).await;
        assert!(problem.contains("two histories"), "{problem}");
        let refused = other.release(300).await;
        assert!(matches!(refused, Err(StoreError::Unwitnessed)), "{refused:?}");
        assert!(other.witnessing().shown().is_none());
    }
    assert!(bed.witnesses.iter().all(|witness| witness.latest(LOG) == 5));
}

#[tokio::test]
async fn a_witness_that_does_not_know_the_log_says_so() {
    let bed = Bed::new(2, 2, true).impatient();
    let stranger = Witness::start("witness.example/stranger", [78; 32]).unwrap();
    let bed = Bed { witnesses: vec![bed.witnesses.into_iter().next().unwrap(), stranger], ..bed };
    let running = bed.start("a.db", b"").await;
    assert!(matches!(running.release(1).await, Err(StoreError::Unwitnessed)));
    assert!(running.problem(1).await.contains("does not know this log"));
    let other = SoftwareLogKey::from_seed(&[8; 32]).unwrap();
    let other = LogVerifier::new(LOG.parse().unwrap(), other.public());
    bed.witnesses[1].knows(&other.to_string()).unwrap();
    running
        .until(|| {
            running.witnessing().board()[1].problem.as_ref()?.contains("with another key").then_some(())
        })
        .await;
    bed.witnesses[1].knows(&signer().verifier().to_string()).unwrap();
    running.until_released(2).await;
}

#[tokio::test]
async fn only_its_own_roots_vouch_for_a_witness() {
    let bed = Bed::new(1, 1, true).impatient();
    let mut config = bed.config();
    config.at[0].ca = Some(bed.dir.path().join("other.pem"));
    std::fs::write(bed.dir.path().join("other.pem"), Witness::start("x", [1; 32]).unwrap().ca()).unwrap();
    let location = Location::Sqlite(bed.dir.path().join("a.db"));
    let opened = Store::open(&location, &"issuer-1".parse().unwrap()).await.unwrap();
    let store = opened.write_with(signer()).await.unwrap();
    let (witnesses, store) = Witnesses::new(&config, store, b"").unwrap();
    let running = Running { store, task: tokio::spawn(witnesses.run()) };
    assert!(matches!(running.release(1).await, Err(StoreError::Unwitnessed)));
    assert!(running.problem(0).await.contains("certificate"), "{}", running.problem(0).await);
    assert_eq!(bed.witnesses[0].asked(), 0);
    config.at[0].ca = Some(bed.dir.path().join("nowhere.pem"));
    let store = running.store.clone();
    assert!(Witnesses::new(&config, store, b"").is_err());
}

#[tokio::test]
async fn proofs_are_given_under_the_cosigned_checkpoint() {
    let bed = Bed::new(2, 2, true).impatient();
    let running = bed.start("a.db", b"").await;
    let serial = [9; 16];
    let write = Write::Record(Record::default().entry(
        1_700_000_000,
        Kind::HostAttestation,
        "attested",
        Some(serial),
    ));
    running.store.commit(vec![write]).await.unwrap();
    running.until_released(1).await;
    // More, which no witness has seen.
    bed.witnesses.iter().for_each(|witness| witness.behave(Manner::Away));
    running.store.commit(vec![entry(2)]).await.unwrap();
    let proven = running.store.prove(FoundBy::Serial(&serial)).await.unwrap().unwrap();
    let text = write_proof(proven.index, &proven.proof, &proven.checkpoint);
    let (index, checkpoint) = check_proof(&text, proven.body.as_bytes(), &bed.trust()).unwrap();
    assert!(index == 0 && checkpoint.size < running.size().await);
}

/// What is on disk is no more than that, by type: this is all that turns it into what a release takes.
#[tokio::test]
async fn without_witnesses_what_is_durable_is_released_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let location = Location::Sqlite(dir.path().join("a.db"));
    let opened = Store::open(&location, &"issuer-1".parse().unwrap()).await.unwrap();
    let store = opened.write_with(signer()).await.unwrap();
    let place = store.place(64).await.unwrap();
    let made = store.commit(vec![entry(1)]).await.unwrap();
    let released = futures::FutureExt::now_or_never(place.release(made.records)).expect("without waiting");
    assert_eq!(released.unwrap().remove(0).unwrap().number(), 1);
}
