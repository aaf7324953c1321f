//! An engine's thread: takes jobs from the queue and works on those that are open.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, TryRecvError, sync_channel};
use std::time::Instant;

use rayon::prelude::*;

use super::{Job, Outcome, PcmSender, Piece, READER_THREAD, SchedulerOptions, Shared, Update};
use crate::Error;
use crate::backend::Backend;
use crate::engine::frontend::Slices;
use crate::engine::{Engine, Session, SessionOptions, Stats};

/// Pieces of audio decoded ahead of need for each job.
const PIECES: usize = 16;
/// The same for a live job: who captures is to notice soon if the rest cannot keep up.
const LIVE_PIECES: usize = 2;
/// Jobs whose audio is decoded before they have their turn, for each engine.
pub(super) const AHEAD: usize = 4;
/// Open jobs from which on nobody waits for the first words of one: their audio is worked on in slices that go fast together.
const BULK: usize = 8;
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
pub(super) struct Left;

pub(super) type Told = std::result::Result<(), Left>;

/// The state of such a thread.
pub(super) struct Worker<B: Backend> {
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
    pub fn new(
        engine: Engine<B>,
        index: usize,
        shared: Arc<Shared>,
        updates: SyncSender<Update>,
        options: SchedulerOptions,
    ) -> Self {
        let SchedulerOptions { batch, report_work } = options;
        let (ahead, open) = (VecDeque::new(), Vec::new());
        Self { engine, index, shared, updates, batch: batch.max(1), report_work, ahead, open }
    }

    /// Works until the scheduler is dropped.
    ///
    /// # Errors
    /// When the client has left.
    pub fn run(mut self) -> Told {
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
