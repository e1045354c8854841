//! The body of a batch: what was committed. The same bytes on every node; replicas and change streams read it.
//!
//! Layout, little-endian (see `docs/file-formats.md`):
//! `crc u32 | format u16 | flags u16 | epoch u64 | epoch id u64 | first version u64 | commit ms u64 | transactions u32 |
//! crc of the body before u32` (the last from format 2 on; 0 and not known where flag 1 is not set), then per transaction
//! `operations u32` and its operations: `kind u8 | key length u16 | key`, followed for a value by `length u32 | bytes`, for
//! a large value by `length u32 | checksum u32` (its bytes are in the value log), for a list of members (whose key is
//! empty) by `min replicas u32 | members u16`, then per member `node u64 | partition u8 | address length u16 | address`;
//! where the highest bit of `members` is set, forgotten nodes come behind them: `count u16`, then `node u64` of each.
//! Transaction i has version `first version + i`. The CRC covers everything behind it, the CRC of the body before too:
//! bodies are a chain, and who has another history cannot go on with this one, though epochs and versions be the same.

use crate::codec::{Put, Take, Truncated, crc};
use crate::types::{Entry, Epoch, Key, Member, Members, Value, Version};

/// Newest format of bodies that this program writes and reads.
pub const BODY_FORMAT: u16 = 2;
/// Bytes before the first transaction.
pub const BODY_HEADER: usize = BEFORE_AT + 4;
/// Where the CRC of the body before is; bodies of format 1 have their first transaction here.
const BEFORE_AT: usize = 4 + 2 + 2 + 8 * 4 + 4;
/// The CRC of the body before is known.
const HAS_BEFORE: u16 = 1;

const KIND_SET: u8 = 1;
const KIND_SET_LARGE: u8 = 2;
const KIND_DELETE: u8 = 3;
const KIND_FLUSH: u8 = 4;
const KIND_MEMBERS: u8 = 5;
/// Members that a partition may have.
pub const MEMBERS_MAX: usize = 64;
/// Forgotten nodes that a list names: more than these, and the oldest go.
pub const FORGOTTEN_MAX: usize = 64;
/// Set in the number of members where a list of forgotten nodes comes behind them.
const HAS_FORGOTTEN: u16 = 1 << 15;

/// One change of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Operation {
    /// The key gets a value that rides in the log.
    Set(Key, Value),
    /// The key gets a value that was written to the value log: length and CRC-32.
    SetLarge(Key, u32, u32),
    /// The key goes.
    Delete(Key),
    /// Every key goes (FlushDB).
    Flush,
    /// Who holds copies from here on, and how many must hold a commit.
    Members(Members),
}

/// Bytes that a change of `key` takes in a body.
pub fn change_len(key: &[u8], entry: &Entry) -> usize {
    let head = 1 + 2 + key.len();
    match entry {
        Entry::Value(value) => head + 4 + value.len(),
        Entry::Pointer(_) => head + 8,
        Entry::Tombstone => head,
    }
}

fn put_key(kind: u8, key: &[u8], out: &mut Vec<u8>) {
    out.put_u8(kind);
    out.put_u16(u16::try_from(key.len()).expect("keys are checked against a limit below 2^16 when written"));
    out.put(key);
}

fn put_change(key: &[u8], entry: &Entry, out: &mut Vec<u8>) {
    match entry {
        Entry::Value(value) => {
            put_key(KIND_SET, key, out);
            out.put_u32(u32::try_from(value.len()).expect("values are checked against a limit below 2^32"));
            out.put(value);
        }
        Entry::Pointer(pointer) => {
            put_key(KIND_SET_LARGE, key, out);
            out.put_u32(pointer.length);
            out.put_u32(pointer.checksum);
        }
        Entry::Tombstone => put_key(KIND_DELETE, key, out),
    }
}

/// What a body begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// The reign it was written in.
    pub epoch: Epoch,
    /// Version of the first transaction; for an empty body, of the next one to come.
    pub first_version: Version,
    /// Wall clock of the leader, milliseconds.
    pub commit_ms: u64,
    /// How many transactions follow.
    pub transactions: u32,
    /// CRC of the body before; `None` where it was not known, and for an empty body.
    pub before: Option<u32>,
    /// The body's format.
    pub format: u16,
}

