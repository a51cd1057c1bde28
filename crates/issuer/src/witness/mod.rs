//! Witnesses cosign the log's checkpoints: one checkpoint after the other, all witnesses asked for it at the same time.
//!
//! A round is about one checkpoint, and ends when that has its quorum or when nobody is left to answer; the next is
//! about the newest there is. So the witnesses of a quorum have all cosigned the same one, however fast the log grows
//! meanwhile. Only what is committed is shown to a witness: it never sees a checkpoint that was signed and dropped.

mod ask;
mod client;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use hallmark_core::log::{Cosigned, Quorum, Witnessed};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::config::WitnessConfig;
use crate::metrics::{WitnessAnswer, metrics};
use crate::store::{Standing, Store, Witnessing};
use ask::{AskError, ask};
use client::Client;

/// How often the log is looked at when nobody waits for a quorum.
const EVERY: Duration = Duration::from_secs(1);
/// First and longest wait before a witness that failed is asked again.
const PAUSE: Duration = Duration::from_millis(200);
const MAX_PAUSE: Duration = Duration::from_secs(5);
/// The same, for one that saw another history: that does not pass by itself.
const FORK_PAUSE: Duration = Duration::from_secs(60);

/// The task that has checkpoints cosigned.
pub struct Witnesses {
    store: Store,
    witnessing: Arc<Witnessing>,
    quorum: Quorum,
    timeout: Duration,
    peers: Vec<Peer>,
    asking: JoinSet<Asked>,
    round: Option<Round>,
}

/// One witness.
struct Peer {
    /// None while it is being asked.
    client: Option<Client>,
    /// The size that it is thought to be at.
    known: u64,
    pause: Duration,
    not_before: Instant,
}

/// What is asked for.
struct Round {
    cosigned: Cosigned,
    note: Arc<Vec<u8>>,
    witnessed: Option<Witnessed>,
    /// It is published as it is.
    shown: bool,
}

/// What became of asking a witness.
struct Asked {
    peer: usize,
    client: Client,
    size: u64,
    answer: Result<Vec<u8>, AskError>,
}

impl Witnesses {
    /// With what was published before, whose cosignatures say how far each witness is; and the store that waits for
    /// them.
    ///
    /// # Errors
    /// The roots that a witness is known by cannot be read.
    pub fn new(config: &WitnessConfig, store: Store, published: &[u8]) -> anyhow::Result<(Self, Store)> {
        let quorum = config.quorum.clone();
        let before = Cosigned::open(published, store.log_verifier(), quorum.witnesses()).ok();
        let (mut peers, mut board) = (Vec::new(), Vec::new());
        for (at, witness) in config.at.iter().zip(quorum.witnesses()) {
            let last =
                before.as_ref().and_then(|before| Some((before.checkpoint().size, before.of(witness)?.at())));
            let (size, when) = last.unwrap_or_default();
            peers.push(Peer {
                client: Some(Client::new(&at.url, at.ca.as_deref())?),
                known: size,
                pause: PAUSE,
                not_before: Instant::now(),
            });
            let (name, url) = (witness.name().to_string(), at.url.to_string());
            board.push(Standing { name, url, size, at: when, problem: None });
        }
        let witnessing =
            Arc::new(Witnessing::new(board, quorum.needed(), config.required.then_some(config.timeout)));
        if let Some(before) = before {
            let witnessed = before.reaches(&quorum).ok();
            witnessing.show(&before, witnessed.as_ref());
            if let Some(witnessed) = &witnessed {
                witnessing.clear(witnessed);
            }
        }
        let store = store.witnessed_by(witnessing.clone());
        let witnesses = Self {
            store: store.clone(),
            witnessing,
            quorum,
            timeout: config.timeout,
            peers,
            asking: JoinSet::new(),
            round: None,
        };
        Ok((witnesses, store))
    }

    /// Has each checkpoint cosigned, for ever.
    pub async fn run(mut self) {
        loop {
            if self.is_over()
                && let Err(error) = self.begin().await
            {
                tracing::error!(%error, "the log's checkpoint cannot be read for the witnesses");
            }
            self.ask_all();
            self.settle();
            let witnessing = self.witnessing.clone();
            let wake = self.next_wake();
            tokio::select! {
                Some(done) = self.asking.join_next() => match done {
                    Ok(asked) => self.take(asked),
                    // It was cut off, or our own fault: the client went with it.
                    Err(error) => tracing::error!(%error, "asking a witness failed"),
                },
                () = witnessing.wanted(), if self.is_over() => {}
                () = sleep_until(wake) => {}
            }
        }
    }

    /// Whether the newest checkpoint may be turned to.
    fn is_over(&self) -> bool {
        self.asking.is_empty() || self.round.as_ref().is_none_or(|round| round.witnessed.is_some())
    }

