//! All inputs through a scheduler: they are read, guarded against gaps, and written in their order or as they end.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use voxtral::audio::{Channel, SAMPLE_RATE};
use voxtral::backend::Backend;
use voxtral::output::Timings;
use voxtral::scheduler::{self, Job, Outcome, PcmSender, Scheduler, SchedulerOptions, Update};
use voxtral::{Engine, Event, Gap, GapGuard, SecondLook, Stats};

use super::bulk::{self, Batch};
use super::input::{open, read_into};
use super::options::{Channels, Input, Options, Target, Verbosity};
use super::report::{
    Progress, clear_progress, monitor, monitor_end, monitor_restart, print_timings, print_work, progress_of_one, say,
};
use super::sink::{Sink, Summary};
use super::{INTERRUPTED, exit_status, is_broken_pipe};

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

/// An input on its way.
struct Task<'a> {
    job: &'a bulk::Job,
    tracks: Vec<Track>,
    names: Vec<Option<String>>,
    /// What the tracks said and is not written yet.
    said: VecDeque<(usize, Event)>,
    /// Why there are no tracks.
    failed: Option<voxtral::Error>,
}

/// A channel of it, or the mix of all.
struct Track {
    id: u64,
    channel: Channel,
    guard: Option<GapGuard>,
    n_samples: u64,
    duration: Option<f64>,
    outcome: Option<Outcome>,
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
    let mut jobs = std::mem::take(&mut batch.jobs);
    let titles = jobs.len() > 1 && options.output.target == Target::Stdout && options.verbosity != Verbosity::Silent;
    let in_order = options.output.target == Target::Stdout && !options.unordered;
    let (delay, decoder_bytes) = (engines[0].default_delay(), engines[0].decoder_bytes());
    let n_engines = engines.len();
    if !in_order && jobs.len() > at_a_time * n_engines {
        // what is long begins early, so that the last ones to end are short and passes full until then
        jobs.sort_by_cached_key(|job| Reverse(job.input.n_bytes()));
    }
    let window = AHEAD * at_a_time * n_engines;
    let mut client = Client {
        scheduler: Scheduler::start(engines, SchedulerOptions { batch: at_a_time, report_work: options.monitor })?,
        options,
        delay_ms: options.session.delay.unwrap_or(delay).ms(),
        stash: VecDeque::new(),
        next_id: 0,
        stopped: false,
    };
    let mut left = jobs.iter();
    let mut tasks: VecDeque<Task<'_>> = VecDeque::new();
    let mut sink: Option<Sink<'_>> = None;
    let shown = options.verbosity == Verbosity::Normal && !options.monitor;
    let mut progress = Progress::start(shown);
    let (mut n_samples, mut undone) = (0, false);
    loop {
        if !client.stopped && interrupted.load(Ordering::Relaxed) {
            client.stopped = true;
            client.scheduler.cancel_all();
        }
        while !client.stopped && tasks.len() < window {
            let Some(job) = left.next() else { break };
            tasks.push_back(client.begin(job));
        }
        undone |= client.stopped && left.len() > 0;
        let Some(front) = tasks.front() else { break };
        if progress.is_due() {
            let whole = batch.progress(tasks.iter().map(|task| (task.job, task.n_heard(), task.duration())));
            let one = || progress_of_one(front.n_heard(), front.duration(), start.elapsed());
            progress.show(&whole.unwrap_or_else(one));
        }
        let ready = if in_order { front.is_ended() } else { tasks.iter().any(Task::is_ended) };
        if let Some(update) = client.next(if ready { Duration::ZERO } else { POLL })? {
            client.take(update, &mut tasks)?;
        }

        while let Some(i) =
            if in_order { (!tasks.is_empty()).then_some(0) } else { tasks.iter().position(Task::is_ended) }
        {
            let task = &mut tasks[i];
            if sink.is_none() && task.has_begun() {
                if titles {
                    // the symbols of the input before have no end
                    let end = if options.monitor { "\n" } else { "" };
                    say(format_args!("{end}{}:\n", task.job.input.name()));
                }
                sink = Some(Sink::start(&options.output, task.job, &options.model, client.delay_ms, &task.names)?);
            }
            if let Some(sink) = &mut sink {
                while let Some((track, event)) = task.said.pop_front() {
                    if sink.shows(&event) {
                        progress.give_way();
                    }
                    sink.event(track, &event)?;
                }
            }
            if !task.is_ended() {
                break;
            }
            clear_progress();
            let Some(task) = tasks.remove(i) else { break };
            let (job, is_undone) = (task.job, task.is_undone());
            let time = task.wall();
            let span = tracing::debug_span!("input", name = job.input.name());
            let result = span.in_scope(|| task.finish(sink.take(), options));
            if is_undone {
                undone = true;
            } else {
                let (n, error) = match result {
                    Ok(n) => (n, None),
                    Err(error) if is_broken_pipe(&error) => return Err(error),
                    Err(error) => {
                        let named = matches!(error.downcast_ref(), Some(voxtral::Error::Io { .. }));
                        (0, Some(format!("{:#}", if named { error } else { error.context(job.input.name()) })))
                    }
                };
                n_samples += n;
                let failed = error.is_some();
                batch.end(job, bulk::Outcome { n_samples: n, time, error })?;
                if failed && options.bulk.fail_fast {
                    return Ok(exit_status(batch));
                }
            }
            progress.restart();
        }
    }
    drop(progress);
    if options.monitor {
        monitor_end();
    }
    if options.print_timings {
        print_timings(client.scheduler.stats(), n_samples, start.elapsed(), decoder_bytes);
        print_work(&client.scheduler, n_engines, start.elapsed());
    }
    // stopping a live stream is how it ends; stopping work on files leaves some undone
    Ok(if undone { INTERRUPTED } else { exit_status(batch) })
}

