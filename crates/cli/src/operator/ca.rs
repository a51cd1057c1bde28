//! `hallmark ca …`

use std::path::{Path, PathBuf};

use clap::Subcommand;
use hallmark_core::tier::Hierarchy;
use hallmark_proto::admin::{
    CaStatus, CasResponse, InstallCaRequest, ListCasRequest, RequestCaRequest, RotateCaRequest,
    TaintCaRequest,
};
use serde::Serialize;

use crate::admin::{connect, failed};
use crate::failure::Failure;
use crate::moment::{Moment, now};
use crate::output::{Output, Page, Present, Tone, toned, word};

#[derive(Debug, Subcommand)]
pub(crate) enum CaCommand {
    /// The CAs: where each stands, until when, and what is still to come
    List {
        /// Those that are over, too
        #[arg(long)]
        all: bool,
    },
    /// Replace an issuing CA now, or begin to replace a root
    #[command(after_help = "\
A new issuing CA under the same root signs at once; the one before it signs lists of what is revoked until the last
certificate that it signed has ended. Then its key is destroyed.

A new root is in the bundle, and with every connected host, for ca.rotation.overlap before anything is signed under it:
time for relying parties to take it up. The old root leaves the bundle once nothing under it lives.

Examples:
  hallmark ca rotate                      all four issuing CAs
  hallmark ca rotate enterprise --root")]
    Rotate {
        /// A tier, or infrastructure; all four if none is named
        hierarchy: Option<Hierarchy>,
        /// The root, and the issuing CA with it
        #[arg(long)]
        root: bool,
    },
    /// Take the trust from a CA: another signs at once, and whoever holds what it signed renews
    #[command(after_help = "\
The renewals are spread so that the issuer keeps up (ca.rotation.renewals_per_second). What has not been renewed
ca.rotation.taint_grace after that is revoked, and the instances that hold nothing else end.

Relying parties know nothing of an issuing CA that is tainted under a good root, unless they read its CRL, and that
CRL cannot list what a thief of the key has signed. Where the key may be stolen, taint the root: it leaves the bundle.

Examples:
  hallmark ca taint enterprise --reason 'HSM firmware flaw'
  hallmark ca taint enterprise --root --reason 'the token was stolen'")]
    Taint {
        /// A tier, or infrastructure
        hierarchy: Hierarchy,
        /// The root, and every issuing CA under it
        #[arg(long)]
        root: bool,
        /// Which one, as `hallmark ca list` counts them; the one in use if none is named
        #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
        generation: Option<u32>,
        /// Why; it stands in the record
        #[arg(long)]
        reason: String,
    },
    /// Print the request (PKCS#10, PEM) for an issuing CA's certificate, for an offline root
    #[command(after_help = "\
The key is made in the issuer's token, unless one waits for its certificate already. The request's subject and
extensions are those that the certificate must have. With openssl, on the root's own machine:
  openssl x509 -req -in enterprise.csr -CA root.pem -CAkey root.key -sha384 -days 365 -copy_extensions copyall \\
    -extfile <(echo authorityKeyIdentifier=keyid) -out enterprise.pem
(-sha384 for a root on P-384, -sha256 for one on P-256.)

Example:
  hallmark ca csr enterprise > enterprise.csr")]
    Csr {
        /// A tier, or infrastructure
        hierarchy: Hierarchy,
    },
    /// Take the certificate that a root made for such a request
    #[command(after_help = "\
It must be what the issuer would have made itself; every fault is named. Under a root that is in use it signs at once;
a root that is new here is put into the bundle first, and signs after ca.rotation.overlap.

Example:
  hallmark ca install enterprise enterprise.pem --root root.pem")]
    Install {
        /// A tier, or infrastructure
        hierarchy: Hierarchy,
        /// The certificate, PEM or DER
        certificate: PathBuf,
        /// The root that signed it, PEM or DER, where it is new here
        #[arg(long, value_name = "FILE")]
        root: Option<PathBuf>,
    },
}

pub(crate) async fn run(admin: &Path, command: CaCommand, output: &Output) -> Result<u8, Failure> {
    let mut issuer = connect(admin).await?;
    match command {
        CaCommand::List { all } => {
            let answer = issuer.list_cas(ListCasRequest { all }).await.map_err(failed)?.into_inner();
            output.show(&CasView::from(answer))?;
        }
        CaCommand::Rotate { hierarchy, root } => {
            let hierarchy = hierarchy.map(|h| h.to_string()).unwrap_or_default();
            let request = RotateCaRequest { hierarchy, root };
            let answer = issuer.rotate_ca(request).await.map_err(failed)?.into_inner();
            output.show(&CasView::from(answer))?;
        }
        CaCommand::Taint { hierarchy, root, generation, reason } => {
            let request = TaintCaRequest {
                hierarchy: hierarchy.to_string(),
                root,
                generation: generation.unwrap_or(0),
                reason,
            };
            let answer = issuer.taint_ca(request).await.map_err(failed)?.into_inner();
            output.show(&CasView::from(answer))?;
        }
        CaCommand::Csr { hierarchy } => {
            let request = RequestCaRequest { hierarchy: hierarchy.to_string() };
            let made = issuer.request_ca(request).await.map_err(failed)?.into_inner();
            let view = Request { csr: pem(CSR, &made.csr), generation: made.generation, key: made.key };
            output.show(&view)?;
            output.note(&format!(
                "For the {hierarchy} issuing CA {}: have the root sign it, then `hallmark ca install {hierarchy} FILE`.",
                view.generation
            ));
        }
        CaCommand::Install { hierarchy, certificate, root } => {
            let request = InstallCaRequest {
                hierarchy: hierarchy.to_string(),
                certificate: read(&certificate)?.into(),
                root: root.as_deref().map(read).transpose()?.unwrap_or_default().into(),
            };
            let answer = issuer.install_ca(request).await.map_err(failed)?.into_inner();
            if !answer.faults.is_empty() {
                let faults: Vec<String> = answer.faults.iter().map(|f| format!("\n  - {f}")).collect();
                return Err(Failure {
                    code: "invalid",
                    ..Failure::refused(format!(
                        "{} was not installed, for {} fault{}:{}",
                        certificate.display(),
                        faults.len(),
                        if faults.len() == 1 { "" } else { "s" },
                        faults.concat()
                    ))
                });
            }
            output.show(&CasView::from(CasResponse { cas: answer.cas, notes: Vec::new() }))?;
        }
    }
    Ok(0)
}

