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
    /// There is something to be written out or flushed, and the task will come again.
    due: bool,
}

impl<S> Gathering<S> {
    pub(crate) fn new(stream: S) -> Self {
        Self { stream, waiting: BytesMut::new(), due: false }
    }
}

impl<S: AsyncWrite + Unpin> Gathering<S> {
    /// Writes all that waits; what cannot be written or flushed now stays due.
    fn write_out(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.due = true;
        while !self.waiting.is_empty() {
            let written = ready!(Pin::new(&mut self.stream).poll_write(cx, &self.waiting))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.waiting.advance(written);
        }
        // An idle connection holds no buffer.
        self.waiting = BytesMut::new();
        ready!(Pin::new(&mut self.stream).poll_flush(cx))?;
        self.due = false;
        Poll::Ready(Ok(()))
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
        if self.due
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
        if !self.waiting.is_empty() && !self.due {
            self.due = true;
            cx.waker().wake_by_ref();
        }
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.write_out(cx))?;
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::{Wake, Waker};

    /// Keeps each write by itself; takes so many bytes before it is full.
    #[derive(Default)]
    struct Wire {
        writes: Vec<Vec<u8>>,
        room: usize,
        /// Does not flush.
        stuck: bool,
        flushed: usize,
        shut: bool,
    }

    impl AsyncRead for Wire {
        fn poll_read(self: Pin<&mut Self>, _: &mut Context<'_>, _: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
            Poll::Pending
        }
    }

    impl AsyncWrite for Wire {
        fn poll_write(mut self: Pin<&mut Self>, _: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
            let taken = self.room.min(buf.len());
            if taken == 0 {
                return Poll::Pending;
            }
            self.room -= taken;
            self.writes.push(buf[..taken].to_vec());
            Poll::Ready(Ok(taken))
        }

        fn poll_flush(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            if self.stuck {
                return Poll::Pending;
            }
            self.flushed += 1;
            Poll::Ready(Ok(()))
        }

        fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
            self.shut = true;
            Poll::Ready(Ok(()))
        }
    }

    #[derive(Default)]
    struct Calls(AtomicUsize);

    impl Wake for Calls {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    struct Bench {
        stream: Gathering<Wire>,
        calls: Arc<Calls>,
    }

    impl Bench {
        fn new(room: usize) -> Self {
            Self { stream: Gathering::new(Wire { room, ..Wire::default() }), calls: Arc::default() }
        }

        fn on<T>(&mut self, ask: impl FnOnce(Pin<&mut Gathering<Wire>>, &mut Context<'_>) -> T) -> T {
            let waker = Waker::from(self.calls.clone());
            ask(Pin::new(&mut self.stream), &mut Context::from_waker(&waker))
        }

        fn write(&mut self, bytes: &[u8]) -> Poll<usize> {
            self.on(|stream, cx| stream.poll_write(cx, bytes)).map(Result::unwrap)
        }

        fn flush(&mut self) {
            assert!(self.on(|stream, cx| stream.poll_flush(cx)).is_ready());
        }

        fn read(&mut self) {
            let nothing = self.on(|stream, cx| stream.poll_read(cx, &mut ReadBuf::new(&mut [0; 8])));
            assert!(nothing.is_pending());
        }
    }

    #[test]
    fn what_is_flushed_goes_out_in_one_write_when_the_task_comes_again() {
        let mut bench = Bench::new(1000);
        bench.flush();
        assert_eq!(bench.calls.0.load(Ordering::Relaxed), 0, "nothing waits: nobody is called");
        assert_eq!(bench.write(b"headers, "), Poll::Ready(9));
        bench.flush();
        let parts = [IoSlice::new(b"data, "), IoSlice::new(b"more data, ")];
        let written = bench.on(|stream, cx| stream.poll_write_vectored(cx, &parts)).map(Result::unwrap);
        assert_eq!(written, Poll::Ready(17));
        bench.flush();
        assert_eq!(bench.write(b"trailers"), Poll::Ready(8));
        bench.flush();
        assert_eq!(bench.calls.0.load(Ordering::Relaxed), 1);
        assert!(bench.stream.stream.writes.is_empty());
        bench.read();
        assert_eq!(bench.stream.stream.writes, [b"headers, data, more data, trailers"]);
        // And again from the beginning.
        bench.write(b"next").is_ready();
        bench.flush();
        bench.read();
        assert_eq!(bench.stream.stream.writes.len(), 2);
        assert_eq!(bench.calls.0.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_peer_that_does_not_read_holds_no_more_than_the_room() {
        let mut bench = Bench::new(0);
        assert_eq!(bench.write(&[1; 2 * ROOM]), Poll::Ready(ROOM));
        bench.flush();
        for _ in 0..3 {
            assert!(bench.write(b"more").is_pending());
            bench.read();
        }
        assert_eq!(bench.stream.waiting.len(), ROOM);
        // It reads a little: what was kept comes out in order, and there is room again.
        bench.stream.stream.room = ROOM;
        assert_eq!(bench.write(b"more"), Poll::Ready(4));
        assert_eq!(bench.stream.stream.writes, [vec![1; ROOM]]);
    }

    #[test]
    fn a_flush_that_did_not_come_through_is_tried_again() {
        let mut bench = Bench::new(1000);
        bench.stream.stream.stuck = true;
        bench.write(b"answer").is_ready();
        bench.flush();
        bench.read();
        assert_eq!((bench.stream.stream.writes.len(), bench.stream.stream.flushed), (1, 0));
        bench.stream.stream.stuck = false;
        bench.read();
        assert_eq!(bench.stream.stream.flushed, 1);
        bench.read();
        assert_eq!(bench.stream.stream.flushed, 1, "once is enough");
    }

    #[test]
    fn nothing_is_lost_at_the_end() {
        let mut bench = Bench::new(4);
        bench.write(b"last words").is_ready();
        assert!(bench.on(|stream, cx| stream.poll_shutdown(cx)).is_pending());
        assert!(!bench.stream.stream.shut);
        bench.stream.stream.room = 100;
        assert!(bench.on(|stream, cx| stream.poll_shutdown(cx)).is_ready());
        assert!(bench.stream.stream.shut);
        assert_eq!(bench.stream.stream.writes.concat(), b"last words");
    }
}
