//! The real capture, journal, sessions and apply code in one process, driven step by step: a
//! source with a watch, a sink, and the frames between them in two queues.
//!
//! Nothing runs by itself, so that a test decides what happens between any two steps.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::path::Path;
use std::rc::Rc;
use std::time::{Duration, Instant};

use super::feed::{Meddled, Meddler};
use super::judge::Judge;
use super::operations::Operations;
use mirror::journal::Journal;
use mirror::role::identity::SourceIdentity;
use mirror::role::options::SinkOptions;
use mirror::role::{LinkId, Peer, Role, Sink, Source};
use mirror::tree::{Reader, Root};
use mirror::watch::{Watch, WatchOptions};
use mirror::wire::{FrameDecoder, FrameKind, Item};

/// Something that a test does to a tree.
pub type Change = Box<dyn FnOnce()>;

/// Each drain may find new operations.
pub struct Racer {
    race: Rc<RefCell<Race>>,
    /// Whether the last drain ended.
    drains: bool,
}

/// Operations that happen between a read and its use.
pub struct Race {
    pub operations: Operations,
    random: fastrand::Rng,
    pub log: Vec<String>,
    /// Operations that may still happen before the driver goes on.
    pub budget: u32,
    /// How many in a hundred bursts of operations overflow the event queue.
    pub overflows: u8,
    /// What happens before the next drains, one before each.
    pub changes: VecDeque<Change>,
    /// What happens after the next drains, before anything is read, one after each.
    pub changes_after: VecDeque<Change>,
}

impl Race {
    /// Makes the tree `src` in `directory` by random operations, not more than so many.
    pub fn begin(directory: &Path, seed: u64, operations_max: usize) -> Rc<RefCell<Race>> {
        let [src, outside] = ["src", "outside"].map(|name| directory.join(name));
        for path in [&src, &outside] {
            std::fs::create_dir_all(path).unwrap();
        }
        let mut operations = Operations::new(&src, &outside, seed);
        let mut random = fastrand::Rng::with_seed(seed ^ 0x5eed);
        let is_steady = random.u8(..3) == 0;
        if is_steady || random.bool() {
            operations.hide_versions();
        }
        if !is_steady && random.bool() {
            operations.crowd();
        }
        // What nothing is added to later must be enough at the beginning.
        let operations_min = if is_steady { operations_max / 2 } else { 0 };
        let mut log = Vec::new();
        for _ in 0..random.usize(operations_min..=operations_max) {
            log.push(operations.step());
        }
        if is_steady {
            operations.steady();
        }
        // Every third of the others has a small queue: that has much looked at.
        let overflows = if !is_steady && random.u8(..3) == 0 { random.u8(1..50) } else { 0 };
        let (changes, changes_after) = Default::default();
        let race = Race { operations, random, log, budget: 0, overflows, changes, changes_after };
        Rc::new(RefCell::new(race))
    }

    /// Operates sometimes, as often in ten as said, and returns whether that was too much for the
    /// event queue.
    fn maybe_operate(&mut self, often: u8) -> bool {
        let before = self.budget;
        while self.budget > 0 && self.random.u8(..10) < often {
            self.budget -= 1;
            self.operate();
        }
        self.budget < before && self.random.u8(..100) < self.overflows
    }

    pub fn operate(&mut self) {
        let step = self.operations.step();
        self.log.push(step);
    }
}

/// Opens the source of the tree that `race` operates on, with its state beside it.
pub fn open_source(directory: &Path, race: &Rc<RefCell<Race>>) -> Source<Meddled<Racer>> {
    let [src, state] = ["src", "state"].map(|name| directory.join(name));
    std::fs::create_dir_all(&state).unwrap();
    let root = Root::open(&src).unwrap();
    let options = WatchOptions { rescan_interval: Duration::from_secs(3600) };
    let mut watch = Watch::new(Root::open(&src).unwrap(), options).unwrap();
    let hook = race.clone();
    watch.on_listed(Box::new(move || {
        // Not while the driver itself operates.
        if let Ok(mut race) = hook.try_borrow_mut() {
            let _ = race.maybe_operate(3);
        }
    }));
    let identity = SourceIdentity::load(&state, &root, false).unwrap();
    let journal = Journal::open(&state.join("journal"), 64 << 20).unwrap();
    let feed = Meddled { watch, meddler: Racer { race: race.clone(), drains: true } };
    Source::new(src, feed, journal, Reader::new(root), identity).unwrap()
}

