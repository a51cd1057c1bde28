//! `hallmark agent …`

use std::path::Path;

use clap::Subcommand;
use hallmark_core::id::{AgentName, HostId, InstanceId};
use hallmark_proto::admin::{Agent, EndAgentRequest, Instance, ListAgentsRequest, ShowAgentRequest};
use serde::Serialize;

use crate::admin::{connect, failed};
use crate::failure::Failure;
use crate::moment::{Moment, now, span};
use crate::output::{Output, Page, Present, list, word};

#[derive(Debug, Subcommand)]
pub(crate) enum AgentCommand {
    /// All registered agents
    List,
    /// One agent: its registration and its instances
    Show {
        /// The agent's name
        agent: AgentName,
    },
    /// End an agent's instances: their certificates are revoked, their hosts take their keys away
    #[command(after_help = "\
What ends does not begin again by itself, but the agent may start anew while its registration stands: to keep it from
that, remove the registration (`hallmark apply --prune`) or disable the host (`hallmark host disable`).")]
    End {
        /// The agent's name
        agent: AgentName,
        /// Only those on this host
        #[arg(long)]
        host: Option<HostId>,
        /// Only this one
        #[arg(long, value_name = "ID")]
        instance: Option<InstanceId>,
    },
}

pub(crate) async fn run(admin: &Path, command: AgentCommand, output: &Output) -> Result<u8, Failure> {
    let mut issuer = connect(admin).await?;
    match command {
        AgentCommand::List => {
            let answer = issuer.list_agents(ListAgentsRequest {}).await.map_err(failed)?.into_inner();
            output.show(&AgentsView { agents: answer.agents.into_iter().map(AgentView::from).collect() })?;
        }
        AgentCommand::Show { agent } => {
            let request = ShowAgentRequest { agent: agent.to_string() };
            output.show(&AgentView::from(issuer.show_agent(request).await.map_err(failed)?.into_inner()))?;
        }
        AgentCommand::End { agent, host, instance } => {
            let request = EndAgentRequest {
                agent: agent.to_string(),
                host_id: host.map(|h| h.to_string()).unwrap_or_default(),
                instance_id: instance.map(|i| i.to_string()).unwrap_or_default(),
            };
            let ended = issuer.end_agent(request).await.map_err(failed)?.into_inner().ended;
            output.show(&EndedView { agent: agent.to_string(), ended })?;
        }
    }
    Ok(0)
}

#[derive(Serialize)]
struct EndedView {
    agent: String,
    ended: Vec<String>,
}

impl Present for EndedView {
    fn present(&self, page: &mut Page) {
        page.line(format!("{} of {} ended.", super::host::instances(self.ended.len()), self.agent));
        self.ended.iter().for_each(|id| page.line(format!("  {id}")));
    }
}

#[derive(Serialize)]
struct AgentsView {
    agents: Vec<AgentView>,
}

#[derive(Serialize)]
struct AgentView {
    agent: String,
    spiffe_id: String,
    revision: u64,
    tier: String,
    owner: String,
    hosts: Vec<String>,
    selectors: Vec<String>,
    custody: String,
    bind_pcrs: Vec<u32>,
    lifetime_seconds: u64,
    dns_names: Vec<String>,
    capabilities: Vec<String>,
    live_instances: u64,
    instances: Vec<InstanceView>,
}

#[derive(Serialize)]
struct InstanceView {
    instance_id: String,
    host_id: String,
    serial: String,
    custody: String,
    begun_at: Moment,
    issued_at: Moment,
    not_after: Moment,
    state: String,
}

impl From<Agent> for AgentView {
    fn from(a: Agent) -> Self {
        Self {
            agent: a.agent,
            spiffe_id: a.spiffe_id,
            revision: a.revision,
            tier: a.tier,
            owner: a.owner,
            hosts: a.hosts,
            selectors: a.selectors,
            custody: a.custody,
            bind_pcrs: a.bind_pcrs,
            lifetime_seconds: a.lifetime_seconds,
            dns_names: a.dns_names,
            capabilities: a.capabilities,
            live_instances: a.live_instances,
            instances: a.instances.into_iter().map(InstanceView::from).collect(),
        }
    }
}

impl From<Instance> for InstanceView {
    fn from(i: Instance) -> Self {
        Self {
            instance_id: i.instance_id,
            host_id: i.host_id,
            serial: i.serial,
            custody: i.custody,
            begun_at: Moment(i.begun_at),
            issued_at: Moment(i.issued_at),
            not_after: Moment(i.not_after),
            state: i.state,
        }
    }
}

impl Present for AgentsView {
    fn present(&self, page: &mut Page) {
        let rows = self.agents.iter().map(|a| {
            let hosts = list(&a.hosts);
            vec![
                word(&a.agent),
                word(&a.tier),
                word(&a.custody),
                word(&a.owner),
                hosts,
                word(a.live_instances),
            ]
        });
        let header = ["agent", "tier", "custody", "owner", "hosts", "live"];
        page.table(
            &header,
            rows.collect(),
            "No agent is registered: write a registration and `hallmark apply` it.",
        );
    }
}

impl Present for AgentView {
    fn present(&self, page: &mut Page) {
        let now = now();
        let pcrs: Vec<String> = self.bind_pcrs.iter().map(u32::to_string).collect();
        page.facts(&[
            ("agent", word(&self.agent)),
            ("SPIFFE ID", word(&self.spiffe_id)),
            ("owner", word(&self.owner)),
            ("tier", word(&self.tier)),
            ("custody", word(&self.custody)),
            ("bound to PCRs", word(pcrs.join(", "))),
            ("lifetime", word(span(self.lifetime_seconds))),
            ("hosts", list(&self.hosts)),
            ("selectors", list(&self.selectors)),
            ("DNS names", word(self.dns_names.join(", "))),
            ("capabilities", word(self.capabilities.join(", "))),
            ("revision", word(self.revision)),
            ("live instances", word(self.live_instances)),
        ]);
        page.gap();
        let rows = self.instances.iter().map(|i| {
            vec![
                word(&i.instance_id),
                word(&i.host_id),
                word(&i.state),
                word(&i.custody),
                word(i.issued_at.relative(now)),
                word(i.not_after.relative(now)),
                word(&i.serial),
            ]
        });
        let header = ["instance", "host", "state", "custody", "issued", "ends", "serial"];
        page.table(&header, rows.collect(), "No instance yet.");
    }
}
