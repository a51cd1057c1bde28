//! What a stranger on the network, or a local user at the admin socket, can hold or fill at a real issuer:
//! many connections, none that speaks, slow bodies, large declarations, all attestations.

use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context as TaskContext, Poll};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hallmark_core::x509::InfraRoots;
use hallmark_e2e::{Bed, BedOptions, Rogue, csr, join_token, wait_until};
use hallmark_proto::admin::StatusRequest;
use hallmark_proto::admin::admin_client::AdminClient;
use hallmark_proto::issuer as wire;
use hallmark_proto::tls::{self, Accept, Shared};
use hyper::body::{Body as HttpBody, Frame};
use hyper_util::rt::TokioIo;
use rustls_pki_types::ServerName;
use tokio::io::AsyncReadExt;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::body::Body;
use tonic::codegen::{Bytes, Service};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status};

const ATTEST: &str = "/hallmark.issuer.v1.HostAttestation/Attest";
const ISSUE: &str = "/hallmark.issuer.v1.Issuance/Issue";
/// Every other method, and what is none.
const OTHERS: [&str; 7] = [
    "/hallmark.issuer.v1.HostAttestation/Refresh",
    ISSUE,
    "/hallmark.issuer.v1.Issuance/Retire",
    "/hallmark.issuer.v1.HostLink/Watch",
    "/grpc.health.v1.Health/Check",
    "/hallmark.issuer.v1.HostAttestation/attest",
    "/nothing",
];
/// Longest wait for what must come by itself.
const PATIENCE: Duration = Duration::from_secs(60);

fn bed(limits: &str) -> Result<Bed> {
    Bed::start(BedOptions { dev: true, extra: format!("[limits]\n{limits}"), ..BedOptions::default() })
}

/// A body that has these bytes and then goes on as it is told; it counts what was taken of it.
struct Sending {
    first: Option<Bytes>,
    then: Then,
    taken: Arc<AtomicUsize>,
}

#[derive(Clone, Copy)]
enum Then {
    /// Nothing more, and no end.
    Silence,
    /// So many bytes, and then silence.
    Zeros(usize),
}

impl HttpBody for Sending {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut TaskContext<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        const CHUNK: usize = 16 << 10;
        let data = match (self.first.take(), self.then) {
            (Some(first), _) => first,
            (None, Then::Zeros(left)) if left > 0 => {
                self.then = Then::Zeros(left.saturating_sub(CHUNK));
                Bytes::from(vec![0; left.min(CHUNK)])
            }
            (None, _) => return Poll::Pending,
        };
        self.taken.fetch_add(data.len(), Ordering::Relaxed);
        Poll::Ready(Some(Ok(Frame::data(data))))
    }
}

/// The prefix of a message that is declared to be so long.
fn declared(length: u32) -> Vec<u8> {
    [&[0], length.to_be_bytes().as_slice()].concat()
}

/// Calls a method with a body that does not end; the status, and how much of the body was taken.
async fn call(channel: &Channel, path: &str, first: Vec<u8>, then: Then) -> Result<(Status, usize)> {
    let taken = Arc::new(AtomicUsize::new(0));
    let status = call_and_count(channel, path, first, then, &taken).await?;
    Ok((status, taken.load(Ordering::Relaxed)))
}

