//! Backups, from each database into each.

use super::backup::{Unpacked, backup};
use super::tests::{
    Bed, agent, ending, enrol, filled, host, id, issue, issued, me, one, registered, serial, signer,
};
use super::*;
use hallmark_core::rotation::{Role, Stage};
use hallmark_core::tier::Hierarchy;

fn quiet() -> impl FnMut(&'static str, u64, u64) + Send {
    |_, _, _| {}
}

async fn unpack(bed: &Bed, file: &std::path::Path) -> Result<(Unpacked, std::path::PathBuf), StoreError> {
    let copy = bed.dir.path().join("copy.db");
    std::fs::copy(file, &copy).unwrap();
    let verifier = signer();
    Ok((Unpacked::open(&copy, &me(), Some(verifier.verifier()), &mut quiet()).await?, copy))
}

fn domain() -> Write {
    let name = "example.org".parse().unwrap();
    Write::TrustDomain(TrustDomainRow {
        name,
        lab: true,
        dev: false,
        oid_arc: "1.2.3".to_owned(),
        made_at: 1,
    })
}

/// With all that a store holds, backed up while it is open.
async fn backed_up(bed: &Bed) -> (Store, std::path::PathBuf) {
    let store = filled(bed).await;
    store.commit(vec![domain()]).await.unwrap();
    store.commit(vec![enrol("a", Some([1; 32])), enrol("b", None)]).await.unwrap();
    let (tier, role) = (Hierarchy::Tier(Tier::Enterprise), Role::Issuing);
    let mut ca = Authority::new(tier, role, 1, Stage::Active, 1);
    ca.key_label = "one".to_owned();
    store.commit(vec![Write::Authority(Box::new(ca))]).await.unwrap();
    let token = Write::JoinToken { token_sha256: [7; 32], host_id: host("c"), expires_at: i64::MAX };
    let note = "by phone".to_owned();
    let allow = AllowedEk { ek_digest: [9; 32], host_id: host("d"), hardware: true, note, allowed_at: 6 };
    store.commit(vec![token, Write::AllowEk(allow)]).await.unwrap();
    store.commit(vec![ending(one(2, "a"), 151)]).await.unwrap();
    let file = bed.dir.path().join("backup");
    let signer = signer();
    let held = backup(&bed.location(), &me(), &file, Some(signer.verifier()), &mut quiet()).await.unwrap();
    assert_eq!(held.checkpoint.unwrap().size, 301);
    (store, file)
}

async fn from_each_into_each(from: Bed, to: Bed) {
    let (store, file) = backed_up(&from).await;
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
    let (backup, copy) = unpack(&from, &file).await.unwrap();
    backup.put(&to.location(), &copy, &mut quiet()).await.unwrap();
    let back = to.open().await.unwrap();
    let of = async |store: &Store| {
        (
            format!("{:?}", store.hosts().await.unwrap()),
            format!("{:?}", store.allowed_eks().await.unwrap()),
            format!("{:?}", store.registrations().await.unwrap()),
            format!("{:?}", store.revocations(0).await.unwrap()),
            format!("{:?}", store.instances(&agent("x"), 10).await.unwrap()),
            format!("{:?}", store.records(0, 500, None, None).await.unwrap()),
            store.checkpoint().await.unwrap().unwrap().1,
        )
    };
    assert_eq!(of(&store).await, of(&back).await);
    for at in [1, 128, 150] {
        let (was, is) = (FoundBy::Serial(&serial(1, at)), FoundBy::Serial(&serial(1, at)));
        let (was, is) = (store.prove(was).await.unwrap().unwrap(), back.prove(is).await.unwrap().unwrap());
        assert_eq!((was.index, was.proof), (is.index, is.proof));
    }
    back.check_join_token(&[7; 32], &host("c"), 5).await.unwrap();
    assert_eq!(to.sql("SELECT count(*) FROM ended_instances").await, "1");
    // It goes on where it was.
    let number = back.commit(issued(1, 161)).await.unwrap().records.remove(0).unwrap().number();
    assert_eq!(number, 302);
}

#[tokio::test]
async fn from_sqlite_into_sqlite() {
    from_each_into_each(Bed::sqlite(), Bed::sqlite()).await;
}

#[tokio::test]
async fn from_sqlite_into_postgres() {
    from_each_into_each(Bed::sqlite(), Bed::postgres()).await;
}

#[tokio::test]
async fn from_postgres_into_sqlite() {
    from_each_into_each(Bed::postgres(), Bed::sqlite()).await;
}

