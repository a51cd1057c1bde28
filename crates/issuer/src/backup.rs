//! `hallmark-issuer backup` and `restore`.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use hallmark_core::log::{Checkpoint, audit, open_checkpoint};
use indicatif::{ProgressBar, ProgressStyle};

use crate::config::{CaBackend, Config, StoreConfig};
use crate::init;
use crate::record::{Kind, Record};
use crate::store::{self, Held, LogSigner, Regained, Store, ToDo, Unpacked, Write, unix_now};
use crate::token;

/// What becomes of records that the log in files has and the backup lacks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Newer {
    /// Nothing is done.
    Refuse,
    /// They are taken from the files.
    FromLog,
    /// They are given up.
    Discard,
}

/// Writes a backup of the store into `file`.
///
/// # Errors
/// The store or the token cannot be read, the file is there already, or the records do not lead to their checkpoint.
pub async fn backup(config: &Config, file: &Path) -> anyhow::Result<()> {
    let signer = signer(config)?;
    let verifier = signer.lasts().then(|| signer.verifier());
    let mut bar = Bar::default();
    let location = token::store(config)?;
    let held = store::backup(&location, &config.issuer_id, file, verifier, &mut |what, done, all| {
        bar.show(what, done, all);
    })
    .await?;
    bar.end();
    println!("Backed up {} into {}.", what(&held), file.display());
    println!("  The CA's and the log's keys are in the token, and not in it.");
    Ok(())
}

/// Puts a backup back.
///
/// # Errors
/// There is a store already, the backup is none of this issuer's, or the log has records that it lacks and nobody
/// said what becomes of them.
pub async fn restore(config: &Config, file: &Path, newer: Newer) -> anyhow::Result<()> {
    let location = token::store(config)?;
    for left in ["db-wal", "db-shm", "db-journal"].map(|end| config.database().with_extension(end)) {
        // It would be taken for the newest part of what is put back.
        if config.store == StoreConfig::Sqlite && !config.database().exists() && left.exists() {
            bail!("{} was left by the store of before: move it away first", left.display());
        }
    }
    if config.store == StoreConfig::Sqlite && config.database().exists() {
        bail!(
            "{} is there already; a backup is put back where no store is. Move it away first (with its -wal and -shm), if it is not wanted any more",
            config.database().display()
        );
    }
    let signer = signer(config)?;
    let verifier = signer.lasts().then(|| signer.verifier());
    std::fs::create_dir_all(&config.data_dir).with_context(|| config.data_dir.display().to_string())?;
    let unpacked = Working::copy(file, &config.data_dir)?;
    let mut bar = Bar::default();
    let mut show = |what: &'static str, done, all| bar.show(what, done, all);
    let mut backup = Unpacked::open(&unpacked.0, &config.issuer_id, verifier, &mut show)
        .await
        .with_context(|| file.display().to_string())?;
    if backup.held.trust_domain.name != config.trust_domain {
        bail!(
            "{} is of trust domain {}, and the configuration says {}",
            file.display(),
            backup.held.trust_domain.name,
            config.trust_domain
        );
    }
    let before = backup.held.checkpoint.map_or(0, |checkpoint| checkpoint.size);
    let published = Published::read(config, &signer)?;
    if published.is_none() && newer != Newer::Discard && signer.lasts() && before > 0 {
        bail!(
            "there is no log in {}, so nobody can say what was decided after the backup. Put the log's files back from wherever they were copied to; or say --discard-newer: then what was disabled, removed, ended or revoked since is as it was before the backup",
            config.log_dir().display()
        );
    }
    let (mut todo, mut aside) = (None, None);
    if newer == Newer::Discard {
        // One that was spent since the backup would buy something again.
        backup.void_join_tokens().await?;
    }
    if let Some(published) = published.filter(|published| published.checkpoint.size > before) {
        match newer {
            Newer::Refuse => bail!(
                "the backup holds {before} records, and the log in {} has {}: {} decisions were made after the backup. Say what becomes of them: --from-log takes them from the log's files, --discard-newer gives them up",
                config.log_dir().display(),
                published.checkpoint.size,
                published.checkpoint.size - before
            ),
            Newer::FromLog => {
                let records = published.after(config, &signer, backup.held.checkpoint.as_ref())?;
                todo = Some(backup.regain(&records, published.checkpoint, &published.note).await?);
            }
            Newer::Discard => {
                aside = Some(config.data_dir.join(format!("log.before-restore-{}", unix_now())));
            }
        }
    }
    let held = backup.held.clone();
    let kept = backup.put(&location, &unpacked.0, &mut show).await?;
    bar.end();
    if let Some(aside) = aside {
        std::fs::rename(config.log_dir(), &aside).with_context(|| aside.display().to_string())?;
        println!("The log's files of before are in {}.", aside.display());
    }
    if kept {
        println!(
            "The trust domain is in the database already, as other issuers know it, and stays so: hosts, registrations, join tokens and revocations are theirs. What this issuer's log says of them after the backup was not applied."
        );
        todo = None;
    }
    record(config, signer, &held, before).await?;
    println!("Put back {} from {}.", what(&held), file.display());
    if let Some(todo) = todo {
        say_what_is_left(&todo, held.checkpoint.map_or(0, |c| c.size) - before);
    }
    println!("Start the issuer. Hosts attest anew by themselves.");
    Ok(())
}

fn what(held: &Held) -> String {
    let records = held.checkpoint.map_or(0, |checkpoint| checkpoint.size);
    format!("trust domain {}, {records} records, verified", held.trust_domain.name)
}

