//! `hallmark records`

use std::path::Path;

use clap::Args;
use hallmark_core::id::{AgentName, HostId};
use hallmark_proto::admin::{ListRecordsRequest, Record};
use serde::Serialize;

use crate::admin::{connect, failed};
use crate::failure::Failure;
use crate::moment::Moment;
use crate::output::{Output, Page, Present, word};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hallmark records                          the latest decisions
  hallmark records --agent mailer           what was decided about one agent
  hallmark records --after 1041             what came after record 1041
  hallmark records -o json | jq '.records[] | select(.outcome == \"refused\")'")]
pub(crate) struct RecordsArgs {
    /// Only records with a higher number; without it, the latest
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    after: u64,
    /// At most this many
    #[arg(long, value_name = "COUNT", default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..=10_000))]
    limit: u32,
    /// Only about this agent
    #[arg(long, value_name = "AGENT")]
    agent: Option<AgentName>,
    /// Only about this host
    #[arg(long, value_name = "HOST")]
    host: Option<HostId>,
}

pub(crate) async fn run(admin: &Path, args: RecordsArgs, output: &Output) -> Result<u8, Failure> {
    let request = ListRecordsRequest {
        after: args.after,
        limit: args.limit,
        agent: args.agent.map(|a| a.to_string()).unwrap_or_default(),
        host_id: args.host.map(|h| h.to_string()).unwrap_or_default(),
    };
    let answer = connect(admin).await?.list_records(request).await.map_err(failed)?.into_inner();
    output.show(&RecordsView { records: answer.records.into_iter().map(RecordView::from).collect() })?;
    Ok(0)
}

#[derive(Serialize)]
struct RecordsView {
    records: Vec<RecordView>,
}

#[derive(Serialize)]
struct RecordView {
    number: u64,
    at: Moment,
    kind: String,
    outcome: String,
    /// The canonical record; a string where the issuer sent something that is not JSON.
    body: serde_json::Value,
}

impl From<Record> for RecordView {
    fn from(r: Record) -> Self {
        let body = serde_json::from_str(&r.body).unwrap_or(serde_json::Value::String(r.body));
        Self { number: r.number, at: Moment(r.at), kind: r.kind, outcome: r.outcome, body }
    }
}

impl Present for RecordsView {
    fn present(&self, page: &mut Page) {
        let rows = self.records.iter().map(|r| {
            let at = r.at.rfc3339().unwrap_or_else(|| "-".to_owned());
            vec![word(r.number), word(at), word(&r.kind), word(&r.outcome), word(summary(&r.body))]
        });
        page.table(&["no", "at", "kind", "outcome", "about"], rows.collect(), "No record.");
    }
}

/// The plain values of a record's top level, as `name=value`; the rest is in the JSON.
pub(crate) fn summary(body: &serde_json::Value) -> String {
    let serde_json::Value::Object(fields) = body else {
        return body.to_string();
    };
    let told = ["v", "version", "at", "time", "kind", "outcome", "number"];
    let plain =
        fields.iter().filter(|(name, _)| !told.contains(&name.as_str())).filter_map(|(name, value)| {
            match value {
                serde_json::Value::String(s) if !s.is_empty() => Some(format!("{name}={s}")),
                serde_json::Value::Number(n) => Some(format!("{name}={n}")),
                serde_json::Value::Bool(b) => Some(format!("{name}={b}")),
                _ => None,
            }
        });
    plain.collect::<Vec<_>>().join(" ")
}
