//! The CAs that EK certificates may lead to, imported from vendors' PEM bundles with a reason for each one
//! refused.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use sha2::{Digest, Sha256};

use super::certificate::{Certificate, CertificateFault};
use super::chain;
use super::{EkError, Leniency};

/// Longest bundle read, in bytes.
const MAX_BUNDLE: usize = 8 * 1024 * 1024;
const BEGIN: &str = "-----BEGIN CERTIFICATE-----";
const END: &str = "-----END CERTIFICATE-----";

/// A set of anchors (roots) and of CAs below them.
#[derive(Debug, Clone, Default)]
pub struct EkRoots {
    pub(super) anchors: Vec<Certificate>,
    pub(super) intermediates: Vec<Certificate>,
}

/// What a certificate in the set is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RootRole {
    /// Trusted by itself.
    Anchor,
    /// Trusted because an anchor vouches for it.
    Intermediate,
}

/// One certificate of the set.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootInfo {
    /// Its subject.
    pub subject: String,
    /// Its issuer.
    pub issuer: String,
    /// SHA-256 of its DER.
    pub fingerprint: [u8; 32],
    /// The end of its validity, seconds since 1970.
    pub not_after: i64,
    /// What it is for.
    pub role: RootRole,
    /// What had to be overlooked to read it.
    pub leniencies: Vec<Leniency>,
}

/// A certificate that was not imported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedRoot {
    /// Its subject, or its place in the bundle if it could not be read.
    pub subject: String,
    /// Why.
    pub why: RootRefusal,
}

/// Why a certificate is not imported.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RootRefusal {
    /// The bundle itself is too large; nothing was read.
    #[error("the bundle has {len} bytes, at most {MAX_BUNDLE} are read")]
    BundleTooLong {
        /// Its length.
        len: usize,
    },
    /// Not base64 between the PEM lines, or no end line.
    #[error("not a whole PEM block")]
    Pem,
    /// Not a certificate this verifier can use.
    #[error(transparent)]
    Certificate(#[from] CertificateFault),
    /// Not a CA, outside its validity, or its own signature or its issuer's does not hold.
    #[error(transparent)]
    Unfit(#[from] EkError),
    /// The key is too weak or of a kind that is not supported.
    #[error("its key is none of RSA from 2048 bits, P-256, P-384 and P-521")]
    Key,
    /// Not self-signed, and nothing in the set vouches for it.
    #[error(
        "not self-signed, and its issuer ({issuer}) is not in the set: import that one first, or import this \
         one as an anchor"
    )]
    IssuerAbsent {
        /// The issuer it names.
        issuer: String,
    },
    /// Its issuer came with it and was refused itself, as an expired root is.
    #[error("its issuer ({issuer}) was refused")]
    IssuerRefused {
        /// The issuer it names.
        issuer: String,
    },
    /// Already in the set.
    #[error("already imported")]
    Duplicate,
}

/// What becomes of a CA whose issuer is neither in the set nor in the bundle.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Orphans {
    Refused,
    Trusted,
}

/// What an import did.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct ImportReport {
    /// What the set gained.
    pub accepted: Vec<RootInfo>,
    /// What it did not, each with its reason.
    pub refused: Vec<RefusedRoot>,
}

impl EkRoots {
    /// An empty set: nothing leads to it.
    pub fn new() -> Self {
        Self::default()
    }

    /// Imports a bundle of PEM certificates in any order. Self-signed CAs become anchors, others are kept if
    /// an anchor vouches for them, here or from before. `now` in seconds since 1970.
    pub fn import_pem(&mut self, pem: &str, now: i64) -> ImportReport {
        self.import(pem, now, false)
    }

    /// As [`EkRoots::import_pem`], and a CA that nothing vouches for becomes an anchor too: for a vendor's
    /// CA whose own root is not published.
    pub fn import_anchors_pem(&mut self, pem: &str, now: i64) -> ImportReport {
        self.import(pem, now, true)
    }

    fn import(&mut self, pem: &str, now: i64, trust_orphans: bool) -> ImportReport {
        let mut report = ImportReport::default();
        if pem.len() > MAX_BUNDLE {
            let why = RootRefusal::BundleTooLong { len: pem.len() };
            report.refused.push(RefusedRoot { subject: "the bundle".into(), why });
            return report;
        }
        let (mut waiting, mut unfit) = (Vec::new(), Vec::new());
        for (number, block) in pem_blocks(pem).enumerate() {
            let parsed = block.and_then(|der| Ok(Certificate::parse_exact(&der)?));
            let certificate = match parsed {
                Ok(certificate) => certificate,
                Err(why) => {
                    let subject = format!("certificate {} of the bundle", number + 1);
                    report.refused.push(RefusedRoot { subject, why });
                    continue;
                }
            };
            let checked = self.check(&certificate, now);
            let role = if certificate.is_self_issued() { RootRole::Anchor } else { RootRole::Intermediate };
            match (checked, role) {
                (Ok(()), RootRole::Anchor) => self.keep(certificate, role, &mut report),
                (Ok(()), RootRole::Intermediate) => waiting.push(certificate),
                (Err(why), _) => {
                    report.refused.push(RefusedRoot { subject: certificate.subject.clone(), why });
                    unfit.push(certificate);
                }
            }
        }
        // A duplicate is refused, and yet in the set.
        unfit.retain(|c| !self.all().any(|(_, known)| known.der == c.der));
        let orphans = if trust_orphans { Orphans::Trusted } else { Orphans::Refused };
        self.settle(waiting, unfit, orphans, &mut report);
        report
    }