impl Head {
    /// Version of the last transaction; for an empty body, the one before the next to come.
    pub fn last_version(&self) -> Version {
        self.first_version + u64::from(self.transactions) - 1
    }
}

/// A decoded body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Body {
    /// The reign it was written in.
    pub epoch: Epoch,
    /// Version of the first transaction; for an empty body, of the next one to come.
    pub first_version: Version,
    /// Wall clock of the leader, milliseconds.
    pub commit_ms: u64,
    /// The transactions, in order of their versions.
    pub transactions: Vec<Vec<Operation>>,
    /// CRC of the body before; `None` where it was not known, and for an empty body.
    pub before: Option<u32>,
    /// Its format.
    pub format: u16,
}

impl Body {
    /// Version of the last transaction; for an empty body, the one before the next to come.
    pub fn last_version(&self) -> Version {
        self.first_version + self.transactions.len() as u64 - 1
    }
}

/// A body that grows by transactions.
pub struct Builder {
    bytes: Vec<u8>,
    epoch: Epoch,
    first_version: Version,
    transactions: u32,
}

const COMMIT_MS_AT: usize = 4 + 2 + 2 + 8 * 3;

impl Builder {
    /// An empty body; `room` gives its memory.
    pub fn new(epoch: Epoch, first_version: Version, mut room: Vec<u8>) -> Builder {
        room.clear();
        room.put_u32(0);
        room.put_u16(BODY_FORMAT);
        room.put_u16(0);
        room.put_u64(epoch.number);
        room.put_u64(epoch.id);
        room.put_u64(first_version);
        room.put_u64(0);
        room.put_u32(0);
        room.put_u32(0);
        Builder { bytes: room, epoch, first_version, transactions: 0 }
    }

    /// The reign it is written in.
    pub fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Version of its first transaction.
    pub fn first_version(&self) -> Version {
        self.first_version
    }

    /// Bytes so far.
    pub fn length(&self) -> usize {
        self.bytes.len()
    }

    /// Adds a transaction of these changes.
    pub fn add<'a>(&mut self, changes: impl ExactSizeIterator<Item = (&'a [u8], &'a Entry)>) {
        self.begin(changes.len());
        changes.for_each(|(key, entry)| self.put(key, entry));
    }

    /// Begins a transaction of so many changes, which follow.
    pub fn begin(&mut self, changes: usize) {
        self.transactions += 1;
        self.bytes.put_u32(changes as u32);
    }

    /// The next change of the transaction that was begun.
    pub fn put(&mut self, key: &[u8], entry: &Entry) {
        put_change(key, entry, &mut self.bytes);
    }

    /// Adds a transaction that deletes every key.
    pub fn add_flush(&mut self) {
        self.transactions += 1;
        self.bytes.put_u32(1);
        put_key(KIND_FLUSH, &[], &mut self.bytes);
    }

    /// Adds a transaction that changes who holds copies.
    pub fn add_members(&mut self, members: &Members) {
        self.transactions += 1;
        self.bytes.put_u32(1);
        put_key(KIND_MEMBERS, &[], &mut self.bytes);
        put_members(members, &mut self.bytes);
    }

    /// The whole body, behind one with the CRC `before`.
    pub fn finish(self, commit_ms: u64, before: Option<u32>) -> Vec<u8> {
        let mut unsummed = self.finish_but_sum(commit_ms, before);
        let sum = crc(&[&unsummed[4..]]);
        unsummed[..4].copy_from_slice(&sum.to_le_bytes());
        unsummed
    }

    /// The whole body, in pieces: `give_way` is awaited behind each. A long one would keep the core for milliseconds.
    pub async fn finish_in_pieces(self, commit_ms: u64, before: Option<u32>, give_way: impl AsyncFn()) -> Vec<u8> {
        /// Bytes that are summed at once.
        const PIECE: usize = 1 << 20;
        let mut unsummed = self.finish_but_sum(commit_ms, before);
        let mut sum = crc32fast::Hasher::new();
        for piece in unsummed[4..].chunks(PIECE) {
            sum.update(piece);
            if unsummed.len() > PIECE {
                give_way().await;
            }
        }
        unsummed[..4].copy_from_slice(&sum.finalize().to_le_bytes());
        unsummed
    }

    fn finish_but_sum(mut self, commit_ms: u64, before: Option<u32>) -> Vec<u8> {
        let flags = if before.is_some() { HAS_BEFORE } else { 0 };
        self.bytes[6..8].copy_from_slice(&flags.to_le_bytes());
        self.bytes[COMMIT_MS_AT..COMMIT_MS_AT + 8].copy_from_slice(&commit_ms.to_le_bytes());
        self.bytes[COMMIT_MS_AT + 8..BEFORE_AT].copy_from_slice(&self.transactions.to_le_bytes());
        self.bytes[BEFORE_AT..BODY_HEADER].copy_from_slice(&before.unwrap_or(0).to_le_bytes());
        self.bytes
    }
}

