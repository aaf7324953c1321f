//! Arguments and environment to typed options; no other file reads either.

mod commands;
#[cfg(test)]
mod tests;
mod values;

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand as _};
use voxtral::backend::BackendOptions;
use voxtral::output::{Format, Layout, Style};
use voxtral::{Delay, Draft, SessionOptions};

use self::values::{BatchArgument, batch, cutoff, delay, device, draft, formats, interval, segment_seconds, shard};
use super::knobs;

pub use self::commands::{BenchOptions, Command, InfoOptions, VerifyOptions};

const AFTER_HELP: &str = "\
Environment:
  VOX_MODEL          Model directory, where -d is not given
  VOX_PRINT_TIMINGS  1: print how long loading, encoder and decoder took, to stderr
  VOX_DRAFT          As --draft, where that is not given
  VOX_CUDA_FAST      0: the plain path on the GPU, without graphs; the text is the same
  VOX_CUDA_GRAPHS    0: no graphs, whatever VOX_CUDA_FAST says

Exit status: 0 all well, 1 some input failed (the others are done), 2 wrong usage, 130 interrupted.

Examples:
  voxtral -d voxtral-model talk.mp3
  voxtral -d voxtral-model talk.mp3 -f srt > talk.srt
  voxtral -d voxtral-model -r talks -o transcripts -f txt,json
  ffmpeg -i URL -f s16le -ar 16000 -ac 1 - | voxtral -d voxtral-model --stdin -I 0.5

A file with the name of a command is -i NAME or ./NAME.";

/// Streaming speech-to-text with Mistral's Voxtral Realtime model.
///
/// Text goes to stdout as it is recognised, everything else to stderr.
#[derive(Parser, Debug)]
#[command(version = concat!(env!("CARGO_PKG_VERSION"), " (", env!("VOX_COMMIT"), ")"), after_help = AFTER_HELP)]
struct Arguments {
    /// Model directory: params.json, tekken.json and consolidated.safetensors
    #[arg(short = 'd', long, value_name = "DIR", env = "VOX_MODEL", hide_env = true)]
    #[arg(required_unless_present = "list_mics")]
    model: Option<PathBuf>,

    /// Audio file, directory of them or pattern like 'talks/**/*.mp3'; may be repeated. WAV, MP3, FLAC, Ogg, Opus, M4A,
    /// AIFF, CAF, MKV, WebM; - is stdin
    #[arg(short = 'i', long = "input", value_name = "FILE")]
    input: Vec<PathBuf>,

    /// More audio files, directories or patterns
    #[arg(value_name = "FILE")]
    files: Vec<PathBuf>,

    /// File with names of inputs, one a line or ended by NUL bytes; - is stdin
    #[arg(long, value_name = "FILE")]
    list: Vec<PathBuf>,

    /// Look for audio files below directories too
    #[arg(short = 'r', long)]
    recursive: bool,

    /// Read audio from stdin: any format above, or raw s16le 16 kHz mono
    #[arg(long, conflicts_with_all = ["input", "files", "list", "from_mic"])]
    stdin: bool,

    /// Listen to a microphone until Ctrl-C. Silence is left out
    #[arg(long, conflicts_with_all = ["input", "files", "list", "raw"])]
    from_mic: bool,

    /// Which microphone, by a part of its name [default: the system's]
    #[arg(long, value_name = "NAME")]
    mic: Option<String>,

    /// Show the names of all microphones
    #[arg(long, exclusive = true)]
    list_mics: bool,

    /// Take the input for raw s16le 16 kHz mono, whatever it looks like
    #[arg(long)]
    raw: bool,

    /// Audio gathered before it is worked on: less is more responsive, more is faster. The text is the same
    #[arg(short = 'I', long, value_name = "SECS", default_value = "2.0", value_parser = interval)]
    interval: Duration,

    /// How far the model's text lags its audio, 80 to 2400: more is more accurate [default: the model's, 480]
    #[arg(long, value_name = "MS", value_parser = delay)]
    delay: Option<Delay>,

    /// Show alternatives inline, like [this|that], where 1 - p/p_best is at most this (0 to 1)
    #[arg(long, value_name = "CUTOFF", value_parser = cutoff, conflicts_with = "tokens")]
    alt: Option<f32>,

