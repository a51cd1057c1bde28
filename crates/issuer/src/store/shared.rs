//! Several issuers on one PostgreSQL: what one has changed, the others know before they decide anything more.
//!
//! Each commit takes the trust domain's lock: shared if it only appends, alone if it changes what others decide
//! upon. Under it, it first reads what others changed since it last looked, and takes it in; what it changes itself
//! it writes down for them. So no credential is recorded on a picture that lacks a change committed before it:
//! changes are linearizable, and a host that one issuer disables gets nothing from another.
//!
//! Not looked at: an instance id, which holds 80 random bits, being used for the first time at two issuers in the
//! same moment.

use std::collections::BTreeSet;
use std::str::FromStr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use hallmark_core::id::{AgentName, HostId, InstanceId, IssuerId};
use hallmark_core::tier::Tier;

use super::authority;
use super::db::{On, Row, query};
use super::live::Live;
use super::rows::{self, AllowedEk, HostRow, RegistrationRow, instance_id, unreadable};
use super::write::{Ended, Who};
use super::{StoreError, unix_now};

/// Key of the trust domain's lock: "hallmark" in ASCII.
const DOMAIN_LOCK: i64 = 0x6861_6c6c_6d61_726b;
/// Channel on which others are woken.
pub(super) const CHANNEL: &str = "hallmark";
/// Instances looked up in one statement.
const LOOKUP: usize = 64;

/// Something that other issuers decide upon, too, has changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum News {
    /// A host's standing or its place on the allow-list.
    Host(HostId),
    /// The registrations.
    Registrations,
    /// An instance has ended.
    Ended(InstanceId),
    /// The CAs.
    Authorities,
}

/// What another issuer has changed, as it stands now.
#[derive(Debug)]
pub enum Heard {
    /// A host's row; none if it is removed or was never enrolled.
    Host {
        /// Which.
        host_id: HostId,
        /// Its row.
        row: Option<HostRow>,
        /// Its place on the allow-list.
        allowed: Option<AllowedEk>,
        /// When it was last removed.
        last_removed: Option<i64>,
        /// Its standing here from now on.
        epoch: u64,
    },
    /// All registrations.
    Registrations {
        /// The set's revision.
        revision: u64,
        /// Its registrations.
        rows: Vec<RegistrationRow>,
    },
    /// An instance ended; owner and selectors are left out.
    Ended(Ended),
    /// The CAs.
    Authorities,
    /// What is known of others' changes is not to be relied on: the allow-list is forgotten, and everything follows.
    Anew,
}

/// Takes in what another issuer has changed. It must not block.
pub(super) type Observer = Box<dyn Fn(&Heard) + Send + Sync>;

/// What one issuer has heard of the others.
#[derive(Clone)]
pub(super) struct Ear {
    /// Changes up to this one are taken in.
    heard: i64,
    /// What that one said.
    mark: String,
    epochs: Arc<AtomicU64>,
    news: Arc<Delivery>,
}

/// Hands what is heard to the issuer, once there is one.
#[derive(Default)]
pub(super) struct Delivery(Mutex<(Option<Observer>, Vec<Heard>)>);

impl Delivery {
    /// From here on `observer` takes it in, and what was heard before it.
    pub(super) fn observe(&self, observer: Observer) {
        let mut to = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for heard in to.1.drain(..) {
            observer(&heard);
        }
        to.0 = Some(observer);
    }

    fn hand(&self, heard: Heard) {
        let mut to = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &to.0 {
            Some(observer) => observer(&heard),
            None => to.1.push(heard),
        }
    }
}

impl std::fmt::Debug for Ear {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ear").field("heard", &self.heard).finish_non_exhaustive()
    }
}

impl Ear {
    pub(super) fn new(epochs: Arc<AtomicU64>, news: Arc<Delivery>) -> Self {
        Self { heard: 0, mark: String::new(), epochs, news }
    }

    /// Everything up to now is read from the tables themselves.
    pub(super) async fn begin(&mut self, on: &mut On<'_>) -> Result<(), StoreError> {
        let newest = query("SELECT seq, issuer, at, kind, subject FROM changes ORDER BY seq DESC LIMIT 1");
        if let Some(row) = newest.fetch_optional(on).await? {
            let change = Change::read(&row)?;
            (self.heard, self.mark) = (change.seq, change.mark());
        } else {
            (self.heard, self.mark) = (0, String::new());
        }
        Ok(())
    }

