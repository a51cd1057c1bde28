//! The link to the issuer, over TLS, with a software TPM where one is needed.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use std::sync::Arc;

use hallmark_core::id::HostId;
use hallmark_hostd::config::SecretSource;
use hallmark_hostd::keys::{KeySpec, KeyStore, TpmKeys, csr};
use hallmark_hostd::link::attester::Attester;
use hallmark_hostd::link::issuer::{EndReason, Issuer};
use hallmark_hostd::link::{JoinToken, Link, TpmAttester};
use hallmark_hostd::state::State;
use hallmark_kit::swtpm::{Swtpm, SwtpmCa};
use hallmark_proto::issuer as wire;
use hallmark_proto::issuer::host_update::Update;
use hallmark_tpm::{Tpm, TpmConfig};
use support::tls_issuer::TlsIssuer;
use support::{TRUST_DOMAIN, mine, until};
use tokio::sync::{mpsc, watch};
use tonic::Status;
use tonic::codegen::Bytes;

struct Host {
    state: Arc<State>,
    issuer: Issuer,
    revoked: mpsc::Receiver<Vec<Bytes>>,
    link: tokio::task::JoinHandle<()>,
    token: tempfile::NamedTempFile,
}

impl Drop for Host {
    fn drop(&mut self) {
        self.link.abort();
    }
}

impl Host {
    fn by_token(issuers: &[&TlsIssuer], token: &str) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), format!("{token}\n")).unwrap();
        let attester = JoinToken::new(SecretSource::File(file.path().to_owned())).unwrap();
        Self::new(issuers, Arc::new(attester), file)
    }

    async fn by_tpm(issuers: &[&TlsIssuer], tpm: &Tpm) -> Self {
        let file = tempfile::NamedTempFile::new().unwrap();
        let attester = TpmAttester::new(tpm.clone(), "/nonexistent/event-log".into()).await.unwrap();
        Self::new(issuers, Arc::new(attester), file)
    }

    fn new(issuers: &[&TlsIssuer], attester: Arc<dyn Attester>, token: tempfile::NamedTempFile) -> Self {
        let host: HostId = "host-1".parse().unwrap();
        let (state, revoked) = State::new(host, TRUST_DOMAIN.parse().unwrap());
        let (connection, connected) = watch::channel(None);
        let (issuer, quotes) = Issuer::new(connected, state.clone());
        let endpoints: Vec<String> = issuers.iter().map(|i| i.endpoint()).collect();
        let roots = issuers.last().unwrap().infra_roots();
        let link = Link::new(Vec::new(), roots, attester, state.clone(), connection, quotes)
            .in_order(endpoints)
            .ask_when_disabled_every(std::time::Duration::from_millis(20));
        Self { state, issuer, revoked, link: tokio::spawn(link.run()), token }
    }

    async fn connected(&self) {
        until(|| self.state.standing.borrow().connected).await;
    }

    fn error(&self) -> String {
        self.state.standing.borrow().last_error.clone()
    }
}

