//! Real daemons for end-to-end tests: an issuer over a SoftHSM token of its own, host daemons over
//! software TPMs of their own, each in a directory that goes away with the test.
//!
//! The daemons are the workspace's own binaries, found beside the test's; build them first
//! (`cargo build --workspace`), as `scripts/test` does.
#![forbid(unsafe_code)]

mod agent;
mod bed;
mod child;
mod collector;
mod host;
mod issuer;
mod rogue;

pub use agent::{Agent, Shown, registration, sha256_file};
pub use bed::{Bed, BedOptions, ROOT_TOKEN};
pub use child::{Daemon, binary, example, wait_until};
pub use collector::{Collector, Spanned};
pub use host::{Host, Proof};
pub use issuer::{Admin, admin};
pub use rogue::{Challenged, Rogue, csr, csr_with, join_token};

/// A skipped test says so by name: `skip("what is missing")`.
pub fn skip(what: &str) {
    println!("skipped: {what}");
}
