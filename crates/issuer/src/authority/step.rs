//! Carrying out what comes next, until nothing does; and putting in force what the store holds.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use hallmark_core::rotation::{Role, Stage, Step, View};
use hallmark_core::tier::Hierarchy;
use hallmark_core::x509::InfraRoots;

use super::{load, order, rules, seen};
use crate::admin::Operator;
use crate::ca::InForce;
use crate::config::Config;
use crate::issuer::Issuer;
use crate::record::{Entry, Kind, Record};
use crate::store::{Authority, Change, Write};
use crate::{convert, init};

/// How often is looked while a rotation is under way, and otherwise.
const SOON: Duration = Duration::from_secs(1);
const IDLE: Duration = Duration::from_secs(10);
/// After a step that failed.
const RETRY: Duration = Duration::from_secs(15);
/// Steps of one look: more than any order leads to.
const STEPS: usize = 32;

/// Takes whatever step is due, until the issuer drains. CAs in memory (`--dev`) are not rotated.
pub async fn run(issuer: Arc<Issuer>) {
    if issuer.token().is_none() {
        return;
    }
    destroy_what_is_over(&issuer).await;
    let mut missing = Vec::new();
    let mut stuck = Hierarchy::ALL.map(|hierarchy| (hierarchy, None));
    while !issuer.is_draining() {
        let again = {
            let turn = issuer.ca_turn().await;
            let mut again = IDLE;
            // One hierarchy that is stuck keeps no other from its steps.
            for (hierarchy, not_before) in &mut stuck {
                let hierarchy = *hierarchy;
                if not_before.is_some_and(|at| Instant::now() < at) {
                    continue;
                }
                *not_before = None;
                let wait = match look(&issuer, hierarchy).await {
                    Ok(stored) if stored.iter().all(is_at_rest) => IDLE,
                    Ok(_) => SOON,
                    Err(error) => {
                        tracing::error!(
                            %hierarchy, error = format!("{error:#}"), again_s = RETRY.as_secs(),
                            "a CA could not be rotated; what is in force stays in force"
                        );
                        *not_before = Some(Instant::now() + RETRY);
                        RETRY
                    }
                };
                again = again.min(wait);
            }
            drop(turn);
            say_what_is_missing(&issuer, &mut missing);
            again
        };
        let _ = tokio::time::timeout(again, issuer.ca_wanted()).await;
    }
}

/// Nothing about it is due within seconds.
fn is_at_rest(a: &Authority) -> bool {
    match a.stage {
        Stage::Active | Stage::Retired | Stage::Requested => true,
        Stage::Retiring => a.role == Role::Root || a.last_not_after.is_some(),
        Stage::Tainted => a.withdrawn_at.is_some(),
        Stage::Prepared | Stage::Published => false,
    }
}

/// Hierarchies that cannot sign are named when that changes.
fn say_what_is_missing(issuer: &Issuer, before: &mut Vec<Hierarchy>) {
    let in_force = issuer.ca().in_force();
    let now: Vec<_> = Hierarchy::ALL.into_iter().filter(|h| in_force.active(*h).is_none()).collect();
    if now != *before {
        for hierarchy in &now {
            tracing::warn!(
                %hierarchy,
                remedy = format!("hallmark ca csr {hierarchy}; have the root sign it; hallmark ca install {hierarchy} FILE"),
                "no issuing CA: nothing of this hierarchy can be signed"
            );
        }
        *before = now;
    }
}

/// Takes every step that is due now in one hierarchy. The caller has the turn.
pub(super) async fn look(issuer: &Arc<Issuer>, hierarchy: Hierarchy) -> anyhow::Result<Vec<Authority>> {
    let mut stored = refresh(issuer).await?;
    for _ in 0..STEPS {
        settle(issuer, hierarchy, &stored).await?;
        let step = {
            let config = issuer.config();
            let rules = rules(&config, hierarchy);
            let in_force = issuer.ca().in_force();
            let authorities = seen(&config, &stored, hierarchy, |g| is_in_use(&in_force, hierarchy, g));
            let now = issuer.now();
            let hosts_have_bundle = hosts_have(issuer, hierarchy, &authorities, now, rules.overlap);
            View { authorities: &authorities, now, hosts_have_bundle }.next(&rules)
        };
        let Some(step) = step else { break };
        take(issuer, hierarchy, step, &stored).await.with_context(|| format!("{step:?}"))?;
        stored = refresh(issuer).await?;
    }
    Ok(stored)
}

