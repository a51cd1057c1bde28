//! What it costs that nothing is released before its record is durable: the store and the log by themselves, on each
//! database; and two issuers on one PostgreSQL beside one.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use hallmark_core::log::{LogKey, LogVerifier, SoftwareLogKey};
use hallmark_e2e::{Bed, BedOptions};
use hallmark_issuer::store::cost::{self, Rounds};
use hallmark_issuer::store::{Location, LogSigner, Store};
use hallmark_kit::postgres::Postgres;

use crate::issuance;
use crate::process::{cpu, cpu_of_tree, round};
use crate::report::Report;

/// As the issuer's promise is put: at so many requests in flight.
const IN_FLIGHT: usize = 64;
const ROUNDS: usize = 1000;
/// Calls of 64.
const CALLS: usize = 480;

pub(crate) async fn measure(scale: usize, report: &mut Report) -> Result<()> {
    let server = Arc::new(Postgres::started()?);
    let dir = tempfile::tempdir()?;
    let sqlite = alone(Location::Sqlite(dir.path().join("t.db")), scale).await?;
    let shared = Location::Postgres(Box::new(server.database()?.parse()?));
    let postgres = alone(shared, scale).await?;
    report.row(
        "store and log, of one issuance, SQLite",
        sqlite.0,
        "CPU us",
        &format!("all that durability costs; {:.0}/s by itself, 64 in flight", sqlite.1),
    );
    report.row(
        "store and log, of one issuance, PostgreSQL",
        postgres.0,
        "CPU us",
        &format!("in the issuer alone; {:.0}/s by itself", postgres.1),
    );
    report.set("durable.extra_cpu_us", round(sqlite.0));
    report.set("durable.sqlite_per_s", round(sqlite.1));
    report.set("durable.postgres_cpu_us", round(postgres.0));
    report.set("durable.postgres_per_s", round(postgres.1));
    issuers(&server, scale, report).await
}

/// CPU of this process for each credential that is recorded, in microseconds; and how many are in a second.
async fn alone(location: Location, scale: usize) -> Result<(f64, f64)> {
    let key = SoftwareLogKey::from_seed(&[7; 32])?;
    let verifier = LogVerifier::new("example.org/log/bench".parse()?, key.public());
    let signer = LogSigner::in_token(verifier, Arc::new(key))?;
    let store = Store::open(&location, &"bench".parse()?).await?.write_with(signer).await?;
    let rounds = ROUNDS / scale;
    cost::issue(&store, Rounds { in_flight: IN_FLIGHT, rounds: 20 }).await?;
    let before = cpu(std::process::id())?;
    let took = cost::issue(&store, Rounds { in_flight: IN_FLIGHT, rounds }).await?;
    let spent = cpu(std::process::id())? - before;
    let count = (rounds * IN_FLIGHT) as f64;
    Ok((spent.as_secs_f64() * 1e6 / count, count / took.as_secs_f64()))
}

/// Where the CPU time of a load went.
struct Spent {
    issuers: Duration,
    database: Duration,
    load: Duration,
    items: usize,
}

async fn issuers(server: &Arc<Postgres>, scale: usize, report: &mut Report) -> Result<()> {
    let url = server.database()?;
    let options = BedOptions { postgres: Some((server.clone(), url)), ..BedOptions::default() };
    let mut first = Bed::start(options)?;
    let mut second = first.sibling("issuer-2", None)?;
    let pids = [first.issuer()?.pid()];
    let one = together(&[&first], &pids, server, scale).await?;
    second.start_issuer()?;
    let pids = [pids[0], second.issuer()?.pid()];
    let two = together(&[&first, &second], &pids, server, scale).await?;
    let cores = std::thread::available_parallelism()?.get();
    let share = |(_, spent): &(f64, Spent)| {
        let of = |part: Duration| part.as_secs_f64() * 1e6 / spent.items as f64;
        format!(
            "CPU us of each: issuers {:.0}, PostgreSQL {:.0}, load {:.0}",
            of(spent.issuers),
            of(spent.database),
            of(spent.load)
        )
    };
    report.row("one issuer on PostgreSQL, SoftHSM", one.0, "/s", &share(&one));
    report.row(
        "two issuers on one PostgreSQL",
        two.0,
        "/s",
        &format!("{:.2} x one, on {cores} cores. {}", two.0 / one.0, share(&two)),
    );
    report.set("durable.one_issuer_per_s", round(one.0));
    report.set("durable.issuances_per_s", round(two.0));
    report.set("durable.two_over_one", round(two.0 / one.0));
    for (name, spent) in [("one", &one.1), ("two", &two.1)] {
        let all = (spent.issuers + spent.database + spent.load).as_secs_f64();
        report.set(&format!("durable.cpu_share.{name}.issuers"), round(spent.issuers.as_secs_f64() / all));
        report.set(&format!("durable.cpu_share.{name}.postgres"), round(spent.database.as_secs_f64() / all));
    }
    Ok(())
}

async fn together(beds: &[&Bed], pids: &[u32], server: &Postgres, scale: usize) -> Result<(f64, Spent)> {
    let database = server.pid().context("no server")?;
    let now = || -> Result<[Duration; 3]> {
        let mut issuers = Duration::ZERO;
        for pid in pids {
            issuers += cpu(*pid)?;
        }
        Ok([issuers, cpu_of_tree(database)?, cpu(std::process::id())?])
    };
    let (items, seconds, before) = issuance::together(beds, CALLS / scale, now).await?;
    let after = now()?;
    let spent = |n: usize| after[n].saturating_sub(before[n]);
    Ok((items as f64 / seconds, Spent { issuers: spent(0), database: spent(1), load: spent(2), items }))
}
