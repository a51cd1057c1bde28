//! Traces, against a real collector: one trace goes from an agent's call through the host daemon and the issuer to
//! the commit, and the record names it; what an agent says of traces can do no harm.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use hallmark_e2e::{Agent, Bed, BedOptions, Collector, Host, Spanned, example, registration, wait_until};

const DIGEST: &str = "0707070707070707070707070707070707070707070707070707070707070707";
const HOSTD: &str = "hallmark-hostd";
const ISSUER: &str = "hallmark-issuer";
const METRICS: &str = "[metrics]\nsocket = \"{dir}/metrics.sock\"\n";

/// An issuer and a host with all three tiers, each with further tables in its configuration.
fn bed(of_issuer: &str, of_host: &str) -> Result<(Bed, Host)> {
    let mut bed = Bed::start(BedOptions { extra: of_issuer.to_owned(), ..BedOptions::default() })?;
    let mut host = Host::with_tpm(&bed, "host-1")?;
    host.extra = of_host.to_owned();
    host.start(&bed)?;
    let policy = bed.hallmark_ok(&["host", "pcrs", "host-1"])?;
    bed.add_policy(&policy)?;
    let program = example("stub_agent")?;
    let mut toml = String::new();
    for tier in ["foundation", "enterprise", "advanced"] {
        toml.push_str(&registration(&format!("agent-{tier}"), tier, &program, "")?);
    }
    bed.apply(&toml)?;
    Ok((bed, host))
}

/// Trace and parent of an agent, by a number.
fn parent(number: u8) -> (String, String, String) {
    let (trace, span) = (format!("{number:02x}").repeat(16), format!("{:02x}", number ^ 0xff).repeat(8));
    let text = format!("00-{trace}-{span}-01");
    (trace, span, text)
}

/// The spans of a trace, once `count` have come.
fn spans(collector: &Collector, trace: &str, count: usize) -> Result<Vec<Spanned>> {
    wait_until(&format!("{count} spans of trace {trace}"), || {
        let spans = collector.of_trace(trace);
        (spans.len() >= count).then_some(spans)
    })
    .with_context(|| format!("{:#?}", collector.spans()))
}

/// Bodies of the records of SVIDs, oldest first.
fn records(bed: &Bed) -> Result<Vec<serde_json::Value>> {
    let shown: serde_json::Value =
        serde_json::from_str(&bed.hallmark_ok(&["records", "--limit", "1000", "--output", "json"])?)?;
    let records = shown["records"].as_array().context("records")?;
    Ok(records.iter().filter(|record| record["kind"] == "svid").cloned().collect())
}

/// The chain from the agent's span `from` to the commit, each the parent of the next; the record's number.
fn follow(spans: &[Spanned], from: &str) -> Result<String> {
    let watch = Collector::one(spans, HOSTD, "AgentIdentity/WatchIdentity")?;
    ensure!(watch.parent == from, "the agent's span is not the parent: {watch:?}");
    let asked = Collector::one(spans, HOSTD, "issue")?;
    ensure!(asked.parent == watch.id, "{asked:?}");
    let answered = Collector::one(spans, ISSUER, "Issue")?;
    ensure!(answered.parent == asked.id, "{answered:?}");
    let mut last = 0;
    for step in ["appraise", "decide", "sign", "commit"] {
        let step = Collector::one(spans, ISSUER, step)?;
        ensure!(step.parent == answered.id, "{step:?}");
        ensure!(step.time.0 >= last && step.time.1 <= answered.time.1, "{step:?} is out of order");
        last = step.time.1;
    }
    Ok(answered.attribute("hallmark.record").context("no record")?.to_owned())
}

