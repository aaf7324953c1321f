//! The scheduler over a stand-in for the network.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};

use proptest::prelude::*;

use super::worker::AHEAD;
use super::*;
use crate::backend::fake::Fake;
use crate::engine::Draft;
use crate::engine::tests::{engine, noise, options, transcribe};

/// Ids and text by job.
type Said = HashMap<u64, (Vec<u32>, String)>;

const LONG: Duration = Duration::from_secs(60);

fn scheduler(engines: Vec<Engine<Fake>>, batch: usize) -> Scheduler {
    Scheduler::start(engines, SchedulerOptions { batch, report_work: false }).unwrap()
}

fn job(id: u64, options: &SessionOptions, samples: Vec<f32>, portion: usize) -> Job {
    let read = move |sender: &PcmSender| {
        for piece in samples.chunks(portion) {
            if sender.send(piece.to_vec()).is_err() {
                break;
            }
        }
        Ok(())
    };
    Job { id, options: options.clone(), live: false, read: Box::new(read) }
}

/// What each job said, how it ended, and the order of the ends.
fn collect(scheduler: &Scheduler, n: usize) -> (Said, Vec<(u64, Outcome)>) {
    let (mut said, mut ends) = (Said::new(), Vec::new());
    while ends.len() < n {
        match scheduler.next(LONG).unwrap().expect("no job takes so long") {
            Update::Event { id, event: Event::Token(token) } => {
                let (ids, text) = said.entry(id).or_default();
                ids.push(token.id);
                text.push_str(&token.text);
            }
            Update::Event { id, event: Event::End { text } } => said.entry(id).or_default().1.push_str(&text),
            Update::Ended { id, outcome } => ends.push((id, outcome)),
            _ => {}
        }
    }
    (said, ends)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn jobs_say_what_they_say_alone(
        jobs in prop::collection::vec((0usize..60_000, 1usize..9000, 80u64..3000, any::<bool>()), 1..12),
        batch in 1usize..6,
        n_engines in 1usize..4,
        eos_in in prop::sample::select(vec![15u64, u64::MAX]),
        max_rows in prop::sample::select(vec![1usize, 3, 64]),
    ) {
        let engine_of = |_| {
            let mut engine = engine(eos_in);
            engine.backend.max_rows = max_rows;
            engine
        };
        let scheduler = scheduler((0..n_engines).map(engine_of).collect(), batch);
        let mut alone = engine(eos_in);
        let mut expected = HashMap::new();
        for (i, &(n, portion, interval_ms, live)) in jobs.iter().enumerate() {
            let options = options(interval_ms, [80, 480, 2400][i % 3]);
            let samples = noise(n, i as u32);
            expected.insert(i as u64, transcribe(&mut alone, &samples, &options));
            scheduler.submit(Job { live, ..job(i as u64, &options, samples, portion) });
        }
        let (said, ends) = collect(&scheduler, jobs.len());
        let n_tokens: usize = said.values().map(|(ids, _)| ids.len()).sum();
        prop_assert_eq!(scheduler.stats().n_tokens, n_tokens as u64);
        for (id, outcome) in &ends {
            prop_assert!(outcome.error.is_none() && !outcome.cancelled);
            prop_assert_eq!(outcome.n_samples, jobs[*id as usize].0 as u64);
            prop_assert_eq!(said.get(id), expected.get(id));
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(30))]

    /// So many at a time that nobody waits for first words; memory that doesn't hold all, lost streams and failing calls. What
    /// is lost is fed again up to 15 s, and no input here is longer.
    #[test]
    fn many_at_a_time_say_what_they_say_alone(
        jobs in prop::collection::vec((0usize..200_000, 2000usize..30_000, 80u64..20_000, 0u8..12), 9..24),
        batch in 6usize..24,
        n_engines in 1usize..3,
        eos_in in prop::sample::select(vec![15u64, 100, u64::MAX]),
        max_rows in prop::sample::select(vec![1usize, 3, 8, 64, 128]),
        draft in prop::sample::select(vec![Draft::Auto, Draft::Fixed(0), Draft::Fixed(5), Draft::Fixed(127)]),
        lost_at in prop::collection::vec(1u64..300, 0..3),
        fails_at in prop::collection::vec(1u64..300, 0..3),
        max_streams in prop::sample::select(vec![2usize, 5, 9, usize::MAX]),
    ) {
        let engine_of = |_| {
            let mut engine = engine(eos_in);
            engine.backend.max_rows = max_rows;
            engine.backend.lost_at = lost_at.clone();
            engine.backend.fails_at = fails_at.clone();
            engine.backend.max_streams = max_streams;
            engine.set_draft(draft);
            engine
        };
        let scheduler = scheduler((0..n_engines).map(engine_of).collect(), batch);
        let mut alone = engine(eos_in);
        let mut expected = HashMap::new();
        for (i, &(n, portion, interval_ms, live)) in jobs.iter().enumerate() {
            let options = options(interval_ms, [480, 80, 480, 2400][i % 4]);
            let samples = noise(n, i as u32);
            expected.insert(i as u64, transcribe(&mut alone, &samples, &options));
            scheduler.submit(Job { live: live == 0, ..job(i as u64, &options, samples, portion) });
        }
        let (said, ends) = collect(&scheduler, jobs.len());
        for (id, outcome) in &ends {
            if outcome.error.is_some() {
                prop_assert!(!fails_at.is_empty(), "{:?}", outcome.error);
                continue;
            }
            prop_assert!(!outcome.cancelled);
            prop_assert_eq!(outcome.n_samples, jobs[*id as usize].0 as u64);
            prop_assert_eq!(said.get(id), expected.get(id));
        }
    }
}

