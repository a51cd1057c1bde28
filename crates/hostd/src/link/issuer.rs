//! Asking the issuer: certificates in batches, and the ends of instances, over whichever connection the
//! link holds now.

use std::sync::Arc;
use std::time::Duration;

use hallmark_core::id::InstanceId;
use hallmark_proto::issuer as wire;
use hallmark_proto::issuer::issuance_client::IssuanceClient;
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tonic::Status;
use tonic::codegen::Bytes;
use tonic::transport::Channel;

use crate::metrics::metrics;
use crate::state::State;

/// Items in one call: the issuer takes no more.
pub const MAX_BATCH: usize = 64;
/// Calls in flight.
const MAX_CALLS: usize = 4;
/// How long an item waits for company while other calls are in flight.
const LINGER: Duration = Duration::from_millis(2);
/// Requests that may wait here.
const QUEUE: usize = 4096;
/// How long one call may take.
const CALL_TIMEOUT: Duration = Duration::from_secs(20);
/// Ends of instances that are kept while the issuer is away. The oldest are let go first: their
/// certificates expire by themselves.
const MAX_ENDS: usize = 16 * 1024;

/// Why the issuer gave no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum AskError {
    /// There is no connection.
    #[error("the issuer is away: {0}")]
    Away(String),
    /// The call failed.
    #[error("the issuer answered {}: {}", .0.code(), .0.message())]
    Call(Status),
    /// The answer is not of the form promised.
    #[error("the issuer's answer cannot be read: {0}")]
    Answer(&'static str),
    /// Too many requests wait.
    #[error("too many requests for certificates wait")]
    Busy,
}

/// Why an instance ended, in the words of `RetireRequest.reason`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum EndReason {
    /// The process ended.
    ProcessExited,
    /// The process executed another image.
    ImageReplaced,
    /// The registration changed or is gone.
    RegistrationChanged,
    /// The agent closed its stream.
    AgentClosed,
    /// The host daemon ends.
    HostShutdown,
    /// An operator's order.
    Operator,
    /// The credential ended and could not be renewed.
    NotRenewed,
    /// An operator has disabled this host.
    HostDisabled,
}

impl EndReason {
    /// The word on the wire and in logs.
    pub fn as_str(self) -> &'static str {
        match self {
            EndReason::ProcessExited => "process-exited",
            EndReason::ImageReplaced => "image-replaced",
            EndReason::RegistrationChanged => "registration-changed",
            EndReason::AgentClosed => "agent-closed",
            EndReason::HostShutdown => "host-shutdown",
            EndReason::Operator => "operator",
            EndReason::NotRenewed => "not-renewed",
            EndReason::HostDisabled => "host-disabled",
        }
    }
}

/// The connection of the moment; none while the issuer is away.
pub type Connection = watch::Receiver<Option<Channel>>;

/// A handle to the issuer, cheap to clone.
#[derive(Debug, Clone)]
pub struct Issuer {
    items: mpsc::Sender<Item>,
    ends: mpsc::UnboundedSender<End>,
    quotes: mpsc::Sender<QuoteWanted>,
}

/// Somebody is about to ask for a credential that rests on what the host's last quote showed.
#[derive(Debug)]
pub struct QuoteWanted {
    /// Said when the quote is accepted, or why it is not.
    pub answer: oneshot::Sender<Result<(), AskError>>,
    /// Not even one that counts for a while yet will do: the PCRs may have changed since.
    pub anew: bool,
}

type Item = (wire::IssueItem, oneshot::Sender<Result<wire::IssueResult, AskError>>);

#[derive(Debug)]
enum End {
    Instance(InstanceId, EndReason),
    Flush(oneshot::Sender<()>),
}

impl Issuer {
    /// Works over `connection`; requests for a fresh quote come out of the receiver.
    pub fn new(connection: Connection, state: Arc<State>) -> (Self, mpsc::Receiver<QuoteWanted>) {
        let (items, waiting) = mpsc::channel(QUEUE);
        let (ends, ended) = mpsc::unbounded_channel();
        let (quotes, wanted) = mpsc::channel(QUEUE);
        tokio::spawn(batch(waiting, connection.clone(), state));
        tokio::spawn(retire(ended, connection));
        (Self { items, ends, quotes }, wanted)
    }

    /// One certificate, or the refusal of one.
    ///
    /// # Errors
    /// There was no answer.
    pub async fn issue(&self, item: wire::IssueItem) -> Result<wire::IssueResult, AskError> {
        let (answer, answered) = oneshot::channel();
        self.items.try_send((item, answer)).map_err(|_| AskError::Busy)?;
        answered.await.unwrap_or(Err(AskError::Answer("the request was dropped")))
    }

    /// Returns when the host's quote is fresh enough for an advanced credential.
    ///
    /// # Errors
    /// No fresh quote was accepted.
    pub async fn fresh_quote(&self) -> Result<(), AskError> {
        self.quote(false).await
    }

    /// Returns when a quote made from now on is accepted.
    ///
    /// # Errors
    /// It was not.
    pub async fn new_quote(&self) -> Result<(), AskError> {
        self.quote(true).await
    }

    async fn quote(&self, anew: bool) -> Result<(), AskError> {
        let (answer, answered) = oneshot::channel();
        self.quotes.try_send(QuoteWanted { answer, anew }).map_err(|_| AskError::Busy)?;
        answered.await.unwrap_or(Err(AskError::Answer("the request was dropped")))
    }

    /// Says that an instance has ended; sent when the issuer can be reached.
    pub fn retire(&self, instance: InstanceId, reason: EndReason) {
        // Fails only when the runtime is going away.
        drop(self.ends.send(End::Instance(instance, reason)));
    }

