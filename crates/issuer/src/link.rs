//! Hosts that are listening, and how what changes reaches them: pushed, on the connection they hold.

use std::collections::HashMap;
use std::sync::Mutex;

use hallmark_core::id::HostId;
use hallmark_proto::issuer as wire;
use tokio::sync::mpsc;
use tonic::Status;

/// Updates that may wait for one host. A host that falls further behind loses its stream; it comes back
/// and starts from a snapshot, so nothing is missed.
const BACKLOG: usize = 64;

/// What a host's stream yields.
pub type UpdateResult = Result<wire::HostUpdate, Status>;

/// The connected hosts.
#[derive(Debug, Default)]
pub struct Hub {
    links: Mutex<HashMap<HostId, Link>>,
}

/// One host's stream, and which roots the host says it has.
#[derive(Debug)]
struct Link {
    updates: mpsc::Sender<UpdateResult>,
    bundle: u64,
    infrastructure: u64,
}

impl Hub {
    /// Opens a host's stream; a stream it had before ends.
    pub fn open(&self, host: &HostId) -> (mpsc::Sender<UpdateResult>, mpsc::Receiver<UpdateResult>) {
        let (updates, receiver) = mpsc::channel(BACKLOG);
        if let Ok(mut links) = self.links.lock() {
            links.insert(host.clone(), Link { updates: updates.clone(), bundle: 0, infrastructure: 0 });
        }
        (updates, receiver)
    }

    /// Sends to one host, if it is listening.
    pub fn send(&self, host: &HostId, update: wire::HostUpdate) {
        let Ok(mut links) = self.links.lock() else { return };
        let behind = links.get(host).is_some_and(|link| link.updates.try_send(Ok(update)).is_err());
        if behind {
            links.remove(host);
        }
    }

    /// Sends to each listening host what `update` makes for it.
    pub fn send_each(&self, update: impl Fn(&HostId) -> wire::HostUpdate) {
        let Ok(mut links) = self.links.lock() else { return };
        links.retain(|host, link| link.updates.try_send(Ok(update(host))).is_ok());
    }

    /// A host has taken over these revisions of the roots.
    pub fn acknowledge(&self, host: &HostId, bundle: u64, infrastructure: u64) {
        if let Ok(mut links) = self.links.lock()
            && let Some(link) = links.get_mut(host)
        {
            link.bundle = link.bundle.max(bundle);
            link.infrastructure = link.infrastructure.max(infrastructure);
        }
    }

    /// Listening hosts that have not said that they have these revisions of the roots, or later ones.
    pub fn behind(&self, bundle: u64, infrastructure: u64) -> Vec<HostId> {
        let Ok(links) = self.links.lock() else { return Vec::new() };
        let behind = |link: &Link| {
            !link.updates.is_closed() && (link.bundle < bundle || link.infrastructure < infrastructure)
        };
        links.iter().filter(|(_, link)| behind(link)).map(|(host, _)| host.clone()).collect()
    }

    /// Ends one host's stream, after what waits for it.
    pub fn close_one(&self, host: &HostId) {
        if let Ok(mut links) = self.links.lock() {
            links.remove(host);
        }
    }

    /// Whether a host is listening.
    pub fn is_open(&self, host: &HostId) -> bool {
        self.links.lock().is_ok_and(|links| links.get(host).is_some_and(|link| !link.updates.is_closed()))
    }

    /// How many are listening.
    pub fn len(&self) -> usize {
        self.links
            .lock()
            .map(|links| links.values().filter(|link| !link.updates.is_closed()).count())
            .unwrap_or(0)
    }

    /// Whether none is listening.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Ends every stream: the issuer is going away.
    pub fn close(&self) {
        if let Ok(mut links) = self.links.lock() {
            links.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn order() -> wire::HostUpdate {
        let attest_now = wire::AttestNow { reason: "test".into() };
        wire::HostUpdate { update: Some(wire::host_update::Update::AttestNow(attest_now)) }
    }

    #[tokio::test]
    async fn a_host_that_falls_behind_loses_its_stream_and_no_other_does() {
        let hub = Hub::default();
        let (slow, quick): (HostId, HostId) = ("slow".parse().unwrap(), "quick".parse().unwrap());
        let (sender, _unread) = hub.open(&slow);
        let (_, mut read) = hub.open(&quick);
        drop(sender);
        for _ in 0..=BACKLOG {
            hub.send_each(|_| order());
            read.recv().await.unwrap().unwrap();
        }
        assert_eq!(
            hub.behind(2, 0),
            std::slice::from_ref(&quick),
            "who is not connected keeps nobody waiting"
        );
        hub.acknowledge(&quick, 1, 5);
        hub.acknowledge(&slow, 9, 9);
        assert_eq!(hub.behind(2, 0), std::slice::from_ref(&quick));
        assert!(hub.behind(1, 5).is_empty());
        assert!(!hub.is_open(&slow));
        assert!(hub.is_open(&quick));
    }
}
