//! Words to segments: sentences, or parts of long ones.
//!
//! A segment ends where a sentence does, where nobody speaks for a while, and at the latest when it has become as long as
//! [`SegmentRules::max_ms`] allows; then at the best place so far.

use super::words::Word;

/// A silence that ends a segment.
const PAUSE_MS: u64 = 1000;
/// A silence after which a segment is over, whatever comes; the next word's own length is unknown till then.
const QUIET_MS: u64 = 2000;
/// A silence that makes a full stop the end of a sentence, whatever follows.
const STOP_MS: u64 = 400;

/// Some words that belong together.
#[derive(Debug, Clone, PartialEq)]
pub struct Segment {
    /// Never empty.
    pub words: Vec<Word>,
    /// Which channel, where they are transcribed apart.
    pub channel: Option<String>,
}

impl Segment {
    /// The text, without blanks at its ends.
    pub fn text(&self) -> String {
        self.words.iter().map(|word| word.text.as_str()).collect::<String>().trim().to_owned()
    }

    pub fn start_ms(&self) -> u64 {
        self.words.first().map_or(0, |word| word.start_ms)
    }

    pub fn end_ms(&self) -> u64 {
        self.words.last().map_or(0, |word| word.end_ms)
    }

    /// The geometric mean of the words' confidences.
    pub fn confidence(&self) -> Option<f32> {
        mean_confidence(self.words.iter())
    }
}

/// The geometric mean of the confidences of all words that have one.
pub(super) fn mean_confidence<'a>(words: impl Iterator<Item = &'a Word>) -> Option<f32> {
    let (mut sum, mut n) = (0.0, 0);
    for confidence in words.filter_map(|word| word.confidence) {
        sum += f64::from(confidence.max(f32::MIN_POSITIVE)).ln();
        n += 1;
    }
    (n > 0).then(|| (sum / f64::from(n)).exp() as f32)
}

/// Cuts a stream of words into segments.
#[derive(Debug)]
pub struct Segmenter {
    words: Vec<Word>,
    max_ms: u64,
    channel: Option<String>,
}

impl Segmenter {
    /// Segments take at most `max_ms`, unless a single word takes longer.
    pub fn new(max_ms: u64, channel: Option<String>) -> Self {
        Self { words: Vec::new(), max_ms, channel }
    }

    /// Takes the next word; segments that it completes are appended to `segments`.
    pub fn push(&mut self, word: Word, segments: &mut Vec<Segment>) {
        if self.words.last().is_some_and(|last| ends_segment(last, &word)) {
            self.finish(segments);
        }
        while let Some(first) = self.words.first()
            && word.end_ms > first.start_ms + self.max_ms
        {
            let n = self.best_end();
            let rest = self.words.split_off(n);
            self.finish(segments);
            self.words = rest;
        }
        self.words.push(word);
    }

    /// Takes note that nothing was said up to this time.
    pub fn quiet_until(&mut self, time_ms: u64, segments: &mut Vec<Segment>) {
        if self.words.last().is_some_and(|last| time_ms >= last.end_ms + QUIET_MS) {
            self.finish(segments);
        }
    }

    /// Ends the segment under way.
    pub fn finish(&mut self, segments: &mut Vec<Segment>) {
        if !self.words.is_empty() {
            segments.push(Segment { words: std::mem::take(&mut self.words), channel: self.channel.clone() });
        }
    }

    /// How many of the words make the best segment when all are too many: up to the last clause's end or the longest
    /// pause in the second half, else all.
    fn best_end(&self) -> usize {
        let half_ms = self.words[0].start_ms + self.max_ms / 2;
        let pause_ms = |n: usize| self.words[n].start_ms.saturating_sub(self.words[n - 1].end_ms);
        let places = (1..self.words.len()).filter(|&n| self.words[n - 1].end_ms >= half_ms);
        let best = places.max_by_key(|&n| (ends_clause(self.words[n - 1].trimmed()), pause_ms(n), n));
        best.filter(|&n| ends_clause(self.words[n - 1].trimmed()) || pause_ms(n) > 0).unwrap_or(self.words.len())
    }
}

/// Whether a segment ends between these words.
fn ends_segment(last: &Word, next: &Word) -> bool {
    let pause_ms = next.start_ms.saturating_sub(last.end_ms);
    pause_ms >= PAUSE_MS || (ends_sentence(last.trimmed()) && (pause_ms >= STOP_MS || begins_sentence(next.trimmed())))
}

/// Whether a word closes a sentence, going by its punctuation.
pub(super) fn ends_sentence(word: &str) -> bool {
    let bare = word.trim_end_matches(is_closing);
    match bare.chars().next_back() {
        Some('.') => !is_abbreviation(bare),
        Some(c) => "!?…。！？．।॥؟۔".contains(c),
        None => false,
    }
}

/// Whether a clause ends with this word.
pub(super) fn ends_clause(word: &str) -> bool {
    let bare = word.trim_end_matches(is_closing);
    ends_sentence(word) || bare.ends_with([',', ';', ':', '–', '—', '、', '，', '；', '：', '،', '؛'])
}

fn is_closing(c: char) -> bool {
    "\"'”’»)]}」』）】》".contains(c)
}

