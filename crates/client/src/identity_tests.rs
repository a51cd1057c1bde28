use hallmark_kit::agents::{Agents, Wanted};
use hallmark_kit::pki::{TestDomain, unix_now as now};
use rcgen::KeyPair;

use super::*;

/// A message that holds together.
fn message() -> wire::Identity {
    let domain = TestDomain::new("example.org", false, now() - 3_600).unwrap();
    let issued = domain.issue(Wanted::new("mailer", Tier::Enterprise)).unwrap();
    domain.serve(&issued, None)
}

fn refused(change: impl FnOnce(&mut wire::Identity)) -> IdentityError {
    let mut message = message();
    change(&mut message);
    Identity::accept(message, None).unwrap_err()
}

#[test]
fn a_whole_message_is_accepted() {
    let identity = Identity::accept(message(), None).unwrap();
    assert_eq!(identity.agent(), "mailer");
    assert_eq!(identity.trust_domain().as_str(), "example.org");
    assert!(identity.certified().is_some() && identity.private_key_pkcs8().is_some());
    let end = identity.not_after;
    assert!(identity.is_valid_at(instant(end - 1)) && !identity.is_valid_at(instant(end)));
}

#[test]
fn debug_shows_no_key() {
    let identity = Identity::accept(message(), None).unwrap();
    let shown = format!("{identity:?}");
    let key = identity.private_key_pkcs8().unwrap();
    assert!(shown.contains("in memory") && !shown.contains(&format!("{key:?}")), "{shown}");
    assert!(shown.len() < 400, "{shown}");
}

#[test]
fn each_fault_is_named() {
    assert!(matches!(refused(|m| m.spiffe_id = "spiffe://x".into()), IdentityError::Name(_)));
    let host = refused(|m| m.spiffe_id = "spiffe://example.org/host/a".into());
    assert!(matches!(host, IdentityError::NotAnAgent(_)));
    assert_eq!(refused(|m| m.instance_id = vec![1; 15].into()), IdentityError::InstanceId(15));
    assert!(matches!(refused(|m| m.tier = "gold".into()), IdentityError::Word(_)));
    assert_eq!(refused(|m| m.chain.clear()), IdentityError::Chain(0));
    assert_eq!(refused(|m| m.chain = vec![vec![1].into(); 9]), IdentityError::Chain(9));
    assert_eq!(refused(|m| m.bundle = None), IdentityError::NoBundle);
    let foreign = refused(|m| m.bundle.as_mut().unwrap().trust_domain = "evil.example".into());
    assert!(matches!(foreign, IdentityError::ForeignBundle { .. }));
    assert!(matches!(refused(|m| m.not_after = m.not_before), IdentityError::Validity { .. }));
    let no_root = refused(|m| m.bundle.as_mut().unwrap().tiers[0].roots = vec![vec![1].into()]);
    assert!(matches!(no_root, IdentityError::Root(_)));
    let many = refused(|m| m.bundle.as_mut().unwrap().tiers[0].roots = vec![vec![1].into(); 65]);
    assert!(matches!(many, IdentityError::TooManyRoots { count: 65, .. }));
}

#[test]
fn the_key_must_be_what_custody_says() {
    let handle = || Some(wire::identity::Key::KeyHandle(vec![1].into()));
    assert!(matches!(refused(|m| m.key = None), IdentityError::KeyForm { .. }));
    assert!(matches!(refused(|m| m.key = handle()), IdentityError::KeyForm { .. }));
    assert!(matches!(refused(|m| m.custody = "tpm-certified".into()), IdentityError::KeyForm { .. }));
    assert!(matches!(refused(|m| m.custody = "pkcs11-asserted".into()), IdentityError::KeyForm { .. }));
    let other = KeyPair::generate().unwrap().serialize_der();
    let swapped = refused(|m| m.key = Some(wire::identity::Key::PrivateKey(other.into())));
    assert!(matches!(swapped, IdentityError::Key(_)), "{swapped:?}");
    for custody in ["tpm-certified", "pkcs11-asserted", "simulated"] {
        let mut message = message();
        message.custody = custody.into();
        message.key = handle();
        let identity = Identity::accept(message, None).unwrap();
        assert!(identity.is_hardware_held() && identity.private_key_pkcs8().is_none());
    }
}