fn is_in_use(in_force: &InForce, hierarchy: Hierarchy, generation: u32) -> bool {
    in_force.issuing(hierarchy).any(|i| i.generation == generation && i.in_use())
}

/// Whether every connected host has the roots of now. One that never says so keeps nobody waiting for longer than the
/// overlap: then it loses its connection, and gets them with the next before anything else.
fn hosts_have(
    issuer: &Issuer,
    hierarchy: Hierarchy,
    authorities: &[hallmark_core::rotation::Authority],
    now: i64,
    overlap: i64,
) -> bool {
    let in_force = issuer.ca().in_force();
    let behind = match hierarchy {
        Hierarchy::Tier(_) => issuer.hub().behind(in_force.bundle_revision, 0),
        Hierarchy::Infrastructure => issuer.hub().behind(0, in_force.infrastructure_revision),
    };
    let over = authorities.iter().any(|a| {
        a.role == Role::Root
            && a.stage == Stage::Published
            && a.published_at.is_some_and(|at| now >= at.saturating_add(overlap))
    });
    if over {
        for host in &behind {
            tracing::warn!(host_id = %host, %hierarchy, "host did not take the new roots: its connection is ended");
            issuer.hub().close_one(host);
        }
    }
    over || behind.is_empty()
}

/// Counts the end of the last leaf of each CA that has come to sign no more.
async fn settle(issuer: &Arc<Issuer>, hierarchy: Hierarchy, stored: &[Authority]) -> anyhow::Result<()> {
    let in_force = issuer.ca().in_force();
    let own = issuer.config().issuer_id.to_string();
    let open = stored.iter().filter(|a| {
        a.hierarchy == hierarchy
            && a.role == Role::Issuing
            && a.issuer == own
            && matches!(a.stage, Stage::Retiring | Stage::Tainted)
            && a.last_not_after.is_none()
            && !is_in_use(&in_force, hierarchy, a.generation)
    });
    let settled: Vec<Write> =
        open.map(|a| Write::Change(Change::Settle { hierarchy, generation: a.generation })).collect();
    if !settled.is_empty() {
        issuer.store().commit(settled).await?;
    }
    Ok(())
}

async fn take(
    issuer: &Arc<Issuer>,
    hierarchy: Hierarchy,
    step: Step,
    stored: &[Authority],
) -> anyhow::Result<()> {
    let now = issuer.now();
    let find = |role, generation| find(stored, hierarchy, role, generation);
    match step {
        Step::MakeRoot => order::make_root(issuer, hierarchy, stored, None).await.map(drop),
        Step::MakeIssuing { root } => {
            let made = order::make_issuing(issuer, find(Role::Root, root)?, stored).await?;
            let entry = entry(issuer, &made, "made", None, None);
            issuer.store().commit(vec![Write::Authority(Box::new(made)), Write::Record(entry)]).await?;
            Ok(())
        }
        Step::PublishRoot { root } => {
            let root = find(Role::Root, root)?;
            commit(issuer, vec![stage(root, Stage::Published, now)], vec![(root, "published")], None).await
        }
        Step::Activate { issuing } => {
            let next = find(Role::Issuing, issuing)?;
            let (changes, told) = activation(issuer, stored, next, &[], now)?;
            commit(issuer, changes, told, None).await
        }
        Step::Replace { issuing } => {
            order::supplant(issuer, hierarchy, &[(Role::Issuing, issuing)], None, "its root was tainted")
                .await
                .map(drop)
        }
        Step::Withdraw { issuing } => {
            let tainted = find(Role::Issuing, issuing)?;
            let change = Change::Withdraw { hierarchy, generation: issuing, at: now, lab: issuer.is_lab() };
            let writes =
                vec![Write::Change(change), Write::Record(entry(issuer, tainted, "withdrawn", None, None))];
            let memory = issuer.clone();
            let outcome = issuer
                .store()
                .commit_then(writes, move |outcome| {
                    memory.tell_of_ended(&outcome.ended);
                    memory.crl_is_due();
                })
                .await?;
            tracing::warn!(
                authority = tainted.name(),
                ended = outcome.ended.len(),
                "what a tainted CA had signed is revoked; instances that had not renewed have ended"
            );
            Ok(())
        }
        Step::WithdrawRoot { root } => {
            let root = find(Role::Root, root)?;
            let change = Change::WithdrawRoot { hierarchy, generation: root.generation, at: now };
            commit(issuer, vec![change], vec![(root, "withdrawn")], None).await
        }
        Step::RetireIssuing { issuing } => retire(issuer, find(Role::Issuing, issuing)?, now).await,
        Step::RetireRoot { root } => retire(issuer, find(Role::Root, root)?, now).await,
    }
}

