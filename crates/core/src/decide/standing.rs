//! What the decision is made from: what the trust domain accepts, and what is known of the host and of the
//! agent once their evidence has been appraised.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::id::{HostId, InstanceId};
use crate::selector::SelectorSet;
use crate::tier::{Custody, Tier};

/// What a trust domain accepts. The default is the strictest: a production trust domain with the maxima of
/// the tiers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TrustRules {
    /// A lab trust domain: a simulated TPM counts like hardware, and certificates say so.
    pub lab: bool,
    /// A PKCS#11 module's word is accepted for a key's custody.
    pub accept_pkcs11_asserted: bool,
    /// How old the last accepted quote may be for the advanced tier.
    pub quote_max_age: Duration,
    /// How long the attestation of a TPM host counts. A join token proves once; after it, what proves the
    /// host is its own credential, whose end the connection enforces.
    pub attestation_max_age: Duration,
    /// The longest lifetime this trust domain grants at each tier. It can only shorten the tier's own maximum.
    pub lifetimes: Lifetimes,
}

impl Default for TrustRules {
    fn default() -> Self {
        Self {
            lab: false,
            accept_pkcs11_asserted: false,
            quote_max_age: Duration::from_secs(5 * 60),
            attestation_max_age: Duration::from_secs(60 * 60),
            lifetimes: Lifetimes::default(),
        }
    }
}

/// A longest lifetime for each tier.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetimes {
    /// Of foundation credentials.
    pub foundation: Duration,
    /// Of enterprise credentials.
    pub enterprise: Duration,
    /// Of advanced credentials.
    pub advanced: Duration,
}

impl Default for Lifetimes {
    fn default() -> Self {
        Self {
            foundation: Tier::Foundation.max_lifetime(),
            enterprise: Tier::Enterprise.max_lifetime(),
            advanced: Tier::Advanced.max_lifetime(),
        }
    }
}

impl Lifetimes {
    /// The longest lifetime granted at `tier`: never above the tier's own maximum.
    pub fn max(&self, tier: Tier) -> Duration {
        let ours = match tier {
            Tier::Foundation => self.foundation,
            Tier::Enterprise => self.enterprise,
            Tier::Advanced => self.advanced,
        };
        ours.min(tier.max_lifetime())
    }
}

/// What is known of a host from its last appraised evidence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostStanding {
    /// The id it proved itself under.
    pub host_id: HostId,
    /// By what means.
    pub proof: HostProof,
    /// Its boot state against its PCR policy.
    pub pcr: PcrStanding,
    /// When it last attested.
    pub attested_at: i64,
    /// When its last accepted quote was taken in; none for a join token.
    pub quote_at: Option<i64>,
    /// Digest of the evidence in the record.
    pub evidence_digest: [u8; 32],
    /// Why an operator disabled this host, if one did.
    pub disabled: Option<String>,
}

/// How a host proved itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum HostProof {
    /// By a one-time join token.
    JoinToken,
    /// By its TPM: EK trusted, AK activated, quote checked.
    Tpm {
        /// The EK certificate says, or the root that signed it means, that this TPM is software.
        simulated: bool,
        /// Why the EK is trusted.
        ek_trust: EkTrust,
    },
}

/// Why an EK is trusted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EkTrust {
    /// Its certificate chains to an accepted root.
    Certificate,
    /// An operator put its digest on the allow-list: it may enrol. Nothing says that it is hardware.
    AllowList,
    /// An operator put its digest on the allow-list and vouched that it is a hardware TPM.
    Vouched,
}

/// A host's quoted PCRs against its policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PcrStanding {
    /// Every PCR of the policy has an accepted value.
    Met {
        /// The policy's name.
        policy: String,
    },
    /// At least one has not.
    NotMet {
        /// The policy's name.
        policy: String,
        /// One sentence for each PCR that differs.
        mismatches: Vec<String>,
    },
    /// No policy names this host.
    NoPolicy,
}

/// What is known of an agent at one issuance: what its host observed of the process, and the key whose
/// possession was proved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AgentStanding {
    /// Which run of the agent.
    pub instance: InstanceId,
    /// What the host daemon observed.
    pub selectors: SelectorSet,
    /// SubjectPublicKeyInfo (DER) of the key, from a CSR that it signed. The key evidence is of this key.
    pub spki: Vec<u8>,
    /// How the key is kept.
    pub key: KeyStanding,
}

/// How a key is kept, as its appraised evidence shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum KeyStanding {
    /// Nothing was shown.
    Software,
    /// Certified by the AK of the host it is issued through, which is simulated if that host's TPM is.
    Tpm {
        /// The PCRs that its authPolicy binds its use to.
        policy_pcrs: BTreeSet<u8>,
    },
    /// A PKCS#11 module speaks for it.
    Pkcs11(Pkcs11Assertion),
}

impl KeyStanding {
    /// The custody shown, before it is known whether the TPM is simulated.
    pub fn custody(&self) -> Custody {
        match self {
            KeyStanding::Software => Custody::Software,
            KeyStanding::Tpm { .. } => Custody::TpmCertified,
            KeyStanding::Pkcs11(_) => Custody::Pkcs11Asserted,
        }
    }
}

/// What a PKCS#11 module says of a key (PKCS#11 3.1 section 4.9).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pkcs11Assertion {
    /// The label of the token.
    pub token_label: String,
    /// CKA_SENSITIVE: its value cannot be read in the clear.
    pub sensitive: bool,
    /// CKA_ALWAYS_SENSITIVE: that was never otherwise.
    pub always_sensitive: bool,
    /// CKA_NEVER_EXTRACTABLE: it never could be taken out, wrapped or not.
    pub never_extractable: bool,
    /// CKA_LOCAL: it was made on the token.
    pub local: bool,
}

impl Pkcs11Assertion {
    /// The attributes that should be true and are not.
    pub fn lacking(&self) -> Vec<&'static str> {
        let all = [
            (self.sensitive, "CKA_SENSITIVE"),
            (self.always_sensitive, "CKA_ALWAYS_SENSITIVE"),
            (self.never_extractable, "CKA_NEVER_EXTRACTABLE"),
            (self.local, "CKA_LOCAL"),
        ];
        all.into_iter().filter_map(|(set, name)| (!set).then_some(name)).collect()
    }
}
