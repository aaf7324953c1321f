//! The guard against gaps: finds speech that the model passed over in silence, and has it decoded again.
//!
//! The model can fall into blank tokens over speech and stay there for minutes, since every blank makes the next more
//! likely; from clean state it hears the same audio well. The guard stands between a session and whoever takes its
//! events. Beside them it gets the levels of the samples ([`LevelFeed`]), keeps them until the model has spoken of them,
//! and adds up how much sound fell into each run of blanks. Where that is a lot, and [`speech_ms`] takes it for speech, the stretch is decoded
//! afresh and its words come out in the place where they were missing.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use super::{Event, TokenKind};
use crate::Result;
use crate::audio::{SAMPLE_RATE, speech_ms};
use crate::model::params::SAMPLES_PER_TOKEN;

/// Milliseconds of a token.
const TOKEN_MS: u64 = SAMPLES_PER_TOKEN as u64 * 1000 / SAMPLE_RATE as u64;
/// Sound in a run of blanks that makes it suspicious, in tokens: 4 s.
const MIN_ACTIVE: u64 = 50;
/// A silence in the run that separates what is looked at together: 2 s.
const MAX_PAUSE: u64 = 25;
/// Longest stretch that is looked at together: 5 minutes.
const MAX_STRETCH: u64 = 3750;
/// Speech in a suspicious stretch that proves it a gap.
const MIN_SPEECH_MS: u64 = 2000;
/// Words are written when they end: sound so shortly before a word is that word, 1 s.
const WORD: usize = 12;
/// Decoded before and behind the sound.
const MARGIN_MS: u64 = 500;
/// Words that end within so much of each other in two runs are the same.
const SAME_MS: u64 = 120;
/// Levels this much above the quietest tenth, and above this level in dBFS, are sound.
const ABOVE_FLOOR_DB: usize = 9;
const SILENCE_DB: f32 = -60.0;

/// A stretch of speech for which the model had no words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gap {
    pub start_ms: u64,
    pub end_ms: u64,
    /// How much of it sounds like speech.
    pub speech_ms: u64,
    /// The words that a run from clean state found; empty where it found none.
    pub text: String,
}

/// Gives the guard a second look at the audio.
pub trait SecondLook {
    /// The session's samples from one index to another, or fewer if it has fewer.
    fn samples(&mut self, start: u64, end: u64) -> Result<Vec<f32>>;

    /// All events of a session of its own with these samples.
    fn decode(&mut self, samples: &[f32]) -> Result<Vec<Event>>;
}

/// Levels in dBFS, one for each token of audio, that the model has not spoken of.
type Levels = Arc<Mutex<VecDeque<f32>>>;

/// Tells a guard how loud the samples are that its session gets; may be on another thread.
#[derive(Debug)]
pub struct LevelFeed {
    levels: Levels,
    /// Sum of squares and number of samples of the token under way.
    power: f64,
    n_samples: usize,
}

impl LevelFeed {
    /// Takes the samples that the session gets, before it gets them.
    pub fn samples(&mut self, samples: &[f32]) {
        for &sample in samples {
            self.power += f64::from(sample) * f64::from(sample);
            self.n_samples += 1;
            if self.n_samples == SAMPLES_PER_TOKEN {
                let level = 10.0 * (self.power / SAMPLES_PER_TOKEN as f64 + 1e-10).log10();
                self.levels.lock().unwrap_or_else(PoisonError::into_inner).push_back(level as f32);
                (self.power, self.n_samples) = (0.0, 0);
            }
        }
    }
}

/// Stands between a session and whoever takes its events.
#[derive(Debug)]
pub struct GapGuard {
    levels: Levels,
    /// Index of the token that the first of them belongs to.
    first: u64,
    floor: Floor,
    /// Whether there was sound in the last blanks, which may belong to the next word.
    latest: VecDeque<(u64, bool)>,
    /// Stretches of sound in the run of blanks under way; the last may still grow.
    stretches: Vec<Stretch>,
    /// When the last word before the run ended.
    word_ms: u64,
    gaps: Vec<Gap>,
}

/// Sound without long silences inside, in tokens.
#[derive(Debug, Clone, Copy)]
struct Stretch {
    start: u64,
    end: u64,
    n_active: u64,
}