/// The CA is over in the store first; then its key is destroyed.
async fn retire(issuer: &Arc<Issuer>, authority: &Authority, now: i64) -> anyhow::Result<()> {
    commit(issuer, vec![stage(authority, Stage::Retired, now)], vec![(authority, "retired")], None).await?;
    destroy(issuer, authority).await;
    Ok(())
}

/// How long after a CA was over its key is still looked for.
const LOOKED_FOR: i64 = 30 * 24 * 3600;

/// Keys of CAs that were over when an issuer ended before it had destroyed them.
async fn destroy_what_is_over(issuer: &Arc<Issuer>) {
    let Ok(stored) = issuer.store().authorities().await else { return };
    let (own, since) = (issuer.config().issuer_id.to_string(), issuer.now().saturating_sub(LOOKED_FOR));
    // A root is any issuer's to retire, and its token may be another: by hand, where that was cut short.
    let of = |a: &&Authority| a.issuer == own && a.retired_at.is_some_and(|at| at > since);
    for authority in stored.iter().filter(of) {
        destroy(issuer, authority).await;
    }
}

async fn destroy(issuer: &Arc<Issuer>, authority: &Authority) {
    if issuer.config().rotation.keep_keys || authority.key_label.is_empty() {
        return;
    }
    let (label, role) = (authority.key_label.clone(), authority.role);
    let destroyed = order::blocking(issuer, move |maker, _| {
        let token = if role == Role::Root { maker.roots()? } else { maker.token.clone() };
        Ok(token.destroy_key(&label)?)
    });
    if let Err(error) = destroyed.await {
        tracing::error!(
            authority = authority.name(),
            error = format!("{error:#}"),
            remedy = "remove the key from the token by hand",
            "the key of a CA that is over could not be destroyed"
        );
    }
}

/// Commits changes, each CA's with its record.
async fn commit(
    issuer: &Arc<Issuer>,
    changes: Vec<Change>,
    told: Vec<(&Authority, &'static str)>,
    operator: Option<&Operator>,
) -> anyhow::Result<()> {
    let mut writes: Vec<Write> = changes.into_iter().map(Write::Change).collect();
    for (authority, what) in &told {
        writes.push(Write::Record(entry(issuer, authority, what, operator, None)));
    }
    issuer.store().commit(writes).await?;
    for (authority, what) in told {
        tracing::info!(authority = authority.name(), "CA {what}");
    }
    Ok(())
}

type Told<'a> = Vec<(&'a Authority, &'static str)>;

/// What changes when `next` begins to sign: it and its root are active; the one before it, unless it is among `tainted`,
/// and older roots retire. A key that does not sign is found before it counts.
pub(super) fn activation<'a>(
    issuer: &Issuer,
    stored: &'a [Authority],
    next: &'a Authority,
    tainted: &[(Role, u32)],
    now: i64,
) -> anyhow::Result<(Vec<Change>, Told<'a>)> {
    let hierarchy = next.hierarchy;
    let own = issuer.config().issuer_id.to_string();
    let mut changes = vec![stage(next, Stage::Active, now)];
    let mut told = vec![(next, "activated")];
    for other in stored.iter().filter(|a| a.hierarchy == hierarchy && a.stage == Stage::Active) {
        let replaced = match other.role {
            Role::Issuing => other.issuer == own,
            Role::Root => other.generation < next.root,
        };
        if replaced && !tainted.contains(&(other.role, other.generation)) {
            changes.push(stage(other, Stage::Retiring, now));
            told.push((other, "replaced"));
        }
    }
    let root = find(stored, hierarchy, Role::Root, next.root)?;
    if root.stage != Stage::Active {
        changes.push(stage(root, Stage::Active, now));
        told.push((root, "activated"));
    }
    Ok((changes, told))
}

/// Moves a CA from where it stands to another stage.
fn stage(a: &Authority, to: Stage, at: i64) -> Change {
    let (hierarchy, role, generation, from) = (a.hierarchy, a.role, a.generation, a.stage);
    Change::Stage { hierarchy, role, generation, from, to, at }
}

