//! Asking an issuer as its operators do.

use std::path::Path;

use hallmark_proto::admin::admin_client::AdminClient;
use hallmark_proto::tls::unix_channel;
use tonic::transport::Channel;

/// A client of the admin socket.
pub type Admin = AdminClient<Channel>;

/// A client of an issuer's admin socket; it connects when first used.
pub fn admin(socket: &Path) -> Admin {
    AdminClient::new(unix_channel(socket))
}
