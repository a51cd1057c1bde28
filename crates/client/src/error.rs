//! What can go wrong between an agent and its host daemon, each with what to do about it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tonic::{Code, Status};

use crate::identity::IdentityError;

/// Why the host daemon gave no identity or no signature. Every message ends with what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ClientError {
    /// There is no socket at the path.
    #[error(
        "no socket at {}: is hallmark-hostd running? Look at `systemctl status hallmark-hostd`; HALLMARK_AGENT_SOCKET names another path",
        path.display()
    )]
    SocketMissing {
        /// The path tried.
        path: PathBuf,
    },
    /// The socket's mode does not let this process in.
    #[error(
        "no permission for {}: this process's user must be in the socket's group (with the shipped units hallmark-agents: `usermod -aG hallmark-agents USER`, and start it again), and the directories above must let it through",
        path.display()
    )]
    SocketForbidden {
        /// The path tried.
        path: PathBuf,
    },
    /// The socket is there, and nobody listens.
    #[error(
        "nobody listens on {}: hallmark-hostd has ended; start it with `systemctl start hallmark-hostd`",
        path.display()
    )]
    NobodyListens {
        /// The path tried.
        path: PathBuf,
    },
    /// The socket could not be used for another reason.
    #[error("cannot use {}: {why}; look at `journalctl -u hallmark-hostd`", path.display())]
    Unreachable {
        /// The path tried.
        path: PathBuf,
        /// The system's words.
        why: String,
    },
    /// The host daemon knows this process and gives it nothing.
    #[error(
        "the host daemon refused: {reason}; run `hallmark whoami` as this process to see which registration matches it and what is missing"
    )]
    Refused {
        /// The daemon's words.
        reason: String,
    },
    /// The host daemon cannot serve yet: the host is not attested, or the issuer is away.
    #[error(
        "the host daemon cannot serve yet: {reason}; it tries again by itself, `hallmark doctor` says what it waits for"
    )]
    NotReady {
        /// The daemon's words.
        reason: String,
    },
    /// The host daemon bounds what one process, or all of them, may ask for at once.
    #[error("the host daemon is busy: {reason}; it is asked again")]
    Busy {
        /// The daemon's words.
        reason: String,
    },
    /// The host daemon answered with another error.
    #[error("the host daemon answered {code:?}: {reason}; look at `journalctl -u hallmark-hostd`")]
    Rpc {
        /// The gRPC status code.
        code: Code,
        /// The daemon's words.
        reason: String,
    },
    /// The stream of identities ended without an error: the daemon restarts or drains.
    #[error(
        "the host daemon closed the stream: it is restarting or draining; a new connection will be tried"
    )]
    StreamEnded,
    /// What the daemon sent is no identity.
    #[error(
        "the host daemon sent an identity that does not hold together: {0}; its version and this library's may differ"
    )]
    Identity(#[from] IdentityError),
    /// No identity arrived in time.
    #[error("no identity within {waited:?}{}", match last { Some(error) => format!(": {error}"), None => ": the host daemon has not answered".to_owned() })]
    TimedOut {
        /// How long was waited.
        waited: Duration,
        /// The last error on the way, if there was one.
        last: Option<Box<ClientError>>,
    },
    /// No signature arrived in time.
    #[error(
        "no signature within {waited:?}: the host's TPM or token is busy or gone; look at `hallmark doctor` on the host"
    )]
    SignTimedOut {
        /// How long was waited.
        waited: Duration,
    },
    /// This process asks for more signatures at once than are queued.
    #[error(
        "more than {limit} signatures of this process are waiting: reuse connections rather than opening one per request"
    )]
    SignQueueFull {
        /// The length of the queue.
        limit: usize,
    },
    /// The background thread of the identity source could not be started, or is gone.
    #[error("the identity's background thread is not running: {why}")]
    Thread {
        /// The system's words.
        why: String,
    },
}

impl ClientError {
    /// Whether the host daemon was not reached at all.
    pub fn is_unreachable(&self) -> bool {
        match self {
            Self::SocketMissing { .. }
            | Self::SocketForbidden { .. }
            | Self::NobodyListens { .. }
            | Self::Unreachable { .. }
            | Self::Thread { .. } => true,
            Self::TimedOut { last, .. } => last.as_ref().is_none_or(|e| e.is_unreachable()),
            _ => false,
        }
    }

    /// Whether the daemon has taken the identity away, rather than being away itself.
    pub(crate) fn withdraws(&self) -> bool {
        matches!(self, Self::Refused { .. })
    }

    pub(crate) fn from_io(path: &Path, error: &io::Error) -> Self {
        let path = path.to_owned();
        match error.kind() {
            io::ErrorKind::NotFound => Self::SocketMissing { path },
            io::ErrorKind::PermissionDenied => Self::SocketForbidden { path },
            io::ErrorKind::ConnectionRefused => Self::NobodyListens { path },
            _ => Self::Unreachable { path, why: error.to_string() },
        }
    }

    pub(crate) fn from_status(path: &Path, status: &Status) -> Self {
        if let Some(error) = io_cause(status) {
            return Self::from_io(path, error);
        }
        let reason = if status.message().is_empty() {
            "no reason given".to_owned()
        } else {
            status.message().trim_end_matches('.').to_owned()
        };
        match status.code() {
            // What waiting does not mend: nothing matches, or several registrations do and none is named.
            Code::PermissionDenied | Code::Unauthenticated | Code::NotFound | Code::FailedPrecondition => {
                Self::Refused { reason }
            }
            Code::Unavailable => Self::NotReady { reason },
            Code::ResourceExhausted => Self::Busy { reason },
            code => Self::Rpc { code, reason },
        }
    }
}

/// The system error at the bottom of an error's causes, if one is there.
pub(crate) fn io_cause<'a>(error: &'a (dyn std::error::Error + 'static)) -> Option<&'a io::Error> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io);
        }
        cause = error.source();
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_names_its_remedy() {
        let path = Path::new("/run/x.sock");
        let says = |kind| ClientError::from_io(path, &io::Error::from(kind)).to_string();
        assert!(says(io::ErrorKind::NotFound).contains("is hallmark-hostd running?"));
        assert!(says(io::ErrorKind::PermissionDenied).contains("usermod -aG hallmark-agents"));
        assert!(says(io::ErrorKind::ConnectionRefused).contains("start it"));
        let refused = ClientError::from_status(path, &Status::permission_denied("nothing matches."));
        assert!(refused.to_string().contains("nothing matches; run `hallmark whoami`"));
        assert!(refused.withdraws() && !refused.is_unreachable());
        assert!(!ClientError::from_status(path, &Status::unavailable("x")).withdraws());
        let busy = ClientError::from_status(path, &Status::resource_exhausted("x"));
        assert!(matches!(busy, ClientError::Busy { .. }) && !busy.withdraws());
    }

    #[test]
    fn a_timeout_says_what_it_waited_for() {
        let last = ClientError::SocketMissing { path: "/x".into() };
        let error = ClientError::TimedOut { waited: Duration::from_secs(1), last: Some(Box::new(last)) };
        assert!(error.to_string().contains("no socket at /x"));
        assert!(error.is_unreachable());
    }
}
