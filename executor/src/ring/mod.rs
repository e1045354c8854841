//! One io_uring of our own per core, for sockets, log writes and point reads (D5), driven by one glommio task.
//!
//! glommio 0.9 brings a liburing of 2021 and pays a reactor turn per wake-up. Here a turn takes what is complete, hands it
//! to the core's handler by plain calls, and submits everything that came of it at once. Between turns the task yields, so
//! that the partitions' tasks run; only a flush is submitted by the task that asks for it. When nobody has anything to do it
//! waits in the kernel on its own ring for up to a millisecond, and then sleeps in glommio until the ring's eventfd rings: a
//! request that comes soon, or a write's end, costs one system call instead of the dozen that glommio needs to notice an
//! eventfd, and glommio's own timers are at most that millisecond late.
//!
//! **Safety.** The kernel writes to and reads from memory that an operation names until its completion is seen. That
//! memory is owned by [`Operation`]s in a table (aligned buffers, send buffers) or by the ring itself (the pool of receive
//! buffers), never by the caller: whoever waits may go away, the operation stays. The table and the pool are leaked rather
//! than freed if the ring is dropped with operations in flight.

pub mod sys;

use crate::{pace, tasks};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::pin::Pin;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::{Duration, Instant};
use sys::Bell;
use turnstone_engine::buffer::AlignedBuf;

/// Receive buffers per core.
const BUFFERS: usize = 256;
/// Bytes of each; a TLS record fits.
const BUFFER_BYTES: usize = 17 << 10;
/// A send is handed to the kernel in pieces of this many bytes, so that progress can be seen.
const SEND_PIECE: usize = 256 << 10;
/// How long a core sleeps that has no descriptor to be woken by.
const WITHOUT_BELL: std::time::Duration = std::time::Duration::from_millis(1);
/// How long an idle core waits on its own ring before it lets glommio wait for everybody.
const WAIT: types::Timespec = types::Timespec::new().nsec(1_000_000);
/// A turn ends after this many completions, or this time.
const TURN_COMPLETIONS: usize = 256;
const TURN_TIME: Duration = Duration::from_micros(200);
/// Completions that are taken at once.
const PIECE: usize = 8;

/// A socket of this core.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct SocketId(pub u64);

/// Why no more bytes come from a socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// The peer closed its side.
    Closed,
    /// An error of the system's.
    Failed(i32),
    /// It was asked to stop.
    Stopped,
}

/// What a core does with what its ring brings. Calls come from the driving task, one at a time, and must not wait.
pub trait Handler: 'static {
    /// A connection came in.
    fn accepted(&self, socket: OwnedFd);
    /// Accepting failed (no descriptors left, for one).
    fn accept_failed(&self, errno: i32);
    /// Bytes arrived.
    fn received(&self, socket: SocketId, bytes: &[u8]);
    /// No more bytes come until receiving is started again.
    fn receive_ended(&self, socket: SocketId, why: Ended);
    /// A part of a send that goes on has left.
    fn progressed(&self, socket: SocketId);
    /// A send is complete, or failed.
    fn sent(&self, socket: SocketId, result: Result<usize, i32>);
    /// What was asked for so far is about to be submitted: what tasks have left to be sent joins it.
    fn submitting(&self) {}
    /// Everything of this turn was handed over; also called when the core is woken for other reasons.
    /// Answers whether it has more to do at once.
    fn turn(&self) -> bool;
}

enum Operation {
    /// Somebody waits for the result; the buffer is theirs afterwards.
    File {
        /// Open for as long as the kernel may yet be given the entry, and its number is nobody else's.
        _file: Rc<OwnedFd>,
        buffer: Option<AlignedBuf>,
        result: Option<i32>,
        waker: Option<Waker>,
        abandoned: bool,
    },
    Accept,
    Receive(SocketId),
    Send {
        socket: SocketId,
        bytes: Vec<u8>,
        done: usize,
    },
    /// Nobody cares.
    Silent,
}

struct Socket {
    fd: OwnedFd,
    receiving: Option<u64>,
    wanted: bool,
}

/// Each buffer is an allocation of its own: the kernel may be writing to the others while one is read.
struct Pool {
    buffers: Vec<Box<[u8]>>,
}

