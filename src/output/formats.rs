//! Whole transcripts in the formats that programs and players read.
//!
//! Times are milliseconds of the audio; JSON has seconds. Every format labels channels where they were transcribed apart.

use std::fmt::Display;
use std::io::{self, Write};
use std::str::FromStr;

use super::cues::{Cue, Layout, cues};
use super::transcript::Transcript;
use super::{json, jsonl};

/// A way to write a transcript.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Format {
    /// One line of text; with several channels one for each turn.
    Txt,
    /// Everything that is known.
    Json,
    /// The same as one object a line, as it happens where it is written live.
    Jsonl,
    /// SubRip subtitles.
    Srt,
    /// WebVTT subtitles.
    Vtt,
    /// Begin and end in milliseconds, and text, separated by tabs, a segment a line.
    Tsv,
    /// Lyrics: a time in front of each line.
    Lrc,
}

impl Format {
    pub const ALL: [Self; 7] = [Self::Txt, Self::Json, Self::Jsonl, Self::Srt, Self::Vtt, Self::Tsv, Self::Lrc];

    /// Its name, which is what file names end in.
    pub fn extension(self) -> &'static str {
        match self {
            Self::Txt => "txt",
            Self::Json => "json",
            Self::Jsonl => "jsonl",
            Self::Srt => "srt",
            Self::Vtt => "vtt",
            Self::Tsv => "tsv",
            Self::Lrc => "lrc",
        }
    }

    /// Whether it shows how probable words are: [`SessionOptions::probabilities`](crate::SessionOptions) has to be set.
    pub fn shows_probabilities(self) -> bool {
        matches!(self, Self::Json | Self::Jsonl)
    }

    /// Writes a transcript.
    pub fn write(self, transcript: &Transcript, layout: &Layout, out: &mut dyn Write) -> io::Result<()> {
        match self {
            Self::Txt => txt(transcript, out),
            Self::Json => json::write(transcript, out),
            Self::Jsonl => jsonl::write(transcript, out),
            Self::Srt => srt(&cues(&transcript.segments, layout), out),
            Self::Vtt => vtt(&cues(&transcript.segments, layout), out),
            Self::Tsv => tsv(transcript, out),
            Self::Lrc => lrc(&cues(&transcript.segments, layout), out),
        }
    }
}

impl FromStr for Format {
    type Err = String;

    fn from_str(name: &str) -> Result<Self, String> {
        Self::ALL.into_iter().find(|format| format.extension() == name).ok_or_else(|| {
            let names = Self::ALL.map(Self::extension).join(", ");
            format!("no format is called {name:?}; there are {names} and all")
        })
    }
}

fn txt(transcript: &Transcript, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "{}", transcript.text())
}

fn srt(cues: &[Cue], out: &mut dyn Write) -> io::Result<()> {
    for (i, cue) in cues.iter().enumerate() {
        let (start, end) = (timestamp(cue.start_ms, ','), timestamp(cue.end_ms, ','));
        writeln!(out, "{}\n{start} --> {end}", i + 1)?;
        for (n, line) in cue.lines.iter().enumerate() {
            // an arrow would be taken for another time
            writeln!(out, "{}{}", label(cue).filter(|_| n == 0).unwrap_or_default(), line.replace("-->", "->"))?;
        }
        writeln!(out)?;
    }
    Ok(())
}

fn vtt(cues: &[Cue], out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "WEBVTT")?;
    let escape = |text: &str| text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    for cue in cues {
        writeln!(out, "\n{} --> {}", timestamp(cue.start_ms, '.'), timestamp(cue.end_ms, '.'))?;
        if let Some(name) = &cue.channel {
            write!(out, "<v {}>", escape(name))?;
        }
        for line in &cue.lines {
            writeln!(out, "{}", escape(line))?;
        }
    }
    Ok(())
}

fn tsv(transcript: &Transcript, out: &mut dyn Write) -> io::Result<()> {
    let labelled = transcript.segments.iter().any(|segment| segment.channel.is_some());
    writeln!(out, "start\tend\t{}text", if labelled { "channel\t" } else { "" })?;
    for segment in &transcript.segments {
        write!(out, "{}\t{}\t", segment.start_ms(), segment.end_ms())?;
        if labelled {
            write!(out, "{}\t", segment.channel.as_deref().unwrap_or_default())?;
        }
        writeln!(out, "{}", segment.text().replace(|c: char| c.is_control(), " "))?;
    }
    Ok(())
}

