//! The bodies of the fuzz targets: for everything in `hallmark-core` that reads what came from outside.
//!
//! A body returns whether the input was accepted, and panics when a property does not hold:
//! - whatever is read is written back the same;
//! - whatever carries a signature is accepted only if it is, byte for byte, one of the seeds: nobody but
//!   the keys that made these can make another.
//!
//! Two drivers use them. `cargo +nightly fuzz run --fuzz-dir tests/fuzz TARGET` explores by coverage.
//! `cargo test -p hallmark-core --test fuzz_smoke` throws some ten thousand mutations of the seeds at each
//! on the stable toolchain. Inputs made of several parts are read by [`parts::split`].
#![forbid(unsafe_code)]

pub mod certificates;
pub mod evidence;
pub mod log;
pub mod parts;
pub mod words;

/// A target's body.
pub type Target = fn(&[u8]) -> bool;

/// All targets by name: of the driver in `fuzz_targets` and of the directory of seeds.
pub const ALL: &[(&str, Target)] = &[
    ("agent_info", certificates::agent_info),
    ("capability", words::capability),
    ("chain", certificates::chain),
    ("crl", certificates::crl),
    ("csr", certificates::csr),
    ("ek_certificate", evidence::ek_certificate),
    ("ek_roots", evidence::ek_roots),
    ("event_log", evidence::event_log),
    ("host_evidence", evidence::host_evidence),
    ("key_evidence", evidence::key_evidence),
    ("log_bundle", log::log_bundle),
    ("log_checkpoint", log::log_checkpoint),
    ("log_cosigned", log::log_cosigned),
    ("log_event", log::log_event),
    ("log_path", log::log_path),
    ("log_proof", log::log_proof),
    ("log_record", log::log_record),
    ("log_verifier", log::log_verifier),
    ("refresh", evidence::refresh),
    ("registration", words::registration),
    ("registration_json", words::registration_json),
    ("selector", words::selector),
    ("spiffe_id", words::spiffe_id),
    ("tpm_attest", evidence::tpm_attest),
    ("tpm_public", evidence::tpm_public),
    ("tpm_signature", evidence::tpm_signature),
    ("witness_answer", log::witness_answer),
];
