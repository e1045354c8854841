//! A look ahead at requests that are there and wait for their turn: what memory has of their keys is brought near for all of
//! them together ([`turnstone_engine::warm`]), before the first of them is run.

use super::conversation::{Conversation, Key};
use super::core::ServerCore;
use crate::wire::{Dialect, Request, frame};
use turnstone_engine::env::Env;
use turnstone_engine::{Partition, TOGETHER, warm};

/// Requests that are looked at for so many keys: with v1, two of three have none.
const REQUESTS: usize = 4 * TOGETHER;

/// The requests at the front of `input`, up to [`REQUESTS`]: where each ends, and its key, if it is about one.
fn requests(dialect: Dialect, input: &[u8]) -> impl Iterator<Item = (usize, Option<&[u8]>)> {
    let mut at = 0;
    let requests = std::iter::from_fn(move || {
        let header = frame::decode_header(dialect, &input[at..])?;
        let start = at + dialect.header_bytes();
        let payload = input[start..].get(..header.length as usize)?;
        at = start + payload.len();
        Some((at, Request::key_of(header.tag, payload)))
    });
    requests.take(REQUESTS)
}

/// Brings near what the next requests of a conversation are about; answers how many bytes of its input those are.
pub fn warm_next<E: Env>(conversation: &Conversation<E>, input: &[u8]) -> usize {
    let Some(partition) = &conversation.partition else { return input.len() };
    let mut keys: [(&Partition<E>, &[u8]); TOGETHER] = [(partition, &[]); TOGETHER];
    let (mut count, mut looked_at) = (0, 0);
    for (end, key) in requests(conversation.session.dialect, input) {
        looked_at = end;
        if let Some(key) = key {
            keys[count].1 = key;
            count += 1;
            if count == TOGETHER {
                break;
            }
        }
    }
    // One alone is waited for either way.
    if count > 1 {
        warm(keys[..count].iter().copied());
    }
    looked_at.max(1)
}

/// What the next request of a conversation is about.
fn first<E: Env>(conversation: &Conversation<E>) -> Option<(&Partition<E>, &[u8])> {
    let (_, key) = requests(conversation.session.dialect, conversation.input.rest()).next()?;
    Some((conversation.partition.as_ref()?, key?))
}

impl ServerCore {
    /// Brings near what the first requests of these conversations are about; of the first [`TOGETHER`] of them.
    pub(super) fn warm_first<'a>(&self, conversations: impl Iterator<Item = &'a Key>) {
        let all = self.conversations.borrow();
        let mut keys = conversations.take(TOGETHER).filter_map(|key| all.get(key)).filter_map(first);
        let (Some(first), Some(second)) = (keys.next(), keys.next()) else { return };
        let (mut found, mut count) = ([first; TOGETHER], 2);
        found[1] = second;
        for key in keys {
            found[count] = key;
            count += 1;
        }
        warm(found[..count].iter().copied());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_seen_up_to_one_that_is_not_whole() {
        for dialect in [Dialect::V1, Dialect::Turnstone2] {
            let mut bytes = Vec::new();
            let (key, value) = (b"key".as_slice(), b"value".as_slice());
            let asked = [Request::Begin, Request::Get { key }, Request::Set { key, value }, Request::Del { key }];
            asked.iter().for_each(|request| request.encode_frame(dialect, 7, &mut bytes).unwrap());
            let seen: Vec<_> = requests(dialect, &bytes).collect();
            assert_eq!(seen.iter().map(|(_, key)| *key).collect::<Vec<_>>(), [None, Some(key), Some(key), Some(key)]);
            assert_eq!(seen.last().map(|(end, _)| *end), Some(bytes.len()));
            for cut in 0..bytes.len() {
                let whole = seen.iter().filter(|(end, _)| *end <= cut).count();
                assert_eq!(requests(dialect, &bytes[..cut]).count(), whole);
            }
        }
        let many: Vec<u8> = (0..1000).flat_map(|_| [Request::Ping]).fold(Vec::new(), |mut bytes, request| {
            request.encode_frame(Dialect::V1, 0, &mut bytes).unwrap();
            bytes
        });
        assert_eq!(requests(Dialect::V1, &many).count(), REQUESTS);
        assert_eq!(
            requests(Dialect::V1, &[0x03, 0, 0, 0, 1, 9]).collect::<Vec<_>>(),
            [(6, None)],
            "no shape is checked"
        );
    }
}
