//! Work on many inputs through the real program: which files become which, what is done again, and what a killed run leaves.

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, SystemTime};

use support::{project, tiny_model};

/// A directory with recordings in `in/`, whose outputs go to `out/`.
struct Work {
    dir: tempfile::TempDir,
}

impl Work {
    /// With these files, each a piece of a recording of its own.
    fn new(files: &[&str]) -> Self {
        let work = Self { dir: tempfile::tempdir().unwrap() };
        for (i, file) in files.iter().enumerate() {
            work.record(file, 16_000 + 800 * i);
        }
        work
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// So many samples of a recording.
    fn record(&self, file: &str, n_samples: usize) {
        let path = self.path("in").join(file);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        let mut source = hound::WavReader::open(project("samples/kal_computer.wav")).unwrap();
        let mut wav = hound::WavWriter::create(path, source.spec()).unwrap();
        source.samples::<i16>().take(n_samples).for_each(|sample| wav.write_sample(sample.unwrap()).unwrap());
        wav.finalize().unwrap();
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_voxtral"));
        command.env_remove("VOX_MODEL").env_remove("VOX_PRINT_TIMINGS").current_dir(self.dir.path());
        command.arg("-d").arg(tiny_model()).args(["--device", "cpu"]).args(arguments).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> (i32, String, String) {
        let Output { status, stdout, stderr } = self.command(arguments).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (status.code().expect("no signal"), text(stdout), text(stderr))
    }

    /// All files below `out/` but manifests, with what is in them and when they were written.
    fn outputs(&self) -> BTreeMap<String, (String, SystemTime)> {
        let (mut found, mut rest) = (BTreeMap::new(), vec![self.path("out")]);
        while let Some(path) = rest.pop() {
            if path.is_dir() {
                rest.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            } else if let Ok(text) = fs::read_to_string(&path) {
                let name = path.strip_prefix(self.path("out")).unwrap().to_str().unwrap().replace('\\', "/");
                if !name.contains("voxtral-manifest") {
                    found.insert(name, (text, fs::metadata(&path).unwrap().modified().unwrap()));
                }
            }
        }
        found
    }

    fn names(&self) -> Vec<String> {
        self.outputs().into_keys().collect()
    }

    /// How many inputs a run did.
    fn n_done(&self, arguments: &[&str]) -> usize {
        let (code, _, stderr) = self.run(arguments);
        assert_eq!(code, 0, "{stderr}");
        number(&stderr, "done").unwrap_or_else(|| panic!("no summary: {stderr}"))
    }
}

/// A row of the summary.
fn number(stderr: &str, row: &str) -> Option<usize> {
    stderr.lines().find_map(|line| line.strip_prefix(row)?.trim().parse().ok())
}

#[test]
fn outputs_mirror_the_tree_and_are_made_once() {
    let work = Work::new(&["a.wav", "b/c.wav", "b/d/e.wav"]);
    fs::write(work.path("in/notes.md"), "no audio").unwrap();
    let all = ["-r", "in", "-o", "out", "-f", "txt,srt"];
    assert_eq!(work.n_done(&all), 3);
    let names = ["a.srt", "a.txt", "b/c.srt", "b/c.txt", "b/d/e.srt", "b/d/e.txt"];
    assert_eq!(work.names(), names);
    let first = work.outputs();
    assert!(first["a.txt"].0.starts_with("The") && first["a.srt"].0.contains("-->"), "{first:?}");
    // once more: nothing to do
    let (code, _, stderr) = work.run(&all);
    assert_eq!((code, number(&stderr, "done"), number(&stderr, "done before")), (0, Some(0), Some(3)), "{stderr}");
    assert_eq!(work.outputs(), first);
    // a new input, one that changed, one whose output is gone
    work.record("f.wav", 9_000);
    work.record("a.wav", 12_345);
    fs::remove_file(work.path("out/b/c.srt")).unwrap();
    assert_eq!(work.n_done(&all), 3);
    assert_eq!(work.outputs()["b/d/e.txt"], first["b/d/e.txt"]);
    // other settings, the same again by force
    assert_eq!(work.n_done(&[&all[..], &["--delay", "960"]].concat()), 4);
    assert_eq!(work.n_done(&[&all[..], &["--delay", "960"]].concat()), 0);
    assert_eq!(work.n_done(&[&all[..], &["--delay", "960", "--redo"]].concat()), 4);
    // whatever else decides what is written, and whether that is well
    for more in [["--channels", "left"].as_slice(), &["--no-gap-guard"], &["--strict"], &["--alt", "0.5"]] {
        assert_eq!(work.n_done(&[&all[..], more].concat()), 4, "{more:?}");
    }
    // whatever they hold
    let before = work.outputs();
    assert_eq!(work.n_done(&[&all[..], &["--skip-existing"]].concat()), 0);
    assert_eq!(work.outputs(), before);
}

#[test]
fn inputs_come_from_patterns_lists_and_directories() {
    let work = Work::new(&["a.wav", "b/c.wav", "b/d.mp3.wav", "b/e.wav"]);
    assert_eq!(work.n_done(&["in/**/*.wav", "-o", "out"]), 4);
    assert_eq!(work.names(), ["a.txt", "b/c.txt", "b/d.mp3.txt", "b/e.txt"]);
    fs::remove_dir_all(work.path("out")).unwrap();
    fs::write(work.path("list"), "in/a.wav\nin/b\n").unwrap();
    assert_eq!(work.n_done(&["--list", "list", "-o", "out"]), 4);
    assert_eq!(work.names(), ["in/a.txt", "in/b/c.txt", "in/b/d.mp3.txt", "in/b/e.txt"]);
    // to stdout as well, from a list on stdin
    let mut command = work.command(&["--list", "-", "--silent"]);
    command.stdin(fs::File::open(work.path("list")).unwrap());
    let output = command.output().unwrap();
    assert_eq!(output.stdout.iter().filter(|byte| **byte == b'\n').count(), 4, "{output:?}");
    let (code, stdout, stderr) = work.run(&["in"]);
    assert!(code == 0 && stdout.starts_with("The") && stdout.lines().count() == 1, "{stderr}");
}

#[test]
fn what_fails_is_named_and_stops_nothing_unless_asked_to() {
    let work = Work::new(&["a.wav", "d.wav"]);
    fs::write(work.path("in/b.wav"), "no audio at all").unwrap();
    fs::write(work.path("in/c.wav"), "").unwrap();
    let all = ["in", "nowhere/*.wav", "-o", "out"];
    let (code, _, stderr) = work.run(&all);
    assert_eq!(code, 1, "{stderr}");
    assert_eq!((number(&stderr, "done"), number(&stderr, "failed")), (Some(2), Some(3)), "{stderr}");
    let (_, failed) = stderr.split_once("what failed:\n").unwrap();
    for name in ["in/b.wav", "in/c.wav", "nowhere/*.wav: no file matches"] {
        assert!(failed.contains(name), "{failed}");
    }
    assert_eq!(work.names(), ["a.txt", "d.txt"]);
    let manifest = fs::read_to_string(work.path("out/voxtral-manifest.jsonl")).unwrap();
    let entries: Vec<serde_json::Value> = manifest.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(entries.iter().filter(|entry| entry["status"] == "done").count(), 2);
    let failure = entries.iter().find(|entry| entry["input"].as_str().unwrap().ends_with("b.wav")).unwrap();
    assert!(failure["status"] == "failed" && failure["error"].as_str().unwrap().contains("not a known audio format"));
    assert!(entries.iter().all(|entry| entry["size"].is_u64() && entry["mtime_ns"].is_u64()));
    // failures are tried again, and stay failures
    let (code, _, stderr) = work.run(&all);
    assert_eq!((code, number(&stderr, "done before"), number(&stderr, "failed")), (1, Some(2), Some(3)), "{stderr}");
    let (code, stdout, stderr) = work.run(&["in/b.wav", "in/a.wav", "--fail-fast"]);
    assert_eq!((code, stdout.as_str()), (1, ""), "{stderr}");
    // what stands for no input is not counted among them
    let (code, _, stderr) = work.run(&["in/a.wav", "in/d.wav", "nowhere/*.wav", "-o", "other"]);
    assert!(code == 1 && stderr.contains("1/2 in/") && stderr.contains("2/2 in/"), "{stderr}");
    // nothing but errors
    let (code, _, stderr) = work.run(&["in", "-o", "out", "--silent"]);
    assert_eq!((code, stderr.lines().count()), (1, 2), "{stderr}");
}

#[test]
fn inputs_with_one_output_are_refused_before_anything_is_done() {
    let work = Work::new(&["a.wav"]);
    let (code, _, stderr) = work.run(&["in/a.wav", "./in/a.wav", "-o", "out/"]);
    assert_eq!(code, 1);
    assert!(stderr.contains("would have the same output"), "{stderr}");
    assert!(!work.path("out").exists());
    fs::write(work.path("file"), "").unwrap();
    let (code, _, stderr) = work.run(&["in", "-o", "file/out/"]);
    assert!(code == 1 && stderr.contains("file/out"), "{stderr}");
}

#[test]
fn shards_do_everything_once() {
    let files: Vec<_> = (0..7).map(|i| format!("{i}.wav")).collect();
    let work = Work::new(&files.iter().map(String::as_str).collect::<Vec<_>>());
    let mut done = 0;
    for shard in ["1/3", "2/3"] {
        done += work.n_done(&["in", "-o", "out", "--shard", shard]);
    }
    let mut command = work.command(&["in", "-o", "out", "--shard", "auto"]);
    let slurm = [("SLURM_ARRAY_TASK_ID", "12"), ("SLURM_ARRAY_TASK_MIN", "10"), ("SLURM_ARRAY_TASK_COUNT", "3")];
    let stderr = String::from_utf8(command.envs(slurm).output().unwrap().stderr).unwrap();
    done += number(&stderr, "done").unwrap();
    assert_eq!((done, work.names().len()), (7, 7));
    // one machine after many: all manifests count
    assert_eq!(work.n_done(&["in", "-o", "out"]), 0);
}

#[cfg(unix)]
#[test]
fn an_interrupt_leaves_no_part_of_a_transcript() {
    let work = Work::new(&[]);
    work.record("short.wav", 16_000);
    let long: Vec<u8> = fs::read(project("samples/long_mixed.wav")).unwrap();
    fs::write(work.path("in/zlong.wav"), long).unwrap();
    let child = work.command(&["in", "-o", "out", "--threads", "1"]).stderr(Stdio::piped()).spawn().unwrap();
    while !work.path("out/short.txt").exists() {
        std::thread::sleep(Duration::from_millis(2));
    }
    let killed = Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(killed.success());
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(130), "{stderr}");
    assert_eq!(work.names(), ["short.txt"]);
    assert_eq!(number(&stderr, "unfinished"), Some(1), "{stderr}");
}

/// A pipe whose reader takes its time, in the place of a transcript, is a slow disk.
#[cfg(unix)]
#[test]
fn inputs_go_on_while_a_transcript_is_written() {
    use std::io::{BufReader, Read as _};
    let work = Work::new(&["short.wav"]);
    fs::copy(project("samples/long_mixed.wav"), work.path("in/long.wav")).unwrap();
    fs::create_dir(work.path("out")).unwrap();
    let pipe = work.path("out/short.txt");
    assert!(Command::new("mkfifo").arg(&pipe).status().unwrap().success());
    let arguments = ["in", "-o", "out", "--monitor", "--draft", "0"];
    let mut child = work.command(&arguments).stderr(Stdio::piped()).spawn().unwrap();
    let mut stderr = BufReader::new(child.stderr.take().unwrap());
    // a symbol for each pass, of which the long recording takes more than 900: · or, if it was slow, ▪
    let (send, passes) = std::sync::mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut buffer = [0; 64];
        while let Ok(n @ 1..) = stderr.read(&mut buffer) {
            let _ = send.send(buffer[..n].iter().filter(|byte| [b'\xB7', b'\xAA'].contains(byte)).count());
        }
    });
    let mut n_passes = 0;
    while n_passes < 900 {
        match passes.recv_timeout(Duration::from_secs(60)) {
            Ok(n) => n_passes += n,
            Err(error) => {
                child.kill().unwrap();
                panic!("{n_passes} passes while a transcript waits to be read: {error}");
            }
        }
    }
    assert!(fs::read_to_string(&pipe).unwrap().ends_with('\n'));
    assert!(child.wait().unwrap().success());
    reader.join().unwrap();
    assert!(work.path("out/long.txt").is_file());
}

