//! Operators' orders about CAs: rotate, taint.

use std::sync::Arc;

use hallmark_core::rotation::{Replacement, Role, Stage, View, window};
use hallmark_core::tier::Hierarchy;

use super::keys::Maker;
use super::step::{activation, entry, find, look, refresh};
use super::{rules, seen};
use crate::admin::Operator;
use crate::config::Roots;
use crate::issuer::Issuer;
use crate::store::{Authority, Change, StoreError, Write};

/// One host's attestation counts as so many renewals: it costs as much at the issuer, and waits for a TPM.
const ATTESTATIONS: u32 = 10;

/// Why an order was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum OrderError {
    /// CAs in memory.
    #[error("the CA keys are in memory (--dev): a restart makes new ones, and nothing is rotated")]
    Dev,
    /// What is ordered is not possible as things stand.
    #[error("{0}")]
    Refused(String),
    /// It failed.
    #[error("{0:#}")]
    Failed(anyhow::Error),
}

impl From<anyhow::Error> for OrderError {
    fn from(error: anyhow::Error) -> Self {
        let error = match error.downcast::<OrderError>() {
            Ok(order) => return order,
            Err(error) => error,
        };
        match error.downcast_ref::<StoreError>() {
            Some(StoreError::Conflict(conflict)) => OrderError::Refused(conflict.to_string()),
            _ => OrderError::Failed(error),
        }
    }
}

impl From<StoreError> for OrderError {
    fn from(error: StoreError) -> Self {
        anyhow::Error::from(error).into()
    }
}

pub(super) fn refused<T>(why: impl Into<String>) -> Result<T, OrderError> {
    Err(OrderError::Refused(why.into()))
}

/// Replaces a hierarchy's issuing CA, at once; or begins to replace its root, which takes the overlap.
///
/// # Errors
/// It cannot be done, with what can be done instead.
pub async fn rotate(
    issuer: &Arc<Issuer>,
    operator: &Operator,
    hierarchy: Hierarchy,
    root: bool,
) -> Result<Vec<Authority>, OrderError> {
    let _turn = begin(issuer).await?;
    if issuer.config().roots == Roots::Offline {
        return refused(format!(
            "the roots are offline: `hallmark ca csr {hierarchy}`, have the root sign it, `hallmark ca install {hierarchy} FILE`"
        ));
    }
    let stored = look(issuer, hierarchy).await?;
    let authorities = seen(&issuer.config(), &stored, hierarchy, |_| false);
    let view = View { authorities: &authorities, now: issuer.now(), hosts_have_bundle: true };
    let Some(present) = view.root() else {
        return refused(format!("{hierarchy} has no root that could sign"));
    };
    if present.stage == Stage::Published {
        return refused(format!(
            "a rotation of the {hierarchy} root is under way: root {} is in the bundle and takes over after the overlap (hallmark ca list)",
            present.generation
        ));
    }
    if root {
        make_root(issuer, hierarchy, &stored, Some(operator)).await?;
    } else {
        let by = find(&stored, hierarchy, Role::Root, present.generation)?;
        let made = make_issuing(issuer, by, &stored).await?;
        let record = entry(issuer, &made, "made", Some(operator), None);
        issuer.store().commit(vec![Write::Authority(Box::new(made)), Write::Record(record)]).await?;
    }
    tracing::info!(%hierarchy, root, %operator, "CA rotation ordered");
    Ok(look(issuer, hierarchy).await?)
}

