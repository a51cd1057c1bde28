//! The issuer is killed at random moments under load, again and again. Whatever left it is in its log; the log
//! never takes back what it published; a join token is spent once; everybody is served again by himself.
//!
//! Writes `target/kill.json`.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hallmark_core::id::InstanceId;
use hallmark_core::log::{Checkpoint, Facts, LogVerifier, Tree, audit, leaf_hash, open_checkpoint};
use hallmark_core::x509::fingerprint;
use hallmark_e2e::{Bed, BedOptions, Host, Rogue, binary, csr, join_token, wait_until};
use hallmark_kit::postgres::Postgres;
use hallmark_proto::issuer as wire;
use hallmark_proto::issuer::issuance_client::IssuanceClient;
use rcgen::KeyPair;
use tonic::transport::Channel;

const ROUNDS: usize = 50;
const WORKERS: usize = 3;
const BATCH: usize = 8;
/// Longest that the issuer works before it is killed, in milliseconds.
const LONGEST: u64 = 400;

const REGISTRATION: &str = "[[agent]]\nname = \"mailbot\"\nowner = \"team@test.example\"\ntier = \"foundation\"\n\
                            hosts = [\"web-01\"]\nselectors = [\"unix:uid:1001\"]\n";

/// What clients received: serial and SHA-256 of each certificate, hex.
type Received = Arc<Mutex<Vec<(String, String)>>>;

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_left_is_unknown_however_often_the_issuer_is_killed() -> Result<()> {
    let mut bed = Bed::start(BedOptions::default())?;
    bed.apply(REGISTRATION)?;
    let mut daemon = Host::with_tpm(&bed, "host-1")?;
    daemon.start(&bed)?;
    let host = Rogue::joined(&bed, "web-01").await?;
    let mut races = Vec::new();
    for round in 0..ROUNDS {
        let name = format!("spare-{round}");
        let token = join_token(&bed, &name)?;
        races.push((name, token, [Rogue::new(&bed)?, Rogue::new(&bed)?]));
    }

    let (stop, received) = (Arc::new(AtomicBool::new(false)), Received::default());
    let workers: Vec<_> = (0..WORKERS)
        .map(|_| Ok(tokio::spawn(load(host.connection(&bed)?, stop.clone(), received.clone()))))
        .collect::<Result<_>>()?;
    std::fs::create_dir(bed.path("kept"))?;
    let (mut tokens, mut racers) = (Vec::new(), Vec::new());
    for (name, token, rivals) in races {
        let spent = Arc::new(AtomicUsize::new(0));
        for rival in rivals {
            racers.push(tokio::spawn(race(rival, name.clone(), token.clone(), spent.clone(), stop.clone())));
        }
        tokens.push(spent);
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..LONGEST))).await;
        bed.kill_issuer()?;
        // An auditor keeps what was published until then.
        let _ = std::fs::copy(bed.path("data/log/checkpoint"), bed.path("kept").join(&name));
        bed.start_issuer()?;
    }
    // Everybody is served again, and each token's fate is known.
    let before = received.lock().map_or(0, |r| r.len());
    wait_until("the load to be served again", || {
        (received.lock().ok()?.len() > before + WORKERS * BATCH).then_some(())
    })?;
    wait_until("the host daemon to be back", || {
        let shown = bed.hallmark_ok(&["host", "show", "host-1", "-o", "json"]).ok()?;
        shown.contains("\"connected\": true").then_some(())
    })?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    stop.store(true, Ordering::Release);
    for task in workers.into_iter().chain(racers) {
        task.await?;
    }
    let received = std::mem::take(&mut *received.lock().map_err(|_| anyhow::anyhow!("poisoned"))?);
    let double_spent = tokens.iter().filter(|spent| spent.load(Ordering::Acquire) > 1).count();
    let spent = tokens.iter().filter(|spent| spent.load(Ordering::Acquire) == 1).count();

    let (lost, forks) = account(&bed, &received)?;
    for (serial, _) in received.iter().step_by(received.len() / 20 + 1) {
        bed.hallmark_ok(&["log", "prove", "--serial", serial])?;
    }
    let json = serde_json::json!({
        "rounds": ROUNDS, "issued": received.len(), "lost": lost, "forks": forks,
        "tokens": tokens.len(), "spent": spent, "double_spent": double_spent,
    });
    println!("{json:#}");
    let target = binary("hallmark")?.parent().and_then(|p| p.parent()).context("target")?.to_owned();
    std::fs::write(target.join("kill.json"), format!("{json:#}\n"))?;
    ensure!(received.len() > ROUNDS, "too little was issued to show anything: {json}");
    ensure!(spent > 0, "no token was spent: {json}");
    ensure!((lost, forks, double_spent) == (0, 0, 0), "{json}");
    Ok(())
}

