//! The requirements of the tiers, one variant each, and what each is worth against an attacker.

use std::fmt;

use serde::Serialize;

use crate::tier::{Custody, Tier};

/// One thing that must hold before a credential is issued. Which tiers demand it stands in
/// [`Requirement::of_tier`] and [`Requirement::of_custody`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Requirement {
    /// The registration names this host.
    HostNamed,
    /// No operator has disabled this host.
    HostEnabled,
    /// The host's last proof, by join token or TPM, still counts.
    HostProved,
    /// The proof was a TPM's: EK trusted, AK activated.
    HostTpm,
    /// The TPM is hardware (in a lab trust domain a simulated one counts).
    HardwareTpm,
    /// The quoted PCRs are among the accepted values of the host's PCR policy.
    PcrPolicy,
    /// The last accepted quote is fresh.
    FreshQuote,
    /// Every selector of the registration was observed of the process.
    Selectors,
    /// One of them binds the agent's code.
    CodeIdentity,
    /// The key presented is of the custody that the registration demands.
    KeyCustody,
    /// The key presented lives in hardware.
    HardwareKey,
    /// The key's authPolicy binds its use to just the PCRs that the registration demands.
    KeyPcrBinding,
    /// The trust domain accepts a PKCS#11 module's word.
    Pkcs11Accepted,
    /// The module says that the key was made on the token and can never leave it.
    Pkcs11Attributes,
}

use Requirement as R;

const FOUNDATION: &[R] = &[R::HostNamed, R::HostEnabled, R::HostProved, R::Selectors, R::KeyCustody];
const ENTERPRISE: &[R] = &[R::HostTpm, R::HardwareTpm, R::PcrPolicy, R::CodeIdentity];
const ADVANCED: &[R] = &[R::FreshQuote, R::HardwareKey];

/// What a control does to an attack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Attack {
    /// The attack named cannot succeed.
    Impossible,
    /// The attack named costs more, or ends sooner, and still can succeed.
    Tedious,
}

impl Attack {
    /// `impossible` or `tedious`.
    pub fn as_str(self) -> &'static str {
        match self {
            Attack::Impossible => "impossible",
            Attack::Tedious => "tedious",
        }
    }
}

impl Requirement {
    /// All requirements, in the order in which they are checked and shown.
    pub const ALL: [R; 14] = [
        R::HostNamed,
        R::HostEnabled,
        R::HostProved,
        R::HostTpm,
        R::HardwareTpm,
        R::PcrPolicy,
        R::FreshQuote,
        R::Selectors,
        R::CodeIdentity,
        R::KeyCustody,
        R::HardwareKey,
        R::KeyPcrBinding,
        R::Pkcs11Accepted,
        R::Pkcs11Attributes,
    ];

    /// Whether `tier` demands it of every agent. Each tier demands what the one below it does, and more.
    pub fn of_tier(self, tier: Tier) -> bool {
        FOUNDATION.contains(&self)
            || tier >= Tier::Enterprise && ENTERPRISE.contains(&self)
            || tier >= Tier::Advanced && ADVANCED.contains(&self)
    }

    /// Whether a key registered with `custody` demands it, at whatever tier. A key can be no better kept
    /// than the host that speaks of it is proved.
    pub fn of_custody(self, custody: Custody) -> bool {
        match custody {
            Custody::Software => false,
            Custody::TpmCertified | Custody::Simulated => {
                matches!(self, R::HostTpm | R::HardwareTpm | R::KeyPcrBinding)
            }
            Custody::Pkcs11Asserted => {
                matches!(self, R::HostTpm | R::HardwareTpm | R::Pkcs11Accepted | R::Pkcs11Attributes)
            }
        }
    }

    /// Whether it is about the host alone, and so can be told without any agent or registration.
    pub fn of_host(self) -> bool {
        matches!(
            self,
            R::HostEnabled | R::HostProved | R::HostTpm | R::HardwareTpm | R::PcrPolicy | R::FreshQuote
        )
    }

