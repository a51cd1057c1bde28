//! Rotation of one hierarchy's CAs: what is to be done next, as a function of what there is, the clock and the
//! rules.
//!
//! **In scope:** the stages of roots and issuing CAs, and the order of the steps between them. **Not in scope:** keys,
//! signatures, the store: whoever carries a step out makes it durable as a whole, looks again, and asks again.
//!
//! ```text
//! issuing CA   (requested →) prepared → active → retiring → retired
//! root          prepared → published → active → retiring → retired
//! either        … → tainted → (withdrawn) → retired
//! ```
//!
//! What holds at every moment (see the tests):
//! - once an issuer has an active issuing CA it always has exactly one;
//! - an issuing CA is not retired while a certificate that it signed lives, unless it was tainted and those were
//!   revoked;
//! - a root is in the bundle for the whole overlap before anything is signed under it (a replacement of a tainted CA
//!   excepted), and until the last certificate under it has ended.

#[cfg(test)]
mod tests;

use std::str::FromStr;

use crate::tier::UnknownWord;

/// Seconds after the end of the last leaf until its CA is retired: as far as clocks may differ.
const SKEW: i64 = crate::x509::BACKDATE;

/// Root or issuing CA.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// Self-signed: signs issuing CAs.
    Root,
    /// Signs leaves.
    Issuing,
}

impl Role {
    /// `root` or `issuing`.
    pub fn as_str(self) -> &'static str {
        match self {
            Role::Root => "root",
            Role::Issuing => "issuing",
        }
    }
}

impl FromStr for Role {
    type Err = UnknownWord;
    fn from_str(s: &str) -> Result<Self, UnknownWord> {
        [Role::Root, Role::Issuing]
            .into_iter()
            .find(|role| role.as_str() == s)
            .ok_or_else(|| UnknownWord { found: s.to_owned(), allowed: "root, issuing" })
    }
}

/// Where a CA stands in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Stage {
    /// An issuing CA's key that waits for a certificate from an offline root.
    Requested,
    /// Key and certificate are there; nobody has seen them.
    Prepared,
    /// A root in the bundle, under which nothing is signed yet.
    Published,
    /// An issuing CA that signs; a root whose issuing CA does.
    Active,
    /// Replaced; what it signed still lives.
    Retiring,
    /// Over: out of the bundle, the key destroyed.
    Retired,
    /// Not trusted any more: it signs nothing, and what it signed is being replaced.
    Tainted,
}

impl Stage {
    /// All of them.
    pub const ALL: [Stage; 7] = [
        Stage::Requested,
        Stage::Prepared,
        Stage::Published,
        Stage::Active,
        Stage::Retiring,
        Stage::Retired,
        Stage::Tainted,
    ];

    /// The stage in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Stage::Requested => "requested",
            Stage::Prepared => "prepared",
            Stage::Published => "published",
            Stage::Active => "active",
            Stage::Retiring => "retiring",
            Stage::Retired => "retired",
            Stage::Tainted => "tainted",
        }
    }
}

impl FromStr for Stage {
    type Err = UnknownWord;
    fn from_str(s: &str) -> Result<Self, UnknownWord> {
        Self::ALL.into_iter().find(|stage| stage.as_str() == s).ok_or_else(|| UnknownWord {
            found: s.to_owned(),
            allowed: "requested, prepared, published, active, retiring, retired, tainted",
        })
    }
}

/// One CA of the hierarchy. Times are seconds since 1970-01-01 UTC.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Authority {
    /// Root or issuing.
    pub role: Role,
    /// Counts the CAs of this role in this hierarchy, whosesoever they are, from 1.
    pub generation: u32,
    /// Of an issuing CA: the generation of the root that signed it; 0 where none has yet.
    pub root: u32,
    /// Of an issuing CA: it is this issuer's own.
    pub own: bool,
    /// Where it stands.
    pub stage: Stage,
    /// Its certificate's beginning.
    pub not_before: i64,
    /// Its certificate's end.
    pub not_after: i64,
    /// When a root came into the bundle.
    pub published_at: Option<i64>,
    /// When it was tainted.
    pub tainted_at: Option<i64>,
    /// When what a tainted issuing CA had signed was revoked; when a root was taken out of the bundle.
    pub withdrawn_at: Option<i64>,
    /// Of a tainted CA: seconds over which the renewals of what it signed are spread.
    pub window: i64,
    /// End of the last leaf known to be signed by it; 0 for none.
    pub last_leaf: i64,
    /// A request that it may still sign for is under way.
    pub in_use: bool,
}

