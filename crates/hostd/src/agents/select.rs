//! Which registration a process is of: all selectors of it must be observed, and exactly one may match
//! unless the agent says which.

use hallmark_core::selector::SelectorSet;

use crate::state::Registration;

/// Why no registration could be chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SelectError {
    /// None matches.
    #[error("none of this host's {count} registrations matches the process")]
    NoMatch {
        /// How many there are.
        count: usize,
    },
    /// More than one matches, and the agent named none.
    #[error("the process matches {}: name one of them", .candidates.join(", "))]
    Ambiguous {
        /// Those that match.
        candidates: Vec<String>,
    },
    /// The one the agent named does not match, or is not of this host.
    #[error("the process does not match {agent:?}{}", if missing.is_empty() { "; there is no such registration on this host".into() } else { format!(", it lacks {}", missing.join(", ")) })]
    NotThatOne {
        /// The name given.
        agent: String,
        /// The selectors that were not observed; empty when there is no such registration.
        missing: Vec<String>,
    },
}

/// The registration for a process of which `seen` was observed, and which asks for `wanted` (empty for
/// whichever matches).
///
/// # Errors
/// There is not exactly one.
pub(super) fn choose<'a>(
    registrations: &'a [Registration],
    seen: &SelectorSet,
    wanted: &str,
) -> Result<&'a Registration, SelectError> {
    if !wanted.is_empty() {
        let found = registrations.iter().find(|r| r.agent.as_str() == wanted);
        let missing = match found.map(|r| (r, r.missing(seen))) {
            Some((registration, missing)) if missing.is_empty() => return Ok(registration),
            Some((_, missing)) => missing.iter().map(ToString::to_string).collect(),
            None => Vec::new(),
        };
        return Err(SelectError::NotThatOne { agent: wanted.chars().take(64).collect(), missing });
    }
    let mut matching = registrations.iter().filter(|r| r.missing(seen).is_empty());
    match (matching.next(), matching.next()) {
        (Some(only), None) => Ok(only),
        (None, _) => Err(SelectError::NoMatch { count: registrations.len() }),
        (Some(first), Some(second)) => {
            let all = [first, second].into_iter().chain(matching);
            Err(SelectError::Ambiguous { candidates: all.map(|r| r.agent.to_string()).collect() })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hallmark_core::tier::{Custody, Tier};

    fn registration(agent: &str, selectors: &[&str]) -> Registration {
        Registration {
            agent: agent.parse().unwrap(),
            revision: 1,
            tier: Tier::Foundation,
            selectors: selectors.iter().map(|s| s.parse().unwrap()).collect(),
            custody: Custody::Software,
            bind_pcrs: Default::default(),
        }
    }

    fn seen(selectors: &[&str]) -> SelectorSet {
        selectors.iter().map(|s| s.parse().unwrap()).collect()
    }

    #[test]
    fn exactly_one_must_match() {
        let all = [
            registration("a", &["unix:uid:1"]),
            registration("b", &["unix:uid:1", "unix:gid:2"]),
            registration("c", &["unix:uid:3"]),
        ];
        assert_eq!(choose(&all, &seen(&["unix:uid:1"]), "").unwrap().agent.as_str(), "a");
        assert_eq!(
            choose(&all, &seen(&["unix:uid:1", "unix:gid:2"]), ""),
            Err(SelectError::Ambiguous { candidates: vec!["a".into(), "b".into()] })
        );
        assert_eq!(choose(&all, &seen(&["unix:uid:1", "unix:gid:2"]), "b").unwrap().agent.as_str(), "b");
        assert_eq!(choose(&all, &seen(&["unix:uid:9"]), ""), Err(SelectError::NoMatch { count: 3 }));
    }

    #[test]
    fn naming_a_registration_does_not_open_it() {
        let all = [registration("c", &["unix:uid:3"])];
        let refusal = choose(&all, &seen(&["unix:uid:1"]), "c").unwrap_err();
        assert_eq!(
            refusal,
            SelectError::NotThatOne { agent: "c".into(), missing: vec!["unix:uid:3".into()] }
        );
        let refusal = choose(&all, &seen(&["unix:uid:3"]), "d").unwrap_err();
        assert_eq!(refusal, SelectError::NotThatOne { agent: "d".into(), missing: vec![] });
    }
}
