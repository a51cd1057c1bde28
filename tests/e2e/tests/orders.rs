//! What an operator orders holds at once and at the issuer: whatever a host daemon does, what was ended is
//! revoked, recorded and gets nothing more.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use hallmark_e2e::{Agent, Bed, BedOptions, Host, Proof, Rogue, example, registration, wait_until};
use hallmark_kit::swtpm::Swtpm;
use hallmark_proto::issuer as wire;
use hallmark_proto::issuer::host_link_client::HostLinkClient;

/// A host in the advanced tier, with an agent of each tier registered for the stub.
fn bed() -> Result<(Bed, Host)> {
    let mut bed = Bed::start(BedOptions::default())?;
    let mut host = Host::with_tpm(&bed, "host-1")?;
    host.start(&bed)?;
    let policy = bed.hallmark_ok(&["host", "pcrs", "host-1"])?;
    bed.add_policy(&policy)?;
    bed.apply(&agents(&["foundation", "enterprise", "advanced"], "")?)?;
    Ok((bed, host))
}

fn agents(tiers: &[&str], more: &str) -> Result<String> {
    let program = example("stub_agent")?;
    tiers.iter().map(|tier| registration(&format!("agent-{tier}"), tier, &program, more)).collect()
}

fn json(bed: &Bed, args: &[&str]) -> Result<serde_json::Value> {
    let args: Vec<&str> = args.iter().copied().chain(["--output", "json"]).collect();
    Ok(serde_json::from_str(&bed.hallmark_ok(&args)?)?)
}

fn state_of(bed: &Bed, agent: &str, id: &str) -> Result<String> {
    let shown = json(bed, &["agent", "show", agent])?;
    let instances = shown["instances"].as_array().context("instances")?;
    let found = instances.iter().find(|i| i["instance_id"] == id).context("the instance is not shown")?;
    Ok(found["state"].as_str().unwrap_or_default().to_owned())
}

/// The records of ended instances, newest last.
fn ends(bed: &Bed) -> Result<Vec<serde_json::Value>> {
    let shown = json(bed, &["records", "--limit", "1000"])?;
    let records = shown["records"].as_array().context("records")?;
    Ok(records.iter().filter(|r| r["kind"] == "instance-end").map(|r| r["body"].clone()).collect())
}

/// The serials on a tier's CRL, as OpenSSL reads them.
fn listed(bed: &Bed, tier: &str) -> Result<String> {
    let path = bed.path(&format!("data/public/crl/{tier}-1.crl"));
    let shown = std::process::Command::new("openssl")
        .args(["crl", "-inform", "DER", "-noout", "-text", "-in"])
        .arg(&path)
        .output()?;
    ensure!(shown.status.success(), "openssl cannot read {}", path.display());
    Ok(String::from_utf8_lossy(&shown.stdout).to_lowercase())
}

fn serial_of(dir: &Path, pem: &str) -> Result<String> {
    let file = dir.join("serial-of.pem");
    std::fs::write(&file, pem)?;
    let shown = std::process::Command::new("openssl")
        .args(["x509", "-noout", "-serial", "-in"])
        .arg(&file)
        .output()?;
    let text = String::from_utf8(shown.stdout)?.trim().to_lowercase();
    Ok(text.strip_prefix("serial=").context("no serial")?.to_owned())
}

fn until_listed(bed: &Bed, tier: &str, serial: &str) -> Result<()> {
    wait_until(&format!("{serial} to be on the {tier} list"), || {
        listed(bed, tier).ok()?.contains(serial).then_some(())
    })
}

