//! Compatibility: the bytes of every message and item, as version 1 of the protocol has them.
//!
//! `tests/data/messages-v1.txt` is never edited; a change of the encoding is a new version.
//! `MIRROR_GOLDEN=write` adds the file for a new one.

use mirror::model::*;
use mirror::wire::message::VERSIONS;
use mirror::wire::*;

fn path(text: &str) -> TreePath {
    TreePath::new(text).unwrap()
}

fn epoch() -> EpochId {
    EpochId { counter: 3, random: 0x1122_3344_5566_7788 }
}

fn messages() -> Vec<Message> {
    let clock = Timestamp { seconds: 1_700_000_000, nanoseconds: 5 };
    let watermarks = Watermarks { epoch: epoch(), moved: Sequence(9), applied: Sequence(7) };
    let upstream = |plan| {
        Message::UpstreamHello(UpstreamHello {
            version: 1,
            tree: TreeId(1),
            chain: vec![NodeId(2)],
            epoch: Epoch { id: epoch(), parent: Some((epoch(), Sequence(4))) },
            plan,
            head: Sequence(300),
            clock,
        })
    };
    vec![
        Message::DownstreamHello(DownstreamHello {
            versions: VERSIONS,
            node: NodeId(u128::MAX),
            tree: Some(TreeId(1)),
            watermarks: Some(watermarks),
            trusted_until: clock,
            trusted_node: Some(NodeId(7)),
            empty: true,
            lacks: Lacks::NOTHING,
        }),
        upstream(Plan::Resume),
        upstream(Plan::Compare { moved: Sequence(1) }),
        upstream(Plan::Full { moved: Sequence(2) }),
        Message::Ack {
            moved: Sequence(3),
            applied: Sequence(2),
            durable: Sequence(1),
            handled_bytes: 1 << 40,
        },
        Message::Need { id: 5, path: path("a/b"), content: true, moved: Sequence(6) },
        Message::Heartbeat { head: Sequence(8), clock },
        Message::Bye(Refusal::Version(VERSIONS)),
        Message::Bye(Refusal::WrongTree(TreeId(7))),
        Message::Bye(Refusal::Cycle(NodeId(8))),
        Message::Bye(Refusal::Protocol("why".into())),
        Message::Bye(Refusal::ShuttingDown),
        Message::Bye(Refusal::StartOver("why".into())),
        Message::StageAbort { stage: StageId(4) },
    ]
}

fn items() -> Vec<Item> {
    let mtime = Timestamp { seconds: -1, nanoseconds: 999_999_999 };
    let state = |kind, content| Item::State {
        path: path("d/f"),
        entry: Entry {
            kind,
            metadata: Metadata {
                mode: 0o4755,
                uid: 1000,
                gid: 100,
                mtime,
                xattrs: vec![Xattr { name: b"user.x".into(), value: b"v".into() }],
            },
        },
        content,
        links: vec![path("g")],
        parent_mtime: Some(mtime),
    };
    let regular = || Kind::Regular { size: 300 };
    let stage = StageId(4);
    vec![
        Item::Rename { sequence: Sequence(1), from: path("a"), to: path("b") },
        Item::Exchange { sequence: Sequence(2), a: path("a"), b: path("b") },
        state(regular(), Content::Keep),
        state(regular(), Content::Compare { digest: None }),
        state(regular(), Content::Compare { digest: Some([7; 32]) }),
        state(regular(), Content::Inline { length: 300 }),
        state(regular(), Content::Staged { stage, digest: [9; 32] }),
        state(regular(), Content::Linked),
        state(Kind::Directory, Content::Keep),
        state(Kind::Symlink { target: b"to".into() }, Content::Keep),
        state(Kind::Fifo, Content::Keep),
        state(Kind::Socket, Content::Keep),
        state(Kind::CharDevice { major: 1, minor: 3 }, Content::Keep),
        state(Kind::BlockDevice { major: 8, minor: 1 }, Content::Keep),
        Item::Absent { path: path("x"), parent_mtime: None },
        Item::Names {
            path: path("d"),
            after: b"a".into(),
            names: vec![serde_bytes::ByteBuf::from(b"b")],
            last: true,
        },
        Item::StageOpen { stage, size: 1 << 33, path: path("big") },
        Item::StageData { stage, offset: 1 << 32, length: 262_144 },
        Item::StageAbort { stage },
        Item::Through { sequence: Sequence(10), clock: mtime, reached: Some(Sequence(300)) },
        Item::Answered { id: 11 },
        Item::Unfinished { path: path("a/b") },
    ]
}

/// What came after the first messages and items, in the order in which it came.
fn added() -> Vec<Vec<u8>> {
    let listed = |shared, rest: &str, digest| Listed { shared, rest: rest.into(), digest };
    let directory = Some(DirectoryDigest([6; 16]));
    let differs = Differs {
        directories: vec![listed(0, "a/b", directory), listed(2, "c", None)],
        is_whole: true,
    };
    let digest = |after, digest| Item::Digest {
        range: RangeId(12),
        path: path("a"),
        after,
        through: path("a/z"),
        entries: 300,
        digest,
    };
    vec![
        encode_message(&Message::DownstreamHello(DownstreamHello {
            versions: VERSIONS,
            node: NodeId(1),
            tree: None,
            watermarks: None,
            trusted_until: Timestamp { seconds: 5, nanoseconds: 6 },
            trusted_node: None,
            empty: false,
            lacks: Lacks::OWNERS.with(Lacks::ACLS),
        })),
        encode_message(&Message::Compared { range: RangeId(12), differs: None }),
        encode_message(&Message::Compared { range: RangeId(13), differs: Some(differs) }),
        encode_item(&digest(None, None)),
        encode_item(&digest(Some(path("a/b")), Some([5; 32]))),
    ]
}

fn encode_item(item: &Item) -> Vec<u8> {
    let mut frame = ItemsFrame::default();
    frame.push(item);
    frame.finish()
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn every_message_keeps_its_bytes() {
    let mut lines = String::new();
    for message in messages() {
        lines += &format!("{}\n", hex(&encode_message(&message)));
    }
    for item in items() {
        lines += &format!("{}\n", hex(&encode_item(&item)));
    }
    for bytes in added() {
        lines += &format!("{}\n", hex(&bytes));
    }
    let file = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/messages-v1.txt");
    if std::env::var_os("MIRROR_GOLDEN").is_some_and(|word| word == "write") {
        std::fs::write(file, &lines).unwrap();
    }
    let golden = std::fs::read_to_string(file).unwrap();
    for (number, (now, then)) in lines.lines().zip(golden.lines()).enumerate() {
        assert_eq!(now, then, "line {}", number + 1);
    }
    assert_eq!(lines.lines().count(), golden.lines().count());
}

#[test]
fn every_message_comes_back() {
    for message in messages() {
        let bytes = encode_message(&message);
        let mut decoder = FrameDecoder::default();
        decoder.receive(&bytes);
        let (frame, _) = decoder.next_frame().unwrap().unwrap();
        assert_eq!(frame.message().unwrap(), message);
    }
}
