//! The frames between nodes.
//!
//! `kind u8 | length u32 | payload | crc u32`, little-endian as the files are; the CRC-32 covers all before it. `length` is
//! the payload's. A connection is for one partition, and begins with the follower's [`Frame::Hello`].
//!
//! | kind | from | frame | payload |
//! |---|---|---|---|
//! | 1 | follower | hello | `version u16, node u64, own u8, partition u8, last u64, epoch, epochs, address, dialed, more` |
//! | 2 | follower | ack | `epoch, durable u64` |
//! | 3 | both | beat | `published u64`, of the sender |
//! | 4 | anybody | status request | `caller` |
//! | 5 | candidate | vote request | `caller, epoch, standing, members` |
//! | 6 | leader | it leads | `caller, address`: the receiver may ask it, and follow |
//! | 16 | leader | accept | `node u64, leads u8, had, standing`: the stream begins behind the follower's last version |
//! | 17 | leader | refuse | `reason u8, text up to the end` |
//! | 18 | leader | batch | the body, as it is in the log |
//! | 19 | leader | value | a large value of the batch before, in the body's order |
//! | 20 | leader | standing | `leads u8, standing`: before the first batch of a new epoch, and where it has come to lead |
//! | 21 | leader | parted | as accept: the follower has what this log has not |
//! | 23 | leader | copy | as accept, then `version u64, keys u64, members, resumed u8`: no stream, but a copy at that version |
//! | 24 | leader | keys | `length u16, key, version u64, length u32, value` of each, in the order of the keys |
//! | 25 | leader | end of a copy | `keys u64, digest u64`: everything was sent |
//! | 22 | member | status | `node u64, granted u8, candidate u8, learner u8, promoted u64, follows, had, leads u8, standing,` |
//! | | | | `members`, to 4, 5 and 6 |
//!
//! `epoch` is `number u64, id u64`; `epochs` is `count u32`, then `epoch, first version u64` of each; `standing` is
//! `adopted epoch, last u64, published u64, epochs`; `members` is `count u32`, then `version u64` and the list of each, as
//! in a body; `address` and `dialed` are `length u16` and that many bytes. `caller` is `version u16, node u64, own u8,
//! member u64, partition u8`: who says it, and who is meant (`member` 0 for whoever listens there). `follows` is `count u8`,
//! then `node u64, partition u8, address` of each. `had` is `epoch, version u64`: what the sender knows the receiver to have
//! had, zeros where it knows nothing.
//!
//! `more` is `life u64, ordered u8, copy u8, resume, sum`. `life` is drawn when the process begins; `ordered` is 1 where an
//! operator has just ordered to follow, 2 with force; `copy` is 0 for a log or nothing, 1 for a copy if the log does not
//! reach back, 2 for a copy in any case; `resume` is `u8`, and if that is 1 `version u64, length u16, key`: so far the
//! follower has a copy at that version; `sum` is `u8`, and if that is 1 `u32`: the CRC of its newest batch.

use std::rc::Rc;
use turnstone_engine::Standing;
use turnstone_engine::codec::{Put, Take, Truncated, crc};
use turnstone_engine::copy::{CopyEntry, CopyHead, CopySum};
use turnstone_engine::leadership::Upstream;
use turnstone_engine::manifest::{EpochStart, MembersRecord, RECORDS_MAX};
use turnstone_engine::types::{Epoch, Key, Version};
use turnstone_engine::wal::body::{put_members, take_members};

/// The newest version of this protocol that this program speaks.
pub const PROTOCOL: u16 = 4;
/// The longest payload: a transaction of the largest size allowed, and what surrounds it.
pub const PAYLOAD_MAX: usize = (1 << 30) + (64 << 20);
/// Bytes around a payload.
pub const AROUND: usize = 1 + 4 + 4;
/// Reigns that a history may have: those without a commit are dropped, and a node that restarts a million times is not one.
pub const EPOCHS_MAX: usize = 1 << 20;
/// The highest number of an epoch.
pub const EPOCH_MAX: u64 = 1 << 62;
/// Whom a partition follows, and whom it is about to follow.
pub const FOLLOWS_MAX: usize = 2;
/// Longest address, bytes.
pub const ADDRESS_MAX: usize = 300;

