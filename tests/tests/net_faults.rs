//! The campaign of `tests/src/net_faults` in short: a few rounds, in namespaces of its own.

use std::process::Command;
use turnstone_tests::net_faults::namespaces;

#[test]
fn a_few_rounds_lose_nothing() {
    if let Some(why) = namespaces::unavailable() {
        // `.ci/run` repeats this line at its end.
        println!("NOT RUN: rounds of network faults: {why}");
        return;
    }
    let output = Command::new(env!("CARGO_BIN_EXE_net-faults"))
        .args(["--rounds", "6", "--seed", "3"])
        .output()
        .expect("it runs");
    let text = String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
    println!("{text}");
    assert!(output.status.success(), "{text}");
    assert!(text.contains("none lost"), "{text}");
}
