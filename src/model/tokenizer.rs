//! `tekken.json`: the bytes of every token id, and the audio settings that came with the model.
//!
//! Ids below the number of special tokens are special and have no text; the others stand for byte strings, which may end
//! inside a UTF-8 character ([`Utf8Joiner`] puts those together).

use std::borrow::Cow;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde::Deserialize;

use super::Delay;
use crate::{Error, Result};

/// Special ids that the engine handles, looked up by name, with the official numbers where the file lacks them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpecialIds {
    pub bos: u32,
    pub eos: u32,
    pub streaming_pad: u32,
    pub streaming_word: u32,
}

/// Token ids to text, and the model's streaming settings.
#[derive(Debug)]
pub struct Tokenizer {
    /// Bytes of all text tokens, one after the other.
    bytes: Vec<u8>,
    /// Where the bytes of text token `i` end.
    ends: Vec<u32>,
    n_special: u32,
    pub special: SpecialIds,
    /// Tokens of silence before the audio.
    pub left_pad: usize,
    /// Delay that the file asks for.
    pub delay: Delay,
}

#[derive(Deserialize)]
struct RawTekken<'a> {
    config: RawConfig,
    #[serde(borrow)]
    vocab: Vec<RawPiece<'a>>,
    #[serde(borrow, default)]
    special_tokens: Vec<RawSpecial<'a>>,
    audio: Option<RawAudio>,
}

#[derive(Deserialize)]
struct RawConfig {
    default_num_special_tokens: u64,
}

#[derive(Deserialize)]
struct RawPiece<'a> {
    rank: u64,
    #[serde(borrow)]
    token_bytes: Cow<'a, str>,
}

#[derive(Deserialize)]
struct RawSpecial<'a> {
    rank: u64,
    #[serde(borrow)]
    token_str: Option<Cow<'a, str>>,
}

#[derive(Deserialize)]
struct RawAudio {
    sampling_rate: Option<f64>,
    frame_rate: Option<f64>,
    transcription_delay_ms: Option<f64>,
    streaming_n_left_pad_tokens: Option<u64>,
}

impl Tokenizer {
    /// Reads and checks `tekken.json` for a model with `vocab_size` ids.
    pub fn open(path: &Path, vocab_size: usize) -> Result<Self> {
        let bytes = std::fs::read(path).map_err(|error| Error::Io { path: path.into(), error })?;
        Self::parse(&bytes, vocab_size).map_err(|faults| Error::Model { path: path.into(), faults })
    }

