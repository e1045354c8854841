//! The engine's index for real: fjall behind the index threads.
//!
//! A damaged directory can make fjall panic, and a panic ends the process: a marker file beside the directory says that an
//! opening is under way. If it is still there at the next start, the directory is treated as damaged and rebuilt.

use crate::index_threads::IndexLanes;
use crate::remote::{Desk, send};
use crate::tasks;
use std::cell::RefCell;
use std::fs;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};
use turnstone_engine::index::fjall::{FjallIndex, Snapshot, is_refusal};
use turnstone_engine::index::{Found, Index, IndexError, Page};
use turnstone_engine::manifest::Mark;

/// Chunks of an ingestion that may wait for the index thread.
const CHUNKS: usize = 4;

enum Piece {
    Chunk(Vec<u8>),
    End,
}

struct Ingestion {
    pieces: flume::Sender<Piece>,
    answer: std::pin::Pin<Box<dyn Future<Output = Result<(), IndexError>>>>,
}

/// What an index may take.
#[derive(Clone, Copy, Debug)]
pub struct IndexLimits {
    /// Its block cache, bytes.
    pub cache_bytes: u64,
    /// Files that it keeps open.
    pub files: usize,
}

/// One partition's index. Cloning gives another handle.
#[derive(Clone)]
pub struct IndexLane(Rc<State>);

struct State {
    directory: PathBuf,
    limits: IndexLimits,
    lanes: IndexLanes,
    desk: Desk,
    open: RefCell<Option<Arc<FjallIndex>>>,
    ingestion: RefCell<Option<Ingestion>>,
}

impl IndexLane {
    /// An index below `directory`.
    pub fn new(directory: PathBuf, limits: IndexLimits, lanes: IndexLanes, desk: Desk) -> IndexLane {
        IndexLane(Rc::new(State {
            directory,
            limits,
            lanes,
            desk,
            open: RefCell::default(),
            ingestion: RefCell::default(),
        }))
    }

    fn path(&self, number: u32) -> PathBuf {
        self.0.directory.join(format!("index-{number:08x}"))
    }

    fn current(&self) -> Result<Arc<FjallIndex>, IndexError> {
        self.0.open.borrow().clone().ok_or_else(|| IndexError::Failed("the index is not open".to_string()))
    }
}

/// Drops an index on the thread that may block, when the last reader is done with it.
fn close_now(index: Arc<FjallIndex>) {
    let started = Instant::now();
    while Arc::strong_count(&index) > 1 && started.elapsed() < Duration::from_secs(10) {
        std::thread::sleep(Duration::from_micros(100));
    }
    drop(index);
}

fn failed(what: &'static str) -> impl Fn(std::io::Error) -> IndexError {
    move |error| {
        let text = format!("{what}: {error}");
        if is_refusal(&error) { IndexError::Refused(text) } else { IndexError::Failed(text) }
    }
}

fn open_now(path: PathBuf, create: bool, limits: IndexLimits) -> Result<(Arc<FjallIndex>, Option<Mark>), IndexError> {
    let marker = path.with_extension("opening");
    if create {
        if path.exists() {
            fs::remove_dir_all(&path).map_err(failed("remove"))?;
        }
    } else {
        if !path.is_dir() {
            return Err(IndexError::Failed("its directory is missing".to_string()));
        }
        if marker.exists() {
            return Err(IndexError::Failed("an earlier attempt to open it did not come to an end".to_string()));
        }
    }
    match fs::write(&marker, b"") {
        // A full disk keeps nobody from reading.
        Err(error) if !is_refusal(&error) => return Err(failed("mark")(error)),
        _ => {}
    }
    let opened = FjallIndex::open(&path, limits.cache_bytes, limits.files).and_then(|index| Ok((index.mark()?, index)));
    match fs::remove_file(&marker) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(failed("unmark")(error)),
        _ => {}
    }
    opened.map(|(mark, index)| (Arc::new(index), mark))
}

/// What an index had at one time. It does not keep the index open.
pub struct View {
    of: Weak<FjallIndex>,
    snapshot: Arc<Snapshot>,
}

impl Index for IndexLane {
    type View = View;

