//! `hallmark verify`

use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use hallmark_client::{
    CertificateDer, HallmarkClient, PeerPolicy, SpiffeId, Tier, TierRoots, TrustDomain, VerifiedPeer,
};
use serde::Serialize;

use crate::agent::roots;
use crate::failure::{Failure, REFUSED};
use crate::files::Roots;
use crate::moment::{Moment, now};
use crate::operator::bundle;
use crate::output::{Output, Page, Present, Tone, toned, word};

/// Checks a certificate as a relying party does: its chain to a root of the trust domain, its form, its
/// time. The root gives the tier, whatever the certificate says of itself.
///
/// Revocation is not looked at: a live connection to the issuer or its CRL tells of that.
#[derive(Debug, Args)]
#[command(after_help = "\
The bundle is a directory as `hallmark bundle --dir` and `hallmark fetch` write it (tier-T.pem), or TIER=FILE,
once for each tier. Without it, the roots come from the host daemon of this machine, else from the issuer.

Exit code 0 when the certificate is accepted, 1 when it is refused.

Examples:
  hallmark verify ./id/chain.pem --min-tier enterprise
  hallmark verify peer.pem --bundle enterprise=enterprise.pem --at 2027-01-15T08:00:00Z")]
pub(crate) struct VerifyArgs {
    /// PEM file: the leaf, then its issuing CA; - for standard input
    certificate: PathBuf,
    /// A directory with tier-T.pem, or TIER=FILE
    #[arg(long, value_name = "BUNDLE")]
    bundle: Vec<String>,
    /// The trust domain; the leaf's own where it is not named
    #[arg(long, value_name = "NAME")]
    trust_domain: Option<TrustDomain>,
    /// Refuse lower tiers
    #[arg(long, value_name = "TIER", default_value = "foundation")]
    min_tier: Tier,
    /// Refuse everybody else
    #[arg(long, value_name = "SPIFFE-ID")]
    spiffe_id: Option<SpiffeId>,
    /// Accept a key in a software TPM
    #[arg(long)]
    accept_simulated: bool,
    /// Check as of this time: RFC 3339, or @SECONDS since 1970
    #[arg(long, value_name = "TIME", value_parser = |text: &str| Moment::parse(text).map_err(|f| f.message))]
    at: Option<i64>,
}

pub(crate) async fn run(
    admin: &Path,
    socket: &Path,
    args: VerifyArgs,
    output: &Output,
) -> Result<u8, Failure> {
    let chain = read_chain(&args.certificate)?;
    let roots =
        if args.bundle.is_empty() { local_roots(admin, socket).await? } else { read_roots(&args.bundle)? };
    let at = args.at.unwrap_or_else(now);
    let verdict = Verdict::of(&args, &chain, roots, at)?;
    output.show(&verdict)?;
    Ok(if verdict.accepted { 0 } else { REFUSED })
}

#[derive(Serialize, Default)]
struct Verdict {
    accepted: bool,
    /// Why it was refused.
    reason: Option<String>,
    spiffe_id: Option<String>,
    tier: Option<Tier>,
    custody: Option<String>,
    simulated: Option<bool>,
    owner_id: Option<String>,
    instance_id: Option<String>,
    task_id: Option<String>,
    serial: Option<String>,
    not_before: Option<Moment>,
    not_after: Option<Moment>,
    attested_at: Option<Moment>,
    evidence_digest: Option<String>,
    at: Option<Moment>,
}

