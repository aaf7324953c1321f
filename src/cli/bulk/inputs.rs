//! From what was named to what is transcribed: files, directories, patterns and lists become single inputs, each with the
//! place that its transcript has in an output directory.
//!
//! The order depends on the names alone, so that several machines agree on it.

use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::io::{self, Read as _};
use std::path::{Component, Path, PathBuf};

use anyhow::{Context as _, anyhow};
use bstr::ByteSlice as _;
use walkdir::{DirEntry, WalkDir};

use crate::cli::options::{Input, Selection, Shard, is_pattern};

/// What names of audio files end in. What such a file holds is found by content.
const EXTENSIONS: [&str; 26] = [
    "3gp", "aac", "aif", "aifc", "aiff", "caf", "flac", "m4a", "m4b", "m4v", "mka", "mkv", "mov", "mp1", "mp2", "mp3",
    "mp4", "mpga", "oga", "ogg", "opus", "rf64", "wav", "wave", "weba", "webm",
];

/// One input.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    pub input: Input,
    /// Where its transcript belongs under an output directory, without the format's extension.
    pub stem: PathBuf,
    /// The input relative to the directory, pattern or name by which it was found.
    relative: PathBuf,
}

/// All inputs in order, and what was wrong with some of the names.
#[derive(Debug, Default)]
pub struct Inputs {
    pub found: Vec<Found>,
    pub faults: Vec<anyhow::Error>,
    /// Whether directories are looked through to the bottom.
    recursive: bool,
    /// Whether any file may be audio.
    raw: bool,
}

impl Inputs {
    /// Looks for all inputs. Files that are named but missing are among them: opening them says why.
    pub fn find(selection: &Selection, raw: bool) -> Self {
        let mut inputs = Self { recursive: selection.recursive, raw, ..Self::default() };
        for named in &selection.named {
            match named {
                Input::File(path) => inputs.add_named(path),
                other => inputs.found.push(Found {
                    input: other.clone(),
                    stem: PathBuf::new(),
                    relative: other.name().into(),
                }),
            }
        }
        for list in &selection.lists {
            match read_list(list) {
                Ok(paths) => paths.iter().for_each(|path| inputs.add_listed(path)),
                Err(error) => inputs.faults.push(error),
            }
        }
        inputs
    }

    /// Gives every input its own place in an output directory, and drops what was found twice.
    ///
    /// The place mirrors the tree below the directory or pattern that the input was found by. Inputs that differ only in
    /// their extension keep it, and those that still meet keep all of their path.
    ///
    /// # Errors
    /// Two inputs with the same place: only where one is named in two ways.
    pub fn place(&mut self) -> anyhow::Result<()> {
        let mut seen = HashSet::new();
        self.found.retain(|found| seen.insert(found.input.clone()));
        let mut levels = vec![0; self.found.len()];
        loop {
            let stems: Vec<_> = self.found.iter().zip(&levels).map(|(found, level)| found.stem_at(*level)).collect();
            let mut groups: HashMap<OsString, Vec<usize>> = HashMap::new();
            for (i, stem) in stems.iter().enumerate() {
                groups.entry(file_system_key(stem)).or_default().push(i);
            }
            let mut meeting: Vec<_> = groups.into_values().filter(|group| group.len() > 1).collect();
            if meeting.is_empty() {
                self.found.iter_mut().zip(stems).for_each(|(found, stem)| found.stem = stem);
                return Ok(());
            }
            meeting.sort_unstable();
            for group in meeting {
                if group.iter().all(|i| levels[*i] == LAST_LEVEL) {
                    let names: Vec<_> = group.iter().map(|i| self.found[*i].input.name()).collect();
                    anyhow::bail!("{} would have the same output, {}", names.join(" and "), stems[group[0]].display());
                }
                group.iter().for_each(|i| levels[*i] = (levels[*i] + 1).min(LAST_LEVEL));
            }
        }
    }

    /// Keeps what is this machine's share: every N-th input.
    pub fn keep_shard(&mut self, shard: Shard) {
        let mut i = 0;
        self.found.retain(|_| {
            i += 1;
            (i - 1) % shard.count == shard.index
        });
    }

