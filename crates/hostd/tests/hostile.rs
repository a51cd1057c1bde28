//! Callers on the agent socket that mean harm: whatever they send, others are served and nothing stays.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::time::Duration;

use hallmark_hostd::agents::Limits;
use hallmark_proto::agent::agent_identity_client::AgentIdentityClient;
use hallmark_proto::agent::{SignRequest, WatchIdentityRequest, WhoAmIRequest};
use hallmark_proto::tls::unix_channel;
use support::{Host, mine, until};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tonic::Code;
use tonic::transport::Channel;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const SETTINGS: &[u8] = &[0, 0, 0, 4, 0, 0, 0, 0, 0];

/// Everything up to the end of the stream, or an error: the daemon has closed it.
async fn closed(stream: &mut UnixStream) -> bool {
    let mut sink = Vec::new();
    tokio::time::timeout(Duration::from_secs(60), stream.read_to_end(&mut sink)).await.is_ok()
}

async fn others_are_served(host: &Host) {
    let mut client = served(host).await;
    let request = WatchIdentityRequest { agent: "mailer".into() };
    client.watch_identity(request).await.unwrap().into_inner().message().await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_message_over_the_limit_is_refused() {
    let host = Host::start().await;
    host.register(vec![mine("mailer")]);
    let mut client = host.agent().await;
    let large = SignRequest { key_handle: vec![0; 16].into(), digest: vec![0; 200 * 1024].into() };
    let refusal = client.sign(large).await.unwrap_err();
    assert_eq!(refusal.code(), Code::OutOfRange, "{refusal}");
    let named = WatchIdentityRequest { agent: "x".repeat(60 * 1024) };
    let refusal = client.watch_identity(named).await.unwrap_err();
    assert_eq!(refusal.code(), Code::PermissionDenied);
    assert!(refusal.message().len() < 1024, "it is not sent back whole");
    others_are_served(&host).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_not_http2_is_closed() {
    let host = Host::start().await;
    host.register(vec![mine("mailer")]);
    for garbage in [
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".to_vec(),
        vec![0xff; 64 * 1024],
        [PREFACE, &[0xff; 64 * 1024]].concat(),
        // A frame that claims 16 MiB.
        [PREFACE, SETTINGS, &[0xff, 0xff, 0xff, 0, 0, 0, 0, 0, 1]].concat(),
    ] {
        let mut stream = UnixStream::connect(&host.socket).await.unwrap();
        // The daemon may close while this is written.
        let _ = stream.write_all(&garbage).await;
        assert!(closed(&mut stream).await);
    }
    others_are_served(&host).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_that_breaks_off_leaves_nothing() {
    let limits = Limits { max_connections_per_user: 4, ..Limits::default() };
    let host = Host::start_with(limits).await;
    host.register(vec![mine("mailer")]);
    let whole = [PREFACE, SETTINGS].concat();
    for cut in 0..whole.len() {
        let mut stream = UnixStream::connect(&host.socket).await.unwrap();
        let _ = stream.write_all(&whole[..cut]).await;
        drop(stream);
        // With room for four, one that stayed open would soon be in the way.
        if cut % 4 == 3 {
            served(&host).await;
        }
    }
    others_are_served(&host).await;
}

/// A connection that is served. Those that were just closed may still be counted for a moment.
async fn served(host: &Host) -> AgentIdentityClient<Channel> {
    for _ in 0..1000 {
        let mut client = AgentIdentityClient::new(unix_channel(&host.socket));
        if client.who_am_i(WhoAmIRequest {}).await.is_ok() {
            return client;
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    panic!("nobody is served any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endless_headers_are_cut_off() {
    let host = Host::start().await;
    host.register(vec![mine("mailer")]);
    let mut stream = UnixStream::connect(&host.socket).await.unwrap();
    stream.write_all(&[PREFACE, SETTINGS].concat()).await.unwrap();
    // HEADERS without END_HEADERS, then CONTINUATION without end (RFC 9113, section 10.5.1).
    let header = [&[0x40, 0x7f, 0x81, 0x7f][..], &[b'a'; 255], &[0x7f, 0x81, 0x7f], &[b'b'; 255]].concat();
    let frame = |kind: u8| {
        let length = u32::try_from(header.len()).unwrap().to_be_bytes();
        [&length[1..], &[kind, 0, 0, 0, 0, 1], &header].concat()
    };
    let mut sent = 0;
    let mut result = stream.write_all(&frame(1)).await;
    while result.is_ok() && sent < 64 * 1024 * 1024 {
        let next = frame(9);
        sent += next.len();
        result = stream.write_all(&next).await;
    }
    assert!(result.is_err(), "the daemon took {sent} bytes of headers");
    others_are_served(&host).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_user_cannot_take_all_connections_or_streams() {
    let limits = Limits { max_agents: 40, max_connections: 10, ..Limits::default() };
    let host = Host::start_with(limits).await;
    host.register(vec![mine("mailer")]);
    // More streams on one connection than there may be: the surplus is refused, or waits at the caller.
    let client = host.agent().await;
    let mut asked = tokio::task::JoinSet::new();
    for _ in 0..64 {
        let mut client = client.clone();
        asked.spawn(async move {
            let request = client.watch_identity(WatchIdentityRequest::default());
            tokio::time::timeout(Duration::from_secs(2), request).await.ok()?.ok()
        });
    }
    let held: Vec<_> = asked.join_all().await.into_iter().flatten().collect();
    assert!(!held.is_empty() && held.len() <= 32, "{}", held.len());
    until(|| host.agents.live() == held.len()).await;
    drop((client, held));
    until(|| host.agents.live() == 0).await;
    // More connections than there may be: closed at once, and room returns.
    let mut open = Vec::new();
    for _ in 0..10 {
        open.push(served(&host).await);
    }
    let mut surplus = UnixStream::connect(&host.socket).await.unwrap();
    assert!(closed(&mut surplus).await);
    drop(open);
    served(&host).await;
    others_are_served(&host).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reader_that_does_not_read_holds_up_nobody() {
    let host = Host::start().await;
    host.register(vec![mine("mailer")]);
    let (_, _unread) = host.watch("mailer").await.unwrap();
    for revision in 2..200 {
        host.state.accept_bundles(support::bundle(revision)).unwrap();
        tokio::task::yield_now().await;
    }
    others_are_served(&host).await;
    host.agents.drain(Duration::from_secs(10)).await;
    assert_eq!(host.agents.live(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_user_takes_no_more_than_his_share() {
    let limits = Limits {
        max_agents_per_user: 2,
        begin_burst_per_user: 3,
        begin_per_second_per_user: 1,
        ..Limits::default()
    };
    let host = Host::start_with(limits.clone()).await;
    host.register(vec![mine("mailer")]);
    let one = host.watch("").await.unwrap();
    let _two = host.watch("").await.unwrap();
    let refusal = host.watch("").await.unwrap_err();
    assert_eq!(refusal.code(), Code::ResourceExhausted);
    assert!(refusal.message().contains("limits.max_agents_per_user"), "{refusal}");
    drop(one);
    until(|| host.agents.live() == 1).await;
    host.watch("").await.unwrap();

    // And does not drive the issuer: what he asks for too fast does not reach it.
    host.agents.limit(Limits { max_agents_per_user: 1000, begin_burst_per_user: 1, ..limits });
    let before = host.issuer.book().items.len();
    let mut refused = 0;
    for _ in 0..50 {
        if let Err(refusal) = host.watch("").await {
            assert_eq!(refusal.code(), Code::ResourceExhausted);
            assert!(refusal.message().contains("limits.begin_per_second_per_user"), "{refusal}");
            refused += 1;
        }
    }
    assert!(refused > 0);
    assert_eq!(host.issuer.book().items.len() - before, 50 - refused);
}
