//! The door for operators: gRPC over the admin Unix socket, admitted by peer credentials alone.

mod accept;
mod admission;
mod cas;
mod log;
mod service;
mod show;
mod socket;

pub(crate) use accept::MAX_REQUEST;
pub use accept::serve;
pub use admission::{Admission, Operator, Operators, group_id};
pub use service::AdminService;
pub(crate) use show::{ca_status, cas};
pub use socket::bind;