#[test]
fn one_trace_goes_from_the_agent_to_the_commit_and_the_record_names_it() -> Result<()> {
    let collector = Collector::start()?;
    let (mut bed, mut host) = bed(&collector.config(), &collector.config())?;
    let (trace, span, traceparent) = parent(0xa1);
    let mut agent = Agent::watching_in(&host, "agent-advanced", &[&traceparent])?;
    let shown = agent.identity()?;
    let all = spans(&collector, &trace, 9)?;
    let record = follow(&all, &span)?;
    let watch = Collector::one(&all, HOSTD, "AgentIdentity/WatchIdentity")?;
    for step in ["quote", "key"] {
        ensure!(Collector::one(&all, HOSTD, step)?.parent == watch.id, "{step}");
    }
    assert_eq!(all.len(), 9, "{all:#?}");
    assert_eq!(watch.attribute("hallmark.agent"), Some("agent-advanced"));
    assert_eq!(watch.attribute("hallmark.cause"), Some("first"));
    let answered = Collector::one(&all, ISSUER, "Issue")?;
    assert_eq!(answered.attribute("hallmark.host"), Some("host-1"));
    assert_eq!(answered.attribute("hallmark.instance"), watch.attribute("hallmark.instance"));

    // The record of the decision, in the log, and both daemons' lines name the trace.
    let recorded = records(&bed)?;
    let named: Vec<_> = recorded.iter().filter(|r| r["body"]["trace_id"] == trace.as_str()).collect();
    assert_eq!(named.len(), 1);
    assert_eq!(named[0]["number"].to_string().trim_matches('"'), record);
    for log in [bed.issuer()?.log(), host.daemon()?.log()] {
        assert!(
            log.contains(&format!("trace_id={trace}")) || log.contains(&format!("trace_id=\"{trace}\"")),
            "{log}"
        );
    }

    // A signature in another trace.
    let (signing, of_agent, traceparent) = parent(0xb2);
    agent.tell(&format!("sign {} {DIGEST} {traceparent}", shown.handle.context("a handle")?))?;
    agent.says("signed")?;
    let all = spans(&collector, &signing, 2)?;
    let call = Collector::one(&all, HOSTD, "AgentIdentity/Sign")?;
    assert_eq!(call.parent, of_agent);
    assert_eq!(Collector::one(&all, HOSTD, "sign")?.parent, call.id);

    // A refusal is in its trace, too, from beginning to end.
    bed.clear_policies()?;
    agent.says("ended")?;
    let (refused, _, traceparent) = parent(0xc3);
    Agent::watching_in(&host, "agent-enterprise", &[&traceparent])?.says("ended")?;
    let all = spans(&collector, &refused, 7)?;
    assert_eq!(Collector::one(&all, ISSUER, "Issue")?.error.as_deref(), Some("requirements-not-met"));
    let watch = Collector::one(&all, HOSTD, "AgentIdentity/WatchIdentity")?;
    assert_eq!(watch.error.as_deref(), Some("refused"));
    let recorded = records(&bed)?;
    let named = recorded.iter().find(|r| r["body"]["trace_id"] == refused.as_str()).context("no record")?;
    assert_eq!(named["body"]["outcome"], "refused");
    Ok(())
}

#[test]
fn agents_of_one_call_to_the_issuer_keep_their_traces_apart() -> Result<()> {
    const AGENTS: u8 = 24;
    let collector = Collector::start()?;
    let (bed, host) = bed(&collector.config(), &format!("{}{METRICS}", collector.config()))?;
    let mut agents = Vec::new();
    for number in 1..=AGENTS {
        agents.push(Agent::watching_in(&host, "agent-foundation", &[&parent(number).2])?);
    }
    for agent in &agents {
        agent.identity()?;
    }
    let mut numbers = BTreeSet::new();
    for number in 1..=AGENTS {
        let (trace, span, _) = parent(number);
        let all = spans(&collector, &trace, 8)?;
        assert_eq!(all.len(), 8, "{all:#?}");
        numbers.insert(follow(&all, &span)?);
    }
    assert_eq!(numbers.len(), usize::from(AGENTS), "two traces lead to one record");
    let named: BTreeSet<String> =
        records(&bed)?.iter().filter_map(|r| r["body"]["trace_id"].as_str().map(str::to_owned)).collect();
    assert_eq!(named, (1..=AGENTS).map(|number| parent(number).0).collect());
    Ok(())
}

