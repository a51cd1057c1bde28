//! Issuance over mutual TLS on persistent connections, as a host daemon asks for it.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, bail};
use futures::future::try_join_all;
use hallmark_core::id::InstanceId;
use hallmark_e2e::{Bed, Rogue, csr};
use hallmark_proto::issuer as wire;
use hallmark_proto::issuer::issuance_client::IssuanceClient;
use rcgen::KeyPair;
use serde_json::json;
use tonic::transport::Channel;

use crate::parts::{self, Parts};
use crate::process::{self, quantile, round};
use crate::report::Report;

const CONNECTIONS: usize = 8;
/// Calls in flight on each connection, when each carries one item.
const IN_FLIGHT: usize = 8;
/// Items in a large call: as many as the issuer takes.
const BATCH: usize = 64;
/// Keys that requests are made of, in turn.
const KEYS: usize = 256;

const SINGLES: usize = 24_000;
const BATCHES: usize = 480;

/// What a host daemon reports of a process under systemd.
const SELECTORS: [&str; 8] = [
    "unix:uid:1001",
    "unix:gid:1001",
    "unix:gid:100",
    "unix:user:mailbot",
    "exe:path:/usr/lib/mailbot/agent",
    "exe:sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    "systemd:unit:mailbot.service",
    "cgroup:path:/system.slice/mailbot.service",
];

const REGISTRATION: &str = r#"
[[agent]]
name = "mailbot"
owner = "mail-team@example.org"
tier = "foundation"
hosts = ["web-*"]
selectors = ["unix:user:mailbot", "systemd:unit:mailbot.service"]
"#;

/// One way of asking.
#[derive(Clone, Copy)]
struct Load {
    in_flight: usize,
    batch: usize,
    calls: usize,
}

/// What a load did.
struct Measured {
    cpu_us: f64,
    per_s: f64,
    p50_ms: f64,
    p99_ms: f64,
    items: usize,
}

impl Measured {
    fn json(&self, parts: f64) -> serde_json::Value {
        json!({
            "cpu_us": round(self.cpu_us), "ratio": round(self.cpu_us / parts), "per_s": round(self.per_s),
            "p50_ms": self.p50_ms, "p99_ms": self.p99_ms, "n": self.items,
        })
    }

    fn row(&self, what: &str, parts: f64, report: &mut Report) {
        let beside = format!(
            "{:.2} x its parts; {:.0}/s; p50 {:.2} ms, p99 {:.2} ms a call",
            self.cpu_us / parts,
            self.per_s,
            self.p50_ms,
            self.p99_ms
        );
        report.row(what, self.cpu_us, "CPU us", &beside);
    }
}

/// The CA key in the issuer's memory. The parts are measured before and after.
pub(crate) async fn in_memory(bed: &mut Bed, scale: usize, report: &mut Report) -> Result<()> {
    let alone = Parts::alone()?.sum();
    let before = Parts::now()?;
    let (single, batch) = both(bed, scale).await?;
    let parts = before.between(Parts::now()?);
    let sum = parts.sum();
    report.row(
        "bare parts of one issuance",
        sum,
        "CPU us",
        &format!(
            "verification {:.1}, signature {:.1}, certificate {:.1}; every CPU busy, as under load (else {alone:.1})",
            parts.verify, parts.sign, parts.build
        ),
    );
    single.row("issuance, one a call", sum, report);
    batch.row("issuance, 64 a call", sum, report);
    report.set("issuance.parts_us", round(sum));
    report.set("issuance.parts_alone_us", round(alone));
    report.set(
        "issuance.parts",
        json!({ "verify_us": parts.verify, "sign_us": parts.sign, "build_us": parts.build }),
    );
    report.set("issuance.single", single.json(sum));
    report.set("issuance.batch64", batch.json(sum));
    Ok(())
}

/// The CA key in a SoftHSM token, whose signatures the issuer verifies before it believes them.
pub(crate) async fn in_softhsm(bed: &mut Bed, scale: usize, report: &mut Report) -> Result<()> {
    let scale = scale * 2;
    let (parts, token) = (Parts::now()?, parts::softhsm_sign()?);
    let (single, batch) = both(bed, scale).await?;
    let sum = 2.0 * parts.verify + token + parts.build;
    report.row(
        "bare parts, SoftHSM",
        sum,
        "CPU us",
        &format!(
            "two verifications {:.1}, signature {token:.1}, certificate {:.1}",
            2.0 * parts.verify,
            parts.build
        ),
    );
    single.row("issuance with SoftHSM, one a call", sum, report);
    batch.row("issuance with SoftHSM, 64 a call", sum, report);
    report.set("issuance.softhsm", single.json(sum));
    report.set("issuance.softhsm.parts_us", round(sum));
    report.set("issuance.softhsm.sign_us", token);
    report.set("issuance.softhsm.batch64", batch.json(sum));
    Ok(())
}

