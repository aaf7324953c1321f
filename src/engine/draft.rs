//! How many tokens of each stream to guess ahead.
//!
//! Drafts are the model's own answers to earlier drafts (Jacobi iteration) and are checked by the pass that is made
//! anyway, so they never change what is said; they are worth their rows where a pass of more rows costs little more. Both
//! sides are measured while running: [`PassCosts`] learns what a pass costs by its rows, [`Acceptance`] how often the
//! drafts of a stream are right. Then [`allot`] gives rows to streams as long as the pass gets more tokens a second.

use std::time::Duration;

/// How far ahead tokens are guessed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Draft {
    /// As far as is worth it by what was measured so far.
    #[default]
    Auto,
    /// So many for every stream, where there are embeddings for them; 0 is one token at a time. At most `MAX_REWIND - 1`.
    Fixed(usize),
}

/// Rows of a pass that is to be short.
const HURRIED_ROWS: usize = 16;
/// Rows that prompts get even where steps alone fill a pass.
const PROMPT_ROWS: usize = 8;
/// Numbers of drafts that are considered, and how many of them are right in the usual case: Jacobi iteration by the shipped
/// model on English speech with pauses, several speakers, smoothed. Falling in profit from row to row.
const LEVELS: [(usize, f64); 11] = [
    (1, 0.5),
    (3, 1.2),
    (5, 1.83),
    (7, 2.43),
    (15, 4.25),
    (23, 5.8),
    (31, 7.3),
    (47, 9.75),
    (63, 12.15),
    (95, 16.9),
    (127, 20.9),
];

/// More rows are to bring so much more: less is within what measurements err by.
const MARGIN: f64 = 1.03;

/// The usual number of right ones among so many drafts.
fn usually_right(n_drafts: usize) -> f64 {
    let i = LEVELS.partition_point(|&(n, _)| n <= n_drafts);
    let (n0, right0) = if i == 0 { (0, 0.0) } else { LEVELS[i - 1] };
    let Some(&(n1, right1)) = LEVELS.get(i) else { return right0 };
    right0 + (right1 - right0) * (n_drafts - n0) as f64 / (n1 - n0) as f64
}

/// How good the drafts of a stream are: the part of the usual number of them that is right.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Acceptance(f64);

impl Default for Acceptance {
    fn default() -> Self {
        Self(1.0)
    }
}

impl Acceptance {
    /// What a pass has shown. Without drafts the unknown draws back to the usual, so that they are tried again.
    pub fn record(&mut self, n_drafts: usize, n_right: usize) {
        if n_drafts == 0 {
            self.0 += 0.02 * (1.0 - self.0);
        } else {
            let weight = (n_drafts as f64 / 40.0).clamp(0.05, 0.25);
            self.0 += weight * ((n_right as f64 / usually_right(n_drafts)).min(3.0) - self.0);
        }
    }
}

/// Rows up to which measurements are put together.
const BUCKETS: [usize; 14] = [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128];
/// Passes after which a measurement is too old to be believed.
const MEMORY: u64 = 256;
/// A pass has at most so many times the rows of those that were measured.
const GROWTH: f64 = 4.0;

/// What a pass costs by its rows, in seconds.
#[derive(Debug, Clone, Default)]
pub struct PassCosts {
    /// Time and when it was measured, by [`BUCKETS`].
    times: [Option<(f64, u64)>; BUCKETS.len()],
    n_passes: u64,
}

impl PassCosts {
    /// Learns from a pass. More rows than any backend does in one go say nothing, nor does the first pass, which may have
    /// to wait for weights.
    pub fn record(&mut self, n_rows: usize, time: Duration) {
        self.n_passes += 1;
        if self.n_passes == 1 {
            return;
        }
        let Some(bucket) = BUCKETS.iter().position(|&most| n_rows <= most) else { return };
        let time = time.as_secs_f64();
        // faster is nearer the truth: what slows a pass down comes from outside, or is a first time
        let known = self.times[bucket].map_or(time, |(old, _)| old + (time - old) * if time < old { 0.5 } else { 0.1 });
        self.times[bucket] = Some((known, self.n_passes));
    }

    fn are_known(&self) -> bool {
        self.times.iter().any(Option::is_some)
    }

