//! A source whose records a test makes: what its sessions send of a real tree.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::os::fd::BorrowedFd;
use std::rc::Rc;

use mirror::journal::Journal;
use mirror::role::identity::SourceIdentity;
use mirror::role::{
    Confirmation, Feed, FeedEvent, LinkId, Peer, Progress, Role as _, Source, SourceFeed,
};
use mirror::tree::{Reader, Root};

use super::*;

/// A feed of records that a test makes.
#[derive(Clone, Default)]
pub(super) struct Given {
    pub(super) records: Rc<RefCell<VecDeque<Record>>>,
    unfinished: Vec<TreePath>,
    /// The names of the one file that has several.
    names: Vec<TreePath>,
    /// How often it was asked for the names of a file.
    asked: Rc<Cell<u32>>,
}

impl Feed for Given {
    fn poll_event(&mut self) -> Option<FeedEvent> {
        self.records.borrow_mut().pop_front().map(FeedEvent::Record)
    }
    fn committed(&mut self, _position: Position) {}
    fn start(&mut self, _next: Sequence) {}
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    fn is_settled(&self) -> bool {
        true
    }
    fn poll_timeout(&self) -> Option<Instant> {
        None
    }
    fn clock(&self) -> Timestamp {
        Timestamp::default()
    }
    fn links(&mut self, _: Identity, _: u32, path: &TreePath, most: usize) -> Vec<TreePath> {
        self.asked.set(self.asked.get() + 1);
        self.names.iter().filter(|name| *name != path).take(most).cloned().collect()
    }
    fn confirm(&mut self, _: &[u8], _: Identity) -> Confirmation {
        Confirmation::Known
    }
    fn progress(&self, _: &TreePath) -> Progress {
        Progress::Finished
    }
    fn unfinished(&self) -> Vec<TreePath> {
        self.unfinished.clone()
    }
    fn mark(&mut self, _: &TreePath) {}
    fn hold(&mut self) -> Option<String> {
        None
    }
}

impl SourceFeed for Given {}

/// A source of an empty tree whose records a test makes, and the number of the next record.
pub(super) fn given_source(feed: Given) -> (tempfile::TempDir, Source<Given>, u64) {
    let scratch = common::machine::scratch();
    let [root, state] = ["root", "state"].map(|name| scratch.path().join(name));
    for directory in [&root, &state] {
        std::fs::create_dir(directory).unwrap();
    }
    let tree = Root::open(&root).unwrap();
    let identity = SourceIdentity::load(&state, &tree, false).unwrap();
    let journal = Journal::open(&state.join("journal"), 64 << 20).unwrap();
    let first = journal.next_sequence().0;
    let source = Source::new(root, feed, journal, Reader::new(tree), identity).unwrap();
    (scratch, source, first)
}

/// Has a downstream connect with `hello`.
pub(super) fn connect(source: &mut Source<Given>, link: LinkId, hello: DownstreamHello) {
    let now = Instant::now();
    source.handle_connected(link, Peer::Downstream, now);
    let mut decoder = FrameDecoder::default();
    decoder.receive(&encode_message(&Message::DownstreamHello(hello)));
    let (frame, length) = decoder.next_frame().unwrap().unwrap();
    source.handle_frame(link, frame, length, now).unwrap();
}

/// Returns the messages and the items that a source has for a link.
pub(super) fn transmitted(source: &mut Source<Given>, link: LinkId) -> (Vec<Message>, Vec<Item>) {
    let (mut messages, mut items) = (Vec::new(), Vec::new());
    while let Some(bytes) = source.poll_transmit(link, Instant::now()).unwrap() {
        let mut decoder = FrameDecoder::default();
        decoder.receive(&bytes);
        let (frame, _) = decoder.next_frame().unwrap().unwrap();
        match frame.kind {
            FrameKind::Message => messages.push(frame.message().unwrap()),
            FrameKind::Items => items.extend(frame.items().map(|item| item.unwrap().0)),
        }
    }
    (messages, items)
}

/// A sink that was killed may have parts of files that it took for whole ones before a rename.
#[test]
fn unfinished_files_are_told_behind_the_renames_that_were_missed() {
    let unfinished = [TreePath::new("b").unwrap(), TreePath::new("open").unwrap()];
    let feed = Given { unfinished: unfinished.to_vec(), ..Given::default() };
    let (_scratch, mut source, first) = given_source(feed.clone());
    let (before, after) = (LinkId(1), LinkId(2));
    connect(&mut source, before, hello(None));
    let (messages, items) = transmitted(&mut source, before);
    let [Message::UpstreamHello(upstream)] = &messages[..] else { panic!("{messages:?}") };
    let told = unfinished.map(|path| Item::Unfinished { path });
    assert_eq!(items[..2], told);
    let sequence = Sequence(first);
    feed.records.borrow_mut().push_back(Record::new(sequence, rename("a", "b")));
    let head = upstream.head;
    let marks = Watermarks { epoch: upstream.epoch.id, moved: head, applied: head };
    connect(&mut source, after, DownstreamHello { watermarks: Some(marks), ..hello(None) });
    let (_, items) = transmitted(&mut source, after);
    assert!(matches!(items[0], Item::Rename { .. }), "{items:?}");
    assert_eq!(items[1..3], told);
    // To those who stay it is no news.
    feed.records.borrow_mut().push_back(Record::new(Sequence(first + 1), rename("b", "c")));
    let (_, items) = transmitted(&mut source, after);
    assert!(!items.iter().any(|item| matches!(item, Item::Unfinished { .. })), "{items:?}");
}

