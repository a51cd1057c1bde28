use proptest::prelude::*;

use super::*;

const DAY: i64 = 86_400;
const LEAF: i64 = 3600;
const RULES: Rules = Rules {
    issuing_after: Some(30 * DAY),
    root_after: Some(200 * DAY),
    overlap: DAY,
    grace: 60,
    longest_leaf: LEAF,
    signs_roots: true,
};

/// A leaf, as relying parties meet it.
#[derive(Debug, Clone)]
struct Leaf {
    issuing: u32,
    root: u32,
    signed: i64,
    ends: i64,
    revoked: Option<i64>,
}

/// An issuer that does what the function says, at once and as a whole.
struct World {
    now: i64,
    rules: Rules,
    authorities: Vec<Authority>,
    hosts_have_bundle: bool,
    leaves: Vec<Leaf>,
    /// For each root: from when to when it was in the bundle.
    shown: std::collections::BTreeMap<u32, (i64, Option<i64>)>,
}

impl World {
    fn new(rules: Rules) -> Self {
        let mut world = Self {
            now: 1_800_000_000,
            rules,
            authorities: Vec::new(),
            hosts_have_bundle: true,
            leaves: Vec::new(),
            shown: Default::default(),
        };
        world.do_step(Step::MakeRoot);
        world.settle();
        world
    }

