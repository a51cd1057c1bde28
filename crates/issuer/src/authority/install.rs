//! Issuing CAs that an offline root signs: the request, and taking what comes back.

use std::sync::Arc;

use hallmark_core::rotation::{Role, Stage};
use hallmark_core::tier::Hierarchy;
use hallmark_core::x509::{IssuingWanted, OidArc, appraise_upstream, ca_request};

use super::order::{OrderError, begin, blocking, next_generation, refused};
use super::rules;
use super::step::{entry, look, refresh};
use crate::admin::Operator;
use crate::issuer::Issuer;
use crate::store::{Authority, Change, Write};

/// A request for an issuing CA's certificate.
#[derive(Debug)]
pub struct Request {
    /// PKCS#10, DER.
    pub csr: Vec<u8>,
    /// The CA that waits for it.
    pub authority: Authority,
}

/// The request of the issuing CA that waits for its certificate; one is made if none does.
///
/// # Errors
/// The token refuses.
pub async fn request(
    issuer: &Arc<Issuer>,
    operator: &Operator,
    hierarchy: Hierarchy,
) -> Result<Request, OrderError> {
    let _turn = begin(issuer).await?;
    let stored = refresh(issuer).await?;
    let own = issuer.config().issuer_id.to_string();
    let waiting = waiting(&stored, hierarchy, &own).cloned();
    let authority = match waiting {
        Some(waiting) => waiting,
        None => {
            let generation = next_generation(&stored, hierarchy, Role::Issuing);
            let made = blocking(issuer, move |maker, now| maker.request(hierarchy, generation, now)).await?;
            let record = entry(issuer, &made, "requested", Some(operator), None);
            issuer
                .store()
                .commit(vec![Write::Authority(Box::new(made.clone())), Write::Record(record)])
                .await?;
            made
        }
    };
    let label = authority.key_label.clone();
    let csr = blocking(issuer, move |maker, _| {
        let key = maker.token.ca_key(&label)?;
        let arc = OidArc::parse(&maker.trust_domain.oid_arc)?;
        Ok(ca_request(&wanted(maker.trust_domain, hierarchy, &arc), &key)?)
    })
    .await?;
    Ok(Request { csr, authority })
}

