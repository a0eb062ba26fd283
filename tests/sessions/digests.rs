//! Comparisons by digests, call by call.

use mirror::model::survey::range_digest;

use super::*;

fn time(seconds: i64) -> Timestamp {
    Timestamp { seconds, nanoseconds: 0 }
}

/// What is recent enough for its size and time to prove nothing.
const TRUSTED_UNTIL: i64 = 1000;

fn digest(number: u8) -> Option<DirectoryDigest> {
    Some(DirectoryDigest([number; 16]))
}

/// A directory with this number as its digest; none if that is 0.
fn surveyed(at: &str, number: u8) -> Surveyed {
    let digest = (number > 0).then_some(DirectoryDigest([number; 16]));
    Surveyed { path: path(at), digest, entries: 1 }
}

/// The downstream's list of what it has.
fn listed(directories: &[(&str, u8)], is_whole: bool) -> Option<Differs> {
    let listed = |(at, number): &(&str, u8)| Listed {
        shared: 0,
        rest: at.as_bytes().to_vec(),
        digest: (*number > 0).then_some(DirectoryDigest([*number; 16])),
    };
    Some(Differs { directories: directories.iter().map(listed).collect(), is_whole })
}

fn need(id: u64, at: &str) -> Message {
    Message::Need { id, path: path(at), content: false, moved: Sequence(0) }
}

impl Session {
    /// A session whose downstream has everything but a position, or one.
    fn trusted(marks: Option<(u64, u64)>) -> Session {
        let mut session = Session::new(&[], marks);
        session.sender = Sender::new(session.now);
        let hello = DownstreamHello {
            trusted_until: time(TRUSTED_UNTIL),
            trusted_node: Some(NodeId(1)),
            empty: false,
            ..hello(marks)
        };
        session.message(Message::DownstreamHello(hello));
        session
    }

    /// Lets the job at `at`, which must be the next, find a directory with a file and a directory
    /// in it.
    fn directory(&mut self, at: &str) {
        self.begin();
        let job = self.job().unwrap_or_else(|| panic!("no job for {at}"));
        assert_eq!(job.path, path(at));
        let children = |name: &str| vec![job.path.join(name.as_bytes())];
        self.sender.visit(&job, children("file"), children("directory"));
        assert!(self.finish(job));
    }

    /// Surveys a subtree that has these directories, and returns the digests.
    fn survey(&mut self, root: &str, directories: &[(&str, u8)]) -> Vec<Item> {
        let task = self.sender.poll_survey().unwrap_or_else(|| panic!("no survey of {root}"));
        assert_eq!(task.path, path(root));
        let mut items = Vec::new();
        for (at, number) in directories {
            assert_eq!(self.sender.poll_survey(), Some(task.clone()));
            items.extend(self.sender.handle_surveyed(surveyed(at, *number)));
        }
        items.extend(self.sender.handle_survey_end());
        items
    }

    /// A reconcile of these directories, told in one range.
    fn reconcile(directories: &[(&str, u8)]) -> Session {
        let mut session = Session::trusted(None);
        session.directory("");
        let items = session.survey("", directories);
        assert_eq!(items.len(), 1, "{items:?}");
        assert_eq!(session.sender.poll_survey(), None);
        session
    }

    fn try_compared(&mut self, range: u64, differs: Option<Differs>) -> Result<(), Refusal> {
        let state = self.state();
        let message = Message::Compared { range: RangeId(range), differs };
        self.sender.handle_message(message, &state, &self.renames, self.now).map(|_| ())
    }

    fn compared(&mut self, range: u64, differs: Option<Differs>) {
        self.try_compared(range, differs).unwrap();
        self.sender.finish_batch(Vec::new(), true, &self.renames);
    }

    /// Returns the next need that is answered.
    fn answered(&mut self) -> Option<u64> {
        loop {
            match self.sender.poll_through(Timestamp::default())? {
                Item::Answered { id } => return Some(id),
                item => assert!(matches!(item, Item::Through { .. }), "{item:?}"),
            }
        }
    }