/// Returns what a sink at `name` in `directory` is opened with, its state being beside it.
pub fn sink_options(directory: &Path, name: &str, checkpoint_interval: Duration) -> SinkOptions {
    let (root, state_dir) = (directory.join(name), directory.join(format!("{name}-state")));
    for path in [&root, &state_dir] {
        std::fs::create_dir_all(path).unwrap();
    }
    SinkOptions { root, state_dir, adopt: false, checkpoint_interval }
}

impl Meddler for Racer {
    fn before_event(&mut self, watch: &mut Watch) {
        // Seldom, or nothing is left for the end of it.
        let mut overflows = self.race.borrow_mut().maybe_operate(1);
        if std::mem::take(&mut self.drains) {
            let mut race = self.race.borrow_mut();
            if let Some(change) = race.changes.pop_front() {
                change();
                overflows |= race.overflows > 0;
            }
        }
        if overflows {
            watch.lose_events();
        }
    }

    fn after_event(&mut self, is_end: bool) {
        if is_end {
            // Between the end of the drain and what is read next.
            let mut race = self.race.borrow_mut();
            let _ = race.maybe_operate(5);
            if let Some(change) = race.changes_after.pop_front() {
                change();
            }
            self.drains = true;
        }
    }
}

/// A source, a sink, and the frames between them.
pub struct World {
    pub source: Source<Meddled<Racer>>,
    pub sink: Option<Sink>,
    pub sink_options: SinkOptions,
    pub race: Rc<RefCell<Race>>,
    pub link: Option<LinkId>,
    links: u64,
    pub down: VecDeque<Vec<u8>>,
    pub up: VecDeque<Vec<u8>>,
}

impl World {
    /// Makes a world with a tree by random operations, not more than so many.
    pub fn new(directory: &Path, seed: u64, operations_max: usize) -> World {
        let race = Race::begin(directory, seed, operations_max);
        let source = open_source(directory, &race);
        let sink_options = sink_options(directory, "dst", Duration::from_millis(1));
        let (down, up) = Default::default();
        World { source, sink: None, sink_options, race, link: None, links: 0, down, up }
    }

    /// Makes a world with an empty tree, in which nothing happens but what the test does.
    pub fn quiet(directory: &Path) -> World {
        let world = World::new(directory, 1, 0);
        world.race.borrow_mut().overflows = 0;
        world
    }

    pub fn connect(&mut self) {
        let now = Instant::now();
        let sink = self
            .sink
            .get_or_insert_with(|| Sink::open(self.sink_options.clone()).expect("the sink opens"));
        self.links += 1;
        let link = LinkId(self.links);
        self.link = Some(link);
        sink.handle_connected(link, Peer::Upstream, now);
        self.source.handle_connected(link, Peer::Downstream, now);
    }

    pub fn cut(&mut self) {
        let now = Instant::now();
        self.down.clear();
        self.up.clear();
        if let Some(link) = self.link.take() {
            self.source.handle_closed(Some(link), "cut", now);
            if let Some(sink) = &mut self.sink {
                sink.handle_closed(Some(link), "cut", now);
            }
        }
    }

    /// Kills the sink: nothing of its memory survives.
    pub fn kill_sink(&mut self) {
        self.down.clear();
        self.up.clear();
        if let Some(link) = self.link.take() {
            self.source.handle_closed(Some(link), "killed", Instant::now());
        }
        self.sink = None;
    }

