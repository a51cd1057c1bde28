//! What a TPM lets be done with an object.

use std::fmt;

use super::wire::{ParseError, Reader};

/// `TPMA_OBJECT` (Part 2, clause 8.3).
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct ObjectAttributes(u32);

impl ObjectAttributes {
    /// The private part never leaves this TPM.
    pub const FIXED_TPM: Self = Self(1 << 1);
    /// Gone at the next TPM2_Startup(CLEAR).
    pub const ST_CLEAR: Self = Self(1 << 2);
    /// Never moved to another parent.
    pub const FIXED_PARENT: Self = Self(1 << 4);
    /// The TPM made the private part.
    pub const SENSITIVE_DATA_ORIGIN: Self = Self(1 << 5);
    /// The authorisation value may stand in for the policy.
    pub const USER_WITH_AUTH: Self = Self(1 << 6);
    /// Administrative use demands the policy.
    pub const ADMIN_WITH_POLICY: Self = Self(1 << 7);
    /// Not subject to dictionary-attack protection.
    pub const NO_DA: Self = Self(1 << 10);
    /// Duplicated only in encrypted form.
    pub const ENCRYPTED_DUPLICATION: Self = Self(1 << 11);
    /// Works on TPM-generated structures only.
    pub const RESTRICTED: Self = Self(1 << 16);
    /// May decrypt.
    pub const DECRYPT: Self = Self(1 << 17);
    /// May sign.
    pub const SIGN: Self = Self(1 << 18);

    /// Reserved bits: 0, 3, 12 to 15, and 20 to 31. Bits 8 and 9 (firmware- and SVN-limited, revision
    /// 1.83) and 19 (x509sign) are defined.
    const RESERVED: u32 = 0xfff0_f009;

    pub(super) fn parse(r: &mut Reader<'_>) -> Result<Self, ParseError> {
        let bits = r.u32("objectAttributes")?;
        if bits & Self::RESERVED != 0 {
            return Err(ParseError::Invalid { field: "objectAttributes", rule: "a reserved bit is set" });
        }
        Ok(Self(bits))
    }

    /// The attributes with these bits. For building templates and tests; parsing goes through `Public`.
    pub const fn from_bits(bits: u32) -> Self {
        Self(bits)
    }

    /// As on the wire.
    pub const fn bits(self) -> u32 {
        self.0
    }

    /// Whether all of `other` is set here.
    pub const fn contains(self, other: Self) -> bool {
        self.0 & other.0 == other.0
    }

    /// Whether any of `other` is set here.
    pub const fn intersects(self, other: Self) -> bool {
        self.0 & other.0 != 0
    }

    /// Both sets of bits.
    pub const fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// The bits of `other` that are not set here.
    pub const fn lacking(self, other: Self) -> Self {
        Self(other.0 & !self.0)
    }
}

impl fmt::Display for ObjectAttributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const NAMES: [(u32, &str); 14] = [
            (1, "fixedTPM"),
            (2, "stClear"),
            (4, "fixedParent"),
            (5, "sensitiveDataOrigin"),
            (6, "userWithAuth"),
            (7, "adminWithPolicy"),
            (8, "firmwareLimited"),
            (9, "svnLimited"),
            (10, "noDA"),
            (11, "encryptedDuplication"),
            (16, "restricted"),
            (17, "decrypt"),
            (18, "sign"),
            (19, "x509sign"),
        ];
        let set: Vec<&str> =
            NAMES.iter().filter(|(bit, _)| self.0 & (1 << bit) != 0).map(|(_, name)| *name).collect();
        f.write_str(if set.is_empty() { "none" } else { "" })?;
        f.write_str(&set.join("|"))
    }
}

impl fmt::Debug for ObjectAttributes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self}")
    }
}
