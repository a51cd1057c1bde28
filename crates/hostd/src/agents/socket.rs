//! The socket file: its mode, its group, and what was left over by a daemon before.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};

use tokio::net::UnixListener;

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum SocketError {
    /// The socket could not be made.
    #[error("{path}: {what}: {error}")]
    Socket {
        /// Its path.
        path: PathBuf,
        /// What was tried.
        what: &'static str,
        /// What the system said.
        error: io::Error,
    },
    /// Another daemon listens there.
    #[error("{path}: another process is listening on this socket; is the daemon running already?")]
    InUse {
        /// Its path.
        path: PathBuf,
    },
}

/// A bound socket; its file is removed when it is dropped.
#[derive(Debug)]
pub struct Socket {
    pub(super) listener: UnixListener,
    path: PathBuf,
}

impl Socket {
    /// Binds `path` with this mode and, if given, group. A socket left over by a daemon that is gone is
    /// replaced; one that is answered is not.
    ///
    /// # Errors
    /// See [`SocketError`].
    pub fn bind(path: &Path, mode: u32, group: Option<u32>) -> Result<Self, SocketError> {
        let wrong = |what| move |error| SocketError::Socket { path: path.to_owned(), what, error };
        if std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
            if std::os::unix::net::UnixStream::connect(path).is_ok() {
                return Err(SocketError::InUse { path: path.to_owned() });
            }
            std::fs::remove_file(path).map_err(wrong("remove the old socket"))?;
        }
        // Bound in a directory of our own making, and shown only with its final mode and group: there is no
        // moment at which the wrong ones may connect. The name is short: a socket's path has 107 bytes.
        let parent = path.parent().unwrap_or(Path::new("/"));
        let hidden = parent.join(format!(".{:08x}", rand::random::<u32>()));
        std::fs::create_dir(&hidden).map_err(wrong("make a directory beside it"))?;
        let bound = Self::bind_within(&hidden, path, mode, group);
        drop(std::fs::remove_dir_all(&hidden));
        let listener = bound.map_err(|(what, error)| wrong(what)(error))?;
        Ok(Self { listener, path: path.to_owned() })
    }

    fn bind_within(
        hidden: &Path,
        path: &Path,
        mode: u32,
        group: Option<u32>,
    ) -> Result<UnixListener, (&'static str, io::Error)> {
        let step = |what| move |error| (what, error);
        let set_mode =
            |path: &Path, mode| std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode));
        set_mode(hidden, 0o700).map_err(step("set the mode of the directory beside it"))?;
        let draft = hidden.join("s");
        let listener = UnixListener::bind(&draft).map_err(step("bind"))?;
        // Not asked for, not called: the unit denies the system call.
        if group.is_some() {
            std::os::unix::fs::chown(&draft, None, group).map_err(step("set the group"))?;
        }
        set_mode(&draft, mode).map_err(step("set the mode"))?;
        std::fs::rename(&draft, path).map_err(step("put it in place"))?;
        Ok(listener)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        drop(std::fs::remove_file(&self.path));
    }
}
