//! Runs commands over a connection and prints what came of them.
//!
//! Values are printed as `OK: value`, errors as `ERR: CODE text`, both to the same writer, so that a transcript keeps its
//! order. A lost connection is made anew for the next command; the command that was under way is never sent twice.

use std::io::{self, Write};

use turnstone_net::client::{ClientError, Connection, OwnedReply};
use turnstone_net::wire::position::POSITION_BYTES;
use turnstone_net::wire::{ErrorCode, Position, Request, Status, reply};

use super::command::Command;
use super::help;
use super::show::show;

/// About how many bytes of changes `log` asks for at once (1 MiB).
const LOG_BYTES: u32 = 1 << 20;

/// What commands are sent over.
pub trait Link {
    /// Sends one request and waits for its reply; an error reply is an error.
    fn call(&mut self, request: &Request<'_>) -> Result<OwnedReply, ClientError>;
}

impl Link for Connection {
    fn call(&mut self, request: &Request<'_>) -> Result<OwnedReply, ClientError> {
        Connection::call(self, request)
    }
}

/// How to print, and what needs no question.
#[derive(Debug, Clone, Copy, Default)]
pub struct Options {
    /// Print values alone, their bytes as they are, each followed by a newline.
    pub raw: bool,
    /// Print the positions of commits.
    pub verbose: bool,
    /// Dangerous commands need no confirmation.
    pub yes: bool,
}

/// What became of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It succeeded. A key that does not exist is a success.
    Done,
    /// The server refused it, or it was not confirmed.
    Failed,
    /// There is no connection, or it broke under way.
    Lost,
    /// The person wants to leave.
    Quit,
    /// The screen is to be cleared.
    Clear,
}

/// Asks the person a question; `None` if there is nobody to ask.
pub type Ask<'a> = Box<dyn FnMut(&str) -> Option<String> + 'a>;

/// Makes a connection that starts on the partition given, if any.
pub type Connect<'a, L> = Box<dyn FnMut(Option<u8>) -> Result<L, ClientError> + 'a>;

/// Runs commands one after another.
pub struct Runner<'a, L> {
    connect: Connect<'a, L>,
    ask: Ask<'a>,
    link: Option<L>,
    options: Options,
    /// The partition that was selected; `None` while the server's own choice (0) stands.
    partition: Option<u8>,
    in_transaction: bool,
}

impl<L> std::fmt::Debug for Runner<'_, L> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Runner")
            .field("connected", &self.link.is_some())
            .field("partition", &self.partition)
            .field("in_transaction", &self.in_transaction)
            .finish_non_exhaustive()
    }
}