    /// The tokenizer in this JSON text, or everything that is wrong with it.
    pub fn parse(json: &[u8], vocab_size: usize) -> std::result::Result<Self, Vec<String>> {
        let raw: RawTekken = serde_json::from_slice(json).map_err(|e| vec![e.to_string()])?;
        let mut faults = Vec::new();
        let n_special = raw.config.default_num_special_tokens;
        if n_special >= vocab_size as u64 {
            return Err(vec![format!("{n_special} special tokens in a vocabulary of {vocab_size}")]);
        }
        let n_text = vocab_size - n_special as usize;
        if raw.vocab.len() < n_text {
            return Err(vec![format!("vocab lists {} tokens, the model needs {n_text}", raw.vocab.len())]);
        }

        let (mut bytes, mut ends) = (Vec::with_capacity(n_text * 8), Vec::with_capacity(n_text));
        for (i, piece) in raw.vocab[..n_text].iter().enumerate() {
            let start = bytes.len();
            if BASE64.decode_vec(piece.token_bytes.as_ref(), &mut bytes).is_err() {
                faults.push(format!("vocab[{i}].token_bytes is not base64"));
            } else if piece.rank != i as u64 {
                faults.push(format!("vocab[{i}].rank is {}, expected {i}", piece.rank));
            } else if i < 256 && bytes[start..] != [i as u8] {
                faults.push(format!("vocab[{i}] must be the single byte {i}"));
            } else if bytes.len() == start {
                faults.push(format!("vocab[{i}] is empty"));
            }
            if faults.len() == 8 {
                faults.push("…".into());
                return Err(faults);
            }
            ends.push(bytes.len() as u32);
        }

        let mut find = |name: &str, official: u32| {
            let id = raw
                .special_tokens
                .iter()
                .find(|s| s.token_str.as_deref() == Some(name))
                .map_or(official.into(), |s| s.rank);
            if id >= n_special {
                faults.push(format!("{name} has id {id}, but only {n_special} ids are special"));
            }
            id as u32
        };
        let special = SpecialIds {
            bos: find("<s>", 1),
            eos: find("</s>", 2),
            streaming_pad: find("[STREAMING_PAD]", 32),
            streaming_word: find("[STREAMING_WORD]", 33),
        };

        let Some(audio) = raw.audio else {
            faults.push("audio is missing: not the tokenizer of a streaming model".into());
            return Err(faults);
        };
        for (name, value, expected) in [
            ("sampling_rate", audio.sampling_rate, f64::from(crate::audio::SAMPLE_RATE)),
            ("frame_rate", audio.frame_rate, 12.5),
        ] {
            if value.is_some_and(|v| v != expected) {
                faults.push(format!("audio.{name} is {}, only {expected} is supported", value.unwrap_or_default()));
            }
        }
        let left_pad = audio.streaming_n_left_pad_tokens.unwrap_or(32);
        if left_pad > 1024 {
            faults.push(format!("audio.streaming_n_left_pad_tokens is {left_pad}, expected at most 1024"));
        }
        let delay_ms = audio.transcription_delay_ms.unwrap_or(480.0);
        let delay = Delay::from_ms(delay_ms).unwrap_or_else(|e| {
            faults.push(format!("audio.transcription_delay_ms: {e}"));
            Delay::DEFAULT
        });
        if !faults.is_empty() {
            return Err(faults);
        }
        let n_special = n_special as u32;
        Ok(Self { bytes, ends, n_special, special, left_pad: left_pad as usize, delay })
    }

    /// Number of ids, special ones included.
    pub fn vocab_size(&self) -> usize {
        self.n_special as usize + self.ends.len()
    }

    /// The bytes of a text token; none for special ids and ids outside the vocabulary.
    pub fn bytes(&self, id: u32) -> Option<&[u8]> {
        let i = id.checked_sub(self.n_special)? as usize;
        let start = if i == 0 { 0 } else { *self.ends.get(i - 1)? };
        Some(&self.bytes[start as usize..*self.ends.get(i)? as usize])
    }

    /// Whether this id stands for text.
    pub fn is_text(&self, id: u32) -> bool {
        id >= self.n_special
    }
}

/// Joins byte strings to text, holding back a character until all of its bytes have come.
///
/// Bytes that can't become a character are replaced by U+FFFD as `String::from_utf8_lossy` does, wherever the strings
/// were cut.
#[derive(Debug, Default, Clone)]
pub struct Utf8Joiner {
    pending: Vec<u8>,
}

impl Utf8Joiner {
    /// Takes more bytes and returns the text that is complete now.
    pub fn push(&mut self, bytes: &[u8]) -> String {
        self.pending.extend_from_slice(bytes);
        let mut text = String::new();
        let mut rest = self.pending.as_slice();
        loop {
            match std::str::from_utf8(rest) {
                Ok(valid) => {
                    text.push_str(valid);
                    rest = &[];
                    break;
                }
                Err(e) => {
                    let (valid, after) = rest.split_at(e.valid_up_to());
                    text.push_str(&String::from_utf8_lossy(valid));
                    rest = after;
                    let Some(bad) = e.error_len() else { break };
                    text.push(char::REPLACEMENT_CHARACTER);
                    rest = &after[bad..];
                }
            }
        }
        self.pending = rest.to_vec();
        text
    }

