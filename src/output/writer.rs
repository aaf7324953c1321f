//! Events to one line of text, or of token ids, as they come.

use std::io::{self, Write};

use crate::engine::{Event, Token};

/// What is written for each token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Style {
    /// The text, with alternatives where there are any: `[chosen|second|third]`.
    Text,
    /// The ids of all tokens, special ones included, separated by spaces.
    TokenIds,
}

/// Writes one transcript. Every piece is flushed, so that it can be read as soon as it is recognised.
///
/// Blanks before the first word are left out; nothing else is changed.
pub struct TranscriptWriter<W> {
    out: W,
    style: Style,
    started: bool,
}

impl<W: Write> TranscriptWriter<W> {
    pub fn new(out: W, style: Style) -> Self {
        Self { out, style, started: false }
    }

    /// Writes what this event adds.
    pub fn event(&mut self, event: &Event) -> io::Result<()> {
        match (self.style, event) {
            (_, Event::Restart { .. }) => return Ok(()),
            (Style::TokenIds, Event::End { .. }) => return Ok(()),
            (Style::TokenIds, Event::Token(token)) => {
                let separator = if std::mem::replace(&mut self.started, true) { " " } else { "" };
                write!(self.out, "{separator}{}", token.id)?;
            }
            (Style::Text, Event::Token(token)) => {
                if token.text.is_empty() {
                    return Ok(());
                }
                self.token(token)?;
            }
            (Style::Text, Event::End { text }) => self.text(text)?,
        }
        self.out.flush()
    }

    /// Ends the line.
    pub fn finish(mut self) -> io::Result<()> {
        self.out.write_all(b"\n")?;
        self.out.flush()
    }

    fn token(&mut self, token: &Token) -> io::Result<()> {
        let [_, others @ ..] = token.alternatives.as_slice() else { return self.text(&token.text) };
        self.out.write_all(b"[")?;
        self.text(&token.text)?;
        for other in others {
            write!(self.out, "|{}", other.text)?;
        }
        self.out.write_all(b"]")
    }

    fn text(&mut self, text: &str) -> io::Result<()> {
        let text = if self.started { text } else { text.trim_start() };
        self.started |= !text.is_empty();
        self.out.write_all(text.as_bytes())
    }
}

impl TranscriptWriter<Vec<u8>> {
    /// The whole line.
    pub fn into_line(mut self) -> io::Result<Vec<u8>> {
        self.out.write_all(b"\n")?;
        Ok(self.out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::{Alternative, TokenKind};

    fn token(id: u32, text: &str, others: &[&str]) -> Event {
        let all = std::iter::once(text).chain(others.iter().copied()).filter(|_| !others.is_empty());
        let alternatives = all.map(|text| Alternative { id, text: text.into(), probability: 0.5 }).collect();
        let kind = if text.is_empty() { TokenKind::Blank } else { TokenKind::Text };
        Event::Token(Token { id, kind, time_ms: 0, text: text.into(), probability: None, alternatives })
    }

    fn written(style: Style, events: &[Event]) -> String {
        let mut out = Vec::new();
        let mut writer = TranscriptWriter::new(&mut out, style);
        events.iter().for_each(|event| writer.event(event).unwrap());
        writer.finish().unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn text_begins_with_its_first_word() {
        let events = [
            token(32, "", &[]),
            token(1032, " ", &[]),
            token(2000, " Hello", &[]),
            Event::Restart { time_ms: 80 },
            token(2001, " world\0", &[]),
            Event::End { text: "\u{FFFD}".into() },
        ];
        assert_eq!(written(Style::Text, &events), "Hello world\0\u{FFFD}\n");
        assert_eq!(written(Style::TokenIds, &events), "32 1032 2000 2001\n");
        assert_eq!(written(Style::Text, &[]), "\n");
    }

    #[test]
    fn alternatives_are_in_brackets() {
        let events = [token(1, " V", &[" Vo", " B"]), token(2, "ox", &[]), token(3, "T", &["tral"])];
        assert_eq!(written(Style::Text, &events), "[V| Vo| B]ox[T|tral]\n");
    }
}
