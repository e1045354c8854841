//! What can go wrong between a client and a server, and what to do about it.

use std::fmt;
use std::io;

use crate::wire::{ErrorCode, Status};

/// Why a call failed.
#[derive(Debug)]
pub enum ClientError {
    /// No connection could be made; the text names the address and the next step.
    Connect(String),
    /// TLS could not be set up, or the other side refused it.
    Tls(String),
    /// The connection broke. Whether requests without a reply were carried out is not known.
    Io(io::Error),
    /// The server answered with an error. The connection stays usable.
    Server {
        /// The status byte.
        status: u8,
        /// The stable code, where the reply carried one that this version knows.
        code: Option<ErrorCode>,
        /// The server's text.
        text: String,
    },
    /// The other side does not keep to the protocol, or was asked for something it cannot carry.
    Protocol(String),
}

impl ClientError {
    /// Whether the connection is of no more use.
    pub fn is_fatal(&self) -> bool {
        !matches!(self, ClientError::Server { .. })
    }

    /// The stable code of a server's error.
    pub fn code(&self) -> Option<ErrorCode> {
        match self {
            ClientError::Server { code, .. } => *code,
            _ => None,
        }
    }

    /// The word that stands for this error on the command line: the code, or failing that the status.
    pub fn word(&self) -> &'static str {
        match self {
            ClientError::Connect(_) => "CONNECT",
            ClientError::Tls(_) => "TLS",
            ClientError::Io(_) => "CONNECTIONLOST",
            ClientError::Server { code: Some(code), .. } => code.name(),
            ClientError::Server { status, .. } => Status::from_byte(*status).map_or("UNKNOWNSTATUS", Status::name),
            ClientError::Protocol(_) => "PROTOCOL",
        }
    }

    /// Sorts an error of the TLS stream: what TLS itself said is no I/O error.
    pub(super) fn from_stream(error: io::Error) -> ClientError {
        let tls = error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>());
        match tls {
            Some(tls) => ClientError::Tls(explain(tls)),
            None => ClientError::Io(error),
        }
    }
}

/// The likely cause, for the refusals that people meet.
fn explain(error: &rustls::Error) -> String {
    use rustls::{AlertDescription, CertificateError, Error};
    let hint = match error {
        Error::InvalidCertificate(CertificateError::UnknownIssuer | CertificateError::BadSignature) => {
            "the server's certificate comes from another CA; use the --home (or its certs) that belongs to this server"
        }
        Error::InvalidCertificate(
            CertificateError::NotValidForNameContext { .. } | CertificateError::NotValidForName,
        ) => "the server's certificate does not name this host; issue one that does with: turnstone --init --host NAME",
        Error::InvalidCertificate(CertificateError::Expired | CertificateError::ExpiredContext { .. }) => {
            "the server's certificate has expired; issue a new one"
        }
        Error::AlertReceived(AlertDescription::CertificateRequired) => "the server wants a client certificate",
        Error::AlertReceived(
            AlertDescription::UnknownCA | AlertDescription::DecryptError | AlertDescription::BadCertificate,
        ) => "the server does not know the CA of this client's certificate; use the home that belongs to this server",
        Error::AlertReceived(AlertDescription::CertificateExpired) => {
            "this client's certificate has expired; issue a new one"
        }
        Error::AlertReceived(AlertDescription::NoApplicationProtocol) => {
            "the server does not speak turnstone/2; it may be older than this program"
        }
        Error::InvalidMessage(_) => "the other side does not speak TLS; is this the right port?",
        _ => return error.to_string(),
    };
    format!("{error}: {hint}")
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            ClientError::Connect(text) | ClientError::Tls(text) | ClientError::Protocol(text) => f.write_str(text),
            ClientError::Io(error) => match error.kind() {
                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut => {
                    write!(f, "no answer in time; whether the last requests were carried out is not known")
                }
                io::ErrorKind::UnexpectedEof => write!(f, "the server closed the connection"),
                _ => write!(f, "the connection broke: {error}"),
            },
            ClientError::Server { text, .. } if text.is_empty() => f.write_str(self.word()),
            ClientError::Server { text, .. } => write!(f, "{} {text}", self.word()),
        }
    }
}

impl std::error::Error for ClientError {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn server_errors_read_code_then_text() {
        let error = ClientError::Server { status: 5, code: Some(ErrorCode::Conflict), text: "key changed".to_owned() };
        assert_eq!(error.to_string(), "CONFLICT key changed");
        assert!(!error.is_fatal());
        let error = ClientError::Server { status: 3, code: None, text: String::new() };
        assert_eq!(error.to_string(), "TXREQUIRED");
        let error = ClientError::Server { status: 200, code: None, text: String::new() };
        assert_eq!(error.word(), "UNKNOWNSTATUS");
    }

    #[test]
    fn tls_errors_are_told_apart_from_io() {
        let alert = rustls::Error::AlertReceived(rustls::AlertDescription::CertificateRequired);
        let error = ClientError::from_stream(io::Error::new(io::ErrorKind::InvalidData, alert));
        assert!(error.to_string().contains("client certificate"), "{error}");
        let error = ClientError::from_stream(io::ErrorKind::UnexpectedEof.into());
        assert_eq!(error.to_string(), "the server closed the connection");
        assert!(error.is_fatal());
    }
}
