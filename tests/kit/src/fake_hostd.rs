//! A host daemon that says what a test tells it to, on a Unix socket and a thread of its own.

use std::collections::HashMap;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use anyhow::{Context, Result};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use hallmark_proto::agent::agent_identity_server::{AgentIdentity, AgentIdentityServer};
use hallmark_proto::agent::{
    Identity, SignRequest, SignResponse, WatchIdentityRequest, WhoAmIRequest, WhoAmIResponse,
};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::{broadcast, oneshot, watch};
use tokio_stream::wrappers::{BroadcastStream, UnixListenerStream, WatchStream};
use tokio_stream::{Stream, StreamExt};
use tonic::{Request, Response, Status};

/// What the daemon says to whoever watches.
#[derive(Debug, Clone)]
pub enum Says {
    /// Nothing yet: the stream stays open and silent.
    Nothing,
    /// This identity; each further one is a renewal.
    Identity(Box<Identity>),
    /// The stream ends with this status, and new ones are refused with it.
    Status(Status),
}

/// A fake host daemon; it ends with the value.
pub struct FakeHostd {
    _dir: TempDir,
    socket: PathBuf,
    says: watch::Sender<Says>,
    ends: broadcast::Sender<Status>,
    book: Arc<Mutex<Book>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Book {
    /// PKCS#8 of the "hardware" keys, by handle.
    keys: HashMap<Vec<u8>, Vec<u8>>,
    signatures: u64,
    opened: u64,
    busy: u64,
    traceparents: Vec<String>,
    who_am_i: WhoAmIResponse,
}

impl FakeHostd {
    /// Listens in a directory of its own, and says [`Says::Nothing`].
    ///
    /// # Errors
    /// A directory, socket or thread that cannot be made.
    pub fn start() -> Result<Self> {
        let dir = tempfile::Builder::new().prefix("hallmark-hostd-").tempdir()?;
        let socket = dir.path().join("agent.sock");
        let (says, heard) = watch::channel(Says::Nothing);
        let ends = broadcast::channel(8).0;
        let mut fake = Self { _dir: dir, socket, says, ends, book: Arc::default(), stop: None, thread: None };
        fake.listen(heard)?;
        Ok(fake)
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Says this from now on.
    pub fn say(&self, says: Says) {
        self.says.send_replace(says);
    }

    /// Ends the open streams with this status; whoever asks anew hears what was said last.
    pub fn end_streams(&self, status: Status) {
        let _ = self.ends.send(status);
    }

    /// Serves this identity from now on.
    pub fn serve(&self, identity: Identity) {
        self.say(Says::Identity(Box::new(identity)));
    }

    /// Signs for this handle with the P-256 key of this PKCS#8.
    pub fn hold_key(&self, handle: &[u8], pkcs8: &[u8]) {
        self.book().keys.insert(handle.to_vec(), pkcs8.to_vec());
    }

    /// Answers `WhoAmI` with this.
    pub fn who_am_i(&self, answer: WhoAmIResponse) {
        self.book().who_am_i = answer;
    }

    /// How many signatures it has made.
    pub fn signatures(&self) -> u64 {
        self.book().signatures
    }

    /// How many streams of identities were opened so far.
    pub fn opened_streams(&self) -> u64 {
        self.book().opened
    }

    /// The `traceparent` of each call so far, in order; empty where it had none.
    pub fn traceparents(&self) -> Vec<String> {
        self.book().traceparents.clone()
    }

    /// Answers this many requests for signatures with `RESOURCE_EXHAUSTED`.
    pub fn be_busy(&self, times: u64) {
        self.book().busy = times;
    }

    /// How many streams of identities are open.
    pub fn open_streams(&self) -> usize {
        // The sender's own bookkeeping: one receiver of the listening service, one for each stream.
        self.says.receiver_count().saturating_sub(1)
    }

    /// Ends, closes every connection and removes the socket; [`restart`](Self::restart) brings it back.
    pub fn stop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let _ = std::fs::remove_file(&self.socket);
    }

