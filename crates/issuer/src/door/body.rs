//! A request's body, counted as it comes: no more bytes than its sender may have in flight, no larger a
//! first message than its method needs, and no later than its deadline.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::body::{Body, Frame, SizeHint};
use tokio::time::Sleep;
use tonic::Status;
use tonic::codegen::Bytes;

use super::gate::Pass;

/// What the bytes of a body are counted on.
pub trait Account: Send + 'static {
    /// Takes this many bytes up.
    ///
    /// # Errors
    /// There is no room for them.
    fn charge(&self, bytes: usize) -> Result<(), Status>;

    /// Gives them back.
    fn give_back(&self, bytes: usize);
}

impl Account for Pass {
    fn charge(&self, bytes: usize) -> Result<(), Status> {
        Pass::charge(self, bytes)
            .map_err(|_| Status::resource_exhausted("too many bytes are in flight; try again"))
    }

    fn give_back(&self, bytes: usize) {
        Pass::give_back(self, bytes);
    }
}

/// The bytes in flight on one connection.
#[derive(Debug, Clone)]
pub struct Purse {
    held: Arc<AtomicUsize>,
    most: usize,
}

impl Purse {
    /// An empty one that holds `most` bytes.
    pub fn new(most: usize) -> Self {
        Self { held: Arc::default(), most }
    }
}

impl Account for Purse {
    fn charge(&self, bytes: usize) -> Result<(), Status> {
        let held = self.held.fetch_add(bytes, Ordering::Relaxed) + bytes;
        if held > self.most {
            self.give_back(bytes);
            return Err(Status::resource_exhausted("too many bytes are in flight; try again"));
        }
        Ok(())
    }

    fn give_back(&self, bytes: usize) {
        self.held.fetch_sub(bytes, Ordering::Relaxed);
    }
}

/// See the module.
pub struct Metered<B, A: Account> {
    /// None once it is refused, so that its stream is reset and what it holds is let go.
    inner: Option<B>,
    account: A,
    charged: usize,
    most: usize,
    first: FirstMessage,
    deadline: Pin<Box<Sleep>>,
}

/// The first message's declared length: refused by its prefix, before its bytes come.
struct FirstMessage {
    most: usize,
    prefix: [u8; 5],
    read: usize,
}

impl<B, A: Account> Metered<B, A> {
    /// `inner`, of at most `most` bytes, its first message at most `first` bytes, all of it there within
    /// `time`.
    pub fn new(inner: B, account: A, first: usize, most: usize, time: Duration) -> Self {
        let first = FirstMessage { most: first, prefix: [0; 5], read: 0 };
        let deadline = Box::pin(tokio::time::sleep(time));
        Self { inner: Some(inner), account, charged: 0, most, first, deadline }
    }

    fn take(&mut self, data: &Bytes) -> Result<(), Status> {
        self.first.look(data)?;
        if self.charged + data.len() > self.most {
            return Err(Status::resource_exhausted("the request is too large"));
        }
        self.account.charge(data.len())?;
        self.charged += data.len();
        Ok(())
    }

    fn let_go(&mut self) {
        self.inner = None;
        self.account.give_back(std::mem::take(&mut self.charged));
    }
}

impl FirstMessage {
    /// gRPC's length-prefixed message: one byte of flags, four of length.
    fn look(&mut self, data: &[u8]) -> Result<(), Status> {
        if self.read == self.prefix.len() {
            return Ok(());
        }
        let n = data.len().min(self.prefix.len() - self.read);
        self.prefix[self.read..self.read + n].copy_from_slice(&data[..n]);
        self.read += n;
        let [_, a, b, c, d] = self.prefix;
        if self.read == self.prefix.len() && u32::from_be_bytes([a, b, c, d]) as usize > self.most {
            return Err(Status::resource_exhausted("the first message is too large"));
        }
        Ok(())
    }
}

impl<B, A> Body for Metered<B, A>
where
    B: Body<Data = Bytes> + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    A: Account + Unpin,
{
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        if self.inner.is_some() && self.deadline.as_mut().poll(cx).is_ready() {
            self.let_go();
            return Poll::Ready(Some(Err(Status::deadline_exceeded("the request did not come in time"))));
        }
        let Some(inner) = self.inner.as_mut() else { return Poll::Ready(None) };
        let result = match Pin::new(inner).poll_frame(cx) {
            // What came stays counted until the handler lets the stream go.
            Poll::Ready(None) => return Poll::Ready(None),
            Poll::Ready(Some(Ok(frame))) => {
                let taken = frame.data_ref().cloned().map_or(Ok(()), |data| self.take(&data));
                taken.map(|()| frame)
            }
            Poll::Ready(Some(Err(error))) => Err(Status::from_error(error.into())),
            Poll::Pending => return Poll::Pending,
        };
        if result.is_err() {
            self.let_go();
        }
        Poll::Ready(Some(result))
    }

    fn is_end_stream(&self) -> bool {
        self.inner.as_ref().is_none_or(Body::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.inner.as_ref().map_or_else(|| SizeHint::with_exact(0), Body::size_hint)
    }
}

impl<B, A: Account> Drop for Metered<B, A> {
    fn drop(&mut self) {
        self.let_go();
    }
}

#[cfg(test)]
#[path = "body_tests.rs"]
mod tests;
