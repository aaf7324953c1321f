//! What was done in an output directory: `voxtral-manifest.jsonl`, one JSON object a line, appended and synced.
//!
//! An entry is written after the outputs that it speaks of are on the disk. Lines that don't parse are passed over: a killed
//! process leaves at most half of its last one, and that input counts as not done. Machines that share a directory
//! write manifests of their own and read all.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::cli::options::Shard;

const PREFIX: &str = "voxtral-manifest";
const EXTENSION: &str = ".jsonl";

/// Which bytes of which file: one that was changed counts as another.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Version {
    /// The absolute path.
    pub input: String,
    /// Size in bytes.
    pub size: u64,
    /// Time of the last change, in nanoseconds since 1970.
    pub mtime_ns: u64,
}

impl Version {
    /// Of the file as it is now; none where it is missing or no regular file.
    pub fn of(path: &Path) -> Option<Self> {
        let found = fs::metadata(path).ok().filter(fs::Metadata::is_file)?;
        let absolute = std::path::absolute(path).ok()?;
        let time = found.modified().unwrap_or(SystemTime::UNIX_EPOCH).duration_since(UNIX_EPOCH).unwrap_or_default();
        let input = absolute.to_string_lossy().into_owned();
        Some(Self { input, size: found.len(), mtime_ns: time.as_nanos() as u64 })
    }
}

/// How an input ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    Done,
    Failed,
}

/// One line.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Entry {
    #[serde(flatten)]
    pub version: Version,
    /// Hash of everything that decides what the outputs hold.
    pub settings: String,
    pub status: Status,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
    /// Seconds of audio.
    pub audio_seconds: f64,
    /// Seconds of work.
    pub seconds: f64,
}

/// The manifests of a directory.
#[derive(Debug)]
pub struct Manifest {
    entries: HashMap<String, Entry>,
    file: File,
    path: PathBuf,
}

impl Manifest {
    /// Reads all manifests of a directory, which exists, and opens the one that this process appends to.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn open(directory: &Path, shard: Option<Shard>) -> io::Result<Self> {
        let mut paths: Vec<_> = fs::read_dir(directory)?
            .flatten()
            .filter(|entry| {
                let name = entry.file_name();
                let name = name.to_string_lossy();
                name.starts_with(PREFIX) && name.ends_with(EXTENSION)
            })
            .map(|entry| entry.path())
            .collect();
        paths.sort_unstable();
        let mut entries = HashMap::new();
        for path in paths {
            let text = fs::read(path)?;
            for line in text.split(|byte| *byte == b'\n') {
                if let Ok(entry) = serde_json::from_slice::<Entry>(line) {
                    keep_better(&mut entries, entry);
                }
            }
        }
        let part = shard.map_or(String::new(), |shard| format!("-{}-of-{}", shard.index + 1, shard.count));
        let path = directory.join(format!("{PREFIX}{part}{EXTENSION}"));
        let mut file = File::options().read(true).append(true).create(true).open(&path)?;
        end_line(&mut file)?;
        Ok(Self { entries, file, path })
    }

    /// Where entries are appended.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether this file was transcribed with these settings.
    pub fn is_done(&self, version: &Version, settings: &str) -> bool {
        self.entries.get(&version.input).is_some_and(|entry| {
            entry.status == Status::Done && entry.version == *version && entry.settings == settings
        })
    }

    /// Adds an entry, for good.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn append(&mut self, entry: Entry) -> io::Result<()> {
        let mut line = serde_json::to_vec(&entry)?;
        line.push(b'\n');
        self.file.write_all(&line)?;
        self.file.sync_data()
    }
}

/// Later entries count, but in the manifests of several machines there is no later: what is done stays done.
fn keep_better(entries: &mut HashMap<String, Entry>, entry: Entry) {
    let known = entries.get(&entry.version.input);
    let same = known.is_some_and(|e| (&e.version, &e.settings) == (&entry.version, &entry.settings));
    if !(same && entry.status == Status::Failed) {
        entries.insert(entry.version.input.clone(), entry);
    }
}

/// Ends the line that a killed process left unfinished.
fn end_line(file: &mut File) -> io::Result<()> {
    if file.seek(SeekFrom::End(0))? == 0 {
        return Ok(());
    }
    file.seek(SeekFrom::End(-1))?;
    let mut last = [0];
    file.read_exact(&mut last)?;
    if last != *b"\n" { file.write_all(b"\n") } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(input: &str, status: Status) -> Entry {
        Entry {
            version: Version { input: input.into(), size: 3, mtime_ns: 5 },
            settings: "s".into(),
            status,
            error: (status == Status::Failed).then(|| "why".into()),
            audio_seconds: 1.5,
            seconds: 0.25,
        }
    }

    #[test]
    fn done_is_the_same_file_with_the_same_settings() {
        let dir = tempfile::tempdir().unwrap();
        let mut manifest = Manifest::open(dir.path(), None).unwrap();
        manifest.append(entry("a", Status::Done)).unwrap();
        manifest.append(entry("b", Status::Failed)).unwrap();
        let manifest = Manifest::open(dir.path(), Some(Shard { index: 1, count: 4 })).unwrap();
        assert!(manifest.path().ends_with("voxtral-manifest-2-of-4.jsonl"));
        let a = entry("a", Status::Done).version;
        assert!(manifest.is_done(&a, "s"));
        assert!(!manifest.is_done(&a, "t"));
        assert!(!manifest.is_done(&Version { size: 4, ..a.clone() }, "s"));
        assert!(!manifest.is_done(&Version { mtime_ns: 6, ..a }, "s"));
        assert!(!manifest.is_done(&entry("b", Status::Failed).version, "s"));
        assert!(!manifest.is_done(&entry("c", Status::Done).version, "s"));
    }

    #[test]
    fn a_failure_is_forgotten_once_it_is_done() {
        let dir = tempfile::tempdir().unwrap();
        let mut manifest = Manifest::open(dir.path(), None).unwrap();
        manifest.append(entry("a", Status::Failed)).unwrap();
        manifest.append(entry("a", Status::Done)).unwrap();
        let mut other = Manifest::open(dir.path(), Some(Shard { index: 0, count: 2 })).unwrap();
        other.append(entry("a", Status::Failed)).unwrap();
        let manifest = Manifest::open(dir.path(), None).unwrap();
        assert!(manifest.is_done(&entry("a", Status::Done).version, "s"));
    }

    #[test]
    fn torn_and_foreign_lines_are_passed_over() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("voxtral-manifest.jsonl");
        let whole = serde_json::to_string(&entry("a", Status::Done)).unwrap();
        for cut in 0..whole.len() {
            fs::write(&path, format!("{whole}\n{{}}\n\u{0}\n{}", &whole.replace("\"a\"", "\"b\"")[..cut])).unwrap();
            let mut manifest = Manifest::open(dir.path(), None).unwrap();
            assert!(manifest.is_done(&entry("a", Status::Done).version, "s"));
            assert!(!manifest.is_done(&entry("b", Status::Done).version, "s"), "{cut}");
            manifest.append(entry("c", Status::Done)).unwrap();
            let again = Manifest::open(dir.path(), None).unwrap();
            assert!(again.is_done(&entry("c", Status::Done).version, "s"), "{cut}");
        }
    }

    #[test]
    fn only_files_have_versions() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("a");
        fs::write(&file, "abc").unwrap();
        assert_eq!(Version::of(&file).unwrap().size, 3);
        assert!(Version::of(dir.path()).is_none() && Version::of(&dir.path().join("b")).is_none());
    }
}
