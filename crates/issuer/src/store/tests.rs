use hallmark_core::id::{AgentName, HostId, InstanceId};
use hallmark_core::log::{
    LogKey, LogKeyError, LogVerifier, SoftwareLogKey, check_inclusion, leaf_hash, open_checkpoint,
};
use hallmark_core::rotation::{Role, Stage};
use hallmark_core::tier::{Hierarchy, Tier};
use hallmark_kit::postgres::{Postgres, name_in};
use sqlx::sqlite::{SqliteConnectOptions, SqlitePool};

use super::*;
use crate::record::{Kind, Record};

/// A store of one kind, for one test.
pub(super) struct Bed {
    pub(super) dir: tempfile::TempDir,
    postgres: Option<(Arc<Postgres>, String)>,
}

/// One test, on both databases.
macro_rules! on_both {
    ($(async fn $name:ident($bed:ident) $body:block)*) => {$(
        mod $name {
            use super::*;

            async fn body($bed: Bed) $body

            #[tokio::test]
            async fn sqlite() {
                body(Bed::sqlite()).await;
            }

            #[tokio::test]
            async fn postgres() {
                body(Bed::postgres()).await;
            }
        }
    )*};
}

impl Bed {
    pub(super) fn sqlite() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), postgres: None }
    }

    pub(super) fn postgres() -> Self {
        let server = Postgres::shared().unwrap();
        let url = server.database().unwrap();
        Self { postgres: Some((server, url)), ..Self::sqlite() }
    }

    pub(super) fn location(&self) -> Location {
        match &self.postgres {
            Some((_, url)) => Location::Postgres(Box::new(url.parse().unwrap())),
            None => Location::Sqlite(self.dir.path().join("t.db")),
        }
    }

    async fn opened(&self) -> Result<Opened, StoreError> {
        Store::open(&self.location(), &me()).await
    }

    /// An empty one of the same kind.
    fn another(&self) -> Self {
        if self.postgres.is_some() { Self::postgres() } else { Self::sqlite() }
    }

    pub(super) async fn open(&self) -> Result<Store, StoreError> {
        self.opened().await?.write_with(signer()).await
    }

    async fn store(&self) -> Store {
        self.open().await.unwrap()
    }

    /// Changes the database behind the issuer's back; says what it reads.
    pub(super) async fn sql(&self, sql: &str) -> String {
        match &self.postgres {
            Some((server, url)) => {
                let sql = format!("SET search_path TO \"issuer_issuer-1\",hallmark; {sql}");
                server.psql(name_in(url), &sql).unwrap()
            }
            None => {
                let options = SqliteConnectOptions::new().filename(self.dir.path().join("t.db"));
                let db = SqlitePool::connect_with(options).await.unwrap();
                let read: Option<i64> = sqlx::query_scalar(sql)
                    .fetch_optional(&db)
                    .await
                    .unwrap_or_else(|e| panic!("{sql}: {e}"));
                db.close().await;
                read.map(|read| read.to_string()).unwrap_or_default()
            }
        }
    }

    /// So many zero bytes, in the database's words.
    fn zeros(&self, bytes: usize) -> String {
        let digits = "00".repeat(bytes);
        if self.postgres.is_some() { format!("'\\x{digits}'") } else { format!("x'{digits}'") }
    }
}

pub(super) fn me() -> IssuerId {
    "issuer-1".parse().unwrap()
}

pub(super) fn signer() -> LogSigner {
    let key = SoftwareLogKey::from_seed(&[7; 32]).unwrap();
    let verifier = LogVerifier::new("example.org/log/issuer-1".parse().unwrap(), key.public());
    LogSigner::in_token(verifier, Arc::new(key)).unwrap()
}

pub(super) fn host(name: &str) -> HostId {
    name.parse().unwrap()
}

pub(super) fn enrol(name: &str, ek: Option<[u8; 32]>) -> Write {
    Write::Enrol {
        host_id: host(name),
        ek_digest: ek,
        simulated: false,
        at: 1,
        standing: "{}".to_owned(),
        epoch: 0,
    }
}

fn conflict(result: Result<WriteOutcome, StoreError>) -> Conflict {
    match result {
        Err(StoreError::Conflict(conflict)) => conflict,
        other => panic!("not a conflict: {other:?}"),
    }
}

on_both! {
    async fn a_host_id_keeps_its_ek_and_an_ek_its_host_id(bed) {
        let store = bed.store().await;
        store.commit(vec![enrol("a", Some([1; 32]))]).await.unwrap();
        store.commit(vec![enrol("a", Some([1; 32]))]).await.unwrap();
        let other_ek = conflict(store.commit(vec![enrol("a", Some([2; 32]))]).await);
        assert!(matches!(other_ek, Conflict::HostIdTaken { .. }));
        let other_id = conflict(store.commit(vec![enrol("b", Some([1; 32]))]).await);
        assert!(matches!(other_id, Conflict::EkTaken { .. }));
        let no_ek = conflict(store.commit(vec![enrol("a", None)]).await);
        assert!(matches!(no_ek, Conflict::HostIdTaken { .. }));
    }
}

