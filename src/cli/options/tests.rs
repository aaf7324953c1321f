//! Command lines and environments, and that all options are known to README, help and tests.

use super::values::{KUBERNETES, SLURM, one_device};
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
    let o = parse("-d m --stdin --raw -I 0.08 --delay 2400 --threads 3 --tokens --device cpu --silent", &[]).unwrap();
    assert_eq!((o.selection.named, o.raw), (vec![Input::Stdin], true));
    assert_eq!((o.session.interval, o.session.delay.unwrap().tokens()), (Duration::from_millis(80), 30));
    assert_eq!((o.backend.threads, o.output.style), (Some(3), Style::TokenIds));
    assert_eq!(parse("-d m -i -", &[]).unwrap().selection.named, [Input::Stdin]);
    let o = parse("-d m --worker --batch 7 --unordered", &[]).unwrap();
    assert_eq!((o.worker, o.batch, o.unordered), (true, Some(7), true));
    assert_eq!(parse("-d m a --batch auto", &[]).unwrap().batch, None);
    assert_eq!(parse("-d m a --draft 127", &[]).unwrap().draft, Draft::Fixed(127));
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
        "-d m a --draft 128",
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
    let readme = include_str!("../../../README.md");
    let interface = interface();
    let commands = || interface.get_subcommands();
    for command in commands() {
        assert!(
            readme.contains(&format!("`voxtral {}", command.get_name())),
            "{} is not in the README",
            command.get_name()
        );
    }
    let arguments = || interface.get_arguments().chain(commands().flat_map(|command| command.get_arguments()));
    // names in the first columns of the tables of options and commands; the latter have theirs in the second too
    let rows = readme.lines().filter(|line| line.starts_with("| `-") || line.starts_with("| `voxtral "));
    let in_tables: Vec<&str> = rows
        .flat_map(|row| if row.starts_with("| `-") { row.split(" | ").next().unwrap() } else { row }.split('`'))
        .filter(|code| code.starts_with('-'))
        .map(|code| code.split(' ').next().unwrap())
        .collect();
    for argument in arguments() {
        let [long, short] =
            [argument.get_long().map(|name| format!("--{name}")), argument.get_short().map(|c| format!("-{c}"))];
        for name in long.into_iter().chain(short) {
            assert!(in_tables.contains(&name.as_str()), "{name} is not in the README's tables");
        }
    }
    let given = ["help", "version"];
    for name in in_tables.iter().filter_map(|name| name.strip_prefix("--")) {
        let is_known = arguments().any(|argument| argument.get_long() == Some(name)) || given.contains(&name);
        assert!(is_known, "there is no --{name}, which the README has");
    }
    let sources = [include_str!("mod.rs"), include_str!("commands.rs"), include_str!("values.rs")];
    for source in [sources.as_slice(), &[include_str!("../knobs.rs")]].concat() {
        let source = source.split("#[cfg(test)]\nmod tests {").next().unwrap();
        for (i, _) in source.match_indices("\"VOX_") {
            let name = source[i + 1..].split('"').next().unwrap();
            let known = readme.contains(&format!("`{name}`"));
            assert!(known || ["VOX_", "VOX_COMMIT", "VOX_BENCH_"].contains(&name), "{name} is not in the README");
        }
    }
}

#[test]
fn every_option_is_tested_through_the_program() {
    let dir = concat!(env!("CARGO_MANIFEST_DIR"), "/tests");
    let files = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let tests: String = files.filter_map(|path| std::fs::read_to_string(path).ok()).collect();
    let interface = interface();
    for argument in interface.get_arguments().chain(interface.get_subcommands().flat_map(|c| c.get_arguments())) {
        let long = argument.get_long().map(|name| format!("\"--{name}\""));
        let short = argument.get_short().map(|name| format!("\"-{name}\""));
        let names: Vec<_> = long.into_iter().chain(short).collect();
        assert!(names.is_empty() || names.iter().any(|name| tests.contains(name)), "no test uses {names:?}");
    }
    for command in interface.get_subcommands() {
        assert!(tests.contains(&format!("\"{}\"", command.get_name())), "no test runs {}", command.get_name());
    }
}

#[test]
fn every_option_has_its_heading() {
    let ids: Vec<_> = HEADINGS.iter().flat_map(|(_, ids)| ids.iter()).collect();
    for argument in interface().get_arguments() {
        let n = ids.iter().filter(|id| argument.get_id() == **id).count();
        assert_eq!(n, usize::from(!["model", "files"].contains(&argument.get_id().as_str())), "{}", argument.get_id());
    }
}

#[test]
fn the_environment_is_read_here_only() {
    let mut rest = vec![PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/src"))];
    while let Some(path) = rest.pop() {
        if path.is_dir() {
            rest.extend(std::fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        } else if !["mod.rs", "tests.rs"].iter().any(|name| path.ends_with(Path::new("cli/options").join(name))) {
            let text = std::fs::read_to_string(&path).unwrap();
            assert!(!text.contains("env::var"), "{} reads the environment", path.display());
        }
    }
}
