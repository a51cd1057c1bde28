//! `hallmark status`

use std::path::Path;

use hallmark_proto::admin::{StatusRequest, StatusResponse};
use serde::Serialize;

use super::ca::CaView;
use crate::admin::{connect, failed};
use crate::failure::Failure;
use crate::moment::{Moment, now};
use crate::output::{Output, Page, Present, Tone, toned, word};

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
        page.gap();
        page.table(&CaView::HEADER, self.cas.iter().map(|ca| ca.row(now)).collect(), "No CA.");
        self.warnings(page);
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
