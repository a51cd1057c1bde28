//! Who is on the other end of a Unix socket, as the kernel knows it.
//!
//! Nothing here believes what a process says of itself. The chain of custody is:
//! 1. `SO_PEERCRED` and `SO_PEERPIDFD` name the process that called `connect(2)`; the pidfd holds on to
//!    that process even if its number is given to another (Linux 6.5; before it see [`Source::Reopened`]).
//! 2. `/proc/PID` is opened once as a directory, and only then is the pidfd found still alive: so that
//!    directory is that process's, and stays so, for procfs never follows a number to a successor.
//! 3. `/proc/PID/maps` is opened as the *image witness*: it holds the memory map of this image, not the
//!    process. After `execve` the old map is gone and a read yields nothing, even when the same
//!    program was executed again. A process that shares the map (`CLONE_VM`) keeps it alive past
//!    that; so the *layout* of the image that runs, which `execve` draws anew, and its file are noted
//!    too, and held against what the kernel says at each look.
//! 4. The selectors are read through that directory, and the process is found alive, with its image
//!    unreplaced, once more after the last of them.
//!
//! A child that inherits a connected socket counts as the process that connected it.
//!
//! **Tedious, not impossible:** a process of the same user may trace or inject code into an agent
//! (`ptrace`, `LD_PRELOAD`), and the digest of an interpreter says nothing of its script. Agents that
//! must not trust each other need users of their own, or units. An image that shares its map with a
//! child, and executes the same file with the addresses of the old layout (`PR_SET_MM_MAP`, or no
//! address randomisation), is not seen to have done so: it and its successor are at one, and could as
//! well have stayed and signed for each other.

mod cgroup;
mod image;
mod procfs;

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use hallmark_core::selector::{Selector, SelectorKind, SelectorSet};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

pub use image::ImageDigests;
pub use procfs::ProcError;

/// Why a caller could not be known. Each is a refusal: an agent half known is not known.
#[derive(Debug, thiserror::Error)]
pub enum ObserveError {
    /// SO_PEERCRED failed.
    #[error("SO_PEERCRED: {0}")]
    Credentials(nix::Error),
    /// The caller's pid has no number in the host daemon's pid namespace.
    #[error(
        "the caller is in a pid namespace that the host daemon does not see: run the host daemon in the host's pid namespace"
    )]
    OtherPidNamespace,
    /// The kernel gave no pidfd for the caller.
    #[error("no pidfd for process {pid}: {error}")]
    Pidfd {
        /// The caller's pid.
        pid: i32,
        /// What the kernel said.
        error: nix::Error,
    },
    /// The process is gone.
    #[error("process {pid} has ended")]
    Ended {
        /// Its pid.
        pid: i32,
    },
    /// The process that now has this pid is not the one that connected.
    #[error("process {pid} began at tick {began}, after the connection was accepted at {accepted}")]
    Recycled {
        /// The pid.
        pid: i32,
        /// Start of the process found, in ticks since boot.
        began: u64,
        /// When the connection was accepted, in ticks since boot.
        accepted: u64,
    },
    /// The process executed another image while it was looked at.
    #[error("process {pid} has replaced its image")]
    ImageReplaced {
        /// Its pid.
        pid: i32,
    },
    /// procfs did not yield what no caller can be known without.
    #[error("process {pid}: {error}")]
    Proc {
        /// Its pid.
        pid: i32,
        /// What was read, and what went wrong.
        error: ProcError,
    },
}

/// How the pidfd was come by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// From the socket itself (SO_PEERPIDFD): the process that connected, without doubt.
    Socket,
    /// Opened anew by number (before Linux 6.5), then held against the start time and the connection.
    ///
    /// The weaker form: where a process connected, passed the socket on, ended and was reaped, and its
    /// number was given out again before the connection was accepted, the successor is taken for it.
    Reopened,
}

/// One process, held so that neither a recycled pid nor `execve` can put another in its place.
#[derive(Debug)]
pub struct Process {
    pid: i32,
    uid: u32,
    gid: u32,
    start_time: u64,
    source: Source,
    pidfd: AsyncFd<OwnedFd>,
    witness: File,
    image: Image,
}

/// What `execve` replaces, as the kernel tells it of the process and not of a map that it once had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Image {
    layout: procfs::Layout,
    /// Device and inode of the running file.
    file: (u32, u32, u64),
}

impl Image {
    fn of(pid: i32) -> Result<Self, ProcError> {
        Ok(Self { layout: procfs::layout(pid)?, file: procfs::running_file(pid)? })
    }
}

/// A process for as long as it lives: equal for two connections of one process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ProcessKey {
    pid: i32,
    start_time: u64,
}

