//! What must hold of relays, each rule by itself, in a chain that is driven step by step.

mod common;

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::time::Duration;

use common::chain::{A, B, C, Chain, D};
use mirror::wire::{Content, Item, Plan};

/// Returns a chain in which nothing happens but what the test does, where it is, and its source's
/// tree.
fn quiet() -> (tempfile::TempDir, Chain, PathBuf) {
    let directory = common::machine::scratch();
    let chain = Chain::quiet(directory.path());
    let src = chain.tree(A);
    (directory, chain, src)
}

/// Returns the paths of which content came, and how many renames did.
fn contents(told: &[Item]) -> (Vec<String>, usize) {
    let (mut paths, mut renames) = (Vec::new(), 0);
    for item in told {
        match item {
            Item::State {
                path, content: Content::Inline { .. } | Content::Staged { .. }, ..
            } => {
                paths.push(path.to_string());
            }
            Item::Rename { .. } | Item::Exchange { .. } => renames += 1,
            _ => {}
        }
    }
    (paths, renames)
}

/// DESIGN 8: a journal that does not reach the checkpoint is discarded. Who is not behind that goes
/// on by position all the same, and others compare.
#[test]
fn a_relay_whose_journal_is_gone_begins_another() {
    let (_directory, mut chain, src) = quiet();
    fs::write(src.join("a"), "first").unwrap();
    chain.re_parent(D, B);
    chain.converge();
    chain.cut(C, "to be behind");
    fs::write(src.join("b"), "second").unwrap();
    chain.run(&[B, D]);
    chain.stop(B);
    fs::remove_dir_all(chain.journal(B)).unwrap();
    fs::rename(src.join("a"), src.join("c")).unwrap();
    fs::write(src.join("a"), "third").unwrap();
    chain.converge();
    assert_eq!(chain.edges[B].plans.last(), Some(&Plan::Resume));
    assert_eq!(chain.edges[D].plans.last(), Some(&Plan::Resume));
    assert!(matches!(chain.edges[C].plans.last(), Some(Plan::Compare { .. })));
}

/// A state may tell of later records than the one for which it is sent, and they are not sent
/// again: whoever has only the first of them must hear it of a relay as well.
#[test]
fn states_that_overtook_their_records_reach_who_comes_from_elsewhere() {
    let (_directory, mut chain, src) = quiet();
    chain.re_parent(D, A);
    chain.converge();
    // Record after record of the same two files, and the relay hears of them when all are there.
    for round in 0..3 {
        fs::write(src.join("a"), format!("a {round}")).unwrap();
        fs::write(src.join("b"), format!("b {round}")).unwrap();
        if round == 0 {
            chain.run(&[D]);
        } else {
            chain.send(D);
            chain.cut(D, "to have the first of them only");
        }
    }
    chain.origin().limit_batches(1);
    chain.run(&[B]);
    chain.re_parent(D, B);
    chain.converge();
    assert_eq!(chain.edges[D].plans.last(), Some(&Plan::Resume));
}

/// The same while a big file is on its way, which later records overtake.
#[test]
fn what_overtook_a_big_file_reaches_who_comes_from_elsewhere() {
    let (_directory, mut chain, src) = quiet();
    chain.re_parent(D, A);
    chain.converge();
    fs::write(src.join("a"), "a").unwrap();
    chain.run(&[D]);
    chain.cut(D, "to have nothing of what follows");
    fs::write(src.join("big"), vec![7; 3 << 20]).unwrap();
    for number in 0..20 {
        fs::write(src.join(format!("{number}")), "small").unwrap();
    }
    // The relay has the small ones and says that it is level with the sink.
    let whole =
        |chain: &Chain| chain.tree(B).join("19").exists() && !chain.tree(B).join("big").exists();
    while !whole(&chain) {
        chain.work(B);
    }
    chain.re_parent(D, B);
    chain.connect(D);
    chain.converge();
    assert_eq!(chain.edges[D].plans.last(), Some(&Plan::Resume));
}

