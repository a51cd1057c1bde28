//! Who may use the admin socket: decided from peer credentials, never from what a request says.

use std::ffi::CString;
use std::sync::Arc;

use nix::unistd::{Gid, Group, Uid, User, getgrouplist};
use tokio::net::unix::UCred;
use tokio::sync::watch;
use tonic::transport::server::UdsConnectInfo;
use tonic::{Request, Status};

use crate::config::AdminConfig;

/// The users and groups admitted, as ids.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Operators {
    uids: Vec<u32>,
    gids: Vec<u32>,
}

/// Whom the admin socket admits now. All clones share one list, so that a reloaded one is in force at the
/// next call, whatever connection it comes on.
#[derive(Debug, Clone)]
pub struct Admission(Arc<watch::Sender<Operators>>);

/// An operator, as the kernel reported the connection's peer.
#[derive(Debug, Clone)]
pub struct Operator {
    /// Effective uid at connect.
    pub uid: u32,
    /// The user's name, if it has one.
    pub name: Option<String>,
}

impl std::fmt::Display for Operator {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.name {
            Some(name) => write!(f, "{name} (uid {})", self.uid),
            None => write!(f, "uid {}", self.uid),
        }
    }
}

impl Operators {
    /// Resolves the configured names; root and the issuer's own user are always admitted.
    ///
    /// # Errors
    /// A user or group that this machine does not know.
    pub fn resolve(config: &AdminConfig) -> Result<Self, String> {
        let mut uids = vec![0, Uid::effective().as_raw()];
        for name in &config.users {
            uids.push(user_id(name).ok_or_else(|| format!("admin.users: no user {name:?} on this machine"))?);
        }
        let mut gids = Vec::new();
        for name in config.groups.iter().chain(&config.group) {
            gids.push(
                group_id(name).ok_or_else(|| format!("admin.group(s): no group {name:?} on this machine"))?,
            );
        }
        Ok(Self { uids, gids })
    }

    fn admit(&self, peer: &UCred) -> Result<Operator, Operator> {
        let user = User::from_uid(Uid::from_raw(peer.uid())).ok().flatten();
        let operator = Operator { uid: peer.uid(), name: user.as_ref().map(|u| u.name.clone()) };
        let by_group = || {
            self.gids.contains(&peer.gid())
                || user.as_ref().is_some_and(|u| supplementary(u).iter().any(|g| self.gids.contains(g)))
        };
        if self.uids.contains(&operator.uid) || by_group() { Ok(operator) } else { Err(operator) }
    }
}

impl Admission {
    /// Admits these.
    pub fn new(operators: Operators) -> Self {
        Self(Arc::new(watch::Sender::new(operators)))
    }

    /// Admits these from now on, and nobody else.
    pub fn replace(&self, operators: Operators) {
        self.0.send_if_modified(|now| std::mem::replace(now, operators.clone()) != operators);
    }

    /// Admits the peer of a request, or refuses it.
    ///
    /// # Errors
    /// `PERMISSION_DENIED` for everybody not configured; the coarse reason only.
    pub fn admit<T>(&self, request: &Request<T>) -> Result<Operator, Status> {
        let peer = request.extensions().get::<UdsConnectInfo>().and_then(|info| info.peer_cred);
        self.admit_peer(peer.as_ref())
    }

    /// Admits a connection's peer, or refuses it.
    ///
    /// # Errors
    /// As [`Admission::admit`].
    pub fn admit_peer(&self, peer: Option<&UCred>) -> Result<Operator, Status> {
        let Some(peer) = peer else {
            return Err(Status::permission_denied("the kernel did not say who is asking"));
        };
        // Looked up outside the lock: names may come over the network.
        let operators = self.0.borrow().clone();
        operators.admit(peer).map_err(|stranger| {
            tracing::warn!(operator = %stranger, pid = peer.pid(), "admin: refused, not an operator");
            Status::permission_denied(format!(
                "{stranger} is not an operator of this issuer (admin.users, admin.groups)"
            ))
        })
    }

    /// Tells when the list changes.
    pub(crate) fn changes(&self) -> watch::Receiver<Operators> {
        self.0.subscribe()
    }
}

fn supplementary(user: &User) -> Vec<u32> {
    CString::new(user.name.as_str())
        .ok()
        .and_then(|name| getgrouplist(&name, user.gid).ok())
        .map(|gids| gids.into_iter().map(Gid::as_raw).collect())
        .unwrap_or_default()
}

fn user_id(name: &str) -> Option<u32> {
    name.parse().ok().or_else(|| User::from_name(name).ok().flatten().map(|u| u.uid.as_raw()))
}

/// The id of a group given by name or number.
pub fn group_id(name: &str) -> Option<u32> {
    name.parse().ok().or_else(|| Group::from_name(name).ok().flatten().map(|g| g.gid.as_raw()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_replaced_list_is_in_force_for_every_holder_at_once() {
        let (stream, _other) = tokio::net::UnixStream::pair().unwrap();
        let peer = stream.peer_cred().unwrap();
        let nobody = || Operators { uids: vec![], gids: vec![] };
        let admission = Admission::new(Operators { uids: vec![peer.uid()], gids: vec![] });
        let (held, mut changes) = (admission.clone(), admission.changes());
        held.admit_peer(Some(&peer)).unwrap();
        assert_eq!(held.admit_peer(None).unwrap_err().code(), tonic::Code::PermissionDenied);

        admission.replace(nobody());
        assert!(changes.has_changed().unwrap());
        assert_eq!(held.admit_peer(Some(&peer)).unwrap_err().code(), tonic::Code::PermissionDenied);
        changes.mark_unchanged();
        admission.replace(nobody());
        assert!(!changes.has_changed().unwrap(), "the same list ends no connection");
        admission.replace(Operators { uids: vec![], gids: vec![peer.gid()] });
        held.admit_peer(Some(&peer)).unwrap();
    }
}
