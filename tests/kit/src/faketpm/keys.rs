//! Software keys in a TPM's clothes: public areas, names, signatures.

use anyhow::{Context, Result};
use p256::elliptic_curve::sec1::ToEncodedPoint;
use rsa::signature::{RandomizedSigner, SignatureEncoding};
use sha2::{Digest, Sha256, Sha384};
use std::sync::OnceLock;

/// `TPMA_OBJECT` bits.
pub mod attr {
    /// fixedTPM
    pub const FIXED_TPM: u32 = 1 << 1;
    /// fixedParent
    pub const FIXED_PARENT: u32 = 1 << 4;
    /// sensitiveDataOrigin
    pub const SENSITIVE_DATA_ORIGIN: u32 = 1 << 5;
    /// userWithAuth
    pub const USER_WITH_AUTH: u32 = 1 << 6;
    /// adminWithPolicy
    pub const ADMIN_WITH_POLICY: u32 = 1 << 7;
    /// restricted
    pub const RESTRICTED: u32 = 1 << 16;
    /// decrypt
    pub const DECRYPT: u32 = 1 << 17;
    /// sign
    pub const SIGN: u32 = 1 << 18;

    const HERE: u32 = FIXED_TPM | FIXED_PARENT | SENSITIVE_DATA_ORIGIN;
    /// What an L template EK has.
    pub const EK: u32 = HERE | RESTRICTED | DECRYPT | ADMIN_WITH_POLICY;
    /// What an AK has.
    pub const AK: u32 = HERE | RESTRICTED | SIGN | USER_WITH_AUTH;
    /// What a host's or an agent's key has.
    pub const KEY: u32 = HERE | SIGN | USER_WITH_AUTH;
}

/// `TPM_ALG_SHA256`
pub const SHA256: u16 = 0x000b;
/// `TPM_ALG_SHA384`
pub const SHA384: u16 = 0x000c;
/// `TPM_RH_ENDORSEMENT`
pub const ENDORSEMENT: u32 = 0x4000_000b;
/// `TPM_RH_OWNER`
pub const OWNER: u32 = 0x4000_0001;

/// A private key and the kind it is of.
#[derive(Clone)]
pub enum Secret {
    /// P-256
    P256(p256::SecretKey),
    /// P-384
    P384(p384::SecretKey),
    /// RSA-2048, signing by RSASSA
    RsaSsa(rsa::RsaPrivateKey),
    /// RSA-2048, signing by RSAPSS with a salt of this many bytes
    RsaPss(rsa::RsaPrivateKey, usize),
}

impl Secret {
    /// A P-256 key that is the same for the same label.
    #[must_use]
    pub fn p256(label: &str) -> Self {
        let mut seed = Sha256::digest(label);
        loop {
            match p256::SecretKey::from_bytes(&seed) {
                Ok(key) => return Secret::P256(key),
                Err(_) => seed = Sha256::digest(seed),
            }
        }
    }

    /// A P-384 key that is the same for the same label.
    #[must_use]
    pub fn p384(label: &str) -> Self {
        let mut seed = Sha384::digest(label);
        loop {
            match p384::SecretKey::from_bytes(&seed) {
                Ok(key) => return Secret::P384(key),
                Err(_) => seed = Sha384::digest(seed),
            }
        }
    }

    /// The process's one RSA-2048 key: they are slow to make.
    #[must_use]
    pub fn rsa() -> Self {
        Secret::RsaSsa(rsa_key().clone())
    }

    /// That same RSA key, for RSAPSS.
    #[must_use]
    pub fn rsa_pss(salt: usize) -> Self {
        Secret::RsaPss(rsa_key().clone(), salt)
    }

