//! Work on many inputs: which they are, which of them are done already, how far it is, and how each ended.

mod inputs;
mod manifest;

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use sha2::{Digest as _, Sha256};
use voxtral::Model;
use voxtral::audio::SAMPLE_RATE;
use voxtral::output::atomic::remove_stale;

use self::inputs::{Found, Inputs};
use self::manifest::{Entry, Manifest, Status, Version};
use super::options::{Input, Options, Target, Verbosity};
use super::report::say;

/// One input to transcribe.
#[derive(Debug)]
pub struct Job {
    pub input: Input,
    /// Where its transcript belongs under an output directory, without the format's extension.
    pub stem: PathBuf,
    /// Of the file before it is read.
    version: Option<Version>,
}

/// How an input ended.
#[derive(Debug)]
pub struct Ended {
    pub n_samples: u64,
    pub time: Duration,
    /// The error as it was reported.
    pub error: Option<String>,
}

/// The manifest, and what the outputs of this process depend on.
#[derive(Debug)]
pub struct Records {
    manifest: Manifest,
    settings: String,
}

/// How many times as long as it took so far the rest may be said to take.
const MAX_LEFT: f64 = 1e5;

/// All work of this process.
#[derive(Debug)]
pub struct Batch {
    verbosity: Verbosity,
    fail_fast: bool,
    /// What there is to do; taken by whoever does it.
    pub jobs: Vec<Job>,
    /// What was done in an output directory; taken by whoever writes there.
    pub records: Option<Records>,
    /// Whether there is an output directory.
    has_directory: bool,
    start: Instant,
    n_found: usize,
    n_skipped: usize,
    n_done: usize,
    /// Of `n_jobs`, whether well or not.
    n_ended: usize,
    /// Names of inputs with their errors.
    failed: Vec<String>,
    n_jobs: usize,
    /// Audio of those that are done, in samples.
    n_samples: u64,
    /// Sizes of the files to do, and of those that are done, by which the rest is estimated.
    n_bytes: u64,
    n_bytes_done: u64,
}

impl Batch {
    /// Looks for all inputs and drops those that are done. Names that stand for nothing are reported, and failures.
    ///
    /// # Errors
    /// When outputs would meet, or the output directory cannot be used.
    pub fn plan(options: &Options) -> anyhow::Result<Self> {
        let selection = &options.selection;
        let mut inputs = Inputs::find(selection, options.raw);
        let directory = match &options.output.target {
            Target::Dir(directory) => Some(directory.as_path()),
            Target::Stdout | Target::File(_) => None,
        };
        if directory.is_some() {
            inputs.place()?;
        }
        if let Some(shard) = selection.shard {
            inputs.keep_shard(shard);
        }
        let records = directory.map(|directory| {
            fs::create_dir_all(directory)
                .and_then(|()| Manifest::open(directory, selection.shard))
                .map(|manifest| Records { manifest, settings: settings(options) })
                .with_context(|| directory.display().to_string())
        });
        let records = records.transpose()?;
        let n_found = inputs.found.len();
        let mut jobs = Vec::new();
        for Found { input, stem, .. } in inputs.found {
            let version = match &input {
                Input::File(path) => Version::of(path),
                Input::Stdin | Input::Microphone(_) => None,
            };
            if let Some(Records { manifest, settings }) = &records {
                let outputs_exist = outputs(options, &stem).all(|path| path.is_file());
                let is_done = || version.as_ref().is_some_and(|version| manifest.is_done(version, settings));
                if outputs_exist && !options.bulk.redo && (options.bulk.skip_existing || is_done()) {
                    continue;
                }
            }
            jobs.push(Job { input, stem, version });
        }
        if directory.is_some() {
            let paths: Vec<_> = jobs.iter().flat_map(|job| outputs(options, &job.stem)).collect();
            let n_stale = remove_stale(paths.iter().map(PathBuf::as_path));
            tracing::debug!(n_stale, "unfinished files removed");
        }
        let mut batch = Self {
            verbosity: options.verbosity,
            fail_fast: options.bulk.fail_fast,
            has_directory: records.is_some(),
            records,
            start: Instant::now(),
            n_found,
            n_skipped: n_found - jobs.len(),
            n_done: 0,
            n_ended: 0,
            failed: Vec::new(),
            n_jobs: jobs.len(),
            n_samples: 0,
            n_bytes: jobs.iter().map(Job::n_bytes).sum(),
            n_bytes_done: 0,
            jobs,
        };
        for fault in inputs.faults {
            batch.fail(format!("{fault:#}"));
        }
        Ok(batch)
    }

