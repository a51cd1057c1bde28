//! The two conversations in which this host proves itself: attestation, and a fresh quote on one that
//! stands.

use std::sync::Arc;
use std::time::Duration;

use hallmark_core::id::{HostId, SpiffeId, Subject, TrustDomain};
use hallmark_proto::issuer as wire;
use hallmark_proto::issuer::host_attestation_client::HostAttestationClient;
use hallmark_proto::issuer::{attest_request, attest_response, refresh_request, refresh_response};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use super::LinkError;
use super::attester::Attester;
use crate::keys::csr;

/// How long one conversation may take. A hardware TPM needs some seconds for all of it.
const DEADLINE: Duration = Duration::from_secs(60);

/// Proves this host to the issuer at the other end of `channel` (DESIGN section 4.1).
pub(super) async fn attest(
    channel: Channel,
    attester: &Arc<dyn Attester>,
    host: &HostId,
    trust_domain: &TrustDomain,
) -> Result<wire::HostAttested, LinkError> {
    let conversation = async {
        let proof = attester.proof().await?;
        let hello = wire::HostHello {
            host_id: host.to_string(),
            proof: Some(proof),
            version: env!("CARGO_PKG_VERSION").into(),
        };
        let (say, said) = mpsc::channel(2);
        tell(&say, wire::AttestRequest { step: Some(attest_request::Step::Hello(hello)) }).await?;
        let mut client = HostAttestationClient::new(channel);
        let mut answers =
            client.attest(ReceiverStream::new(said)).await.map_err(LinkError::Refused)?.into_inner();
        let challenge = match next(&mut answers).await?.step {
            Some(attest_response::Step::Challenge(challenge)) => challenge,
            _ => return Err(LinkError::Protocol("no challenge after the hello")),
        };
        let id = SpiffeId::new(trust_domain.clone(), Subject::Host(host.clone()));
        let csr = csr::request(&id, attester.public_point(), |digest| attester.sign(digest)).await?;
        let tpm = attester.evidence(&challenge, &csr).await?;
        let evidence = wire::HostEvidence { csr: csr.into(), tpm };
        tell(&say, wire::AttestRequest { step: Some(attest_request::Step::Evidence(evidence)) }).await?;
        match next(&mut answers).await?.step {
            Some(attest_response::Step::Attested(attested)) => Ok(attested),
            _ => Err(LinkError::Protocol("no result after the evidence")),
        }
    };
    within(conversation).await
}

/// A fresh quote, over a connection that shows the host's SVID.
pub(super) async fn refresh(
    channel: Channel,
    attester: Arc<dyn Attester>,
    host: HostId,
) -> Result<wire::RefreshAccepted, LinkError> {
    let conversation = async {
        let (say, said) = mpsc::channel(2);
        let begin = refresh_request::Step::Begin(wire::RefreshBegin {});
        tell(&say, wire::RefreshRequest { step: Some(begin) }).await?;
        let mut client = HostAttestationClient::new(channel);
        let mut answers =
            client.refresh(ReceiverStream::new(said)).await.map_err(LinkError::Refused)?.into_inner();
        let challenge = match next(&mut answers).await?.step {
            Some(refresh_response::Step::Challenge(challenge)) => challenge,
            _ => return Err(LinkError::Protocol("no challenge after the beginning")),
        };
        let quote = attester.quote(&challenge, &host).await?;
        tell(&say, wire::RefreshRequest { step: Some(refresh_request::Step::Quote(quote)) }).await?;
        match next(&mut answers).await?.step {
            Some(refresh_response::Step::Accepted(accepted)) => Ok(accepted),
            _ => Err(LinkError::Protocol("no result after the quote")),
        }
    };
    within(conversation).await
}

async fn within<T>(conversation: impl Future<Output = Result<T, LinkError>>) -> Result<T, LinkError> {
    tokio::time::timeout(DEADLINE, conversation).await.unwrap_or_else(|_| {
        Err(LinkError::Refused(Status::deadline_exceeded("the attestation took too long")))
    })
}

async fn tell<T>(to: &mpsc::Sender<T>, step: T) -> Result<(), LinkError> {
    to.send(step).await.map_err(|_| LinkError::Closed)
}

async fn next<T>(answers: &mut Streaming<T>) -> Result<T, LinkError> {
    answers.message().await.map_err(LinkError::Refused)?.ok_or(LinkError::Closed)
}
