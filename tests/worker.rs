//! Worker mode through the real binary: requests that are good, bad and hostile, and inputs that share passes.

mod support;

use std::collections::HashMap;
use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use support::{project, tiny_model};

const KAL: &str = "The computer was too slow, so we bought a new one last week.";

fn voxtral(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_voxtral"));
    command.env_remove("VOX_MODEL").env_remove("VOX_PRINT_TIMINGS").arg("-d").arg(tiny_model());
    command.args(["--device", "cpu"]).args(arguments);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What the worker answers, and its exit status.
fn answers(requests: Vec<u8>) -> (Vec<String>, Option<i32>) {
    let mut child = voxtral(&["--worker"]).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || drop(stdin.write_all(&requests)));
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert_eq!(String::from_utf8_lossy(&stderr), "");
    let mut lines: Vec<_> = String::from_utf8(stdout).unwrap().lines().map(str::to_owned).collect();
    assert_eq!(lines.remove(0), "READY");
    (lines, status.code())
}

fn sample(name: &str) -> String {
    project(&format!("samples/{name}.wav")).to_str().unwrap().to_owned()
}

#[test]
fn files_and_samples_are_answered_by_id() {
    let mut requests = format!("T\tfile\t{}\n", sample("kal_computer")).into_bytes();
    let samples = std::fs::read(sample("kal_computer")).unwrap().split_off(44);
    requests.extend(format!("P\tpcm\t{}\n", samples.len()).into_bytes());
    requests.extend(&samples);
    requests.extend(format!("T\t\t{}\r\nQ\nT\tlate\tx\n", sample("kal_computer")).into_bytes());
    let (mut lines, code) = answers(requests);
    lines.sort();
    let expected = ["", "file", "pcm"].map(|id| format!("R\t{id}\tOK\t{KAL}"));
    assert_eq!((lines.as_slice(), code), (&expected[..], Some(0)));
}

#[test]
fn bad_requests_are_refused_and_the_others_answered() {
    let mut requests =
        b"T\tno-path\nX\tunknown\tx\nT\tgone\t/no/such/file.wav\nT\tdir\t/\nP\tempty\t0\nP\todd\t3\nabc".to_vec();
    requests.extend(
        b"P\tmany\t-1\nP\thuge\t99999999999999999999999\nP\ttext\tten\nP\n\nT\nnonsense\n\xFF\xFE\t\xFF\t\xFF\n",
    );
    requests.extend(b"T\ta\\b\t/no/such\n");
    requests.extend(vec![b'x'; 200_000]);
    requests.extend(format!("\nT\tgood\t{}\n", sample("kal_computer")).into_bytes());
    requests.extend(b"P\tcut\t1000\nabc"); // and the end comes
    let (lines, code) = answers(requests);
    assert_eq!(code, Some(0));
    let mut by_id = HashMap::<_, Vec<_>>::new();
    for line in &lines {
        let fields: Vec<_> = line.split('\t').collect();
        let ["R", id, status, text] = fields[..] else { panic!("{line}") };
        by_id.entry(id).or_default().push((status, text));
    }
    assert_eq!(by_id["good"], [("OK", KAL)]);
    for (id, part) in [
        ("no-path", "no path"),
        ("unknown", "not a request"),
        ("gone", "No such file"),
        ("dir", "/"),
        ("empty", "no audio"),
        ("odd", "3 bytes"),
        ("many", "no number"),
        ("huge", "no number"),
        ("text", "no number"),
        ("a\\\\b", "No such file"),
        ("cut", "stdin ended after 3 of 1000 bytes"),
    ] {
        let [("ERR", text)] = by_id[id][..] else { panic!("{id}: {:?}", by_id[id]) };
        assert!(text.contains(part), "{id}: {text}");
    }
    assert!(by_id[""].iter().any(|(_, text)| text.contains("64 KiB")));
    assert_eq!(answers(b"P\tbig\t600000000\n".to_vec()).0.len(), 1);
    assert_eq!(answers(Vec::new()), (Vec::new(), Some(0)));
}

#[test]
fn many_requests_are_served_together() {
    let names = ["kal_computer", "slt_numbers", "hibari_intro"];
    let alone: Vec<_> =
        names.iter().map(|name| answers(format!("T\t0\t{}\n", sample(name)).into()).0.remove(0)).collect();
    let line = |i: usize| format!("T\t{i}\t{}\n", sample(names[i % 3]));
    let (lines, _) = answers((0..30).map(line).collect::<String>().into());
    assert_eq!(lines.len(), 30);
    for line in lines {
        let fields: Vec<_> = line.splitn(3, '\t').collect();
        let i: usize = fields[1].parse().unwrap();
        assert_eq!(fields[2], alone[i % 3].splitn(3, '\t').nth(2).unwrap());
    }
}

#[test]
fn any_batch_and_any_drafts_give_the_same_ids_in_order() {
    let names = ["kal_computer", "slt_numbers", "hibari_intro", "kal_computer", "awb_library"].map(sample);
    let run = |arguments: &[&str]| {
        let output = voxtral(arguments).arg("--tokens").args(&names).output().unwrap();
        assert_eq!(output.status.code(), Some(0));
        String::from_utf8(output.stdout).unwrap()
    };
    let expected = run(&["--batch", "1", "--draft", "0"]);
    assert_eq!(expected.lines().count(), 5);
    for arguments in
        [["--batch", "3", "--draft", "0"], ["--batch", "5", "--draft", "auto"], ["--batch", "2", "--draft", "7"]]
    {
        assert_eq!(run(&arguments), expected, "{arguments:?}");
    }
    let sorted = |text: String| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(run(&["--batch", "4", "--unordered"])), sorted(expected.clone()));
    // the largest first
    let mut by_size: Vec<_> = names.iter().zip(expected.lines()).collect();
    by_size.sort_by_key(|(name, _)| std::cmp::Reverse(std::fs::metadata(name).unwrap().len()));
    let by_size: Vec<_> = by_size.into_iter().map(|(_, line)| line.to_owned()).collect();
    assert_eq!(run(&["--batch", "1", "--unordered"]).lines().collect::<Vec<_>>(), by_size);
}