/// Taints an issuing CA (by default the one that signs), or a root with all that is under it. What takes its place signs
/// when this returns.
///
/// # Errors
/// It cannot be done, with what can be done instead.
pub async fn taint(
    issuer: &Arc<Issuer>,
    operator: &Operator,
    hierarchy: Hierarchy,
    root: bool,
    generation: Option<u32>,
    reason: &str,
) -> Result<Vec<Authority>, OrderError> {
    let _turn = begin(issuer).await?;
    let stored = refresh(issuer).await?;
    let own = issuer.config().issuer_id.to_string();
    let active = stored.iter().find(|a| {
        a.hierarchy == hierarchy && a.role == Role::Issuing && a.issuer == own && a.stage == Stage::Active
    });
    let role = if root { Role::Root } else { Role::Issuing };
    let default = active.map(|a| if root { a.root } else { a.generation });
    let Some(generation) = generation.or(default) else {
        return refused(format!("no {hierarchy} issuing CA signs here: say which one with --generation"));
    };
    let named = find(&stored, hierarchy, role, generation).map_err(|_| {
        OrderError::Refused(format!(
            "there is no {hierarchy} {} {generation} (hallmark ca list)",
            role.as_str()
        ))
    })?;
    if matches!(named.stage, Stage::Tainted | Stage::Retired) {
        return refused(format!("{} is {} already", named.name(), named.stage.as_str()));
    }
    if role == Role::Issuing && named.issuer != own {
        return refused(format!("{} is issuer {}'s: ask that one", named.name(), named.issuer));
    }
    let mut tainted = vec![(role, generation)];
    if root {
        tainted.extend(
            stored
                .iter()
                .filter(|a| a.hierarchy == hierarchy && a.issuer == own && a.root == generation)
                .filter(|a| a.role == Role::Issuing && !matches!(a.stage, Stage::Tainted | Stage::Retired))
                .map(|a| (Role::Issuing, a.generation)),
        );
    }
    supplant(issuer, hierarchy, &tainted, Some(operator), reason).await?;
    Ok(look(issuer, hierarchy).await?)
}

pub(super) async fn begin(issuer: &Arc<Issuer>) -> Result<crate::issuer::Turn, OrderError> {
    if issuer.token().is_none() {
        return Err(OrderError::Dev);
    }
    Ok(issuer.ca_turn().await)
}

/// Makes a root, which the next look publishes.
pub(super) async fn make_root(
    issuer: &Arc<Issuer>,
    hierarchy: Hierarchy,
    stored: &[Authority],
    operator: Option<&Operator>,
) -> anyhow::Result<Authority> {
    let generation = next_generation(stored, hierarchy, Role::Root);
    let made = blocking(issuer, move |maker, now| maker.root(hierarchy, generation, now)).await?;
    let record = entry(issuer, &made, "made", operator, None);
    issuer.store().commit(vec![Write::Authority(Box::new(made.clone())), Write::Record(record)]).await?;
    Ok(made)
}

/// Makes an issuing CA under `root`, and stores it not yet.
pub(super) async fn make_issuing(
    issuer: &Arc<Issuer>,
    root: &Authority,
    stored: &[Authority],
) -> anyhow::Result<Authority> {
    let generation = next_generation(stored, root.hierarchy, Role::Issuing);
    let root = root.clone();
    blocking(issuer, move |maker, now| maker.issuing(generation, &root, now)).await
}

pub(super) fn next_generation(stored: &[Authority], hierarchy: Hierarchy, role: Role) -> u32 {
    let of = stored.iter().filter(|a| a.hierarchy == hierarchy && a.role == role);
    of.map(|a| a.generation).max().unwrap_or(0).saturating_add(1)
}

/// Keys are made where blocking is allowed.
pub(super) async fn blocking<T: Send + 'static>(
    issuer: &Arc<Issuer>,
    work: impl FnOnce(&Maker<'_>, i64) -> anyhow::Result<T> + Send + 'static,
) -> anyhow::Result<T> {
    let issuer = issuer.clone();
    tokio::task::spawn_blocking(move || {
        let config = issuer.config();
        let token = issuer.token().ok_or(OrderError::Dev)?;
        work(&Maker { config: &config, trust_domain: issuer.trust_domain(), token }, issuer.now())
    })
    .await?
}

