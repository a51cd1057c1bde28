use std::collections::VecDeque;
use std::convert::Infallible;

use tonic::Code;

use super::*;

/// Frames that come at once, and then the end or nothing more.
struct Frames(VecDeque<Bytes>, bool);

impl Body for Frames {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match (self.0.pop_front(), self.1) {
            (Some(data), _) => Poll::Ready(Some(Ok(Frame::data(data)))),
            (None, true) => Poll::Ready(None),
            (None, false) => Poll::Pending,
        }
    }
}

const TIME: Duration = Duration::from_secs(30);

fn metered(frames: &[Vec<u8>], ends: bool, purse: &Purse) -> Metered<Frames, Purse> {
    let frames = frames.iter().cloned().map(Bytes::from).collect();
    Metered::new(Frames(frames, ends), purse.clone(), 100, 1000, TIME)
}

async fn next(body: &mut Metered<Frames, Purse>) -> Option<Result<usize, Code>> {
    let frame = std::future::poll_fn(|cx| Pin::new(&mut *body).poll_frame(cx)).await?;
    Some(frame.map(|f| f.into_data().unwrap().len()).map_err(|status| status.code()))
}

fn message(length: u32, bytes: usize) -> Vec<u8> {
    let mut message = vec![0];
    message.extend(length.to_be_bytes());
    message.resize(5 + bytes, 7);
    message
}

fn held(purse: &Purse) -> usize {
    purse.held.load(Ordering::Relaxed)
}

#[tokio::test]
async fn what_came_counts_until_the_body_goes() {
    let purse = Purse::new(1000);
    let mut body = metered(&[message(95, 95), vec![0; 300]], true, &purse);
    assert_eq!(next(&mut body).await, Some(Ok(100)));
    assert_eq!(next(&mut body).await, Some(Ok(300)));
    assert_eq!(next(&mut body).await, None);
    assert_eq!(held(&purse), 400);
    drop(body);
    assert_eq!(held(&purse), 0);
}

#[tokio::test]
async fn a_first_message_declared_too_large_is_refused_by_its_prefix() {
    let purse = Purse::new(1000);
    // However the five bytes come.
    for frames in [vec![message(101, 0)], message(u32::MAX, 0).into_iter().map(|b| vec![b]).collect()] {
        let count = frames.len();
        let mut body = metered(&frames, false, &purse);
        for _ in 1..count {
            assert_eq!(next(&mut body).await, Some(Ok(1)));
        }
        assert_eq!(next(&mut body).await, Some(Err(Code::ResourceExhausted)));
        assert_eq!(next(&mut body).await, None, "it is over");
        assert_eq!(held(&purse), 0, "and let go");
    }
    // A later one may be larger.
    let mut body = metered(&[message(100, 100), message(900, 100)], true, &purse);
    assert_eq!(next(&mut body).await, Some(Ok(105)));
    assert_eq!(next(&mut body).await, Some(Ok(105)));
}

#[tokio::test]
async fn no_more_than_a_request_may_have() {
    let purse = Purse::new(10_000);
    let mut body = metered(&[message(9, 990), vec![0; 6]], true, &purse);
    assert_eq!(next(&mut body).await, Some(Ok(995)));
    assert_eq!(next(&mut body).await, Some(Err(Code::ResourceExhausted)));
    assert_eq!(held(&purse), 0);
}

#[tokio::test]
async fn no_more_than_all_may_have() {
    let purse = Purse::new(500);
    let mut one = metered(&[message(9, 295)], false, &purse);
    assert_eq!(next(&mut one).await, Some(Ok(300)));
    let mut two = metered(&[message(9, 195), vec![0; 1]], false, &purse);
    assert_eq!(next(&mut two).await, Some(Ok(200)));
    assert_eq!(next(&mut two).await, Some(Err(Code::ResourceExhausted)));
    assert_eq!(held(&purse), 300, "the other keeps what it has");
}

#[tokio::test(start_paused = true)]
async fn a_body_that_does_not_come_ends() {
    let purse = Purse::new(1000);
    let mut body = metered(&[message(90, 10)], false, &purse);
    assert_eq!(next(&mut body).await, Some(Ok(15)));
    let start = tokio::time::Instant::now();
    assert_eq!(next(&mut body).await, Some(Err(Code::DeadlineExceeded)));
    assert_eq!(start.elapsed().as_secs(), TIME.as_secs());
    assert_eq!(held(&purse), 0);
}
