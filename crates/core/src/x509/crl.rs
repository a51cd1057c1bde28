//! Certificate revocation lists (RFC 5280 §5): one for each issuing CA, complete, version 2.

use std::collections::BTreeSet;

use rcgen::{
    CertificateRevocationListParams, KeyIdMethod, RevocationReason, RevokedCertParams, SerialNumber,
};
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::{CertificateRevocationList, FromDer};

use super::csr::canonical;
use super::issuing::IssuingCa;
use super::key::PublicKey;
use super::parse::{CRL_SIGN, Certificate, CertificateError};
use super::profile::{ProfileError, datetime, signing};
use super::serial::Serial;

/// Longest list accepted: room for some hundred thousand entries.
const MAX_CRL: usize = 16 * 1024 * 1024;

/// What a list is to say.
#[derive(Debug, Clone)]
pub struct CrlParams<'a> {
    /// When it is made, seconds since 1970-01-01 UTC.
    pub this_update: i64,
    /// By when the next one will be made.
    pub next_update: i64,
    /// Grows with each list of this CA (RFC 5280 §5.2.3).
    pub number: u64,
    /// What is revoked and has not expired.
    pub revoked: &'a [Revoked],
}

/// One revoked certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Revoked {
    /// Its serial number.
    pub serial: Serial,
    /// When it was revoked, seconds since 1970-01-01 UTC.
    pub at: i64,
    /// Why.
    pub reason: Reason,
}

/// Why a certificate was revoked (RFC 5280 §5.3.1), as far as Hallmark uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The agent ended or its task did: the ordinary end.
    CessationOfOperation,
    /// The key may be in other hands.
    KeyCompromise,
    /// The operator took the right away.
    PrivilegeWithdrawn,
    /// Another certificate took its place.
    Superseded,
}

/// A list whose signature was verified.
#[derive(Debug, Clone)]
pub struct Crl {
    number: u64,
    this_update: i64,
    next_update: i64,
    revoked: BTreeSet<Serial>,
}

/// Why a list was refused.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CrlError {
    /// Over the limit.
    #[error("the CRL has {len} bytes, more than {max}")]
    TooLarge {
        /// Its length.
        len: usize,
        /// The limit.
        max: usize,
    },
    /// Not a CRL in DER.
    #[error("not a CRL in DER: {why}")]
    Der {
        /// What is wrong.
        why: String,
    },
    /// The issuing CA's certificate cannot be used.
    #[error("the issuing CA's certificate: {0}")]
    Issuer(#[from] CertificateError),
    /// The issuing CA may not sign lists.
    #[error("the issuing CA's certificate lacks cRLSign or is no CA's")]
    IssuerUsage,
    /// Another CA's list.
    #[error("the CRL is of another issuer")]
    OtherIssuer,
    /// The signature is not the CA's.
    #[error("the CRL's signature does not verify with the issuing CA's key")]
    Signature,
    /// Not within its time.
    #[error("the CRL is good from {this_update} to {next_update}, and it is {now}")]
    Time {
        /// When it was made.
        this_update: i64,
        /// By when the next one was due.
        next_update: i64,
        /// The time of verification.
        now: i64,
    },
    /// A critical extension that is not understood: the list's scope may be another (RFC 5280 §5.2).
    #[error("the CRL has critical extension {oid}")]
    Critical {
        /// Its identifier.
        oid: String,
    },
    /// No CRL number, or a longer one than 64 bits.
    #[error("the CRL has no usable number")]
    Number,
}

impl IssuingCa {
    /// Makes and signs this CA's list.
    ///
    /// # Errors
    /// The times are out of order or range, or the key does not sign.
    pub fn crl(&self, params: &CrlParams<'_>) -> Result<Vec<u8>, ProfileError> {
        let revoked = params.revoked.iter().map(|r| {
            Ok(RevokedCertParams {
                serial_number: SerialNumber::from_slice(r.serial.as_bytes()),
                revocation_time: datetime(r.at)?,
                reason_code: Some(r.reason.to_rcgen()),
                invalidity_date: None,
            })
        });
        let list = CertificateRevocationListParams {
            this_update: datetime(params.this_update)?,
            next_update: datetime(params.next_update)?,
            crl_number: SerialNumber::from_slice(&params.number.to_be_bytes()),
            issuing_distribution_point: None,
            revoked_certs: revoked.collect::<Result<_, ProfileError>>()?,
            key_identifier_method: KeyIdMethod::PreSpecified(self.key_id.clone()),
        };
        let crl = signing(&*self.key, &self.public, |signer| {
            list.signed_by(&rcgen::Issuer::from_params(&self.issuer, signer))
        })?;
        Ok(crl.der().to_vec())
    }
}

