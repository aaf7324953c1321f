//! Completions, the manual, and looking into, timing and checking a model, through the real program.

mod support;

use std::fs;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use support::{project, tiny_model};

fn voxtral(arguments: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_voxtral"));
    let command = command.env_remove("VOX_MODEL").args(arguments).stdin(Stdio::null());
    let Output { status, stdout, stderr } = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().expect("no signal"), text(stdout), text(stderr))
}

fn on_model(command: &str, dir: &Path, more: &[&str]) -> (i32, String, String) {
    voxtral(&[&[command, "-d", dir.to_str().unwrap()], more].concat())
}

/// The tiny model's files in a directory of their own.
fn copy() -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    for name in voxtral::Model::FILES {
        fs::copy(tiny_model().join(name), dir.path().join(name)).unwrap();
    }
    dir
}

#[test]
fn completions_and_manual_know_every_option() {
    let (code, help, _) = voxtral(&["--help"]);
    assert_eq!(code, 0);
    let options: Vec<_> = help.split_whitespace().filter(|word| word.starts_with("--")).collect();
    let options: Vec<_> = options.iter().map(|word| word.trim_end_matches(|c: char| !c.is_alphanumeric())).collect();
    assert!(options.len() > 10, "{help}");
    assert!(help.starts_with("Streaming speech-to-text"), "{help}");
    let (code, manual, _) = voxtral(&["man"]);
    let manual = manual.replace("\\-", "-");
    assert_eq!(code, 0);
    assert!(manual.contains(".TH voxtral 1") && manual.contains("voxtral - Streaming speech-to-text"), "{manual}");
    for shell in ["bash", "zsh", "fish", "powershell", "elvish"] {
        let (code, script, stderr) = voxtral(&["completions", shell]);
        assert_eq!((code, stderr.as_str()), (0, ""));
        for option in &options {
            let name = if shell == "fish" { option.trim_start_matches('-') } else { option };
            assert!(script.contains(name), "{shell}: {option}");
            assert!(manual.contains(option), "{option}");
        }
    }
    assert_eq!(voxtral(&["completions", "tcsh"]).0, 2);
}

#[test]
fn a_file_may_have_the_name_of_a_command() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(project("samples/kal_computer.wav"), dir.path().join("info")).unwrap();
    let model = tiny_model();
    let model = model.to_str().unwrap();
    for arguments in [["-d", model, "info"].as_slice(), &["-i", "info", "-d", model], &["./info", "-d", model]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_voxtral"));
        let output = command.current_dir(dir.path()).args(arguments).output().unwrap();
        assert!(output.stdout.starts_with(b"The computer was too slow"), "{arguments:?}: {output:?}");
    }
}

#[test]
fn info_shows_what_params_json_says() {
    let (code, text, stderr) = on_model("info", &tiny_model(), &[]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(text.contains("delay       480 ms") && text.contains(": 8.0 million parameters in BF16"), "{text}");
    let (code, json, _) = on_model("info", &tiny_model(), &["--json"]);
    assert_eq!(code, 0);
    let info: serde_json::Value = serde_json::from_str(&json).unwrap();
    let params: serde_json::Value =
        serde_json::from_slice(&fs::read(tiny_model().join("params.json")).unwrap()).unwrap();
    assert_eq!(info["decoder"]["dim"], params["dim"]);
    assert_eq!(info["decoder"]["n_layers"], params["n_layers"]);
    let size = fs::metadata(tiny_model().join("consolidated.safetensors")).unwrap().len();
    let weights = info["memory"]["weights"].as_u64().unwrap();
    assert!(weights < size && weights > size * 9 / 10, "{weights} of {size}");
    assert_eq!(info["n_parameters"].as_u64().unwrap() * 2, weights);
    let (code, _, stderr) = on_model("info", Path::new("/nowhere"), &[]);
    assert_eq!(code, 1);
    assert!(stderr.contains("/nowhere: No such file"), "{stderr}");
}

#[test]
fn bench_measures_what_it_says() {
    let (code, json, stderr) = on_model("bench", &tiny_model(), &["--device", "cpu", "--runs", "1", "--json"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let report: serde_json::Value = serde_json::from_str(&json).unwrap();
    let number = |name: &str| report[name].as_f64().unwrap_or_else(|| panic!("{name} in {report}"));
    assert!((number("audio_seconds") - 8.37).abs() < 0.1, "{report}");
    for name in ["load_ms", "encoder_ms", "prompt_ms", "pass_ms", "pass_gb_s", "ceiling_gb_s", "xrt"] {
        assert!(number(name) > 0.0, "{name} in {report}");
    }
    assert!(number("encoder_ms") < number("wall_ms") && number("passes") <= number("tokens"));
    assert_eq!((&report["device"], number("runs")), (&"CPU".into(), 1.0));
    let recording = project("samples/slt_numbers.wav");
    let input = ["--device", "cpu", "--runs", "1", "--threads", "1", "-i", recording.to_str().unwrap()];
    let (code, table, _) = on_model("bench", &tiny_model(), &input);
    assert_eq!(code, 0);
    assert!(
        table.contains("1 threads, 8.6 s of audio") && table.contains("of what plain memory access reaches"),
        "{table}"
    );
    let (code, _, stderr) = on_model("bench", &tiny_model(), &["-i", "nothing.wav", "--device", "cpu"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("nothing.wav"), "{stderr}");
}

#[test]
fn verify_finds_what_was_changed() {
    let dir = copy();
    let verify = || on_model("verify", dir.path(), &["--device", "cpu"]);
    let (code, report, stderr) = verify();
    assert_eq!((code, stderr.as_str()), (0, ""));
    assert!(report.contains("CPU hears") && report.contains("The computer was too slow"), "{report}");
    assert!(report.ends_with("all well\n"), "{report}");
    // what it shows is what a list holds
    let sums: String = report
        .lines()
        .filter_map(|line| Some(line.strip_prefix("-     ")?.rsplit_once(", ")?.0.to_owned() + "\n"))
        .collect();
    assert_eq!(sums.lines().count(), 3, "{report}");
    let list = dir.path().join("SHA256SUMS");
    fs::write(&list, &sums).unwrap();
    let (code, report, _) = verify();
    assert_eq!((code, report.matches("ok    ").count()), (0, 5), "{report}");
    let tekken = dir.path().join("tekken.json");
    fs::write(&tekken, fs::read_to_string(&tekken).unwrap() + "\n").unwrap();
    let (code, report, _) = verify();
    assert_eq!(code, 1, "{report}");
    assert!(report.lines().any(|line| line.starts_with("FAIL") && line.contains("tekken.json")), "{report}");
    assert!(report.ends_with("not well\n"), "{report}");
    fs::write(&list, sums.lines().next().unwrap()).unwrap();
    assert_eq!(verify().0, 1, "files that are not in the list");
    fs::remove_file(&tekken).unwrap();
    let (code, _, stderr) = verify();
    assert!(code == 1 && stderr.contains("tekken.json is missing"), "{stderr}");
}
