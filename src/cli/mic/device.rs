//! Microphones through cpal (WASAPI, CoreAudio, ALSA), as a stream of bytes that [`AudioReader`] takes for a WAV file
//! without an end: it mixes the channels and resamples, as for any other input.

use std::io::{self, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, anyhow};
use cpal::traits::{DeviceTrait as _, HostTrait as _, StreamTrait as _};
use cpal::{Device, Error, ErrorKind, FromSample, SampleFormat, SizedSample, Stream, StreamConfig};
use voxtral::audio::{AudioReader, Channel};

/// Blocks from the device, of some 10 ms each, that wait for the reader.
const QUEUE: usize = 512;
/// A device that sends nothing for so long is gone, whether it says so or not: in a quiet room it sends silence.
const PATIENCE: Duration = Duration::from_secs(10);

/// The names of all microphones; the first is the default.
pub fn names() -> anyhow::Result<Vec<String>> {
    let host = cpal::default_host();
    let default = host.default_input_device().map(|device| device.to_string());
    let others = host.input_devices().context("cannot list microphones")?.map(|device| device.to_string());
    let mut names: Vec<_> = default.iter().cloned().collect();
    names.extend(others.filter(|name| Some(name) != default.as_ref()));
    Ok(names)
}

/// Opens a microphone by the beginning or another part of its name, or the default one.
///
/// # Errors
/// When there is none of that name, or it cannot be used.
pub fn open(name: Option<&str>, channel: Channel) -> voxtral::Result<AudioReader> {
    let microphone =
        start_capture(name).map_err(|error| voxtral::Error::AudioIo(io::Error::other(format!("{error:#}"))))?;
    AudioReader::from_stream(microphone, channel)
}

fn start_capture(name: Option<&str>) -> anyhow::Result<Microphone<Stream>> {
    let device = find(name)?;
    let config = device.default_input_config().with_context(|| device.to_string())?;
    let (sender, blocks) = sync_channel(QUEUE);
    let format = config.sample_format();
    let config: StreamConfig = config.into();
    tracing::debug!(%device, ?config, ?format, "microphone");
    let header = wav_header(config.channels, config.sample_rate);
    let stream = match format {
        SampleFormat::I8 => start::<i8>(&device, config, sender),
        SampleFormat::I16 => start::<i16>(&device, config, sender),
        SampleFormat::I32 => start::<i32>(&device, config, sender),
        SampleFormat::U8 => start::<u8>(&device, config, sender),
        SampleFormat::U16 => start::<u16>(&device, config, sender),
        SampleFormat::F64 => start::<f64>(&device, config, sender),
        SampleFormat::F32 => start::<f32>(&device, config, sender),
        other => return Err(anyhow!("{device} has samples of type {other}, which cannot be read")),
    };
    let stream = stream.with_context(|| device.to_string())?;
    stream.play().with_context(|| device.to_string())?;
    Ok(Microphone { stream: Some(stream), blocks: Mutex::new(blocks), block: header, position: 0, patience: PATIENCE })
}

fn find(name: Option<&str>) -> anyhow::Result<Device> {
    let host = cpal::default_host();
    let Some(name) = name else {
        return host.default_input_device().context("there is no microphone, or none may be used");
    };
    let devices: Vec<_> = host.input_devices().context("cannot list microphones")?.collect();
    let names: Vec<_> = devices.iter().map(|device| device.to_string().to_lowercase()).collect();
    let wanted = name.to_lowercase();
    let exact = names.iter().position(|name| *name == wanted);
    let found = exact.or_else(|| names.iter().position(|name| name.contains(&wanted)));
    found
        .and_then(|i| devices.into_iter().nth(i))
        .with_context(|| format!("no microphone is called {name:?}; --list-mics shows their names"))
}

type Block = io::Result<Vec<u8>>;

