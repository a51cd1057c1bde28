//! The connection to the issuer: outbound, by mutual TLS with a key that lives in the TPM; attested again
//! before its credential ends, and taken up again whenever it breaks.

mod attest;
pub mod attester;
pub mod issuer;
mod join;
mod order;
mod roots;
mod session;
mod tpm;

use std::sync::Arc;
use std::time::Duration;

use hallmark_core::x509::InfraRoots;
use hallmark_proto::issuer as wire;
use hallmark_proto::tls::{self, Accept, CertError, ChannelError, ChannelOptions, Shared, SwappableCert};
use rand::Rng;
use tokio::sync::{mpsc, watch};
use tonic::Status;
use tonic::transport::Channel;

use crate::clock;
use crate::keys::KeyError;
use crate::metrics::metrics;
use crate::state::State;
use attester::{AttestError, Attester};
use issuer::{AskError, QuoteWanted};
use order::Order;

pub use join::JoinToken;
pub use roots::{RootCache, RootFileError, load as roots};
pub use tpm::{TpmAttester, ek_digest};

/// Shortest and longest wait after all issuers have failed.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(500), Duration::from_secs(60));
/// Between two questions whether a host that was disabled is enabled again.
const DISABLED: Duration = Duration::from_secs(60);
/// The issuer's word for a host that an operator has disabled, in the message of its refusal.
const HOST_DISABLED: &str = "host-disabled";
/// The part of a host SVID's life after which the host attests again, at the latest.
const ATTEST_AGAIN: f64 = 0.6;