    async fn open(&self, number: u32, create: bool) -> Result<Option<Mark>, IndexError> {
        self.close().await;
        let (path, limits) = (self.path(number), self.0.limits);
        let (index, mark) = self.0.desk.ask(&self.0.lanes.bulk, move || open_now(path, create, limits)).await?;
        *self.0.open.borrow_mut() = Some(index);
        Ok(mark)
    }

    async fn get_many(&self, keys: Vec<Vec<u8>>) -> Result<Vec<Found>, IndexError> {
        let index = self.current()?;
        self.0.desk.ask(&self.0.lanes.reads, move || index.get_many(&keys)).await
    }

    async fn view(&self) -> Result<View, IndexError> {
        let index = self.current()?;
        Ok(View { of: Arc::downgrade(&index), snapshot: Arc::new(index.view()) })
    }

    async fn scan(&self, view: &View, after: Option<Vec<u8>>, limit: usize) -> Result<Option<Page>, IndexError> {
        let index = self.current()?;
        if !Weak::ptr_eq(&view.of, &Arc::downgrade(&index)) {
            return Ok(None);
        }
        let snapshot = view.snapshot.clone();
        let scan = move || index.scan(&snapshot, after.as_deref(), limit).map(Some);
        self.0.desk.ask(&self.0.lanes.bulk, scan).await
    }

    fn compactions(&self) -> u64 {
        self.0.open.borrow().as_ref().map_or(0, |index| index.compactions())
    }

    async fn ingest_begin(&self, mark: Mark) -> Result<(), IndexError> {
        let index = self.current()?;
        let (pieces, incoming) = flume::bounded(CHUNKS);
        let (desk, lane) = (self.0.desk.clone(), self.0.lanes.bulk.clone());
        let work = move || {
            index.ingest(mark, || match incoming.recv() {
                Ok(Piece::Chunk(chunk)) => Ok(Some(chunk)),
                Ok(Piece::End) => Ok(None),
                Err(_) => Err(IndexError::Failed("the ingestion was given up".to_string())),
            })
        };
        // Started at once, so that chunks find somebody who takes them.
        let task = tasks::spawn(async move { desk.ask(&lane, work).await }).detach();
        let answer = Box::pin(async move {
            task.await.unwrap_or_else(|| Err(IndexError::Failed("the ingestion's task is gone".to_string())))
        });
        *self.0.ingestion.borrow_mut() = Some(Ingestion { pieces, answer });
        Ok(())
    }

    async fn ingest_chunk(&self, chunk: Vec<u8>) -> Result<(), IndexError> {
        let pieces = self.0.ingestion.borrow().as_ref().map(|i| i.pieces.clone());
        let Some(pieces) = pieces else { return Err(IndexError::Failed("no ingestion was begun".to_string())) };
        // If the thread gave up, its answer says why at the end.
        send(&pieces, Piece::Chunk(chunk)).await;
        Ok(())
    }

    async fn ingest_finish(&self) -> Result<(), IndexError> {
        let Some(ingestion) = self.0.ingestion.borrow_mut().take() else {
            return Err(IndexError::Failed("no ingestion was begun".to_string()));
        };
        send(&ingestion.pieces, Piece::End).await;
        drop(ingestion.pieces);
        ingestion.answer.await
    }

    async fn close(&self) {
        *self.0.ingestion.borrow_mut() = None;
        let open = self.0.open.borrow_mut().take();
        if let Some(index) = open {
            self.0.desk.ask(&self.0.lanes.bulk, move || close_now(index)).await;
        }
    }

    async fn remove(&self, number: u32) -> Result<(), IndexError> {
        let path = self.path(number);
        let removed = self.0.desk.ask(&self.0.lanes.bulk, move || {
            let _ = fs::remove_file(path.with_extension("opening"));
            match fs::remove_dir_all(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(failed("remove")(e)),
                _ => Ok(()),
            }
        });
        removed.await
    }

    async fn list(&self) -> Result<Vec<u32>, IndexError> {
        let directory = self.0.directory.clone();
        let listed = self.0.desk.ask(&self.0.lanes.bulk, move || {
            let mut numbers = Vec::new();
            for entry in fs::read_dir(directory)? {
                let name = entry?.file_name().to_string_lossy().into_owned();
                numbers.extend(turnstone_engine::names::number(&name, "index"));
            }
            Ok::<_, std::io::Error>(numbers)
        });
        listed.await.map_err(failed("list"))
    }
}
