//! Streaming speech-to-text with Mistral's Voxtral Realtime model.
//!
//! [`Model`] is an opened model directory, [`Engine`] runs it on a [`backend`], a [`Session`] is one stream of audio:
//! samples in ([`audio::AudioReader`] gets them from files), [`Event`]s out.

pub mod audio;
pub mod backend;
pub mod engine;
mod error;
pub mod model;
pub mod output;

pub use engine::{
    Alternative, Draft, Engine, Event, Gap, GapGuard, LevelFeed, SecondLook, Session, SessionOptions, Stats, Token,
    TokenKind, scheduler,
};
pub use error::{Error, Result};
pub use model::{Delay, Model};
