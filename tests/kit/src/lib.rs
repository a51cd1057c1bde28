//! Fixtures for tests: real programs, each test its own. A dev-dependency only.

#![forbid(unsafe_code)]

pub mod pki;
pub mod softhsm;
pub mod swtpm;
