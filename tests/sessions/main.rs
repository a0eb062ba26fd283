//! DESIGN 7 and 4 where only the two session state machines are concerned, call by call.
//!
//! | point | tests |
//! |---|---|
//! | a path is translated through all later renames | `a_record_is_read_where_its_entry_is_now`, and in `src/model/renames.rs` |
//! | the rename index is capped | `a_cursor_with_too_many_renames_ahead_has_fallen_off`, `a_session_that_falls_behind_the_rename_index_starts_over`, `agrees_with_plain_replay_and_stays_bounded` in `src/model/renames.rs` |
//! | read, drain, use | `what_a_rename_touched_meanwhile_is_read_again`, `nothing_is_used_before_the_watch_is_settled` |
//! | a commit names its path as of then | `a_commit_names_the_path_of_its_moment` |
//! | two watermarks; renames never repeat | `a_resumed_session_repeats_states_but_no_rename`, `a_rename_that_comes_twice_is_refused`, `a_rename_moves_one_watermark_and_a_mark_the_other` |
//! | no mark passes what is not in place | `a_mark_waits_for_a_file_on_its_way` |
//! | Need: compared, answered, translated | `a_need_…` in `walks.rs` |
//! | superseding | `a_state_that_was_sent_supersedes_earlier_records`, `attributes_do_not_supersede_content`, `no_state_supersedes_past_a_rename` |
//! | a file on its way covers its records | `a_file_on_its_way_is_not_staged_twice`, `a_name_that_a_commit_does_not_send_is_read_again` |
//! | a rename during a comparison marks both ends | `a_rename_during_a_comparison_has_both_ends_compared` in `walks.rs`, and in `digests.rs` |
//! | reconcile by digests | `digests.rs` |
//! | I3: what never rests | `a_big_file_that_never_rests_is_sent_as_read_and_once_more` |
//! | I7: needs are bounded | `too_many_needs_become_one_for_everything` in `walks.rs` |

#[path = "../common/mod.rs"]
mod common;
mod digests;
mod forks;
mod given;
mod shared;
mod walks;

use std::time::Instant;

use mirror::model::limits::*;
use mirror::model::*;
use mirror::session::sender::{BatchJob, Outcome, Travel};
use mirror::session::{Job, Look, Origin, Receiver, ReceiverState, Sender, SourceState};
use mirror::wire::message::VERSIONS;
use mirror::wire::*;

const EPOCH: EpochId = EpochId { counter: 1, random: 1 };

fn path(text: &str) -> TreePath {
    TreePath::new(text).unwrap()
}

fn dirty(at: &str, what: What) -> Change {
    Change::Dirty { path: path(at), what }
}

fn content(at: &str) -> Change {
    dirty(at, What::CONTENT)
}

fn rename(from: &str, to: &str) -> Change {
    Change::Rename { from: path(from), to: path(to) }
}

fn exchange(a: &str, b: &str) -> Change {
    Change::Exchange { a: path(a), b: path(b) }
}

fn hello(marks: Option<(u64, u64)>) -> DownstreamHello {
    let watermarks = marks.map(|(moved, applied)| Watermarks {
        epoch: EPOCH,
        moved: Sequence(moved),
        applied: Sequence(applied),
    });
    DownstreamHello {
        versions: VERSIONS,
        node: NodeId(2),
        tree: None,
        watermarks,
        trusted_until: Timestamp::default(),
        trusted_node: None,
        empty: watermarks.is_none(),
        lacks: Lacks::NOTHING,
    }
}

/// A sender, and what its shell knows.
struct Session {
    sender: Sender,
    journal: Vec<Record>,
    renames: RenameIndex,
    now: Instant,
}

impl Session {
    /// A session with a journal; the downstream says its marks, moved and applied.
    fn new(journal: &[Change], marks: Option<(u64, u64)>) -> Session {
        let now = Instant::now();
        let renames = RenameIndex::new(Sequence(0), Sequence(0));
        let mut session = Session { sender: Sender::new(now), journal: Vec::new(), renames, now };
        for change in journal {
            session.journal(change.clone());
        }
        let plan = session.message(Message::DownstreamHello(hello(marks)));
        let Some(Message::UpstreamHello(answer)) = plan else { panic!("{plan:?}") };
        assert_eq!(answer.plan == Plan::Resume, marks.is_some());
        session
    }