    /// Which channels to hear: the mix of all, each on its own (split), left or right
    #[arg(long, value_name = "CHANNELS", default_value = "mix", value_enum)]
    channels: Channels,

    /// Don't look again at speech for which the model had no words (files only)
    #[arg(long)]
    no_gap_guard: bool,

    /// Fail where speech has no words even so (exit status 1)
    #[arg(long, conflicts_with_all = ["no_gap_guard", "tokens"])]
    strict: bool,

    /// Print token ids instead of text, special ones included, one line per input
    #[arg(long, conflicts_with_all = ["format", "output"])]
    tokens: bool,

    /// What to write: txt, json, jsonl (live), srt, vtt, tsv, lrc or all; may be repeated [default: txt]
    #[arg(short = 'f', long, value_name = "FORMAT", value_delimiter = ',', value_parser = formats)]
    format: Vec<Formats>,

    /// Where to write: a file, a directory for NAME.FORMAT of every input, or - for stdout [default: -]
    #[arg(short = 'o', long, value_name = "PATH")]
    output: Option<PathBuf>,

    /// Columns in a line of subtitles
    #[arg(long, value_name = "N", default_value = "42", value_parser = clap::value_parser!(u16).range(8..=1000))]
    max_line_width: u16,

    /// Lines of subtitles shown at a time
    #[arg(long, value_name = "N", default_value = "2", value_parser = clap::value_parser!(u8).range(1..=20))]
    max_line_count: u8,

    /// The longest segment [default: 7 in subtitles, 30 elsewhere]
    #[arg(long, value_name = "SECS", value_parser = segment_seconds)]
    max_segment_seconds: Option<Duration>,

    /// Leave out inputs whose outputs exist, whatever they hold; needs -o DIR
    #[arg(long)]
    skip_existing: bool,

    /// Do what is done already once more; needs -o DIR
    #[arg(long, conflicts_with = "skip_existing")]
    redo: bool,

    /// Do the K-th of N equal parts of the inputs, or the one that Slurm's or Kubernetes' environment asks for
    #[arg(long, value_name = "K/N|auto")]
    shard: Option<String>,

    /// Stop at the first input that fails
    #[arg(long)]
    fail_fast: bool,

    /// Where to compute: auto (a GPU if there is one), cpu, cuda, cuda:N for the GPU of that number, or several that share
    /// the inputs: cuda:0,cuda:1 or cuda:all
    #[arg(long, default_value = "auto", value_parser = device)]
    device: Device,

    /// CPU threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// Tokens guessed ahead and checked in one pass: auto, or 0 (none) to 63. The text is the same
    #[arg(long, value_name = "N|auto", env = "VOX_DRAFT", hide_env = true, default_value = "auto", value_parser = draft)]
    draft: Draft,

    /// Inputs worked on at a time, in passes that they share; auto is 128 on Hopper GPUs, 48
    /// on others, 4 on CPUs, fewer where memory is short
    #[arg(long, value_name = "N|auto", default_value = "auto", value_parser = batch)]
    batch: BatchArgument,

    /// Write each transcript as soon as it is done, not in the order of the inputs; the largest go first
    #[arg(long)]
    unordered: bool,

    /// Answer requests on stdin: lines of T, id and path, or P, id and number of bytes of s16le that follow, tabs between
    #[arg(long, conflicts_with_all = ["input", "files", "stdin", "output", "format", "tokens"])]
    worker: bool,

    /// Tell what happens, to stderr
    #[arg(long)]
    debug: bool,

    /// Nothing but errors on stderr
    #[arg(long, conflicts_with = "debug")]
    silent: bool,

    /// Show work as symbols on stderr: ▶ encoder, · decoder pass, ▪ one slower than real time, ↺ fresh start
    #[arg(long)]
    monitor: bool,
}

/// Which channels are transcribed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Channels {
    /// The mean of all.
    Mix,
    /// Each on its own.
    Split,
    Left,
    Right,
}

/// A format as it is named on the command line, where one name may stand for all.
#[derive(Debug, Clone)]
struct Formats(Vec<Format>);

