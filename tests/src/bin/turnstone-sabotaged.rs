//! A server with one rule broken (the read check of D9), for the test that shows that the history checker would notice.
//! It is assembled from the same parts as the real one and is never installed.

use std::process::ExitCode;
use turnstone_engine::env::{Level, Sabotage};
use turnstone_tools::config::Config;
use turnstone_tools::home::Home;
use turnstone_tools::serve;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(text) => {
            eprintln!("turnstone-sabotaged: {text}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), String> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let value = |name: &str| arguments.iter().position(|a| a == name).and_then(|i| arguments.get(i + 1)).cloned();
    let home = Home::new(value("--home").ok_or("--home is missing")?);
    let port = value("--port").ok_or("--port is missing")?;
    let flags = vec![("port".to_string(), port)];
    let config = Config::load(&home, &flags, std::iter::empty()).map_err(|e| e.to_string())?;
    let _lock = serve::lock(&home)?;
    let log = serve::start_log(&config)?;
    let server = serve::start(&home, &config, log.clone(), None, Some(Sabotage::ReadCheckSkipped))?;
    let ready = server.wait_ready()?;
    log.line(Level::Info, &format!("ready in {:.3} s, sabotaged", ready.took.as_secs_f64()));
    server.join()
}
