//! One log that is watched.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use hallmark_core::log::{
    AuditError, Checkpoint, CheckpointError, Facts, LogVerifier, Reader, Record, TILE_WIDTH,
};
use serde::Serialize;

use super::super::kept::{Kept, Position};
use super::super::source::Log;
use super::MonitorArgs;
use super::alert::{Alarm, Alert, What};
use super::config::Config;
use crate::failure::Failure;
use crate::moment::{now, span};

/// Looks in a row that may fail before a log counts as unreachable, or as one without its witnesses.
const PATIENCE: u32 = 3;

/// A log, and what is known of it.
pub(super) struct Watched {
    name: String,
    log: Log,
    kept: Kept,
    /// Up to where it was read, by the checkpoint that it had then.
    position: Option<(Position, Checkpoint)>,
    facts: Facts,
    /// Up to which record the facts are; none before the first look where history is passed over.
    facts_to: Option<u64>,
    from_now: bool,
    once: bool,
    /// What was last seen, if the last look was good.
    reader: Option<Reader>,
    /// What was raised and lasts.
    standing: BTreeSet<What>,
    /// Whether it was told of that another place shows another history.
    split: bool,
    failures: u32,
    new: u64,
}

/// One log, as it is shown.
#[derive(Debug, Serialize)]
pub(super) struct View {
    pub(super) log: String,
    pub(super) name: String,
    pub(super) seen: bool,
    pub(super) size: u64,
    pub(super) new: u64,
}

/// Why a look ended before its end.
enum Ended {
    /// The log is not as it should be.
    Wrong(AuditError),
    /// An alert was not taken: what comes after it is looked at later.
    Undelivered,
    Failed(Failure),
}

impl From<AuditError> for Ended {
    fn from(error: AuditError) -> Self {
        Self::Wrong(error)
    }
}

impl Watched {
    pub(super) fn open(name: &str, log: Log, config: &Config, args: &MonitorArgs) -> Result<Self, Failure> {
        std::fs::create_dir_all(&config.state)
            .map_err(|error| Failure::usage(format!("cannot make {}: {error}", config.state.display())))?;
        let kept = Kept::open(&config.state.join(Path::new(&format!("{name}.json"))))?;
        let position = kept.read(log.key())?;
        Ok(Self {
            name: name.to_owned(),
            log,
            kept,
            position,
            facts: Facts::default(),
            facts_to: (!args.skip_history).then_some(0),
            from_now: args.from_now,
            once: args.once,
            reader: None,
            standing: BTreeSet::new(),
            split: false,
            failures: 0,
            new: 0,
        })
    }

    pub(super) fn key(&self) -> &LogVerifier {
        self.log.key()
    }

    pub(super) fn view(&self) -> View {
        View {
            log: self.name.clone(),
            name: self.log.key().name().to_string(),
            seen: self.reader.is_some(),
            size: self.reader.as_ref().map_or(0, |reader| reader.checkpoint().size),
            new: self.new,
        }
    }

    /// Looks at what is new.
    pub(super) fn look(&mut self, config: &Config, alarm: &mut Alarm) -> Result<(), Failure> {
        self.new = 0;
        self.reader = None;
        match self.try_look(config, alarm) {
            Ok(reader) => {
                self.failures = 0;
                self.standing.retain(|what| *what == What::Stale);
                self.reader = Some(reader);
            }
            Err(Ended::Failed(failure)) => return Err(failure),
            Err(Ended::Undelivered) => {}
            Err(Ended::Wrong(error)) => self.wrong(&error, alarm),
        }
        self.check_age(config.stale_after, alarm);
        Ok(())
    }

