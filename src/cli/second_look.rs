//! Reads a stretch of an input again and decodes it from clean state, where the guard against gaps asks for it.

use voxtral::audio::Channel;
use voxtral::backend::Backend;
use voxtral::{Engine, Event, Result, SecondLook, SessionOptions};

use super::input::open;
use super::options::Input;

/// One channel of an input that can be read more than once.
pub struct FromInput<'a, B: Backend> {
    pub engine: &'a mut Engine<B>,
    pub session: &'a SessionOptions,
    pub input: &'a Input,
    pub raw: bool,
    pub channel: Channel,
}

impl<B: Backend> SecondLook for FromInput<'_, B> {
    fn samples(&mut self, start: u64, end: u64) -> Result<Vec<f32>> {
        let mut reader = open(self.input, self.raw, self.channel)?;
        let (mut samples, mut first) = (Vec::new(), 0);
        // an error at the input's end is the first reading's to report
        while first + (samples.len() as u64) < end && reader.read(&mut samples).is_ok_and(|n| n > 0) {
            let before = start.saturating_sub(first).min(samples.len() as u64);
            samples.drain(..before as usize);
            first += before;
        }
        samples.truncate(end.saturating_sub(first) as usize);
        Ok(samples)
    }

    fn decode(&mut self, samples: &[f32]) -> Result<Vec<Event>> {
        let mut session = self.engine.open(self.session)?;
        session.push(samples)?;
        session.finish();
        self.engine.advance(&mut [&mut session])?;
        Ok(std::iter::from_fn(|| session.next_event()).collect())
    }
}
