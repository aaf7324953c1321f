//! Many inputs on one or several engines: jobs in, updates out.
//!
//! Each engine has a thread of its own. It takes jobs from the common queue as others end, keeps up to `batch` of them open
//! and does their work in shared passes; live jobs go before all others. A job's audio is decoded by its `read` on another
//! thread, which starts shortly before the job's turn and waits while enough is queued. The client's thread submits jobs and
//! receives what they say, so whatever writes results needs no locks.
//!
//! A job that fails leaves the others alone: a call that fails for several streams is repeated for each, and one that lacks
//! memory waits until another has ended.

use std::collections::VecDeque;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, TrySendError, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rayon::prelude::*;

use super::session::Slices;
use super::{Engine, Event, Session, SessionOptions, Stats};
use crate::backend::Backend;
use crate::{Error, Result};

/// Pieces of audio decoded ahead of need for each job.
const PIECES: usize = 16;
/// The same for a live job: who captures is to notice soon if the rest cannot keep up.
const LIVE_PIECES: usize = 2;
/// Jobs whose audio is decoded before they have their turn, for each engine.
const AHEAD: usize = 4;
/// Open jobs from which on nobody waits for the first words of one: their audio is worked on in slices that go fast together.
const BULK: usize = 8;
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
            let worker = Worker {
                engine,
                index,
                shared: shared.clone(),
                updates,
                batch: options.batch.max(1),
                report_work: options.report_work,
                ahead: VecDeque::new(),
                open: Vec::new(),
            };
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

/// A job whose audio is on its way.
struct Taken {
    id: u64,
    options: SessionOptions,
    live: bool,
    pieces: Receiver<Piece>,
}

/// A job that has its turn.
struct Active<B: Backend> {
    id: u64,
    live: bool,
    session: Session<B>,
    /// Absent once all audio is here, or the rest is not wanted.
    pieces: Option<Receiver<Piece>>,
    duration: Option<f64>,
    n_told: u64,
    start: Instant,
    before: Stats,
    error: Option<Error>,
    cancelled: bool,
    /// It failed alone and waits for others to end.
    parked: bool,
    failed: bool,
}

impl<B: Backend> Active<B> {
    /// Takes in the audio that is there and wanted.
    fn listen(&mut self) {
        while self.session.wants_samples() {
            let Some(pieces) = &self.pieces else { return };
            let result = match pieces.try_recv() {
                Ok(Piece::Duration(seconds)) => {
                    self.duration = Some(seconds);
                    continue;
                }
                Ok(Piece::Samples(samples)) => match self.session.push(&samples) {
                    Ok(()) => continue,
                    Err(error) => Err(error),
                },
                Ok(Piece::Pause) => {
                    self.session.flush();
                    continue;
                }
                Ok(Piece::End(result)) => result,
                Err(TryRecvError::Empty) => return,
                Err(TryRecvError::Disconnected) => Err(Error::DamagedAudio("its decoder crashed".into())),
            };
            self.error = result.err();
            self.pieces = None;
            self.session.finish();
        }
    }

    fn cancel(&mut self) {
        // without any audio to come it is as good as done
        if self.pieces.take().is_some() {
            self.cancelled = true;
            if !self.live {
                self.session.forget_waiting();
            }
            self.session.finish();
        }
    }

    fn fail(&mut self, error: Error) {
        self.error.get_or_insert(error);
        self.failed = true;
    }
}

/// The client does not listen any more.
struct Left;

type Told = std::result::Result<(), Left>;

struct Worker<B: Backend> {
    engine: Engine<B>,
    index: usize,
    shared: Arc<Shared>,
    updates: SyncSender<Update>,
    /// Jobs that may be open, besides live ones.
    batch: usize,
    report_work: bool,
    ahead: VecDeque<Taken>,
    open: Vec<Active<B>>,
}

impl<B: Backend> Worker<B> {
    fn run(mut self) -> Told {
        loop {
            let generation = self.shared.lock().generation;
            self.take()?;
            self.cancel()?;
            self.admit()?;
            let live = self.set_pace();
            self.listen();
            let stats = self.engine.stats();
            let worked = self.work(live);
            if self.report_work && worked {
                self.tell(Update::Worked(self.engine.stats() - stats))?;
            }
            // whoever hears of an end finds its work in the statistics
            self.shared.lock().stats[self.index] = self.engine.stats();
            let ended = self.report()?;
            if self.shared.lock().closed {
                return Ok(());
            }
            if !worked && !ended {
                self.shared.wait(generation);
            }
        }
    }

