//! Downstreams that are level share what is read and encoded; each still hears all of it.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use mirror::role::{LinkId, Role as _, Source};

use super::given::{Given, connect, given_source};
use super::*;

/// A source with downstreams that have all there is.
struct Fan {
    source: Source<Given>,
    feed: Given,
    links: Vec<LinkId>,
    next: u64,
    root: PathBuf,
    /// Bytes of items that each was sent.
    sent_bytes: HashMap<LinkId, u64>,
    _scratch: tempfile::TempDir,
}

impl Fan {
    fn new(count: u64) -> Fan {
        let feed = Given::default();
        let (scratch, source, next) = given_source(feed.clone());
        let links: Vec<LinkId> = (1..=count).map(LinkId).collect();
        let root = scratch.path().join("root");
        let sent_bytes = HashMap::new();
        let mut fan = Fan { source, feed, links, next, root, sent_bytes, _scratch: scratch };
        for link in fan.links.clone() {
            connect(&mut fan.source, link, hello(None));
            fan.take(link);
        }
        fan
    }

    fn record(&mut self, change: Change) -> Sequence {
        let sequence = Sequence(self.next);
        self.feed.records.borrow_mut().push_back(Record::new(sequence, change));
        self.next += 1;
        sequence
    }

    fn write(&mut self, name: &str, bytes: usize) -> Sequence {
        std::fs::write(self.root.join(name), vec![b'x'; bytes]).unwrap();
        self.record(Change::Dirty { path: path(name), what: What::CONTENT })
    }

    /// Takes one frame.
    fn take_one(&mut self, link: LinkId) -> Option<EncodedFrame> {
        let frame = self.source.poll_transmit(link, Instant::now()).unwrap()?;
        if !items(&frame).is_empty() {
            *self.sent_bytes.entry(link).or_default() += frame.len() as u64;
        }
        Some(frame)
    }

    /// Takes all there is, and acknowledges it.
    fn take(&mut self, link: LinkId) -> Vec<EncodedFrame> {
        let mut frames = Vec::new();
        while let Some(frame) = self.take_one(link) {
            frames.push(frame);
            let handled_bytes = self.sent_bytes.get(&link).copied().unwrap_or_default();
            let none = Sequence(0);
            self.say(
                link,
                Message::Ack { moved: none, applied: none, durable: none, handled_bytes },
            );
        }
        frames
    }

    fn say(&mut self, link: LinkId, message: Message) {
        let mut decoder = FrameDecoder::default();
        decoder.receive(&encode_message(&message));
        let (frame, length) = decoder.next_frame().unwrap().unwrap();
        self.source.handle_frame(link, frame, length, Instant::now()).unwrap();
    }

    fn need(&mut self, link: LinkId, name: &str) {
        let (path, moved) = (path(name), Sequence(0));
        self.say(link, Message::Need { id: 7, path, content: true, moved });
    }
}

fn items(frame: &EncodedFrame) -> Vec<Item> {
    let mut decoder = FrameDecoder::default();
    decoder.receive(frame);
    let (frame, _) = decoder.next_frame().unwrap().unwrap();
    match frame.kind {
        FrameKind::Message => Vec::new(),
        FrameKind::Items => frame.items().map(|item| item.unwrap().0).collect(),
    }
}

fn all_items(frames: &[EncodedFrame]) -> Vec<Item> {
    frames.iter().flat_map(items).collect()
}

fn has_state(items: &[Item], name: &str) -> bool {
    let is_it = |item: &Item| matches!(item, Item::State { path: at, .. } if *at == path(name));
    items.iter().any(is_it)
}

fn last_mark(items: &[Item]) -> Option<Sequence> {
    let mark = |item: &Item| match item {
        Item::Through { sequence, .. } => Some(*sequence),
        _ => None,
    };
    items.iter().rev().find_map(mark)
}

fn is_shared(one: &[EncodedFrame], other: &[EncodedFrame]) -> bool {
    one.len() == other.len() && one.iter().zip(other).all(|(one, other)| Arc::ptr_eq(one, other))
}

