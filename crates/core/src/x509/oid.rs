//! Object identifiers: those of the standards, and the trust domain's own arc.

use std::fmt;
use std::str::FromStr;

use crate::tier::Tier;

/// id-ce-subjectAltName (RFC 5280 §4.2.1.6).
pub(super) const SUBJECT_ALT_NAME: &str = "2.5.29.17";
/// id-ce-keyUsage (RFC 5280 §4.2.1.3).
pub(super) const KEY_USAGE: &str = "2.5.29.15";
/// id-ce-extKeyUsage (RFC 5280 §4.2.1.12).
pub(super) const EXT_KEY_USAGE: &str = "2.5.29.37";
/// id-ce-basicConstraints (RFC 5280 §4.2.1.9).
pub(super) const BASIC_CONSTRAINTS: &str = "2.5.29.19";
/// id-ce-certificatePolicies (RFC 5280 §4.2.1.4).
pub(super) const CERTIFICATE_POLICIES: [u64; 4] = [2, 5, 29, 32];
/// id-ce-noRevAvail (RFC 9608 §2).
pub(super) const NO_REV_AVAIL: [u64; 4] = [2, 5, 29, 56];
/// id-at-serialNumber (X.520).
pub(super) const AT_SERIAL_NUMBER: [u64; 4] = [2, 5, 4, 5];

/// The arc under which a trust domain's own object identifiers hang:
///
/// ```text
/// ARC.1      certificate policies
/// ARC.1.1      foundation
/// ARC.1.2      enterprise
/// ARC.1.3      advanced
/// ARC.2      certificate extensions
/// ARC.2.1      AgentInfo
/// ```
///
/// Normally an IANA private enterprise number, `1.3.6.1.4.1.N`, or an arc below it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct OidArc(Vec<u32>);

/// Why a text is not usable as an arc.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OidArcError {
    /// Not numbers separated by dots, or a number with leading zeros.
    #[error("{text:?} is not an object identifier: numbers separated by dots, as in 1.3.6.1.4.1.32473")]
    Form {
        /// The text read, cut to 64 characters.
        text: String,
    },
    /// Too short to be anybody's own, or longer than certificates should carry.
    #[error("{text:?} has {components} components; an arc has 4 to 16")]
    Length {
        /// The text read, cut to 64 characters.
        text: String,
        /// How many components it has.
        components: usize,
    },
    /// The first two components are outside X.660's tree.
    #[error("{text:?} begins with {first}.{second}, which does not exist (X.660: 0.0-39, 1.0-39, 2.*)")]
    Top {
        /// The text read, cut to 64 characters.
        text: String,
        /// First component.
        first: u32,
        /// Second component.
        second: u32,
    },
    /// A component exceeds 31 bits.
    #[error("{text:?} has a component over 2147483647, which Go and other parsers refuse")]
    Large {
        /// The text read, cut to 64 characters.
        text: String,
    },
    /// An arc of UUIDs, whose components do not fit 31 bits.
    #[error("{text:?} lies under 2.25 (UUIDs), which Go and other parsers refuse in certificates")]
    Uuid {
        /// The text read, cut to 64 characters.
        text: String,
    },
}

impl OidArc {
    const MAX_COMPONENT: u64 = 0x7fff_ffff;

    /// The documentation arc of RFC 5612: for examples, and for trust domains without a number of
    /// their own.
    pub fn documentation() -> Self {
        Self(vec![1, 3, 6, 1, 4, 1, 32473])
    }

    /// Whether it is, or lies under, the documentation arc.
    pub fn is_documentation(&self) -> bool {
        self.0.starts_with(&Self::documentation().0)
    }

