//! The connection to the issuer's admin socket.

use std::io;
use std::path::Path;

use hallmark_proto::admin::admin_client::AdminClient;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Code, Status};

use crate::failure::Failure;

/// Largest answer accepted: a large trust domain's list of hosts or agents.
const MAX_ANSWER: usize = 256 << 20;

/// Connects to the admin socket.
pub(crate) async fn connect(socket: &Path) -> Result<AdminClient<Channel>, Failure> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let path = path.clone();
        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    // The authority is a formality of HTTP/2: a Unix socket has none.
    let channel = Endpoint::from_static("http://issuer.local")
        .connect_with_connector(connector)
        .await
        .map_err(|error| unreachable(socket, &error))?;
    Ok(AdminClient::new(channel).max_decoding_message_size(MAX_ANSWER))
}

fn unreachable(socket: &Path, error: &(dyn std::error::Error + 'static)) -> Failure {
    let at = socket.display();
    let (what, remedy) = match io_kind(error) {
        Some(io::ErrorKind::NotFound) => (
            format!("no admin socket at {at}"),
            "run this on the issuer's machine; is it up? `systemctl status hallmark-issuer`. Another path: --admin-socket or HALLMARK_ADMIN_SOCKET",
        ),
        Some(io::ErrorKind::PermissionDenied) => {
            (format!("no permission for {at}"), "run this as root or as a member of the group hallmark-admin")
        }
        Some(io::ErrorKind::ConnectionRefused) => (
            format!("nobody listens on {at}"),
            "the issuer has ended: `systemctl start hallmark-issuer`, and see `journalctl -u hallmark-issuer`",
        ),
        _ => (format!("cannot use {at}: {error}"), "see `journalctl -u hallmark-issuer`"),
    };
    Failure::unreachable(what).remedy(remedy)
}

fn io_kind(error: &(dyn std::error::Error + 'static)) -> Option<io::ErrorKind> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io.kind());
        }
        cause = error.source();
    }
    None
}

/// What an answer's status means to an operator.
pub(crate) fn failed(status: Status) -> Failure {
    let message = match status.message() {
        "" => format!("the issuer answered {:?} and gave no reason", status.code()),
        message => message.trim_end_matches('.').to_owned(),
    };
    match status.code() {
        Code::PermissionDenied | Code::Unauthenticated => Failure::refused(message)
            .remedy("run this as root or as a user whom the issuer's [admin] section lists"),
        Code::NotFound => Failure { code: "not-found", ..Failure::refused(message) },
        Code::InvalidArgument => Failure { code: "invalid", ..Failure::refused(message) },
        Code::Unavailable if io_kind(&status).is_some() => {
            Failure::unreachable(message).remedy("the issuer went away: `systemctl status hallmark-issuer`")
        }
        Code::Unimplemented => Failure::refused(message)
            .remedy("the issuer is of another version than this command: compare `hallmark --version` and `hallmark status`"),
        _ => Failure::refused(message).remedy("see `journalctl -u hallmark-issuer`"),
    }
}