fn lrc(cues: &[Cue], out: &mut dyn Write) -> io::Result<()> {
    for cue in cues {
        let (minutes, hundredths) = (cue.start_ms / 60_000, cue.start_ms % 60_000 / 10);
        let text = cue.lines.join(" ");
        let label = label(cue).unwrap_or_default();
        writeln!(out, "[{minutes:02}:{:02}.{:02}]{label}{text}", hundredths / 100, hundredths % 100)?;
    }
    Ok(())
}

fn label(cue: &Cue) -> Option<String> {
    cue.channel.as_ref().map(|name| format!("{name}: "))
}

/// `HH:MM:SS` and milliseconds behind `point`.
fn timestamp(ms: u64, point: char) -> impl Display {
    let s = ms / 1000;
    format!("{:02}:{:02}:{:02}{point}{:03}", s / 3600, s / 60 % 60, s % 60, ms % 1000)
}

#[cfg(test)]
mod tests {
    use super::super::segments::tests::segments;
    use super::super::transcript::Coverage;
    use super::*;
    use crate::engine::Gap;

    fn transcript(text: &str) -> Transcript {
        Transcript {
            input: "a.wav".into(),
            n_samples: 160_000,
            segments: segments(text, 30_000),
            ..Transcript::default()
        }
    }

    /// Two channels that take turns.
    fn two_channels() -> Transcript {
        let channel = |name: &str, text: &str, wanted: [usize; 2]| {
            let mut one = transcript(text);
            let mut i = 0;
            one.segments.retain_mut(|segment| {
                segment.channel = Some(name.into());
                i += 1;
                wanted.contains(&(i - 1))
            });
            one
        };
        let text = "Hello. 400 Hi. 400 Well, and you? 400 Fine & well <3.";
        Transcript::merge(vec![channel("left", text, [0, 2]), channel("right", text, [1, 3])])
    }

