//! Worker mode: requests on stdin, answers on stdout, for scripts that keep the model loaded.
//!
//! A request is a line of fields separated by tabs: `T id path` transcribes a file, `P id nbytes` the raw s16le samples
//! that follow the line, `Q` ends as the end of stdin does, once all is answered. `READY` comes first, then, in the order in
//! which they end, `R id OK text` or `R id ERR message`. Requests are worked on together. In answers a backslash, tab, line
//! feed and carriage return are `\\`, `\t`, `\n` and `\r`.

use std::collections::HashMap;
use std::io::{self, BufRead, Read as _, Write as _};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use voxtral::audio::{AudioReader, Channel};
use voxtral::backend::Backend;
use voxtral::output::{Style, TranscriptWriter};
use voxtral::scheduler::{Job, PcmSender, Scheduler, SchedulerOptions, Submitter, Update};
use voxtral::{Engine, SessionOptions};

use super::input::{open, send_all};
use super::options::{Input, Options};

/// Longest request line, and the most samples with a request: over 4 hours.
const MAX_LINE: u64 = 1 << 16;
const MAX_BYTES: u64 = 1 << 29;
/// Requests, and bytes of samples with them, that may be unanswered; further ones are not read yet.
const MAX_PENDING: usize = 1024;
/// How long to wait for news before looking whether the user wants to stop.
const POLL: Duration = Duration::from_millis(50);

/// Requests that have a job.
#[derive(Default)]
struct Pending {
    state: Mutex<PendingState>,
    changed: Condvar,
}

#[derive(Default)]
struct PendingState {
    /// Ids of requests and the bytes that came with them, by job.
    requests: HashMap<u64, (String, u64)>,
    /// Whether all requests are read.
    complete: bool,
}

impl PendingState {
    fn n_bytes(&self) -> u64 {
        self.requests.values().map(|(_, n_bytes)| n_bytes).sum()
    }
}

/// Answers requests until they end; the exit code.
pub fn serve<B: Backend + 'static>(
    engines: Vec<Engine<B>>,
    options: &Options,
    interrupted: &AtomicBool,
    at_a_time: usize,
) -> anyhow::Result<u8> {
    let scheduler = Scheduler::start(engines, SchedulerOptions { batch: at_a_time, report_work: false })?;
    let pending = Arc::new(Pending::default());
    say("READY")?;
    let (submitter, session, for_reader) = (scheduler.submitter(), options.session.clone(), pending.clone());
    std::thread::Builder::new().name("requests".into()).spawn(move || {
        // stdin or stdout is gone: what was asked so far is all
        let _ = read_requests(&mut io::stdin().lock(), &submitter, &session, &for_reader);
        let mut state = for_reader.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.complete = true;
    })?;
    let mut texts: HashMap<u64, TranscriptWriter<Vec<u8>>> = HashMap::new();
    let mut stopped = false;
    loop {
        if !stopped && interrupted.load(Ordering::Relaxed) {
            stopped = true;
            scheduler.cancel_all();
        }
        match scheduler.next(POLL)? {
            Some(Update::Event { id, event }) => {
                texts.entry(id).or_insert_with(|| TranscriptWriter::new(Vec::new(), Style::Text)).event(&event)?;
            }
            Some(Update::Ended { id, outcome }) => {
                let text = texts.remove(&id).map(TranscriptWriter::into_line).transpose()?.unwrap_or_default();
                let text = String::from_utf8_lossy(&text);
                let mut state = pending.state.lock().unwrap_or_else(PoisonError::into_inner);
                let Some((request, _)) = state.requests.remove(&id) else { continue };
                pending.changed.notify_all();
                drop(state);
                match outcome.error {
                    Some(error) => answer(&request, "ERR", &error.to_string())?,
                    None if outcome.cancelled => answer(&request, "ERR", "interrupted")?,
                    None if outcome.n_samples == 0 => answer(&request, "ERR", "no audio in it")?,
                    None => answer(&request, "OK", text.trim_end_matches('\n'))?,
                }
            }
            Some(Update::Progress { .. } | Update::Worked(_)) => {}
            None => {
                let state = pending.state.lock().unwrap_or_else(PoisonError::into_inner);
                if state.requests.is_empty() && (state.complete || stopped) {
                    return Ok(if stopped { super::INTERRUPTED } else { 0 });
                }
            }
        }
    }
}

