//! One connection to one issuer, from attestation to its end.

use std::future::{Future, pending};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hallmark_proto::issuer as wire;
use hallmark_proto::issuer::host_link_client::HostLinkClient;
use hallmark_proto::issuer::host_update::Update;
use rand::Rng;
use tokio::sync::oneshot;
use tonic::transport::Channel;
use tonic::{Code, Status};

use super::issuer::{AskError, QuoteWanted};
use super::{Link, LinkError, attest, is_host_disabled, unmet};
use crate::clock;
use crate::metrics::metrics;
use crate::state::Renewals;

/// How long the issuer may take to open the stream.
const OPEN: Duration = Duration::from_secs(20);
/// Before an attestation that failed is tried again, while the credential is still good.
const ATTEST_RETRY: i64 = 30;
/// For so long a quote must count yet to be good for one more request, at most.
const QUOTE_MARGIN: i64 = 10;
type Refreshing = Pin<Box<dyn Future<Output = Result<wire::RefreshAccepted, LinkError>> + Send>>;

/// Largest update from the issuer: all that is revoked on this host comes in one, at 18 bytes each.
const MAX_UPDATE: usize = 64 << 20;

/// The newest of what this stream has brought: what was overtaken on its way is passed over.
#[derive(Debug, Default)]
struct Newest {
    registrations: u64,
    bundle: u64,
    infrastructure: u64,
}

/// Whether this is no older than the newest, which it then is.
fn is_newest(newest: &mut u64, revision: u64) -> bool {
    let is = revision >= *newest;
    *newest = revision.max(*newest);
    is
}

/// A quote under way, and who waits for it.
#[derive(Default)]
struct Quoting {
    refreshing: Option<Refreshing>,
    waiting: Vec<oneshot::Sender<Result<(), AskError>>>,
    /// Who needs a quote of after his asking, and asked while one was under way: that one may have read
    /// the PCRs already.
    next: Vec<oneshot::Sender<Result<(), AskError>>>,
}

impl Link {
    /// Attests if it is time, connects, and follows the issuer's stream. Returns well when it is time to
    /// attest again.
    pub(super) async fn session(&mut self, endpoint: &str, connected: &mut bool) -> Result<(), LinkError> {
        if self.must_attest() {
            self.attest_or_carry_on(endpoint).await?;
        }
        let channel = self.channel(endpoint)?;
        let mut client = HostLinkClient::new(channel.clone()).max_decoding_message_size(MAX_UPDATE);
        let opening = tokio::time::timeout(OPEN, client.watch(wire::WatchRequest { have_revision: 0 })).await;
        let opened = opening.unwrap_or_else(|_| Err(Status::deadline_exceeded("the stream did not open")));
        let mut updates = match opened {
            Ok(updates) => updates.into_inner(),
            Err(status) => {
                // A credential that the issuer does not take is no credential; that of a disabled host is good
                // once more when the host is enabled.
                if matches!(status.code(), Code::Unauthenticated | Code::PermissionDenied)
                    && !is_host_disabled(&status)
                {
                    self.attest_at = 0;
                }
                return Err(LinkError::Refused(status));
            }
        };
        *connected = true;
        self.order.serves();
        self.up(endpoint, &channel);
        let mut quoting = Quoting::default();
        let mut newest = Newest::default();
        loop {
            tokio::select! {
                update = updates.message() => match update.map_err(LinkError::Refused)? {
                    Some(update) => {
                        if self.take(update, &mut newest, &channel).await {
                            return Ok(());
                        }
                    }
                    None => return Err(LinkError::Closed),
                },
                () = clock::until(self.attest_at) => return Ok(()),
                Some(wanted) = self.quotes.recv() => self.want_quote(wanted, &mut quoting, &channel),
                result = quoting.finished() => self.quoted(result, &mut quoting, &channel)?,
            }
        }
    }

