//! The stream of identities, as the body of a gRPC answer.
//!
//! tonic's encoder keeps the buffer of the last message for as long as the stream lives: 8 KiB for each of
//! hundreds of agents that get a message every few minutes. Here a message is encoded into just what it
//! takes, which is wiped and given back once it is written: there may be a private key in it.

use std::pin::Pin;
use std::task::{Context, Poll, ready};

use hallmark_proto::agent::Identity;
use http::HeaderMap;
use hyper::body::{Body, Frame};
use prost::Message;
use tokio::sync::watch;
use tokio_stream::Stream;
use tokio_stream::wrappers::WatchStream;
use tonic::Status;
use tonic::codegen::Bytes;
use zeroize::Zeroizing;

use super::instance::Shown;

/// What is shown on a stream, handed past tonic in the extensions of its answer.
#[derive(Clone)]
pub(super) struct Watched(pub(super) watch::Receiver<Shown>);

/// Every identity as a message, and the end as trailers.
struct Identities {
    shown: WatchStream<Shown>,
    ended: bool,
}

/// Gives the answer to a `WatchIdentity` the body that belongs to it; leaves every other as it is.
pub(super) fn fill(mut answer: http::Response<tonic::body::Body>) -> http::Response<tonic::body::Body> {
    match answer.extensions_mut().remove::<Watched>() {
        Some(Watched(shown)) => {
            let identities = Identities { shown: WatchStream::new(shown), ended: false };
            answer.map(|_| tonic::body::Body::new(identities))
        }
        None => answer,
    }
}

impl Body for Identities {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let this = self.get_mut();
        if this.ended {
            return Poll::Ready(None);
        }
        let end = match ready!(Pin::new(&mut this.shown).poll_next(cx)) {
            Some(Shown::Identity(identity)) => match message(&identity) {
                Ok(message) => return Poll::Ready(Some(Ok(Frame::data(message)))),
                Err(status) => status,
            },
            Some(Shown::End(status)) => status,
            None => Status::ok(""),
        };
        this.ended = true;
        let mut trailers = HeaderMap::new();
        Poll::Ready(Some(end.add_header(&mut trailers).map(|()| Frame::trailers(trailers))))
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }
}

/// Length-prefixed and not compressed (gRPC over HTTP/2, "Length-Prefixed-Message").
fn message(identity: &Identity) -> Result<Bytes, Status> {
    let length = identity.encoded_len();
    let prefix = u32::try_from(length).map_err(|_| Status::internal("an identity of 4 GiB"))?;
    // Of the size it will have, so that no copy is left behind by its growth.
    let mut message = Zeroizing::new(Vec::with_capacity(5 + length));
    message.push(0);
    message.extend_from_slice(&prefix.to_be_bytes());
    identity.encode(&mut *message).map_err(|error| Status::internal(error.to_string()))?;
    Ok(Bytes::from_owner(message))
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use hallmark_proto::codec::LeanCodec;
    use tokio_stream::StreamExt;
    use tonic::codec::{Codec, Streaming};

    use super::*;

    fn identity(agent: &str) -> Shown {
        Shown::Identity(Arc::new(Identity { agent: agent.into(), ..Identity::default() }))
    }

    fn filled(shown: watch::Receiver<Shown>) -> Streaming<Identity> {
        let mut answer = http::Response::new(tonic::body::Body::empty());
        answer.extensions_mut().insert(Watched(shown));
        let mut codec = LeanCodec::<Identity, Identity>::default();
        Streaming::new_response(codec.decoder(), fill(answer).into_body(), http::StatusCode::OK, None, None)
    }

    #[tokio::test]
    async fn tonic_reads_every_identity_and_the_reason_for_the_end() {
        let (sender, shown) = watch::channel(identity("one"));
        let mut read = filled(shown);
        assert_eq!(read.next().await.unwrap().unwrap().agent, "one");
        sender.send_replace(identity("two"));
        assert_eq!(read.next().await.unwrap().unwrap().agent, "two");
        sender.send_replace(Shown::End(Status::permission_denied("revoked")));
        let end = read.next().await.unwrap().unwrap_err();
        assert_eq!((end.code(), end.message()), (tonic::Code::PermissionDenied, "revoked"));
        assert!(read.next().await.is_none(), "nothing follows the end");
    }

    #[tokio::test]
    async fn a_stream_whose_instance_is_gone_ends_well() {
        let (sender, shown) = watch::channel(identity("one"));
        drop(sender);
        let mut read = filled(shown);
        assert_eq!(read.next().await.unwrap().unwrap().agent, "one");
        assert!(read.next().await.is_none());
    }

    #[tokio::test]
    async fn other_answers_keep_their_body() {
        let answer = http::Response::new(tonic::body::Body::new(String::from("as it was")));
        let body = fill(answer).into_body();
        assert!(!body.is_end_stream());
    }
}
