//! Agents' commands as processes, against a fake host daemon.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod common;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use common::{FakeIssuer, code, hallmark, json, set_mode, stderr, stdout};
use hallmark_core::tier::{Custody, Tier};
use hallmark_kit::agents::{Agents, Issued, Wanted};
use hallmark_kit::fake_hostd::{FakeHostd, Says};
use hallmark_kit::pki::{TestDomain, unix_now};
use hallmark_proto::agent::{HostState, Match, WhoAmIResponse};
use tonic::Status;

fn domain() -> TestDomain {
    TestDomain::new("example.org", false, unix_now() - 3_600).unwrap()
}

/// A daemon that serves one agent.
fn serving(domain: &TestDomain, wanted: Wanted) -> (FakeHostd, Issued) {
    let hostd = FakeHostd::start().unwrap();
    let issued = domain.issue(wanted).unwrap();
    let handle = (issued.wanted().custody != Custody::Software).then_some(&b"handle"[..]);
    hostd.serve(domain.serve(&issued, handle));
    (hostd, issued)
}

fn command(hostd: &FakeHostd, args: &[&str]) -> Command {
    let mut command = hallmark(args);
    command.env("HALLMARK_AGENT_SOCKET", hostd.socket());
    command
}

fn run(hostd: &FakeHostd, args: &[&str]) -> Output {
    command(hostd, args).output().unwrap()
}

/// A directory on tmpfs; none where there is no such file system.
fn memory() -> Option<tempfile::TempDir> {
    tempfile::Builder::new().prefix("hallmark-test-").tempdir_in("/dev/shm").ok()
}