    fn journal(&mut self, change: Change) {
        let sequence = Sequence(self.journal.len() as u64 + 1);
        self.renames.push(&Record::new(sequence, change.clone()));
        self.journal.push(Record::new(sequence, change));
    }

    fn head(&self) -> Sequence {
        Sequence(self.journal.len() as u64)
    }

    fn state(&self) -> SourceState {
        SourceState {
            tree: TreeId(1),
            chain: vec![NodeId(1)],
            epoch: Epoch { id: EPOCH, parent: None },
            floor: Sequence(0),
            head: self.head(),
            clock: Timestamp::default(),
            relayed: None,
        }
    }

    fn message(&mut self, message: Message) -> Option<Message> {
        let state = self.state();
        self.sender.handle_message(message, &state, &self.renames, self.now).unwrap()
    }

    /// Sends the renames and reads the journal, as before each batch. Returns the renames.
    fn begin(&mut self) -> Vec<Item> {
        let renames = std::iter::from_fn(|| self.sender.poll_rename(&self.renames)).collect();
        if let Some(after) = self.sender.wants_records(self.head()) {
            let records = self.journal[after.0 as usize..].to_vec();
            self.sender.handle_records(records, self.head());
        }
        self.sender.begin_batch(self.head(), Timestamp::default());
        renames
    }

    fn job(&mut self) -> Option<Job> {
        self.sender.next_job(&self.renames)
    }

    /// Ends a batch of one job. Returns whether it may be used.
    fn finish(&mut self, job: Job) -> bool {
        self.sender.finish_batch(vec![BatchJob::used(job)], true, &self.renames)[0] == Outcome::Used
    }

    /// Sends everything. Returns the paths that were read, in order.
    fn paths(&mut self) -> Vec<TreePath> {
        let mut paths = Vec::new();
        loop {
            self.begin();
            let Some(job) = self.job() else { return paths };
            paths.push(job.path.clone());
            assert!(self.finish(job));
        }
    }

    /// Has the file of a job put on its way. Names that end alike are of one file.
    fn stage(&mut self, job: &Job) -> Travel {
        let size = INLINE_BYTES_MAX as u64 + 1;
        let metadata =
            Metadata { mode: 0, uid: 0, gid: 0, mtime: Timestamp::default(), xattrs: Vec::new() };
        let look = Look {
            entry: &Entry { kind: Kind::Regular { size }, metadata },
            identity: Identity { device: 0, inode: *job.path.as_bytes().last().unwrap() as u64 },
            ctime: Timestamp::default(),
            has_holes: false,
            is_linked: true,
            links: &[],
        };
        self.sender.content_for(job, &look)
    }

    /// Has the file of the next job put on its way, and the job done.
    fn stage_next(&mut self) -> StageId {
        self.begin();
        let job = self.job().unwrap();
        let Travel::Stage(stage) = self.stage(&job) else { panic!("{job:?} is not staged") };
        let opened = BatchJob { outcome: Outcome::Staged, ..BatchJob::used(job) };
        let outcomes = self.sender.finish_batch(vec![opened], true, &self.renames);
        assert_eq!(outcomes, [Outcome::Staged]);
        stage
    }

    fn through(&mut self) -> Option<u64> {
        match self.sender.poll_through(Timestamp::default()) {
            Some(Item::Through { sequence, .. }) => Some(sequence.0),
            Some(item) => panic!("{item:?}"),
            None => None,
        }
    }
}

#[test]
fn a_record_is_read_where_its_entry_is_now() {
    let journal = [
        content("d/x"),
        rename("d", "e"),
        content("d/x"),
        rename("e/x", "f"),
        Change::Exchange { a: path("f"), b: path("g") },
    ];
    let mut session = Session::new(&journal, Some((0, 0)));
    assert_eq!(session.paths(), [path("g"), path("d/x")]);
}