    fn view(&self) -> View<'_> {
        View { authorities: &self.authorities, now: self.now, hosts_have_bundle: self.hosts_have_bundle }
    }

    fn at(&mut self, role: Role, generation: u32) -> &mut Authority {
        self.authorities.iter_mut().find(|a| a.role == role && a.generation == generation).unwrap()
    }

    fn make(&mut self, role: Role, root: u32) -> u32 {
        let life = if role == Role::Root { 3650 * DAY } else { 365 * DAY };
        let generation = self.view().next_generation(role);
        self.authorities.push(Authority {
            role,
            generation,
            root,
            own: role == Role::Issuing,
            stage: Stage::Prepared,
            not_before: self.now,
            not_after: self.now + life,
            published_at: None,
            tainted_at: None,
            withdrawn_at: None,
            window: 0,
            last_leaf: 0,
            in_use: false,
        });
        generation
    }

    fn activate(&mut self, issuing: u32) {
        let root = self.at(Role::Issuing, issuing).root;
        for a in &mut self.authorities {
            match (a.role, a.stage) {
                (Role::Issuing, Stage::Active) => a.stage = Stage::Retiring,
                (Role::Root, Stage::Active) if a.generation < root => a.stage = Stage::Retiring,
                _ => {}
            }
        }
        self.at(Role::Issuing, issuing).stage = Stage::Active;
        self.at(Role::Root, root).stage = Stage::Active;
    }

    fn taint(&mut self, role: Role, generation: u32) {
        let now = self.now;
        let a = self.at(role, generation);
        (a.stage, a.tainted_at, a.window) = (Stage::Tainted, Some(now), 30);
    }

    fn replace(&mut self, issuing: u32) {
        let next = match self.view().replacement(&self.rules).unwrap() {
            Replacement::Take { issuing } => issuing,
            Replacement::Make { root } => self.make(Role::Issuing, root),
            Replacement::MakeWithRoot => {
                let root = self.make(Role::Root, 0);
                self.do_step(Step::PublishRoot { root });
                self.make(Role::Issuing, root)
            }
        };
        self.activate(next);
        self.taint(Role::Issuing, issuing);
    }

    fn do_step(&mut self, step: Step) {
        let now = self.now;
        match step {
            Step::MakeRoot => drop(self.make(Role::Root, 0)),
            Step::MakeIssuing { root } => drop(self.make(Role::Issuing, root)),
            Step::PublishRoot { root } => {
                self.shown.insert(root, (now, None));
                let root = self.at(Role::Root, root);
                (root.stage, root.published_at) = (Stage::Published, Some(now));
            }
            Step::Activate { issuing } => self.activate(issuing),
            Step::Replace { issuing } => self.replace(issuing),
            Step::Withdraw { issuing } => {
                self.at(Role::Issuing, issuing).withdrawn_at = Some(now);
                for leaf in self.leaves.iter_mut().filter(|l| l.issuing == issuing) {
                    leaf.revoked.get_or_insert(now);
                }
            }
            Step::WithdrawRoot { root } => {
                self.at(Role::Root, root).withdrawn_at = Some(now);
                self.shown.get_mut(&root).unwrap().1 = Some(now);
            }
            Step::RetireIssuing { issuing } => {
                let a = self.at(Role::Issuing, issuing);
                assert!(!a.in_use, "retired while a request may still be signed by it");
                a.stage = Stage::Retired;
                let lives = self.leaves.iter().find(|l| l.issuing == issuing && l.ends >= now);
                assert!(lives.is_none(), "issuing CA {issuing} retired at {now} before {lives:?} ended");
            }
            Step::RetireRoot { root } => {
                self.at(Role::Root, root).stage = Stage::Retired;
                if let Some((_, until)) = self.shown.get_mut(&root) {
                    until.get_or_insert(now);
                }
            }
        }
    }

    /// Does all that is to be done now, and looks at the world after each step.
    fn settle(&mut self) {
        for turn in 0.. {
            assert!(turn < 100, "it never comes to rest: {:#?}", self.authorities);
            let Some(step) = self.view().next(&self.rules) else { break };
            let signed = self.view().active().is_some();
            self.do_step(step);
            if signed {
                self.check();
            }
        }
    }

    fn check(&self) {
        let active: Vec<_> = self.authorities.iter().filter(|a| a.is_own(Stage::Active)).collect();
        assert_eq!(active.len(), 1, "exactly one issuing CA signs: {:#?}", self.authorities);
        let root = self.view().find(Role::Root, active[0].root).unwrap();
        assert!(root.is_in_bundle(), "it signs under a root that nobody has: {root:?}");
    }

    fn sign(&mut self, life: i64) {
        let (issuing, root) = {
            let active = self.view().active().unwrap();
            assert!(active.not_before <= self.now && self.now < active.not_after, "it signs out of its time");
            (active.generation, active.root)
        };
        let ends = self.now + life;
        let a = self.at(Role::Issuing, issuing);
        a.last_leaf = a.last_leaf.max(ends);
        self.leaves.push(Leaf { issuing, root, signed: self.now, ends, revoked: None });
    }

    fn stage(&self, role: Role, generation: u32) -> Stage {
        self.view().find(role, generation).unwrap().stage
    }

    fn pass(&mut self, seconds: i64) {
        self.now += seconds;
        self.settle();
    }

    fn taint_active(&mut self) {
        let issuing = self.view().active().unwrap().generation;
        self.replace(issuing);
        self.settle();
    }

    /// As an issuer does it: the new root is shown and signs before the old one is tainted.
    fn taint_root(&mut self) {
        let old = self.view().active().unwrap().root;
        let root = self.make(Role::Root, 0);
        self.do_step(Step::PublishRoot { root });
        let issuing = self.make(Role::Issuing, root);
        self.activate(issuing);
        self.taint(Role::Root, old);
        let under: Vec<u32> = self
            .authorities
            .iter()
            .filter(|a| a.role == Role::Issuing && a.root == old && a.stage != Stage::Retired)
            .map(|a| a.generation)
            .collect();
        under.into_iter().for_each(|issuing| self.taint(Role::Issuing, issuing));
        self.settle();
    }

    /// Every leaf, at every moment of its life, before a relying party that holds the bundle of some moment after its
    /// root was shown and is no further behind than `lag`.
    fn relying_parties_accept(&self, lag: i64) {
        for leaf in &self.leaves {
            let (from, until) = self.shown[&leaf.root];
            let end = leaf.revoked.unwrap_or(leaf.ends);
            assert!(leaf.signed - lag >= from, "{leaf:?} was signed under a root shown at {from}");
            assert!(until.is_none_or(|until| until >= end), "{leaf:?} outlives its root, gone at {until:?}");
        }
    }
}

#[test]
fn the_first_ca_signs_at_once() {
    let world = World::new(RULES);
    assert_eq!(world.stage(Role::Root, 1), Stage::Active);
    assert_eq!(world.stage(Role::Issuing, 1), Stage::Active);
}

#[test]
fn an_issuing_ca_is_replaced_at_its_age_and_retires_after_its_last_leaf() {
    let mut world = World::new(RULES);
    world.pass(30 * DAY - 1);
    world.sign(LEAF);
    assert_eq!(world.stage(Role::Issuing, 1), Stage::Active);
    world.pass(1);
    assert_eq!(world.stage(Role::Issuing, 1), Stage::Retiring);
    assert_eq!(world.stage(Role::Issuing, 2), Stage::Active);
    world.pass(LEAF - 1 + SKEW);
    assert_eq!(world.stage(Role::Issuing, 1), Stage::Retiring, "its last leaf may live on a slow clock");
    world.at(Role::Issuing, 1).in_use = true;
    world.pass(1);
    assert_eq!(world.stage(Role::Issuing, 1), Stage::Retiring, "a request may still be signed by it");
    world.at(Role::Issuing, 1).in_use = false;
    world.pass(0);
    assert_eq!(world.stage(Role::Issuing, 1), Stage::Retired);
    assert_eq!(world.stage(Role::Root, 1), Stage::Active, "its root is the next one's, too");
}