/// Bytes of a transaction that deletes every key, without its count of operations.
pub const FLUSH_LEN: usize = 1 + 2;

/// Bytes of a transaction that changes the members, without its count of operations.
pub fn members_len(members: &Members) -> usize {
    let mut bytes = Vec::new();
    put_members(members, &mut bytes);
    FLUSH_LEN + bytes.len()
}

/// Appends a list of members.
pub fn put_members(members: &Members, out: &mut Vec<u8>) {
    out.put_u32(members.min_replicas);
    let forgotten = if members.forgotten.is_empty() { 0 } else { HAS_FORGOTTEN };
    out.put_u16(members.nodes.len() as u16 | forgotten);
    for node in &members.nodes {
        out.put_u64(node.node);
        out.put_u8(node.partition);
        out.put_u16(node.address.len() as u16);
        out.put(node.address.as_bytes());
    }
    if forgotten != 0 {
        out.put_u16(members.forgotten.len() as u16);
        members.forgotten.iter().for_each(|node| out.put_u64(*node));
    }
}

/// Reads what [`put_members`] wrote; `None` if there are more than any partition has.
pub fn take_members(take: &mut Take<'_>) -> Result<Option<Members>, Truncated> {
    let min_replicas = take.u32()?;
    let count = take.u16()?;
    let (count, has_forgotten) = (usize::from(count & !HAS_FORGOTTEN), count & HAS_FORGOTTEN != 0);
    if count > MEMBERS_MAX {
        return Ok(None);
    }
    let mut nodes = Vec::new();
    for _ in 0..count {
        let (node, partition) = (take.u64()?, take.u8()?);
        let length = usize::from(take.u16()?);
        let address = String::from_utf8(take.bytes(length)?.to_vec()).map_err(|_| Truncated)?;
        nodes.push(Member { node, partition, address });
    }
    let mut forgotten = Vec::new();
    if has_forgotten {
        let count = usize::from(take.u16()?);
        if count == 0 || count > FORGOTTEN_MAX {
            return Ok(None);
        }
        for _ in 0..count {
            forgotten.push(take.u64()?);
        }
    }
    Ok(Some(Members { min_replicas, nodes, forgotten }))
}

/// Why a body could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BodyError {
    /// The CRC differs, or the bytes contradict themselves.
    Damaged(&'static str),
    /// Written by a newer program.
    Newer(u16),
}

impl From<Truncated> for BodyError {
    fn from(_: Truncated) -> BodyError {
        BodyError::Damaged("a batch body ends too early")
    }
}

