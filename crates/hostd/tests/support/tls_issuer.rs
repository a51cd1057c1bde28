//! The whole fake issuer: attestation that appraises evidence for good, the link, and issuance, by mutual
//! TLS under an infrastructure root of its own.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use futures::StreamExt;
use hallmark_core::evidence::{self, Expectation, HostEvidence};
use hallmark_core::id::{SpiffeId, Subject};
use hallmark_core::pcr::{PcrSelection, PcrValues};
use hallmark_core::tier::Hierarchy;
use hallmark_core::tpm::{ClockInfo, Public, make_credential};
use hallmark_core::x509::{
    CaParams, Csr, InfraRoots, IssuingCa, Leaf, LeafParams, OidArc, Serial, SoftwareCaKey, issuing, root,
};
use hallmark_proto::issuer as wire;
use hallmark_proto::issuer::host_attestation_server::{HostAttestation, HostAttestationServer};
use hallmark_proto::issuer::host_link_server::{HostLink, HostLinkServer};
use hallmark_proto::issuer::issuance_server::IssuanceServer;
use hallmark_proto::tls::{
    self, Accept, ClientAuth, Listener, ListenerOptions, PeerInfo, Shared, SwappableCert,
};
use rcgen::KeyPair;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::TRUST_DOMAIN;
use super::fake_issuer::{Book, IssuanceService};

/// What it does, and what it has seen.
pub struct Conduct {
    /// Lifetime of host SVIDs, seconds.
    pub svid_lifetime: i64,
    /// For how long a quote counts, seconds.
    pub quote_age: i64,
    /// Attestations are refused, while this is there.
    pub refuse: Option<Status>,
    /// What the evidence of every host supports.
    pub tier: &'static str,
    /// Each fresh quote waits for a permit before it is accepted, while this is there.
    pub gate: Option<Arc<tokio::sync::Semaphore>>,
    /// Fresh quotes that were begun.
    pub quotes_begun: usize,
    /// Links are refused, while this is there.
    pub refuse_link: Option<Status>,
    /// What every new link is told first.
    pub registrations: Vec<wire::Registration>,
    pub attested: usize,
    pub refreshed: usize,
    pub links: usize,
    pub hellos: Vec<wire::HostHello>,
    /// The roots that hosts said they have: revisions of the bundle and of infrastructure.
    pub acknowledged: Vec<(u64, u64)>,
    /// Of each attestation begun: whether the host showed its certificate.
    pub known: Vec<bool>,
    hosts: Vec<mpsc::Sender<Result<wire::HostUpdate, Status>>>,
    spent: Vec<String>,
    ak: Option<(Public, ClockInfo)>,
}

impl Default for Conduct {
    fn default() -> Self {
        Self {
            svid_lifetime: 3600,
            quote_age: 300,
            refuse: None,
            refuse_link: None,
            tier: "foundation",
            gate: None,
            quotes_begun: 0,
            registrations: vec![],
            attested: 0,
            refreshed: 0,
            links: 0,
            hellos: vec![],
            acknowledged: vec![],
            known: vec![],
            hosts: vec![],
            spent: vec![],
            ak: None,
        }
    }
}

pub struct TlsIssuer {
    pub addr: SocketAddr,
    pub root_pem: PathBuf,
    service: Service,
    server: Option<tokio::task::JoinHandle<()>>,
    _dir: tempfile::TempDir,
}

#[derive(Clone)]
struct Service {
    conduct: Arc<Mutex<Conduct>>,
    ca: Arc<IssuingCa>,
    root: Arc<Vec<u8>>,
    hosts_roots: Shared<InfraRoots>,
    issuance: IssuanceService,
}

impl TlsIssuer {
    pub async fn start() -> Self {
        let (root_key, issuing_key) = (software_key(), software_key());
        let trust_domain = TRUST_DOMAIN.parse().unwrap();
        let arc = OidArc::documentation();
        let params = |serial: u8| CaParams {
            trust_domain: &trust_domain,
            hierarchy: Hierarchy::Infrastructure,
            lab: false,
            arc: &arc,
            serial: Serial::from_random([serial; 16]),
            now: now(),
            lifetime: Duration::from_secs(86_400),
        };
        use hallmark_core::x509::CaKey;
        let root = root(&params(1), &root_key).unwrap();
        let issuing = issuing(&params(2), issuing_key.spki_der(), &root, &root_key).unwrap();
        let ca = IssuingCa::new(&issuing, Arc::new(issuing_key)).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let root_pem = dir.path().join("infrastructure.pem");
        std::fs::write(&root_pem, pem::encode(&pem::Pem::new("CERTIFICATE", root.to_vec()))).unwrap();
        let service = Service {
            conduct: Arc::default(),
            ca: Arc::new(ca),
            root: Arc::new(root.to_vec()),
            hosts_roots: InfraRoots::new(trust_domain.clone(), [root.as_ref()]).unwrap().into(),
            issuance: IssuanceService::new(),
        };
        let mut this =
            Self { addr: "127.0.0.1:0".parse().unwrap(), root_pem, service, server: None, _dir: dir };
        this.listen().await;
        this
    }

