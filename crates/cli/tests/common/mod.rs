//! A fake issuer's admin socket, and the command run as a process.
#![allow(dead_code, unreachable_pub, clippy::unwrap_used, clippy::expect_used)]

pub mod log;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

use hallmark_core::tier::{Hierarchy, Tier};
use hallmark_kit::pki::{TestDomain, unix_now as now};
use hallmark_proto::admin::admin_server::{Admin, AdminServer};
use hallmark_proto::admin::*;
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::{Request, Response, Status};

/// The command, with sockets that are not there unless they are named.
pub fn hallmark(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hallmark"));
    command.env_remove("NO_COLOR").env("HALLMARK_ADMIN_SOCKET", "/nonexistent/admin.sock");
    command
        .env("HALLMARK_AGENT_SOCKET", "/nonexistent/agent.sock")
        .env("NO_PROXY", "127.0.0.1,localhost")
        .args(args);
    command
}

pub fn code(output: &Output) -> i32 {
    output.status.code().expect("it was not killed")
}

pub fn stdout(output: &Output) -> String {
    String::from_utf8(output.stdout.clone()).unwrap()
}

pub fn stderr(output: &Output) -> String {
    String::from_utf8(output.stderr.clone()).unwrap()
}

pub fn json(output: &Output) -> serde_json::Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {} {}", stdout(output), stderr(output)))
}

/// What the fake was asked, as it came over the wire.
#[derive(Default, Clone)]
pub struct Asked {
    pub applied: Vec<ApplyRequest>,
    pub allowed: Vec<AllowHostRequest>,
    pub orders: Vec<String>,
    pub tokens: Vec<CreateJoinTokenRequest>,
    pub records: Vec<ListRecordsRequest>,
}

/// A fake issuer; it ends with the value.
pub struct FakeIssuer {
    _dir: TempDir,
    socket: PathBuf,
    pub domain: Arc<TestDomain>,
    asked: Arc<Mutex<Asked>>,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl FakeIssuer {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("admin.sock");
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let listener = {
            let _inside = runtime.enter();
            UnixListener::bind(&socket).unwrap()
        };
        set_mode(&socket, 0o660);
        let (stop, stopped) = oneshot::channel::<()>();
        let domain = Arc::new(TestDomain::lab("example.org").unwrap());
        let asked: Arc<Mutex<Asked>> = Arc::default();
        let service = Service { domain: domain.clone(), asked: asked.clone() };
        let thread = std::thread::spawn(move || {
            runtime.block_on(async {
                let server = tonic::transport::Server::builder()
                    .add_service(AdminServer::new(service))
                    .serve_with_incoming(UnixListenerStream::new(listener));
                tokio::select! { _ = server => {}, _ = stopped => {} }
            });
        });
        Self { _dir: dir, socket, domain, asked, stop: Some(stop), thread: Some(thread) }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }

    pub fn asked(&self) -> Asked {
        self.asked.lock().unwrap().clone()
    }

    /// Runs the command against this issuer.
    pub fn run(&self, args: &[&str]) -> Output {
        hallmark(args).env("HALLMARK_ADMIN_SOCKET", &self.socket).output().unwrap()
    }
}