/// What was seen of a process.
#[derive(Debug, Clone, Default)]
pub struct Observation {
    /// Facts.
    pub selectors: SelectorSet,
    /// Facts that could not be read, and why; never guessed.
    pub unobserved: Vec<Unobserved>,
}

/// A fact that could not be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unobserved {
    /// Which kind.
    pub kind: SelectorKind,
    /// Why.
    pub why: String,
}

impl std::fmt::Display for Unobserved {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.kind.prefix().trim_end_matches(':'), self.why)
    }
}

/// Looks at the process that connected `socket`, which was just accepted. Blocks on procfs, the user
/// database and, the first time an image is seen, on reading it: call it where blocking is allowed,
/// within a tokio runtime.
///
/// # Errors
/// The caller cannot be known; see [`ObserveError`].
pub fn observe(socket: &impl AsFd, digests: &ImageDigests) -> Result<(Process, Observation), ObserveError> {
    let (held, directory) = hold(socket)?;
    let observation = collect(&held, &directory, digests);
    held.check()?;
    Ok((held, observation))
}

/// Steps 1 to 3 of the module's chain of custody.
fn hold(socket: &impl AsFd) -> Result<(Process, OwnedFd), ObserveError> {
    let accepted = procfs::ticks_since_boot();
    let peer = getsockopt(socket, sockopt::PeerCredentials).map_err(ObserveError::Credentials)?;
    let pid = peer.pid();
    if pid <= 0 {
        return Err(ObserveError::OtherPidNamespace);
    }
    let (pidfd, source) = match getsockopt(socket, sockopt::PeerPidfd) {
        Ok(pidfd) => (pidfd, Source::Socket),
        Err(nix::Error::ENOPROTOOPT) => (reopen(pid)?, Source::Reopened),
        // The kernel's words for a peer that was reaped already.
        Err(nix::Error::ESRCH | nix::Error::EINVAL | nix::Error::ENODATA) => {
            return Err(ObserveError::Ended { pid });
        }
        Err(error) => return Err(ObserveError::Pidfd { pid, error }),
    };
    let (process, directory) = adopt(pid, peer.uid(), peer.gid(), pidfd, source)?;
    if source == Source::Reopened {
        recheck(&process, socket, accepted)?;
    }
    Ok((process, directory))
}

fn reopen(pid: i32) -> Result<OwnedFd, ObserveError> {
    let raw = rustix::process::Pid::from_raw(pid).ok_or(ObserveError::OtherPidNamespace)?;
    rustix::process::pidfd_open(raw, rustix::process::PidfdFlags::empty()).map_err(|e| match e {
        rustix::io::Errno::SRCH | rustix::io::Errno::INVAL => ObserveError::Ended { pid },
        e => ObserveError::Pidfd { pid, error: nix::Error::from_raw(e.raw_os_error()) },
    })
}

/// What stands in for SO_PEERPIDFD where the kernel has none: the process found by number is older than
/// the connection, and the other end of the connection is still open.
fn recheck(process: &Process, socket: &impl AsFd, accepted: u64) -> Result<(), ObserveError> {
    let pid = process.pid;
    if process.start_time > accepted {
        return Err(ObserveError::Recycled { pid, began: process.start_time, accepted });
    }
    let hung_up = ready(socket, PollFlags::empty())
        .is_none_or(|found| found.intersects(PollFlags::POLLHUP | PollFlags::POLLERR));
    if hung_up { Err(ObserveError::Ended { pid }) } else { Ok(()) }
}

fn adopt(
    pid: i32,
    uid: u32,
    gid: u32,
    pidfd: OwnedFd,
    source: Source,
) -> Result<(Process, OwnedFd), ObserveError> {
    let wrong = |error| ObserveError::Proc { pid, error };
    let gone_or = |error: ProcError| {
        if has_ended(&pidfd) { ObserveError::Ended { pid } } else { wrong(error) }
    };
    let directory = procfs::directory(pid).map_err(gone_or)?;
    if has_ended(&pidfd) {
        return Err(ObserveError::Ended { pid });
    }
    let witness = procfs::open(&directory, "maps").map_err(gone_or)?;
    let start_time = procfs::start_time(&directory).map_err(gone_or)?;
    let image = Image::of(pid).map_err(gone_or)?;
    let pidfd = watched(pidfd).map_err(|error| wrong(ProcError::Read { what: "pidfd", error }))?;
    let process = Process { pid, uid, gid, start_time, source, pidfd, witness, image };
    process.check()?;
    Ok((process, directory))
}

