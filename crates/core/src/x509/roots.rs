//! The roots that a relying party trusts, by tier; and those of infrastructure, kept apart by type.

use std::collections::BTreeSet;

use rustls_pki_types::{CertificateDer, TrustAnchor};

use super::parse::{Certificate, CertificateError};
use crate::id::TrustDomain;
use crate::tier::Tier;

/// Why a root was not taken in.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootsError {
    /// Not a certificate.
    #[error("root: {0}")]
    Certificate(#[from] CertificateError),
    /// Not a CA certificate, or not self-issued.
    #[error("root {subject}: {why}")]
    NotRoot {
        /// Its subject.
        subject: String,
        /// What is wrong.
        why: &'static str,
    },
    /// The same key stands for two tiers: the tier could not be told.
    #[error("the root key of {tier} is the root key of {other} too")]
    Shared {
        /// The tier it was to be added to.
        tier: Tier,
        /// The tier it already stands for.
        other: Tier,
    },
}

#[derive(Debug, Clone)]
struct Root {
    der: CertificateDer<'static>,
    tier: Tier,
    lab: bool,
}

/// One trust domain's roots by tier: what a bundle holds, or the part of it that a relying party trusts.
#[derive(Debug, Clone)]
pub struct TierRoots {
    trust_domain: TrustDomain,
    roots: Vec<Root>,
    /// Parallel to `roots`.
    anchors: Vec<TrustAnchor<'static>>,
}

impl TierRoots {
    /// No roots yet: trusts nobody.
    pub fn new(trust_domain: TrustDomain) -> Self {
        Self { trust_domain, roots: Vec::new(), anchors: Vec::new() }
    }

    /// Adds a root of `tier`; one already there is not added again.
    ///
    /// # Errors
    /// Not a self-issued CA certificate, or its key already stands for another tier.
    pub fn add(&mut self, tier: Tier, der: &[u8]) -> Result<(), RootsError> {
        let (anchor, lab) = anchor(der)?;
        for (known, root) in self.anchors.iter().zip(&self.roots) {
            if known.subject_public_key_info == anchor.subject_public_key_info && root.tier != tier {
                return Err(RootsError::Shared { tier, other: root.tier });
            }
            if root.der.as_ref() == der {
                return Ok(());
            }
        }
        self.roots.push(Root { der: CertificateDer::from(der.to_vec()), tier, lab });
        self.anchors.push(anchor);
        Ok(())
    }

    /// Those of `tier` and every higher tier: what a relying party trusts that demands `tier`.
    pub fn at_least(&self, tier: Tier) -> Self {
        let keep = |root: &Root| root.tier >= tier;
        let (roots, anchors) = self
            .roots
            .iter()
            .zip(&self.anchors)
            .filter(|(root, _)| keep(root))
            .map(|(root, anchor)| (root.clone(), anchor.clone()))
            .unzip();
        Self { trust_domain: self.trust_domain.clone(), roots, anchors }
    }

    /// The trust domain, whose SPIFFE IDs alone these roots authenticate.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The roots of one tier, DER.
    pub fn of(&self, tier: Tier) -> impl Iterator<Item = &CertificateDer<'static>> {
        self.roots.iter().filter(move |r| r.tier == tier).map(|r| &r.der)
    }

    /// The tiers that have a root, in rising order.
    pub fn tiers(&self) -> Vec<Tier> {
        Tier::ALL.into_iter().filter(|t| self.of(*t).next().is_some()).collect()
    }

    /// Whether one of them is a lab trust domain's, in which software TPMs count.
    pub fn is_lab(&self) -> bool {
        self.roots.iter().any(|r| r.lab)
    }

    /// Whether nobody is trusted.
    pub fn is_empty(&self) -> bool {
        self.roots.is_empty()
    }

    pub(super) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }

    /// The tier that this anchor stands for, and whether it is a lab's.
    pub(super) fn meaning_of(&self, anchor: &TrustAnchor<'_>) -> Option<(Tier, bool)> {
        let at = self.anchors.iter().position(|a| a == anchor)?;
        self.roots.get(at).map(|r| (r.tier, r.lab))
    }
}

