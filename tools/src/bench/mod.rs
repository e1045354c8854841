//! The load generator behind `turnstone-bench`.
//!
//! One thread drives many connections without blocking, so that the generator's own core is spent on requests and not on
//! switching between threads; with several `--cores` there is one such thread for each. A *transaction* is what is
//! counted: one frame that commits by itself (`turnstone/2` with `-batch 1`), or Begin, operations and Commit. Each
//! connection keeps a *round* of `-depth` transactions in flight: all are sent in one write, and the next round starts
//! when every reply is there.
//!
//! Without `--rate` the loop is closed: a slow server slows its load down, and latency hides queueing. With it the loop is
//! open: transactions have intended starts, evenly spaced, and latency is counted from there, sent late or not
//! (Gil Tene's "coordinated omission").
//!
//! * [`options`]: the flags, spelled as in the original, and what they may be together.
//! * [`protocol`]: transactions as bytes and replies as outcomes, for both dialects and for RESP; pure.
//! * [`workload`]: which key, which operation; pure.
//! * [`driver`]: the loop over sockets.
//! * [`report`]: figures, as text and as JSON.

pub mod driver;
pub mod options;
pub mod protocol;
pub mod report;
pub mod workload;
