//! Opening the store: which database, its schema, and that nobody else writes as this issuer.

use std::fs::{File, OpenOptions, TryLockError};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use hallmark_core::id::IssuerId;
use sqlx::postgres::{PgConnectOptions, PgConnection, PgPool, PgPoolOptions};
use sqlx::sqlite::{SqliteConnectOptions, SqliteJournalMode, SqlitePoolOptions, SqliteSynchronous};
use sqlx::{Connection, Executor};

use super::db::{Pool, query};
use super::schema::{self, MIGRATIONS, Part, SHARED};
use super::{Opened, StoreError};

/// How often, and how long between, the lock is tried. A server takes a while to notice that a machine is gone.
const LOCK_TRIES: usize = 20;
const LOCK_TRIES_ELSEWHERE: usize = 300;
const LOCK_WAIT: Duration = Duration::from_millis(50);
/// Longest wait for a connection: a database that is away is tried again by the next commit.
const CONNECT: Duration = Duration::from_secs(5);
/// First key of the lock that an issuer holds for as long as it writes: "hall" in ASCII; the second is its own.
const WRITER_LOCK: i32 = 0x6861_6c6c;
/// Whoever waits for the trust domain's lock gives up before the commit's own deadline does.
const DOMAIN_PATIENCE: &str = "SET lock_timeout TO '15s'";
/// What only a shared store is asked for: the instances of a host, or of an agent, whoever issued to them.
const SHARED_INDEXES: &str =
    "CREATE INDEX IF NOT EXISTS credentials_of_host ON hallmark.credentials (host_id);
     CREATE INDEX IF NOT EXISTS credentials_of_agent ON hallmark.credentials (agent)";
/// Key of the lock under which the schema is brought up to date.
const SCHEMA_LOCK: i64 = 0x6861_6c6c_0000_0001;

/// Where the store is.
#[derive(Debug, Clone)]
pub enum Location {
    /// A file of this issuer's own.
    Sqlite(PathBuf),
    /// A database that several issuers may share.
    Postgres(Box<PgConnectOptions>),
}

/// Opens the database, making what is absent, and brings its schema up to date.
pub(super) async fn open(location: &Location, issuer: &IssuerId) -> Result<Opened, StoreError> {
    match location {
        Location::Sqlite(path) => sqlite(path, issuer).await,
        Location::Postgres(options) => postgres(options, issuer).await,
    }
}

/// Opens a store only to read it: nothing is made, and whoever writes goes on.
pub(super) async fn reading(location: &Location, issuer: &IssuerId) -> Result<Pool, StoreError> {
    let pool = match location {
        Location::Sqlite(path) => {
            let options = SqliteConnectOptions::new()
                .filename(path)
                .read_only(true)
                .busy_timeout(Duration::from_secs(10));
            Pool::Sqlite(SqlitePoolOptions::new().max_connections(1).connect_with(options).await?)
        }
        Location::Postgres(options) => Pool::Postgres(pool(options, issuer, None, 1)),
    };
    let mine = MIGRATIONS.iter().map(|migration| migration.version).max().unwrap_or_default();
    let mut session = pool.acquire().await?;
    let sql = match &pool {
        Pool::Sqlite(_) => "SELECT max(version) FROM _sqlx_migrations".to_owned(),
        Pool::Postgres(_) => format!(
            "SELECT max(version) FROM (SELECT version FROM {SHARED}._sqlx_migrations
             UNION SELECT version FROM {}._sqlx_migrations) AS applied",
            schema::namespace(issuer.as_str())
        ),
    };
    let found: Option<Option<i64>> = query(&sql).fetch_scalar(&mut session.on()).await?;
    drop(session);
    match found.flatten().unwrap_or_default() {
        found if found == mine => Ok(pool),
        found => {
            let remedy =
                if found > mine { "use the newer program" } else { "start the issuer once: it migrates" };
            Err(StoreError::Schema { found, mine, remedy })
        }
    }
}

async fn sqlite(path: &Path, issuer: &IssuerId) -> Result<Opened, StoreError> {
    let lock = lock(&path.with_extension("lock")).await?;
    let options = SqliteConnectOptions::from_str("sqlite://")?
        .filename(path)
        .create_if_missing(true)
        .journal_mode(SqliteJournalMode::Wal)
        .synchronous(SqliteSynchronous::Full)
        .foreign_keys(true)
        .busy_timeout(Duration::from_secs(10))
        .pragma("cache_size", "-2048")
        .pragma("wal_autocheckpoint", "4000");
    let writer = SqlitePoolOptions::new().max_connections(1).connect_with(options.clone()).await?;
    MIGRATIONS.run(&writer).await?;
    let reads = SqlitePoolOptions::new()
        .max_connections(2)
        .connect_with(options.read_only(true).create_if_missing(false))
        .await?;
    Ok(Opened {
        issuer: issuer.clone(),
        lock: Some(lock),
        writer: Pool::Sqlite(writer),
        reads: Pool::Sqlite(reads),
    })
}