const CSR: &str = "CERTIFICATE REQUEST";

fn pem(tag: &str, der: &[u8]) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new(tag, der), config)
}

/// One certificate, PEM or DER.
fn read(path: &Path) -> Result<Vec<u8>, Failure> {
    let wrong = |what: String| Failure::refused(format!("{}: {what}", path.display()));
    let bytes = std::fs::read(path).map_err(|e| wrong(e.to_string()))?;
    let Ok(blocks) = pem::parse_many(&bytes) else { return Ok(bytes) };
    let mut certificates = blocks.into_iter().filter(|b| b.tag() == "CERTIFICATE");
    match (certificates.next(), certificates.count()) {
        (Some(one), 0) => Ok(one.into_contents()),
        (Some(_), more) => Err(wrong(format!("holds {} certificates, and one is wanted", more + 1))
            .remedy("give each in a file of its own")),
        // No PEM at all: DER, or the issuer says what is wrong with it.
        (None, _) => Ok(bytes),
    }
}

#[derive(Serialize)]
struct Request {
    csr: String,
    generation: u32,
    key: String,
}

impl Present for Request {
    fn present(&self, page: &mut Page) {
        page.line(self.csr.trim_end());
    }
}

#[derive(Serialize)]
struct CasView {
    cas: Vec<CaView>,
    notes: Vec<String>,
}

/// One CA, as `hallmark status` shows it, too.
#[derive(Serialize)]
pub(super) struct CaView {
    hierarchy: String,
    kind: String,
    generation: u32,
    state: String,
    issuer: String,
    root: u32,
    subject: String,
    serial: String,
    not_before: Moment,
    pub(super) not_after: Moment,
    key: String,
    made_at: Moment,
    published_at: Moment,
    activated_at: Moment,
    replaced_at: Moment,
    tainted_at: Moment,
    withdrawn_at: Moment,
    retired_at: Moment,
    last_not_after: Moment,
    due_at: Moment,
}

impl From<CaStatus> for CaView {
    fn from(ca: CaStatus) -> Self {
        Self {
            hierarchy: ca.hierarchy,
            kind: ca.kind,
            generation: ca.generation,
            state: ca.state,
            issuer: ca.issuer,
            root: ca.root,
            subject: ca.subject,
            serial: ca.serial,
            not_before: Moment(ca.not_before),
            not_after: Moment(ca.not_after),
            key: ca.key,
            made_at: Moment(ca.made_at),
            published_at: Moment(ca.published_at),
            activated_at: Moment(ca.activated_at),
            replaced_at: Moment(ca.replaced_at),
            tainted_at: Moment(ca.tainted_at),
            withdrawn_at: Moment(ca.withdrawn_at),
            retired_at: Moment(ca.retired_at),
            last_not_after: Moment(ca.last_not_after),
            due_at: Moment(ca.due_at),
        }
    }
}

impl From<CasResponse> for CasView {
    fn from(answer: CasResponse) -> Self {
        Self { cas: answer.cas.into_iter().map(CaView::from).collect(), notes: answer.notes }
    }
}

impl CaView {
    /// A CA that ends within this many seconds, and is not replaced before, is pointed out.
    const ENDS_SOON: i64 = 30 * 86_400;

    pub(super) const HEADER: [&str; 6] = ["hierarchy", "kind", "state", "ends", "replaced", "key"];

    pub(super) fn row(&self, now: i64) -> Vec<crate::output::Word> {
        let soon = self.not_after.0 < now + Self::ENDS_SOON && self.not_after.0 != 0 && self.due_at.0 == 0;
        let ends = if soon && self.state == "active" { Tone::Warning } else { Tone::Plain };
        let state = match self.state.as_str() {
            "active" => Tone::Good,
            "tainted" => Tone::Bad,
            _ => Tone::Plain,
        };
        let kind = match self.kind.as_str() {
            "issuing" if self.root != 0 => format!("issuing {} under root {}", self.generation, self.root),
            kind => format!("{kind} {}", self.generation),
        };
        vec![
            word(&self.hierarchy),
            word(kind),
            toned(state, &self.state),
            toned(ends, self.not_after.text(now)),
            word(self.due_at.relative(now)),
            word(&self.key),
        ]
    }
}

impl Present for CasView {
    fn present(&self, page: &mut Page) {
        let now = now();
        page.table(&CaView::HEADER, self.cas.iter().map(|ca| ca.row(now)).collect(), "No CA.");
        if !self.notes.is_empty() {
            page.gap();
        }
        for note in &self.notes {
            page.line(note);
        }
    }
}
