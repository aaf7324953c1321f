//! `voxtral bench`: how fast a model runs here, against what the machine can do.

use std::io::{self, Write as _};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use serde::Serialize;
use voxtral::audio::AudioReader;
use voxtral::backend::Backend;
use voxtral::{Engine, Model, SessionOptions};

use super::{Work, run_on, samples, seconds};
use crate::cli::options::BenchOptions;

/// Runs that are not counted.
const WARM_UPS: u32 = 2;

/// One line of the table; everything is the median of its runs.
#[derive(Serialize)]
struct Report {
    version: &'static str,
    commit: &'static str,
    model: String,
    device: &'static str,
    threads: usize,
    runs: u16,
    audio_seconds: f64,
    load_ms: f64,
    encoder_ms: f64,
    /// Seconds of audio for each second of work.
    encoder_xrt: f64,
    prompt_ms: f64,
    passes: u64,
    tokens: u64,
    pass_ms: f64,
    /// Decoder weights read, in 10^9 bytes a second.
    pass_gb_s: f64,
    /// A plain read of the same weights on the same threads, or a copy of as many bytes within the GPU's memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    ceiling_gb_s: Option<f64>,
    wall_ms: f64,
    xrt: f64,
}

pub fn run(options: &BenchOptions) -> anyhow::Result<()> {
    let report = run_on(options.device.device(), &options.device.backend(), Measure(options))?;
    let text = if options.json { serde_json::to_string_pretty(&report)? + "\n" } else { table(&report) };
    Ok(io::stdout().write_all(text.as_bytes())?)
}

struct Measure<'a>(&'a BenchOptions);

impl Work for Measure<'_> {
    type Output = Report;

    fn run<B: Backend>(self, device: &'static str) -> anyhow::Result<Report> {
        let options = self.0;
        let samples = match &options.input {
            Some(path) => {
                let name = || path.display().to_string();
                AudioReader::open(path).and_then(|reader| samples(Some(reader))).with_context(name)?
            }
            None => samples(None)?,
        };
        let audio_seconds = seconds(samples.len());
        let threads =
            options.device.backend().threads.or_else(|| std::thread::available_parallelism().ok().map(usize::from));
        let threads = threads.unwrap_or(1);

        let start = Instant::now();
        let model = Model::open(&options.model).context("cannot load the model")?;
        let mut engine = Engine::<B>::load(model, &options.device.backend()).context("cannot load the model")?;
        let load = start.elapsed();
        let decoder_bytes = engine.decoder_bytes();

        let mut runs = Vec::new();
        let mut reads = Vec::new();
        // two runs warm caches, and the second makes what later segments begin as copies of: they are not counted
        for i in 0..u32::from(options.runs) + WARM_UPS {
            let before = engine.stats();
            let start = Instant::now();
            let mut session = engine.open(&SessionOptions::default())?;
            session.push(&samples)?;
            session.finish();
            engine.advance(&mut [&mut session])?;
            let wall = start.elapsed();
            // by turns with the work, so that both see the same state of the machine
            let read = engine.backend_mut().plain_pass()?;
            if i >= WARM_UPS {
                runs.push((wall, engine.stats() - before));
                reads.extend(read);
            }
        }

        let median = |value: &dyn Fn(&(Duration, voxtral::Stats)) -> f64| median(runs.iter().map(value).collect());
        let encoder_ms = median(&|(_, stats)| ms(stats.encoder));
        let wall_ms = median(&|(wall, _)| ms(*wall));
        let pass_ms = median(&|(_, s)| ms(s.decoder - s.prefill) / (s.n_passes - s.n_prefills).max(1) as f64);
        let rate = |ms: f64| decoder_bytes as f64 / 1e6 / ms.max(1e-9);
        let stats = runs[0].1;
        Ok(Report {
            version: env!("CARGO_PKG_VERSION"),
            commit: env!("VOX_COMMIT"),
            model: options.model.display().to_string(),
            device,
            threads,
            runs: options.runs,
            audio_seconds,
            load_ms: ms(load),
            encoder_ms,
            encoder_xrt: audio_seconds * 1e3 / encoder_ms.max(1e-9),
            prompt_ms: median(&|(_, s)| ms(s.prefill) / s.n_prefills.max(1) as f64),
            passes: stats.n_passes,
            tokens: stats.n_tokens,
            pass_ms,
            pass_gb_s: rate(pass_ms),
            ceiling_gb_s: (!reads.is_empty()).then(|| rate(self::median(reads.into_iter().map(ms).collect()))),
            wall_ms,
            xrt: audio_seconds * 1e3 / wall_ms.max(1e-9),
        })
    }
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_unstable_by(f64::total_cmp);
    values[values.len() / 2]
}

fn table(r: &Report) -> String {
    let ceiling = r.ceiling_gb_s.map_or(String::new(), |ceiling| {
        format!(", {:.0} % of what plain memory access reaches ({ceiling:.1} GB/s)", 100.0 * r.pass_gb_s / ceiling)
    });
    format!(
        "voxtral {} ({}), {} on {}, {} threads, {:.1} s of audio, median of {} runs\n\
         load      {:>9.1} ms\n\
         encoder   {:>9.1} ms, {:.1} xRT\n\
         prompt    {:>9.2} ms, beyond the silence that all segments begin with\n\
         pass      {:>9.3} ms, {:.1} GB/s of weights{ceiling}\n\
         tokens    {:>9} in {} passes\n\
         all       {:>9.1} ms, {:.2} xRT\n",
        r.version,
        r.commit,
        r.model,
        r.device,
        r.threads,
        r.audio_seconds,
        r.runs,
        r.load_ms,
        r.encoder_ms,
        r.encoder_xrt,
        r.prompt_ms,
        r.pass_ms,
        r.pass_gb_s,
        r.tokens,
        r.passes,
        r.wall_ms,
        r.xrt,
    )
}