impl GapGuard {
    /// A guard, and what has to get the session's samples.
    pub fn new() -> (Self, LevelFeed) {
        let levels = Levels::default();
        let feed = LevelFeed { levels: levels.clone(), power: 0.0, n_samples: 0 };
        let guard = Self {
            levels,
            first: 0,
            floor: Floor::default(),
            latest: VecDeque::new(),
            stretches: Vec::new(),
            word_ms: 0,
            gaps: Vec::new(),
        };
        (guard, feed)
    }

    /// What it found so far.
    pub fn gaps(&self) -> &[Gap] {
        &self.gaps
    }

    /// Takes the session's next event. Returns what is to be passed on: the event, behind the words that were missing
    /// before it, if any were.
    ///
    /// # Errors
    /// Those of the second look.
    pub fn event(&mut self, event: Event, second: &mut impl SecondLook) -> Result<Vec<Event>> {
        let mut events = Vec::new();
        match &event {
            Event::Token(token) => {
                let sound = self.sound(token.time_ms);
                match token.kind {
                    TokenKind::Blank | TokenKind::Control => self.blank(token.time_ms / TOKEN_MS, sound),
                    TokenKind::Text | TokenKind::WordEnd => {
                        self.latest.clear();
                        self.end_run(Some(token.time_ms), second, &mut events)?;
                        if token.kind == TokenKind::WordEnd || self.word_ms + 1000 < token.time_ms {
                            self.word_ms = token.time_ms;
                        }
                    }
                }
            }
            Event::Restart { .. } => {}
            Event::End { .. } => {
                while let Some((token, sound)) = self.latest.pop_front() {
                    self.grow(token, sound);
                }
                self.end_run(None, second, &mut events)?;
            }
        }
        events.push(event);
        Ok(events)
    }

    /// Whether there is sound in the token of audio that ends at this time.
    fn sound(&mut self, time_ms: u64) -> bool {
        let mut sound = false;
        let mut levels = self.levels.lock().unwrap_or_else(PoisonError::into_inner);
        while self.first < time_ms / TOKEN_MS {
            let Some(level) = levels.pop_front() else { return false };
            self.first += 1;
            sound = self.floor.is_sound(level);
        }
        sound
    }

    fn blank(&mut self, token: u64, sound: bool) {
        self.latest.push_back((token, sound));
        if self.latest.len() > WORD
            && let Some((token, sound)) = self.latest.pop_front()
        {
            self.grow(token, sound);
        }
    }

    /// Adds a token to the run's stretches; `token` is the index of its end.
    fn grow(&mut self, token: u64, sound: bool) {
        if !sound {
            return;
        }
        match self.stretches.last_mut() {
            Some(last) if token <= last.end + MAX_PAUSE && token - last.start <= MAX_STRETCH => {
                last.end = token;
                last.n_active += 1;
            }
            _ => {
                self.stretches.retain(|stretch| stretch.n_active >= MIN_ACTIVE);
                self.stretches.push(Stretch { start: token.saturating_sub(1), end: token, n_active: 1 });
            }
        }
    }

    /// Looks at the run of blanks that a word at this time, or the audio's end, has ended.
    fn end_run(&mut self, word_ms: Option<u64>, second: &mut impl SecondLook, events: &mut Vec<Event>) -> Result<()> {
        for stretch in std::mem::take(&mut self.stretches) {
            if stretch.n_active < MIN_ACTIVE {
                continue;
            }
            let start_ms = (stretch.start * TOKEN_MS).saturating_sub(MARGIN_MS).max(self.word_ms);
            let mut end_ms = stretch.end * TOKEN_MS + MARGIN_MS;
            let mut until_ms = u64::MAX;
            if let Some(word_ms) = word_ms
                && end_ms + 2 * WORD as u64 * TOKEN_MS >= word_ms
            {
                // speech up to the word: it will be heard in both runs
                end_ms = word_ms;
                until_ms = word_ms.saturating_sub(SAME_MS);
            }
            let samples = second.samples(to_sample(start_ms), to_sample(end_ms))?;
            let end_ms = start_ms + samples.len() as u64 * 1000 / u64::from(SAMPLE_RATE);
            let speech_ms = speech_ms(&samples);
            if speech_ms < MIN_SPEECH_MS {
                continue;
            }
            let found = words_between(second.decode(&samples)?, start_ms, self.word_ms + SAME_MS, until_ms);
            let text = |event: &Event| match event {
                Event::Token(token) => token.text.clone(),
                _ => String::new(),
            };
            let text = found.iter().map(text).collect::<String>().trim().to_owned();
            if !text.is_empty() {
                events.extend(found);
            }
            self.gaps.push(Gap { start_ms, end_ms, speech_ms, text });
        }
        Ok(())
    }
}

