//! Arguments and environment to typed options; no other file reads either.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::error::ErrorKind;
use clap::{Args, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use clap_complete::Shell;
use voxtral::backend::{BackendOptions, CudaOptions, MAX_REWIND};
use voxtral::output::{Format, Layout, Style};
use voxtral::{Delay, Draft, SessionOptions};

use super::knobs;

const AFTER_HELP: &str = "\
Environment:
  VOX_MODEL          Model directory, where -d is not given
  VOX_PRINT_TIMINGS  1: print how long loading, encoder and decoder took, to stderr
  VOX_DRAFT          As --draft, where that is not given
  VOX_CUDA_FAST      0: the plain path on the GPU, without graphs; the text is the same
  VOX_CUDA_GRAPHS    0: no graphs, whatever VOX_CUDA_FAST says; VOX_DISABLE_CUDA_GRAPHS=1 does the same

Exit status: 0 all well, 1 some input failed (the others are done), 2 wrong usage, 130 interrupted.

Examples:
  voxtral -d voxtral-model talk.mp3
  voxtral -d voxtral-model *.wav > all.txt
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

    /// Inputs worked on at a time, in passes that they share; auto is 48 on a GPU, 4 on CPUs, fewer where memory is short
    #[arg(long, value_name = "N|auto", default_value = "auto", value_parser = batch)]
    batch: BatchArgument,

    /// Write each transcript as soon as it is done, not in the order of the inputs
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

// What to do instead of transcribing. As documentation this would take the place of the program's own.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Write the completions of a shell to stdout
    Completions { shell: Shell },
    /// Write the manual page to stdout
    Man,
    /// Show what a model directory holds: dimensions, formats, sizes, expected memory
    Info(InfoOptions),
    /// Measure how fast a model runs on this machine, with what it could do at most
    Bench(BenchOptions),
    /// Check a model directory: shapes, checksums, and a recording transcribed on CPU and GPU
    Verify(VerifyOptions),
}

#[derive(Args, Debug)]
pub struct InfoOptions {
    /// Model directory
    #[arg(short = 'd', long, value_name = "DIR", env = "VOX_MODEL", hide_env = true)]
    pub model: PathBuf,

    /// As JSON
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct BenchOptions {
    /// Model directory
    #[arg(short = 'd', long, value_name = "DIR", env = "VOX_MODEL", hide_env = true)]
    pub model: PathBuf,

    /// Audio to measure with [default: a recording of eight seconds that is built in]
    #[arg(short = 'i', long, value_name = "FILE")]
    pub input: Option<PathBuf>,

    /// Times that it is transcribed, after once to warm up
    #[arg(long, value_name = "N", default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..=1000))]
    pub runs: u16,

    /// As JSON
    #[arg(long)]
    pub json: bool,

    #[command(flatten)]
    pub device: DeviceOptions,
}

#[derive(Args, Debug)]
pub struct VerifyOptions {
    /// Model directory
    #[arg(short = 'd', long, value_name = "DIR", env = "VOX_MODEL", hide_env = true)]
    pub model: PathBuf,

    #[command(flatten)]
    pub device: DeviceOptions,
}

/// What a command computes with.
#[derive(Args, Debug)]
pub struct DeviceOptions {
    /// Where to compute: auto (a GPU if there is one), cpu, cuda, or cuda:N for the GPU of that number
    #[arg(long, default_value = "auto", value_parser = one_device)]
    device: Device,

    /// CPU threads [default: all cores]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    threads: Option<u16>,

    /// What the environment asks for.
    #[arg(skip)]
    cuda: CudaOptions,
}

impl DeviceOptions {
    pub fn device(&self) -> &Device {
        &self.device
    }