/// Takes the store for this process alone: two writers would count records each by itself. One that is ending has
/// a moment to let go.
async fn lock(path: &Path) -> Result<File, StoreError> {
    let failed = |problem| StoreError::Lock { path: path.to_owned(), problem };
    let file =
        OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(path).map_err(failed)?;
    for _ in 0..LOCK_TRIES {
        match file.try_lock() {
            Ok(()) => return Ok(file),
            Err(TryLockError::WouldBlock) => tokio::time::sleep(LOCK_WAIT).await,
            Err(TryLockError::Error(problem)) => return Err(failed(problem)),
        }
    }
    Err(StoreError::InUse { path: path.to_owned() })
}

async fn postgres(options: &PgConnectOptions, issuer: &IssuerId) -> Result<Opened, StoreError> {
    let mut connection = PgConnection::connect_with(options).await?;
    durable(&mut connection).await?;
    alone(&mut connection, issuer).await?;
    migrate(&mut connection, issuer).await?;
    // An error beyond this point is the pools' own.
    let _ = connection.close().await;
    let writer = pool(options, issuer, Some(WRITER_LOCK), 1);
    let reads = pool(options, issuer, None, 3);
    Ok(Opened {
        issuer: issuer.clone(),
        lock: None,
        writer: Pool::Postgres(writer),
        reads: Pool::Postgres(reads),
    })
}

/// A server that may forget what it has confirmed is of no use: nothing is released before its record is durable.
async fn durable(connection: &mut PgConnection) -> Result<(), StoreError> {
    for setting in ["fsync", "full_page_writes"] {
        let is: String = sqlx::query_scalar(&format!("SHOW {setting}")).fetch_one(&mut *connection).await?;
        if is != "on" {
            return Err(StoreError::NotDurable { setting, is });
        }
    }
    Ok(())
}

/// Whoever has the same issuer id is told of here already, and not by the first commit that fails.
async fn alone(connection: &mut PgConnection, issuer: &IssuerId) -> Result<(), StoreError> {
    for _ in 0..LOCK_TRIES_ELSEWHERE {
        let taken: bool = sqlx::query_scalar("SELECT pg_try_advisory_lock($1, hashtext($2))")
            .bind(WRITER_LOCK)
            .bind(issuer.as_str())
            .fetch_one(&mut *connection)
            .await?;
        if taken {
            sqlx::query("SELECT pg_advisory_unlock($1, hashtext($2))")
                .bind(WRITER_LOCK)
                .bind(issuer.as_str())
                .execute(connection)
                .await?;
            return Ok(());
        }
        tokio::time::sleep(LOCK_WAIT).await;
    }
    Err(StoreError::IssuerInUse { issuer: issuer.to_string() })
}

/// One issuer at a time makes what is absent.
async fn migrate(connection: &mut PgConnection, issuer: &IssuerId) -> Result<(), StoreError> {
    sqlx::query("SELECT pg_advisory_lock($1)").bind(SCHEMA_LOCK).execute(&mut *connection).await?;
    let namespace = schema::namespace(issuer.as_str());
    for (part, path) in [(Part::Shared, SHARED.to_owned()), (Part::Own, format!("{namespace},{SHARED}"))] {
        let own = if part == Part::Own { namespace.as_str() } else { SHARED };
        connection.execute(format!("CREATE SCHEMA IF NOT EXISTS {own}").as_str()).await?;
        connection.execute(format!("SET search_path TO {path}").as_str()).await?;
        schema::for_postgres(part).await?.run_direct(&mut *connection).await?;
    }
    connection.execute(SHARED_INDEXES).await?;
    sqlx::query("SELECT pg_advisory_unlock($1)").bind(SCHEMA_LOCK).execute(connection).await?;
    Ok(())
}

/// Connections of this issuer. The writer's hold its lock: a second process of the same id gets none.
fn pool(options: &PgConnectOptions, issuer: &IssuerId, lock: Option<i32>, connections: u32) -> PgPool {
    let search_path = format!("SET search_path TO {},{SHARED}", schema::namespace(issuer.as_str()));
    let issuer = issuer.clone();
    PgPoolOptions::new()
        .max_connections(connections)
        .acquire_timeout(CONNECT)
        .after_connect(move |connection, _| {
            let (search_path, issuer) = (search_path.clone(), issuer.clone());
            Box::pin(async move {
                connection.execute(search_path.as_str()).await?;
                // Whatever the server's default: a confirmed commit is on its disk. And a server that does not hear
                // of its client's end must not keep its locks for hours.
                connection
                    .execute(
                        "SET synchronous_commit TO on; SET tcp_keepalives_idle TO 5; SET tcp_keepalives_interval TO 2;
                         SET tcp_keepalives_count TO 3; SET tcp_user_timeout TO '12s';
                         SET client_connection_check_interval TO '5s';
                         SET idle_in_transaction_session_timeout TO '30s'",
                    )
                    .await?;
                let Some(lock) = lock else { return Ok(()) };
                connection.execute("SET lock_timeout TO '3s'").await?;
                let taken = sqlx::query("SELECT pg_advisory_lock($1, hashtext($2))")
                    .bind(lock)
                    .bind(issuer.as_str())
                    .execute(&mut *connection)
                    .await;
                if let Err(error) = taken {
                    tracing::error!(%error, %issuer, "another hallmark-issuer of this issuer_id writes to this database");
                    return Err(error);
                }
                connection.execute(DOMAIN_PATIENCE).await?;
                Ok(())
            })
        })
        .connect_lazy_with(options.clone())
}
