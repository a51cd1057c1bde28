//! Applying registrations: all of a request's files, or none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hallmark_core::id::AgentName;
use hallmark_core::registration::{Registered, Registration, parse_files};
use hallmark_proto::admin as wire;

use super::retire;
use crate::admin::Operator;
use crate::issuer::Issuer;
use crate::record::{Entry, Kind, Record};
use crate::registry::Registry;
use crate::store::{Ended, Ending, Stays, StoreError, Who, Write};

/// What a request would change.
struct Plan {
    created: Vec<AgentName>,
    changed: Vec<AgentName>,
    unchanged: Vec<AgentName>,
    removed: Vec<AgentName>,
    next: Registry,
}

/// Checks, and unless it is a dry run applies, registration files. Faults are an answer, not an error:
/// with any, nothing is applied.
///
/// # Errors
/// The store failed: nothing was applied.
pub async fn apply(
    issuer: &Arc<Issuer>,
    operator: &Operator,
    request: wire::ApplyRequest,
) -> Result<wire::ApplyResponse, StoreError> {
    let files: Vec<(&str, &str)> = request.files.iter().map(|f| (f.name.as_str(), f.toml.as_str())).collect();
    let registrations = match parse_files(&files) {
        Ok(registrations) => registrations,
        Err(faults) => {
            let faults = faults
                .into_iter()
                .map(|f| wire::Fault { file: f.file, key: f.key, problem: f.problem })
                .collect();
            return Ok(wire::ApplyResponse {
                revision: issuer.registry().revision,
                faults,
                ..Default::default()
            });
        }
    };

    // One change at a time, from reading the set to having the new one stored.
    let turn = issuer.registry_turn().await;
    let current = issuer.registry();
    let plan = plan(&current, registrations, request.prune);
    let names = |list: &[AgentName]| list.iter().map(ToString::to_string).collect();
    let response = wire::ApplyResponse {
        revision: plan.next.revision,
        created: names(&plan.created),
        changed: names(&plan.changed),
        unchanged: names(&plan.unchanged),
        removed: names(&plan.removed),
        faults: Vec::new(),
    };
    if !request.dry_run && plan.next.revision != current.revision {
        let writes = writes(issuer, operator, &current, &plan);
        tracing::info!(
            revision = plan.next.revision, created = plan.created.len(), changed = plan.changed.len(),
            removed = plan.removed.len(), %operator, "registrations applied"
        );
        let memory = issuer.clone();
        let outcome = issuer
            .store()
            .commit_then(writes, move |outcome| {
                memory.replace_registry(plan.next);
                memory.tell_of_ended(&outcome.ended);
                drop(turn);
            })
            .await?;
        retire::log(&outcome.ended, "registration", Some(operator));
    }
    Ok(response)
}

fn plan(current: &Registry, registrations: Vec<Registration>, prune: bool) -> Plan {
    let revision = current.revision + 1;
    let mut agents: BTreeMap<AgentName, Arc<Registered>> = current.agents.clone();
    let (mut created, mut changed, mut unchanged, mut removed) = (vec![], vec![], vec![], vec![]);
    let named: BTreeSet<AgentName> = registrations.iter().map(|r| r.name().clone()).collect();
    for registration in registrations {
        let name = registration.name().clone();
        match agents.get(&name) {
            Some(old) if old.registration == registration => {
                unchanged.push(name);
                continue;
            }
            Some(_) => changed.push(name.clone()),
            None => created.push(name.clone()),
        }
        agents.insert(name, Arc::new(Registered { registration, revision }));
    }
    if prune {
        removed = agents.keys().filter(|name| !named.contains(*name)).cloned().collect();
        agents.retain(|name, _| named.contains(name));
    }
    let same = created.is_empty() && changed.is_empty() && removed.is_empty();
    let next = Registry { revision: if same { current.revision } else { revision }, agents };
    Plan { created, changed, unchanged, removed, next }
}

fn writes(issuer: &Issuer, operator: &Operator, current: &Registry, plan: &Plan) -> Vec<Write> {
    let mut writes = vec![Write::RegistrationSet { revision: plan.next.revision }];
    for (names, outcome) in [(&plan.created, "created"), (&plan.changed, "changed")] {
        for registered in names.iter().filter_map(|name| plan.next.agents.get(name)) {
            writes.push(Write::Registration {
                agent: registered.registration.name().clone(),
                revision: registered.revision,
                body: registered.registration.canonical(),
            });
            writes.push(Write::Record(entry(issuer, operator, registered, registered.revision, outcome)));
            if let Some(old) = current.agents.get(registered.registration.name()) {
                let (old, new) = (old.clone(), registered.clone());
                let stays = move |ended: &Ended| fits(&old.registration, &new.registration, ended);
                let unless: Stays = Box::new(stays);
                writes.push(end(issuer, operator, registered, "registration-changed", Some(unless)));
            }
        }
    }
    for name in &plan.removed {
        writes.push(Write::RemoveRegistration { agent: name.clone() });
        if let Some(old) = current.agents.get(name) {
            writes.push(Write::Record(entry(issuer, operator, old, plan.next.revision, "removed")));
            writes.push(end(issuer, operator, old, "registration-removed", None));
        }
    }
    writes
}

/// Whether what an instance was given under the old registration still holds under the new one. What the new
/// one merely adds comes with the next renewal.
fn fits(old: &Registration, new: &Registration, instance: &Ended) -> bool {
    new.names_host(&instance.host)
        && instance.tier <= new.tier()
        && old.key() == new.key()
        && old.dns_names().is_subset(new.dns_names())
        && new.selectors().iter().all(|wanted| instance.selectors.contains(&wanted.to_string()))
}

fn end(
    issuer: &Issuer,
    operator: &Operator,
    registered: &Registered,
    reason: &'static str,
    unless: Option<Stays>,
) -> Write {
    let who = Who { agent: Some(registered.registration.name().clone()), unless, ..Who::default() };
    let operator = Some(operator.to_string());
    Write::End(Ending { who, at: issuer.now(), reason, operator, lab: issuer.is_lab() })
}

fn entry(
    issuer: &Issuer,
    operator: &Operator,
    registered: &Registered,
    revision: u64,
    outcome: &'static str,
) -> Entry {
    Record {
        agent: Some(registered.registration.name().as_str()),
        owner: Some(registered.registration.owner()),
        tier: Some(registered.registration.tier().as_str()),
        registration_revision: Some(revision),
        registration_digest: Some(hex::encode(registered.registration.digest())),
        operator: Some(operator.to_string()),
        lab: issuer.is_lab(),
        ..Record::default()
    }
    .entry(issuer.now(), Kind::Registration, outcome, None)
}
