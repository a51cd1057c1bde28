//! Signing keys: made and wrapped by the TPM, kept outside as blobs, loaded for one use at a time.

use crate::device::Device;
use crate::error::{TpmError, command, kind};
use crate::{template, wire};
use std::fmt;
use std::sync::Arc;
use tss_esapi::constants::SessionType;
use tss_esapi::constants::response_code::Tss2ResponseCodeKind as Kind;
use tss_esapi::handles::KeyHandle;
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{
    Digest, HashScheme, HashcheckTicket, Private, Public, Signature, SignatureScheme, Ticket as _,
};
use tss_esapi::tss2_esys::TPMT_TK_HASHCHECK;

/// What a new key is to be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KeySpec {
    /// PCRs (SHA-256 bank) whose present values the TPM shall demand for every signature; empty for none.
    pub policy_pcrs: Vec<u8>,
}

/// A P-256 ECDSA-SHA256 signing key that only this TPM can use: its public area, and its private area as the TPM
/// wrapped it under the storage root key. A blob survives a TPM reset, not a `tpm2_clear`. Cheap to clone.
#[derive(Clone)]
pub struct TpmKey(Arc<Parts>);

struct Parts {
    public: Public,
    private: Private,
    public_bytes: Vec<u8>,
    spki_der: Vec<u8>,
    policy_pcrs: Vec<u8>,
}

impl TpmKey {
    /// TPMT_PUBLIC.
    #[must_use]
    pub fn public(&self) -> &[u8] {
        &self.0.public_bytes
    }

    /// SubjectPublicKeyInfo, DER.
    #[must_use]
    pub fn spki_der(&self) -> &[u8] {
        &self.0.spki_der
    }

    /// The PCRs it is bound to, ascending.
    #[must_use]
    pub fn policy_pcrs(&self) -> &[u8] {
        &self.0.policy_pcrs
    }
}

impl fmt::Debug for TpmKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TpmKey").field("policy_pcrs", &self.0.policy_pcrs).finish_non_exhaustive()
    }
}

/// How often a signature by a key bound to PCRs is tried when others change meanwhile.
const SIGN_ATTEMPTS: u32 = 8;

impl Device {
    /// Makes a key under the storage root key. It is not loaded.
    ///
    /// No secret goes in (the authorisation value is empty, the TPM makes the key) and none comes out (the private
    /// area is wrapped); the encrypted HMAC session is there so that nobody on the bus can swap the template.
    pub(crate) fn create_key(&mut self, spec: &KeySpec) -> Result<TpmKey, TpmError> {
        const OPERATION: &str = "create a key";
        let mut policy_pcrs = spec.policy_pcrs.clone();
        policy_pcrs.sort_unstable();
        policy_pcrs.dedup();
        let policy = if policy_pcrs.is_empty() { None } else { Some(self.pcr_policy_digest(&policy_pcrs)?) };
        let template = template::signing_key(policy).map_err(command(OPERATION))?;
        let parent = self.parent()?;
        let made = self.with_hmac_session(|device, session| {
            device
                .context
                .execute_with_session(Some(session), |context| {
                    context.create(parent, template, None, None, None, None)
                })
                .map_err(command(OPERATION))
        })?;
        Ok(TpmKey(Arc::new(Parts {
            public_bytes: wire::bytes(OPERATION, &made.out_public)?,
            spki_der: wire::p256_spki(OPERATION, &made.out_public)?,
            public: made.out_public,
            private: made.out_private,
            policy_pcrs,
        })))
    }

    /// Signs a SHA-256 digest; the signature is an ECDSA-Sig-Value in DER.
    pub(crate) fn sign(&mut self, key: &TpmKey, digest: [u8; 32]) -> Result<Vec<u8>, TpmError> {
        const OPERATION: &str = "sign";
        let signature = self.with_key(key, |device, object| {
            if key.policy_pcrs().is_empty() {
                device.sign_loaded(OPERATION, object, AuthSession::Password, digest)
            } else {
                device.sign_bound(OPERATION, key, object, digest)
            }
        })?;
        wire::ecdsa_der(OPERATION, &signature)
    }

    /// Runs `f` with a key loaded.
    pub(crate) fn with_key<T>(
        &mut self,
        key: &TpmKey,
        f: impl FnOnce(&mut Self, KeyHandle) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        const OPERATION: &str = "load a key";
        let parent = self.parent()?;
        let (private, public) = (key.0.private.clone(), key.0.public.clone());
        let loaded = self.context.execute_with_session(Some(AuthSession::Password), |context| {
            context.load(parent, private, public)
        });
        let object = match loaded {
            Ok(object) => object,
            // Either the key is not this parent's, or another object is now where the parent was.
            Err(source) if matches!(kind(source), Some(Kind::Integrity | Kind::Type | Kind::AuthFail)) => {
                self.check_parent(OPERATION)?;
                return Err(TpmError::ForeignKey { source });
            }
            Err(source) => return Err(command(OPERATION)(source)),
        };
        self.with_object(object, f)
    }

    /// A change of any PCR, also of one the key is not bound to, spoils a policy session that is under way (Part 3,
    /// 23.7); where the kernel measures files that is often. Then it is tried again, and only a PCR that the key is bound
    /// to makes the TPM refuse for good.
    fn sign_bound(
        &mut self,
        operation: &'static str,
        key: &TpmKey,
        object: KeyHandle,
        digest: [u8; 32],
    ) -> Result<Signature, TpmError> {
        for _ in 0..SIGN_ATTEMPTS {
            let signed = self.with_pcr_policy(SessionType::Policy, key.policy_pcrs(), |device, policy| {
                device.sign_loaded(operation, object, policy.into(), digest)
            });
            if !matches!(signed, Err(TpmError::PcrsUnstable { .. })) {
                return signed;
            }
        }
        Err(TpmError::PcrsUnstable { attempts: SIGN_ATTEMPTS })
    }

    fn sign_loaded(
        &mut self,
        operation: &'static str,
        object: KeyHandle,
        session: AuthSession,
        digest: [u8; 32],
    ) -> Result<Signature, TpmError> {
        let scheme = SignatureScheme::EcDsa { hash_scheme: HashScheme::new(HashingAlgorithm::Sha256) };
        self.context
            .execute_with_session(Some(session), |context| {
                let digest = Digest::try_from(&digest[..])?;
                context.sign(object, digest, scheme, no_ticket()?)
            })
            .map_err(command(operation))
    }

    /// The authPolicy of a key bound to the present values of `pcrs`, by the TPM's own reckoning in a trial session.
    fn pcr_policy_digest(&mut self, pcrs: &[u8]) -> Result<Digest, TpmError> {
        self.with_pcr_policy(SessionType::Trial, pcrs, |device, policy| {
            device.context.policy_get_digest(policy).map_err(command("bind to PCRs"))
        })
    }
}

/// An unrestricted key needs no proof that the TPM made the digest (Part 2, 10.7.5: NULL ticket).
fn no_ticket() -> Result<HashcheckTicket, tss_esapi::Error> {
    use tss_esapi::constants::tss::{TPM2_RH_NULL, TPM2_ST_HASHCHECK};
    let ticket = HashcheckTicket::try_from(TPMT_TK_HASHCHECK {
        tag: TPM2_ST_HASHCHECK,
        hierarchy: TPM2_RH_NULL,
        ..Default::default()
    })?;
    debug_assert!(ticket.digest().is_empty());
    Ok(ticket)
}
