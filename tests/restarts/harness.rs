//! A source that is ended and opened again, and its sink, which a test drives turn by turn.

use std::collections::VecDeque;
use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use mirror::model::EpochId;
use mirror::role::{LinkId, Peer, Role as _, RoleError, Sink, SinkOptions, Source, SourceOptions};
use mirror::watch::Watch;
use mirror::wire::{Content, FrameKind, Item, Message, Plan};

use crate::common;
use crate::common::judge::Judge;
use crate::common::world::with_frame;

/// A source that can be ended and opened again, a sink, and what is between them.
pub struct Restarts {
    pub directory: tempfile::TempDir,
    pub src: PathBuf,
    pub dst: PathBuf,
    pub source: Option<Source<Watch>>,
    pub sink: Sink,
    pub link: Option<LinkId>,
    pub links: u64,
    pub down: VecDeque<Vec<u8>>,
    /// The plans of the connections so far.
    pub plans: Vec<Plan>,
    /// Items that were sent to the sink, but for marks, and their bytes with all else.
    pub items: Vec<Item>,
    pub bytes: usize,
    pub accept_root: bool,
    pub journal_bytes: u64,
}

impl Restarts {
    pub fn new() -> Restarts {
        let directory = common::machine::scratch();
        let at = |name: &str| {
            let path = directory.path().join(name);
            fs::create_dir(&path).unwrap();
            path.canonicalize().unwrap()
        };
        let (src, dst) = (at("src"), at("dst"));
        let sink = Sink::open(SinkOptions {
            root: dst.clone(),
            state_dir: at("sink-state"),
            adopt: false,
            checkpoint_interval: Duration::from_millis(20),
        });
        at("state");
        at("outside");
        Restarts {
            directory,
            src,
            dst,
            source: None,
            sink: sink.unwrap(),
            link: None,
            links: 0,
            down: VecDeque::new(),
            plans: Vec::new(),
            items: Vec::new(),
            bytes: 0,
            accept_root: false,
            journal_bytes: 64 << 20,
        }
    }

    pub fn state(&self) -> PathBuf {
        self.directory.path().join("state").canonicalize().unwrap()
    }

    pub fn catalog(&self) -> PathBuf {
        self.state().join("catalog")
    }

    pub fn try_start(&mut self) -> Result<(), RoleError> {
        let options = SourceOptions {
            root: self.src.clone(),
            state_dir: self.state(),
            journal_bytes: self.journal_bytes,
            rescan_interval: Duration::from_secs(3600),
            accept_root: self.accept_root,
            lock_root: false,
        };
        self.source = Some(Source::open(options)?);
        Ok(())
    }

    pub fn start(&mut self) {
        self.try_start().unwrap();
    }

    pub fn connect(&mut self) {
        let now = Instant::now();
        self.links += 1;
        let link = LinkId(self.links);
        self.link = Some(link);
        self.sink.handle_connected(link, Peer::Upstream, now);
        self.source.as_mut().unwrap().handle_connected(link, Peer::Downstream, now);
    }

    pub fn cut(&mut self) {
        self.down.clear();
        if let Some(link) = self.link.take() {
            let now = Instant::now();
            if let Some(source) = &mut self.source {
                source.handle_closed(Some(link), "cut", now);
            }
            self.sink.handle_closed(Some(link), "cut", now);
        }
    }

    /// Ends the source cleanly.
    pub fn stop(&mut self) {
        if let Some(mut source) = self.source.take() {
            source.shut_down().unwrap();
        }
        self.cut();
    }

    /// Kills the source: nothing of its memory survives.
    pub fn kill(&mut self) {
        self.source = None;
        self.cut();
    }

