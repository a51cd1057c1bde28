//! Two issuers, one PostgreSQL: what one has changed, the other knows before it decides.

use std::sync::Mutex;

use hallmark_core::id::{AgentName, HostId, InstanceId};
use hallmark_core::log::{LogKey, LogVerifier, SoftwareLogKey, check_inclusion, leaf_hash, open_checkpoint};
use hallmark_core::tier::Tier;
use hallmark_kit::postgres::{Postgres, name_in};

use super::*;
use crate::record::{Kind, Record};

/// A database with two issuers.
struct Pair {
    server: Arc<Postgres>,
    url: String,
    a: Store,
    b: Store,
}

fn signer(issuer: &str) -> LogSigner {
    let key = SoftwareLogKey::from_seed(&[issuer.as_bytes()[0]; 32]).unwrap();
    let name = format!("example.org/log/{issuer}").parse().unwrap();
    LogSigner::in_token(LogVerifier::new(name, key.public()), Arc::new(key)).unwrap()
}

async fn open(url: &str, issuer: &str) -> Result<Store, StoreError> {
    let location = Location::Postgres(Box::new(url.parse().unwrap()));
    Store::open(&location, &issuer.parse().unwrap()).await?.write_with(signer(issuer)).await
}

async fn pair() -> Pair {
    let server = Postgres::shared().unwrap();
    let url = server.database().unwrap();
    // Both make the schema at once.
    let (a, b) = tokio::join!(open(&url, "a"), open(&url, "b"));
    Pair { a: a.unwrap(), b: b.unwrap(), server, url }
}

fn host(name: &str) -> HostId {
    name.parse().unwrap()
}

fn agent(name: &str) -> AgentName {
    name.parse().unwrap()
}

fn id(n: u8) -> InstanceId {
    InstanceId::drawn_at(unix_now().unsigned_abs() * 1000, [n; 10])
}

fn enrol(name: &str, ek: [u8; 32]) -> Write {
    Write::Enrol {
        host_id: host(name),
        ek_digest: Some(ek),
        simulated: false,
        at: 1,
        standing: "{}".to_owned(),
        epoch: 0,
    }
}

/// Agent x at this revision of the set.
fn registered(revision: u64) -> Vec<Write> {
    vec![
        Write::RegistrationSet { revision },
        Write::Registration { agent: agent("x"), revision, body: "{}".to_owned() },
    ]
}

fn issue(store: &Store, instance: InstanceId, serial: u8, revision: u64) -> Write {
    let (now, shown) = (unix_now(), vec!["unix:uid:1000".to_owned()]);
    let entry = Record {
        host: Some("h"),
        agent: Some("x"),
        owner: Some("team@example.org"),
        selectors: Some(&shown),
        certificate_sha256: Some(hex::encode([serial; 32])),
        ..Record::default()
    }
    .entry(now, Kind::Svid, "issued", Some([serial; 16]));
    Write::Issue(Box::new(Issue {
        entry,
        instance,
        agent: agent("x"),
        host: host("h"),
        tier: Tier::Enterprise,
        ca: 1,
        custody: "software",
        held: Arc::default(),
        issued_at: now,
        not_after: now + 600,
        registration_revision: revision,
        host_epoch: store.live().epoch(&host("h")),
    }))
}

async fn issued(store: &Store, write: Write) -> Result<Durable, Stale> {
    store.commit(vec![write]).await.unwrap().records.remove(0)
}

fn ending(who: Who) -> Write {
    Write::End(Ending { who, at: unix_now(), reason: "operator", operator: None, lab: false })
}

