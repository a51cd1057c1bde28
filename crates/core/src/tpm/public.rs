//! `TPMT_PUBLIC`: the public area of a key (Part 2, clause 12.2.4).

use std::fmt;

use super::attributes::ObjectAttributes;
use super::name::{HashAlg, Name};
use super::wire::{ParseError, Reader};

/// Longest `TPMT_PUBLIC` read: an RSA-4096 key with a SHA-384 policy has 582 bytes.
const MAX_PUBLIC: usize = 1024;

const ALG_RSA: u16 = 0x0001;
const ALG_AES: u16 = 0x0006;
const ALG_NULL: u16 = 0x0010;
const ALG_RSASSA: u16 = 0x0014;
const ALG_RSAES: u16 = 0x0015;
const ALG_RSAPSS: u16 = 0x0016;
const ALG_OAEP: u16 = 0x0017;
const ALG_ECDSA: u16 = 0x0018;
const ALG_ECDH: u16 = 0x0019;
const ALG_ECC: u16 = 0x0023;
const ALG_CFB: u16 = 0x0043;

/// `TPMT_SYM_DEF_OBJECT`: what a storage key protects its children, and credentials, with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Symmetric {
    /// None: not a storage key.
    Null,
    /// AES in CFB mode with keys of this many bits: 128 or 256.
    AesCfb {
        /// Key length in bits.
        bits: u16,
    },
}

/// `TPMT_ASYM_SCHEME`: how a key is used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Scheme {
    /// Chosen at each use.
    Null,
    /// RSASSA-PKCS1-v1_5
    RsaSsa(HashAlg),
    /// RSASSA-PSS
    RsaPss(HashAlg),
    /// RSAES-PKCS1-v1_5
    RsaEs,
    /// RSAES-OAEP
    Oaep(HashAlg),
    /// ECDSA
    Ecdsa(HashAlg),
    /// ECDH
    Ecdh(HashAlg),
}

/// Curves accepted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Curve {
    /// `TPM_ECC_NIST_P256`
    P256,
    /// `TPM_ECC_NIST_P384`
    P384,
}

impl Curve {
    /// Length of a coordinate in bytes.
    pub fn coordinate_len(self) -> usize {
        match self {
            Curve::P256 => 32,
            Curve::P384 => 48,
        }
    }

    /// `TPM_ECC_CURVE` (Part 2, clause 6.4).
    pub fn id(self) -> u16 {
        match self {
            Curve::P256 => 0x0003,
            Curve::P384 => 0x0004,
        }
    }
}

/// An RSA public key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RsaPublic {
    /// Key length: 2048, 3072 or 4096.
    pub bits: u16,
    /// Always 65537: the TPM writes it as 0 or in full.
    pub exponent: u32,
    /// Big-endian, exactly `bits / 8` bytes.
    pub modulus: Vec<u8>,
}

/// A point on a curve, verified to be one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EccPublic {
    /// The curve.
    pub curve: Curve,
    /// As in the public area; a TPM may leave out leading zeros.
    pub x: Vec<u8>,
    /// As in the public area.
    pub y: Vec<u8>,
}

impl EccPublic {
    /// SEC 1 uncompressed point, both coordinates in full length.
    pub fn sec1(&self) -> Vec<u8> {
        let len = self.curve.coordinate_len();
        let mut point = vec![4];
        for coordinate in [&self.x, &self.y] {
            point.resize(point.len() + len - coordinate.len(), 0);
            point.extend_from_slice(coordinate);
        }
        point
    }
}

/// The key itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PublicKey {
    /// RSA
    Rsa(RsaPublic),
    /// Elliptic curve
    Ecc(EccPublic),
}

/// A public area, parsed. It keeps the bytes it came from: the name is a digest of exactly those.
#[derive(Clone, PartialEq, Eq)]
pub struct Public {
    raw: Vec<u8>,
    name: Name,
    name_alg: HashAlg,
    attributes: ObjectAttributes,
    auth_policy: Vec<u8>,
    symmetric: Symmetric,
    scheme: Scheme,
    key: PublicKey,
}

