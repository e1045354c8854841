//! What came of each case, as a table, and the bounds that must hold.

use super::Case;
use super::dial::How;
use std::collections::BTreeMap;
use std::time::Duration;

/// No refusal takes longer.
pub const REFUSED_WITHIN: Duration = Duration::from_secs(5);

/// What came of one case.
#[derive(Clone, Debug, Default)]
pub struct Tally {
    /// How its connections ended.
    pub ends: BTreeMap<How, u64>,
    /// Microseconds that each took.
    pub micros: Vec<u32>,
    /// The server's line about it.
    pub line: String,
}

impl Tally {
    /// One more.
    pub fn count(&mut self, how: How, took: Duration) {
        *self.ends.entry(how).or_default() += 1;
        self.micros.push(took.as_micros() as u32);
    }
    /// Everything of another.
    pub fn add(&mut self, other: Tally) {
        for (how, count) in other.ends {
            *self.ends.entry(how).or_default() += count;
        }
        self.micros.extend(other.micros);
    }
    fn seconds(&self, share: f64) -> f64 {
        let mut sorted = self.micros.clone();
        sorted.sort_unstable();
        let at = (sorted.len() as f64 * share) as usize;
        sorted.get(at.min(sorted.len().saturating_sub(1))).map_or(0.0, |us| f64::from(*us) / 1e6)
    }
}

/// Bounds, each printed as it is looked at.
#[derive(Debug, Default)]
pub struct Bounds {
    missed: Vec<String>,
}

impl Bounds {
    /// States a bound and whether it holds.
    pub fn hold(&mut self, holds: bool, text: &str) {
        println!("{} {text}", if holds { "  ok  " } else { "MISSED" });
        if !holds {
            self.missed.push(text.to_string());
        }
    }
    /// What was missed.
    pub fn result(self) -> Result<(), String> {
        match self.missed.len() {
            0 => Ok(()),
            n => Err(format!("{n} bounds were missed:\n  {}", self.missed.join("\n  "))),
        }
    }
}

/// The table; one line per case.
pub fn print(cases: &[Case], tallies: &[Tally]) {
    println!("{:<46} {:>6}  {:<34} {:>7} {:>7}  log", "case", "count", "ended", "p99 s", "worst");
    for (case, tally) in cases.iter().zip(tallies) {
        let ends: Vec<String> = match tally.ends.len() {
            1 => tally.ends.keys().map(How::to_string).collect(),
            _ => tally.ends.iter().map(|(how, count)| format!("{how} x{count}")).collect(),
        };
        println!(
            "{:<46} {:>6}  {:<34} {:>7.3} {:>7.3}  {}",
            case.name,
            tally.micros.len(),
            ends.join(", "),
            tally.seconds(0.99),
            tally.seconds(1.0),
            tally.line
        );
    }
}

/// Every case ended as it should, in time.
pub fn judge(cases: &[Case], tallies: &[Tally], bounds: &mut Bounds) {
    let (mut wrong, mut late) = (Vec::new(), Vec::new());
    let (mut refused, mut worst) = (0, 0.0f64);
    for (case, tally) in cases.iter().zip(tallies) {
        for (how, count) in tally.ends.iter().filter(|(how, _)| !case.expect.meets(how)) {
            wrong.push(format!("{} ({count} times {how}, not {:?})", case.name, case.expect));
        }
        if case.expect.is_refusal() {
            refused += tally.micros.len();
            worst = worst.max(tally.seconds(1.0));
            if tally.seconds(1.0) > REFUSED_WITHIN.as_secs_f64() {
                late.push(format!("{} ({:.3} s)", case.name, tally.seconds(1.0)));
            }
        }
    }
    let text = |what: &str, list: &[String]| match list.len() {
        0 => what.to_string(),
        n => format!("{what}; not so in {n} cases: {}", list.join("; ")),
    };
    bounds.hold(wrong.is_empty(), &text(&format!("all {} cases end as they should", cases.len()), &wrong));
    let what = format!("{refused} refusals, each within {} s, the slowest in {worst:.3} s", REFUSED_WITHIN.as_secs());
    bounds.hold(late.is_empty(), &text(&what, &late));
}