    fn add(&mut self, path: PathBuf, relative: &Path) {
        let relative = relative.to_owned();
        self.found.push(Found { input: Input::File(path), stem: PathBuf::new(), relative });
    }

    /// A file, a directory or a pattern.
    fn add_named(&mut self, path: &Path) {
        let pattern = path.to_str().filter(|_| is_pattern(path) && fs::symlink_metadata(path).is_err());
        if let Some(pattern) = pattern {
            if let Err(error) = self.add_pattern(pattern) {
                self.faults.push(error.context(pattern.to_owned()));
            }
        } else if path.is_dir() {
            self.add_directory(path, path);
        } else {
            self.add(path.to_owned(), Path::new(path.file_name().unwrap_or(path.as_os_str())));
        }
    }

    /// A file or a directory, which keeps its path as the list has it.
    fn add_listed(&mut self, path: &Path) {
        if path.is_dir() { self.add_directory(path, Path::new("")) } else { self.add(path.to_owned(), path) }
    }

    fn add_pattern(&mut self, pattern: &str) -> anyhow::Result<()> {
        // hidden files must be asked for, as in a shell
        let rules = glob::MatchOptions { require_literal_leading_dot: true, ..glob::MatchOptions::new() };
        // before the first wildcard
        let base: PathBuf = Path::new(pattern).components().take_while(|part| !is_pattern(Path::new(part))).collect();
        let n_before = self.found.len() + self.faults.len();
        for entry in glob::glob_with(pattern, rules)? {
            match entry {
                Ok(path) if path.is_dir() && !self.recursive => {}
                Ok(path) if path.is_dir() => self.add_directory(&path, &base),
                Ok(path) => {
                    let relative = path.strip_prefix(&base).unwrap_or(&path).to_owned();
                    self.add(path, &relative);
                }
                Err(error) => self.faults.push(error.into()),
            }
        }
        if self.found.len() + self.faults.len() == n_before {
            anyhow::bail!("no file matches");
        }
        Ok(())
    }

    /// The audio files in a directory, below it too if asked for, with their paths relative to `base`.
    fn add_directory(&mut self, directory: &Path, base: &Path) {
        let depth = if self.recursive { usize::MAX } else { 1 };
        let entries = WalkDir::new(directory).min_depth(1).max_depth(depth).follow_links(true).sort_by_file_name();
        let n_before = self.found.len() + self.faults.len();
        for entry in entries.into_iter().filter_entry(|entry| entry.depth() == 0 || !is_hidden(entry)) {
            match entry {
                Ok(entry) if entry.file_type().is_file() && (self.raw || is_audio(entry.path())) => {
                    let relative = entry.path().strip_prefix(base).unwrap_or(entry.path()).to_owned();
                    self.add(entry.into_path(), &relative);
                }
                Ok(_) => {}
                Err(error) => self.faults.push(error.into()),
            }
        }
        if self.found.len() + self.faults.len() == n_before {
            let hint = if self.recursive { "" } else { "; --recursive looks below it" };
            self.faults.push(anyhow!("{}: no audio files in this directory{hint}", directory.display()));
        }
    }
}

const LAST_LEVEL: usize = 2;

impl Found {
    fn stem_at(&self, level: usize) -> PathBuf {
        match (level, &self.input) {
            (0, _) => within(&self.relative.with_extension("")),
            (LAST_LEVEL, Input::File(path)) => within(path),
            _ => within(&self.relative),
        }
    }
}

/// The path without what would lead out of the directory it is put under.
fn within(path: &Path) -> PathBuf {
    path.components().filter(|part| matches!(part, Component::Normal(_))).collect()
}

/// What two names have in common that are one file.
fn file_system_key(path: &Path) -> OsString {
    if cfg!(any(windows, target_os = "macos")) { path.to_string_lossy().to_lowercase().into() } else { path.into() }
}

fn is_hidden(entry: &DirEntry) -> bool {
    entry.file_name().as_encoded_bytes().starts_with(b".")
}