    fn sign(&self, hash: u16, message: &[u8]) -> Result<Vec<u8>> {
        use p256::ecdsa::signature::hazmat::PrehashSigner as _;
        let digest = digest(hash, &[message]);
        let mut out = Vec::new();
        match self {
            Secret::P256(key) => {
                let sig: p256::ecdsa::Signature =
                    p256::ecdsa::SigningKey::from(key).sign_prehash(&digest).context("sign")?;
                ecdsa(&mut out, hash, &sig.r().to_bytes(), &sig.s().to_bytes());
            }
            Secret::P384(key) => {
                let sig: p384::ecdsa::Signature =
                    p384::ecdsa::SigningKey::from(key).sign_prehash(&digest).context("sign")?;
                ecdsa(&mut out, hash, &sig.r().to_bytes(), &sig.s().to_bytes());
            }
            Secret::RsaSsa(key) => {
                let sig = match hash {
                    SHA384 => rsa::pkcs1v15::SigningKey::<Sha384>::new(key.clone())
                        .sign_with_rng(&mut rand_core::OsRng, message),
                    _ => rsa::pkcs1v15::SigningKey::<Sha256>::new(key.clone())
                        .sign_with_rng(&mut rand_core::OsRng, message),
                };
                put16(&mut out, 0x0014);
                put16(&mut out, hash);
                sized(&mut out, &sig.to_vec());
            }
            Secret::RsaPss(key, salt) => {
                let padding = match hash {
                    SHA384 => rsa::Pss::new_with_salt::<Sha384>(*salt),
                    _ => rsa::Pss::new_with_salt::<Sha256>(*salt),
                };
                let sig = key.sign_with_rng(&mut rand_core::OsRng, padding, &digest)?;
                put16(&mut out, 0x0016);
                put16(&mut out, hash);
                sized(&mut out, &sig);
            }
        }
        Ok(out)
    }

    /// Curve id and coordinates, or nothing for RSA.
    pub(super) fn point(&self) -> Option<(u16, Vec<u8>, Vec<u8>)> {
        let (curve, sec1) = match self {
            Secret::P256(key) => (3, key.public_key().to_encoded_point(false).as_bytes().to_vec()),
            Secret::P384(key) => (4, key.public_key().to_encoded_point(false).as_bytes().to_vec()),
            _ => return None,
        };
        let half = (sec1.len() - 1) / 2;
        Some((curve, sec1[1..=half].to_vec(), sec1[half + 1..].to_vec()))
    }

    fn sign_scheme(&self) -> u16 {
        match self {
            Secret::P256(_) | Secret::P384(_) => 0x0018,
            Secret::RsaSsa(_) => 0x0014,
            Secret::RsaPss(..) => 0x0016,
        }
    }

    /// The public half as SubjectPublicKeyInfo, DER.
    ///
    /// # Errors
    /// A key that does not encode; there is none.
    pub fn spki(&self) -> Result<Vec<u8>> {
        use p256::pkcs8::EncodePublicKey as _;
        Ok(match self {
            Secret::P256(key) => key.public_key().to_public_key_der()?,
            Secret::P384(key) => key.public_key().to_public_key_der()?,
            Secret::RsaSsa(key) | Secret::RsaPss(key, _) => key.to_public_key().to_public_key_der()?,
        }
        .into_vec())
    }
}

fn rsa_key() -> &'static rsa::RsaPrivateKey {
    static KEY: OnceLock<rsa::RsaPrivateKey> = OnceLock::new();
    KEY.get_or_init(|| {
        loop {
            if let Ok(key) = rsa::RsaPrivateKey::new(&mut rand_core::OsRng, 2048) {
                break key;
            }
        }
    })
}

/// What a public area says besides the key.
#[derive(Debug, Clone)]
pub struct Template {
    /// `TPMA_OBJECT`
    pub attributes: u32,
    /// Name algorithm.
    pub name_alg: u16,
    /// Hash of the signing scheme; ignored for keys without one.
    pub scheme_hash: u16,
    /// authPolicy
    pub policy: Vec<u8>,
    /// A signing scheme stands in the public area.
    pub with_scheme: bool,
    /// AES-CFB with keys of this many bits, for storage keys.
    pub aes: Option<u16>,
}

impl Template {
    /// An EK by the low-range templates.
    #[must_use]
    pub fn ek() -> Self {
        Template {
            attributes: attr::EK,
            name_alg: SHA256,
            scheme_hash: SHA256,
            policy: hallmark_core::ek::templates::POLICY_A_SHA256.to_vec(),
            with_scheme: false,
            aes: Some(128),
        }
    }

