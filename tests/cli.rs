//! The real program: text, ids, pipes, several inputs, interrupts, exit codes.

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};

use support::{project, tiny_model};

const KAL: &str = "The computer was too slow, so we bought a new one last week.\n";
const SLT: &str =
    "The train to Boston leaves at seven thirty in the evening. The ticket costs forty two dollars and fifty sense.\n";

fn voxtral() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_voxtral"));
    command.env_remove("VOX_MODEL").env_remove("VOX_PRINT_TIMINGS").arg("-d").arg(tiny_model());
    command
}

fn sample(name: &str) -> PathBuf {
    project(&format!("samples/{name}.wav"))
}

fn output(command: &mut Command) -> (i32, String, String) {
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().expect("no signal"), text(stdout), text(stderr))
}

/// Runs with these bytes on stdin.
fn piped(command: &mut Command, input: Vec<u8>) -> (i32, String, String) {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    // the program may stop reading early
    let writer = std::thread::spawn(move || drop(stdin.write_all(&input)));
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    writer.join().unwrap();
    (status.code().expect("no signal"), String::from_utf8(stdout).unwrap(), String::from_utf8(stderr).unwrap())
}

/// A recording without its 44-byte header.
fn raw(name: &str) -> Vec<u8> {
    std::fs::read(sample(name)).unwrap().split_off(44)
}

#[test]
fn a_file_gives_its_text_and_nothing_else() {
    let (code, stdout, stderr) = output(voxtral().arg("-i").arg(sample("kal_computer")));
    assert_eq!((code, stdout.as_str(), stderr.as_str()), (0, KAL, ""));
}

#[test]
fn the_model_may_come_from_the_environment() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_voxtral"));
    let (code, stdout, _) = output(command.env("VOX_MODEL", tiny_model()).arg(sample("kal_computer")));
    assert_eq!((code, stdout.as_str()), (0, KAL));
}

#[test]
fn stdin_may_be_a_file_of_any_format_or_raw_samples() {
    for arguments in [vec!["--stdin"], vec!["-i", "-"], vec!["-"], vec!["--stdin", "-I", "0.1"]] {
        for input in [std::fs::read(sample("slt_numbers")).unwrap(), raw("slt_numbers")] {
            let (code, stdout, _) = piped(voxtral().args(&arguments), input);
            assert_eq!((code, stdout.as_str()), (0, SLT), "{arguments:?}");
        }
    }
    // a header taken for samples is a click before the speech
    let (code, stdout, _) = piped(voxtral().args(["--stdin", "--raw"]), std::fs::read(sample("slt_numbers")).unwrap());
    assert_eq!(code, 0);
    assert!(stdout.contains("leaves at seven thirty"), "{stdout}");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(&file, raw("slt_numbers")).unwrap();
    assert_eq!(output(voxtral().arg("--raw").arg(file.path())).1, SLT);
}

#[test]
fn several_inputs_give_a_line_each_and_one_bad_one_stops_none() {
    let (code, stdout, stderr) = output(voxtral().args([
        sample("kal_computer"),
        "nothing.wav".into(),
        project("Cargo.toml"),
        sample("slt_numbers"),
    ]));
    assert_eq!((code, stdout), (1, format!("{KAL}{SLT}")));
    let headers: Vec<_> = stderr.lines().filter(|line| line.ends_with(':')).collect();
    assert_eq!(headers.len(), 4, "{stderr}");
    assert!(headers[0].ends_with("kal_computer.wav:") && headers[3].ends_with("slt_numbers.wav:"), "{stderr}");
    assert!(stderr.contains("voxtral: nothing.wav: No such file"), "{stderr}");
    assert!(stderr.contains("Cargo.toml: not a known audio format"), "{stderr}");
    let (code, stdout, stderr) =
        output(voxtral().arg("--silent").args([sample("kal_computer"), sample("slt_numbers")]));
    assert_eq!((code, stdout, stderr), (0, format!("{KAL}{SLT}"), String::new()));
}