    /// What a pass of so many rows may cost. Where nothing is known it is what speaks for trying: no more than fewer rows
    /// cost, but no less than their part of what more rows cost. More rows than were ever measured go on as the last two
    /// measurements rise; many more are out of the question.
    pub fn estimate(&self, n_rows: usize) -> f64 {
        let (mut below, mut slope) = (None, 0.0);
        for (rows, time) in BUCKETS.iter().zip(self.times) {
            let Some((time, _)) = time.filter(|(_, at)| self.n_passes - at <= MEMORY) else { continue };
            let (x, at) = (n_rows as f64, *rows as f64);
            if *rows >= n_rows {
                return below.map_or(0.0, |(_, low): (f64, f64)| low).max(time * x / at);
            }
            slope = below.map_or(0.0, |(rows, low): (f64, f64)| (time - low).max(0.0) / (at - rows));
            below = Some((at, time));
        }
        match below {
            Some((most, _)) if n_rows as f64 > GROWTH * most => f64::INFINITY,
            Some((most, time)) => time + slope * (n_rows as f64 - most),
            None => 1.0,
        }
    }
}

/// A span that could be decoded now.
#[derive(Debug, Clone, Copy)]
pub struct DueSpan {
    /// Inputs that are certain, and the most drafts that can follow them.
    pub n_certain: usize,
    pub max_drafts: usize,
}

/// Rows of a span in the next pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// Inputs that are certain: all of them, or as much of a prompt as there is room for.
    pub n_certain: usize,
    pub n_drafts: usize,
}

/// Rows for each of these spans, in one pass of at most `max_rows` but for a fixed number of drafts, which every span gets.
/// Prompts get what steps leave, and a few rows in any case: steps that find no room beside those wait, always the next ones
/// after the `n_waited` before. What is left then are drafts. If `hurried`, prompts and drafts don't make the pass longer than
/// [`HURRIED_ROWS`].
pub fn allot(
    draft: Draft,
    costs: &PassCosts,
    spans: &[(DueSpan, Acceptance)],
    max_rows: usize,
    hurried: bool,
    n_waited: &mut usize,
) -> Vec<Share> {
    let is_step = |(span, _): &&(DueSpan, Acceptance)| span.n_certain == 1;
    let n_steps = spans.iter().filter(is_step).count();
    let wanted: usize = spans.iter().filter(|span| !is_step(span)).map(|(span, _)| span.n_certain).sum();
    let room = if hurried { max_rows.min(HURRIED_ROWS) } else { max_rows };
    let for_prompts = room.saturating_sub(n_steps).max(PROMPT_ROWS.min(max_rows.div_ceil(2)));
    let mut for_prompts = wanted.min(for_prompts);
    let n_waiting = (n_steps + for_prompts).saturating_sub(max_rows);
    let first_waiting = *n_waited % n_steps.max(1);
    *n_waited = n_waited.wrapping_add(n_waiting);
    let mut spans = spans.to_vec();
    let mut shares = Vec::with_capacity(spans.len());
    let mut n_before = 0;
    for (span, _) in &mut spans {
        let n_certain = if span.n_certain == 1 {
            n_before += 1;
            usize::from((n_before - 1 + n_steps - first_waiting) % n_steps >= n_waiting)
        } else {
            let n_certain = span.n_certain.min(for_prompts);
            for_prompts -= n_certain;
            n_certain
        };
        if n_certain < span.n_certain {
            span.max_drafts = 0;
        }
        shares.push(Share { n_certain, n_drafts: 0 });
    }
    let n_certain: usize = shares.iter().map(|share| share.n_certain).sum();
    let n_drafts = drafts(draft, costs, &spans, n_certain, room.saturating_sub(n_certain));
    shares.iter_mut().zip(n_drafts).for_each(|(share, n)| share.n_drafts = n);
    shares
}