/// Why a leader refuses a follower.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The partition does not exist, or is offline.
    NoPartition,
    /// It is no leader.
    NotLeader,
    /// The histories part: the text says where.
    Diverged,
    /// The log no longer reaches back to where the follower is.
    Purged,
    /// The follower's protocol is not spoken here.
    Protocol,
    /// The two are one node.
    Itself,
    /// A higher epoch has been agreed to.
    Fenced,
    /// The node is known with another key, or is here already.
    Stranger,
}

impl Reason {
    const ALL: [Reason; 8] = [
        Reason::NoPartition,
        Reason::NotLeader,
        Reason::Diverged,
        Reason::Purged,
        Reason::Protocol,
        Reason::Itself,
        Reason::Fenced,
        Reason::Stranger,
    ];

    fn code(self) -> u8 {
        Reason::ALL.iter().position(|r| *r == self).map_or(0, |i| i as u8 + 1)
    }
}

/// What one side says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Frame {
    /// A follower introduces itself.
    Hello(Hello),
    /// Everything up to this version is on the follower's disk, and it has agreed to this epoch.
    Ack(Epoch, Version),
    /// The sender lives, and shows everything up to this version.
    Beat(Version),
    /// The stream begins behind the follower's last version.
    Accept(Welcome),
    /// The follower has what the sender has not: it must cut that, or follow somebody else.
    Parted(Welcome),
    /// What is this node, and what does it have? Nothing changes by the question.
    StatusRequest(Caller),
    /// A candidate asks for a vote.
    VoteRequest(VoteRequest),
    /// The caller leads, and listens there.
    Leads(Caller, String),
    /// What a node is and has.
    Status(Box<Status>),
    /// There is no stream, but a copy.
    Copy(Copying),
    /// Keys of a copy, encoded by [`put_entry`]: [`take_entries`] reads them.
    Keys(Vec<u8>),
    /// Everything of a copy was sent, and what it came to.
    CopyEnd(CopySum),
    /// There will be no stream.
    Refuse(Reason, String),
    /// A batch.
    Batch(Rc<Vec<u8>>),
    /// A large value.
    Value(Vec<u8>),
    /// The history has grown, or the sender has agreed to a new epoch, or has come to lead. Without members.
    Standing(Box<Standing>),
}

/// Whether a follower takes a copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wish {
    /// The log, or nothing.
    #[default]
    Log,
    /// A copy if the log does not reach back.
    CopyIfNeeded,
    /// A copy in any case: it replaces another history.
    Copy,
}

impl Wish {
    const ALL: [Wish; 3] = [Wish::Log, Wish::CopyIfNeeded, Wish::Copy];
}

/// Whether an operator has just ordered to follow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ordered {
    /// The node goes on by itself.
    #[default]
    No,
    /// One that was forgotten is let in again.
    Yes,
    /// What the node has had is set aside.
    ByForce,
}

impl Ordered {
    const ALL: [Ordered; 3] = [Ordered::No, Ordered::Yes, Ordered::ByForce];
}

/// What one node knows another one to have had at least.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Had {
    /// It had agreed to this epoch.
    pub epoch: Epoch,
    /// Everything up to here was on its disk.
    pub version: Version,
}

/// A copy begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copying {
    /// The sender.
    pub welcome: Welcome,
    /// What it is of: the sender's standing has the rest.
    pub version: Version,
    /// How many keys it has.
    pub keys: u64,
    /// The lists of members up to there.
    pub members: Vec<MembersRecord>,
    /// It goes on behind the key that the follower has named.
    pub resumed: bool,
}

impl Copying {
    /// What the copy is of.
    pub fn head(&self) -> CopyHead {
        let standing = &self.welcome.standing;
        let epochs = standing.epochs.iter().filter(|e| e.first_version <= self.version).copied().collect();
        CopyHead { version: self.version, adopted: standing.adopted, epochs, members: self.members.clone() }
    }
}

/// What a leader says of itself at the beginning of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Welcome {
    /// Its node.
    pub node: u64,
    /// What it knows the follower to have had.
    pub had: Had,
    /// What it has; without members.
    pub standing: Standing,
}