    /// Takes the lock and takes in what others have changed.
    pub(super) async fn hear(&mut self, tx: &mut On<'_>, live: &Live, alone: bool) -> Result<(), StoreError> {
        let lock = match alone {
            true => "SELECT pg_advisory_xact_lock($1)",
            false => "SELECT pg_advisory_xact_lock_shared($1)",
        };
        query(lock).bind(DOMAIN_LOCK).execute(tx).await?;
        let changes =
            query("SELECT seq, issuer, at, kind, subject FROM changes WHERE seq >= $1 ORDER BY seq")
                .bind(self.heard)
                .fetch_all(tx)
                .await?;
        let changes = changes.iter().map(Change::read).collect::<Result<Vec<_>, _>>()?;
        let known = changes.first().filter(|first| first.seq == self.heard);
        let new = &changes[usize::from(known.is_some())..];
        // The newest is never dropped. Without the one that was heard last, or with another in its place, either this
        // issuer was away for longer than changes are kept, or the database is an older copy that took over.
        let same = match known {
            Some(known) => known.mark() == self.mark,
            None => self.heard == 0 || new.first().is_some_and(|next| next.seq == self.heard + 1),
        };
        let whole = new.iter().zip(self.heard + 1..).all(|(change, seq)| change.seq == seq);
        if same && whole {
            let mut seen = BTreeSet::new();
            for change in new {
                if seen.insert((change.kind.clone(), change.subject.clone())) {
                    self.take_in(tx, live, change.news()?).await?;
                }
            }
        } else {
            tracing::warn!(
                heard = self.heard,
                "other issuers' changes since then are not all there: everything is read anew"
            );
            self.news.hand(Heard::Anew);
            for news in everything(tx).await? {
                self.take_in(tx, live, news).await?;
            }
            return self.begin(tx).await;
        }
        if let Some(last) = changes.last() {
            (self.heard, self.mark) = (last.seq, last.mark());
        }
        Ok(())
    }

    /// Memory first, then the picture that decisions are held against: a decision on the old memory is refused.
    async fn take_in(&self, tx: &mut On<'_>, live: &Live, news: News) -> Result<(), StoreError> {
        let heard = match news {
            News::Host(host_id) => {
                let epoch = self.epochs.fetch_add(1, Ordering::Relaxed);
                Heard::Host {
                    row: rows::host(tx, &host_id).await?,
                    allowed: rows::allowed_ek(tx, &host_id).await?,
                    last_removed: rows::last_removed(tx, &host_id).await?,
                    host_id,
                    epoch,
                }
            }
            News::Registrations => Heard::Registrations {
                revision: rows::registrations_revision(tx).await?,
                rows: rows::registrations(tx).await?,
            },
            News::Ended(id) => match ended(tx, id).await? {
                Some(ended) => Heard::Ended(ended),
                // Dropped by now: its certificates have long expired.
                None => return Ok(()),
            },
            News::Authorities => Heard::Authorities,
        };
        let tainted = match heard {
            Heard::Authorities => authority::tainted(tx).await?,
            _ => Vec::new(),
        };
        let picture = Picture::of(&heard)?;
        self.news.hand(heard);
        let mut live = live.lock();
        match picture {
            Picture::Host(host, epoch) => {
                live.turn(host, epoch);
            }
            Picture::Registrations(all) => live.register_all(all),
            Picture::Ended(ended) => {
                live.end(ended.instance, ended.agent, ended.host, ended.tier, unix_now());
            }
            // What a tainted CA signed and is not recorded yet never is.
            Picture::Authorities => {
                for (tier, ca) in tainted {
                    live.taint(tier, ca);
                }
            }
        }
        Ok(())
    }