#[tokio::test]
async fn from_postgres_into_postgres() {
    from_each_into_each(Bed::postgres(), Bed::postgres()).await;
}

async fn change(file: &std::path::Path, sql: &str) {
    let options = sqlx::sqlite::SqliteConnectOptions::new().filename(file);
    let db = sqlx::sqlite::SqlitePool::connect_with(options).await.unwrap();
    sqlx::query(sql).execute(&db).await.unwrap();
    db.close().await;
}

#[tokio::test]
async fn what_is_no_whole_backup_of_this_issuer_is_refused() {
    let changes = [
        ("UPDATE records SET body = replace(body, 'team@', 'somebody@') WHERE number = 1", "changed"),
        ("DELETE FROM records WHERE number = 7", "changed"),
        ("DELETE FROM records WHERE number = 301", "missing"),
        ("UPDATE log_checkpoint SET root = zeroblob(32)", "changed"),
        ("UPDATE log_checkpoint SET note = x'00'", "not signed"),
        ("UPDATE changes SET issuer = 'issuer-2'", "of issuer issuer-2"),
        ("DELETE FROM log_checkpoint", "no checkpoint over them"),
        ("CREATE TRIGGER t AFTER INSERT ON revocations BEGIN DELETE FROM revocations; END", "triggers"),
        ("DELETE FROM changes", "no store that was backed up"),
        ("DELETE FROM trust_domain", "no trust domain"),
        (
            "INSERT INTO _sqlx_migrations (version, description, success, checksum, execution_time)
             VALUES (9999, 'later', 1, x'00', 0)",
            "9999",
        ),
    ];
    let bed = Bed::sqlite();
    let (_store, file) = backed_up(&bed).await;
    for (sql, why) in changes {
        let changed = bed.dir.path().join("changed");
        std::fs::copy(&file, &changed).unwrap();
        change(&changed, sql).await;
        let refused = unpack(&bed, &changed).await.unwrap_err().to_string();
        assert!(refused.contains(why), "{sql}: {refused}");
    }
    std::fs::write(bed.dir.path().join("other"), "something else").unwrap();
    assert!(unpack(&bed, &bed.dir.path().join("other")).await.is_err());
}

#[tokio::test]
async fn a_backup_overwrites_nothing() {
    let bed = Bed::postgres();
    let (store, file) = backed_up(&bed).await;
    let again = backup(&bed.location(), &me(), &file, None, &mut quiet()).await;
    assert!(matches!(again, Err(StoreError::File { .. })), "{again:?}");
    assert!(file.exists());
    drop(store);
    let (backup, copy) = unpack(&bed, &file).await.unwrap();
    let refused = backup.put(&bed.location(), &copy, &mut quiet()).await;
    assert!(matches!(refused, Err(StoreError::NotEmpty)), "{refused:?}");
}

#[tokio::test]
async fn a_store_that_was_changed_has_no_backup() {
    let bed = Bed::sqlite();
    let store = filled(&bed).await;
    store.commit(vec![domain()]).await.unwrap();
    drop(store);
    bed.sql("UPDATE records SET body = replace(body, 'team@', 'somebody@') WHERE number = 1").await;
    let file = bed.dir.path().join("backup");
    let refused = backup(&bed.location(), &me(), &file, None, &mut quiet()).await;
    assert!(matches!(refused, Err(StoreError::Log(LogError::Changed { .. }))), "{refused:?}");
    assert!(!file.exists(), "half a backup would be taken for one");
}

