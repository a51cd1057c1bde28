//! A whole trust domain in memory: four roots with their issuing CAs, and leaves on demand.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};
use hallmark_core::id::{InstanceId, SpiffeId, Subject, TrustDomain};
use hallmark_core::tier::{Custody, Hierarchy, Tier};
use hallmark_core::x509::{
    AgentInfo, AgentLeaf, CaParams, IssuingCa, LeafParams, OidArc, Serial, SoftwareCaKey, TaskInfo,
    TierRoots, issuing, root,
};
use hallmark_proto::agent::{self as wire, identity::Key};
use rcgen::{KeyPair, PublicKeyData};

/// A trust domain whose CA keys are in memory.
pub struct TestDomain {
    trust_domain: TrustDomain,
    roots: Vec<(Hierarchy, Vec<u8>)>,
    cas: Vec<IssuingCa>,
}

/// What one leaf is to be.
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
    /// How long it lives from then.
    pub lifetime: Duration,
    /// For a task's certificate, the task.
    pub task: Option<String>,
}

impl Wanted {
    /// A leaf of ten minutes, issued now, with the tier's usual custody.
    pub fn new(agent: &str, tier: Tier) -> Self {
        let custody = if tier == Tier::Advanced { Custody::TpmCertified } else { Custody::Software };
        Self {
            agent: agent.into(),
            tier,
            custody,
            issued_at: now(),
            lifetime: Duration::from_secs(600),
            task: None,
        }
    }

    /// With this custody.
    pub fn custody(mut self, custody: Custody) -> Self {
        self.custody = custody;
        self
    }
}

/// A leaf with its key and its chain.
pub struct Issued {
    /// The leaf's key.
    pub key: KeyPair,
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

impl TestDomain {
    /// A production trust domain.
    ///
    /// # Errors
    /// The profile refuses, as for a malformed name.
    pub fn new(name: &str) -> Result<Self> {
        Self::build(name, false)
    }

    /// A lab trust domain.
    ///
    /// # Errors
    /// The profile refuses, as for a malformed name.
    pub fn lab(name: &str) -> Result<Self> {
        Self::build(name, true)
    }

    fn build(name: &str, lab: bool) -> Result<Self> {
        const DAY: u64 = 86_400;
        let trust_domain: TrustDomain = name.parse()?;
        let arc = OidArc::documentation();
        let (mut roots, mut cas) = (Vec::new(), Vec::new());
        for hierarchy in Hierarchy::ALL {
            let params = |days| CaParams {
                trust_domain: &trust_domain,
                hierarchy,
                lab,
                arc: &arc,
                serial: Serial::from_random(rand::random()),
                now: now() - 3_600,
                lifetime: Duration::from_secs(days * DAY),
            };
            let root_key = software_key()?;
            let root = root(&params(3_650), &root_key)?;
            let key = software_key()?;
            let ca = issuing(&params(365), hallmark_core::x509::CaKey::spki_der(&key), &root, &root_key)?;
            cas.push(IssuingCa::new(&ca, Arc::new(key))?);
            roots.push((hierarchy, root.to_vec()));
        }
        Ok(Self { trust_domain, roots, cas })
    }

    /// The trust domain's name.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The root of one hierarchy, DER.
    ///
    /// # Errors
    /// None: all four exist.
    pub fn root(&self, hierarchy: Hierarchy) -> Result<&[u8]> {
        Ok(&self.roots.iter().find(|(h, _)| *h == hierarchy).context("no such hierarchy")?.1)
    }

    /// The roots as a relying party holds them.
    ///
    /// # Errors
    /// A root that is none.
    pub fn tier_roots(&self) -> Result<TierRoots> {
        let mut roots = TierRoots::new(self.trust_domain.clone());
        for tier in Tier::ALL {
            roots.add(tier, self.root(Hierarchy::Tier(tier))?)?;
        }
        Ok(roots)
    }

    /// The bundle as the agent API carries it.
    ///
    /// # Errors
    /// None: all tiers have a root.
    pub fn bundle(&self, revision: u64) -> Result<wire::Bundle> {
        let roots = |tier| -> Result<wire::TierRoots> {
            let root = self.root(Hierarchy::Tier(tier))?.to_vec();
            Ok(wire::TierRoots { tier: tier.to_string(), roots: vec![root.into()] })
        };
        let tiers = Tier::ALL.into_iter().map(roots).collect::<Result<_>>()?;
        Ok(wire::Bundle { trust_domain: self.trust_domain.to_string(), revision, tiers })
    }

    /// A leaf with a fresh key.
    ///
    /// # Errors
    /// The profile refuses.
    pub fn issue(&self, wanted: Wanted) -> Result<Issued> {
        let key = KeyPair::generate()?;
        let hierarchy = Hierarchy::Tier(wanted.tier);
        let ca = self.cas.iter().find(|ca| ca.hierarchy() == hierarchy).context("no such hierarchy")?;
        let subject = match &wanted.task {
            Some(task) => Subject::Task(wanted.agent.parse()?, task.parse()?),
            None => Subject::Agent(wanted.agent.parse()?),
        };
        let task = match &wanted.task {
            Some(task) => Some(TaskInfo { task_id: task.parse()?, grant_digest: [3; 32] }),
            None => None,
        };
        let spiffe_id = SpiffeId::new(self.trust_domain.clone(), subject);
        let info = AgentInfo {
            version: AgentInfo::VERSION,
            tier: wanted.tier,
            custody: wanted.custody,
            owner_id: [9; 16],
            attested_at: wanted.issued_at,
            evidence_digest: [8; 32],
            task,
            delegation: None,
        };
        let leaf = ca.leaf_checked(&LeafParams {
            spiffe_id: &spiffe_id,
            spki_der: &key.subject_public_key_info(),
            dns_names: &[],
            serial: Serial::from_random(rand::random()),
            now: wanted.issued_at,
            lifetime: wanted.lifetime,
            agent: Some(AgentLeaf { instance: instance(), info: &info }),
        })?;
        Ok(Issued {
            key,
            chain: vec![leaf.der.to_vec(), ca.certificate().to_vec()],
            spiffe_id,
            not_before: leaf.not_before,
            not_after: leaf.not_after,
            serial: leaf.serial,
            wanted,
        })
    }

    /// An issued leaf as the host daemon serves it; `handle` stands for a key in hardware.
    ///
    /// # Errors
    /// None: the bundle is whole.
    pub fn serve(&self, issued: &Issued, handle: Option<&[u8]>) -> Result<wire::Identity> {
        Ok(wire::Identity {
            spiffe_id: issued.spiffe_id.to_string(),
            agent: issued.wanted.agent.clone(),
            instance_id: instance().as_bytes().to_vec().into(),
            tier: issued.wanted.tier.to_string(),
            custody: issued.wanted.custody.to_string(),
            chain: issued.chain.iter().map(|der| der.clone().into()).collect(),
            key: Some(match handle {
                Some(handle) => Key::KeyHandle(handle.to_vec().into()),
                None => Key::PrivateKey(issued.key.serialize_der().into()),
            }),
            bundle: Some(self.bundle(1)?),
            not_before: issued.not_before,
            not_after: issued.not_after,
            renew_at: issued.not_after - 200,
        })
    }
}

/// The instance of every leaf made here.
pub fn instance() -> InstanceId {
    InstanceId::from_bytes([0x1a; 16])
}

fn software_key() -> Result<SoftwareCaKey> {
    Ok(SoftwareCaKey::from_pkcs8(&KeyPair::generate()?.serialize_der())?)
}

/// Seconds since 1970, now.
pub fn now() -> i64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs().cast_signed())
}
