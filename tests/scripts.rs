//! The scripts that users run after building.
#![cfg(unix)]

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Output};

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const PROGRAM: &str = env!("CARGO_BIN_EXE_voxtral");

fn runtest(program: &Path) -> Output {
    Command::new("bash")
        .arg(Path::new(ROOT).join("scripts/runtest.sh"))
        .args(["samples/tiny-model", "samples/hibari_intro.wav"].map(|path| Path::new(ROOT).join(path)))
        .env("VOXTRAL", program)
        .env("VOXTRAL_OPTIONS", "--device cpu")
        .output()
        .unwrap()
}

#[test]
fn runtest_is_content_with_this_program() {
    let output = runtest(Path::new(PROGRAM));
    let text = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success() && text.ends_with("all well\n"), "{text}");
    assert_eq!(text.matches("ok ").count(), 6, "{text}");
}

#[test]
fn runtest_notices_text_that_depends_on_the_interval() {
    let dir = tempfile::tempdir().unwrap();
    let wrapper = dir.path().join("voxtral");
    let script = format!("#!/bin/sh\n'{PROGRAM}' \"$@\" || exit\ncase \"$*\" in *0.08*) echo more ;; esac\n");
    fs::write(&wrapper, script).unwrap();
    fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755)).unwrap();
    let output = runtest(&wrapper);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("FAIL  hibari_intro.wav: -I 0.08") && text.contains("1 failed"), "{text}");
}

/// Word error rates of the recordings in a folder; the exit code, stdout and stderr.
fn eval_wer(data: &Path, arguments: &[&str], options: &[&str]) -> (i32, String, String) {
    let mut command = Command::new("python3");
    command.arg(Path::new(ROOT).join("scripts/eval_wer.py")).arg(data).args(["--program", PROGRAM]);
    command.arg("-d").arg(Path::new(ROOT).join("samples/tiny-model"));
    command.args(arguments).args(["--", "--device", "cpu", "--silent"]).args(options);
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

/// Puts recordings there, under other names.
fn copy(to: &Path, recordings: &[(&str, &str)]) {
    fs::create_dir_all(to).unwrap();
    for (sample, name) in recordings {
        fs::copy(Path::new(ROOT).join("samples").join(sample), to.join(name)).unwrap();
    }
}

const KAL: &str = "THE COMPUTER WAS TOO SLOW SO WE BOUGHT A NEW ONE LAST WEEK";

#[test]
fn word_error_rates_of_librispeech_and_fleurs() {
    let dir = tempfile::tempdir().unwrap();
    let chapter = dir.path().join("test-clean/12/34");
    copy(&chapter, &[("kal_computer.wav", "12-34-0000.flac"), ("slt_numbers.wav", "12-34-0001.flac")]);
    let wrong = "THE TRAIN FROM BOSTON LEAVES AT SEVEN THIRTY IN THE EVENING EVENING THE TICKET COSTS";
    fs::write(chapter.join("12-34.trans.txt"), format!("12-34-0000 {KAL}\n12-34-0001 {wrong}\n")).unwrap();
    let json = dir.path().join("figures.json");
    let arguments = ["--normaliser", "plain", "--json", json.to_str().unwrap()];
    let (code, stdout, stderr) = eval_wer(&dir.path().join("test-clean"), &arguments, &["--batch", "1"]);
    assert_eq!(code, 0, "{stderr}");
    assert!(stdout.contains("of 28 words in 2 recordings"), "{stdout}");
    let figures: serde_json::Value = serde_json::from_str(&fs::read_to_string(&json).unwrap()).unwrap();
    // FROM for to, EVENING twice, and the six words that the recording ends with
    let expected = serde_json::json!({"substitutions": 1, "deletions": 1, "insertions": 6, "n_words": 15});
    assert_eq!(figures["total"]["n_words"], 28);
    let second = figures["recordings"][1].as_object().unwrap();
    assert!(expected.as_object().unwrap().iter().all(|(name, n)| second[name] == *n), "{second:?}");

    let language = dir.path().join("data/en_us");
    copy(&language.join("audio/dev"), &[("kal_computer.wav", "1.wav")]);
    fs::write(language.join("dev.tsv"), format!("1\t1.wav\t{KAL}\tx\ty\t100\tMALE\n")).unwrap();
    let (code, stdout, _) = eval_wer(&language, &["--normaliser", "plain", "--split", "dev"], &[]);
    assert!(code == 0 && stdout.contains("0.00 % of 13 words in 1 recordings"), "{stdout}");
}

#[test]
fn word_error_rates_of_a_folder_name_what_failed() {
    let dir = tempfile::tempdir().unwrap();
    let (folder, below) = (dir.path(), dir.path().join("below"));
    copy(folder, &[("kal_computer.wav", "a.wav"), ("kal_computer.txt", "a.txt"), ("hibari_intro.wav", "no words.wav")]);
    copy(&below, &[("kal_computer.wav", "a.wav")]);
    fs::write(below.join("a.txt"), "The commuter was slow").unwrap();
    let run = |more: &[&str]| eval_wer(folder, &[&["--normaliser", "plain"], more].concat(), &[]);
    let (code, stdout, _) = run(&[]);
    assert!(code == 0 && stdout.contains("in 2 recordings"), "{stdout}");
    assert_eq!(run(&["--max-wer", "90"]).0, 0);
    assert_eq!(run(&["--max-wer", "10"]).0, 1);
    assert!(run(&["--limit", "1"]).1.contains("0.00 % of 13 words in 1 recordings"));
    // an end that is missing
    let samples = fs::read(folder.join("a.wav")).unwrap();
    fs::write(folder.join("b.wav"), &samples[..40_000]).unwrap();
    fs::write(folder.join("b.txt"), "The computer was too slow").unwrap();
    let (code, stdout, stderr) = run(&[]);
    assert!(code == 1 && stdout.contains("in 2 recordings"), "{stdout}");
    assert!(stderr.lines().any(|line| line.starts_with("failed: ") && line.ends_with("b.wav")), "{stderr}");

    // Whisper's normaliser is a package that may be missing
    let (code, stdout, stderr) = eval_wer(folder, &["--limit", "1"], &[]);
    assert!(code == 0 && stdout.contains("0.00 %") || stderr.contains("pip install whisper-normalizer"), "{stderr}");
}

#[test]
fn live_latency_counts_the_end_from_the_end() {
    let run = |arguments: &[&str]| {
        let mut command = Command::new(Path::new(ROOT).join("scripts/live_latency.py"));
        let output = command.current_dir(ROOT).args(["--voxtral", PROGRAM, "--device", "cpu"]).args(arguments).output();
        let output = output.unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (output.status.code(), text(output.stdout), text(output.stderr))
    };
    let (code, stdout, stderr) = run(&["--json", "-I", "0.2", "--seconds", "2.5", "samples/hibari_intro.wav"]);
    assert_eq!(code, Some(0), "{stderr}");
    let result: serde_json::Value = serde_json::from_str(&stdout).unwrap();
    assert_eq!(result["recordings"], 1);
    let [median, most, end] = ["median_ms", "max_ms", "end_median_ms"].map(|name| result[name].as_i64().unwrap());
    assert!(0 <= end && end <= most && median <= most, "{result}");

    let (code, _, stderr) = run(&["Cargo.toml"]);
    assert_eq!(code, Some(1));
    assert!(stderr.starts_with("Cargo.toml: no WAV file: "), "{stderr}");
}