async fn item(tpm: Option<&Tpm>) -> wire::IssueItem {
    let id = "spiffe://example.org/agent/mailer".parse().unwrap();
    let key = match tpm {
        Some(tpm) => TpmKeys::new(tpm.clone()).create(&KeySpec::default()).await.unwrap(),
        None => hallmark_hostd::keys::SoftwareKeys.create(&KeySpec::default()).await.unwrap(),
    };
    let csr = csr::request(&id, key.public_point(), |d| key.sign(d)).await.unwrap();
    wire::IssueItem {
        agent: "mailer".into(),
        csr: csr.into(),
        key: Some(key.evidence()),
        ..Default::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_join_token_opens_the_link_once() {
    let issuer = TlsIssuer::start().await;
    issuer.conduct().registrations = vec![mine("mailer")];
    let host = Host::by_token(&[&issuer], "token-1");
    host.connected().await;
    until(|| host.state.registrations.borrow().as_ref().is_some_and(|r| r.len() == 1)).await;
    assert_eq!(host.state.bundle.borrow().as_ref().unwrap().revision, 1);
    assert!(host.state.standing.borrow().attested);
    let issued = host.issuer.issue(item(None).await).await.unwrap();
    assert!(matches!(issued.outcome, Some(wire::issue_result::Outcome::Issued(_))));
    host.issuer.fresh_quote().await.expect_err("nothing to quote with");

    let id = hallmark_core::id::InstanceId::from_bytes([7; 16]);
    host.issuer.retire(id, EndReason::ProcessExited);
    host.issuer.flush(std::time::Duration::from_secs(10)).await;
    assert_eq!(issuer.book().retired, [(vec![7; 16], "process-exited".to_owned())]);
    drop(host);

    // Another daemon with the same token: as after a restart.
    let again = Host::by_token(&[&issuer], "token-1");
    until(|| again.error().contains("join-token")).await;
    assert!(!again.state.standing.borrow().attested);
    // The operator leaves a new one.
    std::fs::write(again.token.path(), "token-2\n").unwrap();
    again.connected().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_issuers_word_reaches_the_state() {
    let issuer = TlsIssuer::start().await;
    let mut host = Host::by_token(&[&issuer], "t");
    host.connected().await;
    let set = wire::RegistrationSet { revision: 2, registrations: vec![mine("a"), mine("b")] };
    issuer.tell(Update::Registrations(set));
    until(|| host.state.registrations.borrow().as_ref().is_some_and(|r| r.len() == 2)).await;
    issuer.tell(Update::Bundles(support::bundle(9)));
    until(|| host.state.bundle.borrow().as_ref().is_some_and(|b| b.revision == 9)).await;
    issuer.tell(Update::Revocations(wire::Revocations { serials: vec![vec![1, 2].into()] }));
    assert_eq!(host.revoked.recv().await.unwrap(), [vec![1, 2]]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn roots_that_the_issuer_sends_are_taken_over_and_acknowledged() {
    let (issuer, other) = (TlsIssuer::start().await, TlsIssuer::start().await);
    let host = Host::by_token(&[&issuer], "t");
    host.connected().await;
    let ders = |issuer: &TlsIssuer| issuer.infra_roots().ders()[0].to_vec();
    let send = |revision, roots: Vec<Vec<u8>>, denied: Vec<[u8; 32]>| {
        let roots = roots.into_iter().map(Into::into).collect();
        let denied = denied.into_iter().map(|key| key.to_vec().into()).collect();
        issuer.tell(Update::Infrastructure(wire::InfrastructureRoots { revision, roots, denied }));
    };
    // Acknowledgements may overtake each other: the issuer keeps the highest.
    issuer.tell(Update::Bundles(support::bundle(9)));
    until(|| issuer.conduct().acknowledged.contains(&(9, 0))).await;
    send(4, vec![ders(&issuer), ders(&other)], vec![]);
    until(|| issuer.conduct().acknowledged.contains(&(9, 4))).await;
    // What was overtaken on its way, and what would leave nobody to trust, changes nothing.
    send(3, vec![ders(&other)], vec![]);
    issuer.tell(Update::Bundles(support::bundle(8)));
    send(5, vec![], vec![]);
    issuer.tell(Update::Bundles(support::bundle(10)));
    until(|| issuer.conduct().acknowledged.contains(&(10, 4))).await;
    assert_eq!(host.state.bundle.borrow().as_ref().unwrap().revision, 10);
    assert!(issuer.conduct().acknowledged.iter().all(|(bundle, _)| *bundle != 8));
    issuer.hang_up();
    until(|| issuer.conduct().links == 2).await;
    host.connected().await;

    // The CA that the issuer shows itself by counts no more: it is not spoken to again.
    send(6, vec![ders(&issuer)], vec![issuer.authority()]);
    until(|| issuer.conduct().acknowledged.iter().any(|(_, i)| *i == 6)).await;
    issuer.hang_up();
    until(|| host.error().contains("was tainted")).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_whose_credential_is_of_a_tainted_ca_attests_anew_in_time() {
    let dir = tempfile::tempdir().unwrap();
    let ca = SwtpmCa::new(dir.path().join("ca")).unwrap();
    let swtpm = Swtpm::started(&ca, "host-1").unwrap();
    let tpm = Tpm::open(TpmConfig::new(swtpm.tcti())).await.unwrap();
    let issuer = TlsIssuer::start().await;
    let host = Host::by_tpm(&[&issuer], &tpm).await;
    host.connected().await;
    let renew = |authority: [u8; 32], within_seconds| {
        let authorities = vec![authority.to_vec().into()];
        issuer.tell(Update::Renew(wire::Renew { authorities, within_seconds }));
    };
    renew([7; 32], 0);
    issuer.tell(Update::Bundles(support::bundle(9)));
    until(|| host.state.bundle.borrow().as_ref().is_some_and(|b| b.revision == 9)).await;
    assert_eq!(issuer.conduct().attested, 1, "another CA is no business of this host's own");
    renew(issuer.authority(), 1);
    until(|| issuer.conduct().attested == 2).await;
    host.connected().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuer_that_goes_and_comes_back_is_found_again() {
    let mut issuer = TlsIssuer::start().await;
    issuer.conduct().registrations = vec![mine("a")];
    let host = Host::by_token(&[&issuer], "t");
    host.connected().await;
    issuer.stop().await;
    until(|| !host.state.standing.borrow().connected).await;
    assert!(!host.error().is_empty());
    assert!(host.state.registrations.borrow().is_some(), "what was known is still known");
    host.issuer.issue(item(None).await).await.unwrap_err();
    let id = hallmark_core::id::InstanceId::from_bytes([7; 16]);
    host.issuer.retire(id, EndReason::AgentClosed);
    let mut news = host.state.news.subscribe();
    issuer.listen().await;
    host.connected().await;
    news.changed().await.unwrap();
    assert_eq!(issuer.conduct().attested, 1, "the credential is good yet");
    until(|| issuer.book().retired.len() == 1).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn endpoints_are_tried_in_turn() {
    let mut first = TlsIssuer::start().await;
    let second = TlsIssuer::start().await;
    first.stop().await;
    let host = Host::by_token(&[&first, &second], "t");
    host.connected().await;
    assert_eq!(second.conduct().links, 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_issuer_under_another_root_is_not_spoken_to() {
    let (stranger, known) = (TlsIssuer::start().await, TlsIssuer::start().await);
    // The roots are the known one's: the stranger has the address, and not the certificate.
    let host = Host::by_token(&[&stranger, &known], "t");
    host.connected().await;
    assert!(stranger.conduct().hellos.is_empty(), "it has not even seen the token");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_proves_itself_by_its_tpm_and_keeps_its_key_there() {
    let dir = tempfile::tempdir().unwrap();
    let ca = SwtpmCa::new(dir.path().join("ca")).unwrap();
    let swtpm = Swtpm::started(&ca, "host-1").unwrap();
    let tpm = Tpm::open(TpmConfig::new(swtpm.tcti())).await.unwrap();
    let issuer = TlsIssuer::start().await;
    // Good for one request only: each further one needs a quote.
    issuer.conduct().quote_age = 1;
    let host = Host::by_tpm(&[&issuer], &tpm).await;
    host.connected().await;
    assert_eq!(host.error(), "");
    let hello = issuer.conduct().hellos[0].clone();
    let Some(wire::host_hello::Proof::Tpm(hello)) = hello.proof else { panic!("by TPM") };
    assert!(!hello.ek_certificates.is_empty());

    until(|| host.state.standing.borrow().quote_valid_until <= now()).await;
    let (one, two) = tokio::join!(host.issuer.fresh_quote(), host.issuer.fresh_quote());
    one.unwrap();
    two.unwrap();
    assert_eq!(issuer.conduct().refreshed, 1, "one quote for both");
    assert_eq!(host.state.standing.borrow().highest_tier, "advanced");

    issuer.conduct().quote_age = 300;
    until(|| host.state.standing.borrow().quote_valid_until <= now()).await;
    host.issuer.fresh_quote().await.unwrap();
    host.issuer.fresh_quote().await.unwrap();
    assert_eq!(issuer.conduct().refreshed, 2, "no more than needed");

    let issued = host.issuer.issue(item(Some(&tpm)).await).await.unwrap();
    assert!(matches!(issued.outcome, Some(wire::issue_result::Outcome::Issued(_))));

    // An order to attest again is followed, and the link goes on with the new credential.
    issuer.tell(Update::AttestNow(wire::AttestNow { reason: "test".into() }));
    until(|| issuer.conduct().attested == 2 && issuer.conduct().links == 2).await;
    host.connected().await;
    host.issuer.issue(item(Some(&tpm)).await).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_attests_again_before_its_credential_ends_and_survives_a_refusal() {
    let dir = tempfile::tempdir().unwrap();
    let ca = SwtpmCa::new(dir.path().join("ca")).unwrap();
    let swtpm = Swtpm::started(&ca, "host-1").unwrap();
    let tpm = Tpm::open(TpmConfig::new(swtpm.tcti())).await.unwrap();
    let issuer = TlsIssuer::start().await;
    issuer.conduct().svid_lifetime = 5;
    let host = Host::by_tpm(&[&issuer], &tpm).await;
    until(|| issuer.conduct().attested >= 2).await;
    // Refused while the credential is good: the link stays up. Past its end: it does not.
    issuer.conduct().refuse = Some(Status::permission_denied("pcr-policy"));
    until(|| host.error().contains("pcr-policy")).await;
    until(|| !host.state.standing.borrow().connected).await;
    issuer.conduct().refuse = None;
    host.connected().await;
}

/// The one under way may have read the PCRs before they became what the second caller wants quoted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_new_quote_asked_for_while_one_is_under_way_is_another_one() {
    let dir = tempfile::tempdir().unwrap();
    let ca = SwtpmCa::new(dir.path().join("ca")).unwrap();
    let swtpm = Swtpm::started(&ca, "host-1").unwrap();
    let tpm = Tpm::open(TpmConfig::new(swtpm.tcti())).await.unwrap();
    let issuer = TlsIssuer::start().await;
    let gate = Arc::new(tokio::sync::Semaphore::new(0));
    issuer.conduct().gate = Some(gate.clone());
    let host = Host::by_tpm(&[&issuer], &tpm).await;
    host.connected().await;
    let mut first = Box::pin(host.issuer.new_quote());
    assert!(futures::poll!(&mut first).is_pending());
    until(|| issuer.conduct().quotes_begun == 1).await;
    let (mut second, mut third) = (Box::pin(host.issuer.new_quote()), Box::pin(host.issuer.new_quote()));
    assert!(futures::poll!(&mut second).is_pending() && futures::poll!(&mut third).is_pending());
    // Served by the same task after what was asked of it before.
    issuer.tell(Update::Bundles(support::bundle(9)));
    until(|| host.state.bundle.borrow().as_ref().is_some_and(|b| b.revision == 9)).await;
    gate.add_permits(1);
    first.await.unwrap();
    until(|| issuer.conduct().quotes_begun == 2).await;
    assert!(futures::poll!(&mut second).is_pending(), "the first quote is not for it");
    gate.add_permits(1);
    second.await.unwrap();
    third.await.unwrap();
    assert_eq!(issuer.conduct().refreshed, 2, "and one more is enough for all who asked meanwhile");
}

/// As after a change of the PCR policy: the issuer orders, and what agents are shown follows.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_said_of_the_hosts_tier_follows_an_order_to_attest() {
    let dir = tempfile::tempdir().unwrap();
    let ca = SwtpmCa::new(dir.path().join("ca")).unwrap();
    let swtpm = Swtpm::started(&ca, "host-1").unwrap();
    let tpm = Tpm::open(TpmConfig::new(swtpm.tcti())).await.unwrap();
    let issuer = TlsIssuer::start().await;
    issuer.conduct().tier = "advanced";
    let host = Host::by_tpm(&[&issuer], &tpm).await;
    host.connected().await;
    assert_eq!(host.state.standing.borrow().highest_tier, "advanced");
    let order = || Update::AttestNow(wire::AttestNow { reason: "policy".into() });

    issuer.conduct().tier = "foundation";
    issuer.tell(order());
    until(|| host.state.standing.borrow().highest_tier == "foundation").await;
    until(|| issuer.conduct().links == 2).await;

    // Refused, while the credential is good: the link stays, the tier and the quote do not.
    issuer.conduct().refuse = Some(Status::permission_denied("attestation refused: pcr-policy"));
    issuer.tell(order());
    until(|| host.state.standing.borrow().highest_tier.is_empty()).await;
    host.connected().await;
    let standing = host.state.standing.borrow().clone();
    assert!(standing.unmet.iter().any(|u| u.contains("pcr-policy")), "{standing:?}");
    assert_eq!(standing.quote_valid_until, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_disabled_host_says_so_and_asks_until_it_is_enabled() {
    let issuer = TlsIssuer::start().await;
    let host = Host::by_token(&[&issuer], "t");
    host.connected().await;
    issuer.conduct().refuse_link = Some(Status::permission_denied("host-disabled"));
    issuer.hang_up();
    until(|| host.state.standing.borrow().disabled).await;
    let standing = host.state.standing.borrow().clone();
    assert!(!standing.connected && !standing.attested);
    assert!(standing.last_error.contains("disabled"), "{}", standing.last_error);
    host.issuer.issue(item(None).await).await.unwrap_err();
    issuer.conduct().refuse_link = None;
    host.connected().await;
    let standing = host.state.standing.borrow().clone();
    assert!(!standing.disabled && standing.attested && standing.last_error.is_empty());
    assert_eq!(issuer.conduct().attested, 1, "its credential is good once more: no new token is needed");

    // The same word while it attests.
    issuer.conduct().refuse = Some(Status::permission_denied("attestation refused: host-disabled"));
    let other = Host::by_token(&[&issuer], "u");
    until(|| other.state.standing.borrow().disabled).await;
    issuer.conduct().refuse = None;
    other.connected().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_attests_again_shows_its_certificate_unless_it_is_not_taken() {
    let dir = tempfile::tempdir().unwrap();
    let ca = SwtpmCa::new(dir.path().join("ca")).unwrap();
    let swtpm = Swtpm::started(&ca, "host-1").unwrap();
    let tpm = Tpm::open(TpmConfig::new(swtpm.tcti())).await.unwrap();
    let issuer = TlsIssuer::start().await;
    let host = Host::by_tpm(&[&issuer], &tpm).await;
    host.connected().await;
    let again = || issuer.tell(Update::AttestNow(wire::AttestNow { reason: "test".into() }));
    again();
    until(|| issuer.conduct().links == 2).await;
    assert_eq!(issuer.conduct().known, [false, true]);
    // The connection that is open stays; the next handshake would fail with the certificate.
    issuer.forget_hosts();
    again();
    until(|| issuer.conduct().attested == 3).await;
    assert_eq!(issuer.conduct().known, [false, true, false]);
}

fn now() -> i64 {
    std::time::UNIX_EPOCH.elapsed().unwrap().as_secs() as i64
}
