//! Frames between nodes, and what the state machines of both sides make of any that a peer may send.

use super::Script;
use std::collections::BTreeSet;
use std::time::Duration;
use turnstone_engine::Standing;
use turnstone_engine::codec::crc;
use turnstone_engine::copy::{CopyEntry, CopySum};
use turnstone_engine::leadership::{Leadership, Upstream};
use turnstone_engine::manifest::{EpochStart, MembersRecord};
use turnstone_engine::types::{Epoch, Member, Members};
use turnstone_replication::election::{Election, knows_candidate};
use turnstone_replication::follower::{Follower, Step, Word, rejoin};
use turnstone_replication::leader::{Leader, Opening, View};
use turnstone_replication::leadership::{Event, step};
use turnstone_replication::quorum::{Broken, promises};
use turnstone_replication::wire::{
    Caller, Copying, Follows, Frame, Had, Hello, Ordered, PROTOCOL, Reason, Status, VoteRequest, Welcome, Wish,
    put_entry, take_entries,
};

const NOW: Duration = Duration::from_secs(100);
/// The frames of a conversation: each takes as long as a short input, and what matters takes a few of them.
const FRAMES: usize = 32;

/// Whatever decodes is what its bytes say, and nothing else.
fn decoded(bytes: &[u8]) -> Option<Frame> {
    match Frame::decode(bytes) {
        Ok(Some((frame, used))) => {
            assert!(used <= bytes.len());
            let mut again = Vec::new();
            frame.encode(&mut again);
            // A text that was no UTF-8 is mended, and of another version there is only a part; all else comes back as it was.
            let of_another = match &frame {
                Frame::Hello(hello) => hello.version != PROTOCOL,
                Frame::StatusRequest(caller) => caller.version != PROTOCOL,
                _ => false,
            };
            if !matches!(frame, Frame::Refuse(..)) && !of_another {
                assert_eq!(again, bytes[..used]);
            }
            Some(frame)
        }
        Ok(None) | Err(_) => None,
    }
}

/// A frame of any kind with any payload, its length and checksum as they should be.
fn mended(script: &mut Script<'_>) -> Option<Frame> {
    let (kind, length) = (script.u8(), usize::from(script.u16() & 0x3ff));
    let payload = script.bytes(length);
    let mut bytes = vec![kind];
    bytes.extend((payload.len() as u32).to_le_bytes());
    bytes.extend(payload);
    bytes.extend(crc(&[&bytes]).to_le_bytes());
    decoded(&bytes)
}

fn own_standing() -> Standing {
    let epochs = [(1, 7, 1), (3, 9, 41)];
    let start = |(number, id, first_version)| EpochStart { epoch: Epoch { number, id }, first_version };
    let nodes = (1..4).map(|node| Member { node, partition: 1, address: format!("n{node}:1") }).collect();
    let members = vec![MembersRecord { version: 5, members: Members { min_replicas: 1, nodes, forgotten: vec![8] } }];
    let epochs = epochs.into_iter().map(start).collect();
    Standing { adopted: Epoch { number: 3, id: 9 }, epochs, last: 60, published: 50, members, leads: true }
}

/// A peer that says what it likes, to each side.
fn conversation(mut script: Script<'_>) {
    let own = own_standing();
    let (address, dialed) = (":1".to_string(), "n1:1".to_string());
    let (adopted, epochs) = (own.adopted, own.epochs.clone());
    let (life, wish, resume) = (7, Wish::CopyIfNeeded, None);
    let (version, node, own_number, partition, last) = (PROTOCOL, 2, 1, 1, 60);
    let hello = Hello {
        version,
        node,
        own: own_number,
        partition,
        last,
        adopted,
        epochs,
        address,
        dialed,
        life,
        ordered: Ordered::No,
        wish,
        resume,
        sum: None,
    };
    let (mut follower, _) = Follower::open(hello, NOW);
    let view = View { node: 1, partition: 1, standing: own.clone(), oldest: 20, had: Had::default() };
    let mut leader: Option<Leader> = None;
    let mut election = Election::new((1, 1), own.clone());
    for _ in 0..FRAMES {
        if script.is_over() {
            break;
        }
        let Some(frame) = mended(&mut script) else { continue };
        match &frame {
            Frame::Hello(hello) => {
                leader = match Leader::open(hello, &view, NOW) {
                    Opening::Stream(leader, _) => Some(*leader),
                    Opening::Copy | Opening::Refused(_) => None,
                }
            }
            Frame::Keys(bytes) => {
                if let Ok(entries) = take_entries(bytes) {
                    let mut again = Vec::new();
                    entries.iter().for_each(|entry| put_entry(entry, &mut again));
                    assert_eq!(again, *bytes);
                }
            }
            Frame::Copy(copy) => assert!(copy.head().epochs.iter().all(|e| e.first_version <= copy.version)),
            Frame::VoteRequest(request) => {
                let key = (request.caller.node, request.caller.own);
                let _ = knows_candidate(((1, 1), &own), true, (key, &request.standing));
                let voted = Leadership { voted_epoch: own.adopted, ..Leadership::default() };
                if let Ok(Some(next)) = step(&voted, &Event::VoteRequested(request.epoch), Broken::default()) {
                    assert!(next.voted_epoch.number > own.adopted.number && next.role == voted.role);
                }
            }
            Frame::Status(answer) => {
                let asked = election.unasked();
                let key = asked.first().map_or((2, 1), Member::key);
                election.answered(key, answer.granted, answer.standing.clone());
                let _ = (election.best(), election.promises(), election.may_return(), election.newer_leader());
                assert!(election.next_number() > own.adopted.number);
                let _ = promises(&answer.standing.members, &BTreeSet::from([key]));
            }
            Frame::Accept(welcome) | Frame::Parted(welcome) => {
                for word in [Word::Log, Word::Members] {
                    if let turnstone_replication::follower::Rejoin::Cut(at) = rejoin(&own, &welcome.standing, word) {
                        assert!(at >= own.published, "what was shown is cut without a person's word");
                    }
                }
            }
            _ => {}
        }
        if let Some(leader) = &mut leader {
            // A violation ends the connection.
            let _ = leader.take(&frame, NOW);
        }
        if let Ok(Step::Adopt(epoch, _)) = follower.take(frame, NOW) {
            assert_eq!(epoch, follower.epoch());
        }
    }
}

