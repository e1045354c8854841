//! The tests that measure nothing, one module a file, in one program: `cargo test` runs programs one after the other, and
//! the tests of one program side by side.
//!
//! A test that holds a time, a rate or memory to a bound, or counts something that the whole machine shares, is a program of
//! its own beside this folder, and has the machine to itself. `--test parallel clusters::` runs the tests of one file.

mod cdc;
mod checkpoints;
mod clusters;
mod copies;
mod crash_states;
mod disk_contract;
mod divergence;
mod duck;
mod duck_live;
mod failover;
mod fuzz_corpus;
mod gathering;
mod guarantees;
mod hung_members;
mod isolation;
mod log_ages;
mod log_end;
mod log_writes;
mod memory_share;
mod real_input;
mod refusals;
mod replication;
mod request_costs;
mod request_memory;
mod scarcity;
mod server_e2e;
mod tidy;
mod wire_vectors;