fn say_what_is_left(todo: &ToDo, regained: u64) {
    println!("{regained} records of after the backup were taken from the log's files.");
    println!("  Join tokens are void: make new ones (hallmark join-token create).");
    let list = |names: &std::collections::BTreeSet<String>| {
        names.iter().map(String::as_str).collect::<Vec<_>>().join(", ")
    };
    if !todo.registrations.is_empty() {
        println!(
            "  These registrations were changed after the backup and are out of force: hallmark apply them again: {}",
            list(&todo.registrations)
        );
    }
    if !todo.cas.is_empty() {
        println!(
            "  These CAs were made or changed after the backup. Those that it knows went the same way here; of one made since only the number is kept, as over, and its key may still be in the token (hallmark ca list): {}",
            list(&todo.cas)
        );
    }
    if !todo.hosts.is_empty() {
        println!(
            "  These hosts enrolled or were removed after the backup and stay out until hallmark host allow lets them in: {}",
            list(&todo.hosts)
        );
    }
}

/// The first thing that a restored store records is that it was restored.
async fn record(config: &Config, signer: LogSigner, held: &Held, backed_up: u64) -> anyhow::Result<()> {
    let store = Store::open(&token::store(config)?, &config.issuer_id).await?.write_with(signer).await?;
    let after = held.checkpoint.map_or(0, |checkpoint| checkpoint.size) - backed_up;
    let entry = Record {
        reason: Some(format!(
            "put back from a backup of {backed_up} records; {after} more were taken from the log's files"
        )),
        operator: Some(format!("uid {}", rustix::process::getuid().as_raw())),
        lab: held.trust_domain.lab,
        ..Record::default()
    }
    .entry(unix_now(), Kind::Restore, "restored", None);
    store.commit(vec![Write::Record(entry)]).await?;
    Ok(())
}

/// The log's key, for its public half.
fn signer(config: &Config) -> anyhow::Result<LogSigner> {
    let token = match &config.ca {
        CaBackend::Pkcs11(pkcs11) => Some(token::open(pkcs11)?),
        CaBackend::Software => None,
    };
    init::log_signer(config, token.as_ref(), false)
}

/// What the log in files is up to.
struct Published {
    checkpoint: Checkpoint,
    note: Vec<u8>,
}

impl Published {
    fn read(config: &Config, signer: &LogSigner) -> anyhow::Result<Option<Self>> {
        if !signer.lasts() {
            return Ok(None);
        }
        let path = config.log_dir().join("checkpoint");
        let note = match std::fs::read(&path) {
            Ok(note) => note,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error).with_context(|| path.display().to_string()),
        };
        let checkpoint = open_checkpoint(&note, signer.verifier()).with_context(|| {
            format!(
                "{}: it says how far the log was; without it nobody can say what the backup lacks",
                path.display()
            )
        })?;
        Ok(Some(Self { checkpoint, note }))
    }

    /// The records after the backup's, once the whole log is verified, and that it goes on from the backup.
    fn after(
        &self,
        config: &Config,
        signer: &LogSigner,
        backed_up: Option<&Checkpoint>,
    ) -> anyhow::Result<Vec<Regained>> {
        let (dir, from) = (config.log_dir(), backed_up.map_or(0, |checkpoint| checkpoint.size));
        let mut records = Vec::new();
        let mut served = |path: &str| std::fs::read(dir.join(path)).map_err(|error| error.to_string());
        let verified = audit(&mut served, signer.verifier(), backed_up, &mut |index, entry| {
            if index >= from {
                records.push(Regained::read(entry)?);
            }
            Ok(())
        })
        .with_context(|| dir.display().to_string())?;
        if verified != self.checkpoint {
            bail!("{}: the log's files change: stop the issuer first", dir.display());
        }
        Ok(records)
    }
}

/// A copy to work on, gone when it is not wanted.
struct Working(PathBuf);

impl Working {
    fn copy(file: &Path, dir: &Path) -> anyhow::Result<Self> {
        use std::os::unix::fs::OpenOptionsExt;
        let to = dir.join("hallmark.db.restoring");
        let mut from = std::fs::File::open(file).with_context(|| file.display().to_string())?;
        // What an interrupted attempt left, its journal first: that would be rolled into this copy.
        remove(&to);
        let made = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o640).open(&to);
        let mut copy = made.with_context(|| to.display().to_string())?;
        let working = Self(to);
        std::io::copy(&mut from, &mut copy).with_context(|| working.0.display().to_string())?;
        copy.sync_all()?;
        Ok(working)
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        // Put where the store belongs, it has another name by now.
        remove(&self.0);
    }
}

/// A working copy with what SQLite keeps beside it; what is not there need not go.
fn remove(copy: &Path) {
    for end in ["restoring-journal", "restoring-wal", "restoring-shm", "restoring"] {
        let _ = std::fs::remove_file(copy.with_extension(end));
    }
}

/// How far it is, on a terminal.
#[derive(Default)]
struct Bar(Option<(&'static str, ProgressBar)>);

impl Bar {
    fn show(&mut self, what: &'static str, done: u64, all: u64) {
        if !std::io::stderr().is_terminal() {
            return;
        }
        if self.0.as_ref().is_none_or(|(shown, _)| *shown != what) {
            self.end();
            let style = ProgressStyle::with_template("{msg:24} {wide_bar} {human_pos}/{human_len} {eta}");
            let bar = ProgressBar::new(all).with_message(what);
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
            self.0 = Some((what, bar));
        }
        if let Some((_, bar)) = &self.0 {
            bar.set_position(done);
        }
    }

    fn end(&mut self) {
        if let Some((_, bar)) = self.0.take() {
            bar.finish_and_clear();
        }
    }
}