/// Who says something outside of a stream, and to whom.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Of the protocol.
    pub version: u16,
    /// The caller's node.
    pub node: u64,
    /// The caller's partition.
    pub own: u8,
    /// The node that is meant: who is somebody else does not answer. 0 for whoever listens there.
    pub member: u64,
    /// The partition that is meant.
    pub partition: u8,
}

/// A candidate asks for a vote.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VoteRequest {
    /// The candidate.
    pub caller: Caller,
    /// The epoch that it stands in.
    pub epoch: Epoch,
    /// What it has: a member whose list does not name it learns from here that a newer one does.
    pub standing: Standing,
}

/// Whom a node follows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Follows {
    /// The node; 0 where that is not known.
    pub node: u64,
    /// Where.
    pub upstream: Upstream,
}

/// What a node is and has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// The node.
    pub node: u64,
    /// Whether it has voted for the epoch that it was asked to vote for.
    pub granted: bool,
    /// A promotion is under way there.
    pub is_candidate: bool,
    /// It has lost what it had, and counts for nothing until it has caught up.
    pub is_learner: bool,
    /// The number of the newest epoch that an operator is known to have begun.
    pub promoted: u64,
    /// Whom it follows, and whom it is about to follow: at most [`FOLLOWS_MAX`].
    pub follows: Vec<Follows>,
    /// What it knows the caller to have had.
    pub had: Had,
    /// What it has.
    pub standing: Standing,
}

/// How a follower introduces itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Hello {
    /// Of the protocol.
    pub version: u16,
    /// The follower's node.
    pub node: u64,
    /// The follower's partition.
    pub own: u8,
    /// The leader's partition.
    pub partition: u8,
    /// The follower's newest version.
    pub last: Version,
    /// The highest epoch that it has agreed to.
    pub adopted: Epoch,
    /// Its history.
    pub epochs: Vec<EpochStart>,
    /// Where the follower listens: `host:port`, or `:port` on the host that it comes from.
    pub address: String,
    /// Where it reached the leader.
    pub dialed: String,
    /// Drawn when its process began: a node that is there twice has two.
    pub life: u64,
    /// Whether an operator has just ordered it to follow.
    pub ordered: Ordered,
    /// Whether it takes a copy.
    pub wish: Wish,
    /// It has a copy at this version up to this key.
    pub resume: Option<(Version, Key)>,
    /// CRC of the batch that its newest version is of, where that is known and on its disk.
    pub sum: Option<u32>,
}

/// Why bytes are no frame. The connection ends: there is no place to go on from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BadFrame(pub &'static str);

impl From<Truncated> for BadFrame {
    fn from(_: Truncated) -> BadFrame {
        BadFrame("a frame ends too early")
    }
}

/// Appends a frame around what `payload` appends.
pub fn seal(kind: u8, out: &mut Vec<u8>, payload: impl FnOnce(&mut Vec<u8>)) {
    let start = out.len();
    out.put_u8(kind);
    out.put_u32(0);
    payload(out);
    let length = (out.len() - start - 5) as u32;
    out[start + 1..start + 5].copy_from_slice(&length.to_le_bytes());
    let sum = crc(&[&out[start..]]);
    out.put_u32(sum);
}

/// A frame as it lies in the bytes: its kind, its payload, and how many bytes it takes.
pub type Unsealed<'a> = (u8, &'a [u8], usize);

/// The frame at the front; `None` if it is not whole.
pub fn unseal(bytes: &[u8]) -> Result<Option<Unsealed<'_>>, BadFrame> {
    let Some(head) = bytes.get(..5) else { return Ok(None) };
    let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
    if length > PAYLOAD_MAX {
        return Err(BadFrame("a frame is longer than any can be"));
    }
    let whole = length + AROUND;
    let Some(frame) = bytes.get(..whole) else { return Ok(None) };
    let (covered, sum) = frame.split_at(5 + length);
    if sum != crc(&[covered]).to_le_bytes() {
        return Err(BadFrame("a frame fails its checksum"));
    }
    Ok(Some((head[0], &covered[5..], whole)))
}

/// Appends a history.
pub fn put_epochs(epochs: &[EpochStart], out: &mut Vec<u8>) {
    out.put_u32(epochs.len() as u32);
    for start in epochs {
        out.put_u64(start.epoch.number);
        out.put_u64(start.epoch.id);
        out.put_u64(start.first_version);
    }
}

