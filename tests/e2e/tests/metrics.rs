//! Both daemons' metrics: they count exactly what happened, promtool finds nothing wrong with them, and whatever
//! the dashboards and alerts name is there.

use std::collections::BTreeMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};
use hallmark_e2e::{Agent, Bed, BedOptions, Host, Proof, example, registration, skip, wait_until};

const DIGEST: &str = "0707070707070707070707070707070707070707070707070707070707070707";
const SOCKET: &str = "[metrics]\nsocket = \"{dir}/metrics.sock\"\nmode = \"0600\"\n";

/// A page of metrics, in the older text format.
fn page(socket: &Path) -> Result<String> {
    let mut stream = UnixStream::connect(socket).with_context(|| socket.display().to_string())?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("no head")?;
    ensure!(head.starts_with("HTTP/1.1 200"), "{head}");
    Ok(body.to_owned())
}

/// The samples of a page, by name and labels as they stand there.
fn samples(page: &str) -> BTreeMap<String, f64> {
    let lines = page.lines().filter(|line| !line.starts_with('#'));
    lines
        .filter_map(|line| line.rsplit_once(' '))
        .filter_map(|(k, v)| Some((k.to_owned(), v.parse().ok()?)))
        .collect()
}

/// Waits until a daemon shows these very values; a page may be half a second old.
fn until_shows(socket: &Path, wanted: &[(&str, f64)]) -> Result<BTreeMap<String, f64>> {
    let mut wrong = Vec::new();
    let shown = wait_until("the metrics to show what happened", || {
        let shown = samples(&page(socket).ok()?);
        wrong = wanted
            .iter()
            .map(|(key, value)| (*key, *value, shown.get(*key).copied()))
            .filter(|(_, wanted, found)| *found != Some(*wanted))
            .collect();
        wrong.is_empty().then_some(shown)
    });
    shown.with_context(|| format!("name, wanted, found: {wrong:?}"))
}

/// Issuer, a host on which all three tiers run, and where their metrics are.
fn bed() -> Result<(Bed, Host, PathBuf, PathBuf)> {
    let mut bed = Bed::start(BedOptions { extra: SOCKET.to_owned(), ..BedOptions::default() })?;
    let mut host = Host::with_tpm(&bed, "host-1")?;
    host.extra = SOCKET.to_owned();
    host.start(&bed)?;
    let policy = bed.hallmark_ok(&["host", "pcrs", "host-1"])?;
    bed.add_policy(&policy)?;
    let program = example("stub_agent")?;
    let mut toml = String::new();
    for tier in ["foundation", "enterprise", "advanced"] {
        toml.push_str(&registration(&format!("agent-{tier}"), tier, &program, "")?);
    }
    bed.apply(&toml)?;
    let (issuer, hostd) = (bed.path("metrics.sock"), host.path("metrics.sock"));
    Ok((bed, host, issuer, hostd))
}