fn is_audio(path: &Path) -> bool {
    let extension = path.extension().and_then(|name| name.to_str()).map(str::to_lowercase);
    extension.is_some_and(|name| EXTENSIONS.contains(&name.as_str()))
}

/// The paths in a list: one a line, or ended by NUL bytes as `find -print0` writes them.
fn read_list(path: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut bytes = Vec::new();
    let (name, result) = if path.as_os_str() == "-" {
        ("list on stdin".to_owned(), io::stdin().read_to_end(&mut bytes))
    } else {
        let read = fs::File::open(path).and_then(|mut file| file.read_to_end(&mut bytes));
        (path.display().to_string(), read)
    };
    result.with_context(|| name.clone())?;
    parse_list(&bytes).context(name)
}

fn parse_list(bytes: &[u8]) -> anyhow::Result<Vec<PathBuf>> {
    let bytes = bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes);
    let names: Vec<&[u8]> = if bytes.contains(&0) {
        bytes.split(|byte| *byte == 0).collect()
    } else {
        bytes.lines().collect() // takes CR LF too
    };
    let names = names.into_iter().filter(|name| !name.is_empty());
    let paths: Result<Vec<_>, _> = names.map(|name| name.to_path().map(Path::to_owned)).collect();
    let paths = paths.context("not a list of names in UTF-8")?;
    if paths.is_empty() {
        anyhow::bail!("no names in it");
    }
    Ok(paths)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory with these files in it.
    fn tree(files: &[&str]) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        for file in files {
            let path = dir.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, file).unwrap();
        }
        dir
    }

    fn selection(named: &[PathBuf], recursive: bool) -> Selection {
        let named = named.iter().cloned().map(Input::File).collect();
        Selection { named, lists: Vec::new(), recursive, shard: None }
    }

    fn find_all(selection: &Selection) -> Inputs {
        Inputs::find(selection, false)
    }

    fn stems(inputs: &mut Inputs) -> Vec<String> {
        inputs.place().unwrap();
        inputs.found.iter().map(|found| found.stem.to_str().unwrap().replace('\\', "/")).collect()
    }

    #[test]
    fn directories_give_their_audio_files_in_order() {
        let dir = tree(&["b.wav", "a.MP3", "notes.txt", ".hidden.wav", "sub/c.flac", "sub/deep/d.ogg", ".git/e.wav"]);
        let find = |recursive| find_all(&selection(&[dir.path().to_owned()], recursive));
        assert_eq!(stems(&mut find(false)), ["a", "b"]);
        assert_eq!(stems(&mut find(true)), ["a", "b", "sub/c", "sub/deep/d"]);
        assert!(find(true).faults.is_empty());
        let raw = Inputs::find(&selection(&[dir.path().to_owned()], false), true);
        assert_eq!(raw.found.len(), 3);
    }

    #[test]
    fn patterns_mirror_the_tree_below_their_fixed_part() {
        let dir = tree(&["x/a.wav", "x/y/b.wav", "x/y/.c.wav", "x/y/c.txt", "[1].wav"]);
        let find = |pattern: &str, recursive| find_all(&selection(&[dir.path().join(pattern)], recursive));
        assert_eq!(stems(&mut find("x/*/*.wav", false)), ["y/b"]);
        assert_eq!(stems(&mut find("x/**/*.wav", false)), ["a", "y/b"]);
        assert_eq!(stems(&mut find("x*", true)), ["x/a", "x/y/b"]);
        // a file of that very name is no pattern
        assert_eq!(stems(&mut find("[1].wav", false)), ["[1]"]);
        for nothing in ["*.mp3", "x*", "[", "**a"] {
            let inputs = find(nothing, false);
            assert_eq!((inputs.found.len(), inputs.faults.len()), (0, 1), "{nothing}");
            assert!(format!("{:#}", inputs.faults[0]).contains(nothing));
        }
    }

    #[test]
    fn named_files_may_be_missing_and_directories_without_audio_are_faults() {
        let dir = tree(&["notes.txt", "sub/a.wav"]);
        let inputs = find_all(&selection(&[dir.path().to_owned(), "nothing.wav".into()], false));
        assert_eq!(inputs.found[0].input, Input::File("nothing.wav".into()));
        assert!(inputs.faults[0].to_string().ends_with("no audio files in this directory; --recursive looks below it"));
    }

    #[test]
    fn every_input_has_its_own_place() {
        let place = |names: &[&str]| {
            let mut inputs = find_all(&selection(&names.iter().map(PathBuf::from).collect::<Vec<_>>(), false));
            inputs.place().map(|()| inputs.found.iter().map(|f| f.stem.display().to_string()).collect::<Vec<_>>())
        };
        assert_eq!(place(&["x/a.wav", "y/b.v2.wav", "c"]).unwrap(), ["a", "b.v2", "c"]);
        assert_eq!(place(&["a.wav", "a.mp3", "b.mp3"]).unwrap(), ["a.wav", "a.mp3", "b"]);
        assert_eq!(place(&["x/a.wav", "y/a.wav"]).unwrap(), ["x/a.wav", "y/a.wav"]);
        assert_eq!(place(&["a.wav", "a.wav"]).unwrap(), ["a"]);
        assert_eq!(place(&["a.wav", "a.mp3", "a.wav.ogg"]).unwrap(), ["a.wav", "a.mp3", "a.wav.ogg"]);
        assert_eq!(place(&["../../etc/a.wav"]).unwrap(), ["a"]);
        let error = place(&["a.wav", "./a.wav"]).unwrap_err().to_string();
        assert!(error.contains("a.wav and ./a.wav would have the same output"), "{error}");
    }

    #[test]
    fn lists_keep_their_paths() {
        let dir = tree(&["list", "talks/a.wav", "talks/b.wav"]);
        let talks = dir.path().join("talks");
        let find = |text: String| {
            fs::write(dir.path().join("list"), text).unwrap();
            let selection = Selection { lists: vec![dir.path().join("list")], ..selection(&[], false) };
            find_all(&selection)
        };
        let expected = within(&talks.join("a")).display().to_string();
        assert_eq!(stems(&mut find(format!("{}\n", talks.join("a.wav").display())))[0], expected);
        assert_eq!(stems(&mut find(talks.display().to_string()))[0], expected);
        assert_eq!(stems(&mut find("x/a.wav\r\n\r\n../y/a.wav".into())), ["x/a", "y/a"]);
        assert_eq!(stems(&mut find("\u{feff}x y\nz.wav\0b\0".into())), ["x y\nz", "b"]);
        assert!(find("\n\n".into()).faults[0].to_string().ends_with("list"));
        let missing = Selection { lists: vec!["no/list".into()], ..selection(&[], false) };
        assert_eq!(find_all(&missing).faults.len(), 1);
    }

    #[test]
    fn shards_share_all_inputs() {
        let names: Vec<_> = (0..10).map(|i| PathBuf::from(format!("{i}.wav"))).collect();
        for count in 1..=12 {
            let mut all = Vec::new();
            for index in 0..count {
                let mut inputs = find_all(&selection(&names, false));
                inputs.keep_shard(Shard { index, count });
                assert!(inputs.found.len() <= 10_usize.div_ceil(count));
                all.extend(inputs.found.into_iter().map(|found| found.input.name()));
            }
            all.sort_unstable();
            assert_eq!(all, (0..10).map(|i| format!("{i}.wav")).collect::<Vec<_>>());
        }
    }

    #[cfg(unix)]
    #[test]
    fn loops_of_links_end_and_broken_ones_are_named() {
        let dir = tree(&["a.wav"]);
        std::os::unix::fs::symlink(dir.path(), dir.path().join("loop")).unwrap();
        std::os::unix::fs::symlink("gone", dir.path().join("broken.wav")).unwrap();
        let inputs = find_all(&selection(&[dir.path().to_owned()], true));
        assert_eq!((inputs.found.len(), inputs.faults.len()), (1, 2), "{:?}", inputs.faults);
    }
}
