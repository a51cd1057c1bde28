//! A connection on the agent socket, and who is at its other end.

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

use super::Limits;
use crate::metrics::metrics;
use crate::observe::{ImageDigests, Observation, ObserveError, Process, observe};

/// How long a connection may stay silent after it was accepted.
const FIRST_WORD: Duration = Duration::from_secs(10);

/// The process that connected, or why it cannot be known; then every request on the connection is
/// answered with that.
#[derive(Debug, Clone)]
pub(super) struct Caller(Arc<Result<(Process, Observation), ObserveError>>);

impl Caller {
    /// Looks at who connected; see [`observe`].
    pub(super) async fn of(
        socket: UnixStream,
        digests: Arc<ImageDigests>,
        looks: &Looks,
    ) -> io::Result<(UnixStream, Self)> {
        let turn = looks.turn(socket.peer_cred()?.uid()).await?;
        let looked = tokio::task::spawn_blocking(move || {
            // Held until the look is over, whoever has gone away meanwhile.
            let _turn = turn;
            let seen = observe(&socket, &digests);
            (socket, Self(Arc::new(seen)))
        });
        looked.await.map_err(io::Error::other)
    }

    /// The process and what was seen of it, now found alive with its image unreplaced.
    ///
    /// # Errors
    /// It is not known, has ended, or has replaced its image.
    pub(super) fn present(&self) -> Result<(&Process, &Observation), CallerError<'_>> {
        let (process, seen) = self.0.as_ref().as_ref().map_err(CallerError::Unknown)?;
        process.check().map_err(CallerError::Gone)?;
        Ok((process, seen))
    }

    /// The same without looking again.
    pub(super) fn known(&self) -> Option<(&Process, &Observation)> {
        self.0.as_ref().as_ref().ok().map(|(process, seen)| (process, seen))
    }
}

/// Looks at processes under way. Each may read a large image, or wait for a file system that is slow or
/// hostile: a user has one at a time, and all of them never take every blocking thread.
#[derive(Debug)]
pub(super) struct Looks {
    all: Arc<Semaphore>,
    by_user: Mutex<HashMap<u32, Arc<Semaphore>>>,
}

/// Looks at one time: half of the blocking threads (`main.rs`); event logs and PKCS#11 calls have the rest.
const LOOKS: usize = 4;

impl Default for Looks {
    fn default() -> Self {
        Self { all: Arc::new(Semaphore::new(LOOKS)), by_user: Mutex::default() }
    }
}

impl Looks {
    async fn turn(&self, uid: u32) -> io::Result<(OwnedSemaphorePermit, OwnedSemaphorePermit)> {
        let own = {
            let mut by_user = self.by_user.lock().unwrap_or_else(PoisonError::into_inner);
            by_user.retain(|_, own| Arc::strong_count(own) > 1);
            by_user.entry(uid).or_insert_with(|| Arc::new(Semaphore::new(1))).clone()
        };
        let own = own.acquire_owned().await.map_err(io::Error::other)?;
        let one = self.all.clone().acquire_owned().await.map_err(io::Error::other)?;
        Ok((own, one))
    }
}

/// Why a request is not answered to this caller.
#[derive(Debug, thiserror::Error)]
pub enum CallerError<'a> {
    /// It could not be known when it connected.
    #[error("the caller cannot be known: {0}")]
    Unknown(&'a ObserveError),
    /// It was known, and is no more what it was.
    #[error("the caller is no longer who connected: {0}")]
    Gone(ObserveError),
}

/// Connections counted, in all and by user.
#[derive(Debug, Default)]
pub(super) struct Counter {
    open: Mutex<(usize, HashMap<u32, usize>)>,
}

/// One counted connection; dropping it makes room.
#[derive(Debug)]
pub(super) struct Counted {
    counter: Arc<Counter>,
    uid: u32,
}

impl Counter {
    /// None open yet.
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Counts one more of this user, if there is room.
    pub(super) fn admit(self: &Arc<Self>, uid: u32, limits: &Limits) -> Option<Counted> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        let of_user = open.1.get(&uid).copied().unwrap_or(0);
        if open.0 >= limits.max_connections || of_user >= limits.max_connections_per_user {
            return None;
        }
        open.0 += 1;
        open.1.insert(uid, of_user + 1);
        metrics().connections(open.0);
        Some(Counted { counter: self.clone(), uid })
    }

    /// How many are open.
    pub(super) fn len(&self) -> usize {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).0
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut open = self.counter.open.lock().unwrap_or_else(PoisonError::into_inner);
        open.0 -= 1;
        metrics().connections(open.0);
        if let Some(of_user) = open.1.get_mut(&self.uid) {
            *of_user -= 1;
            if *of_user == 0 {
                open.1.remove(&self.uid);
            }
        }
    }
}

/// A counted connection, which must say something soon.
pub(super) struct AgentStream {
    socket: UnixStream,
    silent: Option<Pin<Box<Sleep>>>,
    _counted: Counted,
}

impl AgentStream {
    /// Of an accepted socket.
    pub(super) fn new(socket: UnixStream, counted: Counted) -> Self {
        Self { socket, silent: Some(Box::pin(tokio::time::sleep(FIRST_WORD))), _counted: counted }
    }
}

impl AsyncRead for AgentStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = Pin::new(&mut this.socket).poll_read(cx, buf);
        if let Some(silent) = &mut this.silent {
            if read.is_ready() {
                this.silent = None;
            } else if silent.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "the caller said nothing")));
            }
        }
        read
    }
}

impl AsyncWrite for AgentStream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.socket.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_user_has_one_look_at_a_time_and_all_of_them_not_every_thread() {
        let looks = Looks::default();
        let waits =
            async |uid| tokio::time::timeout(Duration::from_millis(50), looks.turn(uid)).await.is_err();
        let held = looks.turn(1).await.unwrap();
        assert!(waits(1).await, "the second look of one user");
        let others: Vec<_> = {
            let turns = (2..=u32::try_from(LOOKS).unwrap()).map(|uid| looks.turn(uid));
            futures::future::try_join_all(turns).await.unwrap()
        };
        assert!(waits(99).await, "more looks than there is room for");
        drop(held);
        assert!(!waits(1).await);
        drop(others);
        drop(looks.turn(99).await.unwrap());
        assert_eq!(looks.by_user.lock().unwrap().len(), 1, "users who have gone are forgotten");
    }

    #[test]
    fn room_is_bounded_in_all_and_by_user_and_returns() {
        let limits = Limits { max_connections: 3, max_connections_per_user: 2, ..Limits::default() };
        let counter = Counter::new();
        let one = counter.admit(1, &limits).unwrap();
        let _two = counter.admit(1, &limits).unwrap();
        assert!(counter.admit(1, &limits).is_none(), "two of one user");
        let _three = counter.admit(2, &limits).unwrap();
        assert!(counter.admit(3, &limits).is_none(), "three in all");
        drop(one);
        assert!(counter.admit(1, &limits).is_some());
        assert_eq!(counter.len(), 2);
    }
}
