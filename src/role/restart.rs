//! Whether a source goes on in the epoch of its last run: with the journal that it left, and the
//! catalog.

use std::path::Path;

use super::identity::SourceIdentity;
use super::replay::Replay;
use super::{RoleError, Source, SourceFeed};
use crate::journal::catalog::CATALOG_NAME;
use crate::journal::{Catalog, Cursor, FileError, Journal};
use crate::model::limits::RECORDS_READ_MAX;
use crate::model::{Change, Position, Sequence, TreePath, What};
use crate::watch::{RestartError, Watch};
use crate::wire::DownstreamHello;

/// What a source goes on with.
pub(super) struct Continued {
    pub replay: Replay,
    /// Entries that were not told when the catalog was written, by their paths now.
    pub untold: Vec<TreePath>,
    pub again: Option<Again>,
}

/// Records that are told again: the catalog does not have what they name, or the end was not a clean
/// one, after which the tree may have gone back to what it was before them.
#[derive(Debug)]
pub(super) struct Again {
    pub cursor: Cursor,
    pub through: Sequence,
    /// Where a new epoch begins if they cannot be read.
    pub fallback: Position,
}

/// Why a source does not go on.
pub(super) enum Obstacle {
    /// There is nothing to go on from.
    FirstStart,
    /// What there is cannot be used: a new epoch begins, in which every replica compares.
    NewEpoch(String),
    /// Nothing may begin.
    Hold(RoleError),
}

/// Has `watch` go on from the catalog in `state_dir` and the journal.
pub(super) fn go_on(
    watch: &mut Watch,
    journal: &Journal,
    identity: &SourceIdentity,
    state_dir: &Path,
) -> Result<Continued, Obstacle> {
    let new_epoch = |reason: &dyn std::fmt::Display| Obstacle::NewEpoch(reason.to_string());
    let Some((tree, epoch)) = journal.tree_and_epoch() else { return Err(Obstacle::FirstStart) };
    let catalog = match Catalog::open(state_dir) {
        Ok(Some(catalog)) => catalog,
        // A run that ended before its first look was over has left nothing to go on from.
        Ok(None) if journal.head() == Sequence(0) => return Err(Obstacle::FirstStart),
        Ok(None) => {
            let path = state_dir.join(CATALOG_NAME);
            return Err(new_epoch(&format!("{} is missing", path.display())));
        }
        Err(error @ FileError::UnknownVersion { .. }) => {
            return Err(Obstacle::Hold(RoleError(error.to_string())));
        }
        Err(error) => return Err(new_epoch(&error)),
    };
    let summary = catalog.summary().clone();
    let path = catalog.path().display().to_string();
    if (summary.tree, summary.epoch) != (tree, epoch.id) || tree != identity.tree {
        return Err(new_epoch(&format!("{path} is of another run than the journal")));
    }
    if summary.position < journal.floor() {
        return Err(new_epoch(&format!("{path} is older than the journal's beginning")));
    }
    if summary.table_position > journal.head() {
        return Err(new_epoch(&format!("{path} is newer than the journal's end")));
    }
    watch.resume(catalog).map_err(obstacle)?;
    let cursor = |after| {
        journal.cursor(after).ok_or_else(|| new_epoch(&"records of the journal are missing"))
    };
    let mut since = cursor(summary.table_position)?;
    loop {
        let mut records = Vec::new();
        let read = journal.read(&mut since, RECORDS_READ_MAX, &mut records);
        read.map_err(|error| new_epoch(&error))?;
        if records.is_empty() {
            break;
        }
        records.iter().for_each(|record| watch.follow(&record.change));
    }
    let replay = Replay::of(journal).map_err(|error| new_epoch(&error))?;
    if summary.position < replay.renames.floor() {
        return Err(new_epoch(&"more renames came since the catalog than are kept"));
    }
    let translate = |path| replay.renames.translate(path, summary.table_position);
    let untold = summary.untold.iter().map(translate).collect();
    let mut again = None;
    // A listing may be older than the table: what came to be after it, and went while nobody
    // watched, is missed by nothing but its record.
    if summary.position < journal.head() {
        let (cursor, through) = (cursor(summary.position)?, journal.head());
        let fallback = Position { tree, epoch: identity.epoch, sequence: Sequence(0) };
        again = Some(Again { cursor, through, fallback });
    }
    watch.begin_restart().map_err(obstacle)?;
    Ok(Continued { replay, untold, again })
}

impl<F: SourceFeed> Source<F> {
    /// Lets the feed keep what a restart goes on from.
    pub(super) fn keep(&mut self) {
        // What is to be told again is in the journal after the position that is kept by now.
        if self.again.is_some() {
            return;
        }
        if self.owes_sync
            && let Err(error) = self.journal.sync()
        {
            return tracing::error!("{error}");
        }
        let problems = &self.problems;
        self.owes_sync = self.feed.keep(self.journal.floor(), &mut || problems.paths());
    }

    /// Has some records of an earlier run told again. Returns whether there were any.
    pub(super) fn tell_again(&mut self) -> bool {
        if !self.feed.is_settled() {
            return false;
        }
        let Some(Again { mut cursor, through, fallback }) = self.again.take() else {
            return false;
        };
        let mut records = Vec::new();
        if let Err(error) = self.journal.read(&mut cursor, RECORDS_READ_MAX, &mut records) {
            // What they name may be other than the replicas have it: they must compare.
            tracing::error!("{error}; a new epoch begins, and all replicas compare their trees");
            self.reset = Some(fallback);
            return true;
        }
        for record in records.iter().filter(|record| record.sequence <= through) {
            if let Change::Dirty { path, what } = &record.change {
                let path = self.renames.translate(path, record.sequence);
                // What they name was sent, most likely: what is equal need not travel.
                let is_content = what.covers(What::CONTENT);
                self.feed.tell_again(&path, if is_content { What::COMPARE } else { *what });
            }
        }
        if records.len() == RECORDS_READ_MAX && cursor.after() < through {
            self.again = Some(Again { cursor, through, fallback });
        }
        true
    }
}

/// Takes the position out of a hello if it is among numbers that this journal never gave: it lost
/// the records with an unclean end, or was put back from a copy that is older than they are.
/// Nobody knows any more what the downstream has.
pub(super) fn forget_lost_position(hello: &mut DownstreamHello, journal: &Journal) {
    if let Some(marks) = hello.watermarks
        && marks.moved >= journal.floor()
        && marks.moved <= journal.head()
        && journal.cursor(marks.moved).is_none()
    {
        tracing::warn!(
            "{}: its last records were lost when the source last ended, or it was put back from an \
             older copy; a downstream that had some of them compares its tree",
            journal.path().display()
        );
        hello.watermarks = None;
    }
}

fn obstacle(error: RestartError) -> Obstacle {
    match error {
        RestartError::Mount(_) => Obstacle::Hold(RoleError(format!(
            "{error}; put it back, or start with --accept-root to mirror what is there now"
        ))),
        RestartError::Catalog(_) | RestartError::OtherRoot(_) => {
            Obstacle::NewEpoch(error.to_string())
        }
    }
}