/// DESIGN 8: a relay passes positions on unchanged, so that a replica resumes at any node.
#[test]
fn positions_are_the_same_at_all_nodes() {
    let (_directory, mut chain, src) = quiet();
    for number in 0..20 {
        fs::write(src.join(format!("{number}")), vec![7; 1000]).unwrap();
    }
    chain.converge();
    for (step, up) in [A, C, B, A, B, C].into_iter().enumerate() {
        chain.re_parent(D, up);
        chain.edges[D].told.clear();
        fs::write(src.join("new"), format!("{step}")).unwrap();
        fs::rename(src.join(format!("{step}")), src.join(format!("moved {step}"))).unwrap();
        chain.converge();
        assert_eq!(chain.edges[D].plans.last(), Some(&Plan::Resume), "at {up}");
        let (contents, renames) = contents(&chain.edges[D].told);
        assert_eq!((contents, renames), (vec!["new".to_string()], 1), "at {up}");
    }
}

/// DESIGN 8: a downstream that is ahead of a relay waits until that has passed it.
#[test]
fn a_sink_that_is_ahead_of_its_new_upstream_waits_and_resumes() {
    let (_directory, mut chain, src) = quiet();
    fs::write(src.join("a"), "first").unwrap();
    chain.re_parent(D, A);
    chain.converge();
    chain.cut(B, "to be behind");
    fs::write(src.join("a"), "second").unwrap();
    fs::rename(src.join("a"), src.join("b")).unwrap();
    chain.run(&[D]);
    chain.re_parent(D, B);
    chain.connect(D);
    let greeted = chain.edges[D].plans.len();
    chain.run(&[D, C]);
    assert_eq!(chain.edges[D].plans.len(), greeted, "it was answered by a node that is behind");
    assert_eq!(fs::read(chain.tree(D).join("b")).unwrap(), b"second");
    chain.connect(B);
    chain.edges[D].told.clear();
    chain.converge();
    assert!(chain.edges[D].plans[greeted..].iter().all(|plan| *plan == Plan::Resume));
    assert_eq!(contents(&chain.edges[D].told).0, Vec::<String>::new());
}

/// What a relay does not have yet must not be taken from a sink that has it, be it that the sink
/// has lost its position.
#[test]
fn a_sink_without_a_position_waits_while_its_relay_has_none() {
    let (_directory, mut chain, src) = quiet();
    for number in 0..20 {
        fs::write(src.join(format!("{number}")), "content").unwrap();
    }
    chain.re_parent(D, A);
    chain.connect(D);
    chain.run(&[D]);
    chain.stop(D);
    chain.change_checkpoint(D, |checkpoint| checkpoint.watermarks = None);
    chain.origin().limit_batches(1);
    chain.connect(B);
    while !chain.tree(B).join("7").exists() {
        chain.work(B);
    }
    chain.re_parent(D, B);
    chain.connect(D);
    for _ in 0..20 {
        chain.work(D);
    }
    assert!((0..20).all(|number| chain.tree(D).join(format!("{number}")).exists()));
    chain.converge();
}

/// A rename that was applied and not journaled is one that no downstream would hear of.
#[test]
fn a_relay_killed_between_a_rename_and_its_record_begins_its_journal_anew() {
    let (_directory, mut chain, src) = quiet();
    // The checkpoint knows of the rename by its marker only.
    chain.checkpoint_interval[B] = Duration::from_secs(3600);
    fs::write(src.join("a"), "content").unwrap();
    chain.converge();
    let before = chain.copy_journal(B);
    fs::rename(src.join("a"), src.join("b")).unwrap();
    while !chain.tree(B).join("b").exists() {
        chain.work(B);
    }
    chain.kill(B);
    chain.restore_journal(B, &before);
    chain.converge();
    assert!(matches!(chain.edges[C].plans.last(), Some(Plan::Compare { .. })));
}

