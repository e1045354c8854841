//! Answers for those who ask by HTTP how it goes: `/metrics` and `/health`, one request at a time.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::time::Duration;
use turnstone_net::client::Address;

/// Longest request line and headers.
const REQUEST_MAX: usize = 4096;
/// Who asks has so long to say it.
const REQUEST_TIME: Duration = Duration::from_secs(2);

/// What can be asked for.
pub trait Answers: Send + 'static {
    /// In Prometheus' text format.
    fn metrics(&self) -> String;
    /// The error says what is not well.
    fn health(&self) -> Result<(), String>;
}

/// Listens at an address, without a host on this machine only. The error names `setting`, and what to do.
pub fn serve(setting: &str, address: &str, answers: impl Answers) -> Result<(), String> {
    let address: Address = address.parse().map_err(|error| format!("{setting}: {error}"))?;
    let host = if address.host.is_empty() { "127.0.0.1" } else { address.host.as_str() };
    let listener = (host, address.port).to_socket_addrs().and_then(|mut found| {
        let first = found.next().ok_or(io::ErrorKind::AddrNotAvailable)?;
        TcpListener::bind(first)
    });
    let listener = listener.map_err(|error| {
        format!("{setting}: {host}:{} cannot be listened on: {error}; another address, or \"\" for none", address.port)
    })?;
    let answer = move || {
        for stream in listener.incoming().flatten() {
            // Who asks and does not listen has only itself to blame.
            let _ = answer(stream, &answers);
        }
    };
    std::thread::Builder::new().name("metrics".to_string()).spawn(answer).map_err(|e| e.to_string())?;
    Ok(())
}

fn answer(mut stream: TcpStream, answers: &impl Answers) -> io::Result<()> {
    stream.set_read_timeout(Some(REQUEST_TIME))?;
    stream.set_write_timeout(Some(REQUEST_TIME))?;
    let (mut request, mut buffer) = (Vec::new(), [0; 512]);
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < REQUEST_MAX {
        match stream.read(&mut buffer)? {
            0 => break,
            n => request.extend_from_slice(&buffer[..n]),
        }
    }
    let line = request.split(|byte| *byte == b'\r').next().unwrap_or_default();
    let (status, body) = match line.split(|byte| *byte == b' ').nth(1) {
        Some(b"/metrics") => ("200 OK", answers.metrics()),
        Some(b"/health") => match answers.health() {
            Ok(()) => ("200 OK", "ok\n".to_string()),
            Err(why) => ("503 Service Unavailable", format!("{why}\n")),
        },
        _ => ("404 Not Found", "there are /metrics and /health\n".to_string()),
    };
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: text/plain; version=0.0.4\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(body.as_bytes())
}
