//! Nothing outlives a certificate: neither a handshake nor a connection.

use std::sync::Mutex;

use super::*;

/// A clock that the test sets.
#[derive(Debug, Clone)]
struct Clock(Arc<Mutex<i64>>);

impl Clock {
    fn at(now: i64) -> Self {
        Self(Arc::new(Mutex::new(now)))
    }
    fn set(&self, now: i64) {
        *self.0.lock().unwrap() = now;
    }
}

impl TimeProvider for Clock {
    fn current_time(&self) -> Option<UnixTime> {
        let now = u64::try_from(*self.0.lock().unwrap()).ok()?;
        Some(UnixTime::since_unix_epoch(Duration::from_secs(now)))
    }
}

#[tokio::test]
async fn time_is_the_configurations() {
    let domain = TestDomain::new("example.org", true, 1_800_000_000).unwrap();
    let at = async |server_now: i64, client_now: i64| {
        let mut server = issuer_door(&domain);
        server.time_provider = Arc::new(Clock::at(server_now));
        let identity = cert(&domain, INFRA, "host/web-01");
        let mut client = client_config(issuers(&domain), Some(identity)).unwrap();
        client.time_provider = Arc::new(Clock::at(client_now));
        connect(server, client).await
    };
    let (now, end) = (domain.now, domain.now + 600);
    at(now, now).await.both_fine();
    let expired = |e: &PeerError| matches!(e, PeerError::Chain(ChainError::Expired { .. }));
    at(end + 1, now).await.refused_by_server(expired);
    at(now, end + 1).await.refused_by_client(expired);
    let early = |e: &PeerError| matches!(e, PeerError::Chain(ChainError::NotYetValid { .. }));
    at(now - 31, now).await.refused_by_server(early);
    at(now, now - 31).await.refused_by_client(early);
}

/// A peer whose certificate ends at `not_after`, at the far end of a pipe.
fn capped(
    not_after: Option<i64>,
    own: Option<i64>,
    max_age: Option<Duration>,
    clock: &Clock,
) -> (CappedStream<tokio::io::DuplexStream>, tokio::io::DuplexStream) {
    let (near, far) = tokio::io::duplex(64);
    let peer = PeerInfo { not_after, ..PeerInfo::default() };
    (CappedStream::new(near, peer, own, max_age, Arc::new(clock.clone())), far)
}

#[tokio::test(start_paused = true)]
async fn the_first_end_counts() {
    for (peer, own, max_age, expected) in [
        (Some(100), None, None, 100),
        (None, Some(100), None, 100),
        (Some(300), Some(200), None, 200),
        (Some(300), Some(200), Some(50), 50),
        (None, None, Some(50), 50),
        (Some(-5), None, None, 0),
    ] {
        let clock = Clock::at(1_000);
        let ends = |after: Option<i64>| after.map(|after| 1_000 + after);
        let (mut stream, _far) = capped(ends(peer), ends(own), max_age.map(Duration::from_secs), &clock);
        let begin = tokio::time::Instant::now();
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "end of file");
        assert_eq!(begin.elapsed().as_secs(), expected);
        let error = stream.write_all(b"late").await.unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::TimedOut);
        assert_eq!(stream.read(&mut [0]).await.unwrap(), 0, "and stays so");
    }
}

#[tokio::test(start_paused = true)]
async fn without_certificates_nothing_ends() {
    let (mut stream, mut far) = capped(None, None, None, &Clock::at(1_000));
    tokio::time::advance(Duration::from_secs(1_000_000)).await;
    far.write_all(b"x").await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn data_waiting_at_the_end_is_not_read() {
    let clock = Clock::at(1_000);
    let (mut stream, mut far) = capped(Some(1_010), None, None, &clock);
    far.write_all(b"ab").await.unwrap();
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 1);
    // A machine that slept: the wall clock moved, the timer did not.
    clock.set(1_010);
    assert_eq!(stream.read(&mut [0]).await.unwrap(), 0);
    assert!(stream.write_all(b"c").await.is_err());
}