/// Takes the certificate that a root made for the request that waits, and the root if it is new here. What was installed
/// takes its course: under a root that is in use it signs at once, under a new one after the overlap.
///
/// # Errors
/// Nothing waits, no root is known or given, or every fault of the certificate.
pub async fn install(
    issuer: &Arc<Issuer>,
    operator: &Operator,
    hierarchy: Hierarchy,
    certificate: Vec<u8>,
    root: Option<Vec<u8>>,
) -> Result<Result<Vec<Authority>, Vec<String>>, OrderError> {
    let _turn = begin(issuer).await?;
    let stored = look(issuer, hierarchy).await?;
    let config = issuer.config();
    let own = config.issuer_id.to_string();
    let Some(waiting) = waiting(&stored, hierarchy, &own) else {
        return refused(format!(
            "no {hierarchy} issuing CA waits for a certificate: `hallmark ca csr {hierarchy}` makes its key and the request"
        ));
    };
    let roots: Vec<&Authority> = stored.iter().filter(|a| a.role == Role::Root).collect();
    let known = |root: &&&Authority| root.hierarchy == hierarchy;
    let (root_der, by) = match &root {
        Some(der) => (der.clone(), roots.iter().filter(known).find(|r| r.certificate == *der)),
        None => {
            let good = |r: &&&Authority| matches!(r.stage, Stage::Published | Stage::Active);
            let signed = |r: &&&Authority| is_issued_by(&certificate, &r.certificate);
            let mut candidates = roots.iter().filter(known).filter(good);
            let newest = || roots.iter().filter(known).filter(good).max_by_key(|r| r.generation);
            match candidates.find(signed).or_else(newest) {
                Some(root) => (root.certificate.clone(), Some(root)),
                None => {
                    return refused(format!(
                        "no {hierarchy} root is known here: give it along (--root FILE)"
                    ));
                }
            }
        }
    };
    if let Some(by) = by
        && !matches!(by.stage, Stage::Prepared | Stage::Published | Stage::Active)
    {
        return refused(format!("{} is {}: nothing new is taken under it", by.name(), by.stage.as_str()));
    }
    let spki = {
        let label = waiting.key_label.clone();
        blocking(issuer, move |maker, _| Ok(maker.token.ca_key(&label)?.spki_der().to_vec())).await?
    };
    let arc = OidArc::parse(&issuer.trust_domain().oid_arc).map_err(anyhow::Error::from)?;
    let all: Vec<_> = roots.iter().map(|r| (r.hierarchy, r.certificate.clone())).collect();
    let least = rules(&config, hierarchy).longest_leaf.saturating_mul(2);
    let appraised = appraise_upstream(
        &certificate,
        &root_der,
        &wanted(issuer.trust_domain(), hierarchy, &arc),
        &spki,
        &all,
        issuer.now(),
        least,
    );
    if let Err(faults) = appraised {
        return Ok(Err(faults.iter().map(ToString::to_string).collect()));
    }
    // Whatever the rules do not say: it is put to use once before it counts.
    {
        let (label, der) = (waiting.key_label.clone(), certificate.clone());
        let usable = blocking(issuer, move |maker, _| {
            let key = Arc::new(maker.token.ca_key(&label)?);
            Ok(hallmark_core::x509::IssuingCa::new(&der, key).map(drop).map_err(|e| e.to_string()))
        });
        if let Err(fault) = usable.await? {
            return Ok(Err(vec![fault]));
        }
    }
    let mut writes = Vec::new();
    let generation = match by {
        Some(by) => by.generation,
        None => {
            let generation = next_generation(&stored, hierarchy, Role::Root);
            let new = Authority::new(hierarchy, Role::Root, generation, Stage::Prepared, issuer.now());
            let new = Authority { certificate: root_der, ..new };
            writes.push(Write::Record(entry(issuer, &new, "installed", Some(operator), None)));
            writes.push(Write::Authority(Box::new(new)));
            generation
        }
    };
    let certified = Authority { certificate: certificate.clone(), root: generation, ..waiting.clone() };
    writes.push(Write::Record(entry(issuer, &certified, "installed", Some(operator), None)));
    let change =
        Change::Certified { hierarchy, generation: waiting.generation, root: generation, certificate };
    writes.push(Write::Change(change));
    issuer.store().commit(writes).await?;
    tracing::info!(authority = certified.name(), %operator, "CA certificate installed");
    Ok(Ok(look(issuer, hierarchy).await?))
}

fn waiting<'a>(stored: &'a [Authority], hierarchy: Hierarchy, own: &str) -> Option<&'a Authority> {
    stored
        .iter()
        .filter(|a| a.hierarchy == hierarchy && a.stage == Stage::Requested && a.issuer == own)
        .max_by_key(|a| a.generation)
}

fn wanted<'a>(
    trust_domain: &'a crate::store::TrustDomainRow,
    hierarchy: Hierarchy,
    arc: &'a OidArc,
) -> IssuingWanted<'a> {
    IssuingWanted { trust_domain: &trust_domain.name, hierarchy, lab: trust_domain.lab, arc }
}

/// Whether the names fit: which of several roots is meant. Whether it has signed is looked at later.
fn is_issued_by(certificate: &[u8], root: &[u8]) -> bool {
    use x509_parser::prelude::{FromDer, X509Certificate};
    let (Ok((_, certificate)), Ok((_, root))) =
        (X509Certificate::from_der(certificate), X509Certificate::from_der(root))
    else {
        return false;
    };
    certificate.issuer().as_raw() == root.subject().as_raw()
}