/// What is written, and where.
#[derive(Debug, Clone, PartialEq)]
pub struct Output {
    /// At least one, each once.
    pub formats: Vec<Format>,
    pub target: Target,
    pub layout: Layout,
    /// What txt shows.
    pub style: Style,
}

/// Where transcripts go.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    Stdout,
    File(PathBuf),
    /// A file for each input and format.
    Dir(PathBuf),
}

/// What the command line asks for.
#[derive(Debug)]
pub enum Request {
    Transcribe(Box<Options>),
    ListMicrophones,
    Command(Command),
}

impl Request {
    /// From the process's arguments and environment. Wrong usage ends the process with status 2, `--help` with 0.
    pub fn from_process() -> Self {
        let mut request = Self::parse(std::env::args_os(), |name| std::env::var_os(name)).unwrap_or_else(|e| e.exit());
        if let Self::Transcribe(options) = &mut request {
            let names = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
            options.warnings.extend(names.filter_map(|name| unknown_knob(&name)));
        }
        request
    }

    fn parse(
        arguments: impl IntoIterator<Item = OsString>,
        environment: impl Fn(&str) -> Option<OsString>,
    ) -> Result<Self, clap::Error> {
        let matches = interface().try_get_matches_from(arguments)?;
        if matches.subcommand_name().is_none() {
            if matches.get_flag("list_mics") {
                return Ok(Self::ListMicrophones);
            }
            let options = Options::resolve(Arguments::from_arg_matches(&matches)?, environment)?;
            return Ok(Self::Transcribe(Box::new(options)));
        }
        let mut command = Command::from_arg_matches(&matches)?;
        if let Command::Bench(BenchOptions { device, .. }) | Command::Verify(VerifyOptions { device, .. }) =
            &mut command
        {
            device.cuda = knobs::read(environment).0;
        }
        Ok(Self::Command(command))
    }
}

/// What `--help` puts together; the model comes before all.
const HEADINGS: [(&str, &[&str]); 6] = [
    ("Input", &["input", "list", "recursive", "stdin", "from_mic", "mic", "list_mics", "raw", "channels"]),
    ("Output", &["format", "output", "alt", "tokens", "max_line_width", "max_line_count", "max_segment_seconds"]),
    ("Accuracy", &["delay", "no_gap_guard", "strict"]),
    ("Many inputs", &["skip_existing", "redo", "shard", "fail_fast", "unordered", "worker"]),
    ("Speed", &["device", "interval", "batch", "draft", "threads"]),
    ("Messages", &["monitor", "debug", "silent"]),
];

/// All arguments of the program. A command is one in the first place only.
pub fn interface() -> clap::Command {
    let mut arguments = Arguments::command();
    for (heading, ids) in HEADINGS {
        for id in ids {
            arguments = arguments.mut_arg(id, |argument| argument.help_heading(heading));
        }
    }
    Command::augment_subcommands(arguments)
        .args_conflicts_with_subcommands(true)
        .subcommand_negates_reqs(true)
        .disable_help_subcommand(true)
}

/// What to run on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Device {
    /// The first GPU if it can be used, else the CPU.
    Auto,
    Cpu,
    Cuda(Gpus),
}

/// GPUs that share the inputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Gpus {
    /// At least one number.
    These(Vec<usize>),
    All,
}

/// How much is said on stderr.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verbosity {
    Silent,
    Normal,
    Debug,
}

/// Something to transcribe.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Input {
    File(PathBuf),
    Stdin,
    /// A microphone by a part of its name, or the default one.
    Microphone(Option<String>),
}

impl Input {
    /// Whether it goes on until somebody ends it.
    pub fn is_live(&self) -> bool {
        !matches!(self, Self::File(_))
    }
}

/// What was named as inputs: files may be directories or patterns.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Selection {
    pub named: Vec<Input>,
    /// Files with more names.
    pub lists: Vec<PathBuf>,
    /// Whether directories are looked through to the bottom.
    pub recursive: bool,
    pub shard: Option<Shard>,
}

