//! What is said on stderr about the work: timings, symbols, a progress line.

use std::fmt::Arguments;
use std::io::{self, IsTerminal as _, Write as _};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use voxtral::Stats;
use voxtral::audio::SAMPLE_RATE;
use voxtral::scheduler::Scheduler;

/// A pass slower than the 80 ms that its token stands for cannot keep up with live audio.
const REAL_TIME: Duration = Duration::from_millis(80);

/// Writes to stderr. It may be closed; there is nobody left to tell then.
pub fn say(text: Arguments<'_>) {
    let _ = io::stderr().write_fmt(text);
}

/// Prints the lines that users of the C implementation know, then ours.
pub fn print_timings(stats: Stats, n_samples: u64, wall: Duration, decoder_bytes: u64) {
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let steps = stats.n_passes - stats.n_prefills;
    let per_step = ms(stats.decoder - stats.prefill) / steps.max(1) as f64;
    let seconds = n_samples as f64 / f64::from(SAMPLE_RATE);
    let bandwidth = (stats.n_passes * decoder_bytes) as f64 / stats.decoder.as_secs_f64().max(1e-9) / 1e9;
    say(format_args!(
        "Encoder: {} mel -> {} tokens ({:.0} ms)\n\
         Decoder: {} text tokens ({} steps) in {:.0} ms (prefill {:.0} ms + {per_step:.1} ms/step)\n\
         Wall transcribe: {:.0} ms\n\
         Speed: {:.2} xRT, {} passes, {:.2} tokens/pass, {} of {} drafts right, {bandwidth:.1} GB/s of weights\n",
        stats.n_frames,
        stats.n_embeddings,
        ms(stats.encoder),
        stats.n_text_tokens,
        stats.n_tokens,
        ms(stats.decoder),
        ms(stats.prefill),
        ms(wall),
        seconds / wall.as_secs_f64().max(1e-9),
        stats.n_passes,
        stats.n_tokens as f64 / stats.n_passes.max(1) as f64,
        stats.n_right,
        stats.n_drafts,
    ));
}

/// Prints what the engines did in that time, how many inputs were open at a time, and the most memory that this took, where
/// the system tells.
pub fn print_work(scheduler: &Scheduler, n_engines: usize, wall: Duration) {
    let stats = scheduler.stats();
    let all = wall.as_secs_f64() * n_engines as f64;
    let percent = |time: Duration| 100.0 * time.as_secs_f64() / all.max(1e-9);
    let [mel, encoder, decoder] = [stats.mel, stats.encoder, stats.decoder].map(percent);
    say(format_args!(
        "Time: mel {mel:.0} %, encoder {encoder:.0} %, decoder {decoder:.0} %, the rest and waiting {:.0} %\n",
        (100.0 - mel - encoder - decoder).max(0.0)
    ));
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let peak =
        status.lines().find_map(|line| line.strip_prefix("VmHWM:")?.trim().strip_suffix(" kB")?.parse::<u64>().ok());
    let peak = peak.map_or(String::new(), |kb| format!(", {} MB of memory at most", kb / 1000));
    let gpu = scheduler.device_memory();
    let gpu = gpu.map_or(String::new(), |bytes| format!(", {} MB of GPU memory", bytes / 1_000_000));
    say(format_args!("Batch: {} at a time{peak}{gpu}\n", scheduler.max_open()));
}

/// Shows work as symbols.
pub fn monitor(stats: Stats) {
    let slow = stats.decoder > REAL_TIME * stats.n_passes as u32;
    let encoder = if stats.n_frames > 0 { "▶" } else { "" };
    let passes = if slow { "▪" } else { "·" }.repeat(stats.n_passes as usize);
    say(format_args!("{encoder}{passes}"));
}

/// Shows a fresh start.
pub fn monitor_restart() {
    say(format_args!("↺"));
}

/// A progress line, where stderr is a terminal. If the text goes to one too, the line gives way to its first word.
pub struct Progress {
    bar: ProgressBar,
    whole: String,
    gives_way: bool,
}

impl Progress {
    /// `shown` if nothing else is to be said on stderr; `whole` is about the work that this input is part of.
    pub fn start(shown: bool, whole: &str) -> Self {
        let shown = shown && io::stderr().is_terminal();
        let target = if shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let style = ProgressStyle::with_template("{wide_msg}").unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = ProgressBar::with_draw_target(None, target).with_style(style);
        Self { bar, whole: whole.to_owned(), gives_way: io::stdout().is_terminal() }
    }

    /// Samples taken in so far in this time, of an input that may claim to be so many seconds long.
    pub fn show(&self, n_samples: u64, claimed: Option<f64>, time: Duration) {
        if self.bar.is_hidden() || self.bar.is_finished() {
            return;
        }
        let seconds = n_samples as f64 / f64::from(SAMPLE_RATE);
        let speed = seconds / time.as_secs_f64().max(1e-9);
        let of =
            claimed.map_or(String::new(), |all| format!(" of {all:.0} s ({:.0} %)", 100.0 * seconds / all.max(1e-9)));
        self.bar.set_message(format!("{}{seconds:.0} s{of} at {speed:.1} xRT", self.whole));
    }

    /// Text is about to be written.
    pub fn give_way(&self) {
        if self.gives_way {
            self.clear();
        }
    }

    /// Removes the line.
    pub fn clear(&self) {
        if !self.bar.is_finished() {
            self.bar.finish_and_clear();
        }
    }
}