#[tokio::test]
async fn an_accepted_connection_ends_with_its_certificate() {
    let domain = TestDomain::lab("example.org").unwrap();
    let clock = Clock::at(domain.now);
    let identity = cert(&domain, INFRA, "issuer/a");
    let mut config = server_config(identity.clone(), ClientAuth::Optional(hosts(&domain))).unwrap();
    config.time_provider = Arc::new(clock.clone());
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let listener = Listener::new(tcp, Arc::new(config), identity, ListenerOptions::default());
    let address = listener.local_addr().unwrap();
    let mut incoming = listener.incoming();

    let mut shape = domain.shape();
    shape.lifetime = Duration::from_secs(60);
    let host = domain.identity_shaped(INFRA, "host/web-01", &shape).unwrap();
    let client = client_config(issuers(&domain), Some(shown(&host))).unwrap();
    let socket = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("issuer.invalid").unwrap();
    let mut client = TlsConnector::from(Arc::new(client)).connect(name, socket).await.unwrap();

    let mut server = futures::StreamExt::next(&mut incoming).await.unwrap().unwrap();
    assert_eq!(server.peer().spiffe_id, Some(domain.id("host/web-01").unwrap()));
    client.write_all(b"a").await.unwrap();
    assert_eq!(server.read_u8().await.unwrap(), b'a');
    clock.set(host.leaf.not_after);
    client.write_all(b"b").await.unwrap();
    assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
    assert_eq!(server.write(b"c").await.unwrap_err().kind(), std::io::ErrorKind::TimedOut);
}

#[tokio::test]
async fn a_silent_client_holds_its_place_for_a_while_only() {
    let domain = TestDomain::lab("example.org").unwrap();
    let identity = cert(&domain, INFRA, "issuer/a");
    let config = server_config(identity.clone(), ClientAuth::None).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    // One place: the second client can only be served once the first has lost it.
    let options = ListenerOptions {
        handshake_timeout: Duration::from_millis(200),
        max_handshakes: 1,
        ..ListenerOptions::default()
    };
    let listener = Listener::new(tcp, Arc::new(config), identity, options);
    let address = listener.local_addr().unwrap();
    let mut incoming = listener.incoming();
    let mut silent = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("issuer.invalid").unwrap();
    let client = Arc::new(client_config(issuers(&domain), None).unwrap());
    let socket = TcpStream::connect(address).await.unwrap();
    let served = TlsConnector::from(client).connect(name, socket).await;
    served.unwrap();
    assert!(futures::StreamExt::next(&mut incoming).await.is_some());
    assert_eq!(silent.read(&mut [0]).await.unwrap(), 0, "the silent one was put out");
}

#[tokio::test]
async fn open_connections_are_bounded() {
    let domain = TestDomain::lab("example.org").unwrap();
    let identity = cert(&domain, INFRA, "issuer/a");
    let config = server_config(identity.clone(), ClientAuth::None).unwrap();
    let tcp = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let options = ListenerOptions { max_connections: 1, ..ListenerOptions::default() };
    let listener = Listener::new(tcp, Arc::new(config), identity, options);
    let address = listener.local_addr().unwrap();
    let mut incoming = listener.incoming();
    let client = Arc::new(client_config(issuers(&domain), None).unwrap());
    let dial = || {
        let client = client.clone();
        tokio::spawn(async move {
            let socket = TcpStream::connect(address).await?;
            let name = ServerName::try_from("issuer.invalid").unwrap();
            TlsConnector::from(client).connect(name, socket).await
        })
    };
    let first = dial().await.unwrap().unwrap();
    let first_at_server = futures::StreamExt::next(&mut incoming).await.unwrap().unwrap();
    let second = dial();
    tokio::task::yield_now().await;
    assert!(!second.is_finished());
    drop((first, first_at_server));
    second.await.unwrap().unwrap();
}
