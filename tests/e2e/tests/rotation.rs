//! CAs are rotated and tainted under real load, and nobody is left without an identity that verifies.

#[path = "rotation/bench.rs"]
mod bench;

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use bench::{Bench, Verdict, cas, json, patiently};
use hallmark_e2e::{Agent, BedOptions, Shown, wait_until};

const FAST: &str = "[ca.rotation]\noverlap = \"4s\"\ntaint_grace = \"4s\"\n";

fn bench(rotation: &str, more: &str) -> Result<Bench> {
    Bench::start(BedOptions { extra: rotation.to_owned(), ..BedOptions::default() }, more)
}

fn authority(shown: &Shown) -> Vec<u8> {
    shown.chain[1].clone()
}

/// The next identity that another CA signed; every one on the way must verify.
fn after(bench: &Bench, agent: &Agent, before: &Shown) -> Result<Shown> {
    loop {
        let shown = agent.identity()?;
        bench.verify(&shown)?;
        if authority(&shown) != authority(before) {
            return Ok(shown);
        }
    }
}

#[test]
fn issuing_cas_are_rotated_under_load_and_no_request_fails() -> Result<()> {
    let bench = bench("", "lifetime = \"30s\"")?;
    let stays = bench.watch("enterprise")?;
    let first = stays.identity()?;
    let stop = std::sync::atomic::AtomicBool::new(false);
    let (served, cas_seen) = std::thread::scope(|scope| -> Result<_> {
        let workers: Vec<_> = ["foundation", "enterprise", "advanced"]
            .into_iter()
            .map(|tier| {
                let (bench, stop) = (&bench, &stop);
                scope.spawn(move || -> Result<Vec<Shown>> {
                    let mut seen = Vec::new();
                    while !stop.load(std::sync::atomic::Ordering::Relaxed) || seen.is_empty() {
                        let agents = [(); 4].map(|()| bench.watch(tier));
                        for agent in agents {
                            seen.push(agent?.identity().with_context(|| format!("an agent of {tier}"))?);
                        }
                    }
                    Ok(seen)
                })
            })
            .collect();
        for _ in 0..4 {
            let rotated = bench.bed.hallmark_ok(&["ca", "rotate"])?;
            ensure!(rotated.contains("active"), "{rotated}");
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let (mut served, mut seen) = (0, BTreeSet::new());
        for worker in workers {
            for shown in worker.join().map_err(|_| anyhow::anyhow!("a worker panicked"))?? {
                bench.verify(&shown)?;
                seen.insert(authority(&shown));
                served += 1;
            }
        }
        Ok((served, seen.len()))
    })?;
    println!("{served} agents served by {cas_seen} issuing CAs");
    assert!(cas_seen > 3, "the load saw no rotation");

    // Five of each hierarchy were made; one signs, and the others wait for their last leaf.
    let listed = cas(&bench.bed, &[])?;
    for hierarchy in ["foundation", "enterprise", "advanced", "infrastructure"] {
        let of = |state: &str| {
            listed
                .iter()
                .filter(|ca| ca.hierarchy == hierarchy && ca.kind == "issuing" && ca.state == state)
                .count()
        };
        assert_eq!((of("active"), of("retiring")), (1, 4), "{hierarchy}: {listed:?}");
    }
    // The stream goes on through it all, and what an old CA revoked is still listed by that CA.
    let renewed = after(&bench, &stays, &first)?;
    assert_eq!(renewed.instance, first.instance);
    assert_eq!(bench.crl_verdict(&first, 1)?, Verdict::Good);
    assert_eq!(bench.crl_verdict(&renewed, 5)?, Verdict::Good);
    bench.bed.hallmark_ok(&["agent", "end", "agent-enterprise", "--instance", &first.instance])?;
    wait_until("both lists to name what ended", || {
        let revoked = |shown, generation| bench.crl_verdict(shown, generation).ok() == Some(Verdict::Revoked);
        (revoked(&first, 1) && revoked(&renewed, 5)).then_some(())
    })?;
    // When the last leaf has ended, keys go: as many as there are CAs left, and the log's.
    patiently("every replaced CA of the tiers to be retired", Duration::from_secs(150), || {
        let listed = cas(&bench.bed, &[]).ok()?;
        let left =
            listed.iter().filter(|ca| ca.state == "retiring" && ca.hierarchy != "infrastructure").count();
        (left == 0).then_some(())
    })?;
    let keys = bench.keys()?;
    assert!(!keys.iter().any(|key| key.ends_with("enterprise issuing issuer-1 1")), "{keys:?}");
    assert!(keys.iter().any(|key| key.ends_with("enterprise issuing issuer-1 5")), "{keys:?}");
    let records = bench.records("ca")?;
    for outcome in ["made", "activated", "replaced", "retired"] {
        assert!(records.iter().any(|r| r["outcome"] == outcome), "no record of a CA that was {outcome}");
    }
    let ordered =
        records.iter().filter(|r| r["body"]["operator"].as_str().is_some_and(|o| o.contains("uid")));
    assert_eq!(ordered.count(), 16, "each order names its operator");
    assert!(json(&bench.bed, &["status"])?["cas"].as_array().is_some_and(|cas| cas.len() > 7));
    Ok(())
}

#[test]
fn issuing_cas_are_rotated_by_themselves_at_their_age_also_after_a_restart() -> Result<()> {
    let mut bench = bench("[ca.rotation]\nissuing_after = \"12s\"\n", "")?;
    let agent = bench.watch("enterprise")?;
    bench.verify(&agent.identity()?)?;
    let generation = |bench: &Bench| {
        cas(&bench.bed, &[]).ok()?.iter().find(|ca| ca.signs("enterprise")).map(|ca| ca.generation)
    };
    wait_until("the second issuing CA", || (generation(&bench)? >= 2).then_some(()))?;
    bench.bed.kill_issuer()?;
    bench.bed.start_issuer()?;
    let before = generation(&bench).context("no CA signs")?;
    wait_until("the next one", || (generation(&bench)? > before).then_some(()))?;
    let doctor = json(&bench.bed, &["doctor"])?.to_string();
    assert!(doctor.contains("is replaced by itself") || doctor.contains("replacement is due"), "{doctor}");
    bench.host.wait_connected(&bench.bed)?;
    bench.verify(&bench.watch("enterprise")?.identity()?)?;
    Ok(())
}

#[test]
fn a_tainted_issuing_ca_has_every_holder_renew_within_the_window() -> Result<()> {
    let bench = bench(FAST, "")?;
    let agents: Vec<Agent> = (0..12).map(|_| bench.watch("enterprise")).collect::<Result<_>>()?;
    let other = bench.watch("advanced")?;
    let first: Vec<Shown> = agents.iter().map(Agent::identity).collect::<Result<_>>()?;
    let untouched = other.identity()?;
    let refused = bench.bed.hallmark(&["ca", "taint", "enterprise", "--reason", ""])?;
    assert!(!refused.status.success(), "a CA is tainted for a reason");
    let said = json(&bench.bed, &["ca", "taint", "enterprise", "--reason", "the token's firmware"])?;
    assert!(said["notes"].to_string().contains("tainted"), "{said}");
    // From here on nothing more is signed by it.
    let fresh = bench.watch("enterprise")?.identity()?;
    assert_ne!(authority(&fresh), authority(&first[0]));

    let renewed: Vec<Shown> =
        agents.iter().zip(&first).map(|(agent, first)| after(&bench, agent, first)).collect::<Result<_>>()?;
    for (first, renewed) in first.iter().zip(&renewed) {
        assert_eq!(first.instance, renewed.instance, "it is the same run");
        assert!(renewed.not_after >= first.not_after);
    }
    let listed = wait_until("the old leaves to be revoked", || {
        let listed = cas(&bench.bed, &[]).ok()?;
        listed
            .iter()
            .find(|ca| ca.hierarchy == "enterprise" && ca.state == "tainted" && ca.withdrawn_at.is_some())?;
        Some(listed)
    })?;
    assert_eq!(listed.iter().filter(|ca| ca.signs("enterprise")).count(), 1);
    for (first, renewed) in first.iter().zip(&renewed) {
        wait_until("the old leaf to be listed", || {
            (bench.crl_verdict(first, 1).ok()? == Verdict::Revoked).then_some(())
        })?;
        assert_eq!(bench.crl_verdict(renewed, 2)?, Verdict::Good);
    }
    // Nobody who renewed has ended, and nobody else was asked to renew.
    for (agent, renewed) in agents.into_iter().zip(&renewed) {
        let state = bench.state_of("agent-enterprise", &renewed.instance)?;
        assert_eq!(state, "live");
        drop(agent);
    }
    assert_eq!(bench.state_of("agent-advanced", &untouched.instance)?, "live");
    let records = bench.records("ca")?;
    let tainted = records.iter().find(|r| r["outcome"] == "tainted").context("no record of the taint")?;
    assert_eq!(tainted["body"]["note"], "the token's firmware");
    let revoked = records.iter().filter(|r| r["outcome"] == "leaves-revoked");
    let serials: usize = revoked.filter_map(|r| r["body"]["revoked"].as_array()).map(Vec::len).sum();
    assert_eq!(serials, 12, "each revoked leaf stands in the record");
    Ok(())
}

#[test]
fn who_does_not_renew_what_a_tainted_ca_signed_ends_and_a_restart_forgets_no_taint() -> Result<()> {
    let mut bench = bench(FAST, "")?;
    let agent = bench.watch("foundation")?;
    let first = agent.identity()?;
    let gone = bench.watch("foundation")?;
    let lost = gone.identity()?;
    // A host that is away when the CA is tainted, and comes back within the window.
    bench.host.daemon()?.signal(rustix::process::Signal::STOP)?;
    bench.bed.hallmark_ok(&["ca", "taint", "foundation", "--reason", "test"])?;
    bench.bed.kill_issuer()?;
    bench.bed.start_issuer()?;
    wait_until("what was not renewed to end", || {
        (bench.state_of("agent-foundation", &lost.instance).ok()? == "ca-tainted").then_some(())
    })?;
    assert_eq!(bench.state_of("agent-foundation", &first.instance)?, "ca-tainted");
    bench.host.daemon()?.signal(rustix::process::Signal::CONT)?;
    gone.says("ended")?;
    agent.says("ended")?;
    bench.host.wait_connected(&bench.bed)?;
    let again = bench.watch("foundation")?.identity()?;
    bench.verify(&again)?;
    assert_ne!(authority(&again), authority(&first));
    Ok(())
}

#[test]
fn a_tainted_infrastructure_ca_has_hosts_attest_anew_and_its_credentials_count_no_more() -> Result<()> {
    let mut bench = bench(FAST, "")?;
    let runtime = tokio::runtime::Runtime::new()?;
    let (old, open) = runtime.block_on(async {
        let old = hallmark_e2e::Rogue::joined(&bench.bed, "host-9").await?;
        let open = old.issuance();
        anyhow::Ok((old, open))
    })?;
    let ask = |mut client: hallmark_proto::issuer::issuance_client::IssuanceClient<_>| {
        let request = hallmark_proto::issuer::RetireRequest { instance_ids: vec![], reason: "other".into() };
        runtime.block_on(async move { client.retire(request).await })
    };
    ask(open.clone())?;
    let from = bench.host.daemon()?.log().len() as u64;
    let issued = bench.records("issuer-svid")?.len();
    bench.bed.hallmark_ok(&["ca", "taint", "infrastructure", "--reason", "test"])?;
    bench.host.daemon()?.wait_for_log("host attested", from)?;
    wait_until("the issuer's own certificate to be made anew", || {
        (bench.records("issuer-svid").ok()?.len() > issued).then_some(())
    })?;
    wait_until("the tainted CA to be withdrawn", || {
        cas(&bench.bed, &[])
            .ok()?
            .iter()
            .find(|ca| ca.hierarchy == "infrastructure" && ca.withdrawn_at.is_some())
            .map(drop)
    })?;
    let refused = ask(open).err().context("an open connection outlives the CA of its credential")?;
    assert_eq!(refused.code(), tonic::Code::Unauthenticated);
    let anew = {
        let _inside = runtime.enter();
        hallmark_proto::issuer::issuance_client::IssuanceClient::new(old.connection(&bench.bed)?)
    };
    assert!(ask(anew).is_err(), "a new connection is accepted by a credential of a tainted CA");
    bench.host.wait_connected(&bench.bed)?;
    bench.verify(&bench.watch("advanced")?.identity()?)?;
    Ok(())
}

/// Wherever it is killed: in making a key, before the commit, between commit and force. One CA signs, and the next order
/// finds its way.
#[test]
fn an_issuer_killed_at_any_moment_of_an_order_goes_on() -> Result<()> {
    let mut bench = bench(FAST, "")?;
    let stays = bench.watch("enterprise")?;
    let first = stays.identity()?;
    for (turn, delay) in [0_u64, 5, 15, 30, 45, 60, 90, 140].into_iter().enumerate() {
        let order: &[&str] = match turn % 4 {
            0 => &["ca", "rotate", "enterprise"],
            1 => &["ca", "taint", "enterprise", "--reason", "test"],
            2 => &["ca", "rotate", "enterprise", "--root"],
            _ => &["ca", "rotate"],
        };
        let mut command = std::process::Command::new(hallmark_e2e::binary("hallmark")?);
        command.arg("--admin-socket").arg(bench.bed.admin_socket()).args(order);
        let mut ordered =
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null()).spawn()?;
        std::thread::sleep(Duration::from_millis(delay));
        bench.bed.kill_issuer()?;
        ordered.wait()?;
        bench.bed.start_issuer()?;
        let listed = cas(&bench.bed, &["--all"])?;
        for hierarchy in ["foundation", "enterprise", "advanced", "infrastructure"] {
            let active = listed.iter().filter(|ca| ca.signs(hierarchy)).count();
            assert_eq!(active, 1, "{hierarchy} after {order:?}, killed at {delay} ms: {listed:?}");
        }
        bench.host.wait_connected(&bench.bed)?;
        bench.verify(&bench.watch("enterprise")?.identity()?)?;
    }
    bench.bed.hallmark_ok(&["ca", "rotate", "advanced"])?;
    bench.verify(&bench.watch("advanced")?.identity()?)?;
    assert_eq!(bench.state_of("agent-enterprise", &first.instance)?, "live");
    Ok(())
}

