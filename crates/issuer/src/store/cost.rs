//! What a commit costs: for the benchmark, which measures the store by itself.

use std::time::Instant;

use futures::future::try_join_all;
use hallmark_core::id::InstanceId;
use hallmark_core::tier::Tier;

use super::{Issue, Store, StoreError, Write, unix_now};
use crate::record::{Kind, Record};

/// What was issued in a round of these.
#[derive(Debug, Clone, Copy)]
pub struct Rounds {
    /// Requests waiting at one time.
    pub in_flight: usize,
    /// How often so many wait.
    pub rounds: usize,
}

/// Records that many credentials as the issuer would, each request with a record of usual size; says how long it took.
///
/// # Errors
/// The store fails.
pub async fn issue(store: &Store, rounds: Rounds) -> Result<std::time::Duration, StoreError> {
    let agent = "mailbot";
    let registered = Write::Registration {
        agent: agent.parse().map_err(|_| StoreError::Stopped)?,
        revision: 1,
        body: "{}".to_owned(),
    };
    store.commit(vec![registered]).await?;
    let begun = Instant::now();
    for _ in 0..rounds.rounds {
        let some = (0..rounds.in_flight).map(|_| async { store.commit(vec![one(agent)?]).await });
        for outcome in try_join_all(some).await? {
            if outcome.records.iter().any(Result::is_err) {
                return Err(StoreError::Stopped);
            }
        }
    }
    Ok(begun.elapsed())
}

fn one(agent: &str) -> Result<Write, StoreError> {
    let now = unix_now();
    let instance = InstanceId::drawn_at(now.unsigned_abs() * 1000, rand::random());
    let serial: [u8; 16] = rand::random();
    let selectors = ["unix:uid:1001", "unix:gid:1001", "unix:user:mailbot", "systemd:unit:mailbot.service"];
    let selectors = selectors.map(str::to_owned);
    let digest = crate::hex(rand::random::<[u8; 32]>());
    let entry = Record {
        host: Some("web-01"),
        agent: Some(agent),
        instance: Some(instance.to_string()),
        owner: Some("mail-team@example.org"),
        registration_revision: Some(1),
        registration_digest: Some(digest.clone()),
        tier: Some("foundation"),
        custody: Some("software"),
        certificate_sha256: Some(digest.clone()),
        not_after: Some(now + 900),
        evidence_sha256: Some(digest),
        selectors: Some(&selectors),
        ..Record::default()
    }
    .entry(now, Kind::Svid, "issued", Some(serial));
    Ok(Write::Issue(Box::new(Issue {
        entry,
        instance,
        agent: agent.parse().map_err(|_| StoreError::Stopped)?,
        host: "web-01".parse().map_err(|_| StoreError::Stopped)?,
        tier: Tier::Foundation,
        ca: 1,
        custody: "software",
        held: std::sync::Arc::default(),
        issued_at: now,
        not_after: now + 900,
        registration_revision: 1,
        host_epoch: 0,
    })))
}
