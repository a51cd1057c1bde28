//! Instances that ended: recorded, and their certificates revoked where their tier has revocation.

use hallmark_core::id::{HostId, InstanceId};

use crate::issuer::Issuer;
use crate::record::{Kind, Record};
use crate::store::{StoreError, Write};

/// Why an instance ended; anything else a host says is kept as `other`.
const REASONS: [&str; 8] = [
    "process-exited",
    "image-replaced",
    "registration-changed",
    "agent-closed",
    "not-renewed",
    "revoked",
    "host-shutdown",
    "operator",
];

/// Ends these instances of `host`. An instance of another host, or an unknown one, is passed over.
///
/// # Errors
/// The store failed: nothing was ended.
pub async fn retire(
    issuer: &Issuer,
    host: &HostId,
    instances: Vec<InstanceId>,
    reason: &str,
) -> Result<(), StoreError> {
    let now = issuer.now();
    let reason = REASONS.into_iter().find(|r| *r == reason).unwrap_or("other");
    let mut writes = Vec::with_capacity(2 * instances.len());
    let mut ended = Vec::with_capacity(instances.len());
    for instance in instances {
        let Some(agent) = issuer.instance_agent(instance, host) else { continue };
        ended.push(instance);
        let entry = Record {
            host: Some(host.as_str()),
            agent: Some(agent.as_str()),
            instance: Some(instance.to_string()),
            reason: Some(reason.to_owned()),
            lab: issuer.is_lab(),
            ..Record::default()
        }
        .entry(now, Kind::InstanceEnd, "ended", None);
        tracing::info!(host_id = %host, %agent, %instance, reason, "instance ended");
        writes.push(Write::EndInstance {
            instance_id: instance,
            host_id: host.clone(),
            at: now,
            reason: reason.to_owned(),
        });
        writes.push(Write::Record(entry));
    }
    if !writes.is_empty() {
        issuer.store().commit(writes).await?;
        issuer.forget_instances(&ended);
        issuer.crl_is_due();
    }
    Ok(())
}