    /// Returns how the content of an old small file travels that is the next job.
    fn travel(&mut self, at: &str) -> Travel {
        self.begin();
        let job = self.job().unwrap_or_else(|| panic!("no job for {at}"));
        assert_eq!(job.path, path(at));
        let metadata =
            Metadata { mode: 0, uid: 0, gid: 0, mtime: Timestamp::default(), xattrs: Vec::new() };
        let look = Look {
            entry: &Entry { kind: Kind::Regular { size: 1 }, metadata },
            identity: Identity { device: 0, inode: 7 },
            ctime: Timestamp::default(),
            has_holes: false,
            is_linked: false,
            links: &[],
        };
        let travel = self.sender.content_for(&job, &look);
        assert!(self.finish(job));
        travel
    }
}

#[test]
fn equal_ranges_are_all_that_is_sent() {
    let mut session = Session::trusted(None);
    session.directory("");
    let items = session.survey("", &[("", 1), ("a", 2), ("a/b", 3), ("a-b", 4)]);
    let paths = ["", "a", "a/b", "a-b"].map(path);
    let all = paths.iter().zip(1..).map(|(path, number)| (path, digest(number)));
    let told = Item::Digest {
        range: RangeId(0),
        path: path(""),
        after: None,
        through: path("a-b"),
        entries: 8,
        digest: range_digest(all),
    };
    assert_eq!(items, [told]);
    session.journal(content("live"));
    assert_eq!(session.paths(), [path("live")]);
    assert_eq!(session.through(), None, "not before it is answered");
    session.compared(0, None);
    assert_eq!(session.paths(), []);
    assert_eq!(session.through(), Some(1));
}

#[test]
fn what_differs_is_walked_and_what_is_lacked_comes_whole() {
    let directories = [("", 1), ("a", 2), ("a/b", 3), ("c", 4), ("d", 5)];
    let mut session = Session::reconcile(&directories);
    session.compared(0, listed(&[("", 1), ("a", 9), ("a/b", 3), ("a/gone", 7), ("d", 5)], true));
    // The directories in them are compared, or lacked, for themselves.
    session.directory("a");
    let compare = Travel::As(Content::Compare { digest: None }, Vec::new());
    assert_eq!(session.travel("a/file"), compare);
    session.directory("c");
    assert_eq!(session.travel("c/file"), Travel::Inline(Vec::new()));
    assert_eq!(session.paths(), []);
    assert!(!session.sender.is_reconciling());
}

/// Nobody knows what is below: it may be there.
#[test]
fn what_could_not_be_read_is_never_equal_nor_lacked() {
    let mut session = Session::reconcile(&[("", 1), ("a", 2), ("a/b", 3), ("c", 0)]);
    session.compared(0, listed(&[("", 1), ("a", 0), ("c", 0)], true));
    let compare = Travel::As(Content::Compare { digest: None }, Vec::new());
    for at in ["a", "a/b", "c"] {
        session.directory(at);
        assert_eq!(session.travel(&format!("{at}/file")), compare);
    }
    assert_eq!(session.paths(), []);
}

#[test]
fn the_rest_of_a_list_without_end_is_compared_once_more() {
    let mut session = Session::reconcile(&[("", 1), ("a", 2), ("b", 3), ("c", 4)]);
    session.compared(0, listed(&[("", 9), ("a", 2), ("a/surplus", 5)], false));
    assert_eq!(session.sender.poll_digest(), None, "the surplus is still there");
    session.directory("");
    assert_eq!(session.paths(), [path("file")]);
    let again = session.sender.poll_digest();
    let Some(Item::Digest { range, after, through, digest: told, .. }) = again else {
        panic!("{again:?}");
    };
    assert_eq!((range, after, through), (RangeId(1), Some(path("a/surplus")), path("c")));
    assert_eq!(told, range_digest([(&path("b"), digest(3)), (&path("c"), digest(4))]));
    assert!(session.sender.is_reconciling());
    session.compared(1, None);
    assert!(!session.sender.is_reconciling());
}

