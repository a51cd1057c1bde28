//! The daemon: start, serve, reload, drain.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use aws_lc_rs::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use hallmark_core::tier::Hierarchy;
use hallmark_core::x509::{CaKey, SoftwareCaKey};
use hallmark_proto::admin::admin_server::AdminServer;
use hallmark_proto::issuer::host_attestation_server::HostAttestationServer;
use hallmark_proto::issuer::host_link_server::HostLinkServer;
use hallmark_proto::issuer::issuance_server::IssuanceServer;
use hallmark_proto::tls::{self, Accept, Acceptor, ClientAuth, SwappableCert};
use hallmark_telemetry::{Served, traces};
use rustls_pki_types::CertificateDer;
use sd_notify::NotifyState;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tonic::service::Routes;
use tonic_health::server::HealthReporter;
use zeroize::Zeroizing;

use crate::admin::{self, AdminService, Admission, Operators};
use crate::ca::{Ca, InForce};
use crate::config::{AdminConfig, CaBackend, Config, MAX_ATTESTATION};
use crate::door::{Door, Gate, MAX_MESSAGE};
use crate::issuer::Issuer;
use crate::logging::LogLevel;
use crate::metrics::metrics;
use crate::record::{Kind, Record};
use crate::server::HostServices;
use crate::store::{Change, Store, Witnessing, Write, unix_now};
use crate::witness::Witnesses;
use crate::{authority, crl, ek_roots, flow, init, tiles, token};

/// Lifetime of the issuer's own server certificate; renewed at half.
const OWN_SVID_LIFETIME: Duration = Duration::from_secs(24 * 3600);
/// How long requests in flight may take once the end has begun.
const DRAIN: Duration = Duration::from_secs(10);
/// How often expired rows are dropped.
const PURGE_EVERY: Duration = Duration::from_secs(60);
/// How often the CA key proves that it signs.
const HEALTH_EVERY: Duration = Duration::from_secs(30);

/// Serves until SIGTERM or SIGINT.
///
/// # Errors
/// It cannot start; once it serves, failures are answered and logged.
pub async fn run(config: Config, dev: bool, level: LogLevel) -> anyhow::Result<()> {
    let (issuer, identity, tree) = start(config, dev).await?;
    let config = issuer.config();
    let admission = Admission::new(Operators::resolve(&config.admin).map_err(anyhow::Error::msg)?);
    let gate = Gate::new(config.limits.clone());
    let admin_listener = admin::bind(&config.admin)?;
    let listener =
        TcpListener::bind(config.listen).await.with_context(|| format!("listen {}", config.listen))?;
    let shown =
        config.metrics.as_ref().map(|at| Served::bind(at, metrics().registry(&issuer))).transpose()?;
    let spans = config.traces.as_ref().map(|to| {
        traces::start(to, "hallmark-issuer", config.issuer_id.to_string(), env!("CARGO_PKG_VERSION"))
    });
    let spans = spans.transpose()?;
    let (stop, stopped) = watch::channel(false);
    let (health, health_service) = tonic_health::server::health_reporter();
    set_serving(&health, true).await;

    let mut hosts = {
        let accept = Accept::Hosts(issuer.host_roots().clone());
        let tls = tls::server_config(identity.clone(), ClientAuth::Optional(accept))?;
        let services = HostServices::new(issuer.clone());
        let routes = Routes::new(
            HostAttestationServer::new(services.clone()).max_decoding_message_size(MAX_ATTESTATION),
        )
        .add_service(IssuanceServer::new(services.clone()).max_decoding_message_size(MAX_MESSAGE))
        .add_service(HostLinkServer::new(services))
        .add_service(health_service.clone());
        let door = Door::new(gate.clone(), Acceptor::new(Arc::new(tls), identity.clone(), None), routes);
        tokio::spawn(door.serve(listener, until(stopped.clone())))
    };
    let operators = {
        let service = AdminServer::new(AdminService::new(issuer.clone(), admission.clone()))
            .max_decoding_message_size(admin::MAX_REQUEST);
        let routes = Routes::new(service).add_service(health_service);
        tokio::spawn(admin::serve(admin_listener, admission.clone(), routes, until(stopped)))
    };
    let shown = shown.map(|shown| tokio::spawn(shown.run()));
    tokio::spawn(crl::run(issuer.clone()));
    tokio::spawn(tree.run(issuer.clone()));
    tokio::spawn(renew_own(issuer.clone(), identity));
    tokio::spawn(authority::run(issuer.clone()));
    tokio::spawn(watch_health(issuer.clone(), health.clone()));
    tokio::spawn(purge(issuer.clone()));

    tracing::info!(
        trust_domain = %issuer.trust_domain().name, issuer_id = %config.issuer_id, listen = %config.listen,
        lab = issuer.is_lab(), ca = issuer.ca().backend(), "serving"
    );
    notify(&[NotifyState::Ready]);
    let _watchdog = tokio::spawn(watchdog(issuer.clone()));
    let reloaded = Reloaded { issuer: issuer.clone(), level, admission, gate };
    wait_for_end(&reloaded, &mut hosts).await?;

    notify(&[NotifyState::Stopping]);
    set_serving(&health, false).await;
    issuer.drain();
    stop.send_replace(true);
    let drained = async {
        let _ = hosts.await;
        let _ = operators.await;
    };
    if tokio::time::timeout(DRAIN, drained).await.is_err() {
        tracing::warn!("some requests did not end in time");
    }
    if let Some(spans) = spans {
        spans.stop().await;
    }
    if let Some(shown) = shown {
        shown.abort();
        let _ = shown.await;
    }
    let _ = std::fs::remove_file(&config.admin.socket);
    tracing::info!("stopped");
    Ok(())
}

