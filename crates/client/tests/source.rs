//! The identity source against a fake host daemon: readiness, renewal, outage, withdrawal.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Duration;

use hallmark_client::{ClientError, HallmarkClient, IdentitySource, Tier};
use hallmark_kit::agents::{Agents, Wanted};
use hallmark_kit::fake_hostd::{FakeHostd, Says};
use hallmark_kit::pki::{TestDomain, unix_now as now};
use hallmark_proto::agent::Identity;
use tonic::Status;

const PATIENCE: Duration = Duration::from_secs(20);

/// An identity that claims to end at `not_after`; the bundle's revision tells it from others.
fn identity(revision: u64, not_after: i64) -> Identity {
    let domain = TestDomain::new("example.org", false, now() - 3_600).unwrap();
    let issued = domain.issue(Wanted::new("mailer", Tier::Foundation)).unwrap();
    let bundle = Some(domain.bundle(revision));
    Identity { bundle, not_after, ..domain.serve(&issued, None) }
}

async fn watching(hostd: &FakeHostd) -> IdentitySource {
    HallmarkClient::connect_to(hostd.socket()).await.unwrap().watch().unwrap()
}

/// Waits until `met` holds of the source.
async fn until(source: &mut IdentitySource, met: impl Fn(&IdentitySource) -> bool) {
    let wait = async {
        while !met(source) {
            source.changed().await.unwrap();
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("it happens");
}

/// Waits until `met` holds of something that tells nobody.
async fn eventually(met: impl Fn() -> bool) {
    let wait = async {
        while !met() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, wait).await.expect("it happens");
}

#[tokio::test]
async fn an_identity_arrives_and_renews() {
    let hostd = FakeHostd::start().unwrap();
    let mut source = watching(&hostd).await;
    assert!(source.current().is_none());
    hostd.serve(identity(1, now() + 600));
    let first = source.wait_ready(PATIENCE).await.unwrap();
    assert_eq!((first.agent(), first.bundle.revision), ("mailer", 1));
    hostd.serve(identity(2, now() + 900));
    until(&mut source, |s| s.current().unwrap().bundle.revision == 2).await;
}

#[tokio::test]
async fn a_restart_of_the_daemon_interrupts_nothing() {
    let mut hostd = FakeHostd::start().unwrap();
    hostd.serve(identity(1, now() + 600));
    let mut source = watching(&hostd).await;
    source.wait_ready(PATIENCE).await.unwrap();
    hostd.stop();
    until(&mut source, |s| s.last_error().is_some()).await;
    assert_eq!(source.current().unwrap().bundle.revision, 1, "what is still valid is still served");
    hostd.serve(identity(2, now() + 600));
    hostd.restart().unwrap();
    until(&mut source, |s| s.current().unwrap().bundle.revision == 2).await;
    assert_eq!(source.last_error(), None);
}

#[tokio::test]
async fn what_the_daemon_withdraws_is_gone() {
    let hostd = FakeHostd::start().unwrap();
    hostd.serve(identity(1, now() + 600));
    let mut source = watching(&hostd).await;
    source.wait_ready(PATIENCE).await.unwrap();
    hostd.say(Says::Status(Status::permission_denied("no registration matches")));
    until(&mut source, |s| s.current().is_none()).await;
    let refused = source.last_error().unwrap();
    assert!(matches!(refused, ClientError::Refused { .. }), "{refused}");
    until(&mut source, IdentitySource::is_refused).await;
    // A registration applied later brings it back by itself.
    hostd.serve(identity(2, now() + 600));
    assert_eq!(source.wait_ready(PATIENCE).await.unwrap().bundle.revision, 2);
}

#[tokio::test]
async fn a_changed_registration_is_no_refusal() {
    let hostd = FakeHostd::start().unwrap();
    hostd.serve(identity(1, now() + 600));
    let mut source = watching(&hostd).await;
    source.wait_ready(PATIENCE).await.unwrap();
    hostd.end_streams(Status::permission_denied("the registration has changed: ask anew"));
    eventually(|| hostd.opened_streams() == 2).await;
    source.wait_ready(PATIENCE).await.unwrap();
    assert!(!source.is_refused());
}

#[tokio::test]
async fn an_expired_identity_is_none() {
    let hostd = FakeHostd::start().unwrap();
    hostd.serve(identity(1, now() - 1));
    let mut source = watching(&hostd).await;
    assert!(source.changed().await.unwrap().is_some());
    assert!(source.current().is_none());
    let late = source.wait_ready(Duration::from_millis(50)).await.unwrap_err();
    assert!(matches!(late, ClientError::TimedOut { .. }), "{late}");
}

#[tokio::test]
async fn a_broken_message_is_an_error_and_not_an_identity() {
    let hostd = FakeHostd::start().unwrap();
    let mut broken = identity(1, now() + 600);
    broken.key = None;
    hostd.serve(broken);
    let mut source = watching(&hostd).await;
    until(&mut source, |s| s.last_error().is_some()).await;
    assert!(source.current().is_none());
    assert!(matches!(source.last_error(), Some(ClientError::Identity(_))));
}

#[tokio::test]
async fn dropping_the_source_closes_the_stream() {
    let hostd = FakeHostd::start().unwrap();
    hostd.serve(identity(1, now() + 600));
    let mut source = watching(&hostd).await;
    source.wait_ready(PATIENCE).await.unwrap();
    assert_eq!(hostd.open_streams(), 1);
    drop(source);
    eventually(|| hostd.open_streams() == 0).await;
}

#[tokio::test]
async fn an_absent_daemon_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let missing = HallmarkClient::connect_to(dir.path().join("no.sock")).await.unwrap_err();
    assert!(matches!(missing, ClientError::SocketMissing { .. }), "{missing}");
    let dead = dir.path().join("dead.sock");
    drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
    let nobody = HallmarkClient::connect_to(&dead).await.unwrap_err();
    assert!(matches!(nobody, ClientError::NobodyListens { .. }), "{nobody}");
}

#[tokio::test]
async fn calls_are_part_of_the_callers_trace_where_it_has_one() {
    let parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let hostd = FakeHostd::start().unwrap();
    hostd.serve(identity(1, now() + 600));
    let client = HallmarkClient::connect_to(hostd.socket()).await.unwrap();
    let traced = client.in_trace(parent.parse().unwrap());
    client.who_am_i().await.unwrap();
    traced.who_am_i().await.unwrap();
    let _ = traced.sign(&[7; 16], &[7; 32]).await;
    traced.identity("").await.unwrap();
    let mut source = traced.watch().unwrap();
    source.wait_ready(PATIENCE).await.unwrap();
    // A stream that was taken up again is of the same trace.
    hostd.end_streams(Status::unavailable("again"));
    eventually(|| hostd.opened_streams() >= 3).await;
    let sent = hostd.traceparents();
    assert_eq!(sent[0], "");
    assert!(sent.len() >= 6 && sent[1..].iter().all(|sent| sent == parent), "{sent:?}");
}