#[test]
fn they_count_exactly_what_happened() -> Result<()> {
    let (mut bed, mut host, issuer, hostd) = bed()?;
    until_shows(
        &issuer,
        &[
            (r#"hallmark_issuer_issued_total{tier="foundation",custody="software"}"#, 0.0),
            // The second one by order, when the policy came.
            (r#"hallmark_issuer_attestations_total{proof="tpm"}"#, 2.0),
            (r#"hallmark_issuer_hosts{state="connected"}"#, 1.0),
            (r#"hallmark_issuer_registrations"#, 3.0),
            (r#"hallmark_issuer_keys_sign"#, 1.0),
        ],
    )?;

    // Two of foundation, one of each other tier; three signatures, and one with a handle that is nobody's.
    let mut agents = Vec::new();
    for tier in ["foundation", "foundation", "enterprise", "advanced"] {
        agents.push(Agent::watching(&host, &format!("agent-{tier}"))?);
    }
    let shown = agents.iter().map(Agent::identity).collect::<Result<Vec<_>>>()?;
    let handle = shown.iter().find_map(|shown| shown.handle.clone()).context("a handle")?;
    for _ in 0..3 {
        agents[3].tell(&format!("sign {handle} {DIGEST}"))?;
        agents[3].says("signed")?;
    }
    agents[3].tell(&format!("sign {} {DIGEST}", "00".repeat(16)))?;
    agents[3].says("refused")?;
    // One that matches no registration; and one of enterprise whose host meets no policy any more.
    Agent::watching(&host, "nobody")?.says("ended")?;
    let hosts_agents = [
        (r#"hallmark_hostd_agents{tier="foundation",custody="software"}"#, 2.0),
        (r#"hallmark_hostd_agents{tier="enterprise",custody="software"}"#, 1.0),
        (r#"hallmark_hostd_agents{tier="advanced",custody="simulated"}"#, 1.0),
        (r#"hallmark_hostd_issued_total{tier="foundation",cause="first"}"#, 2.0),
        (r#"hallmark_hostd_issued_total{tier="enterprise",cause="first"}"#, 1.0),
        (r#"hallmark_hostd_issued_total{tier="advanced",cause="first"}"#, 1.0),
        (r#"hallmark_hostd_issued_total{tier="foundation",cause="renewal"}"#, 0.0),
        (r#"hallmark_hostd_first_svid_duration_seconds_count{custody="software"}"#, 3.0),
        (r#"hallmark_hostd_first_svid_duration_seconds_count{custody="simulated"}"#, 1.0),
        (r#"hallmark_hostd_sign_duration_seconds_count{custody="tpm-certified"}"#, 3.0),
        (r#"hallmark_hostd_sign_refused_total{reason="no-key"}"#, 1.0),
        (r#"hallmark_hostd_sign_refused_total{reason="rate"}"#, 0.0),
        (r#"hallmark_hostd_issue_failures_total{reason="no-match"}"#, 1.0),
        (r#"hallmark_hostd_link_up"#, 1.0),
        (r#"hallmark_hostd_attested"#, 1.0),
        (r#"hallmark_hostd_key_handles"#, 1.0),
        (r#"hallmark_hostd_instances"#, 4.0),
    ];
    let on_host = until_shows(&hostd, &hosts_agents)?;
    let at_least = |name: &str, least: f64| {
        let found = on_host.get(name).copied();
        ensure!(found.is_some_and(|found| found >= least), "{name} is {found:?}, not at least {least}");
        Ok(())
    };
    at_least(r#"hallmark_hostd_tpm_operation_duration_seconds_count{operation="sign"}"#, 3.0)?;
    at_least("hallmark_hostd_tpm_requests_total", 5.0)?;
    at_least("hallmark_hostd_attestation_timestamp_seconds", 1e9)?;
    at_least("hallmark_hostd_host_svid_end_timestamp_seconds", 1e9)?;
    // The shortest life is advanced's, ten minutes.
    at_least("hallmark_hostd_soonest_svid_end_seconds", 60.0)?;
    ensure!(on_host["hallmark_hostd_soonest_svid_end_seconds"] <= 600.0);

    let issued = [
        (r#"hallmark_issuer_issued_total{tier="foundation",custody="software"}"#, 2.0),
        (r#"hallmark_issuer_issued_total{tier="enterprise",custody="software"}"#, 1.0),
        (r#"hallmark_issuer_issued_total{tier="advanced",custody="simulated"}"#, 1.0),
        (r#"hallmark_issuer_attestation_age_seconds_count{tier="foundation"}"#, 2.0),
        (r#"hallmark_issuer_refused_total{tier="enterprise",reason="requirements-not-met"}"#, 0.0),
        (r#"hallmark_issuer_instances"#, 4.0),
        (r#"hallmark_issuer_store_commit_failures_total"#, 0.0),
        (r#"hallmark_issuer_store_queue_requests"#, 0.0),
    ];
    let at_issuer = until_shows(&issuer, &issued)?;
    ensure!(at_issuer["hallmark_issuer_issue_items_sum"] == 4.0, "an item is counted twice or not at all");

    // Without a policy enterprise is out of reach: what runs above foundation ends, and is refused anew.
    bed.clear_policies()?;
    agents[2].says("ended")?;
    agents[3].says("ended")?;
    let refused = Agent::watching(&host, "agent-enterprise")?.says("ended")?;
    ensure!(refused.contains("pcr-policy"), "{refused}");
    let at_issuer = until_shows(
        &issuer,
        &[
            (r#"hallmark_issuer_refused_total{tier="enterprise",reason="requirements-not-met"}"#, 1.0),
            (r#"hallmark_issuer_unmet_total{tier="enterprise",requirement="pcr-policy"}"#, 1.0),
            (r#"hallmark_issuer_unmet_total{tier="enterprise",requirement="selectors"}"#, 0.0),
            (r#"hallmark_issuer_issued_total{tier="enterprise",custody="software"}"#, 1.0),
            (r#"hallmark_issuer_instances"#, 2.0),
            (r#"hallmark_issuer_ended_total{reason="host-standing"}"#, 2.0),
        ],
    )?;
    until_shows(
        &hostd,
        &[
            (r#"hallmark_hostd_issue_failures_total{reason="refused"}"#, 1.0),
            (r#"hallmark_hostd_agents{tier="enterprise",custody="software"}"#, 0.0),
            (r#"hallmark_hostd_agents{tier="advanced",custody="simulated"}"#, 0.0),
            (r#"hallmark_hostd_agents{tier="foundation",custody="software"}"#, 2.0),
        ],
    )?;
    // The log has what the command says it has, and its files follow.
    let status: serde_json::Value = serde_json::from_str(&bed.hallmark_ok(&["status", "-o", "json"])?)?;
    let size = status["log_size"].as_f64().context("log_size")?;
    ensure!(at_issuer["hallmark_issuer_log_entries"] <= size);
    until_shows(
        &issuer,
        &[("hallmark_issuer_log_entries", size), ("hallmark_issuer_log_published_entries", size)],
    )?;

    // A host that is refused is counted by the code word, once for each line in the log.
    let mut stranger = Host::new(&bed, "host-2", Proof::JoinToken("hmj_nothing".to_owned()))?;
    stranger.spawn(&bed)?;
    wait_until("the stranger to be refused", || {
        bed.issuer().ok()?.log().contains("host refused").then_some(())
    })?;
    stranger.kill()?;
    let key = r#"hallmark_issuer_attestations_refused_total{kind="attest",reason="join-token"}"#;
    wait_until("each refusal to be counted", || {
        let lines = bed.issuer().ok()?.log().matches("host refused").count() as f64;
        (samples(&page(&issuer).ok()?).get(key) == Some(&lines)).then_some(())
    })?;

    // Ended in good order, the daemons take their sockets with them.
    drop(agents);
    host.stop()?;
    bed.stop_issuer()?;
    ensure!(!issuer.exists() && !hostd.exists(), "a socket was left behind");
    Ok(())
}

/// The root of this repository.
fn top() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../..")
}

/// Every metric that a text names.
fn named(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = |word: &&str| {
        ["hallmark_issuer_", "hallmark_hostd_", "process_"].iter().any(|prefix| word.starts_with(prefix))
    };
    words.filter(ours).map(str::to_owned).collect()
}

#[test]
fn what_dashboards_and_alerts_name_is_there_and_promtool_finds_no_fault() -> Result<()> {
    let (_bed, host, issuer, hostd) = bed()?;
    // Each kind of thing has happened once.
    let mut agent = Agent::watching(&host, "agent-advanced")?;
    let handle = agent.identity()?.handle.context("a handle")?;
    agent.tell(&format!("sign {handle} {DIGEST}"))?;
    agent.says("signed")?;
    until_shows(&hostd, &[(r#"hallmark_hostd_sign_duration_seconds_count{custody="tpm-certified"}"#, 1.0)])?;
    let pages = [page(&issuer)?, page(&hostd)?];

    let shown: std::collections::BTreeSet<String> = pages
        .iter()
        .flat_map(|page| samples(page).into_keys())
        .map(|key| key.split('{').next().unwrap_or_default().to_owned())
        .collect();
    let mut files = vec![];
    for dir in ["deploy/grafana", "deploy/prometheus"] {
        for entry in std::fs::read_dir(top().join(dir))? {
            files.push(entry?.path());
        }
    }
    let mut count = 0;
    for file in files {
        for name in named(&std::fs::read_to_string(&file)?) {
            // The alerts' texts shorten names to their last part; whole names are held to.
            let whole =
                shown.contains(&name) || shown.iter().any(|s| s.strip_suffix("_bucket") == Some(&name));
            ensure!(whole, "{} names {name}, which no daemon shows", file.display());
            count += 1;
        }
    }
    ensure!(count > 100, "only {count} names were found");

    // No label says who: the values are words of ours.
    for page in &pages {
        for line in page.lines().filter(|line| !line.starts_with('#')) {
            for secret in ["agent-advanced", "host-1", "test.example", &handle] {
                ensure!(!line.contains(secret), "{line}");
            }
        }
    }

    let Ok(promtool) = promtool() else {
        skip("promtool check metrics (scripts/setup fetches promtool)");
        return Ok(());
    };
    for page in &pages {
        let mut check = Command::new(&promtool)
            .args(["check", "metrics"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()?;
        check.stdin.take().context("stdin")?.write_all(page.as_bytes())?;
        let done = check.wait_with_output()?;
        let said = [done.stdout, done.stderr].concat();
        ensure!(done.status.success() && said.is_empty(), "promtool: {}", String::from_utf8_lossy(&said));
    }
    Ok(())
}

fn promtool() -> Result<PathBuf> {
    let own = top().join("target/tools/bin/promtool");
    if own.exists() {
        return Ok(own);
    }
    let path = std::env::var_os("PATH").context("PATH")?;
    std::env::split_paths(&path).map(|dir| dir.join("promtool")).find(|p| p.exists()).context("no promtool")
}