    /// Takes in audio, which for many jobs is work for many cores.
    fn listen(&mut self) {
        if self.open.len() < BULK {
            self.open.iter_mut().for_each(Active::listen);
        } else {
            self.open.par_iter_mut().for_each(Active::listen);
        }
    }

    fn tell(&self, update: Update) -> Told {
        self.updates.send(update).map_err(|_| Left)
    }

    /// Takes jobs from the queue, as long as no other engine has fewer, and starts to read them.
    fn take(&mut self) -> Told {
        loop {
            let n_live = self.open.iter().filter(|job| job.live).count();
            let job = {
                let mut state = self.shared.lock();
                let n = self.open.len() + self.ahead.len();
                state.n_taken[self.index] = n;
                let least_busy = state.n_taken.iter().all(|&other| n <= other);
                let room = n - n_live < self.batch + AHEAD;
                match state.waiting.front() {
                    Some(job) if least_busy && (room || job.live) => state.waiting.pop_front(),
                    _ => None,
                }
            };
            let Some(Job { id, options, live, read }) = job else { return Ok(()) };
            let (sender, pieces) = sync_channel(if live { LIVE_PIECES } else { PIECES });
            let sender = PcmSender { pieces: Some(sender), shared: self.shared.clone() };
            let read = move || {
                let result = read(&sender);
                let _ = sender.put(Piece::End(result));
            };
            let taken = Taken { id, options, live, pieces };
            match std::thread::Builder::new().name(READER_THREAD.into()).spawn(read) {
                Ok(_) if live => self.ahead.push_front(taken),
                Ok(_) => self.ahead.push_back(taken),
                Err(error) => self.end_unheard(id, Some(Error::AudioIo(error)), false)?,
            }
            // others may have waited for this engine to be no longer the least busy
            self.shared.change(|state| state.n_taken[self.index] = self.open.len() + self.ahead.len());
        }
    }

    fn end_unheard(&self, id: u64, error: Option<Error>, cancelled: bool) -> Told {
        let (wall, stats) = Default::default();
        self.tell(Update::Ended { id, outcome: Outcome { n_samples: 0, wall, stats, error, cancelled } })
    }

    /// Ends jobs as asked for.
    fn cancel(&mut self) -> Told {
        let (all, ids, unheard) = {
            let mut state = self.shared.lock();
            let all = state.all_cancelled;
            let ids = state.cancelled.clone();
            if !all && ids.is_empty() {
                return Ok(());
            }
            let is_cancelled = |id: u64| all || ids.contains(&id);
            let (cancelled, waiting) = state.waiting.drain(..).partition(|job| is_cancelled(job.id));
            state.waiting = waiting;
            let cancelled: VecDeque<Job> = cancelled;
            let unheard: Vec<u64> = cancelled.iter().map(|job| job.id).collect();
            let known = |id: &u64| self.open.iter().any(|job| job.id == *id) || self.ahead.iter().any(|j| j.id == *id);
            state.cancelled.retain(|id| !unheard.contains(id) && !known(id));
            (all, ids, unheard)
        };
        let is_cancelled = |id: u64| all || ids.contains(&id);
        for id in unheard {
            self.end_unheard(id, None, true)?;
        }
        while let Some(i) = self.ahead.iter().position(|job| is_cancelled(job.id)) {
            if let Some(job) = self.ahead.remove(i) {
                self.end_unheard(job.id, None, true)?;
            }
        }
        self.open.iter_mut().filter(|job| is_cancelled(job.id)).for_each(Active::cancel);
        Ok(())
    }

    /// Opens sessions for the next jobs.
    fn admit(&mut self) -> Told {
        while let Some(next) = self.ahead.front() {
            let n_others = self.open.iter().filter(|job| !job.live).count();
            if !next.live && n_others >= self.batch {
                break;
            }
            match self.engine.open(&next.options) {
                Ok(session) => {
                    let Some(Taken { id, live, pieces, .. }) = self.ahead.pop_front() else { break };
                    self.open.push(Active {
                        id,
                        live,
                        session,
                        pieces: Some(pieces),
                        duration: None,
                        n_told: 0,
                        start: Instant::now(),
                        before: self.engine.stats(),
                        error: None,
                        cancelled: false,
                        parked: false,
                        failed: false,
                    });
                }
                Err(Error::Backend(reason)) if !self.open.is_empty() => {
                    self.lower_batch(&reason);
                    break;
                }
                Err(error) => {
                    let id = next.id;
                    self.ahead.pop_front();
                    self.end_unheard(id, Some(error), false)?;
                }
            }
        }
        let n_open = self.open.len();
        let mut state = self.shared.lock();
        state.max_open = state.max_open.max(n_open);
        Ok(())
    }