    pub fn endpoint(&self) -> String {
        format!("https://{}", self.addr)
    }

    pub fn conduct(&self) -> MutexGuard<'_, Conduct> {
        self.service.conduct.lock().unwrap()
    }

    pub fn book(&self) -> MutexGuard<'_, Book> {
        self.service.issuance.book()
    }

    pub fn infra_roots(&self) -> InfraRoots {
        InfraRoots::new(TRUST_DOMAIN.parse().unwrap(), [self.service.root.as_slice()]).unwrap()
    }

    /// The key of the CA that signs hosts' SVIDs.
    pub fn authority(&self) -> [u8; 32] {
        hallmark_core::x509::key_fingerprint(self.service.ca.certificate()).unwrap()
    }

    /// Takes no certificate any more that a host could show.
    pub fn forget_hosts(&self) {
        let key = software_key();
        let arc = OidArc::documentation();
        let trust_domain = TRUST_DOMAIN.parse().unwrap();
        let params = CaParams {
            trust_domain: &trust_domain,
            hierarchy: Hierarchy::Infrastructure,
            lab: false,
            arc: &arc,
            serial: Serial::from_random([3; 16]),
            now: now(),
            lifetime: Duration::from_secs(86_400),
        };
        let other = root(&params, &key).unwrap();
        self.service.hosts_roots.store(InfraRoots::new(trust_domain.clone(), [other.as_ref()]).unwrap());
    }

    /// Says this to every host that is connected.
    pub fn tell(&self, update: wire::host_update::Update) {
        let update = wire::HostUpdate { update: Some(update) };
        self.conduct().hosts.retain(|host| host.try_send(Ok(update.clone())).is_ok());
    }

    /// Ends every link.
    pub fn hang_up(&self) {
        self.conduct().hosts.clear();
    }

    /// Goes away, connections and all.
    pub async fn stop(&mut self) {
        if let Some(server) = self.server.take() {
            server.abort();
            let _ = server.await;
        }
        self.conduct().hosts.clear();
    }

    /// Listens, on the port it had.
    pub async fn listen(&mut self) {
        let socket = tokio::net::TcpSocket::new_v4().unwrap();
        socket.set_reuseaddr(true).unwrap();
        socket.bind(self.addr).unwrap();
        let tcp = socket.listen(64).unwrap();
        self.addr = tcp.local_addr().unwrap();
        let key = KeyPair::generate().unwrap();
        let spki = rcgen::PublicKeyData::subject_public_key_info(&key);
        let subject = Subject::Issuer("issuer-1".parse().unwrap());
        let leaf = self.service.leaf(subject, &spki, 3600);
        let identity = SwappableCert::new();
        let signing = tls::software_key(key.serialized_der()).unwrap();
        identity.set(vec![leaf.der, self.service.ca.certificate().clone()], signing).unwrap();
        let accept = Accept::Hosts(self.service.hosts_roots.clone());
        let config = tls::server_config(identity.clone(), ClientAuth::Optional(accept)).unwrap();
        let listener = Listener::new(tcp, Arc::new(config), identity, ListenerOptions::default());
        let service = self.service.clone();
        // Connections are dropped with the runtime they run in, so that stopping is stopping.
        let incoming = listener.incoming();
        self.server = Some(tokio::spawn(async move {
            let ended = tonic::transport::Server::builder()
                .add_service(HostAttestationServer::new(service.clone()))
                .add_service(HostLinkServer::new(service.clone()))
                .add_service(IssuanceServer::new(service.issuance.clone()))
                .serve_with_incoming(incoming)
                .await;
            ended.unwrap();
        }));
    }
}

impl Service {
    fn leaf(&self, subject: Subject, spki: &[u8], lifetime: i64) -> Leaf {
        let id = SpiffeId::new(TRUST_DOMAIN.parse().unwrap(), subject);
        let params = LeafParams {
            spiffe_id: &id,
            spki_der: spki,
            dns_names: &[],
            serial: Serial::from_random(rand::random()),
            now: now(),
            lifetime: Duration::from_secs(lifetime.unsigned_abs()),
            agent: None,
        };
        self.ca.leaf(&params).unwrap()
    }