    /// Lets both ends work once. Returns whether something moved.
    pub fn turn(&mut self) -> bool {
        let now = Instant::now();
        let Some(source) = &mut self.source else { return false };
        source.handle_timeout(now).unwrap();
        let Some(link) = self.link else { return false };
        match source.poll_transmit(link, now) {
            Ok(frame) => self.down.extend(frame.map(|frame| frame.to_vec())),
            Err(_) => {
                self.cut();
                return false;
            }
        }
        let mut moved = false;
        if let Some(bytes) = self.down.pop_front() {
            moved = true;
            self.bytes += bytes.len();
            let (plans, items, sink) = (&mut self.plans, &mut self.items, &mut self.sink);
            let result = with_frame(&bytes, |frame, length| {
                match frame.kind {
                    FrameKind::Message => {
                        if let Ok(Message::UpstreamHello(hello)) = frame.message() {
                            plans.push(hello.plan);
                        }
                    }
                    FrameKind::Items => items.extend(
                        frame
                            .items()
                            .map(|item| item.unwrap().0)
                            .filter(|item| !matches!(item, Item::Through { .. })),
                    ),
                }
                sink.handle_frame(link, frame, length, now)
            });
            if let Err(error) = result {
                assert!(!error.to_string().contains("protocol error"), "{error}");
                self.cut();
                return false;
            }
        }
        if self.down.is_empty() {
            self.sink.handle_drained(link, now).unwrap();
        }
        self.sink.handle_timeout(now).unwrap();
        while let Some(bytes) = self.sink.poll_transmit(link, now).unwrap() {
            moved = true;
            let source = self.source.as_mut().unwrap();
            let result =
                with_frame(&bytes, |frame, length| source.handle_frame(link, frame, length, now));
            if result.is_err() {
                self.cut();
                return false;
            }
        }
        moved
    }

    /// Lets both ends work until they are equal, and returns what is not.
    pub fn settle(&mut self, patience: Duration) -> Vec<String> {
        let started = Instant::now();
        let judge = Judge::new(&self.src, &self.dst);
        loop {
            let mut idle = 0;
            while idle < 3 && started.elapsed() < patience * 4 {
                if self.link.is_none() {
                    self.connect();
                }
                idle = if self.turn() { 0 } else { idle + 1 };
            }
            let differences = judge.differences();
            if differences.is_empty() || started.elapsed() > patience {
                return differences;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    pub fn converge(&mut self) {
        let differences = self.settle(common::patience());
        assert!(differences.is_empty(), "{}", differences.join("\n"));
    }

    /// Waits until there is a catalog.
    pub fn wait_for_catalog(&mut self) {
        let started = Instant::now();
        while !self.catalog().exists() {
            self.turn();
            assert!(started.elapsed() < common::patience(), "no catalog is written");
            std::thread::sleep(Duration::from_millis(1));
        }
        // It is taken up in the next turns.
        for _ in 0..20 {
            self.turn();
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    pub fn epoch(&self) -> Option<EpochId> {
        self.sink.state().watermarks.map(|marks| marks.epoch)
    }

    /// Forgets what was sent so far.
    pub fn forget(&mut self) {
        self.items.clear();
        self.plans.clear();
        self.bytes = 0;
    }

    pub fn has_content(&self) -> bool {
        self.items.iter().any(|item| {
            matches!(
                item,
                Item::StageOpen { .. } | Item::State { content: Content::Inline { .. }, .. }
            )
        })
    }
}

/// Waits until no file's last change is so short ago that another may not show.
pub fn cool() {
    std::thread::sleep(Duration::from_millis(120));
}

/// Returns a world that is equal, with a catalog that has it all.
pub fn equal(prepare: impl FnOnce(&std::path::Path)) -> Restarts {
    let mut world = Restarts::new();
    prepare(&world.src);
    cool();
    world.start();
    world.converge();
    world.wait_for_catalog();
    world.forget();
    world
}

/// A tree of 100 directories of 100 files.
pub fn fill(root: &std::path::Path) {
    for directory in 0..100 {
        let directory = root.join(format!("old/{directory}"));
        fs::create_dir_all(&directory).unwrap();
        for file in 0..100 {
            fs::write(directory.join(file.to_string()), format!("{file:1000}")).unwrap();
        }
    }
}