/// Reads what [`put_epochs`] wrote.
pub fn epochs(take: &mut Take<'_>) -> Result<Vec<EpochStart>, BadFrame> {
    let count = take.u32()? as usize;
    if count > EPOCHS_MAX {
        return Err(BadFrame("a history has more epochs than any has"));
    }
    let mut epochs = Vec::with_capacity(if cfg!(feature = "planted") { count } else { 0 });
    for _ in 0..count {
        let epoch = epoch(take)?;
        let first_version = take.u64()?;
        if first_version == 0 {
            return Err(BadFrame("an epoch begins at version 0"));
        }
        epochs.push(EpochStart { epoch, first_version });
    }
    Ok(epochs)
}

fn put_epoch(epoch: Epoch, out: &mut Vec<u8>) {
    out.put_u64(epoch.number);
    out.put_u64(epoch.id);
}

fn epoch(take: &mut Take<'_>) -> Result<Epoch, BadFrame> {
    let epoch = Epoch { number: take.u64()?, id: take.u64()? };
    // There is always a next one.
    if epoch.number > EPOCH_MAX { Err(BadFrame("an epoch has a number that none can have")) } else { Ok(epoch) }
}

fn put_text(text: &str, out: &mut Vec<u8>) {
    let length = text.len().min(ADDRESS_MAX);
    out.put_u16(length as u16);
    out.put(&text.as_bytes()[..length]);
}

fn text(take: &mut Take<'_>) -> Result<String, BadFrame> {
    let length = usize::from(take.u16()?);
    if length > ADDRESS_MAX {
        return Err(BadFrame("an address is longer than any is"));
    }
    let bytes = take.bytes(length)?;
    // It comes into lines of the log and of answers as it is.
    if !bytes.iter().all(u8::is_ascii_graphic) {
        return Err(BadFrame("an address has characters that none has"));
    }
    String::from_utf8(bytes.to_vec()).map_err(|_| BadFrame("an address is no text"))
}

/// Without members.
fn put_standing(standing: &Standing, out: &mut Vec<u8>) {
    put_epoch(standing.adopted, out);
    out.put_u64(standing.last);
    out.put_u64(standing.published);
    put_epochs(&standing.epochs, out);
}

fn standing(leads: bool, take: &mut Take<'_>) -> Result<Standing, BadFrame> {
    let adopted = epoch(take)?;
    let (last, published) = (take.u64()?, take.u64()?);
    if last == u64::MAX || published > last {
        return Err(BadFrame("a node shows more than it has"));
    }
    Ok(Standing { adopted, epochs: epochs(take)?, last, published, members: Vec::new(), leads })
}

fn flag(take: &mut Take<'_>) -> Result<bool, BadFrame> {
    match take.u8()? {
        0 => Ok(false),
        1 => Ok(true),
        _ => Err(BadFrame("a yes or no is neither")),
    }
}

fn members(take: &mut Take<'_>) -> Result<Vec<MembersRecord>, BadFrame> {
    let mut records = Vec::new();
    for _ in 0..take.u32()? {
        if records.len() == RECORDS_MAX {
            return Err(BadFrame("a node has more lists of members than any has"));
        }
        let version = take.u64()?;
        let members = take_members(take)?.ok_or(BadFrame("a list has more members than any partition"))?;
        records.push(MembersRecord { version, members });
    }
    Ok(records)
}

/// Appends a key of a copy.
pub fn put_entry(entry: &CopyEntry, out: &mut Vec<u8>) {
    put_key(&entry.key, out);
    out.put_u64(entry.version);
    out.put_u32(entry.value.len() as u32);
    out.put(&entry.value);
}

/// The keys of a frame.
pub fn take_entries(bytes: &[u8]) -> Result<Vec<CopyEntry>, BadFrame> {
    let mut take = Take(bytes);
    let mut entries = Vec::new();
    while take.left() > 0 {
        let (key, version) = (key(&mut take)?, take.u64()?);
        let length = take.u32()? as usize;
        entries.push(CopyEntry { key, version, value: take.bytes(length)?.into() });
    }
    Ok(entries)
}