impl Selection {
    /// Whether it is one input, whatever the file system holds.
    fn is_one(&self) -> bool {
        let is_file = |input: &Input| match input {
            Input::File(path) => !path.is_dir() && (!is_pattern(path) || path.exists()),
            Input::Stdin | Input::Microphone(_) => true,
        };
        self.lists.is_empty() && self.named.len() == 1 && self.named.iter().all(is_file)
    }
}

/// Whether a name stands for all files that match it, unless there is a file with that very name.
pub fn is_pattern(path: &Path) -> bool {
    path.to_str().is_some_and(|text| text.contains(['*', '?', '[']))
}

/// One of `count` equal parts of the inputs; the first is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shard {
    pub index: usize,
    pub count: usize,
}

/// How work on many inputs is done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bulk {
    /// Whether an output that exists is taken for done.
    pub skip_existing: bool,
    /// Whether what is done is done again.
    pub redo: bool,
    /// Whether the first failure ends all.
    pub fail_fast: bool,
}

/// Everything that the user can choose.
#[derive(Debug, Clone)]
pub struct Options {
    pub model: PathBuf,
    pub selection: Selection,
    pub bulk: Bulk,
    pub raw: bool,
    pub channels: Channels,
    /// Whether speech without words is looked at again.
    pub gap_guard: bool,
    /// Whether such speech is an error where that doesn't help.
    pub strict: bool,
    pub session: SessionOptions,
    pub output: Output,
    pub draft: Draft,
    /// Inputs worked on at a time; as many as are good for the device when absent.
    pub batch: Option<usize>,
    pub unordered: bool,
    /// Take requests instead of inputs.
    pub worker: bool,
    pub device: Device,
    pub backend: BackendOptions,
    pub verbosity: Verbosity,
    pub monitor: bool,
    pub print_timings: bool,
    /// What is odd about the environment.
    pub warnings: Vec<String>,
}

impl Options {
    fn resolve(a: Arguments, environment: impl Fn(&str) -> Option<OsString>) -> Result<Self, clap::Error> {
        let file = |path: PathBuf| if path.as_os_str() == "-" { Input::Stdin } else { Input::File(path) };
        let mut inputs: Vec<_> = a.input.into_iter().chain(a.files).map(file).collect();
        if a.stdin {
            inputs.push(Input::Stdin);
        }
        let usage = |text: &str| interface().error(ErrorKind::MissingRequiredArgument, text);
        if a.mic.is_some() && !a.from_mic {
            return Err(usage("--mic needs --from-mic"));
        }
        if a.from_mic {
            inputs.push(Input::Microphone(a.mic));
        }
        if inputs.is_empty() && a.list.is_empty() && !a.worker {
            return Err(usage("nothing to transcribe: name audio files, or use --stdin"));
        }
        let list_on_stdin = a.list.iter().filter(|list| list.as_os_str() == "-").count();
        if inputs.iter().filter(|input| **input == Input::Stdin).count() + list_on_stdin > 1 {
            return Err(usage("stdin can be read only once"));
        }
        if a.channels == Channels::Split && inputs.iter().any(Input::is_live) {
            return Err(usage("what is live can be read only once: --channels split needs files"));
        }
        let shard = a.shard.map(|text| shard(&text, &environment)).transpose().map_err(|text| usage(&text))?;
        let selection = Selection { named: inputs, lists: a.list, recursive: a.recursive, shard };
        if a.channels == Channels::Split && a.tokens {
            return Err(usage("--tokens has one line for an input: --channels split gives several"));
        }
        let (cuda, warnings) = knobs::read(&environment);
        let style = if a.tokens { Style::TokenIds } else { Style::Text };
        let layout = Layout {
            max_line_width: a.max_line_width.into(),
            max_line_count: a.max_line_count.into(),
            max_segment_ms: a.max_segment_seconds.map(|length| length.as_millis() as u64),
        };
        let output = output(&a.format, a.output, selection.is_one(), layout, style).map_err(|text| usage(&text))?;
        if (a.skip_existing || a.redo) && !matches!(output.target, Target::Dir(_)) {
            return Err(usage("--skip-existing and --redo need -o DIR"));
        }
        let probabilities = output.formats.iter().any(|format| format.shows_probabilities());
        Ok(Self {
            model: a.model.unwrap_or_default(), // which is required
            selection,
            bulk: Bulk { skip_existing: a.skip_existing, redo: a.redo, fail_fast: a.fail_fast },
            raw: a.raw,
            channels: a.channels,
            // ids are what the model said
            gap_guard: !a.no_gap_guard && !a.tokens,
            strict: a.strict,
            session: SessionOptions { delay: a.delay, interval: a.interval, alternatives: a.alt, probabilities },
            output,
            draft: a.draft,
            batch: a.batch.0,
            unordered: a.unordered,
            worker: a.worker,
            device: a.device,
            backend: BackendOptions { threads: a.threads.map(usize::from), cuda },
            verbosity: match (a.silent, a.debug) {
                (true, _) => Verbosity::Silent,
                (_, true) => Verbosity::Debug,
                _ => Verbosity::Normal,
            },
            monitor: a.monitor,
            print_timings: environment("VOX_PRINT_TIMINGS").is_some_and(|value| knobs::is_on(&value)),
            warnings,
        })
    }
}

