//! The services for hosts. Attestation is open to hosts without a credential; all else is for a host with
//! one, and acts for that host alone. What a caller may hold is for the [`crate::door`] to say.

use std::pin::Pin;
use std::sync::Arc;

use futures::{Stream, StreamExt};
use hallmark_core::id::{HostId, InstanceId, Subject};
use hallmark_core::x509::BACKDATE;
use hallmark_proto::issuer as wire;
use hallmark_proto::issuer::host_attestation_server::HostAttestation;
use hallmark_proto::issuer::host_link_server::HostLink;
use hallmark_proto::issuer::issuance_server::Issuance;
use hallmark_proto::tls::PeerInfo;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use crate::door::AttestationPermit;
use crate::flow;
use crate::issuer::Issuer;
use crate::{convert, status};

/// The services for hosts.
#[derive(Clone, Debug)]
pub struct HostServices {
    issuer: Arc<Issuer>,
}

impl HostServices {
    /// Services of this issuer.
    pub fn new(issuer: Arc<Issuer>) -> Self {
        Self { issuer }
    }

    /// The host at the other end, from its certificate.
    fn caller<T>(&self, request: &Request<T>) -> Result<HostId, Status> {
        let peer = request.extensions().get::<PeerInfo>();
        let Some((peer, Subject::Host(host))) =
            peer.and_then(|p| p.spiffe_id.as_ref().map(|id| (p, &id.subject)))
        else {
            return Err(Status::unauthenticated("this method needs mutual TLS with a host SVID"));
        };
        // Also on a connection that was opened before the CA was tainted.
        let denied = &self.issuer.ca().in_force().denied;
        if peer.authorities.iter().any(|authority| denied.contains(authority)) {
            tracing::warn!(host_id = %host, "host refused: its credential is of a CA that was tainted");
            return Err(Status::unauthenticated("the CA of this host SVID was tainted; attest anew"));
        }
        if let Some(removed) = self.issuer.last_removed(host) {
            let issued = peer.not_before.map_or(i64::MIN, |at| at.saturating_add(BACKDATE));
            if issued <= removed {
                tracing::warn!(host_id = %host, issued, removed, "host refused: its credential is of before its removal");
                return Err(Status::unauthenticated(
                    "this host SVID ended when the host was removed; attest anew",
                ));
            }
        }
        Ok(host.clone())
    }
}

fn remote<T>(request: &Request<T>) -> String {
    request
        .extensions()
        .get::<PeerInfo>()
        .and_then(|p| p.remote_addr)
        .map_or_else(|| "unknown".to_owned(), |a| a.to_string())
}

type Answers<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl HostAttestation for HostServices {
    type AttestStream = Answers<wire::AttestResponse>;
    type RefreshStream = Answers<wire::RefreshResponse>;

    async fn attest(
        &self,
        mut request: Request<Streaming<wire::AttestRequest>>,
    ) -> Result<Response<Self::AttestStream>, Status> {
        let issuer = self.issuer.clone();
        let Some(permit) = request.extensions_mut().remove::<Arc<AttestationPermit>>() else {
            return Err(Status::internal("an attestation came past the door"));
        };
        let remote = remote(&request);
        let requests = request.into_inner();
        let (answers, stream) = tokio::sync::mpsc::channel(2);
        tokio::spawn(async move {
            let last = match flow::attest::attest(&issuer, &remote, requests, &answers).await {
                Ok(attested) => {
                    let step = Some(wire::attest_response::Step::Attested(attested));
                    Ok(wire::AttestResponse { step })
                }
                Err(refusal) => Err(status::attestation(&refusal)),
            };
            // The permit comes back whether or not the answer is read. A host that has gone away needs none.
            drop(permit);
            let _ = answers.send(last).await;
        });
        Ok(Response::new(ReceiverStream::new(stream).boxed()))
    }

    async fn refresh(
        &self,
        request: Request<Streaming<wire::RefreshRequest>>,
    ) -> Result<Response<Self::RefreshStream>, Status> {
        let host = self.caller(&request)?;
        let issuer = self.issuer.clone();
        let deadline = issuer.config().limits.attestation_timeout;
        let requests = request.into_inner();
        let (answers, stream) = tokio::sync::mpsc::channel(2);
        tokio::spawn(async move {
            let refresh = flow::refresh::refresh(&issuer, &host, requests, &answers);
            let last = match tokio::time::timeout(deadline, refresh).await {
                Ok(Ok(accepted)) => {
                    let step = Some(wire::refresh_response::Step::Accepted(accepted));
                    Ok(wire::RefreshResponse { step })
                }
                Ok(Err(refusal)) => Err(status::attestation(&refusal)),
                Err(_) => Err(Status::deadline_exceeded("the quote took too long")),
            };
            let _ = answers.send(last).await;
        });
        Ok(Response::new(ReceiverStream::new(stream).boxed()))
    }
}

