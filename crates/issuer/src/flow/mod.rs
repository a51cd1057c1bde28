//! The flows, each one straight page: load, appraise, decide, sign, record, release.
//!
//! Types carry the proof that a step was taken. Only `hallmark_core::decide` makes a `Grant`; only
//! [`crate::ca::Ca`] makes a `Signed` from one; only the store makes a `Recorded`, once it is durable and
//! has the witnesses that are required; and only
//! [`Release`] joins the two into something a server can send.

pub mod apply;
pub mod attest;
pub mod enrol;
pub mod issue;
pub mod refresh;
mod refusal;
pub mod retire;
pub mod standing;
mod strangers;

use crate::store::Recorded;
pub use refusal::AttestRefusal;
pub use strangers::RefusalBook;

/// A credential whose record is on disk: what a server may send.
#[derive(Debug)]
pub struct Release<T> {
    signed: T,
    recorded: Recorded,
}

impl<T> Release<T> {
    /// Joins a signed credential with the proof that its decision is recorded.
    fn new(signed: T, recorded: Recorded) -> Self {
        Self { signed, recorded }
    }

    /// The credential.
    pub fn signed(&self) -> &T {
        &self.signed
    }

    /// Number of the record.
    pub fn record(&self) -> u64 {
        self.recorded.number()
    }
}
