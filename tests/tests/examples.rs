//! The examples of README.md and docs/cdc.md run as they are written there, by a shell, with the ports that they have.

use std::path::Path;
use std::process::Command;
use turnstone_tests::real::{self, TempDir};

fn root() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/.."))
}

/// A command, if the page has it as it is.
fn of(page: &str, command: &'static str) -> &'static str {
    let text = std::fs::read_to_string(root().join(page)).expect("the page is there");
    assert!(text.contains(command), "{page} does not say: {command}");
    command
}

/// What stands between these marks of a page.
fn between(page: &str, from: &str, to: &str) -> String {
    let text = std::fs::read_to_string(root().join(page)).expect("the page is there");
    let rest = text.split_once(from).unwrap_or_else(|| panic!("{page} has no {from}")).1;
    rest.split_once(to).unwrap_or_else(|| panic!("{page} has no {to}")).0.trim().to_string()
}

#[test]
fn examples_run_as_written() {
    let (readme, cdc) = ("README.md", "docs/cdc.md");
    let programs = real::binary("turnstone").parent().expect("a directory").to_path_buf();
    real::loader();
    let directory = TempDir::new("examples");
    // Paths are as on the pages: from the root of the tree.
    let target = programs.parent().expect("a directory");
    std::os::unix::fs::symlink(target, directory.path().join("target")).expect("it can be made");
    // A network of its own has all ports free.
    let alone = ["--map-root-user", "--net"];
    let may = Command::new("unshare").args(alone).arg("true").output().is_ok_and(|output| output.status.success());
    let free = [6379, 9091].map(|port| std::net::TcpListener::bind(("0.0.0.0", port)).is_ok());
    if !may && free != [true, true] {
        println!("NOT RUN: no network of its own can be had here, and the default ports are taken");
        return;
    }
    // What is typed into the command line stands behind it.
    let typed = between(readme, "./target/release/turnstone-cli --home tsdata           # ", ", …");
    let typed = typed.split(", ").collect::<Vec<_>>().join("\n");
    let sql = between(cdc, "```sql", "```");
    let script = format!(
        "set -euo pipefail
        {up}
        trap 'kill -9 $(jobs -p) 2>/dev/null || true' EXIT
        export PATH={programs}:$PATH
        until_says() {{ for _ in $(seq 600); do if grep -q \"$1\" $2; then return; fi; sleep 0.1; done; cat $2; exit 1; }}
        {init}
        {{ {serve} }} 2> server.log
        server=$!
        until_says ' ready in ' server.log
        {{ {cli}; }} < typed
        {{ {follow} & }} 2> consumer.log
        consumer=$!
        until_says 'changes from version' consumer.log
        {load}
        {bench}
        {{ {watch} & }} 2> loader.log
        loader=$!
        for _ in $(seq 600); do if test -s analytics.duckdb; then break; fi; sleep 0.1; done
        kill $consumer $loader
        wait $consumer
        wait $loader
        {{ {lines} & }} > lines 2> lines.log
        printer=$!
        until_says device_type lines
        kill $printer
        {once}
        ./target/release/turnstone-duck -db analytics.duckdb --query \"$(cat sql)\" > answer
        {direct} -once
        ./target/release/turnstone-duck -db direct.duckdb --query \"$(cat sql)\" > direct
        cmp <(sort answer) <(sort direct)
        echo types: $(wc -l < answer)
        kill $server
        wait $server",
        up = if may { "ip link set lo up" } else { "true" },
        programs = programs.display(),
        init = of(readme, "./target/release/turnstone --init --home tsdata"),
        serve = of(readme, "./target/release/turnstone --home tsdata &"),
        cli = of(readme, "./target/release/turnstone-cli --home tsdata"),
        follow = of(readme, "./target/release/turnstone --mode cdc --home tsdata"),
        lines = of(cdc, "turnstone --mode cdc --home tsdata --stdout"),
        load = of(cdc, "./target/release/turnstone-load --home tsdata --duration 10s"),
        bench = of(readme, "./target/release/turnstone-bench --home tsdata -c 50 -n 100000 -ratio 0.5"),
        watch = of(cdc, "./target/release/turnstone-duck -input tsdata/cdc_logs -db analytics.duckdb"),
        once = of(cdc, "./target/release/turnstone-duck -input tsdata/cdc_logs -db analytics.duckdb -archive loaded -once"),
        direct = of(cdc, "./target/release/turnstone-duck --from-server --home tsdata -db direct.duckdb"),
    );
    std::fs::write(directory.path().join("typed"), typed + "\n").expect("it can be written");
    std::fs::write(directory.path().join("sql"), sql).expect("it can be written");
    let mut command = if may { Command::new("unshare") } else { Command::new("env") };
    if may {
        command.args(alone);
    }
    let output = command.args(["timeout", "180", "bash", "-c", &script]).current_dir(directory.path()).output();
    let output = output.expect("a shell runs");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    println!("{said}");
    assert!(output.status.success(), "{:?}\n{script}", output.status);
    assert!(said.contains("Hello Turnstone"), "the command line answers what was set");
    let types = said.lines().find_map(|line| line.strip_prefix("types: ")?.parse::<u32>().ok());
    assert!(types.is_some_and(|types| types > 2), "the query over JSON has a row for each type of device");
}
