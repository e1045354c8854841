//! The tables, and how changes get into them: rows and the watermark that says how far they go, in one transaction.
//!
//! | table | holds |
//! |---|---|
//! | `turnstone_history` | every change that was not taken back, in its place; rows of copies, with the copy's version |
//! | `turnstone_state` | the newest state of each key, deleted ones too: a tombstone keeps an older line from bringing a key back |
//! | `turnstone_watermark` | for each partition, the version up to which both have everything |
//! | `turnstone_files` | the change files that were loaded |
//! | `turnstone_epochs` | the epochs that loaded files name, with their ids: a server that began anew has other ids |
//! | `turnstone_cursor` | where a stream from the server goes on |
//!
//! The state has no primary key. With one, DuckDB keeps an index in memory for every key ever seen, and a batch takes three
//! times as long (decision 18); that a key is there once is ours to see to: a batch has each key once, takes away what
//! is there of its keys, and is added.

use super::rows::{self, Row};
use duckdb::{Connection, Transaction, params};
use std::collections::HashSet;
use std::time::{SystemTime, UNIX_EPOCH};

/// The version of DuckDB that the program was built for.
pub const DUCKDB: &str = "v1.5.6";
/// The newest format of the tables.
const FORMAT: u64 = 1;

/// DuckDB settles its log into the file when there is so much of it. Loading stands still meanwhile, for about a second; with
/// DuckDB's own 16 MiB that is every other second at 20,000 rows a second.
const CHECKPOINT: &str = "128MiB";
/// Rows of a row group. A checkpoint rewrites whole ones, on each thread, in memory that DuckDB does not count; of its own 122,880
/// rows with values of 2 KB that is 250 MB. Only an attached database can be told: that is why none is opened as the first.
pub const ROW_GROUP: usize = 20_480;
/// Rows that are staged take about so many bytes at most.
const STAGED: usize = 32 << 20;

const SCHEMA: &str = "
CREATE TABLE IF NOT EXISTS turnstone_format(format UBIGINT);
CREATE TABLE IF NOT EXISTS turnstone_history(
    partition UTINYINT, epoch UBIGINT, version UBIGINT, n UINTEGER, of UINTEGER, op VARCHAR,
    key VARCHAR, key_encoding VARCHAR, value VARCHAR, value_encoding VARCHAR, ts TIMESTAMP, copy UBIGINT);
CREATE TABLE IF NOT EXISTS turnstone_state(
    partition UTINYINT, key VARCHAR, key_encoding VARCHAR, value VARCHAR, value_encoding VARCHAR,
    epoch UBIGINT, version UBIGINT, deleted BOOLEAN, copy UBIGINT, ts TIMESTAMP);
CREATE TABLE IF NOT EXISTS turnstone_watermark(
    partition UTINYINT, epoch UBIGINT, version UBIGINT, copying UBIGINT, skips_copy BOOLEAN, file_number UBIGINT);
CREATE TABLE IF NOT EXISTS turnstone_files(
    partition UTINYINT, file_number UBIGINT, name VARCHAR, bytes UBIGINT, lines UBIGINT, loaded_at TIMESTAMP);
CREATE TABLE IF NOT EXISTS turnstone_epochs(
    partition UTINYINT, number UBIGINT, id UBIGINT);
CREATE TABLE IF NOT EXISTS turnstone_cursor(partition UTINYINT, cursor VARCHAR);
CREATE OR REPLACE VIEW turnstone_data AS
    SELECT partition, key, key_encoding, value, value_encoding, version,
           concat(partition, ':', epoch, ':', version) AS position, ts AS updated_at
    FROM turnstone_state WHERE NOT deleted;
CREATE OR REPLACE VIEW turnstone_json AS
    SELECT partition, key, try_cast(value AS JSON) AS json, version, updated_at
    FROM turnstone_data WHERE value_encoding = 'json'
       -- Loaded before the loader looked by itself. DuckDB takes NaN, infinities and a comma behind the last of a list, too.
       OR (value_encoding = 'text' AND try_cast(value AS JSON) IS NOT NULL
           AND NOT regexp_matches(regexp_replace(value, '\"(\\\\.|[^\"\\\\])*\"', '', 'g'), '(?i)nan|inf|,\\s*[\\]}]'));
