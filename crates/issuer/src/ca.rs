//! The CA: four hierarchies' issuing CAs, and the only place that turns a grant into a certificate.

use std::collections::HashMap;
use std::sync::Arc;
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
    #[error("no issuing CA for {0}")]
    Missing(Hierarchy),
}

/// One hierarchy as it is in force.
pub struct Authority {
    /// Roots, DER: published.
    pub roots: Vec<Bytes>,
    /// The issuing CA.
    pub issuing: IssuingCa,
    /// Its certificate, DER: sent along with each leaf.
    pub issuing_der: Bytes,
    /// Its key.
    pub key: Arc<dyn CaKey>,
}

/// The CAs of a trust domain.
pub struct Ca {
    trust_domain: TrustDomain,
    authorities: HashMap<Hierarchy, Authority>,
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
}

/// A host's certificate, signed, that no one has seen: it too leaves only together with a `Recorded`.
#[derive(Debug)]
pub struct SignedHost(Leaf);

impl SignedHost {
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
    /// CAs of these authorities.
    pub fn new(
        trust_domain: TrustDomain,
        authorities: HashMap<Hierarchy, Authority>,
        in_token: bool,
    ) -> Self {
        Self { trust_domain, authorities, in_token }
    }

    /// Whether a signature may wait for a device, so that it must not be asked for on an async thread.
    pub fn blocks(&self) -> bool {
        self.in_token
    }

    /// `pkcs11` or `software (--dev)`.
    pub fn backend(&self) -> &'static str {
        if self.in_token { "pkcs11" } else { "software (--dev)" }
    }

    /// A hierarchy's roots, DER.
    pub fn roots(&self, hierarchy: Hierarchy) -> Vec<Bytes> {
        self.authorities.get(&hierarchy).map(|a| a.roots.clone()).unwrap_or_default()
    }

    /// Counts changes of the bundle; part of what hosts compare.
    pub fn bundle_revision(&self) -> u64 {
        1
    }

    /// A tier's issuing CA certificate, DER.
    pub fn issuing_der(&self, tier: Tier) -> Bytes {
        self.authorities.get(&Hierarchy::Tier(tier)).map(|a| a.issuing_der.clone()).unwrap_or_default()
    }

    /// The infrastructure issuing CA certificate, DER.
    pub fn infrastructure_der(&self) -> Bytes {
        self.authorities.get(&Hierarchy::Infrastructure).map(|a| a.issuing_der.clone()).unwrap_or_default()
    }

    /// One hierarchy.
    pub fn authority(&self, hierarchy: Hierarchy) -> Option<&Authority> {
        self.authorities.get(&hierarchy)
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
        let leaf = self.make(
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
        self.sign_infrastructure(&id, spki, now, lifetime, &[]).map(SignedHost)
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
    ) -> Result<Leaf, SignError> {
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
    ) -> Result<Leaf, SignError> {
        let params = LeafParams {
            spiffe_id: id,
            spki_der: spki,
            dns_names: dns,
            serial: serial()?,
            now,
            lifetime,
            agent: None,
        };
        self.make(Hierarchy::Infrastructure, &params)
    }

    fn make(&self, hierarchy: Hierarchy, params: &LeafParams<'_>) -> Result<Leaf, SignError> {
        let authority = self.authorities.get(&hierarchy).ok_or(SignError::Missing(hierarchy))?;
        let made = if self.in_token {
            authority.issuing.leaf_checked(params)
        } else {
            authority.issuing.leaf(params)
        };
        Ok(made?)
    }

    /// A real signature by each issuing CA's key, verified: whether this issuer could issue now.
    ///
    /// # Errors
    /// The first key that does not sign, or signs wrongly.
    pub fn health(&self) -> Result<(), KeyError> {
        for authority in self.authorities.values() {
            let challenge = b"hallmark CA key health check";
            let signature = authority.key.sign(challenge)?;
            let public = PublicKey::from_spki_der(authority.key.spki_der())
                .map_err(|e| KeyError::Failed { backend: "ca", reason: e.to_string() })?;
            if !public.verifies(challenge, &signature) {
                return Err(KeyError::Failed {
                    backend: "ca",
                    reason: "a signature did not verify".to_owned(),
                });
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
