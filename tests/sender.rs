//! A sender alone, its messages by hand.

use std::time::Instant;

use mirror::model::Identity;
use mirror::model::limits::{INLINE_BYTES_MAX, NEEDS_MAX};
use mirror::model::*;
use mirror::session::sender::{BatchJob, Outcome, Travel};
use mirror::session::{Job, Look, Origin, Sender, SourceState};
use mirror::wire::message::VERSIONS;
use mirror::wire::*;

const HEAD: Sequence = Sequence(9);

fn path(text: &str) -> TreePath {
    TreePath::new(text).unwrap()
}

fn seconds(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanoseconds: 0 }
}

/// A sender, and the source that it is told of.
struct Fixture {
    sender: Sender,
    renames: RenameIndex,
    now: Instant,
}

impl Fixture {
    /// Returns a sender to an empty downstream that has got everything.
    fn new() -> Fixture {
        let mut fixture = Fixture::greeted();
        fixture.finish_all();
        fixture
    }

    /// Returns a sender to an empty downstream.
    fn greeted() -> Fixture {
        let now = Instant::now();
        let renames = RenameIndex::new(Sequence(0), Sequence(0));
        let mut fixture = Fixture { sender: Sender::new(now), renames, now };
        let hello = DownstreamHello {
            versions: VERSIONS,
            node: NodeId(2),
            tree: None,
            watermarks: None,
            trusted_until: Timestamp::default(),
            trusted_node: None,
            empty: true,
            lacks: Lacks::NOTHING,
        };
        fixture.handle(Message::DownstreamHello(hello)).unwrap();
        fixture
    }

    fn handle(&mut self, message: Message) -> Result<Option<Message>, Refusal> {
        let source = SourceState {
            tree: TreeId(1),
            chain: vec![NodeId(1)],
            epoch: Epoch { id: EpochId { counter: 1, random: 1 }, parent: None },
            floor: Sequence(0),
            head: HEAD,
            clock: seconds(1000),
            relayed: None,
        };
        self.sender.handle_message(message, &source, &self.renames, self.now)
    }

    fn need(&mut self, id: u64, at: &str, content: bool) -> Result<Option<Message>, Refusal> {
        self.handle(Message::Need { id, path: path(at), content, moved: HEAD })
    }

    fn ack(&mut self, applied: Sequence) {
        let ack = Message::Ack { moved: HEAD, applied, durable: applied, handled_bytes: 0 };
        self.handle(ack).unwrap();
    }

    /// Has all jobs read, and nothing found. Returns their paths.
    fn finish_all(&mut self) -> Vec<TreePath> {
        let mut paths = Vec::new();
        self.sender.begin_batch(HEAD, seconds(1000));
        while let Some(job) = self.sender.next_job(&self.renames) {
            paths.push(job.path.clone());
            self.sender.finish_batch(vec![BatchJob::used(job)], true, &self.renames);
        }
        paths
    }

    /// Returns the marks and answers that are due.
    fn marks(&mut self) -> Vec<Item> {
        std::iter::from_fn(|| self.sender.poll_through(seconds(1000))).collect()
    }

    /// Returns whether a file of this time of change is digested for the next job.
    fn digests(&mut self, ctime: Timestamp) -> bool {
        matches!(self.travel(1, ctime), Travel::Digest(_))
    }

    /// Returns how a file of this size and time of change travels for the next job.
    fn travel(&mut self, size: u64, ctime: Timestamp) -> Travel {
        self.sender.begin_batch(HEAD, seconds(1000));
        let job = self.sender.next_job(&self.renames).unwrap();
        let travel = self.travel_of(&job, size, ctime);
        self.sender.finish_batch(vec![BatchJob::used(job)], true, &self.renames);
        travel
    }

    /// Returns how such a file travels for a job.
    fn travel_of(&mut self, job: &Job, size: u64, ctime: Timestamp) -> Travel {
        let metadata = Metadata { mode: 0, uid: 0, gid: 0, mtime: ctime, xattrs: Vec::new() };
        let entry = Entry { kind: Kind::Regular { size }, metadata };
        let look = Look {
            entry: &entry,
            identity: Identity { device: 1, inode: 1 },
            ctime,
            has_holes: false,
            is_linked: false,
            links: &[],
        };
        self.sender.content_for(job, &look)
    }

    /// Returns the next job, which must be this one.
    fn job(&mut self, at: &str) -> Job {
        let job = self.sender.next_job(&self.renames).unwrap();
        assert_eq!(job.path, path(at));
        job
    }
}

