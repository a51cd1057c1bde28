//! What is alive, in memory: the last look before a credential's record is written.
//!
//! A credential is decided upon a picture of hosts and registrations that may be out of date by the time
//! its record is written. The writer, which does one thing after the other, holds the present picture and
//! refuses what no longer fits it: nothing is released under a registration that was removed, for a host
//! that was disabled, or for an instance that has ended, however the requests interleave.

use std::collections::{HashMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hallmark_core::id::{AgentName, HostId, InstanceId};
use hallmark_core::tier::Tier;

/// How far the time in a new instance's id may lie from now, in seconds.
const NEAR: i64 = 3600;
/// How long an ended instance is remembered, in seconds: longer than its id could pass for a new one's.
pub(super) const REMEMBERED: i64 = 4 * NEAR;

/// How many instances that were never seen here one host may end ahead, at one time: as many as a host
/// daemon begins at once.
const AHEAD: usize = 1024;

/// Why a credential that was decided upon is not recorded, and so not released.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stale {
    /// The registration was changed or removed in the meantime.
    #[error("the registration was changed in the meantime")]
    Registration,
    /// What is known of the host has changed in the meantime.
    #[error("the host's standing has changed in the meantime")]
    Host,
    /// The CA that signed it was tainted in the meantime.
    #[error("the issuing CA was tainted in the meantime")]
    Authority,
    /// The instance has ended; its id is never used again.
    #[error("the instance has ended")]
    Ended,
    /// The id is another agent's or another host's.
    #[error("the instance belongs to another agent or host")]
    Taken,
    /// The id is unknown here and was not drawn now.
    #[error("the instance is unknown and its id was not drawn within the hour: check the host's clock")]
    NotNew,
}

/// A credential about to be recorded, as far as it is looked at here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Claim<'a> {
    pub(super) instance: InstanceId,
    pub(super) agent: &'a AgentName,
    pub(super) host: &'a HostId,
    pub(super) tier: Tier,
    pub(super) ca: u32,
    pub(super) registration_revision: u64,
    pub(super) host_epoch: u64,
    pub(super) now: i64,
    pub(super) not_after: i64,
}

/// One run of an agent.
#[derive(Debug, Clone)]
pub(super) struct LiveInstance {
    pub(super) agent: AgentName,
    pub(super) host: HostId,
    /// Of its newest credential.
    pub(super) tier: Tier,
    /// When its newest credential ends.
    not_after: i64,
    ended: bool,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Live(Mutex<Picture>);

#[derive(Debug, Default)]
pub(super) struct Picture {
    instances: HashMap<InstanceId, LiveInstance>,
    registrations: HashMap<AgentName, u64>,
    epochs: HashMap<HostId, u64>,
    /// Issuing CAs that sign nothing more.
    tainted: HashSet<(Tier, u32)>,
    /// Ended by their host before they were seen here, and when.
    ahead: HashMap<HostId, HashMap<InstanceId, i64>>,
}

impl Live {
    pub(super) fn lock(&self) -> MutexGuard<'_, Picture> {
        // What a panic could leave behind is at most one entry that was never written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// How many instances hold a valid credential at `now`, of those that this process has seen.
    pub fn count(&self, now: i64) -> usize {
        self.lock().instances.values().filter(|i| !i.ended && i.not_after > now).count()
    }

    /// Where a host stands. A decision upon its standing reads this first, and the standing after it.
    pub fn epoch(&self, host: &HostId) -> u64 {
        self.lock().epochs.get(host).copied().unwrap_or_default()
    }
}

impl Picture {
    /// Whether it was seen here.
    pub(super) fn knows(&self, id: InstanceId) -> bool {
        self.instances.contains_key(&id)
    }

    /// Takes in a credential that the store holds, in the order they were issued.
    pub(super) fn load(&mut self, id: InstanceId, agent: AgentName, host: HostId, tier: Tier, until: i64) {
        let held = self.instances.entry(id).or_insert(LiveInstance {
            agent,
            host,
            tier,
            not_after: until,
            ended: false,
        });
        held.tier = tier;
        held.not_after = held.not_after.max(until);
    }

