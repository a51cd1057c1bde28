//! The door for operators: gRPC over the admin Unix socket, admitted by peer credentials alone.

mod admission;
mod service;
mod socket;

pub use admission::{Admission, Operator, group_id};
pub use service::AdminService;
pub(crate) use service::ca_status;
pub use socket::bind;
