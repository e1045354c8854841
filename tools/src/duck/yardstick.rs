//! What bounds the loader: DuckDB's Appender alone, on rows of the history's shape.

use duckdb::{Connection, params};
use std::path::Path;
use std::time::Instant;

/// Appends so many rows with values of 128 B to a table of a new database, row by row, and makes them durable. Answers rows
/// per second.
pub fn appender(db: &Path, rows: u64) -> Result<f64, String> {
    let failed = |error: duckdb::Error| error.to_string();
    if db.exists() {
        return Err(format!("--yardstick: {} is there already; name another -db", db.display()));
    }
    let mut connection = Connection::open(db).map_err(failed)?;
    connection
        .execute_batch(
            "CREATE TABLE history(partition UTINYINT, epoch UBIGINT, version UBIGINT, n UINTEGER, of UINTEGER, op VARCHAR,
                key VARCHAR, key_encoding VARCHAR, value VARCHAR, value_encoding VARCHAR, ts TIMESTAMP, copy UBIGINT)",
        )
        .map_err(failed)?;
    let (value, none) = ("v".repeat(128), None::<u64>);
    let began = Instant::now();
    let transaction = connection.transaction().map_err(failed)?;
    {
        let mut appender = transaction.appender("history").map_err(failed)?;
        for version in 0..rows {
            let key = format!("{version:032}");
            let time = std::time::Duration::from_millis(1_700_000_000_000 + version);
            appender
                .append_row(params![1u8, 1u64, version, 1u32, 1u32, "set", key, "text", value, "text", time, none])
                .map_err(failed)?;
        }
        appender.flush().map_err(failed)?;
    }
    transaction.commit().map_err(failed)?;
    Ok(rows as f64 / began.elapsed().as_secs_f64())
}
