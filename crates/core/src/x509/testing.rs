//! A whole trust domain in memory, for the tests of this module.

use std::sync::Arc;
use std::time::Duration;

use rcgen::CertificateParams;
use rustls_pki_types::CertificateDer;

use super::*;
use crate::id::{InstanceId, SpiffeId, TrustDomain};
use crate::tier::{Custody, Hierarchy, Tier};

/// 2027-01-15T08:00:00Z.
pub(crate) const NOW: i64 = 1_800_000_000;

pub(crate) fn pkcs8(curve: Curve) -> Vec<u8> {
    rcgen::KeyPair::generate_for(curve.rcgen()).unwrap().serialize_der()
}

pub(crate) fn software_key(curve: Curve) -> SoftwareCaKey {
    SoftwareCaKey::from_pkcs8(&pkcs8(curve)).unwrap()
}

pub(crate) fn csr(shape: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = CertificateParams::default();
    shape(&mut params);
    params.serialize_request(&rcgen::KeyPair::generate().unwrap()).unwrap().der().to_vec()
}

pub(crate) fn csr_signed_by(key: &SoftwareCaKey, shape: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    struct Signer<'a>(&'a SoftwareCaKey, PublicKey);
    impl rcgen::PublicKeyData for Signer<'_> {
        fn der_bytes(&self) -> &[u8] {
            self.1.point()
        }
        fn algorithm(&self) -> &'static rcgen::SignatureAlgorithm {
            self.0.curve().rcgen()
        }
    }
    impl rcgen::SigningKey for Signer<'_> {
        fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
            Ok(self.0.sign(message).unwrap())
        }
    }
    let mut params = CertificateParams::default();
    shape(&mut params);
    let public = PublicKey::from_spki_der(key.spki_der()).unwrap();
    params.serialize_request(&Signer(key, public)).unwrap().der().to_vec()
}

pub(crate) struct Domain {
    pub(crate) trust_domain: TrustDomain,
    pub(crate) roots: Vec<(Hierarchy, CertificateDer<'static>, SoftwareCaKey)>,
    pub(crate) cas: Vec<IssuingCa>,
}

pub(crate) fn domain() -> Domain {
    domain_named("example.org", true)
}

pub(crate) fn serial(n: u8) -> Serial {
    Serial::from_random([n; 16])
}

pub(crate) fn domain_named(name: &str, lab: bool) -> Domain {
    let trust_domain: TrustDomain = name.parse().unwrap();
    let arc = OidArc::documentation();
    let mut roots = Vec::new();
    let mut cas = Vec::new();
    for (n, hierarchy) in (0u8..).zip(Hierarchy::ALL) {
        let params = |serial, lifetime| CaParams {
            trust_domain: &trust_domain,
            hierarchy,
            lab,
            arc: &arc,
            serial,
            now: NOW,
            lifetime: Duration::from_secs(lifetime),
        };
        let root_key = software_key(Curve::P384);
        let root = root(&params(serial(10 + n), 3600 * 24 * 3650), &root_key).unwrap();
        let key = software_key(Curve::P256);
        let ca = issuing(&params(serial(20 + n), 3600 * 24 * 365), key.spki_der(), &root, &root_key).unwrap();
        cas.push(IssuingCa::new(&ca, Arc::new(key)).unwrap());
        roots.push((hierarchy, root, root_key));
    }
    Domain { trust_domain, roots, cas }
}

impl Domain {
    pub(crate) fn root(&self, hierarchy: Hierarchy) -> &CertificateDer<'static> {
        &self.roots.iter().find(|r| r.0 == hierarchy).unwrap().1
    }

    pub(crate) fn ca(&self, hierarchy: Hierarchy) -> &IssuingCa {
        self.cas.iter().find(|c| c.hierarchy() == hierarchy).unwrap()
    }

    pub(crate) fn tier_roots(&self) -> TierRoots {
        let mut roots = TierRoots::new(self.trust_domain.clone());
        for tier in Tier::ALL {
            roots.add(tier, self.root(Hierarchy::Tier(tier))).unwrap();
        }
        roots
    }

    pub(crate) fn infra_roots(&self) -> InfraRoots {
        InfraRoots::new(self.trust_domain.clone(), [self.root(Hierarchy::Infrastructure)]).unwrap()
    }

