//! Requests, chains, lists and the AgentInfo extension: DER from hosts and peers.

use std::sync::LazyLock;
use std::time::Duration;

use hallmark_core::tier::Tier;
use hallmark_core::x509::{AgentInfo, Crl, Csr, Demand, TierRoots, Usage, verify_chain};
use rustls_pki_types::{CertificateDer, UnixTime};

use super::parts::split;

/// When the seeds were good: 2027-01-15T08:00:00Z.
pub const NOW: i64 = 1_800_000_000;

const CSRS: &[&[u8]] = &[include_bytes!("../seeds/csr/p256"), include_bytes!("../seeds/csr/p384")];
const CHAINS: &[&[u8]] = &[
    include_bytes!("../seeds/chain/foundation"),
    include_bytes!("../seeds/chain/enterprise"),
    include_bytes!("../seeds/chain/advanced"),
];
const CRLS: &[&[u8]] = &[include_bytes!("../seeds/crl/empty"), include_bytes!("../seeds/crl/two")];
const ROOTS: &[u8] = include_bytes!("../fixtures/roots");
const ISSUING: &[u8] = include_bytes!("../fixtures/issuing");

/// A request is accepted only as its key signed it.
pub fn csr(data: &[u8]) -> bool {
    let Ok(csr) = Csr::parse(data) else { return false };
    assert!(!csr.spki_der().is_empty());
    assert!(CSRS.contains(&data), "a request that no key signed was accepted");
    true
}

/// AgentInfo has one encoding for each value.
pub fn agent_info(data: &[u8]) -> bool {
    let Ok(info) = AgentInfo::decode(data) else { return false };
    assert_eq!(info.encode().as_deref(), Ok(data));
    true
}

/// A chain (leaf, issuing CA) is accepted only as it was issued, byte for byte.
pub fn chain(data: &[u8]) -> bool {
    static TRUSTED: LazyLock<TierRoots> = LazyLock::new(|| {
        let ders = split::<3>(ROOTS).expect("three roots");
        let mut roots = TierRoots::new("example.org".parse().expect("a trust domain"));
        for (tier, der) in Tier::ALL.into_iter().zip(ders) {
            roots.add(tier, der).expect("a root");
        }
        roots
    });
    let Some([leaf, ca]) = split(data) else { return false };
    let demand = Demand {
        usage: Usage::Client,
        now: UnixTime::since_unix_epoch(Duration::from_secs(NOW.unsigned_abs())),
        accept_simulated: false,
    };
    if verify_chain(&[CertificateDer::from(leaf), CertificateDer::from(ca)], &TRUSTED, &demand).is_err() {
        return false;
    }
    assert!(CHAINS.contains(&data), "a chain that was not issued was accepted");
    true
}

/// A list is accepted only as its CA signed it.
pub fn crl(data: &[u8]) -> bool {
    if Crl::verify(data, ISSUING, NOW).is_err() {
        return false;
    }
    assert!(CRLS.contains(&data), "a list that its CA did not sign was accepted");
    true
}
