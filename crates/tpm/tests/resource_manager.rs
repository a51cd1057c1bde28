//! Behind a resource manager, as on most hosts: two programs share one TPM, and handles are virtual. The kernel's needs a
//! device; this is the user-space one, tpm2-abrmd, on a D-Bus of the test's own.

#![allow(clippy::unwrap_used)]

mod common;

use common::{Rig, sha256, verify};
use hallmark_tpm::{HOST, KeySpec, Tpm, TpmConfig};
use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

struct Ended(Child);

impl Drop for Ended {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn installed(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

#[test]
fn two_programs_share_a_tpm_behind_tpm2_abrmd() {
    if !installed("tpm2-abrmd") || !installed("dbus-daemon") {
        println!("skipped: tpm2-abrmd or dbus-daemon is not installed");
        return;
    }
    let rig = Rig::new();
    let mut bus = Command::new("dbus-daemon");
    bus.args(["--session", "--nofork", "--print-address"]).stdout(Stdio::piped());
    let mut bus = Ended(spawn(&mut bus));
    let mut address = String::new();
    BufReader::new(bus.0.stdout.take().unwrap()).read_line(&mut address).unwrap();
    let address = address.trim();
    let mut abrmd = Command::new("tpm2-abrmd");
    abrmd.args(["--session", "--allow-root", "--tcti", &rig.swtpm.tcti()]);
    let _abrmd = Ended(spawn(abrmd.env("DBUS_SESSION_BUS_ADDRESS", address)));
    // The library finds the bus by the environment, which a process should not change once it runs: hence another one.
    let inner = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "inner", "--ignored", "--nocapture"])
        .env("DBUS_SESSION_BUS_ADDRESS", address)
        .status()
        .unwrap();
    assert!(inner.success());
}

fn spawn(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

#[tokio::test]
#[ignore = "run by the test above, on a bus of its own"]
async fn inner() {
    let deadline = Instant::now() + Duration::from_secs(60);
    let first = loop {
        match Tpm::open(TpmConfig::new("tabrmd:bus_type=session")).await {
            Ok(tpm) => break tpm,
            Err(error) => assert!(Instant::now() < deadline, "{error}"),
        }
    };
    let second = Tpm::open(TpmConfig::new("tabrmd:bus_type=session")).await.unwrap();
    assert_eq!(first.identity().await.unwrap(), second.identity().await.unwrap());
    let spec = KeySpec { policy_pcrs: vec![7] };
    for _ in 0..10 {
        let (one, two) = tokio::join!(
            first.certified_key(&spec, [1; 32], HOST),
            second.certified_key(&spec, [2; 32], HOST)
        );
        let ((one, _), (two, _)) = (one.unwrap(), two.unwrap());
        // Wrapped by one TPM, so each can use the other's: what one program may do in a TPM, so may another.
        let (by_two, by_one) =
            tokio::join!(second.sign(&one, sha256(b"m"), 1), first.sign(&two, sha256(b"m"), 1));
        verify(&one, b"m", &by_two.unwrap());
        verify(&two, b"m", &by_one.unwrap());
    }
    for tpm in [first, second] {
        let health = tpm.health().await.unwrap();
        assert_eq!(0, health.reopened, "neither got in the other's way");
    }
}
