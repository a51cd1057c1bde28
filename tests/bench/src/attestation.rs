//! Attestation of hosts by software TPMs, each on a connection of its own, as a host that starts does it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use anyhow::{Context, Result};
use futures::future::try_join_all;
use hallmark_core::evidence;
use hallmark_core::tpm::Public;
use hallmark_e2e::{Bed, Rogue, csr};
use hallmark_kit::swtpm::{EkProfile, Swtpm};
use hallmark_proto::issuer as wire;
use hallmark_tpm::{Certification, EkAlgorithm, HOST, HostTpm, KeySpec, Tpm, TpmConfig, TpmKey};
use rcgen::{PKCS_ECDSA_P256_SHA256, PublicKeyData, SignatureAlgorithm, SigningKey};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::process::{self, quantile, round};
use crate::report::Report;

/// TPMs at work at once.
const TPMS: usize = 4;
const ATTESTATIONS: usize = 600;

const EKS: [(&str, EkAlgorithm); 3] =
    [("p256", EkAlgorithm::EccP256), ("p384", EkAlgorithm::EccP384), ("rsa2048", EkAlgorithm::Rsa2048)];

/// The EK whose cost stands for all: the most widespread.
const USUAL: &str = "rsa2048";

pub(crate) async fn measure(bed: &mut Bed, scale: usize, report: &mut Report) -> Result<()> {
    let tpms = (0..TPMS)
        .map(|n| {
            let tpm = Swtpm::started(bed.tpm_ca(), &format!("host-{n}"))?;
            tpm.add_p256_ek(bed.tpm_ca(), &EkProfile::default())?;
            Ok(tpm)
        })
        .collect::<Result<Vec<_>>>()?;
    for (name, algorithm) in EKS {
        let mut hosts = Vec::new();
        for (n, tpm) in tpms.iter().enumerate() {
            let config = TpmConfig { ek: Some(algorithm), ..TpmConfig::new(tpm.tcti()) };
            hosts.push(Attester::new(bed, &format!("{name}-{n}"), config).await?);
        }
        let measured = run(bed, hosts, ATTESTATIONS / scale).await?;
        let [cpu_us, per_s, p50, p99] = measured;
        let beside = format!("{per_s:.0}/s with {TPMS} TPMs, theirs the limit; p50 {p50} ms, p99 {p99} ms");
        report.row(&format!("attestation, EK {name}"), cpu_us, "CPU us", &beside);
        let numbers = json!({
            "cpu_us": round(cpu_us), "per_s": round(per_s), "per_s_and_core": round(1e6 / cpu_us),
            "p50_ms": p50, "p99_ms": p99, "n": ATTESTATIONS / scale,
        });
        report.set(&format!("attestation.{name}"), numbers);
        if name == USUAL {
            report.set("attestation.cpu_us", round(cpu_us));
            report.set("attestation.per_s", round(per_s));
        }
    }
    Ok(())
}

/// Issuer CPU microseconds each, attestations a second, and the latency's median and 99th percentile.
async fn run(bed: &mut Bed, hosts: Vec<Attester>, rounds: usize) -> Result<[f64; 4]> {
    let pid = bed.issuer()?.pid();
    // The first of each host enrols it.
    for host in &hosts {
        host.attest(Rogue::new(bed)?).await?;
    }
    let mut strangers = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        strangers.push(Rogue::new(bed)?);
    }
    let strangers = Arc::new(std::sync::Mutex::new(strangers));
    let done = Arc::new(AtomicUsize::new(0));
    let (cpu, start) = (process::cpu(pid)?, Instant::now());
    let workers = hosts.into_iter().map(|host| {
        let (strangers, done) = (strangers.clone(), done.clone());
        tokio::spawn(async move {
            let mut times = Vec::new();
            loop {
                let next = strangers.lock().map_or(None, |mut all| all.pop());
                let Some(stranger) = next else { return Ok::<_, anyhow::Error>(times) };
                let start = Instant::now();
                host.attest(stranger).await?;
                times.push(start.elapsed().as_secs_f64() * 1e3);
                done.fetch_add(1, Ordering::Relaxed);
            }
        })
    });
    let mut times = Vec::new();
    for worker in try_join_all(workers).await? {
        times.extend(worker?);
    }
    let (wall, cpu) = (start.elapsed(), process::cpu(pid)? - cpu);
    let n = done.load(Ordering::Relaxed) as f64;
    times.sort_by(f64::total_cmp);
    let cpu_us = cpu.as_secs_f64() * 1e6 / n;
    Ok([cpu_us, n / wall.as_secs_f64(), quantile(&times, 0.5), quantile(&times, 0.99)])
}

