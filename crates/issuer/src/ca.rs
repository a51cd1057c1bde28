//! The CA: four hierarchies' issuing CAs, and the only place that turns a grant into a certificate.
//!
//! What is in force is replaced as a whole; whoever signs takes one look and keeps to it, so that a rotation falls
//! between two signatures and never into one.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use hallmark_core::decide::Grant;
use hallmark_core::id::{HostId, InstanceId, IssuerId, SpiffeId, Subject, TrustDomain};
use hallmark_core::tier::{Custody, Hierarchy, Tier};
use hallmark_core::x509::{
    AgentInfo, AgentLeaf, CaKey, IssuingCa, KeyError, Leaf, LeafParams, ProfileError, PublicKey, Serial,
};
use prost::bytes::Bytes;
use rand::TryRngCore;

/// Why a certificate could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SignError {
    /// The profile or the key.
    #[error(transparent)]
    Profile(#[from] ProfileError),
    /// The operating system gave no random bytes.
    #[error("no random bytes: {0}")]
    Random(String),
    /// There is no issuing CA for this hierarchy.
    #[error("no issuing CA for {0} is in force (hallmark ca list)")]
    Missing(Hierarchy),
}

/// An issuing CA and its key.
pub struct Issuing {
    /// Its generation.
    pub generation: u32,
    /// The CA.
    pub ca: IssuingCa,
    /// Its certificate, DER: sent along with each leaf.
    pub der: Bytes,
    /// Its key.
    pub key: Arc<dyn CaKey>,
    uses: Arc<()>,
}

impl Issuing {
    /// An issuing CA that nobody uses yet.
    pub fn new(generation: u32, ca: IssuingCa, der: Vec<u8>, key: Arc<dyn CaKey>) -> Arc<Self> {
        Arc::new(Self { generation, ca, der: der.into(), key, uses: Arc::default() })
    }

    /// Whether a leaf that it signed may still be on its way into the record.
    pub fn in_use(&self) -> bool {
        Arc::strong_count(&self.uses) > 1
    }

    /// A real signature by its key, verified.
    ///
    /// # Errors
    /// The key does not sign, or signs wrongly.
    pub fn health(&self) -> Result<(), KeyError> {
        let challenge = b"hallmark CA key health check";
        let signature = self.key.sign(challenge)?;
        let public = PublicKey::from_spki_der(self.key.spki_der())
            .map_err(|e| KeyError::Failed { backend: "ca", reason: e.to_string() })?;
        if public.verifies(challenge, &signature) {
            return Ok(());
        }
        Err(KeyError::Failed { backend: "ca", reason: "a signature did not verify".to_owned() })
    }
}

/// A leaf's CA, held until the leaf is recorded or let go.
#[derive(Clone)]
struct Use {
    issuing: Arc<Issuing>,
    held: Arc<()>,
}

impl std::fmt::Debug for Use {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Use({})", self.issuing.generation)
    }
}

/// One hierarchy as it is in force.
#[derive(Default)]
pub struct Authority {
    /// The roots in the bundle, DER.
    pub roots: Vec<Bytes>,
    /// The issuing CA that signs leaves; none until one is installed.
    pub active: Option<Arc<Issuing>>,
    /// Issuing CAs that signed and whose leaves may live: they sign lists of what is revoked, and nothing else.
    pub past: Vec<Arc<Issuing>>,
}

/// What is in force at one moment.
#[derive(Default)]
pub struct InForce {
    /// The four hierarchies.
    pub authorities: HashMap<Hierarchy, Authority>,
    /// Grows with every change of the tiers' roots.
    pub bundle_revision: u64,
    /// Grows with every change of the infrastructure roots.
    pub infrastructure_revision: u64,
    /// Tainted CAs whose leaves are to be renewed.
    pub renewals: Vec<Renewal>,
    /// Keys of tainted infrastructure CAs whose leaves count no more, by [`hallmark_core::x509::key_fingerprint`].
    pub denied: BTreeSet<[u8; 32]>,
}

/// A tainted CA, any issuer's, whose leaves their holders renew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Renewal {
    /// Its key, by [`hallmark_core::x509::key_fingerprint`].
    pub authority: [u8; 32],
    /// By when.
    pub until: i64,
}

impl InForce {
    /// A hierarchy's roots in the bundle, DER.
    pub fn roots(&self, hierarchy: Hierarchy) -> Vec<Bytes> {
        self.authorities.get(&hierarchy).map(|a| a.roots.clone()).unwrap_or_default()
    }

    /// The issuing CA that signs a hierarchy's leaves.
    pub fn active(&self, hierarchy: Hierarchy) -> Option<&Arc<Issuing>> {
        self.authorities.get(&hierarchy)?.active.as_ref()
    }