/// Checks a body as a whole, and reads what it begins with; `check` is false only under a planted bug.
pub fn head(bytes: &[u8], check: bool) -> Result<Head, BodyError> {
    let mut take = Take(bytes);
    let sum = take.u32()?;
    if check && sum != crc(&[take.0]) {
        return Err(BodyError::Damaged("a batch body fails its checksum"));
    }
    let format = take.u16()?;
    if format > BODY_FORMAT {
        return Err(BodyError::Newer(format));
    }
    let flags = take.u16()?;
    let epoch = Epoch { number: take.u64()?, id: take.u64()? };
    let (first_version, commit_ms) = (take.u64()?, take.u64()?);
    if first_version == 0 {
        return Err(BodyError::Damaged("a batch starts at version 0"));
    }
    let transactions = take.u32()?;
    if first_version.checked_add(u64::from(transactions)).is_none() {
        return Err(BodyError::Damaged("a batch has more versions than there are"));
    }
    let before = if format >= 2 { take.u32()? } else { 0 };
    let has_before = format >= 2 && flags & HAS_BEFORE != 0;
    if !has_before && before != 0 {
        return Err(BodyError::Damaged("a batch names the one before it, and says that it does not"));
    }
    let before = has_before.then_some(before);
    Ok(Head { epoch, first_version, commit_ms, transactions, before, format })
}

/// The CRC of a body, which is what the next one names.
pub fn sum(bytes: &[u8]) -> Option<u32> {
    Take(bytes).u32().ok()
}

/// One change, as it lies in a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<'a> {
    /// The key gets a value that rides in the log.
    Set(&'a [u8], &'a [u8]),
    /// The key gets a value that was written to the value log: length and CRC-32.
    SetLarge(&'a [u8], u32, u32),
    /// The key goes.
    Delete(&'a [u8]),
    /// Every key goes.
    Flush,
    /// Who holds copies from here on.
    Members(Members),
}

impl Change<'_> {
    fn to_operation(&self) -> Operation {
        match self {
            Change::Set(key, value) => Operation::Set((*key).into(), (*value).into()),
            Change::SetLarge(key, length, checksum) => Operation::SetLarge((*key).into(), *length, *checksum),
            Change::Delete(key) => Operation::Delete((*key).into()),
            Change::Flush => Operation::Flush,
            Change::Members(members) => Operation::Members(members.clone()),
        }
    }
}