/// A host that attests by its TPM: the same AK, host key and request each time, a new quote each time.
struct Attester {
    host_id: String,
    tpm: Tpm,
    identity: HostTpm,
    ak: Public,
    certification: Certification,
    csr: Vec<u8>,
}

impl Attester {
    async fn new(bed: &Bed, host_id: &str, config: TpmConfig) -> Result<Self> {
        let tpm = Tpm::open(config).await?;
        let identity = tpm.identity().await?;
        let ak = Public::parse(&identity.ak_public)?;
        let (key, certification) = tpm.certified_key(&KeySpec::default(), [0; 32], HOST).await?;
        let uri = format!("spiffe://{}/host/{host_id}", bed.trust_domain());
        let (signer, runtime) = (tpm.clone(), tokio::runtime::Handle::current());
        let csr = tokio::task::spawn_blocking(move || {
            csr(&TpmSigner { point: point(&key).to_vec(), tpm: signer, key, runtime }, Some(&uri))
        })
        .await?;
        Ok(Self { host_id: host_id.to_owned(), tpm, identity, ak, certification, csr })
    }

    async fn attest(&self, stranger: Rogue) -> Result<()> {
        let tpm = wire::TpmHello {
            ek_certificates: self.identity.ek_certificates.iter().cloned().map(Into::into).collect(),
            ek_public: self.identity.ek_public.clone().into(),
            ak_public: self.identity.ak_public.clone().into(),
        };
        let proof = Some(wire::host_hello::Proof::Tpm(tpm));
        let hello = wire::HostHello { host_id: self.host_id.clone(), proof, version: "bench".to_owned() };
        let challenged = stranger.challenged(hello).await?;
        let evidence = self.evidence(&challenged.challenge).await?;
        challenged.show(evidence).await?;
        Ok(())
    }

    async fn evidence(&self, challenge: &wire::Challenge) -> Result<wire::HostEvidence> {
        let secret =
            self.tpm.activate_credential(&challenge.credential_blob, &challenge.encrypted_secret).await?;
        let nonce: [u8; 32] = challenge.nonce.as_ref().try_into().context("the nonce has not 32 bytes")?;
        let pcrs: Vec<u8> = challenge.pcrs.iter().map(|p| u8::try_from(*p)).collect::<Result<_, _>>()?;
        let qualifying = evidence::transcript(&nonce, self.ak.name(), &self.csr);
        let quote = self.tpm.quote(qualifying, &pcrs).await?;
        let value = |(index, sha256): hallmark_tpm::PcrValue| wire::PcrValue {
            index: u32::from(index),
            sha256: sha256.to_vec().into(),
        };
        Ok(wire::HostEvidence {
            csr: self.csr.clone().into(),
            tpm: Some(wire::TpmEvidence {
                activated_secret: secret.to_vec().into(),
                quote: Some(wire::Quote {
                    attest: quote.attest.into(),
                    signature: quote.signature.into(),
                    pcrs: quote.pcrs.into_iter().map(value).collect(),
                    event_log: Vec::new().into(),
                }),
                host_key: Some(wire::KeyCertification {
                    public: self.certification.public.clone().into(),
                    attest: self.certification.attest.clone().into(),
                    signature: self.certification.signature.clone().into(),
                }),
            }),
        })
    }
}

/// A P-256 key's uncompressed point: the end of its SubjectPublicKeyInfo (RFC 5480 section 2).
fn point(key: &TpmKey) -> &[u8] {
    let spki = key.spki_der();
    &spki[spki.len().saturating_sub(65)..]
}

struct TpmSigner {
    point: Vec<u8>,
    tpm: Tpm,
    key: TpmKey,
    runtime: tokio::runtime::Handle,
}

impl PublicKeyData for TpmSigner {
    fn der_bytes(&self) -> &[u8] {
        &self.point
    }
    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ECDSA_P256_SHA256
    }
}

impl SigningKey for TpmSigner {
    fn sign(&self, message: &[u8]) -> Result<Vec<u8>, rcgen::Error> {
        let signing = self.tpm.sign(&self.key, Sha256::digest(message).into(), HOST);
        self.runtime.block_on(signing).map_err(|_| rcgen::Error::RemoteKeyError)
    }
}