/// The tokens of all words that end in a range of times, from the events of a session whose audio began at `start_ms`.
fn words_between(events: Vec<Event>, start_ms: u64, from_ms: u64, until_ms: u64) -> Vec<Event> {
    let mut words = Vec::new();
    let mut wanted = false;
    for event in events {
        let Event::Token(mut token) = event else { continue };
        token.time_ms += start_ms;
        let begins = match token.kind {
            TokenKind::WordEnd => true,
            TokenKind::Text => token.text.starts_with(char::is_whitespace) && !wanted,
            TokenKind::Blank | TokenKind::Control => continue,
        };
        if begins {
            wanted = token.time_ms > from_ms;
            if token.time_ms >= until_ms {
                break;
            }
        }
        if wanted {
            words.push(Event::Token(token));
        }
    }
    words
}

fn to_sample(ms: u64) -> u64 {
    ms * u64::from(SAMPLE_RATE) / 1000
}

/// How quiet the quietest tenth of the audio is; what is long past counts less.
#[derive(Debug)]
struct Floor {
    /// Tokens by level, from -100 dBFS on.
    counts: [u32; 128],
    n: u32,
}

impl Default for Floor {
    fn default() -> Self {
        Self { counts: [0; 128], n: 0 }
    }
}

impl Floor {
    /// Tokens after which all counts are halved: one minute.
    const MEMORY: u32 = 750;

    /// Counts a level and tells whether it is sound.
    fn is_sound(&mut self, level: f32) -> bool {
        let bin = ((level + 100.0).max(0.0) as usize).min(self.counts.len() - 1);
        self.counts[bin] += 1;
        self.n += 1;
        if self.n >= 2 * Self::MEMORY {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.n = self.counts.iter().sum();
        }
        let mut below = 0;
        let quietest_tenth = self.counts.iter().position(|count| {
            below += count;
            10 * below > self.n
        });
        level > SILENCE_DB && bin > quietest_tenth.unwrap_or(0) + ABOVE_FLOOR_DB
    }
}

#[cfg(test)]
mod tests {
    use super::super::Token;
    use super::*;
    use crate::audio::speech_tests::{not_speech, recording};

    /// Audio of several pieces, and a model that says a word at each of some moments but is deaf in others.
    struct Stage {
        samples: Vec<f32>,
        /// What is said, and the moments at which it ends.
        words: Vec<(u64, &'static str)>,
        /// Stretches given to `decode`, in samples.
        decoded: Vec<usize>,
    }

    fn token(kind: TokenKind, time_ms: u64, text: &str) -> Event {
        Event::Token(Token { id: 0, kind, time_ms, text: text.into(), probability: None, alternatives: Vec::new() })
    }

