//! What a connection writes, gathered into few writes.
//!
//! h2 flushes an answer's data before its trailers, and again for each answer that becomes ready; below it
//! each flush is a TLS record and a system call. Here what is flushed waits until the connection's task is
//! polled next, behind all tasks that are ready now and may have answers of their own.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio_util::bytes::{Buf as _, BytesMut};

/// Bytes that may wait. A peer that does not read holds no more here.
const ROOM: usize = 32 << 10;

/// A stream whose writes wait for the next read.
///
/// Made for HTTP/2, whose connection reads in every poll: on a stream where nobody reads, nothing would be
/// written before the shutdown.
#[derive(Debug)]
pub(crate) struct Gathering<S> {
    stream: S,
    waiting: BytesMut,
    /// The task has been told to come again.
    called: bool,
}

impl<S> Gathering<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, waiting: BytesMut::new(), called: false }
    }
}

impl<S: AsyncWrite + Unpin> Gathering<S> {
    /// Writes all that waits.
    fn write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.waiting.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.waiting))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.waiting.advance(written);
        }
        self.called = false;
        // An idle connection holds no buffer.
        self.waiting = BytesMut::new();
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn room(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if self.waiting.len() >= ROOM {
            ready!(self.write_out(cx))?;
        }
        if self.waiting.is_empty() {
            self.waiting.reserve(ROOM);
        }
        Poll::Ready(Ok(ROOM - self.waiting.len()))
    }
}

impl<S: AsyncRead + AsyncWrite + Unpin> AsyncRead for Gathering<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.called
            && let Poll::Ready(Err(error)) = self.write_out(cx)
        {
            return Poll::Ready(Err(error));
        }
        Pin::new(&mut self.stream).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Gathering<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let taken = ready!(self.room(cx))?.min(buf.len());
        self.waiting.extend_from_slice(&buf[..taken]);
        Poll::Ready(Ok(taken))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let room = ready!(self.room(cx))?;
        let before = self.waiting.len();
        for buf in bufs {
            let left = room - (self.waiting.len() - before);
            self.waiting.extend_from_slice(&buf[..left.min(buf.len())]);
        }
        Poll::Ready(Ok(self.waiting.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    /// Ready at once: what waits is written when the task, called to come again, reads.
    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.waiting.is_empty() && !self.called {
            self.called = true;
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.write_out(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
