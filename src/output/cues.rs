//! Segments to subtitle cues: what is on the screen at a time.
//!
//! The rules are those that broadcasters share: at most so many lines of so many columns, cues of about one to seven
//! seconds, breaks where a clause or a pause ends rather than inside a phrase, never inside a word, and text that stays
//! long enough to be read. Where speech is faster than that, a cue stays on into the silence behind it, as far as there
//! is any. The cuts of a segment are those with the least total cost, found by dynamic programming.

use unicode_linebreak::linebreaks;
use unicode_width::UnicodeWidthStr as _;

use super::segments::{Segment, ends_clause, ends_sentence};
use super::words::is_unspaced;

/// How subtitles are laid out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Columns in a line, where most Asian characters take two. A longer word has a line of its own.
    pub max_line_width: usize,
    /// Lines in a cue.
    pub max_line_count: usize,
    /// The longest segment or cue; 30 s and 7 s when absent.
    pub max_segment_ms: Option<u64>,
}

impl Default for Layout {
    fn default() -> Self {
        Self { max_line_width: 42, max_line_count: 2, max_segment_ms: None }
    }
}

impl Layout {
    /// The longest segment.
    pub fn segment_ms(&self) -> u64 {
        self.max_segment_ms.unwrap_or(30_000)
    }

    fn cue_ms(&self) -> u64 {
        self.max_segment_ms.unwrap_or(7_000)
    }
}

/// Text to be shown from one moment to another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cue {
    pub start_ms: u64,
    pub end_ms: u64,
    /// Never empty.
    pub lines: Vec<String>,
    pub channel: Option<String>,
}

/// Columns that are read in a second: 17 letters of an alphabet, half as many Han characters.
const COLUMNS_PER_S: u64 = 17;
/// The shortest time that a cue is shown, if what follows leaves so much.
const MIN_MS: u64 = 1000;
/// The screen is empty for so long between two cues, where one stays on for longer than it is spoken.
const GAP_MS: u64 = 80;
/// A silence that is as good a place for a cut as the end of a clause.
const PAUSE_MS: u64 = 300;

/// The smallest part of a text that is never cut.
#[derive(Debug)]
struct Atom<'a> {
    /// Without the blanks around it.
    text: &'a str,
    /// Whether there is a blank before it.
    spaced: bool,
    width: usize,
    start_ms: u64,
    end_ms: u64,
}

/// The cues of all segments, in order of time.
pub fn cues(segments: &[Segment], layout: &Layout) -> Vec<Cue> {
    let mut cues = Vec::new();
    for segment in segments {
        // runs of blanks and control characters are one blank
        let clean = |word: &str| {
            let blank = word.starts_with(char::is_whitespace);
            let parts: Vec<_> =
                word.split(|c: char| c.is_whitespace() || c.is_control()).filter(|p| !p.is_empty()).collect();
            if blank { format!(" {}", parts.join(" ")) } else { parts.join(" ") }
        };
        let words: Vec<_> = segment.words.iter().map(|word| (clean(&word.text), word.start_ms, word.end_ms)).collect();
        let text: String = words.iter().map(|(text, ..)| text.as_str()).collect();
        let atoms = atoms(&text, &words);
        let mut start = 0;
        for end in cuts(&atoms, layout) {
            let atoms = &atoms[start..end];
            start = end;
            cues.push(Cue {
                start_ms: atoms[0].start_ms,
                end_ms: atoms[atoms.len() - 1].end_ms,
                lines: lines(atoms, layout),
                channel: segment.channel.clone(),
            });
        }
    }
    cues.sort_by_key(|cue| cue.start_ms);
    let next_starts: Vec<_> = (0..cues.len())
        .map(|i| cues[i + 1..].iter().find(|next| next.channel == cues[i].channel).map(|next| next.start_ms))
        .collect();
    for (cue, next) in cues.iter_mut().zip(next_starts) {
        cue.end_ms = shown_until(cue, next, layout);
    }
    cues
}

/// When a cue disappears: when its speech ends, or later if it could not be read by then and nothing else comes.
fn shown_until(cue: &Cue, next_start_ms: Option<u64>, layout: &Layout) -> u64 {
    let columns: usize = cue.lines.iter().map(|line| line.width()).sum();
    let read_ms = (columns as u64 * 1000 / COLUMNS_PER_S).max(MIN_MS).min(layout.cue_ms());
    let wanted = cue.end_ms.max(cue.start_ms + read_ms);
    let free = next_start_ms.map_or(u64::MAX, |next| next.saturating_sub(GAP_MS));
    // nothing to gain by vanishing before its own speech is over, but cues don't overlap
    let spoken = cue.end_ms.min(next_start_ms.unwrap_or(u64::MAX));
    wanted.min(free.max(spoken)).max(cue.start_ms + 1)
}

