//! The CAs of this issuer through their lives: made, published, activated, retired, tainted.
//!
//! What comes next is decided by [`hallmark_core::rotation`]; here it is carried out, one step at a time: keys in the
//! token, one commit with its record, then what is in force. Whatever ends in between is taken up again from the store.

mod install;
mod keys;
mod load;
mod order;
mod step;

use hallmark_core::rotation::{self, View};
use hallmark_core::tier::Hierarchy;

pub use install::{Request, install, request};
pub use keys::{Maker, issuing_label, root_label};
pub use load::{in_force, in_memory, list_name};
pub use order::{OrderError, rotate, taint};
pub use step::{published, refresh, run};

use crate::config::{Config, Roots};
use crate::store::Authority;

/// Longest life of what hosts and issuers show each other, in seconds.
const LONGEST_INFRASTRUCTURE: i64 = 86_400;

/// This issuer's rules for one hierarchy.
pub fn rules(config: &Config, hierarchy: Hierarchy) -> rotation::Rules {
    let seconds = |d: std::time::Duration| i64::try_from(d.as_secs()).unwrap_or(i64::MAX);
    let rotation = &config.rotation;
    rotation::Rules {
        issuing_after: rotation.issuing_after.map(seconds),
        root_after: rotation.root_after.map(seconds),
        overlap: seconds(rotation.overlap),
        grace: seconds(rotation.taint_grace),
        longest_leaf: match hierarchy {
            Hierarchy::Tier(tier) => seconds(tier.max_lifetime()),
            Hierarchy::Infrastructure => LONGEST_INFRASTRUCTURE,
        },
        signs_roots: config.roots != Roots::Offline,
    }
}

/// One hierarchy's CAs, as the rules see them.
pub fn seen(
    config: &Config,
    stored: &[Authority],
    hierarchy: Hierarchy,
    in_use: impl Fn(u32) -> bool,
) -> Vec<rotation::Authority> {
    let own = config.issuer_id.as_str();
    let of = stored.iter().filter(|a| a.hierarchy == hierarchy);
    of.map(|a| a.seen(own, a.role == rotation::Role::Issuing && in_use(a.generation))).collect()
}

/// When the active issuing CA and the present root of a hierarchy are due to be replaced by themselves.
pub fn due(config: &Config, stored: &[Authority], hierarchy: Hierarchy) -> (Option<i64>, Option<i64>) {
    let authorities = seen(config, stored, hierarchy, |_| false);
    let view = View { authorities: &authorities, now: 0, hosts_have_bundle: true };
    let rules = rules(config, hierarchy);
    (view.issuing_due(&rules), view.root_due(&rules))
}