    fn written(format: Format, transcript: &Transcript) -> String {
        let mut out = Vec::new();
        format.write(transcript, &Layout::default(), &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn every_format_of_one_transcript() {
        let t = transcript("It is. 2000 So be it!");
        assert_eq!(written(Format::Txt, &t), "It is. So be it!\n");
        assert_eq!(
            written(Format::Srt, &t),
            "1\n00:00:00,000 --> 00:00:01,000\nIt is.\n\n2\n00:00:02,500 --> 00:00:03,500\nSo be it!\n\n"
        );
        assert_eq!(
            written(Format::Vtt, &t),
            "WEBVTT\n\n00:00:00.000 --> 00:00:01.000\nIt is.\n\n00:00:02.500 --> 00:00:03.500\nSo be it!\n"
        );
        assert_eq!(written(Format::Tsv, &t), "start\tend\ttext\n0\t500\tIt is.\n2500\t3200\tSo be it!\n");
        assert_eq!(written(Format::Lrc, &t), "[00:00.00]It is.\n[00:02.50]So be it!\n");
        let json: serde_json::Value = serde_json::from_str(&written(Format::Json, &t)).unwrap();
        assert_eq!((&json["text"], &json["segments"][1]["start"]), (&"It is. So be it!".into(), &2.5.into()));
        assert_eq!(json["segments"][1]["words"][2], serde_json::json!({"word": "it!", "start": 2.9, "end": 3.2}));
        assert_eq!(json["coverage"], serde_json::json!({"read": 10.0, "transcribed": 10.0, "missed": 0.0}));
        assert_eq!(written(Format::Jsonl, &t).lines().count(), 1 + 5 + 2 + 1);
    }

    #[test]
    fn silence_is_a_valid_file_in_every_format() {
        let t = transcript("");
        for (format, expected) in [
            (Format::Txt, "\n"),
            (Format::Srt, ""),
            (Format::Vtt, "WEBVTT\n"),
            (Format::Tsv, "start\tend\ttext\n"),
            (Format::Lrc, ""),
        ] {
            assert_eq!(written(format, &t), expected);
        }
        let json: serde_json::Value = serde_json::from_str(&written(Format::Json, &t)).unwrap();
        assert_eq!((&json["text"], &json["segments"]), (&"".into(), &serde_json::json!([])));
    }

    #[test]
    fn channels_are_labelled() {
        let t = two_channels();
        let turns = ["left: Hello.", "right: Hi.", "left: Well, and you?", "right: Fine & well <3."];
        assert_eq!(written(Format::Txt, &t), format!("{}\n", turns.join("\n")));
        let srt = written(Format::Srt, &t);
        assert!(turns.iter().all(|turn| srt.contains(&format!("\n{turn}\n"))), "{srt}");
        let vtt = written(Format::Vtt, &t);
        assert!(vtt.contains("\n<v left>Hello.\n") && vtt.contains("<v right>Fine &amp; well &lt;3."), "{vtt}");
        let tsv = written(Format::Tsv, &t);
        assert!(tsv.starts_with("start\tend\tchannel\ttext\n0\t600\tleft\tHello.\n1000\t1300\tright\tHi.\n"), "{tsv}");
        assert!(written(Format::Lrc, &t).contains("]right: Hi.\n"));
        let json: serde_json::Value = serde_json::from_str(&written(Format::Json, &t)).unwrap();
        assert_eq!((&json["segments"][1]["channel"], &json["segments"][1]["id"]), (&"right".into(), &1.into()));
    }

    #[test]
    fn an_independent_parser_reads_what_is_hard_to_write() {
        let hard = "Tom & <b>Ann</b> --> said: 5 < 6? 900 ﷺ العربيّة، نص. 900 今日は良い天気です。 900 a\u{200B}b 😀 12 00:00:01,000";
        let mut t = transcript(hard);
        t.segments[0].words[0].text = "\n\nTom\0\n\n".into();
        let lines = |cue: &Cue| cue.lines.clone();
        let expected: Vec<_> = cues(&t.segments, &Layout::default()).iter().map(lines).collect();

        let srt = subtp::srt::SubRip::parse(&written(Format::Srt, &t)).unwrap();
        let texts: Vec<_> = srt.subtitles.iter().map(|cue| cue.text.clone()).collect();
        let arrows = |lines: &Vec<String>| lines.iter().map(|line| line.replace("-->", "->")).collect::<Vec<_>>();
        assert_eq!(texts, expected.iter().map(arrows).collect::<Vec<_>>());

        let vtt = subtp::vtt::WebVtt::parse(&written(Format::Vtt, &t)).unwrap();
        let unescape = |line: &String| line.replace("&lt;", "<").replace("&gt;", ">").replace("&amp;", "&");
        let texts: Vec<Vec<_>> = vtt
            .blocks
            .iter()
            .filter_map(|block| match block {
                subtp::vtt::VttBlock::Que(cue) => Some(cue.payload.iter().map(unescape).collect()),
                _ => None,
            })
            .collect();
        assert_eq!(texts, expected);
    }

    #[test]
    fn times_run_past_an_hour() {
        assert_eq!(timestamp(3_723_004, ',').to_string(), "01:02:03,004");
        assert_eq!(timestamp(360_000_000, '.').to_string(), "100:00:00.000");
    }

    #[test]
    fn missed_speech_lowers_coverage() {
        let gap = |text: &str| Gap { start_ms: 1000, end_ms: 5000, speech_ms: 2500, text: text.into() };
        let t = Transcript { gaps: vec![gap("found"), gap("")], ..transcript("") };
        assert_eq!(t.coverage(), Coverage { read: 10.0, transcribed: 7.5, missed: 2.5 });
        let json: serde_json::Value = serde_json::from_str(&written(Format::Json, &t)).unwrap();
        assert_eq!(
            json["gaps"][0],
            serde_json::json!({"start": 1.0, "end": 5.0, "speech": 2.5, "recovered": true, "text": "found"})
        );
    }

    #[test]
    fn formats_are_found_by_name() {
        for format in Format::ALL {
            assert_eq!(format.extension().parse(), Ok(format));
        }
        assert!("SRT".parse::<Format>().is_err());
    }
}
