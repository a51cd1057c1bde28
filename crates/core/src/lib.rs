//! Everything in Hallmark that decides.
//!
//! **In scope:** the words (trust domain, SPIFFE ID, tier, custody, selector), parsing and appraising
//! TPM evidence, EK certificates and event logs, the certificate profile, registrations and the
//! capability ceiling, the decision itself: evidence in, grant or refusal out; and which step a CA's rotation takes next.
//!
//! **Not in scope:** sockets, files, clocks, randomness, devices, async. Time and random bytes come in
//! as arguments, so every decision can be replayed, tested and fuzzed.
#![forbid(unsafe_code)]

pub mod capability;
pub mod decide;
pub mod ek;
pub mod eventlog;
pub mod evidence;
pub mod id;
pub mod log;
pub mod pcr;
pub mod registration;
pub mod rotation;
pub mod selector;
pub mod tier;
pub mod tpm;
pub mod trace;
pub mod x509;