#[test]
fn a_disabled_host_loses_all_that_runs_on_it_and_gets_nothing_until_it_is_enabled() -> Result<()> {
    let (mut bed, mut host) = bed()?;
    let running: Vec<(&str, Agent)> = ["foundation", "enterprise", "advanced"]
        .into_iter()
        .map(|tier| Ok((tier, Agent::watching(&host, &format!("agent-{tier}"))?)))
        .collect::<Result<_>>()?;
    let shown: Vec<_> = running.iter().map(|(_, agent)| agent.identity()).collect::<Result<_>>()?;

    let unexplained = bed.hallmark(&["host", "disable", "host-1"])?;
    assert!(!unexplained.status.success(), "a host is disabled for a reason");
    let said = json(&bed, &["host", "disable", "host-1", "--reason", "stolen from rack 7"])?;
    assert_eq!(said["ended"].as_array().map(Vec::len), Some(3), "{said}");
    for ((tier, agent), shown) in running.iter().zip(&shown) {
        agent.says("ended").with_context(|| format!("the {tier} agent keeps its identity"))?;
        assert_eq!(state_of(&bed, &format!("agent-{tier}"), &shown.instance)?, "host-disabled");
        if *tier != "foundation" {
            until_listed(&bed, tier, &serial_of(&bed.path(""), &shown.pem())?)?;
        }
    }
    let records = ends(&bed)?;
    assert_eq!(records.len(), 3);
    for record in &records {
        assert_eq!(record["owner"], "team@test.example", "who is accountable is named: {record}");
        assert_eq!(record["reason"], "host-disabled");
        assert!(record["operator"].as_str().is_some_and(|o| o.contains("uid")), "{record}");
    }
    // It is told so, and its agents get nothing.
    let refused = || {
        let log = bed.path("issuer.log");
        std::fs::read_to_string(log).ok()?.contains("stolen from rack 7").then_some(())
    };
    wait_until("the host to be refused by the operator's words", refused)?;
    Agent::watching(&host, "agent-foundation")?.says("ended")?;

    // The order outlives a restart of either.
    bed.kill_issuer()?;
    bed.start_issuer()?;
    let host_1 = json(&bed, &["host", "show", "host-1"])?;
    assert_eq!(
        (host_1["disabled"].as_str(), &host_1["connected"]),
        (Some("stolen from rack 7"), &false.into())
    );
    assert_eq!(host_1["highest_tier"], "none");

    host.kill()?;
    bed.hallmark_ok(&["host", "enable", "host-1"])?;
    host.start(&bed)?;
    Agent::watching(&host, "agent-advanced")?.identity()?;
    Ok(())
}

#[test]
fn a_registration_that_is_removed_or_narrowed_ends_what_no_longer_fits() -> Result<()> {
    let (bed, host) = bed()?;
    let watch = |tier: &str| Agent::watching(&host, &format!("agent-{tier}"));
    let (foundation, enterprise, advanced) = (watch("foundation")?, watch("enterprise")?, watch("advanced")?);
    let (kept, gone, narrowed) = (foundation.identity()?, enterprise.identity()?, advanced.identity()?);

    // enterprise goes, advanced asks for more than was shown, foundation stays as it is.
    let narrow = agents(&["advanced"], "")?.replace("selectors = [", "selectors = [\"unix:gid:64999\", ");
    let file = bed.path("registrations/next.toml");
    std::fs::write(&file, format!("{}{narrow}", agents(&["foundation"], "")?))?;
    bed.hallmark_ok(&["apply", "--prune", &file.display().to_string()])?;
    // It holds by the time the command returns, whatever the host daemon does.
    let ended = ends(&bed)?;
    let reason = |id: &str| ended.iter().find(|r| r["instance"] == id).map(|r| r["reason"].clone());
    assert_eq!(reason(&gone.instance), Some("registration-removed".into()));
    assert_eq!(reason(&narrowed.instance), Some("registration-changed".into()));
    assert_eq!(reason(&kept.instance), None);
    enterprise.says("ended")?;
    advanced.says("ended")?;
    assert_eq!(state_of(&bed, "agent-foundation", &kept.instance)?, "live");
    until_listed(&bed, "enterprise", &serial_of(&bed.path(""), &gone.pem())?)?;
    until_listed(&bed, "advanced", &serial_of(&bed.path(""), &narrowed.pem())?)?;
    Ok(())
}

#[test]
fn every_certificate_of_an_ended_instance_is_listed_not_only_its_newest() -> Result<()> {
    let bed = Bed::start(BedOptions::default())?;
    let mut host = Host::with_tpm(&bed, "host-1")?;
    host.start(&bed)?;
    let mut bed = bed;
    let policy = bed.hallmark_ok(&["host", "pcrs", "host-1"])?;
    bed.add_policy(&policy)?;
    bed.apply(&agents(&["enterprise"], "lifetime = \"30s\"")?)?;
    let agent = Agent::watching(&host, "agent-enterprise")?;
    let first = agent.identity()?;
    let second = agent.identity()?;
    assert_eq!(first.instance, second.instance);
    let said = json(&bed, &["agent", "end", "agent-enterprise", "--instance", &first.instance])?;
    assert_eq!(said["ended"][0], first.instance.as_str());
    for shown in [&first, &second] {
        until_listed(&bed, "enterprise", &serial_of(&bed.path(""), &shown.pem())?)?;
    }
    agent.says("ended")?;
    // What ended stays ended; the agent itself may begin anew.
    assert_eq!(json(&bed, &["agent", "end", "agent-enterprise"])?["ended"].as_array().map(Vec::len), Some(0));
    let anew = Agent::watching(&host, "agent-enterprise")?.identity()?;
    assert_ne!(anew.instance, first.instance);
    Ok(())
}