async fn both(bed: &mut Bed, scale: usize) -> Result<(Measured, Measured)> {
    bed.apply(REGISTRATION)?;
    let host = Rogue::joined(bed, "web-01").await?;
    let channels: Vec<Channel> = (0..CONNECTIONS).map(|_| host.connection(bed)).collect::<Result<_>>()?;
    let requests = Arc::new(requests(bed)?);
    let pid = bed.issuer()?.pid();
    let single = Load { in_flight: IN_FLIGHT, batch: 1, calls: SINGLES / scale };
    let batch = Load { in_flight: 1, batch: BATCH, calls: BATCHES / scale };
    run(pid, &channels, &requests, Load { calls: 1000 / scale.min(4), ..single }).await?;
    let single = run(pid, &channels, &requests, single).await?;
    let batch = run(pid, &channels, &requests, batch).await?;
    Ok((single, batch))
}

/// Batches of 64 over these beds' issuers at once, one host at all of them; how many were issued, and in how many
/// seconds. `begun` is called when everything is ready, and what it gives comes back with the rest.
pub(crate) async fn together<T>(
    beds: &[&Bed],
    calls: usize,
    begun: impl FnOnce() -> Result<T>,
) -> Result<(usize, f64, T)> {
    let first = beds.first().context("no issuer")?;
    first.apply(REGISTRATION)?;
    let host = Rogue::joined(first, "web-01").await?;
    let requests = Arc::new(requests(first)?);
    let mut channels = Vec::new();
    for place in 0..CONNECTIONS {
        channels.push(host.connection(beds[place % beds.len()])?);
    }
    let (warm, left) = (Arc::new(AtomicUsize::new(2 * CONNECTIONS)), Arc::new(AtomicUsize::new(calls)));
    let mut start = None;
    let mut state = None;
    let mut begun = Some(begun);
    for left in [warm, left] {
        if left.load(Ordering::Relaxed) == calls {
            state = begun.take().map(|begun| begun()).transpose()?;
            start = Some(Instant::now());
        }
        let workers = channels.iter().map(|channel| {
            tokio::spawn(ask(IssuanceClient::new(channel.clone()), requests.clone(), left.clone(), BATCH))
        });
        for worker in try_join_all(workers).await? {
            worker?;
        }
    }
    let seconds = start.context("not begun")?.elapsed().as_secs_f64();
    Ok((calls * BATCH, seconds, state.context("not begun")?))
}

/// Certificate requests of as many keys.
fn requests(bed: &Bed) -> Result<Vec<Vec<u8>>> {
    let uri = format!("spiffe://{}/agent/mailbot", bed.trust_domain());
    (0..KEYS).map(|_| Ok(csr(&KeyPair::generate()?, Some(&uri)))).collect()
}

async fn run(pid: u32, channels: &[Channel], requests: &Arc<Vec<Vec<u8>>>, load: Load) -> Result<Measured> {
    let left = Arc::new(AtomicUsize::new(load.calls));
    let (cpu, start) = (process::cpu(pid)?, Instant::now());
    let workers =
        channels.iter().flat_map(|channel| std::iter::repeat_n(channel, load.in_flight)).map(|channel| {
            let (client, requests, left) =
                (IssuanceClient::new(channel.clone()), requests.clone(), left.clone());
            tokio::spawn(ask(client, requests, left, load.batch))
        });
    let mut latencies = Vec::with_capacity(load.calls);
    for worker in try_join_all(workers).await? {
        latencies.extend(worker?);
    }
    let (wall, cpu) = (start.elapsed(), process::cpu(pid)? - cpu);
    latencies.sort_by(f64::total_cmp);
    let items = load.calls * load.batch;
    Ok(Measured {
        cpu_us: cpu.as_secs_f64() * 1e6 / items as f64,
        per_s: items as f64 / wall.as_secs_f64(),
        p50_ms: quantile(&latencies, 0.5),
        p99_ms: quantile(&latencies, 0.99),
        items,
    })
}

/// Calls one after the other until none are left; the milliseconds each took.
async fn ask(
    mut client: IssuanceClient<Channel>,
    requests: Arc<Vec<Vec<u8>>>,
    left: Arc<AtomicUsize>,
    batch: usize,
) -> Result<Vec<f64>> {
    let mut latencies = Vec::new();
    while let Ok(n) = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| n.checked_sub(1)) {
        let items = (0..batch).map(|i| item(&requests[(n * batch + i) % requests.len()])).collect();
        let start = Instant::now();
        let response = client.issue(wire::IssueRequest { items }).await?.into_inner();
        latencies.push(start.elapsed().as_secs_f64() * 1e3);
        for result in response.results {
            match result.outcome.context("no outcome")? {
                wire::issue_result::Outcome::Issued(_) => {}
                wire::issue_result::Outcome::Refused(refused) => bail!("refused: {refused:?}"),
            }
        }
    }
    Ok(latencies)
}

/// One item, for a new instance.
fn item(csr: &[u8]) -> wire::IssueItem {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let instance = InstanceId::drawn_at(since_1970.as_millis() as u64, rand::random());
    wire::IssueItem {
        agent: "mailbot".to_owned(),
        instance_id: instance.as_bytes().to_vec().into(),
        csr: csr.to_vec().into(),
        selectors: SELECTORS.map(str::to_owned).to_vec(),
        key: Some(wire::issue_item::Key::Software(wire::SoftwareKey {})),
        renews: Vec::new().into(),
        traceparent: String::new(),
    }
}