#[test]
fn what_is_no_longer_than_that_travels_inline() {
    let mut fixture = Fixture::new();
    let longest = INLINE_BYTES_MAX as u64;
    for (id, size) in [0, longest - 1, longest, longest + 1].into_iter().enumerate() {
        fixture.need(id as u64, "f", true).unwrap();
        let travel = fixture.travel(size, seconds(500));
        assert_eq!(matches!(travel, Travel::Inline(_)), size <= longest, "{size}: {travel:?}");
        assert_eq!(matches!(travel, Travel::Stage(_)), size > longest, "{size}: {travel:?}");
    }
}

#[test]
fn what_was_acknowledged_is_trusted_when_it_is_compared() {
    let mut fixture = Fixture::new();
    fixture.ack(Sequence(0));
    assert_eq!(fixture.marks().len(), 1);
    fixture.need(1, "d", false).unwrap();
    assert!(fixture.digests(seconds(500)));
    fixture.ack(HEAD);
    fixture.need(2, "d", false).unwrap();
    assert!(!fixture.digests(seconds(500)));
    fixture.need(3, "d", false).unwrap();
    assert!(fixture.digests(seconds(999)));
    // What the downstream does not tell one by one it may have missed at any time.
    fixture.need(4, "", false).unwrap();
    assert!(fixture.digests(seconds(500)));
}

#[test]
fn a_need_of_everything_stands_for_all_others() {
    let mut fixture = Fixture::new();
    fixture.marks();
    // A downstream that has too much to ask for begins anew with everything, again and again.
    let mut id = 0;
    for _ in 0..5 {
        for number in 0..NEEDS_MAX {
            fixture.need(id, &number.to_string(), true).unwrap();
            id += 1;
        }
        fixture.need(id, "", false).unwrap();
        id += 1;
    }
    assert_eq!(fixture.finish_all(), [TreePath::root()]);
    assert_eq!(fixture.marks().len() as u64, id);
    // One that never does is refused.
    let refused = (0..).map(|number| fixture.need(id + number, "f", true)).find(Result::is_err);
    assert!(matches!(refused, Some(Err(Refusal::Protocol(_)))));
}

#[test]
fn a_need_from_before_the_renames_that_are_kept_begins_anew() {
    let mut fixture = Fixture::new();
    for (sequence, from, to) in [(10, "a", "b"), (11, "b", "c")] {
        let change = Change::Rename { from: path(from), to: path(to) };
        fixture.renames.push(&Record::new(Sequence(sequence), change));
        assert!(fixture.sender.poll_rename(&fixture.renames).is_some());
    }
    fixture.need(1, "a", true).unwrap();
    assert_eq!(fixture.finish_all(), [path("c")]);
    fixture.renames.drop_through(Sequence(10));
    assert!(matches!(fixture.need(2, "a", true), Err(Refusal::StartOver(_))));
}

#[test]
fn a_change_that_is_left_to_a_walk_is_not_left_to_what_was_read_before_it() {
    let mut fixture = Fixture::greeted();
    let (size, later) = (INLINE_BYTES_MAX as u64 + 1, Sequence(HEAD.0 + 1));
    fixture.sender.begin_batch(HEAD, seconds(1000));
    let root = fixture.job("");
    fixture.sender.visit(&root, vec![path("f")], Vec::new());
    let file = fixture.job("f");
    let Travel::Stage(stage) = fixture.travel_of(&file, size, seconds(500)) else { panic!() };
    let staged = BatchJob { outcome: Outcome::Staged, ..BatchJob::used(file) };
    // A rename came meanwhile, so the directory is read once more, and what is in it.
    fixture.sender.finish_batch(vec![BatchJob::used(root), staged], false, &fixture.renames);
    assert_eq!(fixture.sender.next_chunk(), Some(stage));
    fixture.sender.handle_stage_read(stage);
    // The file changed behind the reading. The walk will come by: the record is left to it.
    let change = Change::Dirty { path: path("f"), what: What::CONTENT };
    let record = Record { sequence: later, origin: None, change };
    fixture.sender.handle_records([record], later);
    fixture.sender.begin_batch(later, seconds(1000));
    let commit = fixture.job("f");
    assert_eq!(commit.origin, Origin::Commit(stage));
    let root = fixture.job("");
    fixture.sender.visit(&root, vec![path("f")], Vec::new());
    let file = fixture.job("f");
    assert!(matches!(fixture.travel_of(&file, size, seconds(900)), Travel::Absorbed));
    let jobs = [commit, root, file].map(BatchJob::used).into();
    fixture.sender.finish_batch(jobs, true, &fixture.renames);
    assert_eq!(fixture.finish_all(), [path("f")]);
}
