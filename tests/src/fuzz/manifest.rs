//! The decoder of the manifest.
//!
//! Mode 0: any bytes as the file. Mode 1: any bytes as the payload of a sound file. Both: what is read encodes to as many
//! bytes, and those read as the same. Mode 2: a manifest with one damage in its payload is refused as corrupt.

use super::memory::{MemoryEnv, at_once};
use super::{Damage, Script};
use turnstone_engine::codec::crc;
use turnstone_engine::disk::BLOCK;
use turnstone_engine::header::{self, FileKind};
use turnstone_engine::manifest::{
    EpochStart, Generation, Hold, HoldOwner, LastBody, Leadership, Manifest, ManifestStore, Mark, MembersRecord, Role,
    RunSummary, Segment, Upstream, ValueFile,
};
use turnstone_engine::types::{Epoch, LogPosition};
use turnstone_engine::types::{Member, Members};
use turnstone_engine::{Error, names};

const PARTITION: u8 = 3;

/// The target.
pub fn run(input: &[u8]) {
    let mut script = Script(input);
    match script.u8() % 3 {
        0 => {
            // Past the zeros of a header block, which would be most of every input.
            let mut file = header::encode(FileKind::Manifest, PARTITION, 0).to_vec();
            let header = script.u8();
            let given = script.bytes(usize::from(header));
            file[..given.len()].copy_from_slice(given);
            file.extend_from_slice(script.0);
            read(file);
        }
        1 => {
            read(sound(script.0));
        }
        _ => {
            let length = usize::from(script.u16());
            let payload = script.bytes(length);
            let whole = sound(payload);
            let decodes = Manifest::decode(&whole[BLOCK..]).is_ok();
            let mut hurt = payload.to_vec();
            Damage::take(&mut script, payload.len()).apply(&mut hurt);
            let same = hurt == payload;
            let file = [&whole[..BLOCK + 8], &hurt].concat();
            assert_eq!(read(file).is_some(), decodes && same, "a damaged manifest");
        }
    }
}

fn sound(payload: &[u8]) -> Vec<u8> {
    let mut file = header::encode(FileKind::Manifest, PARTITION, 0).to_vec();
    file.extend((payload.len() as u32).to_le_bytes());
    file.extend(crc(&[payload]).to_le_bytes());
    file.extend_from_slice(payload);
    file
}

fn read(file: Vec<u8>) -> Option<Manifest> {
    let length = file.len();
    let env = MemoryEnv::new([(names::MANIFEST.to_string(), file)]);
    match at_once(ManifestStore::load(&env, PARTITION)) {
        Ok(manifest) => {
            let manifest = manifest.expect("the file is there");
            let again = manifest.encode();
            // Older ones end before the number of peers, before what there is of leadership beside the role, and their names, or
            // before the word on the log's end and the owners of holds, with whether it learns.
            let owners = size_of::<u32>() + 3 * manifest.holds.len() + 14;
            let newer = size_of::<u32>() + 38 + size_of::<u16>() * manifest.peers.len() + 1 + owners;
            assert!(BLOCK + again.len() <= length + newer, "nothing is invented");
            assert_eq!(Manifest::decode(&again).as_ref(), Ok(&manifest));
            Some(manifest)
        }
        Err(Error::Corrupt { file, .. } | Error::Newer { file, .. }) => {
            assert_eq!(file, names::MANIFEST);
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// A manifest with one of everything.
fn sample() -> Manifest {
    let position = LogPosition::new(2, 8192);
    let mark = Mark { version: 40, position, chain: 5, run: 6 };
    let run = |number: u32| RunSummary {
        number,
        base: number == 5,
        mark,
        entries: 10,
        keys: 9,
        live: vec![(1, 100)],
        used: vec![(1, 8192), (2, 4096)],
    };
    Manifest {
        generations: vec![Generation { secret: 77, start: LogPosition::new(1, 4096) }],
        epochs: vec![EpochStart { epoch: Epoch { number: 1, id: 3 }, first_version: 1 }],
        mark,
        durable: position,
        index: 4,
        runs: vec![run(5), run(6)],
        values: vec![
            ValueFile { number: 1, used: 8192, retired: None },
            ValueFile { number: 2, used: 4096, retired: Some(position) },
        ],
        segments: vec![Segment { number: 2, first_version: 30, used: 8192, checkpointed_ms: Some(5) }],
        holds: vec![Hold {
            name: "cdc".to_string(),
            version: 7,
            limit_bytes: 1 << 20,
            owner: HoldOwner::Consumer("CN=cdc".to_string()),
        }],
        next_number: 7,
        leadership: Leadership {
            number: 4,
            role: Role::Follower(Upstream { address: "a:1".to_string(), partition: 3 }),
            upstream_node: 5,
            voted_epoch: Epoch { number: 1, id: 3 },
            ordered: Some(1),
            promoted: 1,
            has_followed: true,
            learner: true,
        },
        members: vec![MembersRecord {
            version: 8,
            members: Members {
                min_replicas: 1,
                nodes: vec![Member { node: 5, partition: 3, address: "a:1".to_string() }],
                forgotten: vec![6],
            },
        }],
        peers: vec![turnstone_engine::manifest::Peer { node: 5, key: [9; 32], name: "b".to_string() }],
        keys: 9,
        live: vec![(1, 100)],
        log_end: true,
        last_body: LastBody { version: 30, sum: Some(7) },
    }
}

/// Manifests in each mode.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    for manifest in [Manifest::default(), sample()] {
        let encoded = manifest.encode();
        let payload = &encoded[8..];
        let length = (payload.len() as u16).to_le_bytes();
        seeds.push([&[0, 0], encoded.as_slice()].concat());
        seeds.push([&[1], payload].concat());
        seeds.push([&[2], length.as_slice(), payload, &[0]].concat());
        seeds.push([&[2], length.as_slice(), payload, &[1, 9, 0, 0, 0, 1, 0, 0, 0]].concat());
    }
    seeds
}