    /// Returns when every end said so far has been sent, or after `deadline`.
    pub async fn flush(&self, deadline: Duration) {
        let (done, flushed) = oneshot::channel();
        if self.ends.send(End::Flush(done)).is_ok() && tokio::time::timeout(deadline, flushed).await.is_err()
        {
            tracing::warn!(
                "not every instance's end reached the issuer in time; their certificates expire by themselves"
            );
        }
    }
}

/// Sends at once what finds no call in flight; else waits a moment for company.
async fn batch(mut waiting: mpsc::Receiver<Item>, connection: Connection, state: Arc<State>) {
    let calls = Arc::new(Semaphore::new(MAX_CALLS));
    let mut items = Vec::with_capacity(MAX_BATCH);
    while waiting.recv_many(&mut items, MAX_BATCH).await > 0 {
        if calls.available_permits() < MAX_CALLS && items.len() < MAX_BATCH {
            fill(&mut waiting, &mut items).await;
        }
        let Ok(permit) = calls.clone().acquire_owned().await else { return };
        while items.len() < MAX_BATCH
            && let Ok(item) = waiting.try_recv()
        {
            items.push(item);
        }
        let channel = connection.borrow().clone();
        let away = channel.is_none().then(|| state.standing.borrow().last_error.clone());
        let batch = std::mem::replace(&mut items, Vec::with_capacity(MAX_BATCH));
        tokio::spawn(async move {
            call(batch, channel, away).await;
            drop(permit);
        });
    }
}

async fn fill(waiting: &mut mpsc::Receiver<Item>, items: &mut Vec<Item>) {
    let until = tokio::time::Instant::now() + LINGER;
    while items.len() < MAX_BATCH {
        match tokio::time::timeout_at(until, waiting.recv()).await {
            Ok(Some(item)) => items.push(item),
            _ => return,
        }
    }
}

async fn call(batch: Vec<Item>, channel: Option<Channel>, away: Option<String>) {
    let (items, answers): (Vec<_>, Vec<_>) =
        batch.into_iter().filter(|(_, answer)| !answer.is_closed()).unzip();
    if answers.is_empty() {
        return;
    }
    metrics().asked(items.len());
    let results = match channel {
        Some(channel) => issue(channel, items).await,
        None => Err(AskError::Away(away.unwrap_or_default())),
    };
    match results {
        Ok(results) if results.len() == answers.len() => {
            for (answer, result) in answers.into_iter().zip(results) {
                drop(answer.send(Ok(result)));
            }
        }
        Ok(_) => fail(answers, &AskError::Answer("it has not one result for each item")),
        Err(error) => fail(answers, &error),
    }
}

async fn issue(channel: Channel, items: Vec<wire::IssueItem>) -> Result<Vec<wire::IssueResult>, AskError> {
    let mut request = tonic::Request::new(wire::IssueRequest { items });
    request.set_timeout(CALL_TIMEOUT);
    let answer = tokio::time::timeout(CALL_TIMEOUT, IssuanceClient::new(channel).issue(request)).await;
    match answer {
        Ok(answer) => answer.map(|a| a.into_inner().results).map_err(AskError::Call),
        Err(_) => Err(AskError::Call(Status::deadline_exceeded("no answer in time"))),
    }
}

fn fail(answers: Vec<oneshot::Sender<Result<wire::IssueResult, AskError>>>, error: &AskError) {
    for answer in answers {
        drop(answer.send(Err(error.clone())));
    }
}

async fn retire(mut ended: mpsc::UnboundedReceiver<End>, mut connection: Connection) {
    let mut kept: Vec<(InstanceId, EndReason)> = Vec::new();
    let mut flushes = Vec::new();
    let mut received = Vec::new();
    let mut linked = true;
    loop {
        let more = tokio::select! {
            n = ended.recv_many(&mut received, 1024) => n > 0,
            // With something left to send: try again at a new connection, or after a while.
            changed = connection.changed(), if linked && !kept.is_empty() => {
                linked = changed.is_ok();
                true
            }
            () = tokio::time::sleep(Duration::from_secs(5)), if !kept.is_empty() => true,
        };
        for end in received.drain(..) {
            match end {
                End::Instance(instance, reason) => kept.push((instance, reason)),
                End::Flush(done) => flushes.push(done),
            }
        }
        if kept.len() > MAX_ENDS {
            kept.drain(..kept.len() - MAX_ENDS);
        }
        let channel = connection.borrow_and_update().clone();
        if let Some(channel) = channel {
            send_ends(&channel, &mut kept).await;
        }
        if kept.is_empty() {
            for done in flushes.drain(..) {
                // Whoever waited may have given up.
                let _ = done.send(());
            }
        }
        if !more {
            return;
        }
    }
}

async fn send_ends(channel: &Channel, kept: &mut Vec<(InstanceId, EndReason)>) {
    kept.sort_by_key(|(_, reason)| *reason);
    while let Some((_, reason)) = kept.first().copied() {
        let same = kept.iter().take(1024).take_while(|(_, r)| *r == reason).count();
        let instance_ids = kept[..same].iter().map(|(i, _)| Bytes::copy_from_slice(i.as_bytes())).collect();
        let request = wire::RetireRequest { instance_ids, reason: reason.as_str().into() };
        let mut issuance = IssuanceClient::new(channel.clone());
        let sent = tokio::time::timeout(CALL_TIMEOUT, issuance.retire(request)).await;
        match sent {
            Ok(Ok(_)) => {
                kept.drain(..same);
            }
            Ok(Err(status)) if status.code() == tonic::Code::InvalidArgument => {
                tracing::error!(%status, count = same, "the issuer does not take the ends of these instances");
                kept.drain(..same);
            }
            Ok(Err(status)) => {
                tracing::warn!(%status, "ends of instances wait for the issuer");
                return;
            }
            Err(_) => return,
        }
    }
}