    /// Listens again on the same path, saying what it last said.
    ///
    /// # Errors
    /// A socket or thread that cannot be made.
    pub fn restart(&mut self) -> Result<()> {
        self.stop();
        self.listen(self.says.subscribe())
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn listen(&mut self, heard: watch::Receiver<Says>) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(&self.socket).context("bind the fake agent socket")?
        };
        std::fs::set_permissions(&self.socket, std::fs::Permissions::from_mode(0o660))?;
        let (stop, stopped) = oneshot::channel::<()>();
        let service = Service { heard, ends: self.ends.clone(), book: self.book.clone() };
        let thread = std::thread::Builder::new().name("fake-hostd".into()).spawn(move || {
            runtime.block_on(async {
                let server = tonic::transport::Server::builder()
                    .add_service(AgentIdentityServer::new(service))
                    .serve_with_incoming(UnixListenerStream::new(listener));
                tokio::select! {
                    _ = server => {}
                    _ = stopped => {}
                }
            });
            // Ends the connections too: their tasks live in this runtime.
            drop(runtime);
        })?;
        self.stop = Some(stop);
        self.thread = Some(thread);
        Ok(())
    }
}

impl Drop for FakeHostd {
    fn drop(&mut self) {
        self.stop();
    }
}

struct Service {
    heard: watch::Receiver<Says>,
    ends: broadcast::Sender<Status>,
    book: Arc<Mutex<Book>>,
}

impl Service {
    fn note_trace<T>(&self, request: &Request<T>) {
        let value = request.metadata().get("traceparent").and_then(|value| value.to_str().ok());
        self.book().traceparents.push(value.unwrap_or_default().to_owned());
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[tonic::async_trait]
impl AgentIdentity for Service {
    type WatchIdentityStream = Pin<Box<dyn Stream<Item = Result<Identity, Status>> + Send>>;

    async fn watch_identity(
        &self,
        request: Request<WatchIdentityRequest>,
    ) -> Result<Response<Self::WatchIdentityStream>, Status> {
        if let Says::Status(status) = &*self.heard.borrow() {
            return Err(status.clone());
        }
        self.note_trace(&request);
        self.book().opened += 1;
        let stream = WatchStream::new(self.heard.clone()).filter_map(|says| match says {
            Says::Nothing => None,
            Says::Identity(identity) => Some(Ok(*identity)),
            Says::Status(status) => Some(Err(status)),
        });
        let ends = BroadcastStream::new(self.ends.subscribe()).filter_map(|end| end.ok().map(Err));
        Ok(Response::new(Box::pin(stream.merge(ends))))
    }

    async fn sign(&self, request: Request<SignRequest>) -> Result<Response<SignResponse>, Status> {
        self.note_trace(&request);
        let SignRequest { key_handle, digest } = request.into_inner();
        let mut book = self.book();
        if book.busy > 0 {
            book.busy -= 1;
            return Err(Status::resource_exhausted("too many signatures asked for"));
        }
        let pkcs8 =
            book.keys.get(key_handle.as_ref()).ok_or_else(|| Status::permission_denied("no such key"))?;
        let signature = sign_digest(pkcs8, &digest).map_err(|error| Status::internal(error.to_string()))?;
        book.signatures += 1;
        Ok(Response::new(SignResponse { signature: signature.into() }))
    }

    async fn who_am_i(&self, request: Request<WhoAmIRequest>) -> Result<Response<WhoAmIResponse>, Status> {
        self.note_trace(&request);
        Ok(Response::new(self.book().who_am_i.clone()))
    }
}

/// Signs a digest rather than a message, as hardware does.
fn sign_digest(pkcs8: &[u8], digest: &[u8]) -> Result<Vec<u8>> {
    let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, pkcs8)?;
    let digest = aws_lc_rs::digest::Digest::import_less_safe(digest, &aws_lc_rs::digest::SHA256)?;
    Ok(key.sign_digest(&digest)?.as_ref().to_vec())
}