#[test]
fn ten_thousand_jobs_are_open_a_few_at_a_time() {
    let scheduler = scheduler(vec![engine(u64::MAX), engine(u64::MAX)], 3);
    let (reading, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    for id in 0..10_000 {
        let (reading, most) = (reading.clone(), most.clone());
        let read = move |sender: &PcmSender| {
            most.fetch_max(reading.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            let _ = sender.send(vec![0.1; 200]);
            reading.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        };
        let options = SessionOptions::default();
        scheduler.submit(Job { id, options, live: false, read: Box::new(read) });
    }
    let (said, ends) = collect(&scheduler, 10_000);
    assert!(ends.iter().all(|(_, outcome)| outcome.error.is_none()));
    assert!(said.len() == 10_000 && said.values().all(|(ids, _)| ids.len() == 11));
    assert!(most.load(Ordering::SeqCst) <= 2 * (3 + AHEAD), "{most:?} at a time");
    assert!(scheduler.max_open() <= 3);
}

#[test]
fn jobs_that_fail_crash_or_stall_leave_the_others_alone() {
    let options = options(500, 480);
    let expected = transcribe(&mut engine(40), &noise(50_000, 1), &options);
    let scheduler = scheduler(vec![engine(40)], 4);
    let (release, stalled) = std::sync::mpsc::channel::<()>();
    let bad: [Read; 4] = [
        Box::new(move |_| {
            let _ = stalled.recv();
            Ok(())
        }),
        Box::new(|sender| {
            let _ = sender.send(vec![0.5; 20_000]);
            Err(Error::DamagedAudio("gone".into()))
        }),
        Box::new(|sender| {
            let _ = sender.send(vec![0.5, f32::NAN]);
            Ok(())
        }),
        Box::new(|_| std::panic::resume_unwind(Box::new("a decoder's panic"))),
    ];
    for (i, read) in bad.into_iter().enumerate() {
        scheduler.submit(Job { id: 100 + i as u64, options: options.clone(), live: i == 0, read });
    }
    (0..5).for_each(|id| scheduler.submit(job(id, &options, noise(50_000, 1), 4000)));
    let (said, ends) = collect(&scheduler, 8);
    for (id, outcome) in ends {
        match id {
            101 => assert!(outcome.n_samples == 20_000 && outcome.error.unwrap().to_string().contains("gone")),
            102 => assert!(outcome.error.unwrap().to_string().contains("sample 1 is NaN")),
            103 => assert!(outcome.error.unwrap().to_string().contains("crashed")),
            _ => assert!(outcome.error.is_none() && said[&id] == expected),
        }
    }
    release.send(()).unwrap();
    assert_eq!(collect(&scheduler, 1).1[0].0, 100);
}

#[test]
fn a_live_job_goes_first() {
    let scheduler = scheduler(vec![engine(u64::MAX)], 1);
    let options = options(500, 480);
    (0..20).for_each(|id| scheduler.submit(job(id, &options, noise(400_000, 1), 16_000)));
    while !matches!(scheduler.next(LONG).unwrap(), Some(Update::Event { .. })) {}
    scheduler.submit(Job { live: true, ..job(99, &options, noise(20_000, 2), 1000) });
    let (_, ends) = collect(&scheduler, 21);
    let place = ends.iter().position(|(id, _)| *id == 99).unwrap();
    assert!(place < 10, "after {place} others");
}

#[test]
fn cancelled_jobs_end() {
    let scheduler = scheduler(vec![engine(u64::MAX)], 2);
    let options = options(500, 480);
    for id in 0..3 {
        let read = move |sender: &PcmSender| {
            while sender.send(vec![0.1; 1000]).is_ok() {}
            Ok(())
        };
        scheduler.submit(Job { id, options: options.clone(), live: id == 0, read: Box::new(read) });
    }
    (3..50).for_each(|id| scheduler.submit(job(id, &options, noise(40_000, 1), 4000)));
    while !matches!(scheduler.next(LONG).unwrap(), Some(Update::Event { .. })) {}
    scheduler.cancel(1);
    scheduler.cancel(49);
    let (_, ends) = collect(&scheduler, 2);
    assert!(ends.iter().any(|(id, outcome)| *id == 49 && outcome.cancelled && outcome.n_samples == 0));
    scheduler.cancel_all();
    let (_, rest) = collect(&scheduler, 50 - ends.len());
    assert!(rest.iter().any(|(id, outcome)| *id == 0 && outcome.cancelled && outcome.n_samples > 0));
}

#[test]
fn where_memory_is_short_fewer_are_open() {
    let mut small = engine(40);
    small.backend.max_streams = 3;
    let options = options(500, 480);
    let expected = transcribe(&mut engine(40), &noise(50_000, 1), &options);
    let scheduler = scheduler(vec![small], 16);
    (0..20).for_each(|id| scheduler.submit(job(id, &options, noise(50_000, 1), 4000)));
    let (said, ends) = collect(&scheduler, 20);
    assert!(ends.iter().all(|(id, outcome)| outcome.error.is_none() && said[id] == expected));
    assert!(scheduler.max_open() <= 3);
}

#[test]
fn a_failing_call_is_repeated_for_each_and_a_broken_engine_ends_its_jobs() {
    let options = options(500, 480);
    let expected = transcribe(&mut engine(40), &noise(50_000, 1), &options);
    let mut shaky = engine(40);
    shaky.backend.fails_at = (1..400).filter(|n| n % 5 == 0).collect();
    let one = scheduler(vec![shaky], 4);
    (0..8).for_each(|id| one.submit(job(id, &options, noise(50_000, 1), 4000)));
    let (said, ends) = collect(&one, 8);
    assert!(ends.iter().filter(|(_, outcome)| outcome.error.is_none()).all(|(id, _)| said[id] == expected));
    assert!(ends.iter().filter(|(_, outcome)| outcome.error.is_none()).count() >= 4);
    let mut broken = engine(40);
    broken.backend.fails_at = (20..100_000).collect();
    let one = scheduler(vec![broken], 4);
    (0..8).for_each(|id| one.submit(job(id, &options, noise(50_000, 1), 4000)));
    assert!(collect(&one, 8).1.iter().all(|(_, outcome)| outcome.error.is_some()));
}
