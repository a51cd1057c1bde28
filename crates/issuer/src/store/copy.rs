//! Tables from one database into another, as they are: both have the one schema.

use super::StoreError;
use super::db::{Argument, On, query};

/// Rows read at once, and rows written by one statement.
const READ: i64 = 4096;
const WRITE: usize = 128;

/// What all issuers share, without what only tells one of the others.
pub(super) const SHARED: [&str; 11] = [
    "trust_domain",
    "authorities",
    "hosts",
    "allowed_eks",
    "join_tokens",
    "registrations",
    "registration_set",
    "credentials",
    "ended_instances",
    "revocations",
    "issuers",
];
/// What is one issuer's own, without what follows from its records.
pub(super) const OWN: [&str; 2] = ["records", "log_checkpoint"];

/// A column, as SQLite names it.
#[derive(Debug, Clone)]
struct Column {
    name: String,
    kind: Kind,
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Integer,
    Text,
    Bytes,
}

/// Copies a table whole; what the other database had there before goes. `schema` is whichever of the two is SQLite.
pub(super) async fn table(
    name: &str,
    from: &mut On<'_>,
    to: &mut On<'_>,
    progress: &mut (dyn FnMut(u64) + Send),
) -> Result<u64, StoreError> {
    let columns = if from.is_postgres() { columns(to, name).await? } else { columns(from, name).await? };
    query(&format!("DELETE FROM {name}")).execute(to).await?;
    let names: Vec<&str> = columns.iter().map(|column| column.name.as_str()).collect();
    let names = names.join(", ");
    // Records are many, and numbered.
    let paged = name == "records";
    let select = if paged {
        format!("SELECT {names} FROM {name} WHERE number > $1 ORDER BY number LIMIT $2")
    } else {
        format!("SELECT {names} FROM {name}")
    };
    let (mut copied, mut after) = (0, 0_i64);
    loop {
        let mut read = query(&select);
        if paged {
            read = read.bind(after).bind(READ);
        }
        let rows = read.fetch_all(from).await?;
        let mut values = Vec::with_capacity(rows.len());
        for row in &rows {
            let mut of_row = Vec::with_capacity(columns.len());
            for Column { name, kind } in &columns {
                of_row.push(match kind {
                    Kind::Integer => Argument::from(row.get::<Option<i64>>(name)?),
                    Kind::Text => Argument::from(row.get::<Option<String>>(name)?),
                    Kind::Bytes => Argument::Bytes(row.get::<Option<Vec<u8>>>(name)?.map(Into::into)),
                });
            }
            values.push(of_row);
        }
        if paged && let Some(row) = rows.last() {
            after = row.get("number")?;
        }
        copied += values.len() as u64;
        let more = paged && !values.is_empty();
        write(to, name, &names, columns.len(), values).await?;
        progress(copied);
        if !more {
            return Ok(copied);
        }
    }
}

async fn write(
    to: &mut On<'_>,
    table: &str,
    names: &str,
    columns: usize,
    rows: Vec<Vec<Argument<'static>>>,
) -> Result<(), StoreError> {
    let mut rows = rows.into_iter().peekable();
    while rows.peek().is_some() {
        let some: Vec<_> = rows.by_ref().take(WRITE).collect();
        let sql =
            format!("INSERT INTO {table} ({names}) VALUES {}", super::writer::values(some.len(), columns));
        let insert = some.into_iter().flatten().fold(query(&sql), |insert, value| insert.bind(value));
        insert.execute(to).await?;
    }
    Ok(())
}

async fn columns(sqlite: &mut On<'_>, table: &str) -> Result<Vec<Column>, StoreError> {
    let rows =
        query(&format!("SELECT name, type FROM pragma_table_info('{table}')")).fetch_all(sqlite).await?;
    rows.iter()
        .map(|row| {
            let kind = match row.get::<String>("type")?.as_str() {
                "INTEGER" => Kind::Integer,
                "BLOB" => Kind::Bytes,
                _ => Kind::Text,
            };
            Ok(Column { name: row.get("name")?, kind })
        })
        .collect()
}