impl Pool {
    /// Gives a buffer to the kernel to fill. This process reads it only after the completion that names it.
    fn provide(&mut self, buffer: u16) -> squeue::Entry {
        let start = self.buffers[usize::from(buffer)].as_mut_ptr();
        opcode::ProvideBuffers::new(start, BUFFER_BYTES as i32, 1, 0, buffer).build().user_data(PROVIDE)
    }
}

struct State {
    io: RefCell<IoUring<squeue::Entry, cqueue::Entry>>,
    todo: RefCell<VecDeque<squeue::Entry>>,
    operations: RefCell<Table<Operation>>,
    sockets: RefCell<Table<Socket>>,
    pool: RefCell<Pool>,
    /// Rung by other threads; the ring polls it.
    bell: Bell,
    /// Rung by the kernel when there is something to complete.
    signal: Bell,
    driver: RefCell<Option<Waker>>,
    poked: Cell<bool>,
    stopping: Cell<bool>,
    /// The accept in flight, and the descriptor that it listens on.
    accepting: Cell<Option<(u64, i32)>>,
    /// Closed once no entry that names them waits to be submitted: the number could be another socket's by then.
    closing: RefCell<Vec<OwnedFd>>,
    /// Counts for `stat`: turns taken, completions seen.
    turns: Cell<u64>,
    completions: Cell<u64>,
}

/// Entries by number; numbers are used again only after 2^32 others, so a late completion never meets a new entry.
struct Table<T> {
    slots: Vec<(u32, Option<T>)>,
    free: Vec<u32>,
}

impl<T> Table<T> {
    fn new() -> Table<T> {
        Table { slots: Vec::new(), free: Vec::new() }
    }
    fn insert(&mut self, value: T) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push((0, None));
            (self.slots.len() - 1) as u32
        });
        let slot = &mut self.slots[index as usize];
        slot.0 = slot.0.wrapping_add(1);
        slot.1 = Some(value);
        (u64::from(slot.0) << 32) | u64::from(index)
    }
    fn get_mut(&mut self, id: u64) -> Option<&mut T> {
        let slot = self.slots.get_mut(id as u32 as usize)?;
        if slot.0 == (id >> 32) as u32 { slot.1.as_mut() } else { None }
    }
    fn remove(&mut self, id: u64) -> Option<T> {
        let index = id as u32;
        let slot = self.slots.get_mut(index as usize)?;
        if slot.0 != (id >> 32) as u32 {
            return None;
        }
        let value = slot.1.take()?;
        self.free.push(index);
        Some(value)
    }
    fn len(&self) -> usize {
        self.slots.len() - self.free.len()
    }
}

/// A handle on the core's ring.
#[derive(Clone)]
pub struct Ring(Rc<State>);

/// Tags below these are operations: receive buffers that are provided, and the bell.
const PROVIDE: u64 = u64::MAX;
const BELL: u64 = u64::MAX - 1;

impl Ring {
    /// Creates the ring on the thread that will use it.
    pub fn new(bell: Bell) -> io::Result<Ring> {
        let io: IoUring<squeue::Entry, cqueue::Entry> = IoUring::builder()
            .setup_single_issuer()
            .setup_defer_taskrun()
            .setup_taskrun_flag()
            .setup_cqsize(8192)
            .build(1024)?;
        // Not the bell itself: the ring polls that, and a completion that rings it would bring the next one.
        let signal = Bell::new()?;
        io.submitter().register_eventfd(signal.descriptor())?;
        let mut pool = Pool { buffers: (0..BUFFERS).map(|_| vec![0; BUFFER_BYTES].into()).collect() };
        let provided = (0..BUFFERS as u16).map(|buffer| pool.provide(buffer));
        let todo = provided.chain([listen_to(&bell)]).collect();
        Ok(Ring(Rc::new(State {
            io: RefCell::new(io),
            todo: RefCell::new(todo),
            operations: RefCell::new(Table::new()),
            sockets: RefCell::new(Table::new()),
            pool: RefCell::new(pool),
            bell,
            signal,
            driver: RefCell::new(None),
            poked: Cell::new(false),
            stopping: Cell::new(false),
            accepting: Cell::new(None),
            closing: RefCell::default(),
            turns: Cell::new(0),
            completions: Cell::new(0),
        })))
    }