CREATE OR REPLACE TEMP TABLE stage AS SELECT partition, key, key_encoding FROM turnstone_state LIMIT 0;
";

/// How far a partition is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Watermark {
    /// The epoch of the last version.
    pub epoch: u64,
    /// Everything up to this version is there.
    pub version: u64,
    /// Of which version a copy is that is not whole.
    pub copying: Option<u64>,
    /// A copy is passed over, since it is older than what is there, and its end has not come.
    pub skips_copy: bool,
    /// The number of the last change file.
    pub file_number: u64,
}

/// The database.
pub struct Store {
    connection: Connection,
}

/// A path within a statement of SQL.
pub fn quoted(path: &std::path::Path) -> String {
    path.display().to_string().replace('\'', "''")
}

fn failed(error: duckdb::Error) -> String {
    error.to_string()
}

impl Store {
    /// Opens, or makes, a database. `memory` is what DuckDB may take, as it spells it (`1GB`).
    pub fn open(path: &std::path::Path, memory: &str) -> Result<Store, String> {
        let connection = Connection::open_in_memory().map_err(failed)?;
        let version: String = connection.query_row("SELECT version()", [], |row| row.get(0)).map_err(failed)?;
        if version != DUCKDB {
            return Err(format!(
                "libduckdb is {version}, and this program was built for {DUCKDB}: run tools/fetch-duckdb"
            ));
        }
        connection.execute_batch("SET autoinstall_known_extensions=false").map_err(failed)?;
        connection.execute_batch(&format!("SET checkpoint_threshold='{CHECKPOINT}'")).map_err(failed)?;
        connection
            .execute(&format!("SET memory_limit='{}'", memory.replace('\'', "''")), [])
            .map_err(|error| format!("--memory {memory}: {error}"))?;
        let quoted = quoted(path);
        connection.execute_batch(&format!("SET temp_directory='{quoted}.tmp'")).map_err(failed)?;
        connection
            .execute_batch(&format!(
                "ATTACH '{quoted}' AS changes (TYPE duckdb, ROW_GROUP_SIZE {ROW_GROUP}); USE changes"
            ))
            .map_err(|error| format!("{}: {error}", path.display()))?;
        connection.execute_batch(SCHEMA).map_err(failed)?;
        let store = Store { connection };
        store.check_format()?;
        Ok(store)
    }

    fn check_format(&self) -> Result<(), String> {
        let found: Option<u64> = self
            .connection
            .query_row("SELECT max(format) FROM turnstone_format", [], |row| row.get(0))
            .map_err(failed)?;
        match found {
            Some(FORMAT) => Ok(()),
            Some(other) => Err(format!("the tables are in format {other}, and this program writes {FORMAT}")),
            None => {
                self.connection.execute("INSERT INTO turnstone_format VALUES (?)", params![FORMAT]).map_err(failed)?;
                Ok(())
            }
        }
    }

    /// How far a partition is.
    pub fn watermark(&self, partition: u8) -> Result<Watermark, String> {
        let mut statement = self
            .connection
            .prepare(
                "SELECT epoch, version, copying, file_number, skips_copy FROM turnstone_watermark WHERE partition = ?",
            )
            .map_err(failed)?;
        let mut found = statement.query(params![partition]).map_err(failed)?;
        match found.next().map_err(failed)? {
            None => Ok(Watermark::default()),
            Some(row) => {
                let get = |i: usize| row.get::<_, u64>(i).map_err(failed);
                let copying = row.get::<_, Option<u64>>(2).map_err(failed)?;
                let skips_copy = row.get(4).map_err(failed)?;
                Ok(Watermark { epoch: get(0)?, version: get(1)?, copying, skips_copy, file_number: get(3)? })
            }
        }
    }

