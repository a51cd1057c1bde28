//! A witness (c2sp.org/tlog-witness), written from the specifications and from RFC 9162 alone: nothing of it is shared
//! with the code that is tested against it. It can also misbehave.

use std::collections::HashMap;
use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair, UnparsedPublicKey};
use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use http_body_util::{BodyExt, Limited};
use hyper::body::{Body, Bytes, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, LOCATION};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

/// What it does when it is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manner {
    /// What the specification says.
    Honest,
    /// It closes connections without a word.
    Away,
    /// 503
    Busy,
    /// It takes the request, and nothing comes.
    Silent,
    /// The head of an answer, and no end of its body.
    Endless,
    /// The head of an answer, and nothing of its body.
    Stalled,
    /// It points elsewhere.
    Redirects(String),
    /// It cosigns whatever it is shown, and remembers nothing.
    SignsAll,
    /// It cosigns a text of its own making, of the same log.
    SignsAnother,
    /// Its line has its name and key id, and another key's signature.
    Forges,
    /// It gives the lines that another witness would.
    Poses(&'static str, [u8; 32]),
    /// It gives the line that it gave first, ever again.
    Replays,
    /// It gives its line fifty times.
    Repeats,
    /// It says that it is at another size, each time at one more.
    Restless,
}

/// A running witness; it ends with this.
pub struct Witness {
    state: Arc<State>,
    address: SocketAddr,
    ca: String,
    runtime: Option<tokio::runtime::Runtime>,
}

impl Drop for Witness {
    fn drop(&mut self) {
        // It may be within another runtime, where none can be waited for.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

struct State {
    name: String,
    key: Ed25519KeyPair,
    inner: Mutex<Inner>,
}

struct Inner {
    manner: Manner,
    /// Public keys of logs, by origin.
    logs: HashMap<String, [u8; 32]>,
    /// The latest checkpoint of each.
    latest: HashMap<String, (u64, [u8; 32])>,
    first: Option<String>,
    asked: u64,
}

impl Witness {
    /// Listens on a port of its own, over TLS, with this name and secret.
    ///
    /// # Errors
    /// It cannot.
    pub fn start(name: &str, seed: [u8; 32]) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let (ca, acceptor) = tls()?;
        let key = Ed25519KeyPair::from_seed_unchecked(&seed).map_err(|e| anyhow::anyhow!("{e}"))?;
        let inner = Inner {
            manner: Manner::Honest,
            logs: HashMap::new(),
            latest: HashMap::new(),
            first: None,
            asked: 0,
        };
        let state = Arc::new(State { name: name.to_owned(), key, inner: Mutex::new(inner) });
        let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        runtime.spawn(accept(listener, acceptor, state.clone()));
        Ok(Self { state, address, ca, runtime: Some(runtime) })
    }

    /// Has it cosign checkpoints of the log with this verifier key.
    ///
    /// # Errors
    /// It is none.
    pub fn knows(&self, log: &str) -> Result<()> {
        let (name, key) = log.split_once('+').context("no verifier key")?;
        let (_, key) = key.split_once('+').context("no verifier key")?;
        let key = BASE64_STANDARD.decode(key)?;
        let key = key.strip_prefix(&[1]).and_then(|key| key.try_into().ok()).context("no Ed25519 key")?;
        self.state.lock().logs.insert(name.to_owned(), key);
        Ok(())
    }

    /// Its verifier key.
    pub fn key(&self) -> String {
        let id = self.state.id();
        let encoded = [&[4], self.state.key.public_key().as_ref()].concat();
        format!("{}+{}+{}", self.state.name, hex::encode(id), BASE64_STANDARD.encode(encoded))
    }

    /// Its submission prefix.
    pub fn url(&self) -> String {
        format!("https://127.0.0.1:{}/witness", self.address.port())
    }

    /// The root that its server is known by, PEM.
    pub fn ca(&self) -> &str {
        &self.ca
    }

    /// How it answers from here on.
    pub fn behave(&self, manner: Manner) {
        self.state.lock().manner = manner;
    }

    /// Entries at the latest checkpoint of the log that it cosigned.
    pub fn latest(&self, origin: &str) -> u64 {
        self.state.lock().latest.get(origin).map_or(0, |(size, _)| *size)
    }

    /// Has it remember this of a log in place of what it saw; nothing at size 0.
    pub fn remember(&self, origin: &str, size: u64, root: [u8; 32]) {
        let mut inner = self.state.lock();
        match size {
            0 => inner.latest.remove(origin),
            _ => inner.latest.insert(origin.to_owned(), (size, root)),
        };
    }

    /// How often it was asked.
    pub fn asked(&self) -> u64 {
        self.state.lock().asked
    }
}

impl State {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// tlog-cosignature, "Format".
    fn id(&self) -> [u8; 4] {
        let encoded = [self.name.as_bytes(), b"\n\x04", self.key.public_key().as_ref()].concat();
        let digest = Sha256::digest(encoded);
        [digest[0], digest[1], digest[2], digest[3]]
    }