#[tonic::async_trait]
impl Issuance for HostServices {
    async fn issue(
        &self,
        request: Request<wire::IssueRequest>,
    ) -> Result<Response<wire::IssueResponse>, Status> {
        let host = self.caller(&request)?;
        let results = flow::issue::issue(&self.issuer, &host, request.into_inner().items).await?;
        Ok(Response::new(wire::IssueResponse { results }))
    }

    async fn retire(
        &self,
        request: Request<wire::RetireRequest>,
    ) -> Result<Response<wire::RetireResponse>, Status> {
        /// As many as a host daemon may hold.
        const MOST: usize = 16_384;
        let host = self.caller(&request)?;
        let request = request.into_inner();
        if request.instance_ids.len() > MOST {
            return Err(Status::invalid_argument(format!("more than {MOST} instances")));
        }
        let instances = request
            .instance_ids
            .iter()
            .map(|id| <[u8; 16]>::try_from(id.as_ref()).map(InstanceId::from_bytes))
            .collect::<Result<Vec<_>, _>>()
            .map_err(|_| Status::invalid_argument("an instance id has 16 bytes"))?;
        flow::retire::retire(&self.issuer, &host, instances, &request.reason)
            .await
            .map_err(|e| status::store(&e))?;
        Ok(Response::new(wire::RetireResponse {}))
    }
}

#[tonic::async_trait]
impl HostLink for HostServices {
    type WatchStream = Answers<wire::HostUpdate>;

    async fn watch(
        &self,
        request: Request<wire::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        let host = self.caller(&request)?;
        // The stream is open before anything is looked at, so that no change falls between the two.
        let (updates, receiver) = self.issuer.hub().open(&host);
        let refused = match self.issuer.host(&host) {
            None => Some(Status::permission_denied("this host is not enrolled here")),
            Some(state) => state.standing.disabled.as_ref().map(|reason| {
                tracing::warn!(host_id = %host, ?reason, "host refused: an operator disabled it");
                status::disabled()
            }),
        };
        if let Some(refused) = refused {
            self.issuer.hub().close_one(&host);
            return Err(refused);
        }
        let revoked =
            self.issuer.store().revoked_on(&host, self.issuer.now()).await.map_err(|e| status::store(&e))?;
        let revoked = (!revoked.is_empty()).then(|| convert::revocations_update(revoked));
        let registrations = convert::registrations_update(self.issuer.registry().for_host(&host));
        let bundles = convert::bundles_update(convert::bundles(
            self.issuer.trust_domain().name.as_str(),
            self.issuer.ca(),
        ));
        let infrastructure = convert::infrastructure_update(self.issuer.ca());
        let renewals = &self.issuer.ca().in_force().renewals;
        let renew = (!renewals.is_empty()).then(|| convert::renew_update(renewals, self.issuer.now()));
        for update in [infrastructure, bundles].into_iter().chain(revoked).chain([registrations]).chain(renew)
        {
            updates.send(Ok(update)).await.map_err(|_| Status::unavailable("the stream was replaced"))?;
        }
        tracing::info!(host_id = %host, "host connected");
        Ok(Response::new(ReceiverStream::new(receiver).boxed()))
    }

    async fn acknowledge(
        &self,
        request: Request<wire::AcknowledgeRequest>,
    ) -> Result<Response<wire::AcknowledgeResponse>, Status> {
        let host = self.caller(&request)?;
        let wire::AcknowledgeRequest { bundle_revision, infrastructure_revision } = request.into_inner();
        self.issuer.hub().acknowledge(&host, bundle_revision, infrastructure_revision);
        Ok(Response::new(wire::AcknowledgeResponse {}))
    }
}
