//! The attestation key: what it says about the TPM's state and about other keys.

use crate::device::Device;
use crate::error::{TpmError, command};
use crate::keys::TpmKey;
use crate::pcr::{self, PcrValue};
use crate::{Certification, Quote, template, wire};
use tss_esapi::handles::KeyHandle;
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{Attest, AttestInfo, Data, SignatureScheme};
use tss_esapi::utils::TpmsContext;

/// The AK as it is kept between requests: a saved context, loaded when needed. Making it anew takes a hardware TPM a
/// good part of a second; loading it does not.
pub(crate) struct Ak {
    saved: TpmsContext,
    /// TPMT_PUBLIC.
    pub(crate) public: Vec<u8>,
    /// Name algorithm and digest.
    pub(crate) name: Vec<u8>,
}

/// How often a quote is repeated when the PCRs changed before they could be read.
const QUOTE_ATTEMPTS: u32 = 8;

impl Device {
    /// Runs `f` with the AK loaded.
    pub(crate) fn with_ak<T>(
        &mut self,
        f: impl FnOnce(&mut Self, KeyHandle) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let handle = match &self.ak {
            Some(ak) => {
                let saved = ak.saved.clone();
                self.load_saved("load the attestation key", saved)?
            }
            None => self.make_ak()?,
        };
        self.with_object(handle, f)
    }

    /// Loads a saved context. One that cannot be loaded was made before a TPM reset, and then nothing else that is
    /// remembered holds either.
    pub(crate) fn load_saved(
        &mut self,
        operation: &'static str,
        saved: TpmsContext,
    ) -> Result<KeyHandle, TpmError> {
        match self.context.context_load(saved) {
            Ok(handle) => Ok(handle.into()),
            Err(source) => Err(TpmError::Lost { operation, source }),
        }
    }

    fn make_ak(&mut self) -> Result<KeyHandle, TpmError> {
        const OPERATION: &str = "create the attestation key";
        let template = template::attestation().map_err(command(OPERATION))?;
        let made = self.primary(OPERATION, Hierarchy::Endorsement, template)?;
        match self.describe_ak(OPERATION, &made.out_public, made.key_handle) {
            Ok(ak) => {
                self.ak = Some(ak);
                Ok(made.key_handle)
            }
            Err(error) => self.with_object(made.key_handle, |_, _| Err(error)),
        }
    }

    fn describe_ak(
        &mut self,
        operation: &'static str,
        public: &tss_esapi::structures::Public,
        handle: KeyHandle,
    ) -> Result<Ak, TpmError> {
        let saved = self.context.context_save(handle.into()).map_err(command(operation))?;
        let name = self.context.tr_get_name(handle.into()).map_err(command(operation))?.value().to_vec();
        Ok(Ak { saved, public: wire::bytes(operation, public)?, name })
    }

    /// Quotes the SHA-256 bank and reads the values that were quoted: both again until they agree.
    pub(crate) fn quote(&mut self, qualifying_data: [u8; 32], pcrs: &[u8]) -> Result<Quote, TpmError> {
        const OPERATION: &str = "quote";
        let selection = pcr::selection(pcrs)?;
        self.with_ak(|device, ak| {
            for _ in 0..QUOTE_ATTEMPTS {
                let (attest, signature) = device
                    .context
                    .execute_with_session(Some(AuthSession::Password), |context| {
                        let data = Data::try_from(&qualifying_data[..])?;
                        context.quote(ak, data, SignatureScheme::Null, selection.clone())
                    })
                    .map_err(command(OPERATION))?;
                let values = device.read_pcrs(pcrs)?;
                if quotes(&attest, &values) {
                    return Ok(Quote {
                        attest: wire::bytes(OPERATION, &attest)?,
                        signature: wire::bytes(OPERATION, &signature)?,
                        pcrs: values,
                    });
                }
            }
            Err(TpmError::PcrsUnstable { attempts: QUOTE_ATTEMPTS })
        })
    }

    /// Has the AK certify that a key is in this TPM, with the attributes its public area shows (Part 3, 18.2).
    pub(crate) fn certify(
        &mut self,
        key: &TpmKey,
        qualifying_data: [u8; 32],
    ) -> Result<Certification, TpmError> {
        const OPERATION: &str = "certify a key";
        self.with_ak(|device, ak| {
            device.with_key(key, |device, object| {
                let sessions = (Some(AuthSession::Password), Some(AuthSession::Password), None);
                let (attest, signature) = device
                    .context
                    .execute_with_sessions(sessions, |context| {
                        let data = Data::try_from(&qualifying_data[..])?;
                        context.certify(object.into(), ak, data, SignatureScheme::Null)
                    })
                    .map_err(command(OPERATION))?;
                Ok(Certification {
                    public: key.public().to_vec(),
                    attest: wire::bytes(OPERATION, &attest)?,
                    signature: wire::bytes(OPERATION, &signature)?,
                })
            })
        })
    }
}

fn quotes(attest: &Attest, values: &[PcrValue]) -> bool {
    match attest.attested() {
        AttestInfo::Quote { info } => info.pcr_digest().value() == pcr::digest(values),
        _ => false,
    }
}
