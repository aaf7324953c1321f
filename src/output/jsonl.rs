//! A transcript as JSON objects, one a line: live as it happens, or a whole one afterwards.
//!
//! | `type` | when | what |
//! |---|---|---|
//! | `start` | first | input, model, delay |
//! | `delta` | live only: as soon as text is recognised | the text and the moment it speaks of |
//! | `word` | when a word is complete | word, start, end, confidence, alternatives |
//! | `segment` | when a segment is complete | id, start, end, text, confidence |
//! | `restart` | where the model began afresh | time |
//! | `end` | last | all that JSON says besides segments |

use std::io::{self, Write};

use serde::Serialize;

use super::cues::Layout;
use super::json::{SegmentJson, SummaryJson, WordJson, seconds};
use super::segments::{Segment, Segmenter};
use super::transcript::Transcript;
use super::words::WordBuilder;
use crate::engine::{Event, Token, TokenKind};

#[derive(Serialize)]
#[serde(tag = "type", rename_all = "snake_case")]
enum Line<'a> {
    Start {
        input: &'a str,
        model: &'a str,
        delay_ms: u64,
    },
    Delta {
        #[serde(serialize_with = "seconds")]
        time: u64,
        #[serde(skip_serializing_if = "Option::is_none")]
        channel: Option<&'a str>,
        text: &'a str,
    },
    Word {
        #[serde(skip_serializing_if = "Option::is_none")]
        channel: Option<&'a str>,
        #[serde(flatten)]
        word: WordJson<'a>,
    },
    Segment(SegmentJson<'a>),
    Restart {
        #[serde(serialize_with = "seconds")]
        time: u64,
    },
    End(SummaryJson<'a>),
}

/// Writes events as lines, each of which is flushed.
pub struct JsonlWriter<W> {
    out: W,
    tracks: Vec<Track>,
    n_segments: usize,
}

/// A channel, or the one mix of all.
struct Track {
    channel: Option<String>,
    words: WordBuilder,
    segmenter: Segmenter,
}

impl<W: Write> JsonlWriter<W> {
    /// Writes the first line. `channels` are the names of those that are transcribed apart, or one `None`.
    pub fn start(
        mut out: W,
        input: &str,
        model: &str,
        delay_ms: u64,
        channels: &[Option<String>],
        layout: &Layout,
    ) -> io::Result<Self> {
        line(&Line::Start { input, model, delay_ms }, &mut out)?;
        out.flush()?;
        let track = |channel: &Option<String>| Track {
            channel: channel.clone(),
            words: WordBuilder::default(),
            segmenter: Segmenter::new(layout.segment_ms(), channel.clone()),
        };
        Ok(Self { out, tracks: channels.iter().map(track).collect(), n_segments: 0 })
    }

    /// Writes what the next event of a channel adds.
    pub fn event(&mut self, channel: usize, event: &Event) -> io::Result<()> {
        let track = &mut self.tracks[channel];
        let channel = track.channel.as_deref();
        match event {
            Event::Token(token) if !token.text.is_empty() => {
                line(&Line::Delta { time: token.time_ms, channel, text: &token.text }, &mut self.out)?;
            }
            Event::Restart { time_ms } => line(&Line::Restart { time: *time_ms }, &mut self.out)?,
            _ => {}
        }
        let (mut words, mut segments) = (Vec::new(), Vec::new());
        track.words.event(event, &mut words);
        for word in words {
            line(&Line::Word { channel, word: WordJson::new(&word) }, &mut self.out)?;
            track.segmenter.push(word, &mut segments);
        }
        match event {
            Event::Token(Token { kind: TokenKind::Blank, time_ms, .. }) => {
                track.segmenter.quiet_until(*time_ms, &mut segments);
            }
            Event::End { .. } => track.segmenter.finish(&mut segments),
            _ => {}
        }
        for segment in segments {
            segment_line(self.n_segments, &segment, &mut self.out)?;
            self.n_segments += 1;
        }
        self.out.flush()
    }

    /// Writes the last line.
    pub fn finish(mut self, transcript: &Transcript) -> io::Result<()> {
        line(&Line::End(SummaryJson::new(transcript)), &mut self.out)?;
        self.out.flush()
    }
}

/// Writes a whole transcript.
pub(super) fn write(transcript: &Transcript, out: &mut dyn Write) -> io::Result<()> {
    let Transcript { input, model, delay_ms, .. } = transcript;
    line(&Line::Start { input, model, delay_ms: *delay_ms }, out)?;
    let mut restarts = transcript.restarts_ms.iter().peekable();
    for (id, segment) in transcript.segments.iter().enumerate() {
        while let Some(&time) = restarts.next_if(|&&time| time <= segment.start_ms()) {
            line(&Line::Restart { time }, out)?;
        }
        for word in &segment.words {
            line(&Line::Word { channel: segment.channel.as_deref(), word: WordJson::new(word) }, out)?;
        }
        segment_line(id, segment, out)?;
    }
    for &time in restarts {
        line(&Line::Restart { time }, out)?;
    }
    line(&Line::End(SummaryJson::new(transcript)), out)
}

/// A segment without its words, which have lines of their own.
fn segment_line(id: usize, segment: &Segment, out: &mut dyn Write) -> io::Result<()> {
    line(&Line::Segment(SegmentJson { words: Vec::new(), ..SegmentJson::new(id, segment) }), out)
}

fn line(line: &Line<'_>, out: &mut dyn Write) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::super::formats::Format;
    use super::super::transcript::TranscriptBuilder;
    use super::super::words::tests::events;
    use super::*;

    #[test]
    fn live_lines_are_those_of_the_whole_and_the_deltas() {
        let layout = Layout::default();
        let mut list = events(&format!("| _Yes . | _it | _is , | _so . | _No ! {} | _But", ". ".repeat(40)));
        list.insert(4, Event::Restart { time_ms: 320 });
        let mut live = Vec::new();
        let mut writer = JsonlWriter::start(&mut live, "a.wav", "tiny", 480, &[None], &layout).unwrap();
        let mut builder = TranscriptBuilder::new(&layout, None);
        for event in &list {
            writer.event(0, event).unwrap();
            builder.event(event);
        }
        let transcript = Transcript { input: "a.wav".into(), model: "tiny".into(), delay_ms: 480, ..builder.finish() };
        writer.finish(&transcript).unwrap();
        let mut whole = Vec::new();
        Format::Jsonl.write(&transcript, &layout, &mut whole).unwrap();

        let lines = |bytes: Vec<u8>| -> Vec<Value> {
            let text = String::from_utf8(bytes).unwrap();
            text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
        };
        let of_type = |lines: &[Value], kind: &str| -> Vec<Value> {
            lines.iter().filter(|line| line["type"] == kind).cloned().collect()
        };
        let (live, whole) = (lines(live), lines(whole));
        for kind in ["start", "word", "segment", "restart", "end"] {
            assert_eq!(of_type(&live, kind), of_type(&whole, kind));
            assert!(!of_type(&live, kind).is_empty(), "{kind}");
        }
        let deltas: String =
            of_type(&live, "delta").iter().map(|line| line["text"].as_str().unwrap().to_owned()).collect();
        assert_eq!(deltas.trim(), transcript.text());
        assert!(of_type(&whole, "delta").is_empty());
        assert_eq!((&live[0]["type"], &live[live.len() - 1]["type"]), (&"start".into(), &"end".into()));
        assert_eq!(of_type(&live, "restart")[0]["time"], 0.32);
        // a segment is over before the next begins
        let kinds: Vec<_> = live.iter().rev().map(|line| line["type"].as_str().unwrap()).collect();
        assert_eq!(kinds[..5], ["end", "segment", "word", "delta", "segment"]);
    }
}
