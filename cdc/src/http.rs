//! Answers for those who ask by HTTP how it goes: `/metrics` and `/health`, one request at a time.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream, ToSocketAddrs};
use std::time::{Duration, Instant};
use turnstone_net::client::Address;

/// Longest request line and headers.
const REQUEST_MAX: usize = 4096;
/// Who asks has so long to say it.
const REQUEST_TIME: Duration = Duration::from_secs(2);
/// Where no connection can be taken, the next try comes later.
const PAUSE: Duration = Duration::from_millis(100);

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
        for stream in listener.incoming() {
            match stream {
                // An answer that the client does not take is given up.
                Ok(stream) => drop(answer(stream, &answers)),
                // No descriptor is left, say: that takes a while to change.
                Err(_) => std::thread::park_timeout(PAUSE),
            }
        }
    };
    std::thread::Builder::new().name("metrics".to_string()).spawn(answer).map_err(|e| e.to_string())?;
    Ok(())
}

fn answer(mut stream: TcpStream, answers: &impl Answers) -> io::Result<()> {
    let deadline = Instant::now() + REQUEST_TIME;
    stream.set_write_timeout(Some(REQUEST_TIME))?;
    let (mut request, mut buffer) = (Vec::new(), [0; 512]);
    while !request.windows(4).any(|end| end == b"\r\n\r\n") && request.len() < REQUEST_MAX {
        // For all of it: one byte now and then would keep everybody else waiting.
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    struct Well;

    impl Answers for Well {
        fn metrics(&self) -> String {
            String::new()
        }
        fn health(&self) -> Result<(), String> {
            Ok(())
        }
    }

    #[test]
    fn a_slow_request_does_not_keep_others_out() {
        let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        serve("metrics_addr", &free.to_string(), Well).unwrap();
        let mut slow = TcpStream::connect(free).unwrap();
        let dripping = std::thread::spawn(move || {
            // Far longer than a request may take, unless it is cut off.
            (0..200).take_while(|_| slow.write_all(b"x").is_ok()).for_each(|_| std::thread::park_timeout(PAUSE));
        });
        let mut asked = TcpStream::connect(free).unwrap();
        asked.set_read_timeout(Some(REQUEST_TIME * 5)).unwrap();
        asked.write_all(b"GET /health HTTP/1.1\r\n\r\n").unwrap();
        let mut reply = String::new();
        asked.read_to_string(&mut reply).expect("it is answered while the slow one goes on");
        assert!(reply.starts_with("HTTP/1.1 200 OK"), "{reply}");
        dripping.join().unwrap();
    }
}
