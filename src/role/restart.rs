//! Whether a source goes on in the epoch of its last run: with the journal that it left, and the
//! catalog.

use std::path::Path;

use super::RoleError;
use super::identity::SourceIdentity;
use crate::journal::{Catalog, CatalogError, Cursor, Journal};
use crate::model::limits::RECORDS_READ_MAX;
use crate::model::{Epoch, RenameIndex, Sequence, TreePath};
use crate::watch::{RestartError, Watch};

/// What a source goes on with.
pub(super) struct Continued {
    pub epoch: Epoch,
    pub renames: RenameIndex,
    /// Entries that were not told when the catalog was written, by their paths now.
    pub untold: Vec<TreePath>,
    pub again: Option<Again>,
}

/// Records that are told again: the end was not a clean one, after which the tree may have gone
/// back to what it was before them.
#[derive(Debug)]
pub(super) struct Again {
    pub cursor: Cursor,
    pub through: Sequence,
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
        Ok(None) => return Err(new_epoch(&"there is no catalog")),
        Err(error @ CatalogError::UnknownVersion { .. }) => {
            return Err(Obstacle::Hold(RoleError(error.to_string())));
        }
        Err(error) => return Err(new_epoch(&error)),
    };
    let summary = catalog.summary().clone();
    let path = catalog.path().display().to_string();
    if (summary.tree, summary.epoch) != (tree, epoch.id) || tree != identity.tree {
        return Err(new_epoch(&format!("{path} is of another run than the journal")));
    }
    let renames = RenameIndex::new(journal.floor(), journal.floor());
    if summary.position < journal.floor() {
        return Err(new_epoch(&format!("{path} is older than the journal's beginning")));
    }
    if summary.table_position > journal.head() {
        return Err(new_epoch(&format!("{path} is newer than the journal's end")));
    }
    watch.resume(catalog).map_err(obstacle)?;
    let mut continued = Continued { epoch, renames, untold: Vec::new(), again: None };
    let cursor = |after| {
        journal.cursor(after).ok_or_else(|| new_epoch(&"records of the journal are missing"))
    };
    // Once from its beginning, for the renames that a downstream may still have to hear of.
    let mut all = cursor(journal.floor())?;
    loop {
        let mut records = Vec::new();
        journal
            .read(&mut all, RECORDS_READ_MAX, &mut records)
            .map_err(|error| new_epoch(&error))?;
        for record in &records {
            continued.renames.push(record);
            if record.sequence > summary.table_position {
                watch.follow(&record.change);
            }
        }
        if records.len() < RECORDS_READ_MAX {
            break;
        }
    }
    if summary.position < continued.renames.floor() {
        return Err(new_epoch(&"more renames came since the catalog than are kept"));
    }
    if summary.table_position < journal.head() {
        let through = journal.head();
        continued.again = Some(Again { cursor: cursor(summary.position)?, through });
    }
    let translate = |path| continued.renames.translate(path, summary.table_position);
    continued.untold = summary.untold.iter().map(translate).collect();
    watch.begin_restart().map_err(obstacle)?;
    Ok(continued)
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