#[test]
fn an_issuing_ca_near_its_end_is_replaced_whatever_the_rules() {
    let mut world = World::new(Rules { issuing_after: None, root_after: None, ..RULES });
    world.pass(365 * DAY - 2 * LEAF - 1);
    assert_eq!(world.stage(Role::Issuing, 1), Stage::Active);
    world.pass(1);
    assert_eq!(world.stage(Role::Issuing, 2), Stage::Active);
}

#[test]
fn cas_that_live_no_longer_than_their_leaves_are_not_replaced_without_end() {
    // An issuing CA whose whole life is shorter than twice its leaves': replaced at half of it.
    let mut world = World::new(Rules { issuing_after: None, root_after: None, ..RULES });
    world.at(Role::Issuing, 1).not_after = world.now + LEAF;
    world.pass(LEAF / 2 - 1);
    assert_eq!(world.authorities.len(), 2);
    world.pass(1);
    assert_eq!(world.stage(Role::Issuing, 2), Stage::Active);
    world.pass(1);
    assert_eq!(world.authorities.iter().filter(|a| a.role == Role::Issuing).count(), 2);
    // One that ends with its root: another would gain nothing.
    let mut world = World::new(Rules { issuing_after: None, root_after: None, ..RULES });
    world.at(Role::Issuing, 1).not_after = world.at(Role::Root, 1).not_after;
    world.pass(3650 * DAY - 1);
    assert_eq!(world.authorities.len(), 2);
}

#[test]
fn a_root_is_shown_for_the_overlap_and_to_every_host_before_it_counts() {
    let mut world = World::new(Rules { issuing_after: None, ..RULES });
    world.pass(200 * DAY);
    assert_eq!(world.stage(Role::Root, 2), Stage::Published);
    assert_eq!(world.stage(Role::Issuing, 2), Stage::Prepared);
    world.hosts_have_bundle = false;
    world.pass(DAY);
    assert_eq!(world.stage(Role::Issuing, 2), Stage::Prepared, "a host has not had the bundle");
    world.hosts_have_bundle = true;
    world.sign(LEAF);
    world.pass(0);
    assert_eq!(world.stage(Role::Issuing, 2), Stage::Active);
    assert_eq!(world.stage(Role::Root, 1), Stage::Retiring);
    world.pass(LEAF);
    assert_eq!(world.stage(Role::Root, 1), Stage::Retiring);
    world.pass(SKEW + 1);
    assert_eq!(world.stage(Role::Root, 1), Stage::Retired);
    world.relying_parties_accept(0);
}

#[test]
fn a_taint_replaces_at_once_and_revokes_after_the_window() {
    let mut world = World::new(RULES);
    world.sign(LEAF);
    world.taint_active();
    assert_eq!(world.stage(Role::Issuing, 1), Stage::Tainted);
    assert_eq!(world.stage(Role::Issuing, 2), Stage::Active);
    world.pass(30 + 60 - 1);
    assert_eq!(world.leaves[0].revoked, None);
    world.pass(1);
    assert_eq!(world.leaves[0].revoked, Some(world.now));
    assert_eq!(world.stage(Role::Issuing, 1), Stage::Tainted, "its list is kept while a leaf lives");
    world.pass(LEAF + SKEW);
    assert_eq!(world.stage(Role::Issuing, 1), Stage::Retired);
}

#[test]
fn a_taint_amid_a_roots_overlap_does_not_cut_it_short() {
    let mut world = World::new(Rules { issuing_after: None, ..RULES });
    world.pass(200 * DAY);
    world.taint_active();
    assert_eq!(world.view().active().unwrap().root, 1);
    world.pass(DAY);
    assert_eq!(world.view().active().unwrap().root, 2);
}

#[test]
fn a_tainted_root_leaves_the_bundle_once_what_was_under_it_is_revoked() {
    let mut world = World::new(RULES);
    world.sign(LEAF);
    world.taint_root();
    assert!(world.view().find(Role::Root, 1).unwrap().is_in_bundle());
    world.pass(30 + 60);
    assert!(!world.view().find(Role::Root, 1).unwrap().is_in_bundle());
    assert!(world.leaves[0].revoked.is_some());
    world.pass(LEAF + SKEW);
    assert_eq!(world.stage(Role::Root, 1), Stage::Retired);
}

