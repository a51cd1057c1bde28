//! `hallmark log monitor`: alerts for exactly what nobody expects, and for logs that lie.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use common::log::{PATIENCE, Running, Server, TestLog, Web, answer, lines, request, svid, until};
use common::{code, hallmark, json, stderr};
use serde_json::Value;

const NAME: &str = "example.org/log/issuer-1";

const EXPECTED: &str = r#"
stale_after = "1h"
[[watch]]
agent = "mailer"
owners = ["mail@example.org"]
hosts = ["web-01", "web-02"]
[[watch]]
host = "web-*"
ek_sha256 = ["aa"]
"#;

struct Bed {
    dir: tempfile::TempDir,
    log: TestLog,
    config: String,
}

impl Bed {
    fn new() -> Self {
        let mut log = TestLog::new(NAME, 7);
        for n in 0..3 {
            log.push(svid(n, "mailer", "web-01", "mail@example.org"));
        }
        let bed = Self { dir: tempfile::tempdir().unwrap(), log, config: EXPECTED.to_owned() };
        bed.publish();
        bed
    }

    fn tiles(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn publish(&self) {
        let _ = fs::remove_dir_all(self.tiles());
        self.log.write(&self.tiles());
    }

    fn push(&mut self, entry: impl Into<Vec<u8>>) {
        self.log.push(entry);
        self.publish();
    }

    fn args(&self) -> Vec<String> {
        let config = self.dir.path().join("monitor.toml");
        let state = self.dir.path().join("state").display().to_string();
        fs::write(&config, format!("state = \"{state}\"\n{}", self.config)).unwrap();
        let log = format!("one={},{}", self.tiles().display(), self.log.verifier());
        vec![
            "log".into(),
            "monitor".into(),
            "--config".into(),
            config.display().to_string(),
            "--log".into(),
            log,
        ]
    }

    fn run(&self, more: &[&str]) -> Output {
        let args = self.args();
        let args: Vec<&str> = args.iter().map(String::as_str).chain(["--once", "-o", "json"]).collect();
        hallmark(&[&args, more].concat()).output().unwrap()
    }

    /// The alerts of one run, by name; the exit code says whether there are any.
    fn alerts(&self, more: &[&str]) -> Vec<Value> {
        let output = self.run(more);
        let alerts = json(&output)["alerts"].as_array().unwrap().clone();
        assert_eq!(code(&output), i32::from(!alerts.is_empty()), "{}", stderr(&output));
        alerts
    }

    fn names(&self, more: &[&str]) -> Vec<String> {
        self.alerts(more).iter().map(|alert| alert["alert"].as_str().unwrap().to_owned()).collect()
    }
}

#[test]
fn exactly_the_unexpected_raises_an_alert() {
    let mut bed = Bed::new();
    assert_eq!(bed.names(&[]), Vec::<String>::new(), "what is expected");
    bed.push(svid(3, "mailer", "web-02", "mail@example.org"));
    bed.push(r#"{"v":1,"at":4,"kind":"svid","outcome":"refused","agent":"eve","host":"db-1"}"#);
    bed.push(r#"{"v":1,"at":4,"kind":"issuer-svid","outcome":"issued","serial":"49"}"#);
    bed.push(r#"{"v":1,"at":4,"kind":"host-attestation","outcome":"attested","host":"web-01","serial":"50","ek_sha256":"aa"}"#);
    assert_eq!(bed.names(&[]), Vec::<String>::new());
    // Another host, another owner, another agent, another machine under a host's name.
    bed.push(svid(8, "mailer", "db-1", "mail@example.org"));
    bed.push(svid(9, "mailer", "web-01", "eve@example.org"));
    bed.push(svid(10, "eve", "db-1", "mail@example.org"));
    bed.push(r#"{"v":1,"at":4,"kind":"host-attestation","outcome":"attested","host":"web-09","serial":"51","ek_sha256":"bb"}"#);
    let alerts = bed.alerts(&[]);
    let found: Vec<(u64, &str)> =
        alerts.iter().map(|a| (a["index"].as_u64().unwrap(), a["spiffe_id"].as_str().unwrap())).collect();
    let mailer = "spiffe://example.org/agent/mailer";
    let expected = [
        (7, mailer),
        (8, mailer),
        (9, "spiffe://example.org/agent/eve"),
        (10, "spiffe://example.org/host/web-09"),
    ];
    assert_eq!(found, expected);
    assert_eq!(alerts[0]["unexpected"][0]["field"], "host");
    assert_eq!(alerts[1]["unexpected"][0]["found"], "eve@example.org");
    assert_eq!(alerts[2]["unexpected"][0]["why"], "unlisted");
    assert_eq!(alerts[3]["unexpected"][0]["field"], "ek_sha256");
    assert_eq!(alerts[2]["record"]["agent"], "eve");
    assert_eq!(bed.names(&[]), Vec::<String>::new(), "each is told of once");
    // Nobody's business, if so said.
    bed.config = format!("default = \"allow\"\n{EXPECTED}");
    bed.push(svid(11, "eve", "db-1", "eve@example.org"));
    assert_eq!(bed.names(&[]), Vec::<String>::new());
}

#[test]
fn a_log_that_lies_is_found_out_between_two_runs() {
    let mut bed = Bed::new();
    assert_eq!(bed.names(&[]), Vec::<String>::new());
    let honest = bed.log.clone();
    bed.log.entries.truncate(2);
    bed.publish();
    let back = bed.alerts(&[]);
    assert_eq!((back.len(), &back[0]["alert"]), (1, &"rolled-back".into()));
    bed.log = honest.clone();
    bed.log.entries[1] = svid(77, "mailer", "web-02", "mail@example.org").into();
    bed.push(svid(78, "mailer", "web-02", "mail@example.org"));
    let forked = bed.alerts(&[]);
    assert_eq!((forked.len(), &forked[0]["alert"]), (1, &"forked".into()));
    // Both signed checkpoints are in it: anybody can verify them.
    let notes = forked[0]["checkpoints"].as_array().unwrap();
    let sizes: Vec<u64> = notes
        .iter()
        .map(|note| {
            let key = bed.log.verifier();
            hallmark_core::log::open_checkpoint(note.as_str().unwrap().as_bytes(), &key).unwrap().size
        })
        .collect();
    assert_eq!(sizes, [3, 4]);
    assert_eq!(bed.names(&[]), ["forked"], "it does not get used to it");
    bed.log = honest;
    bed.publish();
    assert_eq!(bed.names(&[]), Vec::<String>::new());

    // A key that is another's; a tile that was changed; nothing at all.
    let files = bed.log.files();
    let key = bed.log.verifier().to_string();
    let web = Web::start(files.clone());
    let state = bed.dir.path().join("other").display().to_string();
    let alerts = |key: &str| {
        let log = format!("web={},{key}", web.url());
        let args = ["log", "monitor", "--once", "-o", "json", "--state", &state, "--log", &log];
        let output = hallmark(&args).output().unwrap();
        let alerts = json(&output)["alerts"].as_array().unwrap().clone();
        assert_eq!(code(&output), i32::from(!alerts.is_empty()));
        alerts.iter().map(|alert| alert["alert"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(alerts(&TestLog::new(NAME, 8).verifier().to_string()), ["unsigned"]);
    let mut changed = files.clone();
    changed.get_mut("tile/0/000.p/3").unwrap()[1] ^= 1;
    *web.files.lock().unwrap() = changed;
    assert_eq!(alerts(&key), ["tampered"]);
    *web.files.lock().unwrap() = BTreeMap::new();
    assert_eq!(alerts(&key), ["unreachable"]);
    *web.files.lock().unwrap() = files;
    assert_eq!(alerts(&key), Vec::<String>::new());
}

#[test]
fn records_that_contradict_are_told_of_also_those_of_earlier_runs() {
    let mut bed = Bed::new();
    bed.push(r#"{"v":1,"at":4,"kind":"instance-end","outcome":"ended","instance":"00000000000000000000000000000001"}"#);
    assert_eq!(bed.names(&[]), Vec::<String>::new());
    // An instance that had ended in an earlier run, and a serial that was there before.
    let ended = svid(1, "mailer", "web-01", "mail@example.org").replace("\"serial\":\"4", "\"serial\":\"5");
    bed.push(ended);
    bed.push(svid(2, "mailer", "web-01", "mail@example.org"));
    bed.push("no record");
    let alerts = bed.alerts(&["--skip-history"]);
    assert_eq!(alerts.len(), 1, "only what contradicts itself: {alerts:?}");
    fs::remove_dir_all(bed.dir.path().join("state")).unwrap();
    bed.log.entries.truncate(4);
    bed.publish();
    assert_eq!(bed.names(&[]), Vec::<String>::new());
    bed.push(svid(1, "mailer", "web-01", "mail@example.org").replace("\"serial\":\"4", "\"serial\":\"5"));
    bed.push(svid(2, "mailer", "web-01", "mail@example.org"));
    bed.push("no record");
    let alerts = bed.alerts(&[]);
    let found: Vec<u64> = alerts.iter().map(|alert| alert["index"].as_u64().unwrap()).collect();
    assert_eq!(found, [4, 5, 6]);
    assert!(alerts.iter().all(|alert| alert["alert"] == "contradiction"), "{alerts:?}");
    assert_eq!(alerts[2]["record"], "no record");
}

#[test]
fn a_log_that_stands_still_is_told_of() {
    let mut bed = Bed::new();
    bed.log.entries.clear();
    bed.push(r#"{"v":1,"at":1700000000,"kind":"host-quote","outcome":"accepted","host":"web-01"}"#);
    assert_eq!(bed.names(&[]), ["stale"]);
    assert_eq!(bed.names(&[]), ["stale"], "it still does");
    assert_eq!(bed.names(&["--stale-after", "100000d"]), Vec::<String>::new());
    // A record from the future keeps it young no longer than one of now.
    bed.push(r#"{"v":1,"at":99999999999,"kind":"host-quote","outcome":"accepted","host":"web-01"}"#);
    assert_eq!(bed.names(&[]), Vec::<String>::new());
    let state = fs::read(bed.dir.path().join("state/one.json")).unwrap();
    let state: Value = serde_json::from_slice(&state).unwrap();
    assert!(state["newest"].as_i64().unwrap() <= hallmark_kit::pki::unix_now());
}

#[test]
fn two_places_that_show_two_histories_of_one_log() {
    let mut bed = Bed::new();
    let mirror = bed.dir.path().join("mirror");
    bed.log.write(&mirror);
    let second = format!("two={},{}", mirror.display(), bed.log.verifier());
    bed.push(svid(3, "mailer", "web-01", "mail@example.org"));
    assert_eq!(bed.names(&["--log", &second]), Vec::<String>::new(), "one lags behind");
    let mut other = bed.log.clone();
    other.entries[3] = svid(9, "mailer", "web-02", "mail@example.org").into();
    other.push(svid(10, "mailer", "web-02", "mail@example.org"));
    other.write(&mirror);
    let alerts = bed.alerts(&["--log", &second]);
    assert_eq!(alerts.len(), 1, "{alerts:?}");
    assert_eq!(alerts[0]["alert"], "forked");
    assert_eq!(alerts[0]["checkpoints"].as_array().unwrap().len(), 2);
}

#[test]
fn the_webhook_gets_each_alert_and_what_it_does_not_take_is_raised_again() {
    let mut bed = Bed::new();
    let posted: Arc<Mutex<Vec<Value>>> = Arc::default();
    let down = Arc::new(AtomicBool::new(true));
    let (kept, is_down) = (posted.clone(), down.clone());
    let mut asked = 0;
    let server = Server::start(move |stream| {
        let Some(request) = request(&stream) else { return };
        asked += 1;
        if is_down.load(Ordering::SeqCst) || asked % 2 == 0 {
            return answer(&stream, "500 Internal Server Error", b"");
        }
        kept.lock().unwrap().push(serde_json::from_slice(&request.body).unwrap());
        answer(&stream, "200 OK", b"");
    });
    bed.config = format!("{EXPECTED}\n[webhook]\nurl = \"{}/hook\"\n", server.url());
    bed.push(svid(3, "eve", "db-1", "x"));
    bed.push(svid(4, "eve\\u001b[31m\\n", "db-1", "x"));
    let first = bed.run(&[]);
    let shown = json(&first);
    assert_eq!((code(&first), &shown["undelivered"]), (1, &1.into()), "{shown}");
    assert!(stderr(&first).contains("raised again"), "{}", stderr(&first));
    assert_eq!(shown["logs"][0]["seen"], false, "it was not read to its end");
    down.store(false, Ordering::SeqCst);
    assert_eq!(bed.names(&[]), ["unexpected-certificate", "unexpected-certificate"]);
    let posted = posted.lock().unwrap();
    assert_eq!(posted.iter().map(|alert| alert["index"].as_u64().unwrap()).collect::<Vec<_>>(), [3, 4]);
    assert_eq!((&posted[0]["version"], &posted[0]["log"]), (&1.into(), &"one".into()));
    assert_eq!(bed.names(&[]), Vec::<String>::new());
}

#[test]
fn it_goes_on_for_as_long_as_it_is_let() {
    let mut bed = Bed::new();
    let args = bed.args();
    let args: Vec<&str> = args.iter().map(String::as_str).chain(["--interval", "20ms"]).collect();
    let child = hallmark(&args).env("JOURNAL_STREAM", "1:1").stderr(Stdio::piped()).spawn().unwrap();
    let mut child = Running(child);
    let lines = lines(child.0.stderr.take().unwrap());
    until("it has read the log", || fs::metadata(bed.dir.path().join("state/one.json")).ok());
    bed.log.push(svid(3, "eve\\u001b[31m\\nforged", "db-1", "x"));
    bed.log.write(&bed.tiles());
    let line = lines.recv_timeout(PATIENCE).unwrap();
    assert!(line.starts_with("<1>alert: unexpected-certificate: log one, record 3: "), "{line}");
    assert!(line.contains("forged") && !line.contains('\u{1b}'), "{line}");
    // A fork is told of once, for as long as it lasts.
    let honest = bed.log.clone();
    bed.log.entries[0] = svid(9, "mailer", "web-02", "mail@example.org").into();
    bed.log.write(&bed.tiles());
    assert!(lines.recv_timeout(PATIENCE).unwrap().contains("forked"));
    bed.log = honest;
    bed.log.push(svid(5, "eve", "db-1", "x"));
    bed.log.write(&bed.tiles());
    assert!(lines.recv_timeout(PATIENCE).unwrap().contains("unexpected-certificate: log one, record 4"));
}

#[test]
fn what_is_configured_wrongly_is_said_at_once() {
    let bed = Bed::new();
    assert_eq!(code(&hallmark(&["log", "monitor", "--once"]).output().unwrap()), 2);
    let wrong = bed.run(&["--log", "one=./x,key"]);
    assert!(code(&wrong) == 2 && stderr(&wrong).contains("key"), "{}", stderr(&wrong));
    let new = bed.run(&["--from-now"]);
    assert_eq!(json(&new)["logs"][0]["new"], 0);
}