pub(super) fn find(
    stored: &[Authority],
    hierarchy: Hierarchy,
    role: Role,
    generation: u32,
) -> anyhow::Result<&Authority> {
    stored
        .iter()
        .find(|a| a.hierarchy == hierarchy && a.role == role && a.generation == generation)
        .with_context(|| {
            format!("{} is in no store", crate::store::authority_name(hierarchy, role, generation))
        })
}

/// The record of what happened to a CA.
pub(super) fn entry(
    issuer: &Issuer,
    authority: &Authority,
    what: &'static str,
    operator: Option<&Operator>,
    note: Option<&str>,
) -> Entry {
    let certificate = &authority.certificate;
    let (_, not_after) = authority.validity().unwrap_or_default();
    Record {
        authority: Some(authority.name()),
        certificate_sha256: (!certificate.is_empty()).then(|| hex::encode(crate::sha256(certificate))),
        not_after: (!certificate.is_empty()).then_some(not_after),
        note: note.map(str::to_owned),
        operator: operator.map(ToString::to_string),
        lab: issuer.is_lab(),
        ..Record::default()
    }
    .entry(issuer.now(), Kind::Ca, what, None)
}

/// Puts in force what the store holds, and tells whoever must know: files, hosts, the issuer's own servers. The caller
/// has the turn.
///
/// # Errors
/// The store, the token or the public directory; what was in force stays so.
pub async fn refresh(issuer: &Arc<Issuer>) -> anyhow::Result<Vec<Authority>> {
    let stored = issuer.store().authorities().await?;
    let Some(token) = issuer.token().cloned() else { return Ok(stored) };
    let before = issuer.ca().in_force();
    let (config, rows, known) = (issuer.config(), stored.clone(), before.clone());
    let next = tokio::task::spawn_blocking(move || load::in_force(&config, &rows, &token, &known)).await??;
    let bundle = next.bundle_revision != before.bundle_revision;
    let infrastructure = next.infrastructure_revision != before.infrastructure_revision;
    if bundle || infrastructure {
        let (config, roots) = (issuer.config(), published(&next));
        tokio::task::spawn_blocking(move || publish(&config, &roots)).await??;
    }
    let denied = next.denied != before.denied;
    if infrastructure || denied {
        issuer.host_roots().store(host_roots(issuer, &next)?);
    }
    let generations = |in_force: &InForce| -> Vec<(Hierarchy, u32)> {
        let of = |h| in_force.issuing(h).map(move |i| (h, i.generation)).collect::<Vec<_>>();
        Hierarchy::ALL.into_iter().flat_map(of).collect()
    };
    let lists = generations(&next) != generations(&before);
    let active = |in_force: &InForce| in_force.active(Hierarchy::Infrastructure).map(|i| i.generation);
    let own = active(&next) != active(&before);
    let renewals = next.renewals.iter().filter(|r| !before.renewals.contains(r)).cloned().collect::<Vec<_>>();
    issuer.ca().replace(next);
    if bundle {
        issuer.hub().send_each(|_| {
            convert::bundles_update(convert::bundles(issuer.trust_domain().name.as_str(), issuer.ca()))
        });
    }
    if infrastructure || denied {
        issuer.hub().send_each(|_| convert::infrastructure_update(issuer.ca()));
    }
    if !renewals.is_empty() {
        let now = issuer.now();
        issuer.hub().send_each(|_| convert::renew_update(&renewals, now));
    }
    if own {
        issuer.own_is_due();
    }
    if lists {
        issuer.crl_is_due();
    }
    Ok(stored)
}

/// The roots by which hosts are known, and the keys of CAs that count no more.
fn host_roots(issuer: &Issuer, in_force: &InForce) -> anyhow::Result<InfraRoots> {
    let roots = in_force.roots(Hierarchy::Infrastructure);
    let roots = InfraRoots::new(issuer.trust_domain().name.clone(), roots)?;
    Ok(roots.denying(in_force.denied.iter().copied()))
}

/// The roots in the bundle.
pub fn published(in_force: &InForce) -> Vec<(Hierarchy, Vec<u8>)> {
    let of = |h: Hierarchy| in_force.roots(h).into_iter().map(move |der| (h, der.to_vec()));
    Hierarchy::ALL.into_iter().flat_map(of).collect()
}

fn publish(config: &Config, roots: &[(Hierarchy, Vec<u8>)]) -> anyhow::Result<()> {
    init::publish(&config.public_dir(), roots)
}
