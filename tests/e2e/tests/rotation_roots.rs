//! Roots are rotated with an overlap, and tainted ones leave the bundle: whoever holds the bundle of any moment after
//! the new root's publication accepts what is signed under it.

#[path = "rotation/bench.rs"]
mod bench;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bench::{Bench, cas, json, patiently};
use hallmark_client::{HallmarkClient, Identity};
use hallmark_core::tier::Tier;
use hallmark_e2e::{Agent, Bed, BedOptions, Host, ROOT_TOKEN, Rogue, registration, wait_until};
use hallmark_kit::softhsm::run;
use hallmark_proto::issuer::host_update::Update;

const PATIENCE: Duration = Duration::from_secs(60);
const FAST: &str = "[ca.rotation]\noverlap = \"8s\"\ntaint_grace = \"4s\"\n";

fn bench(more: &str) -> Result<Bench> {
    Bench::start(BedOptions { extra: FAST.to_owned(), ..BedOptions::default() }, more)
}

fn roots_in(pem: &str) -> usize {
    pem.matches("BEGIN CERTIFICATE").count()
}

/// The root under which a hierarchy's leaves are signed now.
fn root_of(bed: &Bed, hierarchy: &str) -> Option<u64> {
    cas(bed, &[]).ok()?.iter().find(|ca| ca.signs(hierarchy)).map(|ca| ca.root)
}