    fn try_look(&mut self, config: &Config, alarm: &mut Alarm) -> Result<Reader, Ended> {
        let before = self.position.as_ref().map(|(_, checkpoint)| *checkpoint);
        let mut reader = self.log.open()?;
        if let Some(before) = before {
            let followed = self.log.follows(&mut reader, &before);
            if let Err(AuditError::RolledBack { .. } | AuditError::Forked { .. }) = followed {
                // Both signatures together are the proof.
                self.reader = Some(reader);
                return Err(followed.err().map_or(Ended::Undelivered, Ended::Wrong));
            }
            followed?;
        }
        let size = reader.checkpoint().size;
        let first = match &self.position {
            Some((position, _)) => position.next,
            None if self.from_now => size,
            None => 0,
        };
        self.catch_up_facts(&mut reader, first)?;
        let mut newest = self.position.as_ref().and_then(|(position, _)| position.newest);
        if newest.is_none() {
            newest = self.newest_before(&mut reader, first)?;
        }
        self.read(&mut reader, first, &mut newest, config, alarm)?;
        let position = Position::new(self.log.key(), &reader, size).with_newest(newest);
        if self.position.as_ref().is_none_or(|(known, _)| *known != position) {
            self.kept.write(&position).map_err(Ended::Failed)?;
        }
        self.position = Some((position, *reader.checkpoint()));
        Ok(reader)
    }

    /// What earlier runs have read, for the facts alone.
    fn catch_up_facts(&mut self, reader: &mut Reader, to: u64) -> Result<(), Ended> {
        let mut at = self.facts_to.unwrap_or(to);
        let width = u64::from(TILE_WIDTH);
        while at < to {
            let number = at / width;
            let entries = self.log.bundle(reader, number)?;
            for (index, entry) in (number * width..).zip(&entries) {
                if index == at && at < to {
                    // What contradicts here was told of when it was new.
                    let _ = self.facts.take(entry);
                    at += 1;
                }
            }
            self.facts_to = Some(at);
        }
        self.facts_to = Some(at);
        Ok(())
    }

    /// When the record before `index` was made.
    fn newest_before(&mut self, reader: &mut Reader, index: u64) -> Result<Option<i64>, Ended> {
        let Some(last) = index.checked_sub(1) else { return Ok(None) };
        let entries = self.log.bundle(reader, last / u64::from(TILE_WIDTH))?;
        let entry = entries.get(usize::try_from(last % u64::from(TILE_WIDTH)).unwrap_or_default());
        Ok(entry.and_then(|entry| Record::parse(entry).ok()).map(|record| record.at.min(now())))
    }

    fn read(
        &mut self,
        reader: &mut Reader,
        first: u64,
        newest: &mut Option<i64>,
        config: &Config,
        alarm: &mut Alarm,
    ) -> Result<(), Ended> {
        let (size, width) = (reader.checkpoint().size, u64::from(TILE_WIDTH));
        let mut number = first / width;
        while number * width < size {
            let entries = self.log.bundle(reader, number)?;
            for (index, entry) in (number * width..).zip(&entries).filter(|(index, _)| *index >= first) {
                let at = self.judge(index, entry, config, alarm)?;
                // By our own clock at most: a record from the future would keep a log young for ever.
                *newest = at.map(|at| at.min(now())).max(*newest);
                self.new += 1;
            }
            number += 1;
        }
        Ok(())
    }

    /// Looks at one record; gives its time.
    fn judge(
        &mut self,
        index: u64,
        entry: &[u8],
        config: &Config,
        alarm: &mut Alarm,
    ) -> Result<Option<i64>, Ended> {
        let (name, record) = (self.log.key().name().clone(), Record::parse(entry));
        let id = record.as_ref().ok().and_then(|record| record.spiffe_id(&name));
        let mut raise = |what, text: String, unexpected| {
            let alert = Alert::new(what, &self.name, name.as_str(), text);
            let alert = alert.record(index, id.clone(), entry).unexpected(unexpected);
            if alarm.raise(alert) { Ok(()) } else { Err(Ended::Undelivered) }
        };
        // Seen again after an alert that was not taken, a record would contradict itself.
        if self.facts_to == Some(index) {
            if let Err(contradiction) = self.facts.take(entry) {
                raise(What::Contradiction, contradiction.to_string(), Vec::new())?;
            }
            self.facts_to = Some(index + 1);
        }
        let Ok(record) = record else { return Ok(None) };
        let unexpected = config.expectations.unexpected(&name, &record);
        if !unexpected.is_empty() {
            let why: Vec<String> = unexpected.iter().map(ToString::to_string).collect();
            let who = id.as_deref().unwrap_or("nobody that is known");
            let host = record.host.as_deref().map(|host| format!(" on host {host}")).unwrap_or_default();
            let text = format!("a certificate for {who}{host}: {}", why.join("; "));
            raise(What::UnexpectedCertificate, text, unexpected)?;
        }
        Ok(Some(record.at))
    }