impl Crl {
    /// Reads a list and verifies that the CA of `issuing_der` signed it and that it is in its time.
    ///
    /// # Errors
    /// See [`CrlError`].
    pub fn verify(der: &[u8], issuing_der: &[u8], now: i64) -> Result<Self, CrlError> {
        if der.len() > MAX_CRL {
            return Err(CrlError::TooLarge { len: der.len(), max: MAX_CRL });
        }
        let malformed = |why: &str| CrlError::Der { why: why.to_owned() };
        let (rest, list) =
            CertificateRevocationList::from_der(der).map_err(|e| CrlError::Der { why: e.to_string() })?;
        if !rest.is_empty() {
            return Err(malformed("bytes follow it"));
        }
        check_signer(&list, issuing_der, der)?;
        let this_update = list.last_update().timestamp();
        let next_update = list.next_update().ok_or_else(|| malformed("nextUpdate is missing"))?.timestamp();
        if now < this_update || now > next_update {
            return Err(CrlError::Time { this_update, next_update, now });
        }
        let number = read_number(&list)?;
        let mut revoked = BTreeSet::new();
        for entry in list.iter_revoked_certificates() {
            let serial = Serial::from_bytes(entry.raw_serial()).map_err(|e| malformed(&e.to_string()))?;
            revoked.insert(serial);
        }
        Ok(Self { number, this_update, next_update, revoked })
    }

    /// Whether this serial is revoked.
    pub fn contains(&self, serial: &Serial) -> bool {
        self.revoked.contains(serial)
    }

    /// The list's number.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// When it was made, and by when the next one is due, seconds since 1970-01-01 UTC.
    pub fn validity_period(&self) -> (i64, i64) {
        (self.this_update, self.next_update)
    }

    /// How many certificates are on it.
    pub fn len(&self) -> usize {
        self.revoked.len()
    }

    /// Whether nothing is revoked.
    pub fn is_empty(&self) -> bool {
        self.revoked.is_empty()
    }
}

fn check_signer(
    list: &CertificateRevocationList<'_>,
    issuing_der: &[u8],
    der: &[u8],
) -> Result<(), CrlError> {
    let issuer = Certificate::parse(issuing_der)?;
    if !issuer.is_ca || issuer.key_usage.is_none_or(|ku| ku & CRL_SIGN == 0) {
        return Err(CrlError::IssuerUsage);
    }
    if list.issuer().as_raw() != issuer.subject_raw() {
        return Err(CrlError::OtherIssuer);
    }
    let public = PublicKey::from_spki_der(issuer.spki_der()).map_err(|_| CrlError::IssuerUsage)?;
    // What the signature does not cover has one form: the key's algorithm (RFC 5280 §5.1.1.2), no unused bits.
    if canonical(list.tbs_cert_list.as_ref(), public.curve(), &list.signature_value.data) != der {
        return Err(CrlError::Der { why: "it is not in canonical DER, or of another algorithm".to_owned() });
    }
    if !public.verifies(list.tbs_cert_list.as_ref(), &list.signature_value.data) {
        return Err(CrlError::Signature);
    }
    Ok(())
}

fn read_number(list: &CertificateRevocationList<'_>) -> Result<u64, CrlError> {
    let mut number = None;
    for ext in list.extensions() {
        if ext.critical {
            return Err(CrlError::Critical { oid: ext.oid.to_id_string() });
        }
        if let ParsedExtension::CRLNumber(n) = ext.parsed_extension() {
            number = u64::try_from(n).ok();
        }
    }
    number.ok_or(CrlError::Number)
}