    /// tlog-cosignature, "Ed25519 signed message".
    fn line(&self, text: &str) -> String {
        line(&self.name, self.id(), &self.key, text)
    }
}

fn line(name: &str, id: [u8; 4], key: &Ed25519KeyPair, text: &str) -> String {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let signature = key.sign(format!("cosignature/v1\ntime {now}\n{text}").as_bytes());
    let bytes = [id.as_slice(), &now.to_be_bytes(), signature.as_ref()].concat();
    format!("\u{2014} {name} {}\n", BASE64_STANDARD.encode(bytes))
}

fn tls() -> Result<(String, TlsAcceptor)> {
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::new(Vec::new())?;
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.distinguished_name.push(rcgen::DnType::CommonName, "witness root");
    let root = params.self_signed(&key)?;
    let issuer = rcgen::Issuer::new(params, key);
    let key = rcgen::KeyPair::generate()?;
    let mut params = rcgen::CertificateParams::new(vec!["127.0.0.1".to_owned()])?;
    params.distinguished_name.push(rcgen::DnType::CommonName, "witness");
    let leaf = params.signed_by(&key, &issuer)?;
    let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
    let key = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()));
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(vec![leaf.der().clone()], key)?;
    Ok((root.pem(), TlsAcceptor::from(Arc::new(config))))
}

async fn accept(listener: std::net::TcpListener, acceptor: TlsAcceptor, state: Arc<State>) {
    let Ok(listener) = TcpListener::from_std(listener) else { return };
    while let Ok((stream, _)) = listener.accept().await {
        if state.lock().manner != Manner::Away {
            tokio::spawn(serve(stream, acceptor.clone(), state.clone()));
        }
    }
}

async fn serve(stream: TcpStream, acceptor: TlsAcceptor, state: Arc<State>) {
    let Ok(stream) = acceptor.accept(stream).await else { return };
    let service = service_fn(move |request| answer(request, state.clone()));
    // Whoever asked may be gone.
    let _ = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
}

/// A body that may have no end, or not come.
enum Sent {
    Whole(Option<Bytes>),
    Endless,
    Never,
}

impl Body for Sent {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        match &mut *self {
            Sent::Whole(bytes) => Poll::Ready(bytes.take().map(|bytes| Ok(Frame::data(bytes)))),
            Sent::Endless => Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(&[b'x'; 4096]))))),
            Sent::Never => Poll::Pending,
        }
    }
}

type Answered = Result<Response<Sent>, &'static str>;

fn said(status: StatusCode, kind: &'static str, text: String) -> Answered {
    let body = Sent::Whole(Some(Bytes::from(text)));
    let response = Response::builder().status(status).header(CONTENT_TYPE, kind).body(body);
    response.map_err(|_| "a malformed answer")
}

fn refused(status: StatusCode, why: &str) -> Answered {
    said(status, "text/plain", format!("{why}\n"))
}

fn size(size: u64) -> Answered {
    said(StatusCode::CONFLICT, "text/x.tlog.size", format!("{size}\n"))
}

async fn answer(request: Request<Incoming>, state: Arc<State>) -> Answered {
    let manner = {
        let mut inner = state.lock();
        inner.asked += 1;
        inner.manner.clone()
    };
    if request.method() != Method::POST || request.uri().path() != "/witness/add-checkpoint" {
        return refused(StatusCode::NOT_FOUND, "no such place");
    }
    let body =
        Limited::new(request.into_body(), 1 << 20).collect().await.map_err(|_| "no request")?.to_bytes();
    let body = std::str::from_utf8(&body).map_err(|_| "no text")?;
    match manner {
        Manner::Away => Err("away"),
        Manner::Busy => refused(StatusCode::SERVICE_UNAVAILABLE, "busy"),
        Manner::Silent => std::future::pending().await,
        Manner::Endless => Ok(Response::new(Sent::Endless)),
        Manner::Stalled => Ok(Response::new(Sent::Never)),
        Manner::Redirects(to) => {
            let response = Response::builder().status(StatusCode::TEMPORARY_REDIRECT).header(LOCATION, to);
            response.body(Sent::Whole(None)).map_err(|_| "a malformed answer")
        }
        other => state.decide(body, &other),
    }
}

/// What is asked for.
struct Asked<'a> {
    old: u64,
    proof: Vec<[u8; 32]>,
    /// The note's text, with its last newline.
    text: String,
    origin: &'a str,
    size: u64,
    root: [u8; 32],
    lines: Vec<&'a str>,
}

fn number(text: &str) -> Option<u64> {
    text.parse().ok().filter(|n: &u64| n.to_string() == text)
}

fn hash(text: &str) -> Option<[u8; 32]> {
    BASE64_STANDARD.decode(text).ok()?.try_into().ok()
}

