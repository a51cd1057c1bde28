//! Reading `/proc/PID` through one directory handle, in bounded amounts.

use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags, openat};

/// Most bytes read of one procfs file. `status` and `stat` are smaller by far; `cgroup` has one line for
/// each hierarchy, each path at most 4096 bytes.
const MAX_FILE: u64 = 128 * 1024;

/// Ticks per second in procfs (`USER_HZ`): 100 on every Linux architecture that Rust supports.
const TICKS_PER_SECOND: f64 = 100.0;

/// What went wrong while reading procfs.
#[derive(Debug, thiserror::Error)]
pub enum ProcError {
    /// The kernel refused.
    #[error("{what}: {error}{}", remedy(.error))]
    Read {
        /// The file.
        what: &'static str,
        /// The kernel's word.
        error: io::Error,
    },
    /// The file is not of the form proc(5) gives.
    #[error("{what} has not the form of proc(5)")]
    Form {
        /// The file.
        what: &'static str,
    },
}

fn remedy(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => {
            " (the host daemon needs CAP_SYS_PTRACE and CAP_DAC_READ_SEARCH to look at other users' processes)"
        }
        _ => "",
    }
}

pub(super) fn directory(pid: i32) -> Result<OwnedFd, ProcError> {
    openat(CWD, format!("/proc/{pid}"), OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
        .map_err(|e| ProcError::Read { what: "/proc/PID", error: e.into() })
}

pub(super) fn open(directory: &impl AsFd, what: &'static str) -> Result<File, ProcError> {
    openat(directory, what, OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK, Mode::empty())
        .map(File::from)
        .map_err(|e| ProcError::Read { what, error: e.into() })
}

fn text(directory: &impl AsFd, what: &'static str) -> Result<String, ProcError> {
    bounded(open(directory, what)?, what)
}

fn bounded(file: File, what: &'static str) -> Result<String, ProcError> {
    let mut bytes = Vec::new();
    file.take(MAX_FILE).read_to_end(&mut bytes).map_err(|error| ProcError::Read { what, error })?;
    if bytes.len() as u64 == MAX_FILE {
        return Err(ProcError::Form { what });
    }
    // A command name or a control group may hold any bytes.
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// Start of the process in ticks since boot: field 22 of `stat` (proc(5)).
pub(super) fn start_time(directory: &impl AsFd) -> Result<u64, ProcError> {
    parse_start_time(&text(directory, "stat")?).ok_or(ProcError::Form { what: "stat" })
}

fn parse_start_time(stat: &str) -> Option<u64> {
    // The command name, in parentheses, may itself hold spaces and parentheses.
    let (_, after_name) = stat.rsplit_once(')')?;
    after_name.split_ascii_whitespace().nth(19)?.parse().ok()
}

/// Where the kernel put the parts of an image when it was executed: fields 26 to 28 and 45 to 47 of
/// `stat` (proc(5)). Each is drawn anew by `execve`. Not the arguments and the environment, which
/// programs move to set a title (`PR_SET_MM`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Layout([u64; 6]);

/// The present layout of the process that has this number.
pub(super) fn layout(pid: i32) -> Result<Layout, ProcError> {
    let file = File::open(format!("/proc/{pid}/stat"));
    let file = file.map_err(|error| ProcError::Read { what: "stat", error })?;
    parse_layout(&bounded(file, "stat")?).ok_or(ProcError::Form { what: "stat" })
}

/// Zeros are what the kernel shows to whoever may not see the layout.
fn parse_layout(stat: &str) -> Option<Layout> {
    let (_, after_name) = stat.rsplit_once(')')?;
    let fields: Vec<&str> = after_name.split_ascii_whitespace().collect();
    let mut layout = [0; 6];
    // The first field after the name is number 3.
    for (place, number) in layout.iter_mut().zip([26, 27, 28, 45, 46, 47]) {
        *place = fields.get(number - 3)?.parse().ok()?;
    }
    (layout[2] != 0).then_some(Layout(layout))
}

/// Device (major, minor) and inode of the file that the process with this number runs, as the kernel holds
/// them: a file system that never answers (FUSE, also below an overlay) is not asked.
pub(super) fn running_file(pid: i32) -> Result<(u32, u32, u64), ProcError> {
    let path = format!("/proc/{pid}/exe");
    let found = rustix::fs::statx(CWD, path, AtFlags::STATX_DONT_SYNC, StatxFlags::INO)
        .map_err(|e| ProcError::Read { what: "exe", error: e.into() })?;
    Ok((found.stx_dev_major, found.stx_dev_minor, found.stx_ino))
}

/// The supplementary groups.
pub(super) fn groups(directory: &impl AsFd) -> Result<Vec<u32>, ProcError> {
    parse_groups(&text(directory, "status")?).ok_or(ProcError::Form { what: "status" })
}

fn parse_groups(status: &str) -> Option<Vec<u32>> {
    // The first line is `Name:`, with newlines in the name escaped: no other line can be forged by it.
    let line = status.lines().find_map(|l| l.strip_prefix("Groups:"))?;
    line.split_ascii_whitespace().map(|gid| gid.parse().ok()).collect()
}

/// `/proc/PID/cgroup`, whole.
pub(super) fn cgroups(directory: &impl AsFd) -> Result<String, ProcError> {
    text(directory, "cgroup")
}

/// Now, on the clock of [`start_time`]. The end of time where it cannot be read: then the check
/// against it passes, and the others must carry.
pub(super) fn ticks_since_boot() -> u64 {
    let uptime = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    let seconds: Option<f64> = uptime.split_ascii_whitespace().next().and_then(|s| s.parse().ok());
    seconds.map_or(u64::MAX, |s| (s * TICKS_PER_SECOND).ceil() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_cannot_forge_the_start_time() {
        let rest = "S 1 1 1 0 -1 4194560 1 0 0 0 0 0 0 0 20 0 1 0 4711 1 1";
        assert_eq!(parse_start_time(&format!("7 (a) b) {rest}")), Some(4711));
        assert_eq!(parse_start_time(&format!("7 (x) S 9 9 9) {rest}")), Some(4711));
        assert_eq!(parse_start_time("7 (x) S 1"), None);
        assert_eq!(parse_start_time(""), None);
    }

    #[test]
    fn the_layout_is_read_or_refused() {
        let numbers: Vec<String> = (4..=52).map(|n| n.to_string()).collect();
        let line = format!("7 (a) b) S {}", numbers.join(" "));
        assert_eq!(parse_layout(&line), Some(Layout([26, 27, 28, 45, 46, 47])));
        assert_eq!(parse_layout(&line.replace(" 28 ", " 0 ")), None, "hidden from us");
        assert_eq!(parse_layout(&line[..line.len() - 20]), None);
    }

    #[test]
    fn groups_are_read_or_refused() {
        assert_eq!(parse_groups("Name:\tx\nGroups:\t4 24 \n"), Some(vec![4, 24]));
        assert_eq!(parse_groups("Name:\tx\nGroups:\t \n"), Some(vec![]));
        assert_eq!(parse_groups("Name:\tGroups: 0\n"), None);
        assert_eq!(parse_groups("Groups:\t4 x\n"), None);
    }

    #[test]
    fn our_own_start_lies_before_now() {
        let me = directory(std::process::id() as i32).unwrap();
        assert!(start_time(&me).unwrap() <= ticks_since_boot());
    }
}
