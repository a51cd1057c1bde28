//! The open TPM: one ESYS context, the storage root key in it, and what is remembered between requests.

use crate::TpmConfig;
use crate::ak::Ak;
use crate::ek::Ek;
use crate::error::{TpmError, command};
use crate::template;
use std::io;
use std::path::Path;
use std::str::FromStr;
use tss_esapi::constants::{CapabilityType, tss};
use tss_esapi::handles::{KeyHandle, ObjectHandle, SessionHandle, TpmHandle};
use tss_esapi::interface_types::resource_handles::Hierarchy;
use tss_esapi::interface_types::session_handles::AuthSession;
use tss_esapi::structures::{Auth, CapabilityData, CreatePrimaryKeyResult, Public};
use tss_esapi::{Context, TctiNameConf, WrapperErrorKind};

/// A TPM has room for three transient objects (PC Client Platform TPM Profile, 3.1: at least 3). One is the storage
/// root key, kept loaded; the AK and EK are saved contexts and keys are blobs, loaded for one request and flushed.
/// Everything here dies with a TPM reset and is rebuilt by opening the device anew.
pub(crate) struct Device {
    pub(crate) context: Context,
    /// The storage root key; `None` only while it is being made.
    pub(crate) srk: Option<KeyHandle>,
    srk_public: Option<Public>,
    pub(crate) ak: Option<Ak>,
    pub(crate) ek: Option<Ek>,
    endorsement_auth_set: bool,
    owner_auth_set: bool,
}

impl Device {
    pub(crate) fn open(config: &TpmConfig) -> Result<Self, TpmError> {
        let name = TctiNameConf::from_str(&config.tcti)
            .map_err(|_| TpmError::UnknownTcti { tcti: config.tcti.clone() })?;
        let mut context = Context::new(name).map_err(|error| unreachable_device(&config.tcti, error))?;
        if config.owned_alone() {
            flush_stale(&mut context)?;
        }
        // ESYS forgets authorisation values with its context.
        let (endorsement, owner) = (&config.endorsement_auth, &config.owner_auth);
        set_hierarchy_auth(&mut context, ObjectHandle::Endorsement, endorsement)?;
        set_hierarchy_auth(&mut context, ObjectHandle::Owner, owner)?;
        let mut device = Self {
            context,
            srk: None,
            srk_public: None,
            ak: None,
            ek: None,
            endorsement_auth_set: !endorsement.is_empty(),
            owner_auth_set: !owner.is_empty(),
        };
        let srk = template::storage_root().map_err(command("storage root template"))?;
        let srk = device.primary("create the storage root key", Hierarchy::Owner, srk)?;
        device.srk = Some(srk.key_handle);
        device.srk_public = Some(srk.out_public);
        Ok(device)
    }

    /// Makes a primary key; the caller flushes it. After a TPM reset it would get the slot, and thus the handle, that the
    /// storage root key had, and be taken for it: so that is looked at first.
    pub(crate) fn primary(
        &mut self,
        operation: &'static str,
        hierarchy: Hierarchy,
        template: Public,
    ) -> Result<CreatePrimaryKeyResult, TpmError> {
        self.check_parent(operation)?;
        self.authorised(hierarchy, |device, session| {
            device
                .context
                .execute_with_session(Some(session), |context| {
                    context.create_primary(hierarchy, template, None, None, None, None)
                })
                .map_err(command(operation))
        })
    }

    /// Runs `f` with a session that authorises the use of a hierarchy: by password where that is empty, else by an
    /// HMAC session, which proves the value without sending it.
    pub(crate) fn authorised<T>(
        &mut self,
        hierarchy: Hierarchy,
        f: impl FnOnce(&mut Self, AuthSession) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let set = match hierarchy {
            Hierarchy::Endorsement => self.endorsement_auth_set,
            Hierarchy::Owner => self.owner_auth_set,
            _ => false,
        };
        if set { self.with_hmac_session(f) } else { f(self, AuthSession::Password) }
    }

    /// Runs `f` with a loaded key and flushes it, whatever came of it.
    pub(crate) fn with_object<T>(
        &mut self,
        object: KeyHandle,
        f: impl FnOnce(&mut Self, KeyHandle) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        let result = f(self, object);
        let flushed = self.context.flush_context(object.into()).map_err(command("flush a key"));
        let result = result?;
        flushed.map(|()| result)
    }

    /// The storage root key, parent of every key made here.
    pub(crate) fn parent(&self) -> Result<KeyHandle, TpmError> {
        self.srk.ok_or(TpmError::Unexpected { operation: "use the storage root key", what: "there is none" })
    }

    /// That the storage root key is still where it was put.
    pub(crate) fn check_parent(&mut self, operation: &'static str) -> Result<(), TpmError> {
        let Some(srk) = self.srk else { return Ok(()) };
        match self.context.read_public(srk) {
            Ok((public, _, _)) if Some(&public) == self.srk_public.as_ref() => Ok(()),
            Ok(_) => {
                let source = tss_esapi::Error::WrapperError(WrapperErrorKind::InvalidHandleState);
                Err(TpmError::Lost { operation, source })
            }
            Err(source) => Err(command(operation)(source)),
        }
    }