/// The uncuttable parts of a text that consists of these words.
fn atoms<'a>(text: &'a str, words: &[(String, u64, u64)]) -> Vec<Atom<'a>> {
    let mut atoms = Vec::new();
    let mut start = 0;
    for (end, _) in linebreaks(text) {
        let (before, after) = (text[..end].chars().next_back(), text[end..].chars().next());
        let cuttable = match (before, after) {
            (Some(a), Some(b)) => a.is_whitespace() || is_unspaced(a) && is_unspaced(b),
            _ => true,
        };
        let part = &text[start..end];
        if !cuttable || part.trim().is_empty() {
            continue;
        }
        let begin = end - part.trim_start().len();
        let spaced = text[..begin].ends_with(' ');
        let trimmed = part.trim();
        let (start_ms, _) = time_of(begin, words);
        let (_, end_ms) = time_of(begin + trimmed.len() - 1, words);
        atoms.push(Atom { text: trimmed, spaced, width: trimmed.width(), start_ms, end_ms });
        start = end;
    }
    atoms
}

/// When the byte at this place of the joined words is spoken; within a word, time goes by the bytes.
fn time_of(place: usize, words: &[(String, u64, u64)]) -> (u64, u64) {
    let mut rest = place;
    for (text, start_ms, end_ms) in words {
        let Some(after) = rest.checked_sub(text.len()) else {
            let blank = text.len() - text.trim_start().len();
            let (i, n) = (rest.saturating_sub(blank) as u64, (text.len() - blank).max(1) as u64);
            let ms = end_ms - start_ms;
            return (start_ms + ms * i / n, start_ms + ms * (i + 1) / n);
        };
        rest = after;
    }
    words.last().map_or((0, 0), |&(_, start_ms, end_ms)| (start_ms, end_ms))
}