/// After the backup: an instance that lives, one that ends, one of before that ends, hosts that come and go.
#[tokio::test]
async fn what_the_log_has_and_the_backup_lacks_is_regained() {
    use crate::record::{Kind, Record};

    let bed = Bed::sqlite();
    let (store, file) = backed_up(&bed).await;
    let enrolment = |host: &str, outcome: &'static str, ek: Option<&str>, reason: &str| {
        let record = Record {
            host: Some(host),
            ek_sha256: ek.map(str::to_owned),
            reason: Some(reason.to_owned()),
            ..Record::default()
        };
        Write::Record(record.entry(170, Kind::Enrolment, outcome, None))
    };
    let instance = |n: u8| {
        move |issue: &mut Issue| {
            issue.entry = Record {
                host: Some("a"),
                agent: Some("x"),
                instance: Some(id(n).to_string()),
                tier: Some("enterprise"),
                custody: Some("software"),
                not_after: Some(100_000),
                ..Record::default()
            }
            .entry(170, Kind::Svid, "issued", Some(serial(n, 70)));
            issue.not_after = 100_000;
        }
    };
    for n in [3, 4] {
        store.commit(vec![issue(n, 70, instance(n))]).await.unwrap().records.remove(0).unwrap();
    }
    store.commit(vec![ending(one(4, "a"), 171), ending(one(1, "a"), 171)]).await.unwrap();
    let attested = Record { host: Some("new"), ek_sha256: Some("ab".repeat(32)), ..Record::default() };
    store
        .commit(vec![
            Write::Record(attested.entry(170, Kind::HostAttestation, "attested", Some([9; 16]))),
            enrolment("a", "disabled", None, "host-disabled"),
            enrolment("b", "removed", None, "host-removed"),
            enrolment("d", "removed", None, "host-removed"),
            enrolment("e", "allowed", Some(&"cd".repeat(32)), "ek-allowed-as-hardware"),
        ])
        .await
        .unwrap();
    let applied = Record { agent: Some("x"), registration_revision: Some(5), ..Record::default() };
    store.commit(vec![Write::Record(applied.entry(170, Kind::Registration, "changed", None))]).await.unwrap();
    let ca = |name: &str, outcome: &'static str| {
        let record = Record { authority: Some(name.to_owned()), ..Record::default() };
        Write::Record(record.entry(175, Kind::Ca, outcome, None))
    };
    store
        .commit(vec![
            ca("enterprise issuing CA 2", "made"),
            ca("enterprise issuing CA 1", "tainted"),
            ca("enterprise issuing CA 2", "tainted"),
        ])
        .await
        .unwrap();
    let (checkpoint, note) = store.checkpoint().await.unwrap().unwrap();
    let entries = store.log_entries(301, checkpoint.size).await.unwrap();
    let records: Vec<Regained> =
        entries.iter().map(|entry| Regained::read(entry.as_bytes()).unwrap()).collect();
    drop(store);

    let to = Bed::sqlite();
    let (mut backup, copy) = unpack(&bed, &file).await.unwrap();
    let todo = backup.regain(&records, checkpoint, &note).await.unwrap();
    backup.put(&to.location(), &copy, &mut quiet()).await.unwrap();
    let back = to.open().await.unwrap();
    assert_eq!(back.checkpoint().await.unwrap().unwrap().1, note, "the log is as it was published");
    assert_eq!(todo.registrations.iter().collect::<Vec<_>>(), ["x"]);
    assert_eq!(todo.hosts.iter().collect::<Vec<_>>(), ["b", "d", "new"]);
    let cas = back.authorities().await.unwrap();
    let stages: Vec<_> = cas.iter().map(|ca| (ca.generation, ca.stage, ca.tainted_at)).collect();
    // The second one's key is taken for no other's: its number is over.
    assert_eq!(stages, [(1, Stage::Tainted, Some(175)), (2, Stage::Retired, None)]);
    assert!(back.registrations().await.unwrap().is_empty(), "what was changed since is not in force");
    assert!(back.registrations_revision().await.unwrap() > 5);
    let hosts = back.hosts().await.unwrap();
    assert_eq!(hosts.len(), 1);
    assert_eq!((hosts[0].host_id.as_str(), hosts[0].disabled.is_some()), ("a", true));
    let allowed = back.allowed_eks().await.unwrap();
    assert_eq!((allowed.len(), allowed[0].host_id.as_str(), allowed[0].hardware), (1, "e", true));
    let taken = enrol("other", Some([0xab; 32]));
    assert!(matches!(back.commit(vec![taken]).await, Err(StoreError::Conflict(Conflict::EkTaken { .. }))));
    let spent = back.check_join_token(&[7; 32], &host("c"), 5).await;
    assert!(matches!(spent, Err(StoreError::Conflict(Conflict::JoinToken(JoinTokenSpend::Unknown)))));
    back.commit(vec![registered("x", 9)]).await.unwrap();
    assert_eq!(to.sql("SELECT count(*) FROM ended_instances").await, "3");
    let revoked: Vec<Vec<u8>> = back.revocations(0).await.unwrap().into_iter().map(|r| r.serial).collect();
    assert!(revoked.contains(&serial(4, 70).to_vec()), "of after the backup");
    let renewed = |ca: u32| {
        issue(3, 90, move |issue| (issue.registration_revision, issue.host_epoch, issue.ca) = (9, 0, ca))
    };
    let by_tainted = back.commit(vec![renewed(1)]).await.unwrap().records.remove(0);
    assert_eq!(by_tainted.unwrap_err(), Stale::Authority, "tainted after the backup, tainted still");
    back.commit(vec![renewed(3)]).await.unwrap().records.remove(0).unwrap();
}
