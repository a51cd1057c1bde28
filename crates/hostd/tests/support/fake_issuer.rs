//! An issuer that certifies whatever it is told to, and remembers what it was asked.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hallmark_proto::issuer as wire;
use hallmark_proto::issuer::issuance_server::{Issuance, IssuanceServer};
use rcgen::{CertificateParams, CertificateSigningRequestParams, DnType, IsCa, Issuer, KeyPair};
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

#[derive(Default)]
pub struct Book {
    pub items: Vec<wire::IssueItem>,
    pub calls: Vec<usize>,
    pub retired: Vec<(Vec<u8>, String)>,
    /// Every item is refused with this, while it is there.
    pub refuse: Option<wire::Refused>,
    /// Every call fails, while this is there.
    pub fail: Option<tonic::Code>,
    /// Lifetime of what is issued.
    pub lifetime: i64,
    /// How long each call takes.
    pub delay: Duration,
    serial: u64,
}

pub struct FakeIssuer {
    pub socket: PathBuf,
    book: Arc<Mutex<Book>>,
    server: tokio::task::JoinHandle<()>,
}

impl FakeIssuer {
    pub async fn start(socket: PathBuf) -> Self {
        let listener = UnixListener::bind(&socket).unwrap();
        let issuance = IssuanceService::new();
        let book = issuance.book.clone();
        let service = IssuanceServer::new(issuance);
        let server = tokio::spawn(async move {
            tonic::transport::Server::builder()
                .add_service(service)
                .serve_with_incoming(UnixListenerStream::new(listener))
                .await
                .unwrap();
        });
        Self { socket, book, server }
    }

    pub fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }

    pub fn retired(&self, instance: &[u8]) -> Option<String> {
        self.book().retired.iter().find(|(i, _)| i == instance).map(|(_, why)| why.clone())
    }
}

impl Drop for FakeIssuer {
    fn drop(&mut self) {
        self.server.abort();
    }
}

fn ca() -> Issuer<'static, KeyPair> {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(rcgen::BasicConstraints::Constrained(0));
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, "fake issuing CA");
    Issuer::new(params, KeyPair::generate().unwrap())
}

#[derive(Clone)]
pub struct IssuanceService {
    book: Arc<Mutex<Book>>,
    ca: Arc<Issuer<'static, KeyPair>>,
}

impl IssuanceService {
    pub fn new() -> Self {
        let book = Book { lifetime: 900, ..Book::default() };
        Self { book: Arc::new(Mutex::new(book)), ca: Arc::new(ca()) }
    }

    pub fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap()
    }

    fn one(&self, item: wire::IssueItem) -> wire::IssueResult {
        let mut book = self.book.lock().unwrap();
        book.items.push(item.clone());
        if let Some(refused) = book.refuse.clone() {
            return wire::IssueResult { outcome: Some(wire::issue_result::Outcome::Refused(refused)) };
        }
        book.serial += 1;
        let request = CertificateSigningRequestParams::from_der(&item.csr.to_vec().into()).unwrap();
        let leaf = request.signed_by(&self.ca).unwrap();
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs() as i64;
        let (tier, custody) = match item.key.unwrap() {
            wire::issue_item::Key::Software(_) => ("foundation", "software"),
            wire::issue_item::Key::Tpm(_) => ("advanced", "tpm-certified"),
            wire::issue_item::Key::Pkcs11(_) => ("advanced", "pkcs11-asserted"),
        };
        let issued = wire::Issued {
            chain: vec![leaf.der().to_vec().into()],
            tier: tier.into(),
            custody: custody.into(),
            spiffe_id: format!("spiffe://example.org/agent/{}", item.agent),
            not_before: now - 30,
            not_after: now + book.lifetime,
            serial: book.serial.to_be_bytes().to_vec().into(),
            record: book.serial,
        };
        wire::IssueResult { outcome: Some(wire::issue_result::Outcome::Issued(issued)) }
    }
}

#[tonic::async_trait]
impl Issuance for IssuanceService {
    async fn issue(
        &self,
        request: Request<wire::IssueRequest>,
    ) -> Result<Response<wire::IssueResponse>, Status> {
        let items = request.into_inner().items;
        let (fail, delay) = {
            let mut book = self.book.lock().unwrap();
            book.calls.push(items.len());
            (book.fail, book.delay)
        };
        tokio::time::sleep(delay).await;
        if let Some(code) = fail {
            return Err(Status::new(code, "as told"));
        }
        let results = items.into_iter().map(|item| self.one(item)).collect();
        Ok(Response::new(wire::IssueResponse { results }))
    }

    async fn retire(
        &self,
        request: Request<wire::RetireRequest>,
    ) -> Result<Response<wire::RetireResponse>, Status> {
        let request = request.into_inner();
        let mut book = self.book.lock().unwrap();
        let ends = request.instance_ids.iter().map(|id| (id.to_vec(), request.reason.clone()));
        book.retired.extend(ends);
        Ok(Response::new(wire::RetireResponse {}))
    }
}