    /// Writes down for others what this commit changes, and wakes them when it is durable. The lock is held alone.
    pub(super) async fn tell(
        &self,
        tx: &mut On<'_>,
        issuer: &IssuerId,
        news: &[News],
    ) -> Result<Option<Told>, StoreError> {
        if news.is_empty() {
            return Ok(None);
        }
        let at = unix_now();
        let changes: Vec<Change> = news
            .iter()
            .zip(self.heard + 1..)
            .map(|(item, seq)| {
                let (kind, subject) = item.words();
                Change { seq, issuer: issuer.to_string(), at, kind: kind.to_owned(), subject }
            })
            .collect();
        for some in changes.chunks(LOOKUP) {
            let values = super::writer::values(some.len(), 5);
            let sql = format!("INSERT INTO changes (seq, issuer, at, kind, subject) VALUES {values}");
            let insert = some.iter().fold(query(&sql), |insert, change| {
                insert
                    .bind(change.seq)
                    .bind(change.issuer.as_str())
                    .bind(change.at)
                    .bind(change.kind.as_str())
                    .bind(change.subject.as_str())
            });
            insert.execute(tx).await?;
        }
        query("SELECT pg_notify($1, $2)").bind(CHANNEL).bind(issuer.as_str()).execute(tx).await?;
        Ok(changes.last().map(|last| Told(last.seq, last.mark())))
    }

    /// What was told is durable. Until then it counts as another's: whoever does not know whether a commit of its
    /// own came to be hears of it like the others.
    pub(super) fn told(&mut self, told: Told) {
        (self.heard, self.mark) = (told.0, told.1);
    }
}

/// What of it decisions are held against.
enum Picture {
    Host(HostId, u64),
    Registrations(Vec<(AgentName, u64)>),
    Ended(Ended),
    Authorities,
}

impl Picture {
    fn of(heard: &Heard) -> Result<Self, StoreError> {
        Ok(match heard {
            Heard::Host { host_id, epoch, .. } => Self::Host(host_id.clone(), *epoch),
            Heard::Registrations { rows, .. } => {
                let revision = |row: &RegistrationRow| {
                    let agent = AgentName::from_str(&row.agent).map_err(unreadable("registrations"))?;
                    Ok::<_, StoreError>((agent, row.revision))
                };
                Self::Registrations(rows.iter().map(revision).collect::<Result<_, _>>()?)
            }
            Heard::Ended(ended) => Self::Ended(ended.clone()),
            Heard::Authorities | Heard::Anew => Self::Authorities,
        })
    }
}

/// The newest change of a commit.
pub(super) struct Told(i64, String);

impl News {
    fn words(&self) -> (&'static str, String) {
        match self {
            News::Host(host) => ("host", host.to_string()),
            News::Registrations => ("registrations", String::new()),
            News::Ended(id) => ("ended", id.to_string()),
            News::Authorities => ("authorities", String::new()),
        }
    }
}

/// A row of the changes.
struct Change {
    seq: i64,
    issuer: String,
    at: i64,
    kind: String,
    subject: String,
}

impl Change {
    fn read(row: &Row) -> Result<Self, StoreError> {
        Ok(Self {
            seq: row.get("seq")?,
            issuer: row.get("issuer")?,
            at: row.get("at")?,
            kind: row.get("kind")?,
            subject: row.get("subject")?,
        })
    }

    /// What tells it from another of the same number.
    fn mark(&self) -> String {
        format!("{} {} {} {}", self.issuer, self.at, self.kind, self.subject)
    }

    fn news(&self) -> Result<News, StoreError> {
        Ok(match self.kind.as_str() {
            "host" => News::Host(self.subject.parse().map_err(unreadable("changes"))?),
            "registrations" => News::Registrations,
            "ended" => News::Ended(self.subject.parse().map_err(unreadable("changes"))?),
            "authorities" => News::Authorities,
            other => return Err(unreadable("changes")(format!("{other:?} is no kind of change"))),
        })
    }
}

async fn everything(tx: &mut On<'_>) -> Result<Vec<News>, StoreError> {
    let mut news = vec![News::Registrations, News::Authorities];
    let hosts: Vec<String> =
        query("SELECT host_id FROM hosts UNION SELECT host_id FROM allowed_eks").fetch_scalars(tx).await?;
    for host in hosts {
        news.push(News::Host(host.parse().map_err(unreadable("hosts"))?));
    }
    for row in query("SELECT instance_id FROM ended_instances").fetch_all(tx).await? {
        news.push(News::Ended(instance_id(&row)?));
    }
    Ok(news)
}

