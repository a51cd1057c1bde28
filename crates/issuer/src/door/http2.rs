//! HTTP/2 as the issuer serves it, with bounds by who is at the other end.
//!
//! It is served by hyper itself rather than by tonic's server: that has one set of bounds for every
//! connection, and none for the header table.

use std::time::Duration;

use hyper::server::conn::http2::Builder;
use hyper_util::rt::{TokioExecutor, TokioTimer};

/// Bounds of one connection.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Bounds {
    /// Requests at once.
    streams: u32,
    /// Bytes that may come on one stream before they are read.
    stream_window: u32,
    /// Bytes that may come on all streams before they are read.
    connection_window: u32,
    /// Bytes of answers that wait for the peer to read, by stream.
    send: usize,
}

impl Bounds {
    /// Of a host with its certificate.
    pub(crate) const HOST: Self =
        Self { streams: 256, stream_window: 512 << 10, connection_window: 1 << 20, send: 256 << 10 };
    /// Of a stranger: one attestation needs one stream.
    pub(crate) const STRANGER: Self =
        Self { streams: 4, stream_window: 64 << 10, connection_window: 64 << 10, send: 64 << 10 };
    /// Of an operator.
    pub(crate) const OPERATOR: Self =
        Self { streams: 32, stream_window: 256 << 10, connection_window: 512 << 10, send: 1 << 20 };
}

/// Largest frame: the least that HTTP/2 allows.
const FRAME: u32 = 16 << 10;
/// Largest set of headers.
const HEADERS: u32 = 8 << 10;
/// Streams that were reset and not looked at yet, before the connection is ended.
const RESETS: usize = 20;
/// How often an idle peer is asked whether it is there, and how long it has to answer.
const KEEPALIVE: (Duration, Duration) = (Duration::from_secs(30), Duration::from_secs(20));

/// A server of connections with these bounds.
pub(crate) fn server(bounds: Bounds) -> Builder<TokioExecutor> {
    let mut builder = Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .header_table_size(0)
        .max_header_list_size(HEADERS)
        .max_frame_size(FRAME)
        .max_concurrent_streams(bounds.streams)
        .max_pending_accept_reset_streams(RESETS)
        .max_send_buf_size(bounds.send)
        .initial_stream_window_size(bounds.stream_window)
        .initial_connection_window_size(bounds.connection_window)
        .keep_alive_interval(KEEPALIVE.0)
        .keep_alive_timeout(KEEPALIVE.1);
    builder
}
