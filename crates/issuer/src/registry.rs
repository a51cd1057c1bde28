//! The registrations in force, as one snapshot that readers share.

use std::collections::BTreeMap;
use std::sync::Arc;

use hallmark_core::id::{AgentName, HostId};
use hallmark_core::registration::{Registered, Registration};
use hallmark_proto::issuer as wire;

use crate::store::RegistrationRow;

/// All registrations in force.
#[derive(Debug, Default)]
pub struct Registry {
    /// Grows with every change.
    pub revision: u64,
    /// By name.
    pub agents: BTreeMap<AgentName, Arc<Registered>>,
}

impl Registry {
    /// Reads the stored set.
    ///
    /// # Errors
    /// A row that does not pass today's checks, named.
    pub fn from_rows(rows: Vec<RegistrationRow>, revision: u64) -> Result<Self, String> {
        let mut registry = Self { revision, ..Self::default() };
        for row in rows {
            let registration: Registration =
                serde_json::from_str(&row.body).map_err(|e| format!("registration {}: {e}", row.agent))?;
            let registered = Registered { registration, revision: row.revision };
            registry.agents.insert(registered.registration.name().clone(), Arc::new(registered));
        }
        Ok(registry)
    }

    /// What one host must know: the registrations that name it.
    pub fn for_host(&self, host: &HostId) -> wire::RegistrationSet {
        let registrations = self
            .agents
            .values()
            .filter(|r| r.registration.names_host(host))
            .map(|r| {
                let registration = &r.registration;
                wire::Registration {
                    agent: registration.name().to_string(),
                    revision: r.revision,
                    tier: registration.tier().to_string(),
                    selectors: registration.selectors().iter().map(ToString::to_string).collect(),
                    custody: registration.key().custody.to_string(),
                    bind_pcrs: registration.key().bind_pcrs.iter().map(|p| u32::from(*p)).collect(),
                    lifetime_seconds: registration.lifetime().as_secs(),
                }
            })
            .collect();
        wire::RegistrationSet { revision: self.revision, registrations }
    }
}
