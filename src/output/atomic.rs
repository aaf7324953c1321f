//! Files that appear whole or not at all.
//!
//! Bytes go to a temporary file beside the target, `.NAME.RANDOM.voxtral-tmp`; [`AtomicFile::commit`] flushes it to the disk
//! and renames it, so whoever finds the target finds all of it, after a crash of the machine too. Dropped before that, or if
//! writing fails, nothing is left. A killed process leaves the temporary file; [`remove_stale`] finds those.

use std::collections::{HashMap, HashSet};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use tempfile::NamedTempFile;

const SUFFIX: &str = ".voxtral-tmp";
/// Random characters in the name of a temporary file.
const N_RANDOM: usize = 6;

/// A file being written.
#[derive(Debug)]
pub struct AtomicFile {
    out: Out,
}

#[derive(Debug)]
enum Out {
    Renamed {
        out: BufWriter<NamedTempFile>,
        path: PathBuf,
    },
    /// A device or a pipe, which nothing may take the place of.
    Direct(BufWriter<File>),
}

impl AtomicFile {
    /// Begins a file at `path`, in a directory that exists. A link is followed; what is no regular file is written to
    /// directly.
    ///
    /// # Errors
    /// Those of the operating system.
    pub fn create(path: &Path) -> io::Result<Self> {
        let out = match fs::metadata(path) {
            Ok(found) if found.is_dir() => return Err(io::ErrorKind::IsADirectory.into()),
            Ok(found) if !found.is_file() => Out::Direct(BufWriter::new(File::options().write(true).open(path)?)),
            Ok(_) => temporary(path.canonicalize()?)?,
            Err(_) => temporary(path.to_owned())?,
        };
        Ok(Self { out })
    }

    /// Makes what was written the file.
    ///
    /// # Errors
    /// Those of the operating system; the target is then as it was.
    pub fn commit(self) -> io::Result<()> {
        match self.out {
            Out::Direct(mut out) => out.flush(),
            Out::Renamed { out, path } => {
                let file = out.into_inner().map_err(io::IntoInnerError::into_error)?;
                file.as_file().sync_all()?;
                file.persist(&path).map_err(|error| error.error)?;
                sync_directory(directory(&path));
                Ok(())
            }
        }
    }
}

impl Write for AtomicFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &mut self.out {
            Out::Renamed { out, .. } => out.write(bytes),
            Out::Direct(out) => out.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match &mut self.out {
            Out::Renamed { out, .. } => out.flush(),
            Out::Direct(out) => out.flush(),
        }
    }
}

fn temporary(path: PathBuf) -> io::Result<Out> {
    let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?;
    let prefix = prefix(name);
    let mut builder = tempfile::Builder::new();
    builder.prefix(&prefix).suffix(SUFFIX).rand_bytes(N_RANDOM);
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    let file = builder.tempfile_in(directory(&path))?;
    Ok(Out::Renamed { out: BufWriter::new(file), path })
}

fn prefix(name: &OsStr) -> OsString {
    let mut prefix = OsString::from(".");
    prefix.push(name);
    prefix.push(".");
    prefix
}

fn directory(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Makes a rename last. Not every system lets a directory be opened; there it lasts anyway.
fn sync_directory(path: &Path) {
    if let Ok(directory) = File::open(path) {
        let _ = directory.sync_all();
    }
}

/// Removes what killed processes left of these files; how many there were. Nobody else may be writing them.
pub fn remove_stale<'a>(paths: impl IntoIterator<Item = &'a Path>) -> usize {
    let mut names: HashMap<&Path, HashSet<&OsStr>> = HashMap::new();
    for path in paths {
        if let Some(name) = path.file_name() {
            names.entry(directory(path)).or_default().insert(name);
        }
    }
    let mut n_removed = 0;
    for (directory, names) in names {
        for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
            let is_stale = entry.file_name().to_str().and_then(target).is_some_and(|name| names.contains(name));
            if is_stale && fs::remove_file(entry.path()).is_ok() {
                n_removed += 1;
            }
        }
    }
    n_removed
}

/// The name of the file that a temporary one of this name was to become.
fn target(name: &str) -> Option<&OsStr> {
    let (target, random) = name.strip_prefix('.')?.strip_suffix(SUFFIX)?.rsplit_once('.')?;
    (random.len() == N_RANDOM).then_some(OsStr::new(target))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort_unstable();
        names
    }

    #[test]
    fn a_file_appears_when_it_is_committed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.txt");
        fs::write(&path, "old").unwrap();
        let mut file = AtomicFile::create(&path).unwrap();
        file.write_all(b"new").unwrap();
        file.flush().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()).len(), 2);
        file.commit().unwrap();
        assert_eq!((fs::read(&path).unwrap(), names(dir.path())), (b"new".to_vec(), vec!["a.txt".to_owned()]));
        drop(AtomicFile::create(&dir.path().join("b.txt")).unwrap());
        assert_eq!(names(dir.path()), ["a.txt"]);
    }

    #[test]
    fn what_cannot_be_written_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        assert!(AtomicFile::create(&dir.path().join("missing/a.txt")).is_err());
        assert!(AtomicFile::create(dir.path()).is_err());
        assert!(AtomicFile::create(&dir.path().join("..")).is_err());
        assert!(AtomicFile::create(&dir.path().join("a".repeat(300))).is_err());
        assert!(names(dir.path()).is_empty());
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_devices_kept_and_permissions_usual() {
        use std::os::unix::fs::{PermissionsExt as _, symlink};
        let dir = tempfile::tempdir().unwrap();
        let [real, link] = ["real", "link"].map(|name| dir.path().join(name));
        fs::write(&real, "").unwrap();
        symlink(&real, &link).unwrap();
        let mut file = AtomicFile::create(&link).unwrap();
        file.write_all(b"text").unwrap();
        file.commit().unwrap();
        assert_eq!(fs::read(&real).unwrap(), b"text");
        assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
        let usual = dir.path().join("usual");
        File::create(&usual).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode();
        assert_eq!(mode(&real), mode(&usual));
        let mut null = AtomicFile::create(Path::new("/dev/null")).unwrap();
        null.write_all(b"text").unwrap();
        null.commit().unwrap();
        assert!(!fs::metadata("/dev/null").unwrap().is_file());
    }

    #[test]
    fn stale_files_are_those_of_the_same_targets() {
        let dir = tempfile::tempdir().unwrap();
        let a = dir.path().join("a.b.txt");
        let (_, left) = match AtomicFile::create(&a).unwrap().out {
            Out::Renamed { out, .. } => out.into_inner().unwrap().keep().unwrap(),
            Out::Direct(_) => unreachable!("not there yet"),
        };
        let others = [".other.txt.abcdef.voxtral-tmp", ".a.b.txt.abcdef", "a.b.txt.abcdef.voxtral-tmp", ".voxtral-tmp"];
        others.iter().for_each(|name| fs::write(dir.path().join(name), "").unwrap());
        assert_eq!(remove_stale([a.as_path(), Path::new("/nowhere/at/all")]), 1);
        assert!(!left.exists());
        assert_eq!(names(dir.path()).len(), others.len());
    }
}
