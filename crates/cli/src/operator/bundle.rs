//! `hallmark bundle`

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use hallmark_core::tier::Tier;
use hallmark_proto::admin::{BundleRequest, BundleResponse};
use serde::Serialize;

use crate::admin::{connect, failed};
use crate::failure::Failure;
use crate::files::{self, Roots};
use crate::output::{Output, Page, Present, word};

/// The roots are the tiers: a relying party that demands at least enterprise trusts the enterprise and the
/// advanced root and no other, and needs no further check.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  hallmark bundle --at-least enterprise > enterprise-and-up.pem
  hallmark bundle --dir /etc/hallmark/bundle     bundle.pem, tier-*.pem and at-least-*.pem
  hallmark bundle --infrastructure               what host daemons trust the issuer by")]
pub(crate) struct BundleArgs {
    /// Only this tier's roots
    #[arg(long, value_name = "TIER", conflicts_with_all = ["at_least", "infrastructure", "dir"])]
    tier: Option<Tier>,
    /// The roots of this tier and of those above it
    #[arg(long, value_name = "TIER", conflicts_with_all = ["infrastructure", "dir"])]
    at_least: Option<Tier>,
    /// The infrastructure roots: for host daemons; never for relying parties
    #[arg(long, conflicts_with = "dir")]
    infrastructure: bool,
    /// Write one file for each way to trust into this directory
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

pub(crate) async fn run(admin: &Path, args: BundleArgs, output: &Output) -> Result<u8, Failure> {
    let answer = connect(admin).await?.bundle(BundleRequest {}).await.map_err(failed)?.into_inner();
    let (roots, infrastructure) = sort(&answer);
    if let Some(dir) = args.dir {
        let written = files::write_bundles(&dir, &roots)?;
        output.show(&Written {
            trust_domain: answer.trust_domain,
            dir: dir.display().to_string(),
            files: written,
        })?;
        return Ok(0);
    }
    let chosen: Vec<(String, Vec<Vec<u8>>)> = if args.infrastructure {
        vec![("infrastructure".to_owned(), infrastructure)]
    } else {
        let least = args.tier.or(args.at_least).unwrap_or(Tier::Foundation);
        let most = args.tier.unwrap_or(Tier::Advanced);
        roots.range(least..=most).map(|(tier, roots)| (tier.to_string(), roots.clone())).collect()
    };
    if chosen.iter().all(|(_, roots)| roots.is_empty()) {
        return Err(Failure::refused("the issuer has no such root").remedy("see `hallmark status`"));
    }
    output.show(&BundleView::new(answer.trust_domain, chosen))?;
    Ok(0)
}

/// The bundle that the issuer serves to relying parties, by tier.
pub(crate) async fn fetch(admin: &Path) -> Result<Roots, Failure> {
    let answer = connect(admin).await?.bundle(BundleRequest {}).await.map_err(failed)?.into_inner();
    Ok(sort(&answer).0)
}

fn sort(answer: &BundleResponse) -> (Roots, Vec<Vec<u8>>) {
    let mut roots: Roots = BTreeMap::new();
    let mut infrastructure = Vec::new();
    for entry in &answer.entries {
        let ders = entry.roots.iter().map(|der| der.to_vec());
        match entry.hierarchy.parse::<Tier>() {
            Ok(tier) => roots.entry(tier).or_default().extend(ders),
            Err(_) if entry.hierarchy == "infrastructure" => infrastructure.extend(ders),
            // A hierarchy of a later version: no tier that this command knows, so nothing to trust by.
            Err(_) => {}
        }
    }
    (roots, infrastructure)
}

#[derive(Serialize)]
struct BundleView {
    trust_domain: String,
    entries: Vec<EntryView>,
}

#[derive(Serialize)]
struct EntryView {
    hierarchy: String,
    pem: Vec<String>,
}

impl BundleView {
    fn new(trust_domain: String, chosen: Vec<(String, Vec<Vec<u8>>)>) -> Self {
        let entry = |(hierarchy, roots): (String, Vec<Vec<u8>>)| EntryView {
            hierarchy,
            pem: roots.iter().map(|der| files::certificate_pem(der)).collect(),
        };
        Self { trust_domain, entries: chosen.into_iter().map(entry).collect() }
    }
}

impl Present for BundleView {
    fn present(&self, page: &mut Page) {
        for entry in &self.entries {
            for pem in &entry.pem {
                // Text before a PEM block is explanatory and ignored (RFC 7468 section 2).
                page.line(format!("# {}, {}", self.trust_domain, entry.hierarchy));
                page.line(pem.trim_end());
            }
        }
    }
}

#[derive(Serialize)]
struct Written {
    trust_domain: String,
    dir: String,
    files: Vec<String>,
}

impl Present for Written {
    fn present(&self, page: &mut Page) {
        page.facts(&[("trust domain", word(&self.trust_domain)), ("directory", word(&self.dir))]);
        for file in &self.files {
            page.line(format!("  {file}"));
        }
    }
}
