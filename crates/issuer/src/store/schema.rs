//! The schema: one set of statements, for both databases.
//!
//! On SQLite all tables stand side by side. On PostgreSQL what the trust domain has is in the namespace `hallmark`,
//! and each issuer's records and log are in `issuer_ID`, of its own: the same names lead each issuer to its own
//! tables, and a database role of its own can be kept from another's.

use std::borrow::Cow;

use futures::future::BoxFuture;
use sqlx::error::BoxDynError;
use sqlx::migrate::{Migration, MigrationSource, Migrator};

/// What is made, and changed, in order.
pub(super) static MIGRATIONS: Migrator = sqlx::migrate!();
/// Namespace of what all issuers share.
pub(super) const SHARED: &str = "hallmark";

/// What a migration is about: its name ends so.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    /// The trust domain.
    Shared,
    /// One issuer.
    Own,
}

impl Part {
    fn of(migration: &Migration) -> Self {
        if migration.description.ends_with("own") { Part::Own } else { Part::Shared }
    }
}

/// An issuer's own namespace, quoted. Ids are of `a-z`, `0-9`, `.`, `_` and `-`.
pub(super) fn namespace(issuer: &str) -> String {
    format!("\"issuer_{}\"", issuer.replace('"', "\"\""))
}

/// An issuer's records, as `me` names them.
pub(super) fn records_of(issuer: &str, me: &str) -> String {
    if issuer == me { "records".to_owned() } else { format!("{}.records", namespace(issuer)) }
}

/// The migrations of one part, in PostgreSQL's words.
pub(super) async fn for_postgres(part: Part) -> Result<Migrator, sqlx::migrate::MigrateError> {
    let migrations = MIGRATIONS.iter().filter(|migration| Part::of(migration) == part);
    Migrator::new(Translated(migrations.map(translated).collect())).await
}

fn translated(migration: &Migration) -> Migration {
    let sql =
        migration.sql.replace("INTEGER", "BIGINT").replace("BLOB", "BYTEA").replace(") WITHOUT ROWID;", ");");
    Migration::new(
        migration.version,
        migration.description.clone(),
        migration.migration_type,
        Cow::Owned(sql),
        migration.no_tx,
    )
}

#[derive(Debug)]
struct Translated(Vec<Migration>);

impl<'s> MigrationSource<'s> for Translated {
    fn resolve(self) -> BoxFuture<'s, Result<Vec<Migration>, BoxDynError>> {
        Box::pin(async move { Ok(self.0) })
    }
}