    /// An AK.
    #[must_use]
    pub fn ak() -> Self {
        Template {
            attributes: attr::AK,
            name_alg: SHA256,
            scheme_hash: SHA256,
            policy: vec![],
            with_scheme: true,
            aes: None,
        }
    }

    /// A host's or an agent's key.
    #[must_use]
    pub fn key() -> Self {
        Template { attributes: attr::KEY, ..Self::ak() }
    }

    /// The same with other attributes.
    #[must_use]
    pub fn with_attributes(self, attributes: u32) -> Self {
        Template { attributes, ..self }
    }

    /// The same with a policy.
    #[must_use]
    pub fn with_policy(self, policy: &[u8]) -> Self {
        Template { policy: policy.to_vec(), ..self }
    }
}

/// A loaded object.
#[derive(Clone)]
pub struct FakeKey {
    /// `TPMT_PUBLIC`
    pub public: Vec<u8>,
    /// The private half.
    pub secret: Secret,
    pub(super) name_alg: u16,
    pub(super) scheme_hash: u16,
}

impl FakeKey {
    /// The object with this secret and template.
    #[must_use]
    pub fn new(secret: Secret, template: &Template) -> Self {
        let public = public_area(&secret, template);
        FakeKey { public, secret, name_alg: template.name_alg, scheme_hash: template.scheme_hash }
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> Vec<u8> {
        let mut name = self.name_alg.to_be_bytes().to_vec();
        name.extend(digest(self.name_alg, &[&self.public]));
        name
    }

    /// Its qualified name as a primary of `hierarchy`.
    #[must_use]
    pub fn qualified_name(&self, hierarchy: u32) -> Vec<u8> {
        let mut name = self.name_alg.to_be_bytes().to_vec();
        name.extend(digest(self.name_alg, &[&hierarchy.to_be_bytes(), &self.name()]));
        name
    }

    /// `TPMT_SIGNATURE` over `message`.
    ///
    /// # Errors
    /// The signature failed; with these keys it does not.
    pub fn sign(&self, message: &[u8]) -> Result<Vec<u8>> {
        self.secret.sign(self.scheme_hash, message)
    }
}

/// `TPMT_PUBLIC`
fn public_area(secret: &Secret, template: &Template) -> Vec<u8> {
    let mut out = Vec::new();
    put16(&mut out, if secret.point().is_some() { 0x0023 } else { 0x0001 });
    put16(&mut out, template.name_alg);
    out.extend(template.attributes.to_be_bytes());
    sized(&mut out, &template.policy);
    match template.aes {
        Some(bits) => [0x0006, bits, 0x0043].iter().for_each(|word| put16(&mut out, *word)),
        None => put16(&mut out, 0x0010),
    }
    if template.with_scheme {
        put16(&mut out, secret.sign_scheme());
        put16(&mut out, template.scheme_hash);
    } else {
        put16(&mut out, 0x0010);
    }
    match (secret, secret.point()) {
        (_, Some((curve, x, y))) => {
            put16(&mut out, curve);
            put16(&mut out, 0x0010);
            sized(&mut out, &x);
            sized(&mut out, &y);
        }
        (Secret::RsaSsa(key) | Secret::RsaPss(key, _), None) => {
            use rsa::traits::PublicKeyParts as _;
            put16(&mut out, 2048);
            out.extend(0u32.to_be_bytes());
            sized(&mut out, &key.n().to_bytes_be());
        }
        _ => {}
    }
    out
}

fn ecdsa(out: &mut Vec<u8>, hash: u16, r: &[u8], s: &[u8]) {
    put16(out, 0x0018);
    put16(out, hash);
    sized(out, r);
    sized(out, s);
}

pub(super) fn digest(alg: u16, parts: &[&[u8]]) -> Vec<u8> {
    let whole = parts.concat();
    if alg == SHA384 { Sha384::digest(whole).to_vec() } else { Sha256::digest(whole).to_vec() }
}

pub(super) fn put16(out: &mut Vec<u8>, word: u16) {
    out.extend(word.to_be_bytes());
}

pub(super) fn sized(out: &mut Vec<u8>, bytes: &[u8]) {
    put16(out, bytes.len() as u16);
    out.extend_from_slice(bytes);
}