    /// Whether an input has ended.
    pub fn has_begun(&self) -> bool {
        self.n_ended > 0
    }

    /// Whether something is missing.
    pub fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    /// Whether what failed ends the work.
    pub fn is_over(&self) -> bool {
        self.fail_fast && self.has_failed()
    }

    /// Audio of the inputs that are done, in samples.
    pub fn n_samples(&self) -> u64 {
        self.n_samples
    }

    /// An input that cannot be transcribed.
    fn fail(&mut self, error: String) {
        say(format_args!("voxtral: {error}\n"));
        self.failed.push(error);
    }

    /// How far the whole work is, if it is more than one input: `open` are those that have begun, with the samples taken in
    /// of each and the seconds that it claims to be long.
    pub fn progress<'a>(&self, open: impl Iterator<Item = (&'a Job, u64, Option<f64>)>) -> Option<String> {
        if self.n_jobs < 2 {
            return None;
        }
        let (mut seconds, mut n_bytes) = (self.audio_seconds(), self.n_bytes_done as f64);
        for (job, n_samples, claimed) in open {
            let heard = self::seconds(n_samples);
            seconds += heard;
            n_bytes += job.n_bytes() as f64 * claimed.map_or(0.0, |claimed| (heard / claimed.max(1e-9)).min(1.0));
        }
        Some(progress(self.n_ended, self.n_jobs, seconds, self.start.elapsed(), n_bytes / self.n_bytes.max(1) as f64))
    }

    /// An input's end, or that it was given up, which is returned: what failed is named.
    pub fn end(&mut self, job: &Job, ended: Option<Ended>) -> bool {
        let Some(Ended { n_samples, time, error }) = ended else { return true };
        self.n_samples += n_samples;
        self.n_bytes_done += job.n_bytes();
        self.n_ended += 1;
        if let Some(error) = error {
            self.fail(error);
            return false;
        }
        self.n_done += 1;
        if self.has_directory && self.n_jobs > 1 && self.writes_lines() {
            let (n_ended, n, name) = (self.n_ended, self.n_jobs, job.input.name());
            let (audio, time) = (seconds(n_samples), time.as_secs_f64());
            let speed = audio / time.max(1e-9);
            say(format_args!("{n_ended}/{n} {name}: {audio:.1} s of audio in {time:.1} s, {speed:.1} xRT\n"));
        }
        false
    }

    fn audio_seconds(&self) -> f64 {
        seconds(self.n_samples)
    }

    /// Whether every input has a line of its own on stderr, as a log wants it.
    fn writes_lines(&self) -> bool {
        use io::IsTerminal as _;
        self.verbosity != Verbosity::Silent && !io::stderr().is_terminal()
    }

    /// The summary, where there is more to sum up than one input.
    pub fn summary(&self) -> Option<String> {
        let is_bulk = self.n_found > 1 && self.has_directory || self.n_skipped > 0;
        if self.verbosity == Verbosity::Silent || !is_bulk {
            return None;
        }
        let wall = self.start.elapsed();
        let n_left = self.n_jobs - self.n_ended;
        let mut rows = vec![("done", self.n_done.to_string())];
        let counts = [("done before", self.n_skipped), ("failed", self.failed.len()), ("unfinished", n_left)];
        rows.extend(counts.into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| (name, n.to_string())));
        if self.n_done > 0 {
            let speed = self.audio_seconds() / wall.as_secs_f64().max(1e-9);
            rows.push(("audio", clock(Duration::from_secs_f64(self.audio_seconds()))));
            rows.push(("time", clock(wall)));
            rows.push(("speed", format!("{speed:.1} xRT")));
        }
        let mut text = String::new();
        for (name, value) in rows {
            let _ = writeln!(text, "{name:<11} {value:>9}");
        }
        if !self.failed.is_empty() {
            text.push_str("what failed:\n");
            self.failed.iter().for_each(|error| text.push_str(&format!("  {error}\n")));
        }
        Some(text)
    }
}

