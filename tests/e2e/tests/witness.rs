//! An issuer whose log is witnessed, and which releases nothing without its quorum: with real witnesses, a real host and
//! agent, and auditors who demand the quorum.

use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hallmark_client::HallmarkClient;
use hallmark_e2e::{Bed, BedOptions, Host, binary, registration, skip, wait_until};
use hallmark_kit::witness::{Manner, Witness};

const LOG: &str = "test.example/log/issuer-1";
const PATIENCE: Duration = Duration::from_secs(60);

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn offline(args: &[&str]) -> Result<Output> {
    Ok(Command::new(binary("hallmark")?).args(["--admin-socket", "/nonexistent"]).args(args).output()?)
}

/// A bed with two witnesses, both needed.
fn witnessed() -> Result<(Bed, [Witness; 2])> {
    let witnesses =
        [Witness::start("witness.example/a", [1; 32])?, Witness::start("witness.example/b", [2; 32])?];
    let mut extra = "[witness]\nquorum = 2\nrequired = true\ntimeout = \"2s\"\n".to_owned();
    for (n, witness) in witnesses.iter().enumerate() {
        let (url, key) = (witness.url(), witness.key());
        extra += &format!("[[witness.at]]\nurl = {url:?}\nkey = {key:?}\nca = \"{{dir}}/witness-{n}.pem\"\n");
    }
    let bed = Bed::made(BedOptions { extra, ..BedOptions::default() })?;
    for (n, witness) in witnesses.iter().enumerate() {
        std::fs::write(bed.path(&format!("witness-{n}.pem")), witness.ca())?;
    }
    Ok((bed, witnesses))
}

fn status(bed: &Bed) -> Result<serde_json::Value> {
    Ok(serde_json::from_str(&bed.hallmark_ok(&["status", "-o", "json"])?)?)
}