/// Asks for credentials until it is told to stop, and notes what it gets.
async fn load(channel: Channel, stop: Arc<AtomicBool>, received: Received) {
    let Ok(key) = KeyPair::generate() else { return };
    let csr = csr(&key, None);
    let mut client = IssuanceClient::new(channel);
    while !stop.load(Ordering::Acquire) {
        let items = (0..BATCH).map(|_| item(&csr)).collect();
        let Ok(answer) = client.issue(wire::IssueRequest { items }).await else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        for result in answer.into_inner().results {
            if let Some(wire::issue_result::Outcome::Issued(issued)) = result.outcome
                && let Ok(mut received) = received.lock()
            {
                let sha256 = hex::encode(fingerprint(&issued.chain[0]));
                received.push((hex::encode(&issued.serial), sha256));
            }
        }
    }
}

fn item(csr: &[u8]) -> wire::IssueItem {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let instance = InstanceId::drawn_at(u64::try_from(now.as_millis()).unwrap_or_default(), rand::random());
    wire::IssueItem {
        agent: "mailbot".to_owned(),
        instance_id: instance.as_bytes().to_vec().into(),
        csr: csr.to_vec().into(),
        selectors: vec!["unix:uid:1001".to_owned()],
        key: Some(wire::issue_item::Key::Software(wire::SoftwareKey {})),
        renews: Vec::new().into(),
        traceparent: String::new(),
    }
}

/// Tries to join by a token that another tries as well, until one answer or the other is final.
async fn race(mut rival: Rogue, host: String, token: String, spent: Arc<AtomicUsize>, stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Acquire) {
        match rival.join(&host, &token).await {
            Ok(_) => {
                spent.fetch_add(1, Ordering::AcqRel);
                return;
            }
            Err(status) if status.code() == tonic::Code::PermissionDenied => return,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    }
}

/// How much of what was received the log does not have, and how many published checkpoints it does not go on from.
fn account(bed: &Bed, received: &[(String, String)]) -> Result<(usize, usize)> {
    let verifier: LogVerifier = bed.hallmark_ok(&["log", "key"])?.trim().parse()?;
    let dir = bed.path("data/log");
    let size: u64 = serde_json::from_str::<serde_json::Value>(&bed.hallmark_ok(&["status", "-o", "json"])?)?
        ["log_size"]
        .as_u64()
        .context("log_size")?;
    wait_until("the log's files", || {
        let note = std::fs::read(dir.join("checkpoint")).ok()?;
        (open_checkpoint(&note, &verifier).ok()?.size >= size).then_some(())
    })?;
    let mut published: HashMap<u64, Checkpoint> = HashMap::new();
    let mut forks = 0;
    for note in published_checkpoints(bed)? {
        let checkpoint = open_checkpoint(&note, &verifier)?;
        let before = published.insert(checkpoint.size, checkpoint);
        forks += usize::from(before.is_some_and(|before| before != checkpoint));
    }
    let (mut tree, mut facts, mut recorded) = (Tree::new(), Facts::default(), HashMap::new());
    let mut fits = 0;
    let mut served = |path: &str| std::fs::read(dir.join(path)).map_err(|e| e.to_string());
    let mut entry = |_: u64, entry: &[u8]| {
        tree.append(leaf_hash(entry));
        facts.take(entry).map_err(|e| e.to_string())?;
        if let Some(published) = published.get(&tree.size()) {
            fits += usize::from(published.root == tree.root());
        }
        let body: serde_json::Value = serde_json::from_slice(entry).map_err(|e| e.to_string())?;
        if let (Some(serial), Some(sha256)) = (body["serial"].as_str(), body["certificate_sha256"].as_str()) {
            recorded.insert(serial.to_owned(), sha256.to_owned());
        }
        Ok(())
    };
    audit(&mut served, &verifier, None, &mut entry)?;
    forks += published.keys().filter(|size| **size > 0).count() - fits;
    let lost = received.iter().filter(|(serial, sha256)| recorded.get(serial) != Some(sha256)).count();
    println!("{} records, {} published checkpoints", tree.size(), published.len());
    Ok((lost, forks))
}