fn enterprise_roots(identity: &Identity) -> usize {
    identity.bundle.roots.of(Tier::Enterprise).count()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_is_shown_to_everybody_before_anything_is_signed_under_it() -> Result<()> {
    let mut bench = bench("lifetime = \"30s\"")?;
    let mine = registration("client", "foundation", &std::env::current_exe()?, "lifetime = \"30s\"")?;
    bench.bed.apply(&mine)?;
    let client = HallmarkClient::connect_to(bench.host.socket()).await?;
    let mut source = client.watch_as("client")?;
    source.wait_ready(PATIENCE).await?;
    let before = source.current().context("an identity")?;
    assert_eq!(enterprise_roots(&before), 1);
    let agent = bench.watch("enterprise")?;
    let old = agent.identity()?;

    let said = json(&bench.bed, &["ca", "rotate", "enterprise", "--root"])?;
    assert!(said["notes"].to_string().contains("in the bundle"), "{said}");
    let published = bench.bundle()?;
    assert_eq!(roots_in(&published), 4);
    let again = bench.bed.hallmark(&["ca", "rotate", "enterprise", "--root"])?;
    assert!(!again.status.success(), "one rotation at a time");
    // Pushed, and before anything is signed under it.
    let shown = tokio::time::timeout(PATIENCE, async {
        loop {
            let now = source.changed().await?.context("the identity was lost")?;
            if enterprise_roots(&now) == 2 {
                return anyhow::Ok(now);
            }
        }
    })
    .await
    .context("the bundle was not pushed")??;
    assert!(shown.bundle.revision > before.bundle.revision);
    assert_eq!(root_of(&bench.bed, "enterprise"), Some(1), "the overlap was cut short");

    // The issuer ends in the middle of it, and goes on where it was.
    bench.bed.kill_issuer()?;
    bench.bed.start_issuer()?;
    assert_eq!(root_of(&bench.bed, "enterprise"), Some(1));
    assert_eq!(bench.bundle()?, published);
    wait_until("the new root's issuing CA to sign", || {
        (root_of(&bench.bed, "enterprise")? == 2).then_some(())
    })?;
    bench.host.wait_connected(&bench.bed)?;
    let new = bench.watch("enterprise")?.identity()?;
    for roots in [&published, &bench.bundle()?] {
        bench.verify_by(&new, roots)?;
        bench.verify_by(&old, roots)?;
    }
    let renewed = loop {
        let shown = agent.identity()?;
        bench.verify_by(&shown, &published)?;
        if shown.chain[1] != old.chain[1] {
            break shown;
        }
    };
    assert_eq!(renewed.instance, old.instance);

    patiently("the old root to leave the bundle", Duration::from_secs(150), || {
        (roots_in(&bench.bundle().ok()?) == 3).then_some(())
    })?;
    bench.verify(&bench.watch("enterprise")?.identity()?)?;
    let keys = bench.keys()?;
    assert!(!keys.iter().any(|key| key.ends_with("enterprise root 1")), "{keys:?}");
    assert!(keys.iter().any(|key| key.ends_with("enterprise root 2")), "{keys:?}");
    let all = cas(&bench.bed, &["--all"])?;
    let retired = all.iter().filter(|ca| ca.hierarchy == "enterprise" && ca.state == "retired").count();
    assert_eq!(retired, 2, "the root and its issuing CA: {all:?}");
    Ok(())
}

#[test]
fn a_tainted_root_leaves_the_bundle_when_its_holders_have_renewed() -> Result<()> {
    let mut bench = bench("")?;
    let agents: Vec<Agent> = (0..4).map(|_| bench.watch("advanced")).collect::<Result<_>>()?;
    let first: Vec<_> = agents.iter().map(Agent::identity).collect::<Result<_>>()?;
    let tainted = std::fs::read_to_string(bench.bed.path("data/public/advanced.pem"))?;
    bench.bed.hallmark_ok(&["ca", "taint", "advanced", "--root", "--reason", "the token was stolen"])?;
    assert_eq!(root_of(&bench.bed, "advanced"), Some(2));
    let both = std::fs::read_to_string(bench.bed.path("data/public/advanced.pem"))?;
    assert_eq!(roots_in(&both), 2, "it stays until its holders have renewed");
    // The issuer ends amid the renewals.
    bench.bed.kill_issuer()?;
    bench.bed.start_issuer()?;
    wait_until("the tainted root to leave the bundle", || {
        let now = std::fs::read_to_string(bench.bed.path("data/public/advanced.pem")).ok()?;
        (roots_in(&now) == 1 && now != tainted).then_some(())
    })?;
    for (agent, first) in agents.iter().zip(&first) {
        let renewed = loop {
            let shown = agent.identity()?;
            if shown.chain[1] != first.chain[1] {
                break shown;
            }
        };
        assert_eq!(renewed.instance, first.instance);
        bench.verify(&renewed)?;
        ensure!(bench.verify(first).is_err(), "what was signed under a tainted root still counts");
        assert_eq!(bench.state_of("agent-advanced", &first.instance)?, "live");
    }
    bench.host.wait_connected(&bench.bed)?;
    bench.verify(&bench.watch("enterprise")?.identity()?)?;
    Ok(())
}

#[test]
fn hosts_follow_a_new_infrastructure_root_also_over_their_own_restart() -> Result<()> {
    let bed = Bed::start(BedOptions { extra: FAST.to_owned(), ..BedOptions::default() })?;
    let mut away = Host::with_tpm(&bed, "host-2")?.with_root_of_now(&bed)?;
    away.start(&bed)?;
    let mut bench = Bench::of(bed, "")?;
    bench.bed.hallmark_ok(&["ca", "rotate", "infrastructure", "--root"])?;
    let file = || std::fs::read_to_string(bench.bed.infrastructure_root());
    assert_eq!(roots_in(&file()?), 2);
    assert_eq!(root_of(&bench.bed, "infrastructure"), Some(1));
    wait_until("the new infrastructure root", || {
        (root_of(&bench.bed, "infrastructure")? == 2).then_some(())
    })?;
    // What it has of its own is the old root alone; by now the issuer shows itself under the new one.
    away.kill()?;
    away.start(&bench.bed)?;

    let stranger = tokio::runtime::Runtime::new()?.block_on(Rogue::joined(&bench.bed, "host-9"));
    stranger.context("a host that trusts both roots")?;
    bench.bed.hallmark_ok(&[
        "ca",
        "taint",
        "infrastructure",
        "--root",
        "--generation",
        "1",
        "--reason",
        "test",
    ])?;
    wait_until("the old root to be gone", || (roots_in(&file().ok()?) == 1).then_some(()))?;
    away.kill()?;
    away.start(&bench.bed)?;
    bench.host.kill()?;
    bench.host.start(&bench.bed)?;
    bench.verify(&bench.watch("advanced")?.identity()?)?;
    Ok(())
}

#[test]
fn roots_may_have_a_token_of_their_own() -> Result<()> {
    let options = BedOptions { root_token: true, extra: FAST.to_owned(), ..BedOptions::default() };
    let bench = Bench::start(options, "")?;
    let roots = || -> Result<Vec<String>> {
        let mut tool = bench.bed.token().pkcs11_tool(ROOT_TOKEN);
        let seen = run(tool.args(["--list-objects", "--type", "privkey"]))?;
        Ok(seen
            .lines()
            .filter_map(|l| l.trim().strip_prefix("label:").map(|l| l.trim().to_owned()))
            .collect())
    };
    assert_eq!(roots()?.len(), 4, "four roots, and nothing else");
    assert!(!bench.keys()?.iter().any(|key| key.contains(" root ")), "{:?}", bench.keys()?);
    bench.verify(&bench.watch("advanced")?.identity()?)?;
    bench.bed.hallmark_ok(&["ca", "rotate", "advanced"])?;
    bench.verify(&bench.watch("advanced")?.identity()?)?;
    bench.bed.hallmark_ok(&["ca", "rotate", "advanced", "--root"])?;
    assert_eq!(roots()?.len(), 5);
    wait_until("the new root", || (root_of(&bench.bed, "advanced")? == 2).then_some(()))?;
    bench.verify(&bench.watch("advanced")?.identity()?)?;
    Ok(())
}

#[test]
fn a_host_that_never_says_which_roots_it_has_holds_nobody_up_for_long() -> Result<()> {
    let bench = bench("")?;
    let runtime = tokio::runtime::Runtime::new()?;
    let mut silent = runtime.block_on(async {
        let rogue = Rogue::joined(&bench.bed, "host-9").await?;
        let mut link = hallmark_proto::issuer::host_link_client::HostLinkClient::new(rogue.channel.clone());
        let updates = link.watch(hallmark_proto::issuer::WatchRequest { have_revision: 0 }).await?;
        anyhow::Ok(updates.into_inner())
    })?;
    bench.bed.hallmark_ok(&["ca", "rotate", "foundation", "--root"])?;
    wait_until("the new root", || (root_of(&bench.bed, "foundation")? == 2).then_some(()))?;
    // Its stream was ended, with the new roots in it.
    let (mut bundles, mut ended) = (0, false);
    runtime.block_on(async {
        while let Ok(next) = tokio::time::timeout(PATIENCE, silent.message()).await {
            let Ok(Some(update)) = next else {
                ended = true;
                return;
            };
            bundles += usize::from(matches!(update.update, Some(Update::Bundles(_))));
        }
    });
    assert!(ended && bundles >= 2, "ended: {ended}, bundles: {bundles}");
    assert!(json(&bench.bed, &["host", "show", "host-1"])?["connected"] == true, "the other host stays");
    Ok(())
}