    /// Takes what the source has to send.
    pub fn send(&mut self) -> bool {
        let Some(link) = self.link else { return false };
        let now = Instant::now();
        self.source.handle_timeout(now).unwrap();
        match self.source.poll_transmit(link, now) {
            Ok(Some(frame)) => {
                self.down.push_back(frame.to_vec());
                true
            }
            Ok(None) => false,
            Err(error) => {
                self.cut_for(&error.to_string());
                false
            }
        }
    }

    /// Lets the sink handle one frame, and takes what it has to say.
    pub fn deliver(&mut self) -> bool {
        let Some(link) = self.link else { return false };
        let Some(sink) = &mut self.sink else { return false };
        let now = Instant::now();
        let mut moved = false;
        if let Some(bytes) = self.down.pop_front() {
            moved = true;
            if std::env::var_os("MIRROR_TRACE").is_some() {
                with_frame(&bytes, |frame, _| {
                    let log = &mut self.race.borrow_mut().log;
                    match frame.kind {
                        FrameKind::Message => log.push(format!("    < {:?}", frame.message())),
                        FrameKind::Items => {
                            for item in frame.items() {
                                log.push(format!("    < {:?}", item.unwrap().0));
                            }
                        }
                    }
                });
            }
            let result =
                with_frame(&bytes, |frame, length| sink.handle_frame(link, frame, length, now));
            if let Err(error) = result {
                let error = error.to_string();
                return self.cut_for(&error);
            }
        }
        if self.down.is_empty() {
            sink.handle_drained(link, now).unwrap();
        }
        sink.handle_timeout(now).unwrap();
        while let Some(frame) = sink.poll_transmit(link, now).unwrap() {
            self.up.push_back(frame.to_vec());
        }
        moved
    }

    /// Lets the source handle one message.
    pub fn answer(&mut self) -> bool {
        let Some(link) = self.link else { return false };
        let Some(bytes) = self.up.pop_front() else { return false };
        if std::env::var_os("MIRROR_TRACE").is_some() {
            let message = with_frame(&bytes, |frame, _| format!("    > {:?}", frame.message()));
            self.race.borrow_mut().log.push(message);
        }
        let now = Instant::now();
        let result =
            with_frame(&bytes, |frame, length| self.source.handle_frame(link, frame, length, now));
        if let Err(error) = result {
            return self.cut_for(&error.to_string());
        }
        true
    }

    /// Returns what is on its way to the sink.
    pub fn items(&self) -> Vec<Item> {
        let mut items = Vec::new();
        for bytes in &self.down {
            with_frame(bytes, |frame, _| {
                if frame.kind == FrameKind::Items {
                    items.extend(frame.items().map(|item| item.unwrap().0));
                }
            });
        }
        items
    }

    fn cut_for(&mut self, reason: &str) -> bool {
        self.race.borrow_mut().log.push(format!("(cut: {reason})"));
        assert!(!reason.contains("protocol error"), "{reason}");
        self.cut();
        false
    }

    /// Lets both ends work undisturbed until the trees are equal, and returns what is not.
    pub fn settle(&mut self, judge: &Judge, patience: Duration) -> Vec<String> {
        let world = self;
        let started = Instant::now();
        loop {
            if world.link.is_none() {
                world.connect();
            }
            let mut idle = 0;
            while idle < 3 {
                let moved = world.send() | world.deliver() | world.answer();
                idle = if moved { 0 } else { idle + 1 };
                if started.elapsed() > Duration::from_secs(40) {
                    break;
                }
            }
            let differences = judge.differences();
            if differences.is_empty() || started.elapsed() > patience {
                return differences;
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }
}

pub fn with_frame<T>(bytes: &[u8], handle: impl FnOnce(mirror::wire::Frame<'_>, usize) -> T) -> T {
    let mut decoder = FrameDecoder::default();
    decoder.receive(bytes);
    let (frame, length) = decoder.next_frame().unwrap().unwrap();
    handle(frame, length)
}