    /// The change files that were loaded: their names and lengths.
    pub fn files(&self) -> Result<HashSet<(String, u64)>, String> {
        let mut statement = self.connection.prepare("SELECT name, bytes FROM turnstone_files").map_err(failed)?;
        let found = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).map_err(failed)?;
        found.collect::<Result<_, _>>().map_err(failed)
    }

    /// Refuses a database that gets its changes another way: two would not know of each other's copies, and of what the other
    /// has taken back.
    pub fn refuse_unless(&self, by_stream: bool) -> Result<(), String> {
        let (table, how, flag) = match by_stream {
            true => ("turnstone_files", "change files", "-input"),
            false => ("turnstone_cursor", "a server", "--from-server"),
        };
        match self.number(&format!("SELECT count(*) FROM {table}"))? {
            0 => Ok(()),
            _ => Err(format!("this database gets its changes from {how}: go on with {flag}, or name another -db")),
        }
    }

    /// The cursor of a partition's stream, if there was one.
    pub fn cursor(&self, partition: u8) -> Result<Option<String>, String> {
        let sql = "SELECT max(cursor) FROM turnstone_cursor WHERE partition = ?";
        self.connection.query_row(sql, params![partition], |row| row.get(0)).map_err(failed)
    }

    /// Begins to load something of a partition.
    pub fn begin(&mut self, partition: u8) -> Result<Load<'_>, String> {
        let watermark = self.watermark(partition)?;
        let transaction = self.connection.transaction().map_err(failed)?;
        transaction.execute_batch("TRUNCATE stage").map_err(failed)?;
        let known = watermark.version;
        Ok(Load { transaction, partition, known, staged: Vec::new(), staged_bytes: 0, watermark })
    }

    /// Runs a query that answers one number, for tests and reports.
    pub fn number(&self, sql: &str) -> Result<u64, String> {
        self.connection.query_row(sql, [], |row| row.get(0)).map_err(failed)
    }

    /// The version of each partition.
    pub fn versions(&self) -> Result<Vec<(u8, u64)>, String> {
        let mut statement =
            self.connection.prepare("SELECT partition, version FROM turnstone_watermark").map_err(failed)?;
        let found = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?))).map_err(failed)?;
        found.collect::<Result<_, _>>().map_err(failed)
    }

    /// The position of each partition, as `partition:epoch:version`.
    pub fn positions(&self) -> Result<Vec<String>, String> {
        let sql = "SELECT concat(partition, ':', epoch, ':', version) FROM turnstone_watermark ORDER BY partition";
        let mut statement = self.connection.prepare(sql).map_err(failed)?;
        let found = statement.query_map([], |row| row.get(0)).map_err(failed)?;
        found.collect::<Result<_, _>>().map_err(failed)
    }

    /// Runs statements.
    pub fn run(&self, sql: &str) -> Result<(), String> {
        self.connection.execute_batch(sql).map_err(failed)
    }
}

/// A transaction that loads something; dropped, nothing of it is there.
pub struct Load<'a> {
    transaction: Transaction<'a>,
    partition: u8,
    /// Everything up to there is there already.
    known: u64,
    /// Rows that the state has not taken over, and their size.
    staged: Vec<Row>,
    staged_bytes: usize,
    /// What is there when it commits.
    pub watermark: Watermark,
}

