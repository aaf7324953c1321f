//! Whatever is wrong with audio or model: a message that names it, and an exit status; never a panic or a hang.

mod support;

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::{project, tiny_model};

fn run(model: &Path, input: &Path) -> (Option<i32>, String, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_voxtral"));
    let output = command.arg("-d").arg(model).arg("-i").arg(input).stdin(Stdio::null()).output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code(), text(output.stdout), text(output.stderr))
}

/// Exit status 1 and a message that holds all of `parts`.
#[track_caller]
fn assert_refused(model: &Path, input: &Path, parts: &[&str]) -> String {
    let (code, stdout, stderr) = run(model, input);
    assert_eq!(code, Some(1), "{stdout}{stderr}");
    assert!(stderr.contains("voxtral: ") && !stderr.contains("panicked"), "{stderr}");
    for part in parts {
        assert!(stderr.contains(part), "{part:?} is not in: {stderr}");
    }
    stdout
}

/// Writes these bytes as `name` and expects a refusal.
#[track_caller]
fn assert_audio_refused(name: &str, bytes: &[u8], parts: &[&str]) -> String {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join(name);
    std::fs::write(&path, bytes).unwrap();
    assert_refused(&tiny_model(), &path, &[&[name], parts].concat())
}

/// A WAV file: format tag, channels, rate, bits, data.
fn wav(tag: u16, channels: u16, rate: u32, bits: u16, data: &[u8]) -> Vec<u8> {
    let block = channels * (bits / 8);
    let mut file = b"RIFF".to_vec();
    file.extend((36 + data.len() as u32).to_le_bytes());
    file.extend(b"WAVEfmt \x10\0\0\0");
    file.extend([tag.to_le_bytes(), channels.to_le_bytes()].concat());
    file.extend([rate.to_le_bytes(), (rate.wrapping_mul(block.into())).to_le_bytes()].concat());
    file.extend([block.to_le_bytes(), bits.to_le_bytes()].concat());
    file.extend(b"data");
    file.extend((data.len() as u32).to_le_bytes());
    file.extend(data);
    file
}

fn floats(samples: &[f32]) -> Vec<u8> {
    wav(3, 1, 16_000, 32, &samples.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>())
}

#[test]
fn files_that_are_no_audio() {
    assert_audio_refused("empty.wav", b"", &["empty"]);
    assert_audio_refused("one.wav", b"R", &["not a known audio format"]);
    assert_audio_refused("text.wav", b"Dear Sir or Madam,\nthis is a letter.\n", &["not a known audio format", "text"]);
    assert_audio_refused("noise.mp3", &(0..9999u32).map(|i| (i * i / 7) as u8).collect::<Vec<_>>(), &["not a known"]);
    assert_audio_refused("cut.wav", b"RIFF\x24\0\0\0WAVEfmt ", &[]);
}

#[test]
fn paths_that_are_no_files() {
    let dir = tempfile::tempdir().unwrap();
    assert_refused(&tiny_model(), dir.path(), &["directory"]);
    assert_refused(&tiny_model(), &dir.path().join("missing.wav"), &["missing.wav", "No such file"]);
    #[cfg(target_os = "linux")]
    assert_refused(&tiny_model(), Path::new("/proc/self/mem"), &["/proc/self/mem"]);
}

#[cfg(unix)]
#[test]
fn a_file_that_may_not_be_read() {
    use std::os::unix::fs::PermissionsExt as _;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("secret.wav");
    std::fs::copy(project("samples/kal_computer.wav"), &path).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o000)).unwrap();
    // root may read everything
    if std::fs::File::open(&path).is_err() {
        assert_refused(&tiny_model(), &path, &["secret.wav", "ermission denied"]);
    }
}

#[test]
fn wav_headers_that_make_no_sense() {
    let second = [0; 32_000];
    assert_audio_refused("no-channels.wav", &wav(1, 0, 16_000, 16, &second), &["channel"]);
    assert_audio_refused("no-rate.wav", &wav(1, 1, 0, 16, &second), &["0 Hz"]);
    assert_audio_refused("odd-bits.wav", &wav(1, 1, 16_000, 13, &second), &[]);
    assert_audio_refused("odd-format.wav", &wav(0x1234, 1, 16_000, 16, &second), &[]);
    assert_audio_refused("nothing.wav", &wav(1, 1, 16_000, 16, &[]), &["no audio"]);
}