#[test]
fn a_cursor_with_too_many_renames_ahead_has_fallen_off() {
    let journal = vec![rename("a", "b"); RENAMES_MAX + 1];
    for (applied, falls) in [(0, true), (1, false)] {
        let mut session = Session::new(&journal, None);
        let mut sender = Sender::new(session.now);
        std::mem::swap(&mut session.sender, &mut sender);
        let answer = session.message(Message::DownstreamHello(hello(Some((applied, applied)))));
        let Some(Message::UpstreamHello(answer)) = answer else { panic!("{answer:?}") };
        assert_eq!(answer.plan != Plan::Resume, falls, "applied through {applied}");
    }
}

#[test]
fn what_a_rename_touched_meanwhile_is_read_again() {
    let cases = [
        ("d/x", "g", Some("g")),
        ("d", "e", Some("e/x")),
        ("d/x/y", "z", Some("d/x")),
        ("other", "d/x2", None),
    ];
    for (from, to, again) in cases {
        let mut session = Session::new(&[content("d/x")], Some((0, 0)));
        session.begin();
        let job = session.job().unwrap();
        session.journal(rename(from, to));
        assert_eq!(session.finish(job), again.is_none(), "{from} to {to}");
        assert_eq!(session.begin().len(), 1);
        assert_eq!(session.job().map(|job| job.path), again.map(path), "{from} to {to}");
    }
}

#[test]
fn nothing_is_used_before_the_watch_is_settled() {
    let mut session = Session::new(&[content("f")], Some((0, 0)));
    session.begin();
    let job = session.job().unwrap();
    let jobs = vec![BatchJob::used(job)];
    let outcomes = session.sender.finish_batch(jobs, false, &session.renames);
    assert_eq!(outcomes, [Outcome::Again]);
    assert_eq!(session.through(), None);
    // Nor where the feed knows another directory than the one that was read in.
    session.begin();
    let job = session.job().unwrap();
    let elsewhere = BatchJob { outcome: Outcome::Again, ..BatchJob::used(job) };
    let outcomes = session.sender.finish_batch(vec![elsewhere], true, &session.renames);
    assert_eq!(outcomes, [Outcome::Again]);
    assert_eq!(session.paths(), [path("f")]);
    assert_eq!(session.through(), Some(1));
}

#[test]
fn a_commit_names_the_path_of_its_moment() {
    let mut session = Session::new(&[content("d/big")], Some((0, 0)));
    let stage = session.stage_next();
    session.journal(rename("d", "e"));
    session.begin();
    session.sender.handle_stage_read(stage);
    let commit = session.job().unwrap();
    assert_eq!((&commit.origin, &commit.path), (&Origin::Commit(stage), &path("e/big")));
    // And again, if a rename comes between its look and its use.
    session.journal(rename("e", "f"));
    assert!(!session.finish(commit));
    session.begin();
    let commit = session.job().unwrap();
    assert_eq!((&commit.origin, &commit.path), (&Origin::Commit(stage), &path("f/big")));
    assert!(session.finish(commit));
    assert_eq!(session.paths(), []);
}

#[test]
fn a_resumed_session_repeats_states_but_no_rename() {
    let journal = [content("f"), rename("f", "g"), content("h"), rename("h", "i"), content("j")];
    let mut session = Session::new(&journal, Some((2, 0)));
    let renames = session.begin();
    let only = Item::Rename { sequence: Sequence(4), from: path("h"), to: path("i") };
    assert_eq!(renames, [only]);
    assert_eq!(session.paths(), [path("g"), path("i"), path("j")]);
}

/// Returns a receiver that resumes at these marks, moved and applied.
fn resumed(moved: u64, applied: u64) -> (ReceiverState, Receiver) {
    let now = Instant::now();
    let mut state = ReceiverState::new(NodeId(2));
    state.watermarks = hello(Some((moved, applied))).watermarks;
    let (mut receiver, _) = Receiver::new(&mut state, false, now);
    let answer = UpstreamHello {
        version: VERSIONS.newest,
        tree: TreeId(1),
        chain: vec![NodeId(1)],
        epoch: Epoch { id: EPOCH, parent: None },
        plan: Plan::Resume,
        head: Sequence(100),
        clock: Timestamp::default(),
    };
    receiver.handle_message(&mut state, Message::UpstreamHello(answer), now).unwrap();
    (state, receiver)
}