    pub(crate) fn agent_id(&self) -> SpiffeId {
        format!("spiffe://{}/agent/mailer", self.trust_domain).parse().unwrap()
    }

    pub(crate) fn agent_leaf(&self, tier: Tier) -> Leaf {
        self.agent_leaf_with(tier, &info(tier), &self.agent_id()).unwrap()
    }

    pub(crate) fn agent_leaf_with(
        &self,
        tier: Tier,
        info: &AgentInfo,
        id: &SpiffeId,
    ) -> Result<Leaf, ProfileError> {
        self.ca(Hierarchy::Tier(tier)).leaf_checked(&LeafParams {
            spiffe_id: id,
            spki_der: software_key(Curve::P256).spki_der(),
            dns_names: &[],
            serial: serial(30),
            now: NOW,
            lifetime: Duration::from_secs(600),
            agent: Some(AgentLeaf { instance: InstanceId::from_bytes([5; 16]), info }),
        })
    }

    pub(crate) fn chain(&self, tier: Tier) -> Vec<CertificateDer<'static>> {
        vec![self.agent_leaf(tier).der, self.ca(Hierarchy::Tier(tier)).certificate().clone()]
    }
}

pub(crate) fn info(tier: Tier) -> AgentInfo {
    AgentInfo {
        version: AgentInfo::VERSION,
        tier,
        custody: if tier == Tier::Advanced { Custody::TpmCertified } else { Custody::Software },
        owner_id: [1; 16],
        attested_at: NOW - 10,
        evidence_digest: [2; 32],
        task: None,
        delegation: None,
    }
}

impl Domain {
    pub(crate) fn infra_leaf(&self, id: &SpiffeId) -> Result<Leaf, ProfileError> {
        self.ca(Hierarchy::Infrastructure).leaf_checked(&LeafParams {
            spiffe_id: id,
            spki_der: software_key(Curve::P256).spki_der(),
            dns_names: &[],
            serial: serial(31),
            now: NOW,
            lifetime: Duration::from_secs(3600),
            agent: None,
        })
    }
}

impl IssuingCa {
    /// Signs what the profile would never make.
    pub(crate) fn sign_anything(&self, params: &CertificateParams, spki: &[u8]) -> CertificateDer<'static> {
        let public = PublicKey::from_spki_der(spki).unwrap();
        let mut params = params.clone();
        params.use_authority_key_identifier_extension = true;
        profile::sign_with(&*self.key, &self.public, |signer| {
            let issuer = rcgen::Issuer::from_params(&self.issuer, signer);
            params.signed_by(&profile::SubjectKey(&public), &issuer)
        })
        .unwrap()
    }
}

pub(crate) fn ca(domain: &Domain, hierarchy: Hierarchy) -> CaParams<'_> {
    static ARC: std::sync::OnceLock<OidArc> = std::sync::OnceLock::new();
    CaParams {
        trust_domain: &domain.trust_domain,
        hierarchy,
        lab: true,
        arc: ARC.get_or_init(OidArc::documentation),
        serial: serial(77),
        now: NOW,
        lifetime: Duration::from_secs(86_400),
    }
}

/// An advanced or enterprise agent's leaf as usual, but for what `shape` changes.
pub(crate) fn leaf(ca: &IssuingCa, shape: impl FnOnce(&mut LeafParams<'_>)) -> Result<Leaf, ProfileError> {
    let Hierarchy::Tier(tier) = ca.hierarchy() else { panic!("agents only") };
    leaf_with(ca, &info(tier), shape)
}

pub(crate) fn leaf_with(
    ca: &IssuingCa,
    info: &AgentInfo,
    shape: impl FnOnce(&mut LeafParams<'_>),
) -> Result<Leaf, ProfileError> {
    let id: SpiffeId = "spiffe://example.org/agent/mailer".parse().unwrap();
    let key = software_key(Curve::P256);
    let spki = key.spki_der().to_vec();
    let mut params = LeafParams {
        spiffe_id: &id,
        spki_der: &spki,
        dns_names: &[],
        serial: serial(30),
        now: NOW,
        lifetime: Duration::from_secs(600),
        agent: Some(AgentLeaf { instance: InstanceId::from_bytes([5; 16]), info }),
    };
    shape(&mut params);
    ca.leaf(&params)
}