#[test]
fn a_file_that_ends_early_gives_what_is_there_and_then_says_so() {
    let whole = std::fs::read(project("samples/slt_numbers.wav")).unwrap();
    let stdout = assert_audio_refused("cut.wav", &whole[..whole.len() * 6 / 10], &["ends after 5.15", "8.59"]);
    assert!(stdout.starts_with("The train to Boston leaves at seven thirty in the evening."), "{stdout}");
}

#[test]
fn samples_that_are_no_sound() {
    for (bad, shown) in [(f32::NAN, "NaN"), (f32::INFINITY, "inf"), (1e30, "1e30"), (-32767.0, "-32767")] {
        let mut samples = vec![0.01; 16_000];
        samples[9000] = bad;
        let stdout = assert_audio_refused("bad.wav", &floats(&samples), &["sample 9000", shown]);
        assert_eq!(stdout, "\n");
    }
    // somewhat over full scale is usual in float files
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("loud.wav"), floats(&[1.5; 16_000])).unwrap();
    assert_eq!(run(&tiny_model(), &dir.path().join("loud.wav")).0, Some(0));
}

/// A copy of the shipped model with one change, and what the program says about it.
#[track_caller]
fn assert_model_refused(change: impl Fn(&Path), parts: &[&str]) {
    let dir = tempfile::tempdir().unwrap();
    for name in ["params.json", "tekken.json", "consolidated.safetensors"] {
        std::fs::copy(tiny_model().join(name), dir.path().join(name)).unwrap();
    }
    change(dir.path());
    assert_refused(dir.path(), &project("samples/kal_computer.wav"), &[&["cannot load the model"], parts].concat());
}

fn change_json(dir: &Path, name: &str, change: impl Fn(&mut Value)) {
    let path = dir.join(name);
    let mut json = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(path, serde_json::to_vec(&json).unwrap()).unwrap();
}