/// Reads requests and has them worked on, or refuses them.
fn read_requests(
    stdin: &mut impl BufRead,
    submitter: &Submitter,
    session: &SessionOptions,
    pending: &Pending,
) -> io::Result<()> {
    for job in 0.. {
        let mut line = Vec::new();
        if stdin.by_ref().take(MAX_LINE).read_until(b'\n', &mut line)? == 0 {
            break;
        }
        if line.pop_if(|end| *end == b'\n').is_none() && line.len() as u64 == MAX_LINE {
            stdin.skip_until(b'\n')?;
            answer("", "ERR", "a request of more than 64 KiB")?;
            continue;
        }
        line.pop_if(|end| *end == b'\r');
        let mut fields = line.splitn(3, |&byte| byte == b'\t');
        let kind = fields.next().unwrap_or_default();
        let id = String::from_utf8_lossy(fields.next().unwrap_or_default()).into_owned();
        let value = fields.next().unwrap_or_default();
        let read = match kind {
            b"Q" => break,
            b"" if line.is_empty() => continue,
            b"T" if !value.is_empty() => {
                let input = Input::File(path(value));
                Ok((0, Audio::File(input)))
            }
            b"P" => samples(stdin, value)?,
            b"T" => Err("no path: expected T, an id and a path, separated by tabs".into()),
            _ => Err("not a request: expected T, P or Q".into()),
        };
        match read {
            Err(message) => answer(&id, "ERR", &message)?,
            Ok((n_bytes, audio)) => {
                let mut state = pending.state.lock().unwrap_or_else(PoisonError::into_inner);
                while state.requests.len() >= MAX_PENDING || n_bytes > 0 && state.n_bytes() > MAX_BYTES {
                    state = pending.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                state.requests.insert(job, (id, n_bytes));
                drop(state);
                let read = move |sender: &PcmSender| audio.read(sender);
                submitter.submit(Job { id: job, options: session.clone(), live: false, read: Box::new(read) });
            }
        }
    }
    Ok(())
}

/// What a request is about.
enum Audio {
    File(Input),
    Samples(Vec<u8>),
}

impl Audio {
    fn read(self, sender: &PcmSender) -> voxtral::Result<()> {
        let reader = match self {
            Self::File(input) => open(&input, false, Channel::Mix)?,
            Self::Samples(bytes) => AudioReader::raw(io::Cursor::new(bytes)),
        };
        send_all(reader, sender, None)
    }
}

/// The samples that follow a request, or why they are refused; they are read in any case.
fn samples(stdin: &mut impl BufRead, n_bytes: &[u8]) -> io::Result<Result<(u64, Audio), String>> {
    let Some(n) = std::str::from_utf8(n_bytes).ok().and_then(|text| text.trim().parse::<u64>().ok()) else {
        return Ok(Err("no number of bytes: expected P, an id and a number, separated by tabs".into()));
    };
    if n > MAX_BYTES || !n.is_multiple_of(2) {
        io::copy(&mut stdin.take(n), &mut io::sink())?;
        return Ok(Err(format!("{n} bytes: expected an even number, at most {MAX_BYTES}")));
    }
    let mut bytes = Vec::new();
    stdin.take(n).read_to_end(&mut bytes)?;
    if (bytes.len() as u64) < n {
        return Ok(Err(format!("stdin ended after {} of {n} bytes", bytes.len())));
    }
    Ok(Ok((n, Audio::Samples(bytes))))
}

#[cfg(unix)]
fn path(bytes: &[u8]) -> PathBuf {
    use std::os::unix::ffi::OsStrExt as _;
    PathBuf::from(std::ffi::OsStr::from_bytes(bytes))
}

#[cfg(not(unix))]
fn path(bytes: &[u8]) -> PathBuf {
    PathBuf::from(String::from_utf8_lossy(bytes).into_owned())
}

fn answer(id: &str, status: &str, text: &str) -> io::Result<()> {
    say(&format!("R\t{}\t{status}\t{}", escaped(id), escaped(text)))
}

fn escaped(text: &str) -> String {
    text.replace('\\', "\\\\").replace('\t', "\\t").replace('\n', "\\n").replace('\r', "\\r")
}

fn say(line: &str) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
