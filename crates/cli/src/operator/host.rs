//! `hallmark host …`

use std::path::Path;

use clap::Subcommand;
use hallmark_core::id::HostId;
use hallmark_core::pcr::{self, PcrValues};
use hallmark_proto::admin::{
    AllowHostRequest, DisableHostRequest, EnableHostRequest, Host, ListHostsRequest, RemoveHostRequest,
    ShowHostRequest,
};
use serde::Serialize;

use crate::admin::{connect, failed};
use crate::failure::Failure;
use crate::moment::{Moment, now, span};
use crate::output::{Output, Page, Present, Tone, toned, word, yes_no};

#[derive(Debug, Subcommand)]
pub(crate) enum HostCommand {
    /// All hosts: how each proved itself, its highest tier, whether it is connected
    List,
    /// One host in full: keys, counters, PCR values, and what keeps it from a higher tier
    Show {
        /// The host's id
        host: HostId,
    },
    /// Allow a TPM by its endorsement key, where no manufacturer's certificate vouches for it
    #[command(after_help = "\
The digest is the SHA-256 of the endorsement key's SubjectPublicKeyInfo. On the host:
  tpm2_createek -c ek.ctx -G rsa -u ek.pub -f pem
  openssl pkey -pubin -in ek.pub -outform DER | sha256sum

Being on the list lets the TPM enrol; it does not say that it is hardware. Without a manufacturer's certificate that
is your word to give, with --vouch-hardware, and the record names you for it. Without it the host stays at foundation.

Example:
  hallmark host allow web-01 --ek-sha256 3f0c…e9 --vouch-hardware --note 'rack 7, seen by hand'")]
    Allow {
        /// The id this TPM's host will have, for ever
        host: HostId,
        /// SHA-256 of the endorsement key's SubjectPublicKeyInfo, 64 hexadecimal digits
        #[arg(long, value_name = "HEX", value_parser = sha256)]
        ek_sha256: String,
        /// Vouch that this is a hardware TPM: it then counts for the enterprise and advanced tiers
        #[arg(long)]
        vouch_hardware: bool,
        /// Why it is allowed; it stands in the record
        #[arg(long, default_value = "")]
        note: String,
    },
    /// Disable a host: all that runs on it ends now, and it is refused until it is enabled
    Disable {
        /// The host's id
        host: HostId,
        /// Why; it stands in the record
        #[arg(long)]
        reason: String,
    },
    /// Enable a host that was disabled: it attests anew when it next comes
    Enable {
        /// The host's id
        host: HostId,
    },
    /// Remove a host: all that runs on it ends now, and what is known of it is forgotten
    #[command(after_help = "\
Its id stays bound to its TPM for ever, and the record of what it did stays. It may enrol again, as new, after
`hallmark host allow`: that is also the way back for a host whose TPM was cleared, whose clock and counters began anew.")]
    Remove {
        /// The host's id
        host: HostId,
        /// Remove it without asking again
        #[arg(long)]
        yes: bool,
    },
    /// A host's present PCR values, in the form that the issuer's configuration takes
    #[command(after_help = "\
Example, on the issuer's machine:
  hallmark host pcrs web-01 >> /etc/hallmark/issuer.toml
  systemctl reload hallmark-issuer

What a host reports now is only as good as the host is now: take the values from a machine whose state you know.")]
    Pcrs {
        /// The host's id
        host: HostId,
    },
}

pub(crate) async fn run(admin: &Path, command: HostCommand, output: &Output) -> Result<u8, Failure> {
    let mut issuer = connect(admin).await?;
    match command {
        HostCommand::List => {
            let answer = issuer.list_hosts(ListHostsRequest {}).await.map_err(failed)?.into_inner();
            output.show(&HostsView { hosts: answer.hosts.into_iter().map(HostView::from).collect() })?;
        }
        HostCommand::Show { host } => {
            let request = ShowHostRequest { host_id: host.to_string() };
            output.show(&HostView::from(issuer.show_host(request).await.map_err(failed)?.into_inner()))?;
        }
        HostCommand::Allow { host, ek_sha256, vouch_hardware, note } => {
            let request = AllowHostRequest {
                host_id: host.to_string(),
                ek_sha256: ek_sha256.clone(),
                note: note.clone(),
                vouch_hardware,
            };
            issuer.allow_host(request).await.map_err(failed)?;
            output.show(&Allowed { host_id: host.to_string(), ek_sha256, vouch_hardware, note })?;
        }
        HostCommand::Disable { host, reason } => {
            let request = DisableHostRequest { host_id: host.to_string(), reason };
            let ended = issuer.disable_host(request).await.map_err(failed)?.into_inner().ended;
            output.show(&Turned { host_id: host.to_string(), state: "disabled", ended })?;
        }
        HostCommand::Enable { host } => {
            issuer.enable_host(EnableHostRequest { host_id: host.to_string() }).await.map_err(failed)?;
            output.show(&Turned { host_id: host.to_string(), state: "enabled", ended: Vec::new() })?;
        }
        HostCommand::Remove { host, yes } => {
            if !yes {
                return Err(Failure::refused(format!(
                    "host {host} was not removed: that ends all that runs on it"
                ))
                .remedy(format!("hallmark host remove {host} --yes")));
            }
            let request = RemoveHostRequest { host_id: host.to_string() };
            let ended = issuer.remove_host(request).await.map_err(failed)?.into_inner().ended;
            output.show(&Turned { host_id: host.to_string(), state: "removed", ended })?;
        }
        HostCommand::Pcrs { host } => {
            let request = ShowHostRequest { host_id: host.to_string() };
            let host = issuer.show_host(request).await.map_err(failed)?.into_inner();
            output.show(&PcrsView::try_from(host)?)?;
        }
    }
    Ok(0)
}