impl Drop for FakeIssuer {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

pub fn set_mode(path: &Path, mode: u32) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

struct Service {
    domain: Arc<TestDomain>,
    asked: Arc<Mutex<Asked>>,
}

type Answer<T> = Result<Response<T>, Status>;

fn host(id: &str) -> Host {
    Host {
        host_id: id.into(),
        proof: "tpm".into(),
        ek_digest: "ab".repeat(32),
        ek_trust: "ek-certificate".into(),
        simulated: true,
        ak_name: "000b".into(),
        enrolled_at: now() - 7_200,
        attested_at: now() - 90,
        quote_at: now() - 90,
        highest_tier: "enterprise".into(),
        unmet: vec![Unmet {
            code: "tpm-simulated".into(),
            detail: "a \u{1b}[31mred\u{1b}[0m herring".into(),
        }],
        pcrs: vec![
            PcrValue { index: 7, sha256: "cd".repeat(32) },
            PcrValue { index: 11, sha256: "00".repeat(32) },
        ],
        reset_count: 3,
        restart_count: 1,
        clock_ms: 12_345_678,
        firmware_version: 1,
        connected: true,
        pcr_policy: "default".into(),
        version: "0.1.0".into(),
        pending: false,
        event_log: "replayed".into(),
        disabled: String::new(),
    }
}

fn agent() -> Agent {
    Agent {
        agent: "mailer".into(),
        spiffe_id: "spiffe://example.org/agent/mailer".into(),
        revision: 4,
        tier: "advanced".into(),
        owner: "mail-team@example.org".into(),
        hosts: vec!["web-*".into()],
        selectors: vec!["unix:uid:1001".into()],
        custody: "tpm-certified".into(),
        bind_pcrs: vec![7],
        lifetime_seconds: 600,
        capabilities: vec!["mail.read mailbox/alice/*".into()],
        instances: vec![Instance {
            instance_id: "1a".repeat(16),
            host_id: "web-01".into(),
            serial: "0102".into(),
            custody: "tpm-certified".into(),
            begun_at: now() - 600,
            issued_at: now() - 60,
            not_after: now() + 540,
            state: "live".into(),
        }],
        live_instances: 1,
        ..Agent::default()
    }
}

#[tonic::async_trait]
impl Admin for Service {
    async fn status(&self, _: Request<StatusRequest>) -> Answer<StatusResponse> {
        let ca = |hierarchy: &str, kind: &str| CaStatus {
            hierarchy: hierarchy.into(),
            kind: kind.into(),
            subject: format!("CN={hierarchy} {kind}"),
            serial: "01".into(),
            not_before: now() - 86_400,
            not_after: now() + 86_400 * 365,
            key: "pkcs11:label=x".into(),
            ..CaStatus::default()
        };
        Ok(Response::new(StatusResponse {
            trust_domain: "example.org".into(),
            issuer_id: "issuer-a".into(),
            version: "0.1.0".into(),
            lab: true,
            dev: true,
            documentation_arc: true,
            oid_arc: "1.3.6.1.4.1.32473".into(),
            listen: "127.0.0.1:8443".into(),
            started_at: now() - 60,
            ca_backend: "software".into(),
            cas: vec![ca("foundation", "root"), ca("foundation", "issuing")],
            hosts: 2,
            hosts_connected: 1,
            agents: 3,
            // Of the example in c2sp.org/signed-note.
            log_verifier: "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW".into(),
            ..StatusResponse::default()
        }))
    }

    async fn doctor(&self, _: Request<DoctorRequest>) -> Answer<DoctorResponse> {
        let check = |name: &str, result: &str| Check {
            name: name.into(),
            result: result.into(),
            found: "found".into(),
            remedy: "mend it".into(),
        };
        Ok(Response::new(DoctorResponse { checks: vec![check("token", "ok"), check("CA keys", "warning")] }))
    }

    async fn list_hosts(&self, _: Request<ListHostsRequest>) -> Answer<ListHostsResponse> {
        let token = Host { proof: "join-token".into(), pcrs: vec![], simulated: false, ..host("web-02") };
        Ok(Response::new(ListHostsResponse { hosts: vec![host("web-01"), token] }))
    }

    async fn show_host(&self, request: Request<ShowHostRequest>) -> Answer<Host> {
        match request.into_inner().host_id.as_str() {
            "web-01" => Ok(Response::new(host("web-01"))),
            "web-02" => Ok(Response::new(Host { pcrs: vec![], ..host("web-02") })),
            other => Err(Status::not_found(format!("no host {other}"))),
        }
    }