/// See the parent.
pub fn run(input: &[u8]) {
    let mut script = Script(input);
    match script.u8() % 3 {
        0 => {
            decoded(script.0);
        }
        1 => {
            mended(&mut script);
        }
        _ => conversation(script),
    }
}

/// Every kind of frame, in each mode.
pub fn seeds() -> Vec<Vec<u8>> {
    let own = own_standing();
    let (epoch, epochs) = (own.adopted, own.epochs.clone());
    let (address, dialed) = (":1".to_string(), "n1:1".to_string());
    let bare = Standing { members: Vec::new(), ..own.clone() };
    let adopted = epoch;
    let caller = Caller { version: PROTOCOL, node: 2, own: 1, member: 1, partition: 1 };
    let mut keys = Vec::new();
    put_entry(&CopyEntry { key: b"key".as_slice().into(), version: 4, value: vec![9; 20].into() }, &mut keys);
    let copy = Copying {
        welcome: Welcome { node: 1, had: Had::default(), standing: bare.clone() },
        version: 45,
        keys: 1,
        members: own.members.clone(),
        resumed: false,
    };
    let frames = [
        Frame::Hello(Hello {
            version: PROTOCOL,
            node: 2,
            own: 1,
            partition: 1,
            last: 60,
            adopted,
            epochs: epochs.clone(),
            address: address.clone(),
            dialed,
            life: 7,
            ordered: Ordered::Yes,
            wish: Wish::CopyIfNeeded,
            resume: Some((50, b"key".as_slice().into())),
            sum: None,
        }),
        Frame::Ack(epoch, 60),
        Frame::Beat(50),
        Frame::StatusRequest(caller),
        Frame::VoteRequest(VoteRequest { caller, epoch, standing: Standing { leads: false, ..own.clone() } }),
        Frame::Leads(caller, address),
        Frame::Status(Box::new(Status {
            node: 2,
            granted: true,
            is_candidate: false,
            is_learner: true,
            promoted: 2,
            follows: vec![Follows { node: 3, upstream: Upstream { address: "n3:1".to_string(), partition: 1 } }],
            had: Had { epoch, version: 70 },
            standing: own,
        })),
        Frame::Accept(Welcome { node: 1, had: Had::default(), standing: bare.clone() }),
        Frame::Parted(Welcome { node: 1, had: Had::default(), standing: bare.clone() }),
        Frame::Refuse(Reason::Diverged, "they part".to_string()),
        Frame::Batch(vec![7; 20].into()),
        Frame::Value(vec![8; 20]),
        Frame::Standing(Box::new(bare.clone())),
        Frame::Copy(copy),
        Frame::Keys(keys),
        Frame::CopyEnd(CopySum { keys: 1, digest: 3 }),
    ];
    let mut seeds = Vec::new();
    let mut all = vec![2];
    for frame in frames {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        let payload = &bytes[5..bytes.len() - 4];
        let script = [&[bytes[0]], (payload.len() as u16).to_le_bytes().as_slice(), payload].concat();
        seeds.push([&[0], bytes.as_slice()].concat());
        seeds.push([&[1], script.as_slice()].concat());
        all.extend(script);
    }
    seeds.push(all);
    seeds
}
