//! How far a program got with a log, in a file: written whole or not at all, by one program at a time.
//!
//! It holds the log's own signed checkpoint. A source that does not go on from it shows another history, and the file
//! is half of the proof.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use hallmark_core::log::{Checkpoint, LogVerifier, Reader, open_checkpoint};
use rustix::fs::{FlockOperation, flock};
use serde::{Deserialize, Serialize};

use crate::failure::Failure;

const VERSION: u32 = 1;

/// How far it is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    version: u32,
    /// The log's name.
    log: String,
    /// Index of the first record that is not done yet.
    pub(super) next: u64,
    /// The checkpoint that the log was last seen at, as it was signed.
    checkpoint: String,
    /// Bytes in the file beside this one, for an export.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) bytes: Option<u64>,
    /// When the newest record seen was made, in seconds since 1970, for a monitor.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) newest: Option<i64>,
}

impl Position {
    /// At a checkpoint, with everything before `next` done.
    pub(super) fn new(log: &LogVerifier, reader: &Reader, next: u64) -> Self {
        let checkpoint = String::from_utf8_lossy(reader.note()).into_owned();
        Self { version: VERSION, log: log.name().to_string(), next, checkpoint, bytes: None, newest: None }
    }

    /// With the bytes of the file beside it.
    pub(super) fn with_bytes(self, bytes: u64) -> Self {
        Self { bytes: Some(bytes), ..self }
    }

    /// With the time of the newest record.
    pub(super) fn with_newest(self, newest: Option<i64>) -> Self {
        Self { newest, ..self }
    }

    /// The signed checkpoint, as it was served.
    pub(super) fn note(&self) -> &str {
        &self.checkpoint
    }
}

/// The file, and the lock on it.
#[derive(Debug)]
pub(super) struct Kept {
    path: PathBuf,
    _lock: File,
}

impl Kept {
    /// Takes the file for this process.
    pub(super) fn open(path: &Path) -> Result<Self, Failure> {
        let failed = |error: io::Error| Failure::usage(format!("cannot use {}: {error}", path.display()));
        let lock = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(beside(path, ".lock"))
            .map_err(|error| failed(error).remedy("its directory must exist and be writable"))?;
        match flock(&lock, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Self { path: path.to_owned(), _lock: lock }),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                Err(Failure::refused(format!("another program is at work with {}", path.display()))
                    .remedy("one at a time; give the second a file of its own"))
            }
            Err(error) => Err(failed(error.into())),
        }
    }

    /// What it holds of this log, and the checkpoint in it; none if it is not there yet.
    pub(super) fn read(&self, key: &LogVerifier) -> Result<Option<(Position, Checkpoint)>, Failure> {
        let shown = self.path.display();
        let text = match fs::read(&self.path) {
            Ok(text) => text,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Failure::usage(format!("cannot read {shown}: {error}"))),
        };
        let remedy = "it is written by this command alone. If it is lost, move it away and begin anew; what it knew of the log's history is lost with it";
        let broken = |why: &dyn std::fmt::Display| Failure::refused(format!("{shown}: {why}")).remedy(remedy);
        let position: Position = serde_json::from_slice(&text).map_err(|error| broken(&error))?;
        if position.version != VERSION {
            return Err(broken(&format!("version {}; this program writes {VERSION}", position.version)));
        }
        if position.log != key.name().as_str() {
            return Err(Failure::refused(format!(
                "{shown} is of the log {}, not of {}",
                position.log,
                key.name()
            ))
            .remedy("give each log a file of its own"));
        }
        let checkpoint =
            open_checkpoint(position.checkpoint.as_bytes(), key).map_err(|error| broken(&error))?;
        if position.next > checkpoint.size {
            return Err(broken(&"it is further than its own checkpoint"));
        }
        Ok(Some((position, checkpoint)))
    }

    /// Writes it anew: on disk before this returns.
    pub(super) fn write(&self, position: &Position) -> Result<(), Failure> {
        let write = || -> io::Result<()> {
            let temporary = beside(&self.path, ".new");
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&temporary)?;
            serde_json::to_writer(&mut file, position)?;
            file.write_all(b"\n")?;
            file.sync_all()?;
            fs::rename(&temporary, &self.path)?;
            let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
            File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
        };
        write().map_err(|error| Failure::refused(format!("cannot write {}: {error}", self.path.display())))
    }
}

/// A file's path with something at its end.
pub(super) fn beside(path: &Path, end: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(end);
    name.into()
}