/// The same of a journal that is put back from an older copy, as by a power cut.
#[test]
fn a_relay_with_an_older_journal_begins_anew() {
    let (_directory, mut chain, src) = quiet();
    fs::write(src.join("a"), "first").unwrap();
    chain.converge();
    chain.stop(B);
    let before = chain.copy_journal(B);
    chain.cut(C, "to be behind");
    chain.connect(B);
    fs::write(src.join("a"), "second").unwrap();
    chain.run(&[B]);
    chain.stop(B);
    chain.restore_journal(B, &before);
    chain.converge();
    assert!(matches!(chain.edges[C].plans.last(), Some(Plan::Compare { .. })));
}

/// Renames that a new journal never had are known to be missing in it, also after a restart.
#[test]
fn a_downstream_that_missed_renames_of_before_the_journal_compares() {
    let (_directory, mut chain, src) = quiet();
    fs::write(src.join("a"), "content").unwrap();
    chain.re_parent(D, A);
    chain.converge();
    for node in [B, D] {
        chain.cut(node, "to be behind");
    }
    for number in 0..9 {
        fs::write(src.join(format!("{number}")), "new").unwrap();
    }
    fs::rename(src.join("a"), src.join("b")).unwrap();
    chain.origin().limit_batches(1);
    chain.connect(B);
    while !chain.tree(B).join("0").exists() {
        chain.work(B);
    }
    chain.stop(B);
    fs::remove_dir_all(chain.journal(B)).unwrap();
    chain.open(B);
    let marks = chain.node(B).watermarks().unwrap();
    assert!(marks.applied < marks.moved, "{marks:?}");
    chain.stop(B);
    chain.open(B);
    // At the very place, but without the rename.
    chain.stop(D);
    chain.change_checkpoint(D, |checkpoint| {
        let own = checkpoint.watermarks.as_mut().unwrap();
        (own.applied, own.moved) = (marks.applied, marks.applied);
    });
    chain.re_parent(D, B);
    chain.connect(D);
    chain.run(&[D]);
    assert!(matches!(chain.edges[D].plans.last(), Some(Plan::Compare { .. })));
    chain.converge();
}

/// A relay whose upstream is gone serves what it has, by position.
#[test]
fn a_relay_without_upstream_serves_by_position() {
    let (_directory, mut chain, src) = quiet();
    fs::write(src.join("a"), "first").unwrap();
    chain.re_parent(D, B);
    chain.converge();
    chain.cut(D, "to be behind");
    fs::write(src.join("a"), "second").unwrap();
    chain.run(&[B]);
    chain.kill(B);
    chain.open(B);
    chain.connect(D);
    chain.run(&[D]);
    assert_eq!(chain.edges[D].plans.last(), Some(&Plan::Resume));
    assert_eq!(fs::read(chain.tree(D).join("a")).unwrap(), b"second");
    chain.converge();
}

/// I10, by name: a node at its own address, also when it has nothing yet, and one whose upstream
/// follows it.
#[test]
fn a_cycle_is_refused() {
    let (_directory, mut chain, _) = quiet();
    chain.re_parent(B, B);
    chain.connect(B);
    for _ in 0..5 {
        chain.work(B);
    }
    assert_eq!(chain.ended.len(), 1, "its own upstream, with nothing");
    chain.ended.clear();
    chain.re_parent(B, A);
    chain.converge();
    chain.stop(B);
    for up in [B, C] {
        chain.re_parent(B, up);
        chain.connect(B);
        if !chain.is_connected(C) {
            chain.connect(C);
        }
        for _ in 0..5 {
            chain.work(B);
            chain.work(C);
        }
        let (_, error) = &chain.ended[0];
        assert!(error.contains("would become its own upstream"), "{error}");
        chain.ended.clear();
    }
    chain.re_parent(B, A);
    chain.converge();
}

