//! The host daemon: attests its host to the issuer, knows the agents on it by the kernel, makes and
//! guards their keys, and keeps their credentials fresh.
//!
//! **In scope:** observing processes ([`observe`]), keys in three custodies, the link to the issuer, the
//! agents' API on a Unix socket. **Not in scope:** deciding who gets what: that is the issuer's, from the
//! evidence sent here.
#![forbid(unsafe_code)]

pub mod observe;
