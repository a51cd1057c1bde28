//! Secrets, which stand beside the file and not in it.

use std::path::PathBuf;

use zeroize::Zeroizing;

/// Where a secret is read from, each time that it is needed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SecretSource {
    /// A file.
    File(PathBuf),
    /// A systemd credential of this name (`LoadCredential=`).
    Credential(String),
}

impl SecretSource {
    /// The secret, without the newline that editors leave at its end.
    ///
    /// # Errors
    /// The file cannot be read, is empty, or there are no credentials.
    pub fn read(&self) -> Result<Zeroizing<String>, String> {
        let path = match self {
            SecretSource::File(path) => path.clone(),
            SecretSource::Credential(name) => std::env::var_os("CREDENTIALS_DIRECTORY")
                .map(|dir| PathBuf::from(dir).join(name))
                .ok_or_else(|| format!("credential {name}: systemd passed none; is LoadCredential= set?"))?,
        };
        let text = std::fs::read_to_string(&path).map(Zeroizing::new);
        let text = text.map_err(|e| format!("{}: {e}", path.display()))?;
        let trimmed = text.trim_end_matches(['\r', '\n']);
        if trimmed.is_empty() {
            return Err(format!("{} is empty", path.display()));
        }
        Ok(Zeroizing::new(trimmed.to_owned()))
    }
}