#[test]
fn a_key_made_by_an_order_that_never_came_to_its_commit_is_taken_up() -> Result<()> {
    let bench = bench("", "")?;
    let token = bench.bed.token();
    let label = "hallmark test.example advanced issuing issuer-1 2";
    let mut tool = token.pkcs11_tool(token.label());
    tool.args(["--keypairgen", "--key-type", "EC:prime256v1", "--id", "02", "--usage-sign", "--sensitive"]);
    hallmark_kit::softhsm::run(tool.args(["--label", label]))?;
    bench.bed.hallmark_ok(&["ca", "rotate", "advanced"])?;
    let shown = bench.watch("advanced")?.identity()?;
    bench.verify(&shown)?;
    let keys = bench.keys()?;
    assert_eq!(keys.iter().filter(|key| *key == label).count(), 1, "{keys:?}");

    // A half of one: the public key alone.
    let (private, public) = (bench.bed.path("half.key"), bench.bed.path("half.pub"));
    let run = hallmark_kit::softhsm::run;
    let mut openssl = std::process::Command::new("openssl");
    run(openssl.args(["ecparam", "-name", "prime256v1", "-genkey", "-noout", "-out"]).arg(&private))?;
    let mut openssl = std::process::Command::new("openssl");
    run(openssl.args(["pkey", "-pubout", "-outform", "DER", "-in"]).arg(&private).arg("-out").arg(&public))?;
    let mut tool = token.pkcs11_tool(token.label());
    tool.args(["--write-object"]).arg(&public).args(["--type", "pubkey", "--id", "03"]);
    run(tool.args(["--label", "hallmark test.example advanced issuing issuer-1 3"]))?;
    bench.bed.hallmark_ok(&["ca", "rotate", "advanced"])?;
    bench.verify(&bench.watch("advanced")?.identity()?)?;
    assert!(cas(&bench.bed, &[])?.iter().any(|ca| ca.signs("advanced") && ca.generation == 3));
    Ok(())
}