fn put_key(key: &[u8], out: &mut Vec<u8>) {
    out.put_u16(key.len() as u16);
    out.put(key);
}

fn key(take: &mut Take<'_>) -> Result<Key, BadFrame> {
    let length = usize::from(take.u16()?);
    Ok(take.bytes(length)?.into())
}

fn put_records(records: &[MembersRecord], out: &mut Vec<u8>) {
    out.put_u32(records.len() as u32);
    for record in records {
        out.put_u64(record.version);
        put_members(&record.members, out);
    }
}

fn put_welcome(welcome: &Welcome, out: &mut Vec<u8>) {
    out.put_u64(welcome.node);
    out.put_u8(u8::from(welcome.standing.leads));
    put_had(&welcome.had, out);
    put_standing(&welcome.standing, out);
}

fn put_had(had: &Had, out: &mut Vec<u8>) {
    put_epoch(had.epoch, out);
    out.put_u64(had.version);
}

fn had(take: &mut Take<'_>) -> Result<Had, BadFrame> {
    Ok(Had { epoch: epoch(take)?, version: take.u64()? })
}

fn welcome(take: &mut Take<'_>) -> Result<Welcome, BadFrame> {
    let (node, leads, had) = (take.u64()?, flag(take)?, had(take)?);
    Ok(Welcome { node, had, standing: standing(leads, take)? })
}

fn put_caller(caller: &Caller, out: &mut Vec<u8>) {
    out.put_u16(caller.version);
    out.put_u64(caller.node);
    out.put_u8(caller.own);
    out.put_u64(caller.member);
    out.put_u8(caller.partition);
}

fn caller(take: &mut Take<'_>) -> Result<Caller, BadFrame> {
    let (version, node, own) = (take.u16()?, take.u64()?, take.u8()?);
    Ok(Caller { version, node, own, member: take.u64()?, partition: take.u8()? })
}

fn status(take: &mut Take<'_>) -> Result<Status, BadFrame> {
    let (node, granted, is_candidate) = (take.u64()?, flag(take)?, flag(take)?);
    let (is_learner, promoted) = (flag(take)?, take.u64()?);
    let mut follows = Vec::new();
    for _ in 0..take.u8()? {
        if follows.len() == FOLLOWS_MAX {
            return Err(BadFrame("a partition follows more than one can"));
        }
        let (node, partition) = (take.u64()?, take.u8()?);
        follows.push(Follows { node, upstream: Upstream { address: text(take)?, partition } });
    }
    let (had, leads) = (had(take)?, flag(take)?);
    let standing = standing(leads, take)?;
    let standing = Standing { members: members(take)?, ..standing };
    Ok(Status { node, granted, is_candidate, is_learner, promoted, follows, had, standing })
}

/// What a node of another version of the protocol begins with: as much of it as all versions have, so that it can be told.
fn foreign(kind: u8, payload: &[u8]) -> Result<Option<Frame>, BadFrame> {
    let mut take = Take(payload);
    if !matches!(kind, 1 | 4 | 5 | 6) || take.u16()? == PROTOCOL {
        return Ok(None);
    }
    let mut take = Take(payload);
    if kind != 1 {
        return Ok(Some(Frame::StatusRequest(caller(&mut take)?)));
    }
    let (version, node, own, partition) = (take.u16()?, take.u64()?, take.u8()?, take.u8()?);
    let (last, adopted, epochs, life) = (0, Epoch::default(), Vec::new(), 0);
    let (address, dialed) = (String::new(), String::new());
    let (ordered, wish, resume, sum) = (Ordered::No, Wish::Log, None, None);
    let hello = Hello {
        version,
        node,
        own,
        partition,
        last,
        adopted,
        epochs,
        address,
        dialed,
        life,
        ordered,
        wish,
        resume,
        sum,
    };
    Ok(Some(Frame::Hello(hello)))
}

impl Frame {
    fn kind(&self) -> u8 {
        match self {
            Frame::Hello(_) => 1,
            Frame::Ack(..) => 2,
            Frame::Beat(_) => 3,
            Frame::StatusRequest(_) => 4,
            Frame::VoteRequest(_) => 5,
            Frame::Leads(..) => 6,
            Frame::Accept(_) => 16,
            Frame::Refuse(..) => 17,
            Frame::Batch(_) => 18,
            Frame::Value(_) => 19,
            Frame::Standing(_) => 20,
            Frame::Parted(_) => 21,
            Frame::Status(_) => 22,
            Frame::Copy(_) => 23,
            Frame::Keys(_) => 24,
            Frame::CopyEnd(_) => 25,
        }
    }