/// Why the link is down.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// This host could not prove itself.
    #[error(transparent)]
    Attest(#[from] AttestError),
    /// The host's key did not sign.
    #[error("host key: {0}")]
    Key(#[from] KeyError),
    /// The address or TLS configuration is wrong.
    #[error(transparent)]
    Channel(#[from] ChannelError),
    /// TLS.
    #[error("TLS: {0}")]
    Tls(#[from] rustls::Error),
    /// The issuer cannot be reached, or refuses.
    #[error("{}", words(.0))]
    Refused(Status),
    /// The certificate the issuer gave cannot be used.
    #[error("the host SVID cannot be used: {0}")]
    Svid(#[from] CertError),
    /// The issuer gave another host's certificate.
    #[error("the host SVID is for {found}, not for this host")]
    OtherHost {
        /// Whose it is.
        found: String,
    },
    /// The issuer sent something out of turn.
    #[error("protocol: {0}")]
    Protocol(&'static str),
    /// The issuer closed the stream.
    #[error("the issuer closed the connection")]
    Closed,
}

/// Whether the connection failed, rather than the attestation: an issuer that refuses a certificate ends the
/// connection, and says so in TLS alone.
fn is_of_the_connection(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// tonic hides the reason of a failed connection in the chain of sources.
fn words(status: &Status) -> String {
    let mut text =
        format!("the issuer cannot be reached or refuses ({}): {}", status.code(), status.message());
    let mut source = std::error::Error::source(status);
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        source = error.source();
    }
    text
}

impl LinkError {
    /// Whether the issuer says that an operator has disabled this host.
    fn is_host_disabled(&self) -> bool {
        matches!(self, LinkError::Refused(status) if is_host_disabled(status))
    }
}

/// The issuer's coarse refusals name the reason in one word, as in `attestation refused: pcr-policy`.
fn is_host_disabled(status: &Status) -> bool {
    let mut words = status.message().split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    status.code() == tonic::Code::PermissionDenied && words.any(|word| word == HOST_DISABLED)
}

/// See the module.
pub struct Link {
    order: Order,
    roots: Shared<InfraRoots>,
    attester: Arc<dyn Attester>,
    state: Arc<State>,
    connection: watch::Sender<Option<Channel>>,
    quotes: mpsc::Receiver<QuoteWanted>,
    svid: Arc<SwappableCert>,
    /// The issuing CA of the host's SVID, DER.
    authority: Vec<u8>,
    /// Which set of infrastructure roots is in force; 0 for those of the configuration.
    infrastructure_revision: u64,
    cache: Option<RootCache>,
    /// When to attest again, seconds since 1970; 0 for now.
    attest_at: i64,
    /// When the last quote was accepted.
    quoted_at: i64,
    disabled_retry: Duration,
}

impl Link {
    /// To the first of `endpoints`, in this host's own order, that answers. Connections come out of `connection`, wishes for a fresh
    /// quote in by `quotes`.
    pub fn new(
        endpoints: Vec<String>,
        roots: InfraRoots,
        attester: Arc<dyn Attester>,
        state: Arc<State>,
        connection: watch::Sender<Option<Channel>>,
        quotes: mpsc::Receiver<QuoteWanted>,
    ) -> Self {
        let roots = Shared::new(roots);
        let svid = SwappableCert::new();
        Self {
            order: Order::new(endpoints, &state.host_id, true),
            roots,
            attester,
            state,
            connection,
            quotes,
            svid,
            authority: Vec::new(),
            infrastructure_revision: 0,
            cache: None,
            attest_at: 0,
            quoted_at: 0,
            disabled_retry: DISABLED,
        }
    }

    /// Tries the issuers as they are listed, and does not spread hosts over them.
    pub fn in_order(self, endpoints: Vec<String>) -> Self {
        let order = Order::new(endpoints, &self.state.host_id, false);
        Self { order, ..self }
    }

    /// Asks this often, more or less, whether a host that was disabled is enabled again.
    pub fn ask_when_disabled_every(self, pause: Duration) -> Self {
        Self { disabled_retry: pause, ..self }
    }

    /// Keeps the infrastructure roots that the issuer sends for the next start.
    pub fn remember_roots_in(self, cache: Option<RootCache>) -> Self {
        Self { cache, ..self }
    }

    /// Keeps the link up until the task is dropped.
    pub async fn run(self) {
        let pulse = self.state.link_pulse.clone();
        pulse.while_doing(self.keep_up()).await;
    }

    async fn keep_up(mut self) {
        let mut wait = BACKOFF.0;
        loop {
            let Some(endpoint) = self.order.current().map(str::to_owned) else { return };
            let mut connected = false;
            let outcome = self.session(&endpoint, &mut connected).await;
            if connected {
                wait = BACKOFF.0;
            }
            match outcome {
                // Attest again, and take the connection up with the new credential.
                Ok(()) => {
                    self.attest_at = 0;
                    self.order.try_first();
                }
                Err(error) if error.is_host_disabled() => {
                    self.disabled(&endpoint, &error);
                    self.order.next();
                    let pause = self.disabled_retry.mul_f64(rand::rng().random_range(0.75..1.25));
                    self.pause(pause, &error.to_string()).await;
                }
                // Agents were served by the other one all along.
                Err(error) if !connected && self.order.not_yet() => {
                    self.attest_at = 0;
                    tracing::info!(
                        host_id = %self.state.host_id, issuer = endpoint, reason = %error, "issuer not back yet"
                    );
                }
                Err(error) => {
                    self.down(&endpoint, &error, connected);
                    if self.order.next() || connected {
                        let pause = wait.mul_f64(rand::rng().random_range(0.5..1.0));
                        wait = (wait * 2).min(BACKOFF.1);
                        self.pause(pause, &error.to_string()).await;
                    }
                }
            }
        }
    }

    fn down(&self, endpoint: &str, error: &LinkError, was_up: bool) {
        metrics().link_failed();
        self.connection.send_replace(None);
        self.state.standing.send_modify(|standing| {
            standing.connected = false;
            standing.last_error = error.to_string();
        });
        tracing::warn!(
            host_id = %self.state.host_id, issuer = endpoint, was_up, reason = %error, "issuer away"
        );
    }

    /// No agent has an identity on a host that was disabled.
    fn disabled(&self, endpoint: &str, error: &LinkError) {
        self.connection.send_replace(None);
        self.state.standing.send_modify(|standing| {
            standing.attested = false;
            standing.connected = false;
            standing.disabled = true;
            standing.last_error = format!(
                "this host has been disabled at the issuer: its agents' identities have ended, and it asks again every minute ({error})"
            );
        });
        tracing::error!(
            host_id = %self.state.host_id, issuer = endpoint, reason = %error,
            remedy = "an operator enables it again at the issuer", "host disabled: all identities ended"
        );
    }

    /// Waits, and says no to whoever wants a quote meanwhile.
    async fn pause(&mut self, pause: Duration, why: &str) {
        let over = tokio::time::sleep(pause);
        tokio::pin!(over);
        loop {
            tokio::select! {
                () = &mut over => return,
                Some(wanted) = self.quotes.recv() => {
                    let _ = wanted.answer.send(Err(AskError::Away(why.to_owned())));
                }
            }
        }
    }

    /// Whether there is no credential, or it is time for the next.
    fn must_attest(&self) -> bool {
        self.svid.not_after().is_none_or(|end| end <= clock::now()) || self.attest_at <= clock::now()
    }

    /// Attests and takes the new credential. A host whose credential still holds shows it: the issuer keeps
    /// room for such hosts. An issuer that does not take it, since its roots are new, is asked without.
    async fn attest(&mut self, endpoint: &str) -> Result<(), LinkError> {
        let host = &self.state.host_id;
        let over = |channel| attest::attest(channel, &self.attester, host, &self.state.trust_domain);
        let attested = if self.svid.not_after().is_some_and(|end| end > clock::now()) {
            match over(self.channel(endpoint)?).await {
                Err(LinkError::Refused(status)) if is_of_the_connection(&status) => {
                    over(self.strangers_channel(endpoint)?).await
                }
                other => other,
            }
        } else {
            over(self.strangers_channel(endpoint)?).await
        };
        let attested = attested.inspect_err(|error| {
            if matches!(error, LinkError::Refused(status) if status.code() == tonic::Code::PermissionDenied) {
                tracing::error!(host_id = %host, reason = %error, remedy = self.attester.remedy(), "host refused");
            }
        })?;
        self.attester.accepted();
        self.accept(attested)
    }

    fn accept(&mut self, attested: wire::HostAttested) -> Result<(), LinkError> {
        let chain = attested.host_svid.iter().map(|der| der.to_vec().into()).collect();
        self.svid.set(chain, self.attester.tls_key()?)?;
        let svid = self.svid.svid().ok_or(LinkError::Protocol("no host SVID"))?;
        let wanted = hallmark_core::id::Subject::Host(self.state.host_id.clone());
        if svid.spiffe_id.subject != wanted || svid.spiffe_id.trust_domain != self.state.trust_domain {
            self.svid.clear();
            return Err(LinkError::OtherHost { found: svid.spiffe_id.to_string() });
        }
        self.authority = attested.host_svid.get(1).map(|der| der.to_vec()).unwrap_or_default();
        let now = clock::now();
        self.attest_at =
            again(now, svid.not_after, attested.attest_again_at, rand::rng().random_range(0.9..1.0));
        self.quoted_at = now;
        metrics().attested(now, svid.not_after);
        if let Some(bundles) = attested.bundles {
            self.take_bundles(bundles);
        }
        let unmet: Vec<String> = attested.unmet.iter().map(unmet).collect();
        self.state.standing.send_modify(|standing| {
            standing.attested = true;
            standing.disabled = false;
            standing.highest_tier = attested.highest_tier.clone();
            standing.unmet.clone_from(&unmet);
            standing.quote_valid_until = attested.quote_valid_until;
        });
        tracing::info!(
            host_id = %self.state.host_id, proof = self.attester.name(), highest_tier = attested.highest_tier,
            unmet = unmet.join("; "), serial = %svid.serial, not_after = svid.not_after,
            attest_again_at = self.attest_at, "host attested"
        );
        Ok(())
    }

    fn take_bundles(&self, bundles: wire::BundleSet) {
        if let Err(reason) = self.state.accept_bundles(bundles) {
            tracing::error!(host_id = %self.state.host_id, reason, "bundle refused");
        }
    }

    /// The roots by which issuers are known from here on, in place of those of before.
    fn take_infrastructure(&mut self, roots: wire::InfrastructureRoots) {
        let denied = roots.denied.iter().filter_map(|key| <[u8; 32]>::try_from(key.as_ref()).ok());
        match InfraRoots::new(self.state.trust_domain.clone(), &roots.roots) {
            // None at all would shut the issuer out for good.
            Ok(new) if !new.ders().is_empty() => {
                let new = new.denying(denied);
                if let Some(cache) = &self.cache {
                    cache.keep(&new);
                }
                self.roots.store(new);
                self.infrastructure_revision = roots.revision;
            }
            Ok(_) => tracing::error!(host_id = %self.state.host_id, "no infrastructure roots: refused"),
            Err(error) => {
                tracing::error!(host_id = %self.state.host_id, reason = %error, "infrastructure roots refused");
            }
        }
    }

    /// A channel that shows no certificate.
    fn strangers_channel(&self, endpoint: &str) -> Result<Channel, LinkError> {
        let config = tls::client_config(Accept::Issuers(self.roots.clone()), None)?;
        let options =
            ChannelOptions { spread: order::place(&self.state.host_id), ..ChannelOptions::default() };
        Ok(tls::channel(endpoint, Arc::new(config), options)?)
    }

    /// A channel that shows the host's SVID.
    fn channel(&self, endpoint: &str) -> Result<Channel, LinkError> {
        let accept = Accept::Issuers(self.roots.clone());
        let config = tls::client_config(accept, Some(self.svid.clone()))?;
        let options = ChannelOptions {
            identity: Some(self.svid.clone()),
            spread: order::place(&self.state.host_id),
            ..ChannelOptions::default()
        };
        Ok(tls::channel(endpoint, Arc::new(config), options)?)
    }
}

fn unmet(unmet: &wire::Unmet) -> String {
    format!("{}: {}", unmet.code, unmet.detail)
}

/// When to attest again: when the issuer says, but well before the credential ends, and not all hosts at
/// once.
fn again(now: i64, not_after: i64, wish: i64, jitter: f64) -> i64 {
    let latest = now + ((not_after - now).max(0) as f64 * ATTEST_AGAIN) as i64;
    let wish = if wish > now { wish.min(latest) } else { latest };
    now + ((wish - now) as f64 * jitter) as i64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_word_itself_from_a_refusal_disables() {
        let disabled = "attestation refused: host-disabled";
        assert!(is_host_disabled(&Status::permission_denied(disabled)));
        assert!(is_host_disabled(&Status::permission_denied("host-disabled")));
        assert!(!is_host_disabled(&Status::unavailable(disabled)));
        assert!(!is_host_disabled(&Status::permission_denied("attestation refused: host-disabled-not")));
        assert!(!is_host_disabled(&Status::permission_denied("attestation refused: pcr-policy")));
    }

    #[test]
    fn the_host_attests_again_well_before_its_credential_ends() {
        assert_eq!(again(1000, 4600, 0, 1.0), 3160);
        assert_eq!(again(1000, 4600, 2000, 1.0), 2000);
        assert_eq!(again(1000, 4600, 9999, 0.9), 2944);
        assert_eq!(again(1000, 900, 0, 1.0), 1000);
    }
}
