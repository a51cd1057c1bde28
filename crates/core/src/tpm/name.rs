//! Hash algorithms, names and qualified names.

use std::fmt;

use sha2::{Digest, Sha256, Sha384};

use super::wire::ParseError;

/// `TPM_RH_OWNER` (Part 2, clause 7.4).
pub const RH_OWNER: u32 = 0x4000_0001;
/// `TPM_RH_ENDORSEMENT` (Part 2, clause 7.4).
pub const RH_ENDORSEMENT: u32 = 0x4000_000b;

/// The hash algorithms a name or a signature may use here. SHA-1 is not among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum HashAlg {
    /// `TPM_ALG_SHA256`
    Sha256,
    /// `TPM_ALG_SHA384`
    Sha384,
}

impl HashAlg {
    pub(crate) fn from_id(field: &'static str, id: u16) -> Result<Self, ParseError> {
        match id {
            0x000b => Ok(HashAlg::Sha256),
            0x000c => Ok(HashAlg::Sha384),
            other => Err(ParseError::Unsupported { field, found: other.into() }),
        }
    }

    /// `TPM_ALG_ID` (Part 2, clause 6.3).
    pub fn id(self) -> u16 {
        match self {
            HashAlg::Sha256 => 0x000b,
            HashAlg::Sha384 => 0x000c,
        }
    }

    /// Length of a digest in bytes.
    pub fn digest_len(self) -> usize {
        match self {
            HashAlg::Sha256 => 32,
            HashAlg::Sha384 => 48,
        }
    }

    /// Digest of the parts, one after the other.
    pub fn digest(self, parts: &[&[u8]]) -> Vec<u8> {
        fn run<D: Digest>(parts: &[&[u8]]) -> Vec<u8> {
            let mut hash = D::new();
            for part in parts {
                hash.update(part);
            }
            hash.finalize().to_vec()
        }
        match self {
            HashAlg::Sha256 => run::<Sha256>(parts),
            HashAlg::Sha384 => run::<Sha384>(parts),
        }
    }
}

impl fmt::Display for HashAlg {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            HashAlg::Sha256 => "sha256",
            HashAlg::Sha384 => "sha384",
        })
    }
}

/// The name of a TPM object: its name algorithm and the digest of its public area (Part 1, clause 16).
/// Whoever agrees on a name agrees on every attribute of the object.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Name(Vec<u8>);

impl Name {
    /// The name of the object whose public area is `public` (Part 1, clause 16, equation 8).
    pub(crate) fn of(alg: HashAlg, public: &[u8]) -> Self {
        let mut name = alg.id().to_be_bytes().to_vec();
        name.extend(alg.digest(&[public]));
        Self(name)
    }

    /// Reads a name of an object: a hash algorithm and a digest of its length.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let (alg, digest) = bytes.split_first_chunk::<2>().ok_or(ParseError::Truncated {
            field: "name",
            offset: 0,
            wanted: 2,
            left: bytes.len(),
        })?;
        let alg = HashAlg::from_id("name.hashAlg", u16::from_be_bytes(*alg))?;
        if digest.len() != alg.digest_len() {
            return Err(ParseError::Invalid { field: "name", rule: "its length is not that of its hash" });
        }
        Ok(Self(bytes.to_vec()))
    }

    /// Algorithm (two bytes) and digest.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The qualified name of an object with this name that is a primary of a hierarchy: the hash of the
    /// hierarchy's handle and the name (Part 1, clause 16, "Qualified Name").
    pub fn qualified_under(&self, hierarchy: u32) -> Self {
        // The constructors admit no other length.
        let alg =
            if self.0.len() == 2 + HashAlg::Sha384.digest_len() { HashAlg::Sha384 } else { HashAlg::Sha256 };
        let mut qualified = alg.id().to_be_bytes().to_vec();
        qualified.extend(alg.digest(&[&hierarchy.to_be_bytes(), &self.0]));
        Self(qualified)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&hex::encode(&self.0))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Name({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_has_the_length_of_its_hash() {
        let name = Name::of(HashAlg::Sha256, b"public area");
        assert_eq!(name.as_bytes().len(), 34);
        assert_eq!(Name::parse(name.as_bytes()), Ok(name.clone()));
        assert!(Name::parse(&name.as_bytes()[..33]).is_err());
        assert!(Name::parse(&[0x00, 0x04]).is_err());
        assert!(Name::parse(&[]).is_err());
        // A hierarchy's name is its handle: four bytes, not an object.
        assert!(Name::parse(&RH_OWNER.to_be_bytes()).is_err());
    }

    #[test]
    fn qualified_names_differ_by_hierarchy() {
        for alg in [HashAlg::Sha256, HashAlg::Sha384] {
            let name = Name::of(alg, b"x");
            assert_ne!(name.qualified_under(RH_OWNER), name.qualified_under(RH_ENDORSEMENT));
            assert_eq!(name.qualified_under(RH_OWNER).as_bytes().len(), 2 + alg.digest_len());
        }
    }
}