impl Reason {
    fn to_rcgen(self) -> RevocationReason {
        match self {
            Reason::CessationOfOperation => RevocationReason::CessationOfOperation,
            Reason::KeyCompromise => RevocationReason::KeyCompromise,
            Reason::PrivilegeWithdrawn => RevocationReason::PrivilegeWithdrawn,
            Reason::Superseded => RevocationReason::Superseded,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tier::{Hierarchy, Tier};
    use crate::x509::testing::{NOW, domain, serial};

    const DAY: i64 = 86_400;

    fn params(revoked: &[Revoked]) -> CrlParams<'_> {
        CrlParams { this_update: NOW, next_update: NOW + DAY, number: 7, revoked }
    }

    fn revoked(n: u8, reason: Reason) -> Revoked {
        Revoked { serial: serial(n), at: NOW - 5, reason }
    }

    #[test]
    fn lists_are_read_back() {
        let domain = domain();
        let ca = domain.ca(Hierarchy::Tier(Tier::Enterprise));
        let empty = ca.crl(&params(&[])).unwrap();
        assert!(Crl::verify(&empty, ca.certificate(), NOW).unwrap().is_empty());
        let entries = [
            revoked(1, Reason::KeyCompromise),
            revoked(2, Reason::CessationOfOperation),
            revoked(3, Reason::PrivilegeWithdrawn),
            revoked(4, Reason::Superseded),
        ];
        let der = ca.crl(&params(&entries)).unwrap();
        let crl = Crl::verify(&der, ca.certificate(), NOW + DAY).unwrap();
        assert_eq!((crl.number(), crl.len()), (7, 4));
        assert_eq!(crl.validity_period(), (NOW, NOW + DAY));
        assert!((1..5).all(|n| crl.contains(&serial(n))) && !crl.contains(&serial(5)));
    }

    #[test]
    fn what_is_no_list_of_this_ca() {
        let domain = domain();
        let ca = domain.ca(Hierarchy::Tier(Tier::Enterprise));
        let other = domain.ca(Hierarchy::Tier(Tier::Foundation)).certificate();
        let der = ca.crl(&params(&[revoked(1, Reason::KeyCompromise)])).unwrap();
        let verify = |der: &[u8], issuer: &[u8], now| Crl::verify(der, issuer, now).unwrap_err();
        assert_eq!(verify(&der, other, NOW), CrlError::OtherIssuer);
        assert!(matches!(verify(&der, ca.certificate(), NOW + DAY + 1), CrlError::Time { .. }));
        assert!(matches!(verify(&der, ca.certificate(), NOW - 1), CrlError::Time { .. }));
        assert_eq!(verify(&der, &domain.agent_leaf(Tier::Enterprise).der, NOW), CrlError::IssuerUsage);
        assert!(matches!(verify(&der, b"junk", NOW), CrlError::Issuer(_)));
        let trailing = [&der[..], &[0]].concat();
        assert!(matches!(verify(&trailing, ca.certificate(), NOW), CrlError::Der { .. }));
        let large = vec![0; MAX_CRL + 1];
        assert!(matches!(verify(&large, ca.certificate(), NOW), CrlError::TooLarge { .. }));
    }

    /// Found by fuzzing: the parser overlooks the algorithm outside what is signed.
    #[test]
    fn no_bit_of_a_list_can_change() {
        let domain = domain();
        let ca = domain.ca(Hierarchy::Tier(Tier::Enterprise));
        let der = ca.crl(&params(&[revoked(9, Reason::KeyCompromise)])).unwrap();
        for bit in 0..der.len() * 8 {
            let mut changed = der.clone();
            changed[bit / 8] ^= 1 << (bit % 8);
            assert!(Crl::verify(&changed, ca.certificate(), NOW).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn the_signature_must_be_the_cas() {
        // Another CA of the same name: only the key differs.
        let (one, other) = (domain(), domain());
        let ca = one.ca(Hierarchy::Tier(Tier::Advanced));
        let der = other.ca(Hierarchy::Tier(Tier::Advanced)).crl(&params(&[])).unwrap();
        assert_eq!(Crl::verify(&der, ca.certificate(), NOW).unwrap_err(), CrlError::Signature);
    }

    #[test]
    fn scope_and_number() {
        let domain = domain();
        let ca = domain.ca(Hierarchy::Tier(Tier::Advanced));
        let list = |scope: Option<rcgen::CrlIssuingDistributionPoint>, number: SerialNumber| {
            let list = CertificateRevocationListParams {
                this_update: datetime(NOW).unwrap(),
                next_update: datetime(NOW + DAY).unwrap(),
                crl_number: number,
                issuing_distribution_point: scope,
                revoked_certs: vec![],
                key_identifier_method: KeyIdMethod::PreSpecified(ca.public.key_id().to_vec()),
            };
            let crl = signing(&*ca.key, &ca.public, |signer| {
                list.signed_by(&rcgen::Issuer::from_params(&ca.issuer, signer))
            });
            Crl::verify(crl.unwrap().der(), ca.certificate(), NOW).unwrap_err()
        };
        let partial = rcgen::CrlIssuingDistributionPoint {
            distribution_point: rcgen::CrlDistributionPoint { uris: vec!["http://x.example/crl".to_owned()] },
            scope: Some(rcgen::CrlScope::UserCertsOnly),
        };
        assert_eq!(
            list(Some(partial), SerialNumber::from(1)),
            CrlError::Critical { oid: "2.5.29.28".to_owned() }
        );
        assert_eq!(list(None, SerialNumber::from_slice(&[1; 12])), CrlError::Number);
    }

    #[test]
    fn times_in_order() {
        let domain = domain();
        let ca = domain.ca(Hierarchy::Tier(Tier::Advanced));
        let refused = ca.crl(&CrlParams { next_update: NOW, ..params(&[]) });
        assert!(matches!(refused, Err(ProfileError::Encoding { .. })));
        let refused = ca.crl(&CrlParams { this_update: i64::MAX, ..params(&[]) });
        assert!(matches!(refused, Err(ProfileError::Time { .. })));
    }

    proptest::proptest! {
        #[test]
        fn never_panics(bytes in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..300)) {
            let domain = domain_once();
            let _ = Crl::verify(&bytes, domain, NOW);
        }
    }

    fn domain_once() -> &'static [u8] {
        use std::sync::OnceLock;
        static CA: OnceLock<Vec<u8>> = OnceLock::new();
        CA.get_or_init(|| domain().ca(Hierarchy::Tier(Tier::Advanced)).certificate().to_vec())
    }
}
