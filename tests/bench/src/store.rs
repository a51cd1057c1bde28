//! A store of many records: how long the issuer takes to start on it, and to find and prove one.
//!
//! The records are made by one statement of SQL, as a store of before it had a log would hold them; the issuer takes
//! them into its log at its first start, which is measured, too.

use std::time::Instant;

use anyhow::{Context, Result};
use hallmark_core::log::{LogVerifier, check_proof};
use hallmark_e2e::{Bed, admin};
use hallmark_proto::admin as wire;
use sqlx::sqlite::{SqliteConnectOptions, SqlitePoolOptions};

use crate::report::Report;

/// Records in a full run.
const RECORDS: u64 = 10_000_000;
/// Lookups measured.
const LOOKUPS: u64 = 300;

pub(crate) async fn measure(bed: &mut Bed, scale: usize, report: &mut Report) -> Result<()> {
    let records = RECORDS / (scale as u64 * scale as u64);
    bed.stop_issuer()?;
    let serials = fill(bed, records).await?;
    let start = Instant::now();
    bed.start_issuer_within(std::time::Duration::from_secs(1800))?;
    let taken_in = start.elapsed().as_secs_f64();
    bed.kill_issuer()?;
    let start = Instant::now();
    bed.start_issuer()?;
    let started = start.elapsed().as_secs_f64();

    let mut issuer = admin(&bed.admin_socket());
    let status = issuer.status(wire::StatusRequest {}).await?.into_inner();
    let verifier: LogVerifier = status.log_verifier.parse()?;
    let mut times = Vec::new();
    for serial in serials {
        let request = wire::ProveRecordRequest { serial: serial.into(), ..Default::default() };
        let start = Instant::now();
        let proven = issuer.prove_record(request).await?.into_inner();
        times.push(start.elapsed().as_secs_f64() * 1e3);
        check_proof(&proven.proof, proven.body.as_bytes(), &verifier)?;
    }
    times.sort_by(f64::total_cmp);
    let at = |q: f64| times.get(((times.len() - 1) as f64 * q) as usize).copied().unwrap_or_default();
    let millions = records as f64 / 1e6;
    report.row("start on a large store", started, "s", &format!("{millions:.1} million records"));
    report.row("a record by serial, and its proof", at(0.5), "ms", &format!("p99 {:.2}", at(0.99)));
    report.row("a log made of as many old records", taken_in, "s", "once, at the first start");
    report.set("store.records", records);
    report.set("store.start_10m_s", started);
    report.set("store.lookup_10m_ms", at(0.5));
    report.set("store.lookup_10m_p99_ms", at(0.99));
    report.set("store.taken_in_s", taken_in);
    Ok(())
}

/// Appends records, and says the serials of some of them.
async fn fill(bed: &Bed, records: u64) -> Result<Vec<Vec<u8>>> {
    let options = SqliteConnectOptions::new().filename(bed.path("data/hallmark.db"));
    let db = SqlitePoolOptions::new().max_connections(1).connect_with(options).await?;
    for sql in [
        "DELETE FROM log_checkpoint",
        "DELETE FROM log_tiles",
        "DELETE FROM serials",
        "DELETE FROM certificates",
    ] {
        sqlx::query(sql).execute(&db).await?;
    }
    let before: i64 = sqlx::query_scalar("SELECT max(number) FROM records").fetch_one(&db).await?;
    let last = before + i64::try_from(records)?;
    sqlx::query(
        "INSERT INTO records (number, at, kind, outcome, host_id, agent, serial, certificate, body)
         WITH RECURSIVE n(i) AS (SELECT $1 UNION ALL SELECT i + 1 FROM n WHERE i < $2),
              s(i, serial, hash) AS (SELECT i, randomblob(16), randomblob(32) FROM n)
         SELECT i, 1800000000, 'svid', 'issued', 'web-01', 'mailbot', serial, hash,
                '{\"v\":1,\"at\":1800000000,\"kind\":\"svid\",\"outcome\":\"issued\",\"host\":\"web-01\",\"agent\":\"mailbot\",'
                || '\"instance\":\"' || lower(hex(randomblob(16))) || '\",\"owner\":\"team@example.org\",\"registration_revision\":1,'
                || '\"tier\":\"foundation\",\"custody\":\"software\",\"serial\":\"' || lower(hex(serial)) || '\",'
                || '\"certificate_sha256\":\"' || lower(hex(hash)) || '\",\"selectors\":[\"unix:uid:1001\"]}'
         FROM s",
    )
    .bind(before + 1)
    .bind(last)
    .execute(&db)
    .await
    .context("filling the store")?;
    let step = i64::try_from((records / LOOKUPS).max(1))?;
    let serials =
        sqlx::query_scalar("SELECT serial FROM records WHERE number > $1 AND number % $2 = 0 LIMIT $3")
            .bind(before)
            .bind(step)
            .bind(i64::try_from(LOOKUPS)?)
            .fetch_all(&db)
            .await?;
    db.close().await;
    Ok(serials)
}