impl Verdict {
    fn of(
        args: &VerifyArgs,
        chain: &[CertificateDer<'static>],
        roots: Roots,
        at: i64,
    ) -> Result<Self, Failure> {
        let trust_domain = match &args.trust_domain {
            Some(name) => name.clone(),
            None => {
                hallmark_core::x509::UnverifiedSvid::parse(&chain[0])
                    .map_err(|error| Failure::refused(format!("the leaf: {error}")))?
                    .spiffe_id
                    .trust_domain
            }
        };
        let mut trusted = TierRoots::new(trust_domain);
        for (tier, ders) in roots {
            for der in ders {
                trusted.add(tier, &der).map_err(|error| Failure::refused(format!("the bundle: {error}")))?;
            }
        }
        let mut policy = PeerPolicy::at_least(args.min_tier).accept_simulated(args.accept_simulated);
        if let Some(id) = &args.spiffe_id {
            policy = policy.spiffe_ids([id.clone()]);
        }
        let when = Duration::from_secs(u64::try_from(at).unwrap_or(0));
        // What is refused is told about too, as far as its chain holds.
        let anybody = PeerPolicy::at_least(Tier::Foundation).accept_simulated(true);
        let told = anybody.appraise(&trusted, chain, when).ok();
        let mut verdict = told.as_ref().map(Self::told).unwrap_or_default();
        verdict.at = Some(Moment(at));
        match policy.appraise(&trusted, chain, when) {
            Ok(_) => verdict.accepted = true,
            Err(refusal) => verdict.reason = Some(refusal.to_string()),
        }
        Ok(verdict)
    }

    fn told(peer: &VerifiedPeer) -> Self {
        let info = &peer.agent_info;
        Self {
            spiffe_id: Some(peer.spiffe_id.to_string()),
            tier: Some(peer.tier),
            custody: Some(info.custody.to_string()),
            simulated: Some(info.custody == hallmark_client::Custody::Simulated),
            owner_id: Some(hex::encode(info.owner_id)),
            instance_id: peer.instance.map(|instance| instance.to_string()),
            task_id: info.task.as_ref().map(|task| task.task_id.to_string()),
            serial: Some(peer.serial.to_string()),
            not_before: Some(Moment(peer.not_before)),
            not_after: Some(Moment(peer.not_after)),
            attested_at: Some(Moment(info.attested_at)),
            evidence_digest: Some(hex::encode(info.evidence_digest)),
            ..Self::default()
        }
    }
}

impl Present for Verdict {
    fn present(&self, page: &mut Page) {
        let now = now();
        let text = |value: &Option<String>| word(value.as_deref().unwrap_or_default());
        let moment = |value: Option<Moment>| word(value.map(|m| m.text(now)).unwrap_or_default());
        page.facts(&[
            ("verdict", if self.accepted { word("accepted") } else { word("refused") }),
            ("reason", toned(Tone::Bad, self.reason.as_deref().unwrap_or_default())),
            ("SPIFFE ID", text(&self.spiffe_id)),
            ("tier", word(self.tier.map(Tier::as_str).unwrap_or_default())),
            ("custody", text(&self.custody)),
            ("owner id", text(&self.owner_id)),
            ("instance", text(&self.instance_id)),
            ("task", text(&self.task_id)),
            ("serial", text(&self.serial)),
            ("begins", moment(self.not_before)),
            ("ends", moment(self.not_after)),
            ("attested", moment(self.attested_at)),
            ("evidence", text(&self.evidence_digest)),
        ]);
        if self.simulated == Some(true) {
            page.warning("Its key is in a software TPM: this certificate proves no hardware.");
        }
    }
}

pub(crate) fn read_chain(path: &Path) -> Result<Vec<CertificateDer<'static>>, Failure> {
    let name = path.display();
    let bytes = if path.as_os_str() == "-" {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::io::Read::take(std::io::stdin(), 1 << 20), &mut bytes)
            .map(|_| bytes)
    } else {
        std::fs::read(path)
    };
    let bytes = bytes.map_err(|error| Failure::usage(format!("cannot read {name}: {error}")))?;
    let chain: Vec<_> =
        certificates(&bytes, &name.to_string())?.into_iter().map(CertificateDer::from).collect();
    if chain.is_empty() {
        return Err(Failure::usage(format!("{name} holds no certificate in PEM form"))
            .remedy("convert it with `openssl x509 -inform DER -in FILE`"));
    }
    Ok(chain)
}

fn certificates(bytes: &[u8], name: &str) -> Result<Vec<Vec<u8>>, Failure> {
    let blocks =
        pem::parse_many(bytes).map_err(|error| Failure::usage(format!("{name} is no PEM: {error}")))?;
    Ok(blocks.into_iter().filter(|block| block.tag() == "CERTIFICATE").map(pem::Pem::into_contents).collect())
}

fn read_roots(bundles: &[String]) -> Result<Roots, Failure> {
    let mut roots = Roots::new();
    let mut read = |tier: Tier, file: &Path| -> Result<(), Failure> {
        let name = file.display().to_string();
        let bytes =
            std::fs::read(file).map_err(|error| Failure::usage(format!("cannot read {name}: {error}")))?;
        roots.entry(tier).or_default().extend(certificates(&bytes, &name)?);
        Ok(())
    };
    for bundle in bundles {
        match bundle.split_once('=') {
            Some((tier, file)) => {
                let tier =
                    tier.parse().map_err(|error| Failure::usage(format!("--bundle {bundle}: {error}")))?;
                read(tier, Path::new(file))?;
            }
            None => {
                if !Path::new(bundle).is_dir() {
                    return Err(Failure::usage(format!("--bundle {bundle}: there is no such directory")));
                }
                for tier in Tier::ALL {
                    let file = Path::new(bundle).join(format!("tier-{tier}.pem"));
                    if file.exists() {
                        read(tier, &file)?;
                    }
                }
            }
        }
    }
    if roots.values().all(Vec::is_empty) {
        return Err(Failure::usage("the bundle holds no root").remedy(
            "name a directory with tier-T.pem files, or TIER=FILE: one file of all tiers would not say which root is which tier's",
        ));
    }
    Ok(roots)
}

/// The roots as the host daemon serves them to this process, else as the issuer does.
async fn local_roots(admin: &Path, socket: &Path) -> Result<Roots, Failure> {
    let from_host = async {
        let client = HallmarkClient::connect_to(socket).await?;
        Ok::<_, hallmark_client::ClientError>(roots(&client.identity("").await?))
    };
    let no_host = match from_host.await {
        Ok(roots) => return Ok(roots),
        Err(error) => error,
    };
    bundle::fetch(admin).await.map_err(|no_issuer| {
        Failure::unreachable(format!("no roots to verify by: {no_host}; {}", no_issuer.message))
            .remedy("name them with --bundle")
    })
}