/// Opens everything and makes the issuer's own credential.
async fn start(config: Config, dev: bool) -> anyhow::Result<(Arc<Issuer>, Arc<SwappableCert>, tiles::Tree)> {
    let store = Store::open(&token::store(&config)?, &config.issuer_id).await?;
    let Some(row) = store.trust_domain().await? else {
        bail!("{} holds no trust domain yet: run hallmark-issuer init", config.data_dir.display());
    };
    if row.name != config.trust_domain {
        bail!(
            "{} holds trust domain {}, and the configuration says {}",
            config.data_dir.display(),
            row.name,
            config.trust_domain
        );
    }
    let software = config.ca == CaBackend::Software;
    if software != row.dev {
        bail!(
            "ca.backend does not fit the trust domain, which was made {} --dev",
            if row.dev { "with" } else { "without" }
        );
    }
    if software && !dev {
        bail!("ca.backend is \"software\": CA keys in memory are for development only, and need --dev");
    }
    let token = match &config.ca {
        CaBackend::Pkcs11(pkcs11) => Some(token::open(pkcs11)?),
        CaBackend::Software => None,
    };
    // A store of before it had a log gets its key now.
    let signer = init::log_signer(&config, token.as_ref(), !store.has_checkpoint().await?)?;
    tracing::info!(verifier = %signer.verifier(), "log");
    let store = store.write_with(signer).await?;
    let tree = tiles::Tree::open(config.log_dir(), &store).await?;
    let store = match &config.witness {
        Some(witness) => {
            let (witnesses, store) = Witnesses::new(witness, store, tree.note())?;
            tokio::spawn(witnesses.run());
            store
        }
        None => store,
    };
    let in_force = match &token {
        Some(token) => authority::in_force(&config, &store.authorities().await?, token, &InForce::default())?,
        None => authority::in_memory(&config, &row, unix_now())?,
    };
    init::publish(&config.public_dir(), &authority::published(&in_force))?;
    let ca = Ca::new(row.name.clone(), in_force, token.is_some());
    warn_of_what_is_weak(&config, row.lab, software);
    let ek_roots = ek_roots::load_all(&config)?;
    let issuer = Issuer::start(config, row, store, ca, ek_roots, token).await?;
    let identity = SwappableCert::new();
    // With an offline root there may be nothing to show yet: hosts' handshakes are refused until there is.
    // So they are until the witnesses have seen it, where that is required (`renew_own`).
    if signs_for_itself(&issuer) && !issuer.store().witnessing().is_some_and(Witnessing::is_required) {
        let (chain, key) = own_credential(&issuer).await?;
        identity.set(chain, key)?;
    }
    Ok((issuer, identity, tree))
}

fn signs_for_itself(issuer: &Issuer) -> bool {
    issuer.ca().in_force().active(Hierarchy::Infrastructure).is_some()
}

fn warn_of_what_is_weak(config: &Config, lab: bool, software: bool) {
    if lab {
        tracing::warn!("LAB trust domain: software TPMs may count above foundation");
    }
    if software {
        tracing::warn!(
            "DEV: CA keys are in memory, new at each start; every host must take up the new infrastructure root"
        );
    }
    if config.attestation.pcr_policies.is_empty() {
        tracing::warn!(
            "no attestation.pcr_policy: no host can reach the enterprise tier (see hallmark host pcrs)"
        );
    }
}