/// Rewrites the header of the weights, keeping the data.
fn change_header(dir: &Path, change: impl Fn(&mut Value)) {
    let path = dir.join("consolidated.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let length = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut header = serde_json::from_slice(&bytes[8..8 + length]).unwrap();
    change(&mut header);
    let header = serde_json::to_vec(&header).unwrap();
    let file = [&(header.len() as u64).to_le_bytes()[..], &header, &bytes[8 + length..]].concat();
    std::fs::write(path, file).unwrap();
}

fn overwrite(dir: &Path, name: &str, bytes: &[u8]) {
    std::fs::write(dir.join(name), bytes).unwrap();
}

#[test]
fn model_directories_that_are_none() {
    let kal = project("samples/kal_computer.wav");
    assert_refused(Path::new("no/such/model"), &kal, &["no/such/model"]);
    assert_refused(&kal, &kal, &["not a directory"]);
    let empty = tempfile::tempdir().unwrap();
    assert_refused(
        empty.path(),
        &kal,
        &["params.json is missing", "tekken.json is missing", "consolidated.safetensors"],
    );
    let remove = |dir: &Path| std::fs::remove_file(dir.join("consolidated.safetensors")).unwrap();
    assert_model_refused(remove, &["consolidated.safetensors is missing"]);
    let hugging_face = |dir: &Path| {
        std::fs::rename(dir.join("consolidated.safetensors"), dir.join("model.safetensors")).unwrap();
    };
    #[cfg(unix)]
    for name in ["params.json", "tekken.json", "consolidated.safetensors"] {
        let endless = |dir: &Path| {
            std::fs::remove_file(dir.join(name)).unwrap();
            std::os::unix::fs::symlink("/dev/zero", dir.join(name)).unwrap();
        };
        assert_model_refused(endless, &[name, "not a regular file"]);
    }
    assert_model_refused(hugging_face, &["model.safetensors", "download consolidated.safetensors"]);
}

#[test]
fn weights_that_are_damaged() {
    let file = "consolidated.safetensors";
    let whole = std::fs::read(tiny_model().join(file)).unwrap();
    for length in [0, 1, 7, 8, 1000, whole.len() / 2, whole.len() - 1] {
        assert_model_refused(|dir| overwrite(dir, file, &whole[..length]), &[file]);
    }
    for header in [1u64 << 63, u64::MAX, whole.len() as u64, 3] {
        let bytes = [&header.to_le_bytes()[..], &whole[8..]].concat();
        assert_model_refused(|dir| overwrite(dir, file, &bytes), &[file]);
    }
    assert_model_refused(|dir| overwrite(dir, file, &[0xFF; 4096]), &[file]);
    assert_model_refused(
        |dir| std::fs::remove_file(dir.join(file)).and(std::fs::create_dir(dir.join(file))).unwrap(),
        &[file],
    );
}

#[test]
fn weights_that_are_not_this_models() {
    let offsets = |header: &mut Value, name: &str, at: [u64; 2]| header[name]["data_offsets"] = json!(at);
    assert_model_refused(|d| change_header(d, |h| offsets(h, "norm.weight", [1 << 40, (1 << 40) + 512])), &[]);
    assert_model_refused(|d| change_header(d, |h| offsets(h, "norm.weight", [0, 512])), &[]); // overlaps another
    assert_model_refused(|d| change_header(d, |h| offsets(h, "norm.weight", [512, 0])), &[]);
    assert_model_refused(|d| change_header(d, |h| h["norm.weight"]["dtype"] = "F16".into()), &["norm.weight is F16"]);
    let transpose = |h: &mut Value| {
        h["layers.0.feed_forward.w1.weight"]["shape"] = json!([256, 512]);
        h["layers.1.ada_rms_norm_t_cond.0.weight"]["shape"] = json!([256, 32]);
    };
    // both faults in one message
    assert_model_refused(
        |d| change_header(d, transpose),
        &[
            "layers.0.feed_forward.w1.weight has shape [256, 512], expected [512, 256]",
            "layers.1.ada_rms_norm_t_cond.0.weight",
        ],
    );
    let rename = |h: &mut Value| {
        let tensor = h.as_object_mut().unwrap().remove("norm.weight").unwrap();
        h["abnorm.weight"] = tensor;
    };
    assert_model_refused(|d| change_header(d, rename), &["norm.weight is missing"]);
    assert_model_refused(
        |d| change_json(d, "params.json", |p| p["n_layers"] = 4.into()),
        &["layers.3.attention_norm.weight is missing"],
    );
    assert_model_refused(
        |d| change_json(d, "params.json", |p| p["n_layers"] = 2.into()),
        &["layers.2.", "fewer layers"],
    );
}

#[test]
fn tensors_of_no_use_are_ignored() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["params.json", "tekken.json", "consolidated.safetensors"] {
        std::fs::copy(tiny_model().join(name), dir.path().join(name)).unwrap();
    }
    change_header(dir.path(), |header| {
        for name in ["output.weight", "layers.0.extra"] {
            header[name] = json!({"dtype": "BF16", "shape": [0], "data_offsets": [0, 0]});
        }
    });
    let (code, stdout, stderr) = run(dir.path(), &project("samples/kal_computer.wav"));
    assert_eq!((code, stdout.is_empty()), (Some(0), false), "{stderr}");
    assert_eq!(stderr.lines().count(), 1, "{stderr}");
}

#[test]
fn json_files_that_are_broken() {
    for name in ["params.json", "tekken.json"] {
        let whole = std::fs::read(tiny_model().join(name)).unwrap();
        for bytes in [&b""[..], b"{", b"[]", b"null", b"\xFF\xFE", &whole[..whole.len() / 2]] {
            assert_model_refused(|dir| overwrite(dir, name, bytes), &[name]);
        }
    }
    assert_model_refused(|d| change_json(d, "params.json", |p| p["dim"] = 0.into()), &["dim is 0"]);
    assert_model_refused(|d| change_json(d, "params.json", |p| p["n_heads"] = u64::MAX.into()), &["n_heads"]);
    assert_model_refused(
        |d| change_json(d, "params.json", |p| p["sliding_window"] = 0.into()),
        &["sliding_window is 0"],
    );
    assert_model_refused(
        |d| change_json(d, "tekken.json", |t| t["vocab"][700]["rank"] = 1.into()),
        &["vocab[700].rank"],
    );
    assert_model_refused(
        |d| change_json(d, "tekken.json", |t| t["vocab"][9]["token_bytes"] = "?".into()),
        &["vocab[9]"],
    );
}
