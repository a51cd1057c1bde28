//! What can go wrong with a TPM, and what to do about it where that is known.

use tss_esapi::WrapperErrorKind;
use tss_esapi::constants::response_code::{Tss2ResponseCode, Tss2ResponseCodeKind};

/// Why a TPM operation did not happen.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TpmError {
    /// The queue, or the caller's own lane of it, is full.
    #[error("the TPM is busy: {queued} requests wait, {limit} is the limit; try again later")]
    Busy {
        /// Requests that wait now.
        queued: usize,
        /// How many may.
        limit: usize,
    },

    /// The request was not finished in time. If it had not begun, it never will.
    #[error("{operation}: the TPM did not get to it before its deadline")]
    DeadlinePassed {
        /// What was asked.
        operation: &'static str,
    },

    /// The thread that owns the TPM has ended.
    #[error("the thread that owns the TPM has ended; restart the daemon")]
    Stopped,

    /// The TCTI string is not one tpm2-tss knows.
    #[error(
        "no such TPM interface: {tcti:?}; write e.g. \"device:/dev/tpmrm0\" or \"swtpm:host=127.0.0.1,port=2321\""
    )]
    UnknownTcti {
        /// As configured.
        tcti: String,
    },

    /// The TPM cannot be reached.
    #[error("TPM {tcti} cannot be reached ({reason}); {remedy}")]
    Device {
        /// As configured.
        tcti: String,
        /// What the library said.
        reason: String,
        /// What to do.
        remedy: String,
    },

    /// The TPM was reset, or the connection to it lost, and it was lost again when the request was repeated.
    #[error("{operation}: the TPM was reset or the connection to it lost, twice ({source})")]
    Lost {
        /// What was asked.
        operation: &'static str,
        /// The last answer.
        source: tss_esapi::Error,
    },

    /// Dictionary-attack protection is active.
    #[error(
        "{operation}: the TPM is locked out after failed authorisations; run `tpm2_dictionarylockout -c` or wait"
    )]
    Lockout {
        /// What was asked.
        operation: &'static str,
    },

    /// The key's policy is not met: the PCRs it is bound to have changed since it was made.
    #[error("{operation}: the TPM refuses, the key's PCR policy is not met any more; make a new key")]
    PolicyFailed {
        /// What was asked.
        operation: &'static str,
    },

    /// The authorisation value of a hierarchy is set and ours is not it.
    #[error(
        "{operation}: the TPM refuses our authorisation; configure the endorsement or owner authorisation it was \
         given, or clear it with tpm2_changeauth"
    )]
    AuthorisationFailed {
        /// What was asked.
        operation: &'static str,
    },

    /// The credential was not made for this EK and this AK, or was altered.
    #[error("the credential was not made for this TPM's EK and AK ({source})")]
    CredentialRefused {
        /// The TPM's answer.
        source: tss_esapi::Error,
    },

    /// A TPM2B structure whose size field does not match.
    #[error("{what}: size field says {stated}, there are {actual} bytes")]
    Malformed {
        /// Which structure.
        what: &'static str,
        /// The size field.
        stated: usize,
        /// What followed.
        actual: usize,
    },

    /// A PCR index the TPM does not have.
    #[error("there is no PCR {index}; 0 to 23 exist")]
    NoSuchPcr {
        /// As asked.
        index: u8,
    },

    /// The SHA-256 bank is off, or does not hold the PCR.
    #[error(
        "PCR {index} is not in the TPM's SHA-256 bank; allocate it (tpm2_pcrallocate sha256:all) and reboot"
    )]
    NoSha256Bank {
        /// The missing PCR.
        index: u8,
    },

    /// PCRs changed each time between a quote and the reading after it, or between a policy and its use.
    #[error("the PCRs did not hold still over {attempts} attempts; try again")]
    PcrsUnstable {
        /// How often it was tried.
        attempts: u32,
    },

    /// A key blob was made by another TPM, or before its owner hierarchy was cleared.
    #[error("the key was not made by this TPM, or its storage hierarchy was cleared since ({source})")]
    ForeignKey {
        /// The TPM's answer.
        source: tss_esapi::Error,
    },

    /// Any other refusal by the TPM or the library.
    #[error("{operation}: {source}")]
    Command {
        /// What was asked.
        operation: &'static str,
        /// The answer.
        source: tss_esapi::Error,
    },

    /// The TPM answered with something it should not have.
    #[error("{operation}: unexpected answer from the TPM: {what}")]
    Unexpected {
        /// What was asked.
        operation: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// Sorts a library error into the kinds a caller can act on.
pub(crate) fn command(operation: &'static str) -> impl Fn(tss_esapi::Error) -> TpmError {
    move |source| {
        if is_lost(source) {
            return TpmError::Lost { operation, source };
        }
        match kind(source) {
            Some(Tss2ResponseCodeKind::Lockout) => TpmError::Lockout { operation },
            Some(Tss2ResponseCodeKind::PolicyFail) => TpmError::PolicyFailed { operation },
            Some(Tss2ResponseCodeKind::PcrChanged) => TpmError::PcrsUnstable { attempts: 1 },
            Some(Tss2ResponseCodeKind::BadAuth | Tss2ResponseCodeKind::AuthFail) => {
                TpmError::AuthorisationFailed { operation }
            }
            _ => TpmError::Command { operation, source },
        }
    }
}

/// The TPM's own verdict, or nothing when another layer spoke.
pub(crate) fn kind(error: tss_esapi::Error) -> Option<Tss2ResponseCodeKind> {
    match error {
        // TPM (0), resource manager (11) and TPM codes relayed by it (12): TSS 2.0 Overview, 3.2.
        tss_esapi::Error::Tss2Error(code) if matches!(layer(code), Some(0 | 11 | 12)) => code.kind(),
        _ => None,
    }
}

/// Whether what we hold in the TPM is gone (it was reset, or the way to it broke) or crowded out. Everything is then
/// rebuilt.
fn is_lost(error: tss_esapi::Error) -> bool {
    use Tss2ResponseCodeKind as Kind;
    match error {
        tss_esapi::Error::Tss2Error(code) => match layer(code) {
            // ESYS (7), SYS (8), TCTI (10), TCTI loader and drivers (13)
            Some(7 | 8 | 10 | 13) => true,
            _ => matches!(
                kind(error),
                Some(
                    Kind::Initialize
                        | Kind::Reboot
                        | Kind::BadContext
                        | Kind::Handle
                        | Kind::ReferenceH0
                        | Kind::ReferenceH1
                        | Kind::ReferenceH2
                        // No room: someone left things in a TPM that is ours; opening it anew clears them away.
                        | Kind::ObjectMemory
                        | Kind::SessionMemory
                        | Kind::SessionHandles
                        | Kind::ReferenceS0
                        | Kind::ReferenceS1
                        | Kind::ReferenceS2
                )
            ),
        },
        tss_esapi::Error::WrapperError(kind) => kind == WrapperErrorKind::InvalidHandleState,
    }
}

/// Bits 16 to 23 of a TSS2_RC. tss-esapi shows the code only in the text of its errors.
fn layer(code: Tss2ResponseCode) -> Option<u32> {
    let text = match code {
        Tss2ResponseCode::Success => return None,
        Tss2ResponseCode::FormatZero(code) => code.to_string(),
        Tss2ResponseCode::FormatOne(code) => code.to_string(),
    };
    let (_, hex) = text.rsplit_once("0x")?;
    u32::from_str_radix(hex, 16).ok().map(|value| (value >> 16) & 0xff)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn code(value: u32) -> tss_esapi::Error {
        tss_esapi::Error::Tss2Error(Tss2ResponseCode::from(value))
    }

    #[test]
    fn the_layer_decides_before_the_number_does() {
        // TSS2_TCTI_RC_IO_ERROR: its number would be TPM_RC_TESTING-like in the TPM's own layer.
        assert!(matches!(command("x")(code(0x000a_000a)), TpmError::Lost { .. }));
        assert_eq!(None, kind(code(0x000a_000a)));
        // TPM_RC_REFERENCE_H0
        assert!(matches!(command("x")(code(0x0910)), TpmError::Lost { .. }));
        // TPM_RC_HANDLE + TPM_RC_H + 1
        assert!(matches!(command("x")(code(0x018b)), TpmError::Lost { .. }));
    }

    #[test]
    fn refusals_keep_their_kind() {
        // TPM_RC_POLICY_FAIL + TPM_RC_S + 1
        assert!(matches!(command("sign")(code(0x099d)), TpmError::PolicyFailed { operation: "sign" }));
        assert!(matches!(command("x")(code(0x0921)), TpmError::Lockout { .. }));
        assert!(matches!(command("x")(code(0x09a2)), TpmError::AuthorisationFailed { .. }));
        assert!(matches!(command("x")(code(0x01c4)), TpmError::Command { .. }));
        // TPM_RC_LOCKOUT relayed by the resource manager
        assert!(matches!(command("x")(code(0x000c_0921)), TpmError::Lockout { .. }));
    }
}
