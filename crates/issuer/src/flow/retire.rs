//! Instances that ended: recorded, and their certificates revoked where their tier has revocation.

use std::sync::Arc;

use hallmark_core::id::{AgentName, HostId, InstanceId};

use crate::admin::Operator;
use crate::issuer::Issuer;
use crate::metrics::metrics;
use crate::store::{Ended, Ending, StoreError, Who, Write};

/// Why an instance ended; anything else a host says is kept as `other`.
const REASONS: [&str; 9] = [
    "process-exited",
    "image-replaced",
    "registration-changed",
    "agent-closed",
    "not-renewed",
    "revoked",
    "host-shutdown",
    "operator",
    "host-disabled",
];

/// Ends these instances of `host`. An instance of another host, or an unknown one, is passed over.
///
/// # Errors
/// The store failed: nothing was ended.
pub async fn retire(
    issuer: &Arc<Issuer>,
    host: &HostId,
    instances: Vec<InstanceId>,
    reason: &str,
) -> Result<(), StoreError> {
    let reason = REASONS.into_iter().find(|r| *r == reason).unwrap_or("other");
    let who = Who { host: Some(host.clone()), instances: Some(instances), ..Who::default() };
    let ending = Ending { who, at: issuer.now(), reason, operator: None, lab: issuer.is_lab() };
    let memory = issuer.clone();
    let outcome = issuer.store().commit_then(vec![Write::End(ending)], move |_| memory.crl_is_due()).await?;
    log(&outcome.ended, reason, None);
    Ok(())
}

/// Ends instances of an agent by an operator's order: all of them, those on one host, or one. Their hosts are
/// told. Says how many have ended.
///
/// # Errors
/// The store failed: nothing was ended.
pub async fn end(
    issuer: &Arc<Issuer>,
    operator: &Operator,
    agent: AgentName,
    host: Option<HostId>,
    instance: Option<InstanceId>,
) -> Result<Vec<Ended>, StoreError> {
    let who = Who { agent: Some(agent), host, instances: instance.map(|id| vec![id]), ..Who::default() };
    let ending = Ending {
        who,
        at: issuer.now(),
        reason: "operator",
        operator: Some(operator.to_string()),
        lab: issuer.is_lab(),
    };
    let memory = issuer.clone();
    let outcome = issuer
        .store()
        .commit_then(vec![Write::End(ending)], move |outcome| memory.tell_of_ended(&outcome.ended))
        .await?;
    log(&outcome.ended, "operator", Some(operator));
    Ok(outcome.ended)
}

/// One line for each instance that ended.
pub(super) fn log(ended: &[Ended], reason: &'static str, operator: Option<&Operator>) {
    metrics().ended(reason, ended.len());
    for Ended { instance, agent, host, tier, serials, .. } in ended {
        tracing::info!(
            host_id = %host, %agent, %instance, %tier, certificates = serials.len(), reason,
            operator = operator.map(ToString::to_string), "instance ended"
        );
    }
}
