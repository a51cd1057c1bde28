//! The agents' API, over real sockets and with real processes, against a fake issuer.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1, EcdsaKeyPair, KeyPair, UnparsedPublicKey};
use hallmark_hostd::agents::Limits;
use hallmark_proto::agent::{SignRequest, WatchIdentityRequest, WhoAmIRequest, identity};
use hallmark_proto::issuer as wire;
use support::{Host, bundle, mine, until};
use tonic::Code;

fn hardware(agent: &str) -> wire::Registration {
    wire::Registration { tier: "advanced".into(), custody: "tpm-certified".into(), ..mine(agent) }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_agent_gets_a_key_and_a_certificate_for_it() {
    let host = Host::start().await;
    host.register(vec![mine("mailer")]);
    let (identity, _stream) = host.watch("").await.unwrap();
    assert_eq!(identity.spiffe_id, "spiffe://example.org/agent/mailer");
    assert_eq!((identity.tier.as_str(), identity.custody.as_str()), ("foundation", "software"));
    assert_eq!(identity.bundle.unwrap().revision, 1);
    let lifetime = identity.not_after - identity.not_before;
    assert!(identity.renew_at > identity.not_before && identity.renew_at < identity.not_after, "{lifetime}");
    let Some(identity::Key::PrivateKey(pkcs8)) = identity.key else { panic!("a software key") };
    let key =
        EcdsaKeyPair::from_pkcs8(&aws_lc_rs::signature::ECDSA_P256_SHA256_ASN1_SIGNING, &pkcs8).unwrap();
    let items = host.issuer.book().items.clone();
    assert_eq!(items.len(), 1);
    assert!(items[0].selectors.contains(&format!("unix:uid:{}", nix::unistd::geteuid())));
    let request = rcgen::CertificateSigningRequestParams::from_der(&items[0].csr.to_vec().into()).unwrap();
    assert_eq!(rcgen::PublicKeyData::der_bytes(&request.public_key), key.public_key().as_ref());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_matches_nothing_is_refused_with_the_reason() {
    let host = Host::start().await;
    host.register(vec![wire::Registration { selectors: vec!["unix:uid:4242".into()], ..mine("other") }]);
    let refusal = host.watch("").await.unwrap_err();
    assert_eq!(refusal.code(), Code::PermissionDenied);
    let refusal = host.watch("other").await.unwrap_err();
    assert_eq!(refusal.code(), Code::PermissionDenied);
    assert!(refusal.message().contains("unix:uid:4242"), "{refusal}");
    assert!(host.issuer.book().items.is_empty(), "the issuer is not even asked");
    let seen = host.agent().await.who_am_i(WhoAmIRequest {}).await.unwrap().into_inner();
    assert_eq!(seen.pid as u32, std::process::id());
    assert!(!seen.matches[0].matches && seen.matches[0].missing == ["unix:uid:4242"]);
    assert_eq!((seen.host_id.as_str(), seen.trust_domain.as_str()), ("host-1", "example.org"));

    // The registration arrives: the very next try succeeds.
    host.register(vec![mine("other")]);
    host.watch("").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_that_match_the_agent_names_one() {
    let host = Host::start().await;
    host.register(vec![mine("a"), mine("b")]);
    let refusal = host.watch("").await.unwrap_err();
    assert_eq!(refusal.code(), Code::FailedPrecondition);
    assert!(refusal.message().contains("a, b"), "{refusal}");
    assert_eq!(host.watch("b").await.unwrap().0.agent, "b");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_issuers_refusal_reaches_the_agent_whole() {
    let host = Host::start().await;
    host.register(vec![mine("mailer")]);
    let unmet = ["no-tpm", "quote-too-old"].map(|code| wire::Unmet { code: code.into(), detail: "d".into() });
    let refused =
        wire::Refused { code: "requirements-not-met".into(), unmet: unmet.to_vec(), retryable: false };
    host.issuer.book().refuse = Some(refused);
    let refusal = host.watch("").await.unwrap_err();
    assert_eq!(refusal.code(), Code::PermissionDenied);
    assert!(refusal.message().contains("no-tpm") && refusal.message().contains("quote-too-old"));
    assert_eq!(host.agents.live(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn renewal_brings_a_new_key_and_names_what_it_renews() {
    let host = Host::start().await;
    host.register(vec![mine("mailer")]);
    host.issuer.book().lifetime = 3;
    let (first, mut stream) = host.watch("").await.unwrap();
    let second = stream.message().await.unwrap().unwrap();
    assert_eq!(first.instance_id, second.instance_id);
    assert_ne!(first.key, second.key);
    assert_ne!(first.chain, second.chain);
    let items = host.issuer.book().items.clone();
    assert!(items[0].renews.is_empty());
    assert_eq!(items[1].renews.as_ref(), 1u64.to_be_bytes());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hardware_keys_sign_for_their_process_and_stay_through_renewal() {
    let mut host = Host::start().await;
    host.register(vec![hardware("vault")]);
    host.issuer.book().lifetime = 4;
    let (first, mut stream) = host.watch("").await.unwrap();
    host.quotes.try_recv().expect("a fresh quote was asked for");
    let Some(identity::Key::KeyHandle(handle)) = first.key.clone() else { panic!("no key in the clear") };
    let second = stream.message().await.unwrap().unwrap();
    assert_eq!(first.key, second.key);
    assert_eq!(host.hardware.made(), 1);
    host.quotes.try_recv().expect("and again before the renewal");

    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, b"hello");
    let ask = |key_handle: Vec<u8>, digest: &[u8]| SignRequest {
        key_handle: key_handle.into(),
        digest: digest.to_vec().into(),
    };
    // Another connection of the same process may sign.
    let mut client = host.agent().await;
    let signed = client.sign(ask(handle.to_vec(), digest.as_ref())).await.unwrap().into_inner();
    let request = host.issuer.book().items[0].csr.to_vec();
    let request = rcgen::CertificateSigningRequestParams::from_der(&request.into()).unwrap();
    let public = rcgen::PublicKeyData::der_bytes(&request.public_key).to_vec();
    UnparsedPublicKey::new(&ECDSA_P256_SHA256_ASN1, public).verify(b"hello", &signed.signature).unwrap();

    for length in [0, 20, 31, 33, 48, 400] {
        let refusal = client.sign(ask(handle.to_vec(), &vec![0; length])).await.unwrap_err();
        assert_eq!(refusal.code(), Code::InvalidArgument, "{length}");
    }
    for wrong in [vec![], vec![0; 16], handle[1..].to_vec()] {
        let refusal = client.sign(ask(wrong, digest.as_ref())).await.unwrap_err();
        assert_eq!(refusal.code(), Code::PermissionDenied);
    }
    drop(stream);
    until(|| host.agents.handles() == 0 && host.hardware.alive() == 0).await;
    let refusal = client.sign(ask(handle.to_vec(), digest.as_ref())).await.unwrap_err();
    assert_eq!(refusal.code(), Code::PermissionDenied, "the key ended with its stream");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hardware_key_that_is_lost_is_replaced() {
    let host = Host::start().await;
    host.register(vec![hardware("vault")]);
    let (first, mut stream) = host.watch("").await.unwrap();
    let Some(identity::Key::KeyHandle(handle)) = first.key.clone() else { panic!("a handle") };
    host.hardware.lose_keys();
    let ask = SignRequest { key_handle: handle, digest: vec![1; 32].into() };
    let refusal = host.agent().await.sign(ask).await.unwrap_err();
    assert_eq!(refusal.code(), Code::Aborted);
    let second = stream.message().await.unwrap().unwrap();
    assert_ne!(first.key, second.key);
    until(|| host.hardware.alive() == 1 && host.agents.handles() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn signatures_are_bounded() {
    let limits = Limits { sign_per_second: 1, sign_burst: 3, ..Limits::default() };
    let host = Host::start_with(limits).await;
    host.register(vec![hardware("vault")]);
    let (first, _stream) = host.watch("").await.unwrap();
    let Some(identity::Key::KeyHandle(handle)) = first.key else { panic!("a handle") };
    let mut client = host.agent().await;
    let mut codes = Vec::new();
    for _ in 0..10 {
        let ask = SignRequest { key_handle: handle.clone(), digest: vec![1; 32].into() };
        codes.push(client.sign(ask).await.map_or_else(|s| s.code(), |_| Code::Ok));
    }
    assert_eq!(codes[..3], [Code::Ok; 3]);
    assert!(codes[3..].contains(&Code::ResourceExhausted), "{codes:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn registrations_bundles_and_revocations_reach_the_stream() {
    let host = Host::start().await;
    host.register(vec![mine("mailer"), hardware("vault")]);
    let (first, mut stream) = host.watch("mailer").await.unwrap();

    host.state.accept_bundles(bundle(2)).unwrap();
    let second = stream.message().await.unwrap().unwrap();
    assert_eq!(second.bundle.as_ref().unwrap().revision, 2);
    assert_eq!((&second.chain, &second.key), (&first.chain, &first.key), "nothing else changed");

    host.register(vec![wire::Registration { revision: 2, ..mine("mailer") }, hardware("vault")]);
    let third = stream.message().await.unwrap().unwrap();
    assert_ne!(third.chain, first.chain, "issued again under the new revision");

    let serial = 2u64.to_be_bytes().to_vec().into();
    host.state.revoked.send(vec![serial]).await.unwrap();
    let end = stream.message().await.unwrap_err();
    assert_eq!(end.code(), Code::PermissionDenied);
    assert!(end.message().contains("revoked"), "{end}");
    until(|| host.issuer.retired(&first.instance_id).as_deref() == Some("operator")).await;

    let (first, mut stream) = host.watch("mailer").await.unwrap();
    host.register(vec![hardware("vault")]);
    let end = stream.message().await.unwrap_err();
    assert!(end.message().contains("registration"), "{end}");
    until(|| host.issuer.retired(&first.instance_id).as_deref() == Some("registration-changed")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_earlier_certificate_that_was_revoked_ends_the_instance_too() {
    let host = Host::start().await;
    host.register(vec![hardware("vault")]);
    let (_, mut stream) = host.watch("vault").await.unwrap();
    host.register(vec![wire::Registration { revision: 2, ..hardware("vault") }]);
    stream.message().await.unwrap().unwrap();
    assert_eq!(host.issuer.book().items.len(), 2, "the first certificate is replaced, and counts yet");
    // The third is on nobody yet: its revocation overtakes it.
    let serials = [1u64, 3].map(|n| n.to_be_bytes().to_vec().into());
    host.state.revoked.send(serials.to_vec()).await.unwrap();
    let end = stream.message().await.unwrap_err();
    assert!(end.message().contains("revoked"), "{end}");
    until(|| host.agents.handles() == 0 && host.hardware.alive() == 0).await;

    let refusal = host.watch("vault").await.unwrap_err();
    assert!(refusal.message().contains("revoked"), "{refusal}");
    until(|| host.agents.live() == 0 && host.hardware.alive() == 0).await;
    host.watch("vault").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disabled_host_has_no_agents() {
    let host = Host::start().await;
    host.register(vec![mine("mailer"), hardware("vault")]);
    let (first, mut stream) = host.watch("vault").await.unwrap();
    let (_, mut other) = host.watch("mailer").await.unwrap();
    host.state.standing.send_modify(|standing| standing.disabled = true);
    for stream in [&mut stream, &mut other] {
        let end = stream.message().await.unwrap_err();
        assert!(end.message().contains("disabled"), "{end}");
    }
    until(|| host.agents.live() == 0 && host.agents.handles() == 0 && host.hardware.alive() == 0).await;
    until(|| host.issuer.retired(&first.instance_id).as_deref() == Some("host-disabled")).await;
    let refusal = host.watch("mailer").await.unwrap_err();
    assert!(refusal.message().contains("disabled"), "{refusal}");
    host.state.standing.send_modify(|standing| standing.disabled = false);
    host.watch("mailer").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn agents_are_served_while_the_issuer_is_away() {
    let host = Host::start().await;
    host.register(vec![mine("mailer")]);
    host.issuer.book().lifetime = 4;
    let (first, mut stream) = host.watch("").await.unwrap();
    let channel = host.connection.send_replace(None);
    let refusal = host.watch("").await.unwrap_err();
    assert_eq!(refusal.code(), Code::Unavailable);
    // The issuer comes back before the end, after a renewal was due: the stream goes on.
    until(|| std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64 >= first.renew_at).await;
    host.connection.send_replace(channel);
    stream.message().await.unwrap().unwrap();
    // It stays away: the identity ends when it ends.
    host.connection.send_replace(None);
    let end = stream.message().await.unwrap_err();
    assert_eq!(end.code(), Code::Unavailable);
    until(|| host.agents.live() == 0).await;
}

/// A renewal that failed while the issuer was away is tried again when it is back, and not after its own
/// wait, which would soon be half a minute.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn news_wakes_the_renewals_that_wait() {
    let host = Host::start().await;
    host.register(vec![mine("mailer")]);
    let (_, mut stream) = host.watch("").await.unwrap();
    host.issuer.book().fail = Some(tonic::Code::Unavailable);
    let asked = host.issuer.book().calls.iter().sum::<usize>();
    host.register(vec![wire::Registration { revision: 2, ..mine("mailer") }]);
    let failed = || host.issuer.book().calls.iter().sum::<usize>() - asked;
    until(|| failed() == 1).await;
    for _ in 0..14 {
        let before = failed();
        host.state.news.send_replace(());
        until(|| failed() > before).await;
    }
    host.issuer.book().fail = None;
    host.state.news.send_replace(());
    stream.message().await.unwrap().unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn draining_ends_all_and_tells_the_issuer() {
    let host = Host::start().await;
    host.register(vec![mine("mailer")]);
    let (first, mut stream) = host.watch("").await.unwrap();
    host.agents.drain(Duration::from_secs(5)).await;
    assert_eq!(host.issuer.retired(&first.instance_id).as_deref(), Some("host-shutdown"));
    assert_eq!(stream.message().await.unwrap_err().code(), Code::Unavailable);
    drop(stream);
    host.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_at_once_are_batched_served_and_leave_nothing() {
    let host = Host::start().await;
    host.register(vec![mine("mailer"), hardware("vault")]);
    host.watch("mailer").await.unwrap();
    until(|| host.agents.live() == 0).await;
    let descriptors = open_descriptors();
    let mut all = tokio::task::JoinSet::new();
    for n in 0..200 {
        let mut client = host.agent().await;
        all.spawn(async move {
            let agent = if n % 4 == 0 { "vault" } else { "mailer" };
            let request = WatchIdentityRequest { agent: agent.into() };
            let mut stream = client.watch_identity(request).await.unwrap().into_inner();
            stream.message().await.unwrap().unwrap();
            stream
        });
    }
    let streams = all.join_all().await;
    assert_eq!(host.agents.live(), 200);
    assert_eq!(host.hardware.alive(), 50);
    let calls = host.issuer.book().calls.clone();
    assert!(calls.len() < 200 && calls.iter().all(|n| *n <= 64), "{calls:?}");
    drop(streams);
    until(|| host.agents.live() == 0 && host.agents.handles() == 0 && host.hardware.alive() == 0).await;
    until(|| host.issuer.book().retired.len() == 201).await;
    until(|| open_descriptors() <= descriptors).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn limits_refuse_and_room_returns() {
    let limits = Limits { max_agents: 2, max_connections_per_user: 3, ..Limits::default() };
    let host = Host::start_with(limits).await;
    host.register(vec![mine("mailer")]);
    let _one = host.watch("").await.unwrap();
    let two = host.watch("").await.unwrap();
    let refusal = host.watch("").await.unwrap_err();
    assert_eq!(refusal.code(), Code::ResourceExhausted);
    drop(two);
    until(|| host.agents.live() == 1).await;
    let _three = host.watch("").await.unwrap();
}

fn open_descriptors() -> usize {
    std::fs::read_dir("/proc/self/fd").unwrap().count()
}

// What follows is done by processes of their own: this very test binary, run again as an agent.

struct Agent(Child);

impl Drop for Agent {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

impl Agent {
    /// Runs `act` below in a new process; its stdout is ours to read.
    fn start(host: &Host, act: &str, uid: Option<u32>) -> Self {
        let copy = host.socket.with_file_name("agent");
        if !copy.exists() {
            // Another user may not be able to reach the build directory.
            std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
        }
        let mut command = Command::new(copy);
        command.args(["an_agent", "--exact", "--ignored", "--nocapture"]);
        command.env("AGENT_ACT", act).env("AGENT_SOCKET", &host.socket);
        command.current_dir("/").stdin(Stdio::piped()).stdout(Stdio::piped());
        if let Some(uid) = uid {
            command.uid(uid).gid(uid);
        }
        Self(command.spawn().unwrap())
    }

    /// The rest of the first line that begins with `word`.
    async fn says(&mut self, word: &str) -> String {
        use std::io::BufRead;
        let stdout = self.0.stdout.take().unwrap();
        let word = word.to_owned();
        let (said, stdout) = tokio::task::spawn_blocking(move || {
            let mut reader = std::io::BufReader::new(stdout);
            loop {
                let mut line = String::new();
                assert!(reader.read_line(&mut line).unwrap() > 0, "the agent said nothing of {word}");
                if let Some((_, said)) = line.split_once(&format!("{word}=")) {
                    return (said.trim().to_owned(), reader.into_inner());
                }
            }
        })
        .await
        .unwrap();
        self.0.stdout = Some(stdout);
        said
    }

    /// Its sockets, held open here so that they outlive whatever it does.
    fn sockets(&self) -> Vec<std::os::fd::OwnedFd> {
        use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
        let pid = Pid::from_child(&self.0);
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).unwrap();
        let open = std::fs::read_dir(format!("/proc/{}/fd", self.0.id())).unwrap().flatten();
        open.filter(|e| {
            std::fs::read_link(e.path()).is_ok_and(|l| l.to_string_lossy().starts_with("socket:"))
        })
        .map(|e| e.file_name().to_str().unwrap().parse().unwrap())
        .map(|fd: i32| pidfd_getfd(&pidfd, fd, PidfdGetfdFlags::empty()).unwrap())
        .collect()
    }

    fn go(&mut self) {
        use std::io::Write;
        self.0.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
    }
}

/// Not a test: what the agents above run.
#[test]
#[ignore = "run by other tests, in a process of its own"]
fn an_agent() {
    let Ok(act) = std::env::var("AGENT_ACT") else { return };
    let socket = std::path::PathBuf::from(std::env::var("AGENT_SOCKET").unwrap());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let channel = support::channel(socket).await;
        let mut client = hallmark_proto::agent::agent_identity_client::AgentIdentityClient::new(channel);
        if let Some(handle) = act.strip_prefix("sign:") {
            let key_handle = hex::decode(handle).unwrap().into();
            let ask = SignRequest { key_handle, digest: vec![7; 32].into() };
            let code = client.sign(ask).await.map_or_else(|s| s.code(), |_| Code::Ok);
            println!("code={code:?}");
            return;
        }
        let request = WatchIdentityRequest { agent: String::new() };
        let mut stream = match client.watch_identity(request).await {
            Ok(stream) => stream.into_inner(),
            Err(status) => return println!("refused={}", status.message()),
        };
        let first = stream.message().await.unwrap().unwrap();
        println!("instance={}", hex::encode(&first.instance_id));
        std::io::stdin().read_line(&mut String::new()).unwrap();
        if act == "exec" {
            let error = Command::new("/bin/sleep").arg("60").exec();
            panic!("{error}");
        }
        let end = stream.message().await.unwrap_err();
        println!("end={}", end.message());
    });
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_the_process_ends_the_instance() {
    let host = Host::start().await;
    host.register(vec![hardware("vault")]);
    let mut agent = Agent::start(&host, "watch", None);
    let instance = hex::decode(agent.says("instance").await).unwrap();
    assert_eq!(host.hardware.alive(), 1);
    let connection = agent.sockets();
    drop(agent);
    until(|| host.agents.live() == 0 && host.hardware.alive() == 0).await;
    until(|| host.issuer.retired(&instance).as_deref() == Some("process-exited")).await;
    drop(connection);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exec_ends_the_instance() {
    let host = Host::start().await;
    host.register(vec![hardware("vault")]);
    let mut agent = Agent::start(&host, "exec", None);
    let instance = hex::decode(agent.says("instance").await).unwrap();
    let connection = agent.sockets();
    assert!(!connection.is_empty());
    agent.go();
    until(|| host.agents.live() == 0 && host.hardware.alive() == 0).await;
    until(|| host.issuer.retired(&instance).as_deref() == Some("image-replaced")).await;
    assert!(agent.0.try_wait().unwrap().is_none(), "the process itself lives on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_process_cannot_sign_with_a_handle_it_has_learnt() {
    let host = Host::start().await;
    host.register(vec![hardware("vault")]);
    let (first, _stream) = host.watch("").await.unwrap();
    let Some(identity::Key::KeyHandle(handle)) = first.key else { panic!("a handle") };
    let mut thief = Agent::start(&host, &format!("sign:{}", hex::encode(&handle)), None);
    assert_eq!(thief.says("code").await, "PermissionDenied");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn another_user_does_not_match() {
    if !nix::unistd::geteuid().is_root() {
        eprintln!("skipped: not root, cannot run a process as another user");
        return;
    }
    let host = Host::start().await;
    host.register(vec![mine("mailer")]);
    let mut agent = Agent::start(&host, "watch", Some(65534));
    assert!(agent.says("refused").await.contains("none of this host's 1 registrations"));
    host.register(vec![wire::Registration { selectors: vec!["unix:user:nobody".into()], ..mine("n") }]);
    let mut agent = Agent::start(&host, "watch", Some(65534));
    agent.says("instance").await;
}