#[test]
fn a_rename_that_comes_twice_is_refused() {
    let (mut state, mut receiver) = resumed(7, 3);
    let at =
        |sequence| Item::Rename { sequence: Sequence(sequence), from: path("a"), to: path("b") };
    assert!(receiver.handle_item(&mut state, &at(7)).is_err());
    assert!(receiver.handle_item(&mut state, &at(8)).unwrap());
    receiver.handle_applied(&mut state, &at(8), Vec::new());
    assert!(receiver.handle_item(&mut state, &at(8)).is_err());
}

#[test]
fn a_rename_moves_one_watermark_and_a_mark_the_other() {
    let (mut state, mut receiver) = resumed(7, 3);
    let marks = |state: &ReceiverState| {
        let marks = state.watermarks.unwrap();
        (marks.moved.0, marks.applied.0)
    };
    let rename = Item::Rename { sequence: Sequence(9), from: path("a"), to: path("b") };
    assert!(receiver.handle_item(&mut state, &rename).unwrap());
    receiver.handle_applied(&mut state, &rename, Vec::new());
    assert_eq!(marks(&state), (9, 3));
    let through =
        Item::Through { sequence: Sequence(5), clock: Timestamp::default(), reached: None };
    assert!(!receiver.handle_item(&mut state, &through).unwrap());
    assert_eq!(marks(&state), (9, 3), "what the mark follows is not in place with its times yet");
    receiver.handle_flushed(&mut state);
    assert_eq!(marks(&state), (9, 5));
    let through =
        Item::Through { sequence: Sequence(12), clock: Timestamp::default(), reached: None };
    receiver.handle_item(&mut state, &through).unwrap();
    receiver.handle_flushed(&mut state);
    assert_eq!(marks(&state), (12, 12), "moved is never behind");
}

#[test]
fn a_mark_waits_for_a_file_on_its_way() {
    let mut session = Session::new(&[content("a"), content("big"), content("b")], Some((0, 0)));
    session.begin();
    let job = session.job().unwrap();
    assert!(session.finish(job));
    assert_eq!(session.through(), Some(1));
    let stage = session.stage_next();
    assert_eq!(session.paths(), [path("b")], "later records go on");
    assert_eq!(session.through(), None);
    session.sender.handle_stage_read(stage);
    assert_eq!(session.paths(), [path("big")]);
    assert_eq!(session.through(), Some(3));
}

/// The content came with another name, but that the name is there, and the time of its directory,
/// did not.
#[test]
fn a_content_sent_by_another_name_leaves_the_name_to_tell() {
    let journal = [content("f"), content("g"), dirty("g", What::ATTRIBUTES), content("h")];
    let mut session = Session::new(&journal, Some((0, 0)));
    session.begin();
    let job = session.job().unwrap();
    assert_eq!(job.path, path("f"));
    let used = BatchJob { links: vec![path("g")], ..BatchJob::used(job) };
    assert_eq!(session.sender.finish_batch(vec![used], true, &session.renames), [Outcome::Used]);
    session.begin();
    let job = session.job().unwrap();
    assert_eq!((&job.path, job.what), (&path("g"), What::NAME));
    assert!(session.finish(job));
    assert_eq!(session.paths(), [path("h")], "the attributes were sent with both");
}

#[test]
fn a_state_that_was_sent_supersedes_earlier_records() {
    let journal = [content("f"), content("g"), dirty("f", What::ATTRIBUTES), content("f")];
    let mut session = Session::new(&journal, Some((0, 0)));
    assert_eq!(session.paths(), [path("f"), path("g")], "f was read after its last record");
    assert_eq!(session.through(), Some(4));
    // A record that was not there yet when it was read is not superseded.
    session.journal(content("f"));
    assert_eq!(session.paths(), [path("f")]);
}

