//! One contract for every disk: the simulated one, the ring's files, glommio's files.

use turnstone_engine::buffer::AlignedBuf;
use turnstone_engine::disk::{Disk, DiskErrorKind, File, IoClass, OpenMode};
use turnstone_engine::env::Env;
use turnstone_tests::one_core;
use turnstone_tests::real::TempDir;
use turnstone_tests::sim::world::End;
use turnstone_tests::sim::{DiskImage, SimDisk, World};

fn pattern(blocks: usize, seed: u8) -> AlignedBuf {
    let bytes: Vec<u8> = (0..blocks * 4096).map(|i| (i as u8).wrapping_mul(31).wrapping_add(seed)).collect();
    AlignedBuf::copy_of(&bytes)
}

/// Everything that `engine::disk` promises and a live process can see.
async fn contract<D: Disk>(disk: &D, class: IoClass) {
    let missing = disk.open("a", OpenMode::Existing, class).await.err().expect("it is not there");
    assert_eq!(missing.kind, DiskErrorKind::NotFound);
    let a = disk.open("a", OpenMode::Create, class).await.expect("created");
    let twice = disk.open("a", OpenMode::Create, class).await.err().expect("it is there");
    assert_eq!(twice.kind, DiskErrorKind::Exists);
    assert_eq!(a.length().await.unwrap(), 0);
    assert_eq!(a.read_at(0, 100).await.unwrap().len(), 0, "nothing to read yet");

    a.write_at(pattern(3, 1), 4096).await.unwrap();
    assert_eq!(a.length().await.unwrap(), 4 * 4096);
    assert!(a.read_at(0, 4096).await.unwrap().iter().all(|b| *b == 0), "holes read as zeros");
    let expected = pattern(3, 1);
    assert_eq!(a.read_at(4096, 3 * 4096).await.unwrap()[..], expected[..]);
    assert_eq!(a.read_at(4096 + 5, 4099).await.unwrap()[..], expected[5..5 + 4099], "any offset, any length");
    assert_eq!(a.read_at(4 * 4096 - 10, 100).await.unwrap()[..], expected[3 * 4096 - 10..], "fewer at the end");
    assert_eq!(a.read_at(1 << 20, 100).await.unwrap().len(), 0, "nothing beyond the end");

    a.write_durable(pattern(1, 9), 8192).await.unwrap();
    assert_eq!(a.read_at(8192, 4096).await.unwrap()[..], pattern(1, 9)[..], "overwritten");
    assert_eq!(a.read_at(4096, 4096).await.unwrap()[..], expected[..4096], "the neighbour is as it was");
    a.sync_data().await.unwrap();

    let b = disk.open("b", OpenMode::Create, class).await.unwrap();
    b.allocate(10 * 4096).await.unwrap();
    assert_eq!(b.length().await.unwrap(), 10 * 4096);
    b.allocate(4096).await.unwrap();
    assert_eq!(b.length().await.unwrap(), 10 * 4096, "allocation never shortens");
    assert!(b.read_at(0, 10 * 4096).await.unwrap().iter().all(|b| *b == 0));
    b.write_at(pattern(2, 3), 0).await.unwrap();
    b.truncate(4096).await.unwrap();
    assert_eq!(b.length().await.unwrap(), 4096);
    disk.flush(&[&a, &b]).await.unwrap();

    let names = |list: Vec<(String, u64)>| list.into_iter().filter(|(n, _)| n.len() == 1).collect::<Vec<_>>();
    assert_eq!(names(disk.list().await.unwrap()), vec![("a".into(), 4 * 4096), ("b".into(), 4096)]);
    disk.rename("b", "a").await.unwrap();
    assert_eq!(names(disk.list().await.unwrap()), vec![("a".into(), 4096)], "a rename replaces");
    assert_eq!(a.read_at(4096, 10).await.unwrap()[..], expected[..10], "an open file stays readable");
    disk.remove("a").await.unwrap();
    assert_eq!(b.read_at(0, 10).await.unwrap()[..], pattern(2, 3)[..10]);
    let gone = disk.remove("a").await.expect_err("it is gone");
    assert_eq!(gone.kind, DiskErrorKind::NotFound);
    assert_eq!(disk.rename("a", "c").await.expect_err("it is gone").kind, DiskErrorKind::NotFound);
    disk.sync_names().await.unwrap();
    assert_eq!(names(disk.list().await.unwrap()), vec![]);
}

#[test]
fn the_simulated_disk_keeps_the_contract() {
    let world = World::new(1);
    let disk = SimDisk::new(world.clone(), DiskImage::default());
    let end = world.run(async move {
        contract(&disk, IoClass::Foreground).await;
        contract(&disk, IoClass::Bulk).await;
    });
    assert_eq!(end, End::Done(()));
}

#[test]
fn the_rings_files_and_glommios_files_keep_the_contract() {
    let directory = TempDir::new("contract");
    let kept = one_core::run(directory.path(), |core| async move {
        let env = core.env(1).await.expect("a directory");
        contract(env.disk(), IoClass::Foreground).await;
        contract(env.disk(), IoClass::Bulk).await;
    });
    kept.expect("both contracts are kept");
}