/// I10: two that greet each other at the same time learn of the cycle when their chains change.
#[test]
fn a_cycle_that_is_closed_at_both_ends_at_once_is_found() {
    let (_directory, mut chain, _) = quiet();
    chain.converge();
    chain.stop(B);
    chain.stop(C);
    chain.re_parent(B, C);
    chain.connect(B);
    chain.connect(C);
    for node in [B, C] {
        chain.answer(node);
        chain.send(node);
    }
    assert!(chain.ended.is_empty());
    chain.deliver(B);
    for _ in 0..5 {
        for node in [B, C] {
            if chain.ended.is_empty() {
                chain.connect(node);
                chain.work(node);
            }
        }
    }
    assert_eq!(chain.ended.len(), 1, "{:?}", chain.cuts);
    chain.ended.clear();
    chain.re_parent(B, A);
    chain.converge();
}

/// What a relay knows of hard links is searched for when it was restarted.
#[test]
fn names_of_one_file_stay_so_behind_a_relay_that_was_restarted() {
    let (_directory, mut chain, src) = quiet();
    fs::create_dir(src.join("d")).unwrap();
    fs::write(src.join("a"), "first").unwrap();
    fs::hard_link(src.join("a"), src.join("d/b")).unwrap();
    fs::hard_link(src.join("a"), src.join("d/c")).unwrap();
    chain.converge();
    for round in 0..3 {
        for node in [B, C] {
            chain.kill(node);
        }
        fs::write(src.join("a"), format!("second {round}")).unwrap();
        fs::rename(src.join("d/b"), src.join(format!("e {round}"))).unwrap();
        fs::hard_link(src.join("a"), src.join("d/b")).unwrap();
        chain.converge();
    }
}

/// A replica whose relay lacks something must not take the relay's position for its own.
#[test]
fn a_relay_that_lacks_something_gives_no_position() {
    if !common::machine::need_root("an immutable directory") {
        return;
    }
    let (_directory, mut chain, src) = quiet();
    for name in ["from", "to"] {
        fs::create_dir(src.join(name)).unwrap();
    }
    fs::write(src.join("from/f"), "content").unwrap();
    chain.re_parent(D, B);
    for node in [B, C] {
        chain.connect(node);
    }
    chain.run(&[B, C]);
    let before = chain.node(C).watermarks().unwrap();
    let to = chain.tree(B).join("to");
    let change = |flag: &str| {
        let status = std::process::Command::new("chattr").arg(flag).arg(&to).status();
        status.is_ok_and(|status| status.success())
    };
    if !change("+i") {
        return common::skip("directories here cannot be made immutable");
    }
    fs::rename(src.join("from/f"), src.join("to/f")).unwrap();
    chain.run(&[B]);
    assert!(!to.join("f").exists());
    chain.connect(D);
    chain.run(&[B, C, D]);
    let claimed = [C, D].map(|node| chain.node(node).watermarks());
    assert!(change("-i"));
    // One has no position yet, and the other none that is new but for the rename.
    assert_eq!(claimed.map(|marks| marks.map(|marks| marks.applied)), [Some(before.applied), None]);
    chain.converge();
    assert!(chain.node(D).watermarks().is_some());
}