    /// Parses dotted decimal.
    ///
    /// # Errors
    /// Not an object identifier, or one that certificate parsers in use refuse.
    pub fn parse(text: &str) -> Result<Self, OidArcError> {
        let shown = || text.chars().take(64).collect::<String>();
        let form = || OidArcError::Form { text: shown() };
        let mut arc = Vec::new();
        for part in text.split('.') {
            if arc.len() > 64 || part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
                return Err(form());
            }
            if part.len() > 1 && part.starts_with('0') {
                return Err(form());
            }
            let n = part.parse::<u64>().unwrap_or(u64::MAX);
            arc.push(u32::try_from(n.min(u64::from(u32::MAX))).map_err(|_| form())?);
        }
        if let [first, second, ..] = arc[..] {
            if first > 2 || (first < 2 && second > 39) {
                return Err(OidArcError::Top { text: shown(), first, second });
            }
            if (first, second) == (2, 25) {
                return Err(OidArcError::Uuid { text: shown() });
            }
        }
        if !(4..=16).contains(&arc.len()) {
            return Err(OidArcError::Length { text: shown(), components: arc.len() });
        }
        if arc.iter().any(|&n| u64::from(n) > Self::MAX_COMPONENT) {
            return Err(OidArcError::Large { text: shown() });
        }
        Ok(Self(arc))
    }

    /// The certificate policy of `tier`: ARC.1.1, ARC.1.2 or ARC.1.3.
    pub fn policy(&self, tier: Tier) -> String {
        dotted(&self.policy_components(tier))
    }

    /// The identifier of the [`AgentInfo`](super::AgentInfo) extension: ARC.2.1.
    pub fn agent_info(&self) -> String {
        dotted(&self.agent_info_components())
    }

    /// The policies that a certificate of `tier` asserts: its own and those of every lower tier.
    pub(super) fn cumulative_policies(&self, tier: Tier) -> Vec<Vec<u64>> {
        Tier::ALL.into_iter().filter(|t| *t <= tier).map(|t| self.policy_components(t)).collect()
    }

    pub(super) fn policy_components(&self, tier: Tier) -> Vec<u64> {
        self.child(&[1, policy_number(tier)])
    }

    pub(super) fn agent_info_components(&self) -> Vec<u64> {
        self.child(&[2, 1])
    }

    /// The arc and tier that a set of cumulative policies stands for; none where it is no such set.
    pub(super) fn from_policies(policies: &[Vec<u64>]) -> Option<(Self, Tier)> {
        let [first, ..] = policies else { return None };
        let arc = &first[..first.len().checked_sub(2)?];
        let arc = Self::parse(&dotted(arc)).ok()?;
        let tier = Tier::ALL.into_iter().find(|t| arc.cumulative_policies(*t).len() == policies.len())?;
        let expected = arc.cumulative_policies(tier);
        expected.iter().all(|p| policies.contains(p)).then_some((arc, tier))
    }

    fn child(&self, tail: &[u64]) -> Vec<u64> {
        self.0.iter().map(|&n| u64::from(n)).chain(tail.iter().copied()).collect()
    }
}

fn policy_number(tier: Tier) -> u64 {
    match tier {
        Tier::Foundation => 1,
        Tier::Enterprise => 2,
        Tier::Advanced => 3,
    }
}

fn dotted(components: &[u64]) -> String {
    components.iter().map(u64::to_string).collect::<Vec<_>>().join(".")
}

impl fmt::Display for OidArc {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&dotted(&self.child(&[])))
    }
}

impl FromStr for OidArc {
    type Err = OidArcError;
    fn from_str(s: &str) -> Result<Self, OidArcError> {
        Self::parse(s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arcs_that_certificates_can_carry() {
        for good in ["1.3.6.1.4.1.32473", "1.3.6.1.4.1.2147483647.1", "2.999.1.2", "0.4.0.127"] {
            assert_eq!(OidArc::parse(good).unwrap().to_string(), good);
        }
        let why = |s: &str| OidArc::parse(s).unwrap_err();
        for bad in ["", ".", "1.", "1..3.6", "1.3.06.1", "1.3.6.x", "-1.3.6.1", "1.3.6.1 ", "١.3.6.1"] {
            assert!(matches!(why(bad), OidArcError::Form { .. }), "{bad}");
        }
        assert!(matches!(why("1.3.6"), OidArcError::Length { components: 3, .. }));
        assert!(matches!(why(&["1"; 17].join(".")), OidArcError::Length { components: 17, .. }));
        assert!(matches!(why("1.40.1.1"), OidArcError::Top { second: 40, .. }));
        assert!(matches!(why("3.1.1.1"), OidArcError::Top { first: 3, .. }));
        assert!(matches!(why("1.3.6.1.4.1.2147483648"), OidArcError::Large { .. }));
        assert!(matches!(why("1.3.6.1.4.1.99999999999999999999999"), OidArcError::Large { .. }));
        assert!(matches!(why("2.25.1.1"), OidArcError::Uuid { .. }));
        assert!(matches!(why("2.25.329800735698586629295641978511506172918"), OidArcError::Uuid { .. }));
    }

    #[test]
    fn documentation_is_known() {
        assert!(OidArc::documentation().is_documentation());
        assert!(OidArc::parse("1.3.6.1.4.1.32473.9").unwrap().is_documentation());
        assert!(!OidArc::parse("1.3.6.1.4.1.32474").unwrap().is_documentation());
    }

    #[test]
    fn policies_are_cumulative_and_read_back() {
        let arc = OidArc::documentation();
        assert_eq!(arc.policy(Tier::Enterprise), "1.3.6.1.4.1.32473.1.2");
        assert_eq!(arc.agent_info(), "1.3.6.1.4.1.32473.2.1");
        for tier in Tier::ALL {
            let set = arc.cumulative_policies(tier);
            assert_eq!(OidArc::from_policies(&set), Some((arc.clone(), tier)));
        }
        let odd = |tiers: &[Tier]| {
            OidArc::from_policies(&tiers.iter().map(|t| arc.policy_components(*t)).collect::<Vec<_>>())
        };
        assert_eq!(odd(&[]), None);
        assert_eq!(odd(&[Tier::Enterprise]), None, "not cumulative");
        assert_eq!(odd(&[Tier::Foundation, Tier::Advanced]), None, "a gap");
        assert_eq!(odd(&[Tier::Foundation, Tier::Foundation]), None, "twice the same");
        let mut mixed = arc.cumulative_policies(Tier::Enterprise);
        mixed[1][6] = 1;
        assert_eq!(OidArc::from_policies(&mixed), None, "two arcs");
    }
}