    fn wrong(&mut self, error: &AuditError, alarm: &mut Alarm) {
        let what = match error {
            // A web server may be restarted, and the newest checkpoint wait for its witnesses for a moment.
            AuditError::Unserved { .. } | AuditError::Checkpoint(CheckpointError::Quorum { .. }) => {
                self.failures += 1;
                if self.failures < PATIENCE && !self.once {
                    return;
                }
                if let AuditError::Unserved { .. } = error { What::Unreachable } else { What::Unwitnessed }
            }
            AuditError::Checkpoint(_) => What::Unsigned,
            AuditError::RolledBack { .. } => What::RolledBack,
            AuditError::Forked { .. } => What::Forked,
            _ => What::Tampered,
        };
        let seen = self.reader.take();
        if self.standing.contains(&what) {
            return;
        }
        let known = self.position.as_ref().map(|(position, _)| position.note().to_owned());
        let seen = seen.map(|reader| String::from_utf8_lossy(reader.note()).into_owned());
        let text = format!("{}: {error}", self.log.shown());
        let alert = Alert::new(what, &self.name, self.log.key().name().as_str(), text);
        let notes = if matches!(what, What::Forked | What::RolledBack) {
            known.into_iter().chain(seen).collect()
        } else {
            Vec::new()
        };
        if alarm.raise(alert.shown_by(notes)) {
            self.standing.insert(what);
        }
    }

    fn check_age(&mut self, stale_after: Duration, alarm: &mut Alarm) {
        let newest = self.position.as_ref().and_then(|(position, _)| position.newest);
        let Some(age) = newest.map(|newest| now().saturating_sub(newest).max(0).unsigned_abs()) else {
            return;
        };
        if age <= stale_after.as_secs() {
            self.standing.remove(&What::Stale);
            return;
        }
        if self.standing.contains(&What::Stale) {
            return;
        }
        let text = format!(
            "{}: its newest record is {} old: it stands still, or is a copy that lags behind",
            self.log.shown(),
            span(age)
        );
        if alarm.raise(Alert::new(What::Stale, &self.name, self.log.key().name().as_str(), text)) {
            self.standing.insert(What::Stale);
        }
    }

    /// Holds two views of one log against each other.
    pub(super) fn compare(&mut self, other: &mut Self, alarm: &mut Alarm) {
        let (Some(own), Some(others)) = (&self.reader, &other.reader) else { return };
        let (longer, before) = if own.checkpoint().size >= others.checkpoint().size {
            (&mut *self, *others.checkpoint())
        } else {
            (&mut *other, *own.checkpoint())
        };
        let Some(mut reader) = longer.reader.take() else { return };
        let followed = longer.log.follows(&mut reader, &before);
        longer.reader = Some(reader);
        let forked = matches!(followed, Err(AuditError::Forked { .. }));
        if !forked || self.split {
            self.split = forked;
            return;
        }
        let notes = [&self.reader, &other.reader].into_iter().flatten();
        let notes = notes.map(|reader| String::from_utf8_lossy(reader.note()).into_owned()).collect();
        let text = format!(
            "{} and {} show two histories of one log, and both are signed",
            self.log.shown(),
            other.log.shown()
        );
        let alert = Alert::new(What::Forked, &self.name, self.log.key().name().as_str(), text);
        self.split = alarm.raise(alert.shown_by(notes));
    }
}
