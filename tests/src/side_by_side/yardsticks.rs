//! What the machine can do at best, measured beside the servers: the disk's flush, and TLS over loopback.

use crate::one_core;
use crate::real::TestHome;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, ServerConnection, StreamOwned};
use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use turnstone_engine::buffer::AlignedBuf;
use turnstone_engine::disk::{Disk, DiskError, File, IoClass, OpenMode};
use turnstone_engine::env::Env;
use turnstone_engine::sync::all;
use turnstone_executor::Core;
use turnstone_net::tls::{ClientOffer, Role, client_config, server_config};

const BLOCK: usize = 4096;
const FLUSHES: u64 = 2000;
const ECHOES: usize = 20_000;
const BULK: usize = 1 << 30;

fn show(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |share: f64| super::microseconds(times[(times.len() as f64 * share) as usize]);
    format!("p50 {:.0} us, p99 {:.0} us", at(0.5), at(0.99))
}

/// Overwrites blocks of a pre-written file from one CPU, each durable when the call returns.
pub fn flushes(directory: &Path, cpu: usize) -> Result<String, String> {
    let directory = directory.to_path_buf();
    let thread = std::thread::spawn(move || {
        turnstone_executor::placement::pin_thread(cpu).map_err(|e| format!("CPU {cpu}: {e}"))?;
        flushes_here(&directory)
    });
    thread.join().map_err(|_| "the flushing thread panicked")?
}

fn flushes_here(directory: &Path) -> Result<String, String> {
    let path = directory.join("yardstick");
    let failed = |e: std::io::Error| format!("{}: {e}", path.display());
    std::fs::write(&path, vec![0; BLOCK * 1024]).map_err(failed)?;
    let mut options = OpenOptions::new();
    let file = options.write(true).custom_flags(libc::O_DIRECT | libc::O_DSYNC).open(&path).map_err(failed)?;
    let buffer = AlignedBuf::zeroed(BLOCK);
    let mut times = Vec::new();
    for n in 0..FLUSHES {
        let started = Instant::now();
        file.write_all_at(&buffer, n % 1024 * BLOCK as u64).map_err(failed)?;
        times.push(started.elapsed());
    }
    std::fs::remove_file(&path).map_err(failed)?;
    Ok(show(times))
}

/// Logs whose writes share a flush when 64 clients are busy on 16 partitions.
const LOGS: usize = 8;

/// What log writes take on CPU 0 by themselves, through a core's ring: a block that is flushed with its write, as one busy log
/// does it, and a round of the shared flush, a block to each of several files at once and one flush when the last is complete.
pub fn rounds(directory: &Path) -> Result<String, String> {
    let data = directory.join("yardsticks");
    let thread = std::thread::spawn(move || {
        turnstone_executor::placement::pin_thread(0).map_err(|e| format!("CPU 0: {e}"))?;
        let times = one_core::run(&data, |core| async move { rounds_here(&core).await });
        let (one, several) = times.map_err(|e| e.to_string())?.map_err(|e| e.to_string())?;
        Ok(format!("one write {}; {LOGS} writes and a flush {}", show(one), show(several)))
    });
    thread.join().map_err(|_| "the flushing thread panicked")?
}

async fn rounds_here(core: &Core<()>) -> Result<(Vec<Duration>, Vec<Duration>), DiskError> {
    let env = core.env(1).await?;
    let mut files = Vec::new();
    for n in 0..LOGS {
        let file = env.disk().open(&n.to_string(), OpenMode::Create, IoClass::Foreground).await?;
        file.write_durable(AlignedBuf::zeroed(BLOCK * 256), 0).await?;
        files.push(file);
    }
    env.disk().sync_names().await?;
    let (mut one, mut several) = (Vec::new(), Vec::new());
    for n in 0..FLUSHES {
        let place = n % 256 * BLOCK as u64;
        let started = Instant::now();
        files[0].write_durable(AlignedBuf::zeroed(BLOCK), place).await?;
        one.push(started.elapsed());
        let started = Instant::now();
        let written = all(files.iter().map(|file| file.write_at(AlignedBuf::zeroed(BLOCK), place))).await;
        written.into_iter().collect::<Result<(), _>>()?;
        env.disk().flush(&files.iter().collect::<Vec<_>>()).await?;
        several.push(started.elapsed());
    }
    for n in 0..LOGS {
        env.disk().remove(&n.to_string()).await?;
    }
    Ok((one, several))
}

