//! The host's TPM 2.0, through tpm2-tss.
//!
//! [`Tpm`] is a handle that can be cloned and used from any task; one thread behind it owns the device. Requests wait
//! in a bounded queue that serves callers in turn, each with a deadline. What comes out are TPM structures as they are
//! on the wire; the verifier in `hallmark-core` parses and judges them.
//!
//! In scope: EK and AK, credential activation, quotes, signing keys that the TPM holds, certifies and may bind to PCRs;
//! recovery from TPM resets and broken connections. Not in scope: verification, the firmware's event log, provisioning
//! (nothing here writes to NV, changes an authorisation or makes an object persistent).
//!
//! The library under it writes to standard error unless the environment says `TSS2_LOG=all+NONE` when the process
//! starts; the systemd unit does. It is not set from here, since changing the environment of a running process is not
//! safe.

#![forbid(unsafe_code)]

mod ak;
mod device;
mod ek;
mod error;
mod keys;
mod nv;
mod owner;
mod pcr;
mod properties;
mod queue;
mod session;
mod template;
mod wire;

pub use error::TpmError;
pub use keys::{KeySpec, TpmKey};
pub use pcr::PcrValue;
pub use properties::{Health, Properties};

use owner::Line;
use std::sync::Arc;
use std::time::Duration;
use zeroize::Zeroizing;

/// How the TPM is reached and used.
#[derive(Debug, Clone)]
pub struct TpmConfig {
    /// TCTI, as tpm2-tss writes it: `device:/dev/tpmrm0`, `tabrmd:`, `swtpm:host=127.0.0.1,port=2321`.
    pub tcti: String,
    /// The EK to use; `None` takes the first of P-256, P-384 and RSA-2048 that has a certificate.
    pub ek: Option<EkAlgorithm>,
    /// Whether nobody else uses this TPM, so that what an earlier process left in it may be flushed. `None` decides by
    /// the TCTI: a resource manager (`/dev/tpmrm0`, `tabrmd`) cleans up by itself.
    pub owned_alone: Option<bool>,
    /// Requests that may wait in all; more are refused with [`TpmError::Busy`].
    pub queue: usize,
    /// Requests that may wait of one caller.
    pub lane: usize,
    /// How long a request may take, waiting included.
    pub deadline: Duration,
    /// Told of each operation that came to its end: its name, how long it took without the wait for it, and
    /// whether it went well. Called on the TPM's thread.
    pub told: Option<fn(&'static str, Duration, bool)>,
    /// Authorisation value of the endorsement hierarchy; empty on a TPM nobody configured.
    pub endorsement_auth: Zeroizing<Vec<u8>>,
    /// Authorisation value of the owner hierarchy; empty on a TPM nobody configured.
    pub owner_auth: Zeroizing<Vec<u8>>,
}

impl TpmConfig {
    /// The usual settings for a TCTI.
    #[must_use]
    pub fn new(tcti: impl Into<String>) -> Self {
        Self {
            tcti: tcti.into(),
            ek: None,
            owned_alone: None,
            queue: 2048,
            lane: 64,
            deadline: Duration::from_secs(30),
            told: None,
            endorsement_auth: Zeroizing::default(),
            owner_auth: Zeroizing::default(),
        }
    }

    fn owned_alone(&self) -> bool {
        self.owned_alone.unwrap_or(!(self.tcti.starts_with("tabrmd") || self.tcti.contains("tpmrm")))
    }
}

/// An endorsement key's algorithm.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EkAlgorithm {
    /// RSA-2048 (template L-1, certificate at 0x01c00002).
    Rsa2048,
    /// NIST P-256 (template L-2, certificate at 0x01c0000a).
    EccP256,
    /// NIST P-384 (template H-3, certificate at 0x01c00016).
    EccP384,
}

/// Who this TPM is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostTpm {
    /// Which EK was used.
    pub ek_algorithm: EkAlgorithm,
    /// The EK certificate as NV has it, padding and all, and the rest of its chain if NV holds that; empty if there is
    /// no EK certificate.
    pub ek_certificates: Vec<Vec<u8>>,
    /// Whether the certificate carries the EK's public key. The verifier decides; this is for the diagnosis.
    pub ek_certificate_matches: bool,
    /// The EK, TPMT_PUBLIC.
    pub ek_public: Vec<u8>,
    /// The AK, TPMT_PUBLIC.
    pub ak_public: Vec<u8>,
    /// The AK's name: algorithm and digest.
    pub ak_name: Vec<u8>,
}

/// A quote and the values it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Quote {
    /// TPMS_ATTEST.
    pub attest: Vec<u8>,
    /// TPMT_SIGNATURE.
    pub signature: Vec<u8>,
    /// SHA-256 bank, ascending; their digest is the one quoted.
    pub pcrs: Vec<PcrValue>,
}

/// The AK's word that a key lives in this TPM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Certification {
    /// TPMT_PUBLIC of the key certified.
    pub public: Vec<u8>,
    /// TPMS_ATTEST.
    pub attest: Vec<u8>,
    /// TPMT_SIGNATURE.
    pub signature: Vec<u8>,
}

/// The lane of the host's own requests.
pub const HOST: u64 = 0;

/// The TPM. Cheap to clone; dropping the last clone waits for the request in progress, at most five seconds, and leaves
/// nothing loaded in the TPM.
#[derive(Clone)]
pub struct Tpm {
    line: Arc<Line>,
    ek: Option<EkAlgorithm>,
    deadline: Duration,
}

impl Tpm {
    /// Opens the TPM and makes ready for keys.
    ///
    /// # Errors
    /// A TPM that cannot be reached, or whose owner hierarchy we may not use.
    pub async fn open(config: TpmConfig) -> Result<Self, TpmError> {
        let (ek, deadline) = (config.ek, config.deadline);
        Ok(Self { line: Arc::new(Line::start(config).await?), ek, deadline })
    }

