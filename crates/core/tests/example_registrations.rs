//! The example registrations have no faults, and show each tier.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use hallmark_core::registration::parse_files;
use hallmark_core::tier::Tier;

#[test]
fn example_registrations_have_no_faults() {
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/example/registrations.toml");
    let text = std::fs::read_to_string(file).unwrap();
    let registrations = parse_files(&[("registrations.toml", &text)]).unwrap();
    let tiers: Vec<_> = registrations.iter().map(|r| r.tier()).collect();
    assert_eq!(tiers, Tier::ALL);
    let warned = hallmark_core::registration::warnings(&registrations);
    assert!(warned.is_empty(), "{warned:?}");
}
