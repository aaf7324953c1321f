//! A transcript as JSON, and its parts, of which [`jsonl`](super::jsonl) makes lines.

use std::io::{self, Write};

use serde::{Serialize, Serializer};

use super::segments::{Segment, mean_confidence};
use super::transcript::{Coverage, Timings, Transcript};
use super::words::Word;
use crate::engine::Gap;

/// A segment as JSON shows it.
#[derive(Serialize)]
pub(super) struct SegmentJson<'a> {
    pub id: usize,
    #[serde(serialize_with = "seconds")]
    pub start: u64,
    #[serde(serialize_with = "seconds")]
    pub end: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub channel: Option<&'a str>,
    pub text: String,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "confidence")]
    pub confidence: Option<f32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub words: Vec<WordJson<'a>>,
}

/// A word as JSON shows it.
#[derive(Serialize)]
pub(super) struct WordJson<'a> {
    pub word: &'a str,
    #[serde(serialize_with = "seconds")]
    pub start: u64,
    #[serde(serialize_with = "seconds")]
    pub end: u64,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "confidence")]
    pub confidence: Option<f32>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub alternatives: Vec<AlternativeJson<'a>>,
}

#[derive(Serialize)]
pub(super) struct AlternativeJson<'a> {
    instead_of: &'a str,
    text: &'a str,
    #[serde(serialize_with = "probability")]
    probability: f32,
}

impl<'a> SegmentJson<'a> {
    pub fn new(id: usize, segment: &'a Segment) -> Self {
        Self {
            id,
            start: segment.start_ms(),
            end: segment.end_ms(),
            channel: segment.channel.as_deref(),
            text: segment.text(),
            confidence: segment.confidence(),
            words: segment.words.iter().map(WordJson::new).collect(),
        }
    }
}

impl<'a> WordJson<'a> {
    pub fn new(word: &'a Word) -> Self {
        let alternatives = word.alternatives.iter().map(|other| AlternativeJson {
            instead_of: &other.instead_of,
            text: &other.text,
            probability: other.probability,
        });
        Self {
            word: word.trimmed(),
            start: word.start_ms,
            end: word.end_ms,
            confidence: word.confidence,
            alternatives: alternatives.collect(),
        }
    }
}

/// What JSON says about an input as a whole.
#[derive(Serialize)]
pub(super) struct SummaryJson<'a> {
    pub input: &'a str,
    pub model: &'a str,
    pub delay_ms: u64,
    pub text: String,
    #[serde(skip_serializing_if = "Option::is_none", serialize_with = "confidence")]
    pub confidence: Option<f32>,
    pub coverage: Coverage,
    pub gaps: Vec<GapJson<'a>>,
    /// Moments of fresh starts, in seconds.
    pub restarts: Vec<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timings: Option<Timings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<&'a str>,
}

impl<'a> SummaryJson<'a> {
    pub fn new(transcript: &'a Transcript) -> Self {
        Self {
            input: &transcript.input,
            model: &transcript.model,
            delay_ms: transcript.delay_ms,
            text: transcript.text(),
            confidence: mean_confidence(transcript.words()),
            coverage: transcript.coverage(),
            gaps: transcript.gaps.iter().map(GapJson::new).collect(),
            restarts: transcript.restarts_ms.iter().map(|&ms| ms as f64 / 1000.0).collect(),
            timings: transcript.timings,
            error: transcript.error.as_deref(),
        }
    }
}

/// A gap as JSON shows it.
#[derive(Serialize)]
pub(super) struct GapJson<'a> {
    #[serde(serialize_with = "seconds")]
    start: u64,
    #[serde(serialize_with = "seconds")]
    end: u64,
    /// How much of it sounds like speech.
    #[serde(serialize_with = "seconds")]
    speech: u64,
    /// Whether a run from clean state found words, and which.
    recovered: bool,
    text: &'a str,
}

impl<'a> GapJson<'a> {
    fn new(gap: &'a Gap) -> Self {
        let Gap { start_ms, end_ms, speech_ms, text } = gap;
        Self { start: *start_ms, end: *end_ms, speech: *speech_ms, recovered: !text.is_empty(), text }
    }
}

/// Writes all of a transcript.
pub(super) fn write(transcript: &Transcript, out: &mut dyn Write) -> io::Result<()> {
    #[derive(Serialize)]
    struct Json<'a> {
        #[serde(flatten)]
        summary: SummaryJson<'a>,
        segments: Vec<SegmentJson<'a>>,
    }
    let segments = transcript.segments.iter().enumerate().map(|(id, segment)| SegmentJson::new(id, segment));
    let json = Json { summary: SummaryJson::new(transcript), segments: segments.collect() };
    serde_json::to_writer_pretty(&mut *out, &json)?;
    writeln!(out)
}

/// Serialises milliseconds as seconds.
pub(super) fn seconds<S: Serializer>(ms: &u64, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64(*ms as f64 / 1000.0)
}

/// Serialises a probability with four digits.
fn probability<S: Serializer>(p: &f32, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_f64((f64::from(*p) * 1e4).round() / 1e4)
}

/// The same, of what may be unknown.
fn confidence<S: Serializer>(p: &Option<f32>, serializer: S) -> Result<S::Ok, S::Error> {
    match p {
        Some(p) => probability(p, serializer),
        None => serializer.serialize_none(),
    }
}