    /// The same TPM, with another deadline for each request.
    #[must_use]
    pub fn with_deadline(&self, deadline: Duration) -> Self {
        Self { deadline, ..self.clone() }
    }

    /// EK, EK certificate and AK.
    ///
    /// # Errors
    /// See [`TpmError`].
    pub async fn identity(&self) -> Result<HostTpm, TpmError> {
        let ek = self.ek;
        self.ask(HOST, "identity", move |device| device.identity(ek)).await
    }

    /// The secret of a credential made for this TPM's EK and AK. Both arguments with their TPM2B size field.
    ///
    /// # Errors
    /// [`TpmError::CredentialRefused`] if it was made for another EK or AK, or altered.
    pub async fn activate_credential(
        &self,
        id_object: &[u8],
        encrypted_secret: &[u8],
    ) -> Result<Zeroizing<Vec<u8>>, TpmError> {
        let (ek, id_object, secret) = (self.ek, id_object.to_vec(), encrypted_secret.to_vec());
        self.ask(HOST, "activate a credential", move |device| {
            device.activate_credential(ek, &id_object, &secret)
        })
        .await
    }

    /// A quote by the AK over `pcrs` (SHA-256 bank) and the values quoted.
    ///
    /// # Errors
    /// [`TpmError::PcrsUnstable`], [`TpmError::NoSha256Bank`], [`TpmError::NoSuchPcr`] among others.
    pub async fn quote(&self, qualifying_data: [u8; 32], pcrs: &[u8]) -> Result<Quote, TpmError> {
        let pcrs = pcrs.to_vec();
        self.ask(HOST, "quote", move |device| device.quote(qualifying_data, &pcrs)).await
    }

    /// Present values of `pcrs` (SHA-256 bank), ascending by index.
    ///
    /// # Errors
    /// [`TpmError::NoSha256Bank`], [`TpmError::NoSuchPcr`] among others.
    pub async fn pcrs(&self, pcrs: &[u8]) -> Result<Vec<PcrValue>, TpmError> {
        let pcrs = pcrs.to_vec();
        self.ask(HOST, "read PCRs", move |device| device.read_pcrs(&pcrs)).await
    }

    /// Makes a signing key. `caller` is the lane to wait in.
    ///
    /// # Errors
    /// See [`TpmError`].
    pub async fn create_key(&self, spec: &KeySpec, caller: u64) -> Result<TpmKey, TpmError> {
        let spec = spec.clone();
        self.ask(caller, "create a key", move |device| device.create_key(&spec)).await
    }

    /// The AK's certification of a key. `caller` is the lane to wait in.
    ///
    /// # Errors
    /// [`TpmError::ForeignKey`] among others.
    pub async fn certify(
        &self,
        key: &TpmKey,
        qualifying_data: [u8; 32],
        caller: u64,
    ) -> Result<Certification, TpmError> {
        let key = key.clone();
        self.ask(caller, "certify a key", move |device| device.certify(&key, qualifying_data)).await
    }

    /// Makes a signing key and has the AK certify it, in one turn of the queue.
    ///
    /// # Errors
    /// See [`TpmError`].
    pub async fn certified_key(
        &self,
        spec: &KeySpec,
        qualifying_data: [u8; 32],
        caller: u64,
    ) -> Result<(TpmKey, Certification), TpmError> {
        let spec = spec.clone();
        self.ask(caller, "create and certify a key", move |device| {
            let key = device.create_key(&spec)?;
            let certification = device.certify(&key, qualifying_data)?;
            Ok((key, certification))
        })
        .await
    }

    /// Signs a SHA-256 digest: ECDSA-Sig-Value, DER. `caller` is the lane to wait in.
    ///
    /// # Errors
    /// [`TpmError::PolicyFailed`] once the PCRs that the key is bound to have changed.
    pub async fn sign(&self, key: &TpmKey, digest: [u8; 32], caller: u64) -> Result<Vec<u8>, TpmError> {
        let key = key.clone();
        self.ask(caller, "sign", move |device| device.sign(&key, digest)).await
    }

    /// Who made this TPM, and its firmware.
    ///
    /// # Errors
    /// See [`TpmError`].
    pub async fn properties(&self) -> Result<Properties, TpmError> {
        self.ask(HOST, "read properties", properties::read).await
    }

    /// Asks the TPM how it is; an answer means that it can be reached and works.
    ///
    /// # Errors
    /// See [`TpmError`].
    pub async fn health(&self) -> Result<Health, TpmError> {
        let mut health = self.ask(HOST, "health", properties::health).await?;
        health.queued = self.line.queued();
        health.served = self.line.served();
        health.reopened = self.line.reopened();
        Ok(health)
    }

    /// Requests that wait now, without asking the TPM.
    #[must_use]
    pub fn queued(&self) -> usize {
        self.line.queued()
    }

    /// How often the TPM had to be opened anew.
    #[must_use]
    pub fn reopened(&self) -> u64 {
        self.line.reopened()
    }

    /// Requests that were taken to the TPM so far, without asking it.
    #[must_use]
    pub fn served(&self) -> u64 {
        self.line.served()
    }

    async fn ask<T, F>(&self, lane: u64, operation: &'static str, work: F) -> Result<T, TpmError>
    where
        T: Send + 'static,
        F: Fn(&mut device::Device) -> Result<T, TpmError> + Send + 'static,
    {
        self.line.ask(lane, self.deadline, operation, work).await
    }
}

impl std::fmt::Debug for Tpm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tpm").field("queued", &self.queued()).finish_non_exhaustive()
    }
}