    async fn attestation(
        &self,
        mut requests: Streaming<wire::AttestRequest>,
        answers: &mpsc::Sender<Result<wire::AttestResponse, Status>>,
    ) -> Result<wire::HostAttested, Status> {
        let Some(wire::attest_request::Step::Hello(hello)) = requests.message().await?.unwrap().step else {
            return Err(Status::invalid_argument("no hello"));
        };
        let refused = self.conduct.lock().unwrap().refuse.clone();
        if let Some(status) = refused {
            return Err(status);
        }
        self.conduct.lock().unwrap().hellos.push(hello.clone());
        let nonce: [u8; 32] = rand::random();
        let secret: [u8; 32] = rand::random();
        let mut challenge =
            wire::Challenge { nonce: nonce.to_vec().into(), pcrs: (0..8).collect(), ..Default::default() };
        let mut keys = None;
        if let Some(wire::host_hello::Proof::Tpm(tpm)) = &hello.proof {
            let (ek, ak) = (Public::parse(&tpm.ek_public).unwrap(), Public::parse(&tpm.ak_public).unwrap());
            let credential = make_credential(&ek, ak.name(), &secret, &mut rand_core::OsRng).unwrap();
            challenge.credential_blob = credential.id_object.into();
            challenge.encrypted_secret = credential.encrypted_secret.into();
            keys = Some((ek, ak));
        }
        let step = Some(wire::attest_response::Step::Challenge(challenge));
        answers.send(Ok(wire::AttestResponse { step })).await.unwrap();
        let Some(wire::attest_request::Step::Evidence(shown)) = requests.message().await?.unwrap().step
        else {
            return Err(Status::invalid_argument("no evidence"));
        };
        let csr = Csr::parse(&shown.csr).unwrap();
        match (&hello.proof, keys) {
            (Some(wire::host_hello::Proof::JoinToken(token)), _) => {
                let mut conduct = self.conduct.lock().unwrap();
                if conduct.spent.contains(&token.token) {
                    return Err(Status::permission_denied("join-token"));
                }
                conduct.spent.push(token.token.clone());
            }
            (_, Some((ek, ak))) => self.appraise(&shown, &csr, ek, ak, &nonce, &secret)?,
            _ => return Err(Status::invalid_argument("no proof")),
        }
        let mut conduct = self.conduct.lock().unwrap();
        conduct.attested += 1;
        let leaf =
            self.leaf(Subject::Host(hello.host_id.parse().unwrap()), csr.spki_der(), conduct.svid_lifetime);
        Ok(wire::HostAttested {
            host_svid: vec![leaf.der.to_vec().into(), self.ca.certificate().to_vec().into()],
            bundles: Some(super::bundle(1)),
            attest_again_at: 0,
            quote_valid_until: if shown.tpm.is_some() { now() + conduct.quote_age } else { 0 },
            highest_tier: conduct.tier.into(),
            unmet: vec![],
        })
    }

    fn appraise(
        &self,
        shown: &wire::HostEvidence,
        csr: &Csr,
        ek: Public,
        ak: Public,
        nonce: &[u8; 32],
        secret: &[u8],
    ) -> Result<(), Status> {
        let tpm = shown.tpm.as_ref().unwrap();
        let (quote, key) = (tpm.quote.as_ref().unwrap(), tpm.host_key.as_ref().unwrap());
        let pcrs = PcrSelection::new(0..8).unwrap();
        let values = values(quote);
        let evidence = HostEvidence {
            ek: &ek,
            ak: &ak,
            activated_secret: &tpm.activated_secret,
            quote: appraisable(quote, &values),
            host_key: evidence::KeyCertification {
                public: &key.public,
                attest: &key.attest,
                signature: &key.signature,
            },
            csr: &shown.csr,
            csr_spki: csr.spki_der(),
        };
        let expected = Expectation { nonce, secret, pcrs: &pcrs, bound_ek: None, previous_clock: None };
        let appraisal = evidence::appraise_host(&evidence, &expected)
            .map_err(|refusal| Status::permission_denied(refusal.to_string()))?;
        self.conduct.lock().unwrap().ak = Some((ak, appraisal.quote.clock));
        Ok(())
    }

    async fn fresh_quote(
        &self,
        host: &str,
        mut requests: Streaming<wire::RefreshRequest>,
        answers: &mpsc::Sender<Result<wire::RefreshResponse, Status>>,
    ) -> Result<wire::RefreshAccepted, Status> {
        requests.message().await?.unwrap();
        self.conduct.lock().unwrap().quotes_begun += 1;
        let nonce: [u8; 32] = rand::random();
        let challenge = wire::RefreshChallenge { nonce: nonce.to_vec().into(), pcrs: (0..8).collect() };
        let step = Some(wire::refresh_response::Step::Challenge(challenge));
        answers.send(Ok(wire::RefreshResponse { step })).await.unwrap();
        let Some(wire::refresh_request::Step::Quote(quote)) = requests.message().await?.unwrap().step else {
            return Err(Status::invalid_argument("no quote"));
        };
        let gate = self.conduct.lock().unwrap().gate.clone();
        if let Some(gate) = gate {
            gate.acquire().await.unwrap().forget();
        }
        let (ak, clock) = self.conduct.lock().unwrap().ak.clone().unwrap();
        let values = values(&quote);
        let pcrs = PcrSelection::new(0..8).unwrap();
        let quote = appraisable(&quote, &values);
        evidence::appraise_refresh(&quote, &ak, host, &nonce, &pcrs, &clock)
            .map_err(|refusal| Status::permission_denied(refusal.to_string()))?;
        let mut conduct = self.conduct.lock().unwrap();
        conduct.refreshed += 1;
        Ok(wire::RefreshAccepted {
            quote_valid_until: now() + conduct.quote_age,
            highest_tier: "advanced".into(),
            unmet: vec![],
        })
    }
}

