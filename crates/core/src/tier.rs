//! The three tiers, key custody, and how long a credential of each tier may live.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// The grade of a credential, in rising order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Tier {
    /// Kernel-observed agent, software key, host known by a join token or a TPM.
    Foundation,
    /// TPM-attested host, agent known by its code or unit.
    Enterprise,
    /// As enterprise, with a key that cannot leave hardware and a fresh quote for each renewal.
    Advanced,
}

impl Tier {
    /// All tiers, in rising order.
    pub const ALL: [Tier; 3] = [Tier::Foundation, Tier::Enterprise, Tier::Advanced];

    /// The tier's name in lower case.
    pub fn as_str(self) -> &'static str {
        match self {
            Tier::Foundation => "foundation",
            Tier::Enterprise => "enterprise",
            Tier::Advanced => "advanced",
        }
    }

    /// How long a credential of this tier lives when its registration does not say.
    pub fn default_lifetime(self) -> Duration {
        Duration::from_secs(
            60 * match self {
                Tier::Foundation => 15,
                Tier::Enterprise => 30,
                Tier::Advanced => 10,
            },
        )
    }

    /// The longest life a registration may ask for.
    pub fn max_lifetime(self) -> Duration {
        Duration::from_secs(
            60 * match self {
                Tier::Foundation | Tier::Advanced => 60,
                Tier::Enterprise => 240,
            },
        )
    }
}

/// A text that names no tier or custody.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{found:?} is none of {allowed}")]
pub struct UnknownWord {
    /// The text read.
    pub found: String,
    /// The words that would have been accepted.
    pub allowed: &'static str,
}

impl fmt::Display for Tier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Tier {
    type Err = UnknownWord;
    fn from_str(s: &str) -> Result<Self, UnknownWord> {
        Self::ALL
            .into_iter()
            .find(|t| t.as_str() == s)
            .ok_or_else(|| UnknownWord { found: s.to_owned(), allowed: "foundation, enterprise, advanced" })
    }
}

/// The four hierarchies of a trust domain: one for each tier, and one for what issuers and hosts show
/// each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Hierarchy {
    /// A tier's root and issuing CA.
    Tier(Tier),
    /// Host and issuer credentials: in no bundle that agents or relying parties receive.
    Infrastructure,
}

impl Hierarchy {
    /// All four.
    pub const ALL: [Hierarchy; 4] = [
        Hierarchy::Tier(Tier::Foundation),
        Hierarchy::Tier(Tier::Enterprise),
        Hierarchy::Tier(Tier::Advanced),
        Hierarchy::Infrastructure,
    ];

    /// The hierarchy's name in lower case: the tier's, or `infrastructure`.
    pub fn as_str(self) -> &'static str {
        match self {
            Hierarchy::Tier(tier) => tier.as_str(),
            Hierarchy::Infrastructure => "infrastructure",
        }
    }
}

impl fmt::Display for Hierarchy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Hierarchy {
    type Err = UnknownWord;
    fn from_str(s: &str) -> Result<Self, UnknownWord> {
        Self::ALL.into_iter().find(|h| h.as_str() == s).ok_or_else(|| UnknownWord {
            found: s.to_owned(),
            allowed: "foundation, enterprise, advanced, infrastructure",
        })
    }
}

/// Where a private key lives, and how that is known.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Custody {
    /// In the memory of the agent's process.
    Software,
    /// On a PKCS#11 token, by the word of its module: an assertion, not an attestation.
    Pkcs11Asserted,
    /// In a TPM, proved by TPM2_Certify under the host's attested AK.
    TpmCertified,
    /// As `TpmCertified` to the protocol, but the TPM is software: lab trust domains only.
    Simulated,
}

impl Custody {
    /// All custodies.
    pub const ALL: [Custody; 4] =
        [Custody::Software, Custody::Pkcs11Asserted, Custody::TpmCertified, Custody::Simulated];

    /// The custody's name as it stands in configuration, certificates' displays and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Custody::Software => "software",
            Custody::Pkcs11Asserted => "pkcs11-asserted",
            Custody::TpmCertified => "tpm-certified",
            Custody::Simulated => "simulated",
        }
    }
}

impl fmt::Display for Custody {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.as_str())
    }
}

impl FromStr for Custody {
    type Err = UnknownWord;
    fn from_str(s: &str) -> Result<Self, UnknownWord> {
        Self::ALL.into_iter().find(|c| c.as_str() == s).ok_or_else(|| UnknownWord {
            found: s.to_owned(),
            allowed: "software, pkcs11-asserted, tpm-certified, simulated",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tiers_rise() {
        assert!(Tier::Foundation < Tier::Enterprise && Tier::Enterprise < Tier::Advanced);
        for tier in Tier::ALL {
            assert_eq!(tier.as_str().parse::<Tier>(), Ok(tier));
            assert!(tier.default_lifetime() <= tier.max_lifetime());
        }
        assert!("Advanced".parse::<Tier>().is_err());
    }
}