    /// Has no more jobs open than worked so far.
    fn lower_batch(&mut self, reason: &str) {
        let n_running = self.open.iter().filter(|job| !job.live && !job.parked).count();
        self.batch = self.batch.min(n_running.max(1));
        tracing::debug!(batch = self.batch, reason, "fewer inputs at a time");
    }

    /// How much audio is taken at a time, by who waits for it; whether there are live jobs.
    fn set_pace(&mut self) -> bool {
        let live = self.open.iter().any(|job| job.live);
        let others = match self.open.len() {
            _ if live => Slices::Short,
            BULK.. => Slices::Bulk,
            _ => Slices::Growing,
        };
        for job in &mut self.open {
            job.session.set_slices(if job.live { Slices::Growing } else { others });
        }
        self.engine.set_hurried(live);
        live
    }

    /// Does a round of work: that of live jobs, or, where they have none, of all. Whether there was any.
    fn work(&mut self, live: bool) -> bool {
        live && self.step(|job| job.live) || self.step(|_| true)
    }

    /// A round of work of some jobs, for each alone if it fails for all together.
    fn step(&mut self, due: impl Fn(&Active<B>) -> bool) -> bool {
        let due = |job: &Active<B>| !job.parked && !job.failed && due(job);
        let mut sessions: Vec<_> = self.open.iter_mut().filter(|j| due(j)).map(|job| &mut job.session).collect();
        let error = match self.engine.step(&mut sessions) {
            Ok(worked) => return worked,
            Err(error) => error,
        };
        tracing::debug!(%error, n = sessions.len(), "a call failed");
        let due: Vec<usize> = (0..self.open.len()).filter(|&i| due(&self.open[i])).collect();
        let mut worked = false;
        for &i in &due {
            if let Err(error) = self.engine.step(&mut [&mut self.open[i].session]) {
                let others = (0..self.open.len()).any(|j| j != i && !self.open[j].parked && !self.open[j].failed);
                if others {
                    self.open[i].parked = true;
                    self.lower_batch(&error.to_string());
                } else {
                    self.open[i].fail(error);
                }
            }
            worked = true;
        }
        worked
    }

    /// Passes on what jobs say, and ends those that are done; whether there were any.
    fn report(&mut self) -> std::result::Result<bool, Left> {
        let mut ended = false;
        let mut i = 0;
        while i < self.open.len() {
            let job = &mut self.open[i];
            let id = job.id;
            while let Some(event) = job.session.next_event() {
                self.updates.send(Update::Event { id, event }).map_err(|_| Left)?;
            }
            let n_samples = job.session.n_samples();
            if n_samples != job.n_told {
                job.n_told = n_samples;
                let duration = job.duration;
                self.updates.send(Update::Progress { id, n_samples, duration }).map_err(|_| Left)?;
            }
            if !job.session.is_ended() && !job.failed {
                i += 1;
                continue;
            }
            let in_use = self.engine.backend().memory_in_use();
            let most = &mut self.shared.lock().device_memory[self.index];
            *most = in_use.max(*most);
            let job = self.open.remove(i);
            let (wall, stats) = (job.start.elapsed(), self.engine.stats() - job.before);
            // its memory is free before the next one is opened
            let Active { error, cancelled, .. } = job;
            self.tell(Update::Ended { id, outcome: Outcome { n_samples, wall, stats, error, cancelled } })?;
            ended = true;
        }
        if ended || self.open.iter().all(|job| job.parked) {
            self.open.iter_mut().for_each(|job| job.parked = false);
        }
        Ok(ended)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashMap;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use proptest::prelude::*;

    use super::super::tests::{engine, noise, options, transcribe};
    use super::*;
    use crate::backend::fake::Fake;

    /// Ids and text by job.
    type Said = HashMap<u64, (Vec<u32>, String)>;

    const LONG: Duration = Duration::from_secs(60);

    fn scheduler(engines: Vec<Engine<Fake>>, batch: usize) -> Scheduler {
        Scheduler::start(engines, SchedulerOptions { batch, report_work: false }).unwrap()
    }

    fn job(id: u64, options: &SessionOptions, samples: Vec<f32>, portion: usize) -> Job {
        let read = move |sender: &PcmSender| {
            for piece in samples.chunks(portion) {
                if sender.send(piece.to_vec()).is_err() {
                    break;
                }
            }
            Ok(())
        };
        Job { id, options: options.clone(), live: false, read: Box::new(read) }
    }

    /// What each job said, how it ended, and the order of the ends.
    fn collect(scheduler: &Scheduler, n: usize) -> (Said, Vec<(u64, Outcome)>) {
        let (mut said, mut ends) = (Said::new(), Vec::new());
        while ends.len() < n {
            match scheduler.next(LONG).unwrap().expect("no job takes so long") {
                Update::Event { id, event: Event::Token(token) } => {
                    let (ids, text) = said.entry(id).or_default();
                    ids.push(token.id);
                    text.push_str(&token.text);
                }
                Update::Event { id, event: Event::End { text } } => said.entry(id).or_default().1.push_str(&text),
                Update::Ended { id, outcome } => ends.push((id, outcome)),
                _ => {}
            }
        }
        (said, ends)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(60))]