impl Authority {
    /// A root that relying parties find in the bundle.
    pub fn is_in_bundle(&self) -> bool {
        self.role == Role::Root
            && match self.stage {
                Stage::Published | Stage::Active | Stage::Retiring => true,
                Stage::Tainted => self.published_at.is_some() && self.withdrawn_at.is_none(),
                Stage::Requested | Stage::Prepared | Stage::Retired => false,
            }
    }

    /// A root that may sign issuing CAs: in the bundle, and neither replaced nor tainted.
    fn is_good_root(&self) -> bool {
        self.role == Role::Root && matches!(self.stage, Stage::Published | Stage::Active)
    }

    /// Of issuing CAs: the later they were made, and under the newer root, the greater.
    fn order(&self) -> (u32, u32) {
        (self.root, self.generation)
    }

    fn is_own(&self, stage: Stage) -> bool {
        self.role == Role::Issuing && self.own && self.stage == stage
    }
}

/// The rules of this issuer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// The age at which an issuing CA is replaced, in seconds; none for never.
    pub issuing_after: Option<i64>,
    /// The age at which a root is replaced, in seconds; none for never.
    pub root_after: Option<i64>,
    /// How long a root is in the bundle before anything is signed under it, in seconds.
    pub overlap: i64,
    /// Seconds after the end of a window until what has not been renewed is revoked.
    pub grace: i64,
    /// The longest a leaf of this hierarchy lives, in seconds.
    pub longest_leaf: i64,
    /// The roots' keys can be reached from here.
    pub signs_roots: bool,
}

/// What is looked at.
#[derive(Debug, Clone, Copy)]
pub struct View<'a> {
    /// All CAs of the hierarchy.
    pub authorities: &'a [Authority],
    /// Now.
    pub now: i64,
    /// Every host that is connected here has the bundle of now.
    pub hosts_have_bundle: bool,
}

/// What is to be done next. Numbers are generations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Make a root.
    MakeRoot,
    /// Make an issuing CA under this root.
    MakeIssuing {
        /// The root.
        root: u32,
    },
    /// Put this root into the bundle.
    PublishRoot {
        /// The root.
        root: u32,
    },
    /// Have this issuing CA sign from here on; the one before it retires, and so does an older root than its own.
    Activate {
        /// The issuing CA.
        issuing: u32,
    },
    /// Replace this issuing CA at once, and taint it: its root was tainted.
    Replace {
        /// The issuing CA.
        issuing: u32,
    },
    /// Revoke what this tainted issuing CA signed.
    Withdraw {
        /// The issuing CA.
        issuing: u32,
    },
    /// Take this tainted root out of the bundle.
    WithdrawRoot {
        /// The root.
        root: u32,
    },
    /// Nothing that this issuing CA signed lives: destroy its key.
    RetireIssuing {
        /// The issuing CA.
        issuing: u32,
    },
    /// Nothing under this root lives: take it out of the bundle, and destroy its key.
    RetireRoot {
        /// The root.
        root: u32,
    },
}

/// What takes the place of an issuing CA that is tainted. Numbers are generations.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Replacement {
    /// One that is there.
    Take {
        /// The issuing CA.
        issuing: u32,
    },
    /// A new one under this root.
    Make {
        /// The root.
        root: u32,
    },
    /// A new one under a new root.
    MakeWithRoot,
}

impl<'a> View<'a> {
    /// The next step; none while there is nothing to do.
    pub fn next(&self, rules: &Rules) -> Option<Step> {
        self.replace(rules)
            .or_else(|| self.withdraw(rules))
            .or_else(|| self.publish())
            .or_else(|| self.make(rules))
            .or_else(|| self.activate(rules))
            .or_else(|| self.retire())
    }

