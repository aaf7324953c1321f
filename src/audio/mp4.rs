//! The edit lists of MP4 files, which say where the encoder's delay ends and its padding starts; symphonia ignores them.
//!
//! In: a file, or the start of a stream. Out: one [`Edit`] per track that has one, and the bytes taken from the stream.
//! What is malformed here is left for the demuxer to report. Formats as in ISO 14496-12 §8.6.6.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

/// Largest index that is searched; some 100 hours of AAC.
const MAX_INDEX: u64 = 256 * 1024 * 1024;

/// Bytes before the index of a stream that are taken into memory.
const MAX_BEFORE: u64 = 1024 * 1024;

/// The part of a track that is to be heard.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Edit {
    pub(super) track: u32,
    /// Seconds of the track before the part.
    pub(super) start: f64,
    /// Length in seconds.
    pub(super) len: f64,
}

/// The edits of a file, which is then where it was before.
pub(super) fn edits_of_file(file: &mut File) -> std::io::Result<Vec<Edit>> {
    let start = file.stream_position()?;
    let mut position = start;
    let mut edits = Vec::new();
    let mut head = Vec::new();
    while let Some((kind, head_len, len)) = atom(file, &mut head)? {
        if &kind == b"moov" {
            edits = edits_of_index(file, len - head_len)?;
            break;
        }
        position = position.saturating_add(len);
        file.seek(SeekFrom::Start(position))?;
    }
    file.seek(SeekFrom::Start(start))?;
    Ok(edits)
}

/// The edits of a stream with its index in front; `None` if its audio comes first. `taken` gets the bytes read.
pub(super) fn edits_of_stream(stream: &mut impl Read, taken: &mut Vec<u8>) -> std::io::Result<Option<Vec<Edit>>> {
    while let Some((kind, head_len, len)) = atom(stream, taken)? {
        let most = match &kind {
            b"moov" => MAX_INDEX,
            b"mdat" => return Ok(None),
            b"moof" => 0,
            _ => MAX_BEFORE.saturating_sub(taken.len() as u64),
        };
        if len > most {
            break;
        }
        let start = taken.len();
        stream.take(len - head_len).read_to_end(taken)?;
        if &kind == b"moov" {
            return Ok(Some(edits_of_movie(&taken[start..])));
        }
    }
    Ok(Some(Vec::new()))
}

fn edits_of_index(reader: &mut impl Read, len: u64) -> std::io::Result<Vec<Edit>> {
    let mut movie = Vec::new();
    reader.take(len.min(MAX_INDEX)).read_to_end(&mut movie)?;
    Ok(edits_of_movie(&movie))
}

/// Reads the head of an atom, and appends it to `taken`: its kind, the length of the head, and that of the atom.
fn atom(reader: &mut impl Read, taken: &mut Vec<u8>) -> std::io::Result<Option<([u8; 4], u64, u64)>> {
    let start = taken.len();
    reader.take(8).read_to_end(taken)?;
    let head = taken[start..].to_vec();
    let (Some(len), Some(kind)) = (be(&head, 0, 4), head.get(4..8)) else { return Ok(None) };
    let kind = [kind[0], kind[1], kind[2], kind[3]];
    if len != 1 {
        return Ok((len >= 8).then_some((kind, 8, len)));
    }
    reader.take(8).read_to_end(taken)?;
    let len = be(taken, start + 8, 8);
    Ok(len.filter(|&len| len >= 16).map(|len| (kind, 16, len)))
}

fn edits_of_movie(movie: &[u8]) -> Vec<Edit> {
    let Some(movie_scale) = child(movie, b"mvhd").and_then(time_scale) else { return Vec::new() };
    children(movie).filter(|(kind, _)| kind == b"trak").filter_map(|(_, track)| edit(track, movie_scale)).collect()
}

/// The edit of a track with exactly one; entries with time -1 only delay the track.
fn edit(track: &[u8], movie_scale: f64) -> Option<Edit> {
    let header = child(track, b"tkhd")?;
    let id = be(header, if header.first() == Some(&1) { 20 } else { 12 }, 4)?;
    let scale = time_scale(child(child(track, b"mdia")?, b"mdhd")?)?;
    let list = child(child(track, b"edts")?, b"elst")?;
    let (width, minus_one) = if list.first() == Some(&1) { (8, u64::MAX) } else { (4, u64::from(u32::MAX)) };
    let mut entries = list
        .get(8..)?
        .chunks_exact(2 * width + 4)
        .filter_map(|entry| Some((be(entry, 0, width)?, be(entry, width, width)?)))
        .filter(|(_, time)| *time != minus_one);
    let (len, time) = entries.next()?;
    if entries.next().is_some() {
        return None;
    }
    Some(Edit { track: u32::try_from(id).ok()?, start: time as f64 / scale, len: len as f64 / movie_scale })
}

/// Ticks per second, of a `mvhd` or `mdhd`.
fn time_scale(header: &[u8]) -> Option<f64> {
    let scale = be(header, if header.first() == Some(&1) { 20 } else { 12 }, 4)?;
    (scale > 0).then_some(scale as f64)
}

fn child<'a>(parent: &'a [u8], wanted: &[u8; 4]) -> Option<&'a [u8]> {
    children(parent).find(|(kind, _)| kind == wanted).map(|(_, body)| body)
}

fn children(mut bytes: &[u8]) -> impl Iterator<Item = ([u8; 4], &[u8])> {
    std::iter::from_fn(move || {
        let len = usize::try_from(be(bytes, 0, 4)?).ok()?;
        let kind = bytes.get(4..8)?;
        let body = bytes.get(8..len)?;
        let found = ([kind[0], kind[1], kind[2], kind[3]], body);
        bytes = &bytes[len..];
        Some(found)
    })
}

/// A big-endian number of `width` bytes.
fn be(bytes: &[u8], at: usize, width: usize) -> Option<u64> {
    Some(bytes.get(at..at + width)?.iter().fold(0, |number, &byte| number << 8 | u64::from(byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_before_the_index_is_kept_within_bounds() {
        let mut atom = b"\x00\x00\xff\xf0free".to_vec();
        atom.resize(0xfff0, 0);
        let mut stream = std::io::Cursor::new(atom.repeat(100));
        let mut taken = Vec::new();
        assert!(edits_of_stream(&mut stream, &mut taken).unwrap().unwrap().is_empty());
        assert!(taken.len() as u64 <= MAX_BEFORE, "{} bytes", taken.len());
        assert_eq!(stream.position(), taken.len() as u64);
    }
}
