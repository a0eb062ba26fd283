//! Walks: over what a downstream needs, and over whole trees.

use std::time::Duration;

use super::*;

#[test]
fn a_need_has_its_subtree_sent_and_is_answered() {
    let mut session = Session::new(&[], Some((0, 0)));
    let need = Message::Need { id: 5, path: path("d"), content: true, moved: Sequence(0) };
    assert_eq!(session.message(need), None);
    session.begin();
    let job = session.job().unwrap();
    assert_eq!((&job.path, job.what), (&path("d"), What::CONTENT));
    assert!(matches!(job.origin, Origin::Walk(_)));
    session.sender.visit(&job, vec![path("d/a"), path("d/b")], vec![]);
    assert!(session.finish(job));
    assert_eq!(session.sender.poll_through(Timestamp::default()), None, "not all was sent");
    assert_eq!(session.paths(), [path("d/a"), path("d/b")]);
    let answer = session.sender.poll_through(Timestamp::default());
    assert_eq!(answer, Some(Item::Answered { id: 5 }));
}

#[test]
fn a_need_follows_the_renames_that_were_on_their_way() {
    let mut session = Session::new(&[rename("d", "e"), rename("e", "f")], Some((0, 0)));
    assert_eq!(session.begin().len(), 2);
    // The downstream had the first one only when it missed something.
    session.message(Message::Need { id: 1, path: path("e/x"), content: true, moved: Sequence(1) });
    assert_eq!(session.paths(), [path("f/x")]);
}

/// The directory that is needed will not have it any more when it is listed.
#[test]
fn a_need_follows_what_renames_take_out_of_its_subtree() {
    let need = || Message::Need { id: 1, path: path("d"), content: true, moved: Sequence(0) };
    for change in [rename("d/x", "e/y"), exchange("d/x", "e/y"), exchange("e/y", "d/x")] {
        let mut session = Session::new(&[], Some((0, 0)));
        session.message(need());
        session.journal(change.clone());
        assert_eq!(session.paths(), [path("e/y"), path("d")], "{change:?}");
        // Also if it was on its way to the downstream already.
        let mut session = Session::new(std::slice::from_ref(&change), Some((0, 0)));
        session.begin();
        session.message(need());
        assert_eq!(session.paths(), [path("e/y"), path("d")], "{change:?}");
    }
    // Within the subtree it is found all the same.
    let mut session = Session::new(&[], Some((0, 0)));
    session.message(need());
    session.journal(rename("d/x", "d/y"));
    assert_eq!(session.paths(), [path("d")]);
}

/// What it asked for, or is yet to ask for, is needed wherever renames take it.
#[test]
fn needs_are_split_by_renames_out_of_their_subtree() {
    let now = Instant::now();
    let mut state = ReceiverState::new(NodeId(2));
    let (mut receiver, _) = Receiver::new(&mut state, false, now);
    state.need(path("d"), true);
    let follow = |receiver: &mut Receiver, state: &mut ReceiverState, sequence, from, to| {
        let (sequence, from, to) = (Sequence(sequence), path(from), path(to));
        receiver.handle_applied(state, &Item::Rename { sequence, from, to }, Vec::new());
    };
    let needs = |state: &ReceiverState| -> Vec<_> {
        state.needs().map(|(path, content)| (path.clone(), content)).collect()
    };
    follow(&mut receiver, &mut state, 1, "d/x", "e");
    assert_eq!(needs(&state), [(path("d"), true), (path("e"), true)]);
    follow(&mut receiver, &mut state, 2, "e/y", "e/z");
    follow(&mut receiver, &mut state, 3, "d", "f");
    follow(&mut receiver, &mut state, 4, "f/sub", "e/sub");
    assert_eq!(needs(&state), [(path("f"), true), (path("e"), true)]);
}

