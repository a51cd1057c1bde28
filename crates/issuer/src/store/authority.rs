//! CAs in the store: their certificates, whose they are, and where each stands in its life.

use std::str::FromStr;

use hallmark_core::rotation::{self, Role, Stage};
use hallmark_core::tier::{Hierarchy, Tier};

use super::change::{Effect, SERIALS, Scene, Turned, end};
use super::db::{On, query};
use super::rows::unreadable;
use super::write::{Ending, Who};
use super::{Conflict, StoreError};
use crate::record::{Kind, Record};

/// Why a certificate is revoked whose instance goes on with another.
pub(super) const SUPERSEDED: &str = "superseded";
/// Why an instance ends that holds nothing but what a tainted CA signed.
const TAINTED: &str = "ca-tainted";

/// One CA. Times are seconds since 1970.
#[derive(Debug, Clone)]
pub struct Authority {
    /// Which hierarchy it belongs to.
    pub hierarchy: Hierarchy,
    /// Root or issuing.
    pub role: Role,
    /// Counts the CAs of this role in this hierarchy, whosesoever they are, from 1.
    pub generation: u32,
    /// Of an issuing CA: the issuer whose own it is; empty for a root.
    pub issuer: String,
    /// Of an issuing CA: generation of the root that signed it; 0 for none.
    pub root: u32,
    /// Where it stands.
    pub stage: Stage,
    /// Label of its key in the token; empty where the key is elsewhere.
    pub key_label: String,
    /// DER; empty while its certificate is awaited.
    pub certificate: Vec<u8>,
    /// When its key was made.
    pub made_at: i64,
    /// When it came into the bundle.
    pub published_at: Option<i64>,
    /// When it began to sign.
    pub activated_at: Option<i64>,
    /// When another took its place.
    pub replaced_at: Option<i64>,
    /// When it was tainted.
    pub tainted_at: Option<i64>,
    /// Of a tainted one: seconds over which its holders renew.
    pub renew_within: i64,
    /// When what it signed was revoked; when a root left the bundle.
    pub withdrawn_at: Option<i64>,
    /// When it was over.
    pub retired_at: Option<i64>,
    /// End of the last leaf that it signed, once that is known.
    pub last_not_after: Option<i64>,
}

impl Authority {
    /// A CA made at `at`, at its first stage.
    pub fn new(hierarchy: Hierarchy, role: Role, generation: u32, stage: Stage, at: i64) -> Self {
        Self {
            hierarchy,
            role,
            generation,
            issuer: String::new(),
            root: 0,
            stage,
            key_label: String::new(),
            certificate: Vec::new(),
            made_at: at,
            published_at: None,
            activated_at: None,
            replaced_at: None,
            tainted_at: None,
            renew_within: 0,
            withdrawn_at: None,
            retired_at: None,
            // Hosts' and issuers' leaves are noted here as they are signed; agents' are counted when it signs no more.
            last_not_after: (hierarchy == Hierarchy::Infrastructure).then_some(0),
        }
    }

    /// As the rules of rotation see it, for the issuer `own`; `in_use`: a request that it may sign for is under way.
    pub fn seen(&self, own: &str, in_use: bool) -> rotation::Authority {
        let (not_before, not_after) = self.validity().unwrap_or((i64::MAX, i64::MAX));
        rotation::Authority {
            role: self.role,
            generation: self.generation,
            root: self.root,
            own: self.issuer == own,
            stage: self.stage,
            not_before,
            not_after,
            published_at: self.published_at,
            tainted_at: self.tainted_at,
            withdrawn_at: self.withdrawn_at,
            window: self.renew_within,
            last_leaf: self.last_not_after.unwrap_or(i64::MAX),
            in_use,
        }
    }

    /// Its certificate's beginning and end; none while it has none.
    pub fn validity(&self) -> Option<(i64, i64)> {
        validity_of(&self.certificate)
    }

    /// In words, as in `enterprise issuing CA 2`.
    pub fn name(&self) -> String {
        name(self.hierarchy, self.role, self.generation)
    }
}

/// A CA in words.
pub fn name(hierarchy: Hierarchy, role: Role, generation: u32) -> String {
    match role {
        Role::Root => format!("{hierarchy} root {generation}"),
        Role::Issuing => format!("{hierarchy} issuing CA {generation}"),
    }
}

fn validity_of(der: &[u8]) -> Option<(i64, i64)> {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let (_, certificate) = X509Certificate::from_der(der).ok()?;
    let validity = certificate.validity();
    Some((validity.not_before.timestamp(), validity.not_after.timestamp()))
}

