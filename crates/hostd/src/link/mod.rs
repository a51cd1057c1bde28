//! The connection to the issuer.

pub mod issuer;