    /// The issuing CAs of a hierarchy that sign, or have signed what may live.
    pub fn issuing(&self, hierarchy: Hierarchy) -> impl Iterator<Item = &Arc<Issuing>> {
        self.authorities.get(&hierarchy).into_iter().flat_map(|a| a.active.iter().chain(&a.past))
    }
}

/// The CAs of a trust domain.
pub struct Ca {
    trust_domain: TrustDomain,
    in_force: RwLock<Arc<InForce>>,
    in_token: bool,
}

impl std::fmt::Debug for Ca {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ca").field("in_token", &self.in_token).finish_non_exhaustive()
    }
}

/// A signed certificate that no one has seen: it leaves only together with a `Recorded`.
#[derive(Debug)]
pub struct Signed {
    der: Bytes,
    sha256: [u8; 32],
    serial: Serial,
    spiffe_id: SpiffeId,
    host: HostId,
    instance: InstanceId,
    tier: Tier,
    custody: Custody,
    not_before: i64,
    not_after: i64,
    by: Use,
}

impl Signed {
    /// DER.
    pub fn der(&self) -> &Bytes {
        &self.der
    }
    /// SHA-256 of the DER.
    pub fn sha256(&self) -> &[u8; 32] {
        &self.sha256
    }
    /// Serial.
    pub fn serial(&self) -> &Serial {
        &self.serial
    }
    /// SAN.
    pub fn spiffe_id(&self) -> &SpiffeId {
        &self.spiffe_id
    }
    /// The host it was issued to.
    pub fn host(&self) -> &HostId {
        &self.host
    }
    /// Which run.
    pub fn instance(&self) -> InstanceId {
        self.instance
    }
    /// Its tier.
    pub fn tier(&self) -> Tier {
        self.tier
    }
    /// Its key's custody.
    pub fn custody(&self) -> Custody {
        self.custody
    }
    /// Start, backdated.
    pub fn not_before(&self) -> i64 {
        self.not_before
    }
    /// End.
    pub fn not_after(&self) -> i64 {
        self.not_after
    }
    /// The certificate of the issuing CA that signed it, DER.
    pub fn issuing_der(&self) -> &Bytes {
        &self.by.issuing.der
    }
    /// Generation of that CA.
    pub fn ca(&self) -> u32 {
        self.by.issuing.generation
    }
    /// To be held for as long as this may still be recorded.
    pub fn held(&self) -> Arc<()> {
        self.by.held.clone()
    }
}

/// A host's or an issuer's certificate, signed, that no one has seen: it too leaves only together with a `Recorded`.
#[derive(Debug)]
pub struct SignedHost(Leaf, Use);

impl SignedHost {
    /// The certificate of the issuing CA that signed it, DER.
    pub fn issuing_der(&self) -> &Bytes {
        &self.1.issuing.der
    }
    /// Generation of that CA.
    pub fn ca(&self) -> u32 {
        self.1.issuing.generation
    }
    /// DER.
    pub fn der(&self) -> &[u8] {
        &self.0.der
    }
    /// Serial.
    pub fn serial(&self) -> &Serial {
        &self.0.serial
    }
    /// End.
    pub fn not_after(&self) -> i64 {
        self.0.not_after
    }
}

impl Ca {
    /// CAs of a trust domain, these in force.
    pub fn new(trust_domain: TrustDomain, in_force: InForce, in_token: bool) -> Self {
        Self { trust_domain, in_force: RwLock::new(Arc::new(in_force)), in_token }
    }

    /// What is in force now. Whoever looks twice may see two things: one look a request.
    pub fn in_force(&self) -> Arc<InForce> {
        self.in_force.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts other CAs in force, for whoever looks from here on.
    pub fn replace(&self, in_force: InForce) {
        *self.in_force.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(in_force);
    }

    /// Whether a signature may wait for a device, so that it must not be asked for on an async thread.
    pub fn blocks(&self) -> bool {
        self.in_token
    }

    /// `pkcs11` or `software (--dev)`.
    pub fn backend(&self) -> &'static str {
        if self.in_token { "pkcs11" } else { "software (--dev)" }
    }

    /// A hierarchy's roots in the bundle, DER.
    pub fn roots(&self, hierarchy: Hierarchy) -> Vec<Bytes> {
        self.in_force().roots(hierarchy)
    }