/// A change of a CA's place in its life.
#[derive(Debug, Clone)]
pub enum Change {
    /// From one stage to another; refused if it is not at the first.
    Stage {
        /// Its hierarchy.
        hierarchy: Hierarchy,
        /// Root or issuing.
        role: Role,
        /// Its generation.
        generation: u32,
        /// Where it stands.
        from: Stage,
        /// Where it stands from here on.
        to: Stage,
        /// Now.
        at: i64,
    },
    /// A CA is tainted, whatever its stage; refused if it is already, or is over.
    Taint {
        /// Its hierarchy.
        hierarchy: Hierarchy,
        /// Root or issuing.
        role: Role,
        /// Its generation.
        generation: u32,
        /// Now.
        at: i64,
        /// Seconds over which its holders renew.
        renew_within: i64,
    },
    /// An issuing CA whose certificate was awaited has it.
    Certified {
        /// Its hierarchy.
        hierarchy: Hierarchy,
        /// Its generation.
        generation: u32,
        /// The root that signed it.
        root: u32,
        /// DER.
        certificate: Vec<u8>,
    },
    /// A host's or an issuer's leaf was signed.
    Signed {
        /// The infrastructure issuing CA.
        generation: u32,
        /// The leaf's end.
        not_after: i64,
    },
    /// An issuing CA signs no more: the end of its last leaf is counted from what is kept.
    Settle {
        /// Its hierarchy.
        hierarchy: Hierarchy,
        /// Its generation.
        generation: u32,
    },
    /// All unexpired leaves of a tainted issuing CA are revoked; instances that hold no other end.
    Withdraw {
        /// Its hierarchy.
        hierarchy: Hierarchy,
        /// Its generation.
        generation: u32,
        /// Now.
        at: i64,
        /// Software TPMs may count in this trust domain.
        lab: bool,
    },
    /// A tainted root leaves the bundle.
    WithdrawRoot {
        /// Its hierarchy.
        hierarchy: Hierarchy,
        /// Its generation.
        generation: u32,
        /// Now.
        at: i64,
    },
}

impl Change {
    /// Whether other issuers must hear of it: that a host's leaf was signed is none of their business.
    pub(super) fn is_others_concern(&self) -> bool {
        !matches!(self, Change::Signed { .. })
    }
}

/// A generation as the database holds it.
pub(super) fn generation(stored: i64) -> u32 {
    u32::try_from(stored).unwrap_or(u32::MAX)
}

pub(super) async fn all(db: &mut On<'_>) -> Result<Vec<Authority>, StoreError> {
    let rows = query(
        "SELECT hierarchy, kind, generation, issuer, root, state, key_label, certificate, made_at, published_at,
         activated_at, replaced_at, tainted_at, renew_within, withdrawn_at, retired_at, last_not_after
         FROM authorities ORDER BY kind DESC, hierarchy, generation",
    )
    .fetch_all(db)
    .await?;
    rows.into_iter()
        .map(|row| {
            Ok(Authority {
                hierarchy: Hierarchy::from_str(&row.get::<String>("hierarchy")?)
                    .map_err(unreadable(TABLE))?,
                role: Role::from_str(&row.get::<String>("kind")?).map_err(unreadable(TABLE))?,
                generation: generation(row.get("generation")?),
                issuer: row.get("issuer")?,
                root: generation(row.get("root")?),
                stage: Stage::from_str(&row.get::<String>("state")?).map_err(unreadable(TABLE))?,
                key_label: row.get("key_label")?,
                certificate: row.get("certificate")?,
                made_at: row.get("made_at")?,
                published_at: row.get("published_at")?,
                activated_at: row.get("activated_at")?,
                replaced_at: row.get("replaced_at")?,
                tainted_at: row.get("tainted_at")?,
                renew_within: row.get("renew_within")?,
                withdrawn_at: row.get("withdrawn_at")?,
                retired_at: row.get("retired_at")?,
                last_not_after: row.get("last_not_after")?,
            })
        })
        .collect()
}

const TABLE: &str = "authorities";

/// Tiers' issuing CAs that sign nothing more.
pub(super) async fn tainted(db: &mut On<'_>) -> Result<Vec<(Tier, u32)>, StoreError> {
    let rows = query(
        "SELECT hierarchy, generation FROM authorities WHERE kind = 'issuing' AND tainted_at IS NOT NULL",
    )
    .fetch_all(db)
    .await?;
    let mut tainted = Vec::new();
    for row in &rows {
        // Infrastructure is no tier, and its leaves are no agents'.
        if let Ok(tier) = row.get::<String>("hierarchy")?.parse() {
            tainted.push((tier, generation(row.get("generation")?)));
        }
    }
    Ok(tainted)
}

