//! Either daemon ends and comes back, in good order or not: nothing is lost, and no agent is left without
//! its identity.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hallmark_client::{HallmarkClient, Identity, IdentitySource};
use hallmark_e2e::{Agent, Bed, BedOptions, Host, registration, wait_until};

const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, PartialEq)]
enum End {
    Killed,
    Told,
}

fn end_issuer(bed: &mut Bed, how: End) -> Result<()> {
    match how {
        End::Killed => bed.kill_issuer(),
        End::Told => bed.stop_issuer(),
    }
}

fn end_host(host: &mut Host, how: End) -> Result<()> {
    match how {
        End::Killed => host.kill(),
        End::Told => host.stop(),
    }
}

/// A bed with one host and a registration of this test's own process that is renewed every quarter of a
/// minute or so.
fn short_lived() -> Result<(Bed, Host)> {
    let bed = Bed::start(BedOptions::default())?;
    let mut host = Host::with_tpm(&bed, "host-1")?;
    host.start(&bed)?;
    bed.apply(&mine("short", "lifetime = \"30s\"")?)?;
    Ok((bed, host))
}

fn mine(name: &str, more: &str) -> Result<String> {
    registration(name, "foundation", &std::env::current_exe()?, more)
}

async fn watched(host: &Host, agent: &str) -> Result<(HallmarkClient, IdentitySource)> {
    let client = HallmarkClient::connect_to(host.socket()).await?;
    let mut source = client.watch_as(agent)?;
    source.wait_ready(PATIENCE).await?;
    Ok((client, source))
}

/// The first identity after `before`; there must be a valid one at every change in between.
async fn renewed(source: &mut IdentitySource, before: &Identity) -> Result<std::sync::Arc<Identity>> {
    tokio::time::timeout(PATIENCE, async {
        loop {
            let now = source.changed().await?.context("the identity was lost")?;
            if now.not_after > before.not_after {
                return Ok(now);
            }
        }
    })
    .await
    .context("no renewal")?
}

async fn until_connected(client: &HallmarkClient, wanted: bool) -> Result<String> {
    let started = std::time::Instant::now();
    loop {
        let host = client.who_am_i().await?.host.context("no host state")?;
        if host.issuer_connected == wanted {
            return Ok(host.last_error);
        }
        ensure!(started.elapsed() < PATIENCE, "issuer_connected stayed {}", !wanted);
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

async fn the_issuer_restarts(how: End) -> Result<()> {
    let (mut bed, host) = short_lived()?;
    let (client, mut source) = watched(&host, "short").await?;
    let first = source.current().context("an identity")?;
    let mut agent = Agent::watching(&host, "")?;
    ensure!(agent.says("ended")?.contains("none of this host's 1 registrations"), "a stranger was served");

    end_issuer(&mut bed, how)?;
    let reason = until_connected(&client, false).await?;
    ensure!(!reason.is_empty(), "no word on why the issuer is away");
    let kept = source.current().context("the identity went with the issuer")?;
    assert_eq!((kept.instance_id, kept.not_after), (first.instance_id, first.not_after));
    assert!(source.last_error().is_none(), "the stream ended: {:?}", source.last_error());
    // A new one cannot be had, and the refusal says why.
    let none = client.identity("short").await.err().context("an identity without an issuer")?.to_string();
    assert!(none.contains("issuer"), "{none}");

    bed.start_issuer()?;
    // Before the host is back: what is applied now must reach it all the same.
    let program = hallmark_e2e::example("stub_agent")?;
    bed.apply(&(mine("short", "lifetime = \"30s\"")? + &registration("later", "foundation", &program, "")?))?;
    until_connected(&client, true).await?;
    wait_until("the new registration to reach the host", || {
        agent.tell("whoami").ok()?;
        agent.says("whoami").ok()?.contains("matches=later").then_some(())
    })?;
    assert_eq!(Agent::watching(&host, "later")?.identity()?.tier, "foundation");

    let hosts = bed.hallmark_ok(&["host", "list", "--output", "json"])?;
    assert!(hosts.contains("host-1"), "{hosts}");
    let agents = bed.hallmark_ok(&["agent", "list", "--output", "json"])?;
    assert!(agents.contains("\"short\"") && agents.contains("\"later\""), "{agents}");
    // The issuer that came back renews what the one before it issued: same instance, same stream.
    let second = renewed(&mut source, &first).await?;
    assert_eq!(second.instance_id, first.instance_id);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_issuer_is_killed_and_comes_back() -> Result<()> {
    the_issuer_restarts(End::Killed).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_issuer_is_told_to_end_and_comes_back() -> Result<()> {
    the_issuer_restarts(End::Told).await
}

/// The renewal falls into the time without an issuer: it is made up for as soon as there is one again.
#[tokio::test(flavor = "multi_thread")]
async fn a_renewal_that_finds_no_issuer_is_made_up_for() -> Result<()> {
    let (mut bed, mut host) = short_lived()?;
    let (client, source) = watched(&host, "short").await?;
    let first = source.current().context("an identity")?;
    bed.kill_issuer()?;
    until_connected(&client, false).await?;
    let from = host.daemon()?.log().len() as u64;
    host.daemon()?.wait_for_log("identity not issued", from)?;
    bed.start_issuer()?;
    // The connection may come back after the certificate's end: then the agent is a new instance.
    let started = std::time::Instant::now();
    while source.current().is_none_or(|now| now.not_after <= first.not_after) {
        ensure!(started.elapsed() < PATIENCE, "no identity again: {:?}", source.last_error());
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    Ok(())
}

async fn the_host_daemon_restarts(how: End) -> Result<()> {
    let (bed, mut host) = short_lived()?;
    let (_client, mut source) = watched(&host, "short").await?;
    let first = source.current().context("an identity")?;
    end_host(&mut host, how)?;
    host.start(&bed)?;
    let second = tokio::time::timeout(PATIENCE, async {
        loop {
            match source.changed().await? {
                Some(now) if now.instance_id != first.instance_id => return anyhow::Ok(now),
                _ => {}
            }
        }
    })
    .await
    .context("no new identity")??;
    assert!(second.is_valid_at(std::time::SystemTime::now()));
    assert_eq!(second.spiffe_id, first.spiffe_id);
    // Registrations and the host's name were the issuer's all along.
    let shown = bed.hallmark_ok(&["host", "show", "host-1", "--output", "json"])?;
    assert!(shown.contains("\"connected\": true") || shown.contains("\"connected\":true"), "{shown}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_daemon_is_killed_and_comes_back() -> Result<()> {
    the_host_daemon_restarts(End::Killed).await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_host_daemon_is_told_to_end_and_comes_back() -> Result<()> {
    the_host_daemon_restarts(End::Told).await
}
