//! Opening the CA's PKCS#11 token as the configuration names it.

use anyhow::{Context, bail};
use hallmark_hsm::{Token, TokenConfig};
use zeroize::Zeroizing;

use crate::config::{Config, Pkcs11Config, SecretSource, StoreConfig};
use crate::store::Location;

/// Sessions kept open: more than the machine signs at once.
const SESSIONS: usize = 8;

/// Opens the token and logs in.
///
/// # Errors
/// The PIN cannot be read, or the token refuses; a wrong PIN is not tried again.
pub fn open(config: &Pkcs11Config) -> anyhow::Result<Token> {
    open_as("ca.pkcs11", config)
}

/// As [`open`], for the token that stands under another `key` of the configuration.
///
/// # Errors
/// As [`open`].
pub fn open_as(key: &str, config: &Pkcs11Config) -> anyhow::Result<Token> {
    let pin = read_secret(&config.pin).with_context(|| format!("{key}: PIN"))?;
    let token = Token::open(TokenConfig {
        module: config.module.clone(),
        label: config.token_label.clone(),
        pin,
        max_sessions: SESSIONS,
    })
    .with_context(|| format!("{key}: token {:?} through {}", config.token_label, config.module.display()))?;
    Ok(token)
}

/// Where the store is, with what opens it.
///
/// # Errors
/// The database's password cannot be read.
pub fn store(config: &Config) -> anyhow::Result<Location> {
    match &config.store {
        StoreConfig::Sqlite => Ok(Location::Sqlite(config.database())),
        StoreConfig::Postgres(postgres) => {
            let mut options = postgres.options.clone();
            if let Some(source) = &postgres.password {
                options = options.password(&read_secret(source).context("store: password")?);
            }
            Ok(Location::Postgres(Box::new(options)))
        }
    }
}

/// Reads a secret, without the newline that editors leave.
///
/// # Errors
/// The file cannot be read, or is empty.
pub fn read_secret(source: &SecretSource) -> anyhow::Result<Zeroizing<String>> {
    let Some(path) = source.path() else {
        bail!(
            "the configuration names a systemd credential, but CREDENTIALS_DIRECTORY is not set: start it as a unit with LoadCredential=, or use a file"
        );
    };
    let text = Zeroizing::new(
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))?,
    );
    let secret = Zeroizing::new(text.trim_end_matches(['\n', '\r']).to_owned());
    if secret.is_empty() {
        bail!("{} is empty", path.display());
    }
    Ok(secret)
}
