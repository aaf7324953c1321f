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
pub struct Outcome {
    pub n_samples: u64,
    pub time: Duration,
    /// The error as it was reported.
    pub error: Option<String>,
}

/// All work of this process.
#[derive(Debug)]
pub struct Batch {
    verbosity: Verbosity,
    /// What there is to do; taken by whoever does it.
    pub jobs: Vec<Job>,
    manifest: Option<Manifest>,
    settings: String,
    start: Instant,
    n_found: usize,
    n_skipped: usize,
    n_done: usize,
    /// Names of inputs with their errors.
    failed: Vec<String>,
    n_jobs: usize,
    audio_seconds: f64,
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
        let settings = settings(options);
        let manifest = directory
            .map(|directory| {
                fs::create_dir_all(directory)
                    .and_then(|()| Manifest::open(directory, selection.shard))
                    .with_context(|| directory.display().to_string())
            })
            .transpose()?;
        let n_found = inputs.found.len();
        let mut jobs = Vec::new();
        for Found { input, stem, .. } in inputs.found {
            let version = match &input {
                Input::File(path) => Version::of(path),
                Input::Stdin | Input::Microphone(_) => None,
            };
            if let Some(manifest) = &manifest {
                let outputs_exist = outputs(options, &stem).all(|path| path.is_file());
                let is_done = || version.as_ref().is_some_and(|version| manifest.is_done(version, &settings));
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
            manifest,
            settings,
            start: Instant::now(),
            n_found,
            n_skipped: n_found - jobs.len(),
            n_done: 0,
            failed: Vec::new(),
            n_jobs: jobs.len(),
            audio_seconds: 0.0,
            n_bytes: jobs.iter().map(Job::n_bytes).sum(),
            n_bytes_done: 0,
            jobs,
        };
        for fault in inputs.faults {
            batch.fail(format!("{fault:#}"));
        }
        Ok(batch)
    }

    /// Whether something is missing.
    pub fn has_failed(&self) -> bool {
        !self.failed.is_empty()
    }

    /// An input that cannot be transcribed.
    fn fail(&mut self, error: String) {
        say(format_args!("voxtral: {error}\n"));
        self.failed.push(error);
    }

    /// The text in front of a file's own progress: how far the whole work is.
    pub fn progress(&self) -> String {
        if self.n_jobs < 2 {
            return String::new();
        }
        let n_ended = self.n_done + self.failed.len();
        let elapsed = self.start.elapsed();
        let mut text = format!("{} of {} files", n_ended + 1, self.n_jobs);
        if n_ended > 0 {
            let speed = self.audio_seconds / elapsed.as_secs_f64().max(1e-9);
            let _ = write!(text, ", {:.2} h at {speed:.1} xRT", self.audio_seconds / 3600.0);
        }
        if let Some(rest) = remaining(elapsed, self.n_bytes_done, self.n_bytes) {
            let _ = write!(text, ", {} left", clock(rest));
        }
        text + " · "
    }

    /// An input's end: what failed is named, what is known is recorded.
    ///
    /// # Errors
    /// When the manifest cannot be written.
    pub fn end(&mut self, job: &Job, outcome: Outcome) -> anyhow::Result<()> {
        let audio_seconds = outcome.n_samples as f64 / f64::from(SAMPLE_RATE);
        self.audio_seconds += audio_seconds;
        self.n_bytes_done += job.n_bytes();
        let seconds = outcome.time.as_secs_f64();
        let status = match outcome.error {
            None => Status::Done,
            Some(_) => Status::Failed,
        };
        if let (Some(manifest), Some(version)) = (&mut self.manifest, &job.version) {
            let settings = self.settings.clone();
            let error = outcome.error.clone();
            let entry = Entry { version: version.clone(), settings, status, error, audio_seconds, seconds };
            manifest.append(entry).with_context(|| manifest.path().display().to_string())?;
        }
        match outcome.error {
            Some(error) => self.fail(error),
            None => self.n_done += 1,
        }
        let n_ended = self.n_done + self.failed.len();
        if status == Status::Done && self.manifest.is_some() && self.n_jobs > 1 && self.writes_lines() {
            let (n, name) = (self.n_jobs, job.input.name());
            let speed = audio_seconds / seconds.max(1e-9);
            say(format_args!(
                "{n_ended}/{n} {name}: {audio_seconds:.1} s of audio in {seconds:.1} s, {speed:.1} xRT\n"
            ));
        }
        Ok(())
    }

    /// Whether every input has a line of its own on stderr, as a log wants it.
    fn writes_lines(&self) -> bool {
        use io::IsTerminal as _;
        self.verbosity != Verbosity::Silent && !io::stderr().is_terminal()
    }

    /// The summary, where there is more to sum up than one input.
    pub fn summary(&self) -> Option<String> {
        let is_bulk = self.n_found > 1 && self.manifest.is_some() || self.n_skipped > 0;
        if self.verbosity == Verbosity::Silent || !is_bulk {
            return None;
        }
        let wall = self.start.elapsed();
        let n_left = self.n_jobs.saturating_sub(self.n_done + self.failed.len());
        let mut rows = vec![("done", self.n_done.to_string())];
        let counts = [("done before", self.n_skipped), ("failed", self.failed.len()), ("unfinished", n_left)];
        rows.extend(counts.into_iter().filter(|(_, n)| *n > 0).map(|(name, n)| (name, n.to_string())));
        if self.n_done > 0 {
            let speed = self.audio_seconds / wall.as_secs_f64().max(1e-9);
            rows.push(("audio", clock(Duration::from_secs_f64(self.audio_seconds))));
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

/// What is left of work of which so many bytes are done after this time.
fn remaining(elapsed: Duration, n_done: u64, n_all: u64) -> Option<Duration> {
    (n_done > 0).then(|| elapsed.mul_f64((n_all.saturating_sub(n_done)) as f64 / n_done as f64))
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
    fn the_rest_takes_as_long_as_its_bytes() {
        let minute = Duration::from_secs(60);
        assert_eq!(remaining(minute, 0, 10), None);
        assert_eq!(remaining(minute, 5, 10), Some(minute));
        assert_eq!(remaining(minute, 10, 10), Some(Duration::ZERO));
        // a file that grew
        assert_eq!(remaining(minute, 12, 10), Some(Duration::ZERO));
    }

    #[test]
    fn clocks_have_hours_minutes_and_seconds() {
        let text = |seconds| clock(Duration::from_secs_f64(seconds));
        assert_eq!([0.4, 59.6, 3599.0, 360_000.0].map(text), ["0:00:00", "0:01:00", "0:59:59", "100:00:00"]);
    }
}