/// Where to cut atoms into cues: the index behind the last atom of each.
fn cuts(atoms: &[Atom<'_>], layout: &Layout) -> Vec<usize> {
    // best[n]: the least cost of the first n atoms in whole cues, and where the last of these begins
    let mut best: Vec<(u64, usize)> = vec![(0, 0)];
    for end in 1..=atoms.len() {
        let mut least = (u64::MAX, end - 1);
        for start in (0..end).rev() {
            let part = &atoms[start..end];
            if part.len() > 1 && !fits(part, layout) {
                break;
            }
            let cost = best[start].0 + cue_cost(part, atoms.get(end), layout);
            if cost < least.0 {
                least = (cost, start);
            }
        }
        best.push(least);
    }
    let mut cuts = Vec::new();
    let mut end = atoms.len();
    while end > 0 {
        cuts.push(end);
        end = best[end].1;
    }
    cuts.reverse();
    cuts
}

fn fits(atoms: &[Atom<'_>], layout: &Layout) -> bool {
    let ms = atoms[atoms.len() - 1].end_ms.saturating_sub(atoms[0].start_ms);
    ms <= layout.cue_ms() && fewest_lines(atoms, layout.max_line_width) <= layout.max_line_count
}

/// Lines needed when each takes as much as it can.
fn fewest_lines(atoms: &[Atom<'_>], max_width: usize) -> usize {
    let (mut n, mut width) = (0, usize::MAX);
    for atom in atoms {
        let wider = width.saturating_add(usize::from(atom.spaced)).saturating_add(atom.width);
        if wider > max_width {
            n += 1;
            width = atom.width;
        } else {
            width = wider;
        }
    }
    n
}

/// What speaks against a cue of these atoms with this one behind it.
fn cue_cost(atoms: &[Atom<'_>], next: Option<&Atom<'_>>, layout: &Layout) -> u64 {
    let (first, last) = (&atoms[0], &atoms[atoms.len() - 1]);
    let ms = last.end_ms.saturating_sub(first.start_ms);
    let columns = columns(atoms);
    // every cue costs, so that there are no more than needed; a bad break is worse between cues than between lines
    let mut cost = 12 + next.map_or(0, |next| 6 * break_cost(last, next)) + 4 * line_break_cost(atoms, layout);
    // a flash on the screen
    if ms < MIN_MS {
        cost += (MIN_MS - ms) / 50;
    }
    // a few words alone, where the screen has room for many
    let full = layout.max_line_width * layout.max_line_count;
    if next.is_some() && 4 * columns < full {
        cost += 5;
    }
    // more than can be read before the next one comes
    if let Some(next) = next {
        let read_ms = columns as u64 * 1000 / COLUMNS_PER_S;
        cost += read_ms.saturating_sub(next.start_ms.saturating_sub(first.start_ms)) / 50;
    }
    cost
}

/// What speaks against a break between two neighbours, for cues and lines alike.
fn break_cost(last: &Atom<'_>, next: &Atom<'_>) -> u64 {
    if ends_sentence(last.text) {
        return 0;
    }
    if ends_clause(last.text) {
        return 1;
    }
    if next.start_ms.saturating_sub(last.end_ms) >= PAUSE_MS {
        return 2;
    }
    // short words are mostly articles and prepositions, which belong to what follows
    if last.spaced && last.width <= 3 { 9 } else { 6 }
}

/// What the best break of a cue into two lines costs; 0 for one line, and for more, which leave a choice.
fn line_break_cost(atoms: &[Atom<'_>], layout: &Layout) -> u64 {
    if fewest_lines(atoms, layout.max_line_width) != 2 {
        return 0;
    }
    let all = columns(atoms);
    let mut upper = 0;
    let mut least = u64::MAX;
    for (i, pair) in atoms.windows(2).enumerate() {
        upper += pair[0].width + usize::from(i > 0 && pair[0].spaced);
        let lower = all - upper - usize::from(pair[1].spaced);
        if upper.max(lower) <= layout.max_line_width {
            least = least.min(break_cost(&pair[0], &pair[1]));
        }
    }
    // a word too long for its line leaves no choice
    if least == u64::MAX { 0 } else { least }
}

/// Columns of atoms in one line.
fn columns(atoms: &[Atom<'_>]) -> usize {
    atoms.iter().enumerate().map(|(i, atom)| atom.width + usize::from(i > 0 && atom.spaced)).sum()
}

/// The lines of a cue: as few as possible, about equally long, rather the lower one longer, broken where it hurts least.
fn lines(atoms: &[Atom<'_>], layout: &Layout) -> Vec<String> {
    let n_lines = fewest_lines(atoms, layout.max_line_width);
    let even = columns(atoms) / n_lines.max(1);
    // best[k][n]: the least cost of the first n atoms in k lines, and where the last of these begins
    let mut best = vec![vec![(u64::MAX, 0); atoms.len() + 1]; n_lines + 1];
    best[0][0] = (0, 0);
    for k in 1..=n_lines {
        for end in k..=atoms.len() {
            for start in (k - 1..end).rev() {
                let part = &atoms[start..end];
                let width = columns(part);
                if part.len() > 1 && width > layout.max_line_width {
                    break;
                }
                let (before, _) = best[k - 1][start];
                if before == u64::MAX {
                    continue;
                }
                let uneven = width.abs_diff(even) as u64 + if k < n_lines && width > even { 1 } else { 0 };
                let cost = before + uneven + atoms.get(end).map_or(0, |next| break_cost(&atoms[end - 1], next));
                if cost < best[k][end].0 {
                    best[k][end] = (cost, start);
                }
            }
        }
    }
    let mut lines = Vec::new();
    let mut end = atoms.len();
    for k in (1..=n_lines).rev() {
        let start = best[k][end].1;
        lines.push(join(&atoms[start..end]));
        end = start;
    }
    lines.reverse();
    lines
}

fn join(atoms: &[Atom<'_>]) -> String {
    let mut text = String::new();
    for (i, atom) in atoms.iter().enumerate() {
        if i > 0 && atom.spaced {
            text.push(' ');
        }
        text.push_str(atom.text);
    }
    text
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::segments::tests::segments;
    use super::super::words::Word;
    use super::*;

    fn layout(max_line_width: usize, max_line_count: usize) -> Layout {
        Layout { max_line_width, max_line_count, max_segment_ms: None }
    }

    fn texts(text: &str, layout: &Layout) -> Vec<String> {
        cues(&segments(text, 30_000), layout).iter().map(|cue| cue.lines.join("/")).collect()
    }

    /// One segment of one word that takes a second for ten characters.
    fn unspaced(text: &str) -> Vec<Segment> {
        let end_ms = 100 * text.chars().count() as u64;
        let word = Word { text: text.into(), start_ms: 0, end_ms, confidence: None, alternatives: Vec::new() };
        vec![Segment { words: vec![word], channel: None }]
    }

    #[test]
    fn cuts_are_between_clauses() {
        let text = "When the rain had stopped, the children went out, and they played in the garden";
        assert_eq!(
            texts(text, &layout(42, 1)),
            ["When the rain had stopped,", "the children went out,", "and they played in the garden"]
        );
        assert_eq!(
            texts(text, &layout(42, 2)),
            ["When the rain had stopped,/the children went out,", "and they played in the garden"]
        );
        // not after an article
        assert_eq!(texts("she put the book on the old table", &layout(20, 2)), ["she put the book/on the old table"]);
    }

    #[test]
    fn cues_stay_until_they_are_read() {
        let shown = |text: &str| -> Vec<_> {
            cues(&segments(text, 30_000), &Layout::default()).iter().map(|cue| (cue.start_ms, cue.end_ms)).collect()
        };
        // 300 ms of speech stay for a second, or until shortly before the next
        assert_eq!(shown("No."), [(0, 1000)]);
        assert_eq!(shown("No. 500 Yes."), [(0, 720), (800, 1800)]);
        // what follows at once cannot be held up
        assert_eq!(shown("It is. So"), [(0, 500), (500, 1500)]);
    }

    #[test]
    fn han_and_kana_break_anywhere_but_before_punctuation() {
        let text = "今日は天気がいいので、散歩に行きましょう。";
        let cues = cues(&unspaced(text), &layout(12, 2));
        let lines: Vec<_> = cues.iter().flat_map(|cue| &cue.lines).collect();
        assert_eq!(lines.iter().map(|line| line.as_str()).collect::<String>(), text);
        assert!(lines.len() > 2);
        for line in lines {
            assert!(line.width() <= 12 && !line.starts_with(['、', '。']), "{line}");
        }
        assert!(cues.windows(2).all(|pair| pair[0].start_ms < pair[1].start_ms && pair[0].end_ms <= pair[1].start_ms));
    }

    #[test]
    fn widths_are_columns() {
        // family of four: one cluster of seven code points, two columns
        assert_eq!(texts("👨‍👩‍👧‍👦 ab ab", &layout(5, 2)), ["👨‍👩‍👧‍👦/ab ab"]);
        // vowel signs take no column of their own
        assert_eq!(texts("مُحَمَّدٌ كِتَابٌ", &layout(10, 1)), ["مُحَمَّدٌ كِتَابٌ"]);
        assert_eq!(texts("हिन्दी भाषा", &layout(10, 1)).len(), 1);
    }

    #[test]
    fn what_cannot_be_cut_is_left_whole() {
        assert_eq!(
            texts("a Donaudampfschifffahrtsgesellschaft b", &layout(12, 3)),
            ["a/Donaudampfschifffahrtsgesellschaft/b"]
        );
        assert_eq!(texts("well-known http://a.b/c-d", &layout(6, 2)), ["well-known/http://a.b/c-d"]);
    }

    #[test]
    fn blanks_and_control_characters_are_one_blank() {
        let mut segments = segments("a b", 30_000);
        segments[0].words[0].text = "\n\n a\0\r\n\tx".into();
        assert_eq!(cues(&segments, &Layout::default())[0].lines, ["a x b"]);
        segments[0].words.truncate(1);
        segments[0].words[0].text = " \0".into();
        assert!(cues(&segments, &Layout::default()).is_empty());
    }

    proptest! {
        #[test]
        fn cues_hold_all_words_and_keep_to_the_layout(
            words in prop::collection::vec("[a-z]{1,9}[,.]?|[0-9]{3}|[あ-ん]{1,9}|😀", 1..60),
            width in 10usize..50, count in 1usize..4, max_s in 2u64..9,
        ) {
            let text = words.join(" ");
            let segments = segments(&text, 30_000);
            let layout = Layout { max_line_width: width, max_line_count: count, max_segment_ms: Some(1000 * max_s) };
            let cues = cues(&segments, &layout);
            let squeezed = |text: String| text.split_whitespace().collect::<String>();
            let expected = squeezed(segments.iter().map(Segment::text).collect());
            prop_assert_eq!(squeezed(cues.iter().flat_map(|cue| cue.lines.clone()).collect()), expected);
            for cue in &cues {
                prop_assert!(cue.lines.len() <= count && cue.lines.iter().all(|line| line.width() <= width));
                prop_assert!(cue.start_ms < cue.end_ms && cue.end_ms - cue.start_ms <= 1000 * max_s, "{:?}", cue);
            }
            for pair in cues.windows(2) {
                prop_assert!(pair[0].end_ms <= pair[1].start_ms, "{:?}", pair);
            }
        }
    }
}