fn start<T: SizedSample>(device: &Device, config: StreamConfig, sender: SyncSender<Block>) -> Result<Stream, Error>
where
    f32: FromSample<T>,
{
    let errors = sender.clone();
    let mut was_full = false;
    let send = move |samples: &[T], _: &_| {
        let bytes = samples.iter().flat_map(|&sample| sample.to_sample::<f32>().to_le_bytes()).collect();
        // the device must not wait; the reader is a thread that does little else
        let is_full = matches!(sender.try_send(Ok(bytes)), Err(TrySendError::Full(_)));
        if is_full && !was_full {
            tracing::warn!("can't keep up: some audio of the microphone was lost");
        }
        was_full = is_full;
    };
    let fail = move |error: Error| match error.kind() {
        ErrorKind::DeviceChanged | ErrorKind::Xrun | ErrorKind::RealtimeDenied => tracing::warn!("microphone: {error}"),
        _ => drop(errors.try_send(Err(io::Error::other(format!("the microphone went away: {error}"))))),
    };
    device.build_input_stream(config, send, fail, None)
}

/// The bytes of a WAV file that goes on until the device fails.
struct Microphone<S> {
    /// Captures while it exists.
    stream: Option<S>,
    /// Never locked: it makes this one `Sync`.
    blocks: Mutex<Receiver<Block>>,
    block: Vec<u8>,
    position: usize,
    patience: Duration,
}

impl<S> Read for Microphone<S> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        while self.position == self.block.len() {
            // without a sender the device is gone
            let blocks = self.blocks.get_mut().unwrap_or_else(PoisonError::into_inner);
            self.block = match blocks.recv_timeout(self.patience) {
                Ok(block) => block?,
                Err(RecvTimeoutError::Disconnected) => return Ok(0),
                Err(RecvTimeoutError::Timeout) => {
                    // ending it would wait for a thread that may wait for the device
                    std::mem::forget(self.stream.take());
                    let seconds = self.patience.as_secs();
                    let text = format!("the microphone went away: nothing came from it for {seconds} s");
                    return Err(io::Error::other(text));
                }
            };
            self.position = 0;
        }
        let n = out.len().min(self.block.len() - self.position);
        out[..n].copy_from_slice(&self.block[self.position..][..n]);
        self.position += n;
        Ok(n)
    }
}

/// The header of 32-bit floats, of unknown length.
fn wav_header(n_channels: u16, rate: u32) -> Vec<u8> {
    let frame = n_channels * 4;
    let mut header = b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\x03\0".to_vec();
    header.extend(n_channels.to_le_bytes());
    header.extend(rate.to_le_bytes());
    header.extend((rate * u32::from(frame)).to_le_bytes());
    header.extend(frame.to_le_bytes());
    header.extend(b"\x20\0data\xff\xff\xff\xff");
    header
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_bytes_are_a_wav_file_without_an_end() {
        let mut bytes = wav_header(2, 16_000);
        bytes.extend((0..3200).flat_map(|i| (i as f32 / 4000.0).to_le_bytes()));
        let mut reader = AudioReader::from_stream(io::Cursor::new(bytes), Channel::Mix).unwrap();
        let mut samples = Vec::new();
        while reader.read(&mut samples).unwrap() > 0 {}
        assert_eq!((samples.len(), samples[1]), (1600, 2.5 / 4000.0));
    }

    #[test]
    fn a_device_that_falls_silent_is_gone() {
        let (sender, blocks) = sync_channel(QUEUE);
        let patience = Duration::from_millis(20);
        let mut microphone =
            Microphone { stream: Some(()), blocks: Mutex::new(blocks), block: vec![1], position: 0, patience };
        sender.send(Ok(vec![2, 3])).unwrap();
        let mut heard = Vec::new();
        let error = microphone.read_to_end(&mut heard).unwrap_err();
        assert_eq!(heard, [1, 2, 3]);
        assert!(error.to_string().contains("went away"), "{error}");
        drop(sender);
        assert_eq!(microphone.read(&mut [0]).unwrap(), 0);
    }
}
