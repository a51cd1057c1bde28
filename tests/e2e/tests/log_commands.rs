//! The log of a real issuer, read in three ways: over its admin socket, from its files, and from a web server on a
//! copy of them; streamed and watched.

use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use hallmark_e2e::{Bed, BedOptions, admin, binary, skip, wait_until};
use hallmark_proto::admin::ReadLogRequest;
use tonic::Code;

fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

fn json(output: &Output) -> Result<serde_json::Value> {
    serde_json::from_slice(&output.stdout).with_context(|| text(output))
}

/// Without the issuer.
fn offline(args: &[&str]) -> Result<Output> {
    Ok(Command::new(binary("hallmark")?).args(["--admin-socket", "/nonexistent"]).args(args).output()?)
}

/// Python's web server on a directory; it ends with the value.
struct Web(Child, String);

impl Web {
    fn start(dir: &Path) -> Result<Option<Self>> {
        let started = Command::new("python3")
            .args(["-u", "-m", "http.server", "--bind", "127.0.0.1", "0"])
            .current_dir(dir)
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut child) = started else { return Ok(None) };
        let mut line = String::new();
        BufReader::new(child.stdout.take().context("stdout")?).read_line(&mut line)?;
        let port = line.split_whitespace().skip_while(|word| *word != "port").nth(1).context("a port")?;
        let url = format!("http://127.0.0.1:{port}");
        Ok(Some(Self(child, url)))
    }
}

impl Drop for Web {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn three_ways_to_one_log() -> Result<()> {
    let bed = Bed::start(BedOptions { dev: true, ..BedOptions::default() })?;
    // Over the first full tile.
    for n in 0..260 {
        bed.hallmark_ok(&["join-token", "create", &format!("host-{n}")])?;
    }
    // The socket knows at once what was recorded; the files follow.
    let tail = json(&bed.hallmark(&["log", "tail", "-n", "1", "-o", "json"])?)?;
    let last = &tail["records"][0];
    ensure!(last["record"]["host"] == "host-259" && last["record"]["kind"] == "enrolment", "{last}");
    let size = last["index"].as_u64().context("index")? + 1;
    let dir = bed.path("data/log");
    let published = || -> Option<u64> {
        std::fs::read_to_string(dir.join("checkpoint")).ok()?.lines().nth(1)?.parse().ok()
    };
    wait_until("the log's files", || (published()? >= size).then_some(()))?;
    let key = bed.hallmark_ok(&["log", "key"])?.trim().to_owned();
    let Some(web) = Web::start(&dir)? else {
        skip("three_ways_to_one_log (no python3)");
        return Ok(());
    };
    let directory = dir.display().to_string();
    let all = |args: &[&str]| -> Result<Vec<serde_json::Value>> {
        let mut answers = vec![json(&bed.hallmark(&[&["log"], args, &["-o", "json"]].concat())?)?];
        for place in [directory.as_str(), web.1.as_str()] {
            answers.push(json(&offline(&[&["log"], args, &[place, "--key", &key, "-o", "json"]].concat())?)?);
        }
        ensure!(answers.iter().all(|answer| *answer == answers[0]), "{args:?}: {answers:?}");
        Ok(answers)
    };
    all(&["verify"])?;
    all(&["tail", "-n", "5"])?;
    all(&["show", "256"])?;
    let found = all(&["find", "--kind", "enrolment", "--host", "host-7"])?;
    ensure!(found[0]["records"][0]["record"]["host"] == "host-7", "{}", found[0]);
    let own = all(&["find", "--kind", "issuer-svid"])?;
    let serial = own[0]["records"][0]["record"]["serial"].as_str().context("serial")?.to_owned();
    ensure!(all(&["show", &serial])?[0]["record"]["kind"] == "issuer-svid");

    // The record as a program exports it is the one that the store has.
    let exported = bed.hallmark_ok(&["log", "export", "--from", "5", "--count", "1"])?;
    let proven = offline(&["log", "export", &web.1, "--key", &key, "--from", "5", "--count", "1"])?;
    ensure!(exported.as_bytes() == proven.stdout, "{exported}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_socket_serves_the_log_and_nothing_else() -> Result<()> {
    let bed = Bed::start(BedOptions { dev: true, ..BedOptions::default() })?;
    let read = |path: &str| {
        let request = ReadLogRequest { path: path.to_owned() };
        let mut client = admin(&bed.admin_socket());
        async move { client.read_log(request).await }
    };
    let note = read("checkpoint").await?.into_inner().content;
    let size: u16 = std::str::from_utf8(&note)?.lines().nth(1).context("size")?.parse()?;
    ensure!(
        read(&format!("tile/0/000.p/{size}")).await?.into_inner().content.len() == usize::from(size) * 32
    );
    ensure!(read("tile/0/000.p/1").await?.into_inner().content.len() == 32, "narrower, as it was");
    for path in ["", "../issuer.toml", "/etc/passwd", "tile/0/0", "tile/entries/../000", "tile/0/000.p/257"] {
        let refused = read(path).await.err().map(|status| status.code());
        ensure!(refused == Some(Code::InvalidArgument), "{path}: {refused:?}");
    }
    for path in ["tile/0/000", "tile/entries/999", "tile/63/000.p/1", &format!("tile/0/000.p/{}", size + 1)] {
        let none = read(path).await.err().map(|status| status.code());
        ensure!(none == Some(Code::NotFound), "{path}: {none:?}");
    }
    Ok(())
}

#[test]
fn a_siem_and_a_monitor_follow_an_issuer() -> Result<()> {
    let bed = Bed::start(BedOptions { dev: true, ..BedOptions::default() })?;
    bed.hallmark_ok(&["join-token", "create", "host-1"])?;
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let to = format!("syslog+tcp://{}", listener.local_addr()?);
    let state = bed.path("stream-state").display().to_string();
    let received = std::thread::spawn(move || -> Result<String> {
        let mut read = String::new();
        listener.accept()?.0.read_to_string(&mut read)?;
        Ok(read)
    });
    bed.hallmark_ok(&["log", "stream", "--to", &to, "--state", &state, "--once"])?;
    let received = received.join().map_err(|_| anyhow::anyhow!("the receiver failed"))??;
    ensure!(
        received.contains("\"class_uid\":3004") && received.contains("\"name\":\"host-1\""),
        "{received}"
    );
    ensure!(received.contains("test.example/log/issuer-1/0"), "{received}");

    // The issuer's own certificates are expected, and nobody else has any.
    let key = bed.hallmark_ok(&["log", "key"])?.trim().to_owned();
    let dir = bed.path("data/log");
    wait_until("the log's files", || std::fs::metadata(dir.join("checkpoint")).ok())?;
    let config = bed.path("monitor.toml");
    let state = bed.path("monitor").display().to_string();
    std::fs::write(&config, format!("state = \"{state}\"\ndefault = \"deny\"\n"))?;
    let log = format!("own={},{key}", dir.display());
    let config = config.display().to_string();
    let quiet = offline(&["log", "monitor", "--once", "--config", &config, "--log", &log])?;
    ensure!(quiet.status.success() && text(&quiet).contains("No alert"), "{}", text(&quiet));
    Ok(())
}
