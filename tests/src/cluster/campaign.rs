//! Many seeds, one after the other: `cargo run --release --bin simulate`, and in short the test `clusters`.
//!
//! | flag | meaning |
//! |---|---|
//! | `--seeds N` | so many seeds (200) |
//! | `--from S` | from this seed on (0) |
//! | `--seed S` | this one alone |
//! | `--seconds T` | virtual seconds with faults (60) |
//! | `--features A,B` | what each run tries beyond plain faults, instead of what its seed draws; `none` for nothing |
//! | `--known` | leave out nothing, also what is known to fail (`known.rs`) |
//! | `--go-on` | print each failure, and go on behind it |
//! | `--trace` | print the log of each run |

use super::features::Features;
use super::{Effort, RECOVERY, Tally, run_seed};
use std::time::{Duration, Instant};

/// What a campaign does.
#[derive(Clone, Copy, Debug)]
pub struct Campaign {
    /// The first seed, and how many.
    pub from: u64,
    /// See above.
    pub seeds: u64,
    /// How long each is, and what it tries.
    pub effort: Effort,
    /// A failure does not end it.
    pub goes_on: bool,
}

impl Default for Campaign {
    fn default() -> Campaign {
        Campaign { from: 0, seeds: 200, effort: Effort::default(), goes_on: false }
    }
}

impl Campaign {
    /// Reads the flags.
    pub fn parse(words: &[String]) -> Result<Campaign, String> {
        let mut campaign = Campaign::default();
        let mut words = words.iter();
        while let Some(word) = words.next() {
            let mut value = || words.next().ok_or_else(|| format!("{word} needs a value"));
            let number =
                |text: &String| text.parse::<u64>().map_err(|_| format!("{word} needs a number, not '{text}'"));
            match word.as_str() {
                "--seeds" => campaign.seeds = number(value()?)?,
                "--from" => campaign.from = number(value()?)?,
                "--seed" => (campaign.from, campaign.seeds) = (number(value()?)?, 1),
                "--seconds" => campaign.effort.faults = Duration::from_secs(number(value()?)?),
                "--features" => campaign.effort.features = Some(Features::parse(value()?)?),
                "--known" => campaign.effort.without = Features::NONE,
                "--go-on" => campaign.goes_on = true,
                "--trace" => campaign.effort.trace = true,
                _ => return Err(format!("'{word}' is no flag; the top of tests/src/cluster/campaign.rs lists them")),
            }
        }
        Ok(campaign)
    }

    /// Runs it. The error says what was wrong first, and how to repeat it.
    pub fn run(&self) -> Result<Tally, String> {
        let started = Instant::now();
        let (mut sum, mut minutes, mut failed) = (Tally::default(), 0, 0);
        for seed in self.from..self.from + self.seeds {
            if started.elapsed().as_secs() / 60 > minutes {
                minutes = started.elapsed().as_secs() / 60;
                println!("after {minutes} min: {} of {} seeds, {failed} failed; {sum:?}", seed - self.from, self.seeds);
            }
            let outcome = std::panic::catch_unwind(|| run_seed(seed, self.effort, None));
            let outcome = outcome.unwrap_or_else(|_| Err("an assertion failed".to_string()));
            match outcome {
                Ok((tally, _)) => sum.add(&tally),
                Err(what) if self.goes_on => {
                    failed += 1;
                    println!("seed {seed} {:?}: {what}", self.effort.features_of(seed));
                }
                Err(what) => return Err(format!("{what}; repeat with `simulate --seed {seed}`")),
            }
        }
        let per_minute = self.seeds as f64 * 60.0 / started.elapsed().as_secs_f64();
        println!("{} seeds from {}, {per_minute:.0} per minute, {failed} failed; {sum:?}", self.seeds, self.from);
        if failed > 0 {
            return Err(format!("{failed} of {} seeds failed", self.seeds));
        }
        if sum.recovery > RECOVERY {
            return Err(format!("no commit for {:?} after the last fault", sum.recovery));
        }
        Ok(sum)
    }
}
