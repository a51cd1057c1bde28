//! Agents of a [`TestDomain`], and their identities as a host daemon serves them.

use std::time::Duration;

use anyhow::Result;
use hallmark_core::id::SpiffeId;
use hallmark_core::tier::{Custody, Hierarchy, Tier};
use hallmark_core::x509::Serial;
use hallmark_proto::agent::{self as wire, identity::Key};

use crate::pki::{Shape, TestDomain, unix_now};

/// What one agent's credential is to be.
#[derive(Debug, Clone)]
pub struct Wanted {
    /// The agent's name.
    pub agent: String,
    /// Which hierarchy signs it.
    pub tier: Tier,
    /// What the certificate says of its key.
    pub custody: Custody,
    /// When it was issued, seconds since 1970.
    pub issued_at: i64,
    /// For a task's certificate, the task.
    pub task: Option<String>,
}

impl Wanted {
    /// Ten minutes from now, with the tier's usual custody.
    pub fn new(agent: &str, tier: Tier) -> Self {
        let custody = if tier == Tier::Advanced { Custody::TpmCertified } else { Custody::Software };
        Self { agent: agent.into(), tier, custody, issued_at: unix_now(), task: None }
    }

    /// With this custody.
    pub fn custody(mut self, custody: Custody) -> Self {
        self.custody = custody;
        self
    }
}

/// An agent's credential.
pub struct Issued {
    /// The leaf's key, PKCS#8.
    pub pkcs8: Vec<u8>,
    /// Leaf, then issuing CA, DER.
    pub chain: Vec<Vec<u8>>,
    /// Who it is.
    pub spiffe_id: SpiffeId,
    /// When it begins, seconds since 1970.
    pub not_before: i64,
    /// When it ends, seconds since 1970.
    pub not_after: i64,
    /// Its serial number.
    pub serial: Serial,
    wanted: Wanted,
}

impl Issued {
    /// What was asked for.
    pub fn wanted(&self) -> &Wanted {
        &self.wanted
    }
}

/// What a trust domain does for its agents.
pub trait Agents {
    /// A credential with a fresh key.
    ///
    /// # Errors
    /// The profile refuses.
    fn issue(&self, wanted: Wanted) -> Result<Issued>;

    /// The bundle as the agent API carries it.
    fn bundle(&self, revision: u64) -> wire::Bundle;

    /// A credential as the agent API carries it; `handle` stands for a key in hardware.
    fn serve(&self, issued: &Issued, handle: Option<&[u8]>) -> wire::Identity;
}

impl Agents for TestDomain {
    fn issue(&self, wanted: Wanted) -> Result<Issued> {
        let path = match &wanted.task {
            Some(task) => format!("agent/{}/task/{task}", wanted.agent),
            None => format!("agent/{}", wanted.agent),
        };
        let shape = Shape {
            now: wanted.issued_at,
            lifetime: Duration::from_secs(600),
            custody: Some(wanted.custody),
            dns_names: Vec::new(),
        };
        let identity = self.identity_shaped(Hierarchy::Tier(wanted.tier), &path, &shape)?;
        Ok(Issued {
            pkcs8: identity.pkcs8,
            chain: identity.chain,
            spiffe_id: self.id(&path)?,
            not_before: identity.leaf.not_before,
            not_after: identity.leaf.not_after,
            serial: identity.leaf.serial,
            wanted,
        })
    }

    fn bundle(&self, revision: u64) -> wire::Bundle {
        let roots = |tier: Tier| wire::TierRoots {
            tier: tier.to_string(),
            roots: vec![self.root(Hierarchy::Tier(tier)).to_vec().into()],
        };
        let tiers = Tier::ALL.into_iter().map(roots).collect();
        wire::Bundle { trust_domain: self.trust_domain.to_string(), revision, tiers }
    }

    fn serve(&self, issued: &Issued, handle: Option<&[u8]>) -> wire::Identity {
        wire::Identity {
            spiffe_id: issued.spiffe_id.to_string(),
            agent: issued.wanted.agent.clone(),
            instance_id: vec![0x1a; 16].into(),
            tier: issued.wanted.tier.to_string(),
            custody: issued.wanted.custody.to_string(),
            chain: issued.chain.iter().map(|der| der.clone().into()).collect(),
            key: Some(match handle {
                Some(handle) => Key::KeyHandle(handle.to_vec().into()),
                None => Key::PrivateKey(issued.pkcs8.clone().into()),
            }),
            bundle: Some(self.bundle(1)),
            not_before: issued.not_before,
            not_after: issued.not_after,
            renew_at: issued.not_after - 200,
        }
    }
}
