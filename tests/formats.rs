//! Times and formats through the real program.

mod support;

use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use subtp::srt::SubRip;
use subtp::vtt::{VttBlock, WebVtt};
use support::{project, tiny_model};

const RECORDINGS: [&str; 7] =
    ["awb_library", "espeak_us_garden", "hibari_intro", "kal_computer", "long_mixed", "noise_only", "slt_numbers"];
const KAL: &str = "The computer was too slow, so we bought a new one last week.";

/// Runs the program on the CPU with these arguments on recordings; its exit code, stdout and stderr.
fn voxtral(arguments: &[&str], recordings: &[&str]) -> (i32, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_voxtral"));
    command.env_remove("VOX_MODEL").env_remove("VOX_PRINT_TIMINGS");
    command.arg("-d").arg(tiny_model()).args(["--device", "cpu"]).args(arguments);
    let path = |name: &&str| if name.contains('.') { name.into() } else { project(&format!("samples/{name}.wav")) };
    command.args(recordings.iter().map(path));
    let Output { status, stdout, stderr } = command.stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (status.code().unwrap(), text(stdout), text(stderr))
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn parse(text: &str) -> Value {
    serde_json::from_str(text).unwrap()
}

/// Words and ends in milliseconds.
fn words(json: &Value) -> Vec<(String, f64)> {
    let segments = json["segments"].as_array().unwrap();
    let words = segments.iter().flat_map(|segment| segment["words"].as_array().unwrap());
    words.map(|word| (letters(word["word"].as_str().unwrap()), 1000.0 * word["end"].as_f64().unwrap())).collect()
}

fn letters(word: &str) -> String {
    word.chars().filter(|c| c.is_alphanumeric()).collect::<String>().to_lowercase()
}

/// Differences of the ends of words that are the same in both lists, by their longest common subsequence.
fn end_errors(heard: &[(String, f64)], spoken: &[(String, f64)]) -> Vec<f64> {
    let mut common = vec![vec![0usize; spoken.len() + 1]; heard.len() + 1];
    for i in (0..heard.len()).rev() {
        for j in (0..spoken.len()).rev() {
            let same = if heard[i].0 == spoken[j].0 { 1 + common[i + 1][j + 1] } else { 0 };
            common[i][j] = same.max(common[i + 1][j]).max(common[i][j + 1]);
        }
    }
    let (mut i, mut j, mut errors) = (0, 0, Vec::new());
    while i < heard.len() && j < spoken.len() {
        if heard[i].0 == spoken[j].0 && common[i][j] == 1 + common[i + 1][j + 1] {
            errors.push(heard[i].1 - spoken[j].1);
            (i, j) = (i + 1, j + 1);
        } else if common[i + 1][j] >= common[i][j + 1] {
            i += 1;
        } else {
            j += 1;
        }
    }
    errors
}

#[test]
fn word_ends_are_those_of_the_recordings() {
    let known = parse(&read(&project("samples/word_ends.json")));
    let short: Vec<_> = RECORDINGS.into_iter().filter(|name| *name != "long_mixed").collect();
    for (delay, recordings, n_words) in [("80", &short[..], 60), ("480", &RECORDINGS, 300), ("2400", &short, 80)] {
        let out = tempfile::tempdir().unwrap();
        let dir = out.path().to_str().unwrap();
        let (code, stdout, _) = voxtral(&["-f", "json", "-o", dir, "--silent", "--delay", delay], recordings);
        assert_eq!((code, stdout.as_str()), (0, ""));
        let mut errors = Vec::new();
        for name in recordings {
            let Some(spoken) = known[*name].as_array() else { continue };
            let word = |pair: &Value| (letters(pair[0].as_str().unwrap()), 1000.0 * pair[1].as_f64().unwrap());
            let spoken: Vec<_> = spoken.iter().map(word).collect();
            errors.extend(end_errors(&words(&parse(&read(&out.path().join(format!("{name}.json"))))), &spoken));
        }
        assert!(errors.len() > n_words, "only {} words are the same", errors.len());
        errors.sort_by(f64::total_cmp);
        let bias = errors[errors.len() / 2];
        let mut sizes: Vec<_> = errors.iter().map(|error| error.abs()).collect();
        sizes.sort_by(f64::total_cmp);
        let (median, p95) = (sizes[sizes.len() / 2], sizes[sizes.len() * 95 / 100]);
        println!("delay {delay} ms: {} words, median {bias:.0} ms, |median| {median:.0}, 95 % {p95:.0}", errors.len());
        assert!(bias.abs() <= 20.0 && median <= 40.0 && p95 <= 160.0, "{bias} {median} {p95}");
    }
}

#[test]
fn every_format_of_every_recording_is_read_by_other_programs() {
    let out = tempfile::tempdir().unwrap();
    let dir = out.path().join("new/dir/");
    let arguments = ["-f", "all", "-o", dir.to_str().unwrap(), "--silent", "--max-line-width", "30"];
    assert_eq!(voxtral(&arguments, &RECORDINGS), (0, String::new(), String::new()));
    for name in RECORDINGS {
        let read = |format: &str| read(&dir.join(format!("{name}.{format}")));
        let text = read("txt").trim_end().to_owned();
        let squeezed = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");

        let srt = SubRip::parse(&read("srt")).unwrap().subtitles;
        assert_eq!(srt.iter().flat_map(|cue| cue.text.clone()).collect::<Vec<_>>().join(" "), squeezed(&text));
        let ms = |h: u8, m: u8, s: u8, ms: u16| {
            ((u64::from(h) * 60 + u64::from(m)) * 60 + u64::from(s)) * 1000 + u64::from(ms)
        };
        let mut last = 0;
        for (i, cue) in srt.iter().enumerate() {
            let start = ms(cue.start.hours, cue.start.minutes, cue.start.seconds, cue.start.milliseconds);
            let end = ms(cue.end.hours, cue.end.minutes, cue.end.seconds, cue.end.milliseconds);
            assert!(last <= start && start < end && end - start <= 7000, "{name}: {cue:?}");
            assert!(cue.text.len() <= 2 && cue.text.iter().all(|line| line.len() <= 30), "{name}: {cue:?}");
            assert_eq!(cue.sequence as usize, i + 1);
            last = end;
        }

        if !text.is_empty() {
            let vtt = WebVtt::parse(&read("vtt")).unwrap();
            let payload = |block: &VttBlock| match block {
                VttBlock::Que(cue) => cue.payload.clone(),
                block => panic!("{block:?}"),
            };
            assert_eq!(vtt.blocks.iter().flat_map(payload).collect::<Vec<_>>().join(" "), squeezed(&text));
        }

        let tsv = read("tsv");
        let (head, rows) = tsv.split_once('\n').unwrap();
        assert_eq!(head, "start\tend\ttext");
        let row = |line: &str| line.split('\t').map(str::to_owned).collect::<Vec<_>>();
        let rows: Vec<_> = rows.lines().map(row).collect();
        assert!(rows.iter().all(|row| row[0].parse::<u64>().unwrap() < row[1].parse().unwrap()));
        assert_eq!(rows.iter().map(|row| row[2].clone()).collect::<Vec<_>>().join(" "), text);
        assert_eq!(read("lrc").lines().filter(|line| line.starts_with("[0")).count(), srt.len());

        let json = parse(&read("json"));
        assert_eq!(json["text"], text.as_str());
        assert_eq!(json["segments"].as_array().unwrap().len(), rows.len());
        assert_eq!((&json["model"], &json["delay_ms"]), (&"tiny-model".into(), &480.into()));
        assert_eq!(json["coverage"]["missed"], 0.0);
        assert_eq!(json["coverage"]["read"], json["coverage"]["transcribed"]);
        assert!(json["timings"]["wall"].as_f64().unwrap() > 0.0);
        let mut last = 0.0;
        for word in json["segments"].as_array().unwrap().iter().flat_map(|s| s["words"].as_array().unwrap()) {
            let (start, end) = (word["start"].as_f64().unwrap(), word["end"].as_f64().unwrap());
            assert!(last <= start && start <= end, "{name}: {word}");
            let confidence = word["confidence"].as_f64().unwrap();
            assert!(confidence > 0.0 && confidence <= 1.0, "{name}: {word}");
            last = end;
        }
        let jsonl = read("jsonl");
        assert_eq!(parse(jsonl.lines().last().unwrap())["text"], text.as_str());
        assert_eq!(jsonl.lines().filter(|line| parse(line)["type"] == "segment").count(), rows.len());
    }
}

#[test]
fn a_stream_gives_jsonl_events_as_they_happen() {
    let (code, stdout, stderr) = voxtral(&["-f", "jsonl", "-I", "0.2"], &["kal_computer"]);
    assert_eq!((code, stderr.as_str()), (0, ""));
    let lines: Vec<Value> = stdout.lines().map(parse).collect();
    let kinds: Vec<_> = lines.iter().map(|line| line["type"].as_str().unwrap()).collect();
    assert_eq!((kinds[0], kinds[1], kinds.last()), ("start", "delta", Some(&"end")));
    assert_eq!(kinds.iter().filter(|kind| **kind == "word").count(), 13);
    // a word is complete when the next begins, not at the end
    let place = |kind: &str| kinds.iter().position(|k| *k == kind).unwrap();
    assert!(place("word") < 4, "{kinds:?}");
    let deltas: String =
        lines.iter().filter(|line| line["type"] == "delta").map(|line| line["text"].as_str().unwrap()).collect();
    assert_eq!(deltas.trim(), KAL);
    assert_eq!(lines.last().unwrap()["text"], KAL);
}

#[test]
fn one_format_of_one_input_goes_to_stdout_or_a_file() {
    let (code, srt, _) = voxtral(&["-f", "srt", "--max-segment-seconds", "2"], &["kal_computer"]);
    assert_eq!(code, 0);
    assert!(SubRip::parse(&srt).unwrap().subtitles.len() >= 2, "{srt}");
    let (code, srt, _) = voxtral(&["-f", "srt", "--max-line-count", "1", "--max-line-width", "12"], &["kal_computer"]);
    assert_eq!(code, 0);
    let cues = SubRip::parse(&srt).unwrap().subtitles;
    assert!(cues.iter().all(|cue| cue.text.len() == 1 && cue.text[0].len() <= 12), "{srt}");

    let out = tempfile::tempdir().unwrap();
    let file = out.path().join("a.lrc");
    assert_eq!(voxtral(&["-o", file.to_str().unwrap()], &["kal_computer"]), (0, String::new(), String::new()));
    assert!(read(&file).starts_with("[00:00.") && read(&file).contains("]The computer was"), "{}", read(&file));
    // with alternatives, the text in a file is that on stdout
    let file = out.path().join("a.txt");
    assert_eq!(voxtral(&["--alt", "0.9", "-o", file.to_str().unwrap()], &["slt_numbers"]).0, 0);
    assert_eq!(read(&file), voxtral(&["--alt", "0.9"], &["slt_numbers"]).1);
    let (_, json, _) = voxtral(&["--alt", "0.9", "-f", "json"], &["slt_numbers"]);
    assert!(json.contains("\"instead_of\""));
}

/// A file with two recordings as its channels, the right one later.
fn two_channels(path: &Path, later_ms: usize) {
    let spec = hound::WavSpec {
        channels: 2,
        sample_rate: 16_000,
        bits_per_sample: 16,
        sample_format: hound::SampleFormat::Int,
    };
    let left = support::recording("kal_computer");
    let right = [vec![0.0; 16 * later_ms], support::recording("slt_numbers")].concat();
    let mut writer = hound::WavWriter::create(path, spec).unwrap();
    for i in 0..left.len().max(right.len()) {
        for channel in [&left, &right] {
            writer.write_sample((channel.get(i).unwrap_or(&0.0) * 32_768.0) as i16).unwrap();
        }
    }
    writer.finalize().unwrap();
}

#[test]
fn channels_are_heard_apart_and_labelled() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("call.wav");
    two_channels(&path, 4000);
    let call = path.to_str().unwrap();
    assert_eq!(voxtral(&["--channels", "left"], &[call]).1.trim_end(), KAL);
    let (_, right, _) = voxtral(&["--channels", "right"], &[call]);
    assert!(right.starts_with("The train to Boston leaves"), "{right}");
    assert_eq!(voxtral(&["--channels", "split"], &["kal_computer"]).1.trim_end(), KAL);
    let (code, stdout, stderr) = voxtral(&["--channels", "right"], &["kal_computer"]);
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.contains("channel 2 of audio with 1 channel"), "{stderr}");

    let arguments = ["--channels", "split", "-f", "all", "-o", dir.path().to_str().unwrap()];
    assert_eq!(voxtral(&arguments, &[call]), (0, String::new(), String::new()));
    let file = |format: &str| read(&dir.path().join(format!("call.{format}")));
    let txt = file("txt");
    assert_eq!(txt, format!("left: {KAL}\nright: {right}"));
    assert_eq!(txt, voxtral(&["--channels", "split"], &[call]).1);
    let starts = |format: &str, left: &str, right: &str| {
        let text = file(format);
        let found = [left, right].map(|label| text.find(label));
        assert!(found[0].is_some() && found[0] < found[1], "{format}: {text}");
    };
    starts("srt", "\nleft: The computer", "\nright: The train");
    starts("vtt", "\n<v left>The computer", "\n<v right>The train");
    starts("tsv", "\tleft\tThe computer", "\tright\tThe train");
    starts("lrc", "]left: The computer", "]right: The train");
    starts("jsonl", "\"channel\":\"left\"", "\"channel\":\"right\"");
    let json = parse(&file("json"));
    let channels: Vec<_> =
        json["segments"].as_array().unwrap().iter().map(|segment| segment["channel"].as_str().unwrap()).collect();
    assert_eq!(channels, ["left", "right", "right"]);
    WebVtt::parse(&file("vtt")).unwrap();
    // live, lines come as both channels are heard
    let (_, jsonl, _) = voxtral(&["--channels", "split", "-f", "jsonl"], &[call]);
    let lines: Vec<_> = jsonl.lines().map(parse).collect();
    let words = |channel: &str| lines.iter().filter(|l| l["type"] == "word" && l["channel"] == channel).count();
    assert_eq!((words("left"), words("right")), (13, 20));
}

#[test]
fn an_output_that_cannot_be_written_is_named() {
    let out = tempfile::NamedTempFile::new().unwrap();
    let inside = out.path().join("a.srt");
    let (code, stdout, stderr) = voxtral(&["-o", inside.to_str().unwrap()], &["kal_computer"]);
    assert_eq!((code, stdout.as_str()), (1, ""));
    assert!(stderr.contains("a.srt"), "{stderr}");
}
