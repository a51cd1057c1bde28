//! Two issuers, one trust domain, on one PostgreSQL.

use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hallmark_client::{HallmarkClient, Identity, IdentitySource};
use hallmark_core::log::{Facts, LogVerifier, audit};
use hallmark_core::x509::UnverifiedSvid;
use hallmark_e2e::{Bed, BedOptions, Host, join_token, registration, skip, wait_until};
use hallmark_kit::postgres::Postgres;

const PATIENCE: Duration = Duration::from_secs(90);

/// Two issuers, both serving.
fn two(network: [Option<(String, String)>; 2]) -> Result<(Bed, Bed)> {
    let server = Arc::new(Postgres::started()?);
    let url = server.database()?;
    let [at_a, at_b] = network;
    let options = BedOptions {
        issuer_id: "issuer-a".to_owned(),
        network: at_a,
        postgres: Some((server, url)),
        ..BedOptions::default()
    };
    let a = Bed::start(options)?;
    let mut b = a.sibling("issuer-b", at_b)?;
    b.start_issuer()?;
    Ok((a, b))
}

/// A host whose first issuer is a's, and its second b's.
fn host_of(a: &Bed, b: &Bed, id: &str) -> Result<Host> {
    let mut host = Host::with_tpm(a, id)?;
    host.issuers = vec![b.endpoint()];
    Ok(host)
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

/// The next identity; there must be a valid one at every change until then.
async fn renewed(source: &mut IdentitySource, before: &Identity) -> Result<Arc<Identity>> {
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

/// Asks until it is served: its registration is on its way.
async fn served(client: &HallmarkClient, agent: &str) -> Result<()> {
    let begun = Instant::now();
    loop {
        match client.identity(agent).await {
            Ok(_) => return Ok(()),
            Err(error) => ensure!(begun.elapsed() < PATIENCE, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// Which issuing CA signed it, by the common name that its certificate has.
fn signed_by(identity: &Identity) -> Result<String> {
    Ok(hex::encode(hallmark_core::x509::key_fingerprint(identity.chain.get(1).context("no issuing CA")?)?))
}

fn json(bed: &Bed, args: &[&str]) -> Result<serde_json::Value> {
    let args: Vec<&str> = args.iter().copied().chain(["--output", "json"]).collect();
    Ok(serde_json::from_str(&bed.hallmark_ok(&args)?)?)
}

fn connected(bed: &Bed, host: &str) -> bool {
    json(bed, &["host", "show", host]).is_ok_and(|shown| shown["connected"] == true)
}

/// Verifies an issuer's log from its files, record by record; how many say that something was issued.
fn verified(bed: &Bed) -> Result<usize> {
    let verifier: LogVerifier = bed.hallmark_ok(&["log", "key"])?.trim().parse()?;
    let dir = bed.path("data/log");
    wait_until("the log's files", || dir.join("checkpoint").exists().then_some(()))?;
    let (mut facts, mut issued) = (Facts::default(), 0);
    let mut served = |path: &str| std::fs::read(dir.join(path)).map_err(|e| e.to_string());
    audit(&mut served, &verifier, None, &mut |_, entry| {
        facts.take(entry).map_err(|e| e.to_string())?;
        let record: serde_json::Value = serde_json::from_slice(entry).map_err(|e| e.to_string())?;
        issued += usize::from(record["kind"] == "svid" && record["outcome"] == "issued");
        Ok(())
    })?;
    Ok(issued)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_issuer_ends_and_agents_are_served_through_the_other() -> Result<()> {
    let (mut a, mut b) = two([None, None])?;
    let cas = json(&b, &["ca", "list"])?.to_string();
    ensure!(cas.contains("issuer-a") && cas.contains("issuer-b"), "each has CAs of its own: {cas}");
    ensure!(a.hallmark_ok(&["log", "key"])? != b.hallmark_ok(&["log", "key"])?, "each has a log of its own");
    let mut host = host_of(&a, &b, "host-1")?;
    host.start(&a)?;
    a.apply(&mine("agent", "lifetime = \"30s\"")?)?;
    let (client, mut source) = watched(&host, "agent").await?;
    let first = source.current().context("an identity")?;

    // What one issuer is told counts at the other.
    let program = hallmark_e2e::example("stub_agent")?;
    let both = mine("agent", "lifetime = \"30s\"")?
        + &mine("later", "")?
        + &registration("x", "foundation", &program, "")?;
    let begun = Instant::now();
    b.apply(&both)?;
    served(&client, "later").await.context("registered at the other issuer")?;
    println!("registered at one issuer, served through the other after {:?}", begun.elapsed());
    let stale = a.apply(&mine("agent", "lifetime = \"30s\"")?)?;
    ensure!(stale.contains("unchanged"), "a knows what b was told: {stale}");

    a.kill_issuer()?;
    let second = renewed(&mut source, &first).await?;
    ensure!(signed_by(&second)? != signed_by(&first)?, "b's issuing CA signed it");
    ensure!(second.instance_id == first.instance_id, "it is the same instance");
    ensure!(connected(&b, "host-1"), "b sees the host");
    let shown = json(&b, &["agent", "show", "agent"])?;
    ensure!(shown["live_instances"] == 1, "one instance, whoever issued what: {shown}");
    // One that is new gets its first credential from b.
    client.identity("later").await?;

    // a is back, and hears of what was done in the meantime.
    a.start_issuer()?;
    let token = join_token(&b, "host-2")?;
    let mut two = Host::new(&a, "host-2", hallmark_e2e::Proof::JoinToken(token))?;
    two.start(&a)?;
    two.stop()?;
    a.hallmark_ok(&["host", "disable", "host-1", "--reason", "stolen"])?;
    let ended = tokio::time::timeout(PATIENCE, async {
        while source.current().is_some() {
            if source.changed().await.is_err() {
                return;
            }
        }
    });
    ended.await.context("disabled at a, it goes on through b")?;
    ensure!(!connected(&b, "host-1"), "b has let it go");
    let refused = b.hallmark(&["host", "enable", "nobody"])?;
    ensure!(!refused.status.success(), "there is no such host");
    b.hallmark_ok(&["host", "enable", "host-1"])?;
    let (_, back) = watched(&host, "agent").await?;
    ensure!(back.current().is_some_and(|now| now.instance_id != first.instance_id), "a new instance");

    host.stop()?;
    a.stop_issuer()?;
    b.stop_issuer()?;
    a.start_issuer()?;
    b.start_issuer()?;
    let (by_a, by_b) = (verified(&a)?, verified(&b)?);
    ensure!(by_a > 0 && by_b > 0, "{by_a} by a, {by_b} by b");
    println!("{by_a} issued by a, {by_b} by b; both logs hold");
    Ok(())
}

#[test]
fn an_issuer_joins_once_and_only_where_it_belongs() -> Result<()> {
    let (a, mut b) = two([None, None])?;
    b.stop_issuer()?;
    let again = b.issuer_command(&["init", "--lab"], true)?;
    ensure!(!again.status.success(), "joined twice");
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    ensure!(said.contains("already holds") && said.contains("issuer-b"), "{said}");
    // Two of one id would count records each by itself.
    let twin = a.issuer_command(&["run"], true)?;
    let said = String::from_utf8_lossy(&twin.stderr).into_owned();
    ensure!(!twin.status.success() && said.contains("issuer-a"), "{said}");
    ensure!(said.contains("another hallmark-issuer"), "{said}");
    Ok(())
}

/// Two network namespaces, each joined to this one by a cable; gone with this.
struct Networks(Vec<(String, String)>);

impl Networks {
    fn new() -> Result<Self> {
        let id = std::process::id() % 10_000;
        let mut made = Self(Vec::new());
        for n in 0..2_u32 {
            let (space, cable) = (format!("hm{id}n{n}"), format!("hm{id}c{n}"));
            ip(&["netns", "add", &space])?;
            made.0.push((space.clone(), cable.clone()));
            ip(&["link", "add", &cable, "type", "veth", "peer", "name", "up", "netns", &space])?;
            // RFC 5737: addresses that are nobody's.
            let net = format!("192.0.2.{}", 4 * (id % 30) + 128 * n);
            let at = |offset: u32| {
                let (head, last) = net.rsplit_once('.').unwrap_or_default();
                format!("{head}.{}", last.parse::<u32>().unwrap_or_default() + offset)
            };
            ip(&["addr", "add", &format!("{}/30", at(1)), "dev", &cable])?;
            ip(&["link", "set", &cable, "up"])?;
            ip(&["-n", &space, "addr", "add", &format!("{}/30", at(2)), "dev", "up"])?;
            ip(&["-n", &space, "link", "set", "up", "up"])?;
            ip(&["-n", &space, "link", "set", "lo", "up"])?;
        }
        Ok(made)
    }

    fn place(&self, n: usize) -> Result<(String, String)> {
        let (space, _) = &self.0[n];
        let shown = ip(&["-n", space, "-4", "-o", "addr", "show", "dev", "up"])?;
        let address =
            shown.split_whitespace().nth(3).and_then(|a| a.split('/').next()).context("no address")?;
        Ok((space.clone(), address.to_owned()))
    }

    /// Nothing comes through any more, and nobody is told.
    fn cut(&self, n: usize) -> Result<()> {
        ip(&["-n", &self.0[n].0, "link", "set", "up", "down"]).map(drop)
    }

    fn heal(&self, n: usize) -> Result<()> {
        ip(&["-n", &self.0[n].0, "link", "set", "up", "up"]).map(drop)
    }
}

impl Drop for Networks {
    fn drop(&mut self) {
        for (space, _) in &self.0 {
            let _ = ip(&["netns", "del", space]);
        }
    }
}

fn ip(args: &[&str]) -> Result<String> {
    let output = Command::new("ip").args(args).output().context("ip (iproute2)")?;
    ensure!(output.status.success(), "ip {args:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?)
}

#[tokio::test(flavor = "multi_thread")]
async fn one_issuer_is_cut_off_and_nothing_contradicts_when_the_cut_heals() -> Result<()> {
    let networks = match Networks::new() {
        Ok(networks) => networks,
        Err(error) => {
            skip(&format!("one_issuer_is_cut_off… (no network namespaces here: {error:#})"));
            return Ok(());
        }
    };
    let (a, b) = two([Some(networks.place(0)?), Some(networks.place(1)?)])?;
    let mut host = host_of(&a, &b, "host-1")?;
    host.start(&a)?;
    a.apply(&mine("agent", "lifetime = \"60s\"")?)?;
    let (client, mut source) = watched(&host, "agent").await?;
    let first = source.current().context("an identity")?;

    networks.cut(0)?;
    let begun = Instant::now();
    wait_until("the host to be at the other issuer", || connected(&b, "host-1").then_some(()))?;
    println!("the host is at the other issuer {:?} after the cut", begun.elapsed());
    let second = renewed(&mut source, &first).await?;
    ensure!(second.instance_id == first.instance_id && signed_by(&second)? != signed_by(&first)?);
    // The one that is cut off from the host still has the store, and its operators.
    a.apply(&(mine("agent", "lifetime = \"60s\"")? + &mine("meanwhile", "")?))?;
    served(&client, "meanwhile").await.context("registered at the issuer that is cut off")?;

    networks.heal(0)?;
    wait_until("a to answer again", || {
        let (space, address) = networks.place(0).ok()?;
        let _ = space;
        let port = a.endpoint().rsplit(':').next()?.parse::<u16>().ok()?;
        let to = format!("{address}:{port}").parse().ok()?;
        std::net::TcpStream::connect_timeout(&to, Duration::from_millis(500)).ok().map(drop)
    })?;
    let third = renewed(&mut source, &second).await?;
    ensure!(third.instance_id == first.instance_id);
    // Ended at one, it is ended at both.
    let ended = a.hallmark_ok(&["agent", "end", "agent"])?;
    ensure!(ended.contains('1'), "{ended}");
    tokio::time::timeout(PATIENCE, async {
        while source.current().is_some_and(|now| now.instance_id == first.instance_id) {
            if source.changed().await.is_err() {
                return;
            }
        }
    })
    .await
    .context("ended at a, it goes on through b")?;
    let chain = UnverifiedSvid::parse(&third.chain[0])?;
    let revoked =
        b.hallmark_ok(&["records", "--limit", "20"])? + &a.hallmark_ok(&["records", "--limit", "20"])?;
    ensure!(revoked.contains("instance-end"), "{} {revoked}", chain.serial);
    let (by_a, by_b) = (verified(&a)?, verified(&b)?);
    println!("{by_a} issued by a, {by_b} by b; both logs hold");
    ensure!(by_a > 0 && by_b > 0);
    Ok(())
}
