//! All inputs through a scheduler: they are read, guarded against gaps, and written in their order or as they end.

mod guard;
mod task;
mod writer;

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use voxtral::audio::Channel;
use voxtral::backend::Backend;
use voxtral::scheduler::{self, PcmSender, Scheduler, SchedulerOptions, Update};
use voxtral::{Engine, Event, GapGuard};

use self::task::{Task, Track};
use self::writer::{Writer, Written};
use super::bulk::{Batch, Job};
use super::input::{open, read_into};
use super::options::{Channels, Input, Options, Target, Verbosity};
use super::report::{
    Progress, clear_progress, monitor, monitor_end, monitor_restart, print_timings, print_work, progress_of_one, say,
};
use super::sink::Sink;
use super::{INTERRUPTED, exit_status};

/// How long to wait for news before looking whether the user wants to stop.
const POLL: Duration = Duration::from_millis(50);
/// Inputs that may be ahead of the one that is written, for each that is worked on at a time.
const AHEAD: usize = 4;

/// Where inputs are sent to, and their updates come from.
struct Client<'a> {
    scheduler: Scheduler,
    options: &'a Options,
    delay_ms: u64,
    /// Updates that came while another was waited for.
    stash: VecDeque<Update>,
    next_id: u64,
    stopped: bool,
}

/// Stdout, where inputs follow each other.
struct Printer<'a> {
    titles: bool,
    /// Of the input that has its turn, once it has begun.
    sink: Option<Sink<'a>>,
}

/// Transcribes all inputs; the exit code.
pub fn transcribe_all<B: Backend + 'static>(
    engines: Vec<Engine<B>>,
    options: &Options,
    batch: &mut Batch,
    interrupted: &AtomicBool,
    at_a_time: usize,
) -> anyhow::Result<u8> {
    let start = Instant::now();
    let (delay, decoder_bytes) = (engines[0].default_delay(), engines[0].decoder_bytes());
    let n_engines = engines.len();
    let mut jobs = std::mem::take(&mut batch.jobs);
    let keeps_order = options.output.target == Target::Stdout && !options.unordered;
    if !keeps_order && jobs.len() > at_a_time * n_engines {
        // what is long begins early, so that the last ones to end are short and passes full until then
        jobs.sort_by_cached_key(|job| Reverse(job.input.n_bytes()));
    }
    let mut client = Client {
        scheduler: Scheduler::start(engines, SchedulerOptions { batch: at_a_time, report_work: options.monitor })?,
        options,
        delay_ms: options.session.delay.unwrap_or(delay).ms(),
        stash: VecDeque::new(),
        next_id: 0,
        stopped: false,
    };
    let undone = thread::scope(|scope| {
        let writer = (options.output.target != Target::Stdout).then(|| Writer::start(scope, batch.records.take()));
        client.run(&jobs, batch, interrupted, AHEAD * at_a_time * n_engines, writer.transpose()?)
    })?;
    if batch.is_over() {
        return Ok(exit_status(batch));
    }
    if options.monitor {
        monitor_end();
    }
    if options.print_timings {
        print_timings(client.scheduler.stats(), batch.n_samples(), start.elapsed(), decoder_bytes);
        print_work(&client.scheduler, n_engines, start.elapsed());
    }
    // stopping a live stream is how it ends; stopping work on files leaves some undone
    Ok(if undone { INTERRUPTED } else { exit_status(batch) })
}

impl<'a> Client<'a> {
    /// Works on all inputs, `window` of them at a time, until they have ended or one was to be the last; whether any is left
    /// undone. Without a writer they are printed.
    fn run(
        &mut self,
        jobs: &'a [Job],
        batch: &mut Batch,
        interrupted: &AtomicBool,
        window: usize,
        mut writer: Option<Writer<'a>>,
    ) -> anyhow::Result<bool> {
        let (options, start) = (self.options, Instant::now());
        let in_order = writer.is_none() && !options.unordered;
        let mut printer = Printer { titles: jobs.len() > 1 && options.verbosity != Verbosity::Silent, sink: None };
        let mut progress = Progress::start(options.verbosity == Verbosity::Normal && !options.monitor);
        let mut left = jobs.iter();
        let mut tasks: VecDeque<Task<'_>> = VecDeque::new();
        let mut undone = false;
        while !batch.is_over() {
            if !self.stopped && interrupted.load(Ordering::Relaxed) {
                self.stopped = true;
                self.scheduler.cancel_all();
            }
            let n_writing = writer.as_ref().map_or(0, |writer| writer.open().len());
            while !self.stopped && tasks.len() + n_writing < window {
                let Some(job) = left.next() else { break };
                tasks.push_back(self.begin(job));
            }
            if tasks.is_empty() && n_writing == 0 {
                break;
            }
            if progress.is_due() {
                let written = writer.iter().flat_map(Writer::open);
                let heard = tasks.iter().map(|task| (task.job, task.n_heard(), task.duration()));
                let whole = batch.progress(heard.chain(written));
                let one = |task: &Task<'_>| progress_of_one(task.n_heard(), task.duration(), start.elapsed());
                if let Some(text) = whole.or_else(|| tasks.front().map(one)) {
                    progress.show(&text);
                }
            }
            if let Some(writer) = &mut writer {
                let mut timeout = if tasks.is_empty() { POLL } else { Duration::ZERO };
                while let Some(Written { job, ended, recorded }) = writer.next(std::mem::take(&mut timeout)) {
                    clear_progress();
                    undone |= batch.end(job, ended?);
                    recorded?;
                }
            }
            let Some(front) = tasks.front() else { continue };
            let ready = if in_order { front.is_ended() } else { tasks.iter().any(Task::is_ended) };
            if let Some(update) = self.next(if ready { Duration::ZERO } else { POLL })? {
                self.take(update, &mut tasks)?;
            }

            while let Some(i) =
                if in_order { (!tasks.is_empty()).then_some(0) } else { tasks.iter().position(Task::is_ended) }
            {
                if writer.is_none() {
                    printer.print(&mut tasks[i], &mut progress)?;
                }
                if !tasks[i].is_ended() {
                    break;
                }
                let Some(task) = tasks.remove(i) else { break };
                if let Some(writer) = &mut writer {
                    writer.put(task);
                    continue;
                }
                clear_progress();
                undone |= batch.end(task.job, task.end(printer.sink.take())?);
                progress.restart();
            }
        }
        Ok(undone || left.len() > 0)
    }