#[test]
fn what_a_digest_cannot_find_is_compared_for_itself() {
    let mut session = Session::trusted(None);
    session.directory("");
    session.sender.poll_survey().unwrap();
    let glance = |ctime, linked: Option<u64>, is_regular| Glance {
        linked: linked.map(|inode| Identity { device: 0, inode }),
        ctime: time(ctime),
        is_regular,
    };
    for (name, seen) in [
        ("old", glance(TRUSTED_UNTIL - 3, None, true)),
        ("recent", glance(TRUSTED_UNTIL - 2, None, true)),
        ("link", glance(TRUSTED_UNTIL, None, false)),
        ("one", glance(0, Some(1), true)),
        ("two", glance(0, Some(2), true)),
        ("other-one", glance(0, Some(1), true)),
    ] {
        session.sender.handle_glance(&path("d"), name.as_bytes(), seen);
    }
    assert_eq!(session.paths(), [path("d/recent"), path("d/one"), path("d/two")]);
}

/// Into what was surveyed, out of it, and out of what was not.
#[test]
fn a_rename_across_the_cursor_has_both_ends_compared() {
    for (from, to) in [("z", "a/z"), ("a", "z"), ("x", "z")] {
        let mut session = Session::trusted(None);
        session.directory("");
        let task = session.sender.poll_survey();
        session.sender.handle_surveyed(surveyed("", 1));
        session.sender.handle_surveyed(surveyed("a", 2));
        session.journal(rename(from, to));
        assert_eq!(session.begin().len(), 1);
        // Both are directories by now.
        session.directory(to);
        session.directory(from);
        assert_eq!(session.sender.poll_survey(), task, "the first one goes on");
        assert!(session.sender.handle_survey_end().is_some());
        let told: Vec<Item> =
            [to, from].iter().flat_map(|end| session.survey(end, &[(end, 3)])).collect();
        assert_eq!(told.len(), 2);
        for range in 0..3 {
            assert!(session.sender.is_reconciling());
            session.compared(range, None);
        }
        assert!(!session.sender.is_reconciling());
    }
}

#[test]
fn a_change_is_told_whether_its_directory_was_surveyed_or_not() {
    let mut session = Session::trusted(None);
    session.directory("");
    session.sender.poll_survey();
    session.sender.handle_surveyed(surveyed("", 1));
    session.sender.handle_surveyed(surveyed("m", 2));
    for at in ["m/f", "z/f"] {
        session.journal(content(at));
    }
    assert_eq!(session.paths(), [path("m/f"), path("z/f")]);
    // Also while a directory above it is to be walked, but not what is in the ones in that.
    session.sender.handle_survey_end();
    session.compared(0, listed(&[("", 9), ("m", 2)], true));
    session.journal(content("m/f"));
    assert_eq!(session.paths(), [path("m/f"), path("")]);
}

#[test]
fn a_need_is_answered_when_all_of_it_was_compared_and_sent() {
    let mut session = Session::trusted(Some((0, 0)));
    session.message(need(5, "d"));
    session.directory("d");
    session.survey("d", &[("d", 1), ("d/e", 2)]);
    assert_eq!(session.paths(), []);
    assert_eq!(session.answered(), None);
    session.compared(0, listed(&[("d", 9)], true));
    session.directory("d");
    session.travel("d/file");
    session.directory("d/e");
    assert_eq!(session.answered(), None);
    session.travel("d/e/file");
    assert_eq!(session.answered(), Some(5));
    assert_eq!(session.answered(), None, "once");
}

#[test]
fn a_needed_subtree_that_moves_is_compared_from_its_beginning() {
    for told in [false, true] {
        let mut session = Session::trusted(Some((0, 0)));
        session.message(need(5, "d/e"));
        session.directory("d/e");
        if told {
            session.survey("d/e", &[("d/e", 1)]);
        } else {
            session.sender.handle_surveyed(surveyed("d/e", 1));
        }
        session.journal(rename("d", "f"));
        assert_eq!(session.begin().len(), 1);
        if told {
            // The answer is of the old place.
            session.compared(0, listed(&[("d/e", 9)], true));
        }
        session.directory("f/e");
        session.survey("f/e", &[("f/e", 1)]);
        session.compared(u64::from(told), None);
        assert_eq!(session.answered(), Some(5));
    }
}

