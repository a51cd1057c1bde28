//! The directories of EK roots: importing vendors' bundles, listing, and reading them at the start.

use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use hallmark_core::ek::{EkRoots, RootRole};

use crate::config::Config;
use crate::init::replace_file;
use crate::issuer::Roots;

/// Prints a line; a reader that has gone away (`| head`) is no failure.
macro_rules! say {
    ($($arg:tt)*) => {{
        use std::io::Write as _;
        let _ = writeln!(std::io::stdout(), $($arg)*);
    }};
}

/// The file that imports go into: the whole set, written anew each time.
const IMPORTED: &str = "imported.pem";

/// Imports PEM bundles: prints what was taken, what was not, and why.
///
/// # Errors
/// A file cannot be read, the directory is not configured or cannot be written, or nothing was taken.
pub fn import(config: &Config, simulated: bool, anchors: bool, files: &[PathBuf]) -> anyhow::Result<()> {
    let (dir, key) = directory(config, simulated);
    let Some(dir) = dir else {
        bail!("{}: {key} is not set: name the directory to import into", config.file.display());
    };
    std::fs::create_dir_all(dir).with_context(|| format!("{key} {}", dir.display()))?;
    let mut roots = load(dir)?;
    let mut bundle = String::new();
    for file in files {
        bundle.push_str(&std::fs::read_to_string(file).with_context(|| file.display().to_string())?);
        bundle.push('\n');
    }
    let report =
        if anchors { roots.import_anchors_pem(&bundle, now()) } else { roots.import_pem(&bundle, now()) };
    for refused in &report.refused {
        say!("refused   {}: {}", refused.subject, refused.why);
    }
    let (accepted, refused) = (report.accepted.len(), report.refused.len());
    replace_file(&dir.join(IMPORTED), roots.to_pem().as_bytes())?;
    say!("{accepted} imported into {}, {refused} refused.", dir.display());
    if accepted == 0 {
        bail!("nothing was imported");
    }
    Ok(())
}

/// Lists both directories.
///
/// # Errors
/// A directory cannot be read.
pub fn list(config: &Config) -> anyhow::Result<()> {
    for simulated in [false, true] {
        let (dir, key) = directory(config, simulated);
        let Some(dir) = dir else {
            say!("{key}: not set");
            continue;
        };
        let roots = load(dir)?;
        say!("{key} {}: {} certificates", dir.display(), roots.iter().count());
        for root in roots.iter() {
            let role = match root.role {
                RootRole::Anchor => "root        ",
                RootRole::Intermediate => "intermediate",
            };
            say!("  {role}  until {}  {}", date(root.not_after), root.subject);
        }
    }
    Ok(())
}

/// Reads both directories as the configuration names them.
///
/// # Errors
/// A directory or file cannot be read. A certificate in it that does not pass is logged and left out.
pub fn load_all(config: &Config) -> anyhow::Result<Roots> {
    let read = |simulated| directory(config, simulated).0.map_or_else(|| Ok(EkRoots::default()), load);
    Ok(Roots { vendor: read(false)?, simulated: read(true)? })
}

fn directory(config: &Config, simulated: bool) -> (Option<&Path>, &'static str) {
    if simulated {
        (config.attestation.simulated_ek_roots.as_deref(), "attestation.simulated_ek_roots")
    } else {
        (config.attestation.ek_roots.as_deref(), "attestation.ek_roots")
    }
}

/// Everything in a directory, as one bundle: the order of its files does not matter. What an operator put
/// there is an anchor even where no root of it is published.
fn load(dir: &Path) -> anyhow::Result<EkRoots> {
    let mut roots = EkRoots::default();
    let mut names: Vec<PathBuf> = std::fs::read_dir(dir)
        .with_context(|| dir.display().to_string())?
        .map(|entry| entry.map(|e| e.path()))
        .collect::<Result<_, _>>()?;
    names.sort();
    let mut bundle = String::new();
    for path in names.iter().filter(|p| p.extension().is_some_and(|e| e == "pem" || e == "crt")) {
        bundle.push_str(&std::fs::read_to_string(path).with_context(|| path.display().to_string())?);
        bundle.push('\n');
    }
    for refused in roots.import_anchors_pem(&bundle, now()).refused {
        tracing::warn!(dir = %dir.display(), subject = refused.subject, why = %refused.why, "EK root left out");
    }
    Ok(roots)
}

fn date(unix: i64) -> String {
    time::OffsetDateTime::from_unix_timestamp(unix)
        .map_or_else(|_| unix.to_string(), |t| t.date().to_string())
}

fn now() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|d| i64::try_from(d.as_secs()).ok())
        .unwrap_or_default()
}