/// Kills runs over 40 files at random moments, and looks at what they leave.
fn kill_and_resume(n_kills: usize) {
    let files: Vec<_> = (0..40).map(|i| format!("{}/{i:02}.wav", i % 3)).collect();
    let work = Work::new(&files.iter().map(String::as_str).collect::<Vec<_>>());
    let expected = {
        let (code, _, stderr) = work.run(&["-r", "in", "-o", "expected", "-f", "txt,json"]);
        assert_eq!(code, 0, "{stderr}");
        files.iter().map(|file| {
            let name = file.replace(".wav", ".txt");
            (name.clone(), fs::read_to_string(work.path("expected").join(name)).unwrap())
        })
    };
    let expected: BTreeMap<String, String> = expected.collect();
    let all = ["-r", "in", "-o", "out", "-f", "txt,json"];
    let mut seen: BTreeMap<String, (String, SystemTime)> = BTreeMap::new();
    let mut done = Vec::new();
    let mut random = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap().subsec_nanos() | 1;
    let mut n_inside = 0;
    for _ in 0..n_kills {
        random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let mut child = work.command(&all).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(u64::from(random >> 16) % 160));
        child.kill().unwrap();
        n_inside += usize::from(!child.wait().unwrap().success());
        let now = if work.path("out").exists() { work.outputs() } else { BTreeMap::new() };
        for (name, (text, _)) in now.iter().filter(|(name, _)| !name.contains(".voxtral-tmp")) {
            match expected.get(name) {
                Some(whole) => assert_eq!(text, whole, "{name}"),
                None => drop(serde_json::from_str::<serde_json::Value>(text).unwrap_or_else(|e| panic!("{name}: {e}"))),
            }
        }
        // what the manifest calls done was never written again
        for name in &done {
            assert_eq!(now.get(name), seen.get(name), "{name}");
        }
        done = manifest_outputs(&work.path("out"), &work.path("in"));
        seen = now;
    }
    assert!(n_inside > n_kills / 2, "{n_inside} of {n_kills} runs were killed while they worked");
    let (code, _, stderr) = work.run(&all);
    assert_eq!(code, 0, "{stderr}");
    let n_before = number(&stderr, "done before").unwrap_or(0);
    assert_eq!(n_before, done.len() / 2, "{stderr}");
    let now = work.outputs();
    assert_eq!(now.len(), 80, "nothing partial and nothing left over: {:?}", now.keys());
    assert!(expected.iter().all(|(name, text)| now[name].0 == *text));
    assert!(done.iter().all(|name| now.get(name) == seen.get(name)));
}