/// tlog-witness, "add-checkpoint"; tlog-checkpoint, "Note text".
fn parse(body: &str) -> Option<Asked<'_>> {
    let (head, note) = body.split_once("\n\n")?;
    let mut head = head.split('\n');
    let old = number(head.next()?.strip_prefix("old ")?)?;
    let proof = head.map(hash).collect::<Option<Vec<_>>>().filter(|proof| proof.len() <= 63)?;
    let (text, signatures) = note.rsplit_once("\n\n")?;
    let mut lines = text.split('\n');
    let (origin, size, root) = (lines.next()?, number(lines.next()?)?, hash(lines.next()?)?);
    let signatures = signatures.strip_suffix('\n')?.split('\n').collect();
    Some(Asked { old, proof, text: format!("{text}\n"), origin, size, root, lines: signatures })
}

/// signed-note, "Ed25519 signatures".
fn signed_by(asked: &Asked<'_>, key: &[u8; 32]) -> bool {
    let digest = Sha256::digest([asked.origin.as_bytes(), b"\n\x01", key].concat());
    asked.lines.iter().any(|line| {
        let Some((name, base64)) = line.strip_prefix("\u{2014} ").and_then(|rest| rest.split_once(' '))
        else {
            return false;
        };
        let bytes = BASE64_STANDARD.decode(base64).unwrap_or_default();
        let Some((id, signature)) = bytes.split_first_chunk::<4>() else { return false };
        name == asked.origin
            && id[..] == digest[..4]
            && UnparsedPublicKey::new(&ED25519, key).verify(asked.text.as_bytes(), signature).is_ok()
    })
}

impl State {
    fn decide(&self, body: &str, manner: &Manner) -> Answered {
        let Some(asked) = parse(body) else { return refused(StatusCode::BAD_REQUEST, "malformed") };
        let mut inner = self.lock();
        match manner {
            Manner::SignsAll => return said(StatusCode::OK, "text/plain", self.line(&asked.text)),
            Manner::Restless => return size(inner.asked % asked.size.max(2)),
            _ => {}
        }
        let Some(key) = inner.logs.get(asked.origin) else {
            return refused(StatusCode::NOT_FOUND, "unknown log");
        };
        if !signed_by(&asked, key) {
            return refused(StatusCode::FORBIDDEN, "not signed by this log's key");
        }
        if asked.old > asked.size {
            return refused(StatusCode::BAD_REQUEST, "old is larger than the checkpoint");
        }
        let (latest, root) = inner.latest.get(asked.origin).copied().unwrap_or_default();
        if asked.old != latest {
            return size(latest);
        }
        if latest == asked.size && latest > 0 && root != asked.root {
            return size(latest);
        }
        if !is_consistent(latest, root, asked.size, asked.root, &asked.proof) {
            return refused(StatusCode::UNPROCESSABLE_ENTITY, "not consistent");
        }
        inner.latest.insert(asked.origin.to_owned(), (asked.size, asked.root));
        let own = self.line(&asked.text);
        let own = match manner {
            Manner::SignsAnother => self.line(&asked.text.replacen(&asked.size.to_string(), "77777", 1)),
            Manner::Forges => {
                let other = Ed25519KeyPair::from_seed_unchecked(&[0xee; 32]).map_err(|_| "no key")?;
                line(&self.name, self.id(), &other, &asked.text)
            }
            Manner::Poses(name, seed) => {
                let key = Ed25519KeyPair::from_seed_unchecked(seed).map_err(|_| "no key")?;
                let digest = Sha256::digest([name.as_bytes(), b"\n\x04", key.public_key().as_ref()].concat());
                line(name, [digest[0], digest[1], digest[2], digest[3]], &key, &asked.text)
            }
            Manner::Replays => inner.first.get_or_insert(own).clone(),
            Manner::Repeats => own.repeat(50),
            _ => own,
        };
        said(StatusCode::OK, "text/plain", own)
    }
}

/// RFC 9162 section 2.1.4.2, to the letter; the empty tree is the beginning of each.
fn is_consistent(
    first: u64,
    first_root: [u8; 32],
    second: u64,
    second_root: [u8; 32],
    proof: &[[u8; 32]],
) -> bool {
    if first == 0 {
        return proof.is_empty();
    }
    if first == second {
        return proof.is_empty() && first_root == second_root;
    }
    let node = |left: &[u8; 32], right: &[u8; 32]| -> [u8; 32] {
        Sha256::digest([&[1], left.as_slice(), right.as_slice()].concat()).into()
    };
    let mut path = proof.to_vec();
    if first.is_power_of_two() {
        path.insert(0, first_root);
    }
    let Some((&start, rest)) = path.split_first() else { return false };
    let (mut fnode, mut snode) = (first - 1, second - 1);
    while fnode & 1 == 1 {
        (fnode, snode) = (fnode >> 1, snode >> 1);
    }
    let (mut fr, mut sr) = (start, start);
    for c in rest {
        if snode == 0 {
            return false;
        }
        if fnode & 1 == 1 || fnode == snode {
            (fr, sr) = (node(c, &fr), node(c, &sr));
            while fnode & 1 == 0 && fnode != 0 {
                (fnode, snode) = (fnode >> 1, snode >> 1);
            }
        } else {
            sr = node(&sr, c);
        }
        (fnode, snode) = (fnode >> 1, snode >> 1);
    }
    fr == first_root && sr == second_root && snode == 0
}
