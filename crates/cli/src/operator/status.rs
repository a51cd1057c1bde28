//! `hallmark status`

use std::path::Path;

use hallmark_proto::admin::{StatusRequest, StatusResponse, WitnessesStatus};
use serde::Serialize;

use super::ca::CaView;
use crate::admin::{connect, failed};
use crate::failure::Failure;
use crate::moment::{Moment, now};
use crate::output::{Output, Page, Present, Tone, Word, toned, word};

pub(crate) async fn run(admin: &Path, output: &Output) -> Result<u8, Failure> {
    let status = connect(admin).await?.status(StatusRequest {}).await.map_err(failed)?.into_inner();
    output.show(&StatusView::from(status))?;
    Ok(0)
}

#[derive(Serialize)]
struct StatusView {
    trust_domain: String,
    issuer_id: String,
    version: String,
    lab: bool,
    dev: bool,
    documentation_arc: bool,
    oid_arc: String,
    listen: String,
    started_at: Moment,
    ca_backend: String,
    hosts: u64,
    hosts_connected: u64,
    agents: u64,
    live_credentials: u64,
    issued: u64,
    refused: u64,
    registrations_revision: u64,
    log_size: u64,
    log_verifier: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    witnesses: Option<WitnessesView>,
    cas: Vec<CaView>,
}

impl From<StatusResponse> for StatusView {
    fn from(s: StatusResponse) -> Self {
        Self {
            trust_domain: s.trust_domain,
            issuer_id: s.issuer_id,
            version: s.version,
            lab: s.lab,
            dev: s.dev,
            documentation_arc: s.documentation_arc,
            oid_arc: s.oid_arc,
            listen: s.listen,
            started_at: Moment(s.started_at),
            ca_backend: s.ca_backend,
            hosts: s.hosts,
            hosts_connected: s.hosts_connected,
            agents: s.agents,
            live_credentials: s.live_credentials,
            issued: s.issued,
            refused: s.refused,
            registrations_revision: s.registrations_revision,
            log_size: s.log_size,
            log_verifier: s.log_verifier,
            witnesses: s.witnesses.map(WitnessesView::from),
            cas: s.cas.into_iter().map(CaView::from).collect(),
        }
    }
}

impl Present for StatusView {
    fn present(&self, page: &mut Page) {
        let now = now();
        let kind = if self.lab {
            toned(Tone::Warning, "lab: software TPMs are accepted")
        } else {
            word("production")
        };
        let keys = if self.dev { Tone::Warning } else { Tone::Plain };
        page.facts(&[
            ("trust domain", word(&self.trust_domain)),
            ("kind", kind),
            ("issuer", word(&self.issuer_id)),
            ("version", word(&self.version)),
            ("listens on", word(&self.listen)),
            ("started", word(Moment::text(self.started_at, now))),
            ("CA keys", toned(keys, &self.ca_backend)),
            ("OID arc", word(&self.oid_arc)),
            ("hosts", word(format!("{} ({} connected)", self.hosts, self.hosts_connected))),
            (
                "agents",
                word(format!("{} (registrations at revision {})", self.agents, self.registrations_revision)),
            ),
            (
                "credentials",
                word(format!(
                    "{} live, {} issued, {} refused",
                    self.live_credentials, self.issued, self.refused
                )),
            ),
            ("log", word(format!("{} entries, key {}", self.log_size, self.log_verifier))),
        ]);
        if let Some(witnesses) = &self.witnesses {
            page.facts(&[("witnesses", witnesses.word())]);
            page.gap();
            let rows = witnesses.at.iter().map(|witness| witness.row(now)).collect();
            page.table(&["witness", "cosigned", "when", "state"], rows, "No witness.");
        }
        page.gap();
        page.table(&CaView::HEADER, self.cas.iter().map(|ca| ca.row(now)).collect(), "No CA.");
        self.warnings(page);
    }
}

/// The log's witnesses.
#[derive(Serialize)]
struct WitnessesView {
    quorum: u32,
    required: bool,
    published_size: u64,
    witnessed: bool,
    at: Vec<WitnessView>,
}

#[derive(Serialize)]
struct WitnessView {
    name: String,
    url: String,
    cosigned_size: u64,
    cosigned_at: Moment,
    #[serde(skip_serializing_if = "String::is_empty")]
    problem: String,
}

impl From<WitnessesStatus> for WitnessesView {
    fn from(s: WitnessesStatus) -> Self {
        let at = s.at.into_iter().map(|w| WitnessView {
            name: w.name,
            url: w.url,
            cosigned_size: w.cosigned_size,
            cosigned_at: Moment(w.cosigned_at),
            problem: w.problem,
        });
        Self {
            quorum: s.quorum,
            required: s.required,
            published_size: s.published_size,
            witnessed: s.witnessed,
            at: at.collect(),
        }
    }
}

impl WitnessesView {
    fn word(&self) -> Word {
        let required = if self.required { ", required" } else { "" };
        let (tone, quorum) = match self.witnessed {
            true => (Tone::Good, "has its quorum"),
            false => (Tone::Bad, "lacks its quorum"),
        };
        let Self { quorum: needed, published_size: size, .. } = self;
        let of = self.at.len();
        toned(
            tone,
            format!("{needed} of {of}{required}; the published checkpoint of {size} entries {quorum}"),
        )
    }
}

impl WitnessView {
    fn row(&self, now: i64) -> Vec<Word> {
        let state = match self.problem.as_str() {
            "" => toned(Tone::Good, "cosigns"),
            problem => toned(Tone::Bad, problem),
        };
        let (size, at) = match self.cosigned_size {
            0 => (word("-"), word("-")),
            size => (word(format!("{size} entries")), word(Moment::text(self.cosigned_at, now))),
        };
        vec![word(&self.name), size, at, state]
    }
}

impl StatusView {
    fn warnings(&self, page: &mut Page) {
        if self.lab || self.dev || self.documentation_arc {
            page.gap();
        }
        if self.lab {
            page.warning(
                "Lab trust domain: a software TPM counts as one here. Its certificates prove no hardware.",
            );
        }
        if self.dev {
            page.warning("The CA keys are in software (--dev): whoever reads the issuer's memory or disk can mint any identity.");
        }
        if self.documentation_arc {
            page.warning("The OID arc is the documentation arc of RFC 5612: set your own (an IANA private enterprise number is free) at `hallmark-issuer init`.");
        }
    }
}
