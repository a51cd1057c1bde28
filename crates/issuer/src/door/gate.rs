//! Who holds how much: connections, attestations and bytes, counted by address for strangers and by host
//! for hosts that showed their certificate.
//!
//! A full house is made room in by ending strangers' connections on which no attestation is under way, the
//! oldest of the address that holds most: whoever fills the house loses what fills it. Hosts are counted
//! apart from strangers, so that no number of strangers keeps a connected host from attesting again or from
//! issuing. Until its handshake ends a host is a stranger, too: whoever fills all handshakes again and again,
//! from several addresses, slows its reconnecting.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hallmark_core::id::{HostId, Subject};
use hallmark_proto::tls::PeerInfo;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use crate::config::Limits;

/// Handshakes under way at one time, hosts' among them; more wait in the kernel's queue.
const HANDSHAKES: usize = 256;
/// A connection is not ended for another's sake before it has had this long: a handshake needs a few
/// milliseconds, and hosts that come all at once must not end each other's.
const GRACE: Duration = Duration::from_secs(1);
/// Attestations of one host that shows its certificate.
const ATTESTATIONS_PER_HOST: usize = 2;
/// Bytes of one host's requests held at one time: two of the largest.
const BYTES_PER_HOST: usize = 16 << 20;
/// The window in which begun attestations are counted.
const WINDOW: Duration = Duration::from_secs(60);

/// What there was no room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Full {
    /// `limits.max_connections`, and no stranger's to end.
    #[error("limits.max_connections")]
    Connections,
    /// `limits.max_strangers`.
    #[error("limits.max_strangers")]
    Strangers,
    /// `limits.connections_per_address`.
    #[error("limits.connections_per_address")]
    Address,
    /// `limits.max_attestations`, the reserved ones aside.
    #[error("limits.max_attestations")]
    Attestations,
    /// `limits.attestations_per_address`, or a host's two.
    #[error("limits.attestations_per_address")]
    AttestationsOfOne,
    /// `limits.attestations_per_minute`, or of the address.
    #[error("limits.attestations_per_minute")]
    Rate,
    /// `limits.max_stranger_bytes`, or one party's share of bytes.
    #[error("limits.max_stranger_bytes")]
    Bytes,
    /// The connection was ended to make room.
    #[error("the connection has ended")]
    Ended,
}

/// An address as strangers are counted by it: IPv4, or the first 64 bits of IPv6, which one customer has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Net(IpAddr);