impl Job {
    fn n_bytes(&self) -> u64 {
        self.version.as_ref().map_or(0, |version| version.size)
    }
}

impl Records {
    /// Adds how an input ended, for good.
    ///
    /// # Errors
    /// When the manifest cannot be written.
    pub fn add(&mut self, job: &Job, ended: &Ended) -> anyhow::Result<()> {
        let Some(version) = job.version.clone() else { return Ok(()) };
        let entry = Entry {
            version,
            settings: self.settings.clone(),
            status: if ended.error.is_none() { Status::Done } else { Status::Failed },
            error: ended.error.clone(),
            audio_seconds: seconds(ended.n_samples),
            seconds: ended.time.as_secs_f64(),
        };
        self.manifest.append(entry).with_context(|| self.manifest.path().display().to_string())
    }
}

fn seconds(n_samples: u64) -> f64 {
    n_samples as f64 / f64::from(SAMPLE_RATE)
}

/// The files that a transcript at this place becomes.
fn outputs<'a>(options: &'a Options, stem: &'a Path) -> impl Iterator<Item = PathBuf> + 'a {
    options.output.formats.iter().filter_map(|format| options.output.target.path(stem, *format))
}

/// A hash of everything that decides what the outputs hold and whether that is well: the model, and the options that
/// change it.
fn settings(options: &Options) -> String {
    let files = Model::FILES.map(|name| Version::of(&options.model.join(name)));
    let session = (options.session.delay, options.session.alternatives);
    let output = (&options.output.formats, &options.output.layout, options.output.style);
    let heard = (options.raw, options.channels, options.gap_guard, options.strict);
    let decisive = (env!("CARGO_PKG_VERSION"), files, session, output, heard);
    let hash = Sha256::digest(format!("{decisive:?}"));
    hash.iter().take(8).map(|byte| format!("{byte:02x}")).collect()
}

/// The progress line of several files: how many of them have ended, audio heard, time it took, and the share of the work
/// that is done.
fn progress(n_ended: usize, n_jobs: usize, seconds: f64, elapsed: Duration, share: f64) -> String {
    let mut text = format!("{n_ended} of {n_jobs} files");
    if seconds > 0.0 {
        let _ = write!(text, ", {:.2} h at {:.1} xRT", seconds / 3600.0, seconds / elapsed.as_secs_f64().max(1e-9));
    }
    if share > 0.0 {
        let _ = write!(text, ", {} left", clock(elapsed.mul_f64((1.0 / share - 1.0).clamp(0.0, MAX_LEFT))));
    }
    text
}

/// `h:mm:ss`.
fn clock(time: Duration) -> String {
    let seconds = time.as_secs_f64().round() as u64;
    format!("{}:{:02}:{:02}", seconds / 3600, seconds / 60 % 60, seconds % 60)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_has_files_hours_speed_and_the_time_left() {
        let minute = Duration::from_secs(60);
        assert_eq!(progress(0, 40, 0.0, minute, 0.0), "0 of 40 files");
        assert_eq!(progress(3, 40, 5400.0, minute, 0.25), "3 of 40 files, 1.50 h at 90.0 xRT, 0:03:00 left");
        assert!(progress(40, 40, 1.0, minute, 1.0).ends_with("0:00:00 left"));
        // a file that grew; one that has hardly begun
        assert!(progress(1, 2, 1.0, minute, 1.2).ends_with("0:00:00 left"));
        assert!(progress(1, 2, 1.0, minute, 1e-300).ends_with(" left"));
        assert!(progress(9999, 10_000, 36e6, minute, 1e-4).len() < 70);
    }

    #[test]
    fn clocks_have_hours_minutes_and_seconds() {
        let text = |seconds| clock(Duration::from_secs_f64(seconds));
        assert_eq!([0.4, 59.6, 3599.0, 360_000.0].map(text), ["0:00:00", "0:01:00", "0:59:59", "100:00:00"]);
    }
}
