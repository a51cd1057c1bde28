//! The infrastructure roots: those that an operator put here, and those that the issuer has sent since.
//!
//! What the issuer sent is kept in a file, for the next start: by then the root that was put here may be no more. It
//! counts only beside the very file that it was learned under: an operator who puts another one here has the last word.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use hallmark_core::id::TrustDomain;
use hallmark_core::x509::{InfraRoots, RootsError, fingerprint};

/// Why the roots cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum RootFileError {
    /// The file.
    #[error("{}: {reason}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        reason: String,
    },
    /// What is in it.
    #[error(transparent)]
    Roots(#[from] RootsError),
}

/// The file in which learned roots are kept.
#[derive(Debug, Clone)]
pub struct RootCache {
    path: PathBuf,
    /// SHA-256 of the configured file, hex.
    under: String,
}

const UNDER: &str = "# learned under ";
const DENIED: &str = "# denied ";

/// Reads the configured roots, or those learned since if `cache` has them; and where to keep what is learned.
///
/// # Errors
/// The configured file holds no root.
pub fn load(
    trust_domain: &TrustDomain,
    configured: &Path,
    cache: Option<&Path>,
) -> Result<(InfraRoots, Option<RootCache>), RootFileError> {
    let wrong = |reason: String| RootFileError::File { path: configured.to_owned(), reason };
    let text = std::fs::read_to_string(configured).map_err(|e| wrong(e.to_string()))?;
    let roots = parse(trust_domain, &text).map_err(|reason| wrong(reason.to_string()))?;
    if roots.ders().is_empty() {
        return Err(wrong("holds no certificate: copy the issuer's public/infrastructure.pem here".into()));
    }
    let under = hex::encode(fingerprint(text.as_bytes()));
    let cache = cache.map(|path| RootCache { path: path.to_owned(), under });
    let learned = cache.as_ref().and_then(|cache| cache.learned(trust_domain));
    Ok((learned.unwrap_or(roots), cache))
}

fn parse(trust_domain: &TrustDomain, text: &str) -> Result<InfraRoots, RootFileError> {
    let wrong = |reason: String| RootFileError::File { path: PathBuf::new(), reason };
    let blocks = pem::parse_many(text).map_err(|e| wrong(e.to_string()))?;
    let ders = blocks.iter().filter(|b| b.tag() == "CERTIFICATE").map(|b| b.contents());
    let denied: BTreeSet<[u8; 32]> = text
        .lines()
        .filter_map(|line| hex::decode(line.strip_prefix(DENIED)?).ok()?.try_into().ok())
        .collect();
    Ok(InfraRoots::new(trust_domain.clone(), ders)?.denying(denied))
}

impl RootCache {
    /// What was learned under the configured file; none if that is another by now, or nothing was learned.
    fn learned(&self, trust_domain: &TrustDomain) -> Option<InfraRoots> {
        let text = std::fs::read_to_string(&self.path).ok()?;
        if text.lines().next()?.strip_prefix(UNDER)? != self.under {
            return None;
        }
        match parse(trust_domain, &text) {
            Ok(roots) if !roots.ders().is_empty() => Some(roots),
            _ => {
                tracing::warn!(path = %self.path.display(), "learned infrastructure roots cannot be read; those of the configuration count");
                None
            }
        }
    }

    /// Keeps these for the next start.
    pub(super) fn keep(&self, roots: &InfraRoots) {
        let mut text = format!("{UNDER}{}\n", self.under);
        for key in roots.denied() {
            text.push_str(&format!("{DENIED}{}\n", hex::encode(key)));
        }
        for der in roots.ders() {
            text.push_str(&pem::encode(&pem::Pem::new("CERTIFICATE", der.to_vec())));
        }
        if std::fs::read_to_string(&self.path).is_ok_and(|there| there == text) {
            return;
        }
        let new = self.path.with_extension("new");
        let written = std::fs::write(&new, text).and_then(|()| std::fs::rename(&new, &self.path));
        if let Err(error) = written {
            tracing::error!(
                path = %self.path.display(), reason = %error,
                "the infrastructure roots that the issuer sent could not be kept: after a restart those of the configuration count"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use hallmark_core::tier::Hierarchy;
    use hallmark_kit::pki::{TestDomain, pem};

    use super::*;

    #[test]
    fn what_was_learned_counts_until_an_operator_puts_another_file_there() {
        let dir = tempfile::tempdir().unwrap();
        let (configured, path) = (dir.path().join("infrastructure.pem"), dir.path().join("learned.pem"));
        let domains = [(); 3].map(|()| TestDomain::lab("example.org").unwrap());
        let [old, new, third] = domains.each_ref().map(|d| d.root(Hierarchy::Infrastructure));
        let td: TrustDomain = "example.org".parse().unwrap();
        std::fs::write(&configured, pem(old)).unwrap();
        let ders = |roots: &InfraRoots| roots.ders().iter().map(|d| d.to_vec()).collect::<Vec<_>>();
        let (roots, cache) = load(&td, &configured, Some(&path)).unwrap();
        assert_eq!(ders(&roots), [old]);
        cache.unwrap().keep(&InfraRoots::new(td.clone(), [old, new]).unwrap().denying([[7; 32]]));
        let (roots, cache) = load(&td, &configured, Some(&path)).unwrap();
        assert_eq!(ders(&roots), [old, new]);
        assert_eq!(roots.denied().collect::<Vec<_>>(), [&[7; 32]]);
        let (roots, _) = load(&td, &configured, None).unwrap();
        assert_eq!(ders(&roots), [old], "without a file to keep them in nothing is learned");

        std::fs::write(&configured, pem(third)).unwrap();
        assert_eq!(ders(&load(&td, &configured, Some(&path)).unwrap().0), [third]);
        std::fs::write(&configured, pem(old)).unwrap();
        for broken in ["", "# learned under", "junk"] {
            std::fs::write(&path, broken).unwrap();
            assert_eq!(ders(&load(&td, &configured, Some(&path)).unwrap().0), [old], "{broken:?}");
        }
        // Nothing but the configured roots is a reason not to start.
        drop(cache);
        std::fs::write(&configured, "").unwrap();
        assert!(load(&td, &configured, Some(&path)).is_err());
    }
}
