//! What agents, and whoever sets them up, ask the host daemon.

use hallmark_client::Identity;

use crate::files::{self, Content, Roots};

pub(crate) mod exec;
pub(crate) mod fetch;
pub(crate) mod verify;
pub(crate) mod whoami;

/// Name of the certificate chain's file.
const CHAIN: &str = "chain.pem";
/// Name of the bundle's file.
const BUNDLE: &str = "bundle.pem";
/// Name of the private key's file.
const KEY: &str = "key.pem";

fn roots(identity: &Identity) -> Roots {
    let of = |tier| identity.bundle.roots.of(tier).map(|root| root.to_vec()).collect();
    identity.bundle.roots.tiers().into_iter().map(|tier| (tier, of(tier))).collect()
}

/// The files of an identity.
fn contents(identity: &Identity, with_key: bool) -> Vec<Content> {
    let mut contents = vec![files::chain_content(CHAIN, identity.chain.iter().map(AsRef::as_ref))];
    contents.extend(files::bundle_contents(&roots(identity)));
    if let Some(key) = identity.private_key_pkcs8().filter(|_| with_key) {
        contents.push(files::key_content(KEY, key));
    }
    contents
}

fn names(contents: &[Content]) -> Vec<String> {
    contents.iter().map(|content| content.name.clone()).collect()
}
