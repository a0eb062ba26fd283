//! What must hold of relays, each rule by itself, in a chain that is driven step by step.

mod common;

use std::fs;

use common::chain::{A, B, C, Chain, D};
use mirror::wire::Plan;

/// DESIGN 8: a journal that does not reach the checkpoint is discarded. Who is not behind that goes
/// on by position all the same, and others compare.
#[test]
fn a_relay_whose_journal_is_gone_begins_another() {
    let directory = common::machine::scratch();
    let mut chain = Chain::quiet(directory.path());
    let src = chain.tree(A);
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
    let directory = common::machine::scratch();
    let mut chain = Chain::quiet(directory.path());
    let src = chain.tree(A);
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
    let directory = common::machine::scratch();
    let mut chain = Chain::quiet(directory.path());
    let src = chain.tree(A);
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