/// What to write for one or more inputs.
fn output(
    formats: &[Formats],
    path: Option<PathBuf>,
    is_one: bool,
    layout: Layout,
    style: Style,
) -> Result<Output, String> {
    let mut formats: Vec<_> = formats.iter().flat_map(|Formats(formats)| formats).copied().collect();
    formats.sort_unstable();
    formats.dedup();
    let target = match path {
        None => Target::Stdout,
        Some(path) if path.as_os_str() == "-" => Target::Stdout,
        Some(path) if path.is_dir() || path.as_os_str().as_encoded_bytes().ends_with(b"/") => Target::Dir(path),
        Some(path) if cfg!(windows) && path.as_os_str().as_encoded_bytes().ends_with(b"\\") => Target::Dir(path),
        Some(path) => {
            // a file says by its name what is in it
            let named = path.extension().and_then(|name| name.to_str()?.to_lowercase().parse().ok());
            match (named, formats.len(), is_one) {
                (Some(format), 0, true) => {
                    formats.push(format);
                    Target::File(path)
                }
                (_, 0 | 1, true) => Target::File(path),
                (None, ..) => Target::Dir(path),
                (Some(_), ..) => {
                    return Err(format!("{} is one file for several transcripts: name a directory", path.display()));
                }
            }
        }
    };
    if formats.is_empty() {
        formats.push(Format::Txt);
    }
    if target == Target::Stdout && formats.len() > 1 {
        return Err("several formats need -o DIR: stdout takes one".into());
    }
    if target == Target::Stdout && !is_one && !matches!(formats[0], Format::Txt | Format::Json | Format::Jsonl) {
        return Err(format!("{} of several inputs needs -o DIR", formats[0].extension()));
    }
    Ok(Output { formats, target, layout, style })
}

/// Knobs that are read here.
const KNOBS: [&str; 3] = ["VOX_MODEL", "VOX_DRAFT", "VOX_PRINT_TIMINGS"];

/// A warning about a variable that looks like a knob but is none.
fn unknown_knob(name: &str) -> Option<String> {
    let known = || KNOBS.into_iter().chain(knobs::names());
    // cargo sets the commit for what it runs
    if !name.starts_with("VOX_") || known().any(|k| k == name) || name.starts_with("VOX_BENCH_") || name == "VOX_COMMIT"
    {
        return None;
    }
    let nearest = known().min_by_key(|k| distance(k, name)).filter(|k| distance(k, name) <= name.len() / 3);
    let hint = nearest.map(|k| format!("; did you mean {k}?")).unwrap_or_default();
    Some(format!("{name} is no knob of this program and has no effect{hint}"))
}

/// Insertions, deletions and replacements that make one of the other.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, x) in a.bytes().enumerate() {
        let mut diagonal = std::mem::replace(&mut row[0], i + 1);
        for (j, y) in b.bytes().enumerate() {
            let replaced = diagonal + usize::from(x != y);
            diagonal = row[j + 1];
            row[j + 1] = replaced.min(diagonal + 1).min(row[j] + 1);
        }
    }
    row[b.len()]
}