/// Deprecated upstream for types whose descriptor may change while registered, in favour of an unsafe
/// function; an [`OwnedFd`] is one descriptor for life.
#[allow(deprecated)]
fn watched(pidfd: OwnedFd) -> std::io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(pidfd, Interest::READABLE)
}

impl Process {
    /// Its pid in the host daemon's namespace, for people.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Its effective user when it connected.
    pub fn uid(&self) -> u32 {
        self.uid
    }

    /// How surely it is the process that connected.
    pub fn source(&self) -> Source {
        self.source
    }

    /// What two connections of one process share. Only meaningful while the process lives, so
    /// [`Process::check`] both before comparing.
    pub fn key(&self) -> ProcessKey {
        ProcessKey { pid: self.pid, start_time: self.start_time }
    }

    /// Whether it still lives and still runs the image it was observed with.
    ///
    /// # Errors
    /// It has ended, or has replaced its image.
    pub fn check(&self) -> Result<(), ObserveError> {
        if has_ended(self.pidfd.get_ref()) {
            return Err(ObserveError::Ended { pid: self.pid });
        }
        // By number: found alive below, the process has had that number all along. A process that has
        // withdrawn itself from view (PR_SET_DUMPABLE, where the host daemon lacks CAP_SYS_PTRACE) is no
        // longer known to run what it ran.
        let same = self.shows_the_map() && Image::of(self.pid).is_ok_and(|image| image == self.image);
        if has_ended(self.pidfd.get_ref()) {
            return Err(ObserveError::Ended { pid: self.pid });
        }
        if same { Ok(()) } else { Err(ObserveError::ImageReplaced { pid: self.pid }) }
    }

    /// Whether the memory map that the process had when it was observed is still in use, by it or by
    /// whoever shares it. seq_file starts afresh at offset 0.
    fn shows_the_map(&self) -> bool {
        self.witness.read_at(&mut [0; 16], 0).is_ok_and(|n| n > 0)
    }

    /// Returns when the process has ended.
    pub async fn ended(&self) {
        while !has_ended(self.pidfd.get_ref()) {
            match self.pidfd.readable().await {
                Ok(mut guard) if !has_ended(self.pidfd.get_ref()) => guard.clear_ready(),
                _ => return,
            }
        }
    }
}

/// A pidfd is readable once the process has ended (pidfd_open(2)).
fn has_ended(pidfd: &impl AsFd) -> bool {
    ready(pidfd, PollFlags::POLLIN).is_none_or(|found| !found.is_empty())
}

fn ready(fd: &impl AsFd, wanted: PollFlags) -> Option<PollFlags> {
    loop {
        let mut fds = [PollFd::new(fd.as_fd(), wanted)];
        match poll(&mut fds, PollTimeout::ZERO) {
            Ok(_) => return Some(fds[0].revents().unwrap_or(PollFlags::empty())),
            Err(nix::Error::EINTR) => {}
            Err(_) => return None,
        }
    }
}

fn collect(process: &Process, directory: &OwnedFd, digests: &ImageDigests) -> Observation {
    let mut seen = Observation::default();
    seen.add(SelectorKind::UnixUid, process.uid.to_string());
    seen.add(SelectorKind::UnixGid, process.gid.to_string());
    match procfs::groups(directory) {
        Ok(groups) => {
            groups.iter().for_each(|gid| seen.add(SelectorKind::UnixSupplementaryGid, gid.to_string()))
        }
        Err(error) => seen.miss(SelectorKind::UnixSupplementaryGid, error),
    }
    match nix::unistd::User::from_uid(process.uid.into()) {
        Ok(Some(user)) => seen.add(SelectorKind::UnixUser, user.name),
        Ok(None) => seen.miss(SelectorKind::UnixUser, format!("uid {} has no name", process.uid)),
        Err(error) => seen.miss(SelectorKind::UnixUser, error),
    }
    image::collect(directory, digests, &mut seen);
    match procfs::cgroups(directory) {
        Ok(text) => cgroup::collect(&text, &mut seen),
        Err(error) => {
            for kind in [SelectorKind::CgroupPath, SelectorKind::SystemdUnit, SelectorKind::ContainerId] {
                seen.miss(kind, &error);
            }
        }
    }
    seen
}

impl Observation {
    fn add(&mut self, kind: SelectorKind, value: impl Into<String>) {
        match Selector::new(kind, value) {
            Ok(selector) => {
                self.selectors.insert(selector);
            }
            Err(error) => self.miss(kind, error),
        }
    }

    fn miss(&mut self, kind: SelectorKind, why: impl ToString) {
        self.unobserved.push(Unobserved { kind, why: why.to_string() });
    }
}

#[cfg(test)]
mod tests;
