//! What a source sends, byte by byte: a source and a sink in one process, without a socket.

mod common;

use std::cell::Cell;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant, SystemTime};

use common::feed::{Meddled, Meddler};
use common::judge::Judge;
use mirror::journal::Journal;
use mirror::model::limits::*;
use mirror::model::{NodeId, Timestamp, TreePath};
use mirror::role::identity::SourceIdentity;
use mirror::role::options::{SinkOptions, SourceOptions};
use mirror::role::{Feed, LinkId, Peer, Role, Sink, Source};
use mirror::tree::{Reader, Root};
use mirror::watch::{Watch, WatchOptions};
use mirror::wire::*;

/// Both ends, and what went down between them.
struct World {
    scratch: tempfile::TempDir,
    source: Source<Watch>,
    sink: Sink,
    link: LinkId,
    /// Items sent so far, and their bytes.
    items: Vec<Item>,
    bytes: usize,
}

impl World {
    /// Makes a tree by `fill`, and a source and a sink of it that know nothing of each other.
    fn new(fill: impl FnOnce(&Path)) -> World {
        let scratch = common::machine::scratch();
        let at = |name: &str| {
            let path = scratch.path().join(name);
            fs::create_dir_all(&path).unwrap();
            path
        };
        let (src, dst) = (at("src"), at("dst"));
        fill(&src);
        let source = SourceOptions {
            root: src,
            state_dir: at("state"),
            journal_bytes: 64 << 20,
            rescan_interval: Duration::from_secs(3600),
            accept_root: false,
            lock_root: true,
        };
        let source = Source::open(source).unwrap();
        let sink = SinkOptions {
            root: dst,
            state_dir: at("sink-state"),
            adopt: true,
            checkpoint_interval: Duration::from_secs(5),
        };
        let sink = Sink::open(sink).expect("the sink opens");
        let (items, bytes) = Default::default();
        let mut world = World { scratch, source, sink, link: LinkId(0), items, bytes };
        world.connect();
        world
    }

    fn src(&self, name: &str) -> PathBuf {
        self.scratch.path().join("src").join(name)
    }

    fn dst(&self, name: &str) -> PathBuf {
        self.scratch.path().join("dst").join(name)
    }

    /// Connects anew.
    fn connect(&mut self) {
        let now = Instant::now();
        if self.link != LinkId(0) {
            self.source.handle_closed(Some(self.link), "cut", now);
            self.sink.handle_closed(Some(self.link), "cut", now);
        }
        self.link = LinkId(self.link.0 + 1);
        self.sink.handle_connected(self.link, Peer::Upstream, now);
        self.source.handle_connected(self.link, Peer::Downstream, now);
    }

    /// Lets the source send one frame, and the sink apply and answer it. Returns whether there
    /// was anything.
    fn step(&mut self) -> bool {
        let (link, now) = (self.link, Instant::now());
        self.source.handle_timeout(now).unwrap();
        let frame = self.source.poll_transmit(link, now).unwrap();
        let mut moved = frame.is_some();
        if let Some(bytes) = frame {
            self.deliver(&bytes);
        }
        self.sink.handle_drained(link, now).unwrap();
        self.sink.handle_timeout(now).unwrap();
        while let Some(bytes) = self.sink.poll_transmit(link, now).unwrap() {
            moved = true;
            let source = &mut self.source;
            decode(&bytes, |frame, length| source.handle_frame(link, frame, length, now).unwrap());
        }
        moved
    }

    /// Lets the sink apply a frame.
    fn deliver(&mut self, bytes: &[u8]) {
        let (link, sink, items) = (self.link, &mut self.sink, &mut self.items);
        self.bytes += bytes.len();
        decode(bytes, |frame, length| {
            if frame.kind == FrameKind::Items {
                items.extend(frame.items().map(|item| item.unwrap().0));
            }
            sink.handle_frame(link, frame, length, Instant::now()).unwrap();
        });
    }

    /// Lets both work until the trees are equal.
    #[track_caller]
    fn converge(&mut self) {
        let judge = Judge::new(self.src(""), self.dst(""));
        let started = Instant::now();
        loop {
            let mut idle = Instant::now();
            while idle.elapsed() < Duration::from_millis(100) {
                if self.step() {
                    idle = Instant::now();
                }
                assert!(started.elapsed() < common::patience(), "it never rests");
            }
            let differences = judge.differences();
            if differences.is_empty() {
                return;
            }
            assert!(started.elapsed() < common::patience() / 3, "{}", differences.join("\n"));
        }
    }
}

/// Takes its time, for as many records as it is told to.
struct Slow {
    left: Rc<Cell<u32>>,
    /// How often there will be more to take up between a read and its use.
    surprises: u32,
}