    pub fn backend(&self) -> BackendOptions {
        let ordinal = match &self.device {
            Device::Cuda(Gpus::These(ordinals)) => ordinals.first().copied().unwrap_or(0),
            _ => 0,
        };
        let cuda = CudaOptions { ordinal, ..self.cuda.clone() };
        BackendOptions { threads: self.threads.map(usize::from), cuda }
    }
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

/// All arguments of the program. A command is one in the first place only.
pub fn interface() -> clap::Command {
    Command::augment_subcommands(Arguments::command())
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

/// Names of what Slurm sets for a task of an array, and Kubernetes for a pod of an indexed Job. The latter tells no count:
/// its Job has to.
const SLURM: [&str; 4] =
    ["SLURM_ARRAY_TASK_ID", "SLURM_ARRAY_TASK_MIN", "SLURM_ARRAY_TASK_STEP", "SLURM_ARRAY_TASK_COUNT"];
const KUBERNETES: [&str; 2] = ["JOB_COMPLETION_INDEX", "JOB_COMPLETIONS"];

/// `K/N`, which begins with 1, or `auto`.
fn shard(text: &str, environment: impl Fn(&str) -> Option<OsString>) -> Result<Shard, String> {
    let number = |name: &str| match environment(name) {
        None => Ok(None),
        Some(value) => match value.to_str().and_then(|value| value.parse::<usize>().ok()) {
            Some(number) => Ok(Some(number)),
            None => Err(format!("{name} is {}, expected a number", value.display())),
        },
    };
    let shard = if text != "auto" {
        let parts = text.split_once('/').and_then(|(k, n)| Some((k.parse::<usize>().ok()?, n.parse().ok()?)));
        let (k, count) = parts.ok_or("--shard: expected K/N, as in 1/8, or auto")?;
        Shard { index: k.checked_sub(1).ok_or("--shard: parts are counted from 1")?, count }
    } else if let [Some(id), min, step, Some(count)] = slurm(number)? {
        let (min, step) = (min.unwrap_or(0), step.unwrap_or(1).max(1));
        Shard { index: id.checked_sub(min).ok_or("--shard auto: the task is before the array's first")? / step, count }
    } else if let Some(index) = number(KUBERNETES[0])? {
        let count = number(KUBERNETES[1])?;
        Shard { index, count: count.ok_or("--shard auto: JOB_COMPLETIONS has to say how many parts there are")? }
    } else {
        return Err("--shard auto: this is no task of a Slurm array and no pod of an indexed Kubernetes Job".into());
    };
    if shard.index < shard.count {
        Ok(shard)
    } else {
        Err(format!("--shard: there is no part {} of {}", shard.index + 1, shard.count))
    }
}

fn slurm(number: impl Fn(&str) -> Result<Option<usize>, String>) -> Result<[Option<usize>; 4], String> {
    let mut values = [None; 4];
    for (value, name) in values.iter_mut().zip(SLURM) {
        *value = number(name)?;
    }
    Ok(values)
}

fn device(text: &str) -> Result<Device, String> {
    match text {
        "auto" => return Ok(Device::Auto),
        "cpu" => return Ok(Device::Cpu),
        "cuda:all" => return Ok(Device::Cuda(Gpus::All)),
        _ => {}
    }
    let mut ordinals = Vec::new();
    for name in text.split(',') {
        let ordinal = match name {
            "cuda" => Some(0),
            _ => name.strip_prefix("cuda:").and_then(|n| n.parse::<u16>().ok()),
        };
        let ordinal = ordinal.ok_or("expected auto, cpu, cuda, cuda:N, several like cuda:0,cuda:1, or cuda:all")?;
        if ordinals.contains(&ordinal.into()) {
            return Err(format!("{name} is there twice"));
        }
        ordinals.push(ordinal.into());
    }
    Ok(Device::Cuda(Gpus::These(ordinals)))
}

fn one_device(text: &str) -> Result<Device, String> {
    match device(text)? {
        Device::Cuda(Gpus::These(ordinals)) if ordinals.len() > 1 => Err("expected one device".into()),
        Device::Cuda(Gpus::All) => Err("expected one device".into()),
        device => Ok(device),
    }
}

fn number(text: &str) -> Result<f64, String> {
    text.parse().map_err(|_| "not a number".to_owned())
}

fn interval(text: &str) -> Result<Duration, String> {
    let seconds = number(text)?;
    if seconds > 0.0 && seconds <= 60.0 {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("expected a positive number of seconds, at most 60".into())
    }
}

fn delay(text: &str) -> Result<Delay, String> {
    Delay::from_ms(number(text)?).map_err(|_| "expected 80 to 2400".into())
}

fn formats(name: &str) -> Result<Formats, String> {
    if name == "all" { Ok(Formats(Format::ALL.to_vec())) } else { Ok(Formats(vec![name.parse()?])) }
}

fn segment_seconds(text: &str) -> Result<Duration, String> {
    let seconds = number(text)?;
    if (1.0..=3600.0).contains(&seconds) {
        Ok(Duration::from_secs_f64(seconds))
    } else {
        Err("expected 1 to 3600".into())
    }
}

/// How many inputs at a time; as many as are good where nothing is said.
#[derive(Debug, Clone, Copy)]
struct BatchArgument(Option<usize>);

fn batch(text: &str) -> Result<BatchArgument, String> {
    match text {
        "auto" => Ok(BatchArgument(None)),
        _ => match text.parse() {
            Ok(n @ 1..=1024) => Ok(BatchArgument(Some(n))),
            _ => Err("expected auto or 1 to 1024".into()),
        },
    }
}

fn draft(text: &str) -> Result<Draft, String> {
    match text {
        "auto" => Ok(Draft::Auto),
        _ => match text.parse() {
            Ok(n) if n < MAX_REWIND => Ok(Draft::Fixed(n)),
            _ => Err(format!("expected auto or 0 to {}", MAX_REWIND - 1)),
        },
    }
}

fn cutoff(text: &str) -> Result<f32, String> {
    let cutoff = number(text)? as f32;
    if (0.0..=1.0).contains(&cutoff) { Ok(cutoff) } else { Err("expected 0 to 1".into()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str, environment: &[(&str, &str)]) -> Result<Options, clap::Error> {
        let arguments = std::iter::once("voxtral").chain(line.split_whitespace()).map(OsString::from);
        let lookup = |name: &str| environment.iter().find(|(n, _)| *n == name).map(|(_, v)| OsString::from(v));
        match Request::parse(arguments, lookup)? {
            Request::Transcribe(options) => Ok(*options),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn defaults() {
        let o = parse("-d m -i a.wav b.wav", &[]).unwrap();
        assert_eq!(o.selection.named, ["a.wav", "b.wav"].map(|f| Input::File(f.into())));
        assert_eq!((o.session.interval, o.session.delay), (Duration::from_secs(2), None));
        assert_eq!((o.output.style, o.device, o.verbosity), (Style::Text, Device::Auto, Verbosity::Normal));
        assert_eq!((o.output.formats, o.output.target), (vec![Format::Txt], Target::Stdout));
        assert_eq!((o.output.layout, o.session.probabilities), (Layout::default(), false));
        assert!(!o.print_timings && !o.raw && !o.monitor);
    }

    #[test]
    fn values() {
        let o =
            parse("-d m --stdin --raw -I 0.08 --delay 2400 --threads 3 --tokens --device cpu --silent", &[]).unwrap();
        assert_eq!((o.selection.named, o.raw), (vec![Input::Stdin], true));
        assert_eq!((o.session.interval, o.session.delay.unwrap().tokens()), (Duration::from_millis(80), 30));
        assert_eq!((o.backend.threads, o.output.style), (Some(3), Style::TokenIds));
        assert_eq!(parse("-d m -i -", &[]).unwrap().selection.named, [Input::Stdin]);
        let o = parse("-d m --worker --batch 7 --unordered", &[]).unwrap();
        assert_eq!((o.worker, o.batch, o.unordered), (true, Some(7), true));
        assert_eq!(parse("-d m a --batch auto", &[]).unwrap().batch, None);
        assert_eq!(parse("-d m a --draft 63", &[]).unwrap().draft, Draft::Fixed(63));
        assert_eq!(parse("-d m a --draft auto", &[]).unwrap().draft, parse("-d m a", &[]).unwrap().draft);
        assert_eq!(parse("-d m a --alt 0.5", &[]).unwrap().session.alternatives, Some(0.5));
    }

    #[test]
    fn channels_and_the_guard() {
        let o = parse("-d m a", &[]).unwrap();
        assert_eq!((o.channels, o.gap_guard, o.strict), (Channels::Mix, true, false));
        let o = parse("-d m a --channels split --strict", &[]).unwrap();
        assert_eq!((o.channels, o.gap_guard, o.strict), (Channels::Split, true, true));
        assert!(!parse("-d m a --no-gap-guard", &[]).unwrap().gap_guard);
        assert!(!parse("-d m a --tokens", &[]).unwrap().gap_guard);
        assert_eq!(parse("-d m - --channels right", &[]).unwrap().channels, Channels::Right);
    }

    #[test]
    fn formats_and_where_they_go() {
        let output = |line: &str| parse(&format!("-d m {line}"), &[]).map(|o| (o.output.formats, o.output.target));
        let file = |path: &str| Target::File(path.into());
        let dir = |path: &str| Target::Dir(path.into());
        use Format::{Json, Srt, Txt, Vtt};
        assert_eq!(output("a -f srt").unwrap(), (vec![Srt], Target::Stdout));
        assert_eq!(output("a -f json -o -").unwrap(), (vec![Json], Target::Stdout));
        assert_eq!(output("a -o b.SRT").unwrap(), (vec![Srt], file("b.SRT")));
        assert_eq!(output("a -o b.srt -f vtt").unwrap(), (vec![Vtt], file("b.srt")));
        assert_eq!(output("a -o b").unwrap(), (vec![Txt], file("b")));
        assert_eq!(output("a -o b/").unwrap(), (vec![Txt], dir("b/")));
        assert_eq!(output("a -o src").unwrap(), (vec![Txt], dir("src")));
        assert_eq!(output("a b -o c").unwrap(), (vec![Txt], dir("c")));
        assert_eq!(output("a -o c -f vtt,srt -f vtt").unwrap(), (vec![Srt, Vtt], dir("c")));
        assert_eq!(output("a -o c -f all").unwrap().0, Format::ALL);
        assert!(parse("-d m a -f json", &[]).unwrap().session.probabilities);
        let o = parse("-d m a --max-line-width 30 --max-line-count 1 --max-segment-seconds 2.5", &[]).unwrap();
        let expected = Layout { max_line_width: 30, max_line_count: 1, max_segment_ms: Some(2500) };
        assert_eq!(o.output.layout, expected);
    }

    #[test]
    fn knobs_are_off_when_empty_or_zero() {
        let timings = |value| parse("-d m a", &[("VOX_PRINT_TIMINGS", value)]).unwrap().print_timings;
        assert_eq!(["1", "yes", "0", "", "00"].map(timings), [true, true, false, false, false]);
    }

    #[test]
    fn devices() {
        let gpus = |ordinals: &[usize]| Some(Device::Cuda(Gpus::These(ordinals.to_vec())));
        let device = |name: &str| Some(parse(&format!("-d m a --device {name}"), &[]).ok()?.device);
        assert_eq!(device("auto"), Some(Device::Auto));
        assert_eq!(device("cuda"), gpus(&[0]));
        assert_eq!(device("cuda:3"), gpus(&[3]));
        assert_eq!(device("cuda:1,cuda:0"), gpus(&[1, 0]));
        assert_eq!(device("cuda:all"), Some(Device::Cuda(Gpus::All)));
        let wrong = ["cuda:", "cuda:-1", "cuda:x", "gpu", "cuda:0,", "cpu,cuda", "cuda:0,cuda", "cuda:all,cuda:1"];
        assert_eq!(wrong.map(device), [const { None }; 8]);
        let one = |name: &str| one_device(name).ok();
        assert_eq!([one("cuda:2"), one("cuda:0,cuda:1"), one("cuda:all")], [gpus(&[2]), None, None]);
    }

    #[test]
    fn odd_knobs_are_warned_about() {
        assert_eq!(unknown_knob("VOX_CUDA_GRAPHS"), None);
        assert_eq!(unknown_knob("PATH"), None);
        assert!(unknown_knob("VOX_CUDA_GRAPH").unwrap().contains("did you mean VOX_CUDA_GRAPHS?"));
        assert!(!unknown_knob("VOX_ZZZZZZZZZZZZZZ").unwrap().contains("did you mean"));
        let warnings = |value| parse("-d m a", &[("VOX_CUDA_PREFETCH", value)]).unwrap().warnings;
        assert!(warnings("1").is_empty() && warnings("0").len() == 1);
    }

    #[test]
    fn inputs_and_how_many_are_worked_on() {
        let o = parse("-d m a --list b --list - -r --shard 2/3 --fail-fast -o c/ --skip-existing", &[]).unwrap();
        let expected = Selection {
            named: vec![Input::File("a".into())],
            lists: vec!["b".into(), "-".into()],
            recursive: true,
            shard: Some(Shard { index: 1, count: 3 }),
        };
        assert_eq!(o.selection, expected);
        assert_eq!(o.bulk, Bulk { skip_existing: true, redo: false, fail_fast: true });
        assert!(parse("-d m a -o c/ --redo", &[]).unwrap().bulk.redo);
        let mic = |line: &str| parse(line, &[]).unwrap().selection.named;
        assert_eq!(mic("-d m --from-mic"), [Input::Microphone(None)]);
        assert_eq!(mic("-d m --from-mic --mic usb"), [Input::Microphone(Some("usb".into()))]);
        let request = Request::parse(["voxtral", "--list-mics"].map(OsString::from), |_| None).unwrap();
        assert!(matches!(request, Request::ListMicrophones));
    }

    #[test]
    fn shards_may_come_from_a_cluster() {
        let shard = |environment: &[_]| parse("-d m a --shard auto", environment).map(|o| o.selection.shard.unwrap());
        let slurm = |id, min, step, count| {
            let [a, b, c, d] = SLURM;
            shard(&[(a, id), (b, min), (c, step), (d, count)]).ok().map(|shard| (shard.index, shard.count))
        };
        assert_eq!(slurm("0", "0", "1", "4"), Some((0, 4)));
        assert_eq!(slurm("4", "1", "1", "4"), Some((3, 4)));
        assert_eq!(slurm("10", "2", "4", "3"), Some((2, 3)));
        assert_eq!([slurm("5", "1", "1", "4"), slurm("0", "1", "1", "4"), slurm("x", "0", "1", "4")], [None; 3]);
        assert_eq!(shard(&[(SLURM[0], "2"), (SLURM[3], "4")]).unwrap(), Shard { index: 2, count: 4 });
        let [index, count] = KUBERNETES;
        assert_eq!(shard(&[(index, "2"), (count, "3")]).unwrap(), Shard { index: 2, count: 3 });
        assert!(shard(&[(index, "2")]).unwrap_err().to_string().contains("JOB_COMPLETIONS"));
        assert!(shard(&[(index, "3"), (count, "3")]).is_err());
    }

    #[test]
    fn commands_are_the_first_argument() {
        let request = |line: &str| {
            let arguments = std::iter::once("voxtral").chain(line.split_whitespace()).map(OsString::from);
            Request::parse(arguments, |_| None).unwrap()
        };
        assert!(matches!(request("man"), Request::Command(Command::Man)));
        assert!(matches!(request("info -d m"), Request::Command(Command::Info(_))));
        let Request::Command(Command::Bench(bench)) = request("bench -d m --runs 2 --device cuda:1 --threads 3") else {
            panic!("bench");
        };
        assert_eq!((bench.runs, bench.device.backend().cuda.ordinal), (2, 1));
        assert_eq!(bench.device.backend().threads, Some(3));
        for line in ["-d m info", "-d m -i info", "-i info -d m"] {
            assert_eq!(parse(line, &[]).unwrap().selection.named, [Input::File("info".into())]);
        }
        assert_eq!(parse("-d m a man", &[]).unwrap().selection.named.len(), 2);
    }

    #[test]
    fn wrong_usage_is_refused() {
        for line in [
            "-d m",
            "-d m a --stdin",
            "-d m - -",
            "-d m a -I 0",
            "-d m a -I nan",
            "-d m a -I 61",
            "-d m a --delay 79",
            "-d m a --delay 2401",
            "-d m a --alt 1.1",
            "-d m a --alt 0.5 --tokens",
            "-d m a --threads 0",
            "-d m a -f mp3",
            "-d m a --channels both",
            "-d m --stdin --channels split",
            "-d m a --tokens --channels split",
            "-d m a --strict --no-gap-guard",
            "-d m a -f txt,json",
            "-d m a -f all",
            "-d m a b -f srt",
            "-d m a b -o c.srt",
            "-d m a -o c.srt -f srt,vtt",
            "-d m a --tokens -f json",
            "-d m a --tokens -o b",
            "-d m a --max-line-width 7",
            "-d m a --max-line-count 0",
            "-d m a --max-segment-seconds 0.5",
            "-d m a --max-segment-seconds inf",
            "-d m a --draft 64",
            "-d m a --batch 0",
            "-d m a --worker",
            "-d m a --draft -1",
            "-d m a --draft some",
            "-d m a --device tpu",
            "-d m a --nonsense",
            "-d m a --skip-existing",
            "-d m a --redo -o b.txt",
            "-d m a --redo --skip-existing -o b/",
            "-d m a --shard 0/2",
            "-d m a --shard 3/2",
            "-d m a --shard 1/0",
            "-d m a --shard 1",
            "-d m a --shard -1/2",
            "-d m a --shard auto",
            "-d m --stdin --list a",
            "-d m - --list -",
            "-d m --list - --list -",
            "-d m src -f srt",
            "-d m src -o c.srt",
            "-d m --list a -f srt",
            "-d m *.wav -f srt",
            "-d m --from-mic a",
            "-d m --from-mic --stdin",
            "-d m --from-mic --raw",
            "-d m --from-mic --channels split",
            "-d m a --mic x",
            "-d m --list-mics",
            "a.wav",
            "info",
            "info -d m a.wav",
            "bench -d m --runs 0",
            "completions",
            "completions tcsh",
            "-d m a --silent --debug",
        ] {
            assert_eq!(parse(line, &[]).unwrap_err().exit_code(), 2, "{line}");
        }
    }

    #[test]
    fn the_readme_knows_every_option_and_knob() {
        let readme = include_str!("../../README.md");
        let interface = interface();
        let commands = || interface.get_subcommands();
        for command in commands() {
            assert!(
                readme.contains(&format!("`voxtral {}", command.get_name())),
                "{} is not in the README",
                command.get_name()
            );
        }
        for argument in interface.get_arguments().chain(commands().flat_map(|command| command.get_arguments())) {
            if let Some(long) = argument.get_long() {
                assert!(readme.contains(&format!("--{long}")), "--{long} is not in the README");
            }
        }
        for source in [include_str!("options.rs"), include_str!("knobs.rs")] {
            let source = source.split("#[cfg(test)]").next().unwrap();
            for (i, _) in source.match_indices("\"VOX_") {
                let name = source[i + 1..].split('"').next().unwrap();
                let known = readme.contains(&format!("`{name}`"));
                assert!(known || ["VOX_", "VOX_COMMIT", "VOX_BENCH_"].contains(&name), "{name} is not in the README");
            }
        }
    }

    #[test]
    fn the_environment_is_read_here_only() {
        let mut rest = vec![PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
        while let Some(path) = rest.pop() {
            if path.is_dir() {
                rest.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            } else if !path.ends_with("cli/options.rs") {
                let text = std::fs::read_to_string(&path).unwrap();
                assert!(!text.contains("env::var"), "{} reads the environment", path.display());
            }
        }
    }
}