type Credential = (Vec<CertificateDer<'static>>, Arc<dyn rustls::sign::SigningKey>);

/// A fresh key in memory, certified by the infrastructure CA, recorded and, where that is required, witnessed before it
/// is used.
async fn own_credential(issuer: &Arc<Issuer>) -> anyhow::Result<Credential> {
    let random = aws_lc_rs::rand::SystemRandom::new();
    let pkcs8 = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &random)
        .map_err(|_| anyhow::anyhow!("no key could be generated"))?;
    let pkcs8 = Zeroizing::new(pkcs8.as_ref().to_vec());
    let spki = SoftwareCaKey::from_pkcs8(&pkcs8)?.spki_der().to_vec();
    let now = issuer.now();
    let config = issuer.config();
    let signer = issuer.clone();
    let leaf = tokio::task::spawn_blocking(move || {
        let config = signer.config();
        signer.ca().sign_issuer(&config.issuer_id, &spki, now, OWN_SVID_LIFETIME, &config.dns_names)
    })
    .await??;
    let entry = Record {
        certificate_sha256: Some(hex::encode(crate::sha256(leaf.der()))),
        not_after: Some(leaf.not_after()),
        reason: Some(format!("own credential of issuer {}", config.issuer_id)),
        lab: issuer.is_lab(),
        ..Record::default()
    }
    .entry(now, Kind::IssuerSvid, "issued", Some(*leaf.serial().as_bytes()));
    let signed = Change::Signed { generation: leaf.ca(), not_after: leaf.not_after() };
    let made = issuer.store().commit(vec![Write::Change(signed), Write::Record(entry)]).await?;
    issuer.store().release_whenever(made.records).await;
    let chain = [leaf.der(), leaf.issuing_der()].map(|der| CertificateDer::from(der.to_vec())).to_vec();
    let key = tls::software_key(&pkcs8)?;
    Ok((chain, key))
}

async fn renew_own(issuer: Arc<Issuer>, identity: Arc<SwappableCert>) {
    let made =
        !issuer.store().witnessing().is_some_and(Witnessing::is_required) || !signs_for_itself(&issuer);
    let mut wait = if made { OWN_SVID_LIFETIME / 2 } else { Duration::ZERO };
    loop {
        // At half of its life, or as soon as another CA signs.
        let _ = tokio::time::timeout(wait, issuer.own_wanted()).await;
        wait = match own_credential(&issuer).await {
            Ok((chain, key)) => {
                if let Err(error) = identity.set(chain, key) {
                    tracing::error!(%error, "the issuer's own credential could not be put in force");
                }
                OWN_SVID_LIFETIME / 2
            }
            Err(error) => {
                tracing::error!(%error, "the issuer's own credential could not be renewed");
                Duration::from_secs(60)
            }
        };
    }
}

/// The health service says "serving" only while each CA key, and the log's, makes a signature that verifies.
async fn watch_health(issuer: Arc<Issuer>, health: HealthReporter) {
    let mut was = true;
    while !issuer.is_draining() {
        tokio::time::sleep(HEALTH_EVERY).await;
        let signer = issuer.clone();
        let result = tokio::task::spawn_blocking(move || signer.ca().health()).await;
        let log = issuer.store().log_signer().health().await;
        let is = matches!(result, Ok(Ok(()))) && log.is_ok();
        metrics().keys_sign(is);
        if is != was {
            match (result, log) {
                (Ok(Err(error)), _) => tracing::error!(%error, "CA keys do not sign"),
                (_, Err(error)) => tracing::error!(%error, "the log's key does not sign"),
                _ => tracing::info!("the keys sign again"),
            }
            set_serving(&health, is).await;
            was = is;
        }
    }
}

async fn set_serving(health: &HealthReporter, serving: bool) {
    let status =
        if serving { tonic_health::ServingStatus::Serving } else { tonic_health::ServingStatus::NotServing };
    health.set_service_status("", status).await;
    health.set_service_status("hallmark.issuer.v1.Issuance", status).await;
}

async fn until(mut stopped: watch::Receiver<bool>) {
    let _ = stopped.wait_for(|stop| *stop).await;
}