    async fn allow_host(&self, request: Request<AllowHostRequest>) -> Answer<AllowHostResponse> {
        self.asked.lock().unwrap().allowed.push(request.into_inner());
        Ok(Response::new(AllowHostResponse {}))
    }

    async fn disable_host(&self, request: Request<DisableHostRequest>) -> Answer<DisableHostResponse> {
        let request = request.into_inner();
        self.asked.lock().unwrap().orders.push(format!("disable {}: {}", request.host_id, request.reason));
        Ok(Response::new(DisableHostResponse { ended: vec!["1a".repeat(16), "2b".repeat(16)] }))
    }

    async fn enable_host(&self, request: Request<EnableHostRequest>) -> Answer<EnableHostResponse> {
        self.asked.lock().unwrap().orders.push(format!("enable {}", request.into_inner().host_id));
        Ok(Response::new(EnableHostResponse {}))
    }

    async fn remove_host(&self, request: Request<RemoveHostRequest>) -> Answer<RemoveHostResponse> {
        self.asked.lock().unwrap().orders.push(format!("remove {}", request.into_inner().host_id));
        Ok(Response::new(RemoveHostResponse { ended: vec![] }))
    }

    async fn end_agent(&self, request: Request<EndAgentRequest>) -> Answer<EndAgentResponse> {
        let EndAgentRequest { agent, host_id, instance_id } = request.into_inner();
        self.asked.lock().unwrap().orders.push(format!("end {agent} {host_id} {instance_id}"));
        Ok(Response::new(EndAgentResponse { ended: vec!["1a".repeat(16)] }))
    }

    async fn create_join_token(
        &self,
        request: Request<CreateJoinTokenRequest>,
    ) -> Answer<CreateJoinTokenResponse> {
        let request = request.into_inner();
        let expires_at = now() + request.ttl_seconds.cast_signed();
        self.asked.lock().unwrap().tokens.push(request);
        Ok(Response::new(CreateJoinTokenResponse { token: "hjt-secret".into(), expires_at }))
    }

    async fn apply(&self, request: Request<ApplyRequest>) -> Answer<ApplyResponse> {
        let request = request.into_inner();
        let refuse = request.files.iter().any(|file| file.toml.contains("refuse-me"));
        self.asked.lock().unwrap().applied.push(request);
        let fault =
            Fault { file: "a.toml".into(), key: "agent".into(), problem: "the issuer says no".into() };
        Ok(Response::new(ApplyResponse {
            revision: 5,
            created: vec!["mailer".into()],
            faults: if refuse { vec![fault] } else { vec![] },
            ..ApplyResponse::default()
        }))
    }

    async fn list_agents(&self, _: Request<ListAgentsRequest>) -> Answer<ListAgentsResponse> {
        Ok(Response::new(ListAgentsResponse { agents: vec![agent()] }))
    }

    async fn show_agent(&self, request: Request<ShowAgentRequest>) -> Answer<Agent> {
        match request.into_inner().agent.as_str() {
            "mailer" => Ok(Response::new(agent())),
            "secret" => Err(Status::permission_denied("uid 1001 is no operator")),
            other => Err(Status::not_found(format!("no agent {other}"))),
        }
    }

    async fn explain(&self, request: Request<ExplainRequest>) -> Answer<ExplainResponse> {
        let reachable = request.into_inner().host_id == "web-01";
        let requirement = Requirement {
            code: "quote-fresh".into(),
            title: "a fresh quote".into(),
            state: if reachable { "met" } else { "unmet" }.into(),
            found: "90 s old".into(),
            attack: "tedious".into(),
            attack_detail: "until the next quote".into(),
        };
        let tier = TierExplanation { tier: "advanced".into(), reachable, requirements: vec![requirement] };
        Ok(Response::new(ExplainResponse { registered_tier: "advanced".into(), tiers: vec![tier] }))
    }

