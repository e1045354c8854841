//! `docs/guarantees.md` names a test for each promise.

use std::fs;
use turnstone_tests::real::root;

#[test]
fn every_promise_names_a_test_that_there_is() {
    let page = fs::read_to_string(root().join("docs/guarantees.md")).expect("it is there");
    let folder = root().join("tests/tests");
    let source = |name: &str| fs::read_to_string(folder.join(name)).ok();
    let mut promises = 0;
    let rows = page.lines().filter_map(|line| line.strip_prefix("| ")?.strip_suffix(" |")?.rsplit_once(" | "));
    for (promise, held_by) in rows.filter(|(promise, _)| *promise != "promise") {
        let names: Vec<&str> = held_by.split('`').skip(1).step_by(2).collect();
        assert!(!names.is_empty() || held_by == "the same", "no test: {promise}");
        for name in names.iter().filter(|name| !name.starts_with(char::is_uppercase)) {
            let (file, test) = name.split_once("::").unwrap_or((name, ""));
            let text = source(&format!("parallel/{file}.rs")).or_else(|| source(&format!("{file}.rs")));
            let text = text.unwrap_or_else(|| panic!("there is no {file}: {promise}"));
            assert!(text.contains(&format!("fn {test}")), "{file} has no test {test}: {promise}");
        }
        promises += 1;
    }
    assert!(promises > 20, "only {promises} promises were read");
}