#[test]
fn token_ids_do_not_depend_on_interval_and_threads() {
    let run = |arguments: &[&str]| {
        let (code, stdout, _) = output(voxtral().arg("--tokens").args(arguments).arg(sample("slt_numbers")));
        assert_eq!(code, 0);
        stdout
    };
    let expected = run(&[]);
    let ids: Vec<u32> = expected.trim_end().split(' ').map(|id| id.parse().unwrap()).collect();
    assert_eq!((ids.len(), ids.last()), (117, Some(&2)));
    for arguments in [["-I", "0.08"], ["-I", "10"], ["--threads", "1"], ["--threads", "4"], ["--device", "cpu"]] {
        assert_eq!(run(&arguments), expected, "{arguments:?}");
    }
    let (_, both, _) = output(voxtral().arg("--tokens").args([sample("slt_numbers"), sample("slt_numbers")]));
    assert_eq!(both, format!("{expected}{expected}"));
    assert_ne!(run(&["--delay", "80"]), expected);
    // an input that fails has a line too
    let (code, lines, _) = output(voxtral().arg("--tokens").args(["nothing.wav".into(), sample("slt_numbers")]));
    assert_eq!((code, lines), (1, format!("\n{expected}")));
}

#[test]
fn alternatives_are_shown_in_brackets() {
    let run = |cutoff| output(voxtral().args(["--alt", cutoff]).arg(sample("hibari_intro"))).1;
    let all = run("1");
    assert!(all.contains('|') && all.starts_with("[Hello|"), "{all}");
    // taking the first of each bracket gives the plain text
    let mut plain = String::new();
    for part in all.split('[') {
        let (inside, after) = part.split_once(']').unwrap_or(("", part));
        plain += inside.split('|').next().unwrap();
        plain += after;
    }
    assert_eq!(plain, output(voxtral().arg(sample("hibari_intro"))).1);
    assert!(!run("0").contains('['));
}

#[test]
fn timings_are_the_lines_that_scripts_parse() {
    let (_, stdout, stderr) =
        output(voxtral().env("VOX_PRINT_TIMINGS", "1").arg("--silent").arg(sample("kal_computer")));
    assert_eq!(stdout, KAL);
    let shape: Vec<String> = stderr.lines().map(digits_as_n).collect();
    assert_eq!(
        shape,
        [
            "Model load: N ms",
            "Encoder: N mel -> N tokens (N ms)",
            "Decoder: N text tokens (N steps) in N ms (prefill N ms + N ms/step)",
            "Wall transcribe: N ms",
            "Speed: N xRT, N passes, N tokens/pass, N of N drafts right, N GB/s of weights",
            "Time: mel N %, encoder N %, decoder N %, the rest and waiting N %",
            "Batch: N at a time, N MB of memory at most",
        ]
    );
    // the recording ends in silence: after the EOS at frame 88 there is a fresh start on the rest
    assert!(stderr.contains(" (115 steps) in "), "{stderr}");
    let (_, _, stderr) = output(voxtral().env("VOX_PRINT_TIMINGS", "0").arg(sample("kal_computer")));
    assert_eq!(stderr, "");
}

/// The line with every number replaced by `N`.
fn digits_as_n(line: &str) -> String {
    let mut out = String::new();
    for c in line.chars() {
        match c {
            '0'..='9' | '.' if out.ends_with('N') => {}
            '0'..='9' => out.push('N'),
            c => out.push(c),
        }
    }
    out
}

#[test]
fn monitor_and_debug_write_to_stderr() {
    let (code, stdout, stderr) = output(voxtral().arg("--monitor").arg(sample("kal_computer")));
    assert_eq!((code, stdout.as_str()), (0, KAL));
    assert!(stderr.contains('▶') && stderr.contains('·'), "{stderr}");
    let (code, stdout, stderr) = output(voxtral().arg("--debug").arg(sample("kal_computer")));
    assert_eq!((code, stdout.as_str()), (0, KAL));
    assert!(stderr.contains("model loaded") && stderr.contains("WAV"), "{stderr}");
    // each stage says how long it took
    for stage in
        ["load: voxtral::cli: model loaded load=", "input{name=", "stats.prefill=", "stats.encoder=", "stats.decoder="]
    {
        assert!(stderr.contains(stage), "{stage}: {stderr}");
    }
}

#[test]
fn a_reader_that_leaves_is_no_error() {
    let mut child = voxtral().arg(sample("long_mixed")).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut five = [0; 5];
    child.stdout.take().unwrap().read_exact(&mut five).unwrap(); // and the pipe closes
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    assert_eq!((status.code(), String::from_utf8(stderr).unwrap().as_str()), (Some(0), ""));
}