fn sha256(text: &str) -> Result<String, String> {
    let lower = text.to_ascii_lowercase();
    let good = lower.len() == 64 && lower.bytes().all(|b| b.is_ascii_hexdigit());
    good.then_some(lower).ok_or_else(|| "a SHA-256 digest is 64 hexadecimal digits".to_owned())
}

#[derive(Serialize)]
struct HostsView {
    hosts: Vec<HostView>,
}

#[derive(Serialize)]
struct HostView {
    host_id: String,
    proof: String,
    ek_digest: String,
    ek_trust: String,
    simulated: bool,
    ak_name: String,
    enrolled_at: Moment,
    attested_at: Moment,
    quote_at: Moment,
    highest_tier: String,
    unmet: Vec<UnmetView>,
    pcr_policy: String,
    pcrs: Vec<PcrView>,
    event_log: String,
    reset_count: u64,
    restart_count: u64,
    clock_ms: u64,
    firmware_version: u64,
    connected: bool,
    pending: bool,
    disabled: String,
    version: String,
}

#[derive(Serialize)]
struct UnmetView {
    code: String,
    detail: String,
}

#[derive(Serialize)]
struct PcrView {
    index: u32,
    sha256: String,
}

impl From<Host> for HostView {
    fn from(h: Host) -> Self {
        let unmet = h.unmet.into_iter().map(|u| UnmetView { code: u.code, detail: u.detail });
        let pcrs = h.pcrs.into_iter().map(|p| PcrView { index: p.index, sha256: p.sha256 });
        Self {
            host_id: h.host_id,
            proof: h.proof,
            ek_digest: h.ek_digest,
            ek_trust: h.ek_trust,
            simulated: h.simulated,
            ak_name: h.ak_name,
            enrolled_at: Moment(h.enrolled_at),
            attested_at: Moment(h.attested_at),
            quote_at: Moment(h.quote_at),
            highest_tier: h.highest_tier,
            unmet: unmet.collect(),
            pcr_policy: h.pcr_policy,
            pcrs: pcrs.collect(),
            event_log: h.event_log,
            reset_count: h.reset_count,
            restart_count: h.restart_count,
            clock_ms: h.clock_ms,
            firmware_version: h.firmware_version,
            connected: h.connected,
            pending: h.pending,
            disabled: h.disabled,
            version: h.version,
        }
    }
}

impl Present for HostsView {
    fn present(&self, page: &mut Page) {
        let now = now();
        let rows = self.hosts.iter().map(|h| {
            let tier = if h.highest_tier.is_empty() { word("-") } else { word(&h.highest_tier) };
            let state = match (h.pending, h.connected) {
                _ if !h.disabled.is_empty() => toned(Tone::Bad, "disabled"),
                (true, _) => word("pending"),
                (_, true) => toned(Tone::Good, "connected"),
                (_, false) => toned(Tone::Warning, "away"),
            };
            vec![
                word(&h.host_id),
                h.proof_word(),
                tier,
                state,
                word(h.attested_at.relative(now)),
                word(dash(&h.pcr_policy)),
            ]
        });
        let header = ["host", "proof", "highest tier", "state", "attested", "pcr policy"];
        let empty = "No host yet: start hallmark-hostd on one, after `hallmark join-token create` where it has no TPM.";
        page.table(&header, rows.collect(), empty);
    }
}

impl HostView {
    fn state(&self) -> crate::output::Word {
        match (self.disabled.as_str(), self.pending) {
            ("", true) => word("pending: allowed, not yet enrolled"),
            ("", false) => word("enrolled"),
            (reason, _) => toned(Tone::Bad, format!("disabled: {reason}")),
        }
    }

