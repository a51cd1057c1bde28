//! A host that does as it likes: it speaks to the issuer by hand, so that a test can send what a host
//! daemon never would.

use std::sync::Arc;

use anyhow::{Context, Result};
use hallmark_core::x509::InfraRoots;
use hallmark_proto::issuer as wire;
use hallmark_proto::issuer::host_attestation_client::HostAttestationClient;
use hallmark_proto::issuer::issuance_client::IssuanceClient;
use hallmark_proto::tls::{self, Accept, ChannelOptions, Shared, SwappableCert};
use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair, SanType, SigningKey};
use rustls_pki_types::CertificateDer;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;
use tonic::{Status, Streaming};

use crate::bed::Bed;

/// A host driven by hand.
pub struct Rogue {
    trust_domain: String,
    /// Its client key.
    pub key: KeyPair,
    identity: Arc<SwappableCert>,
    chain: Option<Vec<CertificateDer<'static>>>,
    /// Its connection: without a client certificate until it has attested.
    pub channel: Channel,
}

impl Rogue {
    /// A host that has not attested.
    ///
    /// # Errors
    /// The bed's infrastructure root cannot be read.
    pub fn new(bed: &Bed) -> Result<Self> {
        let identity = SwappableCert::new();
        let channel = connection(bed, &identity)?;
        Ok(Self {
            trust_domain: bed.trust_domain().to_owned(),
            key: KeyPair::generate()?,
            identity,
            chain: None,
            channel,
        })
    }

    /// A host that has joined by a token made for it now.
    ///
    /// # Errors
    /// The issuer refuses.
    pub async fn joined(bed: &Bed, host: &str) -> Result<Self> {
        let token = join_token(bed, host)?;
        let mut rogue = Self::new(bed)?;
        rogue.join(host, &token).await?;
        // A new connection shows the new certificate.
        let mut again = Self::new(bed)?;
        std::mem::swap(&mut again.key, &mut rogue.key);
        let chain = rogue.chain.take().context("no chain")?;
        again.identity.set(chain, tls::software_key(&again.key.serialize_der())?)?;
        Ok(again)
    }

    /// One more connection with its certificate.
    ///
    /// # Errors
    /// The bed's infrastructure root cannot be read.
    pub fn connection(&self, bed: &Bed) -> Result<Channel> {
        connection(bed, &self.identity)
    }

    /// Asks for issuance.
    pub fn issuance(&self) -> IssuanceClient<Channel> {
        IssuanceClient::new(self.channel.clone())
    }

    /// Attests by a join token.
    ///
    /// # Errors
    /// As the issuer answers.
    pub async fn join(&mut self, host: &str, token: &str) -> Result<wire::HostAttested, Status> {
        let csr = csr(&self.key, Some(&format!("spiffe://{}/host/{host}", self.trust_domain)));
        let proof = wire::host_hello::Proof::JoinToken(wire::JoinToken { token: token.to_owned() });
        let hello =
            wire::HostHello { host_id: host.to_owned(), proof: Some(proof), version: "rogue".to_owned() };
        let evidence = wire::HostEvidence { csr: csr.into(), tpm: None };
        self.attest(hello, evidence).await
    }

    /// Attests with this hello, and this evidence whatever the challenge.
    ///
    /// # Errors
    /// As the issuer answers.
    pub async fn attest(
        &mut self,
        hello: wire::HostHello,
        evidence: wire::HostEvidence,
    ) -> Result<wire::HostAttested, Status> {
        let steps =
            [wire::attest_request::Step::Hello(hello), wire::attest_request::Step::Evidence(evidence)];
        let requests = tokio_stream::iter(steps.map(|step| wire::AttestRequest { step: Some(step) }));
        let mut client = HostAttestationClient::new(self.channel.clone());
        let mut answers = client.attest(requests).await?.into_inner();
        while let Some(answer) = answers.message().await? {
            if let Some(wire::attest_response::Step::Attested(attested)) = answer.step {
                self.chain =
                    Some(attested.host_svid.iter().map(|der| CertificateDer::from(der.to_vec())).collect());
                return Ok(attested);
            }
        }
        Err(Status::internal("the stream ended without a result"))
    }