pub(super) async fn signed_by(db: &mut On<'_>, tier: Tier, ca: u32, now: i64) -> Result<u64, StoreError> {
    let count: Option<i64> =
        query("SELECT count(*) FROM credentials WHERE tier = $1 AND ca = $2 AND not_after > $3")
            .bind(tier.as_str())
            .bind(i64::from(ca))
            .bind(now)
            .fetch_scalar(db)
            .await?;
    Ok(count.unwrap_or_default().unsigned_abs())
}

pub(super) async fn insert(tx: &mut On<'_>, a: Authority) -> Result<(), StoreError> {
    query(
        "INSERT INTO authorities (hierarchy, kind, generation, issuer, root, state, key_label, certificate, made_at,
         published_at, activated_at, renew_within, last_not_after)
         VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13)",
    )
    .bind(a.hierarchy.as_str())
    .bind(a.role.as_str())
    .bind(i64::from(a.generation))
    .bind(a.issuer)
    .bind(i64::from(a.root))
    .bind(a.stage.as_str())
    .bind(a.key_label)
    .bind(a.certificate)
    .bind(a.made_at)
    .bind(a.published_at)
    .bind(a.activated_at)
    .bind(a.renew_within)
    .bind(a.last_not_after)
    .execute(tx)
    .await?;
    Ok(())
}

/// Applies one change.
pub(super) async fn apply(
    tx: &mut On<'_>,
    scene: Scene<'_>,
    change: Change,
    turned: &mut Turned,
) -> Result<(), StoreError> {
    match change {
        Change::Stage { hierarchy, role, generation, from, to, at } => {
            let when = match to {
                Stage::Requested | Stage::Prepared => "made_at",
                Stage::Published => "published_at",
                Stage::Active => "activated_at",
                Stage::Retiring => "replaced_at",
                Stage::Tainted => "tainted_at",
                Stage::Retired => "retired_at",
            };
            let moved = query(&format!(
                "UPDATE authorities SET state = $5, {when} = $6
                 WHERE hierarchy = $1 AND kind = $2 AND generation = $3 AND state = $4"
            ))
            .bind(hierarchy.as_str())
            .bind(role.as_str())
            .bind(i64::from(generation))
            .bind(from.as_str())
            .bind(to.as_str())
            .bind(at)
            .execute(tx)
            .await?;
            is_there(moved, hierarchy, role, generation, from.as_str())
        }
        Change::Taint { hierarchy, role, generation, at, renew_within } => {
            let moved = query(
                "UPDATE authorities SET state = 'tainted', tainted_at = $4, renew_within = $5
                 WHERE hierarchy = $1 AND kind = $2 AND generation = $3 AND tainted_at IS NULL AND state <> 'retired'",
            )
            .bind(hierarchy.as_str())
            .bind(role.as_str())
            .bind(i64::from(generation))
            .bind(at)
            .bind(renew_within)
            .execute(tx)
            .await?;
            if let (Hierarchy::Tier(tier), Role::Issuing) = (hierarchy, role) {
                turned.effects.push(Effect::Taint { tier, ca: generation });
            }
            is_there(moved, hierarchy, role, generation, "untainted")
        }
        Change::Certified { hierarchy, generation, root, certificate } => {
            let moved = query(
                "UPDATE authorities SET state = 'prepared', root = $3, certificate = $4
                 WHERE hierarchy = $1 AND kind = 'issuing' AND generation = $2 AND state = 'requested'",
            )
            .bind(hierarchy.as_str())
            .bind(i64::from(generation))
            .bind(i64::from(root))
            .bind(certificate)
            .execute(tx)
            .await?;
            is_there(moved, hierarchy, Role::Issuing, generation, Stage::Requested.as_str())
        }
        Change::Signed { generation, not_after } => {
            query(
                "UPDATE authorities SET last_not_after = $2 WHERE hierarchy = 'infrastructure' AND kind = 'issuing'
                 AND generation = $1 AND (last_not_after IS NULL OR last_not_after < $2)",
            )
            .bind(i64::from(generation))
            .bind(not_after)
            .execute(tx)
            .await?;
            Ok(())
        }
        Change::Settle { hierarchy, generation } => {
            query(
                "UPDATE authorities SET last_not_after =
                 (SELECT COALESCE(max(not_after), 0) FROM credentials WHERE tier = $1 AND ca = $2)
                 WHERE hierarchy = $1 AND kind = 'issuing' AND generation = $2 AND last_not_after IS NULL",
            )
            .bind(hierarchy.as_str())
            .bind(i64::from(generation))
            .execute(tx)
            .await?;
            Ok(())
        }
        Change::Withdraw { hierarchy, generation, at, lab } => {
            if let Hierarchy::Tier(tier) = hierarchy {
                withdraw(tx, scene, tier, generation, at, lab, turned).await?;
            }
            withdrawn(tx, hierarchy, Role::Issuing, generation, at).await
        }
        Change::WithdrawRoot { hierarchy, generation, at } => {
            withdrawn(tx, hierarchy, Role::Root, generation, at).await
        }
    }
}