#[test]
fn another_issuers_ca_under_a_tainted_root_holds_it_for_a_while_only() {
    let mut world = World::new(RULES);
    let theirs = world.make(Role::Issuing, 1);
    world.at(Role::Issuing, theirs).own = false;
    world.at(Role::Issuing, theirs).stage = Stage::Active;
    world.taint_root();
    world.at(Role::Issuing, theirs).stage = Stage::Active;
    world.pass(2 * (30 + 60) - 1);
    assert!(world.view().find(Role::Root, 1).unwrap().is_in_bundle());
    world.pass(1);
    assert!(!world.view().find(Role::Root, 1).unwrap().is_in_bundle());
    assert_eq!(world.stage(Role::Root, 1), Stage::Tainted, "what is under it is not this issuer's to end");
}

#[test]
fn an_issuer_whose_root_another_one_tainted_replaces_its_own_ca() {
    let mut world = World::new(RULES);
    world.taint(Role::Root, 1);
    world.settle();
    assert_eq!(world.stage(Role::Issuing, 1), Stage::Tainted);
    assert_eq!(world.view().active().unwrap().root, 2);
}

#[test]
fn without_the_roots_keys_nothing_is_made_and_what_was_installed_takes_over() {
    let mut world = World::new(RULES);
    world.rules.signs_roots = false;
    world.pass(300 * DAY);
    assert_eq!(world.authorities.len(), 2);
    let installed = world.make(Role::Issuing, 1);
    world.pass(0);
    assert_eq!(world.view().active().unwrap().generation, installed);
    // Nothing to put in its place: the one there is goes on.
    world.taint(Role::Root, 1);
    world.settle();
    assert_eq!(world.view().active().unwrap().generation, installed);
}

#[test]
fn windows_hold_the_rate_and_end() {
    assert_eq!(window(0, 100, 3600), 5);
    assert_eq!(window(100_000, 100, 3600), 1000);
    assert_eq!(window(100_001, 100, 3600), 1001);
    assert_eq!(window(u64::MAX, 1, 3600), 3600);
    assert_eq!(window(7, 0, 3600), 7);
}

#[derive(Debug, Clone)]
enum Event {
    Pass(i64),
    Sign(i64),
    Hosts(bool),
    RotateIssuing,
    RotateRoot,
    TaintIssuing,
    TaintRoot,
}

fn event(taint: bool) -> impl Strategy<Value = Event> {
    let calm = prop_oneof![
        4 => (0..3 * LEAF).prop_map(Event::Pass),
        3 => (0..20 * DAY).prop_map(Event::Pass),
        8 => (1..=LEAF).prop_map(Event::Sign),
        1 => any::<bool>().prop_map(Event::Hosts),
        1 => Just(Event::RotateIssuing),
        1 => Just(Event::RotateRoot),
    ];
    prop_oneof![
        20 => calm,
        u32::from(taint) => Just(Event::TaintIssuing),
        u32::from(taint) => Just(Event::TaintRoot),
    ]
}

fn live(events: Vec<Event>) -> World {
    let mut world = World::new(RULES);
    // Relying parties have had the first bundle for a while.
    world.pass(DAY);
    for event in events {
        match event {
            // The clock runs on while nobody looks, but never so long that a CA ends: an issuer looks every few seconds.
            Event::Pass(seconds) => world.pass(seconds),
            Event::Sign(life) => world.sign(life),
            Event::Hosts(have) => world.hosts_have_bundle = have,
            Event::RotateIssuing => {
                let root = world.view().root().unwrap().generation;
                world.make(Role::Issuing, root);
                world.settle();
            }
            Event::RotateRoot => {
                world.make(Role::Root, 0);
                world.settle();
            }
            Event::TaintIssuing => world.taint_active(),
            Event::TaintRoot => world.taint_root(),
        }
        world.check();
    }
    world
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn rotation_is_never_an_outage(events in proptest::collection::vec(event(false), 1..120)) {
        // Without taints a relying party may be a whole overlap behind.
        live(events).relying_parties_accept(DAY);
    }

    #[test]
    fn with_taints_one_ca_signs_at_every_moment(events in proptest::collection::vec(event(true), 1..120)) {
        let world = live(events);
        world.relying_parties_accept(0);
        for a in world.authorities.iter().filter(|a| a.role == Role::Issuing) {
            let late = world.leaves.iter().find(|l| l.issuing == a.generation && Some(l.signed) > a.tainted_at && a.tainted_at.is_some());
            prop_assert!(late.is_none(), "{late:?} was signed by a tainted CA");
        }
    }
}