type Served = (SocketAddr, JoinHandle<io::Result<()>>);

/// A server of one connection on CPU 0, with the certificates of a home.
fn serve_one(
    home: &TestHome,
    work: impl FnOnce(StreamOwned<ServerConnection, TcpStream>) -> io::Result<()> + Send + 'static,
) -> Result<Served, String> {
    let listener = TcpListener::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
    let address = listener.local_addr().map_err(|e| e.to_string())?;
    let config = server_config(&home.files(Role::Server)).map_err(|e| e.to_string())?;
    let server = std::thread::spawn(move || {
        turnstone_executor::placement::pin_thread(0)?;
        let (socket, _) = listener.accept()?;
        socket.set_nodelay(true)?;
        work(StreamOwned::new(ServerConnection::new(config).map_err(io::Error::other)?, socket))
    });
    Ok((address, server))
}

/// Its client, on a thread of its own on CPU 1.
fn dial_one<T: Send + 'static>(
    home: &TestHome,
    (address, server): Served,
    work: impl FnOnce(StreamOwned<ClientConnection, TcpStream>) -> io::Result<T> + Send + 'static,
) -> Result<T, String> {
    let files = home.files(Role::Client);
    let client = std::thread::spawn(move || {
        turnstone_executor::placement::pin_thread(1)?;
        let config = client_config(&files, ClientOffer::TURNSTONE2).map_err(|e| io::Error::other(e.to_string()))?;
        let name = ServerName::try_from("localhost").map_err(io::Error::other)?;
        let socket = TcpStream::connect(address)?;
        socket.set_nodelay(true)?;
        work(StreamOwned::new(ClientConnection::new(config, name).map_err(io::Error::other)?, socket))
    });
    let answer = client.join().map_err(|_| "the client panicked")?.map_err(|e| e.to_string())?;
    server.join().map_err(|_| "the server panicked")?.map_err(|e| e.to_string())?;
    Ok(answer)
}

/// One client's round trip through a server that stores nothing, with our certificates; server on CPU 0, client on 1.
pub fn echo(home: &TestHome) -> Result<String, String> {
    let served = serve_one(home, |mut stream| {
        let mut buffer = [0; 200];
        for _ in 0..ECHOES {
            stream.read_exact(&mut buffer)?;
            stream.write_all(&buffer)?;
            stream.flush()?;
        }
        Ok(())
    })?;
    let times = dial_one(home, served, |mut stream| {
        let mut buffer = [7; 200];
        let mut times = Vec::new();
        for _ in 0..ECHOES {
            let started = Instant::now();
            stream.write_all(&buffer)?;
            stream.flush()?;
            stream.read_exact(&mut buffer)?;
            times.push(started.elapsed());
        }
        Ok(times)
    })?;
    Ok(show(times))
}

/// Megabytes per second that one connection carries, server on CPU 0, client on 1, in records of the largest size.
pub fn bulk(home: &TestHome) -> Result<f64, String> {
    const PIECE: usize = 256 << 10;
    let served = serve_one(home, |mut stream| {
        let piece = vec![7; PIECE];
        for _ in 0..BULK / PIECE {
            stream.write_all(&piece)?;
        }
        stream.conn.send_close_notify();
        stream.flush()
    })?;
    let took = dial_one(home, served, |mut stream| {
        let (mut room, mut left) = (vec![0; PIECE], BULK);
        let started = Instant::now();
        while left > 0 {
            match stream.read(&mut room)? {
                0 => return Err(io::ErrorKind::UnexpectedEof.into()),
                count => left -= count,
            }
        }
        Ok(started.elapsed())
    })?;
    Ok(BULK as f64 / 1e6 / took.as_secs_f64())
}
