//! Tokens to words with times.
//!
//! In: a session's events, in order. Out: words, each as soon as it is known to be complete. The texts of all words,
//! joined, are the transcript.
//!
//! The model places a mark (`[STREAMING_WORD]`) in the frame of 80 ms in which a word ends, and the word's text behind
//! it. So a word ends in the middle of its mark's frame, on average: against word ends that the speech synthesizers of
//! the shipped recordings reported, the mark's own time is late by 40 ms (median), the middle by 0. Words that come
//! faster than their tokens queue behind the mark of the first; they end somewhere between the word before them and
//! their own first token, and the middle of that is what the recordings bear out (35 ms late). Where words begin the
//! model doesn't say: a word is taken to begin where the one before it ends, but not longer before its own end than
//! its text takes to say.

use unicode_width::UnicodeWidthStr as _;

use crate::engine::{Alternative, Event, Token, TokenKind};

/// Half of the frame that a token's time is the end of.
const HALF_FRAME_MS: u64 = 40;
/// A column of text takes about so long to say: the slope of word lengths in the shipped recordings.
const MS_PER_COLUMN: u64 = 63;
/// Blanks after which nothing can belong to the word before them any more.
const CLOSING_MS: u64 = 1000;

/// A word, or what takes its place in scripts that don't put blanks between words.
#[derive(Debug, Clone, PartialEq)]
pub struct Word {
    /// Its text, with the blanks before it.
    pub text: String,
    /// Begin (an estimate) and end (within a frame or so) in the audio.
    pub start_ms: u64,
    pub end_ms: u64,
    /// The probability that the model gave to all of its tokens together.
    pub confidence: Option<f32>,
    /// What else the model thought of, best first within a place.
    pub alternatives: Vec<WordAlternative>,
}

/// Another text for a part of a word.
#[derive(Debug, Clone, PartialEq)]
pub struct WordAlternative {
    /// The part that it would replace.
    pub instead_of: String,
    pub text: String,
    pub probability: f32,
}

impl Word {
    /// The text without the blanks before it.
    pub fn trimmed(&self) -> &str {
        self.text.trim()
    }
}

/// Makes words of events.
#[derive(Debug, Default)]
pub struct WordBuilder {
    open: Option<Word>,
    /// When the last word ended.
    end_ms: u64,
    /// Time of a mark that nothing but text has followed.
    mark_ms: Option<u64>,
    /// Blanks since the last text.
    blank_ms: u64,
    /// Time of the latest token.
    time_ms: u64,
    /// Where blanks or parts of a character came that wait for what they belong to, and their probability.
    part: Option<Place>,
    part_probability: Option<f32>,
    /// Blanks that wait for their word.
    spaces: String,
}

/// Where in the stream of tokens a piece of text is.
#[derive(Debug, Clone, Copy)]
struct Place {
    time_ms: u64,
    mark_ms: Option<u64>,
    /// Whether it follows other text without a blank token between.
    queued: bool,
}

impl WordBuilder {
    /// Takes an event; a word that it completes is appended to `words`.
    pub fn event(&mut self, event: &Event, words: &mut Vec<Word>) {
        match event {
            Event::Token(token) => self.token(token, words),
            Event::Restart { .. } => self.close(words),
            Event::End { text } => self.finish(text, words),
        }
    }

    fn token(&mut self, token: &Token, words: &mut Vec<Word>) {
        let passed_ms = token.time_ms.saturating_sub(self.time_ms);
        self.time_ms = token.time_ms;
        match token.kind {
            TokenKind::Text => {
                let alternative = |other: &Alternative| WordAlternative {
                    instead_of: token.text.clone(),
                    text: other.text.clone(),
                    probability: other.probability,
                };
                let alternatives: Vec<_> = token.alternatives.iter().skip(1).map(alternative).collect();
                self.text(&token.text, token.probability, &alternatives, words);
                self.mark_ms = None;
                self.blank_ms = 0;
            }
            TokenKind::WordEnd => self.mark_ms = Some(token.time_ms),
            TokenKind::Blank => {
                self.mark_ms = None;
                self.blank_ms += passed_ms;
                if self.blank_ms >= CLOSING_MS {
                    self.close(words);
                }
            }
            TokenKind::Control => self.finish(&token.text, words),
        }
    }

    /// Ends the text; `rest` is the end of a character that never became whole.
    fn finish(&mut self, rest: &str, words: &mut Vec<Word>) {
        if !rest.is_empty() {
            self.text(rest, None, &[], words);
        }
        self.close(words);
        self.part = None;
        self.part_probability = None;
        self.spaces.clear();
    }

