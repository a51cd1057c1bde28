//! A whole trust domain in memory: four roots, their issuing CAs, and leaves of every kind.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hallmark_core::id::{InstanceId, SpiffeId, Subject, TrustDomain};
use hallmark_core::tier::{Custody, Hierarchy, Tier};
use hallmark_core::x509::{
    AgentInfo, AgentLeaf, CaKey, CaParams, Curve, InfraRoots, IssuingCa, Leaf, LeafParams, OidArc,
    ProfileError, Serial, SoftwareCaKey, TaskInfo, TierRoots, issuing, root,
};

/// Certificates in DER, leaf first.
pub type Chain = Vec<Vec<u8>>;

/// A trust domain. Roots are P-384, issuing CAs and leaves P-256.
pub struct TestDomain {
    /// Its name.
    pub trust_domain: TrustDomain,
    /// When it was made, seconds since 1970-01-01 UTC.
    pub now: i64,
    /// The arc of its object identifiers.
    pub arc: OidArc,
    cas: Vec<Hierarchical>,
}

struct Hierarchical {
    root: Vec<u8>,
    ca: IssuingCa,
    ca_pkcs8: Vec<u8>,
}

/// A leaf with its issuing CA, and its private key.
pub struct Identity {
    /// Leaf first.
    pub chain: Chain,
    /// The leaf.
    pub leaf: Leaf,
    /// The key, PKCS#8.
    pub pkcs8: Vec<u8>,
}

/// What a leaf is to be, where it differs from the usual.
#[derive(Debug, Clone)]
pub struct Shape {
    /// When it is issued, seconds since 1970-01-01 UTC.
    pub now: i64,
    /// How long it lives.
    pub lifetime: Duration,
    /// For agents: where the key lives; the tier's usual custody if none.
    pub custody: Option<Custody>,
    /// DNS names.
    pub dns_names: Vec<String>,
}

/// Seconds since 1970-01-01 UTC.
pub fn unix_now() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(now.as_secs()).unwrap_or(i64::MAX)
}

/// A serial number at random.
pub fn serial() -> Serial {
    Serial::from_random(rand::random())
}

/// A certificate as PEM.
pub fn pem(der: &[u8]) -> String {
    pem::encode(&pem::Pem::new("CERTIFICATE", der))
}

/// A private key, PKCS#8.
pub fn pkcs8(curve: Curve) -> Vec<u8> {
    let algorithm = match curve {
        Curve::P256 => &rcgen::PKCS_ECDSA_P256_SHA256,
        Curve::P384 => &rcgen::PKCS_ECDSA_P384_SHA384,
    };
    #[allow(clippy::expect_used)] // aws-lc can always make a key
    rcgen::KeyPair::generate_for(algorithm).expect("a key").serialize_der()
}

impl TestDomain {
    /// A lab trust domain `name`, made now.
    ///
    /// # Errors
    /// `name` is no trust domain.
    pub fn lab(name: &str) -> anyhow::Result<Self> {
        Self::new(name, true, unix_now())
    }

    /// A trust domain.
    ///
    /// # Errors
    /// `name` is no trust domain.
    pub fn new(name: &str, lab: bool, now: i64) -> anyhow::Result<Self> {
        let trust_domain: TrustDomain = name.parse()?;
        let arc = OidArc::documentation();
        let mut cas = Vec::new();
        for hierarchy in Hierarchy::ALL {
            let params = |days: u64| CaParams {
                trust_domain: &trust_domain,
                hierarchy,
                lab,
                arc: &arc,
                serial: serial(),
                now,
                lifetime: Duration::from_secs(days * 86_400),
            };
            let root_key = SoftwareCaKey::from_pkcs8(&pkcs8(Curve::P384))?;
            let root = root(&params(3650), &root_key)?;
            let ca_pkcs8 = pkcs8(Curve::P256);
            let key = SoftwareCaKey::from_pkcs8(&ca_pkcs8)?;
            let certificate = issuing(&params(365), key.spki_der(), &root, &root_key)?;
            let ca = IssuingCa::new(&certificate, Arc::new(key))?;
            cas.push(Hierarchical { root: root.to_vec(), ca, ca_pkcs8 });
        }
        Ok(Self { trust_domain, now, arc, cas })
    }

    /// The root of a hierarchy, DER.
    pub fn root(&self, hierarchy: Hierarchy) -> &[u8] {
        &self.of(hierarchy).root
    }

    /// The issuing CA of a hierarchy.
    pub fn ca(&self, hierarchy: Hierarchy) -> &IssuingCa {
        &self.of(hierarchy).ca
    }

    /// The issuing CA's private key, PKCS#8: to sign what the profile would not.
    pub fn ca_pkcs8(&self, hierarchy: Hierarchy) -> &[u8] {
        &self.of(hierarchy).ca_pkcs8
    }

