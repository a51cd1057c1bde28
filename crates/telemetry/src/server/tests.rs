//! Readers, well-behaved and not, against the server on real sockets.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

use std::os::unix::fs::PermissionsExt;

use prometheus_client::metrics::counter::Counter;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::*;

struct Running {
    _dir: tempfile::TempDir,
    path: PathBuf,
    counter: Counter,
    task: tokio::task::JoinHandle<()>,
}

fn started() -> Running {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.sock");
    let counter = Counter::default();
    let mut registry = Registry::default();
    registry.register("made", "Things made", counter.clone());
    crate::process::register(&mut registry, "test", "1.2.3");
    let endpoint = Endpoint::Unix { path: path.clone(), mode: 0o640, group: None };
    let served = Served::bind(&endpoint, registry).unwrap();
    Running { _dir: dir, path, counter, task: tokio::spawn(served.run()) }
}

async fn asked(path: &Path, request: &str) -> String {
    let mut stream = UnixStream::connect(path).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    answer
}

const GET: &str = "GET /metrics HTTP/1.1\r\nhost: x\r\n";

#[tokio::test]
async fn both_formats_are_served() {
    let server = started();
    server.counter.inc_by(7);
    let text = asked(&server.path, &format!("{GET}\r\n")).await;
    assert!(text.starts_with("HTTP/1.1 200") && text.contains(TEXT), "{text}");
    assert!(text.contains("# TYPE made_total counter\nmade_total 7\n"), "{text}");
    assert!(text.contains("test_build_info{version=\"1.2.3\"} 1"), "{text}");
    for name in [
        "cpu_seconds_total",
        "start_time_seconds",
        "resident_memory_bytes",
        "virtual_memory_bytes",
        "threads",
        "open_fds",
    ] {
        assert!(text.contains(&format!("\nprocess_{name} ")), "process_{name} is missing: {text}");
    }
    let accept = "accept: application/openmetrics-text;version=1.0.0;q=0.75,text/plain;q=0.5\r\n";
    let open = asked(&server.path, &format!("{GET}{accept}\r\n")).await;
    assert!(open.contains(OPEN_METRICS) && open.ends_with("# EOF\n"), "{open}");
    server.task.abort();
}

#[tokio::test]
async fn nothing_else_is() {
    let server = started();
    for (request, status) in [
        ("GET / HTTP/1.1\r\nhost: x\r\n\r\n", "404"),
        ("GET /metrics/ HTTP/1.1\r\nhost: x\r\n\r\n", "404"),
        ("GET /../metrics HTTP/1.1\r\nhost: x\r\n\r\n", "404"),
        ("POST /metrics HTTP/1.1\r\nhost: x\r\ncontent-length: 9\r\n\r\nbody", "405"),
        ("HEAD /metrics HTTP/1.1\r\nhost: x\r\n\r\n", "405"),
        ("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "400"),
        ("nonsense\r\n\r\n", "400"),
    ] {
        let answer = asked(&server.path, request).await;
        // A body that was not read may reset the connection, but the status comes first.
        assert!(
            answer.starts_with(&format!("HTTP/1.1 {status}")) || answer.is_empty() && status == "400",
            "{request}: {answer}"
        );
    }
    let long = format!("{GET}x: {}\r\n\r\n", "y".repeat(2 * MAX_HEAD));
    let mut stream = UnixStream::connect(&server.path).await.unwrap();
    // The server may have closed before all of it is written.
    let _ = stream.write_all(long.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP/1.1 200"));
    server.task.abort();
}

#[tokio::test]
async fn readers_who_hold_connections_keep_nobody_away() {
    let server = started();
    let mut held = Vec::new();
    for _ in 0..4 * MAX_CONNECTIONS {
        let mut stream = UnixStream::connect(&server.path).await.unwrap();
        // Those whose connection was ended before they have written see it in the error.
        let _ = stream.write_all(b"GET /metrics HTTP/1.1\r\n").await;
        held.push(stream);
    }
    let answer = asked(&server.path, &format!("{GET}\r\n")).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    // The oldest of them have been ended.
    let mut rest = Vec::new();
    let _ = held[0].read_to_end(&mut rest).await;
    assert!(rest.is_empty());
    server.task.abort();
}

#[test]
fn a_page_is_made_no_more_often_than_twice_a_second() {
    let counter = Counter::<u64>::default();
    let mut registry = Registry::default();
    registry.register("made", "Things made", counter.clone());
    let pages = Pages { registry, shown: Mutex::default() };
    let begun = Instant::now();
    let first = pages.page(false, begun).unwrap();
    counter.inc();
    assert_eq!(pages.page(false, begun + FRESH / 2).unwrap(), first);
    assert_ne!(pages.page(false, begun + FRESH).unwrap(), first);
}

#[tokio::test]
async fn the_socket_has_its_mode_and_goes_with_the_server() {
    let server = started();
    assert_eq!(std::fs::metadata(&server.path).unwrap().permissions().mode() & 0o7777, 0o640);
    let endpoint = Endpoint::Unix { path: server.path.clone(), mode: 0o600, group: None };
    let second = Served::bind(&endpoint, Registry::default());
    assert!(matches!(second, Err(ServeError::Socket { .. })), "two servers on one socket");
    server.task.abort();
    let _ = server.task.await;
    assert!(!server.path.exists());

    // What a process that was killed left behind is replaced; a file that is no socket is not.
    drop(std::os::unix::net::UnixListener::bind(&server.path).unwrap());
    drop(Served::bind(&endpoint, Registry::default()).unwrap());
    std::fs::write(&server.path, "x").unwrap();
    assert!(Served::bind(&endpoint, Registry::default()).is_err());
    assert_eq!(std::fs::read(&server.path).unwrap(), b"x");
}

#[tokio::test]
async fn a_port_is_served_and_one_that_is_taken_is_named() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    let taken = Served::bind(&Endpoint::Tcp(address), Registry::default()).unwrap_err();
    assert!(taken.to_string().contains(&address.to_string()), "{taken}");
    drop(free);
    let served = Served::bind(&Endpoint::Tcp(address), Registry::default()).unwrap();
    let task = tokio::spawn(served.run());
    let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
    stream.write_all(format!("{GET}\r\n").as_bytes()).await.unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    task.abort();
}

#[tokio::test]
async fn a_group_that_is_not_there_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let group = Some("no-such-group-here".to_owned());
    let endpoint = Endpoint::Unix { path: dir.path().join("m"), mode: 0o660, group };
    let error = Served::bind(&endpoint, Registry::default()).unwrap_err();
    assert!(error.to_string().contains("no-such-group-here"), "{error}");
}

#[test]
fn open_metrics_is_given_to_whoever_names_it() {
    let wants = |text: &'static str| wants_open_metrics([HeaderValue::from_static(text)].iter());
    assert!(wants("application/openmetrics-text"));
    assert!(wants("text/plain;q=0.5, Application/OpenMetrics-Text; version=1.0.0; q=0.1"));
    assert!(!wants("application/openmetrics-text;q=0"));
    assert!(!wants("application/openmetrics-text;q=0.0"));
    assert!(!wants("application/openmetrics-text;version=2.0.0"));
    assert!(!wants("text/plain"));
    assert!(!wants("*/*"));
    assert!(!wants(""));
}
