//! The format: what is written is read, and nothing else is.

use super::*;

fn stamp(inode: u64) -> Stamp {
    Stamp {
        inode,
        birth: Timestamp { seconds: 1_700_000_000, nanoseconds: 5 },
        mode: 0o100644,
        size: 5430 + inode,
        mtime: Timestamp { seconds: -1, nanoseconds: 999_999_999 },
        ctime: Timestamp { seconds: 1_800_000_000, nanoseconds: inode as u32 },
        is_linked: inode.is_multiple_of(2),
        is_warm: inode.is_multiple_of(3),
    }
}

fn listing(names: &[&[u8]]) -> Listing {
    let files = names.iter().zip(10..);
    let files = files.map(|(name, inode)| Listed { name: name.to_vec(), stamp: stamp(inode) });
    Listing { own: stamp(7), files: files.collect() }
}

fn directory(parent: u64, name: &[u8], listing: Option<Extent>) -> Option<TableDirectory> {
    Some(TableDirectory {
        parent,
        name: name.to_vec(),
        file_system: 0,
        inode: u64::MAX - parent,
        birth: Timestamp { seconds: 1, nanoseconds: 2 },
        is_mount: parent == 1,
        listing,
        is_stale: parent == 1,
    })
}

fn summary() -> Summary {
    Summary {
        tree: TreeId(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
        epoch: EpochId { counter: 3, random: 0xfeed },
        position: Sequence(70_000),
        table_position: Sequence(70_001),
        file_systems: vec![0xabcd_ef01, 5],
        untold: vec![TreePath::new(&b"a/\xff"[..]).unwrap()],
    }
}

const NAMES: &[&[u8]] = &[b"\x01", b"file", b"file-2", b"filename\xff", b"other"];

/// Writes a catalog of two listings, and returns where they are and the table.
fn write(at: &Path) -> (Vec<Extent>, Vec<TableEntry>) {
    let mut writer = CatalogWriter::create(at).unwrap();
    let extents =
        vec![writer.listing(&listing(NAMES)).unwrap(), writer.listing(&listing(&[])).unwrap()];
    let table = vec![
        TableEntry { number: 0, directory: directory(0, b"", Some(extents[0])) },
        TableEntry { number: 300, directory: directory(0, b"d", Some(extents[1])) },
        TableEntry { number: 1, directory: directory(1, b"e\xfe", None) },
        TableEntry { number: 300, directory: None },
    ];
    for entry in &table {
        writer.table_entry(entry).unwrap();
    }
    writer.finish(&summary()).unwrap().install().unwrap();
    (extents, table)
}

#[test]
fn the_format_is_the_one_of_version_1() {
    let scratch = tempfile::tempdir().unwrap();
    assert!(Catalog::open(scratch.path()).unwrap().is_none());
    let (extents, table) = write(scratch.path());
    let path = scratch.path().join(CATALOG_NAME);
    super::super::tests::assert_golden("catalog-v1.bin", &std::fs::read(&path).unwrap());
    let catalog = Catalog::open(scratch.path()).unwrap().unwrap();
    assert_eq!(*catalog.summary(), summary());
    assert_eq!(catalog.listing(extents[0]).unwrap(), listing(NAMES));
    assert_eq!(catalog.listing(extents[1]).unwrap(), listing(&[]));
    let mut found = Vec::new();
    catalog.table(|entry| found.push(entry)).unwrap();
    assert_eq!(found, table);
    // A listing that is copied is the same in the copy.
    let mut writer = CatalogWriter::create(scratch.path()).unwrap();
    let copied = writer.copy(&catalog, extents[0]).unwrap();
    let copy = writer.finish(&summary()).unwrap().install().unwrap();
    assert_eq!(copy.listing(copied).unwrap(), listing(NAMES));
    assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 1);
}

#[test]
fn every_flipped_bit_and_every_cut_is_damage() {
    let scratch = tempfile::tempdir().unwrap();
    write(scratch.path());
    let path = scratch.path().join(CATALOG_NAME);
    let bytes = std::fs::read(&path).unwrap();
    for bit in 0..bytes.len() * 8 {
        let mut damaged = bytes.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, damaged).unwrap();
        let error = Catalog::open(scratch.path()).unwrap_err();
        assert!(matches!(error, FileError::Damaged { .. }), "bit {bit}: {error}");
    }
    for length in 0..bytes.len() {
        std::fs::write(&path, &bytes[..length]).unwrap();
        let error = Catalog::open(scratch.path()).unwrap_err();
        assert!(matches!(error, FileError::Damaged { .. }), "cut at {length}: {error}");
    }
}

#[test]
fn another_version_is_named_and_left_alone() {
    let scratch = tempfile::tempdir().unwrap();
    write(scratch.path());
    let path = scratch.path().join(CATALOG_NAME);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[8..12].copy_from_slice(&2_u32.to_le_bytes());
    let checksum = crc32fast::hash(&bytes[..12]);
    bytes[12..16].copy_from_slice(&checksum.to_le_bytes());
    std::fs::write(&path, &bytes).unwrap();
    let error = Catalog::open(scratch.path()).unwrap_err();
    assert!(matches!(error, FileError::UnknownVersion { version: 2, .. }), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), bytes);
}

#[test]
fn what_was_never_written_is_not_decoded() {
    let mut random = fastrand::Rng::with_seed(7);
    for _ in 0..20_000 {
        let bytes: Vec<u8> = (0..random.usize(..60)).map(|_| random.u8(..)).collect();
        if let Some(listing) = Decoder::new(&bytes).listing() {
            assert!(listing.files.is_sorted_by(|one, other| one.name < other.name));
        }
        let mut decoder = Decoder::new(&bytes);
        while decoder.table_entry().is_some() {}
    }
}

#[test]
fn a_file_takes_few_bytes() {
    let files = (0..1000).map(|number| Listed {
        name: format!("picture-{number:04}.jpeg").into_bytes(),
        stamp: Stamp { inode: 100_000 + number, is_warm: false, ..stamp(number) },
    });
    let mut bytes = Vec::new();
    encoding::put_listing(&Listing { own: stamp(1), files: files.collect() }, &mut bytes);
    assert!(bytes.len() < 40 * 1000, "{} bytes for 1000 files", bytes.len());
}
