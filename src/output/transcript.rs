//! What was heard in an input, and how it comes from a session's events.

use serde::Serialize;

use super::cues::Layout;
use super::segments::{Segment, Segmenter};
use super::words::{Word, WordBuilder};
use crate::audio::SAMPLE_RATE;
use crate::engine::{Event, Gap, Token, TokenKind};

/// What was heard in one input.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Transcript {
    /// The input's name.
    pub input: String,
    /// The model's name.
    pub model: String,
    pub delay_ms: u64,
    /// Samples read, at 16 kHz.
    pub n_samples: u64,
    /// In order of time.
    pub segments: Vec<Segment>,
    /// Moments at which the model said end of stream and started afresh.
    pub restarts_ms: Vec<u64>,
    /// Stretches in which the model was silent over speech.
    pub gaps: Vec<Gap>,
    pub timings: Option<Timings>,
    /// What ended the input before its end.
    pub error: Option<String>,
}

/// How long the work took, in seconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize)]
pub struct Timings {
    #[serde(serialize_with = "rounded")]
    pub wall: f64,
    #[serde(serialize_with = "rounded")]
    pub encoder: f64,
    #[serde(serialize_with = "rounded")]
    pub decoder: f64,
    /// Seconds of audio for each second of work.
    #[serde(serialize_with = "rounded")]
    pub xrt: f64,
}

/// How much of the audio the transcript covers.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Coverage {
    /// Seconds of audio read.
    pub read: f64,
    /// Those less speech without words.
    pub transcribed: f64,
    /// Seconds of speech without words.
    pub missed: f64,
}

impl Transcript {
    /// The text of all segments on one line; with several channels, the turns of each on lines of their own.
    pub fn text(&self) -> String {
        let labelled = self.segments.iter().any(|segment| segment.channel.is_some());
        if !labelled {
            let text: String = self.words().map(|word| word.text.as_str()).collect();
            return text.trim().to_owned();
        }
        let mut text = String::new();
        let mut speaker = None;
        for segment in &self.segments {
            let channel = segment.channel.as_deref();
            match (speaker == Some(channel), channel) {
                (true, _) => text.push(' '),
                (false, channel) => {
                    if speaker.is_some() {
                        text.push('\n');
                    }
                    channel.iter().for_each(|name| text.push_str(&format!("{name}: ")));
                }
            }
            speaker = Some(channel);
            text.push_str(&segment.text());
        }
        text
    }

    /// All words.
    pub fn words(&self) -> impl Iterator<Item = &Word> {
        self.segments.iter().flat_map(|segment| &segment.words)
    }

    /// How much of the audio it covers.
    pub fn coverage(&self) -> Coverage {
        let read = self.n_samples as f64 / f64::from(SAMPLE_RATE);
        let missed_ms: u64 = self.gaps.iter().filter(|gap| gap.text.is_empty()).map(|gap| gap.speech_ms).sum();
        let missed = (missed_ms as f64 / 1000.0).min(read);
        Coverage { read: round_ms(read), transcribed: round_ms(read - missed), missed: round_ms(missed) }
    }

    /// One transcript of the channels of one input.
    pub fn merge(channels: Vec<Self>) -> Self {
        let mut merged = Self::default();
        for (i, channel) in channels.into_iter().enumerate() {
            if i == 0 {
                merged = channel;
                continue;
            }
            merged.n_samples = merged.n_samples.max(channel.n_samples);
            merged.segments.extend(channel.segments);
            merged.restarts_ms.extend(channel.restarts_ms);
            merged.gaps.extend(channel.gaps);
            merged.error = merged.error.or(channel.error);
        }
        merged.segments.sort_by_key(|segment| (segment.start_ms(), segment.end_ms()));
        merged.restarts_ms.sort_unstable();
        merged.gaps.sort_by_key(|gap| gap.start_ms);
        merged
    }
}

/// Makes a transcript of a session's events.
#[derive(Debug)]
pub struct TranscriptBuilder {
    words: WordBuilder,
    segmenter: Segmenter,
    transcript: Transcript,
    ready: Vec<Word>,
}

impl TranscriptBuilder {
    /// `channel` labels the segments, where channels are transcribed apart.
    pub fn new(layout: &Layout, channel: Option<String>) -> Self {
        Self {
            words: WordBuilder::default(),
            segmenter: Segmenter::new(layout.segment_ms(), channel),
            transcript: Transcript::default(),
            ready: Vec::new(),
        }
    }

    /// Takes the session's next event.
    pub fn event(&mut self, event: &Event) {
        if let Event::Restart { time_ms } = event {
            self.transcript.restarts_ms.push(*time_ms);
        }
        self.words.event(event, &mut self.ready);
        for word in self.ready.drain(..) {
            self.segmenter.push(word, &mut self.transcript.segments);
        }
        if let Event::Token(Token { kind: TokenKind::Blank, time_ms, .. }) = event {
            self.segmenter.quiet_until(*time_ms, &mut self.transcript.segments);
        }
    }

    /// The transcript, of which only segments and restarts are filled in.
    pub fn finish(mut self) -> Transcript {
        self.event(&Event::End { text: String::new() });
        self.segmenter.finish(&mut self.transcript.segments);
        self.transcript
    }
}

fn rounded<S: serde::Serializer>(value: &f64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(round_ms(*value))
}

fn round_ms(seconds: f64) -> f64 {
    (seconds * 1000.0).round() / 1000.0
}