/// The outputs that a manifest says are there.
fn manifest_outputs(out: &Path, input: &Path) -> Vec<String> {
    let manifest = fs::read_to_string(out.join("voxtral-manifest.jsonl")).unwrap_or_default();
    let entries = manifest.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let stems = entries.map(|entry| {
        let path = PathBuf::from(entry["input"].as_str().unwrap());
        path.strip_prefix(input).unwrap().with_extension("").to_str().unwrap().to_owned()
    });
    let mut names: Vec<_> = stems.flat_map(|stem| [format!("{stem}.txt"), format!("{stem}.json")]).collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[test]
fn a_killed_run_goes_on_where_it_was() {
    kill_and_resume(8);
}

#[test]
#[ignore = "as above, at 50 moments: some minutes"]
fn a_run_killed_fifty_times_goes_on_where_it_was() {
    kill_and_resume(50);
}

#[cfg(unix)]
#[test]
fn a_manifest_that_cannot_grow_ends_the_work_with_a_summary() {
    let files: Vec<_> = (0..12).map(|i| format!("{i}.wav")).collect();
    let work = Work::new(&files.iter().map(String::as_str).collect::<Vec<_>>());
    fs::write(work.path("in/bad.wav"), "no audio at all").unwrap();
    // as on a disk that is full: no file may be longer than a KiB, which the transcripts are not
    let mut command = Command::new("bash");
    let line = "trap '' XFSZ; ulimit -f 1; exec \"$@\"";
    command.args(["-c", line, "bash", env!("CARGO_BIN_EXE_voxtral"), "-d"]).arg(tiny_model());
    command.args(["--device", "cpu", "in", "-o", "out"]).env_remove("VOX_PRINT_TIMINGS").current_dir(work.dir.path());
    let Output { status, stderr, .. } = command.stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("voxtral: out/voxtral-manifest.jsonl: "), "{stderr}");
    let done = number(&stderr, "done").unwrap();
    let failed = number(&stderr, "failed").unwrap_or(0);
    assert_eq!(done + failed + number(&stderr, "unfinished").unwrap(), 13, "{stderr}");
    assert!(work.outputs().values().all(|(text, _)| text.ends_with('\n')));
    // what was not noted is done again
    let (code, _, stderr) = work.run(&["in", "-o", "out"]);
    assert!(code == 1 && number(&stderr, "done before").unwrap() < 12, "{stderr}");
    assert_eq!(work.names().len(), 12);
}