fn mode(path: &Path) -> u32 {
    fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn whoami_tells_what_matches_and_what_is_missing() {
    let hostd = FakeHostd::start().unwrap();
    let of = |agent: &str, matches, missing: &[&str]| Match {
        agent: agent.into(),
        tier: "enterprise".into(),
        custody: "software".into(),
        matches,
        missing: missing.iter().map(ToString::to_string).collect(),
    };
    let answer = |matches| WhoAmIResponse {
        host_id: "web-01".into(),
        trust_domain: "example.org".into(),
        pid: 4_711,
        selectors: vec!["unix:uid:1001".into()],
        unobserved: vec!["systemd: not running".into()],
        matches: vec![of("other", false, &["unix:uid:0"]), of("mailer", matches, &[])],
        host: Some(HostState { attested: true, highest_tier: "advanced".into(), ..HostState::default() }),
    };
    hostd.who_am_i(answer(true));
    let output = run(&hostd, &["whoami"]);
    assert_eq!(code(&output), 0);
    let shown = stdout(&output);
    for part in ["unix:uid:1001", "not observed: systemd", "mailer", "unix:uid:0", "4711"] {
        assert!(shown.contains(part), "{part}: {shown}");
    }
    let json = json(&run(&hostd, &["whoami", "-o", "json"]));
    assert_eq!(
        (&json["matches"][0]["missing"][0], &json["host"]["highest_tier"]),
        (&"unix:uid:0".into(), &"advanced".into())
    );
    hostd.who_am_i(answer(false));
    let output = run(&hostd, &["whoami"]);
    assert_eq!(code(&output), 1);
    assert!(stdout(&output).contains("no registration matches"));
}

#[test]
fn an_absent_daemon_is_exit_code_three() {
    let output = hallmark(&["whoami"]).output().unwrap();
    assert_eq!(code(&output), 3);
    assert!(stderr(&output).contains("is hallmark-hostd running?"), "{}", stderr(&output));
    assert_eq!(code(&hallmark(&["exec", "--", "true"]).output().unwrap()), 3);
}

#[test]
fn fetch_writes_no_key_unless_it_is_asked_to() {
    let domain = domain();
    let (hostd, issued) = serving(&domain, Wanted::new("mailer", Tier::Enterprise));
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("id");
    let output = run(&hostd, &["fetch", dir.to_str().unwrap(), "-o", "json"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    let answer = json(&output);
    assert_eq!((&answer["key_written"], &answer["tier"]), (&false.into(), &"enterprise".into()));
    assert!(!dir.join("key.pem").exists());
    assert_eq!((mode(&dir), mode(&dir.join("chain.pem"))), (0o700, 0o644));
    let chain = pem::parse_many(fs::read(dir.join("chain.pem")).unwrap()).unwrap();
    assert_eq!(chain.iter().map(pem::Pem::contents).collect::<Vec<_>>(), issued.chain);
    for (file, roots) in [("bundle.pem", 3), ("tier-enterprise.pem", 1), ("at-least-enterprise.pem", 2)] {
        assert_eq!(fs::read_to_string(dir.join(file)).unwrap().matches("BEGIN").count(), roots, "{file}");
    }
}

#[test]
fn a_key_goes_to_memory_that_nobody_else_enters() {
    let domain = domain();
    let (hostd, issued) = serving(&domain, Wanted::new("mailer", Tier::Foundation));
    let Some(memory) = memory() else { return println!("skipped: no tmpfs at /dev/shm") };
    let dir = memory.path().join("id");
    let path = dir.to_str().unwrap();
    let output = run(&hostd, &["fetch", path, "--with-key"]);
    assert_eq!(code(&output), 0, "{}", stderr(&output));
    assert!(stderr(&output).contains("the private key leaves memory"), "{}", stderr(&output));
    assert_eq!(mode(&dir.join("key.pem")), 0o600);
    let key = pem::parse(fs::read(dir.join("key.pem")).unwrap()).unwrap();
    assert_eq!((key.tag(), key.contents()), ("PRIVATE KEY", &issued.pkcs8[..]));
    assert!(!stdout(&output).contains("BEGIN") && !stderr(&output).contains("BEGIN"));

    set_mode(&dir, 0o750);
    let open = run(&hostd, &["fetch", path, "--with-key"]);
    assert_eq!(code(&open), 1);
    assert!(stderr(&open).contains("open to others"), "{}", stderr(&open));
}

#[test]
fn no_private_key_on_disk() {
    let domain = domain();
    let (hostd, _) = serving(&domain, Wanted::new("mailer", Tier::Foundation));
    // The build directory: a disk on any machine that is not all memory.
    let parent = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let file_system = rustix::fs::statfs(parent.path()).unwrap().f_type;
    if file_system as u64 == 0x0102_1994 {
        return println!("skipped: the build directory is on tmpfs");
    }
    let dir = parent.path().join("id");
    let args = ["fetch", dir.to_str().unwrap(), "--with-key"];
    let refused = run(&hostd, &args);
    assert_eq!(code(&refused), 1);
    assert!(stderr(&refused).contains("no private key on disk"), "{}", stderr(&refused));
    assert!(!dir.join("key.pem").exists());
    let overruled = run(&hostd, &[&args[..], &["--key-on-disk"]].concat());
    assert_eq!(code(&overruled), 0, "{}", stderr(&overruled));
    assert!(dir.join("key.pem").exists());
}

#[test]
fn a_key_in_hardware_has_no_file() {
    let domain = domain();
    let (hostd, _) = serving(&domain, Wanted::new("mailer", Tier::Advanced));
    let Some(memory) = memory() else { return println!("skipped: no tmpfs at /dev/shm") };
    let dir = memory.path().join("id");
    let output = run(&hostd, &["fetch", dir.to_str().unwrap(), "--with-key"]);
    assert_eq!(code(&output), 0);
    assert!(!dir.join("key.pem").exists());
    assert!(stderr(&output).contains("held in hardware (tpm-certified)"), "{}", stderr(&output));
}

#[test]
fn a_refusal_says_to_ask_whoami() {
    let hostd = FakeHostd::start().unwrap();
    hostd.say(Says::Status(Status::permission_denied("no registration matches")));
    let parent = tempfile::tempdir().unwrap();
    for args in [&["fetch", parent.path().join("id").to_str().unwrap()][..], &["exec", "--", "true"]] {
        let output = run(&hostd, args);
        assert_eq!(code(&output), 1, "{args:?}");
        assert!(stderr(&output).contains("run `hallmark whoami`"), "{}", stderr(&output));
    }
}

/// A command that goes on running; killed with the value.
struct Running {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
}

impl Running {
    fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, lines }
    }

    /// The next line that holds `part`.
    fn line(&mut self, part: &str) -> String {
        self.lines.by_ref().map(Result::unwrap).find(|line| line.contains(part)).expect("the line comes")
    }

    fn signal(&self, signal: rustix::process::Signal) {
        let pid = rustix::process::Pid::from_raw(self.child.id().cast_signed()).unwrap();
        rustix::process::kill_process(pid, signal).unwrap();
    }

    fn code(&mut self) -> i32 {
        self.child.wait().unwrap().code().expect("it was not killed")
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn fetch_keeps_the_files_fresh() {
    let domain = domain();
    let (hostd, _) = serving(&domain, Wanted::new("mailer", Tier::Foundation));
    let parent = tempfile::tempdir().unwrap();
    let dir = parent.path().join("id");
    let mut fetch = Running::start(command(&hostd, &["fetch", dir.to_str().unwrap(), "--watch"]));
    fetch.line("private key");
    let renewed = domain.issue(Wanted::new("mailer", Tier::Foundation)).unwrap();
    hostd.serve(domain.serve(&renewed, None));
    fetch.line("private key");
    let chain = pem::parse_many(fs::read(dir.join("chain.pem")).unwrap()).unwrap();
    assert_eq!(chain[0].contents(), renewed.chain[0]);
    fetch.signal(rustix::process::Signal::TERM);
    assert_eq!(fetch.code(), 0);
}

#[test]
fn exec_gives_the_program_an_identity_and_takes_it_back() {
    let domain = domain();
    let (hostd, issued) = serving(&domain, Wanted::new("mailer", Tier::Foundation));
    let script = "cat $HALLMARK_KEY_FILE $HALLMARK_CHAIN_FILE; echo; echo dir=$(dirname $HALLMARK_KEY_FILE); \
        echo mode=$(stat -c %a $(dirname $HALLMARK_KEY_FILE)); echo id=$HALLMARK_SPIFFE_ID tier=$HALLMARK_TIER; \
        test -S $HALLMARK_AGENT_SOCKET && exit 7";
    let output = run(&hostd, &["exec", "--", "sh", "-c", script]);
    assert_eq!(code(&output), 7, "the program's own exit code: {}", stderr(&output));
    let said = stdout(&output);
    let blocks = pem::parse_many(&said).unwrap();
    assert_eq!(blocks[0].contents(), issued.pkcs8);
    assert_eq!(blocks[1].contents(), issued.chain[0]);
    for part in ["mode=700", "id=spiffe://example.org/agent/mailer tier=foundation"] {
        assert!(said.contains(part), "{part}: {}", said.rsplit("-----").next().unwrap());
    }
    let dir = said.lines().find_map(|line| line.strip_prefix("dir=")).unwrap();
    assert!(!Path::new(dir).exists(), "{dir} is gone");
}

#[test]
fn exec_without_a_key() {
    let domain = domain();
    let (software, _) = serving(&domain, Wanted::new("mailer", Tier::Foundation));
    let (hardware, _) = serving(&domain, Wanted::new("mailer", Tier::Advanced));
    let script =
        "test -z \"$HALLMARK_KEY_FILE\" && test -s $HALLMARK_BUNDLE_FILE && test -s $HALLMARK_CHAIN_FILE";
    assert_eq!(code(&run(&software, &["exec", "--no-key", "--", "sh", "-c", script])), 0);
    let output = run(&hardware, &["exec", "--", "sh", "-c", script]);
    assert_eq!(code(&output), 0);
    assert!(stderr(&output).contains("signs through HALLMARK_AGENT_SOCKET"), "{}", stderr(&output));
    let alone = "test -S $HALLMARK_AGENT_SOCKET && test -z \"$HALLMARK_CHAIN_FILE\"";
    assert_eq!(code(&run(&software, &["exec", "--socket-only", "--", "sh", "-c", alone])), 0);
}

#[test]
fn exec_renews_under_the_program_and_hands_signals_on() {
    let domain = domain();
    let (hostd, _) = serving(&domain, Wanted::new("mailer", Tier::Foundation));
    let script = "trap 'echo renewed $(sha256sum < $HALLMARK_CHAIN_FILE)' HUP; trap 'exit 9' TERM; \
        echo ready $(sha256sum < $HALLMARK_CHAIN_FILE); while :; do sleep 0.02; done";
    let mut exec =
        Running::start(command(&hostd, &["exec", "--renew-signal", "HUP", "--", "sh", "-c", script]));
    let before = exec.line("ready").replace("ready", "");
    let renewed = domain.issue(Wanted::new("mailer", Tier::Foundation)).unwrap();
    hostd.serve(domain.serve(&renewed, None));
    let after = exec.line("renewed").replace("renewed", "");
    assert_ne!(before, after, "the chain changed before the signal came");
    exec.signal(rustix::process::Signal::TERM);
    assert_eq!(exec.code(), 9);
}

#[test]
fn exec_ends_the_program_when_its_identity_is_withdrawn() {
    let domain = domain();
    let (hostd, _) = serving(&domain, Wanted::new("mailer", Tier::Foundation));
    let script = "trap 'test -e $HALLMARK_KEY_FILE || echo gone; exit 5' TERM; echo ready; while :; do sleep 0.02; done";
    let mut exec = Running::start(command(&hostd, &["exec", "--", "sh", "-c", script]));
    exec.line("ready");
    hostd.say(Says::Status(Status::permission_denied("revoked by an operator")));
    exec.line("gone");
    assert_eq!(exec.code(), 5);
    // One that will not go is killed.
    hostd.serve(domain.serve(&domain.issue(Wanted::new("mailer", Tier::Foundation)).unwrap(), None));
    let stubborn = "trap '' TERM; echo ready; while :; do sleep 0.02; done";
    let mut exec = Running::start(command(&hostd, &["exec", "--grace", "50ms", "--", "sh", "-c", stubborn]));
    exec.line("ready");
    hostd.say(Says::Status(Status::permission_denied("revoked by an operator")));
    assert_eq!(exec.code(), 128 + 9);
}

#[test]
fn exec_tells_of_a_program_that_cannot_be_run() {
    let domain = domain();
    let (hostd, _) = serving(&domain, Wanted::new("mailer", Tier::Foundation));
    assert_eq!(code(&run(&hostd, &["exec", "--", "/no/such/program"])), 127);
    assert_eq!(code(&run(&hostd, &["exec", "--", "/etc/passwd"])), 126);
    assert_eq!(code(&run(&hostd, &["exec"])), 2);
}

/// Files of a chain and of a trust domain's roots.
fn files(dir: &Path, domain: &TestDomain, issued: &Issued) -> (PathBuf, PathBuf) {
    let (chain, bundle) = (dir.join("chain.pem"), dir.join("bundle"));
    let text: String =
        issued.chain.iter().map(|der| pem::encode(&pem::Pem::new("CERTIFICATE", der.clone()))).collect();
    fs::write(&chain, text).unwrap();
    fs::create_dir_all(&bundle).unwrap();
    for tier in Tier::ALL {
        let root = domain.root(hallmark_core::tier::Hierarchy::Tier(tier)).to_vec();
        fs::write(bundle.join(format!("tier-{tier}.pem")), pem::encode(&pem::Pem::new("CERTIFICATE", root)))
            .unwrap();
    }
    (chain, bundle)
}

fn verify(args: &[&str]) -> (i32, serde_json::Value) {
    let output = hallmark(&[&["verify", "-o", "json"], args].concat()).output().unwrap();
    assert!(stderr(&output).is_empty(), "{}", stderr(&output));
    (code(&output), json(&output))
}

#[test]
fn verify_says_who_and_at_which_tier() {
    let domain = domain();
    let dir = tempfile::tempdir().unwrap();
    let issued = domain.issue(Wanted::new("mailer", Tier::Enterprise)).unwrap();
    let (chain, bundle) = files(dir.path(), &domain, &issued);
    let base = [chain.to_str().unwrap(), "--bundle", bundle.to_str().unwrap()];
    let with = |more: &[&str]| verify(&[&base[..], more].concat());
    let (exit, verdict) = with(&["--min-tier", "enterprise"]);
    assert_eq!((exit, &verdict["accepted"]), (0, &true.into()));
    assert_eq!(
        (&verdict["spiffe_id"], &verdict["tier"], &verdict["custody"], &verdict["simulated"]),
        (
            &"spiffe://example.org/agent/mailer".into(),
            &"enterprise".into(),
            &"software".into(),
            &false.into()
        )
    );
    assert_eq!(verdict["serial"].as_str(), Some(issued.serial.to_string().as_str()));
    assert_eq!(verdict["owner_id"].as_str(), Some("0e".repeat(16).as_str()));

    let (exit, verdict) = with(&["--min-tier", "advanced"]);
    assert_eq!(exit, 1);
    assert!(verdict["reason"].as_str().unwrap().contains("at least advanced is demanded"), "{verdict}");
    assert_eq!(verdict["tier"], "enterprise", "it is told who was refused");
    let later = format!("@{}", issued.not_after + 1);
    assert!(with(&["--at", &later]).1["reason"].as_str().unwrap().contains("ended at"));
    assert_eq!(with(&["--spiffe-id", "spiffe://example.org/agent/other"]).0, 1);
    assert_eq!(with(&["--spiffe-id", "spiffe://example.org/agent/mailer"]).0, 0);

    let elsewhere = dir.path().join("elsewhere");
    fs::create_dir(&elsewhere).unwrap();
    // Roots of another domain of the same name, or no root of the tier at all.
    let (_, foreign) = files(&elsewhere, &self::domain(), &issued);
    assert_eq!(verify(&[base[0], "--bundle", foreign.to_str().unwrap()]).0, 1);
    let single = format!("foundation={}/tier-foundation.pem", bundle.display());
    assert_eq!(verify(&[base[0], "--bundle", &single]).0, 1);
}

#[test]
fn verify_warns_of_simulated_hardware() {
    let domain = TestDomain::lab("example.org").unwrap();
    let dir = tempfile::tempdir().unwrap();
    let issued = domain.issue(Wanted::new("mailer", Tier::Advanced).custody(Custody::Simulated)).unwrap();
    let (chain, bundle) = files(dir.path(), &domain, &issued);
    let args = [chain.to_str().unwrap(), "--bundle", bundle.to_str().unwrap()];
    let (exit, verdict) = verify(&args);
    assert_eq!((exit, &verdict["simulated"]), (1, &true.into()));
    let output = hallmark(&[&["verify", "--accept-simulated"], &args[..]].concat()).output().unwrap();
    assert_eq!(code(&output), 0);
    assert!(stdout(&output).contains("proves no hardware"), "{}", stdout(&output));
}

#[test]
fn verify_finds_the_roots_of_this_machine() {
    let issuer = FakeIssuer::start();
    let dir = tempfile::tempdir().unwrap();
    let issued = issuer.domain.issue(Wanted::new("mailer", Tier::Foundation)).unwrap();
    let (chain, _) = files(dir.path(), &issuer.domain, &issued);
    let chain = chain.to_str().unwrap();
    let by_issuer = issuer.run(&["verify", chain]);
    assert_eq!(code(&by_issuer), 0, "{}{}", stdout(&by_issuer), stderr(&by_issuer));
    let (hostd, _) = serving(&issuer.domain, Wanted::new("other", Tier::Foundation));
    assert_eq!(code(&run(&hostd, &["verify", chain])), 0);
    let nowhere = hallmark(&["verify", chain]).output().unwrap();
    assert_eq!(code(&nowhere), 3);
    assert!(stderr(&nowhere).contains("--bundle"));
}

#[test]
fn verify_refuses_what_is_no_certificate() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("x");
    fs::write(&path, "nothing").unwrap();
    let args = ["verify", path.to_str().unwrap(), "--bundle", "/nonexistent"];
    assert_eq!(code(&hallmark(&args).output().unwrap()), 2);
    fs::write(&path, pem::encode(&pem::Pem::new("CERTIFICATE", vec![1, 2, 3]))).unwrap();
    assert_eq!(code(&hallmark(&args).output().unwrap()), 2, "and the bundle is empty");
}