fn values(quote: &wire::Quote) -> PcrValues {
    PcrValues::new(quote.pcrs.iter().map(|p| (p.index, p.sha256.as_ref()))).unwrap()
}

fn appraisable<'a>(quote: &'a wire::Quote, values: &'a PcrValues) -> evidence::Quote<'a> {
    evidence::Quote {
        attest: &quote.attest,
        signature: &quote.signature,
        pcrs: values,
        event_log: &quote.event_log,
    }
}

fn peer<T>(request: &Request<T>) -> Result<String, Status> {
    match request.extensions().get::<PeerInfo>().and_then(|peer| peer.spiffe_id.clone()) {
        Some(SpiffeId { subject: Subject::Host(host), .. }) => Ok(host.to_string()),
        _ => Err(Status::unauthenticated("a host SVID is needed")),
    }
}

type Answers<T> = std::pin::Pin<Box<dyn tokio_stream::Stream<Item = Result<T, Status>> + Send>>;

#[tonic::async_trait]
impl HostAttestation for Service {
    type AttestStream = Answers<wire::AttestResponse>;
    type RefreshStream = Answers<wire::RefreshResponse>;

    async fn attest(
        &self,
        request: Request<Streaming<wire::AttestRequest>>,
    ) -> Result<Response<Self::AttestStream>, Status> {
        let (answers, stream) = mpsc::channel(2);
        let this = self.clone();
        self.conduct.lock().unwrap().known.push(peer(&request).is_ok());
        tokio::spawn(async move {
            let last = this.attestation(request.into_inner(), &answers).await;
            let step = |attested| Some(wire::attest_response::Step::Attested(attested));
            let _ = answers.send(last.map(|a| wire::AttestResponse { step: step(a) })).await;
        });
        Ok(Response::new(ReceiverStream::new(stream).boxed()))
    }

    async fn refresh(
        &self,
        request: Request<Streaming<wire::RefreshRequest>>,
    ) -> Result<Response<Self::RefreshStream>, Status> {
        let host = peer(&request)?;
        let (answers, stream) = mpsc::channel(2);
        let this = self.clone();
        tokio::spawn(async move {
            let last = this.fresh_quote(&host, request.into_inner(), &answers).await;
            let step = |accepted| Some(wire::refresh_response::Step::Accepted(accepted));
            let _ = answers.send(last.map(|a| wire::RefreshResponse { step: step(a) })).await;
        });
        Ok(Response::new(ReceiverStream::new(stream).boxed()))
    }
}

#[tonic::async_trait]
impl HostLink for Service {
    type WatchStream = Answers<wire::HostUpdate>;

    async fn watch(
        &self,
        request: Request<wire::WatchRequest>,
    ) -> Result<Response<Self::WatchStream>, Status> {
        peer(&request)?;
        let (updates, stream) = mpsc::channel(16);
        let mut conduct = self.conduct.lock().unwrap();
        if let Some(status) = conduct.refuse_link.clone() {
            return Err(status);
        }
        let registrations =
            wire::RegistrationSet { revision: 1, registrations: conduct.registrations.clone() };
        let first = wire::host_update::Update::Registrations(registrations);
        updates.try_send(Ok(wire::HostUpdate { update: Some(first) })).unwrap();
        conduct.hosts.push(updates);
        conduct.links += 1;
        Ok(Response::new(ReceiverStream::new(stream).boxed()))
    }

    async fn acknowledge(
        &self,
        request: Request<wire::AcknowledgeRequest>,
    ) -> Result<Response<wire::AcknowledgeResponse>, Status> {
        peer(&request)?;
        let wire::AcknowledgeRequest { bundle_revision, infrastructure_revision } = request.into_inner();
        self.conduct.lock().unwrap().acknowledged.push((bundle_revision, infrastructure_revision));
        Ok(Response::new(wire::AcknowledgeResponse {}))
    }
}

fn software_key() -> SoftwareCaKey {
    SoftwareCaKey::from_pkcs8(KeyPair::generate().unwrap().serialized_der()).unwrap()
}

fn now() -> i64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64
}