impl<'a, L: Link> Runner<'a, L> {
    /// A runner that will connect at its first command, and select `partition` then.
    pub fn new(connect: Connect<'a, L>, ask: Ask<'a>, options: Options, partition: Option<u8>) -> Runner<'a, L> {
        Runner { connect, ask, link: None, options, partition, in_transaction: false }
    }

    /// The partition that commands go to.
    pub fn partition(&self) -> u8 {
        self.partition.unwrap_or(0)
    }

    /// Whether a transaction is open, as far as this side knows.
    pub fn in_transaction(&self) -> bool {
        self.in_transaction
    }

    /// Connects and selects the partition, unless that has been done.
    pub fn open(&mut self) -> Result<(), ClientError> {
        if self.link.is_some() {
            return Ok(());
        }
        let mut link = (self.connect)(self.partition)?;
        if let Some(partition) = self.partition {
            link.call(&Request::Select { name: partition.to_string().as_bytes() })?;
        }
        self.link = Some(link);
        Ok(())
    }

    /// Runs one command. The error is one of the writer.
    pub fn run(&mut self, command: &Command, out: &mut dyn Write) -> io::Result<Outcome> {
        match command {
            Command::Help(entry) => {
                write!(out, "{}", help::text(*entry))?;
                return Ok(Outcome::Done);
            }
            Command::Clear => return Ok(Outcome::Clear),
            Command::Quit => {
                // The server drops the connection either way; saying so is a courtesy.
                if let Some(mut link) = self.link.take() {
                    let _ = link.call(&Request::Quit);
                }
                return Ok(Outcome::Quit);
            }
            Command::FlushDb { yes } if !yes && !self.options.yes => {
                if let Err(why) = self.confirm_flush() {
                    writeln!(out, "ERR: {why}")?;
                    return Ok(Outcome::Failed);
                }
            }
            _ => {}
        }
        match self.perform(command) {
            Ok(reply) => self.print(command, &reply, out),
            Err(error) => {
                if !error.is_fatal() {
                    writeln!(out, "ERR: {error}")?;
                    return Ok(Outcome::Failed);
                }
                let had_link = self.link.take().is_some();
                let had_transaction = std::mem::take(&mut self.in_transaction);
                writeln!(out, "ERR: {} {error}", error.word())?;
                if had_link && had_transaction {
                    writeln!(out, "connection lost; an open transaction was rolled back{}", outcome_hint(command))?;
                } else if had_link {
                    writeln!(out, "connection lost{}", outcome_hint(command))?;
                }
                Ok(Outcome::Lost)
            }
        }
    }

    /// Deleting a partition takes its number, typed.
    fn confirm_flush(&mut self) -> Result<(), String> {
        let partition = self.partition();
        let question = format!("This deletes everything in partition {partition}. Type its number to go on: ");
        match (self.ask)(&question) {
            None => Err(format!("flushdb deletes everything in partition {partition}; in scripts it needs --yes")),
            Some(answer) if answer.trim() == partition.to_string() => Ok(()),
            Some(_) => Err("not confirmed; nothing was deleted".to_owned()),
        }
    }

    fn perform(&mut self, command: &Command) -> Result<OwnedReply, ClientError> {
        self.open()?;
        let Some(link) = &mut self.link else {
            return Err(ClientError::Connect("there is no connection".to_owned()));
        };
        let result = call(link, command);
        self.remember(command, &result);
        result
    }

    /// Keeps track of partition and transaction from what the server said.
    fn remember(&mut self, command: &Command, result: &Result<OwnedReply, ClientError>) {
        match (command, result) {
            (Command::Select(partition), Ok(_)) => self.partition = Some(*partition),
            (Command::Begin, Ok(_)) => self.in_transaction = true,
            (Command::Abort, Ok(_)) => self.in_transaction = false,
            // Whatever the answer, the server keeps no transaction after a commit.
            (Command::Commit, Ok(_) | Err(ClientError::Server { .. })) => self.in_transaction = false,
            (_, Err(error)) => match error.code() {
                Some(ErrorCode::TxRequired | ErrorCode::TxTimeout | ErrorCode::SnapshotTooOld) => {
                    self.in_transaction = false;
                }
                Some(ErrorCode::TxOpen) => self.in_transaction = true,
                _ => {}
            },
            _ => {}
        }
    }

    fn print(&self, command: &Command, reply: &OwnedReply, out: &mut dyn Write) -> io::Result<Outcome> {
        let body = &reply.body;
        let raw = self.options.raw;
        let found = reply.status == Status::Ok.byte();
        match command {
            Command::Get(_) if !found && raw => writeln!(out)?,
            Command::Get(_) if !found => writeln!(out, "(nil)")?,
            Command::Get(_) if raw => raw_line(out, body)?,
            Command::Get(_) => writeln!(out, "OK: {}", show(body))?,
            Command::MGet(keys) => match reply::decode_mget(body) {
                Some(values) if values.len() == keys.len() => {
                    for (index, value) in values.into_iter().enumerate() {
                        match value {
                            _ if raw => raw_line(out, value.unwrap_or_default())?,
                            Some(value) => writeln!(out, "{}) {}", index + 1, show(value))?,
                            None => writeln!(out, "{}) (nil)", index + 1)?,
                        }
                    }
                }
                _ => return broken(out),
            },
            Command::MDel(_) => match reply::decode_deleted(body) {
                Some((count, _)) if raw => writeln!(out, "{count}")?,
                Some((count, position)) => {
                    write!(out, "OK: {count}")?;
                    self.position(position, out)?;
                }
                None => return broken(out),
            },
            Command::Ping if raw => raw_line(out, body)?,
            Command::Order(words) if words.starts_with("replicaof ") => {
                let words: Vec<&str> = words.split(' ').collect();
                let (address, partition) = (words.get(1).copied(), words.get(2).copied());
                writeln!(
                    out,
                    "Replication started from {}/{}",
                    address.unwrap_or_default(),
                    partition.unwrap_or_default()
                )?;
            }
            Command::Order(words) if !body.is_empty() && words != "promote" => {
                // Several lines stay several lines.
                out.write_all(body)?;
                writeln!(out)?;
            }
            Command::Ping | Command::Log(_) if !body.is_empty() => writeln!(out, "{}", show(body))?,
            Command::Stat if raw => raw_line(out, body)?,
            Command::Stat => match serde_json::from_slice::<serde_json::Value>(body) {
                Ok(json) => writeln!(out, "{json:#}")?,
                Err(_) => writeln!(out, "{}", show(body))?,
            },
            Command::ReplicaOf(Some((address, partition))) => {
                writeln!(out, "Replication started from {address}/{partition}")?;
            }
            Command::Set(..) | Command::Del(_) | Command::MSet(_) | Command::Commit => {
                write!(out, "OK")?;
                let position = (body.len() == POSITION_BYTES).then(|| Position::from_bytes(body)).flatten();
                self.position(position, out)?;
            }
            _ if body.is_empty() => writeln!(out, "OK")?,
            _ => writeln!(out, "OK: {}", show(body))?,
        }
        Ok(Outcome::Done)
    }

    /// Ends a line, with the position if it is wanted and known.
    fn position(&self, position: Option<Position>, out: &mut dyn Write) -> io::Result<()> {
        match position {
            Some(position) if self.options.verbose => writeln!(out, " {position}"),
            _ => writeln!(out),
        }
    }
}

