//! What is said on stderr about the work: messages, timings, symbols, a progress line that steps aside for the others.

use std::fmt::Arguments;
use std::io::{self, IsTerminal as _, Write};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use console::Term;
use voxtral::Stats;
use voxtral::audio::SAMPLE_RATE;
use voxtral::scheduler::Scheduler;

/// A pass slower than the 80 ms that its token stands for cannot keep up with live audio.
const REAL_TIME: Duration = Duration::from_millis(80);

/// The progress line shows so many states a second at most.
const PROGRESS_PERIOD: Duration = Duration::from_millis(100);

/// The progress line as it is on the terminal, empty if there is none. Any thread may have something to write where it
/// stands, so it is known to all.
static LINE: Mutex<String> = Mutex::new(String::new());

/// Puts another text in the line's place. The cursor stays behind it, so that the ^C of an interrupt goes with it.
fn set_line(line: &mut String, text: String) {
    let terminal = Term::buffered_stderr();
    let clear = if line.is_empty() { Ok(()) } else { terminal.clear_line() };
    // as with all of stderr: it may be gone
    let _ = clear.and_then(|()| terminal.write_str(&text)).and_then(|()| terminal.flush());
    *line = text;
}

/// Writes to stderr. It may be closed; there is nobody left to tell then.
pub fn say(text: Arguments<'_>) {
    let _ = beside_progress(|| io::stderr().write_fmt(text));
}

/// Writes whole lines, and the progress line again after them.
fn beside_progress<R>(write: impl FnOnce() -> R) -> R {
    let mut line = LINE.lock().unwrap_or_else(PoisonError::into_inner);
    let text = line.clone();
    set_line(&mut line, String::new());
    let result = write();
    set_line(&mut line, text);
    result
}

/// Removes the progress line of a process that ends now, unless somebody is writing to stderr, who may never be done.
pub fn abandon_progress() {
    if let Ok(mut line) = LINE.try_lock() {
        set_line(&mut line, String::new());
    }
}

/// Removes the progress line.
pub fn clear_progress() {
    set_line(&mut LINE.lock().unwrap_or_else(PoisonError::into_inner), String::new());
}

/// Stderr for a log, which writes whole lines.
pub struct Log;

impl Write for Log {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        beside_progress(|| io::stderr().write(bytes))
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
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
    let each = if n_engines > 1 { format!(" on each of {n_engines} engines") } else { String::new() };
    say(format_args!("Batch: {} at a time{each}{peak}{gpu}\n", scheduler.max_open()));
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

/// Ends the line of symbols. On one terminal the text has ended it.
pub fn monitor_end() {
    if !io::stdout().is_terminal() {
        say(format_args!("\n"));
    }
}

/// A progress line, where stderr is a terminal. If the text goes to one too, the line gives way to its first word.
pub struct Progress {
    is_wanted: bool,
    /// Until the next input.
    has_given_way: bool,
    gives_way: bool,
    last_shown: Option<Instant>,
}

impl Progress {
    /// `is_wanted` if nothing else is to be said on stderr.
    pub fn start(is_wanted: bool) -> Self {
        let is_wanted = is_wanted && io::stderr().is_terminal();
        Self { is_wanted, has_given_way: false, gives_way: io::stdout().is_terminal(), last_shown: None }
    }

    /// Whether there is a line, and its time to change has come.
    pub fn is_due(&self) -> bool {
        let is_old = self.last_shown.is_none_or(|time| time.elapsed() >= PROGRESS_PERIOD);
        self.is_wanted && !self.has_given_way && is_old
    }

    /// `text` is of characters that take a column each.
    pub fn show(&mut self, text: &str) {
        // with room for ^C, which would begin a line that nobody removes
        let (_, n_columns) = Term::stderr().size();
        let text = text.chars().take(usize::from(n_columns).saturating_sub(3)).collect();
        set_line(&mut LINE.lock().unwrap_or_else(PoisonError::into_inner), text);
        self.last_shown = Some(Instant::now());
    }

    /// Text is about to be written.
    pub fn give_way(&mut self) {
        if self.gives_way && !self.has_given_way {
            clear_progress();
            self.has_given_way = true;
        }
    }

    /// The next input begins.
    pub fn restart(&mut self) {
        self.has_given_way = false;
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        clear_progress();
    }
}

/// How far an input is that may claim to be so many seconds long, after this time.
pub fn progress_of_one(n_samples: u64, claimed: Option<f64>, time: Duration) -> String {
    let seconds = n_samples as f64 / f64::from(SAMPLE_RATE);
    let speed = seconds / time.as_secs_f64().max(1e-9);
    let of = claimed.map_or(String::new(), |all| format!(" of {all:.0} s ({:.0} %)", 100.0 * seconds / all.max(1e-9)));
    format!("{seconds:.0} s{of} at {speed:.1} xRT")
}