    /// Ends the text: an unfinished character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        String::from_utf8_lossy(&std::mem::take(&mut self.pending)).into_owned()
    }

    /// Whether a character waits for its remaining bytes.
    pub fn is_pending(&self) -> bool {
        !self.pending.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    const TINY: &[u8] = include_bytes!("../../samples/tiny-model/tekken.json");

    fn faults(change: impl Fn(&mut Value)) -> String {
        let mut json: Value = serde_json::from_slice(TINY).unwrap();
        change(&mut json);
        Tokenizer::parse(&serde_json::to_vec(&json).unwrap(), 2816).unwrap_err().join("; ")
    }

    #[test]
    fn reads_the_shipped_model() {
        let t = Tokenizer::parse(TINY, 2816).unwrap();
        assert_eq!(t.special, SpecialIds { bos: 1, eos: 2, streaming_pad: 32, streaming_word: 33 });
        assert_eq!((t.left_pad, t.delay.tokens(), t.vocab_size()), (32, 6, 2816));
        assert_eq!((t.bytes(999), t.bytes(1000), t.bytes(1255)), (None, Some(&[0][..]), Some(&[255][..])));
        assert_eq!((t.bytes(2815).map(<[u8]>::is_empty), t.bytes(2816), t.bytes(u32::MAX)), (Some(false), None, None));
    }

    #[test]
    fn special_ids_are_looked_up_by_name() {
        let mut json: Value = serde_json::from_slice(TINY).unwrap();
        json["special_tokens"] = json!([{"rank": 40, "token_str": "[STREAMING_PAD]", "is_control": true}]);
        let t = Tokenizer::parse(&serde_json::to_vec(&json).unwrap(), 2816).unwrap();
        assert_eq!((t.special.streaming_pad, t.special.bos), (40, 1));
    }

    #[test]
    fn faults_are_named() {
        assert!(faults(|j| j["vocab"][300]["rank"] = 7.into()).contains("vocab[300].rank is 7"));
        assert!(faults(|j| j["vocab"][300]["token_bytes"] = "*".into()).contains("vocab[300].token_bytes"));
        assert!(faults(|j| j["vocab"][65]["token_bytes"] = "Qg==".into()).contains("single byte 65"));
        assert!(faults(|j| j["vocab"].as_array_mut().unwrap().truncate(1000)).contains("lists 1000 tokens"));
        assert!(faults(|j| j["audio"] = Value::Null).contains("audio is missing"));
        assert!(faults(|j| j["audio"]["transcription_delay_ms"] = 0.into()).contains("transcription_delay_ms"));
        assert!(faults(|j| j["audio"]["streaming_n_left_pad_tokens"] = 100_000.into()).contains("left_pad"));
        assert!(faults(|j| j["config"]["default_num_special_tokens"] = 5000.into()).contains("5000 special"));
        assert!(Tokenizer::parse(b"{}", 2816).is_err());
        assert!(Tokenizer::parse(&TINY[..TINY.len() / 2], 2816).is_err());
    }

    proptest! {
        #[test]
        fn joining_is_lossy_decoding_wherever_the_cuts_are(
            bytes in prop::collection::vec(prop_oneof![Just(0xF0u8), Just(0x9F), Just(0x8E), Just(0xA4), Just(0xC3),
                Just(0xA9), Just(b'a'), any::<u8>()], 0..40),
            cuts in prop::collection::vec(0usize..5, 0..40),
        ) {
            let (mut joiner, mut text, mut rest) = (Utf8Joiner::default(), String::new(), bytes.as_slice());
            for cut in cuts {
                let (head, tail) = rest.split_at(cut.min(rest.len()));
                text.push_str(&joiner.push(head));
                rest = tail;
                prop_assert!(joiner.pending.len() <= 3);
            }
            text.push_str(&joiner.push(rest));
            text.push_str(&joiner.finish());
            prop_assert_eq!(text, String::from_utf8_lossy(&bytes));
        }
    }
}
