//! Many inputs on one or several engines: jobs in, updates out.
//!
//! Each engine has a thread of its own. It takes jobs from the common queue as others end, keeps up to `batch` of them open
//! and does their work in shared passes; live jobs go before all others. A job's audio is decoded by its `read` on another
//! thread, which starts shortly before the job's turn and waits while enough is queued. The client's thread submits jobs and
//! receives what they say, so whatever writes results needs no locks.
//!
//! A job that fails leaves the others alone: a call that fails for several streams is repeated for each, and one that lacks
//! memory waits until another has ended.

mod worker;

#[cfg(test)]
mod tests;

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use super::{Engine, Event, SessionOptions, Stats};
use crate::backend::Backend;
use crate::{Error, Result};

use worker::Worker;

/// Updates that may wait for the client before engines wait for it.
const UPDATES: usize = 1 << 14;
/// Name of the threads that decode audio.
pub const READER_THREAD: &str = "audio";

/// Opens and decodes an input.
pub type Read = Box<dyn FnOnce(&PcmSender) -> Result<()> + Send>;

/// One input.
pub struct Job {
    /// The client's name for it, in every update.
    pub id: u64,
    pub options: SessionOptions,
    /// Somebody waits for every word: it goes before what isn't live, and is open beside the batch.
    pub live: bool,
    /// Called on a thread of its own.
    pub read: Read,
}

/// What a job does.
#[derive(Debug)]
pub enum Update {
    /// It says something.
    Event { id: u64, event: Event },
    /// So much of it is taken in, of so many seconds where it has told.
    Progress { id: u64, n_samples: u64, duration: Option<f64> },
    /// It is done: the last update of every job, each has one.
    Ended { id: u64, outcome: Outcome },
    /// An engine has done a round of work, if that was to be reported.
    Worked(Stats),
}

/// How a job ended.
#[derive(Debug)]
pub struct Outcome {
    /// Samples transcribed.
    pub n_samples: u64,
    /// From its turn to its end.
    pub wall: Duration,
    /// What its engine did in that time, for all its jobs.
    pub stats: Stats,
    /// What ended it early; what was heard before is transcribed.
    pub error: Option<Error>,
    pub cancelled: bool,
}

/// How a scheduler is to work.
#[derive(Debug, Clone, Copy)]
pub struct SchedulerOptions {
    /// Jobs that an engine has open at a time, at least 1; fewer where memory runs out.
    pub batch: usize,
    /// Send [`Update::Worked`].
    pub report_work: bool,
}

/// The job was given up; there is no use in sending more.
#[derive(Debug)]
pub struct Gone;

/// What became of samples that were offered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offer {
    Taken,
    /// Enough is queued.
    Full,
    Gone,
}

enum Piece {
    Duration(f64),
    Samples(Vec<f32>),
    Pause,
    End(Result<()>),
}

/// The way of a job's samples to its engine.
pub struct PcmSender {
    pieces: Option<SyncSender<Piece>>,
    shared: Arc<Shared>,
}

impl PcmSender {
    /// Sends mono samples at 16 kHz; waits while enough is queued.
    pub fn send(&self, samples: Vec<f32>) -> std::result::Result<(), Gone> {
        self.put(Piece::Samples(samples))
    }

    /// Tells how long the input claims to be.
    pub fn set_duration(&self, seconds: f64) -> std::result::Result<(), Gone> {
        self.put(Piece::Duration(seconds))
    }

    /// Offers samples without waiting, and then, if that is so, that a pause follows: what is before it is worked on at
    /// once. Samples that were taken are removed.
    pub fn offer(&self, samples: &mut Vec<f32>, pause: bool) -> Offer {
        let mut offer = Offer::Taken;
        if !samples.is_empty() {
            offer = self.try_put(Piece::Samples(samples.clone()));
            if offer == Offer::Taken {
                samples.clear();
            }
        }
        if pause && offer == Offer::Taken { self.try_put(Piece::Pause) } else { offer }
    }

    fn try_put(&self, piece: Piece) -> Offer {
        let Some(pieces) = &self.pieces else { return Offer::Gone };
        let offer = match pieces.try_send(piece) {
            Ok(()) => Offer::Taken,
            Err(TrySendError::Full(_)) => Offer::Full,
            Err(TrySendError::Disconnected(_)) => Offer::Gone,
        };
        self.shared.change(|_| {});
        offer
    }

    fn put(&self, piece: Piece) -> std::result::Result<(), Gone> {
        let sent = self.pieces.as_ref().is_some_and(|pieces| pieces.send(piece).is_ok());
        self.shared.change(|_| {});
        if sent { Ok(()) } else { Err(Gone) }
    }
}

impl Drop for PcmSender {
    fn drop(&mut self) {
        self.pieces = None;
        self.shared.change(|_| {});
    }
}