#[test]
fn what_all_lack_is_encoded_once() {
    let mut fan = Fan::new(3);
    fan.record(rename("a", "b"));
    let sequence = fan.write("f", 100);
    let taken: Vec<Vec<EncodedFrame>> =
        fan.links.clone().into_iter().map(|link| fan.take(link)).collect();
    let first = all_items(&taken[0]);
    assert!(has_state(&first, "f") && last_mark(&first) == Some(sequence), "{first:?}");
    assert!(matches!(first[0], Item::Rename { .. }), "{first:?}");
    assert!(is_shared(&taken[0], &taken[1]) && is_shared(&taken[0], &taken[2]));
}

/// One alone costs no detour, and none is left with another's frames.
#[test]
fn who_is_left_alone_goes_on() {
    let mut fan = Fan::new(2);
    fan.write("f", 100);
    let [stays, leaves] = [fan.links[0], fan.links[1]];
    fan.take(stays);
    fan.source.handle_closed(Some(leaves), "gone", Instant::now());
    let sequence = fan.write("g", 100);
    let taken = all_items(&fan.take(stays));
    assert!(has_state(&taken, "g") && !has_state(&taken, "f"));
    assert_eq!(last_mark(&taken), Some(sequence));
}

#[test]
fn who_is_too_slow_goes_on_alone_and_misses_nothing() {
    let mut fan = Fan::new(3);
    let slow = fan.links[2];
    let mut sequence = Sequence(0);
    fan.record(rename("a", "b"));
    for number in 0..60 {
        sequence = fan.write(&format!("f{number}"), 200 << 10);
        if number % 10 == 9 {
            let [one, other] = [fan.links[0], fan.links[1]].map(|link| fan.take(link));
            assert!(is_shared(&one, &other));
        }
        if number == 30 {
            fan.record(rename("b", "c"));
        }
    }
    let taken = all_items(&fan.take(slow));
    for number in 0..60 {
        assert!(has_state(&taken, &format!("f{number}")), "f{number} is missing");
    }
    let renames: Vec<&Item> =
        taken.iter().filter(|item| matches!(item, Item::Rename { .. })).collect();
    assert_eq!(renames.len(), 2, "{renames:?}");
    assert_eq!(last_mark(&taken), Some(sequence));
    // Level again, it shares again.
    fan.write("g", 100);
    let taken = fan.links.clone().into_iter().map(|link| fan.take(link)).collect::<Vec<_>>();
    assert!(is_shared(&taken[0], &taken[2]));
}

#[test]
fn what_one_asks_for_is_for_that_one() {
    let mut fan = Fan::new(2);
    let [asks, other] = [fan.links[0], fan.links[1]];
    fan.write("f", 100);
    fan.take(asks);
    fan.take(other);
    fan.write("g", 100);
    fan.need(asks, "f");
    let taken = all_items(&fan.take(asks));
    assert!(taken.contains(&Item::Answered { id: 7 }), "{taken:?}");
    assert!(has_state(&taken, "f") && has_state(&taken, "g"));
    let taken = all_items(&fan.take(other));
    assert!(has_state(&taken, "g") && !has_state(&taken, "f"), "{taken:?}");
}

#[test]
fn a_big_file_on_its_way_is_begun_anew_by_who_goes_on_alone() {
    let size = 3 << 20;
    let mut fan = Fan::new(2);
    let [parts, stays] = [fan.links[0], fan.links[1]];
    let sequence = fan.write("big", size);
    let mut begun = Vec::new();
    for _ in 0..3 {
        begun.extend(fan.take_one(parts).iter().flat_map(items));
    }
    let of = |item: &Item| match item {
        Item::StageData { stage, length, .. } => Some((*stage, *length as usize)),
        _ => None,
    };
    let (shared, _) = begun.iter().find_map(of).expect("some of it was sent");
    fan.need(parts, "f");
    let taken = all_items(&fan.take(parts));
    assert!(taken.contains(&Item::StageAbort { stage: shared }), "{taken:?}");
    let own: usize = taken
        .iter()
        .filter_map(of)
        .map(|(stage, length)| {
            assert_ne!(stage, shared);
            length
        })
        .sum();
    assert_eq!((own, last_mark(&taken)), (size, Some(sequence)));
    let taken = all_items(&fan.take(stays));
    assert!(!taken.iter().any(|item| matches!(item, Item::StageAbort { .. })), "{taken:?}");
    assert_eq!(taken.iter().filter_map(of).map(|(_, length)| length).sum::<usize>(), size);
    assert_eq!(last_mark(&taken), Some(sequence));
}
