//! The server: `GET /metrics` over HTTP/1.1, one request a connection, and bounds on everything.
//!
//! Any user of this machine may reach it. A reader can cost the daemon a page a second and eight
//! connections, for five seconds each; and can keep no other reader away, since the oldest connection makes
//! room.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use http::header::{ACCEPT, ALLOW, CACHE_CONTROL, CONTENT_TYPE};
use http::{HeaderValue, Method, Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::encoding::{prometheus_text, text};
use prometheus_client::registry::Registry;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::task::AbortHandle;

use crate::endpoint::Endpoint;

/// Connections at once; one more ends the oldest.
const MAX_CONNECTIONS: usize = 8;
/// How long a connection may last, from its being accepted to its end.
const LIFE: Duration = Duration::from_secs(5);
/// A page that is younger is given out again.
const FRESH: Duration = Duration::from_millis(500);
/// Largest head of a request; hyper takes no less for its buffer.
const MAX_HEAD: usize = 8 * 1024;
/// What OpenMetrics calls itself (OpenMetrics 1.0, section "Text format").
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";
/// The older text format.
const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Why metrics cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The address is taken, or may not be bound.
    #[error("metrics.listen {address}: {error}")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system said.
        error: io::Error,
    },
    /// The socket cannot be made.
    #[error("metrics.socket {path}: {error}")]
    Socket {
        /// Its path.
        path: PathBuf,
        /// What the system said.
        error: io::Error,
    },
    /// The group is none of this machine's.
    #[error("metrics.group: there is no group {0:?} on this machine")]
    Group(String),
}

/// A server that is bound; see [`Served::run`]. A socket's file goes when it is dropped.
#[derive(Debug)]
pub struct Served {
    listener: Listener,
    pages: Arc<Pages>,
}

#[derive(Debug)]
enum Listener {
    Tcp(TcpListener),
    Unix(UnixListener, PathBuf),
}

impl Served {
    /// Binds `endpoint`; what is shown is `registry`.
    ///
    /// # Errors
    /// See [`ServeError`].
    pub fn bind(endpoint: &Endpoint, registry: Registry) -> Result<Self, ServeError> {
        let listener = match endpoint {
            Endpoint::Tcp(address) => {
                let wrong = |error| ServeError::Listen { address: *address, error };
                let listener = std::net::TcpListener::bind(address).map_err(wrong)?;
                listener.set_nonblocking(true).map_err(wrong)?;
                Listener::Tcp(TcpListener::from_std(listener).map_err(wrong)?)
            }
            Endpoint::Unix { path, mode, group } => {
                let group = group.as_deref().map(group_id).transpose()?;
                let wrong = |error| ServeError::Socket { path: path.clone(), error };
                Listener::Unix(bind_socket(path, *mode, group).map_err(wrong)?, path.clone())
            }
        };
        Ok(Self { listener, pages: Arc::new(Pages { registry, shown: Mutex::default() }) })
    }

    /// Serves until the task is dropped.
    pub async fn run(self) {
        let mut open: VecDeque<AbortHandle> = VecDeque::with_capacity(MAX_CONNECTIONS + 1);
        loop {
            let accepted = match &self.listener {
                Listener::Tcp(listener) => listener
                    .accept()
                    .await
                    .map(|(stream, _)| tokio::spawn(attend(stream, self.pages.clone()))),
                Listener::Unix(listener, _) => listener
                    .accept()
                    .await
                    .map(|(stream, _)| tokio::spawn(attend(stream, self.pages.clone()))),
            };
            match accepted {
                Ok(task) => open.push_back(task.abort_handle()),
                Err(error) => {
                    // Out of descriptors, most likely: those who are being served go first.
                    tracing::debug!(%error, "a reader of metrics could not be accepted");
                    tokio::time::sleep(Duration::from_millis(100)).await;
                }
            }
            open.retain(|task| !task.is_finished());
            while open.len() > MAX_CONNECTIONS {
                open.pop_front().into_iter().for_each(|oldest| oldest.abort());
            }
        }
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        if let Listener::Unix(_, path) = &self.listener {
            // It may have been removed by hand.
            let _ = std::fs::remove_file(path);
        }
    }
}

