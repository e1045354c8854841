//! What was measured, for people and for programs.

use std::fmt::Write;

use hdrhistogram::Histogram;
use serde_json::{Value, json};

use super::driver::Figures;
use super::options::{DialectName, Options, Protocol};
use super::workload::Phase;

const QUANTILES: [(&str, f64); 5] = [("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("p99.9", 0.999), ("p99.99", 0.9999)];

/// What the figures are of.
pub fn describe(options: &Options) -> String {
    let speech = match (options.protocol, options.dialect) {
        (Protocol::Resp, _) => "RESP",
        (_, DialectName::V1) => "v1",
        (_, DialectName::Turnstone2) => "turnstone/2",
    };
    let pace = match options.rate {
        Some(rate) => format!("open loop at {rate} transactions/s, latency from the intended start"),
        None => "closed loop: latency hides queueing".to_owned(),
    };
    format!(
        "{} connections, depth {}, {} operations per transaction, {} B values, {} B keys, {} keys, {speech} over mutual \
         TLS\n{pace}",
        options.connections,
        options.depth,
        options.batch,
        options.value_bytes,
        options.key_bytes,
        options.key_count()
    )
}

fn per_second(count: u64, figures: &Figures) -> f64 {
    count as f64 / figures.elapsed.as_secs_f64().max(1e-9)
}

fn milliseconds(nanoseconds: u64) -> f64 {
    nanoseconds as f64 / 1e6
}

/// A phase for people.
pub fn text(phase: Phase, options: &Options, figures: &Figures) -> String {
    let mut out = String::new();
    let name = match phase {
        Phase::Mixed(share) => format!("MIXED, {} % reads", share * 100.0),
        other => other.name().to_owned(),
    };
    // Writing to memory cannot fail.
    let _ = writeln!(
        out,
        "{name}: {} transactions in {:.3} s, {:.0}/s ({:.0} operations/s), {:.1} MB/s out, {:.1} MB/s in",
        figures.done,
        figures.elapsed.as_secs_f64(),
        per_second(figures.done, figures),
        per_second(figures.done * u64::from(options.batch), figures),
        per_second(figures.bytes.0, figures) / 1e6,
        per_second(figures.bytes.1, figures) / 1e6,
    );
    for (what, histogram) in [("read", &figures.reads), ("write", &figures.writes)] {
        if histogram.is_empty() {
            continue;
        }
        let _ = write!(out, "  {what:<5} ms:");
        for (label, quantile) in QUANTILES {
            let _ = write!(out, "  {label} {:.3}", milliseconds(histogram.value_at_quantile(quantile)));
        }
        let _ = writeln!(out, "  max {:.3}  mean {:.3}", milliseconds(histogram.max()), histogram.mean() / 1e6);
    }
    let _ = writeln!(out, "  not found {}, {}", figures.missing, errors(figures));
    let share = figures.cpu.as_secs_f64() / figures.elapsed.as_secs_f64().max(1e-9);
    let _ = writeln!(out, "  this generator used {:.0} % of a core", share * 100.0);
    out
}

fn errors(figures: &Figures) -> String {
    if figures.errors.is_empty() {
        return "no errors".to_owned();
    }
    let list: Vec<String> = figures.errors.iter().map(|(word, count)| format!("{word} {count}")).collect();
    format!("errors: {}", list.join(", "))
}

/// A phase for programs. Latencies are in microseconds.
pub fn json(phase: Phase, options: &Options, figures: &Figures) -> Value {
    json!({
        "phase": phase.name(),
        "connections": options.connections,
        "depth": options.depth,
        "batch": options.batch,
        "value_bytes": options.value_bytes,
        "rate": options.rate,
        "seconds": figures.elapsed.as_secs_f64(),
        "transactions": figures.done,
        "per_second": per_second(figures.done, figures),
        "not_found": figures.missing,
        "errors": figures.errors,
        "bytes_out": figures.bytes.0,
        "bytes_in": figures.bytes.1,
        "client_cpu_seconds": figures.cpu.as_secs_f64(),
        "read_us": latencies(&figures.reads),
        "write_us": latencies(&figures.writes),
    })
}

fn latencies(histogram: &Histogram<u64>) -> Value {
    if histogram.is_empty() {
        return Value::Null;
    }
    let mut object = serde_json::Map::new();
    for (label, quantile) in QUANTILES {
        object.insert(label.to_owned(), json!(histogram.value_at_quantile(quantile) as f64 / 1e3));
    }
    object.insert("max".to_owned(), json!(histogram.max() as f64 / 1e3));
    object.insert("mean".to_owned(), json!(histogram.mean() / 1e3));
    Value::Object(object)
}
