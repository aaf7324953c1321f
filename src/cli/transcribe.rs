//! One input from its samples to what is written about it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use voxtral::audio::{Channel, SAMPLE_RATE};
use voxtral::backend::Backend;
use voxtral::output::Timings;
use voxtral::{Engine, Event, Gap, GapGuard, LevelFeed, Session, Stats};

use super::bulk::Job;
use super::input::{PcmStream, open};
use super::options::{Channels, Input, Options, Target, Verbosity};
use super::report::{Progress, monitor, monitor_restart, print_timings};
use super::second_look::FromInput;
use super::sink::{Sink, Summary};

/// How long to wait for audio before looking whether the user wants to stop.
const POLL: Duration = Duration::from_millis(50);

/// A channel on its way, or the mix of all.
struct Track<B: Backend> {
    channel: Channel,
    pcm: PcmStream,
    session: Session<B>,
    guard: Option<GapGuard>,
    feed: Option<LevelFeed>,
    /// What ended the audio, once something has.
    heard: Option<voxtral::Result<()>>,
}

/// Transcribes one input; how many samples it had. An error in its audio is returned after what was heard before it is
/// written.
pub fn transcribe<B: Backend>(
    engine: &mut Engine<B>,
    job: &Job,
    whole: &str,
    options: &Options,
    interrupted: &AtomicBool,
) -> anyhow::Result<u64> {
    let input = &job.input;
    let start = Instant::now();
    let before = engine.stats();
    let channels = channels(input, options)?;
    let delay = options.session.delay.unwrap_or(engine.default_delay());
    let names: Vec<_> = channels.iter().map(|(_, name)| name.clone()).collect();
    let mut tracks = Vec::new();
    for (channel, _) in channels {
        let (guard, feed) = (options.gap_guard && input.is_rereadable()).then(GapGuard::new).unzip();
        tracks.push(Track {
            channel,
            pcm: PcmStream::start(input, options.raw, channel)?,
            session: engine.open(&options.session)?,
            guard,
            feed,
            heard: None,
        });
    }
    let mut sink = Sink::start(&options.output, job, &options.model, delay.ms(), &names)?;
    let progress = Progress::start(options.verbosity == Verbosity::Normal && !options.monitor, whole);

    while tracks.iter().any(|track| track.heard.is_none() || !track.session.is_ended()) {
        tracks.iter_mut().for_each(|track| track.hear(interrupted));
        loop {
            let stats = engine.stats();
            let mut sessions: Vec<_> = tracks.iter_mut().map(|track| &mut track.session).collect();
            let worked = engine.step(&mut sessions)?;
            if options.monitor {
                monitor(engine.stats() - stats);
            }
            for (i, track) in tracks.iter_mut().enumerate() {
                while let Some(event) = track.session.next_event() {
                    tell(&event, options);
                    for event in track.guarded(event, engine, input, options)? {
                        if sink.shows(&event) {
                            progress.give_way();
                        }
                        sink.event(i, &event)?;
                    }
                }
            }
            if !worked {
                break;
            }
            let heard = tracks.iter().map(|track| track.session.n_samples()).min().unwrap_or(0);
            progress.show(heard, tracks[0].pcm.duration(), start.elapsed());
        }
    }
    progress.clear();

    let n_samples = tracks.iter().map(|track| track.session.n_samples()).max().unwrap_or(0);
    let wall = start.elapsed();
    let mut heard = Ok(());
    let mut gaps = Vec::new();
    for track in tracks {
        gaps.extend(track.guard.iter().flat_map(GapGuard::gaps).cloned());
        heard = heard.and(track.heard.unwrap_or(Ok(())));
    }
    let missed_ms: u64 = gaps.iter().filter(|gap| gap.text.is_empty()).map(|gap| gap.speech_ms).sum();
    let stats = engine.stats() - before;
    let timings = timings(stats, n_samples, wall);
    let error = heard.as_ref().err().map(ToString::to_string);
    if interrupted.load(Ordering::Relaxed) && !input.is_live() && options.output.target != Target::Stdout {
        // a file's transcript is whole or not there
        return Ok(n_samples);
    }
    sink.finish(Summary { n_samples, timings, gaps, error })?;
    tracing::debug!(n_samples, n_tokens = stats.n_tokens, ?stats.encoder, ?stats.prefill, ?stats.decoder, ?wall, "transcribed");
    if options.print_timings {
        print_timings(stats, n_samples, wall, engine.decoder_bytes());
    }
    heard?;
    if n_samples == 0 && !interrupted.load(Ordering::Relaxed) {
        anyhow::bail!("no audio in it");
    }
    if options.strict && missed_ms > 0 {
        anyhow::bail!("{:.1} s of speech have no words", missed_ms as f64 / 1e3);
    }
    Ok(n_samples)
}

impl<B: Backend> Track<B> {
    /// Takes the next samples, if there may be any.
    fn hear(&mut self, interrupted: &AtomicBool) {
        if self.heard.is_some() {
            return;
        }
        let mut timeout = POLL;
        loop {
            let mut samples = Vec::new();
            let more =
                if interrupted.load(Ordering::Relaxed) { Ok(false) } else { self.pcm.read(&mut samples, timeout) };
            if let Some(feed) = &mut self.feed {
                feed.samples(&samples);
            }
            let pushed = self.session.push(&samples);
            if self.pcm.take_pause() {
                self.session.flush();
            }
            self.heard = match pushed.and(more) {
                Ok(true) if samples.is_empty() || !self.session.wants_samples() => return,
                // what is there already makes for longer calls and more drafts
                Ok(true) => {
                    timeout = Duration::ZERO;
                    continue;
                }
                Ok(false) => Some(Ok(())),
                Err(error) => Some(Err(error)),
            };
            return self.session.finish();
        }
    }

    /// What is to be passed on of an event.
    fn guarded(
        &mut self,
        event: Event,
        engine: &mut Engine<B>,
        input: &Input,
        options: &Options,
    ) -> anyhow::Result<Vec<Event>> {
        let Some(guard) = &mut self.guard else { return Ok(vec![event]) };
        let n_gaps = guard.gaps().len();
        let (session, raw, channel) = (&options.session, options.raw, self.channel);
        let events = guard.event(event, &mut FromInput { engine, session, input, raw, channel })?;
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