/// One connection: one request, one answer.
async fn attend(stream: impl AsyncRead + AsyncWrite + Unpin + Send, pages: Arc<Pages>) {
    let service = service_fn(move |request| {
        let pages = pages.clone();
        async move { Ok::<_, Infallible>(pages.answer(&request)) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(LIFE)
        .keep_alive(false)
        .max_buf_size(MAX_HEAD)
        .max_headers(32)
        .serve_connection(TokioIo::new(stream), service);
    if let Ok(Err(error)) = tokio::time::timeout(LIFE, connection).await {
        tracing::debug!(%error, "a reader of metrics broke off");
    }
}

/// The pages as they were last made.
#[derive(Debug)]
struct Pages {
    registry: Registry,
    shown: Mutex<[Option<(Instant, Bytes)>; 2]>,
}

impl Pages {
    fn answer(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() != "/metrics" {
            return plain(StatusCode::NOT_FOUND, "only /metrics is here\n");
        }
        if request.method() != Method::GET {
            let mut answer = plain(StatusCode::METHOD_NOT_ALLOWED, "only GET\n");
            answer.headers_mut().insert(ALLOW, HeaderValue::from_static("GET"));
            return answer;
        }
        let open = wants_open_metrics(request.headers().get_all(ACCEPT).iter());
        match self.page(open, Instant::now()) {
            Ok(page) => {
                let mut answer = Response::new(Full::new(page));
                let kind = HeaderValue::from_static(if open { OPEN_METRICS } else { TEXT });
                answer.headers_mut().insert(CONTENT_TYPE, kind);
                answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
                answer
            }
            Err(error) => {
                tracing::error!(%error, "metrics could not be written");
                plain(StatusCode::INTERNAL_SERVER_ERROR, "the metrics could not be written\n")
            }
        }
    }

    /// The page, made anew unless it is fresh: a reader who asks without pause costs no more than one who asks
    /// twice a second.
    fn page(&self, open: bool, now: Instant) -> Result<Bytes, std::fmt::Error> {
        // A page that a panic left behind is a page.
        let mut shown = self.shown.lock().unwrap_or_else(PoisonError::into_inner);
        let [plain, om] = &mut *shown;
        let slot = if open { om } else { plain };
        if let Some((made, page)) = slot
            && now.saturating_duration_since(*made) < FRESH
        {
            return Ok(page.clone());
        }
        let mut page = String::new();
        if open {
            text::encode(&mut page, &self.registry)?
        } else {
            prometheus_text::encode(&mut page, &self.registry)?
        }
        let page = Bytes::from(page);
        *slot = Some((now, page.clone()));
        Ok(page)
    }
}

fn plain(status: StatusCode, text: &'static str) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::from_static(text.as_bytes())));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer
}

/// Whether the reader names OpenMetrics and does not rule it out. Prometheus prefers it whenever it names it.
fn wants_open_metrics<'a>(accept: impl Iterator<Item = &'a HeaderValue>) -> bool {
    accept.filter_map(|value| value.to_str().ok()).flat_map(|value| value.split(',')).any(|range| {
        let mut parts = range.split(';').map(str::trim);
        let named =
            parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case("application/openmetrics-text"));
        let mut refused = false;
        let mut other = false;
        for part in parts {
            refused |= part.strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0));
            other |= part.strip_prefix("version=").is_some_and(|v| v != "1.0.0" && v != "0.0.1");
        }
        named && !refused && !other
    })
}

fn group_id(group: &str) -> Result<u32, ServeError> {
    if let Ok(number) = group.parse() {
        return Ok(number);
    }
    let found = nix::unistd::Group::from_name(group).ok().flatten();
    found.map(|g| g.gid.as_raw()).ok_or_else(|| ServeError::Group(group.to_owned()))
}

/// Binds a socket that has its mode from the first moment. One left by a process that is gone is replaced;
/// one that answers is not, nor anything that is no socket.
fn bind_socket(path: &Path, mode: u32, group: Option<u32>) -> io::Result<UnixListener> {
    match std::fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
        Ok(meta) if !meta.file_type().is_socket() => {
            return Err(io::Error::other("is there and is not a socket"));
        }
        Ok(_) => match std::os::unix::net::UnixStream::connect(path) {
            Ok(_) => return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process listens there")),
            Err(_) => std::fs::remove_file(path)?,
        },
    }
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::UNIX,
        rustix::net::SocketType::STREAM,
        rustix::net::SocketFlags::CLOEXEC | rustix::net::SocketFlags::NONBLOCK,
        None,
    )?;
    // On Linux the file gets the socket's own mode, less the umask: none but the owner connects before
    // mode and group are set.
    rustix::fs::fchmod(socket.as_fd(), rustix::fs::Mode::from_raw_mode(0o600))?;
    rustix::net::bind(&socket, &rustix::net::SocketAddrUnix::new(path)?)?;
    // Not asked for, not called: a unit may deny the system call.
    if group.is_some() {
        std::os::unix::fs::chown(path, None, group)?;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))?;
    rustix::net::listen(&socket, 16)?;
    UnixListener::from_std(std::os::unix::net::UnixListener::from(socket))
}

#[cfg(test)]
mod tests;