    /// Signs what was granted. A signature from a token is verified before it is used: the token is
    /// another machine as far as faults go. One made in this process's own memory (`--dev`) is not.
    ///
    /// # Errors
    /// The key is away, or the profile cannot hold what was asked.
    pub fn sign_agent(&self, grant: &Grant, now: i64) -> Result<Signed, SignError> {
        let spiffe_id = SpiffeId::new(self.trust_domain.clone(), grant.subject().clone());
        let info = AgentInfo {
            version: AgentInfo::VERSION,
            tier: grant.tier(),
            custody: grant.custody(),
            owner_id: owner_id(grant.owner()),
            attested_at: grant.attested_at(),
            evidence_digest: *grant.evidence_digest(),
            task: None,
            delegation: None,
        };
        let dns_names: Vec<String> = grant.dns_names().iter().cloned().collect();
        let (leaf, by) = self.make(
            Hierarchy::Tier(grant.tier()),
            &LeafParams {
                spiffe_id: &spiffe_id,
                spki_der: grant.spki(),
                dns_names: &dns_names,
                serial: serial()?,
                now,
                lifetime: grant.lifetime(),
                agent: Some(AgentLeaf { instance: grant.instance(), info: &info }),
            },
        )?;
        Ok(Signed {
            sha256: crate::sha256(&leaf.der),
            der: leaf.der.to_vec().into(),
            serial: leaf.serial,
            spiffe_id,
            host: grant.host_id().clone(),
            instance: grant.instance(),
            tier: grant.tier(),
            custody: grant.custody(),
            not_before: leaf.not_before,
            not_after: leaf.not_after,
            by,
        })
    }

    /// Signs a host's credential.
    ///
    /// # Errors
    /// As [`Ca::sign_agent`].
    pub fn sign_host(
        &self,
        host: &HostId,
        spki: &[u8],
        now: i64,
        lifetime: Duration,
    ) -> Result<SignedHost, SignError> {
        let id = SpiffeId::new(self.trust_domain.clone(), Subject::Host(host.clone()));
        self.sign_infrastructure(&id, spki, now, lifetime, &[])
    }

    /// Signs this issuer's own credential.
    ///
    /// # Errors
    /// As [`Ca::sign_agent`].
    pub fn sign_issuer(
        &self,
        id: &IssuerId,
        spki: &[u8],
        now: i64,
        lifetime: Duration,
        dns: &[String],
    ) -> Result<SignedHost, SignError> {
        let id = SpiffeId::new(self.trust_domain.clone(), Subject::Issuer(id.clone()));
        self.sign_infrastructure(&id, spki, now, lifetime, dns)
    }

    fn sign_infrastructure(
        &self,
        id: &SpiffeId,
        spki: &[u8],
        now: i64,
        lifetime: Duration,
        dns: &[String],
    ) -> Result<SignedHost, SignError> {
        let params = LeafParams {
            spiffe_id: id,
            spki_der: spki,
            dns_names: dns,
            serial: serial()?,
            now,
            lifetime,
            agent: None,
        };
        self.make(Hierarchy::Infrastructure, &params).map(|(leaf, by)| SignedHost(leaf, by))
    }

    fn make(&self, hierarchy: Hierarchy, params: &LeafParams<'_>) -> Result<(Leaf, Use), SignError> {
        let by = {
            // Held before what is in force can change: nobody retires what is about to sign.
            let in_force = self.in_force.read().unwrap_or_else(PoisonError::into_inner);
            let issuing = in_force.active(hierarchy).ok_or(SignError::Missing(hierarchy))?;
            Use { issuing: issuing.clone(), held: issuing.uses.clone() }
        };
        let made =
            if self.in_token { by.issuing.ca.leaf_checked(params) } else { by.issuing.ca.leaf(params) };
        Ok((made?, by))
    }

    /// A real signature by each issuing CA's key, verified: whether this issuer could issue now.
    ///
    /// # Errors
    /// The first hierarchy without an issuing CA, or key that does not sign, or signs wrongly.
    pub fn health(&self) -> Result<(), KeyError> {
        let in_force = self.in_force();
        for hierarchy in Hierarchy::ALL {
            match in_force.active(hierarchy) {
                Some(issuing) => issuing.health()?,
                None => {
                    let reason = SignError::Missing(hierarchy).to_string();
                    return Err(KeyError::Failed { backend: "ca", reason });
                }
            }
        }
        Ok(())
    }
}

fn serial() -> Result<Serial, SignError> {
    let mut bytes = [0; 16];
    rand::rngs::OsRng.try_fill_bytes(&mut bytes).map_err(|e| SignError::Random(e.to_string()))?;
    Ok(Serial::from_random(bytes))
}

/// Opaque, so that a certificate carries no address of a person; the record has the address itself.
fn owner_id(owner: &str) -> [u8; 16] {
    let digest = crate::sha256(format!("hallmark owner\0{owner}").as_bytes());
    let mut id = [0; 16];
    id.copy_from_slice(&digest[..16]);
    id
}
