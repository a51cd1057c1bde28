//! `hallmark whoami`

use std::path::Path;

use hallmark_client::HallmarkClient;
use hallmark_proto::agent::WhoAmIResponse;
use serde::Serialize;

use crate::failure::{Failure, REFUSED};
use crate::output::{Output, Page, Present, Tone, list, toned, word, yes_no};

pub(crate) async fn run(socket: &Path, output: &Output) -> Result<u8, Failure> {
    let answer = HallmarkClient::connect_to(socket).await?.who_am_i().await?;
    let view = WhoAmI::from(answer);
    output.show(&view)?;
    Ok(if view.matches.iter().any(|m| m.matches) { 0 } else { REFUSED })
}

#[derive(Serialize)]
struct WhoAmI {
    host_id: String,
    trust_domain: String,
    pid: i32,
    selectors: Vec<String>,
    unobserved: Vec<String>,
    matches: Vec<MatchView>,
    host: HostView,
}

#[derive(Serialize)]
struct MatchView {
    agent: String,
    tier: String,
    custody: String,
    matches: bool,
    missing: Vec<String>,
}

#[derive(Serialize, Default)]
struct HostView {
    attested: bool,
    highest_tier: String,
    unmet: Vec<String>,
    issuer_connected: bool,
    last_error: String,
}

impl From<WhoAmIResponse> for WhoAmI {
    fn from(w: WhoAmIResponse) -> Self {
        let matches = w.matches.into_iter().map(|m| MatchView {
            agent: m.agent,
            tier: m.tier,
            custody: m.custody,
            matches: m.matches,
            missing: m.missing,
        });
        let host = w.host.map(|h| HostView {
            attested: h.attested,
            highest_tier: h.highest_tier,
            unmet: h.unmet,
            issuer_connected: h.issuer_connected,
            last_error: h.last_error,
        });
        Self {
            host_id: w.host_id,
            trust_domain: w.trust_domain,
            pid: w.pid,
            selectors: w.selectors,
            unobserved: w.unobserved,
            matches: matches.collect(),
            host: host.unwrap_or_default(),
        }
    }
}

impl Present for WhoAmI {
    fn present(&self, page: &mut Page) {
        page.facts(&[
            ("host", word(&self.host_id)),
            ("trust domain", word(&self.trust_domain)),
            ("process", word(self.pid)),
            ("host attested", yes_no(self.host.attested)),
            (
                "highest tier",
                word(if self.host.highest_tier.is_empty() { "-" } else { &self.host.highest_tier }),
            ),
            (
                "issuer",
                if self.host.issuer_connected {
                    toned(Tone::Good, "connected")
                } else {
                    toned(Tone::Bad, "away")
                },
            ),
            ("last error", toned(Tone::Bad, &self.host.last_error)),
        ]);
        for unmet in &self.host.unmet {
            page.warning(unmet);
        }
        page.gap();
        page.line("What the kernel says of this process:");
        for selector in &self.selectors {
            page.line(format!("  {selector}"));
        }
        for unobserved in &self.unobserved {
            page.warning(format!("not observed: {unobserved}"));
        }
        page.gap();
        let rows = self.matches.iter().map(|m| {
            vec![yes_no(m.matches), word(&m.agent), word(&m.tier), word(&m.custody), list(&m.missing)]
        });
        let header = ["matches", "agent", "tier", "custody", "missing selectors"];
        page.table(&header, rows.collect(), "No registration names this host.");
        if !self.matches.iter().any(|m| m.matches) {
            page.gap();
            page.line(
                "This process gets no identity: no registration matches it. The selectors are those of this",
            );
            page.line("command; another program, user or unit shows others.");
        }
    }
}
