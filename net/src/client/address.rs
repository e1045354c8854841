//! `host:port` as people write it.

use std::fmt;
use std::str::FromStr;

/// The port that is meant when none is written.
pub const DEFAULT_PORT: u16 = 6379;

/// A host and a port. The host is empty in `:6379`, which a client reads as `localhost` and a server as every address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Host name or IP address, without brackets.
    pub host: String,
    /// TCP port.
    pub port: u16,
}

impl Address {
    /// The host a client connects to and whose name it expects in the server's certificate.
    pub fn client_host(&self) -> &str {
        if self.host.is_empty() { "localhost" } else { &self.host }
    }

    /// The host a server listens on; every IPv4 address where none is named.
    pub fn listen_host(&self) -> &str {
        if self.host.is_empty() { "0.0.0.0" } else { &self.host }
    }
}

/// A text that is no address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AddressError {
    /// What was read.
    pub text: String,
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "'{}' is no address; examples: :6379, db1.example.com:6379, [::1]:6379", self.text.escape_debug())
    }
}

impl std::error::Error for AddressError {}

impl FromStr for Address {
    type Err = AddressError;

    /// Reads `host:port`, `[v6]:port`, `:port`, a port alone, or a host alone (then the port is [`DEFAULT_PORT`]).
    fn from_str(text: &str) -> Result<Address, AddressError> {
        let parse = || {
            if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
                return Some(Address { host: String::new(), port: text.parse().ok()? });
            }
            let (host, port) = match text.strip_prefix('[') {
                Some(rest) => {
                    let (host, behind) = rest.split_once(']')?;
                    // Brackets hold an IPv6 address and nothing else.
                    host.parse::<std::net::Ipv6Addr>().ok()?;
                    match behind.strip_prefix(':') {
                        Some(port) => (host, Some(port)),
                        None if behind.is_empty() => (host, None),
                        None => return None,
                    }
                }
                None => match text.split_once(':') {
                    Some((host, port)) => (host, Some(port)),
                    None => (text, None),
                },
            };
            if host.is_empty() && port.is_none() || host.chars().any(|c| c.is_whitespace() || c == '/' || c == '@') {
                return None;
            }
            let port = match port {
                None => DEFAULT_PORT,
                Some(digits) if digits.bytes().all(|byte| byte.is_ascii_digit()) => digits.parse().ok()?,
                Some(_) => return None,
            };
            Some(Address { host: host.to_owned(), port })
        };
        parse().ok_or_else(|| AddressError { text: text.to_owned() })
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shorthands() {
        for (text, host, port) in [
            (":6379", "", 6379),
            ("6380", "", 6380),
            ("localhost:1", "localhost", 1),
            ("db1", "db1", 6379),
            ("192.0.2.1:80", "192.0.2.1", 80),
            ("[::1]:6379", "::1", 6379),
            ("[2001:db8::1]", "2001:db8::1", 6379),
            (":0", "", 0),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!((address.host.as_str(), address.port), (host, port), "{text}");
            assert_eq!(address.to_string().parse::<Address>().unwrap(), address);
        }
    }

    #[test]
    fn empty_hosts_differ_by_side() {
        let address: Address = ":6379".parse().unwrap();
        assert_eq!((address.client_host(), address.listen_host()), ("localhost", "0.0.0.0"));
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "", ":", "h:", "h:x", "h:65536", "70000", "h:1:2", "::1", "[::1", "[h]:1", "[::1]x", "a b:1", "h:+1",
            "[]:1",
        ] {
            assert!(text.parse::<Address>().is_err(), "{text}");
        }
    }
}
