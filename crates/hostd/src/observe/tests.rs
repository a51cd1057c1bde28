//! Real processes on real sockets.

use std::io::Write;
use std::os::unix::net::{UnixListener, UnixStream};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use super::*;
use aws_lc_rs::digest::SHA256;

/// A script's interpreter that connects to a socket and then does as it is told on stdin.
struct Agent {
    child: Child,
}

impl Agent {
    /// Connects to `socket`, then runs `then` (Python, with `s` the socket) at the first line on stdin.
    fn start(command: &mut Command, socket: &Path, then: &str) -> Self {
        let script = format!(
            "import os,socket,sys\ns=socket.socket(socket.AF_UNIX);s.connect({:?})\nos.set_inheritable(s.fileno(),True)\nsys.stdin.readline()\n{then}\nsys.stdin.readline()\n",
            socket.to_str().unwrap()
        );
        let child = command.arg("-c").arg(script).stdin(Stdio::piped()).spawn().unwrap();
        Self { child }
    }

    fn go(&mut self) {
        self.child.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

struct Bench {
    _dir: tempfile::TempDir,
    path: std::path::PathBuf,
    listener: UnixListener,
    digests: ImageDigests,
}

impl Bench {
    fn new() -> Self {
        use std::os::unix::fs::PermissionsExt;
        let dir = tempfile::tempdir().unwrap();
        std::fs::set_permissions(dir.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o666)).unwrap();
        Self { _dir: dir, path, listener, digests: ImageDigests::new(16, 1 << 30) }
    }

    fn accept(&self) -> UnixStream {
        self.listener.accept().unwrap().0
    }

    fn observe(&self) -> Result<(Process, Observation, UnixStream), ObserveError> {
        let stream = self.accept();
        observe(&stream, &self.digests).map(|(process, seen)| (process, seen, stream))
    }
}

fn has(seen: &Observation, selector: &str) -> bool {
    seen.selectors.contains(&selector.parse().unwrap())
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

async fn until(mut done: impl FnMut() -> bool) {
    for _ in 0..2000 {
        if done() {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    panic!("it did not come to pass");
}

#[tokio::test]
async fn a_process_is_known_by_the_kernel() {
    let bench = Bench::new();
    let agent = Agent::start(&mut Command::new("python3"), &bench.path, "pass");
    let (process, seen, _stream) = bench.observe().unwrap();
    assert_eq!(process.pid() as u32, agent.child.id());
    assert_eq!(process.source(), Source::Socket);
    let exe = std::fs::canonicalize(format!("/proc/{}/exe", process.pid())).unwrap();
    let image = std::fs::read(&exe).unwrap();
    let digest = aws_lc_rs::digest::digest(&SHA256, &image);
    assert!(has(&seen, &format!("unix:uid:{}", nix::unistd::geteuid())));
    assert!(has(&seen, &format!("unix:gid:{}", nix::unistd::getegid())));
    assert!(has(&seen, &format!("exe:path:{}", exe.display())), "{seen:?}");
    assert!(has(&seen, &format!("exe:sha256:{}", hex::encode(digest))), "{seen:?}");
    process.check().unwrap();
}

#[tokio::test]
async fn the_end_of_a_process_is_seen() {
    let bench = Bench::new();
    let agent = Agent::start(&mut Command::new("python3"), &bench.path, "pass");
    let (process, ..) = bench.observe().unwrap();
    drop(agent);
    process.ended().await;
    assert!(matches!(process.check(), Err(ObserveError::Ended { .. })));
}

#[tokio::test]
async fn exec_is_seen_even_of_the_same_program() {
    let bench = Bench::new();
    for then in [
        "os.execv('/bin/sleep',['sleep','60'])",
        "os.execv(sys.executable,[sys.executable,'-c','import sys;sys.stdin.readline()'])",
    ] {
        let mut agent = Agent::start(&mut Command::new("python3"), &bench.path, then);
        let (process, ..) = bench.observe().unwrap();
        process.check().unwrap();
        agent.go();
        until(|| process.check().is_err()).await;
        assert!(matches!(process.check(), Err(ObserveError::ImageReplaced { .. })), "{then}");
        assert!(agent.child.try_wait().unwrap().is_none(), "the process itself lives on");
    }
}

/// A child that shares the memory map (CLONE_VM) keeps it alive past its parent's exec.
#[tokio::test]
async fn exec_is_seen_past_a_child_that_keeps_the_old_map_alive() {
    const SHARE: &str = "import ctypes
c=ctypes.CDLL(None,use_errno=True)
stack=ctypes.create_string_buffer(65536)
top=(ctypes.addressof(stack)+65536)&~15
CLONE_VM,SIGCHLD=0x100,17
child=c.clone(ctypes.cast(c.sleep,ctypes.c_void_p),ctypes.c_void_p(top),CLONE_VM|SIGCHLD,ctypes.c_void_p(60))
s.send(child.to_bytes(4,'little',signed=True))
sys.stdin.readline()
";
    let bench = Bench::new();
    for then in [
        "os.execv('/bin/sleep',['sleep','60'])",
        "os.execv(sys.executable,[sys.executable,'-c','import sys;sys.stdin.readline()'])",
    ] {
        let mut agent = Agent::start(&mut Command::new("python3"), &bench.path, &format!("{SHARE}{then}"));
        let (process, _, mut stream) = bench.observe().unwrap();
        agent.go();
        let mut pid = [0; 4];
        std::io::Read::read_exact(&mut stream, &mut pid).unwrap();
        let child = rustix::process::Pid::from_raw(i32::from_le_bytes(pid)).unwrap();
        process.check().unwrap();
        agent.go();
        until(|| process.check().is_err()).await;
        let (found, map_lives) = (process.check(), process.shows_the_map());
        let _ = rustix::process::kill_process(child, rustix::process::Signal::KILL);
        assert!(matches!(found, Err(ObserveError::ImageReplaced { .. })), "{then}: {found:?}");
        assert!(map_lives, "the child keeps the map, so that the map alone would not have told");
        assert!(agent.child.try_wait().unwrap().is_none(), "the process itself lives on");
    }
}

/// One program that runs another in its place: the file tells, even where the layout is the same.
#[tokio::test]
async fn another_file_under_the_same_layout_is_another_image() {
    let bench = Bench::new();
    let _agent = Agent::start(&mut Command::new("python3"), &bench.path, "pass");
    let (mut process, ..) = bench.observe().unwrap();
    process.check().unwrap();
    process.image.file.1 += 1;
    assert!(matches!(process.check(), Err(ObserveError::ImageReplaced { .. })));
}

#[tokio::test]
async fn a_fork_alone_changes_nothing() {
    let bench = Bench::new();
    let then = "p=os.fork()\nif p==0: os.execv('/bin/true',['true'])\nos.waitpid(p,0)\ns.send(b'x')";
    let mut agent = Agent::start(&mut Command::new("python3"), &bench.path, then);
    let (process, _, mut stream) = bench.observe().unwrap();
    agent.go();
    std::io::Read::read_exact(&mut stream, &mut [0]).unwrap();
    process.check().unwrap();
}

#[tokio::test]
async fn another_users_process_has_that_users_selectors() {
    if !is_root() {
        eprintln!("skipped: not root, cannot run a process as another user");
        return;
    }
    let bench = Bench::new();
    let mut command = Command::new("python3");
    command.uid(65534).gid(65534).current_dir("/");
    let _agent = Agent::start(&mut command, &bench.path, "pass");
    let (process, seen, _stream) = bench.observe().unwrap();
    assert_eq!(process.uid(), 65534);
    assert!(has(&seen, "unix:uid:65534") && has(&seen, "unix:gid:65534") && has(&seen, "unix:user:nobody"));
    assert!(!has(&seen, "unix:uid:0"));
}

#[tokio::test]
async fn a_path_that_leads_elsewhere_is_not_reported() {
    let bench = Bench::new();
    let copy = bench.path.with_file_name("python");
    std::fs::copy(std::fs::canonicalize("/usr/bin/python3").unwrap(), &copy).unwrap();
    let mut agent = Agent::start(&mut Command::new(&copy), &bench.path, "pass");
    let (_, seen, _stream) = bench.observe().unwrap();
    assert!(has(&seen, &format!("exe:path:{}", copy.display())));
    // The running file is renamed away, and an other file takes its name.
    std::fs::rename(&copy, copy.with_extension("old")).unwrap();
    std::fs::write(&copy, b"#!/bin/sh\n").unwrap();
    let directory = procfs::directory(agent.child.id() as i32).unwrap();
    let mut seen = Observation::default();
    std::fs::remove_file(copy.with_extension("old")).unwrap();
    image::collect(&directory, &bench.digests, &mut seen);
    assert!(seen.unobserved.iter().any(|u| u.kind == SelectorKind::ExePath), "{seen:?}");
    assert!(seen.selectors.iter().any(|s| s.kind() == SelectorKind::ExeSha256), "the digest is of the inode");
    agent.go();
}

/// A process connects, hands the socket to its child and ends: nobody is there to be known.
#[tokio::test]
async fn a_process_that_ended_before_the_look_is_refused() {
    let bench = Bench::new();
    let then = "if os.fork()!=0: os._exit(0)";
    let mut agent = Agent::start(&mut Command::new("python3"), &bench.path, then);
    agent.go();
    agent.child.wait().unwrap();
    let stream = bench.accept();
    let refusal = observe(&stream, &bench.digests).unwrap_err();
    assert!(matches!(refusal, ObserveError::Ended { .. }), "{refusal}");
}

/// The same, and the number is given to another user's process before anyone looks.
#[tokio::test]
async fn a_recycled_pid_is_refused() {
    if !is_root() {
        eprintln!("skipped: not root, cannot give out a pid again");
        return;
    }
    let bench = Bench::new();
    let mut agent = Agent::start(&mut Command::new("python3"), &bench.path, "if os.fork()!=0: os._exit(0)");
    let pid = agent.child.id() as i32;
    agent.go();
    agent.child.wait().unwrap();
    let Some(_successor) = successor(pid) else {
        eprintln!("skipped: the pid {pid} could not be had again");
        return;
    };
    let stream = bench.accept();
    let refusal = observe(&stream, &bench.digests).unwrap_err();
    assert!(matches!(refusal, ObserveError::Ended { .. }), "{refusal}");
}

/// Where the kernel has no SO_PEERPIDFD, the start time tells a successor from the process that connected.
#[tokio::test]
async fn the_fallback_refuses_a_process_younger_than_the_connection() {
    let bench = Bench::new();
    let _agent = Agent::start(&mut Command::new("python3"), &bench.path, "pass");
    let stream = bench.accept();
    let pid = getsockopt(&stream, sockopt::PeerCredentials).unwrap().pid();
    let (process, _) = adopt(pid, 0, 0, reopen(pid).unwrap(), Source::Reopened).unwrap();
    recheck(&process, &stream, process.start_time).unwrap();
    let refusal = recheck(&process, &stream, process.start_time - 1).unwrap_err();
    assert!(matches!(refusal, ObserveError::Recycled { .. }), "{refusal}");
}

#[tokio::test]
async fn the_fallback_refuses_a_connection_whose_other_end_is_closed() {
    let bench = Bench::new();
    let mut agent = Agent::start(&mut Command::new("python3"), &bench.path, "s.close()");
    let stream = bench.accept();
    let pid = agent.child.id() as i32;
    let (process, _) = adopt(pid, 0, 0, reopen(pid).unwrap(), Source::Reopened).unwrap();
    recheck(&process, &stream, u64::MAX).unwrap();
    agent.go();
    until(|| recheck(&process, &stream, u64::MAX).is_err()).await;
}

#[tokio::test]
async fn the_fallback_does_not_open_a_process_that_is_gone() {
    let mut child = Command::new("true").spawn().unwrap();
    let pid = child.id() as i32;
    child.wait().unwrap();
    assert!(matches!(reopen(pid), Err(ObserveError::Ended { .. })));
}

/// A process with exactly this pid, run as nobody.
fn successor(pid: i32) -> Option<Agent> {
    for _ in 0..50 {
        std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).ok()?;
        let child = Command::new("sleep").arg("60").uid(65534).stdin(Stdio::piped()).spawn().unwrap();
        let agent = Agent { child };
        if agent.child.id() as i32 == pid {
            return Some(agent);
        }
    }
    None
}
