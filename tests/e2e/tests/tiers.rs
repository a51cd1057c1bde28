//! The main job, end to end: a host proves itself by its TPM, agents on it get credentials at the three
//! tiers, and what must be refused is refused.

use std::time::Duration;

use anyhow::Result;
use hallmark_client::{Custody, HallmarkClient, Identity, Tier};
use hallmark_e2e::{Bed, BedOptions, Host};

const PATIENCE: Duration = Duration::from_secs(60);

/// Registrations for this very process, at each tier.
fn registrations() -> Result<String> {
    let uid = rustix::process::getuid().as_raw();
    let exe = std::env::current_exe()?;
    let digest = sha256_file(&exe)?;
    let mut toml = String::new();
    for tier in Tier::ALL {
        toml.push_str(&format!(
            "[[agent]]\nname = \"agent-{tier}\"\nowner = \"team@test.example\"\ntier = \"{tier}\"\nhosts = [\"host-*\"]\n\
             selectors = [\"unix:uid:{uid}\", \"exe:sha256:{digest}\"]\n\n"
        ));
    }
    Ok(toml)
}

fn sha256_file(path: &std::path::Path) -> Result<String> {
    let output = std::process::Command::new("sha256sum").arg(path).output()?;
    Ok(String::from_utf8(output.stdout)?[..64].to_owned())
}

async fn identity(host: &Host, agent: &str) -> Result<std::sync::Arc<Identity>> {
    let client = HallmarkClient::connect_to(host.socket()).await?;
    let mut source = client.watch_as(agent)?;
    Ok(source.wait_ready(PATIENCE).await?)
}

#[tokio::test(flavor = "multi_thread")]
async fn three_tiers_on_a_tpm_host() -> Result<()> {
    let mut bed = Bed::start(BedOptions::default())?;
    let mut host = Host::with_tpm(&bed, "host-1")?;
    host.start(&bed)?;
    bed.apply(&registrations()?)?;

    let foundation = identity(&host, "agent-foundation").await?;
    assert_eq!((foundation.tier, foundation.custody), (Tier::Foundation, Custody::Software));
    assert!(foundation.private_key_pkcs8().is_some());

    // Without a PCR policy that names the host, enterprise and advanced are refused.
    let client = HallmarkClient::connect_to(host.socket()).await?;
    let refused = client.identity("agent-enterprise").await.unwrap_err().to_string();
    assert!(refused.contains("pcr-policy"), "{refused}");

    let policy = bed.hallmark_ok(&["host", "pcrs", "host-1"])?;
    bed.add_policy(&policy)?;
    let enterprise = identity(&host, "agent-enterprise").await?;
    assert_eq!((enterprise.tier, enterprise.custody), (Tier::Enterprise, Custody::Software));

    let advanced = identity(&host, "agent-advanced").await?;
    assert_eq!((advanced.tier, advanced.custody), (Tier::Advanced, Custody::Simulated));
    assert!(advanced.private_key_pkcs8().is_none(), "a hardware-held key was handed out");
    assert!(advanced.key_handle().is_some());
    Ok(())
}