/// Every checkpoint that stood in the log's files when the issuer was killed.
fn published_checkpoints(bed: &Bed) -> Result<Vec<Vec<u8>>> {
    let mut notes = vec![std::fs::read(bed.path("data/log/checkpoint"))?];
    if let Ok(kept) = std::fs::read_dir(bed.path("kept")) {
        for file in kept {
            notes.push(std::fs::read(file?.path())?);
        }
    }
    Ok(notes)
}

/// A tmpfs over a directory, with what was in the directory; gone with this.
struct SmallDisk(std::path::PathBuf);

impl SmallDisk {
    fn over(dir: &std::path::Path, size: &str) -> Result<Self> {
        let aside = dir.with_extension("aside");
        std::fs::rename(dir, &aside)?;
        std::fs::create_dir(dir)?;
        mount(&["-t", "tmpfs", "-o", &format!("size={size},mode=0750"), "tmpfs"], dir)?;
        let disk = Self(dir.to_owned());
        let copied = std::process::Command::new("cp").arg("-a").arg(aside.join(".")).arg(dir).status()?;
        ensure!(copied.success(), "cp ended with {copied}");
        Ok(disk)
    }

    fn grow(&self, size: &str) -> Result<()> {
        mount(&["-o", &format!("remount,size={size}")], &self.0)
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("--lazy").arg(&self.0).status();
    }
}

