//! Which issuer is tried when. Hosts spread themselves: each has an order of its own, and goes back to its first
//! issuer when it attests again and that one answers.

use hallmark_core::id::HostId;
use sha2::{Digest, Sha256};

/// The issuers, in this host's order.
#[derive(Debug)]
pub(super) struct Order {
    endpoints: Vec<String>,
    turn: usize,
    /// The first one is only tried: this one served until now.
    trial: Option<usize>,
}

impl Order {
    /// As they are listed, or, to spread the hosts, by the digest of host and endpoint: each host has an order of
    /// its own that stays the same, and a new issuer takes over its share of hosts and moves no other
    /// ("rendezvous hashing").
    pub(super) fn new(mut endpoints: Vec<String>, host: &HostId, spread: bool) -> Self {
        if spread {
            endpoints.sort_by_cached_key(|endpoint| Sha256::digest(format!("{host}\0{endpoint}")));
        }
        Self { endpoints, turn: 0, trial: None }
    }

    /// The one to try now.
    pub(super) fn current(&self) -> Option<&str> {
        self.endpoints.get(self.turn % self.endpoints.len().max(1)).map(String::as_str)
    }

    /// The next one's turn. True: all have had theirs.
    pub(super) fn next(&mut self) -> bool {
        self.trial = None;
        self.turn += 1;
        self.turn.is_multiple_of(self.endpoints.len().max(1))
    }

    /// Time to attest again: a good moment to look whether the first one is back.
    pub(super) fn try_first(&mut self) {
        let serving = self.turn % self.endpoints.len().max(1);
        if serving != 0 {
            self.trial = Some(serving);
            self.turn = 0;
        }
    }

    /// It is not: on with the one that served. False: this was no such trial.
    pub(super) fn not_yet(&mut self) -> bool {
        match self.trial.take() {
            Some(serving) => {
                self.turn = serving;
                true
            }
            None => false,
        }
    }

    /// The connection is up: what was tried serves now.
    pub(super) fn serves(&mut self) {
        self.trial = None;
    }
}

/// A number of this host's own: at which of a name's addresses it begins.
pub(super) fn place(host: &HostId) -> usize {
    let digest = Sha256::digest(host.as_str());
    usize::from(u16::from_be_bytes([digest[0], digest[1]]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order(host: &str, issuers: usize) -> Order {
        let endpoints = (0..issuers).map(|n| format!("https://issuer-{n}:8443")).collect();
        Order::new(endpoints, &host.parse().unwrap(), true)
    }

    #[test]
    fn hosts_spread_and_a_new_issuer_moves_its_share_alone() {
        let (mut moved, mut shares) = (0, [0; 4]);
        for n in 0..400 {
            let host = format!("host-{n}");
            let (three, four) = (order(&host, 3), order(&host, 4));
            let first = four.current().unwrap();
            let place: usize = first["https://issuer-".len()..].split(':').next().unwrap().parse().unwrap();
            shares[place] += 1;
            if three.current() != Some(first) {
                assert_eq!(place, 3, "whoever moves, moves to the new one");
                moved += 1;
            }
        }
        assert!(shares.iter().all(|share| (60..140).contains(share)), "{shares:?}");
        assert_eq!(moved, shares[3]);
    }

    #[test]
    fn listed_is_as_listed() {
        let endpoints: Vec<String> = ["c", "a", "b"].map(str::to_owned).into();
        let mut order = Order::new(endpoints, &"h".parse().unwrap(), false);
        let mut turns = Vec::new();
        for _ in 0..4 {
            turns.push((order.current().unwrap().to_owned(), order.next()));
        }
        let turns: Vec<_> = turns.iter().map(|(endpoint, all)| (endpoint.as_str(), *all)).collect();
        assert_eq!(turns, [("c", false), ("a", false), ("b", true), ("c", false)]);
    }

    #[test]
    fn the_first_is_tried_again_and_the_other_serves_on_if_it_is_not_back() {
        let endpoints: Vec<String> = ["a", "b"].map(str::to_owned).into();
        let mut order = Order::new(endpoints, &"h".parse().unwrap(), false);
        order.try_first();
        assert!(!order.not_yet(), "the first one serves: there is nothing to try");
        order.next();
        order.try_first();
        assert_eq!(order.current(), Some("a"));
        assert!(order.not_yet());
        assert_eq!(order.current(), Some("b"));
        order.try_first();
        order.serves();
        assert!(!order.not_yet());
        assert_eq!(order.current(), Some("a"));
    }
}
