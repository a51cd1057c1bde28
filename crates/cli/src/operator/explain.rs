//! `hallmark explain`

use std::path::Path;

use clap::Args;
use hallmark_core::id::{AgentName, HostId};
use hallmark_proto::admin::{ExplainRequest, ExplainResponse, Requirement};
use serde::Serialize;

use crate::admin::{connect, failed};
use crate::failure::Failure;
use crate::output::{Output, Page, Present, Tone, toned, word};

/// The last column answers one question of each control: does it make the attack impossible, or only tedious?
#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  hallmark explain mailer --host web-01

Exit code 1 when the registered tier cannot be reached on that host.")]
pub(crate) struct ExplainArgs {
    /// The agent's name
    agent: AgentName,
    /// The host it would run on
    #[arg(long, value_name = "HOST")]
    host: HostId,
}

pub(crate) async fn run(admin: &Path, args: ExplainArgs, output: &Output) -> Result<u8, Failure> {
    let request = ExplainRequest { agent: args.agent.to_string(), host_id: args.host.to_string() };
    let answer = connect(admin).await?.explain(request).await.map_err(failed)?.into_inner();
    let view = Explanation::new(&args, answer);
    output.show(&view)?;
    Ok(u8::from(!view.reachable))
}

#[derive(Serialize)]
struct Explanation {
    agent: String,
    host_id: String,
    registered_tier: String,
    reachable: bool,
    tiers: Vec<TierView>,
}

#[derive(Serialize)]
struct TierView {
    tier: String,
    reachable: bool,
    requirements: Vec<RequirementView>,
}

#[derive(Serialize)]
struct RequirementView {
    code: String,
    title: String,
    state: String,
    found: String,
    attack: String,
    attack_detail: String,
}

impl Explanation {
    fn new(args: &ExplainArgs, answer: ExplainResponse) -> Self {
        let tiers: Vec<TierView> = answer
            .tiers
            .into_iter()
            .map(|t| TierView {
                tier: t.tier,
                reachable: t.reachable,
                requirements: t.requirements.into_iter().map(RequirementView::from).collect(),
            })
            .collect();
        let reachable = tiers.iter().any(|t| t.tier == answer.registered_tier && t.reachable);
        let registered_tier = answer.registered_tier;
        Self {
            agent: args.agent.to_string(),
            host_id: args.host.to_string(),
            registered_tier,
            reachable,
            tiers,
        }
    }
}

impl From<Requirement> for RequirementView {
    fn from(r: Requirement) -> Self {
        Self {
            code: r.code,
            title: r.title,
            state: r.state,
            found: r.found,
            attack: r.attack,
            attack_detail: r.attack_detail,
        }
    }
}

impl Present for Explanation {
    fn present(&self, page: &mut Page) {
        let verdict =
            if self.reachable { toned(Tone::Good, "reachable") } else { toned(Tone::Bad, "not reachable") };
        page.facts(&[
            ("agent", word(&self.agent)),
            ("host", word(&self.host_id)),
            ("registered tier", word(&self.registered_tier)),
            ("on this host", verdict),
        ]);
        for (place, tier) in self.tiers.iter().enumerate() {
            page.gap();
            let mark = if tier.tier == self.registered_tier { ", the registered tier" } else { "" };
            let verdict = if tier.reachable { "reachable" } else { "not reachable" };
            page.line(format!("{}: {verdict}{mark}", tier.tier));
            // What stands above with the same finding is not said again. The JSON has all of it.
            let earlier = &self.tiers[..place];
            let is_new = |r: &&RequirementView| {
                !earlier.iter().flat_map(|t| &t.requirements).any(|e| e.code == r.code && e.found == r.found)
            };
            let shown: Vec<&RequirementView> = tier.requirements.iter().filter(is_new).collect();
            let repeated = tier.requirements.len() - shown.len();
            let rows = shown.into_iter().map(|r| {
                let attack = if r.attack_detail.is_empty() {
                    r.attack.clone()
                } else {
                    format!("{}: {}", r.attack, r.attack_detail)
                };
                vec![word(&r.state), word(&r.title), word(&r.found), toned(Tone::of(&r.attack), attack)]
            });
            let empty = if repeated == 0 { "  nothing is demanded" } else { "  nothing more" };
            page.table(&["state", "requirement", "found", "attack is"], rows.collect(), empty);
            if repeated > 0 {
                page.line(format!("and {repeated} as above"));
            }
        }
    }
}
