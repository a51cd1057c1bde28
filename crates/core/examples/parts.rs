//! What the parts of one issuance cost, in CPU microseconds of one thread, as JSON: the yardstick that
//! `scripts/bench` holds the whole issuance against. Build it with `--release`.
//!
//! P-256 throughout, the CA key in memory. `verify`, `sign` and `build` are the bare parts; the others are
//! this crate's functions made of them.

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use hallmark_core::id::{InstanceId, SpiffeId, TrustDomain};
use hallmark_core::tier::{Custody, Hierarchy, Tier};
use hallmark_core::x509::{
    AgentInfo, AgentLeaf, CaKey, CaParams, Csr, Curve, Demand, IssuingCa, KeyError, LeafParams, OidArc,
    PublicKey, Serial, SoftwareCaKey, TierRoots, Usage, issuing, root, verify_chain,
};
use rustls_pki_types::UnixTime;

const NOW: i64 = 1_800_000_000;
const ROUNDS: u32 = 400;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Fallible<()> {
    let domain = Domain::new()?;
    let subject = rcgen::KeyPair::generate()?;
    let csr = rcgen::CertificateParams::default().serialize_request(&subject)?.der().to_vec();
    let spki = Csr::parse(&csr)?.spki_der().to_vec();
    let public = PublicKey::from_spki_der(domain.key.spki_der())?;
    let message = [7; 600];
    let signature = domain.key.sign(&message)?;
    let leaf = domain.leaf(&domain.ca, &spki)?;
    let chain = [leaf.clone().into(), domain.ca.certificate().clone()];
    let demand = Demand {
        usage: Usage::Client,
        now: UnixTime::since_unix_epoch(Duration::from_secs(u64::try_from(NOW)?)),
        accept_simulated: false,
    };
    verify_chain(&chain, &domain.roots, &demand)?;

    let verify = cpu_us(|| public.verifies(&message, &signature));
    let sign = cpu_us(|| domain.key.sign(&message));
    // The same CA with a key that signs at no cost.
    let build = cpu_us(|| domain.leaf(&domain.unsigned, &spki));
    let json = serde_json::json!({
        "verify_us": verify,
        "sign_us": sign,
        "build_us": build,
        "parts_us": rounded(verify + sign + build),
        "csr_parse_us": cpu_us(|| Csr::parse(&csr)),
        "public_key_us": cpu_us(|| PublicKey::from_spki_der(&spki)),
        "leaf_us": cpu_us(|| domain.leaf(&domain.ca, &spki)),
        "check_us": cpu_us(|| domain.ca.check(&leaf)),
        "verify_chain_us": cpu_us(|| verify_chain(&chain, &domain.roots, &demand)),
        "leaf_bytes": leaf.len(),
    });
    println!("{json:#}");
    Ok(())
}

struct Domain {
    trust_domain: TrustDomain,
    key: Arc<SoftwareCaKey>,
    ca: IssuingCa,
    unsigned: IssuingCa,
    roots: TierRoots,
}

/// Says a valid-looking signature without making one.
struct Free(Arc<SoftwareCaKey>, Vec<u8>);

impl CaKey for Free {
    fn spki_der(&self) -> &[u8] {
        self.0.spki_der()
    }
    fn curve(&self) -> Curve {
        self.0.curve()
    }
    fn sign(&self, _: &[u8]) -> Result<Vec<u8>, KeyError> {
        Ok(self.1.clone())
    }
}

impl Domain {
    fn new() -> Fallible<Self> {
        let trust_domain: TrustDomain = "example.org".parse()?;
        let arc = OidArc::documentation();
        let (root_key, key) = (new_key()?, Arc::new(new_key()?));
        let params = |n| CaParams {
            trust_domain: &trust_domain,
            hierarchy: Hierarchy::Tier(Tier::Enterprise),
            lab: false,
            arc: &arc,
            serial: Serial::from_random([n; 16]),
            now: NOW,
            lifetime: Duration::from_secs(86_400 * 365),
        };
        let root_der = root(&params(1), &root_key)?;
        let ca_der = issuing(&params(2), key.spki_der(), &root_der, &root_key)?;
        let mut roots = TierRoots::new(trust_domain.clone());
        roots.add(Tier::Enterprise, &root_der)?;
        let ca = IssuingCa::new(&ca_der, key.clone())?;
        let unsigned = IssuingCa::new(&ca_der, Arc::new(Free(key.clone(), key.sign(b"")?)))?;
        Ok(Self { trust_domain, key, ca, unsigned, roots })
    }

    fn leaf(&self, ca: &IssuingCa, spki: &[u8]) -> Fallible<Vec<u8>> {
        let spiffe_id: SpiffeId = format!("spiffe://{}/agent/mailer", self.trust_domain).parse()?;
        let info = AgentInfo {
            version: AgentInfo::VERSION,
            tier: Tier::Enterprise,
            custody: Custody::Software,
            owner_id: [1; 16],
            attested_at: NOW - 5,
            evidence_digest: [2; 32],
            task: None,
            delegation: None,
        };
        let leaf = ca.leaf(&LeafParams {
            spiffe_id: &spiffe_id,
            spki_der: spki,
            dns_names: &[],
            serial: Serial::from_random([3; 16]),
            now: NOW,
            lifetime: Duration::from_secs(1800),
            agent: Some(AgentLeaf { instance: InstanceId::from_bytes([4; 16]), info: &info }),
        })?;
        Ok(leaf.der.to_vec())
    }
}

fn new_key() -> Fallible<SoftwareCaKey> {
    Ok(SoftwareCaKey::from_pkcs8(rcgen::KeyPair::generate()?.serialized_der())?)
}

/// The median over five runs of the CPU time of one call. CPU and not wall time: others may be using the
/// machine.
fn cpu_us<T>(mut call: impl FnMut() -> T) -> f64 {
    let mut runs = Vec::new();
    for _ in 0..5 {
        let begin = thread_cpu_ns();
        for _ in 0..ROUNDS {
            black_box(call());
        }
        runs.push((thread_cpu_ns() - begin) / f64::from(ROUNDS) / 1000.0);
    }
    runs.sort_by(f64::total_cmp);
    rounded(runs[2])
}

fn rounded(us: f64) -> f64 {
    (us * 10.0).round() / 10.0
}

/// Nanoseconds this thread has run.
fn thread_cpu_ns() -> f64 {
    let time = rustix::time::clock_gettime(rustix::time::ClockId::ThreadCPUTime);
    Duration::new(u64::try_from(time.tv_sec).unwrap_or(0), u32::try_from(time.tv_nsec).unwrap_or(0))
        .as_nanos() as f64
}
