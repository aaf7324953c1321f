//! One input on its way: what its channels said, how they ended, and what is written then.

use std::collections::VecDeque;
use std::io;
use std::time::Duration;

use voxtral::audio::{Channel, SAMPLE_RATE};
use voxtral::output::Timings;
use voxtral::scheduler::Outcome;
use voxtral::{Event, GapGuard, Stats};

use crate::cli::bulk::{Ended, Job};
use crate::cli::is_broken_pipe;
use crate::cli::options::{Options, Target};
use crate::cli::sink::{Sink, Summary};

/// An input on its way.
pub struct Task<'a> {
    pub job: &'a Job,
    pub options: &'a Options,
    pub delay_ms: u64,
    pub tracks: Vec<Track>,
    pub names: Vec<Option<String>>,
    /// What the tracks said and is not written yet.
    pub said: VecDeque<(usize, Event)>,
    /// Why there are no tracks.
    pub failed: Option<voxtral::Error>,
}

/// A channel of it, or the mix of all.
pub struct Track {
    pub id: u64,
    pub channel: Channel,
    pub guard: Option<GapGuard>,
    pub n_samples: u64,
    pub duration: Option<f64>,
    pub outcome: Option<Outcome>,
}

impl<'a> Task<'a> {
    fn outcomes(&self) -> impl Iterator<Item = &Outcome> {
        self.tracks.iter().filter_map(|track| track.outcome.as_ref())
    }

    pub fn is_ended(&self) -> bool {
        self.outcomes().count() == self.tracks.len()
    }

    fn n_samples(&self) -> u64 {
        self.outcomes().map(|outcome| outcome.n_samples).max().unwrap_or(0)
    }

    /// Samples taken in so far by all tracks.
    pub fn n_heard(&self) -> u64 {
        self.tracks.iter().map(|track| track.n_samples).min().unwrap_or(0)
    }

    /// What it claims to be long, in seconds.
    pub fn duration(&self) -> Option<f64> {
        self.tracks.first()?.duration
    }

    /// Whether it has its turn, or has had it.
    pub fn has_begun(&self) -> bool {
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

    /// What its events go to.
    pub fn start_sink(&self) -> io::Result<Sink<'a>> {
        Sink::start(&self.options.output, self.job, &self.options.model, self.delay_ms, &self.names)
    }

    /// Ends it: what is still to be written is, from events that `sink` has taken. Nothing where it is given up.
    ///
    /// # Errors
    /// When nobody reads what is written; other failures are in the outcome.
    pub fn end(self, sink: Option<Sink<'_>>) -> anyhow::Result<Option<Ended>> {
        let (job, time, is_undone) = (self.job, self.wall(), self.is_undone());
        let span = tracing::debug_span!("input", name = job.input.name());
        let result = span.in_scope(|| self.finish(sink));
        if is_undone {
            return Ok(None);
        }
        let (n_samples, error) = match result {
            Ok(n_samples) => (n_samples, None),
            Err(error) if is_broken_pipe(&error) => return Err(error),
            Err(error) => {
                let named = matches!(error.downcast_ref(), Some(voxtral::Error::Io { .. }));
                (0, Some(format!("{:#}", if named { error } else { error.context(job.input.name()) })))
            }
        };
        Ok(Some(Ended { n_samples, time, error }))
    }

    /// Writes what is to be written at the end; how many samples it had.
    ///
    /// # Errors
    /// What ended its audio, among others; what was heard before is written.
    fn finish(self, sink: Option<Sink<'_>>) -> anyhow::Result<u64> {
        let options = self.options;
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

fn timings(stats: Stats, n_samples: u64, wall: Duration) -> Timings {
    let [wall, encoder, decoder] = [wall, stats.encoder, stats.decoder].map(|time| time.as_secs_f64());
    Timings { wall, encoder, decoder, xrt: n_samples as f64 / f64::from(SAMPLE_RATE) / wall.max(1e-9) }
}