/// One trust domain's infrastructure roots: they authenticate hosts and issuers, and no agent.
#[derive(Debug, Clone)]
pub struct InfraRoots {
    trust_domain: TrustDomain,
    ders: Vec<CertificateDer<'static>>,
    anchors: Vec<TrustAnchor<'static>>,
    denied: BTreeSet<[u8; 32]>,
}

impl InfraRoots {
    /// The infrastructure roots of `trust_domain`.
    ///
    /// # Errors
    /// One of them is not a self-issued CA certificate.
    pub fn new<D: AsRef<[u8]>>(
        trust_domain: TrustDomain,
        ders: impl IntoIterator<Item = D>,
    ) -> Result<Self, RootsError> {
        let mut this = Self { trust_domain, ders: Vec::new(), anchors: Vec::new(), denied: BTreeSet::new() };
        for der in ders {
            this.anchors.push(anchor(der.as_ref())?.0);
            this.ders.push(CertificateDer::from(der.as_ref().to_vec()));
        }
        Ok(this)
    }

    /// The trust domain.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The same roots, with issuing CAs under them that count no more, by
    /// [`key_fingerprint`](super::key_fingerprint): a CA's certificate can be signed anew, its key cannot be changed.
    pub fn denying(mut self, authorities: impl IntoIterator<Item = [u8; 32]>) -> Self {
        self.denied.extend(authorities);
        self
    }

    /// The keys that count no more.
    pub fn denied(&self) -> impl Iterator<Item = &[u8; 32]> {
        self.denied.iter()
    }

    /// Whether this issuing CA's key counts no more.
    pub(super) fn is_denied(&self, key: &[u8; 32]) -> bool {
        self.denied.contains(key)
    }

    /// The roots, DER.
    pub fn ders(&self) -> &[CertificateDer<'static>] {
        &self.ders
    }

    pub(super) fn anchors(&self) -> &[TrustAnchor<'static>] {
        &self.anchors
    }
}

/// The trust anchor, and whether its subject says that it is a lab's.
fn anchor(der: &[u8]) -> Result<(TrustAnchor<'static>, bool), RootsError> {
    let cert = Certificate::parse(der)?;
    let refuse = |why| Err(RootsError::NotRoot { subject: cert.subject_text(), why });
    if !cert.is_ca {
        return refuse("it is no CA certificate");
    }
    if cert.subject_raw() != cert.issuer_raw() {
        return refuse("it is not self-issued");
    }
    let der = CertificateDer::from(der);
    match webpki::anchor_from_trusted_cert(&der) {
        Ok(anchor) => Ok((anchor.to_owned(), cert.is_lab())),
        Err(_) => refuse("it cannot be a trust anchor"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::x509::testing::domain;

    #[test]
    fn a_key_stands_for_one_tier() {
        let domain = domain();
        let mut roots = TierRoots::new(domain.trust_domain.clone());
        let foundation = domain.root(crate::tier::Hierarchy::Tier(Tier::Foundation));
        roots.add(Tier::Foundation, foundation).unwrap();
        roots.add(Tier::Foundation, foundation).unwrap();
        assert_eq!(roots.of(Tier::Foundation).count(), 1, "added once");
        assert_eq!(
            roots.add(Tier::Advanced, foundation),
            Err(RootsError::Shared { tier: Tier::Advanced, other: Tier::Foundation })
        );
        assert!(roots.at_least(Tier::Enterprise).is_empty());
    }

    #[test]
    fn only_roots_are_roots() {
        let domain = domain();
        let mut roots = TierRoots::new(domain.trust_domain.clone());
        let leaf = domain.agent_leaf(Tier::Foundation);
        assert!(matches!(
            roots.add(Tier::Foundation, &leaf.der),
            Err(RootsError::NotRoot { why: "it is no CA certificate", .. })
        ));
        let issuing = domain.ca(crate::tier::Hierarchy::Tier(Tier::Foundation)).certificate();
        assert!(matches!(
            roots.add(Tier::Foundation, issuing),
            Err(RootsError::NotRoot { why: "it is not self-issued", .. })
        ));
        assert!(matches!(roots.add(Tier::Foundation, b"junk"), Err(RootsError::Certificate(_))));
    }
}
