//! The guard against gaps at work: stretches of an input are read and transcribed again.

use voxtral::audio::{Channel, SAMPLE_RATE};
use voxtral::scheduler::{PcmSender, Update};
use voxtral::{Event, Gap, SecondLook};

use super::task::Track;
use super::{Client, POLL};
use crate::cli::input::open;
use crate::cli::options::Input;

impl Track {
    /// What is to be passed on of an event.
    pub fn guarded(&mut self, event: Event, client: &mut Client<'_>, input: &Input) -> anyhow::Result<Vec<Event>> {
        let Some(guard) = self.guard.as_mut().filter(|_| !client.stopped) else { return Ok(vec![event]) };
        let n_gaps = guard.gaps().len();
        let events = guard.event(event, &mut FromInput { client, input, channel: self.channel })?;
        for Gap { start_ms, end_ms, text, .. } in &guard.gaps()[n_gaps..] {
            let outcome = if text.is_empty() { "and a second run found none" } else { "a second run found them" };
            let [start, end] = [*start_ms, *end_ms].map(|ms| ms as f64 / 1e3);
            tracing::warn!(
                "{}: the model had no words for speech from {start:.1} to {end:.1} s; {outcome}",
                input.name()
            );
        }
        Ok(events)
    }
}

/// Reads a stretch of an input again and decodes it from clean state, where the guard against gaps asks for it.
struct FromInput<'c, 'a> {
    client: &'c mut Client<'a>,
    input: &'c Input,
    channel: Channel,
}

impl SecondLook for FromInput<'_, '_> {
    fn samples(&mut self, start: u64, end: u64) -> voxtral::Result<Vec<f32>> {
        let mut reader = open(self.input, self.client.options.raw, self.channel)?;
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

    /// Other inputs go on meanwhile; what they say waits.
    fn decode(&mut self, samples: &[f32]) -> voxtral::Result<Vec<Event>> {
        let samples = samples.to_vec();
        let read = move |sender: &PcmSender| {
            for piece in samples.chunks(SAMPLE_RATE as usize) {
                if sender.send(piece.to_vec()).is_err() {
                    break;
                }
            }
            Ok(())
        };
        let aside = self.client.submit(true, Box::new(read));
        let mut events = Vec::new();
        loop {
            match self.client.scheduler.next(POLL)? {
                Some(Update::Event { id, event }) if id == aside => events.push(event),
                Some(Update::Progress { id, .. }) if id == aside => {}
                Some(Update::Ended { id, outcome }) if id == aside => return outcome.error.map_or(Ok(events), Err),
                Some(other) => self.client.stash.push_back(other),
                None => {}
            }
        }
    }
}
