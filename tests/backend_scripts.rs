//! The scripts that compare backends, as far as a machine without a GPU goes: the CPU stands for it.
#![cfg(unix)]

mod support;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::{Command, Stdio};

use support::{project, tiny_model};

/// Runs a script on the shipped model and two seconds of speech; its status and what it said.
fn run(script: &str, arguments: &[&str], environment: &[(&str, &str)]) -> (i32, String) {
    let dir = tempfile::tempdir().unwrap();
    let audio = dir.path().join("speech.wav");
    let spec = hound::WavSpec {
        channels: 1,
        sample_rate: 16_000,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let mut wav = hound::WavWriter::create(&audio, spec).unwrap();
    let samples = &support::recording("kal_computer")[..32_000];
    samples.iter().for_each(|x| wav.write_sample((x * 32768.0) as i16).unwrap());
    wav.finalize().unwrap();
    let mut command = Command::new(project(&format!("scripts/{script}.sh")));
    command.arg(tiny_model()).arg(&audio).args(arguments);
    command.env("VOXTRAL", env!("CARGO_BIN_EXE_voxtral")).envs(environment.iter().copied());
    let output = command.stdin(Stdio::null()).output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.code().unwrap(), String::from_utf8(text).unwrap())
}

/// A shell script.
fn program(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.display().to_string()
}

/// A program that works like ours but drops a token where this argument is among its own.
fn liar(dir: &Path, argument: &str) -> String {
    let ours = env!("CARGO_BIN_EXE_voxtral");
    let text =
        format!("case \" $* \" in *' {argument} '*) {ours} \"$@\" | sed 's/ [0-9]*$//' ;; *) {ours} \"$@\" ;; esac");
    program(dir, "liar", &text)
}

#[test]
fn the_benchmark_gives_a_table_and_json() {
    let dir = tempfile::tempdir().unwrap();
    let json = dir.path().join("table.json");
    let environment =
        [("VOX_BENCH_SKIP_CUDA", "1"), ("VOX_BENCH_RUNS", "1"), ("VOX_BENCH_JSON", json.to_str().unwrap())];
    let (code, text) = run("benchmark_backends", &[], &environment);
    assert_eq!(code, 0, "{text}");
    let rows: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(json).unwrap()).unwrap();
    let row = &rows[0];
    assert_eq!((row["name"].as_str(), row["token_mismatch"].as_f64()), (Some("cpu"), Some(0.0)), "{text}");
    for number in ["load_ms", "encoder_ms", "decoder_ms", "prefill_ms", "ms_per_step", "wall_ms", "xrt", "gb_per_s"] {
        assert!(row[number].as_f64().is_some_and(|x| x >= 0.0), "{number} in {row}");
    }
    assert!(row["xrt"].as_f64().unwrap() > 0.0 && text.contains("xRT"), "{text}");
}

#[test]
fn the_benchmark_sees_other_tokens() {
    let dir = tempfile::tempdir().unwrap();
    let liar = liar(dir.path(), "--device auto");
    let environment = [("VOXTRAL", liar.as_str()), ("VOX_BENCH_RUNS", "1"), ("VOX_BENCH_DEVICE", "auto")];
    let (code, text) = run("benchmark_backends", &[], &environment);
    assert!(code == 1 && text.contains("tokens differ"), "{text}");
}

#[test]
fn accuracy_is_judged_by_the_tolerance() {
    let dir = tempfile::tempdir().unwrap();
    let liar = liar(dir.path(), "--threads 1");
    let cpu = ("VOX_BENCH_SKIP_CUDA", "1");
    let (code, text) = run("accuracy_regression", &[], &[cpu]);
    assert_eq!((code, text.matches("ok ").count()), (0, 2), "{text}");
    let (code, text) = run("accuracy_regression", &[], &[cpu, ("VOXTRAL", &liar)]);
    assert_eq!((code, text.matches("FAIL").count()), (1, 1), "{text}");
    // the GPU played by the CPU: one token of 36 or so is missing
    let dir = tempfile::tempdir().unwrap();
    let liar = self::liar(dir.path(), "--device auto");
    let gpu = [("VOXTRAL", liar.as_str()), ("VOX_BENCH_DEVICE", "auto")];
    assert_eq!(run("accuracy_regression", &["0.05"], &gpu).0, 0);
    assert_eq!(run("accuracy_regression", &["0.005"], &gpu).0, 1);
    assert_eq!(run("accuracy_regression", &["2"], &[cpu]).0, 2);
}

