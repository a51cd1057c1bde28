//! A registration as it stands in a file or in its canonical text, before any check. Required keys are
//! optional here, so that all that are missing can be named at once.

use serde::{Deserialize, Serialize};

use super::check::{self, Faults};
use super::{Fault, Registration};

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawAgent {
    pub(super) name: Option<String>,
    pub(super) owner: Option<String>,
    pub(super) tier: Option<String>,
    pub(super) hosts: Option<Vec<String>>,
    pub(super) selectors: Option<Vec<String>>,
    pub(super) lifetime: Option<String>,
    pub(super) key: Option<RawKey>,
    #[serde(default)]
    pub(super) dns_names: Vec<String>,
    #[serde(default)]
    pub(super) description: String,
    #[serde(default)]
    pub(super) capability: Vec<RawCapability>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawKey {
    pub(super) custody: Option<String>,
    #[serde(default)]
    pub(super) bind_pcrs: Vec<u32>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RawCapability {
    pub(super) action: String,
    pub(super) resource: String,
}

impl From<Registration> for RawAgent {
    fn from(r: Registration) -> Self {
        Self {
            name: Some(r.name.to_string()),
            owner: Some(r.owner),
            tier: Some(r.tier.to_string()),
            hosts: Some(r.hosts.iter().map(ToString::to_string).collect()),
            selectors: Some(r.selectors.iter().map(ToString::to_string).collect()),
            lifetime: Some(humantime::format_duration(r.lifetime).to_string()),
            key: Some(RawKey {
                custody: Some(r.key.custody.to_string()),
                bind_pcrs: r.key.bind_pcrs.iter().map(|&pcr| pcr.into()).collect(),
            }),
            dns_names: r.dns_names.into_iter().collect(),
            description: r.description,
            capability: r
                .capabilities
                .iter()
                .map(|c| RawCapability { action: c.action(), resource: c.resource() })
                .collect(),
        }
    }
}

/// A registration's text that does not pass the checks.
#[derive(Debug, thiserror::Error)]
#[error("{}", .0.iter().map(|f| format!("{}: {}", f.key, f.problem)).collect::<Vec<_>>().join("; "))]
pub(super) struct Invalid(Vec<Fault>);

impl TryFrom<RawAgent> for Registration {
    type Error = Invalid;
    fn try_from(raw: RawAgent) -> Result<Self, Invalid> {
        let mut faults = Faults::new("registration");
        let registration = check::agent(raw, &mut faults);
        registration.ok_or(Invalid(faults.list))
    }
}
