//! A TPM made of nothing but software keys and byte strings: it builds the structures a real one would, and
//! every forgery it never would. For tests of the verifier, where each attack is one field away from truth.

use aes::cipher::{AsyncStreamCipher, KeyIvInit};
use anyhow::{Context, Result, bail, ensure};
use hmac::Mac;
use sha2::{Digest, Sha256, Sha384};
use std::collections::BTreeMap;

mod keys;

pub use keys::{ENDORSEMENT, FakeKey, OWNER, SHA256, SHA384, Secret, Template, attr};

use keys::{digest, put16, sized};

/// A statement and its signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Statement {
    /// `TPMS_ATTEST`
    pub attest: Vec<u8>,
    /// `TPMT_SIGNATURE`
    pub signature: Vec<u8>,
}

/// Every field of a `TPMS_ATTEST`, so that a test can change any of them before it is signed.
#[derive(Debug, Clone)]
pub struct AttestFields {
    /// `TPM_GENERATED_VALUE` in truth.
    pub magic: u32,
    /// 0x8018 for a quote, 0x8017 for a certification.
    pub kind: u16,
    /// Qualified name of the signer.
    pub signer: Vec<u8>,
    /// Qualifying data.
    pub extra_data: Vec<u8>,
    /// Milliseconds.
    pub clock: u64,
    /// Resets.
    pub reset_count: u32,
    /// Restarts.
    pub restart_count: u32,
    /// `TPMI_YES_NO`
    pub safe: u8,
    /// Firmware version.
    pub firmware: u64,
    /// `TPMS_QUOTE_INFO` or `TPMS_CERTIFY_INFO`, marshalled.
    pub attested: Vec<u8>,
}

impl AttestFields {
    /// `TPMS_ATTEST`
    #[must_use]
    pub fn marshal(&self) -> Vec<u8> {
        let mut out = self.magic.to_be_bytes().to_vec();
        put16(&mut out, self.kind);
        sized(&mut out, &self.signer);
        sized(&mut out, &self.extra_data);
        out.extend(self.clock.to_be_bytes());
        out.extend(self.reset_count.to_be_bytes());
        out.extend(self.restart_count.to_be_bytes());
        out.push(self.safe);
        out.extend(self.firmware.to_be_bytes());
        out.extend_from_slice(&self.attested);
        out
    }
}

/// The whole device: an EK, an AK as a primary of the endorsement hierarchy, PCRs and counters.
#[derive(Clone)]
pub struct FakeTpm {
    /// Endorsement key.
    pub ek: FakeKey,
    /// Attestation key.
    pub ak: FakeKey,
    /// The sha256 bank.
    pub pcrs: BTreeMap<u8, [u8; 32]>,
    /// Milliseconds.
    pub clock: u64,
    /// Resets.
    pub reset_count: u32,
    /// Restarts.
    pub restart_count: u32,
}

impl FakeTpm {
    /// A TPM with P-256 keys, the same for the same label.
    #[must_use]
    pub fn new(label: &str) -> Self {
        let ek = FakeKey::new(Secret::p256(&format!("{label} ek")), &Template::ek());
        let ak = FakeKey::new(Secret::p256(&format!("{label} ak")), &Template::ak());
        Self::with_keys(ek, ak)
    }

    /// A TPM with these keys.
    #[must_use]
    pub fn with_keys(ek: FakeKey, ak: FakeKey) -> Self {
        let pcrs = (0..24u8).map(|i| (i, Sha256::digest([i]).into())).collect();
        FakeTpm { ek, ak, pcrs, clock: 1_000_000, reset_count: 7, restart_count: 2 }
    }

    /// A new key of this TPM with these attributes; the same for the same label.
    #[must_use]
    pub fn key(&self, label: &str, template: &Template) -> FakeKey {
        FakeKey::new(Secret::p256(label), template)
    }

    /// The fields of an honest attestation.
    #[must_use]
    pub fn fields(&self, kind: u16, extra_data: &[u8], attested: Vec<u8>) -> AttestFields {
        AttestFields {
            magic: 0xff54_4347,
            kind,
            signer: self.ak.qualified_name(ENDORSEMENT),
            extra_data: extra_data.to_vec(),
            clock: self.clock,
            reset_count: self.reset_count,
            restart_count: self.restart_count,
            safe: 1,
            firmware: 0x0001_0002_0003_0004,
            attested,
        }
    }

    /// Whatever fields, signed by the AK.
    ///
    /// # Errors
    /// The signature failed; with these keys it does not.
    pub fn attest(&self, fields: &AttestFields) -> Result<Statement> {
        let attest = fields.marshal();
        let signature = self.ak.sign(&attest)?;
        Ok(Statement { attest, signature })
    }

    /// The fields of an honest TPM2_Quote.
    #[must_use]
    pub fn quote_fields(&self, extra_data: &[u8], pcrs: &[u8]) -> AttestFields {
        let mut attested = pcr_selection(&[(SHA256, pcrs)]);
        let values: Vec<u8> = self
            .pcrs
            .iter()
            .filter(|(index, _)| pcrs.contains(index))
            .flat_map(|(_, value)| *value)
            .collect();
        sized(&mut attested, &digest(self.ak.scheme_hash, &[&values]));
        self.fields(0x8018, extra_data, attested)
    }