fn mount(args: &[&str], dir: &std::path::Path) -> Result<()> {
    let status = std::process::Command::new("mount").args(args).arg(dir).status()?;
    ensure!(status.success(), "mount ended with {status}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_stops_issuance_and_loses_nothing() -> Result<()> {
    let tried = tempfile::tempdir()?;
    std::fs::create_dir(tried.path().join("data"))?;
    if SmallDisk::over(&tried.path().join("data"), "1m").is_err() {
        hallmark_e2e::skip(
            "a_full_disk_stops_issuance_and_loses_nothing (a small disk cannot be mounted here)",
        );
        return Ok(());
    }
    let mut bed = Bed::start(BedOptions::default())?;
    bed.apply(REGISTRATION)?;
    let host = Rogue::joined(&bed, "web-01").await?;
    bed.stop_issuer()?;
    let disk = SmallDisk::over(&bed.path("data"), "6m")?;
    bed.start_issuer()?;
    let (stop, received) = (Arc::new(AtomicBool::new(false)), Received::default());
    let worker = tokio::spawn(load(host.connection(&bed)?, stop.clone(), received.clone()));
    let count = || received.lock().map_or(0, |r| r.len());
    // Full: nothing more comes, and the issuer says so.
    wait_until("the disk to be full", || {
        let full = std::fs::read_to_string(bed.path("issuer.log")).ok()?.contains("a commit failed");
        full.then_some(())
    })?;
    tokio::time::sleep(Duration::from_secs(1)).await;
    let at_full = count();
    ensure!(at_full > 0, "nothing was issued");
    ensure!(bed.issuer()?.is_alive(), "the issuer has ended");
    // There is room again: it goes on by itself.
    disk.grow("64m")?;
    wait_until("issuance to go on", || (count() > at_full + 10 * BATCH).then_some(()))?;
    stop.store(true, Ordering::Release);
    worker.await?;
    let received = std::mem::take(&mut *received.lock().map_err(|_| anyhow::anyhow!("poisoned"))?);
    let (lost, forks) = account(&bed, &received)?;
    ensure!((lost, forks) == (0, 0), "{lost} lost, {forks} forks of {} issued", received.len());
    bed.stop_issuer()?;
    drop(disk);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disk_that_does_not_write_stops_issuance_and_loses_nothing() -> Result<()> {
    let mut bed = Bed::start(BedOptions::default())?;
    bed.apply(REGISTRATION)?;
    let host = Rogue::joined(&bed, "web-01").await?;
    bed.stop_issuer()?;
    let (library, flag) = (bed.path("failing_fsync.so"), bed.path("disk-fails"));
    let source = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/failing_fsync.c");
    let built = std::process::Command::new("cc")
        .args(["-shared", "-fPIC", "-O1", "-o"])
        .arg(&library)
        .arg(&source)
        .args(["-ldl"])
        .status()?;
    ensure!(built.success(), "cc ended with {built}");
    bed.environment = vec![("LD_PRELOAD", library.into()), ("FAIL_FSYNC_WHILE", flag.clone().into())];
    bed.start_issuer()?;
    let (stop, received) = (Arc::new(AtomicBool::new(false)), Received::default());
    let worker = tokio::spawn(load(host.connection(&bed)?, stop.clone(), received.clone()));
    let count = || received.lock().map_or(0, |r| r.len());
    for killed in [false, true, false] {
        let before = count();
        wait_until("issuance", || (count() > before + 5 * BATCH).then_some(()))?;
        let failures = || -> Option<usize> {
            Some(std::fs::read_to_string(bed.path("issuer.log")).ok()?.matches("a commit failed").count())
        };
        let so_far = failures();
        std::fs::write(&flag, "")?;
        wait_until("commits to fail", || (failures() > so_far.map(|n| n + 2)).then_some(()))?;
        let at_failure = count();
        tokio::time::sleep(Duration::from_millis(300)).await;
        ensure!(count() == at_failure, "something was released while nothing could be written");
        if killed {
            bed.kill_issuer()?;
        }
        std::fs::remove_file(&flag)?;
        if killed {
            bed.start_issuer()?;
        }
        wait_until("issuance to go on", || (count() > at_failure + 5 * BATCH).then_some(()))?;
    }
    stop.store(true, Ordering::Release);
    worker.await?;
    let received = std::mem::take(&mut *received.lock().map_err(|_| anyhow::anyhow!("poisoned"))?);
    let (lost, forks) = account(&bed, &received)?;
    ensure!((lost, forks) == (0, 0), "{lost} lost, {forks} forks of {} issued", received.len());
    Ok(())
}

/// PostgreSQL is killed under load, again and again, and comes back by itself, as its own supervisor would bring it.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_killed_loses_nothing() -> Result<()> {
    const ROUNDS: u64 = 12;
    let server = Arc::new(Postgres::started()?);
    let url = server.database()?;
    let mut bed = Bed::start(BedOptions { postgres: Some((server.clone(), url)), ..BedOptions::default() })?;
    bed.apply(REGISTRATION)?;
    let host = Rogue::joined(&bed, "web-01").await?;
    let (stop, received) = (Arc::new(AtomicBool::new(false)), Received::default());
    let worker = tokio::spawn(load(host.connection(&bed)?, stop.clone(), received.clone()));
    let count = || received.lock().map_or(0, |r| r.len());
    for _ in 0..ROUNDS {
        let before = count();
        wait_until("issuance", || (count() > before + 2 * BATCH).then_some(()))?;
        tokio::time::sleep(Duration::from_millis(rand::random_range(0..LONGEST))).await;
        server.kill()?;
        server.start()?;
    }
    let before = count();
    wait_until("issuance to go on", || (count() > before + 2 * BATCH).then_some(()))?;
    stop.store(true, Ordering::Release);
    worker.await?;
    ensure!(bed.issuer()?.is_alive(), "the issuer has ended");
    let received = std::mem::take(&mut *received.lock().map_err(|_| anyhow::anyhow!("poisoned"))?);
    let (lost, forks) = account(&bed, &received)?;
    println!("PostgreSQL killed {ROUNDS} times: {} issued, {lost} lost, {forks} forks", received.len());
    ensure!((lost, forks) == (0, 0), "{lost} lost, {forks} forks of {} issued", received.len());
    Ok(())
}
