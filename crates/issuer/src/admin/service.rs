//! What operators may ask and order.

use std::sync::Arc;
use std::time::Duration;

use hallmark_core::decide::{self, highest_tier};
use hallmark_core::id::{AgentName, HostId, InstanceId};
use hallmark_core::log::write_proof;
use hallmark_core::registration::Registered;
use hallmark_core::tier::Hierarchy;
use hallmark_core::x509::OidArc;
use hallmark_proto::admin as wire;
use hallmark_proto::admin::admin_server::Admin;
use tonic::{Request, Response, Status};

use super::show::{cas, explained, instance, pending};
use super::{Admission, Operator};
use crate::issuer::Issuer;
use crate::standing::HostState;
use crate::status;
use crate::store::{Ended, FoundBy};
use crate::{doctor, flow};

/// Most instances listed for one agent.
const MAX_INSTANCES: usize = 1000;
/// Longest reason for disabling a host.
pub(super) const MAX_REASON: usize = 200;
/// Most records in one answer.
const MAX_RECORDS: u32 = 10_000;

/// The admin service.
#[derive(Debug)]
pub struct AdminService {
    issuer: Arc<Issuer>,
    admission: Admission,
}

impl AdminService {
    /// The service of this issuer for these operators.
    pub fn new(issuer: Arc<Issuer>, admission: Admission) -> Self {
        Self { issuer, admission }
    }

    fn admit<T>(&self, request: Request<T>) -> Result<(Operator, T), Status> {
        let operator = self.admission.admit(&request)?;
        Ok((operator, request.into_inner()))
    }
}

fn named<T: std::str::FromStr<Err = hallmark_core::id::NameError>>(text: &str) -> Result<T, Status> {
    text.parse().map_err(|e: hallmark_core::id::NameError| Status::invalid_argument(e.to_string()))
}

fn instances(ended: &[Ended]) -> Vec<String> {
    ended.iter().map(|instance| instance.instance.to_string()).collect()
}

fn no_host(id: &HostId) -> Status {
    Status::not_found(format!("no host {id} is enrolled (see hallmark host list)"))
}

fn no_agent(name: &AgentName) -> Status {
    Status::not_found(format!("no registration is named {name} (see hallmark agent list)"))
}

