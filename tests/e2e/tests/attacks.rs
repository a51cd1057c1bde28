//! Attacks on a running trust domain, each refused for exactly its reason. Those that need forged TPM
//! evidence are beside the verifier, in `hallmark-core`; these need the real issuer.

use anyhow::{Context, Result};
use hallmark_core::id::InstanceId;
use hallmark_e2e::{Bed, BedOptions, Host, Rogue, admin, csr, csr_with, join_token, wait_until};
use hallmark_proto::issuer as wire;
use rcgen::{BasicConstraints, IsCa, KeyPair, SanType};
use tonic::Code;

/// A bed with a CA in memory: these attacks do not concern the token.
fn bed() -> Result<Bed> {
    Bed::start(BedOptions { dev: true, ..BedOptions::default() })
}

const AGENTS: &str = r#"
[[agent]]
name = "here"
owner = "team@test.example"
tier = "foundation"
hosts = ["host-1"]
selectors = ["unix:uid:1001"]

[[agent]]
name = "near"
owner = "team@test.example"
tier = "foundation"
hosts = ["host-1"]
selectors = ["unix:uid:1001"]

[[agent]]
name = "elsewhere"
owner = "team@test.example"
tier = "foundation"
hosts = ["host-2"]
selectors = ["unix:uid:1001"]

[[agent]]
name = "better"
owner = "team@test.example"
tier = "enterprise"
hosts = ["host-1"]
selectors = ["systemd:unit:better.service"]

[[agent]]
name = "best"
owner = "team@test.example"
tier = "advanced"
hosts = ["host-1"]
selectors = ["systemd:unit:best.service"]
"#;

/// An instance id drawn when this was first asked: the same each time.
fn drawn(n: u8) -> Vec<u8> {
    static NOW: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    InstanceId::drawn_at(*NOW.get_or_init(seconds) * 1000, [n; 10]).as_bytes().to_vec()
}

fn item(agent: &str, selectors: &[&str], csr: Vec<u8>) -> wire::IssueItem {
    wire::IssueItem {
        agent: agent.to_owned(),
        instance_id: drawn(1).into(),
        csr: csr.into(),
        selectors: selectors.iter().map(ToString::to_string).collect(),
        key: Some(wire::issue_item::Key::Software(wire::SoftwareKey {})),
        renews: Vec::new().into(),
        traceparent: String::new(),
    }
}