/// Drafts for each of these spans, beside so many certain rows and in the room beyond them.
fn drafts(
    draft: Draft,
    costs: &PassCosts,
    spans: &[(DueSpan, Acceptance)],
    n_certain: usize,
    room: usize,
) -> Vec<usize> {
    match draft {
        Draft::Fixed(n) => spans.iter().map(|(span, _)| n.min(span.max_drafts)).collect(),
        Draft::Auto if room == 0 => vec![0; spans.len()],
        Draft::Auto => {
            // steps from level to level, the most profitable rows first; within a stream they come in order
            let mut steps = Vec::new();
            for (i, (span, acceptance)) in spans.iter().enumerate() {
                let mut before = 0;
                for (level, _) in LEVELS {
                    let level = level.min(span.max_drafts);
                    if level > before {
                        let gain = acceptance.0 * (usually_right(level) - usually_right(before));
                        steps.push((gain / (level - before) as f64, i, level, level - before, gain));
                    }
                    before = level;
                }
            }
            if !costs.are_known() {
                steps.clear();
            }
            steps.sort_by(|a, b| b.0.total_cmp(&a.0).then(a.2.cmp(&b.2)).then(a.1.cmp(&b.1)));
            let (mut n_rows, mut tokens) = (n_certain, spans.len() as f64);
            let mut best = (tokens / costs.estimate(n_rows), 0);
            for (k, &(_, _, _, rows, gain)) in steps.iter().enumerate() {
                if n_rows + rows > n_certain + room {
                    break;
                }
                n_rows += rows;
                tokens += gain;
                let speed = tokens / costs.estimate(n_rows);
                if speed > best.0 * MARGIN {
                    best = (speed, k + 1);
                }
            }
            let mut n_drafts = vec![0; spans.len()];
            for &(_, i, level, ..) in &steps[..best.1] {
                n_drafts[i] = level;
            }
            n_drafts
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROWS: usize = 64;

    fn span(max_drafts: usize) -> (DueSpan, Acceptance) {
        (DueSpan { n_certain: 1, max_drafts }, Acceptance::default())
    }

    /// A machine where a pass costs `fixed + per_row * rows`, after a while.
    fn settle(fixed: f64, per_row: f64, spans: &[(DueSpan, Acceptance)]) -> Vec<usize> {
        settle_at(|rows| fixed + per_row * rows as f64, spans)
    }

    fn settle_at(cost: impl Fn(usize) -> f64, spans: &[(DueSpan, Acceptance)]) -> Vec<usize> {
        settle_in(ROWS, cost, spans)
    }

    fn settle_in(max_rows: usize, cost: impl Fn(usize) -> f64, spans: &[(DueSpan, Acceptance)]) -> Vec<usize> {
        let mut costs = PassCosts::default();
        let mut n_drafts = Vec::new();
        for _ in 0..100 {
            let shares = allot(Draft::Auto, &costs, spans, max_rows, false, &mut 0);
            n_drafts = shares.iter().map(|share| share.n_drafts).collect();
            let rows = shares.iter().map(|share| share.n_certain + share.n_drafts).sum();
            assert!(rows <= max_rows);
            costs.record(rows, Duration::from_secs_f64(cost(rows)));
        }
        n_drafts
    }

    #[test]
    fn cheap_rows_are_used_and_dear_ones_are_not() {
        assert!(settle(2e-3, 1e-6, &[span(63)])[0] >= 47);
        assert_eq!(settle_in(128, |rows| 2.5e-3 + 2e-5 * rows as f64, &[span(127)]), [127]);
        assert_eq!(settle_in(128, |rows| if rows > 64 { 1.0 } else { 2.5e-3 }, &[span(127)]), [63]);
        assert!((7..=23).contains(&settle(0.15, 0.015, &[span(63)])[0]));
        assert_eq!(settle(1e-3, 1.0, &[span(63)])[0], 0);
        assert!(settle(2e-3, 1e-6, &[span(5)])[0] == 5);
    }

    /// Rows that memory pays for, then rows that arithmetic has to be paid for, as on a CPU.
    #[test]
    fn the_best_number_is_found_between_measured_ones() {
        assert_eq!(settle_at(|rows| f64::max(0.15, 0.025 * rows as f64), &[span(63)]), [5]);
        assert_eq!(settle_at(|rows| f64::max(0.15, 0.012 * rows as f64), &[span(63)]), [15]);
    }

    #[test]
    fn what_rises_is_not_tried_far_beyond() {
        let costs = |times: &[(usize, f64)]| {
            let mut costs = PassCosts::default();
            times.iter().for_each(|&(rows, time)| costs.record(rows, Duration::from_secs_f64(time)));
            allot(Draft::Auto, &costs, &[span(63)], ROWS, false, &mut 0)[0].n_drafts
        };
        // the first pass says nothing
        let cpu = [(1, 9.0), (1, 0.149), (4, 0.171), (16, 0.272)];
        assert_eq!([2, 3, 4].map(|n| costs(&cpu[..n])), [3, 15, 7]);
        let gpu = [(1, 9.0), (1, 2.57e-3), (4, 2.58e-3), (16, 2.75e-3)];
        assert_eq!([2, 3, 4].map(|n| costs(&gpu[..n])), [3, 15, 63]);
    }

    #[test]
    fn streams_share_rows_by_what_they_make_of_them() {
        let shared = settle(2e-3, 1e-6, &[span(63), span(63), span(63), span(63)]);
        assert!(shared.iter().all(|&n| (11..=15).contains(&n)), "{shared:?}");
        let mut bad = span(63);
        (0..100).for_each(|_| bad.1.record(15, 0));
        let shared = settle(2e-3, 1e-6, &[bad, span(63)]);
        assert!(shared[0] < shared[1] && shared[1] >= 31, "{shared:?}");
        assert!(settle(2e-3, 1e-6, &[span(63); 64]).iter().all(|&n| n == 0));
        assert!(settle(2e-3, 1e-6, &[span(63); 100]).iter().all(|&n| n == 0));
    }

    #[test]
    fn prompts_take_the_room_beside_steps() {
        let prompt = (DueSpan { n_certain: 39, max_drafts: 20 }, Acceptance::default());
        let rows = |spans: &[_]| {
            let shares = allot(Draft::Fixed(3), &PassCosts::default(), spans, ROWS, false, &mut 0);
            shares.into_iter().map(|share| (share.n_certain, share.n_drafts)).collect::<Vec<_>>()
        };
        assert_eq!(rows(&[span(2), prompt]), [(1, 2), (39, 3)]);
        assert_eq!(rows(&[prompt, prompt, prompt, span(0)]), [(39, 3), (24, 0), (0, 0), (1, 0)]);
    }

    #[test]
    fn where_steps_fill_a_pass_others_wait_each_time() {
        let prompt = (DueSpan { n_certain: 39, max_drafts: 20 }, Acceptance::default());
        let mut costs = PassCosts::default();
        for (n_steps, max_rows, hurried, for_prompt) in [
            (70, 64, false, 8),
            (60, 64, false, 8),
            (56, 64, true, 8),
            (20, 64, true, 8),
            (100, 3, false, 2),
            (5, 1, false, 1),
        ] {
            let mut spans = vec![span(5); n_steps];
            spans.insert(n_steps / 2, prompt);
            let mut n_turns = vec![0; n_steps + 1];
            let mut n_waited = 0;
            for _ in 0..200 {
                let shares = allot(Draft::Auto, &costs, &spans, max_rows, hurried, &mut n_waited);
                let n_rows = shares.iter().map(|share| share.n_certain + share.n_drafts).sum();
                assert!(n_rows <= max_rows && (n_rows == max_rows || hurried), "{n_rows} rows of {max_rows}");
                assert_eq!(shares[n_steps / 2], Share { n_certain: for_prompt, n_drafts: 0 });
                assert!(shares.iter().all(|share| share.n_certain > 0 || share.n_drafts == 0));
                shares.iter().zip(&mut n_turns).for_each(|(share, n)| *n += share.n_certain.min(1));
                costs.record(n_rows, Duration::from_millis(1));
            }
            n_turns.remove(n_steps / 2);
            let few = 200 * (max_rows - for_prompt) / n_steps;
            assert!(n_turns.iter().all(|&n| n == 200 || n + 10 >= few), "{n_turns:?}, {few} each");
        }
    }

    #[test]
    fn bad_drafts_are_given_up_and_tried_again() {
        let mut acceptance = Acceptance::default();
        (0..50).for_each(|_| acceptance.record(7, 0));
        let costs = |fixed: f64| {
            let mut costs = PassCosts::default();
            costs.record(1, Duration::from_secs(9)); // the first pass says nothing
            for rows in BUCKETS {
                costs.record(rows, Duration::from_secs_f64(fixed + 0.01 * rows as f64));
            }
            costs
        };
        let wanted =
            |acceptance| allot(Draft::Auto, &costs(0.1), &[(span(63).0, acceptance)], ROWS, false, &mut 0)[0].n_drafts;
        assert_eq!(wanted(acceptance), 0);
        (0..50).for_each(|_| acceptance.record(0, 0));
        assert!(wanted(acceptance) > 0);
    }

    #[test]
    fn old_measurements_are_forgotten() {
        let mut costs = PassCosts::default();
        costs.record(4, Duration::from_secs(7));
        costs.record(4, Duration::from_secs(9));
        assert_eq!(costs.estimate(4), 9.0);
        for _ in 0..=MEMORY {
            costs.record(1, Duration::from_millis(1));
        }
        assert_eq!(costs.estimate(4), 1e-3);
        assert_eq!(costs.estimate(5), f64::INFINITY, "many more rows than were measured");
    }
}