impl Public {
    /// Reads a `TPMT_PUBLIC` of an RSA or ECC key, nothing left over.
    pub fn parse(bytes: &[u8]) -> Result<Self, ParseError> {
        let mut r = Reader::new("TPMT_PUBLIC", bytes, MAX_PUBLIC)?;
        let object_type = r.u16("type")?;
        let name_alg = HashAlg::from_id("nameAlg", r.u16("nameAlg")?)?;
        let attributes = ObjectAttributes::parse(&mut r)?;
        let auth_policy = r.sized("authPolicy", name_alg.digest_len())?.to_vec();
        if !auth_policy.is_empty() && auth_policy.len() != name_alg.digest_len() {
            return Err(ParseError::Invalid {
                field: "authPolicy",
                rule: "neither empty nor as long as the name algorithm's digest",
            });
        }
        let (symmetric, scheme, key) = match object_type {
            ALG_RSA => parse_rsa(&mut r)?,
            ALG_ECC => parse_ecc(&mut r)?,
            other => return Err(ParseError::Unsupported { field: "type", found: other.into() }),
        };
        r.end("TPMT_PUBLIC")?;
        let name = Name::of(name_alg, bytes);
        Ok(Self { raw: bytes.to_vec(), name, name_alg, attributes, auth_policy, symmetric, scheme, key })
    }

    /// The `TPMT_PUBLIC` as it was read.
    pub fn as_bytes(&self) -> &[u8] {
        &self.raw
    }

    /// The object's name.
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// The hash its name, policy and, for a storage key, credentials use.
    pub fn name_alg(&self) -> HashAlg {
        self.name_alg
    }

    /// The object's attributes.
    pub fn attributes(&self) -> ObjectAttributes {
        self.attributes
    }

    /// The policy that guards its use; empty when there is none.
    pub fn auth_policy(&self) -> &[u8] {
        &self.auth_policy
    }

    /// What it protects children with.
    pub fn symmetric(&self) -> Symmetric {
        self.symmetric
    }

    /// What it signs or decrypts with.
    pub fn scheme(&self) -> Scheme {
        self.scheme
    }

    /// The key.
    pub fn key(&self) -> &PublicKey {
        &self.key
    }

    /// The key as SubjectPublicKeyInfo (RFC 5280, section 4.1.2.7), DER.
    pub fn spki_der(&self) -> Result<Vec<u8>, SpkiError> {
        use p256::pkcs8::EncodePublicKey as _;
        let der = match &self.key {
            PublicKey::Rsa(rsa) => {
                let n = rsa::BigUint::from_bytes_be(&rsa.modulus);
                rsa::RsaPublicKey::new(n, rsa.exponent.into()).ok().and_then(|k| k.to_public_key_der().ok())
            }
            PublicKey::Ecc(ecc) => match ecc.curve {
                Curve::P256 => p256::PublicKey::from_sec1_bytes(&ecc.sec1())
                    .ok()
                    .and_then(|k| k.to_public_key_der().ok()),
                Curve::P384 => p384::PublicKey::from_sec1_bytes(&ecc.sec1())
                    .ok()
                    .and_then(|k| k.to_public_key_der().ok()),
            },
        };
        der.map(p256::pkcs8::Document::into_vec).ok_or_else(|| SpkiError { name: self.name.clone() })
    }
}

impl fmt::Debug for Public {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Public")
            .field("name", &self.name)
            .field("attributes", &self.attributes)
            .field("scheme", &self.scheme)
            .finish_non_exhaustive()
    }
}

/// A public area whose key cannot be written as SubjectPublicKeyInfo.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the key of object {name} is not a usable public key")]
pub struct SpkiError {
    /// The object.
    pub name: Name,
}

