//! One run of an agent: from its first credential, through renewals, to its end.

use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hallmark_core::id::{InstanceId, SpiffeId, Subject};
use hallmark_core::tier::{Custody, Tier};
use hallmark_core::trace::TraceParent;
use hallmark_proto::agent::{Identity, identity};
use hallmark_proto::issuer::{IssueItem, Issued, Refused, issue_result};
use hallmark_telemetry::Span;
use rand::Rng;
use tokio::sync::watch;
use tonic::Status;
use tonic::codegen::Bytes;

use super::caller::Caller;
use super::registry::{KeyHandle, Live, Signer, reason_of};
use super::retry::{Retry, renewal};
use super::select::{SelectError, choose};
use super::share::{Place, ShareError};
use super::{Agents, CallerError};
use crate::clock;
use crate::keys::{AgentKey, KeyError, KeySpec, csr};
use crate::link::issuer::{AskError, EndReason};
use crate::metrics::{Held, failure, metrics};
use crate::state::Registration;

/// How long a caller waits for a host daemon that has just begun and has no registrations yet.
const FIRST_WORD: Duration = Duration::from_secs(5);

/// Why an agent has no identity.
#[derive(Debug, thiserror::Error)]
pub enum InstanceError {
    /// No registration could be chosen.
    #[error(transparent)]
    Select(#[from] SelectError),
    /// Too many instances.
    #[error("this host serves no more than {max} instances at once")]
    Full {
        /// The limit.
        max: usize,
    },
    /// Too much of one user.
    #[error(transparent)]
    Share(#[from] ShareError),
    /// The issuer has not yet said what is registered here.
    #[error("this host has no registrations yet: {why}")]
    NotReady {
        /// What is known of the reason.
        why: String,
    },
    /// The issuer refused.
    #[error("the issuer refused ({code}): {}", .unmet.join("; "))]
    Refused {
        /// In one word.
        code: String,
        /// Every requirement not met.
        unmet: Vec<String>,
        /// Whether trying again can help.
        retryable: bool,
    },
    /// No key.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// No answer.
    #[error(transparent)]
    Ask(#[from] AskError),
    /// The answer cannot be used.
    #[error("the issuer's answer cannot be used: {0}")]
    Answer(&'static str),
    /// It ended before it had an identity.
    #[error("ended: {}", .0.as_str())]
    Ended(EndReason),
}

/// What a stream shows: the newest identity, and at last the reason for its end.
#[derive(Debug, Clone)]
pub(super) enum Shown {
    /// The newest identity.
    Identity(Arc<Identity>),
    /// The end.
    End(Status),
}

/// See the module. Dropping it ends it: key destroyed, handle withdrawn, end reported.
pub(super) struct Instance {
    agents: Arc<Agents>,
    live: Arc<Live>,
    wanted: String,
    registration: Registration,
    key: Option<(KeyHandle, Arc<dyn AgentKey>)>,
    current: Option<Current>,
    /// A certificate was asked for, and the answer was not a refusal.
    asked: bool,
    began: Instant,
    /// The call that it began with, in its trace; none while traces are off.
    origin: Option<Box<TraceParent>>,
    _place: Place,
}

struct Current {
    identity: Arc<Identity>,
    serial: Bytes,
    renew_at: i64,
    _held: Held,
}

impl Instance {
    /// Chooses the registration and obtains the first credential.
    ///
    /// # Errors
    /// See [`InstanceError`].
    pub(super) async fn begin(
        agents: Arc<Agents>,
        caller: Caller,
        wanted: String,
        mut span: Span,
    ) -> Result<Self, InstanceError> {
        let began = Instant::now();
        let chosen = agents.registration_for(&caller, &wanted).await;
        let registration = chosen.inspect_err(|error| span.fail(&failure(error)))?;
        let id = new_id();
        let limits = agents.limits();
        let uid = caller.known().map_or(u32::MAX, |(process, _)| process.uid());
        let place = agents.shares.begin(uid, &limits, Instant::now()).inspect_err(|error| {
            tracing::warn!(
                host_id = %agents.state.host_id, agent = %registration.agent, uid, reason = %error,
                "identity not issued"
            );
        })?;
        let max = limits.max_agents;
        let live = agents
            .registry
            .enter(id, registration.agent.clone(), caller, max)
            .ok_or(InstanceError::Full { max })?;
        let mut instance = Self {
            agents,
            live,
            wanted,
            registration,
            key: None,
            current: None,
            asked: false,
            began,
            origin: span.traceparent().map(Box::new),
            _place: place,
        };
        instance.renew("first", span).await.inspect_err(|error| instance.log_refusal(error))?;
        Ok(instance)
    }

    /// The present identity.
    pub(super) fn shown(&self) -> Option<Shown> {
        self.current.as_ref().map(|c| Shown::Identity(c.identity.clone()))
    }

    /// Keeps the identity fresh in `stream` until there is a reason to end.
    pub(super) async fn serve(mut self, stream: watch::Sender<Shown>) {
        let mut registrations = self.agents.state.registrations.subscribe();
        let mut bundle = self.agents.state.bundle.subscribe();
        // What has changed between the first credential and now is looked at once.
        registrations.mark_changed();
        bundle.mark_changed();
        let mut renewals = self.agents.state.renewals.subscribe();
        renewals.mark_changed();
        let mut news = self.agents.state.news.subscribe();
        let mut retry = Retry::new();
        loop {
            let why = tokio::select! {
                () = stream.closed() => return self.end(EndReason::AgentClosed),
                () = process_ended(&self.live.caller) => {
                    stream.send_replace(Shown::End(EndReason::ProcessExited.into()));
                    return self.end(EndReason::ProcessExited);
                }
                () = self.live.told() => self.on_told(),
                Ok(()) = registrations.changed() => self.on_registrations(),
                Ok(()) = bundle.changed() => {
                    self.on_bundle(&stream);
                    continue;
                }
                Ok(()) = renewals.changed() => {
                    self.on_renewals();
                    continue;
                }
                Ok(()) = news.changed(), if retry.at().is_some() => {
                    retry.wake(self.agents.live(), rand::rng().random());
                    continue;
                }
                () = self.due(&retry) => Wanted::Renewal("renewal"),
            };
            let why = match why {
                Wanted::Nothing => continue,
                Wanted::End(reason) => {
                    stream.send_replace(Shown::End(reason.into()));
                    return self.end(reason);
                }
                Wanted::Renewal(why) => why,
            };
            // News of while this is asked counts, and older news does not.
            news.mark_unchanged();
            // Boxed, as it is seldom under way: else each instance would hold its room for life.
            let span = Span::of_our_own("renew", self.origin.as_deref());
            match Box::pin(self.renew(why, span)).await {
                Ok(()) => {
                    retry = Retry::new();
                    self.shown().into_iter().for_each(|shown| drop(stream.send_replace(shown)));
                }
                Err(error) => match self.after_failure(&error) {
                    Some(left) => retry.failed(left, rand::rng().random()),
                    None => {
                        stream.send_replace(Shown::End((&error).into()));
                        return self.end(end_of(&error));
                    }
                },
            }
        }
    }

    fn on_told(&self) -> Wanted {
        match self.live.ending() {
            Some(reason) => Wanted::End(reason),
            None if self.live.take_key_lost() => Wanted::Renewal("key-lost"),
            None => Wanted::Nothing,
        }
    }

    fn on_registrations(&mut self) -> Wanted {
        let Some(registrations) = self.agents.state.registrations.borrow().clone() else {
            return Wanted::Nothing;
        };
        let Some((_, seen)) = self.live.caller.known() else { return Wanted::End(EndReason::ProcessExited) };
        // An instance keeps its registration as long as that matches, even when another matches by now.
        match choose(&registrations, &seen.selectors, self.registration.agent.as_str()) {
            Err(_) => Wanted::End(EndReason::RegistrationChanged),
            Ok(found) if *found == self.registration => Wanted::Nothing,
            Ok(found) => {
                self.registration = found.clone();
                Wanted::Renewal("registration-changed")
            }
        }
    }

    /// A CA is trusted no more: what it signed for this instance is renewed at a place of its own within the time given.
    fn on_renewals(&mut self) {
        let renewals = self.agents.state.renewals.borrow().clone();
        let (Some(current), Some(renewals)) = (&mut self.current, renewals) else { return };
        let Some(authority) = current.identity.chain.get(1) else { return };
        if let Some(at) = renewals.due(authority, clock::now(), rand::rng().random()) {
            current.renew_at = current.renew_at.min(at);
        }
    }

    fn on_bundle(&mut self, stream: &watch::Sender<Shown>) {
        let bundle = self.agents.state.bundle.borrow().clone();
        let (Some(current), Some(bundle)) = (&mut self.current, bundle) else { return };
        if current.identity.bundle.as_ref() != Some(&*bundle) {
            Arc::make_mut(&mut current.identity).bundle = Some((*bundle).clone());
            stream.send_replace(Shown::Identity(current.identity.clone()));
        }
    }

    /// Returns when it is time for a renewal, or for another try at one.
    async fn due(&self, retry: &Retry) {
        match retry.at() {
            Some(at) => tokio::time::sleep_until(at).await,
            None => clock::until(self.current.as_ref().map_or(0, |c| c.renew_at)).await,
        }
    }

    /// For how long yet to try again; none when there is no point in it.
    fn after_failure(&self, error: &InstanceError) -> Option<Duration> {
        self.log_refusal(error);
        metrics().not_issued(error);
        let lasting = match error {
            InstanceError::Refused { retryable, .. } => !retryable,
            InstanceError::Ended(_) | InstanceError::Answer(_) => true,
            InstanceError::Key(KeyError::NoStore { .. }) => true,
            _ => false,
        };
        let not_after = self.current.as_ref().map_or(0, |c| c.identity.not_after);
        let left = not_after.saturating_sub(clock::now());
        (!lasting && left > 0).then(|| Duration::from_secs(left.unsigned_abs()))
    }

    /// One issuance, and what follows from it.
    async fn renew(&mut self, why: &'static str, mut span: Span) -> Result<(), InstanceError> {
        span.say("hallmark.agent", &self.registration.agent);
        span.say("hallmark.instance", &self.live.id);
        span.say("hallmark.tier", &self.registration.tier);
        span.say("hallmark.cause", &why);
        let renewed = self.renew_within(why, &span).await;
        if let Err(error) = &renewed {
            span.fail(&failure(error));
        }
        renewed
    }

    async fn renew_within(&mut self, why: &'static str, span: &Span) -> Result<(), InstanceError> {
        self.check()?;
        if self.registration.tier == Tier::Advanced {
            let _quote = span.child("quote");
            self.agents.issuer.fresh_quote().await?;
        }
        let keys = span.child("key");
        let (handle, key) = self.key_for_renewal(why).await?;
        let id = SpiffeId::new(
            self.agents.state.trust_domain.clone(),
            Subject::Agent(self.registration.agent.clone()),
        );
        let (handle, key, csr) = match csr::request(&id, key.public_point(), |d| key.sign(d)).await {
            Ok(csr) => (handle, key, csr),
            // A key bound to a state that the host has left: a new one, once.
            Err(KeyError::Hardware { lost: true, .. }) => {
                let (handle, key) = self.new_key().await?;
                let csr = csr::request(&id, key.public_point(), |d| key.sign(d)).await?;
                (handle, key, csr)
            }
            Err(error) => return Err(error.into()),
        };
        drop(keys);
        // A key is held against the PCRs last quoted: one bound to what they are now needs a quote of now.
        let is_new = self.key.as_ref().is_none_or(|(held, _)| *held != handle);
        if is_new && !self.registration.bind_pcrs.is_empty() {
            self.agents.issuer.new_quote().await?;
        }
        let mut item = self.item(csr, &*key)?;
        let issue = span.client("issue");
        item.traceparent = issue.traceparent().map(|parent| parent.to_string()).unwrap_or_default();
        let asked_before = std::mem::replace(&mut self.asked, true);
        let issued = match self.agents.issuer.issue(item).await?.outcome {
            Some(issue_result::Outcome::Issued(issued)) => issued,
            Some(issue_result::Outcome::Refused(refused)) => {
                self.asked = asked_before;
                return Err(refusal(refused));
            }
            None => return Err(InstanceError::Answer("neither issued nor refused")),
        };
        drop(issue);
        // The process may have ended, or become another, while the issuer answered.
        self.check()?;
        self.accept(issued, handle, key, (why, span))
    }

    fn check(&self) -> Result<(), InstanceError> {
        if self.agents.state.standing.borrow().disabled {
            return Err(InstanceError::Ended(EndReason::HostDisabled));
        }
        if let Some(reason) = self.live.ending() {
            return Err(InstanceError::Ended(reason));
        }
        match self.live.caller.present() {
            Ok(_) => Ok(()),
            Err(CallerError::Gone(error)) => Err(InstanceError::Ended(reason_of(&error))),
            Err(CallerError::Unknown(_)) => Err(InstanceError::Ended(EndReason::ProcessExited)),
        }
    }

    /// A hardware key stays for the life of the instance; a software key, which was given away, is new
    /// for each certificate.
    async fn key_for_renewal(&self, why: &str) -> Result<(KeyHandle, Arc<dyn AgentKey>), InstanceError> {
        let wanted = self.key_spec();
        match &self.key {
            Some((handle, key)) if why != "key-lost" && key.fits(self.registration.custody, &wanted) => {
                Ok((*handle, key.clone()))
            }
            _ => self.new_key().await,
        }
    }

    async fn new_key(&self) -> Result<(KeyHandle, Arc<dyn AgentKey>), InstanceError> {
        let key = self.agents.stores.of(self.registration.custody)?.create(&self.key_spec()).await?;
        Ok((rand::rng().random(), key))
    }

    fn key_spec(&self) -> KeySpec {
        let user = self.live.caller.known().map_or(u32::MAX, |(process, _)| process.uid());
        KeySpec { bind_pcrs: self.registration.bind_pcrs.clone(), user }
    }

    fn item(&self, csr: Vec<u8>, key: &dyn AgentKey) -> Result<IssueItem, InstanceError> {
        let (_, seen) = self.live.caller.known().ok_or(InstanceError::Ended(EndReason::ProcessExited))?;
        Ok(IssueItem {
            agent: self.registration.agent.to_string(),
            instance_id: Bytes::copy_from_slice(self.live.id.as_bytes()),
            csr: csr.into(),
            selectors: seen.selectors.iter().map(ToString::to_string).collect(),
            key: Some(key.evidence()),
            renews: self.current.as_ref().map(|c| c.serial.clone()).unwrap_or_default(),
            traceparent: String::new(),
        })
    }

    fn accept(
        &mut self,
        issued: Issued,
        handle: KeyHandle,
        key: Arc<dyn AgentKey>,
        (why, span): (&'static str, &Span),
    ) -> Result<(), InstanceError> {
        let tier: Tier = issued.tier.parse().map_err(|_| InstanceError::Answer("unknown tier"))?;
        let custody: Custody =
            issued.custody.parse().map_err(|_| InstanceError::Answer("unknown custody"))?;
        if tier != self.registration.tier {
            return Err(InstanceError::Answer("not the tier that is registered"));
        }
        if issued.chain.is_empty() || issued.serial.is_empty() || issued.not_after <= clock::now() {
            return Err(InstanceError::Answer("no valid certificate"));
        }
        let bundle = self.agents.state.bundle.borrow().clone();
        let bundle = bundle.ok_or(InstanceError::NotReady { why: "no bundle".into() })?;
        let renew_at = renewal(clock::now(), issued.not_after, rand::rng().random_range(0.5..0.7));
        let key_out = match key.release() {
            Some(pkcs8) => identity::Key::PrivateKey(pkcs8),
            None => identity::Key::KeyHandle(Bytes::copy_from_slice(&handle)),
        };
        let identity = Identity {
            spiffe_id: issued.spiffe_id,
            agent: self.registration.agent.to_string(),
            instance_id: Bytes::copy_from_slice(self.live.id.as_bytes()),
            tier: issued.tier,
            custody: issued.custody,
            chain: self.agents.interned(&issued.chain),
            key: Some(key_out),
            bundle: Some((*bundle).clone()),
            not_before: issued.not_before,
            not_after: issued.not_after,
            renew_at,
        };
        let serial = Bytes::copy_from_slice(&issued.serial);
        self.live.holds(serial.clone(), issued.not_after);
        if self.agents.registry.was_revoked(&serial) {
            return Err(InstanceError::Ended(EndReason::Operator));
        }
        self.hold_key(handle, key);
        self.log_issued(&serial, tier, custody, issued.not_after, (why, span));
        metrics().issued(tier, why);
        if self.current.is_none() {
            metrics().first(custody, self.began.elapsed());
        }
        let held = metrics().holds(tier, custody);
        self.current = Some(Current { identity: Arc::new(identity), serial, renew_at, _held: held });
        Ok(())
    }

    /// Keeps a hardware key, and withdraws the one it replaces. A software key is the agent's from here on.
    fn hold_key(&mut self, handle: KeyHandle, key: Arc<dyn AgentKey>) {
        if self.key.as_ref().is_some_and(|(held, _)| *held == handle) {
            return;
        }
        if let Some((old, _)) = self.key.take() {
            self.agents.registry.withdraw(&old);
        }
        let Some((process, _)) = self.live.caller.known() else { return };
        if key.custody() != Custody::Software {
            let signer = Signer::new(self.live.clone(), process.key(), key.clone(), &self.agents.limits());
            self.agents.registry.offer(handle, Arc::new(signer));
            self.key = Some((handle, key));
        }
    }

    fn end(self, reason: EndReason) {
        self.live.end(reason);
        let serial = self.current.as_ref().map(|c| hex::encode(&c.serial)).unwrap_or_default();
        tracing::info!(
            host_id = %self.agents.state.host_id, agent = %self.live.agent, instance = %self.live.id,
            tier = %self.registration.tier, serial, reason = reason.as_str(), "identity ended"
        );
    }

    fn log_issued(
        &self,
        serial: &[u8],
        tier: Tier,
        custody: Custody,
        not_after: i64,
        (why, span): (&'static str, &Span),
    ) {
        let trace_id = span.traceparent().map(|parent| parent.trace_id_hex());
        let (pid, uid) = self.live.caller.known().map_or((0, 0), |(p, _)| (p.pid(), p.uid()));
        tracing::info!(
            host_id = %self.agents.state.host_id, agent = %self.live.agent, instance = %self.live.id,
            tier = %tier, custody = %custody, serial = hex::encode(serial), not_after, pid, uid,
            revision = self.registration.revision, trace_id, reason = why, "identity issued"
        );
    }

    fn log_refusal(&self, error: &InstanceError) {
        tracing::warn!(
            host_id = %self.agents.state.host_id, agent = %self.live.agent, instance = %self.live.id,
            tier = %self.registration.tier, wanted = self.wanted, reason = %error, "identity not issued"
        );
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        self.agents.registry.leave(&self.live.id);
        if let Some((handle, _)) = self.key.take() {
            self.agents.registry.withdraw(&handle);
        }
        if self.asked {
            let reason = self.live.ending().unwrap_or(EndReason::AgentClosed);
            self.agents.issuer.retire(self.live.id, reason);
        }
    }
}

enum Wanted {
    Nothing,
    Renewal(&'static str),
    End(EndReason),
}

impl Agents {
    async fn registration_for(&self, caller: &Caller, wanted: &str) -> Result<Registration, InstanceError> {
        let mut registrations = self.state.registrations.subscribe();
        let known = tokio::time::timeout(FIRST_WORD, registrations.wait_for(Option::is_some)).await;
        let known = known.ok().and_then(|r| r.ok()).and_then(|r| r.clone());
        let Some(known) = known else {
            let why = self.state.standing.borrow().last_error.clone();
            return Err(InstanceError::NotReady { why });
        };
        let ended = || InstanceError::Ended(EndReason::ProcessExited);
        let (process, seen) = caller.known().ok_or_else(ended)?;
        choose(&known, &seen.selectors, wanted).cloned().map_err(|error| {
            tracing::warn!(
                host_id = %self.state.host_id, pid = process.pid(), uid = process.uid(), wanted,
                reason = %error, "identity not issued"
            );
            error.into()
        })
    }
}

async fn process_ended(caller: &Caller) {
    match caller.known() {
        Some((process, _)) => process.ended().await,
        None => std::future::pending().await,
    }
}

fn refusal(refused: Refused) -> InstanceError {
    let unmet = refused.unmet.into_iter().map(|u| format!("{}: {}", u.code, u.detail)).collect();
    InstanceError::Refused { code: refused.code, unmet, retryable: refused.retryable }
}

fn end_of(error: &InstanceError) -> EndReason {
    match error {
        InstanceError::Ended(reason) => *reason,
        _ => EndReason::NotRenewed,
    }
}

fn new_id() -> InstanceId {
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    InstanceId::drawn_at(u64::try_from(since_1970.as_millis()).unwrap_or(u64::MAX), rand::rng().random())
}
