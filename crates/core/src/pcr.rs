//! Platform configuration registers of the sha256 bank: values, selections, and policies of accepted
//! values.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::{self, Write as _};

use sha2::{Digest, Sha256};

/// PCRs of a PC Client TPM: 0 to 23 (TCG PC Client Platform TPM Profile, clause 4.6).
pub const PCR_COUNT: u8 = 24;

/// A value of a PCR in the sha256 bank.
pub type PcrValue = [u8; 32];

/// Why numbers are no PCR selection or values.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PcrError {
    /// An index that a PC Client TPM does not have.
    #[error("PCR {index}: a TPM has PCRs 0 to 23")]
    Index {
        /// The index.
        index: u32,
    },
    /// An index that is named twice.
    #[error("PCR {index} is named twice")]
    Repeated {
        /// The index.
        index: u8,
    },
    /// A value that is not 32 bytes.
    #[error("PCR {index}: {len} bytes, a sha256 value has 32")]
    Length {
        /// The index.
        index: u8,
        /// Length of the value.
        len: usize,
    },
}

/// A set of PCRs of the sha256 bank.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PcrSelection(BTreeSet<u8>);

impl PcrSelection {
    /// A selection of these indices; order and repetition do not matter.
    pub fn new(indices: impl IntoIterator<Item = u32>) -> Result<Self, PcrError> {
        let mut set = BTreeSet::new();
        for index in indices {
            set.insert(checked_index(index)?);
        }
        Ok(Self(set))
    }

    /// Whether nothing is selected.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The indices in rising order.
    pub fn iter(&self) -> impl Iterator<Item = u8> + '_ {
        self.0.iter().copied()
    }

    /// The indices.
    pub fn indices(&self) -> &BTreeSet<u8> {
        &self.0
    }

    /// Whether `index` is selected.
    pub fn contains(&self, index: u8) -> bool {
        self.0.contains(&index)
    }
}

impl fmt::Display for PcrSelection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let text: Vec<String> = self.0.iter().map(u8::to_string).collect();
        f.pad(&text.join(","))
    }
}

/// PCRs of the sha256 bank with their values.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct PcrValues(BTreeMap<u8, PcrValue>);

impl PcrValues {
    /// Values as they came: each index at most once, each value 32 bytes.
    pub fn new<'a>(values: impl IntoIterator<Item = (u32, &'a [u8])>) -> Result<Self, PcrError> {
        let mut map = BTreeMap::new();
        for (index, value) in values {
            let index = checked_index(index)?;
            let value = value.try_into().map_err(|_| PcrError::Length { index, len: value.len() })?;
            if map.insert(index, value).is_some() {
                return Err(PcrError::Repeated { index });
            }
        }
        Ok(Self(map))
    }

    /// The value of one PCR.
    pub fn value(&self, index: u8) -> Option<&PcrValue> {
        self.0.get(&index)
    }

    /// Index and value, in rising order of index.
    pub fn iter(&self) -> impl Iterator<Item = (u8, &PcrValue)> {
        self.0.iter().map(|(index, value)| (*index, value))
    }

    /// Which PCRs there are values for.
    pub fn selection(&self) -> PcrSelection {
        PcrSelection(self.0.keys().copied().collect())
    }

    /// All values in rising order of index, one after the other: what a quote's digest is made of
    /// (Part 3, clause 18.4, TPM2_Quote).
    pub fn concatenated(&self) -> Vec<u8> {
        self.0.values().flatten().copied().collect()
    }

    /// SHA-256 over indices and values, for records.
    pub fn digest(&self) -> [u8; 32] {
        let mut hash = Sha256::new();
        for (index, value) in &self.0 {
            hash.update([*index]);
            hash.update(value);
        }
        hash.finalize().into()
    }
}

impl fmt::Debug for PcrValues {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.0.iter().map(|(i, v)| (i, hex::encode(v)))).finish()
    }
}

fn checked_index(index: u32) -> Result<u8, PcrError> {
    u8::try_from(index).ok().filter(|i| *i < PCR_COUNT).ok_or(PcrError::Index { index })
}

/// A named set of accepted PCR values.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PcrPolicy {
    /// Its name in the configuration.
    pub name: String,
    /// Patterns of host ids it applies to; the configuration's reader gives them their meaning.
    pub hosts: Vec<String>,
    /// For each PCR, every value that is accepted.
    pub accepted: BTreeMap<u8, BTreeSet<PcrValue>>,
}

/// A PCR whose value no entry of the policy accepts.
#[derive(Clone, PartialEq, Eq)]
pub struct PcrMismatch {
    /// The PCR.
    pub index: u8,
    /// Its value; none if it was not quoted.
    pub found: Option<PcrValue>,
    /// What would have been accepted.
    pub accepted: BTreeSet<PcrValue>,
}

