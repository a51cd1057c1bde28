//! A backup of a running issuer, its store lost, and the backup put back: by the commands that an operator has.

use anyhow::{Context, Result, ensure};
use hallmark_client::HallmarkClient;
use hallmark_e2e::{Bed, BedOptions, Host, registration, wait_until};

fn mine(name: &str) -> Result<String> {
    registration(name, "foundation", &std::env::current_exe()?, "")
}

/// What a failed command said.
fn refused(bed: &Bed, args: &[&str]) -> Result<String> {
    let output = bed.issuer_command(args, true)?;
    ensure!(!output.status.success(), "{args:?} was not refused");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn said(bed: &Bed, args: &[&str]) -> Result<String> {
    Ok(String::from_utf8_lossy(&bed.issuer_command(args, false)?.stdout).into_owned())
}

fn log_size(bed: &Bed) -> Result<u64> {
    let status: serde_json::Value = serde_json::from_str(&bed.hallmark_ok(&["status", "-o", "json"])?)?;
    status["log_size"].as_u64().context("log_size")
}

/// Everything recorded so far is in the log's files.
fn until_published(bed: &Bed) -> Result<()> {
    let size = log_size(bed)?.to_string();
    wait_until("the log's files", || {
        let checkpoint = std::fs::read_to_string(bed.path("data/log/checkpoint")).ok()?;
        (checkpoint.lines().nth(1)? == size).then_some(())
    })
}

fn lose_the_store(bed: &Bed) -> Result<()> {
    for file in ["hallmark.db", "hallmark.db-wal", "hallmark.db-shm"] {
        let path = bed.path("data").join(file);
        if path.exists() {
            std::fs::remove_file(path)?;
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_is_lost_is_put_back_and_its_log_goes_on() -> Result<()> {
    let mut bed = Bed::start(BedOptions::default())?;
    let mut host = Host::with_tpm(&bed, "host-1")?;
    host.start(&bed)?;
    bed.apply(&mine("before")?)?;
    let client = HallmarkClient::connect_to(host.socket()).await?;
    client.identity("before").await?;

    let file = bed.path("backup").display().to_string();
    ensure!(said(&bed, &["backup", &file])?.contains("verified"), "it says that it is verified");
    ensure!(refused(&bed, &["backup", &file])?.contains("exists"), "a backup overwrites nothing");
    ensure!(refused(&bed, &["restore", &file])?.contains("there already"), "nor does putting one back");

    // After the backup: what the backup cannot know.
    bed.apply(&(mine("before")? + &mine("after")?))?;
    client.identity("after").await?;
    let mut late = Host::with_tpm(&bed, "late")?;
    late.start(&bed)?;
    until_published(&bed)?;
    let recorded = log_size(&bed)?;
    bed.kill_issuer()?;
    let recorded_at_least = recorded;
    lose_the_store(&bed)?;

    let said_no = refused(&bed, &["restore", &file])?;
    for word in ["--from-log", "--discard-newer", "decisions were made after the backup"] {
        ensure!(said_no.contains(word), "{said_no}");
    }
    ensure!(!bed.path("data/hallmark.db").exists(), "a refused restore leaves nothing");
    let told = said(&bed, &["restore", "--from-log", &file])?;
    ensure!(
        told.contains("after") && told.contains("late") && told.contains("Join tokens are void"),
        "{told}"
    );

    bed.start_issuer()?;
    ensure!(log_size(&bed)? > recorded_at_least, "the log goes on, and says that it was put back");
    ensure!(bed.hallmark_ok(&["records", "--limit", "50"])?.contains("restore"));
    let key = bed.hallmark_ok(&["log", "key"])?;
    until_published(&bed)?;
    let dir = bed.path("data/log").display().to_string();
    bed.hallmark_ok(&["log", "verify", &dir, "--key", key.trim()])?;
    host.wait_connected(&bed)?;
    client.identity("before").await.context("what was registered before the backup is in force")?;
    ensure!(client.identity("after").await.is_err(), "what was registered after it waits for an operator");
    bed.apply(&(mine("before")? + &mine("after")?))?;
    wait_until("the registration to be in force again", || {
        let agents = bed.hallmark_ok(&["agent", "list"]).ok()?;
        agents.contains("after").then_some(())
    })?;
    Ok(())
}

#[test]
fn what_is_given_up_is_said_and_the_log_is_kept_aside() -> Result<()> {
    let mut bed = Bed::start(BedOptions::default())?;
    let file = bed.path("backup").display().to_string();
    said(&bed, &["backup", &file])?;
    bed.apply(&mine("after")?)?;
    until_published(&bed)?;
    bed.stop_issuer()?;
    lose_the_store(&bed)?;
    let told = said(&bed, &["restore", "--discard-newer", &file])?;
    ensure!(told.contains("log.before-restore-"), "{told}");
    bed.start_issuer()?;
    ensure!(!bed.hallmark_ok(&["agent", "list"])?.contains("after"));
    let aside = std::fs::read_dir(bed.path("data"))?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.to_string_lossy().contains("log.before-restore-"))
        .context("the log of before is kept")?;
    // Who kept it can prove what was given up.
    until_published(&bed)?;
    let (key, dir) = (bed.hallmark_ok(&["log", "key"])?, bed.path("data/log").display().to_string());
    let kept = aside.join("checkpoint").display().to_string();
    let verdict = bed.hallmark(&["log", "verify", &dir, "--key", key.trim(), "--since", &kept])?;
    ensure!(!verdict.status.success(), "two histories, and nobody notices");
    Ok(())
}

#[test]
fn a_backup_of_another_trust_domain_is_refused() -> Result<()> {
    let mut bed = Bed::start(BedOptions::default())?;
    let other = Bed::start(BedOptions { trust_domain: "other.example".to_owned(), ..BedOptions::default() })?;
    let file = other.path("backup").display().to_string();
    said(&other, &["backup", &file])?;
    bed.stop_issuer()?;
    lose_the_store(&bed)?;
    let why = refused(&bed, &["restore", &file])?;
    // The log's key is another, which is found first.
    ensure!(why.contains("other.example") || why.contains("not signed by this log's key"), "{why}");
    Ok(())
}
