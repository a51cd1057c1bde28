//! What each TPM operation costs, in milliseconds, as JSON.
//!
//! `tpm_ops` starts a software TPM of its own; `tpm_ops device:/dev/tpmrm0 [ROUNDS]` measures the TPM at that TCTI.

use anyhow::Result;
use hallmark_core::tpm::{Public, make_credential};
use hallmark_kit::swtpm::{EkProfile, Swtpm, SwtpmCa};
use hallmark_tpm::{EkAlgorithm, HOST, KeySpec, Tpm, TpmConfig};
use rand_core::OsRng;
use serde_json::{Map, Value, json};
use std::time::Instant;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let tcti = arguments.next();
    let rounds = arguments.next().map_or(Ok(20), |text| text.parse())?;
    let dir = tempfile::tempdir()?;
    let mut swtpm = None;
    let tcti = match tcti {
        Some(tcti) => tcti,
        None => {
            let ca = SwtpmCa::new(dir.path().join("ca"))?;
            let own = Swtpm::started(&ca, "ops")?;
            own.add_p256_ek(&ca, &EkProfile::default())?;
            swtpm.insert(own).tcti()
        }
    };
    let report = measure(&tcti, rounds).await?;
    println!("{}", serde_json::to_string_pretty(&report)?);
    Ok(())
}

async fn measure(tcti: &str, rounds: usize) -> Result<Value> {
    let mut ops = Map::new();
    let start = Instant::now();
    let tpm = Tpm::open(TpmConfig::new(tcti)).await?;
    ops.insert("open".into(), summary(vec![milliseconds(start)]));
    let properties = tpm.properties().await?;

    let free = tpm.create_key(&KeySpec::default(), HOST).await?;
    let bound = tpm.create_key(&KeySpec { policy_pcrs: vec![7] }, HOST).await?;
    ops.insert(
        "create".into(),
        timed(rounds, async || tpm.create_key(&KeySpec::default(), HOST).await).await?,
    );
    ops.insert("certify".into(), timed(rounds, async || tpm.certify(&free, [0; 32], HOST).await).await?);
    let spec = KeySpec::default();
    ops.insert(
        "certified_key".into(),
        timed(rounds, async || tpm.certified_key(&spec, [0; 32], HOST).await).await?,
    );
    ops.insert("sign".into(), timed(rounds, async || tpm.sign(&free, [7; 32], HOST).await).await?);
    ops.insert("sign_pcr_bound".into(), timed(rounds, async || tpm.sign(&bound, [7; 32], HOST).await).await?);
    let pcrs: Vec<u8> = (0..8).collect();
    ops.insert("quote".into(), timed(rounds, async || tpm.quote([7; 32], &pcrs).await).await?);
    ops.insert("pcrs".into(), timed(rounds, async || tpm.pcrs(&pcrs).await).await?);
    drop(tpm);

    for (name, ek) in
        [("p256", EkAlgorithm::EccP256), ("p384", EkAlgorithm::EccP384), ("rsa2048", EkAlgorithm::Rsa2048)]
    {
        let tpm = Tpm::open(TpmConfig { ek: Some(ek), ..TpmConfig::new(tcti) }).await?;
        let start = Instant::now();
        let host = tpm.identity().await?;
        ops.insert(format!("identity_first_{name}"), summary(vec![milliseconds(start)]));
        let (ek, ak) = (Public::parse(&host.ek_public)?, Public::parse(&host.ak_public)?);
        let credential = make_credential(&ek, ak.name(), &[7; 32], &mut OsRng)?;
        let activate =
            async || tpm.activate_credential(&credential.id_object, &credential.encrypted_secret).await;
        ops.insert(format!("activate_{name}"), timed(rounds, activate).await?);
    }
    let tpm = json!({ "manufacturer": properties.manufacturer, "vendor": properties.vendor, "tcti": tcti });
    Ok(json!({ "tpm": tpm, "unit": "ms", "ops": ops }))
}

async fn timed<T, E>(rounds: usize, work: impl AsyncFn() -> Result<T, E>) -> Result<Value>
where
    E: std::error::Error + Send + Sync + 'static,
{
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let start = Instant::now();
        work().await?;
        times.push(milliseconds(start));
    }
    Ok(summary(times))
}

fn milliseconds(start: Instant) -> f64 {
    start.elapsed().as_secs_f64() * 1e3
}

fn summary(mut times: Vec<f64>) -> Value {
    times.sort_by(f64::total_cmp);
    let round = |value: f64| (value * 100.0).round() / 100.0;
    let at =
        |share: f64| times.get(((times.len() as f64 - 1.0) * share).round() as usize).copied().unwrap_or(0.0);
    json!({ "p50": round(at(0.5)), "p95": round(at(0.95)), "n": times.len() })
}
