//! Errors as callers on the agent socket see them. Whoever is known, and asks about himself, gets the
//! reason; whoever is not gets a word. The log has the whole.

use tonic::Status;

use crate::agents::{CallerError, InstanceError, SelectError};
use crate::keys::KeyError;
use crate::link::issuer::{AskError, EndReason};

impl From<CallerError<'_>> for Status {
    fn from(error: CallerError<'_>) -> Self {
        match error {
            CallerError::Unknown(_) => Status::permission_denied(
                "the host daemon could not establish who is calling; its log says why",
            ),
            CallerError::Gone(_) => Status::permission_denied(
                "the process that opened this connection has ended or replaced its image: connect anew",
            ),
        }
    }
}

impl From<&InstanceError> for Status {
    fn from(error: &InstanceError) -> Self {
        match error {
            InstanceError::Select(SelectError::Ambiguous { .. }) => {
                Status::failed_precondition(error.to_string())
            }
            InstanceError::Select(_) => Status::permission_denied(error.to_string()),
            InstanceError::Full { .. } | InstanceError::Share(_) => {
                Status::resource_exhausted(error.to_string())
            }
            InstanceError::NotReady { .. } => Status::unavailable(error.to_string()),
            InstanceError::Refused { retryable: true, .. } => Status::unavailable(error.to_string()),
            InstanceError::Refused { .. } => Status::permission_denied(error.to_string()),
            InstanceError::Key(key) => key.into(),
            InstanceError::Ask(AskError::Answer(_)) => Status::internal("the issuer's answer cannot be read"),
            InstanceError::Ask(AskError::Busy) => Status::resource_exhausted("the host daemon is busy"),
            InstanceError::Ask(_) => Status::unavailable("the issuer is away; try again later"),
            InstanceError::Answer(_) => Status::internal("the issuer's answer cannot be read"),
            InstanceError::Ended(reason) => (*reason).into(),
        }
    }
}

impl From<&KeyError> for Status {
    fn from(error: &KeyError) -> Self {
        match error {
            KeyError::NoStore { .. } => Status::failed_precondition(error.to_string()),
            KeyError::Busy { .. } => Status::resource_exhausted(error.to_string()),
            KeyError::Hardware { lost: true, custody, reason } => Status::aborted(format!(
                "the {custody} key signs no more ({reason}): the host daemon asks for an identity with a new one"
            )),
            KeyError::Hardware { custody, .. } => {
                Status::unavailable(format!("the {custody} key did not sign; the host daemon's log says why"))
            }
            KeyError::Software(_) | KeyError::Csr(_) => {
                Status::internal("the key failed; the host daemon's log says why")
            }
        }
    }
}

/// The last word on a stream of identities.
impl From<EndReason> for Status {
    fn from(reason: EndReason) -> Self {
        let text = match reason {
            EndReason::ProcessExited => "the process that was identified has ended",
            EndReason::ImageReplaced => "the process has replaced its image: connect anew",
            EndReason::RegistrationChanged => "the registration has changed or is gone: ask anew",
            EndReason::AgentClosed => "the stream was closed",
            EndReason::HostShutdown => return Status::unavailable("the host daemon is going down"),
            EndReason::Operator => "the identity was revoked",
            EndReason::HostDisabled => "this host has been disabled at the issuer",
            EndReason::NotRenewed => "the identity ended and could not be renewed: ask anew",
        };
        Status::permission_denied(text)
    }
}