    async fn begin(&mut self) -> anyhow::Result<()> {
        let Some((checkpoint, note)) = self.store.checkpoint().await? else { return Ok(()) };
        if self.round.as_ref().is_some_and(|round| round.cosigned.checkpoint().size >= checkpoint.size) {
            return Ok(());
        }
        let cosigned = Cosigned::open(&note, self.store.log_verifier(), self.quorum.witnesses())?;
        self.round = Some(Round { cosigned, note: Arc::new(note), witnessed: None, shown: false });
        Ok(())
    }

    /// Asks each witness that has not cosigned the round's checkpoint, is not being asked, and may be again.
    fn ask_all(&mut self) {
        let Some(round) = &self.round else { return };
        let now = Instant::now();
        for (place, (peer, witness)) in self.peers.iter_mut().zip(self.quorum.witnesses()).enumerate() {
            if peer.not_before > now || round.cosigned.of(witness).is_some() {
                continue;
            }
            let Some(mut client) = peer.client.take() else { continue };
            let (store, note, known, limit) =
                (self.store.clone(), round.note.clone(), peer.known, self.timeout);
            let checkpoint = *round.cosigned.checkpoint();
            self.asking.spawn(async move {
                let asked = timeout(limit, ask(&mut client, &store, checkpoint, &note, known)).await;
                let answer = asked.unwrap_or(Err(AskError::Slow(limit)));
                Asked { peer: place, client, size: checkpoint.size, answer }
            });
        }
    }

    fn take(&mut self, asked: Asked) {
        let Asked { peer: place, client, size, answer } = asked;
        let (Some(peer), Some(witness)) = (self.peers.get_mut(place), self.quorum.witnesses().get(place))
        else {
            return;
        };
        peer.client = Some(client);
        let round = self.round.as_mut().filter(|round| round.cosigned.checkpoint().size == size);
        let at = answer.and_then(|answer| match round {
            Some(round) => {
                let at = round.cosigned.take(witness, &answer)?.at();
                round.shown = false;
                Ok(Some(at))
            }
            // Of a checkpoint that had its quorum without it.
            None => Ok(None),
        });
        let mut board = self.witnessing.board();
        let Some(standing) = board.get_mut(place) else { return };
        match at {
            Ok(at) => {
                metrics().witness_answered(WitnessAnswer::Cosigned);
                if standing.problem.take().is_some() {
                    tracing::info!(witness = standing.name, size, "the witness cosigns again");
                }
                (peer.known, peer.pause, peer.not_before) = (size, PAUSE, Instant::now());
                standing.size = size;
                standing.at = at.unwrap_or(standing.at);
            }
            Err(error) => {
                let kind = error.counted();
                metrics().witness_answered(kind);
                let fork = kind == WitnessAnswer::Fork;
                peer.not_before = Instant::now() + if fork { FORK_PAUSE } else { jittered(peer.pause) };
                peer.pause = (peer.pause * 2).min(MAX_PAUSE);
                let problem = error.to_string();
                if standing.problem.as_ref() != Some(&problem) {
                    match fork {
                        true => tracing::error!(
                            witness = standing.name,
                            url = standing.url,
                            size,
                            problem,
                            "FORK: a witness has seen another history of this log"
                        ),
                        false => tracing::warn!(
                            witness = standing.name,
                            url = standing.url,
                            size,
                            problem,
                            "the witness does not cosign"
                        ),
                    }
                }
                standing.problem = Some(problem);
            }
        }
    }

    /// Publishes what the round came to, as far as it is.
    fn settle(&mut self) {
        let idle = self.asking.is_empty();
        let Some(round) = &mut self.round else { return };
        if round.witnessed.is_none()
            && let Ok(witnessed) = round.cosigned.reaches(&self.quorum)
        {
            round.witnessed = Some(witnessed);
            self.witnessing.show(&round.cosigned, Some(&witnessed));
            self.witnessing.clear(&witnessed);
            round.shown = true;
        }
        if round.witnessed.is_none() && idle {
            self.witnessing.away();
        }
        if !round.shown && (round.witnessed.is_some() || idle) {
            self.witnessing.show(&round.cosigned, round.witnessed.as_ref());
            round.shown = true;
        }
    }

    /// When a witness may be asked again, or the log is looked at.
    fn next_wake(&self) -> Instant {
        let look = Instant::now() + EVERY;
        let Some(round) = &self.round else { return look };
        let waiting = self.peers.iter().zip(self.quorum.witnesses());
        let waiting =
            waiting.filter(|(peer, witness)| peer.client.is_some() && round.cosigned.of(witness).is_none());
        waiting.map(|(peer, _)| peer.not_before).fold(look, Instant::min)
    }
}

/// Between three quarters of it and the whole: those that one failure hit do not all come back at one moment.
fn jittered(pause: Duration) -> Duration {
    pause.mul_f64(rand::Rng::random_range(&mut rand::rng(), 0.75..=1.0))
}
