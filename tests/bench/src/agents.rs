//! Agents on a real host: from the connection to the first SVID, and what many of them weigh.

use std::fmt::Write as _;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hallmark_client::{HallmarkClient, Tier};
use hallmark_e2e::{Bed, Host};
use serde_json::json;
use sha2::{Digest, Sha256};

use crate::process::{self, quantile};
use crate::report::Report;

const PATIENCE: Duration = Duration::from_secs(120);
/// Agents started one after the other for the time to the first SVID.
const SAMPLES: usize = 100;
/// Agents at once for the memory.
const MANY: usize = 500;

/// One agent, in a process of its own: says how long its first SVID took, and stays until told to end.
pub(crate) fn one(socket: &Path, name: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let source = runtime.block_on(async {
        let start = Instant::now();
        let mut source = HallmarkClient::connect_to(socket).await?.watch_as(name)?;
        source.wait_ready(PATIENCE).await?;
        println!("{:.3}", start.elapsed().as_secs_f64() * 1e3);
        Ok::<_, anyhow::Error>(source)
    })?;
    std::io::stdin().read_to_end(&mut Vec::new())?;
    drop(source);
    Ok(())
}

/// A running agent: it ends when its standard input does.
struct Agent {
    child: Child,
    input: Option<ChildStdin>,
    output: BufReader<std::process::ChildStdout>,
}

impl Agent {
    fn start(socket: &Path, name: &str) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args([Path::new("agent"), socket, Path::new(name)])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()?;
        let (input, output) = (child.stdin.take(), child.stdout.take().context("no output")?);
        Ok(Self { child, input, output: BufReader::new(output) })
    }

    /// The milliseconds from its connection to its first SVID, once it has it.
    fn first_svid(&mut self) -> Result<f64> {
        let mut line = String::new();
        self.output.read_line(&mut line)?;
        line.trim().parse().context("the agent got no identity")
    }

    fn end(mut self) -> Result<()> {
        self.input = None;
        self.child.wait()?;
        Ok(())
    }
}

pub(crate) fn measure(bed: &mut Bed, scale: usize, report: &mut Report) -> Result<()> {
    let mut host = Host::with_tpm(bed, "web-01")?;
    host.start(bed)?;
    let policy = bed.hallmark_ok(&["host", "pcrs", "web-01"])?;
    bed.add_policy(&policy)?;
    bed.apply(&registrations()?)?;
    memory(bed, &mut host, report)?;
    for tier in Tier::ALL {
        first_svid(&host, tier, SAMPLES / scale.min(5), report)?;
    }
    host.stop()
}

/// This very program, at each tier.
fn registrations() -> Result<String> {
    let uid = rustix::process::getuid().as_raw();
    let digest = hex::encode(Sha256::digest(std::fs::read(std::env::current_exe()?)?));
    let mut toml = String::new();
    for tier in Tier::ALL {
        writeln!(
            toml,
            "[[agent]]\nname = \"agent-{tier}\"\nowner = \"team@test.example\"\ntier = \"{tier}\""
        )?;
        writeln!(toml, "hosts = [\"web-*\"]\nselectors = [\"unix:uid:{uid}\", \"exe:sha256:{digest}\"]\n")?;
    }
    Ok(toml)
}

fn first_svid(host: &Host, tier: Tier, samples: usize, report: &mut Report) -> Result<()> {
    let name = format!("agent-{tier}");
    let mut times = Vec::new();
    // The first warms: the image's digest, the connections, the quote.
    for n in 0..=samples {
        let mut agent = Agent::start(&host.socket(), &name)?;
        let took = agent.first_svid()?;
        agent.end()?;
        if n > 0 {
            times.push(took);
        }
    }
    times.sort_by(f64::total_cmp);
    let (p50, p99) = (quantile(&times, 0.5), quantile(&times, 0.99));
    report.row(
        &format!("first SVID, {tier}, warm"),
        p50,
        "ms",
        &format!("p99 {p99} ms, {samples} agents in turn"),
    );
    report.set(&format!("first_svid_ms.{tier}_p50"), p50);
    report.set(&format!("first_svid_ms.{tier}_p99"), p99);
    Ok(())
}

fn memory(bed: &mut Bed, host: &mut Host, report: &mut Report) -> Result<()> {
    let (issuer, hostd) = (bed.issuer()?.pid(), host.daemon()?.pid());
    let idle = (process::resident(issuer)?, process::resident(hostd)?);
    let start = Instant::now();
    let mut agents =
        (0..MANY).map(|_| Agent::start(&host.socket(), "agent-foundation")).collect::<Result<Vec<_>>>()?;
    let mut times = agents.iter_mut().map(Agent::first_svid).collect::<Result<Vec<_>>>()?;
    let all = start.elapsed();
    let full = (process::resident(issuer)?, process::resident(hostd)?);
    for agent in agents {
        agent.end()?;
    }
    times.sort_by(f64::total_cmp);
    let names = [("issuer", idle.0, full.0), ("hostd", idle.1, full.1)];
    for (name, (idle, idle_own), (many, many_own)) in names {
        let beside = format!("{many_own:.1} of it its own; idle {idle:.1}, {idle_own:.1} its own");
        report.row(&format!("resident, {name}, {MANY} agents"), many, "MiB", &beside);
        report.set(&format!("rss_mib.{name}_idle"), idle);
        report.set(&format!("rss_mib.{name}_{MANY}"), many);
        report.set(&format!("rss_mib.{name}_{MANY}_anonymous"), many_own);
    }
    let burst = json!({
        "agents": MANY, "all_served_ms": process::round(all.as_secs_f64() * 1e3),
        "p50_ms": quantile(&times, 0.5), "p99_ms": quantile(&times, 0.99),
    });
    report.row(
        &format!("{MANY} agent processes at once, all served"),
        all.as_secs_f64() * 1e3,
        "ms",
        &format!("first SVID p50 {} ms, p99 {} ms", quantile(&times, 0.5), quantile(&times, 0.99)),
    );
    report.set("burst", burst);
    Ok(())
}
