//! A thread that writes files: until they are safe on a disk takes a while, and inputs go on meanwhile.

use std::collections::VecDeque;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::{Builder, Scope};
use std::time::Duration;

use super::task::Task;
use crate::cli::bulk::{Ended, Job, Records};

/// The thread with the inputs that it was given. It ends when this is dropped, after at most one more.
pub struct Writer<'a> {
    tasks: Sender<Task<'a>>,
    written: Receiver<Written<'a>>,
    /// What isn't written yet, in order: with the samples of each and the seconds that it claimed to be long.
    open: VecDeque<(&'a Job, u64, Option<f64>)>,
}

/// An input that is written.
pub struct Written<'a> {
    pub job: &'a Job,
    /// As of [`Task::end`].
    pub ended: anyhow::Result<Option<Ended>>,
    /// Whether that could be recorded.
    pub recorded: anyhow::Result<()>,
}

impl<'a> Writer<'a> {
    /// Starts the thread. How inputs end is added to `records`.
    pub fn start<'scope>(scope: &'scope Scope<'scope, '_>, mut records: Option<Records>) -> io::Result<Self>
    where
        'a: 'scope,
    {
        let (tasks, inbox) = channel::<Task<'a>>();
        let (outbox, written) = channel();
        Builder::new().name("writer".into()).spawn_scoped(scope, move || {
            for task in inbox {
                let job = task.job;
                let ended = write(task);
                let recorded = match (&mut records, &ended) {
                    (Some(records), Ok(Some(ended))) => records.add(job, ended),
                    _ => Ok(()),
                };
                if outbox.send(Written { job, ended, recorded }).is_err() {
                    break;
                }
            }
        })?;
        Ok(Self { tasks, written, open: VecDeque::new() })
    }

    /// Has an input written that has ended.
    pub fn put(&mut self, task: Task<'a>) {
        self.open.push_back((task.job, task.n_heard(), task.duration()));
        // without the thread, the next call of `next` tells
        let _ = self.tasks.send(task);
    }

    /// The next one that is written, waiting for it so long.
    pub fn next(&mut self, timeout: Duration) -> Option<Written<'a>> {
        match self.written.recv_timeout(timeout) {
            Ok(written) => {
                self.open.pop_front();
                Some(written)
            }
            Err(RecvTimeoutError::Timeout) => None,
            Err(RecvTimeoutError::Disconnected) => panic!("the thread that writes is gone"),
        }
    }

    /// What isn't written yet.
    pub fn open(&self) -> impl ExactSizeIterator<Item = (&'a Job, u64, Option<f64>)> {
        self.open.iter().copied()
    }
}

fn write(mut task: Task<'_>) -> anyhow::Result<Option<Ended>> {
    let mut sink = task.has_begun().then(|| task.start_sink()).transpose()?;
    if let Some(sink) = &mut sink {
        task.said.drain(..).try_for_each(|(track, event)| sink.event(track, &event))?;
    }
    task.end(sink)
}