        #[test]
        fn jobs_say_what_they_say_alone(
            jobs in prop::collection::vec((0usize..60_000, 1usize..9000, 80u64..3000, any::<bool>()), 1..12),
            batch in 1usize..6,
            n_engines in 1usize..4,
            eos_in in prop::sample::select(vec![15u64, u64::MAX]),
            max_rows in prop::sample::select(vec![1usize, 3, 64]),
        ) {
            let engine_of = |_| {
                let mut engine = engine(eos_in);
                engine.backend.max_rows = max_rows;
                engine
            };
            let scheduler = scheduler((0..n_engines).map(engine_of).collect(), batch);
            let mut alone = engine(eos_in);
            let mut expected = HashMap::new();
            for (i, &(n, portion, interval_ms, live)) in jobs.iter().enumerate() {
                let options = options(interval_ms, [80, 480, 2400][i % 3]);
                let samples = noise(n, i as u32);
                expected.insert(i as u64, transcribe(&mut alone, &samples, &options));
                scheduler.submit(Job { live, ..job(i as u64, &options, samples, portion) });
            }
            let (said, ends) = collect(&scheduler, jobs.len());
            let n_tokens: usize = said.values().map(|(ids, _)| ids.len()).sum();
            prop_assert_eq!(scheduler.stats().n_tokens, n_tokens as u64);
            for (id, outcome) in &ends {
                prop_assert!(outcome.error.is_none() && !outcome.cancelled);
                prop_assert_eq!(outcome.n_samples, jobs[*id as usize].0 as u64);
                prop_assert_eq!(said.get(id), expected.get(id));
            }
        }
    }

    #[test]
    fn ten_thousand_jobs_are_open_a_few_at_a_time() {
        let scheduler = scheduler(vec![engine(u64::MAX), engine(u64::MAX)], 3);
        let (reading, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        for id in 0..10_000 {
            let (reading, most) = (reading.clone(), most.clone());
            let read = move |sender: &PcmSender| {
                most.fetch_max(reading.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                let _ = sender.send(vec![0.1; 200]);
                reading.fetch_sub(1, Ordering::SeqCst);
                Ok(())
            };
            let options = SessionOptions::default();
            scheduler.submit(Job { id, options, live: false, read: Box::new(read) });
        }
        let (said, ends) = collect(&scheduler, 10_000);
        assert!(ends.iter().all(|(_, outcome)| outcome.error.is_none()));
        assert!(said.len() == 10_000 && said.values().all(|(ids, _)| ids.len() == 11));
        assert!(most.load(Ordering::SeqCst) <= 2 * (3 + AHEAD), "{most:?} at a time");
        assert!(scheduler.max_open() <= 3);
    }

    #[test]
    fn jobs_that_fail_crash_or_stall_leave_the_others_alone() {
        let options = options(500, 480);
        let expected = transcribe(&mut engine(40), &noise(50_000, 1), &options);
        let scheduler = scheduler(vec![engine(40)], 4);
        let (release, stalled) = std::sync::mpsc::channel::<()>();
        let bad: [Read; 4] = [
            Box::new(move |_| {
                let _ = stalled.recv();
                Ok(())
            }),
            Box::new(|sender| {
                let _ = sender.send(vec![0.5; 20_000]);
                Err(Error::DamagedAudio("gone".into()))
            }),
            Box::new(|sender| {
                let _ = sender.send(vec![0.5, f32::NAN]);
                Ok(())
            }),
            Box::new(|_| std::panic::resume_unwind(Box::new("a decoder's panic"))),
        ];
        for (i, read) in bad.into_iter().enumerate() {
            scheduler.submit(Job { id: 100 + i as u64, options: options.clone(), live: i == 0, read });
        }
        (0..5).for_each(|id| scheduler.submit(job(id, &options, noise(50_000, 1), 4000)));
        let (said, ends) = collect(&scheduler, 8);
        for (id, outcome) in ends {
            match id {
                101 => assert!(outcome.n_samples == 20_000 && outcome.error.unwrap().to_string().contains("gone")),
                102 => assert!(outcome.error.unwrap().to_string().contains("sample 1 is NaN")),
                103 => assert!(outcome.error.unwrap().to_string().contains("crashed")),
                _ => assert!(outcome.error.is_none() && said[&id] == expected),
            }
        }
        release.send(()).unwrap();
        assert_eq!(collect(&scheduler, 1).1[0].0, 100);
    }

    #[test]
    fn a_live_job_goes_first() {
        let scheduler = scheduler(vec![engine(u64::MAX)], 1);
        let options = options(500, 480);
        (0..20).for_each(|id| scheduler.submit(job(id, &options, noise(400_000, 1), 16_000)));
        while !matches!(scheduler.next(LONG).unwrap(), Some(Update::Event { .. })) {}
        scheduler.submit(Job { live: true, ..job(99, &options, noise(20_000, 2), 1000) });
        let (_, ends) = collect(&scheduler, 21);
        let place = ends.iter().position(|(id, _)| *id == 99).unwrap();
        assert!(place < 10, "after {place} others");
    }

    #[test]
    fn cancelled_jobs_end() {
        let scheduler = scheduler(vec![engine(u64::MAX)], 2);
        let options = options(500, 480);
        for id in 0..3 {
            let read = move |sender: &PcmSender| {
                while sender.send(vec![0.1; 1000]).is_ok() {}
                Ok(())
            };
            scheduler.submit(Job { id, options: options.clone(), live: id == 0, read: Box::new(read) });
        }
        (3..50).for_each(|id| scheduler.submit(job(id, &options, noise(40_000, 1), 4000)));
        while !matches!(scheduler.next(LONG).unwrap(), Some(Update::Event { .. })) {}
        scheduler.cancel(1);
        scheduler.cancel(49);
        let (_, ends) = collect(&scheduler, 2);
        assert!(ends.iter().any(|(id, outcome)| *id == 49 && outcome.cancelled && outcome.n_samples == 0));
        scheduler.cancel_all();
        let (_, rest) = collect(&scheduler, 50 - ends.len());
        assert!(rest.iter().any(|(id, outcome)| *id == 0 && outcome.cancelled && outcome.n_samples > 0));
    }

    #[test]
    fn where_memory_is_short_fewer_are_open() {
        let mut small = engine(40);
        small.backend.max_streams = 3;
        let options = options(500, 480);
        let expected = transcribe(&mut engine(40), &noise(50_000, 1), &options);
        let scheduler = scheduler(vec![small], 16);
        (0..20).for_each(|id| scheduler.submit(job(id, &options, noise(50_000, 1), 4000)));
        let (said, ends) = collect(&scheduler, 20);
        assert!(ends.iter().all(|(id, outcome)| outcome.error.is_none() && said[id] == expected));
        assert!(scheduler.max_open() <= 3);
    }

    #[test]
    fn a_failing_call_is_repeated_for_each_and_a_broken_engine_ends_its_jobs() {
        let options = options(500, 480);
        let expected = transcribe(&mut engine(40), &noise(50_000, 1), &options);
        let mut shaky = engine(40);
        shaky.backend.fails_at = (1..400).filter(|n| n % 5 == 0).collect();
        let one = scheduler(vec![shaky], 4);
        (0..8).for_each(|id| one.submit(job(id, &options, noise(50_000, 1), 4000)));
        let (said, ends) = collect(&one, 8);
        assert!(ends.iter().filter(|(_, outcome)| outcome.error.is_none()).all(|(id, _)| said[id] == expected));
        assert!(ends.iter().filter(|(_, outcome)| outcome.error.is_none()).count() >= 4);
        let mut broken = engine(40);
        broken.backend.fails_at = (20..100_000).collect();
        let one = scheduler(vec![broken], 4);
        (0..8).for_each(|id| one.submit(job(id, &options, noise(50_000, 1), 4000)));
        assert!(collect(&one, 8).1.iter().all(|(_, outcome)| outcome.error.is_some()));
    }
}
