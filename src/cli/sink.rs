//! What is written about an input: live to stdout, or whole into files once it is done.

use std::io::{self, Stdout, Write};
use std::path::{Path, PathBuf};

use anyhow::Context as _;
use voxtral::output::{
    AtomicFile, Format, JsonlWriter, Style, Timings, Transcript, TranscriptBuilder, TranscriptWriter,
};
use voxtral::{Event, Gap};

use super::bulk::Job;
use super::options::{Output, Target};

/// Takes the events of one input.
pub struct Sink<'a> {
    options: &'a Output,
    job: &'a Job,
    model: String,
    delay_ms: u64,
    live: Option<Live>,
    /// The text as it is on stdout, for a file.
    text: Option<TranscriptWriter<Vec<u8>>>,
    /// For each channel, unless nothing but live text is wanted.
    builders: Vec<TranscriptBuilder>,
}

enum Live {
    Text(TranscriptWriter<Stdout>),
    Jsonl(JsonlWriter<Stdout>),
}

/// What is known of an input when it has ended.
#[derive(Debug, Default)]
pub struct Summary {
    pub n_samples: u64,
    pub timings: Timings,
    pub gaps: Vec<Gap>,
    pub error: Option<String>,
}

impl<'a> Sink<'a> {
    /// `channels` are the names of those that are transcribed apart, or one `None`.
    pub fn start(
        options: &'a Output,
        job: &'a Job,
        model: &Path,
        delay_ms: u64,
        channels: &[Option<String>],
    ) -> io::Result<Self> {
        let model = model_name(model);
        let apart = channels.len() > 1;
        let live = match (&options.target, options.formats.as_slice()) {
            (Target::Stdout, [Format::Txt]) if !apart => {
                Some(Live::Text(TranscriptWriter::new(io::stdout(), options.style)))
            }
            (Target::Stdout, [Format::Jsonl]) => {
                let name = job.input.name();
                let writer = JsonlWriter::start(io::stdout(), &name, &model, delay_ms, channels, &options.layout)?;
                Some(Live::Jsonl(writer))
            }
            _ => None,
        };
        let text = (live.is_none() && !apart && options.formats.contains(&Format::Txt))
            .then(|| TranscriptWriter::new(Vec::new(), options.style));
        let builders = match live {
            Some(Live::Text(_)) => Vec::new(),
            _ => channels.iter().map(|channel| TranscriptBuilder::new(&options.layout, channel.clone())).collect(),
        };
        Ok(Self { options, job, model, delay_ms, live, text, builders })
    }

    /// Whether this event will be seen on stdout at once.
    pub fn shows(&self, event: &Event) -> bool {
        match (&self.live, event) {
            (Some(Live::Jsonl(_)), _) => true,
            (Some(Live::Text(_)), Event::Token(token)) => {
                self.options.style == Style::TokenIds || !token.text.is_empty()
            }
            (Some(Live::Text(_)), Event::End { text }) => !text.is_empty(),
            (Some(Live::Text(_)), Event::Restart { .. }) | (None, _) => false,
        }
    }

    /// Takes the next event of a channel.
    pub fn event(&mut self, channel: usize, event: &Event) -> io::Result<()> {
        match &mut self.live {
            Some(Live::Text(writer)) => writer.event(event)?,
            Some(Live::Jsonl(writer)) => writer.event(channel, event)?,
            None => {}
        }
        if let Some(text) = &mut self.text {
            text.event(event)?;
        }
        if let Some(builder) = self.builders.get_mut(channel) {
            builder.event(event);
        }
        Ok(())
    }

    /// Ends what was written, or writes it now. An input without any audio leaves no trace.
    pub fn finish(self, summary: Summary) -> anyhow::Result<()> {
        let Self { options, job, model, delay_ms, live, text, builders } = self;
        let silent = summary.n_samples == 0;
        let transcripts = builders.into_iter().map(TranscriptBuilder::finish).collect();
        let transcript = Transcript {
            input: job.input.name(),
            model,
            delay_ms,
            n_samples: summary.n_samples,
            gaps: summary.gaps,
            timings: Some(summary.timings),
            error: summary.error,
            ..Transcript::merge(transcripts)
        };
        match live {
            // one line of ids for every input
            Some(Live::Text(writer)) if !silent || options.style == Style::TokenIds => return Ok(writer.finish()?),
            Some(Live::Text(_)) => return Ok(()),
            Some(Live::Jsonl(writer)) => return Ok(writer.finish(&transcript)?),
            None if silent => return Ok(()),
            None => {}
        }
        let text = text.map(TranscriptWriter::into_line).transpose()?;
        for &format in &options.formats {
            let write = |out: &mut dyn Write| match (&text, format) {
                (Some(text), Format::Txt) => out.write_all(text),
                _ => format.write(&transcript, &options.layout, out),
            };
            match options.target.path(&job.stem, format) {
                Some(path) => write_file(&path, write).with_context(|| path.display().to_string())?,
                None => {
                    write(&mut io::stdout().lock())?;
                    io::stdout().flush()?;
                }
            }
        }
        Ok(())
    }
}

impl Target {
    /// The file that the transcript with this place in a directory goes to in a format; none is stdout.
    pub fn path(&self, stem: &Path, format: Format) -> Option<PathBuf> {
        match self {
            Self::Stdout => None,
            Self::File(path) => Some(path.clone()),
            Self::Dir(dir) => {
                let mut path = dir.join(stem).into_os_string();
                path.push(".");
                path.push(format.extension());
                Some(path.into())
            }
        }
    }
}

fn write_file(path: &Path, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> io::Result<()> {
    if let Some(dir) = path.parent() {
        std::fs::create_dir_all(dir)?;
    }
    let mut out = AtomicFile::create(path)?;
    write(&mut out)?;
    out.commit()
}

/// The name of a model's directory.
fn model_name(dir: &Path) -> String {
    let full = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    full.file_name().unwrap_or(full.as_os_str()).to_string_lossy().into_owned()
}
