//! What can be asked of the writer, and what it answers.

use std::fmt;
use std::sync::Arc;

use hallmark_core::id::{AgentName, HostId, InstanceId};
use hallmark_core::tier::Tier;

use super::StoreError;
use super::authority::{Authority, Change};
use super::live::Stale;
use super::rows::{AllowedEk, TrustDomainRow};
use crate::record::Entry;

/// One change, or one decision to be recorded.
#[derive(Debug)]
pub enum Write {
    /// Appends a decision.
    Record(Entry),
    /// Appends the decision to issue, and keeps the credential; refused if it is stale by now.
    Issue(Box<Issue>),
    /// Fixes what the trust domain is; fails if it is fixed already.
    TrustDomain(TrustDomainRow),
    /// Adds a CA.
    Authority(Box<Authority>),
    /// Changes a CA's place in its life.
    Change(Change),
    /// Binds a host to its EK (or to none), or confirms the binding, and keeps its standing.
    Enrol {
        /// The host.
        host_id: HostId,
        /// SHA-256 of its EK's SPKI; none for a join token.
        ek_digest: Option<[u8; 32]>,
        /// Something shows that the EK is a software TPM's: this is kept for ever.
        simulated: bool,
        /// Now.
        at: i64,
        /// Versioned JSON.
        standing: String,
        /// The host's standing from here on.
        epoch: u64,
    },
    /// Keeps what a host's newest quote showed.
    Standing {
        /// The host.
        host_id: HostId,
        /// Versioned JSON.
        standing: String,
        /// An operator's order, which holds for a disabled host, too: what the host shows itself does not.
        ordered: bool,
        /// The host's standing from here on.
        epoch: u64,
    },
    /// What comes after it was decided upon this standing of the host: refused if that is another by now.
    Stands {
        /// The host.
        host_id: HostId,
        /// The standing decided upon.
        epoch: u64,
    },
    /// What is known of a host means something else now, as after a change of PCR policy: what was decided
    /// before and is not yet recorded is decided anew.
    Turn {
        /// The host.
        host_id: HostId,
        /// The host's standing from here on.
        epoch: u64,
    },
    /// Disables a host, with the operator's words, or enables it.
    DisableHost {
        /// The host.
        host_id: HostId,
        /// Why; none enables it.
        reason: Option<String>,
        /// The host's standing from here on.
        epoch: u64,
    },
    /// Removes a host: its standing, its place on the allow-list, its join tokens. The binding stays.
    RemoveHost {
        /// The host.
        host_id: HostId,
        /// Now.
        at: i64,
        /// The host's standing from here on.
        epoch: u64,
    },
    /// Adds an EK to the allow-list.
    AllowEk(AllowedEk),
    /// Keeps a join token's hash.
    JoinToken {
        /// SHA-256 of the token's text.
        token_sha256: [u8; 32],
        /// The host it is for.
        host_id: HostId,
        /// When it ends.
        expires_at: i64,
    },
    /// Spends a join token: succeeds once.
    SpendJoinToken {
        /// SHA-256 of the token's text.
        token_sha256: [u8; 32],
        /// The host that shows it.
        host_id: HostId,
        /// Now.
        at: i64,
    },
    /// Adds or replaces a registration.
    Registration {
        /// The agent.
        agent: AgentName,
        /// The set's new revision.
        revision: u64,
        /// Canonical JSON.
        body: String,
    },
    /// Removes a registration.
    RemoveRegistration {
        /// The agent.
        agent: AgentName,
    },
    /// Sets the registration set's revision.
    RegistrationSet {
        /// The new revision.
        revision: u64,
    },
    /// Ends instances: each gets its record, and all its unexpired certificates are revoked.
    End(Ending),
    /// Proves that the store takes writes.
    Heartbeat {
        /// Now.
        at: i64,
    },
    /// Drops what has long expired from the tables of what is alive. Records are never dropped.
    Purge {
        /// Now.
        at: i64,
    },
}

impl Write {
    /// Whether other issuers decide upon what this changes.
    pub(super) fn is_others_concern(&self) -> bool {
        match self {
            Write::Record(_)
            | Write::Issue(_)
            | Write::Stands { .. }
            | Write::Turn { .. }
            | Write::Heartbeat { .. } => false,
            Write::TrustDomain(_)
            | Write::Authority(_)
            | Write::Change(_)
            | Write::Enrol { .. }
            | Write::Standing { .. }
            | Write::DisableHost { .. }
            | Write::RemoveHost { .. }
            | Write::AllowEk(_)
            | Write::JoinToken { .. }
            | Write::SpendJoinToken { .. }
            | Write::Registration { .. }
            | Write::RemoveRegistration { .. }
            | Write::RegistrationSet { .. }
            | Write::End(_)
            // Two that drop the same rows at once would wait for each other.
            | Write::Purge { .. } => true,
        }
    }
}