#[test]
fn wrong_usage_is_2_and_help_is_0() {
    assert_eq!(output(&mut voxtral()).0, 2);
    assert_eq!(output(voxtral().args(["--stdin", "-i", "a.wav"])).0, 2);
    assert_eq!(output(voxtral().args(["-I", "-1", "a.wav"])).0, 2);
    let (code, stdout, _) = output(Command::new(env!("CARGO_BIN_EXE_voxtral")).env_remove("VOX_MODEL").arg("a.wav"));
    assert_eq!((code, stdout.as_str()), (2, ""));
    for flag in ["-h", "--help"] {
        let (code, stdout, _) = output(voxtral().arg(flag));
        assert_eq!(code, 0);
        for option in
            ["--model", "--input", "--stdin", "--raw", "--interval", "--delay", "--alt", "--tokens", "--device"]
        {
            assert!(stdout.contains(option), "{flag} lacks {option}");
        }
    }
    let (code, stdout, _) = output(voxtral().arg("-V"));
    assert!(code == 0 && stdout.starts_with(concat!("voxtral ", env!("CARGO_PKG_VERSION"))), "{stdout}");
}

/// A program that reads raw samples from a pipe which stays open.
fn live(arguments: &[&str]) -> Child {
    let mut command = voxtral();
    command.args(["--stdin", "--raw", "-I", "0.2"]).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
}

#[test]
fn text_comes_while_the_audio_does() {
    let mut child = live(&[]);
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let samples = raw("slt_numbers");
    let (first, rest) = samples.split_at(2 * 16_000 * 5);
    stdin.write_all(first).unwrap();
    let mut sentence = Vec::new();
    stdout.read_until(b'.', &mut sentence).unwrap(); // would wait for ever if nothing came before the end
    assert_eq!(String::from_utf8(sentence).unwrap(), SLT[..58]);
    stdin.write_all(rest).unwrap();
    drop(stdin);
    let mut text = String::new();
    stdout.read_to_string(&mut text).unwrap();
    assert_eq!(text, SLT[58..]);
    assert!(child.wait().unwrap().success());
}

#[cfg(unix)]
fn interrupt(child: &Child) {
    assert!(Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap().success());
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_a_live_stream_with_all_that_was_heard() {
    let mut child = live(&[]);
    let mut stdin = child.stdin.take().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    // up to some words into the second sentence
    stdin.write_all(&raw("slt_numbers")[..2 * 16_000 * 6]).unwrap();
    let mut text = Vec::new();
    stdout.read_until(b'.', &mut text).unwrap();
    interrupt(&child);
    interrupt(&child); // as when a shell signals the process and its group
    stdout.read_to_end(&mut text).unwrap();
    let text = String::from_utf8(text).unwrap();
    assert!(text.ends_with('\n') && text.len() > 60, "{text}");
    assert_eq!(child.wait().unwrap().code(), Some(0));
    drop(stdin);
}

#[cfg(unix)]
#[test]
fn an_interrupt_leaves_files_undone_and_says_so_by_its_status() {
    let mut command = voxtral();
    command.args(vec![sample("long_mixed"); 50]);
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut text = Vec::new();
    stdout.read_until(b'.', &mut text).unwrap();
    interrupt(&child);
    stdout.read_to_end(&mut text).unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(130));
    assert!(text.ends_with(b"\n") && text.len() < 20_000, "{} bytes", text.len());
}

#[cfg(all(target_os = "linux", not(feature = "mic")))]
#[test]
fn a_program_without_microphones_says_what_to_do() {
    for arguments in [["--from-mic", "--silent"].as_slice(), &["--from-mic", "--mic", "usb", "--silent"]] {
        let (code, stdout, stderr) = output(voxtral().args(arguments));
        assert_eq!((code, stdout.as_str()), (1, ""));
        assert!(stderr.contains("--features mic") && stderr.contains("arecord"), "{stderr}");
    }
    let mut command = Command::new(env!("CARGO_BIN_EXE_voxtral"));
    let (code, _, stderr) = output(command.arg("--list-mics"));
    assert!(code == 1 && stderr.contains("--features mic"), "{stderr}");
}