#[test]
fn a_removed_host_comes_back_by_order_alone_even_with_a_cleared_tpm() -> Result<()> {
    let (bed, mut host) = bed()?;
    let agent = Agent::watching(&host, "agent-advanced")?;
    let shown = agent.identity()?;
    let asked = bed.hallmark(&["host", "remove", "host-1"])?;
    assert!(!asked.status.success(), "it is not removed by a slip");
    let ek = json(&bed, &["host", "show", "host-1"])?["ek_digest"].as_str().context("ek")?.to_owned();
    bed.hallmark_ok(&["host", "remove", "host-1", "--yes"])?;
    agent.says("ended")?;
    assert_eq!(state_of(&bed, "agent-advanced", &shown.instance)?, "host-removed");
    host.kill()?;

    // Its EK certificate alone, which let it in at first, does not let it in again.
    host.spawn(&bed)?;
    wait_until("the removed host to be refused", || {
        let log = std::fs::read_to_string(bed.path("issuer.log")).ok()?;
        log.contains("host host-1 was removed").then_some(())
    })?;
    host.kill()?;
    // Nor does another TPM take its id, allowed or not.
    let other = "ab".repeat(32);
    let taken = bed.hallmark(&["host", "allow", "host-1", "--ek-sha256", &other])?;
    assert!(String::from_utf8_lossy(&taken.stderr).contains("bound to another TPM"));

    // TPM2_Clear sets the clock back, which would be refused if the old clock still counted.
    host.tpm()?.tool("tpm2_clear", ["-c", "p"])?;
    bed.hallmark_ok(&["host", "allow", "host-1", "--ek-sha256", &ek])?;
    host.start(&bed)?;
    Agent::watching(&host, "agent-advanced")?.identity()?;
    Ok(())
}

#[test]
fn an_allow_listed_tpm_counts_as_hardware_by_an_operators_word_alone() -> Result<()> {
    // Production, and a TPM with no certificate at all.
    let mut bed = Bed::start(BedOptions { lab: false, open: false, ..BedOptions::default() })?;
    let mut tpm = Swtpm::blank()?;
    tpm.start()?;
    let mut host = Host::new(&bed, "host-1", Proof::Tpm(tpm))?;
    let ek = host.ek(&bed)?;
    bed.hallmark_ok(&["host", "allow", "host-1", "--ek-sha256", &ek])?;
    host.start(&bed)?;
    let policy = bed.hallmark_ok(&["host", "pcrs", "host-1"])?;
    bed.add_policy(&policy)?;
    let shown = json(&bed, &["host", "show", "host-1"])?;
    assert_eq!((&shown["highest_tier"], &shown["ek_trust"]), (&"foundation".into(), &"allow-list".into()));
    assert!(shown["unmet"].to_string().contains("--vouch-hardware"), "the remedy is not named: {shown}");
    bed.apply(&agents(&["enterprise"], "")?)?;
    let refused = Agent::watching(&host, "agent-enterprise")?.says("ended")?;
    assert!(refused.contains("hardware-tpm"), "{refused}");

    // The word is given, recorded with whoever gave it, and counts at once; taken back, it ends what it carried.
    bed.hallmark_ok(&["host", "allow", "host-1", "--ek-sha256", &ek, "--vouch-hardware", "--note", "seen"])?;
    let shown = json(&bed, &["host", "show", "host-1"])?;
    assert_eq!((&shown["highest_tier"], &shown["ek_trust"]), (&"advanced".into(), &"vouched".into()));
    let records = json(&bed, &["records", "--limit", "1000"])?["records"].to_string();
    assert!(records.contains("ek-allowed-as-hardware") && records.contains("seen"));
    let agent = Agent::watching(&host, "agent-enterprise")?;
    assert_eq!(agent.identity()?.tier, "enterprise");
    bed.hallmark_ok(&["host", "allow", "host-1", "--ek-sha256", &ek])?;
    assert_eq!(ends(&bed)?.len(), 1);
    assert_eq!(json(&bed, &["host", "show", "host-1"])?["highest_tier"], "foundation");
    agent.says("ended")?;

    let long = "x".repeat(201);
    let refused = bed.hallmark(&["host", "allow", "host-1", "--ek-sha256", &ek, "--note", &long])?;
    assert!(String::from_utf8_lossy(&refused.stderr).contains("at most 200 bytes"), "{refused:?}");

    // A disabled host does not keep the word that it has.
    bed.hallmark_ok(&["host", "allow", "host-1", "--ek-sha256", &ek, "--vouch-hardware"])?;
    bed.hallmark_ok(&["host", "disable", "host-1", "--reason", "looked at"])?;
    bed.hallmark_ok(&["host", "allow", "host-1", "--ek-sha256", &ek])?;
    let shown = json(&bed, &["host", "show", "host-1"])?;
    assert_eq!((&shown["ek_trust"], &shown["disabled"]), (&"allow-list".into(), &"looked at".into()));
    Ok(())
}