/// To look for all names at each of them costs the square of their number.
#[test]
fn a_walk_of_the_whole_tree_asks_for_the_names_of_a_file_once_at_most() {
    let feed = Given::default();
    let (scratch, mut source, _) = given_source(feed.clone());
    let name = |number| scratch.path().join("root").join(format!("name-{number}"));
    std::fs::write(name(0), "x").unwrap();
    for number in 1..10 {
        std::fs::hard_link(name(0), name(number)).unwrap();
    }
    for (link, empty, asked) in [(1, true, 0), (2, false, 1)] {
        feed.asked.set(0);
        connect(&mut source, LinkId(link), DownstreamHello { empty, ..hello(None) });
        let (_, items) = transmitted(&mut source, LinkId(link));
        let linked = |item: &&Item| matches!(item, Item::State { content: Content::Linked, .. });
        assert_eq!(items.iter().filter(linked).count(), 9);
        assert_eq!(feed.asked.get(), asked, "empty: {empty}");
    }
}

/// That a name was added says nothing of a content that was written before, and not sent.
#[test]
fn a_new_name_does_not_stand_for_the_content() {
    let [old, new] = ["old", "new"].map(|name| TreePath::new(name).unwrap());
    let feed = Given { names: vec![old.clone(), new.clone()], ..Given::default() };
    let (scratch, mut source, first) = given_source(feed.clone());
    let at = |name: &str| scratch.path().join("root").join(name);
    std::fs::write(at("old"), "x").unwrap();
    std::fs::hard_link(at("old"), at("new")).unwrap();
    connect(&mut source, LinkId(1), hello(None));
    let (messages, _) = transmitted(&mut source, LinkId(1));
    let [Message::UpstreamHello(upstream)] = &messages[..] else { panic!("{messages:?}") };
    // More than a batch lies between the two, so that the first is sent by a sender that lags.
    let between =
        (0..600).map(|number| (TreePath::new(format!("{number}")).unwrap(), What::CONTENT));
    let changes =
        [(new, What::NAME)].into_iter().chain(between).chain([(old.clone(), What::CONTENT)]);
    for (sequence, (path, what)) in (first..).map(Sequence).zip(changes) {
        feed.records.borrow_mut().push_back(Record::new(sequence, Change::Dirty { path, what }));
    }
    let marks =
        Watermarks { epoch: upstream.epoch.id, moved: upstream.head, applied: upstream.head };
    connect(&mut source, LinkId(2), DownstreamHello { watermarks: Some(marks), ..hello(None) });
    let (_, items) = transmitted(&mut source, LinkId(2));
    let is_content = |item: &Item| matches!(item, Item::State { path, content: Content::Inline { .. }, .. } if *path == old);
    assert!(items.iter().any(is_content), "the write was left out");
}

/// Each rename that is not sent leaves an entry at a path that it does not have.
#[test]
fn a_session_that_falls_behind_the_rename_index_starts_over() {
    let feed = Given::default();
    let (_scratch, mut source, first) = given_source(feed.clone());
    let (link, now) = (LinkId(1), Instant::now());
    connect(&mut source, link, hello(None));
    while source.poll_transmit(link, now).unwrap().is_some() {}
    // While the link takes nothing, more happens than the index holds.
    let count = RENAMES_MAX as u64 + 10;
    for number in 0..count {
        let change = if number % 2 == 0 { rename("a", "b") } else { rename("b", "a") };
        let sequence = Sequence(first + number);
        feed.records.borrow_mut().push_back(Record::new(sequence, change));
    }
    // A turn takes so long at most, and asks for another.
    while !feed.records.borrow().is_empty() {
        source.handle_readable(Instant::now()).unwrap();
    }
    let mut sent = 0;
    loop {
        match source.poll_transmit(link, now) {
            Err(_) => return, // It is told to start over.
            Ok(None) => break,
            Ok(Some(bytes)) => {
                let mut decoder = FrameDecoder::default();
                decoder.receive(&bytes);
                let (frame, _) = decoder.next_frame().unwrap().unwrap();
                let items = frame.items().map(|item| item.unwrap().0);
                sent += items.filter(|item| matches!(item, Item::Rename { .. })).count() as u64;
            }
        }
    }
    assert_eq!(sent, count, "renames were left out");
}
