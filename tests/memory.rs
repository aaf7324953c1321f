//! Streams of any length in the same memory, at the same speed.
#![cfg(target_os = "linux")]

mod support;

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};
use std::time::Instant;

use support::{project, tiny_model};

struct Run {
    text: String,
    /// What the resident size, less what maps files, was at most but for one measurement in a hundred: kB.
    resident_kb: u64,
}

/// Pipes the recording, over and over, into the program.
fn stream(seconds: usize) -> Run {
    let samples = std::fs::read(project("samples/long_mixed.wav")).unwrap().split_off(44);
    let mut command = Command::new(env!("CARGO_BIN_EXE_voxtral"));
    command.arg("-d").arg(tiny_model()).args(["--stdin", "--raw"]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let writer = std::thread::spawn(move || {
        let mut rest = 2 * 16_000 * seconds;
        while rest > 0 {
            let part = &samples[..rest.min(samples.len())];
            stdin.write_all(part).unwrap();
            rest -= part.len();
        }
    });
    let start = Instant::now();
    let mut stdout = child.stdout.take().unwrap();
    let (mut text, mut buffer, mut sizes) = (Vec::new(), [0; 4096], Vec::new());
    loop {
        let n = stdout.read(&mut buffer).unwrap();
        if n == 0 {
            break;
        }
        text.extend_from_slice(&buffer[..n]);
        let status = std::fs::read_to_string(format!("/proc/{}/status", child.id())).unwrap();
        let anonymous = status.lines().find_map(|line| line.strip_prefix("RssAnon:")?.trim().strip_suffix(" kB"));
        sizes.extend(anonymous.map(|kb| kb.trim().parse::<u64>().unwrap()));
    }
    writer.join().unwrap();
    assert!(child.wait().unwrap().success());
    let speed = seconds as f64 / start.elapsed().as_secs_f64();
    sizes.sort_unstable();
    let resident_kb = sizes[sizes.len() * 99 / 100];
    println!("{seconds} s of audio: {resident_kb} kB resident besides mapped files, {speed:.0} xRT");
    Run { text: String::from_utf8(text).unwrap(), resident_kb }
}

#[test]
fn an_hour_takes_no_more_memory_than_minutes() {
    let (minutes, hour) = (stream(337), stream(3600));
    let (minutes_kb, hour_kb) = (minutes.resident_kb, hour.resident_kb);
    assert!(minutes_kb > 1000, "measured nothing");
    // 35 bytes a token would be more
    assert!(hour_kb < minutes_kb + 1536, "{hour_kb} kB after {minutes_kb} kB");
    // 3600 s are 48 times the recording, and its last sentence is always understood
    assert!(hour.text.starts_with(&minutes.text[..minutes.text.len() * 9 / 10]));
    assert_eq!(hour.text.matches("before anybody else was awake.").count(), 48);
}