async fn ended(tx: &mut On<'_>, id: InstanceId) -> Result<Option<Ended>, StoreError> {
    let row = query("SELECT agent, host_id FROM ended_instances WHERE instance_id = $1")
        .bind(id.as_bytes().as_slice())
        .fetch_optional(tx)
        .await?;
    let Some(row) = row else { return Ok(None) };
    let serials = query("SELECT serial FROM revocations WHERE instance_id = $1")
        .bind(id.as_bytes().as_slice())
        .fetch_scalars(tx)
        .await?;
    Ok(Some(Ended {
        instance: id,
        agent: row.get::<String>("agent")?.parse().map_err(unreadable("ended_instances"))?,
        host: row.get::<String>("host_id")?.parse().map_err(unreadable("ended_instances"))?,
        // Not kept; it is of no account once an instance has ended.
        tier: Tier::Foundation,
        owner: None,
        selectors: Vec::new(),
        serials,
    }))
}

/// Takes into the picture what other issuers gave to the instances that `who` may choose.
pub(super) async fn bring_in(tx: &mut On<'_>, live: &Live, who: &Who, at: i64) -> Result<(), StoreError> {
    if let Some(ids) = &who.instances {
        return look_up(tx, live, ids).await;
    }
    // A text of its own for each: so an index is used.
    let (agent, host) = (who.agent.as_ref().map(AgentName::as_str), who.host.as_ref().map(HostId::as_str));
    let (of, values) = match (agent, host) {
        (Some(agent), Some(host)) => ("AND agent = $2 AND host_id = $3", vec![agent, host]),
        (Some(agent), None) => ("AND agent = $2", vec![agent]),
        (None, Some(host)) => ("AND host_id = $2", vec![host]),
        (None, None) => ("", Vec::new()),
    };
    let sql = format!(
        "SELECT instance_id, agent, host_id, tier, not_after FROM credentials c WHERE not_after > $1 {of}
         AND NOT EXISTS (SELECT 1 FROM ended_instances e WHERE e.instance_id = c.instance_id)
         ORDER BY issued_at, number"
    );
    let found = values.into_iter().fold(query(&sql).bind(at), |query, value| query.bind(value));
    let found = found.fetch_all(tx).await?;
    found.iter().try_for_each(|row| load(live, row))
}

/// Takes these instances into the picture, as far as they are known to any issuer.
pub(super) async fn look_up(tx: &mut On<'_>, live: &Live, ids: &[InstanceId]) -> Result<(), StoreError> {
    for ids in ids.chunks(LOOKUP) {
        let places: Vec<String> = (1..=ids.len()).map(|n| format!("${n}")).collect();
        let places = places.join(",");
        let held = format!(
            "SELECT instance_id, agent, host_id, tier, not_after FROM credentials
             WHERE instance_id IN ({places}) ORDER BY issued_at, number"
        );
        let of = |sql| ids.iter().fold(query(sql), |query, id| query.bind(id.as_bytes().as_slice()));
        for row in of(&held).fetch_all(tx).await? {
            load(live, &row)?;
        }
        let ended = format!(
            "SELECT instance_id, agent, host_id, ended_at FROM ended_instances WHERE instance_id IN ({places})"
        );
        for row in of(&ended).fetch_all(tx).await? {
            let (id, agent, host) = names(&row)?;
            live.lock().end(id, agent, host, Tier::Foundation, row.get("ended_at")?);
        }
    }
    Ok(())
}

fn load(live: &Live, row: &Row) -> Result<(), StoreError> {
    let (id, agent, host) = names(row)?;
    let tier = row.get::<String>("tier")?.parse().map_err(unreadable("credentials"))?;
    live.lock().load(id, agent, host, tier, row.get("not_after")?);
    Ok(())
}

fn names(row: &Row) -> Result<(InstanceId, AgentName, HostId), StoreError> {
    Ok((
        instance_id(row)?,
        row.get::<String>("agent")?.parse().map_err(unreadable("credentials"))?,
        row.get::<String>("host_id")?.parse().map_err(unreadable("credentials"))?,
    ))
}

/// Keeps that this issuer issues here.
pub(super) async fn join(on: &mut On<'_>, issuer: &IssuerId) -> Result<(), StoreError> {
    query("INSERT INTO issuers (issuer, joined_at) VALUES ($1, $2) ON CONFLICT (issuer) DO NOTHING")
        .bind(issuer.as_str())
        .bind(unix_now())
        .execute(on)
        .await?;
    Ok(())
}
