//! What a consumer of changes reads from the server: frames of the stream.

use super::Script;
use turnstone_engine::codec::crc;
use turnstone_net::wire::change::{Frame, PROTOCOL, Start, Subscribe};

/// A frame of any kind with any payload, its length and checksum as they should be.
fn framed(script: &mut Script<'_>) {
    let mut bytes = vec![script.u8()];
    bytes.extend((script.0.len() as u32).to_le_bytes());
    bytes.extend(script.0);
    bytes.extend(crc(&[&bytes]).to_le_bytes());
    if let Ok(Some((frame, used))) = Frame::decode(&bytes) {
        assert_eq!(used, bytes.len());
        let mut again = Vec::new();
        frame.encode(&mut again);
        if !matches!(frame, Frame::Refuse(_)) {
            assert_eq!(again, bytes);
        }
    }
}

/// The target.
pub fn run(input: &[u8]) {
    let mut script = Script(input);
    match script.u8() % 2 {
        0 => framed(&mut script),
        _ => drop(Frame::decode(script.0)),
    }
}

/// Frames, well-formed.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut seeds = Vec::new();
    let name = "cdc-worker-1".to_string();
    let subscribe = Subscribe {
        version: PROTOCOL,
        partition: 1,
        start: Start::Copy,
        last: 9,
        epochs: vec![],
        hold: 1,
        credit: 2,
        name,
    };
    for frame in [Frame::Subscribe(subscribe), Frame::Progress(7), Frame::Beat] {
        let mut bytes = Vec::new();
        frame.encode(&mut bytes);
        seeds.push([vec![0, bytes[0]], bytes[5..bytes.len() - 4].to_vec()].concat());
        seeds.push([vec![1], bytes].concat());
    }
    seeds
}