/// Reads a body without copying from it: `each` gets every transaction with its version, in order. `check` is false where
/// it was checked before, and under a planted bug.
pub fn read<'a, E: From<BodyError>>(
    bytes: &'a [u8],
    check: bool,
    mut each: impl FnMut(&Head, Version, &[Change<'a>]) -> Result<(), E>,
) -> Result<Head, E> {
    let head = head(bytes, check)?;
    let mut take = Take(&bytes[if head.format >= 2 { BODY_HEADER } else { BEFORE_AT }..]);
    let mut changes = Vec::new();
    for i in 0..u64::from(head.transactions) {
        changes.clear();
        for _ in 0..take.u32().map_err(BodyError::from)? {
            changes.push(change(&mut take)?);
        }
        each(&head, head.first_version + i, &changes)?;
    }
    if take.left() != 0 {
        return Err(BodyError::Damaged("bytes are left behind the last transaction of a batch").into());
    }
    Ok(head)
}

/// Reads a body; `check` is false where it was checked before, and under a planted bug.
pub fn decode(bytes: &[u8], check: bool) -> Result<Body, BodyError> {
    let mut transactions = Vec::new();
    let Head { epoch, first_version, commit_ms, before, format, .. } = read(bytes, check, |_, _, changes| {
        transactions.push(changes.iter().map(Change::to_operation).collect());
        Ok::<_, BodyError>(())
    })?;
    Ok(Body { epoch, first_version, commit_ms, transactions, before, format })
}

fn change<'a>(take: &mut Take<'a>) -> Result<Change<'a>, BodyError> {
    let kind = take.u8()?;
    let length = usize::from(take.u16()?);
    let key = take.bytes(length)?;
    Ok(match kind {
        KIND_SET => {
            let length = take.u32()? as usize;
            Change::Set(key, take.bytes(length)?)
        }
        KIND_SET_LARGE => Change::SetLarge(key, take.u32()?, take.u32()?),
        KIND_DELETE => Change::Delete(key),
        KIND_FLUSH if key.is_empty() => Change::Flush,
        KIND_FLUSH => return Err(BodyError::Damaged("a flush names a key")),
        KIND_MEMBERS if key.is_empty() => match take_members(take)? {
            Some(members) => Change::Members(members),
            None => return Err(BodyError::Damaged("a list has more members than any partition")),
        },
        KIND_MEMBERS => return Err(BodyError::Damaged("a list of members names a key")),
        _ => return Err(BodyError::Damaged("an operation of unknown kind")),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::ValuePointer;

    fn sample() -> (Vec<Vec<Operation>>, Vec<u8>) {
        let key = |text: &str| Key::from(text.as_bytes());
        let node = |node, address: &str| Member { node, partition: 3, address: address.to_string() };
        let list = Members { min_replicas: 1, nodes: vec![node(7, "a:1"), node(8, "")], forgotten: vec![9] };
        let transactions = vec![
            vec![Operation::Set(key("a"), b"1".as_slice().into()), Operation::Delete(key("b"))],
            vec![Operation::SetLarge(key("c"), 5000, 77)],
            vec![Operation::Members(list.clone())],
            vec![Operation::Flush],
        ];
        let large = Entry::Pointer(ValuePointer { file: 3, offset: 4096, length: 5000, checksum: 77 });
        let value = Entry::Value(b"1".as_slice().into());
        let mut builder = Builder::new(Epoch { number: 3, id: 9 }, 41, b"what was there before".to_vec());
        let changes: [(&[u8], &Entry); 2] = [(b"a", &value), (b"b", &Entry::Tombstone)];
        builder.add(changes.into_iter());
        builder.add([(b"c".as_slice(), &large)].into_iter());
        builder.add_members(&list);
        builder.add_flush();
        let lengths = [
            change_len(b"a", &value) + change_len(b"b", &Entry::Tombstone),
            change_len(b"c", &large),
            members_len(&list),
            FLUSH_LEN,
        ];
        let bytes = builder.finish(1_000, Some(99));
        assert_eq!(bytes.len(), BODY_HEADER + lengths.iter().map(|length| 4 + length).sum::<usize>());
        (transactions, bytes)
    }

    #[test]
    fn a_body_comes_back_as_it_went() {
        let (transactions, bytes) = sample();
        let body = decode(&bytes, true).expect("a good body");
        assert_eq!(body.transactions, transactions);
        assert_eq!((body.first_version, body.last_version(), body.epoch.id), (41, 44, 9));
        assert_eq!((body.commit_ms, body.before), (1_000, Some(99)));
        assert_eq!(sum(&bytes), Some(crc(&[&bytes[4..]])));
        let first = Builder::new(Epoch::default(), 1, Vec::new()).finish(5, None);
        assert_eq!(decode(&first, true).expect("a good body").before, None);
    }

    #[test]
    fn bodies_of_before_there_was_a_chain_are_read() {
        let (transactions, bytes) = sample();
        let mut old = [&bytes[..BEFORE_AT], &bytes[BODY_HEADER..]].concat();
        old[4..8].copy_from_slice(&[1, 0, 0, 0]);
        let sum = crc(&[&old[4..]]);
        old[..4].copy_from_slice(&sum.to_le_bytes());
        let body = decode(&old, true).expect("a good body");
        assert_eq!((body.transactions, body.before, body.format), (transactions, None, 1));
    }

    #[test]
    fn what_was_never_written_is_damage() {
        let (_, good) = sample();
        let last = good.len() - 3;
        assert_eq!(good[last], KIND_FLUSH);
        let with_key = [&good[..last], &[KIND_FLUSH, 1, 0, b'k']].concat();
        assert_eq!(decode(&with_key, false), Err(BodyError::Damaged("a flush names a key")));
        let mut late = good.clone();
        late[24..32].fill(0xff);
        assert_eq!(decode(&late, false), Err(BodyError::Damaged("a batch has more versions than there are")));
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_seen() {
        let (_, bytes) = sample();
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad, true).is_err(), "bit {bit}");
        }
        for length in 0..bytes.len() {
            assert!(decode(&bytes[..length], true).is_err());
            let _ = decode(&bytes[..length], false);
        }
    }
}