impl PcrPolicy {
    /// The PCRs this policy speaks about: what a quote must select.
    pub fn selection(&self) -> PcrSelection {
        PcrSelection(self.accepted.keys().copied().filter(|i| *i < PCR_COUNT).collect())
    }

    /// Holds `values` against the policy; the error lists every PCR that is not met.
    pub fn appraise(&self, values: &PcrValues) -> Result<(), Vec<PcrMismatch>> {
        let unmet: Vec<PcrMismatch> = self
            .accepted
            .iter()
            .filter(|(index, accepted)| values.value(**index).is_none_or(|v| !accepted.contains(v)))
            .map(|(index, accepted)| PcrMismatch {
                index: *index,
                found: values.value(*index).copied(),
                accepted: accepted.clone(),
            })
            .collect();
        if unmet.is_empty() { Ok(()) } else { Err(unmet) }
    }
}

impl fmt::Display for PcrMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let accepted: Vec<String> = self.accepted.iter().map(hex::encode).collect();
        match self.found {
            Some(found) => write!(f, "PCR {} is {}", self.index, hex::encode(found))?,
            None => write!(f, "PCR {} was not quoted", self.index)?,
        }
        write!(
            f,
            ", accepted: {}",
            if accepted.is_empty() { "none".to_owned() } else { accepted.join(" or ") }
        )
    }
}

impl fmt::Debug for PcrMismatch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}

/// These values as a policy in the issuer's configuration form. `name` is also the host it applies to.
pub fn to_toml(name: &str, values: &PcrValues) -> String {
    // `toml::Value` writes the quotes and escapes that a name may need.
    let quoted = toml::Value::String(name.to_owned()).to_string();
    let bare = !name.is_empty() && name.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_');
    let key = if bare { name } else { quoted.as_str() };
    let mut out = format!("[attestation.pcr_policy.{key}]\nhosts = [{quoted}]\n\n");
    let _ = writeln!(out, "[attestation.pcr_policy.{key}.pcrs]");
    for (index, value) in values.iter() {
        let _ = writeln!(out, "{index} = [\"{}\"]", hex::encode(value));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn values(list: &[(u32, [u8; 32])]) -> PcrValues {
        PcrValues::new(list.iter().map(|(i, v)| (*i, v.as_slice()))).unwrap()
    }

    #[test]
    fn outside_numbers_are_checked() {
        assert_eq!(PcrSelection::new([24]), Err(PcrError::Index { index: 24 }));
        assert_eq!(PcrSelection::new([256 + 7]), Err(PcrError::Index { index: 263 }));
        let v = [0u8; 32];
        assert_eq!(PcrValues::new([(7, &v[..]), (7, &v[..])]), Err(PcrError::Repeated { index: 7 }));
        assert_eq!(PcrValues::new([(7, &v[..31])]), Err(PcrError::Length { index: 7, len: 31 }));
    }

    #[test]
    fn every_unmet_pcr_is_listed() {
        let policy = PcrPolicy {
            name: "lab".into(),
            hosts: vec![],
            accepted: [
                (0, [[0; 32]].into()),
                (4, [[4; 32], [5; 32]].into()),
                (7, [[7; 32]].into()),
                (9, [].into()),
            ]
            .into(),
        };
        assert_eq!(policy.selection().to_string(), "0,4,7,9");
        let mut off_by_one_bit = [7; 32];
        off_by_one_bit[31] ^= 1;
        let unmet = policy.appraise(&values(&[(4, [5; 32]), (7, off_by_one_bit), (9, [9; 32])])).unwrap_err();
        assert_eq!(unmet.iter().map(|m| m.index).collect::<Vec<_>>(), [0, 7, 9]);
        assert_eq!(unmet[0].found, None);
        assert_eq!(unmet[1].found, Some(off_by_one_bit));
        assert!(unmet[2].to_string().ends_with("accepted: none"));
    }

    #[test]
    fn printed_values_are_configuration() {
        for name in ["web-1", "rack 7.\"a\""] {
            let text = to_toml(name, &values(&[(7, [0xab; 32]), (0, [1; 32])]));
            let parsed: toml::Table = text.parse().unwrap();
            let policy = &parsed["attestation"]["pcr_policy"][name];
            assert_eq!(policy["hosts"][0].as_str(), Some(name));
            assert_eq!(policy["pcrs"]["7"][0].as_str(), Some("ab".repeat(32).as_str()));
            assert_eq!(policy["pcrs"]["0"][0].as_str(), Some("01".repeat(32).as_str()));
        }
    }
}