/// Waits until all that is recorded is published with its quorum.
fn until_published(bed: &Bed) -> Result<u64> {
    wait_until("the witnessed log in files", || {
        let note = std::fs::read_to_string(bed.path("data/log/checkpoint")).ok()?;
        let published: u64 = note.lines().nth(1)?.parse().ok()?;
        (published == status(bed).ok()?["log_size"].as_u64()?).then_some(published)
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_is_served_with_the_quorum_and_waits_for_it() -> Result<()> {
    let (mut bed, witnesses) = witnessed()?;
    bed.start_issuer()?;
    // Before the witnesses know the log, nothing is released: not even the issuer's own certificate.
    let key = bed.hallmark_ok(&["log", "key"])?.trim().to_owned();
    wait_until("the witnesses' refusal", || {
        let problem = status(&bed).ok()?["witnesses"]["at"][1]["problem"].as_str()?.to_owned();
        problem.contains("does not know this log").then_some(())
    })?;
    ensure!(!bed.path("data/log/checkpoint").exists());
    for witness in &witnesses {
        witness.knows(&key)?;
    }
    let mut host = Host::with_tpm(&bed, "host-1")?;
    host.start(&bed)?;
    let program = std::env::current_exe()?;
    bed.apply(
        &(registration("one", "foundation", &program, "")?
            + &registration("two", "foundation", &program, "")?),
    )?;
    let client = HallmarkClient::connect_to(host.socket()).await?;
    let identity = |name: &'static str| {
        let client = client.clone();
        async move { client.identity(name).await }
    };
    let mut one = client.watch_as("one")?;
    one.wait_ready(PATIENCE).await?;

    // One witness is away: who is new is told to come again; what has effect and releases nothing is done at once.
    let before = status(&bed)?["log_size"].as_u64().context("size")?;
    witnesses[1].behave(Manner::Away);
    let refused = identity("two").await.err().context("served without the quorum")?.to_string();
    ensure!(refused.contains("the issuer is away; try again"), "{refused}");
    let ended = bed.hallmark_ok(&["agent", "end", "one"])?;
    ensure!(ended.starts_with("1 "), "{ended}");
    let recorded = bed.hallmark_ok(&["records", "--agent", "two", "-o", "json"])?;
    ensure!(recorded.contains("\"issued\""), "recorded, and not released: {recorded}");
    wait_until("the other to go on", || (witnesses[0].latest(LOG) > before).then_some(()))?;
    let doctor = text(&bed.hallmark(&["doctor"])?);
    ensure!(doctor.contains("witness.witness.example/b"), "{doctor}");
    let token = text(&bed.hallmark(&["join-token", "create", "host-9"])?);
    ensure!(token.contains("too few witnesses"), "{token}");

    // It is back: they are served, without anybody's help.
    witnesses[1].behave(Manner::Honest);
    wait_for(|| identity("two")).await?;
    ensure!(witnesses.iter().all(|witness| witness.latest(LOG) > before));
    let shown = bed.hallmark_ok(&["status"])?;
    ensure!(shown.contains("2 of 2, required") && shown.contains("witness.example/b"), "{shown}");
    Ok(())
}

async fn wait_for<T, E: std::fmt::Display, F: Future<Output = Result<T, E>>>(
    mut ask: impl FnMut() -> F,
) -> Result<T> {
    let begun = std::time::Instant::now();
    loop {
        match ask().await {
            Ok(value) => return Ok(value),
            Err(error) => ensure!(begun.elapsed() < PATIENCE, "never: {error}"),
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[test]
fn auditors_demand_the_quorum_and_see_one_history() -> Result<()> {
    let (mut bed, witnesses) = witnessed()?;
    bed.start_issuer()?;
    let key = bed.hallmark_ok(&["log", "key"])?.trim().to_owned();
    for witness in &witnesses {
        witness.knows(&key)?;
    }
    wait_until("a join token", || bed.hallmark_ok(&["join-token", "create", "host-1"]).ok())?;
    until_published(&bed)?;
    bed.stop_issuer()?;
    std::fs::create_dir(bed.path("old"))?;
    let database = |n: &str| format!("data/hallmark.db{n}");
    std::fs::copy(bed.path(&database("")), bed.path("old/hallmark.db"))?;
    bed.start_issuer()?;
    wait_until("another", || bed.hallmark_ok(&["join-token", "create", "host-2"]).ok())?;
    until_published(&bed)?;

    let (a, b) = (witnesses[0].key(), witnesses[1].key());
    let stranger = Witness::start("witness.example/stranger", [9; 32])?.key();
    let log = bed.path("data/log").display().to_string();
    let verify = |more: &[&str]| offline(&[&["log", "verify", &log, "--key", &key], more].concat());
    let both = verify(&["--witness", &a, "--witness", &b])?;
    ensure!(both.status.success() && text(&both).contains("2 or more have cosigned"), "{}", text(&both));
    ensure!(
        verify(&["--witness", &a, "--witness", &b, "--witness", &stranger, "--quorum", "2"])?
            .status
            .success()
    );
    let short = verify(&["--witness", &a, "--witness", &b, "--witness", &stranger])?;
    ensure!(short.status.code() == Some(1) && text(&short).contains("lacks its quorum"), "{}", text(&short));
    // At the socket, too; and a proof that is kept carries them.
    bed.hallmark_ok(&["log", "verify", "--witness", &a, "--witness", &b])?;
    let own = bed.hallmark_ok(&["log", "find", "--kind", "issuer-svid", "-o", "json"])?;
    let own: serde_json::Value = serde_json::from_str(&own)?;
    let serial = own["records"][0]["record"]["serial"].as_str().context("serial")?.to_owned();
    let evidence = bed.path("evidence").display().to_string();
    bed.hallmark_ok(&["log", "prove", "--serial", &serial, "--dir", &evidence])?;
    let check = |more: &[&str]| offline(&[&["log", "check", &evidence, "--key", &key], more].concat());
    ensure!(check(&["--witness", &a, "--witness", &b])?.status.success());
    ensure!(check(&["--witness", &a, "--witness", &stranger])?.status.code() == Some(1));
    // And a monitor.
    let state = bed.path("monitor").display().to_string();
    let watched = format!("own={log},{key}");
    let monitor = |witness: &str| {
        let args = ["log", "monitor", "--once", "--state", &state, "--log", &watched, "--witness", &a];
        offline(&[args.as_slice(), &["--witness", witness]].concat())
    };
    ensure!(monitor(&b)?.status.success(), "{}", text(&monitor(&b)?));
    let alert = monitor(&stranger)?;
    ensure!(alert.status.code() == Some(1) && text(&alert).contains("unwitnessed"), "{}", text(&alert));
    gos_ed25519_agrees(&bed, &[&a, &b], &stranger)?;

    // An older store is put back, and the log's files are gone: only the witnesses know better.
    bed.stop_issuer()?;
    let seen = witnesses[0].latest(LOG);
    std::fs::remove_dir_all(bed.path("data/log"))?;
    for n in ["-wal", "-shm"] {
        let _ = std::fs::remove_file(bed.path(&database(n)));
    }
    std::fs::copy(bed.path("old/hallmark.db"), bed.path(&database("")))?;
    bed.start_issuer()?;
    bed.issuer()?.wait_for_log("FORK", 0)?;
    let refused = bed.hallmark(&["join-token", "create", "host-3"])?;
    ensure!(!refused.status.success() && text(&refused).contains("witnesses"), "{}", text(&refused));
    ensure!(!bed.path("data/log/checkpoint").exists(), "a second history was published");
    ensure!(witnesses.iter().all(|witness| witness.latest(LOG) == seen));
    Ok(())
}

fn gos_ed25519_agrees(bed: &Bed, keys: &[&str], stranger: &str) -> Result<()> {
    let dir = bed.path("oracle");
    std::fs::create_dir(&dir)?;
    std::fs::write(dir.join("main.go"), include_str!("witness/main.go"))?;
    std::fs::write(dir.join("go.mod"), "module cosigned\n")?;
    let built = Command::new("go")
        .args(["build", "-o", "cosigned", "."])
        .env("GOTOOLCHAIN", "local")
        .env("GOCACHE", dir.join("cache"))
        .current_dir(&dir)
        .output();
    let Ok(built) = built else {
        skip("gos_ed25519_agrees (no Go toolchain)");
        return Ok(());
    };
    ensure!(built.status.success(), "go build: {}", text(&built));
    let note = bed.path("data/log/checkpoint");
    let verifies = |note: &Path, key: &str| -> Result<bool> {
        Ok(Command::new(dir.join("cosigned")).arg(note).arg(key).output()?.status.success())
    };
    for key in keys {
        ensure!(verifies(&note, key)?, "{key}");
    }
    ensure!(!verifies(&note, stranger)?);
    // It is no oracle that says yes to everything.
    let forged = bed.path("forged");
    std::fs::write(&forged, std::fs::read_to_string(&note)?.replacen(LOG, "test.example/log/issuer-2", 1))?;
    ensure!(!verifies(&forged, keys[0])?);
    Ok(())
}