    /// Handles of one kind, by the first handle of its range.
    pub(crate) fn handles(&mut self, first: u32) -> Result<Vec<u32>, TpmError> {
        handles(&mut self.context, first)
    }
}

/// How many handles one answer holds (MAX_CAP_HANDLES, Part 2, annex A).
const MAX_HANDLES: u32 = 254;
/// TPM_HT of loaded HMAC sessions, and of policy and saved sessions (Part 2, 7.2).
const HMAC_SESSION: u32 = 0x02;
const POLICY_SESSION: u32 = 0x03;

fn handles(context: &mut Context, first: u32) -> Result<Vec<u32>, TpmError> {
    const OPERATION: &str = "list handles";
    let (data, _) =
        context.get_capability(CapabilityType::Handles, first, MAX_HANDLES).map_err(command(OPERATION))?;
    let CapabilityData::Handles(list) = data else {
        return Err(TpmError::Unexpected { operation: OPERATION, what: "another capability" });
    };
    // A TPM that has none of the kind may answer with the next kind's (Part 3, 30.2.1).
    // A saved session is listed under 0x03 and called 0x02, whichever kind it is.
    let kind = |handle: u32| handle >> 24;
    let session = |handle: u32| matches!(kind(handle), HMAC_SESSION | POLICY_SESSION);
    let same_kind = |&handle: &u32| kind(handle) == kind(first) || (session(handle) && session(first));
    Ok(list.into_inner().into_iter().map(u32::from).filter(same_kind).collect())
}

/// Frees what an earlier process left in the TPM by ending without notice.
fn flush_stale(context: &mut Context) -> Result<(), TpmError> {
    for first in [tss::TPM2_TRANSIENT_FIRST, tss::TPM2_LOADED_SESSION_FIRST, tss::TPM2_ACTIVE_SESSION_FIRST] {
        for handle in handles(context, first)? {
            let stale = TpmHandle::try_from(handle)
                .and_then(|tpm_handle| context.tr_from_tpm_public(tpm_handle))
                .and_then(|object| flush(context, object));
            match stale {
                Ok(()) => {
                    tracing::debug!(handle = format_args!("{handle:#010x}"), "flushed a stale TPM handle")
                }
                Err(error) => {
                    tracing::warn!(handle = format_args!("{handle:#010x}"), %error, "stale TPM handle stays")
                }
            }
        }
    }
    Ok(())
}

/// tss-esapi flushes a policy session rightly, then complains that it expected to close it.
fn flush(context: &mut Context, object: ObjectHandle) -> Result<(), tss_esapi::Error> {
    match context.flush_context(object) {
        Err(tss_esapi::Error::WrapperError(WrapperErrorKind::InvalidHandleState)) => Ok(()),
        result => result,
    }
}

fn set_hierarchy_auth(context: &mut Context, hierarchy: ObjectHandle, value: &[u8]) -> Result<(), TpmError> {
    let auth = Auth::try_from(value).map_err(command("hierarchy authorisation"))?;
    context.tr_set_auth(hierarchy, auth).map_err(command("hierarchy authorisation"))
}

/// The library knows that opening failed, not why; the file system does.
fn unreachable_device(tcti: &str, error: tss_esapi::Error) -> TpmError {
    let mut reason = error.to_string();
    let remedy = if let Some(path) = tcti.strip_prefix("device:") {
        match std::fs::OpenOptions::new().read(true).write(true).open(Path::new(path)) {
            Err(cause) => {
                reason = cause.to_string();
                match cause.kind() {
                    io::ErrorKind::NotFound => {
                        "enable the TPM in the firmware's setup, and see that the kernel has \
                        its driver (dmesg | grep -i tpm)"
                    }
                    io::ErrorKind::PermissionDenied => {
                        "let the daemon's user into the group that owns it (tss on \
                        Debian and Ubuntu), and allow the device in its unit (DeviceAllow=)"
                    }
                    io::ErrorKind::ResourceBusy => {
                        "another process holds it: use /dev/tpmrm0, which can be shared"
                    }
                    _ => "see dmesg",
                }
            }
            Ok(_) => "see dmesg; the device can be opened but does not answer as a TPM 2.0",
        }
    } else if tcti.starts_with("tabrmd") {
        "see that tpm2-abrmd runs and that D-Bus lets this user speak to it"
    } else {
        "see that the simulator runs at that address"
    };
    TpmError::Device { tcti: tcti.to_owned(), reason, remedy: remedy.to_owned() }
}

/// A session's handle as the object that is flushed.
pub(crate) fn session_object(session: AuthSession) -> ObjectHandle {
    SessionHandle::from(session).into()
}
