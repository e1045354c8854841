//! Writes the seeds of every fuzz target below a folder, for a campaign that begins without a corpus.

use std::fs;
use std::path::Path;
use std::process::ExitCode;
use turnstone_tests::fuzz::TARGETS;

fn main() -> ExitCode {
    let Some(folder) = std::env::args().nth(1) else {
        eprintln!("usage: turnstone-fuzz-seeds FOLDER");
        return ExitCode::FAILURE;
    };
    for target in TARGETS {
        let folder = Path::new(&folder).join(target.name);
        let written = fs::create_dir_all(&folder).and_then(|()| {
            let mut seeds = (target.seeds)().into_iter().enumerate();
            seeds.try_for_each(|(number, seed)| fs::write(folder.join(format!("seed-{number:02}")), seed))
        });
        if let Err(error) = written {
            eprintln!("turnstone-fuzz-seeds: {}: {error}", folder.display());
            return ExitCode::FAILURE;
        }
    }
    ExitCode::SUCCESS
}