    /// Intermediates come in any order: go round until nothing more finds its issuer.
    fn settle(
        &mut self,
        mut waiting: Vec<Certificate>,
        mut unfit: Vec<Certificate>,
        orphans: Orphans,
        report: &mut ImportReport,
    ) {
        loop {
            let before = waiting.len();
            for certificate in std::mem::take(&mut waiting) {
                match self.vouched(&certificate) {
                    Some(Ok(())) => self.keep(certificate, RootRole::Intermediate, report),
                    Some(Err(why)) => {
                        report
                            .refused
                            .push(RefusedRoot { subject: certificate.subject.clone(), why: why.into() });
                        unfit.push(certificate);
                    }
                    None => waiting.push(certificate),
                }
            }
            if waiting.len() < before {
                continue;
            }
            // Nothing moved. What hangs on a refused CA falls with it: an intermediate must not outlive its
            // expired root by becoming an anchor itself.
            if let Some(at) = waiting.iter().position(|c| unfit.iter().any(|u| c.names_issuer(u))) {
                let certificate = waiting.remove(at);
                let why = RootRefusal::IssuerRefused { issuer: certificate.issuer.clone() };
                report.refused.push(RefusedRoot { subject: certificate.subject.clone(), why });
                unfit.push(certificate);
                continue;
            }
            // Trust one orphan, if orphans are to be trusted, and go round again: it may vouch for others.
            let orphan = waiting.iter().position(|c| !waiting.iter().any(|other| c.names_issuer(other)));
            match orphan.filter(|_| orphans == Orphans::Trusted) {
                Some(at) => {
                    let orphan = waiting.remove(at);
                    self.keep(orphan, RootRole::Anchor, report);
                }
                None => break,
            }
        }
        for certificate in waiting {
            let why = RootRefusal::IssuerAbsent { issuer: certificate.issuer };
            report.refused.push(RefusedRoot { subject: certificate.subject, why });
        }
    }

    fn check(&self, certificate: &Certificate, now: i64) -> Result<(), RootRefusal> {
        if self.all().any(|(_, known)| known.der == certificate.der) {
            return Err(RootRefusal::Duplicate);
        }
        chain::check_ca(certificate)?;
        chain::check_validity(certificate, now)?;
        chain::ca_key_kind(certificate).ok_or(RootRefusal::Key)?;
        if certificate.is_self_issued() {
            chain::check_signature(certificate, certificate)?;
        }
        Ok(())
    }

    /// Whether something in the set signed this; `None` if nothing there has its issuer's name.
    fn vouched(&self, certificate: &Certificate) -> Option<Result<(), EkError>> {
        let mut result = None;
        for (_, issuer) in self.all().filter(|(_, c)| certificate.names_issuer(c)) {
            match chain::check_signature(certificate, issuer) {
                Ok(()) => return Some(Ok(())),
                Err(error) => result = Some(Err(error)),
            }
        }
        result
    }

    fn keep(&mut self, certificate: Certificate, role: RootRole, report: &mut ImportReport) {
        if self.all().any(|(_, known)| known.der == certificate.der) {
            report.refused.push(RefusedRoot { subject: certificate.subject, why: RootRefusal::Duplicate });
            return;
        }
        report.accepted.push(info(role, &certificate));
        match role {
            RootRole::Anchor => self.anchors.push(certificate),
            RootRole::Intermediate => self.intermediates.push(certificate),
        }
    }

    fn all(&self) -> impl Iterator<Item = (RootRole, &Certificate)> {
        let anchors = self.anchors.iter().map(|c| (RootRole::Anchor, c));
        anchors.chain(self.intermediates.iter().map(|c| (RootRole::Intermediate, c)))
    }

    /// Every certificate of the set, anchors first.
    pub fn iter(&self) -> impl Iterator<Item = RootInfo> + '_ {
        self.all().map(|(role, certificate)| info(role, certificate))
    }

    /// Whether nothing is trusted.
    pub fn is_empty(&self) -> bool {
        self.anchors.is_empty()
    }

    /// The set as PEM: anchors, then intermediates. [`EkRoots::import_anchors_pem`] reads it back; what has
    /// expired since then stays out, and takes what it vouched for with it.
    pub fn to_pem(&self) -> String {
        let mut out = String::new();
        for (_, certificate) in self.all() {
            out.push_str(BEGIN);
            out.push('\n');
            let text = STANDARD.encode(&certificate.der);
            for line in text.as_bytes().chunks(64) {
                out.push_str(&String::from_utf8_lossy(line));
                out.push('\n');
            }
            out.push_str(END);
            out.push('\n');
        }
        out
    }
}

fn info(role: RootRole, certificate: &Certificate) -> RootInfo {
    RootInfo {
        subject: certificate.subject.clone(),
        issuer: certificate.issuer.clone(),
        fingerprint: Sha256::digest(&certificate.der).into(),
        not_after: certificate.not_after,
        role,
        leniencies: certificate.leniencies.iter().copied().collect(),
    }
}

/// The DER of each certificate block; text between blocks is commentary.
fn pem_blocks(pem: &str) -> impl Iterator<Item = Result<Vec<u8>, RootRefusal>> + '_ {
    pem.split(BEGIN).skip(1).map(|after| {
        let body = after.split_once(END).ok_or(RootRefusal::Pem)?.0;
        let text: String = body.chars().filter(|c| !c.is_ascii_whitespace()).collect();
        STANDARD.decode(text).map_err(|_| RootRefusal::Pem)
    })
}
