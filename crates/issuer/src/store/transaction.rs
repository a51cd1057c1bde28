//! Transactions that are what they seem.

use sqlx::pool::PoolConnection;
use sqlx::sqlite::Sqlite;

/// Begins a transaction of its own, or fails: never a savepoint in one that is open already.
pub(super) const BEGIN: &str = "BEGIN IMMEDIATE";

/// Ends a connection on which a transaction failed. SQLite may have rolled back by itself, as it does when the disk
/// is full; sqlx counts on as if it had not, and takes the next transaction for a part of one that is never
/// committed.
pub(super) async fn discard(connection: PoolConnection<Sqlite>) {
    if let Err(error) = connection.close().await {
        tracing::debug!(%error, "a connection to the store was not closed well");
    }
}
