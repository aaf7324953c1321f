//! Streams: raw samples, pipes, and what breaks.

use super::*;

#[test]
fn a_stream_without_a_known_header_is_raw() {
    let samples = ramp(20_000);
    for bytes in [le_bytes(&samples), [&[0xff, 0xfb, 0x90, 0x64][..], &le_bytes(&samples)].concat()] {
        let (got, error) = decode_stream(bytes.clone()).unwrap();
        assert!(error.is_none());
        assert_eq!(got[got.len() - 20_000..], as_floats(&samples));
        assert_eq!(got.len(), bytes.len() / 2);
    }
    for (bytes, n) in [(vec![], 0), (vec![1], 0), (vec![1, 2, 3], 1)] {
        let (got, error) = decode_stream(bytes).unwrap();
        assert!(error.is_none());
        assert_eq!(got.len(), n);
    }
    let mut raw = AudioReader::raw(Cursor::new(b"RIFF\0\0\0\0WAVE".to_vec()));
    let mut got = Vec::new();
    assert_eq!(raw.read(&mut got).unwrap(), 6);
    assert_eq!(raw.description(), "raw, 16000 Hz, 1 channel, 16-bit");
}

/// A live stream: what has arrived is returned, without waiting for more.
#[test]
fn raw_samples_come_as_soon_as_they_arrive() {
    struct Live(Vec<Vec<u8>>);
    impl Read for Live {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            let Some(next) = (!self.0.is_empty()).then(|| self.0.remove(0)) else { return Ok(0) };
            if next.is_empty() {
                return Err(std::io::ErrorKind::Interrupted.into());
            }
            buffer[..next.len()].copy_from_slice(&next);
            Ok(next.len())
        }
    }
    let mut reader = AudioReader::raw(Live(vec![vec![0, 64], vec![0], vec![], vec![32, 0, 16, 7], vec![1, 1]]));
    let mut samples = Vec::new();
    let counts: Vec<_> = (0..4).map(|_| reader.read(&mut samples).unwrap()).collect();
    assert_eq!(counts, [1, 2, 1, 0]);
    assert_eq!(samples, [0.5, 0.25, 0.125, f32::from(0x0107_i16) / 32_768.0]);
}

#[test]
fn a_read_returns_at_most_a_second() {
    for bytes in [wav(1, 1, 8000, 8, vec![128; 80_000]), wav(1, 2, 48_000, 16, vec![0; 480_000]), vec![0; 160_000]] {
        let mut reader = AudioReader::from_stream(Cursor::new(bytes), Channel::Mix).unwrap();
        let mut samples = Vec::new();
        while let n @ 1.. = reader.read(&mut samples).unwrap() {
            assert!(n <= 20_000, "{n} samples at once");
        }
    }
}

#[test]
fn a_failing_stream_is_an_error_after_its_samples() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("unplugged"))
        }
    }
    let samples = ramp(3000);
    let mut endless = wav(1, 1, 16_000, 16, le_bytes(&samples));
    endless[40..44].fill(0xff);
    for bytes in [le_bytes(&samples), endless] {
        let (got, error) = drain(AudioReader::from_stream(Cursor::new(bytes).chain(Failing), Channel::Mix).unwrap());
        assert_eq!(got, as_floats(&samples));
        assert_eq!(error.unwrap().to_string(), "cannot read audio: unplugged");
    }
    let cut = bytes_of("tagged.mp3")[..6000].to_vec();
    let (got, error) = drain(AudioReader::from_stream(Cursor::new(cut).chain(Failing), Channel::Mix).unwrap());
    assert!(got.len() > 8000);
    assert!(matches!(error, Some(Error::AudioIo(_))), "{error:?}");
}