impl Load<'_> {
    /// Of which partition.
    pub fn partition(&self) -> u8 {
        self.partition
    }

    fn append(
        &self,
        table: &str,
        catalog: Option<&str>,
        batches: impl Iterator<Item = duckdb::arrow::array::RecordBatch>,
    ) -> Result<(), String> {
        let appender = match catalog {
            Some(catalog) => self.transaction.appender_to_catalog_and_db(table, catalog, "main"),
            None => self.transaction.appender(table),
        };
        let mut appender = appender.map_err(failed)?;
        for batch in batches {
            appender.append_record_batch(batch).map_err(failed)?;
        }
        appender.flush().map_err(failed)
    }

    /// Adds changes, or rows of the copy that has begun. Changes that are there already are passed over: so the state never
    /// has what is newer than what comes, and what comes takes the place of what is there.
    pub fn add(&mut self, mut rows: Vec<Row>) -> Result<(), String> {
        if self.watermark.copying.is_none() {
            rows.retain(|row| row.version > self.known);
        }
        if rows.is_empty() {
            return Ok(());
        }
        let (partition, copy) = (self.partition, self.watermark.copying);
        self.append("turnstone_history", None, rows::history(partition, copy, &rows))?;
        self.staged_bytes += rows.iter().map(Row::bytes).sum::<usize>();
        self.staged.extend(rows);
        if self.staged_bytes >= STAGED { self.settle() } else { Ok(()) }
    }

    /// The state takes over what is staged: a pass over it costs as much for a few rows as for many.
    fn settle(&mut self) -> Result<(), String> {
        let rows = std::mem::take(&mut self.staged);
        self.staged_bytes = 0;
        if rows.is_empty() {
            return Ok(());
        }
        let newest = rows::newest(&rows);
        self.append("stage", Some("temp"), rows::keys(self.partition, &newest))?;
        self.transaction
            .execute_batch(
                "DELETE FROM turnstone_state t USING stage s
                    WHERE t.partition = s.partition AND t.key = s.key AND t.key_encoding = s.key_encoding;
                 TRUNCATE stage;",
            )
            .map_err(failed)?;
        self.append("turnstone_state", None, rows::states(self.partition, self.watermark.copying, &newest))
    }

    /// Every key is gone.
    pub fn flush(&mut self, epoch: u64, version: u64, at: (u32, u32), ts: u64) -> Result<(), String> {
        self.settle()?;
        self.transaction
            .execute(
                "INSERT INTO turnstone_history VALUES (?, ?, ?, ?, ?, 'flush', NULL, NULL, NULL, NULL, make_timestamp_ms(?::BIGINT), NULL)",
                params![self.partition, epoch, version, at.0, at.1, ts],
            )
            .map_err(failed)?;
        self.bury(epoch, version, "true")
    }

    /// Living keys for which this holds get a tombstone.
    fn bury(&mut self, epoch: u64, version: u64, which: &str) -> Result<(), String> {
        let sql = format!(
            "UPDATE turnstone_state SET deleted = true, value = NULL, value_encoding = NULL, ts = NULL, epoch = ?, version = ?
             WHERE partition = ? AND NOT deleted AND {which}"
        );
        self.transaction.execute(&sql, params![epoch, version, self.partition]).map_err(failed)?;
        Ok(())
    }

    /// A copy begins.
    pub fn copy_begin(&mut self, version: u64) -> Result<(), String> {
        self.drop_copy()?;
        self.forget_copy(version)?;
        self.watermark.copying = Some(version);
        Ok(())
    }

    /// What there is of a copy that is not whole is of no use: another one has begun, or a history without one.
    pub fn drop_copy(&mut self) -> Result<(), String> {
        self.settle()?;
        match self.watermark.copying.take() {
            Some(version) => self.forget_copy(version),
            None => Ok(()),
        }
    }

    /// Takes the rows of a copy out of the history.
    fn forget_copy(&mut self, version: u64) -> Result<(), String> {
        self.transaction
            .execute("DELETE FROM turnstone_history WHERE partition = ? AND copy = ?", params![self.partition, version])
            .map_err(failed)?;
        Ok(())
    }

    /// It is whole: what was not in it is gone.
    pub fn copy_end(&mut self, epoch: u64, version: u64) -> Result<(), String> {
        self.settle()?;
        self.transaction
            .execute(
                "INSERT INTO turnstone_history VALUES (?, ?, ?, NULL, NULL, 'copy_end', NULL, NULL, NULL, NULL, NULL, ?)",
                params![self.partition, epoch, version, version],
            )
            .map_err(failed)?;
        self.bury(epoch, version, &format!("copy IS DISTINCT FROM {version}"))?;
        self.watermark.copying = None;
        self.reached(epoch, version);
        self.known = version;
        Ok(())
    }

    /// Everything up to there is there when it commits.
    pub fn reached(&mut self, epoch: u64, version: u64) {
        (self.watermark.epoch, self.watermark.version) = (epoch, version);
    }

    /// Everything behind `version` is taken back: what it had changed becomes what it was before.
    pub fn retract(&mut self, epoch: u64, version: u64) -> Result<(), String> {
        self.settle()?;
        let p = self.partition;
        let sql = format!(
            "CREATE OR REPLACE TEMP TABLE changed AS
                SELECT partition, key, key_encoding FROM turnstone_state WHERE partition = {p} AND version > {version};
             DELETE FROM turnstone_history WHERE partition = {p} AND (version > {version} OR copy > {version});
             DELETE FROM turnstone_state WHERE partition = {p} AND version > {version};
             DELETE FROM turnstone_epochs WHERE partition = {p} AND (number > {epoch} OR {version} = 0);
             UPDATE turnstone_state SET copy = NULL WHERE partition = {p} AND copy > {version};
             INSERT INTO turnstone_state
                WITH last_copy AS (
                    SELECT coalesce(max(version), 0) AS version FROM turnstone_history
                    WHERE partition = {p} AND op = 'copy_end'),
                last_flush AS (
                    SELECT coalesce(max(version), 0) AS version FROM turnstone_history
                    WHERE partition = {p} AND op = 'flush'),
                newest AS (
                    SELECT h.* FROM turnstone_history h SEMI JOIN changed c
                        ON h.partition = c.partition AND h.key = c.key AND h.key_encoding = c.key_encoding,
                        last_copy
                    WHERE (h.op IN ('set', 'delete') AND h.version > last_copy.version)
                       OR (h.op = 'copy' AND h.copy = last_copy.version)
                    QUALIFY row_number() OVER (
                        PARTITION BY h.key, h.key_encoding ORDER BY h.version DESC, h.n DESC) = 1)
                SELECT n.partition, n.key, n.key_encoding,
                       CASE WHEN gone THEN NULL ELSE n.value END, CASE WHEN gone THEN NULL ELSE n.value_encoding END,
                       n.epoch, greatest(n.version, last_flush.version), gone, n.copy, n.ts
                FROM (SELECT *, op = 'delete' OR version < (SELECT version FROM last_flush) AS gone FROM newest) n, last_flush;
             DROP TABLE changed;"
        );
        self.transaction.execute_batch(&sql).map_err(failed)?;
        self.watermark.copying = None;
        self.reached(epoch, version);
        self.known = version;
        Ok(())
    }

    /// What was loaded is of this epoch: unless another epoch of that number is known.
    pub fn is_of_epoch(&mut self, number: u64, id: u64) -> Result<(), String> {
        let sql = "SELECT max(id) FROM turnstone_epochs WHERE partition = ? AND number = ?";
        let known: Option<u64> =
            self.transaction.query_row(sql, params![self.partition, number], |row| row.get(0)).map_err(failed)?;
        match known {
            Some(known) if known == id => Ok(()),
            Some(known) => Err(format!(
                "epoch {number} is {id:016x} there, and {known:016x} in what is loaded: it is of another history, of a server \
                 that began anew; load the files into a new database"
            )),
            None => {
                let sql = "INSERT INTO turnstone_epochs VALUES (?, ?, ?)";
                self.transaction.execute(sql, params![self.partition, number, id]).map_err(failed)?;
                Ok(())
            }
        }
    }

    /// A change file was loaded.
    pub fn file(&mut self, name: &str, number: u64, bytes: u64, lines: u64) -> Result<(), String> {
        self.watermark.file_number = number;
        // DuckDB's own now() is of the host's zone, once it is a plain timestamp; every time here is of UTC.
        let now_us = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as i64);
        self.transaction
            .execute(
                "INSERT INTO turnstone_files VALUES (?, ?, ?, ?, ?, make_timestamp(?))",
                params![self.partition, number, name, bytes, lines, now_us],
            )
            .map_err(failed)?;
        Ok(())
    }

    /// A stream from the server is so far.
    pub fn cursor(&mut self, text: &str) -> Result<(), String> {
        self.transaction
            .execute("DELETE FROM turnstone_cursor WHERE partition = ?", params![self.partition])
            .map_err(failed)?;
        self.transaction
            .execute("INSERT INTO turnstone_cursor VALUES (?, ?)", params![self.partition, text])
            .map_err(failed)?;
        Ok(())
    }

    /// Makes all of it, and the watermark, durable and seen.
    pub fn commit(mut self) -> Result<(), String> {
        self.settle()?;
        let Watermark { epoch, version, copying, skips_copy, file_number } = self.watermark;
        self.transaction
            .execute("DELETE FROM turnstone_watermark WHERE partition = ?", params![self.partition])
            .map_err(failed)?;
        self.transaction
            .execute(
                "INSERT INTO turnstone_watermark VALUES (?, ?, ?, ?, ?, ?)",
                params![self.partition, epoch, version, copying, skips_copy, file_number],
            )
            .map_err(failed)?;
        self.transaction.commit().map_err(failed)
    }
}
