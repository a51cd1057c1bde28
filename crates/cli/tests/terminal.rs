//! Colours: on a terminal, and nowhere else.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::process::Stdio;

use common::{FakeIssuer, hallmark};

/// What `hallmark status` writes to a terminal.
fn on_a_terminal(issuer: &FakeIssuer, environment: &[(&str, &str)]) -> String {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let controller = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).unwrap();
    grantpt(&controller).unwrap();
    unlockpt(&controller).unwrap();
    let name = ptsname(&controller, Vec::new()).unwrap();
    let path = std::ffi::OsStr::from_bytes(name.to_bytes());
    let terminal = || Stdio::from(OpenOptions::new().read(true).write(true).open(path).unwrap());
    let mut child = hallmark(&["status"])
        .env("HALLMARK_ADMIN_SOCKET", issuer.socket())
        .env("TERM", "xterm")
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(terminal())
        .stderr(terminal())
        .spawn()
        .unwrap();
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