impl Net {
    fn of(remote: SocketAddr) -> Self {
        match remote.ip().to_canonical() {
            IpAddr::V6(ip) => Self(Ipv6Addr::from_bits(ip.to_bits() & !u128::from(u64::MAX)).into()),
            v4 => Self(v4),
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Party {
    Stranger(Net),
    Host(HostId),
}

#[derive(Debug, Default)]
struct Held {
    connections: usize,
    attestations: usize,
    bytes: usize,
}

#[derive(Debug)]
struct Connection {
    party: Party,
    since: Instant,
    shaking: bool,
    attestations: usize,
    end: CancellationToken,
}

#[derive(Debug)]
struct State {
    limits: Limits,
    next: u64,
    /// By number, and so by age.
    connections: BTreeMap<u64, Connection>,
    parties: HashMap<Party, Held>,
    strangers: usize,
    shaking: usize,
    stranger_attestations: usize,
    host_attestations: usize,
    stranger_bytes: usize,
    window: Instant,
    begun: usize,
    /// No longer than `limits.attestations_per_minute`.
    begun_by: HashMap<Net, usize>,
}

/// See the module.
#[derive(Debug)]
pub struct Gate {
    state: Mutex<State>,
    shaken: Notify,
}

impl Gate {
    /// An empty house.
    pub fn new(limits: Limits) -> Arc<Self> {
        let state = State {
            limits,
            next: 0,
            connections: BTreeMap::new(),
            parties: HashMap::new(),
            strangers: 0,
            shaking: 0,
            stranger_attestations: 0,
            host_attestations: 0,
            stranger_bytes: 0,
            window: Instant::now(),
            begun: 0,
            begun_by: HashMap::new(),
        };
        Arc::new(Self { state: Mutex::new(state), shaken: Notify::new() })
    }

    /// The limits in force.
    pub fn limits(&self) -> Limits {
        self.lock().limits.clone()
    }

    /// Puts other limits in force, for what comes from now on.
    pub fn set_limits(&self, limits: Limits) {
        self.lock().limits = limits;
    }

    /// Waits until one more handshake may begin.
    pub async fn handshake_room(&self) {
        loop {
            let wait = {
                let mut state = self.lock();
                let now = Instant::now();
                if state.shaking < HANDSHAKES || state.end_a_stranger(now, |c| c.shaking) {
                    return;
                }
                let eldest = state.connections.values().filter(|c| c.shaking).map(|c| c.since).min();
                eldest.map_or(GRACE, |since| (since + GRACE).saturating_duration_since(now))
            };
            tokio::select! {
                () = self.shaken.notified() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Takes up a connection, as a stranger's until its handshake shows otherwise.
    ///
    /// # Errors
    /// There is no room, and none can be made.
    pub fn arrive(self: &Arc<Self>, remote: SocketAddr, now: Instant) -> Result<Ticket, Full> {
        let party = Party::Stranger(Net::of(remote));
        let end = CancellationToken::new();
        let mut state = self.lock();
        let of_address = state.parties.get(&party).map_or(0, |held| held.connections);
        if of_address >= state.limits.connections_per_address
            && !state.end_a_stranger(now, |c| c.party == party)
        {
            return Err(Full::Address);
        }
        if state.strangers >= state.limits.max_strangers && !state.end_a_stranger(now, |_| true) {
            return Err(Full::Strangers);
        }
        if state.connections.len() >= state.limits.max_connections && !state.end_a_stranger(now, |_| true) {
            return Err(Full::Connections);
        }
        let id = state.next;
        state.next += 1;
        let connection =
            Connection { party: party.clone(), since: now, shaking: true, attestations: 0, end: end.clone() };
        state.connections.insert(id, connection);
        state.count(&party, 1, 0);
        state.shaking += 1;
        drop(state);
        let (attesting, _) = watch::channel(0);
        Ok(Ticket(Pass { gate: self.clone(), id, party, end, attesting: Arc::new(attesting) }))
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Counters only, each changed whole: a panic elsewhere leaves none half-written.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Counts connections and attestations of a party up or down.
    fn count(&mut self, party: &Party, connections: isize, attestations: isize) {
        let add = |to: &mut usize, n: isize| *to = to.saturating_add_signed(n);
        match party {
            Party::Stranger(_) => {
                add(&mut self.strangers, connections);
                add(&mut self.stranger_attestations, attestations);
            }
            Party::Host(_) => add(&mut self.host_attestations, attestations),
        }
        let held = self.parties.entry(party.clone()).or_default();
        add(&mut held.connections, connections);
        add(&mut held.attestations, attestations);
        self.forget_if_empty(party);
    }

    fn forget_if_empty(&mut self, party: &Party) {
        let empty = |held: &Held| held.connections == 0 && held.attestations == 0 && held.bytes == 0;
        if self.parties.get(party).is_some_and(empty) {
            self.parties.remove(party);
        }
    }

    /// Ends the oldest idle connection of the address that has most, among those that `which` names.
    fn end_a_stranger(&mut self, now: Instant, which: impl Fn(&Connection) -> bool) -> bool {
        let idle = |c: &Connection| {
            matches!(c.party, Party::Stranger(_))
                && c.attestations == 0
                && now.saturating_duration_since(c.since) >= GRACE
                && which(c)
        };
        let weight = |c: &Connection| self.parties.get(&c.party).map_or(0, |held| held.connections);
        // Of equals `max_by_key` takes the last: reversed, the oldest.
        let found = self.connections.iter().rev().filter(|(_, c)| idle(c)).max_by_key(|(_, c)| weight(c));
        let Some(id) = found.map(|(id, _)| *id) else { return false };
        self.remove(id);
        true
    }

    fn remove(&mut self, id: u64) {
        if let Some(connection) = self.connections.remove(&id) {
            connection.end.cancel();
            self.shaking -= usize::from(connection.shaking);
            self.count(&connection.party, -1, 0);
        }
    }

    fn begin_attestation(&mut self, id: u64, now: Instant) -> Result<Party, Full> {
        let party = self.connections.get(&id).ok_or(Full::Ended)?.party.clone();
        let limits = &self.limits;
        let under_way = self.stranger_attestations + self.host_attestations;
        let of_party = self.parties.get(&party).map_or(0, |held| held.attestations);
        if under_way >= limits.max_attestations {
            return Err(Full::Attestations);
        }
        let most_of_party = match &party {
            Party::Host(_) => ATTESTATIONS_PER_HOST,
            Party::Stranger(_) => {
                if self.stranger_attestations >= limits.max_attestations - limits.reserved_attestations {
                    return Err(Full::Attestations);
                }
                limits.attestations_per_address
            }
        };
        if of_party >= most_of_party {
            return Err(Full::AttestationsOfOne);
        }
        if let Party::Stranger(net) = &party {
            self.begin_by(*net, now)?;
        }
        if let Some(connection) = self.connections.get_mut(&id) {
            connection.attestations += 1;
        }
        self.count(&party, 0, 1);
        Ok(party)
    }

    fn begin_by(&mut self, net: Net, now: Instant) -> Result<(), Full> {
        if now.saturating_duration_since(self.window) >= WINDOW {
            self.window = now;
            self.begun = 0;
            self.begun_by.clear();
        }
        let by = self.begun_by.get(&net).copied().unwrap_or(0);
        if self.begun >= self.limits.attestations_per_minute
            || by >= self.limits.address_attestations_per_minute
        {
            return Err(Full::Rate);
        }
        self.begun += 1;
        self.begun_by.insert(net, by + 1);
        Ok(())
    }

    fn charge(&mut self, party: &Party, bytes: usize) -> Result<(), Full> {
        let most_of_party = match party {
            Party::Host(_) => BYTES_PER_HOST,
            Party::Stranger(_) => {
                if self.stranger_bytes + bytes > self.limits.max_stranger_bytes {
                    return Err(Full::Bytes);
                }
                self.limits.max_stranger_bytes / 4
            }
        };
        let held = self.parties.entry(party.clone()).or_default();
        if held.bytes + bytes > most_of_party {
            self.forget_if_empty(party);
            return Err(Full::Bytes);
        }
        held.bytes += bytes;
        if matches!(party, Party::Stranger(_)) {
            self.stranger_bytes += bytes;
        }
        Ok(())
    }

    fn give_back(&mut self, party: &Party, bytes: usize) {
        if let Some(held) = self.parties.get_mut(party) {
            held.bytes = held.bytes.saturating_sub(bytes);
        }
        if matches!(party, Party::Stranger(_)) {
            self.stranger_bytes = self.stranger_bytes.saturating_sub(bytes);
        }
        self.forget_if_empty(party);
    }
}

/// A connection's place in the house, given back when it is dropped.
#[derive(Debug)]
pub struct Ticket(Pass);

impl Ticket {
    /// The handshake is over: counts the connection under who showed themselves. A host that has as many
    /// as it may loses its oldest, which after a broken network is a dead one.
    ///
    /// # Errors
    /// The connection was ended to make room.
    pub fn identify(&mut self, peer: &PeerInfo) -> Result<(), Full> {
        let pass = &mut self.0;
        let mut state = pass.gate.lock();
        let shaken = state.connections.get_mut(&pass.id).ok_or(Full::Ended)?;
        shaken.shaking = false;
        state.shaking -= 1;
        pass.gate.shaken.notify_one();
        let Some(host) = host_of(peer) else { return Ok(()) };
        let party = Party::Host(host.clone());
        if state.parties.get(&party).map_or(0, |held| held.connections) >= state.limits.connections_per_host {
            let oldest = state.connections.iter().find(|(_, c)| c.party == party).map(|(id, _)| *id);
            if let Some(id) = oldest {
                state.remove(id);
            }
        }
        if let Some(connection) = state.connections.get_mut(&pass.id) {
            connection.party = party.clone();
        }
        state.count(&pass.party, -1, 0);
        state.count(&party, 1, 0);
        drop(state);
        pass.party = party;
        Ok(())
    }

    /// What its requests are counted by.
    pub fn pass(&self) -> Pass {
        self.0.clone()
    }

    /// Resolves when the connection must end to make room.
    pub async fn ended(&self) {
        self.0.end.cancelled().await;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.0.gate.lock().remove(self.0.id);
        self.0.gate.shaken.notify_one();
    }
}

/// The host that a peer proved to be.
pub fn host_of(peer: &PeerInfo) -> Option<&HostId> {
    match peer.spiffe_id.as_ref().map(|id| &id.subject) {
        Some(Subject::Host(host)) => Some(host),
        _ => None,
    }
}

/// A connection's name at the gate.
#[derive(Debug, Clone)]
pub struct Pass {
    gate: Arc<Gate>,
    id: u64,
    party: Party,
    end: CancellationToken,
    attesting: Arc<watch::Sender<usize>>,
}

impl Pass {
    /// Whether no host certificate was shown.
    pub fn is_stranger(&self) -> bool {
        matches!(self.party, Party::Stranger(_))
    }

    /// The limits in force.
    pub fn limits(&self) -> Limits {
        self.gate.limits()
    }

    /// Takes a place for one attestation.
    ///
    /// # Errors
    /// There is none for this party now.
    pub fn begin_attestation(&self) -> Result<AttestationPermit, Full> {
        self.begin_attestation_at(Instant::now())
    }

    fn begin_attestation_at(&self, now: Instant) -> Result<AttestationPermit, Full> {
        self.gate.lock().begin_attestation(self.id, now)?;
        self.attesting.send_modify(|n| *n += 1);
        Ok(AttestationPermit(self.clone()))
    }

    /// Resolves when this stranger's connection has been idle for too long, or is old and idle. An
    /// attestation under way is not cut off: it has its own deadline.
    pub async fn overstayed(&self) {
        let limits = self.limits();
        let old = tokio::time::sleep(2 * limits.attestation_timeout);
        tokio::pin!(old);
        let mut attesting = self.attesting.subscribe();
        loop {
            let idle = *attesting.borrow_and_update() == 0;
            if idle && old.is_elapsed() {
                return;
            }
            // The sender is this pass's own: it cannot be gone.
            tokio::select! {
                () = tokio::time::sleep(limits.stranger_idle), if idle => return,
                () = &mut old, if !old.is_elapsed() => {}
                _ = attesting.changed() => {}
            }
        }
    }

    pub(super) fn charge(&self, bytes: usize) -> Result<(), Full> {
        self.gate.lock().charge(&self.party, bytes)
    }

    pub(super) fn give_back(&self, bytes: usize) {
        self.gate.lock().give_back(&self.party, bytes);
    }
}

/// The right to run one attestation.
#[derive(Debug)]
pub struct AttestationPermit(Pass);

impl Drop for AttestationPermit {
    fn drop(&mut self) {
        let pass = &self.0;
        let mut state = pass.gate.lock();
        if let Some(connection) = state.connections.get_mut(&pass.id) {
            connection.attestations -= 1;
        }
        state.count(&pass.party, 0, -1);
        drop(state);
        pass.attesting.send_modify(|n| *n -= 1);
    }
}

#[cfg(test)]
#[path = "gate_tests.rs"]
mod tests;
