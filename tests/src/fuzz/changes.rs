//! What a consumer of changes reads: frames of the stream, lines of files, cursors.

use super::Script;
use turnstone_cdc::ValueFormat;
use turnstone_cdc::cursor::{Cursor, Epoch};
use turnstone_cdc::line::{InTransaction, Op, Place, put_change, put_copy_begin, put_copy_row, put_retract};
use turnstone_cdc::reader::{self, What};
use turnstone_engine::codec::crc;
use turnstone_net::wire::change::{Frame, PROTOCOL, Start, Subscribe};

fn place(script: &mut Script<'_>) -> Place {
    Place { partition: 1 + script.u8() % 16, epoch: script.u64(), version: script.u64() }
}

/// Whatever is written is read, and comes back as it went.
fn written(script: &mut Script<'_>) {
    let format = ValueFormat::ALL[usize::from(script.u8() % 3)];
    let (place, length) = (place(script), usize::from(script.u16() & 0xff));
    let key = script.bytes(length);
    let value = script.0;
    let mut out = Vec::new();
    put_change(place, InTransaction { n: 1, of: 1, ts: 7 }, Op::Set(key, value), format, &mut out);
    let text = out.strip_suffix(b"\n").expect("a line has an end");
    assert!(!text.contains(&b'\n'), "a line has one end");
    let line = reader::read(text).expect("what is written is read");
    let What::Set(_, got, back, written) = line.what else { panic!("a set was written") };
    assert_eq!((line.place, &*got), (place, key));
    let spaced = |bytes: &[u8]| -> Vec<u8> {
        bytes.iter().map(|b| if matches!(b, b'\n' | b'\r') { b' ' } else { *b }).collect()
    };
    match written {
        // JSON has no spaces around it in a line, and spaces for line ends.
        reader::Written::Json => assert_eq!(back.trim_ascii(), spaced(value).trim_ascii()),
        _ => assert_eq!(&*back, value),
    }
}

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
    match script.u8() % 5 {
        0 => drop(reader::read(script.0)),
        1 => written(&mut script),
        2 => framed(&mut script),
        3 => drop(Frame::decode(script.0)),
        _ => {
            let partition = script.u8();
            if let Ok(cursor) = Cursor::parse(script.0, partition) {
                let _ = (cursor.epoch_of(cursor.last), cursor.clone().go_back(cursor.last / 2));
            }
        }
    }
}

/// Lines, frames and a cursor, well-formed.
pub fn seeds() -> Vec<Vec<u8>> {
    let place = Place { partition: 1, epoch: 2, version: 3 };
    let mut seeds = Vec::new();
    let mut line = |put: &dyn Fn(&mut Vec<u8>)| {
        let mut seed = vec![0];
        put(&mut seed);
        seed.pop();
        seeds.push(seed);
    };
    let at = InTransaction { n: 1, of: 2, ts: 7 };
    line(&|out| put_change(place, at, Op::Set(b"k", b"{\"a\":1}"), ValueFormat::Json, out));
    line(&|out| put_change(place, at, Op::Set(b"\xff", b"\xfe"), ValueFormat::Text, out));
    line(&|out| put_change(place, at, Op::Delete(b"k"), ValueFormat::Text, out));
    line(&|out| put_copy_begin(place, 7, out));
    line(&|out| put_copy_row(place, b"k", b"v", ValueFormat::Base64, out));
    line(&|out| put_retract(place, Place { version: 9, ..place }, out));
    let mut any = vec![1];
    any.extend([0; 20]);
    any.extend(b"key and \"value\"\n");
    seeds.push(any);
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
        seeds.push([vec![2, bytes[0]], bytes[5..bytes.len() - 4].to_vec()].concat());
        seeds.push([vec![3], bytes].concat());
    }
    let mut cursor = Cursor::new(1);
    (cursor.last, cursor.epochs) = (9, vec![Epoch { number: 1, id: 2, first_version: 3 }]);
    seeds.push([vec![4, 1], cursor.text()].concat());
    seeds
}
