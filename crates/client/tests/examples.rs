//! The examples as programs, each with a fake host daemon of its own.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use hallmark_client::Tier;
use hallmark_kit::agents::{Agents, Wanted};
use hallmark_kit::fake_hostd::FakeHostd;
use hallmark_kit::pki::{TestDomain, unix_now as now};

/// A running example and the lines it writes; killed with the value.
struct Server {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Server {
    fn start(name: &str, hostd: &FakeHostd, args: &[&str]) -> (Self, String) {
        let mut child = example(name, hostd)
            .args(["--listen", "127.0.0.1:0"])
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut server = Self { child, lines };
        let listening = server.line("listening ");
        let address = listening.trim_start_matches("listening ").to_owned();
        (server, address)
    }

    /// The next line that begins so.
    fn line(&mut self, begins: &str) -> String {
        self.lines.by_ref().map(Result::unwrap).find(|line| line.starts_with(begins)).expect("the line comes")
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn example(name: &str, hostd: &FakeHostd) -> Command {
    // target/debug/deps/this-test, and target/debug/examples/NAME beside it.
    let path: PathBuf = std::env::current_exe().unwrap().parent().unwrap().join("../examples").join(name);
    let mut command = Command::new(path);
    command.arg("--socket").arg(hostd.socket());
    command
}

fn hostd(domain: &TestDomain, agent: &str, tier: Tier) -> FakeHostd {
    let hostd = FakeHostd::start().unwrap();
    let issued = domain.issue(Wanted::new(agent, tier)).unwrap();
    if tier == Tier::Advanced {
        hostd.hold_key(b"key", &issued.pkcs8);
        hostd.serve(domain.serve(&issued, Some(b"key")));
    } else {
        hostd.serve(domain.serve(&issued, None));
    }
    hostd
}

fn call(hostd: &FakeHostd, address: &str) -> Output {
    example("echo_client", hostd).args(["--connect", address, "good day"]).output().unwrap()
}

#[test]
fn agents_echo() {
    let domain = TestDomain::new("example.org", false, now() - 3_600).unwrap();
    let (caller, callee) =
        (hostd(&domain, "caller", Tier::Advanced), hostd(&domain, "callee", Tier::Foundation));
    let (mut server, address) = Server::start("echo_server", &callee, &["--min-tier", "enterprise"]);
    let output = call(&caller, &address);
    let said = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{said} {}", String::from_utf8_lossy(&output.stderr));
    assert!(said.contains("peer spiffe://example.org/agent/callee foundation software"), "{said}");
    assert!(said.contains("echo good day"), "{said}");
    assert_eq!(server.line("accepted"), "accepted spiffe://example.org/agent/caller advanced tpm-certified");
}

#[test]
fn the_relying_party_says_whom_it_refuses_and_why() {
    let domain = TestDomain::new("example.org", false, now() - 3_600).unwrap();
    let own = hostd(&domain, "gate", Tier::Foundation);
    let (mut gate, address) = Server::start("relying_party", &own, &["--min-tier", "enterprise"]);
    let low = hostd(&domain, "low", Tier::Foundation);
    assert!(!call(&low, &address).status.success());
    let refused = gate.line("refused");
    assert!(
        refused.contains("agent/low is of tier foundation, and at least enterprise is demanded"),
        "{refused}"
    );
    let high = hostd(&domain, "high", Tier::Enterprise);
    let output = call(&high, &address);
    assert!(output.status.success());
    assert!(String::from_utf8(output.stdout).unwrap().contains("welcome spiffe://example.org/agent/high"));
    let accepted = gate.line("accepted");
    assert!(accepted.contains("/high tier=enterprise custody=software serial="), "{accepted}");
}