/// Where big files lie together they keep the source busy: the sink has others to make meanwhile.
#[test]
fn a_walk_goes_on_past_big_files_and_takes_turns_with_them() {
    let mut session = Session::new(&[], None);
    session.begin();
    let root = session.job().unwrap();
    let names: Vec<String> = (0..=TRANSFERS_MAX).map(|number| format!("big-{number}")).collect();
    let children = names.iter().map(String::as_str).chain(["x", "y"]).map(path).collect();
    session.sender.visit(&root, children, vec![]);
    assert!(session.finish(root));
    let stages: Vec<StageId> = (0..TRANSFERS_MAX).map(|_| session.stage_next()).collect();
    session.begin();
    let waiting = session.job().unwrap();
    assert_eq!(session.stage(&waiting), Travel::Later);
    session.sender.defer(waiting);
    let job = session.job().unwrap();
    assert_eq!(job.path, path("x"));
    assert!(session.finish(job));
    // A long line, whose window has room for more than chunks.
    session.sender.handle_sent(1, true, session.now);
    session.now += Duration::from_secs(1);
    let none = Sequence(0);
    session.message(Message::Ack { moved: none, applied: none, durable: none, handled_bytes: 1 });
    session.sender.handle_sent(WINDOW_CHUNK_BYTES_MAX as usize, true, session.now);
    session.begin();
    assert_eq!(session.job(), None, "it does not fill the window in which there are no chunks");
    stages.iter().for_each(|stage| session.sender.handle_stage_read(*stage));
    let rest = session.paths();
    let last = [path("big-4"), path("y")];
    assert_eq!(&rest[TRANSFERS_MAX..], last, "what waited comes first");
}

/// Made of a name that is not there yet, it would be asked for, and the content come twice.
#[test]
fn another_name_of_a_big_file_that_waits_waits_as_well() {
    let mut session = Session::new(&[], None);
    session.begin();
    let root = session.job().unwrap();
    let names: Vec<String> = (0..=TRANSFERS_MAX).map(|number| format!("big-{number}")).collect();
    let other = format!("other-{TRANSFERS_MAX}");
    let children = names.iter().chain([&other]).map(|name| path(name)).collect();
    session.sender.visit(&root, children, vec![]);
    assert!(session.finish(root));
    let stages: Vec<StageId> = (0..TRANSFERS_MAX).map(|_| session.stage_next()).collect();
    session.begin();
    for name in [&names[TRANSFERS_MAX], &other] {
        let job = session.job().unwrap();
        assert_eq!((&job.path, session.stage(&job)), (&path(name), Travel::Later));
        session.sender.defer(job);
    }
    session.sender.handle_stage_gone(stages[0]);
    session.stage_next();
    session.begin();
    let job = session.job();
    assert_eq!(job, None, "there is no room for more");
    session.sender.handle_stage_gone(stages[1]);
    let job = session.job().unwrap();
    assert_eq!((&job.path, session.stage(&job)), (&path(&other), Travel::Absorbed));
}

#[test]
fn a_rename_during_a_comparison_has_both_ends_compared() {
    let mut session = Session::new(&[], None);
    session.begin();
    let root = session.job().unwrap();
    assert!(root.path.is_root());
    session.sender.visit(&root, vec![path("a"), path("b")], vec![]);
    assert!(session.finish(root));
    let job = session.job().unwrap();
    assert_eq!(job.path, path("a"));
    assert!(session.finish(job));
    // What was compared already goes to what was not, and back.
    session.journal(rename("a", "c"));
    assert_eq!(session.begin().len(), 1);
    let paths = session.paths();
    for end in ["a", "c"] {
        assert!(paths.contains(&path(end)), "{end} is not in {paths:?}");
    }
}

#[test]
fn too_many_needs_become_one_for_everything() {
    let mut state = ReceiverState::new(NodeId(2));
    for number in 0..3 * NEEDS_MAX {
        state.need(path(&format!("f{number}")), true);
        assert!(state.needs().count() <= NEEDS_MAX);
    }
    assert_eq!(state.needs().next(), Some((&TreePath::root(), false)));
}
