//! What operators ask the issuer.

pub(crate) mod agents;
pub(crate) mod apply;
pub(crate) mod bundle;
pub(crate) mod ca;
pub(crate) mod doctor;
pub(crate) mod explain;
pub(crate) mod host;
pub(crate) mod join_token;
pub(crate) mod log;
pub(crate) mod records;
pub(crate) mod status;