#[test]
fn what_a_rename_takes_out_of_a_needed_subtree_is_compared_as_well() {
    for change in [rename("d/x", "e"), rename("e", "d/x"), exchange("d/x", "d/y")] {
        let mut session = Session::trusted(Some((0, 0)));
        session.message(need(5, "d"));
        session.directory("d");
        session.survey("d", &[("d", 1), ("d/x", 2)]);
        session.journal(change.clone());
        let (from, to) = change.ends().unwrap();
        assert_eq!(session.paths(), [to.clone(), from.clone()], "{change:?}");
        assert_eq!(session.answered(), None);
        session.compared(0, None);
        assert_eq!(session.answered(), Some(5));
    }
}

#[test]
fn a_need_of_everything_ends_the_comparisons_of_others() {
    let mut session = Session::trusted(Some((0, 0)));
    session.message(need(5, "d"));
    session.directory("d");
    session.survey("d", &[("d", 1)]);
    session.message(need(6, ""));
    session.directory("");
    session.survey("", &[("", 1), ("d", 1)]);
    session.compared(0, listed(&[("d", 9)], true));
    session.compared(1, None);
    assert_eq!(session.paths(), []);
    assert_eq!([(); 2].map(|()| session.answered()), [Some(5), Some(6)]);
}

#[test]
fn ranges_and_what_is_under_way_are_bounded() {
    let mut session = Session::trusted(None);
    session.directory("");
    let mut told = 0;
    for number in 0.. {
        if session.sender.poll_survey().is_none() {
            break;
        }
        let at = format!("{number:08}");
        told += usize::from(session.sender.handle_surveyed(surveyed(&at, 1)).is_some());
    }
    assert_eq!(told, RANGES_MAX);
    session.compared(0, None);
    assert!(session.sender.poll_survey().is_some());
}

#[test]
fn answers_that_cannot_be_are_refused() {
    let told = [("a", 1), ("a/b", 2), ("c", 3)];
    for (range, differs) in [
        (1, None),
        (0, listed(&[("a/b", 1), ("a", 2)], true)),
        (0, listed(&[("a", 1), ("a", 1)], true)),
        (0, listed(&[("a", 1), ("d", 1)], true)),
        (0, listed(&[("a/../c", 1)], true)),
        (0, listed(&[], false)),
        (
            0,
            Some(Differs {
                directories: vec![Listed { shared: 9, rest: b"b".into(), digest: None }],
                is_whole: true,
            }),
        ),
    ] {
        let mut session = Session::reconcile(&told);
        let refused = session.try_compared(range, differs.clone());
        assert!(matches!(refused, Err(Refusal::Protocol(_))), "{differs:?}: {refused:?}");
    }
    let mut session = Session::reconcile(&told);
    session.compared(0, None);
    assert!(session.try_compared(0, None).is_err(), "twice");
    // Some kilobytes that stand for more paths than there is memory.
    let mut session = Session::reconcile(&told);
    let deep = "a/".to_string() + &["n"; 30_000].join("/");
    let first = Listed { shared: 0, rest: deep.clone().into(), digest: None };
    let more = (0..1000).map(|number| Listed {
        shared: deep.len() as u32,
        rest: format!("/{number:09}").into(),
        digest: None,
    });
    let directories = [first].into_iter().chain(more).collect();
    let refused = session.try_compared(0, Some(Differs { directories, is_whole: true }));
    assert!(matches!(refused, Err(Refusal::Protocol(_))), "{refused:?}");
    let mut session = Session::trusted(Some((0, 0)));
    session.message(need(5, "d"));
    session.directory("d");
    session.survey("d", &[("d/e", 1)]);
    assert!(session.try_compared(0, listed(&[("c", 1)], true)).is_err(), "of another subtree");
}

/// Returns a range as it is told.
fn range(id: u64, at: &str, after: Option<&str>, through: &str) -> Item {
    Item::Digest {
        range: RangeId(id),
        path: path(at),
        after: after.map(path),
        through: path(through),
        entries: 2,
        digest: range_digest([(&path(through), digest(1))]),
    }
}