/// Issues one item; the codes of what was not met, or none when it was issued.
async fn issue(rogue: &Rogue, item: wire::IssueItem) -> Result<Vec<String>> {
    let response = rogue.issuance().issue(wire::IssueRequest { items: vec![item] }).await?.into_inner();
    match response.results.into_iter().next().and_then(|r| r.outcome).context("no result")? {
        wire::issue_result::Outcome::Issued(_) => Ok(Vec::new()),
        wire::issue_result::Outcome::Refused(refused) => {
            Ok(refused.unmet.into_iter().map(|u| u.code).collect())
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn join_tokens() -> Result<()> {
    let bed = bed()?;
    let token = join_token(&bed, "host-1")?;
    let guessed = Rogue::new(&bed)?.join("host-1", &"A".repeat(43)).await.unwrap_err();
    let other_host = Rogue::new(&bed)?.join("host-2", &token).await.unwrap_err();
    Rogue::new(&bed)?.join("host-1", &token).await?;
    let twice = Rogue::new(&bed)?.join("host-1", &token).await.unwrap_err();
    // Strangers learn no more than that it bought nothing: not which of the reasons it was.
    for refused in [guessed, other_host, twice] {
        assert_eq!(
            (refused.code(), refused.message()),
            (Code::PermissionDenied, "attestation refused: join-token")
        );
    }
    // And they learn it before there is a challenge to answer, or anything for the CA to sign.
    let proof = wire::host_hello::Proof::JoinToken(wire::JoinToken { token: "A".repeat(43) });
    let hello = wire::HostHello { host_id: "host-1".to_owned(), proof: Some(proof), version: String::new() };
    let unchallenged = Rogue::new(&bed)?.challenged(hello).await.err().context("it was challenged")?;
    assert_eq!(unchallenged.message(), "attestation refused: join-token");
    // Operators do.
    let records = bed.hallmark_ok(&["records", "--output", "json"])?;
    for reason in ["no such join token", "made for another host id", "used before"] {
        assert!(records.contains(reason), "{reason}: {records}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_expired_join_token() -> Result<()> {
    let bed = bed()?;
    let out = bed.hallmark_ok(&["join-token", "create", "host-1", "--ttl", "1s", "--output", "json"])?;
    let json: serde_json::Value = serde_json::from_str(&out)?;
    let token = json["token"].as_str().context("token")?.to_owned();
    wait_until("the token to expire", || {
        let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).ok()?.as_secs();
        (now > bed_started() + 2).then_some(())
    })?;
    let refused = Rogue::new(&bed)?.join("host-1", &token).await.unwrap_err();
    assert_eq!(refused.message(), "attestation refused: join-token");
    let records = bed.hallmark_ok(&["records", "--output", "json"])?;
    assert!(records.contains("has expired"), "{records}");
    Ok(())
}

/// Seconds since 1970 when this was first asked.
fn bed_started() -> u64 {
    static START: std::sync::OnceLock<u64> = std::sync::OnceLock::new();
    *START.get_or_init(seconds)
}

fn seconds() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |d| d.as_secs())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_host_asks_for_what_is_not_its_own() -> Result<()> {
    let bed = bed()?;
    bed.apply(AGENTS)?;
    let rogue = Rogue::joined(&bed, "host-1").await?;
    let key = KeyPair::generate()?;
    let good = || csr(&key, Some("spiffe://test.example/agent/here"));

    assert_eq!(issue(&rogue, item("here", &["unix:uid:1001"], good())).await?, [""; 0]);
    let elsewhere = csr(&key, Some("spiffe://test.example/agent/elsewhere"));
    assert_eq!(
        issue(
            &rogue,
            wire::IssueItem {
                instance_id: drawn(2).into(),
                ..item("elsewhere", &["unix:uid:1001"], elsewhere)
            }
        )
        .await?,
        ["host-named"]
    );
    assert_eq!(issue(&rogue, item("here", &["unix:uid:1002"], good())).await?, ["selectors"]);
    assert_eq!(issue(&rogue, item("nobody", &[], csr(&key, None))).await?, ["no-registration"]);
    // The id is another agent's, though this one may run here as well.
    assert_eq!(issue(&rogue, item("near", &["unix:uid:1001"], csr(&key, None))).await?, ["instance-id"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_instance_that_has_ended_and_an_id_from_another_day() -> Result<()> {
    // With CA keys in a token: a restart leaves the roots as they are.
    let mut bed = Bed::start(BedOptions::default())?;
    bed.apply(AGENTS)?;
    let rogue = Rogue::joined(&bed, "host-1").await?;
    let other = Rogue::joined(&bed, "host-2").await?;
    let key = KeyPair::generate()?;
    let again = || item("here", &["unix:uid:1001"], csr(&key, None));
    assert_eq!(issue(&rogue, again()).await?, [""; 0]);
    let retiring = |id| wire::RetireRequest { instance_ids: vec![id], reason: "process-exited".to_owned() };
    let retire = || retiring(drawn(1).into());
    // Another host's word ends nothing.
    other.issuance().retire(retire()).await?;
    assert_eq!(issue(&rogue, again()).await?, [""; 0]);
    rogue.issuance().retire(retire()).await?;
    assert_eq!(issue(&rogue, again()).await?, ["instance-ended"]);
    // So does its own word about an instance whose first request is still under way.
    let ahead = wire::IssueItem { instance_id: drawn(2).into(), ..again() };
    rogue.issuance().retire(retiring(drawn(2).into())).await?;
    assert_eq!(issue(&rogue, ahead).await?, ["instance-ended"]);
    bed.kill_issuer()?;
    bed.start_issuer()?;
    assert_eq!(issue(&rogue, again()).await?, ["instance-ended"], "forgotten by a restart");
    let yesterday = InstanceId::drawn_at((seconds() - 86_400) * 1000, [9; 10]);
    let old = wire::IssueItem { instance_id: yesterday.as_bytes().to_vec().into(), ..again() };
    assert_eq!(issue(&rogue, old).await?, ["instance-id"]);
    Ok(())
}

/// What a host says stands in the record: it may not be as long as it likes.
#[tokio::test(flavor = "multi_thread")]
async fn words_too_long_for_the_record() -> Result<()> {
    let bed = bed()?;
    bed.apply(AGENTS)?;
    let rogue = Rogue::joined(&bed, "host-1").await?;
    let key = KeyPair::generate()?;
    let good = || item("here", &["unix:uid:1001"], csr(&key, None));
    let long = "a".repeat(4000);
    let mut many = good();
    many.selectors.extend((0..20).map(|n| format!("cgroup:path:/{n}/{long}")));
    let mut label = good();
    label.key = Some(wire::issue_item::Key::Pkcs11(wire::Pkcs11Key {
        token_label: "t".repeat(100_000),
        ..wire::Pkcs11Key::default()
    }));
    assert_eq!(issue(&rogue, many).await?, ["selectors"]);
    assert_eq!(issue(&rogue, label).await?, ["key-evidence"]);
    assert_eq!(issue(&rogue, good()).await?, [""; 0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn certificate_requests() -> Result<()> {
    let bed = bed()?;
    bed.apply(AGENTS)?;
    let rogue = Rogue::joined(&bed, "host-1").await?;
    let key = KeyPair::generate()?;
    let uri = || SanType::URI("spiffe://test.example/agent/here".try_into().unwrap());
    let mut forged = csr(&key, None);
    *forged.last_mut().unwrap() ^= 1;
    let requests = [
        ("bad signature", forged),
        ("another agent's name", csr(&key, Some("spiffe://test.example/agent/best"))),
        ("a host's name", csr(&key, Some("spiffe://test.example/host/host-1"))),
        (
            "a second name",
            csr_with(&key, |p| {
                p.subject_alt_names = vec![uri(), SanType::DnsName("x.example".try_into().unwrap())]
            }),
        ),
        ("a CA", csr_with(&key, |p| p.is_ca = IsCa::Ca(BasicConstraints::Unconstrained))),
        ("truncated", csr(&key, None)[..100].to_vec()),
        ("empty", Vec::new()),
        ("oversized", vec![0x30; 100_000]),
    ];
    for (what, csr) in requests {
        assert_eq!(issue(&rogue, item("here", &["unix:uid:1001"], csr)).await?, ["csr"], "{what}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_was_proved() -> Result<()> {
    let bed = bed()?;
    bed.apply(AGENTS)?;
    let rogue = Rogue::joined(&bed, "host-1").await?;
    let key = KeyPair::generate()?;

    // A join-token host above foundation: everything that is missing is named.
    let better = wire::IssueItem {
        instance_id: drawn(3).into(),
        ..item("better", &["systemd:unit:better.service"], csr(&key, None))
    };
    let unmet = issue(&rogue, better).await?;
    assert!(unmet.contains(&"host-tpm".to_owned()) && unmet.contains(&"pcr-policy".to_owned()), "{unmet:?}");

    // A software CSR presented as hardware: by a host without a TPM, with made-up evidence.
    let certification = wire::KeyCertification {
        public: vec![0; 90].into(),
        attest: vec![0; 90].into(),
        signature: vec![0; 70].into(),
    };
    let tpm = wire::TpmKey { certification: Some(certification), policy_pcrs: Vec::new() };
    let claimed = wire::IssueItem {
        key: Some(wire::issue_item::Key::Tpm(tpm)),
        instance_id: drawn(4).into(),
        ..item("best", &["systemd:unit:best.service"], csr(&key, None))
    };
    assert_eq!(issue(&rogue, claimed).await?, ["key-evidence"]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn doors_without_a_host_svid() -> Result<()> {
    let bed = bed()?;
    let rogue = Rogue::new(&bed)?;
    let refused = rogue.issuance().issue(wire::IssueRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let refused = rogue.issuance().retire(wire::RetireRequest::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unauthenticated);
    let mut link = wire::host_link_client::HostLinkClient::new(rogue.channel.clone());
    assert_eq!(link.watch(wire::WatchRequest::default()).await.unwrap_err().code(), Code::Unauthenticated);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_out_of_bounds() -> Result<()> {
    let bed = bed()?;
    bed.apply(AGENTS)?;
    let rogue = Rogue::joined(&bed, "host-1").await?;
    let none = rogue.issuance().issue(wire::IssueRequest::default()).await.unwrap_err();
    let key = KeyPair::generate()?;
    let items = (0..65).map(|_| item("here", &[], csr(&key, None))).collect();
    let many = rogue.issuance().issue(wire::IssueRequest { items }).await.unwrap_err();
    assert_eq!((none.code(), many.code()), (Code::InvalidArgument, Code::InvalidArgument));
    // Larger than any message may be.
    let huge = item("here", &[], vec![0; 9 << 20]);
    let huge = rogue.issuance().issue(wire::IssueRequest { items: vec![huge] }).await.unwrap_err();
    assert_eq!(huge.code(), Code::ResourceExhausted);
    // The issuer is none the worse.
    assert_eq!(issue(&rogue, item("here", &["unix:uid:1001"], csr(&key, None))).await?, [""; 0]);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_that_do_not_follow_the_protocol() -> Result<()> {
    let bed = bed()?;
    let hello = |proof| wire::HostHello { host_id: "host-1".to_owned(), proof, version: String::new() };
    // Evidence without a hello, a hello without proof, a stream that ends at once.
    let mut rogue = Rogue::new(&bed)?;
    let refused = rogue.attest(hello(None), wire::HostEvidence::default()).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    let mut client = wire::host_attestation_client::HostAttestationClient::new(rogue.channel.clone());
    let empty = tokio_stream::iter(Vec::<wire::AttestRequest>::new());
    let mut answers = client.attest(empty).await?.into_inner();
    assert_eq!(answers.message().await.unwrap_err().code(), Code::InvalidArgument);
    let step = Some(wire::attest_request::Step::Evidence(wire::HostEvidence::default()));
    let mut answers = client.attest(tokio_stream::iter([wire::AttestRequest { step }])).await?.into_inner();
    assert_eq!(answers.message().await.unwrap_err().code(), Code::InvalidArgument);
    // A TPM whose structures are noise.
    let noise = wire::TpmHello {
        ek_certificates: vec![vec![0xff; 64].into()],
        ek_public: vec![1; 64].into(),
        ak_public: vec![2; 64].into(),
    };
    let refused = rogue
        .attest(hello(Some(wire::host_hello::Proof::Tpm(noise))), wire::HostEvidence::default())
        .await
        .unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument);
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_tpm_takes_over_a_host_id() -> Result<()> {
    let mut bed = bed()?;
    let mut first = Host::with_tpm(&bed, "host-1")?;
    first.start(&bed)?;
    first.stop()?;
    let mut second = Host::with_tpm(&bed, "host-1")?;
    second.spawn(&bed)?;
    bed.issuer()?.wait_for_log("host-id-taken", 0)?;
    assert!(second.daemon()?.is_alive(), "a refused host daemon keeps trying, and serves nobody");
    second.stop()?;
    // The first is not disturbed.
    first.start(&bed)?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_with_a_genuine_tpm() -> Result<()> {
    let mut bed = Bed::start(BedOptions { dev: true, open: false, ..BedOptions::default() })?;
    let mut host = Host::with_tpm(&bed, "host-1")?;
    host.spawn(&bed)?;
    bed.issuer()?.wait_for_log("host-not-allowed", 0)?;
    let shown = bed.hallmark(&["host", "show", "host-1"])?;
    assert!(!shown.status.success());
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_software_tpm_in_a_production_trust_domain() -> Result<()> {
    let mut bed = Bed::start(BedOptions { dev: true, lab: false, ..BedOptions::default() })?;
    let mut host = Host::with_tpm(&bed, "host-1")?;
    host.start(&bed)?;
    let policy = bed.hallmark_ok(&["host", "pcrs", "host-1"])?;
    bed.add_policy(&policy)?;
    let show = bed.hallmark_ok(&["host", "show", "host-1", "--output", "json"])?;
    let json: serde_json::Value = serde_json::from_str(&show)?;
    assert_eq!(json["highest_tier"], "foundation", "{show}");
    assert!(show.contains("tpm-hardware") || show.contains("hardware"), "{show}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
async fn an_agent_at_the_admin_socket() -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        hallmark_e2e::skip("another user's process needs root to be started");
        return Ok(());
    }
    let bed = bed()?;
    // Even if the socket's mode lets everybody connect, the peer's uid decides.
    std::fs::set_permissions(bed.admin_socket(), std::os::unix::fs::PermissionsExt::from_mode(0o666))?;
    std::fs::set_permissions(bed.path(""), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    let out = std::process::Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--"])
        .arg(copy_for_all(&bed)?)
        .arg("--admin-socket")
        .arg(bed.admin_socket())
        .arg("status")
        .output()?;
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && said.contains("not an operator"), "{said}");
    // Root is an operator.
    admin(&bed.admin_socket()).status(hallmark_proto::admin::StatusRequest {}).await?;
    Ok(())
}

/// The command, where every user can run it.
fn copy_for_all(bed: &Bed) -> Result<std::path::PathBuf> {
    let copy = bed.path("hallmark-for-all");
    std::fs::copy(hallmark_e2e::binary("hallmark")?, &copy)?;
    std::fs::set_permissions(&copy, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    Ok(copy)
}
