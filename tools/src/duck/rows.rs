//! Rows on their way into DuckDB, as Arrow columns.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use duckdb::arrow::array::{ArrayRef, BooleanArray, RecordBatch, StringBuilder, TimestampMicrosecondArray};
use duckdb::arrow::array::{UInt8Array, UInt32Array, UInt64Array};
use duckdb::arrow::datatypes::{Field, Schema};
use std::borrow::Borrow;
use std::collections::HashMap;
use std::sync::Arc;
use turnstone_cdc::line::is_json;
use turnstone_cdc::reader::Written;

/// Rows that are handed over at once, and about how many bytes: a column of texts holds less than 2 GiB.
const BATCH: usize = 8192;
const BATCH_BYTES: usize = 512 << 20;

/// A change of a key, or a row of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Row {
    /// The epoch's number.
    pub epoch: u64,
    /// The version that wrote it.
    pub version: u64,
    /// Its place in the transaction, and how many changes that has; nothing in a copy.
    pub at: Option<(u32, u32)>,
    /// The key, and whether it is text.
    pub key: (String, bool),
    /// Nothing for a delete.
    pub value: Option<(String, Written)>,
    /// Milliseconds since 1970; not known in a copy.
    pub ts: Option<u64>,
}

/// A key as a column has it: text, or base64 of what is none.
pub fn key_text(key: &[u8]) -> (String, bool) {
    match std::str::from_utf8(key) {
        Ok(text) => (text.to_owned(), true),
        Err(_) => (STANDARD.encode(key), false),
    }
}

/// A value as a column has it. What is JSON is said to be, whether the consumer was to look at that or not: by the rules that the
/// consumer goes by, which are stricter than DuckDB's.
pub fn value_text(value: &[u8], written: Written) -> (String, Written) {
    match (written, std::str::from_utf8(value)) {
        (Written::Text, Ok(text)) if is_json(text) => (text.to_owned(), Written::Json),
        (Written::Text | Written::Json, Ok(text)) => (text.to_owned(), written),
        _ => (STANDARD.encode(value), Written::Base64),
    }
}

fn encoding_name(written: Written) -> &'static str {
    match written {
        Written::Text => "text",
        Written::Json => "json",
        Written::Base64 => "base64",
    }
}

impl Row {
    fn op(&self) -> &'static str {
        match (self.at, &self.value) {
            (None, _) => "copy",
            (Some(_), Some(_)) => "set",
            (Some(_), None) => "delete",
        }
    }

    /// What it takes in memory, about.
    pub fn bytes(&self) -> usize {
        size_of::<Row>() + self.key.0.len() + self.value.as_ref().map_or(0, |value| value.0.len())
    }

    fn key_encoding(&self) -> &'static str {
        if self.key.1 { "text" } else { "base64" }
    }
}

/// The last row of each key, in the order of the rows.
pub fn newest(rows: &[Row]) -> Vec<&Row> {
    let mut last: HashMap<&(String, bool), usize> = HashMap::with_capacity(rows.len());
    for (i, row) in rows.iter().enumerate() {
        last.insert(&row.key, i);
    }
    let mut places: Vec<usize> = last.into_values().collect();
    places.sort_unstable();
    places.into_iter().map(|i| &rows[i]).collect()
}

/// Rows in pieces that are handed over at once.
fn pieces<R: Borrow<Row>>(mut rows: &[R]) -> impl Iterator<Item = &[R]> {
    std::iter::from_fn(move || {
        let mut bytes = 0;
        let within = rows.iter().take(BATCH).take_while(|row| {
            let fits = bytes <= BATCH_BYTES;
            bytes += (*row).borrow().bytes();
            fits
        });
        let (piece, rest) = rows.split_at(within.count());
        rows = rest;
        (!piece.is_empty()).then_some(piece)
    })
}

fn texts<'a>(texts: impl Iterator<Item = Option<&'a str>>) -> ArrayRef {
    let mut builder = StringBuilder::new();
    texts.for_each(|text| builder.append_option(text));
    Arc::new(builder.finish())
}