    /// Holds the claim against the picture; a good one becomes part of it.
    pub(super) fn admit(&mut self, claim: &Claim<'_>) -> Result<(), Stale> {
        if self.registrations.get(claim.agent) != Some(&claim.registration_revision) {
            return Err(Stale::Registration);
        }
        if self.epochs.get(claim.host).copied().unwrap_or_default() != claim.host_epoch {
            return Err(Stale::Host);
        }
        if self.tainted.contains(&(claim.tier, claim.ca)) {
            return Err(Stale::Authority);
        }
        match self.instances.get_mut(&claim.instance) {
            Some(held) if held.agent != *claim.agent || held.host != *claim.host => Err(Stale::Taken),
            Some(held) if held.ended => Err(Stale::Ended),
            Some(held) => {
                held.tier = claim.tier;
                held.not_after = held.not_after.max(claim.not_after);
                Ok(())
            }
            None if self.ahead.get(claim.host).is_some_and(|ids| ids.contains_key(&claim.instance)) => {
                Err(Stale::Ended)
            }
            None if drawn_near(claim.instance, claim.now) => {
                let held = LiveInstance {
                    agent: claim.agent.clone(),
                    host: claim.host.clone(),
                    tier: claim.tier,
                    not_after: claim.not_after,
                    ended: false,
                };
                self.instances.insert(claim.instance, held);
                Ok(())
            }
            None => Err(Stale::NotNew),
        }
    }

    /// An instance has ended.
    pub(super) fn end(&mut self, id: InstanceId, agent: AgentName, host: HostId, tier: Tier, at: i64) {
        let entry = self.instances.entry(id).or_insert(LiveInstance {
            agent,
            host,
            tier,
            not_after: at,
            ended: true,
        });
        entry.ended = true;
        entry.not_after = entry.not_after.max(at);
    }

    /// A host ends an instance. One that is unknown here but could pass for new is on its way, perhaps: its
    /// first credential may be signed already, and must not be recorded after this.
    pub(super) fn end_ahead(&mut self, host: &HostId, id: InstanceId, at: i64) {
        if self.instances.contains_key(&id) || !drawn_near(id, at) {
            return;
        }
        let ids = self.ahead.entry(host.clone()).or_default();
        if ids.len() < AHEAD {
            ids.insert(id, at);
        }
    }

    /// A registration is in force at this revision, or removed.
    pub(super) fn register(&mut self, agent: AgentName, revision: Option<u64>) {
        match revision {
            Some(revision) => self.registrations.insert(agent, revision),
            None => self.registrations.remove(&agent),
        };
    }

    /// These registrations are in force, at these revisions, and no others.
    pub(super) fn register_all(&mut self, all: Vec<(AgentName, u64)>) {
        self.registrations = all.into_iter().collect();
    }

    /// An issuing CA is tainted: what it signed and is not recorded yet never is.
    pub(super) fn taint(&mut self, tier: Tier, ca: u32) {
        self.tainted.insert((tier, ca));
    }

    /// What is known of a host has changed. Returns where it stood.
    pub(super) fn turn(&mut self, host: HostId, epoch: u64) -> u64 {
        self.epochs.insert(host, epoch).unwrap_or_default()
    }

    /// The instances not ended that `wanted` chooses, in the order they were drawn: of those named, or of all.
    pub(super) fn chosen(
        &self,
        named: Option<&[InstanceId]>,
        wanted: impl Fn(&LiveInstance) -> bool,
    ) -> Vec<(InstanceId, LiveInstance)> {
        let wanted =
            |(id, i): (&InstanceId, &LiveInstance)| (!i.ended && wanted(i)).then(|| (*id, i.clone()));
        let mut chosen: Vec<_> = match named {
            Some(ids) => {
                ids.iter().filter_map(|id| self.instances.get_key_value(id).and_then(wanted)).collect()
            }
            None => self.instances.iter().filter_map(wanted).collect(),
        };
        chosen.sort_unstable_by_key(|(id, _)| *id);
        chosen.dedup_by_key(|(id, _)| *id);
        chosen
    }

    /// Begins anew with what the store holds; hosts stand where they stood.
    pub(super) fn clear(&mut self) {
        self.instances.clear();
        self.registrations.clear();
        self.tainted.clear();
    }