async fn wait_for_end<T>(reloaded: &Reloaded, hosts: &mut tokio::task::JoinHandle<T>) -> anyhow::Result<()> {
    let mut term = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut hangup = signal(SignalKind::hangup())?;
    loop {
        tokio::select! {
            _ = term.recv() => return Ok(()),
            _ = interrupt.recv() => return Ok(()),
            _ = hangup.recv() => reloaded.reload(),
            _ = &mut *hosts => bail!("the host server ended by itself"),
        }
    }
}

/// What a reloaded configuration is put in force in.
struct Reloaded {
    issuer: Arc<Issuer>,
    level: LogLevel,
    admission: Admission,
    gate: Arc<Gate>,
}

impl Reloaded {
    /// SIGHUP: attestation rules, EK roots, operators, limits, the rules of CA rotation and the log level take effect; the
    /// rest says that it needs a restart.
    fn reload(&self) {
        if let Ok(usec) = NotifyState::monotonic_usec_now() {
            notify(&[NotifyState::Reloading, usec]);
        }
        match self.take_over() {
            Ok(()) => tracing::info!(
                "reloaded: attestation rules, EK roots, operators, limits, CA rotation, log level"
            ),
            Err(error) => tracing::error!(error = format!("{error:#}"), "reload: nothing was changed"),
        }
        notify(&[NotifyState::Ready]);
    }

    fn take_over(&self) -> anyhow::Result<()> {
        let old = self.issuer.config();
        let new = Config::load(&old.file)?;
        let roots = ek_roots::load_all(&new)?;
        let fixed = [
            ("trust_domain", new.trust_domain != old.trust_domain),
            ("issuer_id", new.issuer_id != old.issuer_id),
            ("listen", new.listen != old.listen),
            ("data_dir", new.data_dir != old.data_dir),
            ("store", new.store != old.store),
            ("ca", new.ca != old.ca),
            ("ca.root", new.roots != old.roots),
            ("admin.socket", new.admin.socket != old.admin.socket),
            ("admin.mode", new.admin.mode != old.admin.mode),
            ("admin.group", new.admin.group != old.admin.group),
            ("crl.url", new.crl_url != old.crl_url),
            ("witness", new.witness != old.witness),
            ("metrics", new.metrics != old.metrics),
            ("traces", new.traces != old.traces),
        ];
        let admin = AdminConfig { users: new.admin.users, groups: new.admin.groups, ..old.admin.clone() };
        let operators = Operators::resolve(&admin).map_err(anyhow::Error::msg)?;
        // From here on nothing fails.
        if let Err(problem) = self.level.change(&new.log_level) {
            tracing::error!(problem, "reload: the log level stays");
        }
        for (key, _) in fixed.iter().filter(|(_, changed)| *changed) {
            tracing::warn!(key, "reload: takes effect after a restart");
        }
        self.admission.replace(operators);
        self.gate.set_limits(new.limits.clone());
        let effective = Config {
            attestation: new.attestation,
            log_level: new.log_level,
            curve: new.curve,
            root_lifetime: new.root_lifetime,
            issuing_lifetime: new.issuing_lifetime,
            rotation: new.rotation,
            limits: new.limits,
            admin,
            ..(*old).clone()
        };
        self.issuer.reconfigure(effective, roots);
        self.issuer.ca_is_due();
        let held = self.issuer.clone();
        tokio::spawn(async move { flow::standing::reloaded(&held).await });
        Ok(())
    }
}

/// Drops from the tables of what is alive what has long expired.
async fn purge(issuer: Arc<Issuer>) {
    loop {
        tokio::time::sleep(PURGE_EVERY).await;
        if let Err(error) = issuer.store().commit(vec![Write::Purge { at: issuer.now() }]).await {
            tracing::warn!(%error, "store: what has expired could not be dropped; the next turn tries again");
        }
    }
}

/// Tells systemd that the issuer is alive: only while its store takes writes and makes them durable.
async fn watchdog(issuer: Arc<Issuer>) {
    let mut usec = 0;
    if !sd_notify::watchdog_enabled(false, &mut usec) {
        return;
    }
    let every = Duration::from_micros(usec) / 3;
    loop {
        tokio::time::sleep(every).await;
        let beat = Write::Heartbeat { at: issuer.now() };
        if issuer.store().commit(vec![beat]).await.is_ok() {
            notify(&[NotifyState::Watchdog]);
        }
    }
}

fn notify(states: &[NotifyState<'_>]) {
    // Outside systemd there is nobody to tell.
    let _ = sd_notify::notify(false, states);
}