/// What a terminal of 60 columns gets from a run; `script` makes one.
#[cfg(target_os = "linux")]
fn on_a_terminal(work: &Work, arguments: &str) -> String {
    let line = format!(
        "stty cols 60 && exec '{}' -d '{}' --device cpu {arguments}",
        env!("CARGO_BIN_EXE_voxtral"),
        tiny_model().display()
    );
    let mut command = Command::new("script");
    command.args(["-qec", &line, "/dev/null"]).env_remove("VOX_PRINT_TIMINGS").current_dir(work.dir.path());
    String::from_utf8(command.stdin(Stdio::null()).output().unwrap().stdout).unwrap()
}

#[cfg(target_os = "linux")]
#[test]
fn a_terminal_shows_how_far_it_is_and_keeps_nothing_of_it() {
    const CLEAR: &str = "\r\u{1b}[2K";
    let work = Work::new(&["a.wav", "c.wav"]);
    fs::copy(project("samples/long_mixed.wav"), work.path("in/b.wav")).unwrap();
    fs::copy(project("samples/long_mixed.wav"), work.path("in/d.wav")).unwrap();
    fs::write(work.path("in/e.wav"), "no audio at all").unwrap();
    let screen = on_a_terminal(&work, "in -o out");
    // every state is taken away before anything else is written
    let states: Vec<_> = screen.split(CLEAR).collect();
    assert!(states.len() > 5, "{screen:?}");
    let is_line = |text: &str| text.contains(" of 5 files") && text.chars().count() < 58 && !text.contains('\n');
    let (last, before) = states.split_last().unwrap();
    assert!(last.contains("what failed:\r\n  in/e.wav: ") && !last.contains(" of 5 files"), "{screen:?}");
    let lines: Vec<_> =
        before.iter().filter_map(|text| text.rsplit('\n').next()).filter(|text| is_line(text)).collect();
    assert!(lines.iter().any(|text| text.contains(" xRT, 0:00:") && text.ends_with(" left")), "{screen:?}");
    assert!(before.iter().all(|text| text.is_empty() || is_line(text.rsplit('\n').next().unwrap())), "{screen:?}");
    // nor does it disturb the text where both go to the terminal
    let screen = on_a_terminal(&work, "in/a.wav in/b.wav");
    let texts = screen.rsplit(CLEAR).next().unwrap();
    assert!(texts.starts_with("The compute") && texts.contains("\r\nin/b.wav:\r\nWhen the sun"), "{screen:?}");
    assert!(texts.ends_with("awake.\r\n") && texts.lines().count() == 3, "{screen:?}");
}