#[test]
fn streams_and_pieces_are_checked() {
    let cpu = ("VOX_BENCH_DEVICE", "cpu");
    let dir = tempfile::tempdir().unwrap();
    for (script, liar_at) in [("validate_cuda_pipeline_compact", "--stdin"), ("validate_cuda", "-I 0.08")] {
        let (code, text) = run(script, &[], &[cpu]);
        assert_eq!(code, 0, "{script}: {text}");
        let liar = liar(dir.path(), liar_at);
        let (code, text) = run(script, &[], &[cpu, ("VOXTRAL", &liar)]);
        assert!(code == 1 && text.contains("FAIL"), "{script}: {text}");
    }
    let (code, text) = run("stress_cuda_two_streams", &["3"], &[cpu]);
    assert_eq!((code, text.matches("ok ").count()), (0, 5), "{text}");
    assert_eq!(run("stress_cuda_two_streams", &["none"], &[cpu]).0, 2);
}

#[test]
fn without_the_device_they_fail() {
    // no machine has so many GPUs
    let device = ("VOX_BENCH_DEVICE", "cuda:9999");
    for script in [
        "validate_cuda",
        "validate_cuda_pipeline_compact",
        "stress_cuda_two_streams",
        "benchmark_backends",
        "accuracy_regression",
    ] {
        let (code, text) = run(script, &[], &[device, ("VOX_BENCH_SKIP_CPU", "1")]);
        assert!(code != 0 && !text.contains("all well"), "{script}: {text}");
    }
}

/// A checker that finds something in the test `racy`, and nothing to look at in `idle` and `dead`.
#[cfg(target_os = "linux")]
fn checker(dir: &Path) -> String {
    program(
        dir,
        "checker",
        r#"tool=$2; shift 4; "$@" || exit
           case "$tool $*" in
               *idle*|*dead*) echo '========= Error: Target application terminated before first instrumented API call'; exit 9 ;;
               racecheck*racy*) echo '========= Error: Race reported'; echo 'RACECHECK SUMMARY: 1 hazard displayed'; exit 9 ;;
               racecheck*) echo 'RACECHECK SUMMARY: 0 hazards displayed (0 errors, 0 warnings)' ;;
               *) echo 'ERROR SUMMARY: 0 errors' ;;
           esac"#,
    )
}

/// A test program of these tests, of which `slow` writes its process id into a file and takes long.
#[cfg(target_os = "linux")]
fn test_program(dir: &Path, name: &str, tests: &str) -> String {
    let text = format!(
        r#"case "$*" in
               *--ignored*) echo 'ignored: test' ;;
               *--list*) for name in {tests} ignored; do echo "$name: test"; done ;;
               *idle*) echo 'test result: ok. 1 passed' ;;
               *slow*) echo $$ >"{pid}"; exec sleep 60 ;;
               *ignored*) exit 1 ;;
           esac"#,
        pid = dir.join("pid").display()
    );
    program(dir, name, &text)
}

/// The script, with a checker that is made up.
#[cfg(target_os = "linux")]
fn sanitize(dir: &Path, seconds: &str, arguments: &[&str], device: &str) -> Command {
    let mut command = Command::new(project("scripts/sanitize_cuda.sh"));
    command.args(arguments).env("VOXTRAL", env!("CARGO_BIN_EXE_voxtral")).env("VOX_BENCH_DEVICE", device);
    command.env("COMPUTE_SANITIZER", checker(dir)).env("SANITIZE_SECONDS", seconds).env("SANITIZE_JOBS", "2");
    command.stdin(Stdio::null());
    command
}