    /// Appends it.
    pub fn encode(&self, out: &mut Vec<u8>) {
        seal(self.kind(), out, |out| self.put_payload(out));
    }

    fn put_payload(&self, out: &mut Vec<u8>) {
        match self {
            Frame::Hello(hello) => {
                out.put_u16(hello.version);
                out.put_u64(hello.node);
                out.put_u8(hello.own);
                out.put_u8(hello.partition);
                out.put_u64(hello.last);
                put_epoch(hello.adopted, out);
                put_epochs(&hello.epochs, out);
                put_text(&hello.address, out);
                put_text(&hello.dialed, out);
                out.put_u64(hello.life);
                out.put_u8(hello.ordered as u8);
                out.put_u8(hello.wish as u8);
                out.put_u8(u8::from(hello.resume.is_some()));
                if let Some((version, key)) = &hello.resume {
                    out.put_u64(*version);
                    put_key(key, out);
                }
                out.put_u8(u8::from(hello.sum.is_some()));
                if let Some(sum) = hello.sum {
                    out.put_u32(sum);
                }
            }
            Frame::Ack(epoch, version) => {
                put_epoch(*epoch, out);
                out.put_u64(*version);
            }
            Frame::Beat(version) => out.put_u64(*version),
            Frame::StatusRequest(caller) => put_caller(caller, out),
            Frame::VoteRequest(request) => {
                put_caller(&request.caller, out);
                put_epoch(request.epoch, out);
                put_standing(&request.standing, out);
                put_records(&request.standing.members, out);
            }
            Frame::Leads(caller, address) => {
                put_caller(caller, out);
                put_text(address, out);
            }
            Frame::Status(status) => {
                out.put_u64(status.node);
                out.put_u8(u8::from(status.granted));
                out.put_u8(u8::from(status.is_candidate));
                out.put_u8(u8::from(status.is_learner));
                out.put_u64(status.promoted);
                out.put_u8(status.follows.len() as u8);
                for follows in &status.follows {
                    out.put_u64(follows.node);
                    out.put_u8(follows.upstream.partition);
                    put_text(&follows.upstream.address, out);
                }
                put_had(&status.had, out);
                out.put_u8(u8::from(status.standing.leads));
                put_standing(&status.standing, out);
                put_records(&status.standing.members, out);
            }
            Frame::Copy(copy) => {
                put_welcome(&copy.welcome, out);
                out.put_u64(copy.version);
                out.put_u64(copy.keys);
                put_records(&copy.members, out);
                out.put_u8(u8::from(copy.resumed));
            }
            Frame::CopyEnd(sum) => {
                out.put_u64(sum.keys);
                out.put_u64(sum.digest);
            }
            Frame::Accept(welcome) | Frame::Parted(welcome) => put_welcome(welcome, out),
            Frame::Refuse(reason, text) => {
                out.put_u8(reason.code());
                out.put(text.as_bytes());
            }
            Frame::Batch(bytes) => out.put(bytes),
            Frame::Value(bytes) | Frame::Keys(bytes) => out.put(bytes),
            Frame::Standing(standing) => {
                out.put_u8(u8::from(standing.leads));
                put_standing(standing, out);
            }
        }
    }

