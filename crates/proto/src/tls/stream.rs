//! A connection that ends itself when a certificate it rests on ends.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hallmark_core::id::SpiffeId;
use hallmark_core::x509::{Serial, UnverifiedSvid, key_fingerprint};
use rustls::pki_types::CertificateDer;
use rustls::time_provider::TimeProvider;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::OwnedSemaphorePermit;
use tokio::time::Sleep;
use tonic::transport::server::Connected;

/// Who is at the other end. In a tonic handler: `request.extensions().get::<PeerInfo>()`.
#[derive(Debug, Clone, Default)]
pub struct PeerInfo {
    /// Who it is, by the certificate that the handshake verified; none without a certificate.
    pub spiffe_id: Option<SpiffeId>,
    /// The certificate's serial number.
    pub serial: Option<Serial>,
    /// The certificate's beginning, seconds since 1970-01-01 UTC.
    pub not_before: Option<i64>,
    /// The certificate's end, seconds since 1970-01-01 UTC.
    pub not_after: Option<i64>,
    /// The keys of the CAs that it showed, by [`hallmark_core::x509::key_fingerprint`].
    pub authorities: Vec<[u8; 32]>,
    /// Where it connected from, or was connected at.
    pub remote_addr: Option<SocketAddr>,
}

impl PeerInfo {
    /// Of a connection whose handshake has **verified** these certificates, leaf first.
    ///
    /// # Errors
    /// The leaf cannot be read: our own verifier would not have let it pass.
    pub fn of_verified(
        certificates: Option<&[CertificateDer<'_>]>,
        remote_addr: Option<SocketAddr>,
    ) -> Result<Self, hallmark_core::x509::SvidError> {
        let Some(leaf) = certificates.and_then(<[_]>::first) else {
            return Ok(Self { remote_addr, ..Self::default() });
        };
        let svid = UnverifiedSvid::parse(leaf)?;
        // What cannot be read was in no path.
        let above = certificates.into_iter().flatten().skip(1);
        let authorities = above.filter_map(|der| key_fingerprint(der).ok()).collect();
        Ok(Self {
            spiffe_id: Some(svid.spiffe_id),
            serial: Some(svid.serial),
            not_before: Some(svid.not_before),
            not_after: Some(svid.not_after),
            authorities,
            remote_addr,
        })
    }
}

/// A stream that ends at a given time: reading then gives end of file, writing
/// [`io::ErrorKind::TimedOut`].
///
/// The timer alone would not do: it runs on a monotonic clock, which stands still while a machine
/// sleeps. So the wall clock is looked at as well, at each read and write.
#[derive(Debug)]
pub struct CappedStream<S> {
    inner: S,
    peer: PeerInfo,
    ends: Option<i64>,
    timer: Option<Pin<Box<Sleep>>>,
    ended: bool,
    time: Arc<dyn TimeProvider>,
    _permit: Option<OwnedSemaphorePermit>,
}

impl<S> CappedStream<S> {
    /// `inner`, which ends when the peer's certificate ends, when our own does, or after `max_age`,
    /// whichever is first.
    pub fn new(
        inner: S,
        peer: PeerInfo,
        own_not_after: Option<i64>,
        max_age: Option<Duration>,
        time: Arc<dyn TimeProvider>,
    ) -> Self {
        let ends = [peer.not_after, own_not_after].into_iter().flatten().min();
        let left = ends.map(|ends| {
            let left = ends.saturating_sub(unix_now(&*time));
            Duration::from_secs(u64::try_from(left).unwrap_or(0))
        });
        let timer = [left, max_age].into_iter().flatten().min();
        let timer = timer.map(|after| Box::pin(tokio::time::sleep(after)));
        Self { inner, peer, ends, timer, ended: false, time, _permit: None }
    }

    pub(super) fn with_permit(mut self, permit: OwnedSemaphorePermit) -> Self {
        self._permit = Some(permit);
        self
    }

    /// Who is at the other end.
    pub fn peer(&self) -> &PeerInfo {
        &self.peer
    }

    fn has_ended(&mut self, cx: &mut Context<'_>) -> bool {
        let timer = self.timer.as_mut().is_some_and(|t| t.as_mut().poll(cx).is_ready());
        let clock = self.ends.is_some_and(|ends| unix_now(&*self.time) >= ends);
        if timer || clock {
            // A timer that has fired must not be polled again.
            self.timer = None;
            self.ended = true;
        }
        self.ended
    }
}

/// Now, or the end of time where the clock cannot be read: a connection of unknown age ends.
fn unix_now(time: &dyn TimeProvider) -> i64 {
    time.current_time().and_then(|t| i64::try_from(t.as_secs()).ok()).unwrap_or(i64::MAX)
}

impl<S> Connected for CappedStream<S> {
    type ConnectInfo = PeerInfo;

    fn connect_info(&self) -> PeerInfo {
        self.peer.clone()
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for CappedStream<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.has_ended(cx) {
            return Poll::Ready(Ok(()));
        }
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<S: AsyncWrite + Unpin> CappedStream<S> {
    fn writable(&mut self, cx: &mut Context<'_>) -> io::Result<Pin<&mut S>> {
        if self.has_ended(cx) {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                "a certificate of this connection has ended",
            ));
        }
        Ok(Pin::new(&mut self.inner))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for CappedStream<S> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.writable(cx)?.poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.writable(cx)?.poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