impl Meddler for Slow {
    fn before_event(&mut self, watch: &mut Watch) {
        if let Some(left) = self.left.get().checked_sub(1) {
            self.left.set(left);
            std::thread::sleep(Duration::from_millis(1));
            watch.mark(&TreePath::new("other").unwrap());
        }
    }

    fn before_links(&mut self) {
        if let Some(surprises) = self.surprises.checked_sub(1) {
            self.surprises = surprises;
            self.left.set(100);
        }
    }
}

fn decode(bytes: &[u8], handle: impl FnOnce(Frame<'_>, usize)) {
    let mut decoder = FrameDecoder::default();
    decoder.receive(bytes);
    let (frame, length) = decoder.next_frame().unwrap().unwrap();
    handle(frame, length);
}

/// More names than one state holds are all united with new content that travels inline.
#[test]
fn a_small_file_with_very_many_names_stays_one_file() {
    let name = |number: usize| format!("{number:0>250}");
    let mut world = World::new(|src| {
        fs::write(src.join(name(0)), "old").unwrap();
        for number in 1..601 {
            fs::hard_link(src.join(name(0)), src.join(name(number))).unwrap();
        }
    });
    world.converge();
    fs::write(world.src(&name(7)), "new").unwrap();
    world.converge();
    let file = fs::File::options().write(true).open(world.src(&name(9))).unwrap();
    file.write_all_at(b"two", 0).unwrap();
    drop(file);
    world.converge();
}

/// Holes cost neither end anything, and a file that takes long to digest is not compared by one:
/// neither end may be silent for 10 seconds (man 7 mirror-protocol).
#[test]
fn a_huge_sparse_file_holds_nothing_up() {
    let make = |path: &Path| {
        let file = fs::File::create(path).unwrap();
        file.set_len(1 << 40).unwrap();
        file.write_all_at(b"data", 1 << 39).unwrap();
        file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
    };
    for there_already in [false, true] {
        let mut world = World::new(|src| {
            make(&src.join("huge"));
            if there_already {
                make(&src.parent().unwrap().join("dst/huge"));
            }
        });
        let before = fs::metadata(world.dst("huge")).map_or(0, |stat| stat.ino());
        let started = Instant::now();
        let is_there = |stat: fs::Metadata| stat.ino() != before && stat.len() == 1 << 40;
        while !fs::metadata(world.dst("huge")).is_ok_and(is_there) {
            world.step();
            assert!(started.elapsed() < Duration::from_secs(5), "there already: {there_already}");
        }
        let mut data = [0; 4];
        let file = fs::File::open(world.dst("huge")).unwrap();
        file.read_exact_at(&mut data, 1 << 39).unwrap();
        assert_eq!(&data, b"data");
    }
}

/// What the sink has to digest for items on their way is bounded in bytes, however few the items.
#[test]
fn a_comparison_asks_for_few_digests_at_once() {
    const SIZE: u64 = 16 << 20;
    let fill = |directory: &Path| {
        for number in 0..20 {
            let file = fs::File::create(directory.join(number.to_string())).unwrap();
            file.set_len(SIZE).unwrap();
            file.write_all_at(&[1; 4096], 0).unwrap();
            file.set_modified(SystemTime::UNIX_EPOCH).unwrap();
        }
    };
    let mut world = World::new(|src| {
        fill(src);
        fill(&src.parent().unwrap().join("dst"));
    });
    // The hello and its answer.
    while world.items.is_empty() {
        world.step();
    }
    let on_their_way = world.items.len();
    while let Some(frame) = world.source.poll_transmit(world.link, Instant::now()).unwrap() {
        world.deliver(&frame);
    }
    let is_digest = |item: &&Item| {
        matches!(item, Item::State { content: Content::Compare { digest: Some(_) }, .. })
    };
    let digests = world.items[on_their_way..].iter().filter(is_digest).count() as u64;
    assert!(digests * SIZE < 3 * DIGEST_BYTES_MAX, "{digests} at once");
    world.converge();
    assert_eq!(world.items.iter().filter(is_digest).count(), 20);
}

/// A big file travels once, however many names it has: at first, and when it is written to.
#[test]
fn a_big_file_of_many_names_travels_once() {
    const SIZE: usize = 6 << 20;
    let mut world = World::new(|src| {
        for directory in ["a", "b", "c"] {
            fs::create_dir(src.join(directory)).unwrap();
        }
        fs::write(src.join("b/first"), vec![1; SIZE]).unwrap();
        for number in 0..30 {
            let directory = ["a", "b", "c"][number % 3];
            let name = src.join(directory).join(number.to_string());
            fs::hard_link(src.join("b/first"), name).unwrap();
        }
    });
    world.converge();
    assert!(world.bytes < SIZE * 5 / 4, "{} bytes at first", world.bytes);
    for name in ["b/first", "c/5"] {
        world.bytes = 0;
        fs::write(world.src(name), vec![2; SIZE]).unwrap();
        world.converge();
        assert!(world.bytes < SIZE * 5 / 4, "{} bytes for a change of {name}", world.bytes);
    }
}

/// A write that leaves size and time as they were is seen whenever it comes on a big file's way.
#[test]
fn a_write_behind_a_transfer_is_not_lost() {
    const SIZE: usize = 600_000;
    for step in 0..9 {
        let mut world = World::new(|_| {});
        world.converge();
        fs::write(world.src("big"), vec![1; SIZE]).unwrap();
        let time = fs::metadata(world.src("big")).unwrap().modified().unwrap();
        while !world.items.iter().any(|item| matches!(item, Item::StageOpen { .. })) {
            world.step();
        }
        for _ in 0..step {
            world.step();
        }
        let file = fs::File::options().write(true).open(world.src("big")).unwrap();
        file.write_all_at(&vec![2; SIZE], 0).unwrap();
        file.set_modified(time).unwrap();
        drop(file);
        world.converge();
    }
}

/// A drain that takes long ends all the same, and what was read before it is not used.
#[test]
fn a_long_drain_takes_several_turns_and_nothing_is_sent_before_its_end() {
    let scratch = common::machine::scratch();
    let (src, state) = (scratch.path().join("src"), scratch.path().join("state"));
    for directory in [&src, &state] {
        fs::create_dir(directory).unwrap();
    }
    fs::write(src.join("file"), "x").unwrap();
    fs::hard_link(src.join("file"), src.join("other")).unwrap();
    let root = Root::open(&src).unwrap();
    let options = WatchOptions { rescan_interval: Duration::from_secs(3600) };
    let watch = Watch::new(Root::open(&src).unwrap(), options).unwrap();
    let left = Rc::new(Cell::new(100));
    let feed = Meddled { watch, meddler: Slow { left: left.clone(), surprises: 3 } };
    let identity = SourceIdentity::load(&state, &root, false).unwrap();
    let journal = Journal::open(&state.join("journal"), 64 << 20).unwrap();
    let mut source = Source::new(src, feed, journal, Reader::new(root), identity).unwrap();
    let (link, started) = (LinkId(1), Instant::now());
    source.handle_connected(link, Peer::Downstream, started);
    let hello = DownstreamHello {
        versions: mirror::wire::message::VERSIONS,
        node: NodeId(2),
        tree: None,
        watermarks: None,
        trusted_until: Timestamp::default(),
        trusted_node: None,
        // A comparison asks for the other names of a file, between its reading and its use.
        empty: false,
        lacks: mirror::model::Lacks::NOTHING,
    };
    decode(&encode_message(&Message::DownstreamHello(hello)), |frame, length| {
        source.handle_frame(link, frame, length, started).unwrap();
    });
    let (mut turns, mut names) = (0, 0);
    while names < 2 {
        let turn = Instant::now();
        source.handle_timeout(turn).unwrap();
        let frame = source.poll_transmit(link, turn).unwrap();
        turns += 1;
        assert!(turn.elapsed() < Duration::from_millis(80), "{:?}", turn.elapsed());
        assert!(started.elapsed() < common::patience());
        if left.get() > 0 {
            let due = source.poll_timeout().is_some_and(|at| at <= Instant::now());
            assert!(due, "it does not go on by itself");
        }
        let Some(frame) = frame else { continue };
        decode(&frame, |frame, _| {
            if frame.kind == FrameKind::Items {
                for item in frame.items() {
                    let Item::State { path, .. } = item.unwrap().0 else { continue };
                    assert_eq!(left.get(), 0, "{path} is sent in the middle of a drain");
                    names += u32::from(!path.is_root());
                }
            }
        });
    }
    assert!(turns >= 16, "{turns}");
}

/// A commit sends what was read long before: a record of since then still has something to add.
#[test]
fn a_commit_does_not_stand_for_what_was_written_since() {
    const SIZE: usize = 600_000;
    let mut world = World::new(|_| {});
    world.converge();
    fs::write(world.src("big"), vec![1; SIZE]).unwrap();
    let time = fs::metadata(world.src("big")).unwrap().modified().unwrap();
    let is_chunk = |item: &&Item| matches!(item, Item::StageData { .. });
    while world.items.iter().filter(is_chunk).count() < 3 {
        world.step();
    }
    // The sender lags, and the second content looks like the first.
    for number in 0..200 {
        fs::write(world.src(&format!("small-{number}")), vec![5; 50_000]).unwrap();
    }
    let file = fs::File::options().write(true).open(world.src("big")).unwrap();
    file.write_all_at(&vec![2; SIZE], 0).unwrap();
    file.set_modified(time).unwrap();
    drop(file);
    world.converge();
}