    /// Takes the text of one token, which may be part of a character and so have none yet.
    fn text(&mut self, text: &str, probability: Option<f32>, alternatives: &[WordAlternative], words: &mut Vec<Word>) {
        let here =
            Place { time_ms: self.time_ms, mark_ms: self.mark_ms, queued: self.blank_ms == 0 && self.end_ms > 0 };
        let place = *self.part.get_or_insert(here);
        let probability = product(self.part_probability, probability);
        self.part_probability = probability;
        if text.trim_start().is_empty() {
            self.spaces.push_str(text);
            return;
        }
        self.part = None;
        self.part_probability = None;
        for (i, piece) in split_before_words(text).into_iter().enumerate() {
            let (spaces, letters) = piece.split_at(piece.len() - piece.trim_start().len());
            self.spaces.push_str(spaces);
            if letters.is_empty() {
                continue;
            }
            if self.begins_word(letters, place) {
                self.close(words);
                self.open(place);
            }
            let Some(word) = &mut self.open else { continue };
            word.text.push_str(&std::mem::take(&mut self.spaces));
            word.text.push_str(letters);
            if i == 0 {
                word.alternatives.extend_from_slice(alternatives);
            }
            word.confidence = product(word.confidence, probability);
        }
    }

    fn begins_word(&self, letters: &str, place: Place) -> bool {
        let Some(word) = &self.open else { return true };
        let (last, first) = (word.text.chars().next_back(), letters.chars().next());
        let apart = place.mark_ms.is_some() || !place.queued;
        let unspaced = last.is_some_and(is_unspaced) || first.is_some_and(is_unspaced);
        !self.spaces.is_empty() || (apart && unspaced && first.is_some_and(char::is_alphanumeric))
    }

    fn open(&mut self, place: Place) {
        let token_ms = place.time_ms.saturating_sub(HALF_FRAME_MS);
        let end_ms = match place.mark_ms {
            Some(mark_ms) => mark_ms.saturating_sub(HALF_FRAME_MS),
            None if place.queued => self.end_ms.midpoint(token_ms),
            None => token_ms,
        };
        let end_ms = end_ms.max(self.end_ms);
        self.open = Some(Word {
            text: String::new(),
            start_ms: self.end_ms,
            end_ms,
            confidence: None,
            alternatives: Vec::new(),
        });
        self.end_ms = end_ms;
    }

    fn close(&mut self, words: &mut Vec<Word>) {
        if let Some(mut word) = self.open.take() {
            let spoken_ms = MS_PER_COLUMN * word.trimmed().width().max(1) as u64;
            word.start_ms = word.start_ms.max(word.end_ms.saturating_sub(spoken_ms));
            words.push(word);
        }
    }
}

fn product(a: Option<f32>, b: Option<f32>) -> Option<f32> {
    a.zip(b).map(|(a, b)| a * b).or(a).or(b)
}

/// Cuts a token's text before each run of blanks but those at its end.
fn split_before_words(text: &str) -> Vec<&str> {
    let mut pieces = Vec::new();
    let (mut start, mut after_letter) = (0, false);
    for (i, c) in text.char_indices() {
        if c.is_whitespace() && after_letter {
            pieces.push(&text[start..i]);
            start = i;
        }
        after_letter = !c.is_whitespace();
    }
    pieces.push(&text[start..]);
    pieces
}