    /// Wakes the driving task.
    pub fn poke(&self) {
        self.0.poked.set(true);
        if let Some(waker) = self.0.driver.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Turns taken and completions seen so far.
    pub fn counts(&self) -> (u64, u64) {
        (self.0.turns.get(), self.0.completions.get())
    }

    /// Lets the driving task end after this turn.
    pub fn stop(&self) {
        self.0.stopping.set(true);
        self.poke();
    }

    fn push(&self, entry: squeue::Entry) {
        self.0.todo.borrow_mut().push_back(entry);
        self.poke();
    }

    /// Begins a file operation; if the caller goes away, the operation, its file and its buffer stay until it is complete.
    fn file_operation(
        &self,
        file: &Rc<OwnedFd>,
        buffer: Option<AlignedBuf>,
        entry: impl FnOnce(types::Fd, Option<&mut AlignedBuf>) -> squeue::Entry,
    ) -> Waiting {
        let id = {
            let operation =
                Operation::File { _file: file.clone(), buffer, result: None, waker: None, abandoned: false };
            self.0.operations.borrow_mut().insert(operation)
        };
        let entry = {
            let mut operations = self.0.operations.borrow_mut();
            let Some(Operation::File { buffer, .. }) = operations.get_mut(id) else { unreachable!("just inserted") };
            // The buffer's bytes are on the heap, so they stay where they are when the table moves its entries.
            entry(types::Fd(file.as_raw_fd()), buffer.as_mut())
        };
        self.push(entry.user_data(id));
        Waiting { ring: self.clone(), id, done: false }
    }

    /// Reads whole blocks; answers how many bytes came.
    pub async fn read(&self, fd: &Rc<OwnedFd>, offset: u64, buffer: AlignedBuf) -> io::Result<(AlignedBuf, usize)> {
        let (result, buffer) = self
            .file_operation(fd, Some(buffer), |raw, buffer| {
                let bytes: &mut [u8] = buffer.expect("given");
                opcode::Read::new(raw, bytes.as_mut_ptr(), bytes.len() as u32).offset(offset).build()
            })
            .await;
        match (result, buffer) {
            (n, Some(buffer)) if n >= 0 => Ok((buffer, n as usize)),
            (errno, _) => Err(io::Error::from_raw_os_error(-errno)),
        }
    }

    /// Writes whole blocks, all of them or an error; with `durable`, flushed when it returns.
    pub async fn write(&self, fd: &Rc<OwnedFd>, offset: u64, buffer: AlignedBuf, durable: bool) -> io::Result<()> {
        let (mut buffer, mut done) = (buffer, 0);
        loop {
            let total = buffer.len();
            let (result, back) = self
                .file_operation(fd, Some(buffer), |raw, buffer| {
                    // Shared: zeros that are only written lie in memory that others write, too.
                    let bytes: &[u8] = buffer.expect("given");
                    let rest = &bytes[done..];
                    opcode::Write::new(raw, rest.as_ptr(), rest.len() as u32)
                        .offset(offset + done as u64)
                        .rw_flags(if durable { libc::RWF_DSYNC } else { 0 })
                        .build()
                })
                .await;
            match (result, back) {
                (0, _) => return Err(io::Error::from(io::ErrorKind::WriteZero)),
                (n, Some(back)) if n > 0 => {
                    done += n as usize;
                    if done >= total {
                        return Ok(());
                    }
                    // A short write ends inside a block only where the device is at its end; go on from the block.
                    done = done / turnstone_engine::disk::BLOCK * turnstone_engine::disk::BLOCK;
                    buffer = back;
                }
                (errno, _) => return Err(io::Error::from_raw_os_error(-errno)),
            }
        }
    }

    /// Flushes a file's data. A worker of the kernel's does that, on this CPU: it is submitted at once, with what waits already
    /// and before what tasks and the next turn bring, and the core yields to it once, or it would wait until the core has
    /// nothing left.
    pub async fn sync_data(&self, fd: &Rc<OwnedFd>) -> io::Result<()> {
        let flushed =
            self.file_operation(fd, None, |raw, _| opcode::Fsync::new(raw).flags(types::FsyncFlags::DATASYNC).build());
        self.submit(false)?;
        std::thread::yield_now();
        let (result, _) = flushed.await;
        if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
    }

    /// Assures space up to `length`.
    pub async fn allocate(&self, fd: &Rc<OwnedFd>, length: u64) -> io::Result<()> {
        let (result, _) = self.file_operation(fd, None, |raw, _| opcode::Fallocate::new(raw, length).build()).await;
        if result < 0 { Err(io::Error::from_raw_os_error(-result)) } else { Ok(()) }
    }

    /// Starts accepting, one connection a turn; the listener stays with the caller. A multishot accept would take all that
    /// wait at once, and with them every descriptor, before anybody could say no.
    pub fn accept(&self, listener: i32) {
        let id = self.0.operations.borrow_mut().insert(Operation::Accept);
        self.0.accepting.set(Some((id, listener)));
        let nobody = (std::ptr::null_mut(), std::ptr::null_mut());
        let entry = opcode::Accept::new(types::Fd(listener), nobody.0, nobody.1).flags(libc::SOCK_CLOEXEC).build();
        self.push(entry.user_data(id));
    }

    /// Stops accepting.
    pub fn stop_accepting(&self) {
        if let Some((id, _)) = self.0.accepting.take() {
            self.cancel(id);
        }
    }

    fn cancel(&self, id: u64) {
        let silent = self.0.operations.borrow_mut().insert(Operation::Silent);
        self.push(opcode::AsyncCancel::new(id).build().user_data(silent));
    }

    /// Takes over a socket and starts receiving.
    pub fn adopt(&self, fd: OwnedFd) -> SocketId {
        sys::set_no_delay(fd.as_raw_fd());
        let socket = Socket { fd, receiving: None, wanted: false };
        let id = SocketId(self.0.sockets.borrow_mut().insert(socket));
        self.receive(id);
        id
    }

    /// Starts receiving again after it ended.
    pub fn receive(&self, id: SocketId) {
        let entry = {
            let mut sockets = self.0.sockets.borrow_mut();
            let Some(socket) = sockets.get_mut(id.0) else { return };
            socket.wanted = true;
            if socket.receiving.is_some() {
                return;
            }
            let operation = self.0.operations.borrow_mut().insert(Operation::Receive(id));
            socket.receiving = Some(operation);
            opcode::RecvMulti::new(types::Fd(socket.fd.as_raw_fd()), 0).build().user_data(operation)
        };
        self.push(entry);
    }

    /// Asks to stop receiving; [`Handler::receive_ended`] says when it has, and bytes may arrive until then.
    pub fn stop_receiving(&self, id: SocketId) {
        let receiving = {
            let mut sockets = self.0.sockets.borrow_mut();
            let Some(socket) = sockets.get_mut(id.0) else { return };
            socket.wanted = false;
            socket.receiving
        };
        if let Some(operation) = receiving {
            self.cancel(operation);
        }
    }

    /// Whether a receive is in flight.
    pub fn is_receiving(&self, id: SocketId) -> bool {
        self.0.sockets.borrow_mut().get_mut(id.0).is_some_and(|s| s.receiving.is_some())
    }

    /// Sends bytes; one send per socket at a time, answered by [`Handler::sent`].
    pub fn send(&self, socket: SocketId, bytes: Vec<u8>) {
        self.send_from(socket, bytes, 0);
    }

    fn send_from(&self, socket: SocketId, bytes: Vec<u8>, done: usize) {
        let Some(fd) = self.0.sockets.borrow_mut().get_mut(socket.0).map(|s| s.fd.as_raw_fd()) else { return };
        // The vector's bytes are on the heap: they stay in place while the table owns the vector.
        let (pointer, length) = (bytes[done..].as_ptr(), (bytes.len() - done).min(SEND_PIECE) as u32);
        let id = self.0.operations.borrow_mut().insert(Operation::Send { socket, bytes, done });
        let flags = libc::MSG_WAITALL | libc::MSG_NOSIGNAL;
        self.push(opcode::Send::new(types::Fd(fd), pointer, length).flags(flags).build().user_data(id));
    }

    /// Ends a connection: what is in flight ends with an error, and the descriptor is closed behind it.
    pub fn close(&self, id: SocketId) {
        let socket = self.0.sockets.borrow_mut().remove(id.0);
        let Some(socket) = socket else { return };
        sys::shut_down(socket.fd.as_raw_fd());
        // Operations in flight hold the open file in the kernel; those that wait to be submitted hold its number only.
        if let Some(operation) = socket.receiving {
            self.cancel(operation);
        }
        self.0.closing.borrow_mut().push(socket.fd);
    }

    /// Gives a socket away; nothing may be in flight.
    pub fn release(&self, id: SocketId) -> Option<OwnedFd> {
        self.0.sockets.borrow_mut().remove(id.0).map(|s| s.fd)
    }

    /// Who is at the other end.
    pub fn peer(&self, id: SocketId) -> Option<std::net::SocketAddr> {
        let copy = self.0.sockets.borrow_mut().get_mut(id.0)?.fd.try_clone().ok()?;
        std::net::TcpStream::from(copy).peer_addr().ok()
    }

    /// How many sockets there are.
    pub fn sockets(&self) -> usize {
        self.0.sockets.borrow().len()
    }

    /// Hands over what waits to be submitted. The kernel is entered without anything to submit if it has results to run; it
    /// marks that only up to a point, so whoever is about to sleep enters in any case.
    fn submit(&self, in_any_case: bool) -> io::Result<()> {
        let mut io = self.0.io.borrow_mut();
        loop {
            let mut todo = self.0.todo.borrow_mut();
            while let Some(entry) = todo.front() {
                // SAFETY: every pointer in the entry is to memory that the operations' table or the pool owns until the
                // entry's completion is seen (see the module's header); descriptors are closed at worst, never dangling.
                if unsafe { io.submission().push(entry) }.is_err() {
                    break;
                }
                todo.pop_front();
            }
            let more = !todo.is_empty();
            drop(todo);
            let pending = {
                let mut queue = io.submission();
                queue.sync();
                if !in_any_case && queue.is_empty() && !queue.taskrun() && !queue.cq_overflow() {
                    self.0.closing.borrow_mut().clear();
                    return Ok(());
                }
                queue.len() as u32
            };
            const GETEVENTS: u32 = 1;
            // SAFETY: no signal mask is given; the ring is entered by the thread that created it.
            match unsafe { io.submitter().enter::<libc::sigset_t>(pending, 0, GETEVENTS, None) } {
                Ok(_) => {}
                Err(e) if matches!(e.raw_os_error(), Some(libc::EINTR | libc::EAGAIN | libc::EBUSY | libc::ETIME)) => {
                    return Ok(());
                }
                Err(e) => return Err(e),
            }
            if !more {
                self.0.closing.borrow_mut().clear();
                return Ok(());
            }
        }
    }

    /// Waits for a completion on the ring alone; answers whether there is one, or something else to look at.
    fn wait(&self) -> io::Result<bool> {
        let io = self.0.io.borrow_mut();
        match io.submitter().submit_with_args(1, &types::SubmitArgs::new().timespec(&WAIT)) {
            Ok(_) => Ok(true),
            Err(e) => match e.raw_os_error() {
                Some(libc::ETIME) => Ok(false),
                Some(libc::EINTR | libc::EAGAIN | libc::EBUSY) => Ok(true),
                _ => Err(e),
            },
        }
    }

    /// Takes a few completions; answers how many.
    fn take(&self, done: &mut Vec<(u64, i32, u32)>) -> usize {
        let mut io = self.0.io.borrow_mut();
        let mut queue = io.completion();
        queue.sync();
        for entry in queue.by_ref().take(PIECE) {
            done.push((entry.user_data(), entry.result(), entry.flags()));
        }
        done.len()
    }

    fn complete(&self, id: u64, result: i32, flags: u32, handler: &dyn Handler) {
        enum Kind {
            File,
            Accept,
            Receive(SocketId),
            Send,
            Silent,
        }
        let kind = match self.0.operations.borrow_mut().get_mut(id) {
            Some(Operation::File { .. }) => Kind::File,
            Some(Operation::Accept) => Kind::Accept,
            Some(Operation::Receive(socket)) => Kind::Receive(*socket),
            Some(Operation::Send { .. }) => Kind::Send,
            Some(Operation::Silent) | None => Kind::Silent,
        };
        match kind {
            Kind::Silent => {
                self.0.operations.borrow_mut().remove(id);
            }
            Kind::File => self.complete_file(id, result),
            Kind::Accept => {
                if result >= 0 {
                    // SAFETY: the kernel just made this descriptor for us.
                    handler.accepted(unsafe { OwnedFd::from_raw_fd(result) });
                } else if result != -libc::ECANCELED {
                    handler.accept_failed(-result);
                }
                if !cqueue::more(flags) {
                    self.0.operations.borrow_mut().remove(id);
                    if let Some((_, listener)) = self.0.accepting.get().filter(|(accepting, _)| *accepting == id) {
                        self.0.accepting.set(None);
                        if result >= 0 {
                            // The next one.
                            self.accept(listener);
                        }
                    }
                }
            }
            Kind::Receive(socket) => self.complete_receive(id, socket, result, flags, handler),
            Kind::Send => {
                let Some(Operation::Send { socket, bytes, done }) = self.0.operations.borrow_mut().remove(id) else {
                    return;
                };
                if result < 0 {
                    handler.sent(socket, Err(-result));
                } else if done + (result as usize) < bytes.len() && result > 0 {
                    handler.progressed(socket);
                    self.send_from(socket, bytes, done + result as usize);
                } else {
                    handler.sent(socket, Ok(bytes.len()));
                }
            }
        }
    }

    fn complete_file(&self, id: u64, outcome: i32) {
        let mut operations = self.0.operations.borrow_mut();
        let mut gone = false;
        if let Some(Operation::File { result, waker, abandoned, .. }) = operations.get_mut(id) {
            *result = Some(outcome);
            gone = *abandoned;
            if let Some(waker) = waker.take() {
                waker.wake();
            }
        }
        if gone {
            operations.remove(id);
        }
    }

    fn complete_receive(&self, id: u64, socket: SocketId, result: i32, flags: u32, handler: &dyn Handler) {
        if let Some(buffer) = cqueue::buffer_select(flags) {
            if result > 0 {
                // The kernel does not touch this buffer again before it is provided again below.
                let pool = self.0.pool.borrow();
                handler.received(socket, &pool.buffers[usize::from(buffer)][..result as usize]);
            }
            let provide = self.0.pool.borrow_mut().provide(buffer);
            self.0.todo.borrow_mut().push_back(provide);
        }
        if cqueue::more(flags) {
            return;
        }
        self.0.operations.borrow_mut().remove(id);
        let again = {
            let mut sockets = self.0.sockets.borrow_mut();
            let Some(entry) = sockets.get_mut(socket.0) else { return };
            entry.receiving = None;
            // Ended without a reason of its own: the buffers ran out for a moment, the kernel wants a new request, or it
            // was stopped and is wanted again by now.
            entry.wanted && (result > 0 || result == -libc::ENOBUFS || result == -libc::ECANCELED)
        };
        if again {
            return self.receive(socket);
        }
        let why = match result {
            0 => Ended::Closed,
            n if n > 0 || n == -libc::ECANCELED || n == -libc::ENOBUFS => Ended::Stopped,
            n => Ended::Failed(-n),
        };
        handler.receive_ended(socket, why);
    }

    /// Drives the ring until [`Ring::stop`]. An error of the ring itself ends it.
    pub async fn drive(&self, handler: Rc<dyn Handler>) -> io::Result<()> {
        let mut done = Vec::with_capacity(TURN_COMPLETIONS);
        let mut sleepers = [None, None];
        let mut waited = false;
        loop {
            self.0.poked.set(false);
            handler.submitting();
            self.submit(false)?;
            let started = Instant::now();
            let mut n = 0;
            // In pieces: what a completion costs is not known before, a handshake takes as long as a thousand GETs.
            while n < TURN_COMPLETIONS && started.elapsed() < TURN_TIME && self.take(&mut done) > 0 {
                n += done.len();
                for (tag, result, flags) in done.drain(..) {
                    match tag {
                        PROVIDE => {}
                        BELL => self.heard(flags),
                        _ => self.complete(tag, result, flags, &*handler),
                    }
                }
            }
            self.0.turns.set(self.0.turns.get() + 1);
            self.0.completions.set(self.0.completions.get() + n as u64);
            let more = handler.turn();
            if self.0.stopping.get() {
                return Ok(());
            }
            let busy = self.0.poked.get() || !self.0.todo.borrow().is_empty() || tasks::runnable() > 0;
            if n > 0 || more || busy {
                waited = false;
                pace::give_way().await;
                continue;
            }
            if !waited && pace::waiting() == 0 {
                pace::end_stretch();
                waited = !self.wait()?;
                pace::end_stretch();
            } else {
                pace::set_asleep(true);
                let slept = self.sleep(&mut sleepers).await;
                pace::set_asleep(false);
                slept?;
                waited = false;
            }
        }
    }

    /// Another thread rang.
    fn heard(&self, flags: u32) {
        self.0.bell.silence();
        if !cqueue::more(flags) {
            self.0.todo.borrow_mut().push_back(listen_to(&self.0.bell));
        }
    }

    /// Sleeps in glommio until something is complete, somebody rings, or somebody pokes.
    ///
    /// The bell wakes glommio by itself, although the ring polls it, too: a completion that comes of a write to an eventfd
    /// rings the ring's own eventfd by way of a deferred call, which Linux 6.18 makes only once.
    async fn sleep(&self, sleepers: &mut [Option<Sleeper>; 2]) -> io::Result<()> {
        // What rang so far was looked at, or is by the next lines; what rings from here on ends the sleep.
        self.0.signal.silence();
        self.submit(true)?;
        if !self.0.io.borrow_mut().completion().is_empty() {
            return Ok(());
        }
        for (sleeper, bell) in sleepers.iter_mut().zip([&self.0.signal, &self.0.bell]) {
            if sleeper.is_none() {
                let Ok(bell) = bell.duplicate() else {
                    // Descriptors are short. A core must not end for that: it looks again in a moment.
                    glommio::timer::sleep(WITHOUT_BELL).await;
                    pace::passed();
                    return Ok(());
                };
                *sleeper = Some(Box::pin(until_readable(bell)));
            }
        }
        let rung = poll_fn(|cx| {
            if self.0.poked.get() {
                return Poll::Ready(false);
            }
            *self.0.driver.borrow_mut() = Some(cx.waker().clone());
            let mut rung = false;
            for sleeper in sleepers.iter_mut() {
                if sleeper.as_mut().is_some_and(|s| s.as_mut().poll(cx).is_ready()) {
                    *sleeper = None;
                    rung = true;
                }
            }
            if rung { Poll::Ready(true) } else { Poll::Pending }
        })
        .await;
        if rung {
            // The descriptor's readiness came from the reactor.
            pace::passed();
            self.0.bell.silence();
        }
        Ok(())
    }
}

/// Waits in glommio for an eventfd.
type Sleeper = Pin<Box<dyn Future<Output = ()>>>;

/// Polls the bell until told otherwise.
fn listen_to(bell: &Bell) -> squeue::Entry {
    let readable = libc::POLLIN as u32;
    opcode::PollAdd::new(types::Fd(bell.descriptor()), readable).multi(true).build().user_data(BELL)
}

/// glommio arms a poll on any descriptor before it reads; the read that follows fails on an eventfd (it is no socket),
/// which is the wake-up. The poll is one-shot, so each sleep brings a descriptor of its own.
async fn until_readable(signal: OwnedFd) {
    use futures_lite::AsyncReadExt;
    // SAFETY: the descriptor is owned and handed over; glommio closes it with the stream.
    let mut stream = unsafe { glommio::net::TcpStream::from_raw_fd(signal.into_raw_fd()) };
    let _ = stream.read(&mut [0u8; 8]).await;
}

/// A file operation that is waited for.
struct Waiting {
    ring: Ring,
    id: u64,
    done: bool,
}

impl Future for Waiting {
    type Output = (i32, Option<AlignedBuf>);
    fn poll(mut self: Pin<&mut Self>, cx: &mut std::task::Context<'_>) -> Poll<Self::Output> {
        let ring = self.ring.clone();
        let mut operations = ring.0.operations.borrow_mut();
        let finished = match operations.get_mut(self.id) {
            Some(Operation::File { result: Some(result), buffer, .. }) => Some((*result, buffer.take())),
            Some(Operation::File { waker, .. }) => {
                *waker = Some(cx.waker().clone());
                None
            }
            _ => unreachable!("only this future removes its operation"),
        };
        match finished {
            Some(answer) => {
                operations.remove(self.id);
                self.done = true;
                Poll::Ready(answer)
            }
            None => Poll::Pending,
        }
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if self.done {
            return;
        }
        let mut operations = self.ring.0.operations.borrow_mut();
        let complete = match operations.get_mut(self.id) {
            Some(Operation::File { result, abandoned, waker, .. }) => {
                *abandoned = true;
                *waker = None;
                result.is_some()
            }
            _ => false,
        };
        if complete {
            operations.remove(self.id);
        }
    }
}

impl Drop for State {
    fn drop(&mut self) {
        if self.operations.borrow().len() > 0 {
            // The kernel may still use their memory, and the pool's.
            std::mem::forget(std::mem::replace(&mut *self.operations.borrow_mut(), Table::new()));
            std::mem::forget(std::mem::take(&mut self.pool.borrow_mut().buffers));
        }
    }
}