#[test]
fn no_word_makes_hardware_of_a_tpm_that_says_it_is_software() -> Result<()> {
    // Its certificate leads to a root of software TPMs.
    let mut bed = Bed::start(BedOptions { lab: false, open: false, ..BedOptions::default() })?;
    let mut host = Host::with_tpm(&bed, "host-1")?;
    let ek = host.ek(&bed)?;
    bed.hallmark_ok(&["host", "allow", "host-1", "--ek-sha256", &ek, "--vouch-hardware"])?;
    host.start(&bed)?;
    let policy = bed.hallmark_ok(&["host", "pcrs", "host-1"])?;
    bed.add_policy(&policy)?;
    let shown = json(&bed, &["host", "show", "host-1"])?;
    assert_eq!((&shown["highest_tier"], &shown["simulated"]), (&"foundation".into(), &true.into()));
    // Once shown, it is so for ever, whatever certificate it shows later, or none.
    let again = bed.hallmark(&["host", "allow", "host-1", "--ek-sha256", &ek, "--vouch-hardware"])?;
    assert!(String::from_utf8_lossy(&again.stderr).contains("software TPM"));
    bed.hallmark_ok(&["host", "remove", "host-1", "--yes"])?;
    let again = bed.hallmark(&["host", "allow", "host-1", "--ek-sha256", &ek, "--vouch-hardware"])?;
    assert!(!again.status.success(), "not even after its removal");
    Ok(())
}

#[test]
fn a_stricter_pcr_policy_ends_what_was_issued_under_the_old_one() -> Result<()> {
    let (mut bed, host) = bed()?;
    let watch = |tier: &str| Agent::watching(&host, &format!("agent-{tier}"));
    let (foundation, enterprise, advanced) = (watch("foundation")?, watch("enterprise")?, watch("advanced")?);
    let (kept, lost, lost_too) = (foundation.identity()?, enterprise.identity()?, advanced.identity()?);
    bed.clear_policies()?;
    for (tier, shown) in [("enterprise", &lost), ("advanced", &lost_too)] {
        wait_until(&format!("the {tier} instance to end"), || {
            (state_of(&bed, &format!("agent-{tier}"), &shown.instance).ok()? == "host-standing").then_some(())
        })?;
        until_listed(&bed, tier, &serial_of(&bed.path(""), &shown.pem())?)?;
    }
    enterprise.says("ended")?;
    advanced.says("ended")?;
    assert_eq!(state_of(&bed, "agent-foundation", &kept.instance)?, "live");
    Ok(())
}

/// Whether the issuer lets this host follow it.
async fn follows(bed: &Bed, host: &Rogue) -> Result<Result<(), tonic::Code>> {
    let mut client = HostLinkClient::new(host.connection(bed)?);
    let answer = client.watch(wire::WatchRequest { have_revision: 0 }).await;
    Ok(answer.map(drop).map_err(|status| status.code()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_hosts_old_credential_is_dead_though_the_host_enrols_anew() -> Result<()> {
    let mut bed = Bed::start(BedOptions::default())?;
    let stolen = Rogue::joined(&bed, "web-01").await?;
    assert_eq!(follows(&bed, &stolen).await?, Ok(()));
    bed.hallmark_ok(&["host", "remove", "web-01", "--yes"])?;
    assert_eq!(follows(&bed, &stolen).await?, Err(tonic::Code::Unauthenticated));
    let anew = Rogue::joined(&bed, "web-01").await?;
    for restarted in [false, true] {
        if restarted {
            bed.stop_issuer()?;
            bed.start_issuer()?;
        }
        assert_eq!(follows(&bed, &stolen).await?, Err(tonic::Code::Unauthenticated), "{restarted}");
        assert_eq!(follows(&bed, &anew).await?, Ok(()), "{restarted}");
    }
    Ok(())
}