impl<'a> Client<'a> {
    /// Sends an input on its way.
    fn begin(&mut self, job: &'a bulk::Job) -> Task<'a> {
        let options = self.options;
        let mut task = Task { job, tracks: Vec::new(), names: vec![None], said: VecDeque::new(), failed: None };
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
        self.scheduler.submit(Job { id, options: self.options.session.clone(), live, read });
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

impl Track {
    /// What is to be passed on of an event.
    fn guarded(&mut self, event: Event, client: &mut Client<'_>, input: &Input) -> anyhow::Result<Vec<Event>> {
        let Some(guard) = self.guard.as_mut().filter(|_| !client.stopped) else { return Ok(vec![event]) };
        let n_gaps = guard.gaps().len();
        let events = guard.event(event, &mut FromInput { client, input, channel: self.channel })?;
        for Gap { start_ms, end_ms, text, .. } in &guard.gaps()[n_gaps..] {
            let outcome = if text.is_empty() { "and a second run found none" } else { "a second run found them" };
            let [start, end] = [*start_ms, *end_ms].map(|ms| ms as f64 / 1e3);
            tracing::warn!(
                "{}: the model had no words for speech from {start:.1} to {end:.1} s; {outcome}",
                input.name()
            );
        }
        Ok(events)
    }
}

impl Task<'_> {
    fn outcomes(&self) -> impl Iterator<Item = &Outcome> {
        self.tracks.iter().filter_map(|track| track.outcome.as_ref())
    }

    fn is_ended(&self) -> bool {
        self.outcomes().count() == self.tracks.len()
    }

    fn n_samples(&self) -> u64 {
        self.outcomes().map(|outcome| outcome.n_samples).max().unwrap_or(0)
    }

    /// Samples taken in so far by all tracks.
    fn n_heard(&self) -> u64 {
        self.tracks.iter().map(|track| track.n_samples).min().unwrap_or(0)
    }

    /// What it claims to be long, in seconds.
    fn duration(&self) -> Option<f64> {
        self.tracks.first()?.duration
    }

    /// Whether it has its turn, or has had it.
    fn has_begun(&self) -> bool {
        !self.said.is_empty()
            || self.tracks.iter().any(|track| track.n_samples > 0)
            || self.failed.is_none() && self.is_ended() && !(self.is_undone() && self.n_samples() == 0)
    }

    /// Whether it is a file that was given up.
    fn is_undone(&self) -> bool {
        !self.job.input.is_live() && self.outcomes().any(|outcome| outcome.cancelled)
    }

    fn wall(&self) -> Duration {
        self.outcomes().map(|outcome| outcome.wall).max().unwrap_or_default()
    }

    /// Writes what is to be written at the end; how many samples it had.
    ///
    /// # Errors
    /// What ended its audio, among others; what was heard before is written.
    fn finish(self, sink: Option<Sink<'_>>, options: &Options) -> anyhow::Result<u64> {
        if let Some(error) = self.failed {
            return Err(error.into());
        }
        let (n_samples, wall, is_undone) = (self.n_samples(), self.wall(), self.is_undone());
        let (mut heard, mut gaps, mut stats, mut cancelled) = (Ok(()), Vec::new(), Stats::default(), false);
        for track in self.tracks {
            gaps.extend(track.guard.iter().flat_map(GapGuard::gaps).cloned());
            if let Some(outcome) = track.outcome {
                heard = heard.and(outcome.error.map_or(Ok(()), Err));
                stats = outcome.stats;
                cancelled |= outcome.cancelled;
            }
        }
        if is_undone && (options.output.target != Target::Stdout || n_samples == 0) {
            // a file's transcript is whole or not there
            return Ok(n_samples);
        }
        let missed_ms: u64 = gaps.iter().filter(|gap| gap.text.is_empty()).map(|gap| gap.speech_ms).sum();
        let error = heard.as_ref().err().map(ToString::to_string);
        if let Some(sink) = sink {
            sink.finish(Summary { n_samples, timings: timings(stats, n_samples, wall), gaps, error })?;
        }
        tracing::debug!(
            n_samples,
            n_tokens = stats.n_tokens,
            ?stats.encoder,
            ?stats.prefill,
            ?stats.decoder,
            ?wall,
            "transcribed"
        );
        heard?;
        if n_samples == 0 && !cancelled {
            anyhow::bail!("no audio in it");
        }
        if options.strict && missed_ms > 0 {
            anyhow::bail!("{:.1} s of speech have no words", missed_ms as f64 / 1e3);
        }
        Ok(n_samples)
    }
}

/// Reads a stretch of an input again and decodes it from clean state, where the guard against gaps asks for it.
struct FromInput<'c, 'a> {
    client: &'c mut Client<'a>,
    input: &'c Input,
    channel: Channel,
}

impl SecondLook for FromInput<'_, '_> {
    fn samples(&mut self, start: u64, end: u64) -> voxtral::Result<Vec<f32>> {
        let mut reader = open(self.input, self.client.options.raw, self.channel)?;
        let (mut samples, mut first) = (Vec::new(), 0);
        // an error at the input's end is the first reading's to report
        while first + (samples.len() as u64) < end && reader.read(&mut samples).is_ok_and(|n| n > 0) {
            let before = start.saturating_sub(first).min(samples.len() as u64);
            samples.drain(..before as usize);
            first += before;
        }
        samples.truncate(end.saturating_sub(first) as usize);
        Ok(samples)
    }

    /// Other inputs go on meanwhile; what they say waits.
    fn decode(&mut self, samples: &[f32]) -> voxtral::Result<Vec<Event>> {
        let samples = samples.to_vec();
        let read = move |sender: &PcmSender| {
            for piece in samples.chunks(SAMPLE_RATE as usize) {
                if sender.send(piece.to_vec()).is_err() {
                    break;
                }
            }
            Ok(())
        };
        let aside = self.client.submit(true, Box::new(read));
        let mut events = Vec::new();
        loop {
            match self.client.scheduler.next(POLL)? {
                Some(Update::Event { id, event }) if id == aside => events.push(event),
                Some(Update::Progress { id, .. }) if id == aside => {}
                Some(Update::Ended { id, outcome }) if id == aside => return outcome.error.map_or(Ok(events), Err),
                Some(other) => self.client.stash.push_back(other),
                None => {}
            }
        }
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

fn timings(stats: Stats, n_samples: u64, wall: Duration) -> Timings {
    let [wall, encoder, decoder] = [wall, stats.encoder, stats.decoder].map(|time| time.as_secs_f64());
    Timings { wall, encoder, decoder, xrt: n_samples as f64 / f64::from(SAMPLE_RATE) / wall.max(1e-9) }
}
