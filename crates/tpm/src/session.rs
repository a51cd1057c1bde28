//! Sessions. Each is made for one request and flushed with it: ESYS lets them live on and a TPM has three slots.
//!
//! A password session carries the authorisation value in clear; all ours are empty there, so it carries nothing.
//! Where something secret travels (an activated credential, a hierarchy's authorisation), an HMAC session does it, salted
//! to the storage root key and with parameters encrypted by AES-128-CFB (Part 1, 19.6.8 and 21), so that a listener on
//! the bus learns nothing and cannot change anything unseen.

use crate::device::{Device, session_object};
use crate::error::{TpmError, command};
use crate::pcr;
use rand_core::{OsRng, RngCore as _};
use tss_esapi::attributes::SessionAttributesBuilder;
use tss_esapi::constants::SessionType;
use tss_esapi::handles::{AuthHandle, KeyHandle};
use tss_esapi::interface_types::algorithm::HashingAlgorithm;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::{AuthSession, PolicySession};
use tss_esapi::structures::{Digest, Nonce, SymmetricDefinition};

/// At least 16 (Part 3, 11.1).
const NONCE_BYTES: usize = 16;

impl Device {
    /// Runs `f` with an HMAC session: salted to the storage root key once there is one, first and last parameters
    /// encrypted.
    pub(crate) fn with_hmac_session<T>(
        &mut self,
        f: impl FnOnce(&mut Self, AuthSession) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        const OPERATION: &str = "start an encrypted session";
        let session = self.start(OPERATION, self.srk, SessionType::Hmac, HashingAlgorithm::Sha256)?;
        let (attributes, mask) =
            SessionAttributesBuilder::new().with_decrypt(true).with_encrypt(true).build();
        self.with_session(session, |device| {
            device.context.tr_sess_set_attributes(session, attributes, mask).map_err(command(OPERATION))?;
            f(device, session)
        })
    }

    /// Runs `f` with a policy session that satisfies PolicySecret(endorsement), as the low-range EK templates demand
    /// (TCG EK Credential Profile 2.6, B.3: PolicyA).
    pub(crate) fn with_endorsement_policy<T>(
        &mut self,
        hash: HashingAlgorithm,
        f: impl FnOnce(&mut Self, AuthSession) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        const OPERATION: &str = "authorise the endorsement key";
        self.with_policy_session(OPERATION, SessionType::Policy, hash, |device, policy| {
            device.authorised(Hierarchy::Endorsement, |device, session| {
                device
                    .context
                    .execute_with_session(Some(session), |context| {
                        let (nonce, digest) = (Nonce::default(), Digest::default());
                        context.policy_secret(
                            policy,
                            AuthHandle::Endorsement,
                            nonce.clone(),
                            digest,
                            nonce,
                            None,
                        )
                    })
                    .map_err(command(OPERATION))
            })?;
            f(device, policy.into())
        })
    }

    /// Runs `f` with a policy session that holds the present values of `pcrs` (PolicyPCR, Part 3, 23.7).
    pub(crate) fn with_pcr_policy<T>(
        &mut self,
        kind: SessionType,
        pcrs: &[u8],
        f: impl FnOnce(&mut Self, PolicySession) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        const OPERATION: &str = "bind to PCRs";
        let selection = pcr::selection(pcrs)?;
        self.with_policy_session(OPERATION, kind, HashingAlgorithm::Sha256, |device, policy| {
            device.context.policy_pcr(policy, Digest::default(), selection).map_err(command(OPERATION))?;
            f(device, policy)
        })
    }

    fn with_policy_session<T>(
        &mut self,
        operation: &'static str,
        kind: SessionType,
        hash: HashingAlgorithm,
        f: impl FnOnce(&mut Self, PolicySession) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let session = self.start(operation, None, kind, hash)?;
        self.with_session(session, |device| {
            let policy = PolicySession::try_from(session).map_err(command(operation))?;
            f(device, policy)
        })
    }

    fn with_session<T>(
        &mut self,
        session: AuthSession,
        f: impl FnOnce(&mut Self) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let result = f(self);
        let flushed = self.context.flush_context(session_object(session)).map_err(command("flush a session"));
        let result = result?;
        flushed.map(|()| result)
    }

    fn start(
        &mut self,
        operation: &'static str,
        salt: Option<KeyHandle>,
        kind: SessionType,
        hash: HashingAlgorithm,
    ) -> Result<AuthSession, TpmError> {
        // The library would draw it as well, but sets up all of OpenSSL for it each time.
        let mut nonce = [0; NONCE_BYTES];
        OsRng.fill_bytes(&mut nonce);
        let nonce = Nonce::try_from(&nonce[..]).map_err(command(operation))?;
        self.context
            .start_auth_session(salt, None, Some(nonce), kind, SymmetricDefinition::AES_128_CFB, hash)
            .map_err(command(operation))?
            .ok_or(TpmError::Unexpected { operation, what: "no session" })
    }
}
