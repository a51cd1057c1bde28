//! Logs in directories, web servers that are honest or not, and receivers of events.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use hallmark_core::log::{
    Checkpoint, LogKey, LogVerifier, SoftwareLogKey, Tree, bundle, bundle_path, leaf_hash, sign_checkpoint,
};

/// A log that a test makes.
#[derive(Clone)]
pub struct TestLog {
    seed: u8,
    name: String,
    pub entries: Vec<Vec<u8>>,
}

impl TestLog {
    pub fn new(name: &str, seed: u8) -> Self {
        Self { seed, name: name.to_owned(), entries: Vec::new() }
    }

    fn key(&self) -> SoftwareLogKey {
        SoftwareLogKey::from_seed(&[self.seed; 32]).unwrap()
    }

    pub fn verifier(&self) -> LogVerifier {
        LogVerifier::new(self.name.parse().unwrap(), self.key().public())
    }

    pub fn push(&mut self, entry: impl Into<Vec<u8>>) -> &mut Self {
        self.entries.push(entry.into());
        self
    }

    /// So many certificates of agents.
    pub fn grow(&mut self, count: usize) -> &mut Self {
        for _ in 0..count {
            let n = self.entries.len();
            self.push(svid(n, &format!("agent-{}", n % 5), "web-01", "team@example.org"));
        }
        self
    }

    /// All files, by path.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        let (mut tree, mut files) = (Tree::new(), BTreeMap::new());
        for (number, entries) in self.entries.chunks(256).enumerate() {
            let bundle = bundle(entries.iter().map(Vec::as_slice)).unwrap();
            files.insert(bundle_path(number as u64, entries.len() as u16), bundle);
            for entry in entries {
                let full = tree.append(leaf_hash(entry));
                files.extend(full.into_iter().map(|tile| (tile.id.path(256), tile.hashes)));
            }
        }
        for (id, hashes) in (0..tree.levels()).filter_map(|level| tree.partial(level)) {
            files.insert(id.path(id.width_in(tree.size())), hashes.to_vec());
        }
        let checkpoint = Checkpoint { size: tree.size(), root: tree.root() };
        files.insert(
            "checkpoint".to_owned(),
            sign_checkpoint(&self.verifier(), &self.key(), &checkpoint).unwrap(),
        );
        files
    }

    /// Writes it as an issuer does: the checkpoint last, and at once.
    pub fn write(&self, dir: &Path) {
        let mut files = self.files();
        let checkpoint = files.remove("checkpoint").unwrap();
        std::fs::create_dir_all(dir).unwrap();
        for (path, content) in files {
            let path = dir.join(path);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, content).unwrap();
        }
        std::fs::write(dir.join("checkpoint.new"), checkpoint).unwrap();
        std::fs::rename(dir.join("checkpoint.new"), dir.join("checkpoint")).unwrap();
    }
}

pub fn svid(n: usize, agent: &str, host: &str, owner: &str) -> String {
    let at = hallmark_kit::pki::unix_now();
    format!(
        r#"{{"v":1,"at":{at},"kind":"svid","outcome":"issued","host":"{host}","agent":"{agent}","instance":"{n:032x}","owner":"{owner}","tier":"enterprise","custody":"software","serial":"4{n:031x}","not_after":{}}}"#,
        at + 600
    )
}

/// How long something may take that is sure to come.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A process that is killed with the value, as a machine kills it that loses its power.
pub struct Running(pub Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The lines of a program, as they come.
pub fn lines(from: impl Read + Send + 'static) -> mpsc::Receiver<String> {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || {
        for line in BufReader::new(from).lines().map_while(Result::ok) {
            if tell.send(line).is_err() {
                return;
            }
        }
    });
    told
}

/// Waits until something is so; a test's end if it never is.
pub fn until<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let begun = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(begun.elapsed() < PATIENCE, "never: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A server of one's own making: `handle` has each connection to itself.
pub struct Server {
    pub address: SocketAddr,
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    pub fn start(handle: impl FnMut(TcpStream) + Send + 'static) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        Self::on(listener, handle)
    }

    pub fn on(listener: TcpListener, mut handle: impl FnMut(TcpStream) + Send + 'static) -> Self {
        let address = listener.local_addr().unwrap();
        let stop: Arc<AtomicBool> = Arc::default();
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || {
            for stream in listener.incoming() {
                if stopped.load(Ordering::SeqCst) {
                    return;
                }
                handle(stream.unwrap());
            }
        });
        Self { address, stop, thread: Some(thread) }
    }

    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// A request as it came.
#[derive(Debug, Clone, Default)]
pub struct Asked {
    pub method: String,
    pub path: String,
    pub headers: BTreeMap<String, String>,
    pub body: Vec<u8>,
}

/// Reads one request.
pub fn request(stream: &TcpStream) -> Option<Asked> {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut line = String::new();
    reader.read_line(&mut line).ok()?;
    let mut words = line.split_whitespace();
    let mut asked =
        Asked { method: words.next()?.to_owned(), path: words.next()?.to_owned(), ..Asked::default() };
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(": ") else { break };
        asked.headers.insert(name.to_ascii_lowercase(), value.to_owned());
    }
    let length = asked.headers.get("content-length").map_or(0, |length| length.parse().unwrap());
    asked.body = vec![0; length];
    reader.read_exact(&mut asked.body).ok()?;
    Some(asked)
}

pub fn answer(mut stream: &TcpStream, status: &str, body: &[u8]) {
    let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
    let _ = stream.write_all(head.as_bytes());
    let _ = stream.write_all(body);
}

/// A web server with these files, which can be changed.
pub struct Web {
    pub files: Arc<Mutex<BTreeMap<String, Vec<u8>>>>,
    server: Server,
}

impl Web {
    pub fn start(files: BTreeMap<String, Vec<u8>>) -> Self {
        let files = Arc::new(Mutex::new(files));
        let served = files.clone();
        let server = Server::start(move |stream| {
            let Some(asked) = request(&stream) else { return };
            match served.lock().unwrap().get(asked.path.trim_start_matches('/')) {
                Some(file) => answer(&stream, "200 OK", file),
                None => answer(&stream, "404 Not Found", b"no such file"),
            }
        });
        Self { files, server }
    }

    pub fn url(&self) -> String {
        self.server.url()
    }
}

/// Reads frames of RFC 6587, octet counting.
pub fn frames(mut bytes: &[u8]) -> Vec<String> {
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        let space = bytes.iter().position(|byte| *byte == b' ').expect("a length");
        let length: usize = std::str::from_utf8(&bytes[..space]).unwrap().parse().unwrap();
        let message = &bytes[space + 1..space + 1 + length];
        messages.push(String::from_utf8(message.to_vec()).unwrap());
        bytes = &bytes[space + 1 + length..];
    }
    messages
}

/// The index that an event in JSON names.
pub fn index(message: &str) -> u64 {
    let (_, json) =
        message.split_once(" - {").map_or(("", message.to_owned()), |(h, j)| (h, format!("{{{j}")));
    let json: serde_json::Value = serde_json::from_str(&json).unwrap();
    json["index"].as_u64().unwrap()
}