#[tonic::async_trait]
impl Admin for AdminService {
    async fn status(
        &self,
        request: Request<wire::StatusRequest>,
    ) -> Result<Response<wire::StatusResponse>, Status> {
        self.admit(request)?;
        let issuer = &self.issuer;
        let config = issuer.config();
        let trust_domain = issuer.trust_domain();
        let now = issuer.now();
        let (issued, refused) = issuer.counters().read();
        let log = issuer.store().checkpoint().await.map_err(|e| status::admin(&e))?;
        let registry = issuer.registry();
        Ok(Response::new(wire::StatusResponse {
            trust_domain: trust_domain.name.to_string(),
            issuer_id: config.issuer_id.to_string(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            lab: trust_domain.lab,
            dev: trust_domain.dev,
            documentation_arc: OidArc::parse(&trust_domain.oid_arc).is_ok_and(|arc| arc.is_documentation()),
            oid_arc: trust_domain.oid_arc.clone(),
            listen: config.listen.to_string(),
            started_at: issuer.started_at(),
            ca_backend: issuer.ca().backend().to_owned(),
            cas: cas(issuer, false).await.map_err(|e| status::admin(&e))?,
            hosts: issuer.hosts().len() as u64,
            hosts_connected: issuer.hub().len() as u64,
            agents: registry.agents.len() as u64,
            live_credentials: issuer.store().live_count(now).await.map_err(|e| status::admin(&e))?,
            issued,
            refused,
            registrations_revision: registry.revision,
            log_size: log.map_or(0, |(checkpoint, _)| checkpoint.size),
            log_verifier: issuer.store().log_verifier().to_string(),
            witnesses: issuer.store().witnessing().map(super::show::witnesses),
        }))
    }

    async fn doctor(
        &self,
        request: Request<wire::DoctorRequest>,
    ) -> Result<Response<wire::DoctorResponse>, Status> {
        self.admit(request)?;
        Ok(Response::new(wire::DoctorResponse { checks: doctor::examine(&self.issuer).await }))
    }

    async fn list_hosts(
        &self,
        request: Request<wire::ListHostsRequest>,
    ) -> Result<Response<wire::ListHostsResponse>, Status> {
        self.admit(request)?;
        let mut hosts: Vec<wire::Host> = self.issuer.hosts().iter().map(|h| self.host(h)).collect();
        for allowed in self.issuer.all_allowed() {
            if self.issuer.host(&allowed.host_id).is_none() {
                hosts.push(pending(&allowed));
            }
        }
        hosts.sort_by(|a, b| a.host_id.cmp(&b.host_id));
        Ok(Response::new(wire::ListHostsResponse { hosts }))
    }

    async fn show_host(
        &self,
        request: Request<wire::ShowHostRequest>,
    ) -> Result<Response<wire::Host>, Status> {
        let (_, request) = self.admit(request)?;
        let id: HostId = named(&request.host_id)?;
        if let Some(host) = self.issuer.host(&id) {
            return Ok(Response::new(self.host(&host)));
        }
        let allowed = self.issuer.all_allowed().into_iter().find(|a| a.host_id == id);
        allowed.map(|a| Response::new(pending(&a))).ok_or_else(|| no_host(&id))
    }

    async fn allow_host(
        &self,
        request: Request<wire::AllowHostRequest>,
    ) -> Result<Response<wire::AllowHostResponse>, Status> {
        let (operator, request) = self.admit(request)?;
        let id: HostId = named(&request.host_id)?;
        let mut digest = [0; 32];
        hex::decode_to_slice(&request.ek_sha256, &mut digest).map_err(|_| {
            Status::invalid_argument("the EK digest is 64 hexadecimal digits: SHA-256 of the EK's SubjectPublicKeyInfo, as hallmark-hostd prints it")
        })?;
        if request.note.len() > MAX_REASON {
            return Err(Status::invalid_argument(format!(
                "a note has at most {MAX_REASON} bytes; it stands in the record"
            )));
        }
        flow::enrol::allow(&self.issuer, &operator, id, digest, request.vouch_hardware, request.note)
            .await
            .map_err(|e| status::admin(&e))?;
        Ok(Response::new(wire::AllowHostResponse {}))
    }

    async fn disable_host(
        &self,
        request: Request<wire::DisableHostRequest>,
    ) -> Result<Response<wire::DisableHostResponse>, Status> {
        let (operator, request) = self.admit(request)?;
        let id: HostId = named(&request.host_id)?;
        let reason = request.reason.trim();
        if reason.is_empty() || reason.len() > MAX_REASON {
            return Err(Status::invalid_argument(format!(
                "a host is disabled with a reason of 1 to {MAX_REASON} bytes; it stands in the record"
            )));
        }
        let ended = flow::enrol::disable(&self.issuer, &operator, id, reason.to_owned())
            .await
            .map_err(|e| status::admin(&e))?;
        Ok(Response::new(wire::DisableHostResponse { ended: instances(&ended) }))
    }

    async fn enable_host(
        &self,
        request: Request<wire::EnableHostRequest>,
    ) -> Result<Response<wire::EnableHostResponse>, Status> {
        let (operator, request) = self.admit(request)?;
        let id: HostId = named(&request.host_id)?;
        flow::enrol::enable(&self.issuer, &operator, id).await.map_err(|e| status::admin(&e))?;
        Ok(Response::new(wire::EnableHostResponse {}))
    }

    async fn remove_host(
        &self,
        request: Request<wire::RemoveHostRequest>,
    ) -> Result<Response<wire::RemoveHostResponse>, Status> {
        let (operator, request) = self.admit(request)?;
        let id: HostId = named(&request.host_id)?;
        let ended = flow::enrol::remove(&self.issuer, &operator, id).await.map_err(|e| status::admin(&e))?;
        Ok(Response::new(wire::RemoveHostResponse { ended: instances(&ended) }))
    }

    async fn end_agent(
        &self,
        request: Request<wire::EndAgentRequest>,
    ) -> Result<Response<wire::EndAgentResponse>, Status> {
        let (operator, request) = self.admit(request)?;
        let name: AgentName = named(&request.agent)?;
        let host = (!request.host_id.is_empty()).then(|| named(&request.host_id)).transpose()?;
        let instance = (!request.instance_id.is_empty())
            .then(|| request.instance_id.parse::<InstanceId>())
            .transpose()
            .map_err(|e| Status::invalid_argument(e.to_string()))?;
        let ended = flow::retire::end(&self.issuer, &operator, name, host, instance)
            .await
            .map_err(|e| status::admin(&e))?;
        Ok(Response::new(wire::EndAgentResponse { ended: instances(&ended) }))
    }

    async fn create_join_token(
        &self,
        request: Request<wire::CreateJoinTokenRequest>,
    ) -> Result<Response<wire::CreateJoinTokenResponse>, Status> {
        let (operator, request) = self.admit(request)?;
        let id: HostId = named(&request.host_id)?;
        let ttl = Duration::from_secs(request.ttl_seconds);
        if ttl.is_zero() || ttl > flow::enrol::MAX_JOIN_TOKEN_TTL {
            return Err(Status::invalid_argument("a join token lives from 1 second to 7 days"));
        }
        if self.issuer.host(&id).is_some_and(|h| h.stored.tpm.is_some()) {
            return Err(Status::failed_precondition(format!(
                "host {id} is bound to its TPM; a join token cannot stand for it"
            )));
        }
        let (token, expires_at) = flow::enrol::create_join_token(&self.issuer, &operator, id, ttl)
            .await
            .map_err(|e| status::admin(&e))?;
        Ok(Response::new(wire::CreateJoinTokenResponse { token: token.to_string(), expires_at }))
    }

    async fn apply(
        &self,
        request: Request<wire::ApplyRequest>,
    ) -> Result<Response<wire::ApplyResponse>, Status> {
        let (operator, request) = self.admit(request)?;
        let response =
            flow::apply::apply(&self.issuer, &operator, request).await.map_err(|e| status::admin(&e))?;
        Ok(Response::new(response))
    }

    async fn list_agents(
        &self,
        request: Request<wire::ListAgentsRequest>,
    ) -> Result<Response<wire::ListAgentsResponse>, Status> {
        self.admit(request)?;
        let live =
            self.issuer.store().live_by_agent(self.issuer.now()).await.map_err(|e| status::admin(&e))?;
        let agents = self
            .issuer
            .registry()
            .agents
            .iter()
            .map(|(name, registered)| wire::Agent {
                live_instances: live.get(name.as_str()).copied().unwrap_or_default(),
                ..self.agent(registered)
            })
            .collect();
        Ok(Response::new(wire::ListAgentsResponse { agents }))
    }

    async fn show_agent(
        &self,
        request: Request<wire::ShowAgentRequest>,
    ) -> Result<Response<wire::Agent>, Status> {
        let (_, request) = self.admit(request)?;
        let name: AgentName = named(&request.agent)?;
        let registered = self.issuer.registry().agents.get(&name).cloned().ok_or_else(|| no_agent(&name))?;
        let now = self.issuer.now();
        let rows =
            self.issuer.store().instances(&name, MAX_INSTANCES).await.map_err(|e| status::admin(&e))?;
        let instances: Vec<wire::Instance> = rows.iter().map(|row| instance(row, now)).collect();
        let live_instances = instances.iter().filter(|i| i.state == "live").count() as u64;
        Ok(Response::new(wire::Agent { instances, live_instances, ..self.agent(&registered) }))
    }

    async fn explain(
        &self,
        request: Request<wire::ExplainRequest>,
    ) -> Result<Response<wire::ExplainResponse>, Status> {
        let (_, request) = self.admit(request)?;
        let name: AgentName = named(&request.agent)?;
        let id: HostId = named(&request.host_id)?;
        let registered = self.issuer.registry().agents.get(&name).cloned().ok_or_else(|| no_agent(&name))?;
        let host = self.issuer.snapshot(&id).ok_or_else(|| no_host(&id))?;
        let tiers = decide::explain(&registered.registration, &host.host.standing, &host.rules, host.now);
        Ok(Response::new(wire::ExplainResponse {
            registered_tier: registered.registration.tier().to_string(),
            tiers: tiers.into_iter().map(explained).collect(),
        }))
    }

    async fn list_records(
        &self,
        request: Request<wire::ListRecordsRequest>,
    ) -> Result<Response<wire::ListRecordsResponse>, Status> {
        let (_, request) = self.admit(request)?;
        let limit = if request.limit == 0 { 100 } else { request.limit.min(MAX_RECORDS) };
        let given = |text: &'_ str| (!text.is_empty()).then(|| text.to_owned());
        let (agent, host) = (given(&request.agent), given(&request.host_id));
        let rows = self
            .issuer
            .store()
            .records(request.after, limit, agent.as_deref(), host.as_deref())
            .await
            .map_err(|e| status::admin(&e))?;
        let records = rows
            .into_iter()
            .map(|r| wire::Record {
                number: r.number,
                at: r.at,
                kind: r.kind,
                outcome: r.outcome,
                body: r.body,
            })
            .collect();
        Ok(Response::new(wire::ListRecordsResponse { records }))
    }

    async fn prove_record(
        &self,
        request: Request<wire::ProveRecordRequest>,
    ) -> Result<Response<wire::ProveRecordResponse>, Status> {
        let (_, request) = self.admit(request)?;
        let hash = <[u8; 32]>::try_from(request.certificate_sha256.as_ref()).ok();
        let (by, words) = match &hash {
            Some(hash) => (FoundBy::Certificate(hash), format!("certificate SHA-256 {}", hex::encode(hash))),
            None => (FoundBy::Serial(&request.serial), format!("serial {}", hex::encode(&request.serial))),
        };
        let proven = self.issuer.store().prove(by).await.map_err(|e| status::admin(&e))?;
        let proven = proven.ok_or_else(|| Status::not_found(format!("no record has {words}")))?;
        Ok(Response::new(wire::ProveRecordResponse {
            index: proven.index,
            body: proven.body,
            proof: write_proof(proven.index, &proven.proof, &proven.checkpoint).into(),
        }))
    }

    async fn list_cas(
        &self,
        request: Request<wire::ListCasRequest>,
    ) -> Result<Response<wire::CasResponse>, Status> {
        let (_, request) = self.admit(request)?;
        super::cas::list(&self.issuer, request.all).await.map(Response::new)
    }

    async fn rotate_ca(
        &self,
        request: Request<wire::RotateCaRequest>,
    ) -> Result<Response<wire::CasResponse>, Status> {
        let (operator, request) = self.admit(request)?;
        super::cas::rotate(&self.issuer, operator, request).await.map(Response::new)
    }

    async fn taint_ca(
        &self,
        request: Request<wire::TaintCaRequest>,
    ) -> Result<Response<wire::CasResponse>, Status> {
        let (operator, request) = self.admit(request)?;
        super::cas::taint(&self.issuer, operator, request).await.map(Response::new)
    }

    async fn request_ca(
        &self,
        request: Request<wire::RequestCaRequest>,
    ) -> Result<Response<wire::RequestCaResponse>, Status> {
        let (operator, request) = self.admit(request)?;
        super::cas::request(&self.issuer, operator, &request.hierarchy).await.map(Response::new)
    }

    async fn install_ca(
        &self,
        request: Request<wire::InstallCaRequest>,
    ) -> Result<Response<wire::InstallCaResponse>, Status> {
        let (operator, request) = self.admit(request)?;
        super::cas::install(&self.issuer, operator, request).await.map(Response::new)
    }

    async fn read_log(
        &self,
        request: Request<wire::ReadLogRequest>,
    ) -> Result<Response<wire::ReadLogResponse>, Status> {
        let (_, request) = self.admit(request)?;
        let content = super::log::read(self.issuer.store(), &request.path).await?;
        Ok(Response::new(wire::ReadLogResponse { content: content.into() }))
    }

    async fn bundle(
        &self,
        request: Request<wire::BundleRequest>,
    ) -> Result<Response<wire::BundleResponse>, Status> {
        self.admit(request)?;
        let entries = Hierarchy::ALL
            .into_iter()
            .map(|h| wire::BundleEntry { hierarchy: h.to_string(), roots: self.issuer.ca().roots(h) })
            .collect();
        Ok(Response::new(wire::BundleResponse {
            trust_domain: self.issuer.trust_domain().name.to_string(),
            entries,
        }))
    }
}

impl AdminService {
    fn host(&self, host: &HostState) -> wire::Host {
        let issuer = &self.issuer;
        let standing = &host.standing;
        let (highest, unmet) = highest_tier(standing, &issuer.rules(), issuer.now());
        let tpm = host.stored.tpm.as_ref();
        let clock = tpm.map(|t| t.clock);
        wire::Host {
            host_id: host.host_id.to_string(),
            proof: if tpm.is_some() { "tpm" } else { "join-token" }.to_owned(),
            ek_digest: tpm.map(|t| hex::encode(t.ek_sha256)).unwrap_or_default(),
            ek_trust: tpm.map(|t| t.ek_trust.as_str().to_owned()).unwrap_or_default(),
            simulated: tpm.is_some_and(|t| t.simulated),
            ak_name: host.ak.as_ref().map(|ak| ak.name().to_string()).unwrap_or_default(),
            enrolled_at: host.enrolled_at,
            attested_at: host.stored.attested_at,
            quote_at: host.stored.quote_at,
            highest_tier: highest.map_or_else(|| "none".to_owned(), |t| t.to_string()),
            unmet: unmet
                .iter()
                .map(|u| wire::Unmet { code: u.requirement.code().to_owned(), detail: u.detail.clone() })
                .collect(),
            pcrs: tpm
                .map(|t| {
                    t.pcrs
                        .iter()
                        .map(|(i, v)| wire::PcrValue { index: u32::from(*i), sha256: v.clone() })
                        .collect()
                })
                .unwrap_or_default(),
            reset_count: clock.map_or(0, |c| u64::from(c.reset_count)),
            restart_count: clock.map_or(0, |c| u64::from(c.restart_count)),
            clock_ms: clock.map_or(0, |c| c.clock),
            firmware_version: clock.map_or(0, |c| c.firmware_version),
            connected: issuer.hub().is_open(&host.host_id),
            pcr_policy: match &standing.pcr {
                decide::PcrStanding::Met { policy } => policy.clone(),
                decide::PcrStanding::NotMet { policy, .. } => format!("{policy} (not met)"),
                decide::PcrStanding::NoPolicy => String::new(),
            },
            version: host.stored.version.clone(),
            pending: false,
            disabled: standing.disabled.clone().unwrap_or_default(),
            event_log: tpm.map(|t| t.event_log.clone()).unwrap_or_default(),
        }
    }

    fn agent(&self, registered: &Registered) -> wire::Agent {
        let registration = &registered.registration;
        wire::Agent {
            agent: registration.name().to_string(),
            spiffe_id: format!("spiffe://{}/agent/{}", self.issuer.trust_domain().name, registration.name()),
            revision: registered.revision,
            tier: registration.tier().to_string(),
            owner: registration.owner().to_owned(),
            hosts: registration.hosts().iter().map(ToString::to_string).collect(),
            selectors: registration.selectors().iter().map(ToString::to_string).collect(),
            custody: registration.key().custody.to_string(),
            bind_pcrs: registration.key().bind_pcrs.iter().map(|p| u32::from(*p)).collect(),
            lifetime_seconds: registration.lifetime().as_secs(),
            dns_names: registration.dns_names().iter().cloned().collect(),
            capabilities: registration.capabilities().iter().map(ToString::to_string).collect(),
            instances: Vec::new(),
            live_instances: 0,
        }
    }
}