    /// Sends an input on its way.
    fn begin(&mut self, job: &'a Job) -> Task<'a> {
        let options = self.options;
        let mut task = Task {
            job,
            options,
            delay_ms: self.delay_ms,
            tracks: Vec::new(),
            names: vec![None],
            said: VecDeque::new(),
            failed: None,
        };
        let channels = match channels(&job.input, options) {
            Ok(channels) => channels,
            Err(error) => {
                task.failed = Some(error);
                return task;
            }
        };
        task.names = channels.iter().map(|(_, name)| name.clone()).collect();
        for (channel, _) in channels {
            let (guard, feed) = (options.gap_guard && job.input.is_rereadable()).then(GapGuard::new).unzip();
            let (input, raw) = (job.input.clone(), options.raw);
            let read = move |sender: &PcmSender| read_into(&input, raw, channel, sender, feed);
            let id = self.submit(job.input.is_live(), Box::new(read));
            task.tracks.push(Track { id, channel, guard, n_samples: 0, duration: None, outcome: None });
        }
        task
    }

    fn submit(&mut self, live: bool, read: scheduler::Read) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        self.scheduler.submit(scheduler::Job { id, options: self.options.session.clone(), live, read });
        id
    }

    fn next(&mut self, timeout: Duration) -> voxtral::Result<Option<Update>> {
        match self.stash.pop_front() {
            Some(update) => Ok(Some(update)),
            None => self.scheduler.next(timeout),
        }
    }

    /// Notes an update in the task that it belongs to.
    fn take(&mut self, update: Update, tasks: &mut VecDeque<Task<'_>>) -> anyhow::Result<()> {
        let id = match &update {
            Update::Worked(stats) => {
                monitor(*stats);
                return Ok(());
            }
            Update::Event { id, .. } | Update::Progress { id, .. } | Update::Ended { id, .. } => *id,
        };
        let index = |task: &Task<'_>| task.tracks.iter().position(|track| track.id == id);
        let Some((task, i)) = tasks.iter_mut().find_map(|task| index(task).map(|i| (task, i))) else {
            return Ok(());
        };
        let track = &mut task.tracks[i];
        match update {
            Update::Event { event, .. } => {
                tell(&event, self.options);
                let events = track.guarded(event, self, &task.job.input)?;
                task.said.extend(events.into_iter().map(|event| (i, event)));
            }
            Update::Progress { n_samples, duration, .. } => (track.n_samples, track.duration) = (n_samples, duration),
            Update::Ended { outcome, .. } => track.outcome = Some(outcome),
            Update::Worked(_) => {}
        }
        Ok(())
    }
}

impl<'a> Printer<'a> {
    /// Prints what an input said so far. It has its turn until its end.
    fn print(&mut self, task: &mut Task<'a>, progress: &mut Progress) -> io::Result<()> {
        if self.sink.is_none() && task.has_begun() {
            if self.titles {
                // the symbols of the input before have no end
                let end = if task.options.monitor { "\n" } else { "" };
                say(format_args!("{end}{}:\n", task.job.input.name()));
            }
            self.sink = Some(task.start_sink()?);
        }
        let Some(sink) = &mut self.sink else { return Ok(()) };
        task.said.drain(..).try_for_each(|(track, event)| {
            if sink.shows(&event) {
                progress.give_way();
            }
            sink.event(track, &event)
        })
    }
}

/// The channels to transcribe, and their names where there are several.
fn channels(input: &Input, options: &Options) -> voxtral::Result<Vec<(Channel, Option<String>)>> {
    let n = match options.channels {
        Channels::Mix => return Ok(vec![(Channel::Mix, None)]),
        Channels::Left => return Ok(vec![(Channel::Only(0), None)]),
        Channels::Right => return Ok(vec![(Channel::Only(1), None)]),
        Channels::Split => open(input, options.raw, Channel::Mix)?.n_channels(),
    };
    let name = |i: usize| match (n, i) {
        (1, _) => None,
        (2, 0) => Some("left".into()),
        (2, _) => Some("right".into()),
        _ => Some(format!("channel {}", i + 1)),
    };
    Ok((0..n).map(|i| (Channel::Only(i), name(i))).collect())
}

fn tell(event: &Event, options: &Options) {
    if let Event::Restart { time_ms } = event {
        tracing::debug!(time_ms, "EOS with audio left: starting afresh");
        if options.monitor {
            monitor_restart();
        }
    }
}
