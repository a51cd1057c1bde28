//! Fixtures for tests: real programs, each test its own. A dev-dependency only.

#![forbid(unsafe_code)]

pub mod agents;
pub mod fake_hostd;
pub mod faketpm;
pub mod pki;
pub mod postgres;
pub mod softhsm;
pub mod swtpm;
pub mod witness;