    /// TPM2_Quote
    ///
    /// # Errors
    /// The signature failed; with these keys it does not.
    pub fn quote(&self, extra_data: &[u8], pcrs: &[u8]) -> Result<Statement> {
        self.attest(&self.quote_fields(extra_data, pcrs))
    }

    /// TPM2_Certify of `key` by the AK.
    ///
    /// # Errors
    /// The signature failed; with these keys it does not.
    pub fn certify(&self, key: &FakeKey) -> Result<Statement> {
        let mut attested = Vec::new();
        sized(&mut attested, &key.name());
        sized(&mut attested, &key.qualified_name(OWNER));
        self.attest(&self.fields(0x8017, b"", attested))
    }

    /// TPM2_ActivateCredential, written from Part 1, clause 24, apart from the verifier's code.
    ///
    /// # Errors
    /// The credential is not for this EK and AK.
    pub fn activate(&self, id_object: &[u8], encrypted_secret: &[u8]) -> Result<Vec<u8>> {
        let (name, alg) = (self.ak.name(), self.ek.name_alg);
        let seed = self.recover_seed(unsized_whole(encrypted_secret)?)?;
        let (mac, identity) = split_sized(unsized_whole(id_object)?)?;
        let bits = if alg == SHA384 { 256 } else { 128 };
        let mac_key = kdfa(alg, &seed, "INTEGRITY", &[], 8 * digest(alg, &[]).len() as u32);
        ensure!(hmac(alg, &mac_key, &[identity, &name]) == mac, "integrity of the credential");
        let key = kdfa(alg, &seed, "STORAGE", &name, bits);
        let mut plain = identity.to_vec();
        match bits {
            128 => cfb_mode::Decryptor::<aes::Aes128>::new_from_slices(&key, &[0; 16])?.decrypt(&mut plain),
            _ => cfb_mode::Decryptor::<aes::Aes256>::new_from_slices(&key, &[0; 16])?.decrypt(&mut plain),
        }
        Ok(unsized_whole(&plain)?.to_vec())
    }

    fn recover_seed(&self, encrypted: &[u8]) -> Result<Vec<u8>> {
        let alg = self.ek.name_alg;
        if let Secret::RsaSsa(key) | Secret::RsaPss(key, _) = &self.ek.secret {
            let padding = match alg {
                SHA384 => rsa::Oaep::new_with_label::<Sha384, _>("IDENTITY\0"),
                _ => rsa::Oaep::new_with_label::<Sha256, _>("IDENTITY\0"),
            };
            return Ok(key.decrypt(padding, encrypted)?);
        }
        let (x, rest) = split_sized(encrypted)?;
        let y = unsized_whole(rest)?;
        let point = [&[4], x, y].concat();
        let z = match &self.ek.secret {
            Secret::P256(key) => {
                let other = p256::PublicKey::from_sec1_bytes(&point)?;
                let shared = p256::ecdh::diffie_hellman(key.to_nonzero_scalar(), other.as_affine());
                shared.raw_secret_bytes().to_vec()
            }
            Secret::P384(key) => {
                let other = p384::PublicKey::from_sec1_bytes(&point)?;
                let shared = p384::ecdh::diffie_hellman(key.to_nonzero_scalar(), other.as_affine());
                shared.raw_secret_bytes().to_vec()
            }
            _ => bail!("no elliptic curve key"),
        };
        let (_, own_x, _) = self.ek.secret.point().context("no elliptic curve key")?;
        // One block of KDFe gives as many bits as the name algorithm has.
        Ok(digest(alg, &[&1u32.to_be_bytes(), &z, b"IDENTITY\0", x, &own_x]))
    }
}

/// `TPML_PCR_SELECTION`
#[must_use]
pub fn pcr_selection(banks: &[(u16, &[u8])]) -> Vec<u8> {
    let mut out = (banks.len() as u32).to_be_bytes().to_vec();
    for (alg, pcrs) in banks {
        let mut bitmap = [0u8; 3];
        for index in *pcrs {
            bitmap[usize::from(index / 8)] |= 1 << (index % 8);
        }
        put16(&mut out, *alg);
        out.push(3);
        out.extend(bitmap);
    }
    out
}

fn hmac(alg: u16, key: &[u8], parts: &[&[u8]]) -> Vec<u8> {
    let whole = parts.concat();
    if alg == SHA384 {
        hmac::Hmac::<Sha384>::new_from_slice(key)
            .map(|m| m.chain_update(whole).finalize().into_bytes().to_vec())
            .unwrap_or_default()
    } else {
        hmac::Hmac::<Sha256>::new_from_slice(key)
            .map(|m| m.chain_update(whole).finalize().into_bytes().to_vec())
            .unwrap_or_default()
    }
}

/// One block of KDFa is enough for every key here.
fn kdfa(alg: u16, key: &[u8], label: &str, context: &[u8], bits: u32) -> Vec<u8> {
    let label = [label.as_bytes(), &[0]].concat();
    let mut out = hmac(alg, key, &[&1u32.to_be_bytes(), &label, context, &bits.to_be_bytes()]);
    out.truncate(bits as usize / 8);
    out
}

fn split_sized(bytes: &[u8]) -> Result<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk::<2>().context("no size")?;
    rest.split_at_checked(u16::from_be_bytes(*len).into()).context("shorter than its size")
}

fn unsized_whole(bytes: &[u8]) -> Result<&[u8]> {
    let (whole, rest) = split_sized(bytes)?;
    ensure!(rest.is_empty(), "bytes left over");
    Ok(whole)
}