on_both! {
    async fn a_join_token_is_spent_once_however_many_try(bed) {
        let store = bed.store().await;
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
}

pub(super) fn agent(name: &str) -> AgentName {
    name.parse().unwrap()
}

pub(super) fn registered(name: &str, revision: u64) -> Write {
    Write::Registration { agent: agent(name), revision, body: "{}".to_owned() }
}

/// Run `n` of agent x on host a, drawn at the beginning of `at`'s hour or so.
pub(super) fn id(n: u8) -> InstanceId {
    InstanceId::drawn_at(0, [n; 10])
}

pub(super) fn serial(n: u8, at: i64) -> [u8; 16] {
    let mut serial = [0; 16];
    (serial[0], serial[1]) = (n, u8::try_from(at).unwrap());
    serial
}

pub(super) fn issue(n: u8, at: i64, change: impl FnOnce(&mut Issue)) -> Write {
    let shown = vec!["unix:uid:1000".to_owned()];
    let entry = Record {
        host: Some("a"),
        agent: Some("x"),
        owner: Some("team@example.org"),
        selectors: Some(&shown),
        ..Record::default()
    }
    .entry(at, Kind::Svid, "issued", Some(serial(n, at)));
    let mut issue = Issue {
        ca: 1,
        held: Arc::default(),
        entry,
        instance: id(n),
        agent: agent("x"),
        host: host("a"),
        tier: Tier::Enterprise,
        custody: "software",
        issued_at: at,
        not_after: at + 100,
        registration_revision: 1,
        host_epoch: 0,
    };
    change(&mut issue);
    Write::Issue(Box::new(issue))
}

pub(super) fn issued(n: u8, at: i64) -> Vec<Write> {
    vec![issue(n, at, |_| {})]
}

pub(super) fn ending(who: Who, at: i64) -> Write {
    Write::End(Ending { who, at, reason: "process-exited", operator: None, lab: false })
}

pub(super) fn one(n: u8, by: &str) -> Who {
    Who { host: Some(host(by)), instances: Some(vec![id(n)]), ..Who::default() }
}

pub(super) async fn stale(store: &Store, write: Write) -> Stale {
    store.commit(vec![write]).await.unwrap().records.remove(0).unwrap_err()
}

on_both! {
    async fn records_are_numbered_without_gaps_and_a_refused_request_leaves_none(bed) {
        let store = bed.store().await;
        store.commit(vec![enrol("a", Some([1; 32])), registered("x", 1)]).await.unwrap();
        let good = (0..150u8).map(|n| store.commit(issued(n, 10)));
        let bad = (0..20u8).map(|n| {
            let mut writes = issued(200 + n % 50, 11);
            writes.push(enrol("a", Some([9; 32])));
            store.commit(writes)
        });
        let (good, bad) = futures::join!(futures::future::join_all(good), futures::future::join_all(bad));
        assert!(bad.iter().all(Result::is_err));
        let mut numbers: Vec<u64> =
            good.into_iter().map(|r| r.unwrap().records[0].as_ref().unwrap().number()).collect();
        numbers.sort_unstable();
        assert_eq!(numbers, (1..=150).collect::<Vec<u64>>());
        assert_eq!(store.records(0, 1000, None, None).await.unwrap().len(), 150);
        let numbers = async |after| -> Vec<u64> {
            store.records(after, 2, None, None).await.unwrap().iter().map(|r| r.number).collect()
        };
        assert_eq!((numbers(0).await, numbers(3).await), (vec![149, 150], vec![4, 5]), "the latest, or the next");
        assert_eq!(store.live_count(20).await.unwrap(), 150);
    }
}

on_both! {
    async fn numbering_goes_on_after_a_restart(bed) {
        let store = bed.store().await;
        store.commit(vec![registered("x", 1)]).await.unwrap();
        store.commit(issued(1, 10)).await.unwrap();
        drop(store);
        let store = bed.open().await.unwrap();
        let outcome = store.commit(issued(2, 10)).await.unwrap();
        assert_eq!(outcome.records[0].as_ref().unwrap().number(), 2);
    }
}

on_both! {
    async fn only_its_own_host_ends_an_instance_and_every_unexpired_serial_is_revoked(bed) {
        let store = bed.store().await;
        store.commit(vec![registered("x", 1)]).await.unwrap();
        for at in [10, 20, 120] {
            store.commit(issued(1, at)).await.unwrap();
        }
        store.commit(vec![ending(one(1, "b"), 130)]).await.unwrap();
        assert_eq!(store.live_count(130).await.unwrap(), 1);
        assert!(store.revocations(30).await.unwrap().is_empty());
        let ended = store.commit(vec![ending(one(1, "a"), 115)]).await.unwrap().ended;
        assert_eq!(store.live_count(116).await.unwrap(), 0);
        // The one of second 10 has expired by then; the renewal did not end the one of second 20.
        let mut revoked: Vec<u8> = store.revocations(30).await.unwrap().iter().map(|r| r.serial[1]).collect();
        revoked.sort_unstable();
        assert_eq!(revoked, [20, 120]);
        assert_eq!(ended[0].serials.len(), 2);
        assert_eq!(ended[0].owner.as_deref(), Some("team@example.org"));
        assert_eq!(ended[0].selectors, ["unix:uid:1000"]);
        let last = store.records(0, 1, None, None).await.unwrap().remove(0);
        assert_eq!((last.kind.as_str(), last.outcome.as_str()), ("instance-end", "ended"));
        assert!(last.body.contains("team@example.org") && last.body.contains(&hex::encode(serial(1, 20))));
        assert_eq!(store.revoked_on(&host("a"), 30).await.unwrap().len(), 2);
        assert!(store.revoked_on(&host("b"), 30).await.unwrap().is_empty());
    }
}

on_both! {
    async fn an_ended_instance_gets_no_credential_again_even_after_a_restart(bed) {
        let store = bed.store().await;
        store.commit(vec![registered("x", 1)]).await.unwrap();
        store.commit(issued(1, 10)).await.unwrap();
        store.commit(vec![ending(one(1, "a"), 20)]).await.unwrap();
        assert_eq!(stale(&store, issue(1, 30, |_| {})).await, Stale::Ended);
        drop(store);
        // The clock of a restart is the machine's: an hour of 1970 is forgotten, and its ids are too old to be new.
        let store = bed.open().await.unwrap();
        let now = unix_now();
        let forgotten = stale(&store, issue(1, 30, |i| i.issued_at = now)).await;
        // PostgreSQL is asked, and remembers it.
        assert!(matches!(forgotten, Stale::NotNew | Stale::Ended), "{forgotten:?}");
        let drawn = |n: u8| InstanceId::drawn_at(now.unsigned_abs() * 1000, [n; 10]);
        let new = |n: u8| issue(n, 30, |i| (i.instance, i.issued_at, i.not_after) = (drawn(n), now, now + 100));
        store.commit(vec![new(2)]).await.unwrap().records.remove(0).unwrap();
        let who = Who { instances: Some(vec![drawn(2)]), ..Who::default() };
        store.commit(vec![ending(who, now)]).await.unwrap();
        drop(store);
        let store = bed.open().await.unwrap();
        assert_eq!(stale(&store, new(2)).await, Stale::Ended);
        // An end longer ago than ends are remembered, of an instance whose credential is still remembered.
        store.commit(vec![new(3)]).await.unwrap().records.remove(0).unwrap();
        let who = Who { instances: Some(vec![drawn(3)]), ..Who::default() };
        store.commit(vec![ending(who, now - 5 * 3600)]).await.unwrap();
        drop(store);
        let store = bed.open().await.unwrap();
        assert_eq!(stale(&store, new(3)).await, Stale::Ended);
    }
}

on_both! {
    async fn what_is_out_of_date_when_it_is_recorded_is_not_recorded(bed) {
        let store = bed.store().await;
        store.commit(vec![registered("x", 1), enrol("a", Some([1; 32]))]).await.unwrap();
        store.commit(issued(1, 10)).await.unwrap();
        // All of them wait together, and so go into one commit: what changes comes first.
        let disable = Write::DisableHost { host_id: host("a"), reason: Some("stolen".to_owned()), epoch: 7 };
        let who = Who { host: Some(host("a")), ..Who::default() };
        let changed = store.commit(vec![disable, ending(who, 20)]);
        let late = store.commit(vec![issue(2, 20, |_| {})]);
        let (late, changed) = futures::join!(late, changed);
        assert_eq!(changed.unwrap().ended.len(), 1);
        // Either it came first, or it was refused: in no order does it outlive the host's end.
        if let Ok(recorded) = &late.unwrap().records[0] {
            panic!("{recorded:?} was released for a disabled host");
        }
        assert_eq!(stale(&store, issue(3, 30, |_| {})).await, Stale::Host);
        store.commit(vec![registered("x", 2)]).await.unwrap();
        assert_eq!(stale(&store, issue(3, 30, |i| i.host_epoch = 7)).await, Stale::Registration);
        let removed = Write::RemoveRegistration { agent: agent("x") };
        store.commit(vec![removed]).await.unwrap();
        let current = |i: &mut Issue| (i.host_epoch, i.registration_revision) = (7, 2);
        assert_eq!(stale(&store, issue(3, 30, current)).await, Stale::Registration);
        assert_eq!(store.records(1, 100, None, None).await.unwrap().len(), 1, "only the end of the first");
    }
}

on_both! {
    async fn a_refused_request_turns_nothing(bed) {
        let store = bed.store().await;
        store.commit(vec![registered("x", 1), enrol("a", Some([1; 32]))]).await.unwrap();
        let disable = Write::DisableHost { host_id: host("a"), reason: Some("x".to_owned()), epoch: 9 };
        store.commit(vec![disable, enrol("b", Some([1; 32]))]).await.unwrap_err();
        store.commit(issued(1, 10)).await.unwrap().records.remove(0).unwrap();
    }
}

on_both! {
    async fn a_disabled_host_stays_out_and_a_removed_one_comes_back_by_order_alone(bed) {
        let store = bed.store().await;
        let ek = Some([1; 32]);
        store.commit(vec![enrol("a", ek)]).await.unwrap();
        let disabled = |reason: Option<&str>| Write::DisableHost {
            host_id: host("a"),
            reason: reason.map(str::to_owned),
            epoch: 1,
        };
        store.commit(vec![disabled(Some("lost"))]).await.unwrap();
        assert!(matches!(conflict(store.commit(vec![enrol("a", ek)]).await), Conflict::Disabled { .. }));
        let standing =
            |ordered| vec![Write::Standing { host_id: host("a"), standing: "{}".to_owned(), ordered, epoch: 2 }];
        assert!(matches!(conflict(store.commit(standing(false)).await), Conflict::NotEnrolled { .. }));
        store.commit(standing(true)).await.unwrap();
        store.commit(vec![disabled(None)]).await.unwrap();
        store.commit(vec![enrol("a", ek)]).await.unwrap();

        store.commit(vec![Write::RemoveHost { host_id: host("a"), at: 5, epoch: 3 }]).await.unwrap();
        assert!(store.hosts().await.unwrap().is_empty());
        assert!(matches!(conflict(store.commit(vec![enrol("a", ek)]).await), Conflict::Removed { .. }));
        let allow = |name: &str, ek_digest, hardware| {
            let note = String::new();
            Write::AllowEk(AllowedEk { ek_digest, host_id: host(name), hardware, note, allowed_at: 6 })
        };
        // The binding outlives the host, both ways.
        let other_ek = store.commit(vec![allow("a", [2; 32], false)]).await;
        assert!(matches!(conflict(other_ek), Conflict::HostIdTaken { .. }));
        let other_id = store.commit(vec![allow("b", [1; 32], false)]).await;
        assert!(matches!(conflict(other_id), Conflict::EkTaken { .. }));
        store.commit(vec![allow("a", [1; 32], false)]).await.unwrap();
        store.commit(vec![enrol("a", ek)]).await.unwrap();
        assert_eq!(store.hosts().await.unwrap().len(), 1);
    }
}

on_both! {
    async fn an_ek_once_shown_to_be_simulated_is_never_vouched_for(bed) {
        let store = bed.store().await;
        let enrol = |simulated| Write::Enrol {
            host_id: host("a"),
            ek_digest: Some([1; 32]),
            simulated,
            at: 1,
            standing: "{}".to_owned(),
            epoch: 0,
        };
        store.commit(vec![enrol(true)]).await.unwrap();
        store.commit(vec![enrol(false)]).await.unwrap();
        assert!(store.ek_was_simulated(&[1; 32]).await.unwrap());
        store.commit(vec![Write::RemoveHost { host_id: host("a"), at: 5, epoch: 3 }]).await.unwrap();
        assert!(store.ek_was_simulated(&[1; 32]).await.unwrap(), "not even by removing the host");
        let note = String::new();
        let vouch = AllowedEk { ek_digest: [1; 32], host_id: host("a"), hardware: true, note, allowed_at: 6 };
        assert!(matches!(conflict(store.commit(vec![Write::AllowEk(vouch)]).await), Conflict::Simulated { .. }));
    }
}

on_both! {
    async fn memory_follows_the_store_even_when_the_caller_goes_away(bed) {
        let store = bed.store().await;
        let (tell, told) = oneshot::channel();
        let asking = store.clone();
        let caller = tokio::spawn(async move {
            let after = move |_: &WriteOutcome| {
                let _ = tell.send(());
            };
            let asked = asking.commit_then(vec![enrol("a", None)], after);
            tokio::pin!(asked);
            // Asked for, and gone before the answer.
            let _ = futures::poll!(asked.as_mut());
        });
        caller.await.unwrap();
        told.await.unwrap();
        assert_eq!(store.hosts().await.unwrap().len(), 1);
    }
}

on_both! {
    async fn what_has_expired_is_dropped_and_what_lives_is_kept(bed) {
        let store = bed.store().await;
        store.commit(vec![registered("x", 1)]).await.unwrap();
        store.commit(issued(1, 10)).await.unwrap();
        let long = issue(2, 11, |i| i.not_after = 100_000);
        store.commit(vec![long]).await.unwrap();
        store.commit(vec![ending(one(1, "a"), 20), ending(one(2, "a"), 20)]).await.unwrap();
        store.commit(vec![Write::Purge { at: 90_000 }]).await.unwrap();
        let kept = store.instances(&agent("x"), 10).await.unwrap();
        assert_eq!(kept.iter().map(|i| i.instance_id).collect::<Vec<_>>(), [id(2)]);
        assert_eq!(store.revocations(0).await.unwrap().len(), 1);
        assert_eq!(store.records(0, 100, None, None).await.unwrap().len(), 4, "records are never dropped");
    }
}

on_both! {
    async fn a_newer_schema_is_refused(bed) {
        drop(bed.store().await);
        let (yes, nothing) = if bed.postgres.is_some() { ("true", "'\\x00'") } else { ("1", "x'00'") };
        bed.sql(&format!(
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES (9999, 'later', {yes}, {nothing}, 0)"
        ))
        .await;
        assert!(matches!(bed.opened().await, Err(StoreError::Migration(_))));
    }
}

on_both! {
    async fn a_store_has_one_writer(bed) {
        let store = bed.store().await;
        assert!(matches!(bed.open().await, Err(StoreError::InUse { .. } | StoreError::IssuerInUse { .. })));
        store.commit(vec![registered("x", 1)]).await.unwrap();
        drop(store);
        bed.open().await.unwrap();
    }
}

/// With 300 records: more than one full tile.
pub(super) async fn filled(bed: &Bed) -> Store {
    let store = bed.store().await;
    store.commit(vec![registered("x", 1)]).await.unwrap();
    for tens in (1..=150).collect::<Vec<i64>>().chunks(10) {
        let both = |at: &i64| [issue(1, *at, |_| {}), issue(2, *at, |_| {})];
        let outcome = store.commit(tens.iter().flat_map(both).collect()).await.unwrap();
        assert!(outcome.records.iter().all(Result::is_ok));
    }
    store
}

on_both! {
    async fn every_record_is_proven_by_the_checkpoint_of_its_commit(bed) {
        let store = filled(&bed).await;
        // Over a restart, too.
        drop(store);
        let store = bed.open().await.unwrap();
        store.commit(issued(1, 200)).await.unwrap();
        for (n, at, index) in [(1, 1, 0), (2, 1, 1), (2, 128, 255), (1, 129, 256), (2, 150, 299), (1, 200, 300)] {
            let proven = store.prove(FoundBy::Serial(&serial(n, at))).await.unwrap().unwrap();
            let checkpoint = open_checkpoint(&proven.checkpoint, signer().verifier()).unwrap();
            assert_eq!((proven.index, checkpoint.size), (index, 301));
            assert!(proven.body.contains(&hex::encode(serial(n, at))));
            check_inclusion(&checkpoint, index, leaf_hash(proven.body.as_bytes()), &proven.proof).unwrap();
        }
        assert!(store.prove(FoundBy::Serial(&[9; 16])).await.unwrap().is_none());
    }
}

on_both! {
    async fn a_record_is_found_by_its_serial_before_and_after_it_is_indexed(bed) {
        let store = bed.store().await;
        store.commit(vec![registered("x", 1)]).await.unwrap();
        let serial = |n: u32| {
            let mut serial = [0; 16];
            serial[..4].copy_from_slice(&n.to_le_bytes());
            serial
        };
        for chunk in (0..5000).collect::<Vec<u32>>().chunks(200) {
            let record = |n: &u32| {
                let entry = Record::default().entry(10, Kind::HostAttestation, "attested", Some(serial(*n)));
                Write::Record(entry)
            };
            store.commit(chunk.iter().map(record).collect()).await.unwrap();
        }
        let indexed: i64 = bed.sql("SELECT count(*) FROM serials").await.parse().unwrap();
        assert!((1..5000).contains(&indexed), "{indexed}");
        for n in [0, 1, 2047, 2048, 4500, 4999] {
            assert_eq!(store.prove(FoundBy::Serial(&serial(n))).await.unwrap().unwrap().index, u64::from(n));
        }
        assert!(store.prove(FoundBy::Serial(&serial(5000))).await.unwrap().is_none());
    }
}

on_both! {
    async fn a_store_whose_records_were_changed_does_not_open(bed) {
        let zeros = bed.zeros(32);
        let root = format!("UPDATE log_checkpoint SET root = {zeros}");
        let tile = format!("UPDATE log_tiles SET root = {zeros}");
        let note = format!("UPDATE log_checkpoint SET note = {}", bed.zeros(1));
        let changes = [
            ("UPDATE records SET body = replace(body, 'team@', 'somebody@') WHERE number = 290", "changed"),
            ("DELETE FROM records WHERE number = 300", "missing"),
            (&tile, "changed"),
            (&root, "changed"),
            (&note, "not signed"),
            ("UPDATE log_checkpoint SET size = 299", "changed"),
        ];
        for (change, why) in changes {
            let bed = bed.another();
            drop(filled(&bed).await);
            bed.sql(change).await;
            let refused = bed.open().await.unwrap_err().to_string();
            assert!(refused.contains(why), "{change}: {refused}");
        }
    }
}

on_both! {
    async fn a_record_changed_under_a_full_tile_has_no_proof(bed) {
        let store = filled(&bed).await;
        bed.sql("UPDATE records SET body = replace(body, 'team@', 'somebody@') WHERE number = 1").await;
        assert!(matches!(store.prove(FoundBy::Serial(&serial(1, 1))).await, Err(StoreError::Unreadable { .. })));
        store.prove(FoundBy::Serial(&serial(2, 1))).await.unwrap().unwrap();
    }
}

on_both! {
    async fn a_store_of_before_the_log_is_taken_in(bed) {
        let store = filled(&bed).await;
        let before = store.prove(FoundBy::Serial(&serial(1, 1))).await.unwrap().unwrap();
        drop(store);
        for table in ["log_checkpoint", "log_tiles", "serials", "certificates"] {
            bed.sql(&format!("DELETE FROM {table}")).await;
        }
        assert!(!bed.opened().await.unwrap().has_checkpoint().await.unwrap());
        let store = bed.open().await.unwrap();
        assert_eq!(store.prove(FoundBy::Serial(&serial(1, 1))).await.unwrap().unwrap().checkpoint, before.checkpoint);
    }
}

on_both! {
    async fn a_record_too_long_for_the_log_is_refused_and_takes_no_other_with_it(bed) {
        let store = bed.store().await;
        let record = |length: usize| {
            let reason = Some("x".repeat(length));
            Write::Record(Record { reason, ..Record::default() }.entry(10, Kind::Svid, "refused", None))
        };
        let commit = |length| store.commit(vec![record(10), record(length)]);
        let (before, long, after) = tokio::join!(commit(10), commit(70_000), commit(20));
        assert!(matches!(long, Err(StoreError::Log(LogError::TooLong(_)))), "{long:?}");
        assert_eq!(before.unwrap().records.len() + after.unwrap().records.len(), 4);
        assert_eq!(store.records(0, 100, None, None).await.unwrap().len(), 4, "nothing of the long one is there");
    }
}

on_both! {
    async fn an_instance_that_holds_very_many_certificates_can_be_ended(bed) {
        let store = bed.store().await;
        store.commit(vec![registered("x", 1)]).await.unwrap();
        for chunk in (0..2500_u32).collect::<Vec<_>>().chunks(250) {
            let one_more = |n: &u32| {
                issue(1, 10, |issue| {
                    let mut serial = [9; 16];
                    serial[..4].copy_from_slice(&n.to_be_bytes());
                    issue.entry.serial = Some(serial);
                })
            };
            store.commit(chunk.iter().map(one_more).collect()).await.unwrap();
        }
        let ended = store.commit(vec![ending(one(1, "a"), 11)]).await.unwrap().ended;
        assert_eq!((ended.len(), ended[0].serials.len()), (1, 2500));
        assert_eq!(store.revocations(11).await.unwrap().len(), 2500);
        let records = store.records(2500, 100, None, None).await.unwrap();
        assert_eq!(records.len(), 3, "in parts");
        let named: usize = records.iter().map(|r| r.body.matches("09090909").count() / 3).sum();
        assert!(named >= 2500 && records.iter().all(|r| r.body.len() < 65_536));
    }
}

on_both! {
    async fn a_gap_in_the_records_is_not_taken_in(bed) {
        drop(filled(&bed).await);
        for sql in
            ["DELETE FROM log_checkpoint", "DELETE FROM log_tiles", "DELETE FROM records WHERE number = 5"]
        {
            bed.sql(sql).await;
        }
        let refused = bed.open().await;
        assert!(matches!(refused, Err(StoreError::Log(LogError::Missing { signed: 300, found: 299 }))));
    }
}

/// Signs, or does not.
#[derive(Debug)]
struct Failing(SoftwareLogKey, Arc<std::sync::atomic::AtomicBool>);

impl LogKey for Failing {
    fn public(&self) -> [u8; 32] {
        self.0.public()
    }

    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, LogKeyError> {
        if self.1.load(std::sync::atomic::Ordering::Acquire) {
            return Err(LogKeyError("the token is away".to_owned()));
        }
        self.0.sign(message)
    }
}

on_both! {
    async fn without_the_logs_key_nothing_is_recorded_and_with_it_again_everything(bed) {
        let away = Arc::new(std::sync::atomic::AtomicBool::new(false));
        let key = Failing(SoftwareLogKey::from_seed(&[7; 32]).unwrap(), away.clone());
        let signer = LogSigner::in_token(signer().verifier().clone(), Arc::new(key)).unwrap();
        let store = bed.opened().await.unwrap().write_with(signer).await.unwrap();
        store.commit(vec![registered("x", 1)]).await.unwrap();
        store.commit(issued(1, 1)).await.unwrap();
        store.log_signer().health().await.unwrap();
        away.store(true, std::sync::atomic::Ordering::Release);
        assert!(store.log_signer().health().await.is_err());
        for at in 2..5 {
            assert!(store.commit(issued(1, at)).await.is_err());
        }
        assert_eq!(store.records(0, 100, None, None).await.unwrap().len(), 1);
        away.store(false, std::sync::atomic::Ordering::Release);
        let number = store.commit(issued(1, 9)).await.unwrap().records.remove(0).unwrap().number();
        assert_eq!((number, store.prove(FoundBy::Serial(&serial(1, 9))).await.unwrap().unwrap().index), (2, 1));
    }
}

fn ca(hierarchy: Hierarchy, role: Role, generation: u32, stage: Stage) -> Write {
    Write::Authority(Box::new(Authority::new(hierarchy, role, generation, stage, 1)))
}

fn moved(generation: u32, from: Stage, to: Stage, at: i64) -> Write {
    let (hierarchy, role) = (Hierarchy::Tier(Tier::Enterprise), Role::Issuing);
    Write::Change(Change::Stage { hierarchy, role, generation, from, to, at })
}

fn tainting(generation: u32) -> Write {
    let (hierarchy, role) = (Hierarchy::Tier(Tier::Enterprise), Role::Issuing);
    Write::Change(Change::Taint { hierarchy, role, generation, at: 50, renew_within: 7 })
}

async fn one_ca(store: &Store, generation: u32) -> Authority {
    store.authorities().await.unwrap().into_iter().find(|a| a.generation == generation).unwrap()
}

on_both! {
    async fn a_ca_moves_from_where_it_stands_and_from_nowhere_else(bed) {
        let store = bed.store().await;
        let enterprise = Hierarchy::Tier(Tier::Enterprise);
        store.commit(vec![ca(enterprise, Role::Issuing, 1, Stage::Prepared)]).await.unwrap();
        assert!(store.commit(vec![ca(enterprise, Role::Issuing, 1, Stage::Prepared)]).await.is_err(), "taken");
        store.commit(vec![moved(1, Stage::Prepared, Stage::Active, 5)]).await.unwrap();
        let again = conflict(store.commit(vec![moved(1, Stage::Prepared, Stage::Active, 6)]).await);
        assert!(matches!(again, Conflict::Authority { generation: 1, expected: "prepared", .. }), "{again}");
        let both = vec![moved(1, Stage::Active, Stage::Retiring, 7), moved(2, Stage::Prepared, Stage::Active, 7)];
        conflict(store.commit(both).await);
        let kept = one_ca(&store, 1).await;
        assert_eq!(
            (kept.stage, kept.activated_at, kept.replaced_at),
            (Stage::Active, Some(5), None),
            "all or nothing"
        );
        store.commit(vec![tainting(1)]).await.unwrap();
        let tainted = one_ca(&store, 1).await;
        assert_eq!((tainted.stage, tainted.tainted_at, tainted.renew_within), (Stage::Tainted, Some(50), 7));
        conflict(store.commit(vec![tainting(1)]).await);
        store.commit(vec![moved(1, Stage::Tainted, Stage::Retired, 60)]).await.unwrap();
        conflict(store.commit(vec![tainting(1)]).await);
    }
}

on_both! {
    async fn what_a_tainted_ca_signed_and_is_not_recorded_yet_never_is(bed) {
        let store = bed.store().await;
        let now = 10;
        store
            .commit(vec![
                ca(Hierarchy::Tier(Tier::Enterprise), Role::Issuing, 1, Stage::Active),
                registered("x", 1),
            ])
            .await
            .unwrap();
        store.commit(vec![issue(1, now, |_| {})]).await.unwrap();
        store.commit(vec![tainting(1)]).await.unwrap();
        assert_eq!(stale(&store, issue(2, now, |_| {})).await, Stale::Authority);
        store.commit(vec![issue(3, now, |i| i.ca = 2)]).await.unwrap();
        drop(store);
        let store = bed.open().await.unwrap();
        assert_eq!(stale(&store, issue(4, now, |_| {})).await, Stale::Authority, "a restart forgets no taint");
    }
}

on_both! {
    async fn a_withdrawal_ends_who_holds_nothing_else_and_leaves_the_others(bed) {
        let store = bed.store().await;
        let (now, enterprise) = (10, Hierarchy::Tier(Tier::Enterprise));
        let cas = [1, 2].map(|generation| ca(enterprise, Role::Issuing, generation, Stage::Active));
        store.commit(cas.into_iter().chain([registered("x", 1)]).collect()).await.unwrap();
        for n in 1..=3 {
            store.commit(vec![issue(n, now, |_| {})]).await.unwrap();
        }
        // 1 has renewed with the next CA; 2 has not; 3 has another CA's from before, and this one's as its newest.
        store.commit(vec![issue(1, now, |i| (i.ca, i.entry.serial) = (2, Some(serial(11, now))))]).await.unwrap();
        let other = |i: &mut Issue| (i.ca, i.entry.serial) = (2, Some(serial(13, now)));
        store.commit(vec![issue(3, now, other)]).await.unwrap();
        store.commit(vec![issue(3, now, |i| i.entry.serial = Some(serial(23, now)))]).await.unwrap();
        assert_eq!(store.signed_by(Tier::Enterprise, 1, now).await.unwrap(), 4);
        let change = Change::Withdraw { hierarchy: enterprise, generation: 1, at: now, lab: false };
        conflict(store.commit(vec![Write::Change(change.clone())]).await);
        assert!(store.revocations(now).await.unwrap().is_empty(), "it is not tainted");
        store.commit(vec![tainting(1)]).await.unwrap();
        let outcome = store.commit(vec![Write::Change(change.clone())]).await.unwrap();
        let mut ended: Vec<_> = outcome.ended.iter().map(|e| e.instance).collect();
        ended.sort_unstable();
        let mut expected = [2, 3].map(id).to_vec();
        expected.sort_unstable();
        assert_eq!(ended, expected);
        let revoked = store.revocations(now).await.unwrap();
        let by = |reason: &str| revoked.iter().filter(|r| r.reason == reason).count();
        assert_eq!((by("superseded"), by("ca-tainted")), (1, 4), "{revoked:?}");
        assert_eq!(revoked.iter().filter(|r| r.ca == 2).count(), 1, "what an ended instance held of another CA");
        // A host is told what ends its instances, and nothing of what they have replaced.
        assert_eq!(store.revoked_on(&host("a"), now).await.unwrap().len(), 4);
        conflict(store.commit(vec![Write::Change(change)]).await);
    }
}

on_both! {
    async fn the_end_of_the_last_leaf_is_known_once_a_ca_signs_no_more(bed) {
        let store = bed.store().await;
        let (now, enterprise) = (10, Hierarchy::Tier(Tier::Enterprise));
        store.commit(vec![ca(enterprise, Role::Issuing, 1, Stage::Active), registered("x", 1)]).await.unwrap();
        store.commit(vec![ca(enterprise, Role::Issuing, 2, Stage::Active)]).await.unwrap();
        store.commit(vec![issue(1, now, |i| i.not_after = now + 100)]).await.unwrap();
        store.commit(vec![issue(2, now, |i| i.not_after = now + 300)]).await.unwrap();
        assert_eq!(one_ca(&store, 1).await.last_not_after, None);
        for generation in [1, 2] {
            store
                .commit(vec![Write::Change(Change::Settle { hierarchy: enterprise, generation })])
                .await
                .unwrap();
        }
        assert_eq!(one_ca(&store, 1).await.last_not_after, Some(now + 300));
        assert_eq!(one_ca(&store, 2).await.last_not_after, Some(0), "it has signed nothing");
        store.commit(vec![ca(Hierarchy::Infrastructure, Role::Issuing, 3, Stage::Active)]).await.unwrap();
        for not_after in [50, 70, 60] {
            store.commit(vec![Write::Change(Change::Signed { generation: 3, not_after })]).await.unwrap();
        }
        assert_eq!(one_ca(&store, 3).await.last_not_after, Some(70));
    }
}