    impl Stage {
        fn new(samples: Vec<f32>, words: &[(u64, &'static str)]) -> Self {
            Self { samples, words: words.to_vec(), decoded: Vec::new() }
        }

        /// What a session says that hears the samples from `start` to `end`, deaf between two moments.
        fn events(&self, start: u64, end: u64, deaf: std::ops::Range<u64>) -> Vec<Event> {
            let (start_ms, end_ms) = (start / 16, end / 16);
            let mut events = Vec::new();
            for time_ms in (0..end_ms - start_ms).step_by(80).map(|ms| ms + 80) {
                let now = start_ms + time_ms;
                let word = self.words.iter().find(|(ms, _)| *ms > now - 80 && *ms <= now && !deaf.contains(ms));
                match word {
                    Some((_, text)) => {
                        events.push(token(TokenKind::WordEnd, time_ms, ""));
                        events.push(token(TokenKind::Text, time_ms, text));
                    }
                    None => events.push(token(TokenKind::Blank, time_ms, "")),
                }
            }
            events.push(Event::End { text: String::new() });
            events
        }

        /// The text that comes through the guard, and the gaps.
        fn run(&mut self, deaf: std::ops::Range<u64>) -> (String, Vec<Gap>) {
            let (mut guard, mut feed) = GapGuard::new();
            let events = self.events(0, self.samples.len() as u64, deaf);
            let (mut text, mut last_ms) = (String::new(), 0);
            let mut samples = self.samples.clone();
            samples.reverse();
            for event in events {
                let n = samples.len().min(SAMPLES_PER_TOKEN);
                let mut next: Vec<_> = samples.drain(samples.len() - n..).collect();
                next.reverse();
                feed.samples(&next);
                for event in guard.event(event, self).unwrap() {
                    if let Event::Token(token) = event
                        && token.kind == TokenKind::Text
                    {
                        assert!(token.time_ms > last_ms);
                        last_ms = token.time_ms;
                        text.push_str(&token.text);
                    }
                }
            }
            (text, guard.gaps)
        }
    }

    impl SecondLook for Stage {
        fn samples(&mut self, start: u64, end: u64) -> Result<Vec<f32>> {
            let end = (end as usize).min(self.samples.len());
            self.decoded.push(start as usize);
            Ok(self.samples[start as usize..end].to_vec())
        }

        fn decode(&mut self, samples: &[f32]) -> Result<Vec<Event>> {
            let start = *self.decoded.last().unwrap() as u64;
            Ok(self.events(start, start + samples.len() as u64, 0..0))
        }
    }

    /// Thirty seconds of speech, and a word every half second.
    fn speech() -> Stage {
        let words = [" a", " b", " c", " d", " e", " f", " g", " h", " i", " j"];
        let words: Vec<_> = (1..60).map(|i| (500 * i, words[i as usize % 10])).collect();
        Stage::new(recording("long_mixed")[..30 * 16_000].to_vec(), &words)
    }

    #[test]
    fn words_that_were_passed_over_are_put_in_their_place() {
        let mut stage = speech();
        let (all, gaps) = stage.run(0..0);
        assert!(gaps.is_empty() && stage.decoded.is_empty());
        for deaf in [0..12_000, 7_000..18_250, 15_000..40_000, 0..40_000] {
            let (text, gaps) = stage.run(deaf.clone());
            assert_eq!(text, all, "{deaf:?}");
            let [gap] = gaps.as_slice() else { panic!("{deaf:?}: {gaps:?}") };
            assert!(gap.start_ms + 1000 >= deaf.start && gap.end_ms <= deaf.end + 580, "{gap:?}");
            assert!(gap.speech_ms >= 5000 && !gap.text.is_empty(), "{gap:?}");
        }
    }

    #[test]
    fn what_stays_silent_is_reported() {
        let mut stage = speech();
        stage.words.retain(|(ms, _)| !(8_000..20_000).contains(ms));
        let (before, gaps) = stage.run(0..0);
        assert!(!before.is_empty());
        let [gap] = gaps.as_slice() else { panic!("{gaps:?}") };
        assert!(gap.text.is_empty() && gap.speech_ms >= 5000, "{gap:?}");
    }

    #[test]
    fn short_silences_and_true_ones_are_left_alone() {
        let mut stage = speech();
        let (_, gaps) = stage.run(8_000..12_000);
        assert!(gaps.is_empty() && stage.decoded.is_empty(), "{gaps:?}");
        for (name, samples) in not_speech().into_iter().chain([("recorded", recording("noise_only"))]) {
            let mut stage = Stage::new(samples, &[]);
            assert_eq!(stage.run(0..0), (String::new(), vec![]), "{name}");
        }
    }

    #[test]
    fn silence_between_two_gaps_is_not_decoded() {
        let mut stage = speech();
        let n = 16_000;
        stage.samples[12 * n..18 * n].fill(0.0);
        let (_, gaps) = stage.run(0..40_000);
        let [first, second] = gaps.as_slice() else { panic!("{gaps:?}") };
        assert!(first.end_ms <= 12_600 && second.start_ms >= 17_400, "{gaps:?}");
    }

    #[test]
    fn levels_wait_only_for_their_tokens() {
        let (mut guard, mut feed) = GapGuard::new();
        let mut stage = Stage::new(Vec::new(), &[]);
        for i in 0..100_000 {
            feed.samples(&[0.0; SAMPLES_PER_TOKEN]);
            guard.event(token(TokenKind::Blank, 80 * (i + 1), ""), &mut stage).unwrap();
            assert!(
                guard.levels.lock().unwrap().is_empty() && guard.latest.len() <= WORD && guard.stretches.is_empty()
            );
        }
    }
}