/// `TPMS_RSA_PARMS` and `TPM2B_PUBLIC_KEY_RSA` (Part 2, clauses 12.2.3.5 and 11.2.4.5).
fn parse_rsa(r: &mut Reader<'_>) -> Result<(Symmetric, Scheme, PublicKey), ParseError> {
    let symmetric = parse_symmetric(r)?;
    let scheme = match r.u16("scheme")? {
        ALG_NULL => Scheme::Null,
        ALG_RSASSA => Scheme::RsaSsa(parse_hash(r)?),
        ALG_RSAPSS => Scheme::RsaPss(parse_hash(r)?),
        ALG_OAEP => Scheme::Oaep(parse_hash(r)?),
        ALG_RSAES => Scheme::RsaEs,
        other => return Err(ParseError::Unsupported { field: "scheme", found: other.into() }),
    };
    let bits = r.u16("keyBits")?;
    if !matches!(bits, 2048 | 3072 | 4096) {
        return Err(ParseError::Unsupported { field: "keyBits", found: bits.into() });
    }
    let exponent = match r.u32("exponent")? {
        0 | 65537 => 65537,
        other => return Err(ParseError::Unsupported { field: "exponent", found: other.into() }),
    };
    let modulus = r.sized("unique.rsa", usize::from(bits / 8))?.to_vec();
    let whole = modulus.len() == usize::from(bits / 8)
        && modulus.first().is_some_and(|b| b & 0x80 != 0)
        && modulus.last().is_some_and(|b| b & 1 == 1);
    if !whole {
        return Err(ParseError::Invalid { field: "unique.rsa", rule: "not an odd number of keyBits bits" });
    }
    Ok((symmetric, scheme, PublicKey::Rsa(RsaPublic { bits, exponent, modulus })))
}

/// `TPMS_ECC_PARMS` and `TPMS_ECC_POINT` (Part 2, clauses 12.2.3.6 and 11.2.5.2).
fn parse_ecc(r: &mut Reader<'_>) -> Result<(Symmetric, Scheme, PublicKey), ParseError> {
    let symmetric = parse_symmetric(r)?;
    let scheme = match r.u16("scheme")? {
        ALG_NULL => Scheme::Null,
        ALG_ECDSA => Scheme::Ecdsa(parse_hash(r)?),
        ALG_ECDH => Scheme::Ecdh(parse_hash(r)?),
        other => return Err(ParseError::Unsupported { field: "scheme", found: other.into() }),
    };
    let curve = match r.u16("curveID")? {
        0x0003 => Curve::P256,
        0x0004 => Curve::P384,
        other => return Err(ParseError::Unsupported { field: "curveID", found: other.into() }),
    };
    // No KDF scheme is defined for use with ECC keys; the field is TPM_ALG_NULL (Part 2, 12.2.3.6).
    match r.u16("kdf")? {
        ALG_NULL => {}
        other => return Err(ParseError::Unsupported { field: "kdf", found: other.into() }),
    }
    let x = r.sized("unique.ecc.x", curve.coordinate_len())?.to_vec();
    let y = r.sized("unique.ecc.y", curve.coordinate_len())?.to_vec();
    let key = EccPublic { curve, x, y };
    let on_curve = match curve {
        Curve::P256 => p256::PublicKey::from_sec1_bytes(&key.sec1()).is_ok(),
        Curve::P384 => p384::PublicKey::from_sec1_bytes(&key.sec1()).is_ok(),
    };
    if !on_curve {
        return Err(ParseError::Invalid { field: "unique.ecc", rule: "not a point of the curve" });
    }
    Ok((symmetric, scheme, PublicKey::Ecc(key)))
}

fn parse_symmetric(r: &mut Reader<'_>) -> Result<Symmetric, ParseError> {
    match r.u16("symmetric")? {
        ALG_NULL => Ok(Symmetric::Null),
        ALG_AES => {
            let bits = r.u16("symmetric.keyBits")?;
            let mode = r.u16("symmetric.mode")?;
            match (bits, mode) {
                (128 | 256, ALG_CFB) => Ok(Symmetric::AesCfb { bits }),
                (128 | 256, _) => {
                    Err(ParseError::Unsupported { field: "symmetric.mode", found: mode.into() })
                }
                _ => Err(ParseError::Unsupported { field: "symmetric.keyBits", found: bits.into() }),
            }
        }
        other => Err(ParseError::Unsupported { field: "symmetric", found: other.into() }),
    }
}

fn parse_hash(r: &mut Reader<'_>) -> Result<HashAlg, ParseError> {
    HashAlg::from_id("scheme.hashAlg", r.u16("scheme.hashAlg")?)
}
