//! Every connection is a full handshake of TLS 1.3: by rustls's word and by OpenSSL's.

use std::process::Stdio;

use rustls::HandshakeKind;
use rustls::client::Resumption;
use tokio::process::Command;

use super::*;

/// A server that greets each connection with one line.
async fn greeter(config: ServerConfig) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    tokio::spawn(async move {
        loop {
            let (socket, _) = listener.accept().await.unwrap();
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                if let Ok(mut stream) = acceptor.accept(socket).await {
                    let _ = stream.write_all(b"greetings\n").await;
                    let _ = stream.shutdown().await;
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn a_client_that_would_resume_cannot() {
    let domain = TestDomain::lab("example.org").unwrap();
    let address = greeter(issuer_door(&domain)).await;
    let mut config = client_config(issuers(&domain), None).unwrap();
    config.resumption = Resumption::in_memory_sessions(16);
    let connector = TlsConnector::from(Arc::new(config));
    for _ in 0..3 {
        let socket = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("issuer.invalid").unwrap();
        let mut stream = connector.connect(name, socket).await.unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).await.unwrap();
        assert_eq!(text, "greetings\n");
        assert_eq!(stream.get_ref().1.tls13_tickets_received(), 0);
        // A hello retry is a full handshake too.
        assert_ne!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));
    }
}

#[tokio::test]
async fn our_client_does_not_resume_where_it_could() {
    let domain = TestDomain::lab("example.org").unwrap();
    let mut server = issuer_door(&domain);
    server.send_tls13_tickets = 2;
    server.ticketer = rustls::crypto::aws_lc_rs::Ticketer::new().unwrap();
    let address = greeter(server).await;
    let connector = TlsConnector::from(Arc::new(client_config(issuers(&domain), None).unwrap()));
    for _ in 0..3 {
        let socket = TcpStream::connect(address).await.unwrap();
        let name = ServerName::try_from("issuer.invalid").unwrap();
        let mut stream = connector.connect(name, socket).await.unwrap();
        stream.read_to_end(&mut Vec::new()).await.unwrap();
        assert_ne!(stream.get_ref().1.handshake_kind(), Some(HandshakeKind::Resumed));
    }
}

#[tokio::test]
async fn tls12_is_refused() {
    let domain = TestDomain::lab("example.org").unwrap();
    let address = greeter(issuer_door(&domain)).await;
    let old = ClientConfig::builder_with_provider(super::super::provider())
        .with_protocol_versions(&[&rustls::version::TLS12])
        .unwrap()
        .with_root_certificates(rustls::RootCertStore::empty())
        .with_no_client_auth();
    let socket = TcpStream::connect(address).await.unwrap();
    let name = ServerName::try_from("issuer.invalid").unwrap();
    let error = TlsConnector::from(Arc::new(old)).connect(name, socket).await.unwrap_err();
    let error = error.get_ref().and_then(|e| e.downcast_ref::<rustls::Error>()).cloned();
    assert_eq!(error, Some(rustls::Error::AlertReceived(rustls::AlertDescription::ProtocolVersion)));
}

#[tokio::test]
async fn hybrid_key_exchange_comes_first() {
    let groups: Vec<_> = super::super::provider().kx_groups.iter().map(|g| g.name()).collect();
    assert_eq!(groups.first(), Some(&rustls::NamedGroup::X25519MLKEM768), "{groups:?}");
}

/// OpenSSL as the independent judge.
#[tokio::test]
async fn openssl_sees_no_ticket_and_no_tls12() {
    let Ok(version) = Command::new("openssl").arg("version").output().await else {
        println!("skipped: openssl_sees_no_ticket_and_no_tls12 (no openssl)");
        return;
    };
    assert!(version.status.success());
    let domain = TestDomain::lab("example.org").unwrap();
    let address = greeter(issuer_door(&domain)).await;
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root.pem");
    std::fs::write(&root, hallmark_kit::pki::pem(domain.root(INFRA))).unwrap();
    let s_client = async |arguments: &[&str]| {
        let output = Command::new("openssl")
            .args(["s_client", "-connect", &address.to_string(), "-alpn", "h2", "-verify_return_error"])
            .args(["-CAfile", root.to_str().unwrap(), "-ign_eof"])
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .await
            .unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&text).into_owned())
    };
    let (fine, text) = s_client(&["-tls1_3"]).await;
    assert!(fine && text.contains("greetings"), "{text}");
    assert!(text.contains("Verify return code: 0 (ok)"), "{text}");
    assert!(text.contains("New, TLSv1.3") && text.contains("ALPN protocol: h2"), "{text}");
    assert!(!text.contains("TLS session ticket") && !text.contains("Reused"), "{text}");
    for old in ["-tls1_2", "-tls1_1"] {
        let (fine, text) = s_client(&[old]).await;
        assert!(!fine && !text.contains("greetings"), "{old}: {text}");
    }
}