/// What client, readers and engines share.
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    /// Counts changes, so that none is missed.
    generation: u64,
    waiting: VecDeque<Job>,
    /// Jobs that each engine has taken, and what it has done.
    n_taken: Vec<usize>,
    stats: Vec<Stats>,
    /// Most jobs that an engine had open at a time.
    max_open: usize,
    /// Most memory that was in use when a job ended, by engine, where devices have their own.
    device_memory: Vec<Option<u64>>,
    /// Jobs to end, or all submitted so far; the count tells engines of a new request.
    cancelled: Vec<u64>,
    all_cancelled: bool,
    closed: bool,
    crashed: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        let mut state = self.lock();
        state.generation += 1;
        let result = f(&mut state);
        self.changed.notify_all();
        result
    }

    /// Waits for a change after this generation.
    fn wait(&self, generation: u64) {
        let mut state = self.lock();
        while state.generation == generation && !state.closed {
            state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Adds jobs, from any thread.
#[derive(Clone)]
pub struct Submitter(Arc<Shared>);

impl Submitter {
    /// Adds a job. Never waits.
    pub fn submit(&self, job: Job) {
        self.0.change(|state| if job.live { state.waiting.push_front(job) } else { state.waiting.push_back(job) });
    }
}

/// Runs jobs on engines.
pub struct Scheduler {
    shared: Arc<Shared>,
    updates: Option<Receiver<Update>>,
    threads: Vec<JoinHandle<()>>,
}

impl Scheduler {
    /// Starts a thread for each of these engines.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start<B: Backend + 'static>(engines: Vec<Engine<B>>, options: SchedulerOptions) -> Result<Self> {
        let n = engines.len();
        let state = State {
            n_taken: vec![0; n],
            stats: vec![Stats::default(); n],
            device_memory: vec![None; n],
            ..State::default()
        };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let (sender, updates) = sync_channel(UPDATES);
        let mut scheduler = Self { shared, updates: Some(updates), threads: Vec::new() };
        for (index, engine) in engines.into_iter().enumerate() {
            let (shared, updates) = (scheduler.shared.clone(), sender.clone());
            let worker = Worker::new(engine, index, shared.clone(), updates, options);
            let run = move || {
                let guard = CrashGuard(shared);
                let _ = worker.run(); // the client has left
                std::mem::forget(guard);
            };
            let thread = std::thread::Builder::new().name(format!("engine-{index}")).spawn(run);
            scheduler.threads.push(thread.map_err(|e| Error::Backend(format!("cannot start a thread: {e}")))?);
        }
        Ok(scheduler)
    }

    /// Adds a job. Never waits.
    pub fn submit(&self, job: Job) {
        self.submitter().submit(job);
    }

    /// What adds jobs from other threads.
    pub fn submitter(&self) -> Submitter {
        Submitter(self.shared.clone())
    }

    /// The next update, if one comes within this time.
    ///
    /// # Errors
    /// When an engine thread has crashed.
    pub fn next(&self, timeout: Duration) -> Result<Option<Update>> {
        match self.updates.as_ref().map(|updates| updates.recv_timeout(timeout)) {
            Some(Ok(update)) => Ok(Some(update)),
            Some(Err(RecvTimeoutError::Timeout)) if !self.shared.lock().crashed => Ok(None),
            _ => Err(Error::Backend("an engine thread has crashed".into())),
        }
    }

    /// Ends a job: what is heard of a live one is transcribed, of another what has been worked on.
    pub fn cancel(&self, id: u64) {
        self.shared.change(|state| state.cancelled.push(id));
    }

    /// Ends all jobs submitted so far and later.
    pub fn cancel_all(&self) {
        self.shared.change(|state| state.all_cancelled = true);
    }

    /// What all engines have done.
    pub fn stats(&self) -> Stats {
        self.shared.lock().stats.iter().fold(Stats::default(), |sum, stats| sum + *stats)
    }

    /// The most memory that was in use on the devices, together, where they have their own.
    pub fn device_memory(&self) -> Option<u64> {
        self.shared.lock().device_memory.iter().copied().flatten().reduce(|sum, n| sum + n)
    }

    /// The most jobs that an engine had open at a time.
    pub fn max_open(&self) -> usize {
        self.shared.lock().max_open
    }
}

impl Drop for Scheduler {
    /// Gives up all jobs and waits for the engines to stop.
    fn drop(&mut self) {
        self.shared.change(|state| {
            state.closed = true;
            state.waiting.clear();
        });
        self.updates = None;
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// Tells the client if a thread ends by a panic.
struct CrashGuard(Arc<Shared>);

impl Drop for CrashGuard {
    fn drop(&mut self) {
        self.0.change(|state| state.crashed = true);
    }
}
