//! Where a log is read from: a directory, a web server, or the issuer at the admin socket. None of them is believed:
//! what they serve is held against the log's signed checkpoint.

use std::convert::Infallible;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use clap::Args;
use hallmark_core::log::{
    AuditError, Checkpoint, Entries, LogVerifier, MAX_CHECKPOINT, MAX_ENTRY, Quorum, QuorumError, Reader,
    TILE_WIDTH, Trust, WitnessVerifier, audit,
};
use hallmark_proto::admin::admin_client::AdminClient;
use hallmark_proto::admin::{ReadLogRequest, StatusRequest};
use tokio::runtime::Handle;
use tonic::transport::Channel;

use super::web::{self, Limits, Web};
use crate::admin::{connect, failed};
use crate::failure::Failure;

/// Largest bundle of entries.
const MAX_BUNDLE: usize = TILE_WIDTH as usize * (MAX_ENTRY + 2);
/// A full tile.
const MAX_TILE: usize = TILE_WIDTH as usize * 32;

/// Which log.
#[derive(Debug, Clone, Args)]
pub(crate) struct LogArgs {
    /// Where the log's `checkpoint` and `tile` are: a directory, or an address beginning with https:// or http://.
    /// Without it, the issuer at the admin socket is asked
    #[arg(value_name = "DIRECTORY|URL", requires = "key")]
    log: Option<Location>,
    /// The log's verifier key, as `hallmark log key` says it; without it, the issuer's word is taken for it
    #[arg(long, value_name = "KEY")]
    key: Option<LogVerifier>,
    #[command(flatten)]
    witnesses: WitnessArgs,
    #[command(flatten)]
    web: WebArgs,
}

/// Whose cosignatures a checkpoint must have.
#[derive(Debug, Clone, Default, Args)]
pub(crate) struct WitnessArgs {
    /// The verifier key of a witness, each with a --witness of its own: a checkpoint counts only with the cosignatures
    /// of a quorum of them
    #[arg(long, value_name = "KEY")]
    witness: Vec<WitnessVerifier>,
    /// How many of them; without it, all
    #[arg(long, value_name = "N", requires = "witness")]
    quorum: Option<usize>,
}

impl WitnessArgs {
    /// The quorum that is demanded.
    pub(super) fn quorum(&self) -> Result<Quorum, Failure> {
        quorum(&self.witness, self.quorum).map_err(|error| Failure::usage(format!("--witness: {error}")))
    }
}

/// So many of these witnesses, or all; none are demanded where none are given.
pub(super) fn quorum(witnesses: &[WitnessVerifier], needed: Option<usize>) -> Result<Quorum, QuorumError> {
    match (witnesses, needed) {
        ([], None) => Ok(Quorum::none()),
        (witnesses, needed) => Quorum::new(witnesses.to_vec(), needed.unwrap_or(witnesses.len())),
    }
}

/// How a web server is asked.
#[derive(Debug, Clone, Args)]
pub(crate) struct WebArgs {
    /// PEM file: the roots that the log's web server is known by, in place of the system's
    #[arg(long, value_name = "FILE")]
    ca: Option<PathBuf>,
    /// Longest wait for one file
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = humantime::parse_duration)]
    timeout: Duration,
}

/// A place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Location {
    Directory(PathBuf),
    Url(String),
}

impl FromStr for Location {
    type Err = Infallible;

    fn from_str(text: &str) -> Result<Self, Infallible> {
        let is_url = text.starts_with("https://") || text.starts_with("http://");
        Ok(if is_url {
            Self::Url(text.trim_end_matches('/').to_owned())
        } else {
            Self::Directory(PathBuf::from(text))
        })
    }
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Directory(path) => path.display().fmt(f),
            Self::Url(url) => f.write_str(url),
        }
    }
}

/// Whoever has a log's files.
pub(super) trait Source: Send {
    /// Reads one: `checkpoint`, or a path of c2sp.org/tlog-tiles, of at most `most` bytes. The error says why it
    /// cannot be read.
    fn read(&mut self, path: &str, most: usize) -> Result<Vec<u8>, String>;
}

/// A log, where it is read from, and what its checkpoints are verified with.
pub(crate) struct Log {
    source: Box<dyn Source>,
    trust: Trust,
    shown: String,
    remote: bool,
}

impl LogArgs {
    /// Opens the log that is named, or the issuer's.
    pub(super) async fn open(&self, admin: &Path) -> Result<Log, Failure> {
        match (&self.log, &self.key) {
            (Some(location), Some(key)) => self.web.open(location, key.clone(), self.witnesses.quorum()?),
            (Some(_), None) => Err(Failure::usage("--key is missing: a log without its key proves nothing")),
            (None, key) => Log::of_issuer(admin, key.clone(), self.witnesses.quorum()?).await,
        }
    }

    /// Whether the issuer at the admin socket is asked.
    pub(super) fn is_issuers(&self) -> bool {
        self.log.is_none()
    }
}

