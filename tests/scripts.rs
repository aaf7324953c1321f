//! The scripts that users run after building.
#![cfg(unix)]

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
    std::fs::write(&wrapper, script).unwrap();
    std::fs::set_permissions(&wrapper, std::fs::Permissions::from_mode(0o755)).unwrap();
    let output = runtest(&wrapper);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("FAIL  hibari_intro.wav: -I 0.08") && text.contains("1 failed"), "{text}");
}