    async fn list_records(&self, request: Request<ListRecordsRequest>) -> Answer<ListRecordsResponse> {
        self.asked.lock().unwrap().records.push(request.into_inner());
        let record = Record {
            number: 42,
            at: now(),
            kind: "svid".into(),
            outcome: "refused".into(),
            body: r#"{"v":1,"agent":"mailer","unmet":["quote-too-old"]}"#.into(),
        };
        Ok(Response::new(ListRecordsResponse { records: vec![record] }))
    }

    /// An issuer that lies.
    async fn prove_record(&self, _: Request<ProveRecordRequest>) -> Answer<ProveRecordResponse> {
        let proof = b"c2sp.org/tlog-proof@v1\nindex 0\n\nlog.example.org\n1\nAAAA\n\n".as_slice().into();
        Ok(Response::new(ProveRecordResponse { index: 0, body: "{\"v\":1}".into(), proof }))
    }

    async fn list_cas(&self, request: Request<ListCasRequest>) -> Answer<CasResponse> {
        let all = request.into_inner().all;
        self.asked.lock().unwrap().orders.push(format!("list cas, all: {all}"));
        let ca = CaStatus {
            hierarchy: "enterprise".into(),
            kind: "issuing".into(),
            generation: 2,
            root: 1,
            state: "active".into(),
            not_after: now() + 86_400,
            ..CaStatus::default()
        };
        Ok(Response::new(CasResponse { cas: vec![ca], notes: vec!["more to come".into()] }))
    }

    async fn rotate_ca(&self, request: Request<RotateCaRequest>) -> Answer<CasResponse> {
        let RotateCaRequest { hierarchy, root } = request.into_inner();
        self.asked.lock().unwrap().orders.push(format!("rotate {hierarchy:?}, root: {root}"));
        Ok(Response::new(CasResponse::default()))
    }

    async fn taint_ca(&self, request: Request<TaintCaRequest>) -> Answer<CasResponse> {
        let TaintCaRequest { hierarchy, root, generation, reason } = request.into_inner();
        self.asked
            .lock()
            .unwrap()
            .orders
            .push(format!("taint {hierarchy} {generation}, root: {root}: {reason}"));
        Ok(Response::new(CasResponse::default()))
    }

    async fn request_ca(&self, _: Request<RequestCaRequest>) -> Answer<RequestCaResponse> {
        let csr = b"request".as_slice().into();
        Ok(Response::new(RequestCaResponse { csr, generation: 3, key: "label".into() }))
    }

    async fn install_ca(&self, request: Request<InstallCaRequest>) -> Answer<InstallCaResponse> {
        let InstallCaRequest { hierarchy, certificate, root } = request.into_inner();
        let order = format!("install {hierarchy} {} {}", certificate.len(), root.len());
        self.asked.lock().unwrap().orders.push(order);
        let faults = ["pathlen", "policies"].map(str::to_owned);
        let faults = if certificate.as_ref() == b"bad" { faults.to_vec() } else { Vec::new() };
        Ok(Response::new(InstallCaResponse { faults, cas: Vec::new() }))
    }

    /// An issuer whose log is empty, and not signed.
    async fn read_log(&self, _: Request<ReadLogRequest>) -> Answer<ReadLogResponse> {
        Err(Status::not_found("the log serves no checkpoint yet"))
    }

    async fn bundle(&self, _: Request<BundleRequest>) -> Answer<BundleResponse> {
        let entry = |hierarchy: Hierarchy| BundleEntry {
            hierarchy: hierarchy.to_string(),
            roots: vec![self.domain.root(hierarchy).to_vec().into()],
        };
        let mut entries: Vec<_> = Tier::ALL.into_iter().map(|tier| entry(Hierarchy::Tier(tier))).collect();
        entries.push(entry(Hierarchy::Infrastructure));
        Ok(Response::new(BundleResponse { trust_domain: "example.org".into(), entries }))
    }
}
