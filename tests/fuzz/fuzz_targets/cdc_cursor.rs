//! libFuzzer around the target of this name.

#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| turnstone_tests::fuzz::cdc::cursor(input));
