//! The admin socket file: made with its mode from the first moment, and never over another's.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;

use tokio::net::UnixListener;

use super::group_id;
use crate::config::AdminConfig;

/// Binds the socket. A socket file left by an issuer that is gone is removed; one that answers is not.
///
/// # Errors
/// Another process listens there, the path holds something that is no socket, or permissions are lacking.
pub fn bind(config: &AdminConfig) -> io::Result<UnixListener> {
    let path = &config.socket;
    let named = |e: io::Error| io::Error::new(e.kind(), format!("admin.socket {}: {e}", path.display()));
    remove_stale(path).map_err(named)?;
    // The umask makes the file reachable for its owner alone until mode and group are set.
    let old = rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o177));
    let listener = UnixListener::bind(path);
    rustix::process::umask(old);
    let listener = listener.map_err(named)?;
    if let Some(group) = &config.group {
        let gid = group_id(group)
            .ok_or_else(|| named(io::Error::other(format!("no group {group:?} on this machine"))))?;
        std::os::unix::fs::chown(path, None, Some(gid)).map_err(named)?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(config.mode)).map_err(named)?;
    Ok(listener)
}

fn remove_stale(path: &Path) -> io::Result<()> {
    match std::fs::symlink_metadata(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(e) => Err(e),
        Ok(meta) if !meta.file_type().is_socket() => Err(io::Error::other("is there and is not a socket")),
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there")),
            Err(_) => std::fs::remove_file(path),
        },
    }
}