    /// Begins an attestation, up to the challenge.
    ///
    /// # Errors
    /// As the issuer answers.
    pub async fn challenged(&self, hello: wire::HostHello) -> Result<Challenged, Status> {
        let (steps, requests) = mpsc::channel(1);
        let step = Some(wire::attest_request::Step::Hello(hello));
        // There is room for it.
        let _ = steps.send(wire::AttestRequest { step }).await;
        let mut client = HostAttestationClient::new(self.channel.clone());
        let mut answers = client.attest(ReceiverStream::new(requests)).await?.into_inner();
        match answers.message().await?.and_then(|answer| answer.step) {
            Some(wire::attest_response::Step::Challenge(challenge)) => {
                Ok(Challenged { challenge, steps, answers })
            }
            other => Err(Status::internal(format!("no challenge, but {other:?}"))),
        }
    }
}

/// An attestation that waits for evidence.
pub struct Challenged {
    /// What the issuer wants to see.
    pub challenge: wire::Challenge,
    steps: mpsc::Sender<wire::AttestRequest>,
    answers: Streaming<wire::AttestResponse>,
}

impl Challenged {
    /// Shows the evidence.
    ///
    /// # Errors
    /// As the issuer answers.
    pub async fn show(mut self, evidence: wire::HostEvidence) -> Result<wire::HostAttested, Status> {
        let step = Some(wire::attest_request::Step::Evidence(evidence));
        // A stream that the issuer has left tells by its answer.
        let _ = self.steps.send(wire::AttestRequest { step }).await;
        match self.answers.message().await?.and_then(|answer| answer.step) {
            Some(wire::attest_response::Step::Attested(attested)) => Ok(attested),
            other => Err(Status::internal(format!("no result, but {other:?}"))),
        }
    }
}

fn connection(bed: &Bed, identity: &Arc<SwappableCert>) -> Result<Channel> {
    let roots = pem::parse_many(std::fs::read(bed.infrastructure_root())?)?;
    let roots = InfraRoots::new(bed.trust_domain().parse()?, roots.iter().map(|root| root.contents()))?;
    let config = tls::client_config(Accept::Issuers(Shared::new(roots)), Some(identity.clone()))?;
    let options = ChannelOptions { identity: Some(identity.clone()), ..ChannelOptions::default() };
    Ok(tls::channel(&bed.endpoint(), Arc::new(config), options)?)
}

/// A join token for `host`, made by the bed's issuer now.
///
/// # Errors
/// The issuer makes none.
pub fn join_token(bed: &Bed, host: &str) -> Result<String> {
    let out = bed.hallmark_ok(&["join-token", "create", host, "--output", "json"])?;
    let json: serde_json::Value = serde_json::from_str(&out)?;
    Ok(json["token"].as_str().context("no token in the answer")?.to_owned())
}

// A request that cannot be made is the test's own fault, and ends it.
#[allow(clippy::expect_used)]
/// A CSR by `key`, with this URI name if any.
///
/// # Panics
/// rcgen cannot make it: the test is wrong.
pub fn csr(key: &impl SigningKey, uri: Option<&str>) -> Vec<u8> {
    csr_with(key, |params| {
        if let Some(uri) = uri {
            params.subject_alt_names = vec![SanType::URI(uri.try_into().expect("an ASCII URI"))];
        }
    })
}

#[allow(clippy::expect_used)]
/// A CSR by `key`, changed as the test wants.
///
/// # Panics
/// rcgen cannot make it: the test is wrong.
pub fn csr_with(key: &impl SigningKey, change: impl FnOnce(&mut CertificateParams)) -> Vec<u8> {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "rogue");
    change(&mut params);
    params.serialize_request(key).expect("a CSR").der().to_vec()
}