/// A credential that was decided upon and signed.
#[derive(Debug)]
pub struct Issue {
    /// The decision.
    pub entry: Entry,
    /// Which run.
    pub instance: InstanceId,
    /// Its agent.
    pub agent: AgentName,
    /// Its host.
    pub host: HostId,
    /// The credential's tier.
    pub tier: Tier,
    /// Generation of the issuing CA that signed it.
    pub ca: u32,
    /// Held for as long as this may still be recorded: its CA is not retired meanwhile.
    pub held: Arc<()>,
    /// The key's custody.
    pub custody: &'static str,
    /// Now.
    pub issued_at: i64,
    /// When the certificate ends.
    pub not_after: i64,
    /// Revision of the registration it was decided under.
    pub registration_revision: u64,
    /// The host's standing it was decided upon.
    pub host_epoch: u64,
}

/// Which instances end, and why.
#[derive(Debug)]
pub struct Ending {
    /// Which.
    pub who: Who,
    /// Now.
    pub at: i64,
    /// In one word.
    pub reason: &'static str,
    /// Who ordered it, if an operator did.
    pub operator: Option<String>,
    /// Software TPMs may count in this trust domain.
    pub lab: bool,
}

/// Says of which instances a change is none of their business.
pub type Stays = Box<dyn Fn(&Ended) -> bool + Send + Sync>;

/// Which instances; with nothing named, all.
#[derive(Default)]
pub struct Who {
    /// Of this agent.
    pub agent: Option<AgentName>,
    /// Of this host.
    pub host: Option<HostId>,
    /// Of these.
    pub instances: Option<Vec<InstanceId>>,
    /// Whose newest credential is above this tier; of any tier with `Some(None)`.
    pub above: Option<Option<Tier>>,
    /// All but those of which this holds.
    pub unless: Option<Stays>,
}

impl fmt::Debug for Who {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { agent, host, instances, above, unless } = self;
        f.debug_struct("Who")
            .field("agent", agent)
            .field("host", host)
            .field("instances", instances)
            .field("above", above)
            .field("unless", &unless.is_some())
            .finish()
    }
}

/// An instance that ends.
#[derive(Debug, Clone)]
pub struct Ended {
    /// Its id.
    pub instance: InstanceId,
    /// Its agent.
    pub agent: AgentName,
    /// Its host.
    pub host: HostId,
    /// Tier of its newest credential.
    pub tier: Tier,
    /// Who was accountable for it.
    pub owner: Option<String>,
    /// What its host observed of the process for its newest credential.
    pub selectors: Vec<String>,
    /// Serials of all its unexpired certificates.
    pub serials: Vec<Vec<u8>>,
}

/// Why a join token bought nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum JoinTokenSpend {
    /// No such token was ever made here.
    #[error("no such join token was made here")]
    Unknown,
    /// It was used before.
    #[error("the join token was used before; each works once")]
    Spent,
    /// Its time is over.
    #[error("the join token has expired")]
    Expired,
    /// It was made for another host id.
    #[error("the join token was made for another host id")]
    OtherHost,
}

/// Proof that a decision's record is on disk. Only the writer makes one. It releases nothing: that takes a
/// [`Recorded`](super::Recorded).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Durable {
    number: u64,
}

impl Durable {
    pub(super) fn new(number: u64) -> Self {
        Self { number }
    }

    /// The record's number at this issuer.
    pub fn number(&self) -> u64 {
        self.number
    }
}

/// What a commit did.
#[derive(Debug, Default)]
pub struct WriteOutcome {
    /// One for each [`Write::Record`] and [`Write::Issue`] of the request, in order. What is stale was not
    /// recorded.
    pub records: Vec<Result<Durable, Stale>>,
    /// The instances that ended.
    pub ended: Vec<Ended>,
}

/// What is done right after the commit, before anybody hears of it and in the order of the commits: memory
/// follows the store, whoever went away in the meantime.
pub(super) type After = Box<dyn FnOnce(&WriteOutcome) + Send>;

/// What one caller asks to be committed as a whole.
pub(super) struct Request {
    pub(super) writes: Vec<Write>,
    pub(super) after: Option<After>,
    pub(super) reply: Reply,
}

/// Where its answer goes.
pub(super) type Reply = tokio::sync::oneshot::Sender<Result<WriteOutcome, StoreError>>;
