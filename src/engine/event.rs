//! What sessions say.

use crate::backend::Prediction;
use crate::model::Tokenizer;

/// Alternatives listed, the chosen token included.
const N_ALTERNATIVES: usize = 3;

/// What a session has to say, in order.
#[derive(Debug, Clone, PartialEq)]
pub enum Event {
    /// The model generated a token.
    Token(Token),
    /// The model said EOS with audio left; it starts afresh with the audio from this moment on.
    Restart { time_ms: u64 },
    /// All audio is transcribed. `text` is U+FFFD where the last character never became whole, else empty.
    End { text: String },
}

/// A generated token.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    pub id: u32,
    pub kind: TokenKind,
    /// The moment in the audio that the token speaks of: its position less padding and delay, on a grid of 80 ms.
    pub time_ms: u64,
    /// Text that became complete with this token; empty for parts of characters and special tokens (but an EOS ends
    /// an unfinished character with U+FFFD).
    pub text: String,
    /// What the model gave this token, 0 to 1, where it was asked for.
    pub probability: Option<f32>,
    /// Likely texts for this place, best (this token's) first; empty where they weren't asked for, the token is special,
    /// it is only part of a character, or no other text comes near.
    pub alternatives: Vec<Alternative>,
}

/// What a token is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TokenKind {
    /// Some bytes of text.
    Text,
    /// Nothing yet.
    Blank,
    /// A word, or a group of words, ended here; its text follows.
    WordEnd,
    /// EOS and everything else.
    Control,
}

/// A text that the model thought likely.
#[derive(Debug, Clone, PartialEq)]
pub struct Alternative {
    pub id: u32,
    pub text: String,
    pub probability: f32,
}

/// The chosen token and the likeliest other texts within the cutoff; nothing if there are none.
pub(super) fn alternatives(tokenizer: &Tokenizer, prediction: &Prediction, cutoff: f32) -> Vec<Alternative> {
    let Some(&(_, best)) = prediction.top.first() else { return Vec::new() };
    let near = |&(id, p): &(u32, f32)| {
        let bytes = tokenizer.bytes(id).filter(|_| 1.0 - p / best <= cutoff)?;
        // parts of characters are no texts
        Some(Alternative { id, text: String::from_utf8(bytes.to_vec()).ok()?, probability: p })
    };
    let list: Vec<_> = prediction.top.iter().filter_map(near).take(N_ALTERNATIVES).collect();
    if list.len() > 1 { list } else { Vec::new() }
}