/// Whether a character belongs to a script that puts no blanks between words.
pub(super) fn is_unspaced(c: char) -> bool {
    matches!(u32::from(c),
        0x0E00..=0x0EFF // Thai, Lao
        | 0x1000..=0x109F // Myanmar
        | 0x1780..=0x17FF // Khmer
        | 0x2E80..=0x312F // Han radicals, CJK punctuation, kana, bopomofo
        | 0x3190..=0x4DBF // kanbun, kana extensions, Han
        | 0x4E00..=0x9FFF
        | 0xF900..=0xFAFF
        | 0xFF00..=0xFF9F // full-width forms, half-width kana
        | 0x1B000..=0x1B16F
        | 0x20000..=0x3FFFF)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// Tokens from a line: `.` is a blank, `|` a mark, `<x>` a control token with text x, anything else a text token
    /// (`_` stands for a space, `-` alone for a part of a character).
    pub(crate) fn events(line: &str) -> Vec<Event> {
        let mut events = Vec::new();
        for (i, word) in line.split_whitespace().enumerate() {
            let (kind, text) = match word {
                "." => (TokenKind::Blank, String::new()),
                "|" => (TokenKind::WordEnd, String::new()),
                "-" => (TokenKind::Text, String::new()),
                "<>" => (TokenKind::Control, String::new()),
                text => (TokenKind::Text, text.replace('_', " ")),
            };
            let probability = (kind == TokenKind::Text).then_some(0.5);
            let time_ms = 80 * (i as u64 + 1);
            events.push(Event::Token(Token { id: 0, kind, time_ms, text, probability, alternatives: Vec::new() }));
        }
        events.push(Event::End { text: String::new() });
        events
    }

    pub(crate) fn words(line: &str) -> Vec<Word> {
        let (mut builder, mut words) = (WordBuilder::default(), Vec::new());
        events(line).iter().for_each(|event| builder.event(event, &mut words));
        words
    }

    fn texts(line: &str) -> Vec<String> {
        words(line).into_iter().map(|word| word.text).collect()
    }

    #[test]
    fn words_end_in_the_middle_of_their_marks_frame() {
        let words = words(". . . . . . . . . | _Hel lo , . . | _you");
        assert_eq!(words.iter().map(|w| w.text.as_str()).collect::<Vec<_>>(), [" Hello,", " you"]);
        // marks at 800 and 1280 ms; six columns take 378 ms to say, three 189
        assert_eq!((words[0].start_ms, words[0].end_ms), (760 - 378, 760));
        assert_eq!((words[1].start_ms, words[1].end_ms), (1240 - 189, 1240));
        assert_eq!((words[0].confidence, words[1].confidence), (Some(0.125), Some(0.5)));
    }

    #[test]
    fn queued_words_end_between_the_one_before_and_their_token() {
        let words = words("| _this _is _a . . _late");
        let times: Vec<_> = words.iter().map(|w| (w.start_ms, w.end_ms)).collect();
        // _is: from 40 to its token's 240 - 40; _a: from 120 to 280; _late has neither mark nor queue
        assert_eq!(times, [(0, 40), (40, 120), (137, 200), (268, 520)]);
    }

    #[test]
    fn punctuation_and_parts_belong_to_the_word_before_them() {
        assert_eq!(texts("| _week . . , ."), [" week,"]);
        assert_eq!(texts("| _wee . k | ing . ! | _x"), [" weeking!", " x"]);
        assert_eq!(texts("_a_b_c _ d"), [" a", " b", " c", " d"]);
        assert_eq!(texts("Hi _ ."), ["Hi"]);
        // what comes after a long silence is a word of its own
        assert_eq!(texts(&format!("_wee {} k", ". ".repeat(13))), [" wee", "k"]);
        assert_eq!(texts("_a <> b"), [" a", "b"]);
        assert!(texts("").is_empty() && texts(". . | .").is_empty());
    }

    #[test]
    fn a_mark_counts_only_right_before_text() {
        assert_eq!(words("| . . . _x")[0].end_ms, 5 * 80 - 40);
    }

    #[test]
    fn words_of_scripts_without_blanks_are_what_comes_together() {
        assert_eq!(texts("| 今日 は . | 良い . 天気 。 | です"), ["今日は", "良い", "天気。", "です"]);
        assert_eq!(texts("| _안녕 하세요 | 요"), [" 안녕하세요요"]);
    }

    #[test]
    fn characters_split_over_tokens_count_from_their_first() {
        let words = words("| _ok . | - - 🎤 - é");
        assert_eq!(words.iter().map(|w| w.text.as_str()).collect::<Vec<_>>(), [" ok🎤é"]);
        // one more token than pieces of text: all their probabilities count
        assert_eq!(words[0].confidence, Some(0.5f32.powi(6)));
        let words = self::words("_ - 🎤 . .");
        assert_eq!((words[0].text.as_str(), words[0].end_ms), (" 🎤", 40));
    }

    #[test]
    fn alternatives_stay_with_their_word() {
        let mut list = events("| _V ox");
        if let Event::Token(token) = &mut list[1] {
            let other = |text: &str| crate::engine::Alternative { id: 1, text: text.into(), probability: 0.25 };
            token.alternatives = vec![other(" V"), other(" Vo"), other(" B")];
        }
        let (mut builder, mut words) = (WordBuilder::default(), Vec::new());
        list.iter().for_each(|event| builder.event(event, &mut words));
        let [word] = words.as_slice() else { panic!("{words:?}") };
        let texts: Vec<_> = word.alternatives.iter().map(|a| (a.instead_of.as_str(), a.text.as_str())).collect();
        assert_eq!(texts, [(" V", " Vo"), (" V", " B")]);
    }
}