    fn proof_word(&self) -> crate::output::Word {
        if self.simulated {
            return toned(Tone::Warning, format!("{} (simulated)", self.proof));
        }
        word(dash(&self.proof))
    }
}

fn dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

impl Present for HostView {
    fn present(&self, page: &mut Page) {
        let now = now();
        // A host with a join token has none of these.
        let tpm = |text: String| if self.clock_ms > 0 { text } else { String::new() };
        page.facts(&[
            ("host", word(&self.host_id)),
            ("state", self.state()),
            ("connected", yes_no(self.connected)),
            ("daemon", word(&self.version)),
            ("proof", self.proof_word()),
            ("EK digest", word(&self.ek_digest)),
            ("EK trusted by", word(&self.ek_trust)),
            ("AK name", word(&self.ak_name)),
            ("enrolled", word(self.enrolled_at.text(now))),
            ("attested", word(self.attested_at.text(now))),
            ("last quote", word(self.quote_at.text(now))),
            ("highest tier", word(dash(&self.highest_tier))),
            ("PCR policy", word(dash(&self.pcr_policy))),
            ("event log", word(dash(&self.event_log))),
            ("TPM clock", word(tpm(span(self.clock_ms / 1_000)))),
            ("TPM resets", word(tpm(self.reset_count.to_string()))),
            ("TPM restarts", word(tpm(self.restart_count.to_string()))),
            ("TPM firmware", word(tpm(format!("{:#018x}", self.firmware_version)))),
        ]);
        if !self.unmet.is_empty() {
            page.gap();
            let rows = self.unmet.iter().map(|u| vec![toned(Tone::Bad, &u.code), word(&u.detail)]);
            page.table(&["unmet", "detail"], rows.collect(), "");
        }
        if !self.pcrs.is_empty() {
            page.gap();
            let rows = self.pcrs.iter().map(|p| vec![word(p.index), word(&p.sha256)]);
            page.table(&["pcr", "sha256"], rows.collect(), "");
        }
    }
}

#[derive(Serialize)]
struct Allowed {
    host_id: String,
    ek_sha256: String,
    vouch_hardware: bool,
    note: String,
}

impl Present for Allowed {
    fn present(&self, page: &mut Page) {
        page.line(format!("Allowed: the TPM with EK {} may enrol as {}.", self.ek_sha256, self.host_id));
        page.line(if self.vouch_hardware {
            "You vouch that it is a hardware TPM."
        } else {
            "Without a manufacturer's certificate it counts for foundation only, unless you vouch for it (--vouch-hardware) or the trust domain is a lab."
        });
    }
}

/// A host that was disabled, enabled or removed.
#[derive(Serialize)]
struct Turned {
    host_id: String,
    state: &'static str,
    ended: Vec<String>,
}

impl Present for Turned {
    fn present(&self, page: &mut Page) {
        page.line(format!("Host {} is {}; {} ended.", self.host_id, self.state, instances(self.ended.len())));
    }
}

/// `1 instance`, `3 instances`.
pub(super) fn instances(count: usize) -> String {
    format!("{count} instance{}", if count == 1 { "" } else { "s" })
}

/// PCR values as configuration.
#[derive(Serialize)]
struct PcrsView {
    host_id: String,
    pcrs: Vec<PcrView>,
    toml: String,
}

impl TryFrom<Host> for PcrsView {
    type Error = Failure;
    fn try_from(host: Host) -> Result<Self, Failure> {
        if host.pcrs.is_empty() {
            return Err(Failure::refused(format!("no PCR values of {} are known", host.host_id))
                .remedy("they come with its next attestation; a host with a join token has none"));
        }
        let toml = pcr_policy_toml(&host)?;
        let pcrs = host.pcrs.into_iter().map(|p| PcrView { index: p.index, sha256: p.sha256 }).collect();
        Ok(Self { host_id: host.host_id, pcrs, toml })
    }
}

impl Present for PcrsView {
    fn present(&self, page: &mut Page) {
        page.line(self.toml.trim_end());
    }
}

fn pcr_policy_toml(host: &Host) -> Result<String, Failure> {
    let odd = |what: String| {
        Failure::refused(format!("the issuer's PCR values of {} are malformed: {what}", host.host_id))
    };
    let decoded: Vec<(u32, Vec<u8>)> = host
        .pcrs
        .iter()
        .map(|pcr| Ok((pcr.index, hex::decode(&pcr.sha256).map_err(|error| odd(error.to_string()))?)))
        .collect::<Result<_, Failure>>()?;
    let values = PcrValues::new(decoded.iter().map(|(index, value)| (*index, value.as_slice())));
    Ok(pcr::to_toml(&host.host_id, &values.map_err(|error| odd(error.to_string()))?))
}