    /// Takes a frame off the front; answers how many bytes it took, or `None` if it is not whole.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Frame, usize)>, BadFrame> {
        let Some((kind, payload, whole)) = unseal(bytes)? else { return Ok(None) };
        let mut take = Take(payload);
        if let Some(foreign) = foreign(kind, payload)? {
            return Ok(Some((foreign, whole)));
        }
        let frame = Frame::payload(kind, &mut take)?;
        if take.left() != 0 {
            return Err(BadFrame("bytes are left at the end of a frame"));
        }
        Ok(Some((frame, whole)))
    }

    fn payload(kind: u8, take: &mut Take<'_>) -> Result<Frame, BadFrame> {
        let rest = |take: &mut Take<'_>| take.bytes(take.left()).map(<[u8]>::to_vec);
        Ok(match kind {
            1 => Frame::Hello(Hello {
                version: take.u16()?,
                node: take.u64()?,
                own: take.u8()?,
                partition: take.u8()?,
                last: take.u64()?,
                adopted: epoch(take)?,
                epochs: epochs(take)?,
                address: text(take)?,
                dialed: text(take)?,
                life: take.u64()?,
                ordered: {
                    let ordered = Ordered::ALL.get(usize::from(take.u8()?));
                    *ordered.ok_or(BadFrame("a follower is ordered in a way that there is not"))?
                },
                wish: {
                    let wish = Wish::ALL.get(usize::from(take.u8()?));
                    *wish.ok_or(BadFrame("a follower wishes for what there is not"))?
                },
                resume: if flag(take)? { Some((take.u64()?, key(take)?)) } else { None },
                sum: if flag(take)? { Some(take.u32()?) } else { None },
            }),
            2 => Frame::Ack(epoch(take)?, take.u64()?),
            3 => Frame::Beat(take.u64()?),
            4 => Frame::StatusRequest(caller(take)?),
            5 => {
                let (caller, epoch) = (caller(take)?, epoch(take)?);
                let standing = Standing { members: Vec::new(), ..standing(false, take)? };
                Frame::VoteRequest(VoteRequest {
                    caller,
                    epoch,
                    standing: Standing { members: members(take)?, ..standing },
                })
            }
            6 => Frame::Leads(caller(take)?, text(take)?),
            16 => Frame::Accept(welcome(take)?),
            17 => {
                let code = usize::from(take.u8()?);
                let reason = code.checked_sub(1).and_then(|i| Reason::ALL.get(i).copied());
                let reason = reason.ok_or(BadFrame("a refusal has no reason that is known"))?;
                Frame::Refuse(reason, String::from_utf8_lossy(&rest(take)?).into_owned())
            }
            18 => Frame::Batch(rest(take)?.into()),
            19 => Frame::Value(rest(take)?),
            20 => Frame::Standing(Box::new(standing(flag(take)?, take)?)),
            21 => Frame::Parted(welcome(take)?),
            22 => Frame::Status(Box::new(status(take)?)),
            23 => {
                let (welcome, version, keys) = (welcome(take)?, take.u64()?, take.u64()?);
                Frame::Copy(Copying { welcome, version, keys, members: members(take)?, resumed: flag(take)? })
            }
            24 => Frame::Keys(rest(take)?),
            25 => Frame::CopyEnd(CopySum { keys: take.u64()?, digest: take.u64()? }),
            _ => return Err(BadFrame("a frame of unknown kind")),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use turnstone_engine::types::{Member, Members};

    fn samples() -> Vec<Frame> {
        let epoch = Epoch { number: 3, id: 9 };
        let epochs = vec![EpochStart { epoch, first_version: 41 }];
        let node = Member { node: 7, partition: 2, address: "a:1".to_string() };
        let members = vec![MembersRecord {
            version: 40,
            members: Members { min_replicas: 1, nodes: vec![node], forgotten: vec![4] },
        }];
        let standing = Standing {
            adopted: epoch,
            epochs: epochs.clone(),
            last: 50,
            published: 45,
            members: Vec::new(),
            leads: true,
        };
        let hello = Hello {
            version: PROTOCOL,
            node: 77,
            own: 2,
            partition: 3,
            last: 40,
            adopted: epoch,
            epochs: epochs.clone(),
            address: ":6379".to_string(),
            dialed: "b:2".to_string(),
            life: 12,
            ordered: Ordered::ByForce,
            wish: Wish::CopyIfNeeded,
            resume: Some((39, b"k".as_slice().into())),
            sum: Some(11),
        };
        let had = Had { epoch, version: 49 };
        let copy = Copying {
            welcome: Welcome { node: 5, had, standing: standing.clone() },
            version: 44,
            keys: 3,
            members: members.clone(),
            resumed: true,
        };
        let caller = Caller { version: PROTOCOL, node: 5, own: 1, member: 6, partition: 2 };
        let listed = Standing { members: members.clone(), ..standing.clone() };
        let follows = Follows { node: 8, upstream: Upstream { address: "c:3".to_string(), partition: 2 } };
        let status = Status {
            node: 5,
            granted: true,
            is_candidate: true,
            is_learner: false,
            promoted: 3,
            follows: vec![follows.clone(), Follows { node: 0, ..follows }],
            had,
            standing: listed.clone(),
        };
        let request = VoteRequest { caller, epoch, standing: Standing { leads: false, ..listed } };
        vec![
            Frame::Hello(hello),
            Frame::Ack(epoch, 41),
            Frame::Beat(u64::MAX),
            Frame::StatusRequest(caller),
            Frame::VoteRequest(request),
            Frame::Leads(caller, ":1".to_string()),
            Frame::Status(Box::new(Status { follows: vec![], ..status.clone() })),
            Frame::Status(Box::new(status)),
            Frame::Accept(Welcome { node: 5, had, standing: standing.clone() }),
            Frame::Copy(copy),
            Frame::Keys(vec![3; 900]),
            Frame::CopyEnd(CopySum { keys: 1, digest: 2 }),
            Frame::Parted(Welcome { node: 5, had, standing: standing.clone() }),
            Frame::Refuse(Reason::Itself, "this is the same node".to_string()),
            Frame::Batch(vec![1; 5000].into()),
            Frame::Value(Vec::new()),
            Frame::Standing(Box::new(standing.clone())),
        ]
    }

    #[test]
    fn frames_come_back_as_they_went_however_they_are_cut() {
        let mut bytes = Vec::new();
        samples().iter().for_each(|frame| frame.encode(&mut bytes));
        let (mut seen, mut at) = (Vec::new(), 0);
        while let Some((frame, used)) = Frame::decode(&bytes[at..]).expect("good frames") {
            let next = at + used;
            (at..next).for_each(|cut| assert_eq!(Frame::decode(&bytes[at..cut]), Ok(None), "cut at {cut}"));
            seen.push(frame);
            at = next;
        }
        assert_eq!((seen, at), (samples(), bytes.len()));
    }

    #[test]
    fn another_version_is_read_as_far_as_all_versions_are_the_same() {
        let caller = Caller { version: 1, node: 5, own: 1, member: 6, partition: 2 };
        let mut bytes = Vec::new();
        // A question as version 1 put it: an epoch and an address come behind.
        seal(4, &mut bytes, |out| {
            put_caller(&caller, out);
            out.put(&[7; 30]);
        });
        assert_eq!(Frame::decode(&bytes), Ok(Some((Frame::StatusRequest(caller), bytes.len()))));
        let mut bytes = Vec::new();
        seal(1, &mut bytes, |out| {
            out.put_u16(1);
            out.put_u64(77);
            out.put(&[2, 3]);
            out.put(&[9; 50]);
        });
        match Frame::decode(&bytes) {
            Ok(Some((Frame::Hello(hello), _))) => {
                assert_eq!((hello.version, hello.node, hello.own, hello.partition), (1, 77, 2, 3));
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn keys_of_a_copy_come_back_and_half_ones_do_not() {
        let entry = |key: &[u8], value: &[u8]| CopyEntry { key: key.into(), version: 7, value: value.into() };
        let entries = vec![entry(b"a", b""), entry(b"b", &[9; 300])];
        let mut bytes = Vec::new();
        entries.iter().for_each(|entry| put_entry(entry, &mut bytes));
        assert_eq!(take_entries(&bytes), Ok(entries));
        assert!(take_entries(&bytes[..bytes.len() - 1]).is_err());
    }

    #[test]
    fn every_flipped_bit_is_seen_and_no_length_is_believed() {
        for frame in samples() {
            let mut bytes = Vec::new();
            frame.encode(&mut bytes);
            for bit in 0..bytes.len() * 8 {
                let mut bad = bytes.clone();
                bad[bit / 8] ^= 1 << (bit % 8);
                // A longer length waits for more bytes; all else is refused.
                assert!(!matches!(Frame::decode(&bad), Ok(Some(_))), "{frame:?}, bit {bit}");
            }
        }
        assert!(Frame::decode(&[18, 0xff, 0xff, 0xff, 0xff]).is_err());
    }
}