    /// Forgets what can be neither renewed nor mistaken for new.
    pub(super) fn forget(&mut self, now: i64) {
        self.instances.retain(|_, instance| instance.not_after + REMEMBERED > now);
        self.ahead.retain(|_, ids| {
            ids.retain(|_, at| *at + REMEMBERED > now);
            !ids.is_empty()
        });
    }
}

fn drawn_near(id: InstanceId, now: i64) -> bool {
    let drawn = i64::try_from(id.drawn_ms() / 1000).unwrap_or(i64::MAX);
    now.saturating_sub(drawn).saturating_abs() <= NEAR
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: i64 = 1_800_000_000;

    fn id(at: i64, n: u8) -> InstanceId {
        InstanceId::drawn_at(at.unsigned_abs() * 1000, [n; 10])
    }

    fn picture() -> Picture {
        let mut picture = Picture::default();
        picture.register("x".parse().unwrap(), Some(3));
        picture
    }

    fn admit(picture: &mut Picture, change: impl Fn(&mut Claim<'_>)) -> Result<(), Stale> {
        let (agent, host) = ("x".parse().unwrap(), "a".parse().unwrap());
        let mut claim = Claim {
            instance: id(NOW, 1),
            agent: &agent,
            host: &host,
            tier: Tier::Enterprise,
            ca: 1,
            registration_revision: 3,
            host_epoch: 0,
            now: NOW,
            not_after: NOW + 100,
        };
        change(&mut claim);
        picture.admit(&claim)
    }

    #[test]
    fn each_thing_that_may_change_in_the_meantime_is_looked_at() {
        let mut picture = picture();
        assert_eq!(admit(&mut picture, |_| {}), Ok(()));
        assert_eq!(admit(&mut picture, |c| c.registration_revision = 2), Err(Stale::Registration));
        assert_eq!(admit(&mut picture, |c| c.host_epoch = 1), Err(Stale::Host));
        picture.turn("a".parse().unwrap(), 1);
        assert_eq!(admit(&mut picture, |_| {}), Err(Stale::Host));
        assert_eq!(admit(&mut picture, |c| c.host_epoch = 1), Ok(()));
        picture.taint(Tier::Enterprise, 1);
        assert_eq!(admit(&mut picture, |c| c.host_epoch = 1), Err(Stale::Authority));
        let next = |c: &mut Claim<'_>| (c.host_epoch, c.ca) = (1, 2);
        assert_eq!(admit(&mut picture, next), Ok(()));
        picture.register("x".parse().unwrap(), None);
        assert_eq!(admit(&mut picture, next), Err(Stale::Registration));
    }

    #[test]
    fn an_id_serves_one_run_of_one_agent_on_one_host() {
        let mut picture = picture();
        admit(&mut picture, |_| {}).unwrap();
        picture.register("y".parse().unwrap(), Some(3));
        let (other, elsewhere) = ("y".parse().unwrap(), "b".parse().unwrap());
        let claim = |agent, host| Claim {
            instance: id(NOW, 1),
            agent,
            host,
            tier: Tier::Enterprise,
            ca: 1,
            registration_revision: 3,
            host_epoch: 0,
            now: NOW,
            not_after: NOW + 100,
        };
        let (x, a) = ("x".parse().unwrap(), "a".parse().unwrap());
        assert_eq!(picture.admit(&claim(&other, &a)), Err(Stale::Taken));
        assert_eq!(picture.admit(&claim(&x, &elsewhere)), Err(Stale::Taken));
        picture.end(id(NOW, 1), x, a, Tier::Enterprise, NOW + 5);
        assert_eq!(admit(&mut picture, |c| c.now = NOW + 6), Err(Stale::Ended));
    }

    #[test]
    fn an_instance_that_its_host_ends_before_its_first_credential_gets_none() {
        let (mut picture, a) = (picture(), "a".parse().unwrap());
        picture.end_ahead(&a, id(NOW, 1), NOW);
        assert_eq!(admit(&mut picture, |_| {}), Err(Stale::Ended));
        // It is this host's word about its own instances alone, and about none that is alive.
        picture.end_ahead(&"b".parse().unwrap(), id(NOW, 3), NOW);
        assert_eq!(admit(&mut picture, |c| c.instance = id(NOW, 3)), Ok(()));
        admit(&mut picture, |c| c.instance = id(NOW, 2)).unwrap();
        picture.end_ahead(&a, id(NOW, 2), NOW);
        assert_eq!(admit(&mut picture, |c| c.instance = id(NOW, 2)), Ok(()));
        // It is kept as long as the id could pass for new, and no host fills the memory with such words.
        picture.forget(NOW + 2 * NEAR);
        assert_eq!(admit(&mut picture, |_| {}), Err(Stale::Ended));
        for n in 0..2 * AHEAD as u64 {
            picture.end_ahead(&a, InstanceId::drawn_at(NOW.unsigned_abs() * 1000 + n, [4; 10]), NOW);
        }
        picture.end_ahead(&a, id(NOW - 2 * NEAR, 4), NOW);
        assert_eq!(picture.ahead[&a].len(), AHEAD);
        picture.forget(NOW + REMEMBERED);
        assert!(picture.ahead.is_empty());
    }

    #[test]
    fn once_an_ended_id_is_forgotten_it_is_too_old_to_be_new() {
        let mut picture = picture();
        admit(&mut picture, |_| {}).unwrap();
        picture.end(id(NOW, 1), "x".parse().unwrap(), "a".parse().unwrap(), Tier::Enterprise, NOW + 5);
        let mut now = NOW;
        loop {
            now += 60;
            picture.forget(now);
            match admit(&mut picture, |c| c.now = now) {
                Err(Stale::Ended) => {}
                other => break assert_eq!(other, Err(Stale::NotNew)),
            }
        }
        assert!(now > NOW + NEAR);
        assert_eq!(admit(&mut picture, |c| c.instance = id(NOW + 2 * NEAR, 9)), Err(Stale::NotNew));
    }
}
