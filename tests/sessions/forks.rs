//! DESIGN 8: a position of the parent epoch at or below the fork goes on by position, and no other.

use super::*;
use mirror::session::Relayed;

const CHILD: EpochId = EpochId { counter: 2, random: 2 };
const FORK: u64 = 10;

fn child() -> Epoch {
    Epoch { id: CHILD, parent: Some((EPOCH, Sequence(FORK))) }
}

fn marks(epoch: EpochId, moved: u64, applied: u64) -> Watermarks {
    Watermarks { epoch, moved: Sequence(moved), applied: Sequence(applied) }
}

/// Positions, and whether each goes on.
fn cases() -> [(Watermarks, bool); 7] {
    let other = EpochId { counter: 1, random: 9 };
    [
        (marks(EPOCH, FORK, FORK), true),
        (marks(EPOCH, FORK, 3), true),
        (marks(EPOCH, 0, 0), true),
        // It moved what is not a part of this history.
        (marks(EPOCH, FORK + 1, 3), false),
        (marks(CHILD, FORK + 2, FORK + 2), true),
        (marks(other, 3, 3), false),
        (marks(EpochId { counter: 3, random: 3 }, 3, 3), false),
    ]
}

#[test]
fn an_upstream_resumes_what_is_below_the_fork() {
    for (watermarks, goes_on) in cases() {
        let mut session = Session::new(&vec![content("f"); 15], None);
        session.sender = Sender::new(session.now);
        let state = SourceState { epoch: child(), ..session.state() };
        let hello = DownstreamHello { watermarks: Some(watermarks), ..hello(Some((0, 0))) };
        let hello = Message::DownstreamHello(hello);
        let answer = session.sender.handle_message(hello, &state, &session.renames, session.now);
        let Ok(Some(Message::UpstreamHello(answer))) = answer else { panic!("{answer:?}") };
        assert_eq!(answer.plan == Plan::Resume, goes_on, "{watermarks:?}");
        assert_eq!(answer.epoch, child());
        let after = if goes_on { watermarks.applied } else { session.head() };
        let wanted = session.sender.wants_records(Sequence(16));
        assert_eq!(wanted, Some(after), "{watermarks:?}");
    }
}

#[test]
fn a_downstream_goes_on_in_the_new_epoch_from_below_the_fork_only() {
    for (watermarks, goes_on) in cases() {
        let now = Instant::now();
        let mut state = ReceiverState::new(NodeId(2));
        (state.tree, state.watermarks) = (Some(TreeId(1)), Some(watermarks));
        let (mut receiver, _) = Receiver::new(&mut state, false, now);
        let hello = UpstreamHello {
            version: VERSIONS.newest,
            tree: TreeId(1),
            chain: vec![NodeId(1)],
            epoch: child(),
            plan: Plan::Resume,
            head: Sequence(15),
            clock: Timestamp::default(),
        };
        let plan = receiver.handle_message(&mut state, Message::UpstreamHello(hello), now);
        if goes_on {
            assert_eq!(plan, Ok(Some(Plan::Resume)));
            // The numbers go on, and are of the new epoch from here.
            assert_eq!(state.watermarks, Some(Watermarks { epoch: CHILD, ..watermarks }));
        } else {
            assert!(matches!(plan, Err(Refusal::Protocol(_))), "{watermarks:?}: {plan:?}");
        }
    }
}

/// Nobody reconciles to an older epoch: who is ahead of a relay by an epoch waits for it.
#[test]
fn a_downstream_of_a_later_epoch_waits_for_a_relay() {
    let relayed = Relayed {
        moved: Sequence(15),
        applied: Some(Sequence(15)),
        reached: None,
        origin: Default::default(),
        mark: None,
        after: None,
    };
    let session = Session::new(&[content("f")], None);
    let waits = |epoch: Epoch, watermarks| {
        let state = SourceState { epoch, relayed: Some(relayed), ..session.state() };
        state
            .must_wait_for(&DownstreamHello { watermarks: Some(watermarks), ..hello(Some((0, 0))) })
    };
    let parent = Epoch { id: EPOCH, parent: None };
    assert!(waits(parent, marks(CHILD, 3, 3)));
    assert!(!waits(child(), marks(EPOCH, FORK, 3)));
    // Beyond the fork there is nothing to wait for: it is compared.
    assert!(!waits(child(), marks(EPOCH, FORK + 9, 3)));
    assert!(waits(child(), marks(CHILD, 16, 3)));
    assert!(waits(child(), marks(CHILD, 16, 16)));
}