    /// The same domain, whose revocable leaves name a CRL.
    ///
    /// # Errors
    /// Not a URL.
    pub fn with_crl_url(mut self, url: &str) -> anyhow::Result<Self> {
        let renewed = self
            .cas
            .into_iter()
            .map(|h| Ok::<_, ProfileError>(Hierarchical { ca: h.ca.with_crl_url(Some(url))?, ..h }));
        self.cas = renewed.collect::<Result<_, _>>()?;
        Ok(self)
    }

    #[allow(clippy::expect_used)] // `new` made all four
    fn of(&self, hierarchy: Hierarchy) -> &Hierarchical {
        self.cas.iter().find(|h| h.ca.hierarchy() == hierarchy).expect("one of the four")
    }

    /// The roots by tier.
    ///
    /// # Errors
    /// None that can happen.
    pub fn tier_roots(&self) -> anyhow::Result<TierRoots> {
        let mut roots = TierRoots::new(self.trust_domain.clone());
        for tier in Tier::ALL {
            roots.add(tier, self.root(Hierarchy::Tier(tier)))?;
        }
        Ok(roots)
    }

    /// The infrastructure root.
    ///
    /// # Errors
    /// None that can happen.
    pub fn infra_roots(&self) -> anyhow::Result<InfraRoots> {
        Ok(InfraRoots::new(self.trust_domain.clone(), [self.root(Hierarchy::Infrastructure)])?)
    }

    /// An SPIFFE ID of this trust domain, from its path: `agent/mailer`.
    ///
    /// # Errors
    /// Not a path that Hallmark issues.
    pub fn id(&self, path: &str) -> anyhow::Result<SpiffeId> {
        Ok(format!("spiffe://{}/{path}", self.trust_domain).parse()?)
    }

    /// The usual shape: issued when the domain was made, for ten minutes.
    pub fn shape(&self) -> Shape {
        Shape { now: self.now, lifetime: Duration::from_secs(600), custody: None, dns_names: Vec::new() }
    }

    /// An agent's or a task's identity at `tier`, or a host's or an issuer's, from its path.
    ///
    /// # Errors
    /// The profile refuses.
    pub fn identity(&self, hierarchy: Hierarchy, path: &str) -> anyhow::Result<Identity> {
        self.identity_shaped(hierarchy, path, &self.shape())
    }

    /// As [`TestDomain::identity`], in another shape.
    ///
    /// # Errors
    /// The profile refuses.
    pub fn identity_shaped(
        &self,
        hierarchy: Hierarchy,
        path: &str,
        shape: &Shape,
    ) -> anyhow::Result<Identity> {
        let id = self.id(path)?;
        let pkcs8 = pkcs8(Curve::P256);
        let key = SoftwareCaKey::from_pkcs8(&pkcs8)?;
        let leaf = self.leaf(hierarchy, &id, key.spki_der(), shape)?;
        let chain = vec![leaf.der.to_vec(), self.ca(hierarchy).certificate().to_vec()];
        Ok(Identity { chain, leaf, pkcs8 })
    }

    /// A leaf for a key made elsewhere.
    ///
    /// # Errors
    /// The profile refuses.
    pub fn leaf(
        &self,
        hierarchy: Hierarchy,
        id: &SpiffeId,
        spki_der: &[u8],
        shape: &Shape,
    ) -> Result<Leaf, ProfileError> {
        let info = match hierarchy {
            Hierarchy::Tier(tier) => Some(agent_info(tier, id, shape)),
            Hierarchy::Infrastructure => None,
        };
        self.ca(hierarchy).leaf_checked(&LeafParams {
            spiffe_id: id,
            spki_der,
            dns_names: &shape.dns_names,
            serial: serial(),
            now: shape.now,
            lifetime: shape.lifetime,
            agent: info
                .as_ref()
                .map(|info| AgentLeaf { instance: InstanceId::from_bytes(rand::random()), info }),
        })
    }
}

fn agent_info(tier: Tier, id: &SpiffeId, shape: &Shape) -> AgentInfo {
    let usual = if tier == Tier::Advanced { Custody::TpmCertified } else { Custody::Software };
    AgentInfo {
        version: AgentInfo::VERSION,
        tier,
        custody: shape.custody.unwrap_or(usual),
        owner_id: [0x0e; 16],
        attested_at: shape.now,
        evidence_digest: [0xed; 32],
        task: match &id.subject {
            Subject::Task(_, task_id) => {
                Some(TaskInfo { task_id: task_id.clone(), grant_digest: [0x9d; 32] })
            }
            Subject::Agent(_) | Subject::Host(_) | Subject::Issuer(_) => None,
        },
        delegation: None,
    }
}