/// As [`call`]; how much was taken can be looked at in the meantime.
async fn call_and_count(
    channel: &Channel,
    path: &str,
    first: Vec<u8>,
    then: Then,
    taken: &Arc<AtomicUsize>,
) -> Result<Status> {
    let body = Sending { first: Some(first.into()), then, taken: taken.clone() };
    let request = http::Request::post(format!("https://issuer{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Body::new(body))?;
    let mut channel = channel.clone();
    let answered = async {
        tower::ServiceExt::<http::Request<Body>>::ready(&mut channel).await?;
        let response = channel.call(request).await?;
        if let Some(status) = Status::from_header_map(response.headers()) {
            return anyhow::Ok(status);
        }
        let mut body = response.into_body();
        loop {
            let frame = std::future::poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
            let frame = frame.context("the answer ended without a status")??;
            if let Some(status) = frame.trailers_ref().and_then(Status::from_header_map) {
                return Ok(status);
            }
        }
    };
    tokio::time::timeout(PATIENCE, answered).await.context("no answer")?
}

fn address(bed: &Bed) -> Result<SocketAddr> {
    Ok(bed.endpoint().trim_start_matches("https://").parse()?)
}

/// A stranger's TLS connection on which nothing is said.
async fn silent(bed: &Bed) -> Result<TlsStream<tokio::net::TcpStream>> {
    let root = pem::parse(std::fs::read(bed.infrastructure_root())?)?;
    let roots = InfraRoots::new(bed.trust_domain().parse()?, [root.contents()])?;
    let config = tls::client_config(Accept::Issuers(Shared::new(roots)), None)?;
    let socket = tokio::net::TcpStream::connect(address(bed)?).await?;
    let name = ServerName::try_from("127.0.0.1")?;
    Ok(TlsConnector::from(Arc::new(config)).connect(name, socket).await?)
}

/// Waits until the issuer has closed a connection; whatever it says before is passed over.
async fn closed(stream: &mut TlsStream<tokio::net::TcpStream>) -> Result<()> {
    let mut bytes = [0; 1024];
    let read_all = async { while stream.read(&mut bytes).await.is_ok_and(|n| n > 0) {} };
    tokio::time::timeout(PATIENCE, read_all).await.context("the connection was never closed")
}

/// A hello with a join token that was made for this host, as one who stole it would say it: it brings a challenge.
fn hello(bed: &Bed, host: &str) -> Result<wire::HostHello> {
    let proof = wire::host_hello::Proof::JoinToken(wire::JoinToken { token: join_token(bed, host)? });
    Ok(wire::HostHello { host_id: host.to_owned(), proof: Some(proof), version: String::new() })
}

async fn issues(host: &Rogue, channel: Channel) -> Result<()> {
    let mut client = wire::issuance_client::IssuanceClient::new(channel);
    let csr = csr(&host.key, None);
    let item = wire::IssueItem { agent: "nobody".to_owned(), csr: csr.into(), ..Default::default() };
    let results = client.issue(wire::IssueRequest { items: vec![item] }).await?.into_inner().results;
    ensure!(results.len() == 1, "{results:?}");
    Ok(())
}

fn resident_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("status"))?;
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).context("no VmRSS")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_strangers_request_is_refused_before_its_body_is_read() -> Result<()> {
    let bed = bed("")?;
    for path in OTHERS {
        let stranger = Rogue::new(&bed)?;
        let (status, _) = call(&stranger.channel, path, declared(8 << 20), Then::Silence).await?;
        assert_eq!(status.code(), Code::Unauthenticated, "{path}: {status:?}");
        // What flow control lets through unasked, and not a byte more.
        let (status, taken) = call(&stranger.channel, path, declared(7 << 20), Then::Zeros(7 << 20)).await?;
        assert_eq!(status.code(), Code::Unauthenticated, "{path}: {status:?}");
        assert!(taken < 1 << 20, "{path}: {taken} bytes were taken");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn many_strangers_with_many_streams_fill_little() -> Result<()> {
    let mut bed = bed("connections_per_address = 256\n")?;
    let host = Rogue::joined(&bed, "host-1").await?;
    issues(&host, host.channel.clone()).await?;
    let pid = bed.issuer()?.pid();
    let before = resident_kib(pid)?;
    let strangers = (0..150).map(|_| Rogue::new(&bed)).collect::<Result<Vec<_>>>()?;
    let calls = strangers.iter().flat_map(|stranger| {
        [ISSUE, ISSUE, ATTEST, ATTEST].map(|path| {
            let channel = stranger.channel.clone();
            tokio::spawn(async move { call(&channel, path, declared(60 << 10), Then::Zeros(50 << 10)).await })
        })
    });
    let calls: Vec<_> = calls.collect();
    // The attestations that are let in wait for the rest of the hello: a host is served meanwhile.
    issues(&host, host.connection(&bed)?).await?;
    let mut codes = Vec::new();
    for call in calls {
        codes.push(call.await??.0.code());
    }
    let after = resident_kib(pid)?;
    println!("resident: {before} KiB before, {after} KiB after");
    assert_eq!(codes.iter().filter(|code| **code == Code::Unauthenticated).count(), 300);
    assert!(codes.contains(&Code::ResourceExhausted), "{codes:?}");
    // 150 connections, each with its TLS and HTTP/2 buffers and one window.
    assert!(after < before + 48 * 1024, "grew from {before} to {after} KiB");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hello_declared_too_large_is_refused_by_its_prefix() -> Result<()> {
    let bed = bed("attestation_timeout = \"10m\"\n")?;
    for length in [65 << 10, 3 << 20, u32::MAX] {
        let stranger = Rogue::new(&bed)?;
        let (status, taken) = call(&stranger.channel, ATTEST, declared(length), Then::Silence).await?;
        assert!(status.message().contains("the first message is too large"), "{length}: {status:?}");
        assert_eq!(taken, 5);
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn one_address_holds_no_more_bytes_than_its_share() -> Result<()> {
    // A quarter of it is one evidence and a third.
    let bed = bed("max_stranger_bytes = 16777216\nattestation_timeout = \"10m\"\n")?;
    let large = || wire::HostEvidence { csr: vec![0; 3 << 20].into(), tpm: None };
    // Hello and most of the evidence, which never ends.
    let body = |host| anyhow::Ok([framed(&hello(&bed, host)?), declared(3 << 20)].concat());
    let rest = (3 << 20) - 1;
    let (stranger, taken) = (Rogue::new(&bed)?, Arc::new(AtomicUsize::new(0)));
    let (first, counted) = (body("host-0")?, taken.clone());
    let waiting = tokio::spawn(async move {
        call_and_count(&stranger.channel, ATTEST, first, Then::Zeros(rest), &counted).await
    });
    let all_taken = async {
        while taken.load(Ordering::Relaxed) < rest {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all_taken).await.context("it was not taken")?;
    // A second would be over the share: it is cut off, the first waits for ever.
    let another = Rogue::new(&bed)?;
    let (status, _) = call(&another.channel, ATTEST, body("host-1")?, Then::Zeros(rest)).await?;
    assert!(status.message().contains("too many bytes are in flight"), "{status:?}");
    assert!(!waiting.is_finished());
    // A host that shows its certificate is counted apart.
    let known = Rogue::joined(&bed, "host-9").await?;
    let mut client = wire::host_attestation_client::HostAttestationClient::new(known.connection(&bed)?);
    let steps = [
        wire::attest_request::Step::Hello(hello(&bed, "host-9")?),
        wire::attest_request::Step::Evidence(wire::HostEvidence { csr: vec![0; 2 << 20].into(), ..large() }),
    ];
    let requests = tokio_stream::iter(steps.map(|step| wire::AttestRequest { step: Some(step) }));
    let mut answers = client.attest(requests).await?.into_inner();
    answers.message().await?.context("no challenge")?;
    let judged = answers.message().await.err().context("it was taken")?;
    assert!(judged.message().contains("csr"), "read whole, and judged: {judged:?}");
    waiting.abort();
    Ok(())
}

/// A hello as it goes over the wire, with its prefix.
fn framed(hello: &wire::HostHello) -> Vec<u8> {
    use prost::Message;
    let step = Some(wire::attest_request::Step::Hello(hello.clone()));
    let message = wire::AttestRequest { step }.encode_to_vec();
    [declared(u32::try_from(message.len()).unwrap_or(u32::MAX)), message].concat()
}

#[tokio::test(flavor = "multi_thread")]
async fn handshakes_that_stand_still_keep_nobody_out() -> Result<()> {
    // Their own time would be up after a minute: it is not what lets the host in.
    let bed = bed("handshake_timeout = \"60s\"\nconnections_per_address = 80\n")?;
    let port = address(&bed)?.port();
    let token = join_token(&bed, "host-1")?;
    let mut silent = Vec::new();
    for n in 2..=7 {
        // Other addresses of the loopback network, as many clients would have.
        for _ in 0..60 {
            let socket = socket_from(Ipv4Addr::new(127, 0, 0, n))?;
            rustix::net::connect(&socket, &SocketAddr::from((Ipv4Addr::LOCALHOST, port)))?;
            silent.push(TcpStream::from(socket));
        }
    }
    let mut host = Rogue::new(&bed)?;
    let joining = async {
        loop {
            match host.join("host-1", &token).await {
                Ok(_) => return anyhow::Ok(()),
                Err(status) if status.code() == Code::Unavailable => {}
                Err(status) => return Err(status.into()),
            }
        }
    };
    tokio::time::timeout(PATIENCE / 2, joining).await.context("the host did not get in")??;
    // Room was made by ending some of those that stood still.
    let ended = silent
        .iter_mut()
        .any(|socket| socket.set_nonblocking(true).is_ok() && socket.read(&mut [0]).is_ok_and(|n| n == 0));
    assert!(ended, "none was ended");
    Ok(())
}

fn socket_from(address: Ipv4Addr) -> Result<std::os::fd::OwnedFd> {
    use rustix::net::{AddressFamily, SocketType, bind, socket};
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None)?;
    bind(&socket, &SocketAddr::from((address, 0)))?;
    Ok(socket)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_handshake_ends() -> Result<()> {
    let bed = bed("handshake_timeout = \"1s\"\nstranger_idle = \"10m\"\n")?;
    let mut socket = TcpStream::connect(address(&bed)?)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    // A record's beginning, and no more.
    std::io::Write::write_all(&mut socket, &[22, 3, 1])?;
    let mut rest = Vec::new();
    // An alert or a reset is as good an end.
    if let Err(error) = socket.read_to_end(&mut rest) {
        ensure!(error.kind() == std::io::ErrorKind::ConnectionReset, "{error}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_on_which_nothing_is_asked_ends_and_a_hosts_does_not() -> Result<()> {
    let bed = bed("stranger_idle = \"1s\"\n")?;
    let host = Rogue::joined(&bed, "host-1").await?;
    issues(&host, host.channel.clone()).await?;
    let link = wire::host_link_client::HostLinkClient::new(host.channel.clone())
        .watch(wire::WatchRequest::default())
        .await?;
    let mut stranger = silent(&bed).await?;
    closed(&mut stranger).await?;
    // Refused requests do not keep one open.
    let busy = Rogue::new(&bed)?;
    let mut refused = 0;
    let over = async {
        loop {
            let (status, _) = call(&busy.channel, ISSUE, declared(10), Then::Silence).await?;
            refused += 1;
            ensure!(status.code() == Code::Unauthenticated, "{status:?}");
        }
    };
    let over: Result<Result<()>, _> = tokio::time::timeout(PATIENCE, over).await;
    assert!(over.context("it stayed open")?.is_err() && refused > 0);
    let mut updates = link.into_inner();
    updates.message().await?.context("the host's stream is over")?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_house_lets_a_host_in_and_a_stranger_go() -> Result<()> {
    let bed = bed("max_connections = 8\nmax_strangers = 4\nstranger_idle = \"10m\"\n")?;
    let host = Rogue::joined(&bed, "host-1").await?;
    issues(&host, host.channel.clone()).await?;
    let mut strangers = Vec::new();
    for _ in 0..3 {
        strangers.push(silent(&bed).await?);
    }
    // Each is a connection of its own; the house is full, and goes on letting hosts in.
    let mut connections = Vec::new();
    for _ in 0..7 {
        let connection = host.connection(&bed)?;
        let asking = async { while issues(&host, connection.clone()).await.is_err() {} };
        tokio::time::timeout(PATIENCE, asking).await.context("the host did not get in")?;
        connections.push(connection);
    }
    for stranger in &mut strangers {
        closed(stranger).await?;
    }
    issues(&host, host.channel.clone()).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn all_attestations_taken_by_strangers_and_a_host_attests_again() -> Result<()> {
    let limits = "max_attestations = 4\nreserved_attestations = 1\nattestations_per_address = 3\n\
                  attestation_timeout = \"8s\"\n";
    let bed = bed(limits)?;
    let host = Rogue::joined(&bed, "host-1").await?;
    let strangers = (0..4).map(|_| Rogue::new(&bed)).collect::<Result<Vec<_>>>()?;
    let mut held = Vec::new();
    for stranger in &strangers[..3] {
        held.push(stranger.challenged(hello(&bed, "host-2")?).await?);
    }
    let refused =
        strangers[3].challenged(hello(&bed, "host-2")?).await.err().context("a fourth was let in")?;
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");

    // The host comes from the same address; its certificate is what tells it apart.
    host.challenged(hello(&bed, "host-1")?).await?;
    issues(&host, host.channel.clone()).await?;

    // Nobody answers the challenges: the places come back by themselves.
    let asking = hello(&bed, "host-2")?;
    let again = async {
        loop {
            match strangers[3].challenged(asking.clone()).await {
                Err(status) if status.code() == Code::ResourceExhausted => {}
                other => return other.map(drop),
            }
            // Not without a pause: HTTP/2 ends a connection that makes a thousand refused requests.
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, again).await.context("no place came back")??;
    // It is that of the first.
    let first = held.swap_remove(0);
    let late = first.show(wire::HostEvidence::default()).await.err().context("it was too late")?;
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late:?}");
    let records = bed.hallmark_ok(&["records", "--limit", "100", "--output", "json"])?;
    assert!(records.contains("\"deadline: "), "no record of it: {records}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_begin_so_many_attestations_a_minute() -> Result<()> {
    let bed = bed("address_attestations_per_minute = 3\n")?;
    let host = Rogue::joined(&bed, "host-1").await?;
    for _ in 0..2 {
        Rogue::new(&bed)?.challenged(hello(&bed, "host-2")?).await?;
    }
    let refused = Rogue::new(&bed)?.challenged(hello(&bed, "host-2")?).await.err().context("a fourth")?;
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    host.challenged(hello(&bed, "host-1")?).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hosts_body_that_does_not_come_ends() -> Result<()> {
    let bed = bed("request_timeout = \"1s\"\n")?;
    let host = Rogue::joined(&bed, "host-1").await?;
    let (status, _) = call(&host.channel, ISSUE, declared(1000), Then::Silence).await?;
    assert_eq!(status.code(), Code::DeadlineExceeded, "{status:?}");
    issues(&host, host.channel.clone()).await
}

/// A connection to a Unix socket made by another user.
fn connect_as(uid: u32, path: &Path) -> Result<Channel> {
    let path = path.to_owned();
    // The identity is the thread's alone, and ends with it.
    let connected = std::thread::spawn(move || {
        let uid = rustix::process::Uid::from_raw(uid);
        rustix::thread::set_thread_res_uid(uid, uid, uid)?;
        std::os::unix::net::UnixStream::connect(path)
    });
    let stream = connected.join().map_err(|_| anyhow::anyhow!("the thread panicked"))??;
    stream.set_nonblocking(true)?;
    let mut stream = Some(tokio::net::UnixStream::from_std(stream)?);
    // Once: a second connection would be another user's.
    let connector = tower::service_fn(move |_: http::Uri| {
        let stream = stream.take().ok_or_else(|| std::io::Error::other("the connection is over"));
        std::future::ready(stream.map(TokioIo::new))
    });
    Ok(Endpoint::from_static("http://localhost").connect_with_connector_lazy(connector))
}

const NOBODY: u32 = 65534;

fn open_to_all(bed: &Bed) -> Result<()> {
    std::fs::set_permissions(bed.admin_socket(), PermissionsExt::from_mode(0o666))?;
    Ok(std::fs::set_permissions(bed.path(""), PermissionsExt::from_mode(0o755))?)
}

fn reload(bed: &mut Bed, change: impl Fn(&str) -> String) -> Result<()> {
    let file = bed.path("issuer.toml");
    let text = std::fs::read_to_string(&file)?;
    std::fs::write(&file, change(&text))?;
    let issuer = bed.issuer()?;
    let from = issuer.log().len() as u64;
    issuer.signal(rustix::process::Signal::HUP)?;
    issuer.wait_for_log("reload", from)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_local_user_who_is_no_operator_is_refused_before_the_body() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        hallmark_e2e::skip("another user's connection needs root");
        return Ok(());
    }
    let bed = bed("")?;
    open_to_all(&bed)?;
    let apply = "/hallmark.admin.v1.Admin/Apply";
    let other = connect_as(NOBODY, &bed.admin_socket())?;
    let (status, _) = call(&other, apply, declared(8 << 20), Then::Zeros(7 << 20)).await?;
    assert_eq!(status.code(), Code::PermissionDenied, "{status:?}");
    // Many of them: a few are open, and an operator is served.
    let held = (0..100).map(|_| connect_as(NOBODY, &bed.admin_socket())).collect::<Result<Vec<_>>>()?;
    let mut told = 0;
    for channel in &held {
        told += usize::from(call(channel, apply, declared(8), Then::Silence).await.is_ok());
    }
    assert!((1..50).contains(&told), "{told} of 100 were listened to");
    bed.hallmark_ok(&["status"])?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_puts_a_changed_list_of_operators_in_force() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        hallmark_e2e::skip("another user's connection needs root");
        return Ok(());
    }
    let mut bed = bed("")?;
    open_to_all(&bed)?;
    let listed = "[admin]\nusers = [\"65534\"]\n";
    reload(&mut bed, |text| text.replace("[admin]\n", listed))?;
    let mut operator = AdminClient::new(connect_as(NOBODY, &bed.admin_socket())?);
    operator.status(StatusRequest {}).await?;

    // A list with a fault changes nothing.
    reload(&mut bed, |text| text.replace("\"65534\"", "\"no-such-user\""))?;
    operator.status(StatusRequest {}).await?;

    reload(&mut bed, |text| text.replace("users = [\"no-such-user\"]\n", ""))?;
    operator.status(StatusRequest {}).await.err().context("still an operator")?;
    let anew = AdminClient::new(connect_as(NOBODY, &bed.admin_socket())?).status(StatusRequest {}).await;
    assert_eq!(anew.err().context("still an operator")?.code(), Code::PermissionDenied);
    // The connection is over, whatever is asked on it.
    wait_until("the connection to end", || {
        tokio::task::block_in_place(|| {
            let asked = tokio::runtime::Handle::current().block_on(operator.status(StatusRequest {}));
            asked.is_err_and(|status| status.code() == Code::Unavailable).then_some(())
        })
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reload_puts_changed_limits_in_force() -> Result<()> {
    let mut bed = bed("attestations_per_address = 2\n")?;
    let strangers = (0..2).map(|_| Rogue::new(&bed)).collect::<Result<Vec<_>>>()?;
    let _held = strangers[0].challenged(hello(&bed, "host-1")?).await?;
    reload(&mut bed, |text| text.replace("attestations_per_address = 2", "attestations_per_address = 1"))?;
    let refused =
        strangers[1].challenged(hello(&bed, "host-1")?).await.err().context("a second was let in")?;
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    Ok(())
}
