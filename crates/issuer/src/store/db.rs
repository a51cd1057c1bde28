//! One set of queries for two databases: SQLite, embedded, and PostgreSQL, shared by several issuers.
//!
//! In scope: handing the same SQL text and the same arguments to either, and reading rows back. The text uses `$1`
//! and what both understand; the three types are BIGINT, TEXT and BLOB (see `schema`). Out of scope: any SQL.

use std::borrow::Cow;

use sqlx::error::BoxDynError;
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgArguments, PgConnection, PgPool, PgRow, Postgres};
use sqlx::sqlite::{Sqlite, SqliteArguments, SqliteConnection, SqlitePool, SqliteRow};
use sqlx::{Arguments, Connection as _, Decode, Row as _, Type};

/// Begins a transaction of its own on SQLite, or fails: never a savepoint in one that is open already.
const BEGIN_SQLITE: &str = "BEGIN IMMEDIATE";
/// Each statement sees what was committed before it: after a wait for a lock, what its holder did.
const BEGIN_POSTGRES: &str = "BEGIN ISOLATION LEVEL READ COMMITTED";

/// Connections to one of the two.
#[derive(Debug, Clone)]
pub(super) enum Pool {
    Sqlite(SqlitePool),
    Postgres(PgPool),
}

/// A connection of a pool.
#[derive(Debug)]
pub(super) enum Session {
    Sqlite(PoolConnection<Sqlite>),
    Postgres(PoolConnection<Postgres>),
}

/// A transaction, rolled back when it is dropped.
pub(super) enum Transaction<'c> {
    Sqlite(sqlx::Transaction<'c, Sqlite>),
    Postgres(sqlx::Transaction<'c, Postgres>),
}

/// What a query runs on.
pub(super) enum On<'c> {
    Sqlite(&'c mut SqliteConnection),
    Postgres(&'c mut PgConnection),
}

impl Pool {
    pub(super) async fn acquire(&self) -> sqlx::Result<Session> {
        Ok(match self {
            Pool::Sqlite(pool) => Session::Sqlite(pool.acquire().await?),
            Pool::Postgres(pool) => Session::Postgres(pool.acquire().await?),
        })
    }

    /// A transaction that only reads: what it reads is of one moment.
    pub(super) async fn begin_reading(&self) -> sqlx::Result<Transaction<'static>> {
        Ok(match self {
            Pool::Sqlite(pool) => Transaction::Sqlite(pool.begin().await?),
            Pool::Postgres(pool) => Transaction::Postgres(
                pool.begin_with("BEGIN ISOLATION LEVEL REPEATABLE READ, READ ONLY").await?,
            ),
        })
    }
}

impl Session {
    pub(super) fn on(&mut self) -> On<'_> {
        match self {
            Session::Sqlite(connection) => On::Sqlite(connection),
            Session::Postgres(connection) => On::Postgres(connection),
        }
    }

    /// Begins a transaction that writes.
    pub(super) async fn begin(&mut self) -> sqlx::Result<Transaction<'_>> {
        Ok(match self {
            Session::Sqlite(connection) => Transaction::Sqlite(connection.begin_with(BEGIN_SQLITE).await?),
            Session::Postgres(connection) => {
                Transaction::Postgres(connection.begin_with(BEGIN_POSTGRES).await?)
            }
        })
    }

    /// Ends a connection on which a transaction failed. SQLite may have rolled back by itself, as it does when the
    /// disk is full; sqlx counts on as if it had not, and takes the next transaction for a part of one that is never
    /// committed.
    pub(super) async fn discard(self) {
        match self {
            Session::Sqlite(connection) => {
                if let Err(error) = connection.close().await {
                    tracing::debug!(%error, "a connection to the store was not closed well");
                }
            }
            // No farewell: a network that swallows everything would have us wait for it.
            Session::Postgres(connection) => drop(connection.detach()),
        }
    }
}