impl WebArgs {
    pub(super) fn open(&self, location: &Location, log: LogVerifier, quorum: Quorum) -> Result<Log, Failure> {
        let source: Box<dyn Source> = match location {
            Location::Directory(path) => Box::new(Directory(path.clone())),
            Location::Url(url) => {
                let web = Web::new(&web::Trust::of(self.ca.as_deref()), Limits { whole: self.timeout })?;
                Box::new(Server { web, url: url.clone() })
            }
        };
        let remote = matches!(location, Location::Url(_));
        Ok(Log { source, trust: Trust { log, quorum }, shown: location.to_string(), remote })
    }
}

impl Log {
    async fn of_issuer(admin: &Path, key: Option<LogVerifier>, quorum: Quorum) -> Result<Self, Failure> {
        let mut issuer = connect(admin).await?;
        let said = issuer.status(StatusRequest {}).await.map_err(failed)?.into_inner().log_verifier;
        let own =
            || said.parse().map_err(|e| Failure::refused(format!("the issuer's log key {said:?}: {e}")));
        let log = key.map_or_else(own, Ok)?;
        let source = Box::new(Issuer { issuer, runtime: Handle::current() });
        Ok(Self { source, trust: Trust { log, quorum }, shown: admin.display().to_string(), remote: true })
    }

    /// What its checkpoints are verified with.
    pub(super) fn key(&self) -> &LogVerifier {
        &self.trust.log
    }

    /// Whose cosignatures they must have.
    pub(super) fn quorum(&self) -> &Quorum {
        &self.trust.quorum
    }

    /// Where it is, for people.
    pub(super) fn shown(&self) -> &str {
        &self.shown
    }

    /// Whether it is read from a server, which may be away.
    pub(super) fn is_remote(&self) -> bool {
        self.remote
    }

    /// Reads the newest checkpoint.
    pub(super) fn open(&mut self) -> Result<Reader, AuditError> {
        let Self { source, trust, .. } = self;
        Reader::open(&mut served(source), trust)
    }

    /// Reads the newest checkpoint, and shows that it goes on from an earlier one.
    pub(super) fn open_after(&mut self, before: Option<&Checkpoint>) -> Result<Reader, AuditError> {
        let mut reader = self.open()?;
        if let Some(before) = before {
            self.follows(&mut reader, before)?;
        }
        Ok(reader)
    }

    /// Shows that the log goes on from an earlier checkpoint.
    pub(super) fn follows(&mut self, reader: &mut Reader, before: &Checkpoint) -> Result<(), AuditError> {
        reader.follows(&mut served(&mut self.source), before)
    }

    /// The entries of a bundle.
    pub(super) fn bundle(&mut self, reader: &mut Reader, number: u64) -> Result<Vec<Vec<u8>>, AuditError> {
        reader.bundle(&mut served(&mut self.source), number)
    }

    /// Verifies all of it; `until` is told how many entries the checkpoint speaks of.
    pub(super) fn audit(
        &mut self,
        since: Option<&Checkpoint>,
        until: impl Fn(u64),
        entry: &mut Entries<'_>,
    ) -> Result<Checkpoint, AuditError> {
        let Self { source, trust, .. } = self;
        let mut serve = served(source);
        let mut noting = |path: &str| {
            let file = serve(path)?;
            if path == "checkpoint"
                && let Some(size) =
                    std::str::from_utf8(&file).ok().and_then(|note| note.lines().nth(1)?.parse().ok())
            {
                until(size);
            }
            Ok(file)
        };
        audit(&mut noting, trust, since, entry)
    }
}

#[allow(clippy::borrowed_box, reason = "what is borrowed is a field")]
fn served(source: &mut Box<dyn Source>) -> impl FnMut(&str) -> Result<Vec<u8>, String> + '_ {
    |path| source.read(path, largest(path))
}

/// How large what a log serves under a path may be.
fn largest(path: &str) -> usize {
    match path {
        "checkpoint" => MAX_CHECKPOINT,
        path if path.starts_with("tile/entries/") => MAX_BUNDLE,
        _ => MAX_TILE,
    }
}

struct Directory(PathBuf);

impl Source for Directory {
    fn read(&mut self, path: &str, most: usize) -> Result<Vec<u8>, String> {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = File::open(self.0.join(path))?.take(most as u64 + 1);
            let mut content = Vec::new();
            file.read_to_end(&mut content)?;
            Ok(content)
        };
        let content = read().map_err(|error| error.to_string())?;
        if content.len() > most { Err(format!("it has more than {most} bytes")) } else { Ok(content) }
    }
}

struct Server {
    web: Web,
    url: String,
}

impl Source for Server {
    fn read(&mut self, path: &str, most: usize) -> Result<Vec<u8>, String> {
        self.web.get(&format!("{}/{path}", self.url), most)
    }
}

struct Issuer {
    issuer: AdminClient<Channel>,
    runtime: Handle,
}

impl Source for Issuer {
    fn read(&mut self, path: &str, _: usize) -> Result<Vec<u8>, String> {
        let request = ReadLogRequest { path: path.to_owned() };
        let answer = self.runtime.block_on(self.issuer.read_log(request));
        Ok(answer.map_err(|status| failed(status).message)?.into_inner().content.to_vec())
    }
}