/// Waits until `store` has heard of everything.
async fn caught_up(store: &Store) {
    store.commit(Vec::new()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_join_token_is_spent_once_at_whichever_issuer() {
    let pair = pair().await;
    for round in 0..20_u8 {
        let made = Write::JoinToken { token_sha256: [round; 32], host_id: host("h"), expires_at: 100 };
        pair.a.commit(vec![made]).await.unwrap();
        let spend = || vec![Write::SpendJoinToken { token_sha256: [round; 32], host_id: host("h"), at: 5 }];
        let (at_a, at_b) = tokio::join!(pair.a.commit(spend()), pair.b.commit(spend()));
        assert_eq!(u8::from(at_a.is_ok()) + u8::from(at_b.is_ok()), 1, "round {round}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_ek_and_a_host_id_are_bound_once_across_issuers() {
    let pair = pair().await;
    for round in 0..20_u8 {
        let (one, other) = (format!("one{round}"), format!("other{round}"));
        let ek = [round; 32];
        let (at_a, at_b) =
            tokio::join!(pair.a.commit(vec![enrol(&one, ek)]), pair.b.commit(vec![enrol(&other, ek)]));
        assert_eq!(u8::from(at_a.is_ok()) + u8::from(at_b.is_ok()), 1, "one EK, two ids, round {round}");
        let id = format!("id{round}");
        let (at_a, at_b) = tokio::join!(
            pair.a.commit(vec![enrol(&id, [100 + round; 32])]),
            pair.b.commit(vec![enrol(&id, [200 + round; 32])])
        );
        assert_eq!(u8::from(at_a.is_ok()) + u8::from(at_b.is_ok()), 1, "one id, two EKs, round {round}");
    }
}

#[tokio::test]
async fn a_host_that_one_issuer_disables_gets_nothing_from_the_other() {
    let Pair { a, b, .. } = &pair().await;
    a.commit(registered(1)).await.unwrap();
    a.commit(vec![enrol("h", [1; 32])]).await.unwrap();
    caught_up(b).await;
    issued(b, issue(b, id(1), 1, 1)).await.unwrap();
    // Decided at b before, recorded after.
    let late = issue(b, id(2), 2, 1);
    let disable =
        Write::DisableHost { host_id: host("h"), reason: Some("stolen".to_owned()), epoch: a.next_epoch() };
    let who = Who { host: Some(host("h")), ..Who::default() };
    let ended = a.commit(vec![disable, ending(who)]).await.unwrap().ended;
    assert_eq!(ended.len(), 1, "what b had issued ends at a's word");
    assert_eq!(ended[0].serials, [vec![1; 16]]);
    assert_eq!(ended[0].owner.as_deref(), Some("team@example.org"), "by b's record");
    assert_eq!(issued(b, late).await, Err(Stale::Host));
    assert_eq!(issued(b, issue(b, id(1), 3, 1)).await, Err(Stale::Ended));
    let revoked = b.revocations(0).await.unwrap();
    assert_eq!((revoked.len(), revoked[0].issuer.as_str()), (1, "b"), "b's CRL lists it");
}

#[tokio::test]
async fn an_instance_goes_on_at_the_other_issuer_and_stays_itself() {
    let Pair { a, b, .. } = &pair().await;
    let mut both = registered(1);
    both.push(Write::Registration { agent: agent("y"), revision: 1, body: "{}".to_owned() });
    a.commit(both).await.unwrap();
    caught_up(b).await;
    // Drawn hours ago: only whoever knows it takes it for more than an old id.
    let old = InstanceId::drawn_at((unix_now() - 6 * 3600).unsigned_abs() * 1000, [7; 10]);
    assert_eq!(issued(a, issue(a, old, 1, 1)).await, Err(Stale::NotNew));
    let instance = id(1);
    issued(a, issue(a, instance, 2, 1)).await.unwrap();
    issued(b, issue(b, instance, 3, 1)).await.unwrap();
    for change in [(|issue: &mut Issue| issue.host = host("elsewhere")) as fn(&mut Issue), |issue| {
        issue.agent = agent("y")
    }] {
        let Write::Issue(mut taken) = issue(b, instance, 4, 1) else { unreachable!() };
        change(&mut taken);
        assert_eq!(issued(b, Write::Issue(taken)).await, Err(Stale::Taken));
    }
    // It ends as a whole, whoever issued what.
    let who = Who { host: Some(host("h")), instances: Some(vec![instance]), ..Who::default() };
    let mut serials = a.commit(vec![ending(who)]).await.unwrap().ended.remove(0).serials;
    serials.sort();
    assert_eq!(serials, [vec![2; 16], vec![3; 16]]);
    assert_eq!(issued(b, issue(b, instance, 5, 1)).await, Err(Stale::Ended));
    assert_eq!(b.live_count(unix_now()).await.unwrap(), 0);
    let shown = b.instances(&agent("x"), 10).await.unwrap();
    assert_eq!((shown.len(), shown[0].end_reason.as_deref()), (1, Some("operator")));
}

#[tokio::test]
async fn registrations_have_one_order() {
    let Pair { a, b, .. } = &pair().await;
    a.commit(registered(1)).await.unwrap();
    caught_up(b).await;
    let late = issue(b, id(1), 1, 1);
    a.commit(registered(2)).await.unwrap();
    assert_eq!(issued(b, late).await, Err(Stale::Registration));
    // Planned upon revision 1.
    let overtaken = b.commit(registered(2)).await;
    assert!(matches!(overtaken, Err(StoreError::Conflict(Conflict::Overtaken))), "{overtaken:?}");
    issued(b, issue(b, id(1), 2, 2)).await.unwrap();
    let removed =
        vec![Write::RegistrationSet { revision: 3 }, Write::RemoveRegistration { agent: agent("x") }];
    b.commit(removed).await.unwrap();
    assert_eq!(issued(a, issue(a, id(2), 3, 2)).await, Err(Stale::Registration));
}

#[tokio::test]
async fn a_decision_upon_a_standing_that_is_no_more_is_refused() {
    let Pair { a, b, .. } = &pair().await;
    a.commit(vec![enrol("h", [1; 32])]).await.unwrap();
    caught_up(b).await;
    let stands = |store: &Store| Write::Stands { host_id: host("h"), epoch: store.live().epoch(&host("h")) };
    let standing = |standing: &str, store: &Store| Write::Standing {
        host_id: host("h"),
        standing: standing.to_owned(),
        ordered: false,
        epoch: store.next_epoch(),
    };
    let at_b = vec![stands(b), standing("{\"b\":1}", b)];
    a.commit(vec![stands(a), standing("{\"a\":1}", a)]).await.unwrap();
    let overtaken = b.commit(at_b).await;
    assert!(matches!(overtaken, Err(StoreError::Conflict(Conflict::Overtaken))), "{overtaken:?}");
    b.commit(vec![stands(b), standing("{\"b\":2}", b)]).await.unwrap();
    assert_eq!(a.hosts().await.unwrap()[0].standing, "{\"b\":2}");
}

#[tokio::test]
async fn what_is_heard_before_there_is_an_issuer_is_told_once_there_is() {
    let Pair { a, b, .. } = &pair().await;
    a.commit(registered(1)).await.unwrap();
    caught_up(b).await;
    let told = listening(b);
    assert_eq!(*told.lock().unwrap(), ["registrations 1: 1"]);
}

/// What an issuer's memory was told, in words.
fn listening(store: &Store) -> Arc<Mutex<Vec<String>>> {
    let told: Arc<Mutex<Vec<String>>> = Arc::default();
    let kept = told.clone();
    store.observe(move |heard| {
        kept.lock().unwrap().push(match heard {
            Heard::Host { host_id, row, allowed, .. } => {
                let disabled = row.as_ref().and_then(|row| row.disabled.as_deref());
                format!(
                    "{host_id} there={} disabled={disabled:?} allowed={}",
                    row.is_some(),
                    allowed.is_some()
                )
            }
            Heard::Registrations { revision, rows } => format!("registrations {revision}: {}", rows.len()),
            Heard::Ended(ended) => format!("{} ended: {}", ended.agent, ended.serials.len()),
            Heard::Authorities => "authorities".to_owned(),
            Heard::Anew => "anew".to_owned(),
        });
    });
    told
}

#[tokio::test(flavor = "multi_thread")]
async fn the_other_issuer_is_woken_without_asking() {
    let Pair { a, b, .. } = &pair().await;
    let told = listening(b);
    a.commit(registered(1)).await.unwrap();
    a.commit(vec![enrol("h", [1; 32])]).await.unwrap();
    issued(a, issue(a, id(1), 1, 1)).await.unwrap();
    let disable =
        Write::DisableHost { host_id: host("h"), reason: Some("lost".to_owned()), epoch: a.next_epoch() };
    let who = Who { host: Some(host("h")), ..Who::default() };
    a.commit(vec![disable, ending(who)]).await.unwrap();
    a.commit(vec![Write::RemoveHost { host_id: host("h"), at: 5, epoch: a.next_epoch() }]).await.unwrap();
    let begun = std::time::Instant::now();
    // What comes together is told once, as it stands then.
    let wanted = ["registrations 1: 1", "h there=false disabled=None allowed=false", "x ended: 1"];
    while !wanted.iter().all(|line| told.lock().unwrap().iter().any(|told| told == line)) {
        assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", told.lock().unwrap());
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_was_away_for_longer_than_changes_are_kept_hears_of_everything() {
    let Pair { a, b, server, url } = &pair().await;
    a.commit(registered(1)).await.unwrap();
    caught_up(b).await;
    let told = listening(b);
    // All in one transaction of the database, so that b cannot look in between.
    a.commit(vec![enrol("h", [1; 32])]).await.unwrap();
    caught_up(b).await;
    told.lock().unwrap().clear();
    server
        .psql(
            name_in(url),
            "BEGIN; SELECT pg_advisory_xact_lock(7521983773183439467);
             INSERT INTO hallmark.changes SELECT max(seq) + 5, 'a', 1, 'registrations', '' FROM hallmark.changes;
             DELETE FROM hallmark.changes WHERE seq < (SELECT max(seq) FROM hallmark.changes); COMMIT",
        )
        .unwrap();
    caught_up(b).await;
    let told = told.lock().unwrap();
    assert!(told.contains(&"registrations 1: 1".to_owned()), "{told:?}");
    assert!(told.iter().any(|line| line.starts_with("h there=true")), "{told:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn each_issuer_has_its_own_log_and_a_killed_server_loses_nothing_of_either() {
    let server = Arc::new(Postgres::started().unwrap());
    let url = server.database().unwrap();
    let (a, b) = (open(&url, "a").await.unwrap(), open(&url, "b").await.unwrap());
    a.commit(registered(1)).await.unwrap();
    caught_up(&b).await;
    let mut kept: Vec<(usize, u8, u64)> = Vec::new();
    for round in 0..4_u8 {
        let killer = {
            let server = server.clone();
            tokio::task::spawn_blocking(move || {
                std::thread::sleep(Duration::from_millis(40 + 30 * u64::from(round)));
                server.kill().unwrap();
                server.start().unwrap();
            })
        };
        for n in 0..40_u8 {
            let serial = round * 40 + n;
            for (place, store) in [&a, &b].into_iter().enumerate() {
                let write = issue(store, id(serial), if place == 0 { serial } else { 255 - serial }, 1);
                // What fails was not given to anybody.
                if let Ok(mut outcome) = store.commit(vec![write]).await
                    && let Ok(recorded) = outcome.records.remove(0)
                {
                    kept.push((place, if place == 0 { serial } else { 255 - serial }, recorded.number()));
                }
            }
        }
        killer.await.unwrap();
    }
    // They are served again, and go on.
    let begun = std::time::Instant::now();
    for store in [&a, &b] {
        while store.commit(vec![Write::Heartbeat { at: 1 }]).await.is_err() {
            assert!(begun.elapsed() < Duration::from_secs(60));
        }
    }
    assert!(kept.len() > 50, "{} of 320", kept.len());
    for (place, serial, number) in &kept {
        let (store, name) = if *place == 0 { (&a, "a") } else { (&b, "b") };
        let proven = store.prove(FoundBy::Serial(&[*serial; 16])).await.unwrap().unwrap();
        assert_eq!(proven.index + 1, *number);
        let checkpoint = open_checkpoint(&proven.checkpoint, signer(name).verifier()).unwrap();
        check_inclusion(&checkpoint, proven.index, leaf_hash(proven.body.as_bytes()), &proven.proof).unwrap();
        let by_hash = store.prove(FoundBy::Certificate(&[*serial; 32])).await.unwrap().unwrap();
        assert_eq!(by_hash.index, proven.index);
    }
    println!("server killed 4 times: {} issued, 0 lost", kept.len());
}

#[tokio::test]
async fn a_server_that_may_forget_what_it_confirms_is_refused() {
    let server = Postgres::started().unwrap();
    let url = server.database().unwrap();
    server.stop().unwrap();
    server.start_with(&["fsync=off"]).unwrap();
    let refused = open(&url, "a").await;
    assert!(matches!(refused, Err(StoreError::NotDurable { setting: "fsync", .. })), "{refused:?}");
    server.stop().unwrap();
    // What the server's default is does not matter where a session can say otherwise.
    server.start_with(&["synchronous_commit=off"]).unwrap();
    let store = open(&url, "a").await.unwrap();
    store.commit(registered(1)).await.unwrap();
}

#[tokio::test]
async fn a_database_that_lost_records_is_not_gone_on_from() {
    let Pair { a, server, url, .. } = &pair().await;
    a.commit(registered(1)).await.unwrap();
    for n in 0..10 {
        issued(a, issue(a, id(n), n, 1)).await.unwrap();
    }
    // As when an older copy takes over: the newest records are gone, and the connection breaks.
    let copy = "CREATE SCHEMA old; CREATE TABLE old.checkpoint AS SELECT * FROM issuer_a.log_checkpoint";
    server.psql(name_in(url), copy).unwrap();
    issued(a, issue(a, id(11), 11, 1)).await.unwrap();
    server
        .psql(
            name_in(url),
            "DELETE FROM issuer_a.records WHERE number = 11; DELETE FROM issuer_a.log_checkpoint;
             INSERT INTO issuer_a.log_checkpoint SELECT * FROM old.checkpoint;
             SELECT pg_terminate_backend(pid) FROM pg_stat_activity
             WHERE pid <> pg_backend_pid() AND datname = current_database()",
        )
        .unwrap();
    for n in 20..25 {
        let refused = a.commit(vec![issue(a, id(n), n, 1)]).await;
        assert!(refused.is_err(), "it went on from 10 records, having signed for 11: {refused:?}");
    }
}

#[tokio::test]
async fn what_a_host_says_does_not_break_a_commit() {
    let Pair { a, .. } = &pair().await;
    let said = Record { agent: Some("a\0b"), host: Some("h"), ..Record::default() };
    let entry = said.entry(unix_now(), Kind::Svid, "refused", None);
    let good = Record::default().entry(unix_now(), Kind::Svid, "refused", None);
    let (bad, good) = tokio::join!(a.record(entry), a.record(good));
    assert_eq!((bad.unwrap().number(), good.unwrap().number()), (1, 2));
    let kept = a.records(0, 10, None, None).await.unwrap();
    assert!(kept[0].body.contains("a\\u0000b"), "the record itself has what was said: {}", kept[0].body);
}

/// An older copy of the database takes over: it lacks a change that was heard, and goes on with others.
#[tokio::test]
async fn changes_that_a_database_lost_are_not_taken_for_heard() {
    let Pair { a, b, server, url } = &pair().await;
    let note = String::new();
    let allowed = AllowedEk { ek_digest: [5; 32], host_id: host("d"), hardware: false, note, allowed_at: 1 };
    a.commit(vec![Write::AllowEk(allowed)]).await.unwrap();
    a.commit(registered(1)).await.unwrap();
    a.commit(vec![enrol("h", [1; 32])]).await.unwrap();
    caught_up(b).await;
    let told = listening(b);
    let disabled = "UPDATE hallmark.hosts SET disabled = 'stolen' WHERE host_id = 'h'";
    for (lost, instead) in [
        ("seq = 3", "INSERT INTO hallmark.changes VALUES (3, 'a', 7, 'host', 'h')"),
        ("seq >= 3", "DELETE FROM hallmark.allowed_eks"),
        ("seq > 0", "SELECT 1"),
    ] {
        told.lock().unwrap().clear();
        server
            .psql(name_in(url), &format!("{disabled}; DELETE FROM hallmark.changes WHERE {lost}; {instead}"))
            .unwrap();
        caught_up(b).await;
        let told = told.lock().unwrap();
        assert_eq!(told.first().map(String::as_str), Some("anew"), "{lost}: {told:?}");
        assert!(told.iter().any(|line| line.starts_with("h there=true disabled=Some")), "{lost}: {told:?}");
    }
    // The same again is no news.
    told.lock().unwrap().clear();
    caught_up(b).await;
    assert!(told.lock().unwrap().is_empty(), "{:?}", told.lock().unwrap());
}

#[tokio::test]
async fn an_instance_ends_though_its_record_is_kept_from_this_issuer() {
    let Pair { a, b, server, url } = &pair().await;
    a.commit(registered(1)).await.unwrap();
    caught_up(b).await;
    let instance = id(1);
    issued(b, issue(b, instance, 1, 1)).await.unwrap();
    server.psql(name_in(url), "ALTER SCHEMA issuer_b RENAME TO elsewhere").unwrap();
    let who = Who { agent: Some(agent("x")), ..Who::default() };
    let ended = a.commit(vec![ending(who)]).await.unwrap().ended;
    assert_eq!((ended.len(), ended[0].owner.as_deref()), (1, None));
    server.psql(name_in(url), "ALTER SCHEMA elsewhere RENAME TO issuer_b").unwrap();
    assert_eq!(issued(b, issue(b, instance, 2, 1)).await, Err(Stale::Ended));
}
