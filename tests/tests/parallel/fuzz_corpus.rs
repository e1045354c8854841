//! Every fuzz target on its corpus and its seeds, without a fuzzer: what was found once is tried on each run of the tests.
//!
//! Each input is also tried cut short, and with single bytes changed: the same on every run.

use std::fs;
use std::panic;
use std::path::{Path, PathBuf};
use turnstone_tests::fuzz::TARGETS;
use turnstone_tests::sim::Rng;

/// Most files of one corpus, and most bytes of all together: they are there to be read, too.
const FILES_MAX: usize = 300;
const BYTES_MAX: usize = 1 << 20;

/// Cuts and changes tried per input.
const VARIANTS: u64 = 16;

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz")
}

/// The files of a corpus, in order.
fn corpus(target: &str) -> Vec<(PathBuf, Vec<u8>)> {
    let folder = folder().join("corpus").join(target);
    let entries = fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    files.sort();
    files.into_iter().map(|file| (file.clone(), fs::read(&file).expect("a file"))).collect()
}

/// Runs an input; a panic names it.
fn run(target: &str, run: fn(&[u8]), what: &str, input: &[u8]) {
    if panic::catch_unwind(|| run(input)).is_err() {
        panic!("{target} fails on {what}: {:02x?}", input);
    }
}

#[test]
fn every_input_passes() {
    let mut total = 0;
    for target in TARGETS {
        let files = corpus(target.name);
        assert!(!files.is_empty() && files.len() <= FILES_MAX, "{} files for {}", files.len(), target.name);
        total += files.iter().map(|(_, bytes)| bytes.len()).sum::<usize>();
        let seeds = (target.seeds)().into_iter().map(|seed| ("a seed".to_string(), seed));
        let inputs: Vec<(String, Vec<u8>)> =
            files.into_iter().map(|(file, bytes)| (file.display().to_string(), bytes)).chain(seeds).collect();
        let rng = Rng::new(1);
        run(target.name, target.run, "nothing", &[]);
        for (name, input) in &inputs {
            run(target.name, target.run, name, input);
            for variant in 0..VARIANTS {
                let at = rng.below(input.len() as u64) as usize;
                let mut changed = input.clone();
                if variant % 2 == 0 {
                    changed.truncate(at);
                } else if let Some(byte) = changed.get_mut(at) {
                    *byte ^= 1 << rng.below(8);
                }
                run(target.name, target.run, &format!("a variant of {name}"), &changed);
            }
        }
        println!("{}: {} inputs and {VARIANTS} variants of each", target.name, inputs.len());
    }
    assert!(total <= BYTES_MAX, "the corpora have {total} bytes");
}

#[test]
fn every_target_has_a_wrapper() {
    let manifest = fs::read_to_string(folder().join("Cargo.toml")).expect("the manifest");
    let mut wrappers: Vec<String> = fs::read_dir(folder().join("fuzz_targets"))
        .expect("the wrappers")
        .map(|entry| entry.expect("an entry").path().file_stem().expect("a name").to_string_lossy().into_owned())
        .collect();
    wrappers.sort();
    let mut names = TARGETS.map(|target| target.name);
    names.sort_unstable();
    assert_eq!(wrappers, names);
    for name in names {
        assert!(manifest.contains(&format!("name = \"{name}\"\npath = \"fuzz_targets/{name}.rs\"")), "{name}");
    }
}
