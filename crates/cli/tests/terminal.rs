//! Colours: on a terminal, and nowhere else.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::process::{Command, Stdio};

use common::{FakeIssuer, hallmark};

/// What `hallmark status` writes to a terminal.
fn on_a_terminal(issuer: &FakeIssuer, environment: &[(&str, &str)]) -> String {
    let mut command = hallmark(&["status"]);
    shown(
        command
            .env("HALLMARK_ADMIN_SOCKET", issuer.socket())
            .env("TERM", "xterm")
            .envs(environment.iter().copied()),
    )
}

/// What a command writes to a terminal.
fn shown(command: &mut Command) -> String {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&controller).unwrap();
    unlockpt(&controller).unwrap();
    let name = ptsname(&controller, Vec::new()).unwrap();
    let path = std::ffi::OsStr::from_bytes(name.to_bytes());
    let terminal = || Stdio::from(OpenOptions::new().read(true).write(true).open(path).unwrap());
    let mut child = command.stdin(Stdio::null()).stdout(terminal()).stderr(terminal()).spawn().unwrap();
    // The command itself holds the terminal's other end open until it is given another.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut controller = File::from(controller);
    let mut seen = Vec::new();
    let mut buffer = [0; 4096];
    // Reading ends with EIO once the last holder of the terminal has closed it.
    while let Ok(count @ 1..) = controller.read(&mut buffer) {
        seen.extend_from_slice(&buffer[..count]);
    }
    assert!(child.wait().unwrap().success());
    String::from_utf8(seen).unwrap()
}

#[test]
fn a_terminal_gets_colours_unless_it_declines() {
    let issuer = FakeIssuer::start();
    assert!(on_a_terminal(&issuer, &[]).contains("\u{1b}["));
    assert!(!on_a_terminal(&issuer, &[("NO_COLOR", "1")]).contains("\u{1b}["));
    assert!(!on_a_terminal(&issuer, &[("TERM", "dumb")]).contains("\u{1b}["));
    let piped = issuer.run(&["status"]);
    assert!(!common::stdout(&piped).contains('\u{1b}'));
}

#[test]
fn what_takes_long_shows_how_far_it_is() {
    let mut log = common::log::TestLog::new("example.org/log/issuer-1", 7);
    log.grow(600);
    let dir = tempfile::tempdir().unwrap();
    log.write(dir.path());
    let (place, key) = (dir.path().display().to_string(), log.verifier().to_string());
    let verify = ["log", "verify", &place, "--key", &key];
    let seen = shown(hallmark(&verify).env("TERM", "xterm"));
    assert!(seen.contains("entries verified") && seen.contains("of 600"), "{seen}");
    let seen = shown(hallmark(&[&verify[..], &["-o", "json"]].concat()).env("TERM", "xterm"));
    assert!(!seen.contains("entries verified"), "programs get none: {seen}");
}
