//! `hallmark log stream` against receivers that take, drop, refuse and lie.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, UdpSocket};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};

use common::log::{Running, Server, TestLog, answer, frames, index, request, until};
use common::{code, hallmark, stderr};

const NAME: &str = "example.org/log/issuer-1";

/// A log in a directory, and a state beside it.
struct Bed {
    dir: tempfile::TempDir,
    log: TestLog,
}

impl Bed {
    fn of(count: usize) -> Self {
        let bed = Self { dir: tempfile::tempdir().unwrap(), log: TestLog::new(NAME, 7) };
        let mut bed = bed;
        bed.log.grow(count);
        bed.publish();
        bed
    }

    fn tiles(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn publish(&self) {
        self.log.write(&self.tiles());
    }

    fn command(&self, to: &str, more: &[&str]) -> Command {
        let (tiles, state) = (self.tiles().display().to_string(), self.state().display().to_string());
        let key = self.log.verifier().to_string();
        let args = ["log", "stream", &tiles, "--key", &key, "--to", to, "--state", &state];
        let fast = ["--format", "json", "--interval", "20ms", "--max-pause", "50ms"];
        hallmark(&[&args, &fast[..], more].concat())
    }

    fn once(&self, to: &str, more: &[&str]) -> Output {
        self.command(to, &[&["--once"], more].concat()).output().unwrap()
    }

    fn start(&self, to: &str, more: &[&str]) -> Running {
        Running(self.command(to, more).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
    }

    /// Index of the first record that the state does not call delivered.
    fn next(&self) -> Option<u64> {
        let state: serde_json::Value = serde_json::from_slice(&fs::read(self.state()).ok()?).unwrap();
        state["next"].as_u64()
    }
}

/// A receiver that keeps what it read of each connection.
fn receiver() -> (Server, Arc<Mutex<Vec<Vec<u8>>>>) {
    let seen: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let kept = seen.clone();
    let server = Server::start(move |mut stream| {
        let mut read = Vec::new();
        let _ = stream.read_to_end(&mut read);
        kept.lock().unwrap().push(read);
    });
    (server, seen)
}

fn indexes(connections: &[Vec<u8>]) -> Vec<u64> {
    connections.iter().flat_map(|bytes| frames(bytes)).map(|message| index(&message)).collect()
}

#[test]
fn each_record_comes_once_and_in_order_where_nothing_goes_wrong() {
    let mut bed = Bed::of(600);
    let (server, seen) = receiver();
    let to = format!("syslog+tcp://{}", server.address);
    let done = bed.once(&to, &[]);
    assert_eq!(code(&done), 0, "{}", stderr(&done));
    assert_eq!(indexes(&seen.lock().unwrap()), (0..600).collect::<Vec<u64>>());
    let first = frames(&seen.lock().unwrap()[0])[0].clone();
    assert!(
        first.starts_with("<110>1 20") && first.contains(" hallmark ") && first.contains(" svid - {"),
        "{first}"
    );
    assert_eq!(bed.next(), Some(600));
    bed.log.grow(7);
    bed.publish();
    assert_eq!(code(&bed.once(&to, &[])), 0);
    assert_eq!(indexes(&seen.lock().unwrap()), (0..607).collect::<Vec<u64>>());
    assert_eq!(code(&bed.once(&to, &[])), 0);
    assert_eq!(seen.lock().unwrap().iter().map(|c| frames(c).len()).sum::<usize>(), 607);
}

#[test]
fn nothing_is_lost_when_a_receiver_drops_the_connection_midway() {
    let bed = Bed::of(600);
    let (finish, finished) = mpsc::channel();
    let mut attempt = 0;
    let mut complete: Vec<Vec<u8>> = Vec::new();
    let server = Server::start(move |mut stream| {
        attempt += 1;
        match attempt % 4 {
            // Nothing read; much read and the rest left; little read.
            1 => drop(stream),
            2 => drop(stream.read_exact(&mut [0; 30_000])),
            3 => drop(stream.read(&mut [0; 16])),
            _ => {
                let mut read = Vec::new();
                stream.read_to_end(&mut read).unwrap();
                complete.push(read);
                finish.send(complete.clone()).unwrap();
            }
        }
    });
    let _stream = bed.start(&format!("syslog+tcp://{}", server.address), &[]);
    until("all delivered", || (bed.next() == Some(600)).then_some(()));
    let complete = finished.try_iter().last().unwrap();
    assert_eq!(indexes(&complete), (0..600).collect::<Vec<u64>>(), "what was read whole is all of it");
}

/// One that closes its own side first, and then leaves what it does not like: its system takes all the bytes.
#[test]
fn a_receiver_that_closes_before_it_was_sent_everything_has_taken_nothing() {
    let mut bed = Bed::of(0);
    // More than fits into the buffers between the two: it was sent whole only once most of it was read.
    let filler = "x".repeat(60_000);
    for n in 0..200 {
        let record = common::log::svid(n, "a", "h", "o");
        bed.log.push(record.replace("\"v\":1", &format!("\"v\":1,\"x\":\"{filler}\"")));
    }
    bed.publish();
    let server = Server::start(|mut stream| {
        let _ = stream.shutdown(std::net::Shutdown::Write);
        let _ = std::io::copy(&mut (&mut stream).take(11_900_000), &mut std::io::sink());
    });
    let done = bed.once(&format!("syslog+tcp://{}", server.address), &[]);
    assert!(code(&done) == 3 && stderr(&done).contains("closed its side"), "{}", stderr(&done));
    assert_eq!(bed.next(), Some(0));
}

#[test]
fn what_was_not_acknowledged_comes_again_after_a_kill() {
    let bed = Bed::of(700);
    // It reads everything, and never says that it has: the stream is killed meanwhile.
    let (tell, told) = mpsc::channel();
    let mut held = Vec::new();
    let mut served = 0;
    let first: Arc<Mutex<Vec<Vec<u8>>>> = Arc::default();
    let kept = first.clone();
    let silent = Server::start(move |mut stream| {
        served += 1;
        let mut read = Vec::new();
        stream.read_to_end(&mut read).ok();
        if served == 1 {
            // The first delivery is taken in peace.
            kept.lock().unwrap().push(read);
        } else {
            tell.send(read).ok();
            held.push(stream);
        }
    });
    let running = bed.start(&format!("syslog+tcp://{}", silent.address), &[]);
    let unacknowledged = told.recv_timeout(std::time::Duration::from_secs(60)).unwrap();
    drop(running);
    assert_eq!(bed.next(), Some(256));
    let again = indexes(&[unacknowledged]);
    assert_eq!(again, (256..512).collect::<Vec<u64>>(), "they were read, and are not counted");
    drop(silent);

    let (server, seen) = receiver();
    assert_eq!(code(&bed.once(&format!("syslog+tcp://{}", server.address), &[])), 0);
    let second = indexes(&seen.lock().unwrap());
    assert_eq!(second, (256..700).collect::<Vec<u64>>());
    let all: BTreeSet<u64> = indexes(&first.lock().unwrap()).into_iter().chain(second).collect();
    assert_eq!(all, (0..700).collect(), "at least once, each of them");
}

#[test]
fn killed_at_any_moment_it_loses_nothing() {
    let bed = Bed::of(1_500);
    let (server, seen) = receiver();
    let to = format!("syslog+tcp://{}", server.address);
    let mut rounds = 0;
    while bed.next() != Some(1_500) {
        let before = seen.lock().unwrap().len();
        let running = bed.start(&to, &["--batch", "16"]);
        // Killed as soon as a few more deliveries were seen, wherever it is then.
        until("a delivery", || {
            (seen.lock().unwrap().len() > before + rounds % 7 || bed.next() == Some(1_500)).then_some(())
        });
        drop(running);
        rounds += 1;
    }
    assert!(rounds > 3, "it was killed {rounds} times");
    let mut got: Vec<u64> = Vec::new();
    for connection in seen.lock().unwrap().iter() {
        // A kill may cut the last frame; whole ones count.
        got.extend(whole_frames(connection).iter().map(|message| index(message)));
    }
    let all: BTreeSet<u64> = got.iter().copied().collect();
    assert_eq!(all, (0..1_500).collect());
    assert!(got.len() <= 1_500 + rounds * 16, "no more than a batch a kill comes twice");
}

fn whole_frames(mut bytes: &[u8]) -> Vec<String> {
    let mut messages = Vec::new();
    while let Some(space) = bytes.iter().position(|byte| *byte == b' ') {
        let length: usize = std::str::from_utf8(&bytes[..space]).unwrap().parse().unwrap();
        let Some(message) = bytes.get(space + 1..space + 1 + length) else { break };
        messages.push(String::from_utf8(message.to_vec()).unwrap());
        bytes = &bytes[space + 1 + length..];
    }
    messages
}

#[test]
fn a_web_server_acknowledges_with_its_answer() {
    let bed = Bed::of(300);
    let token = bed.dir.path().join("token");
    fs::write(&token, "Bearer s3cret\n").unwrap();
    let bodies: Arc<Mutex<Vec<String>>> = Arc::default();
    let kept = bodies.clone();
    let mut asked = 0;
    let server = Server::start(move |stream| {
        let Some(request) = request(&stream) else { return };
        asked += 1;
        assert_eq!((request.method.as_str(), request.path.as_str()), ("POST", "/ingest"));
        assert_eq!(request.headers["authorization"], "Bearer s3cret");
        assert_eq!(request.headers["content-type"], "application/x-ndjson");
        match asked % 4 {
            1 => answer(&stream, "503 Service Unavailable", b""),
            2 => answer(&stream, "302 Found", b""),
            // Read, and no answer.
            3 => {}
            _ => {
                kept.lock().unwrap().push(String::from_utf8(request.body).unwrap());
                answer(&stream, "202 Accepted", b"");
            }
        }
    });
    let token = token.display().to_string();
    let _stream = bed.start(&format!("{}/ingest", server.url()), &["--authorization-file", &token]);
    until("all delivered", || (bed.next() == Some(300)).then_some(()));
    let bodies = bodies.lock().unwrap().concat();
    let lines: Vec<&str> = bodies.lines().collect();
    assert_eq!(lines.iter().map(|line| index(line)).collect::<Vec<_>>(), (0..300).collect::<Vec<_>>());
    let record = String::from_utf8(bed.log.entries[299].clone()).unwrap();
    assert!(lines[299].ends_with(&format!("\"record\":{record}}}")), "to the byte");
    // The token goes nowhere in the open.
    let open = bed.once("http://siem.example.org/", &["--authorization-file", &token]);
    assert!(code(&open) == 2 && stderr(&open).contains("https:// alone"), "{}", stderr(&open));
}

#[test]
fn one_stream_a_state() {
    let bed = Bed::of(3);
    let (server, _seen) = receiver();
    let to = format!("syslog+tcp://{}", server.address);
    let running = bed.start(&to, &[]);
    until("it is at work", || (bed.next() == Some(3)).then_some(()));
    let second = bed.once(&to, &[]);
    assert!(code(&second) == 1 && stderr(&second).contains("another program"), "{}", stderr(&second));
    drop(running);
    assert_eq!(code(&bed.once(&to, &[])), 0);
}

#[test]
fn another_history_ends_the_stream_before_anything_of_it_is_sent() {
    let mut bed = Bed::of(300);
    let (server, seen) = receiver();
    let to = format!("syslog+tcp://{}", server.address);
    assert_eq!(code(&bed.once(&to, &[])), 0);
    let honest = bed.log.clone();
    bed.log.entries[7] = common::log::svid(9_999, "evil", "y", "z").into();
    bed.log.grow(10);
    bed.publish();
    let forked = bed.once(&to, &[]);
    assert!(code(&forked) == 1 && stderr(&forked).contains("two histories"), "{}", stderr(&forked));
    // Also while it runs.
    bed.log = honest.clone();
    bed.publish();
    let mut running = bed.command(&to, &[]).stderr(Stdio::piped()).spawn().unwrap();
    bed.log.grow(1);
    bed.publish();
    until("it goes on", || (bed.next() == Some(301)).then_some(()));
    bed.log = honest;
    bed.log.entries.truncate(200);
    bed.publish();
    let mut said = String::new();
    running.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(running.wait().unwrap().code(), Some(1));
    assert!(said.contains("rolled back"), "{said}");
    // A tile that was changed, a key that is another's, a state that is.
    bed.log.grow(100);
    bed.publish();
    assert_eq!(seen.lock().unwrap().iter().map(|c| frames(c).len()).sum::<usize>(), 301);
    let stranger = TestLog::new(NAME, 8).verifier().to_string();
    let unsigned = bed.once(&to, &["--key", &stranger]);
    assert_eq!(code(&unsigned), 2, "a key is given once: {}", stderr(&unsigned));
    fs::write(bed.state(), "{}").unwrap();
    let broken = bed.once(&to, &[]);
    assert!(code(&broken) == 1 && stderr(&broken).contains("state"), "{}", stderr(&broken));
}

#[test]
fn a_changed_tile_is_not_sent() {
    let bed = Bed::of(300);
    let path = bed.tiles().join("tile/entries/000");
    let mut bytes = fs::read(&path).unwrap();
    bytes[100] ^= 1;
    fs::write(&path, bytes).unwrap();
    let (server, seen) = receiver();
    let tampered = bed.once(&format!("syslog+tcp://{}", server.address), &[]);
    assert!(code(&tampered) == 1 && stderr(&tampered).contains("tile/entries/000"), "{}", stderr(&tampered));
    assert!(seen.lock().unwrap().is_empty());
}

#[test]
fn datagrams_carry_one_event_each() {
    let mut bed = Bed::of(5);
    let long = common::log::svid(5, "long", "h", "o")
        .replace("\"v\":1", &format!("\"v\":1,\"x\":\"{}\"", "x".repeat(64_000)));
    bed.log.push(long);
    bed.publish();
    let udp = UdpSocket::bind("127.0.0.1:0").unwrap();
    let path = bed.dir.path().join("log.sock");
    let unix = UnixDatagram::bind(&path).unwrap();
    let mut buffer = vec![0; 200_000];
    assert_eq!(code(&bed.once(&format!("syslog+udp://{}", udp.local_addr().unwrap()), &[])), 0);
    for n in 0..6 {
        let length = udp.recv(&mut buffer).unwrap();
        let message = std::str::from_utf8(&buffer[..length]).unwrap();
        assert_eq!(index(message), n, "{message}");
        assert_eq!(n == 5, message.contains("left_out_bytes"));
    }
    fs::remove_file(bed.state()).unwrap();
    assert_eq!(code(&bed.once(&format!("syslog+unix://{}", path.display()), &[])), 0);
    for n in 0..6 {
        let length = unix.recv(&mut buffer).unwrap();
        assert_eq!(index(std::str::from_utf8(&buffer[..length]).unwrap()), n);
    }
    drop(unix);
    fs::remove_file(bed.state()).unwrap();
    let gone = bed.once(&format!("syslog+unix://{}", path.display()), &[]);
    assert!(code(&gone) == 3 && bed.next() == Some(0), "{}", stderr(&gone));
}

/// Over TLS to OpenSSL, as a receiver that others wrote.
#[test]
fn tls_to_the_receiver_that_is_meant() {
    let bed = Bed::of(300);
    let path = |name: &str| bed.dir.path().join(name).display().to_string();
    let make = |name: &str| {
        let made = Command::new("openssl")
            .args([
                "req",
                "-x509",
                "-newkey",
                "ec",
                "-pkeyopt",
                "ec_paramgen_curve:P-256",
                "-nodes",
                "-days",
                "2",
            ])
            .args(["-subj", "/CN=receiver", "-addext", "subjectAltName=DNS:localhost"])
            .args(["-addext", "basicConstraints=critical,CA:FALSE"])
            .args(["-out", &path(&format!("{name}.pem")), "-keyout", &path(&format!("{name}.key"))])
            .output()
            .unwrap();
        assert!(made.status.success(), "{}", stderr(&made));
    };
    make("own");
    make("other");
    let _server = Running(
        Command::new("openssl")
            .args(["s_server", "-accept", "127.0.0.1:0", "-naccept", "3"])
            .args(["-cert", &path("own.pem"), "-key", &path("own.key")])
            .stdin(Stdio::piped())
            .stdout(fs::File::create(path("received")).unwrap())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    let said = || fs::read_to_string(path("received")).unwrap();
    let port = until("it listens", || {
        let address = said().lines().find_map(|line| line.strip_prefix("ACCEPT ").map(str::to_owned))?;
        Some(address.trim().rsplit_once(':')?.1.to_owned())
    });
    let to = format!("syslog+tls://localhost:{port}");
    let wrong = bed.once(&to, &["--to-ca", &path("other.pem")]);
    assert!(code(&wrong) == 3 && stderr(&wrong).contains("certificate"), "{}", stderr(&wrong));
    assert_eq!(bed.next(), Some(0));
    let done = bed.once(&to, &["--to-ca", &path("own.pem")]);
    assert_eq!(code(&done), 0, "{}", stderr(&done));
    assert_eq!(bed.next(), Some(300));
    for n in [0, 255, 256, 299] {
        until("it was written", || said().contains(&format!("\"index\":{n},")).then_some(()));
    }
}

/// OCSF against the schema itself, where Python has it (`pip install ocsf-json-schema jsonschema`).
#[test]
fn events_are_what_their_standards_say() {
    let mut bed = Bed::of(2);
    for (kind, outcome) in [
        ("svid", "refused"),
        ("issuer-svid", "issued"),
        ("host-attestation", "attested"),
        ("host-attestation", "refused"),
        ("host-quote", "accepted"),
        ("instance-end", "ended"),
        ("registration", "created"),
        ("registration", "removed"),
        ("enrolment", "allowed"),
        ("enrolment", "disabled"),
        ("trust-domain", "made"),
        ("something", "new"),
    ] {
        let n = bed.log.entries.len();
        bed.log.push(format!(
            r#"{{"v":1,"at":1800000000,"kind":"{kind}","outcome":"{outcome}","host":"h|=\\","agent":"a{n}\n","owner":"o","instance":"i","serial":"40","operator":"root","note":"n","reason":"r","not_after":1800000600,"unmet":[{{"code":"c","detail":"d"}}],"selectors":["unix:uid:0"]}}"#
        ));
    }
    bed.publish();
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/siem_oracle/check.py");
    let python = std::env::var("HALLMARK_TEST_PYTHON").unwrap_or_else(|_| "python3".to_owned());
    for form in ["ocsf", "cef"] {
        let (server, seen) = receiver();
        let _ = fs::remove_file(bed.state());
        let (tiles, state) = (bed.tiles().display().to_string(), bed.state().display().to_string());
        let (key, to) = (bed.log.verifier().to_string(), format!("syslog+tcp://{}", server.address));
        let args = [
            "log", "stream", &tiles, "--key", &key, "--to", &to, "--state", &state, "--once", "--format",
            form,
        ];
        let done = hallmark(&args).output().unwrap();
        assert_eq!(code(&done), 0, "{}", stderr(&done));
        let Ok(mut child) =
            Command::new(&python).arg(&script).arg(form).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()
        else {
            println!("skipped: events_are_what_their_standards_say (no python3)");
            return;
        };
        child.stdin.take().unwrap().write_all(&seen.lock().unwrap().concat()).unwrap();
        let output = child.wait_with_output().unwrap();
        let said = common::stdout(&output);
        assert!(output.status.success(), "{said}");
        assert!(said.contains("14 events"), "{said}");
        if said.contains("skipped") {
            println!("skipped: events_are_what_their_standards_say, in part: {said}");
        }
    }
}

#[test]
fn addresses_that_are_none_are_refused_at_once() {
    let bed = Bed::of(1);
    for to in ["siem:514", "syslog://a:1", "ftp://a", "syslog+tcp://a", "syslog+unix://dev/log"] {
        assert_eq!(code(&bed.once(to, &[])), 2, "{to}");
    }
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let to = format!("syslog+tcp://{}", listener.local_addr().unwrap());
    drop(listener);
    let away = bed.once(&to, &[]);
    assert!(code(&away) == 3 && stderr(&away).contains("refused"), "{}", stderr(&away));
    let ahead = bed.once(&to, &["--from", "9"]);
    assert_eq!(code(&ahead), 3, "the state knows better than --from: {}", stderr(&ahead));
    fs::remove_file(bed.state()).unwrap();
    let ahead = bed.once(&to, &["--from", "9"]);
    assert!(code(&ahead) == 2 && stderr(&ahead).contains("none has index 9"), "{}", stderr(&ahead));
}