    /// The issuing CA that signs here.
    pub fn active(&self) -> Option<&'a Authority> {
        self.authorities.iter().find(|a| a.is_own(Stage::Active))
    }

    /// The root under which new issuing CAs are made: the newest good one.
    pub fn root(&self) -> Option<&'a Authority> {
        self.authorities.iter().filter(|a| a.is_good_root()).max_by_key(|a| a.generation)
    }

    /// What takes the place of an issuing CA at once; none where nothing can. Under a root that relying parties have
    /// had for long, if there is one that is good: an overlap under way is not cut short.
    pub fn replacement(&self, rules: &Rules) -> Option<Replacement> {
        [Stage::Active, Stage::Published]
            .into_iter()
            .find_map(|stage| {
                let root = |a: &&Authority| self.find(Role::Root, a.root).is_some_and(|r| r.stage == stage);
                let fit = self.issuing(Stage::Prepared).filter(root).filter(|a| a.not_before <= self.now);
                let roots = self.authorities.iter().filter(|a| a.role == Role::Root && a.stage == stage);
                let make = || roots.max_by_key(|a| a.generation).filter(|_| rules.signs_roots);
                fit.max_by_key(|a| a.order())
                    .map(|a| Replacement::Take { issuing: a.generation })
                    .or_else(|| make().map(|root| Replacement::Make { root: root.generation }))
            })
            .or_else(|| rules.signs_roots.then_some(Replacement::MakeWithRoot))
    }

    /// One CA.
    pub fn find(&self, role: Role, generation: u32) -> Option<&'a Authority> {
        self.authorities.iter().find(|a| a.role == role && a.generation == generation)
    }

    /// The generation of the next CA of this role.
    pub fn next_generation(&self, role: Role) -> u32 {
        let newest = self.authorities.iter().filter(|a| a.role == role).map(|a| a.generation).max();
        newest.unwrap_or(0).saturating_add(1)
    }

    /// When the active issuing CA is due to be replaced; none while it is not, ever.
    pub fn issuing_due(&self, rules: &Rules) -> Option<i64> {
        let active = self.active()?;
        let by_age = rules.issuing_after.map(|age| active.not_before.saturating_add(age));
        // A CA cuts its leaves to its own end, so it is replaced in time in any case; not before half of its life, though,
        // and not where the root's end is its own: the next one would have no more.
        let latest = active.not_after.saturating_sub(rules.longest_leaf.saturating_mul(2));
        let half = active.not_before.midpoint(active.not_after);
        let gains = self.root().is_some_and(|root| root.not_after > active.not_after);
        let by_end = gains.then(|| latest.max(half));
        by_age.into_iter().chain(by_end).min()
    }

    /// When the present root is due to be replaced; none while it is not, ever.
    pub fn root_due(&self, rules: &Rules) -> Option<i64> {
        Some(self.root()?.not_before.saturating_add(rules.root_after?))
    }

    fn issuing(&self, stage: Stage) -> impl Iterator<Item = &'a Authority> + use<'a> {
        self.authorities.iter().filter(move |a| a.is_own(stage))
    }

    fn replace(&self, rules: &Rules) -> Option<Step> {
        let active = self.active()?;
        let root = self.find(Role::Root, active.root)?;
        let can = self.replacement(rules).is_some();
        (root.stage == Stage::Tainted && can).then_some(Step::Replace { issuing: active.generation })
    }

    fn withdraw(&self, rules: &Rules) -> Option<Step> {
        let over = |a: &&Authority| {
            let tainted = a.tainted_at.unwrap_or(i64::MAX);
            self.now >= tainted.saturating_add(a.window).saturating_add(rules.grace)
        };
        let pending = |a: &&Authority| a.withdrawn_at.is_none();
        if let Some(issuing) = self.issuing(Stage::Tainted).filter(pending).find(over) {
            return Some(Step::Withdraw { issuing: issuing.generation });
        }
        let tainted = self.authorities.iter().filter(|a| a.role == Role::Root && a.stage == Stage::Tainted);
        let root = tainted.filter(pending).find(|root| {
            let under =
                || self.authorities.iter().filter(|a| a.role == Role::Issuing && a.root == root.generation);
            // Another issuer that is gone keeps a tainted root in the bundle for as long again, and no longer.
            let deadline =
                root.tainted_at.unwrap_or(i64::MAX).saturating_add(2 * (root.window + rules.grace));
            under().all(|a| a.withdrawn_at.is_some() || a.stage == Stage::Retired)
                || (self.now >= deadline && !under().any(|a| a.own && a.stage == Stage::Active))
        });
        root.map(|root| Step::WithdrawRoot { root: root.generation })
    }

    fn publish(&self) -> Option<Step> {
        let prepared = self.authorities.iter().find(|a| a.role == Role::Root && a.stage == Stage::Prepared);
        prepared.map(|root| Step::PublishRoot { root: root.generation })
    }

    fn make(&self, rules: &Rules) -> Option<Step> {
        if !rules.signs_roots {
            return None;
        }
        let root = self.root()?;
        let under = |stage| self.issuing(stage).any(|a| a.root == root.generation);
        let due = |at: Option<i64>| at.is_some_and(|at| self.now >= at);
        if !under(Stage::Prepared) && (!under(Stage::Active) || due(self.issuing_due(rules))) {
            return Some(Step::MakeIssuing { root: root.generation });
        }
        (root.stage == Stage::Active && due(self.root_due(rules))).then_some(Step::MakeRoot)
    }

    fn activate(&self, rules: &Rules) -> Option<Step> {
        let first = self.active().is_none();
        let ready = |a: &&Authority| {
            let Some(root) = self.find(Role::Root, a.root) else { return false };
            let shown = match root.stage {
                Stage::Active => true,
                Stage::Published => {
                    let since = root.published_at.unwrap_or(i64::MAX);
                    first || (self.hosts_have_bundle && self.now >= since.saturating_add(rules.overlap))
                }
                _ => false,
            };
            shown && self.now >= a.not_before
        };
        // Never back to what was made before the one that signs.
        let newer = |a: &&Authority| self.active().is_none_or(|now| now.order() < a.order());
        let next = self.issuing(Stage::Prepared).filter(newer).filter(ready).max_by_key(|a| a.order());
        next.map(|a| Step::Activate { issuing: a.generation })
    }

    fn retire(&self) -> Option<Step> {
        let gone = |a: &Authority| !a.in_use && self.now > a.last_leaf.saturating_add(SKEW);
        let replaced = self.issuing(Stage::Retiring).find(|a| gone(a));
        let tainted = || self.issuing(Stage::Tainted).find(|a| a.withdrawn_at.is_some() && gone(a));
        // Made for a root that is none any more, or overtaken by a newer one that signs.
        let useless = || {
            let active = self.active();
            self.issuing(Stage::Prepared).chain(self.issuing(Stage::Requested)).find(|a| {
                let root = self.find(Role::Root, a.root);
                let dead = root
                    .is_some_and(|r| matches!(r.stage, Stage::Retiring | Stage::Retired | Stage::Tainted));
                dead || active.is_some_and(|now| a.stage == Stage::Prepared && now.order() > a.order())
            })
        };
        if let Some(issuing) = replaced.or_else(tainted).or_else(useless) {
            return Some(Step::RetireIssuing { issuing: issuing.generation });
        }
        let newest = self.authorities.iter().filter(|a| a.role == Role::Root && a.stage == Stage::Active);
        let newest = newest.map(|a| a.generation).max();
        let root = self.authorities.iter().filter(|a| a.role == Role::Root).find(|root| {
            let over = match root.stage {
                Stage::Retiring => true,
                Stage::Tainted => root.withdrawn_at.is_some(),
                Stage::Prepared | Stage::Published => newest.is_some_and(|n| n > root.generation),
                Stage::Requested | Stage::Active | Stage::Retired => false,
            };
            let under = |a: &&Authority| a.role == Role::Issuing && a.root == root.generation;
            over && self.authorities.iter().filter(under).all(|a| a.stage == Stage::Retired)
        });
        root.map(|root| Step::RetireRoot { root: root.generation })
    }
}

/// Seconds over which `holders` are told to renew, so that no more than `per_second` come in one: never at one
/// stroke, and never longer than a certificate lives anyway.
pub fn window(holders: u64, per_second: u32, longest_leaf: i64) -> i64 {
    /// As many seconds as hosts may be late with the order.
    const LEAST: i64 = 5;
    let seconds = holders.div_ceil(u64::from(per_second.max(1)));
    i64::try_from(seconds).unwrap_or(i64::MAX).clamp(LEAST, longest_leaf.max(LEAST))
}
