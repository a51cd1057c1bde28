//! The thread that alone touches the TPM, and how a request gets to it.

use crate::TpmConfig;
use crate::device::Device;
use crate::error::TpmError;
use crate::queue::{FairQueue, Refused};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};
use tokio::sync::oneshot;

/// The queue, and what becomes of the thread when the last handle is dropped.
pub(crate) struct Line {
    shared: Arc<Shared>,
    ended: std::sync::Mutex<mpsc::Receiver<()>>,
}

struct Shared {
    queue: FairQueue<Box<dyn Job>>,
    served: AtomicU64,
    reopened: AtomicU64,
}

/// A request on its way to the TPM.
trait Job: Send {
    fn run(self: Box<Self>, owner: &mut Owner);
    /// Whoever asked has gone, by its deadline or by itself.
    fn is_abandoned(&self) -> bool;
}

/// How long dropping the last handle waits for the TPM to be left tidy.
const FAREWELL: Duration = Duration::from_secs(5);

impl Line {
    /// Starts the thread and waits until the TPM is open.
    pub(crate) async fn start(config: TpmConfig) -> Result<Self, TpmError> {
        let shared = Arc::new(Shared {
            queue: FairQueue::new(config.queue, config.lane),
            served: AtomicU64::new(0),
            reopened: AtomicU64::new(0),
        });
        let (opened, ready) = oneshot::channel();
        let (end, ended) = mpsc::channel::<()>();
        let thread_shared = Arc::clone(&shared);
        std::thread::Builder::new()
            .name("tpm".into())
            .spawn(move || {
                serve(config, &thread_shared, opened);
                drop(end);
            })
            .map_err(|_| TpmError::Stopped)?;
        ready.await.map_err(|_| TpmError::Stopped)??;
        Ok(Self { shared, ended: std::sync::Mutex::new(ended) })
    }

    /// Has the thread do `work`. It is done again, once, if the TPM turns out to have been reset or the connection to
    /// have broken; none of our requests changes anything that lasts in the TPM, so that is safe.
    pub(crate) async fn ask<T, F>(
        &self,
        lane: u64,
        patience: Duration,
        operation: &'static str,
        work: F,
    ) -> Result<T, TpmError>
    where
        T: Send + 'static,
        F: Fn(&mut Device) -> Result<T, TpmError> + Send + 'static,
    {
        let deadline = Instant::now() + patience;
        let (reply, answer) = oneshot::channel();
        let request = Box::new(Request { operation, deadline, reply, work });
        self.push(lane, request)?;
        match tokio::time::timeout_at(deadline.into(), answer).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err(TpmError::Stopped),
            Err(_) => Err(TpmError::DeadlinePassed { operation }),
        }
    }

    fn push(&self, lane: u64, request: Box<dyn Job>) -> Result<(), TpmError> {
        let queue = &self.shared.queue;
        if queue.is_full(lane) {
            queue.purge(|request| request.is_abandoned());
        }
        queue.push(lane, request).map_err(|refused| match refused {
            Refused::Full { queued, limit } => TpmError::Busy { queued, limit },
            Refused::Closed => TpmError::Stopped,
        })
    }

    /// Requests that wait.
    pub(crate) fn queued(&self) -> usize {
        self.shared.queue.len()
    }

    /// Requests the TPM was asked for so far.
    pub(crate) fn served(&self) -> u64 {
        self.shared.served.load(Ordering::Relaxed)
    }

    /// How often the TPM had to be opened anew.
    pub(crate) fn reopened(&self) -> u64 {
        self.shared.reopened.load(Ordering::Relaxed)
    }
}

impl Drop for Line {
    /// Lets the thread finish its request and flush what it holds; a TPM that hangs is not waited for.
    fn drop(&mut self) {
        self.shared.queue.close();
        if let Ok(ended) = self.ended.get_mut() {
            ended.recv_timeout(FAREWELL).ok();
        }
    }
}

struct Request<T, F> {
    operation: &'static str,
    deadline: Instant,
    reply: oneshot::Sender<Result<T, TpmError>>,
    work: F,
}

impl<T, F> Job for Request<T, F>
where
    T: Send,
    F: Fn(&mut Device) -> Result<T, TpmError> + Send,
{
    fn run(self: Box<Self>, owner: &mut Owner) {
        if self.is_abandoned() {
            return;
        }
        let result = if Instant::now() >= self.deadline {
            Err(TpmError::DeadlinePassed { operation: self.operation })
        } else {
            owner.perform(self.operation, self.deadline, &self.work)
        };
        self.reply.send(result).ok();
    }

    fn is_abandoned(&self) -> bool {
        self.reply.is_closed()
    }
}

fn serve(config: TpmConfig, shared: &Arc<Shared>, opened: oneshot::Sender<Result<(), TpmError>>) {
    // Closes the queue however this ends, so that nobody waits for a thread that is gone.
    let _close = CloseOnDrop(&shared.queue);
    let mut owner = match Device::open(&config) {
        Ok(device) => Owner { config, device: Some(device), shared: Arc::clone(shared) },
        Err(error) => {
            opened.send(Err(error)).ok();
            return;
        }
    };
    if opened.send(Ok(())).is_err() {
        return;
    }
    while let Some(job) = shared.queue.pop() {
        job.run(&mut owner);
    }
}

struct CloseOnDrop<'a>(&'a FairQueue<Box<dyn Job>>);

impl Drop for CloseOnDrop<'_> {
    fn drop(&mut self) {
        self.0.close();
    }
}

/// What the thread owns.
struct Owner {
    config: TpmConfig,
    device: Option<Device>,
    shared: Arc<Shared>,
}

impl Owner {
    fn perform<T>(
        &mut self,
        operation: &'static str,
        deadline: Instant,
        work: &impl Fn(&mut Device) -> Result<T, TpmError>,
    ) -> Result<T, TpmError> {
        self.shared.served.fetch_add(1, Ordering::Relaxed);
        let begun = Instant::now();
        let result = match self.attempt(work) {
            Err(TpmError::Lost { operation, source }) if Instant::now() < deadline => {
                tracing::info!(operation, %source, "the TPM was reset or the connection to it lost; opening it anew");
                self.attempt(work)
            }
            result => result,
        };
        if let Some(told) = self.config.told {
            told(operation, begun.elapsed(), result.is_ok());
        }
        result
    }

    fn attempt<T>(&mut self, work: &impl Fn(&mut Device) -> Result<T, TpmError>) -> Result<T, TpmError> {
        let device = match &mut self.device {
            Some(device) => device,
            empty => {
                self.shared.reopened.fetch_add(1, Ordering::Relaxed);
                empty.insert(Device::open(&self.config)?)
            }
        };
        let result = work(device);
        if matches!(result, Err(TpmError::Lost { .. })) {
            self.device = None;
        }
        result
    }
}
