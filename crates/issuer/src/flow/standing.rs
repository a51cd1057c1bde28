//! A host's standing that has become less: what was issued upon more ends now, not when it expires.

use std::sync::Arc;

use hallmark_core::decide::{HostStanding, highest_tier};
use hallmark_core::id::HostId;
use hallmark_core::tier::Tier;

use super::retire;
use crate::convert;
use crate::issuer::Issuer;
use crate::store::{Ending, StoreError, Who, Write};

/// The write that ends a host's instances above the tier that it now supports; none if it supports them all.
/// A quote that has merely grown old says nothing against the host: renewals wait for a new one.
pub(super) fn end_above(issuer: &Issuer, standing: &HostStanding, now: i64) -> Option<Write> {
    let fresh =
        HostStanding { attested_at: now, quote_at: standing.quote_at.map(|_| now), ..standing.clone() };
    let (highest, _) = highest_tier(&fresh, &issuer.rules(), now);
    if highest == Some(Tier::Advanced) {
        return None;
    }
    let who = Who { host: Some(standing.host_id.clone()), above: Some(highest), ..Who::default() };
    Some(Write::End(Ending { who, at: now, reason: "host-standing", operator: None, lab: issuer.is_lab() }))
}

/// New rules are in force: every host is held to them, and asked for fresh evidence.
pub async fn reloaded(issuer: &Arc<Issuer>) {
    for host in issuer.hosts() {
        if let Err(error) = hold(issuer, &host.host_id).await {
            tracing::error!(host_id = %host.host_id, %error, "reload: what no longer fits this host could not be ended");
        }
        issuer.hub().send(&host.host_id, convert::attest_now("rules-changed"));
    }
}

async fn hold(issuer: &Arc<Issuer>, host: &HostId) -> Result<(), StoreError> {
    let turn = issuer.host_turn(host).await;
    let Some(state) = issuer.host(host) else { return Ok(()) };
    let Some(end) = end_above(issuer, &state.standing, issuer.now()) else { return Ok(()) };
    let (memory, host, epoch) = (issuer.clone(), host.clone(), issuer.next_epoch());
    let writes = vec![Write::Turn { host_id: host.clone(), epoch }, end];
    let outcome = issuer
        .store()
        .commit_then(writes, move |outcome| {
            memory.put_epoch(&host, epoch);
            memory.tell_of_ended(&outcome.ended);
            drop(turn);
        })
        .await?;
    retire::log(&outcome.ended, "host-standing", None);
    Ok(())
}