impl Transaction<'_> {
    pub(super) fn on(&mut self) -> On<'_> {
        match self {
            Transaction::Sqlite(transaction) => On::Sqlite(transaction),
            Transaction::Postgres(transaction) => On::Postgres(transaction),
        }
    }

    pub(super) async fn commit(self) -> sqlx::Result<()> {
        match self {
            Transaction::Sqlite(transaction) => transaction.commit().await,
            Transaction::Postgres(transaction) => transaction.commit().await,
        }
    }
}

impl On<'_> {
    pub(super) fn is_postgres(&self) -> bool {
        matches!(self, On::Postgres(_))
    }
}

/// A value to be bound.
#[derive(Debug)]
pub(super) enum Argument<'q> {
    Integer(Option<i64>),
    Text(Option<Cow<'q, str>>),
    Bytes(Option<Cow<'q, [u8]>>),
}

/// A statement with its arguments.
#[derive(Debug)]
pub(super) struct Query<'q> {
    sql: &'q str,
    arguments: Vec<Argument<'q>>,
}

/// A statement: `$1` is the first argument that is bound.
pub(super) fn query(sql: &str) -> Query<'_> {
    Query { sql, arguments: Vec::new() }
}

impl<'q> Query<'q> {
    pub(super) fn bind(mut self, argument: impl Into<Argument<'q>>) -> Self {
        self.arguments.push(argument.into());
        self
    }

    /// Before so many arguments are bound.
    pub(super) fn with_room(mut self, arguments: usize) -> Self {
        self.arguments.reserve_exact(arguments);
        self
    }

    /// Runs it; says how many rows it wrote.
    pub(super) async fn execute(self, on: &mut On<'_>) -> sqlx::Result<u64> {
        Ok(match on {
            On::Sqlite(connection) => {
                let query = sqlx::query_with(self.sql, sqlite(self.arguments)?);
                query.execute(&mut **connection).await?.rows_affected()
            }
            On::Postgres(connection) => {
                let query = sqlx::query_with(self.sql, postgres(self.arguments)?);
                query.execute(&mut **connection).await?.rows_affected()
            }
        })
    }

    pub(super) async fn fetch_all(self, on: &mut On<'_>) -> sqlx::Result<Vec<Row>> {
        Ok(match on {
            On::Sqlite(connection) => {
                let query = sqlx::query_with(self.sql, sqlite(self.arguments)?);
                query.fetch_all(&mut **connection).await?.into_iter().map(Row::Sqlite).collect()
            }
            On::Postgres(connection) => {
                let query = sqlx::query_with(self.sql, postgres(self.arguments)?);
                query.fetch_all(&mut **connection).await?.into_iter().map(Row::Postgres).collect()
            }
        })
    }

    pub(super) async fn fetch_optional(self, on: &mut On<'_>) -> sqlx::Result<Option<Row>> {
        Ok(match on {
            On::Sqlite(connection) => {
                let query = sqlx::query_with(self.sql, sqlite(self.arguments)?);
                query.fetch_optional(&mut **connection).await?.map(Row::Sqlite)
            }
            On::Postgres(connection) => {
                let query = sqlx::query_with(self.sql, postgres(self.arguments)?);
                query.fetch_optional(&mut **connection).await?.map(Row::Postgres)
            }
        })
    }

    /// The first column of the first row, if there is one.
    pub(super) async fn fetch_scalar<T: Column>(self, on: &mut On<'_>) -> sqlx::Result<Option<T>> {
        self.fetch_optional(on).await?.map(|row| row.first()).transpose()
    }

    /// The first column of every row.
    pub(super) async fn fetch_scalars<T: Column>(self, on: &mut On<'_>) -> sqlx::Result<Vec<T>> {
        self.fetch_all(on).await?.iter().map(Row::first).collect()
    }
}

/// A row that was read.
pub(super) enum Row {
    Sqlite(SqliteRow),
    Postgres(PgRow),
}