/// Taints these CAs; if the one that signs is among them, what takes its place is made first and signs from the same
/// commit on. Their holders are told to renew.
pub(super) async fn supplant(
    issuer: &Arc<Issuer>,
    hierarchy: Hierarchy,
    tainted: &[(Role, u32)],
    operator: Option<&Operator>,
    reason: &str,
) -> anyhow::Result<()> {
    let mut stored = refresh(issuer).await?;
    let own = issuer.config().issuer_id.to_string();
    let signs = stored.iter().any(|a| {
        a.hierarchy == hierarchy
            && a.role == Role::Issuing
            && a.issuer == own
            && a.stage == Stage::Active
            && tainted.contains(&(a.role, a.generation))
    });
    let mut made = None;
    let next = if signs {
        let (next, new) = replacement(issuer, hierarchy, tainted, operator).await?;
        stored = issuer.store().authorities().await?;
        made = new;
        Some(next)
    } else {
        None
    };
    let now = issuer.now();
    let mut writes = Vec::new();
    let mut told = Vec::new();
    if let Some(made) = &made {
        told.push((made.clone(), "made"));
        writes.push(Write::Authority(Box::new(made.clone())));
    }
    if let Some(next) = &next {
        let (changes, activated) = activation(issuer, &stored, next, tainted, now)?;
        writes.extend(changes.into_iter().map(Write::Change));
        told.extend(activated.into_iter().map(|(a, what)| (a.clone(), what)));
    }
    let mut longest = 0;
    for (role, generation) in tainted.iter().rev() {
        let renew_within = match role {
            Role::Issuing => window_of(issuer, hierarchy, *generation).await?,
            Role::Root => longest,
        };
        longest = longest.max(renew_within);
        writes.push(Write::Change(Change::Taint {
            hierarchy,
            role: *role,
            generation: *generation,
            at: now,
            renew_within,
        }));
        told.push((find(&stored, hierarchy, *role, *generation)?.clone(), "tainted"));
    }
    for (authority, what) in &told {
        writes.push(Write::Record(entry(issuer, authority, what, operator, Some(reason))));
    }
    issuer.store().commit(writes).await?;
    for (authority, what) in &told {
        tracing::warn!(
            authority = authority.name(),
            reason,
            renew_within_s = longest,
            operator = operator.map(ToString::to_string),
            "CA {what}"
        );
    }
    refresh(issuer).await?;
    Ok(())
}

/// What takes over, and the same once more if it is new and not stored yet.
async fn replacement(
    issuer: &Arc<Issuer>,
    hierarchy: Hierarchy,
    tainted: &[(Role, u32)],
    operator: Option<&Operator>,
) -> anyhow::Result<(Authority, Option<Authority>)> {
    for _ in 0..2 {
        let stored = refresh(issuer).await?;
        let config = issuer.config();
        let mut authorities = seen(&config, &stored, hierarchy, |_| false);
        for a in authorities.iter_mut().filter(|a| tainted.contains(&(a.role, a.generation))) {
            a.stage = Stage::Tainted;
        }
        let view = View { authorities: &authorities, now: issuer.now(), hosts_have_bundle: true };
        match view.replacement(&rules(&config, hierarchy)) {
            Some(Replacement::Take { issuing }) => {
                return Ok((find(&stored, hierarchy, Role::Issuing, issuing)?.clone(), None));
            }
            Some(Replacement::Make { root }) => {
                let root = find(&stored, hierarchy, Role::Root, root)?;
                let made = make_issuing(issuer, root, &stored).await?;
                return Ok((made.clone(), Some(made)));
            }
            Some(Replacement::MakeWithRoot) => {
                let root = make_root(issuer, hierarchy, &stored, operator).await?;
                let (at, generation) = (issuer.now(), root.generation);
                let shown = Change::Stage {
                    hierarchy,
                    role: Role::Root,
                    generation,
                    from: Stage::Prepared,
                    to: Stage::Published,
                    at,
                };
                let record = entry(issuer, &root, "published", operator, None);
                issuer.store().commit(vec![Write::Change(shown), Write::Record(record)]).await?;
            }
            None => break,
        }
    }
    Err(OrderError::Refused(format!(
        "nothing could take its place: the roots are offline. `hallmark ca csr {hierarchy}`, have a root sign it, `hallmark ca install {hierarchy} FILE`: what is installed signs at once, and then the one before it can be tainted (--generation)"
    ))
    .into())
}

/// Seconds over which those who hold what this CA signed are told to renew.
async fn window_of(issuer: &Issuer, hierarchy: Hierarchy, generation: u32) -> anyhow::Result<i64> {
    let config = issuer.config();
    let rate = config.rotation.renewals_per_second;
    let longest = rules(&config, hierarchy).longest_leaf;
    Ok(match hierarchy {
        Hierarchy::Tier(tier) => {
            let holders = issuer.store().signed_by(tier, generation, issuer.now()).await?;
            window(holders, rate, longest)
        }
        Hierarchy::Infrastructure => {
            window(issuer.hosts().len() as u64, (rate / ATTESTATIONS).max(1), longest)
        }
    })
}