/// A sentence begins with anything but a small letter.
fn begins_sentence(word: &str) -> bool {
    word.chars().find(|c| c.is_alphanumeric()).is_some_and(|c| !c.is_lowercase())
}

/// Whether the full stop at a word's end belongs to it: initials, and titles that come before names.
fn is_abbreviation(word: &str) -> bool {
    const TITLES: [&str; 18] = [
        "mr", "mrs", "ms", "dr", "prof", "st", "jr", "vs", "sr", "sra", "srta", "mme", "mlle", "hr", "fr", "nr", "bzw",
        "dott",
    ];
    let bare = word.trim_start_matches(|c: char| !c.is_alphanumeric()).trim_end_matches('.');
    let mut letters = bare.chars();
    let initial = letters.next().is_some_and(char::is_uppercase) && letters.next().is_none() && bare != "I";
    let dotted = bare.contains('.') && bare.split('.').all(|part| part.chars().count() <= 2);
    initial || dotted || TITLES.contains(&bare.to_lowercase().as_str())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Words one after the other, each 100 ms a letter, without a pause; a number in a word's place is one, in ms.
    pub(crate) fn words(text: &str) -> Vec<Word> {
        let (mut words, mut time_ms) = (Vec::new(), 0);
        for word in text.split_whitespace() {
            if let Ok(pause_ms) = word.parse::<u64>() {
                time_ms += pause_ms;
                continue;
            }
            let start_ms = time_ms;
            time_ms += 100 * word.chars().count() as u64;
            let text = format!(" {word}");
            words.push(Word { text, start_ms, end_ms: time_ms, confidence: None, alternatives: Vec::new() });
        }
        words
    }

    pub(crate) fn segments(text: &str, max_ms: u64) -> Vec<Segment> {
        let (mut segmenter, mut segments) = (Segmenter::new(max_ms, None), Vec::new());
        words(text).into_iter().for_each(|word| segmenter.push(word, &mut segments));
        segmenter.finish(&mut segments);
        segments
    }

    fn texts(text: &str, max_ms: u64) -> Vec<String> {
        segments(text, max_ms).iter().map(Segment::text).collect()
    }

    #[test]
    fn sentences_and_pauses_end_segments() {
        assert_eq!(texts("It is. Is it? \"Yes!\" No", 30_000), ["It is.", "Is it?", "\"Yes!\"", "No"]);
        assert_eq!(texts("so 999 it 1000 goes", 30_000), ["so it", "goes"]);
        assert_eq!(texts("今日は。 良い？ هل؟ نعم है। हाँ", 30_000), ["今日は。", "良い？", "هل؟", "نعم है।", "हाँ"]);
        assert!(texts("", 30_000).is_empty());
    }

    #[test]
    fn a_full_stop_may_belong_to_its_word() {
        for whole in ["Dr. Smith and Mr. J. R. Ewing", "at 3 p.m. today", "the U.S. Army", "z.B. Berlin"] {
            let whole = whole.replace(" 3 ", " three ");
            assert_eq!(texts(&whole, 30_000), [whole.as_str()]);
        }
        assert_eq!(texts("It was I. On a.m. 400 and", 30_000), ["It was I.", "On a.m. and"]);
        assert_eq!(texts("it stopped. 400 and began. and", 30_000), ["it stopped.", "and began. and"]);
    }

    #[test]
    fn long_segments_are_cut_at_the_best_place() {
        // 300 ms a word: the tenth would end after 3000 ms
        assert_eq!(texts("one two, six ten one, two six ten", 2000), ["one two, six ten one,", "two six ten"]);
        assert_eq!(texts("one two six ten 50 one two six ten", 2000), ["one two six ten", "one two six ten"]);
        assert_eq!(texts("one two six ten one two six ten", 2000), ["one two six ten one two", "six ten"]);
        assert_eq!(texts("incomprehensibilities a", 1000), ["incomprehensibilities", "a"]);
        for segment in segments("aa bb, cc dd ee 20 ff gg hh ii, jj kk ll mm nn oo pp qq", 700) {
            assert!(segment.end_ms() - segment.start_ms() <= 700);
        }
    }

    #[test]
    fn a_long_silence_ends_a_segment_before_the_next_word_is_known() {
        let (mut segmenter, mut segments) = (Segmenter::new(30_000, None), Vec::new());
        segmenter.quiet_until(5000, &mut segments);
        words("it 300 is").into_iter().for_each(|word| segmenter.push(word, &mut segments));
        segmenter.quiet_until(700 + 1999, &mut segments);
        assert!(segments.is_empty());
        segmenter.quiet_until(700 + 2000, &mut segments);
        assert_eq!(segments.iter().map(Segment::text).collect::<Vec<_>>(), ["it is"]);
    }

    #[test]
    fn confidence_is_the_geometric_mean() {
        let mut segment = segments("a b c", 30_000).remove(0);
        assert_eq!(segment.confidence(), None);
        segment.words[0].confidence = Some(0.25);
        segment.words[2].confidence = Some(1.0);
        assert!((segment.confidence().unwrap() - 0.5).abs() < 1e-6);
    }
}