#[test]
fn ranges_that_cannot_be_are_refused() {
    for item in [
        range(1, "", Some("b"), "a"),
        range(1, "", Some("a"), "a"),
        range(1, "", Some("a-b"), "a/b"),
        range(1, "d", None, "c"),
        range(1, "d", None, "d-e"),
        range(1, "d", Some("c"), "d/e"),
        range(1, ".mirror", None, ".mirror/stage"),
    ] {
        let (mut state, mut receiver) = resumed(0, 0);
        assert!(receiver.handle_item(&mut state, &item).is_err(), "{item:?}");
    }
    let (mut state, mut receiver) = resumed(0, 0);
    receiver.handle_item(&mut state, &range(1, "", None, "a")).unwrap();
    assert!(receiver.handle_item(&mut state, &range(1, "", None, "a")).is_err(), "twice");
    for id in 2..=RANGES_MAX as u64 {
        receiver.handle_item(&mut state, &range(id, "", None, "a")).unwrap();
    }
    let more = range(RANGES_MAX as u64 + 1, "", None, "a");
    assert!(receiver.handle_item(&mut state, &more).is_err(), "more than may be asked at once");
}

/// Returns the next answer of a receiver.
fn answer(receiver: &mut Receiver, state: &mut ReceiverState) -> Option<Option<Differs>> {
    match receiver.poll_message(state, Instant::now()) {
        Some(Message::Compared { differs, .. }) => Some(differs),
        _ => None,
    }
}

#[test]
fn a_downstream_lists_what_it_has_unless_that_is_equal() {
    let (mut state, mut receiver) = resumed(0, 0);
    receiver.handle_item(&mut state, &range(1, "", None, "a/b")).unwrap();
    receiver.handle_item(&mut state, &range(2, "", None, "a/b")).unwrap();
    receiver.handle_item(&mut state, &range(3, "", None, "a/b")).unwrap();
    assert!(receiver.handle_surveyed(surveyed("a/b", 1)));
    assert_eq!(answer(&mut receiver, &mut state), None, "there may be more");
    receiver.handle_survey_end();
    assert_eq!(answer(&mut receiver, &mut state), Some(None));
    receiver.handle_surveyed(surveyed("a", 1));
    receiver.handle_surveyed(surveyed("a/b", 2));
    receiver.handle_survey_end();
    let listed =
        |shared, rest: &str, number| Listed { shared, rest: rest.into(), digest: digest(number) };
    let directories = vec![listed(0, "a", 1), listed(1, "/b", 2)];
    let differs = Differs { directories, is_whole: true };
    assert_eq!(answer(&mut receiver, &mut state), Some(Some(differs)));
    // What cannot be read is never equal.
    receiver.handle_surveyed(surveyed("a/b", 0));
    receiver.handle_survey_end();
    let unread = vec![Listed { shared: 0, rest: b"a/b".into(), digest: None }];
    let differs = Differs { directories: unread, is_whole: true };
    assert_eq!(answer(&mut receiver, &mut state), Some(Some(differs)));
    assert_eq!(receiver.range(), None);
}

/// Also where the upstream says that it has more than any tree.
#[test]
fn a_list_is_bounded_whatever_is_there() {
    let (mut state, mut receiver) = resumed(0, 0);
    let mut item = range(1, "", None, "z");
    if let Item::Digest { entries, .. } = &mut item {
        *entries = u64::MAX;
    }
    receiver.handle_item(&mut state, &item).unwrap();
    let name = "n".repeat(200);
    let mut count = 0;
    while receiver.handle_surveyed(surveyed(&format!("{name}/{count:09}"), 1)) {
        count += 1;
        assert!(count < 10_000);
    }
    let Some(Some(differs)) = answer(&mut receiver, &mut state) else { panic!() };
    assert!(!differs.is_whole);
    assert_eq!(differs.directories.len(), count + 1);
    let bytes = encode_message(&Message::Compared { range: RangeId(1), differs: Some(differs) });
    assert!(bytes.len() < FRAME_BYTES_MAX / 2);
    // And by how much more there is than upstream.
    receiver.handle_item(&mut state, &range(2, "", None, "z")).unwrap();
    let surplus = Surveyed { entries: LISTED_ENTRIES_MORE, ..surveyed("a", 1) };
    assert!(receiver.handle_surveyed(surplus.clone()));
    assert!(!receiver.handle_surveyed(Surveyed { path: path("b"), ..surplus }));
}
