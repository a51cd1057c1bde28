//! Names, selectors, capabilities and registrations: text that people and host daemons send.

use hallmark_core::capability::{Capability, CapabilitySet};
use hallmark_core::id::SpiffeId;
use hallmark_core::registration::{Registration, parse_files, warnings};
use hallmark_core::selector::Selector;

/// A SPIFFE ID is written back as it was read.
pub fn spiffe_id(data: &[u8]) -> bool {
    let Some(id) = text(data).and_then(|t| t.parse::<SpiffeId>().ok()) else { return false };
    assert_eq!(id.to_string().as_bytes(), data);
    if let Some(parent) = id.parent() {
        assert_eq!(parent.to_string().parse(), Ok(parent));
    }
    true
}

/// A selector is written back as it was read.
pub fn selector(data: &[u8]) -> bool {
    let Some(selector) = text(data).and_then(|t| t.parse::<Selector>().ok()) else { return false };
    assert_eq!(selector.to_string().as_bytes(), data);
    true
}

/// Capabilities, one a line: each is written back as it was read, and covering is an order.
pub fn capability(data: &[u8]) -> bool {
    let Some(text) = text(data) else { return false };
    let mut all = vec![];
    for line in text.lines().take(8) {
        let Ok(capability) = line.parse::<Capability>() else { continue };
        assert_eq!(capability.to_string(), line);
        assert!(capability.covers(&capability));
        all.push(capability);
    }
    for a in &all {
        for b in &all {
            assert!(!(a.covers(b) && b.covers(a)) || a == b, "{a} and {b} cover each other");
            for c in &all {
                assert!(!(a.covers(b) && b.covers(c)) || a.covers(c), "{a} ⊇ {b} ⊇ {c}");
            }
        }
    }
    let accepted = !all.is_empty();
    let set = CapabilitySet::new(all).expect("below the limit");
    assert!(set.covers(&set) && set.uncovered(&set).is_empty());
    accepted
}

/// A registration file: what is read has a canonical text that reads the same; what is refused says why.
pub fn registration(data: &[u8]) -> bool {
    let Some(text) = text(data) else { return false };
    match parse_files(&[("fuzz.toml", text)]) {
        Ok(set) => {
            assert!(!set.is_empty());
            for registration in &set {
                let again: Registration =
                    serde_json::from_str(&registration.canonical()).expect("canonical text");
                assert_eq!(&again, registration);
                assert_eq!(again.digest(), registration.digest());
                assert!(registration.lifetime() <= registration.tier().max_lifetime());
            }
            let _ = warnings(&set);
            true
        }
        Err(faults) => {
            assert!(!faults.is_empty());
            assert!(faults.iter().all(|f| !f.key.is_empty() && !f.problem.is_empty()), "{faults:?}");
            false
        }
    }
}

/// The canonical text of a registration, as a store gives it back.
pub fn registration_json(data: &[u8]) -> bool {
    let Some(Ok(registration)) = text(data).map(serde_json::from_str::<Registration>) else { return false };
    let again: Registration = serde_json::from_str(&registration.canonical()).expect("canonical text");
    assert_eq!(again, registration);
    true
}

fn text(data: &[u8]) -> Option<&str> {
    std::str::from_utf8(data).ok()
}
