//! `hallmark log` over directories and web servers, honest and not.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::process::{Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use common::log::{PATIENCE, Running, Server, TestLog, Web, answer, lines, request};
use common::{code, hallmark, json, stderr, stdout};

const NAME: &str = "example.org/log/issuer-1";

fn log(args: &[&str], log: &str, key: &str) -> Output {
    hallmark(&[&["log"], args, &[log, "--key", key]].concat()).output().unwrap()
}

#[test]
fn a_directory_and_a_web_server_say_the_same() {
    let mut own = TestLog::new(NAME, 7);
    own.grow(600);
    let dir = tempfile::tempdir().unwrap();
    own.write(dir.path());
    let web = Web::start(own.files());
    let key = own.verifier().to_string();
    for place in [dir.path().display().to_string(), web.url(), format!("{}/", web.url())] {
        let verified = log(&["verify", "-o", "json"], &place, &key);
        assert_eq!(code(&verified), 0, "{}", stderr(&verified));
        assert_eq!(json(&verified)["size"], 600);
        assert!(verified.stderr.is_empty(), "no progress where there is no terminal: {}", stderr(&verified));

        let tail = log(&["tail", "-n", "3", "-o", "json"], &place, &key);
        let indexes: Vec<_> =
            json(&tail)["records"].as_array().unwrap().iter().map(|r| r["index"].as_u64().unwrap()).collect();
        assert_eq!(indexes, [597, 598, 599]);
        assert!(stdout(&log(&["tail"], &place, &key)).contains("agent=agent-4"));

        let shown = log(&["show", "300", "-o", "json"], &place, &key);
        assert_eq!(json(&shown)["record"]["agent"], "agent-0");
        let by_serial = log(&["show", &format!("4{:031x}", 77), "-o", "json"], &place, &key);
        assert_eq!(json(&by_serial)["index"], 77, "{}", stderr(&by_serial));
        for absent in ["600", &"4f".repeat(16)] {
            let none = log(&["show", absent, "-o", "json"], &place, &key);
            assert!(code(&none) == 1 && stderr(&none).contains("not-found"), "{}", stderr(&none));
        }
        assert_eq!(code(&log(&["show", "x"], &place, &key)), 2);

        let found = log(
            &["find", "--agent", "agent-3", "--kind", "svid", "--limit", "2", "-o", "json"],
            &place,
            &key,
        );
        let found = json(&found);
        assert_eq!(
            (found["records"][1]["index"].as_u64(), found["left_out"].as_u64()),
            (Some(598), Some(118))
        );
        assert_eq!(code(&log(&["find", "--owner", "nobody"], &place, &key)), 1);
        assert_eq!(code(&log(&["find", "--until", "1h"], &place, &key)), 1);

        let exported = log(&["export", "--from", "255", "--count", "2"], &place, &key);
        let record = String::from_utf8(own.entries[256].clone()).unwrap();
        assert_eq!(
            stdout(&exported).lines().nth(1),
            Some(format!(r#"{{"index":256,"record":{record}}}"#).as_str())
        );
        assert!(stderr(&exported).contains("--from 257"), "{}", stderr(&exported));
    }
    // The address alone proves nothing.
    let keyless = hallmark(&["log", "tail", &web.url()]).output().unwrap();
    assert!(code(&keyless) == 2 && stderr(&keyless).contains("--key"), "{}", stderr(&keyless));
}

#[test]
fn whatever_is_changed_on_a_web_server_is_named() {
    let mut own = TestLog::new(NAME, 7);
    own.grow(600);
    let (honest, key) = (own.files(), own.verifier().to_string());
    let web = Web::start(honest.clone());
    for path in honest.keys() {
        let mut changed = honest.clone();
        let bytes = changed.get_mut(path).unwrap();
        let place = bytes.len() / 2;
        bytes[place] ^= 1;
        *web.files.lock().unwrap() = changed;
        let verified = log(&["verify"], &web.url(), &key);
        assert_eq!(code(&verified), 1, "{path}");
        assert!(stderr(&verified).contains(path.as_str()), "{path}: {}", stderr(&verified));
        // Nothing of the part that was changed is shown; what is shown is right.
        let exported = log(&["export"], &web.url(), &key);
        if !path.starts_with("tile/1") {
            assert_eq!(code(&exported), 1, "{path}");
        }
        for (line, entry) in stdout(&exported).lines().zip(&own.entries) {
            assert!(line.contains(std::str::from_utf8(entry).unwrap()), "{path}: {line}");
        }
    }
    // Entries and tiles rewritten together, under the checkpoint that was signed before.
    let mut other = own.clone();
    other.entries[5] = br#"{"v":1,"kind":"svid","outcome":"refused"}"#.to_vec();
    let mut rewritten = other.files();
    rewritten.insert("checkpoint".to_owned(), honest["checkpoint"].clone());
    *web.files.lock().unwrap() = rewritten;
    for args in [&["verify"][..], &["show", "5"], &["tail", "-n", "600"], &["find", "--agent", "agent-1"]] {
        let shown = log(args, &web.url(), &key);
        assert!(code(&shown) == 1 && stdout(&shown).is_empty(), "{args:?}: {}", stdout(&shown));
    }
    // Signed by somebody else.
    *web.files.lock().unwrap() = honest;
    let stranger = TestLog::new(NAME, 8).verifier().to_string();
    let shown = log(&["tail"], &web.url(), &stranger);
    assert!(code(&shown) == 1 && stderr(&shown).contains("not signed by"), "{}", stderr(&shown));
}

#[test]
fn an_earlier_checkpoint_is_held_against_a_web_server_too() {
    let (mut own, dir) = (TestLog::new(NAME, 7), tempfile::tempdir().unwrap());
    own.grow(300);
    let kept = dir.path().join("kept");
    fs::write(&kept, &own.files()["checkpoint"]).unwrap();
    let (kept, key) = (kept.display().to_string(), own.verifier().to_string());
    let since = |files| {
        let web = Web::start(files);
        log(&["verify", "--since", &kept], &web.url(), &key)
    };
    let mut shorter = own.clone();
    shorter.entries.truncate(299);
    assert!(stderr(&since(shorter.files())).contains("rolled back"));
    let mut other = own.clone();
    other.entries[5] = b"{}".to_vec();
    other.grow(20);
    assert!(stderr(&since(other.files())).contains("entry 5"), "contradictions are found, too");
    other.entries[5] = common::log::svid(1_000, "x", "y", "z").into();
    assert!(stderr(&since(other.files())).contains("two histories"));
    assert_eq!(code(&since(own.grow(20).files())), 0);
}

#[test]
fn servers_have_bounds() {
    let mut own = TestLog::new(NAME, 7);
    own.grow(3);
    let (files, key) = (own.files(), own.verifier().to_string());
    let note = files["checkpoint"].clone();
    // What never ends is not read to its end.
    let endless = Server::start(|mut stream| {
        request(&stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n");
        while stream.write_all(&[b'x'; 4096]).is_ok() {}
    });
    let shown = log(&["tail"], &endless.url(), &key);
    assert!(code(&shown) == 3 && stderr(&shown).contains("more than 32768 bytes"), "{}", stderr(&shown));
    let headers = Server::start(|mut stream| {
        request(&stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\n");
        while stream.write_all(b"x-more: and more\r\n").is_ok() {}
    });
    assert_eq!(code(&log(&["tail"], &headers.url(), &key)), 3);
    // One that says nothing, and one that says a byte at a time.
    let silent = Server::start(|stream| {
        request(&stream);
        std::io::copy(&mut &stream, &mut std::io::sink()).ok();
    });
    let shown = log(&["tail", "--timeout", "300ms"], &silent.url(), &key);
    assert!(code(&shown) == 3 && stderr(&shown).contains("timeout"), "{}", stderr(&shown));
    let slow = Server::start(move |mut stream| {
        request(&stream);
        let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n");
        for byte in note.iter().cycle() {
            if stream.write_all(&[*byte]).is_err() {
                return;
            }
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    });
    assert_eq!(code(&log(&["tail", "--timeout", "300ms"], &slow.url(), &key)), 3);
    // One that leads elsewhere, also to a place that has the log.
    let honest = Web::start(files.clone());
    let target = honest.url();
    let elsewhere = Server::start(move |mut stream| {
        let Some(asked) = request(&stream) else { return };
        let head = format!(
            "HTTP/1.1 302 Found\r\nlocation: {target}{}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n",
            asked.path
        );
        let _ = stream.write_all(head.as_bytes());
    });
    let shown = log(&["tail"], &elsewhere.url(), &key);
    assert!(code(&shown) == 3 && stderr(&shown).contains(&honest.url()), "{}", stderr(&shown));
    // One that is not well for a moment.
    let asked: Arc<AtomicU32> = Arc::default();
    let counted = asked.clone();
    let unwell = Server::start(move |stream| {
        let Some(asked) = request(&stream) else { return };
        if counted.fetch_add(1, Ordering::SeqCst).is_multiple_of(2) {
            return answer(&stream, "503 Service Unavailable", b"one moment \x1b[31m");
        }
        match files.get(asked.path.trim_start_matches('/')) {
            Some(file) => answer(&stream, "200 OK", file),
            None => answer(&stream, "404 Not Found", b""),
        }
    });
    let shown = log(&["tail"], &unwell.url(), &key);
    assert_eq!(code(&shown), 0, "{}", stderr(&shown));
    let ill = Server::start(|stream| {
        request(&stream);
        answer(&stream, "503 Service Unavailable", b"never \x1b[31mwell");
    });
    let shown = log(&["tail"], &ill.url(), &key);
    assert!(code(&shown) == 3 && stderr(&shown).contains("503") && !stderr(&shown).contains('\u{1b}'));
}

#[test]
fn an_export_goes_on_where_it_ended_and_only_in_the_same_log() {
    let (mut own, dir) = (TestLog::new(NAME, 7), tempfile::tempdir().unwrap());
    own.grow(300);
    let tiles = dir.path().join("log");
    own.write(&tiles);
    let (tiles, key) = (tiles.display().to_string(), own.verifier().to_string());
    let file = dir.path().join("out.jsonl");
    let shown = file.display().to_string();
    let export =
        |more: &[&str]| log(&[&["export", "--file", &shown, "-o", "json"], more].concat(), &tiles, &key);
    let first = json(&export(&["--from", "10", "--count", "100"]));
    assert_eq!((first["records"].as_u64(), first["next"].as_u64()), (Some(100), Some(110)));
    // What was written after the state was kept is written again.
    let mut appended = fs::OpenOptions::new().append(true).open(&file).unwrap();
    appended.write_all(b"{\"index\":110,\"rec").unwrap();
    assert_eq!(json(&export(&[]))["records"], 190);
    own.grow(400).write(std::path::Path::new(&tiles));
    assert_eq!(json(&export(&[]))["next"], 700);
    let lines = fs::read_to_string(&file).unwrap();
    let indexes: Vec<u64> = lines.lines().map(common::log::index).collect();
    assert_eq!(indexes, (10..700).collect::<Vec<u64>>());
    assert_eq!(json(&export(&[]))["records"], 0);

    // Lines that went missing are not passed over.
    fs::write(&file, lines.lines().next().unwrap()).unwrap();
    let cut = export(&[]);
    assert!(code(&cut) == 1 && stderr(&cut).contains("cut off"), "{}", stderr(&cut));
    fs::write(&file, &lines).unwrap();
    // Another history.
    let mut other = own.clone();
    other.entries[5] = common::log::svid(9_999, "x", "y", "z").into();
    fs::remove_dir_all(&tiles).unwrap();
    other.grow(5).write(std::path::Path::new(&tiles));
    let forked = export(&[]);
    assert!(code(&forked) == 1 && stderr(&forked).contains("two histories"), "{}", stderr(&forked));
    own.entries.truncate(600);
    fs::remove_dir_all(&tiles).unwrap();
    own.write(std::path::Path::new(&tiles));
    let back = export(&[]);
    assert!(code(&back) == 1 && stderr(&back).contains("rolled back"), "{}", stderr(&back));
    assert_eq!(fs::read_to_string(&file).unwrap(), lines, "nothing was written");
    // A file of somebody else's.
    let foreign = dir.path().join("foreign");
    fs::write(&foreign, "precious").unwrap();
    let refused = log(&["export", "--file", foreign.to_str().unwrap()], &tiles, &key);
    assert!(
        code(&refused) == 2 && fs::read_to_string(&foreign).unwrap() == "precious",
        "{}",
        stderr(&refused)
    );
}

#[test]
fn following_a_log_shows_what_comes_and_nothing_that_was_put_in_its_place() {
    let (mut own, dir) = (TestLog::new(NAME, 7), tempfile::tempdir().unwrap());
    own.grow(2).push(r#"{"v":1,"at":1,"kind":"svid","outcome":"refused","agent":"x","reason":"a\n       9  forged \u001b[31m"}"#);
    own.write(dir.path());
    let (place, key) = (dir.path().display().to_string(), own.verifier().to_string());
    let child = hallmark(&["log", "tail", "-f", "-n", "1", "--interval", "20ms", &place, "--key", &key])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut child = Running(child);
    let lines = lines(child.0.stdout.take().unwrap());
    let first = lines.recv_timeout(PATIENCE).unwrap();
    assert!(
        first.trim_start().starts_with("2  1970") && first.contains("forged") && !first.contains('\u{1b}'),
        "{first}"
    );
    own.grow(1).write(dir.path());
    assert!(lines.recv_timeout(PATIENCE).unwrap().trim_start().starts_with("3  "));
    own.entries[0] = br#"{"v":1,"kind":"svid","outcome":"refused"}"#.to_vec();
    own.grow(1).write(dir.path());
    assert!(lines.recv_timeout(PATIENCE).is_err());
    let mut said = String::new();
    child.0.stderr.take().unwrap().read_to_string(&mut said).unwrap();
    assert_eq!(child.0.wait().unwrap().code(), Some(1));
    assert!(said.contains("two histories"), "{said}");
}
