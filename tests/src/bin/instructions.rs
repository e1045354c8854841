//! Instructions of the server's path behind TLS, per request: decoding, session, engine, reply. Counted by callgrind, so
//! that a busy machine changes nothing.
//!
//! `instructions` prints them beside the recorded ones, and fails where one differs by more than 3 %; `--record` writes
//! what was counted to `tests/instructions.json`. It runs itself under valgrind, twice for each kind of request: the
//! difference between many and few requests is what the requests cost.

use std::process::{Command, ExitCode};
use turnstone_tests::instructions::{KINDS, run};

const FEW: u32 = 4 * 1024;
const MANY: u32 = 12 * 1024;
const TOLERANCE: f64 = 0.03;
const RECORDED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.json");

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    let outcome = match words[..] {
        ["--run", kind, count] => {
            run(kind, count.parse().unwrap_or(0));
            return ExitCode::SUCCESS;
        }
        [] => compare(),
        ["--record"] => record(),
        _ => Err("usage: instructions [--record]".to_string()),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(what) => {
            eprintln!("instructions: {what}");
            ExitCode::FAILURE
        }
    }
}

fn counted(kind: &str, count: u32) -> Result<u64, String> {
    let program = std::env::current_exe().map_err(|e| e.to_string())?;
    let output = Command::new("valgrind")
        .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
        .arg(program)
        .args(["--run", kind, &count.to_string()])
        .output()
        .map_err(|e| format!("valgrind cannot be started ({e}); install it: apt-get install valgrind"))?;
    let text = String::from_utf8_lossy(&output.stderr);
    let collected = text.lines().find_map(|line| line.split_once("Collected : "));
    collected.and_then(|(_, n)| n.trim().parse().ok()).ok_or_else(|| format!("callgrind counted nothing: {text}"))
}

fn per_request(kind: &str) -> Result<u64, String> {
    Ok((counted(kind, MANY)? - counted(kind, FEW)?) / u64::from(MANY - FEW))
}

fn record() -> Result<(), String> {
    let mut all = serde_json::Map::new();
    for kind in KINDS {
        all.insert(kind.to_string(), per_request(kind)?.into());
    }
    let text = serde_json::to_string_pretty(&all).map_err(|e| e.to_string())?;
    println!("{text}");
    std::fs::write(RECORDED, text + "\n").map_err(|e| format!("{RECORDED}: {e}"))
}

fn compare() -> Result<(), String> {
    let text = std::fs::read_to_string(RECORDED).map_err(|e| format!("{RECORDED}: {e}"))?;
    let recorded: serde_json::Value = serde_json::from_str(&text).map_err(|e| format!("{RECORDED}: {e}"))?;
    let mut off = Vec::new();
    for kind in KINDS {
        let now = per_request(kind)?;
        let before = recorded[kind].as_u64().ok_or_else(|| format!("{RECORDED} lacks {kind}"))?;
        let change = now as f64 / before as f64 - 1.0;
        println!("{kind}: {now} instructions, recorded {before}, {:+.1} %", change * 100.0);
        if change.abs() > TOLERANCE {
            off.push(kind);
        }
    }
    if off.is_empty() {
        return Ok(());
    }
    Err(format!("{} changed by more than 3 %; if that is meant, record it: --record", off.join(", ")))
}
