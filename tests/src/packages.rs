//! Real records: the packages of the distribution.

use std::collections::BTreeMap;
use std::process::Command;

/// Package name and record, as `apt-cache dumpavail` gives them.
pub fn packages() -> BTreeMap<Vec<u8>, Vec<u8>> {
    let dump = || Command::new("apt-cache").arg("dumpavail").output().expect("apt-cache runs").stdout;
    let mut text = dump();
    if text.len() < 10 << 20 {
        let updated = Command::new("apt-get").args(["update", "-qq"]).status().expect("apt-get runs");
        assert!(updated.success(), "the package lists cannot be fetched");
        text = dump();
    }
    let mut packages = BTreeMap::new();
    let mut record = Vec::new();
    for line in text.split_inclusive(|b| *b == b'\n') {
        if line != b"\n" {
            record.extend_from_slice(line);
            continue;
        }
        let first = record.split(|b| *b == b'\n').next().unwrap_or(&[]);
        if let Some(name) = first.strip_prefix(b"Package: ") {
            packages.insert(name.to_vec(), std::mem::take(&mut record));
        }
        record.clear();
    }
    packages
}
