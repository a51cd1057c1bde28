//! What is allowed in a set of registrations and yet is probably not meant.

use std::collections::BTreeMap;

use super::Registration;
use crate::selector::Selector;

/// Something allowed that is probably not meant.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Warning {
    /// The registrations it is about.
    pub agents: Vec<String>,
    /// What, and what follows from it.
    pub problem: String,
}

/// Looks a whole set over: registrations that one process can match at once, DNS names that several agents
/// may show, key bindings that hold nothing.
pub fn warnings(set: &[Registration]) -> Vec<Warning> {
    let mut found = ambiguous(set);
    found.extend(shared_dns_names(set));
    found.extend(set.iter().filter_map(resettable_pcrs));
    found
}

/// Pairs where every process that matches one matches the other too, on a host that both name. Such a
/// process must say which of the two it wants to be.
fn ambiguous(set: &[Registration]) -> Vec<Warning> {
    // By first selector: a registration can only be within another that has its first selector too.
    let mut by_first: BTreeMap<&Selector, Vec<usize>> = BTreeMap::new();
    for (i, r) in set.iter().enumerate() {
        if let Some(first) = r.selectors().first() {
            by_first.entry(first).or_default().push(i);
        }
    }
    let mut found = vec![];
    for (i, narrow) in set.iter().enumerate() {
        let candidates = narrow.selectors().iter().filter_map(|s| by_first.get(s)).flatten();
        for &j in candidates.filter(|&&j| j != i) {
            let wide = &set[j];
            let same = wide.selectors().len() == narrow.selectors().len();
            let within = wide.selectors().iter().all(|s| narrow.selectors().binary_search(s).is_ok());
            // Two with the same selectors are one pair, not two.
            if within && !(same && i > j) && hosts_meet(wide, narrow) {
                let (n, w) = (narrow.name(), wide.name());
                found.push(Warning {
                    agents: vec![n.to_string(), w.to_string()],
                    problem: format!(
                        "a process that matches {n:?} matches {w:?} too: it must ask for one of them by name, \
                         and may choose either",
                        n = n.as_str(),
                        w = w.as_str()
                    ),
                });
            }
        }
    }
    found
}

fn hosts_meet(a: &Registration, b: &Registration) -> bool {
    a.hosts().iter().any(|x| b.hosts().iter().any(|y| x.overlaps(y)))
}

fn shared_dns_names(set: &[Registration]) -> Vec<Warning> {
    let mut by_name: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for r in set {
        for name in r.dns_names() {
            by_name.entry(name).or_default().push(r.name().to_string());
        }
    }
    let shared = by_name.into_iter().filter(|(_, agents)| agents.len() > 1);
    shared
        .map(|(name, agents)| Warning {
            agents,
            problem: format!(
                "all of these may show a certificate for {name}: each can pose as the others there"
            ),
        })
        .collect()
}

fn resettable_pcrs(r: &Registration) -> Option<Warning> {
    // TCG PC Client Platform TPM Profile, section 4.6.2: PCR 16 (debug) and 23 (application) can be reset at
    // locality 0.
    let weak: Vec<String> =
        r.key().bind_pcrs.iter().filter(|p| matches!(p, 16 | 23)).map(ToString::to_string).collect();
    (!weak.is_empty()).then(|| Warning {
        agents: vec![r.name().to_string()],
        problem: format!(
            "key.bind_pcrs: any program with access to the TPM can reset PCR {}: binding to it holds nothing",
            weak.join(" and ")
        ),
    })
}
