//! The host daemon: attests its host to the issuer, knows the agents on it by the kernel, makes and
//! guards their keys, and keeps their credentials fresh.
//!
//! **In scope:** observing processes ([`observe`]), keys in three custodies ([`keys`]), the link to the
//! issuer ([`link`]), the agents' API on a Unix socket ([`agents`]). **Not in scope:** deciding who gets
//! what: that is the issuer's, from the evidence sent here.
#![forbid(unsafe_code)]

pub mod agents;
mod clock;
pub mod config;
pub mod daemon;
pub mod keys;
pub mod link;
pub mod logging;
pub mod metrics;
pub mod observe;
pub mod pulse;
pub mod state;
mod status;