fn raw_line(out: &mut dyn Write, bytes: &[u8]) -> io::Result<()> {
    out.write_all(bytes)?;
    out.write_all(b"\n")
}

fn broken(out: &mut dyn Write) -> io::Result<Outcome> {
    writeln!(out, "ERR: PROTOCOL the reply does not have its shape")?;
    Ok(Outcome::Failed)
}

/// Only for commands that may have been carried out although no reply came.
fn outcome_hint(command: &Command) -> &'static str {
    match command {
        Command::Commit => ", unless the commit had been carried out: its outcome is unknown",
        Command::Set(..) | Command::Del(_) | Command::MSet(_) | Command::MDel(_) | Command::FlushDb { .. } => {
            "; whether the last command was carried out is unknown"
        }
        _ => "",
    }
}

fn call<L: Link>(link: &mut L, command: &Command) -> Result<OwnedReply, ClientError> {
    match command {
        Command::Ping => link.call(&Request::Ping),
        Command::Select(partition) => link.call(&Request::Select { name: partition.to_string().as_bytes() }),
        Command::Get(key) => link.call(&Request::Get { key }),
        Command::Set(key, value) => link.call(&Request::Set { key, value }),
        Command::Del(key) => link.call(&Request::Del { key }),
        Command::MGet(keys) => link.call(&Request::MGet(keys.iter().map(Vec::as_slice).collect())),
        Command::MDel(keys) => link.call(&Request::MDel(keys.iter().map(Vec::as_slice).collect())),
        Command::MSet(pairs) => {
            link.call(&Request::MSet(pairs.iter().map(|(key, value)| (key.as_slice(), value.as_slice())).collect()))
        }
        Command::Begin => link.call(&Request::Begin),
        Command::Commit => link.call(&Request::Commit),
        Command::Abort => link.call(&Request::Abort),
        Command::Stat => link.call(&Request::Stat),
        Command::Checkpoint => link.call(&Request::Checkpoint),
        Command::FlushDb { .. } => link.call(&Request::FlushDb),
        Command::Order(words) => link.call(&Request::Replication { words: words.as_bytes() }),
        Command::Wait { epoch, version, milliseconds } => {
            link.call(&Request::Wait { epoch: *epoch, version: *version, milliseconds: *milliseconds })
        }
        Command::StepDown => link.call(&Request::StepDown),
        Command::ReplicaOf(None) => link.call(&Request::ReplicaOf { address: b"", partition: b"" }),
        Command::ReplicaOf(Some((address, partition))) => {
            let partition = partition.to_string();
            link.call(&Request::ReplicaOf { address: address.as_bytes(), partition: partition.as_bytes() })
        }
        Command::Hold(name, limit_bytes) => {
            link.call(&Request::Hold { name, epoch: 0, version: 0, limit_bytes: *limit_bytes })
        }
        Command::Release(name) => link.call(&Request::Release { name }),
        Command::Log(version) => link.call(&Request::ReadLog { version: *version, limit_bytes: LOG_BYTES }),
        Command::Help(_) | Command::Clear | Command::Quit => {
            Err(ClientError::Protocol("this command is not for the server".to_owned()))
        }
    }
}

#[cfg(test)]
#[path = "run_tests.rs"]
mod tests;