#[test]
fn what_is_no_traceparent_is_passed_over_counted_and_shown_nowhere() -> Result<()> {
    let collector = Collector::start()?;
    let extra = format!("{}{METRICS}", collector.config());
    let (mut bed, mut host) = bed(&extra, &extra)?;
    let (trace, _, good) = parent(0xd4);
    let (zeros, upper) = ("0".repeat(32), good.to_uppercase());
    let cases: Vec<(Vec<String>, &str)> = vec![
        (vec!["nonsense-0af76519".to_owned()], "length"),
        (vec![good[..54].to_owned()], "length"),
        (vec![format!("{good}-extra")], "length"),
        (vec![format!("{good},{good}")], "length"),
        (vec![format!("ff{}", &good[2..])], "version"),
        (vec![upper], "form"),
        (vec![good.replace('-', "_")], "form"),
        (vec![good.replace(&trace, &zeros)], "zero"),
        (vec![good.clone(), good.clone()], "repeated"),
        (vec!["x".repeat(4000)], "form"),
    ];
    let mut expected = std::collections::BTreeMap::new();
    for (values, reason) in &cases {
        let values: Vec<&str> = values.iter().map(String::as_str).collect();
        // The identity is served all the same.
        Agent::watching_in(&host, "agent-foundation", &values)?.identity()?;
        *expected.entry(*reason).or_insert(0) += 1;
    }
    let counted = wait_until("each to be counted", || {
        let page = scraped(&host.path("metrics.sock")).ok()?;
        let all = expected.iter().all(|(reason, count)| {
            page.contains(&format!(
                "hallmark_hostd_traceparents_refused_total{{reason=\"{reason}\"}} {count}\n"
            ))
        });
        all.then_some(())
    });
    counted.with_context(|| format!("{expected:?}"))?;
    // Each began a trace of its own instead; nothing of what was sent is in a span, a record or a log.
    let own = wait_until("their own traces", || {
        let spans = collector.spans();
        let calls = spans.iter().filter(|s| s.name == "AgentIdentity/WatchIdentity" && s.parent.is_empty());
        (calls.count() == cases.len()).then_some(spans)
    })?;
    let texts = [
        format!("{own:?}"),
        bed.hallmark_ok(&["records", "--limit", "1000", "--output", "json"])?,
        bed.issuer()?.log(),
        host.daemon()?.log(),
    ];
    for text in texts {
        for sent in ["nonsense", &trace, &trace.to_uppercase(), &zeros, "xxxxxxxx", "extra"] {
            assert!(!text.contains(sent), "{sent} is shown: {text}");
        }
    }
    // The issuer was given none but sound ones.
    assert!(!scraped(&bed.path("metrics.sock"))?.lines().any(|line| {
        line.starts_with("hallmark_issuer_traceparents_refused_total") && !line.ends_with(" 0")
    }));
    Ok(())
}

#[test]
fn a_trace_that_its_beginner_does_not_keep_is_not_kept() -> Result<()> {
    let collector = Collector::start()?;
    let (bed, host) = bed(&collector.config(), &collector.config())?;
    let (unkept, _, traceparent) = parent(0xe5);
    let traceparent = traceparent.replace("-01", "-00");
    Agent::watching_in(&host, "agent-foundation", &[&traceparent])?.identity()?;
    // One that is kept, after it: when its spans have come, the other's would have, too.
    let (kept, span, traceparent) = parent(0xe6);
    Agent::watching_in(&host, "agent-foundation", &[&traceparent])?.identity()?;
    follow(&spans(&collector, &kept, 8)?, &span)?;
    assert!(collector.of_trace(&unkept).is_empty());
    // The record names both.
    let named: Vec<String> =
        records(&bed)?.iter().filter_map(|r| r["body"]["trace_id"].as_str().map(str::to_owned)).collect();
    assert_eq!(named, [unkept, kept]);
    Ok(())
}

#[test]
fn without_traces_nothing_is_looked_at_and_without_a_collector_all_goes_on() -> Result<()> {
    // Off, which is the default.
    let (bed_off, host) = bed("", METRICS)?;
    Agent::watching_in(&host, "agent-foundation", &[&parent(0xf1).2])?.identity()?;
    Agent::watching_in(&host, "agent-foundation", &["nonsense"])?.identity()?;
    assert!(records(&bed_off)?.iter().all(|record| record["body"].get("trace_id").is_none()));
    let page = scraped(&host.path("metrics.sock"))?;
    assert!(page.contains("hallmark_hostd_traceparents_refused_total{reason=\"length\"} 0\n"), "{page}");
    drop((bed_off, host));

    // On, and nobody listens there any more.
    let collector = Collector::start()?;
    let (config, metrics) = (collector.config(), format!("{}{METRICS}", collector.config()));
    drop(collector);
    let (mut bed, mut host) = bed(&config, &metrics)?;
    Agent::watching_in(&host, "agent-advanced", &[&parent(0xf2).2])?.identity()?;
    wait_until("the lost spans to be counted", || {
        let page = scraped(&host.path("metrics.sock")).ok()?;
        let lost = page.lines().find_map(|line| line.strip_prefix("hallmark_hostd_spans_unsent_total "))?;
        (lost.parse::<f64>().ok()? > 0.0).then_some(())
    })?;
    assert_eq!(
        host.daemon()?.log().matches("spans could not be sent").count(),
        1,
        "said once a minute at most"
    );
    // Both end in good order, and in time.
    host.stop()?;
    bed.stop_issuer()
}

/// A page of metrics.
fn scraped(socket: &std::path::Path) -> Result<String> {
    use std::io::{Read, Write};
    let mut stream = std::os::unix::net::UnixStream::connect(socket)?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nhost: localhost\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}