#[test]
fn attributes_do_not_supersede_content() {
    for (first, second, jobs) in [
        (What::ATTRIBUTES, What::CONTENT, 2),
        (What::ATTRIBUTES, What::NAME, 2),
        (What::NAME, What::CONTENT, 2),
        (What::NAME, What::ATTRIBUTES, 1),
        (What::CONTENT, What::NAME, 1),
    ] {
        let journal = [dirty("f", first), dirty("f", second), content("g")];
        let mut session = Session::new(&journal, Some((0, 0)));
        let paths = session.paths();
        let count = paths.iter().filter(|at| **at == path("f")).count();
        assert_eq!(count, jobs, "{first:?}, then {second:?}");
    }
}

#[test]
fn no_state_supersedes_past_a_rename() {
    for (one, two) in [(rename("f", "x"), rename("y", "f")), (rename("d", "x"), rename("y", "d"))] {
        let (from, _) = two.ends().unwrap();
        let (target, moved) = match one.ends().unwrap().0.as_bytes() {
            b"f" => ("f", from.clone()),
            _ => ("d/f", from.join(b"f")),
        };
        let journal = [content(target), Change::Dirty { path: moved, what: What::CONTENT }];
        let mut session = Session::new(&journal, Some((0, 0)));
        session.begin();
        let job = session.job().unwrap();
        assert_eq!(job.path, path(target));
        assert!(session.finish(job));
        // What was sent is somewhere else now, and something else came to its path.
        session.journal(one);
        session.journal(two);
        assert_eq!(session.paths(), [path(target)], "the second record is for the same path now");
    }
}

#[test]
fn a_file_on_its_way_is_not_staged_twice() {
    let mut session = Session::new(&[content("big")], Some((0, 0)));
    let stage = session.stage_next();
    // A file that never rests makes such records all the time.
    session.journal(content("big"));
    session.begin();
    let job = session.job().unwrap();
    assert_eq!(session.stage(&job), Travel::Absorbed);
    assert!(session.finish(job));
    assert_eq!(session.through(), None, "the commit covers both records");
    session.sender.handle_stage_read(stage);
    assert_eq!(session.paths(), [path("big")]);
    assert_eq!(session.through(), Some(2));
}

#[test]
fn a_name_that_a_commit_does_not_send_is_read_again() {
    for links in [vec![], vec![path("other.big")]] {
        let mut session = Session::new(&[content("big"), content("other.big")], Some((0, 0)));
        let stage = session.stage_next();
        let job = session.job().unwrap();
        assert_eq!((&job.path, session.stage(&job)), (&path("other.big"), Travel::Absorbed));
        assert!(session.finish(job));
        session.sender.handle_stage_read(stage);
        session.begin();
        let commit = session.job().unwrap();
        assert_eq!(commit.origin, Origin::Commit(stage));
        // It may be a name of another file since.
        let is_sent = !links.is_empty();
        let commit = BatchJob { links, ..BatchJob::used(commit) };
        session.sender.finish_batch(vec![commit], true, &session.renames);
        assert_eq!(session.through(), is_sent.then_some(2));
        assert_eq!(session.paths(), if is_sent { vec![] } else { vec![path("other.big")] });
    }
}

#[test]
fn a_big_file_that_never_rests_is_sent_as_read_and_once_more() {
    let mut session = Session::new(&[content("log")], Some((0, 0)));
    let stage = session.stage_next();
    let mut times = 1;
    while session.sender.handle_stage_changed(stage) {
        times += 1;
        assert!(times <= TRANSFER_ATTEMPTS_MAX, "it is begun anew for ever");
    }
    session.sender.handle_stage_read(stage);
    session.begin();
    let commit = session.job().unwrap();
    assert_eq!(commit.origin, Origin::Commit(stage));
    assert!(session.finish(commit));
    assert_eq!(session.through(), None, "what was read is not what was there at one moment");
    let again = session.job().unwrap();
    assert_eq!((&again.origin, &again.path), (&Origin::Again(Sequence(1)), &path("log")));
    assert!(session.finish(again));
    assert_eq!(session.through(), Some(1));
}
