use hallmark_core::id::{HostId, InstanceId};

use super::*;
use crate::record::{Kind, Record};

async fn store() -> (tempfile::TempDir, Store) {
    let dir = tempfile::tempdir().unwrap();
    let store = Store::open(&dir.path().join("t.db")).await.unwrap();
    (dir, store)
}

fn host(name: &str) -> HostId {
    name.parse().unwrap()
}

fn enrol(name: &str, ek: Option<[u8; 32]>) -> Write {
    Write::Enrol { host_id: host(name), ek_digest: ek, at: 1, standing: "{}".to_owned() }
}

fn conflict(result: Result<WriteOutcome, StoreError>) -> Conflict {
    match result {
        Err(StoreError::Conflict(conflict)) => conflict,
        other => panic!("not a conflict: {other:?}"),
    }
}

#[tokio::test]
async fn a_host_id_keeps_its_ek_and_an_ek_its_host_id() {
    let (_dir, store) = store().await;
    store.commit(vec![enrol("a", Some([1; 32]))]).await.unwrap();
    store.commit(vec![enrol("a", Some([1; 32]))]).await.unwrap();
    let other_ek = conflict(store.commit(vec![enrol("a", Some([2; 32]))]).await);
    assert!(matches!(other_ek, Conflict::HostIdTaken { .. }));
    let other_id = conflict(store.commit(vec![enrol("b", Some([1; 32]))]).await);
    assert!(matches!(other_id, Conflict::EkTaken { .. }));
    let no_ek = conflict(store.commit(vec![enrol("a", None)]).await);
    assert!(matches!(no_ek, Conflict::HostIdTaken { .. }));
}

#[tokio::test]
async fn a_join_token_is_spent_once_however_many_try() {
    let (_dir, store) = store().await;
    let token = |at| Write::SpendJoinToken { token_sha256: [7; 32], host_id: host("a"), at };
    let made = Write::JoinToken { token_sha256: [7; 32], host_id: host("a"), expires_at: 100 };
    store.commit(vec![made]).await.unwrap();
    let other_host = Write::SpendJoinToken { token_sha256: [7; 32], host_id: host("b"), at: 5 };
    assert_eq!(
        conflict(store.commit(vec![other_host]).await),
        Conflict::JoinToken(JoinTokenSpend::OtherHost)
    );
    assert_eq!(conflict(store.commit(vec![token(100)]).await), Conflict::JoinToken(JoinTokenSpend::Expired));
    let tries = futures::future::join_all((0..32).map(|_| store.commit(vec![token(5)]))).await;
    assert_eq!(tries.iter().filter(|r| r.is_ok()).count(), 1);
    assert_eq!(conflict(store.commit(vec![token(6)]).await), Conflict::JoinToken(JoinTokenSpend::Spent));
    let guess = Write::SpendJoinToken { token_sha256: [8; 32], host_id: host("a"), at: 5 };
    assert_eq!(conflict(store.commit(vec![guess]).await), Conflict::JoinToken(JoinTokenSpend::Unknown));
}

fn issued(n: u8, at: i64) -> Vec<Write> {
    let mut serial = [0; 16];
    serial[0] = n;
    serial[1] = u8::try_from(at).unwrap();
    let entry = Record { host: Some("a"), agent: Some("x"), ..Record::default() }.entry(
        at,
        Kind::Svid,
        "issued",
        Some(serial),
    );
    let instance = NewInstance {
        instance_id: InstanceId::from_bytes([n; 16]),
        agent: "x".to_owned(),
        host_id: "a".to_owned(),
        tier: "enterprise",
        custody: "software",
        serial,
        issued_at: at,
        not_after: at + 100,
    };
    vec![Write::Record(entry), Write::Instance(instance)]
}

#[tokio::test]
async fn records_are_numbered_without_gaps_and_a_refused_request_leaves_none() {
    let (_dir, store) = store().await;
    store.commit(vec![enrol("a", Some([1; 32]))]).await.unwrap();
    let good = (0..150u8).map(|n| store.commit(issued(n, 10)));
    let bad = (0..20u8).map(|n| {
        let mut writes = issued(200 + n % 50, 11);
        writes.push(enrol("a", Some([9; 32])));
        store.commit(writes)
    });
    let (good, bad) = futures::join!(futures::future::join_all(good), futures::future::join_all(bad));
    assert!(bad.iter().all(Result::is_err));
    let mut numbers: Vec<u64> = good.into_iter().map(|r| r.unwrap().records[0].number()).collect();
    numbers.sort_unstable();
    assert_eq!(numbers, (1..=150).collect::<Vec<u64>>());
    assert_eq!(store.records(0, 1000, None, None).await.unwrap().len(), 150);
    let numbers = async |after| -> Vec<u64> {
        store.records(after, 2, None, None).await.unwrap().iter().map(|r| r.number).collect()
    };
    assert_eq!((numbers(0).await, numbers(3).await), (vec![149, 150], vec![4, 5]), "the latest, or the next");
    assert_eq!(store.live_instances(20).await.unwrap().len(), 150);
}

#[tokio::test]
async fn numbering_goes_on_after_a_restart() {
    let (dir, store) = store().await;
    store.commit(issued(1, 10)).await.unwrap();
    drop(store);
    let store = Store::open(&dir.path().join("t.db")).await.unwrap();
    let outcome = store.commit(issued(2, 10)).await.unwrap();
    assert_eq!(outcome.records[0].number(), 2);
}

#[tokio::test]
async fn only_its_own_host_ends_an_instance_and_its_newest_serial_is_revoked() {
    let (_dir, store) = store().await;
    store.commit(issued(1, 10)).await.unwrap();
    store.commit(issued(1, 20)).await.unwrap();
    let end = |by: &str| Write::EndInstance {
        instance_id: InstanceId::from_bytes([1; 16]),
        host_id: host(by),
        at: 30,
        reason: "process-exited".to_owned(),
    };
    store.commit(vec![end("b")]).await.unwrap();
    assert_eq!(store.live_instances(30).await.unwrap().len(), 1);
    assert!(store.revocations(30).await.unwrap().is_empty());
    store.commit(vec![end("a")]).await.unwrap();
    assert!(store.live_instances(30).await.unwrap().is_empty());
    let revoked = store.revocations(30).await.unwrap();
    assert_eq!(revoked.len(), 1);
    assert_eq!(revoked[0].serial[1], 20);
}

#[tokio::test]
async fn a_newer_schema_is_refused() {
    let (dir, store) = store().await;
    drop(store);
    let path = dir.path().join("t.db");
    let options = SqliteConnectOptions::new().filename(&path);
    let db = SqlitePool::connect_with(options).await.unwrap();
    sqlx::query("INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time) VALUES (9999, 'later', 1, x'00', 0)")
        .execute(&db)
        .await
        .unwrap();
    db.close().await;
    assert!(matches!(Store::open(&path).await, Err(StoreError::Migration(_))));
}