    /// A failed attestation breaks nothing while the last one is still good.
    async fn attest_or_carry_on(&mut self, endpoint: &str) -> Result<(), LinkError> {
        match self.attest(endpoint).await {
            Ok(()) => Ok(()),
            Err(error) if error.is_host_disabled() => Err(error),
            Err(error) if self.svid.not_after().is_some_and(|end| end > clock::now()) => {
                self.attest_at = clock::now() + ATTEST_RETRY;
                tracing::warn!(host_id = %self.state.host_id, issuer = endpoint, reason = %error, "host not attested again");
                self.not_proven(&error);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Notes that a proof failed. One that was weighed and refused says that the host's state supports no
    /// tier, whatever an earlier one said; one that did not come through says nothing of it.
    fn not_proven(&self, error: &LinkError) {
        self.state.standing.send_modify(|standing| {
            standing.last_error = error.to_string();
            if matches!(error, LinkError::Refused(status) if status.code() == Code::PermissionDenied) {
                standing.highest_tier.clear();
                standing.unmet = vec![error.to_string()];
                standing.quote_valid_until = 0;
            }
        });
    }

    fn up(&self, endpoint: &str, channel: &Channel) {
        self.connection.send_replace(Some(channel.clone()));
        self.state.standing.send_modify(|standing| {
            standing.connected = true;
            standing.attested = true;
            standing.disabled = false;
            standing.last_error.clear();
        });
        self.state.news.send_replace(());
        tracing::info!(host_id = %self.state.host_id, issuer = endpoint, "issuer connected");
    }

    /// Returns whether the host must attest again now.
    async fn take(&mut self, update: wire::HostUpdate, newest: &mut Newest, channel: &Channel) -> bool {
        match update.update {
            Some(Update::Registrations(set)) => {
                self.state.accept_registrations(set, &mut newest.registrations);
            }
            Some(Update::Bundles(bundles)) => {
                if is_newest(&mut newest.bundle, bundles.revision) {
                    self.take_bundles(bundles);
                }
                self.acknowledge(channel);
            }
            Some(Update::Infrastructure(roots)) => {
                if is_newest(&mut newest.infrastructure, roots.revision) {
                    self.take_infrastructure(roots);
                }
                self.acknowledge(channel);
            }
            Some(Update::Renew(renew)) => self.take_renewals(&renew),
            Some(Update::Revocations(revoked)) => {
                tracing::info!(host_id = %self.state.host_id, count = revoked.serials.len(), "revocations received");
                // Fails only when nobody holds instances any more.
                let _ = self.state.revoked.send(revoked.serials).await;
                self.state.news.send_replace(());
            }
            Some(Update::AttestNow(order)) => {
                tracing::info!(host_id = %self.state.host_id, reason = order.reason, "ordered to attest again");
                // What was quoted before the order counts no more, whatever comes of it.
                self.state.standing.send_modify(|standing| standing.quote_valid_until = 0);
                return true;
            }
            // An issuer newer than this daemon may send more.
            None => {}
        }
        false
    }

    /// The issuer hears which roots this host has: a new one signs only once all have it.
    fn acknowledge(&self, channel: &Channel) {
        let bundle = self.state.bundle.borrow().as_ref().map_or(0, |bundle| bundle.revision);
        let request = wire::AcknowledgeRequest {
            bundle_revision: bundle,
            infrastructure_revision: self.infrastructure_revision,
        };
        let mut client = HostLinkClient::new(channel.clone());
        tokio::spawn(async move {
            if let Err(status) = client.acknowledge(request).await {
                // It comes to nothing worse than a connection that is taken up anew.
                tracing::debug!(%status, "the issuer did not hear which roots are here");
            }
        });
    }

    /// Agents' certificates and this host's own are renewed, each at a place of its own within the time given.
    fn take_renewals(&mut self, renew: &wire::Renew) {
        let now = clock::now();
        let renewals = Renewals::new(renew, now);
        tracing::warn!(
            host_id = %self.state.host_id, authorities = renew.authorities.len(), within_s = renew.within_seconds,
            "a CA is trusted no more: what it signed is renewed"
        );
        if let Some(at) = renewals.due(&self.authority, now, rand::rng().random()) {
            self.attest_at = self.attest_at.min(at);
        }
        self.state.renewals.send_replace(Some(Arc::new(renewals)));
    }

    fn want_quote(&self, wanted: QuoteWanted, quoting: &mut Quoting, channel: &Channel) {
        let end = self.state.standing.borrow().quote_valid_until;
        if !wanted.anew && good_for_one_more(clock::now(), self.quoted_at, end) {
            let _ = wanted.answer.send(Ok(()));
            return;
        }
        match &quoting.refreshing {
            None => {
                quoting.waiting.push(wanted.answer);
                self.begin_quote(quoting, channel);
            }
            Some(_) if wanted.anew => quoting.next.push(wanted.answer),
            Some(_) => quoting.waiting.push(wanted.answer),
        }
    }

    fn begin_quote(&self, quoting: &mut Quoting, channel: &Channel) {
        let refresh = attest::refresh(channel.clone(), self.attester.clone(), self.state.host_id.clone());
        quoting.refreshing = Some(Box::pin(refresh));
    }

    /// Whoever waits hears how the quote went.
    ///
    /// # Errors
    /// The host was disabled.
    fn quoted(
        &mut self,
        result: Result<wire::RefreshAccepted, LinkError>,
        quoting: &mut Quoting,
        channel: &Channel,
    ) -> Result<(), LinkError> {
        quoting.refreshing = None;
        let answer = match result {
            Err(error) if error.is_host_disabled() => return Err(error),
            Ok(accepted) => {
                self.quoted_at = clock::now();
                metrics().quoted(self.quoted_at);
                self.state.standing.send_modify(|standing| {
                    standing.quote_valid_until = accepted.quote_valid_until;
                    standing.highest_tier = accepted.highest_tier;
                    standing.unmet = accepted.unmet.iter().map(unmet).collect();
                });
                self.state.news.send_replace(());
                tracing::info!(host_id = %self.state.host_id, valid_until = accepted.quote_valid_until, "quote accepted");
                Ok(())
            }
            Err(error) => {
                tracing::warn!(host_id = %self.state.host_id, reason = %error, "quote not accepted");
                self.not_proven(&error);
                Err(match error {
                    LinkError::Refused(status) => AskError::Call(status),
                    other => AskError::Away(other.to_string()),
                })
            }
        };
        for waiting in quoting.waiting.drain(..) {
            let _ = waiting.send(answer.clone());
        }
        quoting.waiting = std::mem::take(&mut quoting.next);
        if !quoting.waiting.is_empty() {
            self.begin_quote(quoting, channel);
        }
        Ok(())
    }
}

impl Quoting {
    async fn finished(&mut self) -> Result<wire::RefreshAccepted, LinkError> {
        match &mut self.refreshing {
            Some(refreshing) => refreshing.await,
            None => pending().await,
        }
    }
}

/// Whether a quote accepted at `from` that counts until `end` is fresh enough for one more request.
fn good_for_one_more(now: i64, from: i64, end: i64) -> bool {
    end - now > QUOTE_MARGIN.min((end - from) / 4)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roots_that_were_overtaken_are_passed_over() {
        let mut newest = 0;
        assert!(is_newest(&mut newest, 4));
        assert!(is_newest(&mut newest, 4), "the same once more");
        assert!(!is_newest(&mut newest, 3));
        assert!(is_newest(&mut newest, 5));
    }

    #[test]
    fn no_more_quotes_than_needed() {
        assert!(good_for_one_more(1000, 1000, 1300));
        assert!(good_for_one_more(1289, 1000, 1300));
        assert!(!good_for_one_more(1290, 1000, 1300));
        assert!(!good_for_one_more(1301, 1000, 1300));
        // Short ages: a quarter of them.
        assert!(good_for_one_more(1007, 1000, 1012));
        assert!(!good_for_one_more(1009, 1000, 1012));
        assert!(!good_for_one_more(1000, 0, 0), "none yet");
    }
}