    /// One word for machines.
    pub fn code(self) -> &'static str {
        self.words().0
    }

    /// A few words for people, as they stand in a table.
    pub fn title(self) -> &'static str {
        self.words().1
    }

    fn words(self) -> (&'static str, &'static str) {
        match self {
            R::HostNamed => ("host-named", "registration names the host"),
            R::HostEnabled => ("host-enabled", "host not disabled"),
            R::HostProved => ("host-proved", "host's proof still counts"),
            R::HostTpm => ("host-tpm", "host proved by its TPM"),
            R::HardwareTpm => ("hardware-tpm", "TPM is hardware"),
            R::PcrPolicy => ("pcr-policy", "boot state accepted (PCR policy)"),
            R::FreshQuote => ("fresh-quote", "fresh quote"),
            R::Selectors => ("selectors", "process matches every selector"),
            R::CodeIdentity => ("code-identity", "a selector binds the agent's code"),
            R::KeyCustody => ("key-custody", "key is of the custody registered"),
            R::HardwareKey => ("hardware-key", "key lives in hardware"),
            R::KeyPcrBinding => ("key-pcr-binding", "key bound to the PCRs registered"),
            R::Pkcs11Accepted => ("pkcs11-accepted", "trust domain accepts a PKCS#11 module's word"),
            R::Pkcs11Attributes => ("pkcs11-attributes", "module says the key cannot leave the token"),
        }
    }

    /// Which attack this control is there for, and what it does to it. The text says what is left over.
    pub fn attack(self) -> (Attack, &'static str) {
        use Attack::{Impossible, Tedious};
        match self {
            R::HostNamed => (
                Impossible,
                "getting this agent's credential through another host: a host acts under its own id only, and a \
                 host that is not named is refused. \"*\" names every enrolled host.",
            ),
            R::HostEnabled => (
                Impossible,
                "new credentials for a host under suspicion. Those already issued live until they expire or are \
                 revoked.",
            ),
            R::HostProved => (
                Tedious,
                "posing as the host. A join token proves only that its bearer held it, once; afterwards whoever \
                 copies the host's key is the host until its credential ends. A TPM's proof cannot be copied, and \
                 is asked for again and again.",
            ),
            R::HostTpm => (
                Impossible,
                "posing as the host from another machine: the EK and AK cannot leave the TPM, and a stolen disk \
                 holds neither. Whoever controls the host can use them there while that lasts. An EK on the \
                 allow-list may enrol by the operator's word.",
            ),
            R::HardwareTpm => (
                Impossible,
                "passing off a software TPM, whose keys are a file, as hardware: no vendor's root signed its EK. \
                 Not against a stolen vendor key, a broken TPM model, or an operator who vouches for a software EK.",
            ),
            R::PcrPolicy => (
                Tedious,
                "starting the host with other firmware, boot loader or kernel: what was measured differs. A \
                 system taken over after boot still shows the same PCRs, and so does accepted code that has a hole.",
            ),
            R::FreshQuote => (
                Tedious,
                "living on an old proof after the host's state changed: that ends within the quote's maximum age, \
                 not at once.",
            ),
            R::Selectors => (
                Tedious,
                "another user's process posing as the agent: the kernel says who it is, and a recycled pid does not \
                 help. Root on the host, or a taken-over host daemon, can say anything of its own processes.",
            ),
            R::CodeIdentity => (
                Tedious,
                "another program posing as the agent. The right program can still be fed wrong input, libraries or \
                 scripts, or be steered by a debugger; the digest of an interpreter says nothing of its script.",
            ),
            R::KeyCustody => (
                Impossible,
                "having a key certified as better kept than was proved: what is presented as another custody is \
                 refused before anything is signed. A software key can be copied by whoever reads the process's \
                 memory.",
            ),
            R::HardwareKey => (
                Impossible,
                "copying the key off the host, where custody is tpm-certified. It can be used there while a \
                 compromise lasts; re-attestation and dissolution end that. For pkcs11-asserted this rests on the \
                 module's word.",
            ),
            R::KeyPcrBinding => (
                Impossible,
                "using the key after the bound PCRs changed: the TPM itself refuses to sign. A compromise that \
                 changes none of them goes unnoticed.",
            ),
            R::Pkcs11Accepted => (
                Tedious,
                "a host that lies about its token: the issuer cannot tell, so the trust domain must want it, and \
                 the certificate says pkcs11-asserted.",
            ),
            R::Pkcs11Attributes => (
                Tedious,
                "a key that can be exported, or was made outside: an honest module says so. A software token or a \
                 lying host says what is wanted.",
            ),
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.code())
    }
}

impl Serialize for Requirement {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.code())
    }
}