impl Row {
    pub(super) fn get<T: Column>(&self, column: &str) -> sqlx::Result<T> {
        match self {
            Row::Sqlite(row) => row.try_get(column),
            Row::Postgres(row) => row.try_get(column),
        }
    }

    fn first<T: Column>(&self) -> sqlx::Result<T> {
        match self {
            Row::Sqlite(row) => row.try_get(0),
            Row::Postgres(row) => row.try_get(0),
        }
    }
}

/// What a column is read as: integers, text, bytes, and each of them or NULL.
pub(super) trait Column:
    for<'r> Decode<'r, Sqlite> + Type<Sqlite> + for<'r> Decode<'r, Postgres> + Type<Postgres>
{
}

impl<T> Column for T where
    T: for<'r> Decode<'r, Sqlite> + Type<Sqlite> + for<'r> Decode<'r, Postgres> + Type<Postgres>
{
}

fn unbound(error: BoxDynError) -> sqlx::Error {
    sqlx::Error::Encode(error)
}

fn sqlite(arguments: Vec<Argument<'_>>) -> sqlx::Result<SqliteArguments<'_>> {
    let mut bound = SqliteArguments::default();
    for argument in arguments {
        match argument {
            Argument::Integer(value) => bound.add(value),
            Argument::Text(value) => bound.add(value),
            Argument::Bytes(Some(Cow::Borrowed(value))) => bound.add(value),
            Argument::Bytes(Some(Cow::Owned(value))) => bound.add(value),
            Argument::Bytes(None) => bound.add(None::<&[u8]>),
        }
        .map_err(unbound)?;
    }
    Ok(bound)
}

/// PostgreSQL has no text with a NUL in it, and gives up the whole transaction: what somebody says must not do that.
fn without_nul(text: Cow<'_, str>) -> Cow<'_, str> {
    if text.contains('\0') { Cow::Owned(text.replace('\0', "\u{fffd}")) } else { text }
}

fn postgres(arguments: Vec<Argument<'_>>) -> sqlx::Result<PgArguments> {
    let mut bound = PgArguments::default();
    for argument in arguments {
        match argument {
            Argument::Integer(value) => bound.add(value),
            Argument::Text(value) => bound.add(value.map(without_nul).as_deref()),
            Argument::Bytes(value) => bound.add(value.as_deref()),
        }
        .map_err(unbound)?;
    }
    Ok(bound)
}

impl From<i64> for Argument<'_> {
    fn from(value: i64) -> Self {
        Argument::Integer(Some(value))
    }
}

impl From<Option<i64>> for Argument<'_> {
    fn from(value: Option<i64>) -> Self {
        Argument::Integer(value)
    }
}

impl From<bool> for Argument<'_> {
    fn from(value: bool) -> Self {
        Argument::Integer(Some(i64::from(value)))
    }
}

impl From<String> for Argument<'_> {
    fn from(value: String) -> Self {
        Argument::Text(Some(value.into()))
    }
}

impl From<Option<String>> for Argument<'_> {
    fn from(value: Option<String>) -> Self {
        Argument::Text(value.map(Cow::Owned))
    }
}

impl<'q> From<&'q str> for Argument<'q> {
    fn from(value: &'q str) -> Self {
        Argument::Text(Some(value.into()))
    }
}

impl<'q> From<Option<&'q str>> for Argument<'q> {
    fn from(value: Option<&'q str>) -> Self {
        Argument::Text(value.map(Cow::Borrowed))
    }
}

impl From<Vec<u8>> for Argument<'_> {
    fn from(value: Vec<u8>) -> Self {
        Argument::Bytes(Some(value.into()))
    }
}

impl<'q> From<&'q [u8]> for Argument<'q> {
    fn from(value: &'q [u8]) -> Self {
        Argument::Bytes(Some(value.into()))
    }
}

impl<'q> From<Option<&'q [u8]>> for Argument<'q> {
    fn from(value: Option<&'q [u8]>) -> Self {
        Argument::Bytes(value.map(Cow::Borrowed))
    }
}