/// I2 at the second hop: a part of what is whole by now never replaces a whole file by a rename,
/// also when the relay was restarted since it was told what is a part.
#[test]
fn a_part_replaces_no_whole_file_behind_a_relay() {
    for restart in [false, true] {
        let (_directory, mut chain, src) = quiet();
        fs::write(src.join("f"), "whole").unwrap();
        chain.re_parent(D, B);
        chain.converge();
        // Nothing heals in the frame in which it goes wrong.
        chain.jobs_max = Some(1);
        [A, B].into_iter().for_each(|node| chain.set_limits(node));
        let mut part = fs::File::create(src.join("part")).unwrap();
        part.write_all(b"a pa").unwrap();
        let started = std::time::Instant::now();
        while !chain.tree(D).join("part").exists() {
            assert!(started.elapsed() < Duration::from_secs(10));
            chain.work(B);
            chain.work(D);
            std::thread::sleep(Duration::from_millis(2));
        }
        chain.run(&[B, D]);
        if restart {
            chain.cut(D, "to be behind");
            fs::write(src.join("x"), "x").unwrap();
            chain.run(&[B]);
            chain.kill(B);
        }
        for number in 0..6 {
            fs::write(src.join(format!("{number}")), "comes first").unwrap();
        }
        part.write_all(b"rt, not any more").unwrap();
        drop(part);
        fs::rename(src.join("part"), src.join("f")).unwrap();
        if restart {
            // The relay is greeted, and told nothing yet, when it tells the sink of what it has.
            chain.connect(B);
            chain.answer(B);
            chain.send(B);
            chain.deliver(B);
            chain.connect(D);
            for _ in 0..10 {
                chain.work(D);
            }
            assert!(chain.tree(D).join("x").exists());
        }
        for turn in 0..100 {
            chain.connect(B);
            chain.connect(D);
            for step in [Chain::send, Chain::deliver, Chain::answer] {
                for node in [B, D] {
                    step(&mut chain, node);
                    let there = fs::read(chain.tree(D).join("f")).unwrap();
                    assert_ne!(there, b"a pa", "restarted: {restart}, turn {turn}");
                }
            }
        }
        chain.converge();
    }
}

/// I9: small changes pass a big file at every hop.
#[test]
fn small_changes_pass_a_big_file_through_a_relay() {
    let (_directory, mut chain, src) = quiet();
    chain.converge();
    fs::write(src.join("big"), vec![7; 24 << 20]).unwrap();
    let mut passed = 0;
    for number in 0..40 {
        fs::write(src.join("small"), format!("{number}")).unwrap();
        for node in [B, C, D, B, C, D] {
            chain.work(node);
        }
        passed +=
            u32::from(!chain.tree(D).join("big").exists() && chain.tree(D).join("small").exists());
    }
    assert!(passed > 10, "{passed}");
    chain.converge();
}

/// Files changed at a relay are changed by its clock: what another node said up to when size and
/// time tell all is worth nothing there.
#[test]
fn sizes_and_times_are_trusted_only_at_the_node_whose_clock_it_is() {
    let (_directory, mut chain, src) = quiet();
    fs::write(src.join("a"), "content").unwrap();
    std::thread::sleep(Duration::from_millis(3100));
    fs::write(src.join("b"), "content").unwrap();
    chain.converge();
    let time = fs::metadata(src.join("a")).unwrap().modified().unwrap();
    // And back: what it knows is of the node that it followed last, not of the first.
    for up in [B, C] {
        // Something else with the same size and time.
        fs::write(chain.tree(D).join("a"), "CONTENT").unwrap();
        fs::File::open(chain.tree(D).join("a")).unwrap().set_modified(time).unwrap();
        chain.stop(D);
        chain.change_checkpoint(D, |checkpoint| {
            checkpoint.watermarks = None;
            checkpoint.trusted_until.seconds += 1000;
        });
        chain.re_parent(D, up);
        chain.converge();
    }
}

/// What a journal names is in the tree after a crash of the process, and need not be after one of
/// the machine; nor is it a position where something was missing.
#[test]
fn a_position_of_the_journal_counts_only_in_the_same_boot() {
    for same_boot in [true, false] {
        let (_directory, mut chain, src) = quiet();
        chain.checkpoint_interval[B] = Duration::from_secs(3600);
        fs::write(src.join("a"), "first").unwrap();
        chain.connect(B);
        chain.run(&[B]);
        fs::write(src.join("a"), "second").unwrap();
        chain.run(&[B]);
        let applied = chain.node(B).watermarks().unwrap().applied;
        chain.kill(B);
        if !same_boot {
            chain.reboot(B);
            fs::write(chain.tree(B).join("a"), "first").unwrap();
        }
        chain.open(B);
        assert_eq!(chain.node(B).watermarks().unwrap().applied == applied, same_boot);
        chain.converge();
    }
}