async fn withdrawn(
    tx: &mut On<'_>,
    hierarchy: Hierarchy,
    role: Role,
    generation: u32,
    at: i64,
) -> Result<(), StoreError> {
    let moved = query(
        "UPDATE authorities SET withdrawn_at = $4 WHERE hierarchy = $1 AND kind = $2 AND generation = $3
         AND state = 'tainted' AND withdrawn_at IS NULL",
    )
    .bind(hierarchy.as_str())
    .bind(role.as_str())
    .bind(i64::from(generation))
    .bind(at)
    .execute(tx)
    .await?;
    is_there(moved, hierarchy, role, generation, "tainted and in force")
}

fn is_there(
    moved: u64,
    hierarchy: Hierarchy,
    role: Role,
    generation: u32,
    expected: &'static str,
) -> Result<(), StoreError> {
    let hierarchy = hierarchy.to_string();
    match moved {
        0 => Err(StoreError::Conflict(Conflict::Authority {
            hierarchy,
            role: role.as_str(),
            generation,
            expected,
        })),
        _ => Ok(()),
    }
}

/// Instances whose every unexpired credential is this CA's end, with the record that each end has; of the others
/// these credentials alone are revoked.
async fn withdraw(
    tx: &mut On<'_>,
    scene: Scene<'_>,
    tier: Tier,
    ca: u32,
    at: i64,
    lab: bool,
    turned: &mut Turned,
) -> Result<(), StoreError> {
    let held: Vec<Vec<u8>> = query(
        "SELECT DISTINCT c.instance_id FROM credentials c
         WHERE c.tier = $1 AND c.ca = $2 AND c.not_after > $3 AND NOT EXISTS
         (SELECT 1 FROM credentials o WHERE o.instance_id = c.instance_id
          AND (o.issued_at > c.issued_at OR (o.issued_at = c.issued_at AND o.number > c.number))
          AND o.not_after > $3 AND (o.tier <> $1 OR o.ca <> $2))",
    )
    .bind(tier.as_str())
    .bind(i64::from(ca))
    .bind(at)
    .fetch_scalars(tx)
    .await?;
    let instances: Vec<_> = held
        .into_iter()
        .filter_map(|id| <[u8; 16]>::try_from(id).ok().map(hallmark_core::id::InstanceId::from_bytes))
        .collect();
    if !instances.is_empty() {
        let who = Who { instances: Some(instances), ..Who::default() };
        end(tx, scene, Ending { who, at, reason: TAINTED, operator: None, lab }, turned).await?;
    }
    let serials: Vec<Vec<u8>> = query(
        "SELECT serial FROM credentials c WHERE tier = $1 AND ca = $2 AND not_after > $3
         AND NOT EXISTS (SELECT 1 FROM revocations v WHERE v.serial = c.serial) ORDER BY issued_at, number",
    )
    .bind(tier.as_str())
    .bind(i64::from(ca))
    .bind(at)
    .fetch_scalars(tx)
    .await?;
    query(
        "INSERT INTO revocations
         (serial, issuer, instance_id, hierarchy, ca, host_id, not_after, revoked_at, reason)
         SELECT serial, issuer, instance_id, tier, ca, host_id, not_after, $3, $4
         FROM credentials WHERE tier = $1 AND ca = $2 AND not_after > $3
         ON CONFLICT (serial) DO NOTHING",
    )
    .bind(tier.as_str())
    .bind(i64::from(ca))
    .bind(at)
    .bind(SUPERSEDED)
    .execute(tx)
    .await?;
    for serials in serials.chunks(SERIALS) {
        let entry = Record {
            authority: Some(name(Hierarchy::Tier(tier), Role::Issuing, ca)),
            reason: Some(SUPERSEDED.to_owned()),
            revoked: serials.iter().map(hex::encode).collect(),
            lab,
            ..Record::default()
        };
        turned.entries.push(entry.entry(at, Kind::Ca, "leaves-revoked", None));
    }
    Ok(())
}