#[test]
#[cfg(target_os = "linux")]
fn sanitizers_see_every_test() {
    let dir = tempfile::tempdir().unwrap();
    let run_for = |seconds: &str, arguments: &[&str], device: &str| {
        let output = sanitize(dir.path(), seconds, arguments, device).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(text).unwrap())
    };
    let run = |arguments: &[&str], device: &str| run_for("60", arguments, device);
    let tests = |name: &str, tests: &str| test_program(dir.path(), name, tests);
    let library = tests("library", "mel::tests::one backend::cuda::racy backend::cuda::calm");
    let (code, text) = run(&["memcheck,racecheck", &library], "cpu");
    assert_eq!((code, text.matches("ok ").count(), text.matches("FAIL ").count()), (1, 5, 1), "{text}");
    assert!(text.contains("FAIL  racecheck backend::cuda::racy\n========= Error: Race reported"), "{text}");
    let (code, text) = run(&["memcheck", &tests("calm", "a b c")], "cpu");
    assert_eq!((code, text.matches("ok ").count()), (0, 4), "{text}");
    let (code, text) = run(&["synccheck", &tests("unchecked", "idle dead")], "cpu");
    assert_eq!((code, text.matches("ok ").count(), text.matches("FAIL ").count()), (1, 2, 1), "{text}");
    assert!(text.contains("ok    synccheck idle, which asks nothing of a GPU"), "{text}");
    let (code, text) = run_for("2", &["memcheck", &tests("late", "a slow")], "cpu");
    assert!(code == 1 && text.contains("FAIL  memcheck slow\nstopped after 2 s"), "{text}");
    // the live audio does not work, although its checker is content
    let (code, text) = run(&["memcheck", &tests("calm", "a")], "cuda:9999");
    assert!(code == 1 && text.contains("FAIL  memcheck live audio"), "{text}");
    let none = program(dir.path(), "none", "");
    for arguments in [["lint", library.as_str()], ["memcheck", "/no/such/program"], ["memcheck", none.as_str()]] {
        assert_eq!(run(&arguments, "cpu").0, 2, "{arguments:?}");
    }
    assert_eq!(run_for("soon", &["memcheck", &library], "cpu").0, 2);
    let mut without_checker = sanitize(dir.path(), "60", &["memcheck", &library], "cpu");
    assert_eq!(without_checker.env("COMPUTE_SANITIZER", "/no/such/checker").output().unwrap().status.code(), Some(2));
}

/// With a cargo that is made up.
#[test]
#[cfg(target_os = "linux")]
fn sanitizers_build_the_tests_themselves() {
    let dir = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str], cargo: &str| {
        program(dir.path(), "cargo", cargo);
        let path = format!("{}:{}", dir.path().display(), std::env::var("PATH").unwrap());
        let output = sanitize(dir.path(), "60", arguments, "cpu").env("PATH", path).output().unwrap();
        let text = [output.stdout, output.stderr].concat();
        (output.status.code().unwrap(), String::from_utf8(text).unwrap())
    };
    let artifact = |kind: &str, path: &str| {
        let target = format!(r#""target":{{"kind":["{kind}"],"test":true}}"#);
        format!(r#"echo '{{"reason":"compiler-artifact",{target},"executable":{path}}}';"#)
    };
    let quoted = |path: &str| format!("\"{path}\"");
    // where it is asked for
    let test = |name: &str| {
        let built = artifact("test", &quoted(&test_program(dir.path(), name, &format!("of_{name}"))));
        format!("case \" $* \" in *' --test {name} '*) {built} ;; esac\n")
    };
    let artifacts = [
        artifact("lib", "null"),
        artifact("lib", &quoted(&test_program(dir.path(), "library", "other backend::cuda::calm"))),
        artifact("bin", &quoted(env!("CARGO_BIN_EXE_voxtral"))),
        "\n".into(),
        ["cuda", "cuda_sessions", "schedules"].map(test).concat(),
    ]
    .concat();
    let (code, text) = run(&[], &artifacts);
    assert_eq!((code, text.matches("ok ").count()), (0, 17), "{text}");
    for tool in ["memcheck", "initcheck", "synccheck"] {
        for name in ["cuda", "cuda_sessions", "schedules"] {
            assert!(text.contains(&format!("ok    {tool} of_{name}, ")), "{tool} {name}: {text}");
        }
    }
    assert!(text.contains(&format!("-     racecheck of {}/cuda, left out", dir.path().display())), "{text}");
    assert_eq!(run(&["memcheck"], &artifact("bin", &quoted(env!("CARGO_BIN_EXE_voxtral")))).0, 2);
    assert_eq!(run(&["memcheck"], "exit 101").0, 2);
}

#[test]
#[cfg(target_os = "linux")]
fn an_interrupted_check_leaves_nothing_running() {
    let dir = tempfile::tempdir().unwrap();
    let tests = test_program(dir.path(), "late", "slow");
    let mut script = sanitize(dir.path(), "60", &["memcheck", &tests], "cpu").stdout(Stdio::null()).spawn().unwrap();
    let wait_until = |what: &str, done: &dyn Fn() -> bool| {
        let start = std::time::Instant::now();
        while !done() {
            assert!(start.elapsed().as_secs() < 30, "{what}");
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    };
    let pid = || std::fs::read_to_string(dir.path().join("pid")).ok().filter(|text| text.ends_with('\n'));
    wait_until("the test starts", &|| pid().is_some());
    let process = format!("/proc/{}", pid().unwrap().trim());
    assert!(Path::new(&process).exists());
    assert!(Command::new("kill").arg(script.id().to_string()).status().unwrap().success());
    assert_eq!(script.wait().unwrap().code(), Some(130));
    wait_until("the test ends", &|| !Path::new(&process).exists());
}