/// Named columns of one length.
struct Columns(Vec<(&'static str, ArrayRef)>);

impl Columns {
    fn batch(self) -> RecordBatch {
        let field = |(name, array): &(&'static str, ArrayRef)| Field::new(*name, array.data_type().clone(), true);
        let schema = Schema::new(self.0.iter().map(field).collect::<Vec<_>>());
        let arrays = self.0.into_iter().map(|(_, array)| array).collect();
        RecordBatch::try_new(Arc::new(schema), arrays).expect("the columns were made from the same rows")
    }
}

fn micros(row: &Row) -> Option<i64> {
    row.ts.map(|ms| i64::try_from(ms.saturating_mul(1000)).unwrap_or(i64::MAX))
}

/// Batches for `turnstone_history`; `copy` is the version of the copy that the rows are of.
pub fn history(partition: u8, copy: Option<u64>, rows: &[Row]) -> impl Iterator<Item = RecordBatch> + '_ {
    pieces(rows).map(move |rows| {
        let count = rows.len();
        Columns(vec![
            ("partition", Arc::new(UInt8Array::from(vec![partition; count]))),
            ("epoch", Arc::new(rows.iter().map(|r| Some(r.epoch)).collect::<UInt64Array>())),
            ("version", Arc::new(rows.iter().map(|r| Some(r.version)).collect::<UInt64Array>())),
            ("n", Arc::new(rows.iter().map(|r| r.at.map(|at| at.0)).collect::<UInt32Array>())),
            ("of", Arc::new(rows.iter().map(|r| r.at.map(|at| at.1)).collect::<UInt32Array>())),
            ("op", texts(rows.iter().map(|r| Some(r.op())))),
            ("key", texts(rows.iter().map(|r| Some(r.key.0.as_str())))),
            ("key_encoding", texts(rows.iter().map(|r| Some(r.key_encoding())))),
            ("value", texts(rows.iter().map(|r| r.value.as_ref().map(|v| v.0.as_str())))),
            ("value_encoding", texts(rows.iter().map(|r| r.value.as_ref().map(|v| encoding_name(v.1))))),
            ("ts", Arc::new(rows.iter().map(micros).collect::<TimestampMicrosecondArray>())),
            ("copy", Arc::new(UInt64Array::from(vec![copy; count]))),
        ])
        .batch()
    })
}

/// Batches of the rows' keys alone.
pub fn keys<'a>(partition: u8, rows: &'a [&'a Row]) -> impl Iterator<Item = RecordBatch> + 'a {
    pieces(rows).map(move |rows| {
        Columns(vec![
            ("partition", Arc::new(UInt8Array::from(vec![partition; rows.len()]))),
            ("key", texts(rows.iter().map(|r| Some(r.key.0.as_str())))),
            ("key_encoding", texts(rows.iter().map(|r| Some(r.key_encoding())))),
        ])
        .batch()
    })
}

/// Batches for `turnstone_state`; `copy` as above.
pub fn states<'a>(partition: u8, copy: Option<u64>, rows: &'a [&'a Row]) -> impl Iterator<Item = RecordBatch> + 'a {
    pieces(rows).map(move |rows| {
        let count = rows.len();
        Columns(vec![
            ("partition", Arc::new(UInt8Array::from(vec![partition; count]))),
            ("key", texts(rows.iter().map(|r| Some(r.key.0.as_str())))),
            ("key_encoding", texts(rows.iter().map(|r| Some(r.key_encoding())))),
            ("value", texts(rows.iter().map(|r| r.value.as_ref().map(|v| v.0.as_str())))),
            ("value_encoding", texts(rows.iter().map(|r| r.value.as_ref().map(|v| encoding_name(v.1))))),
            ("epoch", Arc::new(rows.iter().map(|r| Some(r.epoch)).collect::<UInt64Array>())),
            ("version", Arc::new(rows.iter().map(|r| Some(r.version)).collect::<UInt64Array>())),
            ("deleted", Arc::new(rows.iter().map(|r| Some(r.value.is_none())).collect::<BooleanArray>())),
            ("copy", Arc::new(UInt64Array::from(vec![copy; count]))),
            ("ts", Arc::new(rows.iter().map(|r| micros(r)).collect::<TimestampMicrosecondArray>())),
        ])
        .batch()
    })
}
