//! Where the state is kept: a file of this issuer's own, or a PostgreSQL that several issuers share.

use std::net::IpAddr;
use std::path::PathBuf;
use std::str::FromStr;

use serde::Deserialize;
use sqlx::postgres::{PgConnectOptions, PgSslMode};

use super::check::Faults;
use super::{CaBackend, SecretSource};

/// Longest issuer id with PostgreSQL: its namespace is `issuer_ID`, and names there have at most 63 bytes.
const MAX_ISSUER_ID: usize = 56;

/// Where the state is kept.
#[derive(Clone)]
pub enum StoreConfig {
    /// `hallmark.db` in the data directory.
    Sqlite,
    /// A PostgreSQL server.
    Postgres(Box<PostgresConfig>),
}

/// A PostgreSQL server, and the database on it.
#[derive(Clone)]
pub struct PostgresConfig {
    /// All but the password.
    pub options: PgConnectOptions,
    /// Where the password is read from; none if the server asks for none.
    pub password: Option<SecretSource>,
}

impl std::fmt::Debug for StoreConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            StoreConfig::Sqlite => f.write_str("Sqlite"),
            StoreConfig::Postgres(config) => write!(f, "Postgres({})", config.place()),
        }
    }
}

impl PartialEq for StoreConfig {
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (StoreConfig::Sqlite, StoreConfig::Sqlite) => true,
            (StoreConfig::Postgres(one), StoreConfig::Postgres(other)) => {
                one.place() == other.place() && one.password == other.password
            }
            _ => false,
        }
    }
}

impl PostgresConfig {
    /// As people say where it is: no secret in it.
    pub fn place(&self) -> String {
        let options = &self.options;
        let host = options.get_socket().map_or_else(
            || format!("{}:{}", options.get_host(), options.get_port()),
            |socket| socket.display().to_string(),
        );
        format!("postgres://{}@{host}/{}", options.get_username(), options.get_database().unwrap_or_default())
    }
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct RawStore {
    backend: Option<String>,
    url: Option<String>,
    password_file: Option<PathBuf>,
    password_credential: Option<String>,
}

impl Faults {
    pub(super) fn store(&mut self, raw: RawStore, issuer_id: &str, ca: Option<&CaBackend>) -> StoreConfig {
        let RawStore { backend, url, password_file, password_credential } = raw;
        let extra = url.is_some() || password_file.is_some() || password_credential.is_some();
        match backend.as_deref() {
            None | Some("sqlite") => {
                if extra {
                    self.note("store", "url and password are for backend = \"postgres\"");
                }
                return StoreConfig::Sqlite;
            }
            Some("postgres") => {}
            Some(other) => {
                self.note("store.backend", format!("{other:?} is neither \"sqlite\" nor \"postgres\""));
                return StoreConfig::Sqlite;
            }
        }
        if issuer_id.len() > MAX_ISSUER_ID {
            self.note(
                "issuer_id",
                format!("has at most {MAX_ISSUER_ID} characters with store.backend = \"postgres\""),
            );
        }
        if ca == Some(&CaBackend::Software) {
            self.note(
                "store.backend",
                "\"postgres\" needs CA keys in a token: those of ca.backend = \"software\" are each issuer's own and gone at its end",
            );
        }
        let password = match (password_file, password_credential) {
            (Some(_), Some(_)) => {
                self.note("store", "password_file and password_credential: name one of the two");
                None
            }
            (Some(file), None) => Some(SecretSource::File(file)),
            (None, Some(name)) => Some(SecretSource::Credential(name)),
            (None, None) => None,
        };
        let Some(url) = url else {
            self.note("store.url", "is missing: postgres://USER@HOST/DATABASE");
            return StoreConfig::Sqlite;
        };
        match options(&url) {
            Ok(options) => StoreConfig::Postgres(Box::new(PostgresConfig { options, password })),
            Err(problem) => {
                self.note("store.url", problem);
                StoreConfig::Sqlite
            }
        }
    }
}

/// The URL's options. What it leaves out is not taken from the environment, and a server elsewhere must prove by
/// its certificate which one it is.
fn options(url: &str) -> Result<PgConnectOptions, String> {
    let form = "write postgres://USER@HOST/DATABASE, or for a Unix socket postgres://USER@localhost/DATABASE?host=/run/postgresql";
    if !(url.starts_with("postgres://") || url.starts_with("postgresql://")) {
        return Err(format!("is no PostgreSQL URL; {form}"));
    }
    let authority = url.split_once("://").map_or("", |(_, rest)| rest);
    let authority = authority.split(['/', '?']).next().unwrap_or_default();
    let Some((user, host)) = authority.rsplit_once('@') else {
        return Err(format!("names no user; {form}"));
    };
    if user.contains(':') {
        return Err(
            "holds a password: this file is no place for secrets; use password_file or password_credential"
                .to_owned(),
        );
    }
    if user.is_empty() || host.is_empty() {
        return Err(format!("names no user or no host; {form}"));
    }
    // The parser's own words could show parts of what was written.
    let options = PgConnectOptions::from_str(url).map_err(|_| format!("cannot be read; {form}"))?;
    if options.get_database().is_none_or(str::is_empty) {
        return Err(format!("names no database; {form}"));
    }
    let said = url.contains("sslmode=") || url.contains("ssl-mode=");
    let options = options.application_name("hallmark-issuer").password("");
    if is_here(&options) {
        return Ok(if said { options } else { options.ssl_mode(PgSslMode::Prefer) });
    }
    match (said, options.get_ssl_mode()) {
        (false, _) => Ok(options.ssl_mode(PgSslMode::VerifyFull)),
        (true, PgSslMode::VerifyFull) => Ok(options),
        (true, _) => Err(
            "sslmode: a server on another machine must prove which one it is: verify-full (with sslrootcert=FILE)"
                .to_owned(),
        ),
    }
}

fn is_here(options: &PgConnectOptions) -> bool {
    options.get_socket().is_some()
        || options.get_host() == "localhost"
        || options.get_host().starts_with('/')
        || options.get_host().trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}
