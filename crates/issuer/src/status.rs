//! The one place where a failure becomes a gRPC status: coarse to strangers, the full reason to the log.

use tonic::Status;

use crate::flow::AttestRefusal;
use crate::metrics::metrics;
use crate::store::StoreError;

/// What a host is told of a refused attestation: the check's code word, and no values.
pub fn attestation(refusal: &AttestRefusal) -> Status {
    if let AttestRefusal::Store(error) = refusal {
        metrics().store_error(error);
    }
    match refusal {
        AttestRefusal::Protocol(what) => Status::invalid_argument(format!("attestation: {what}")),
        AttestRefusal::Deadline => Status::deadline_exceeded("attestation took too long"),
        AttestRefusal::Store(_) | AttestRefusal::Sign(_) => {
            Status::unavailable("attestation: the issuer cannot record or sign at present")
        }
        other => Status::permission_denied(format!("attestation refused: {}", other.code())),
    }
}

/// What a host that an operator disabled is told.
pub fn disabled() -> Status {
    Status::permission_denied("refused: host-disabled")
}

/// What a host is told when the store failed: try again, nothing was released.
pub fn store(error: &StoreError) -> Status {
    if let StoreError::Unwitnessed = error {
        return Status::unavailable(
            "too few witnesses have seen the record in time; nothing was released: try again",
        );
    }
    tracing::error!(%error, "store failed");
    metrics().store_error(error);
    Status::unavailable("the issuer's store is not available; nothing was released")
}

/// What an operator is told: everything.
pub fn admin(error: &StoreError) -> Status {
    metrics().store_error(error);
    match error {
        StoreError::Conflict(conflict) => Status::failed_precondition(conflict.to_string()),
        StoreError::Unwitnessed => Status::unavailable(error.to_string()),
        other => Status::internal(other.to_string()),
    }
}
