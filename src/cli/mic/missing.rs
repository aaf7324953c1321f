//! A program built without microphones, as it is on Linux unless asked for: the library for them, ALSA, is linked at build
//! time.

use voxtral::Error;
use voxtral::audio::{AudioReader, Channel};

const HOW: &str = "this program was built without microphones. Build it with `cargo build --release --features mic` (on \
                   Linux that needs pkg-config and ALSA's headers, libasound2-dev or alsa-lib-devel), or let another \
                   program record:\n  arecord -q -t raw -f S16_LE -r 16000 -c 1 | voxtral -d DIR --stdin -I 0.5";

/// Refuses.
pub fn names() -> anyhow::Result<Vec<String>> {
    anyhow::bail!(HOW)
}

/// Refuses.
pub fn open(_: Option<&str>, _: Channel) -> voxtral::Result<AudioReader> {
    Err(Error::UnsupportedAudio(HOW.into()))
}
