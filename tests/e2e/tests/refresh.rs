//! The advanced tier lives by fresh quotes: while the host stays as it was, renewals go on; once a PCR has
//! changed, they end, and a key bound to that PCR signs no more.

use std::path::Path;

use anyhow::{Context, Result, ensure};
use hallmark_e2e::{Agent, Bed, BedOptions, Host, example, registration, wait_until};

/// A host in the advanced tier, whose quotes count for a quarter of a minute, with this registration.
fn short_quotes(more: &str) -> Result<(Bed, Host)> {
    let attestation = "max_age = \"15s\"".to_owned();
    let mut bed = Bed::start(BedOptions { attestation, ..BedOptions::default() })?;
    let mut host = Host::with_tpm(&bed, "host-1")?;
    host.start(&bed)?;
    let policy = bed.hallmark_ok(&["host", "pcrs", "host-1"])?;
    bed.add_policy(&policy)?;
    bed.apply(&registration("vault", "advanced", &example("stub_agent")?, more)?)?;
    Ok((bed, host))
}

/// How often the issuer has accepted a fresh quote.
fn quotes(bed: &mut Bed) -> Result<usize> {
    Ok(bed.issuer()?.log().matches("quote accepted").count())
}

fn tier_of(bed: &Bed, host: &str) -> Option<String> {
    let out = bed.hallmark_ok(&["host", "show", host, "--output", "json"]).ok()?;
    let json: serde_json::Value = serde_json::from_str(&out).ok()?;
    Some(json["highest_tier"].as_str()?.to_owned())
}

/// Whether OpenSSL finds `signature` (hex, DER) over `message` good under the leaf's key.
fn verifies(dir: &Path, chain: &str, message: &[u8], signature: &str) -> Result<bool> {
    let file = |name: &str| dir.join(name).display().to_string();
    std::fs::write(file("chain.pem"), chain)?;
    std::fs::write(file("message"), message)?;
    std::fs::write(file("signature"), hex::decode(signature)?)?;
    let openssl =
        |args: &[&str]| std::process::Command::new("openssl").args(args).output().context("openssl");
    let key = openssl(&["x509", "-in", &file("chain.pem"), "-noout", "-pubkey"])?;
    std::fs::write(file("key.pem"), key.stdout)?;
    let verdict = openssl(&[
        "dgst",
        "-sha256",
        "-verify",
        &file("key.pem"),
        "-signature",
        &file("signature"),
        &file("message"),
    ])?;
    Ok(verdict.status.success())
}

#[test]
fn renewals_go_on_with_fresh_quotes_and_end_when_a_pcr_changes() -> Result<()> {
    let (mut bed, mut host) = short_quotes("lifetime = \"30s\"")?;
    let mut agent = Agent::watching(&host, "vault")?;
    let mut shown = agent.identity()?;
    assert_eq!((shown.tier.as_str(), shown.custody.as_str()), ("advanced", "simulated"));
    let began = quotes(&mut bed)?;
    for renewal in 1..=3 {
        let next = agent.identity().with_context(|| format!("renewal {renewal}"))?;
        assert!(next.not_after > shown.not_after, "renewal {renewal} ends no later");
        // The key stays in the TPM for the life of the instance; only its certificate is new.
        assert_eq!((&next.instance, &next.handle), (&shown.instance, &shown.handle));
        assert_ne!(next.chain, shown.chain);
        // Each renewal of 30 s comes 15 s or more after the last: no quote of 15 s lasts for two.
        ensure!(quotes(&mut bed)? >= began + renewal, "renewal {renewal} without a fresh quote");
        shown = next;
    }
    assert_eq!(tier_of(&bed, "host-1").as_deref(), Some("advanced"));

    host.tpm()?.extend(7, &[7; 32])?;
    // The renewal that comes next is refused for exactly that, and the agent is told.
    let end = agent.says("ended")?;
    assert!(end.contains("pcr-policy") && end.contains("PCR 7"), "{end}");
    assert!(bed.issuer()?.log().contains("quote accepted"), "the quote itself is a good one");
    assert_eq!(tier_of(&bed, "host-1").as_deref(), Some("foundation"));
    agent.tell("whoami")?;
    let host_state = agent.says("whoami")?;
    assert!(host_state.contains("highest=foundation") && host_state.contains("pcr-policy"), "{host_state}");
    // The key went with the instance.
    let handle = shown.handle.context("a handle")?;
    agent.tell(&format!("sign {handle} {}", "07".repeat(32)))?;
    assert!(agent.says("refused")?.starts_with("PermissionDenied"));
    let again = Agent::watching(&host, "vault")?.says("ended")?;
    assert!(again.contains("pcr-policy"), "{again}");
    Ok(())
}

#[test]
fn a_key_bound_to_a_pcr_refuses_to_sign_once_it_has_changed() -> Result<()> {
    let message = b"hallmark";
    let (mut bed, mut host) = short_quotes("key = { custody = \"tpm-certified\", bind_pcrs = [7] }")?;
    let digest = hallmark_digest(message, &bed.path("message"))?;
    let mut agent = Agent::watching(&host, "vault")?;
    let shown = agent.identity()?;
    let handle = shown.handle.clone().context("a handle")?;
    let sign = format!("sign {handle} {digest}");

    agent.tell(&sign)?;
    let signature = agent.says("signed")?;
    assert!(verifies(bed.path("").as_path(), &shown.pem(), message, &signature)?);
    // A PCR that the key is not bound to may change.
    host.tpm()?.extend(16, &[1; 32])?;
    agent.tell(&sign)?;
    agent.says("signed")?;

    host.tpm()?.extend(7, &[7; 32])?;
    agent.tell(&sign)?;
    let refused = agent.says("refused")?;
    assert!(refused.contains("PCR"), "the refusal does not say why: {refused}");
    // The daemon tries to replace the lost key; in this state there is no new one to be had.
    let end = agent.says("ended")?;
    assert!(end.contains("pcr-policy"), "{end}");
    wait_until("the host's tier to fall", || (tier_of(&bed, "host-1")? == "foundation").then_some(()))?;
    assert!(bed.issuer()?.is_alive());
    Ok(())
}

fn hallmark_digest(message: &[u8], file: &Path) -> Result<String> {
    std::fs::write(file, message)?;
    hallmark_e2e::sha256_file(file)
}
