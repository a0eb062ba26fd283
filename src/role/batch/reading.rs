//! Reading one job: what of an entry is sent, and how.

use std::collections::HashMap;
use std::io;

use super::super::Feed;
use super::{Batch, Trace};
use crate::model::limits::*;
use crate::model::{Identity, Kind, Name, TreePath, What};
use crate::session::sender::{BatchJob, Outcome, Travel};
use crate::session::{Job, Look, Origin, Sender};
use crate::tree::{Holder, Opened, Reader, Seen, StageReader};
use crate::wire::{Content, Item, StageId};

/// Most bytes of extended attributes of one entry. No file system in common use holds more for
/// one, and a state must fit in a frame.
pub(super) const XATTRS_BYTES_MAX: usize = 512 << 10;

/// Most bytes of other names in one state.
const LINKS_BYTES_MAX: usize = 128 << 10;

// The largest state, with the content behind it, is one frame.
const _: () = assert!(
    XATTRS_BYTES_MAX + LINKS_BYTES_MAX + INLINE_BYTES_MAX + PATH_BYTES_MAX + 4096
        <= FRAME_BYTES_MAX
);

/// Times that a small file is read anew at once when it changed while it was read.
const READ_ATTEMPTS_MAX: u32 = 3;

/// One job while it is read.
pub(super) struct Reading<'a, F: Feed> {
    pub(super) batch: &'a mut Batch,
    pub(super) sender: &'a mut Sender,
    pub(super) stages: &'a mut HashMap<StageId, StageReader>,
    pub(super) reader: &'a mut Reader,
    pub(super) feed: &'a mut F,
    pub(super) trace: Trace,
}

impl<F: Feed> Reading<'_, F> {
    /// Reads one job. `None`: not now.
    pub(super) fn job(&mut self, job: Job) -> io::Result<Option<BatchJob>> {
        // Renames and deep directories can make paths that no message holds; the watch says so.
        if job.path.is_reserved() || job.path.as_bytes().len() > PATH_BYTES_MAX {
            if let Origin::Commit(stage) = job.origin {
                self.abandon(stage);
            }
            return Ok(Some(BatchJob::used(job)));
        }
        for attempt in 1.. {
            let open = job.what.covers(What::NAME);
            let opened = match self.reader.look(&job.path, open)? {
                Seen::Absent { path, holder } => return Ok(Some(self.absent(job, path, holder))),
                Seen::Entry(opened) => opened,
            };
            if let Some(holder) = opened.holder {
                self.read_in(&job.path, holder.identity);
            }
            if let Origin::Commit(stage) = job.origin {
                return self.commit(job, stage, *opened).map(Some);
            }
            if opened.entry.is_directory() {
                let wants_names = job.what.covers(What::COMPARE);
                let listed = if wants_names { self.reader.list(&opened)? } else { None };
                if wants_names && listed.is_none() && attempt < READ_ATTEMPTS_MAX {
                    self.reader.forget();
                    continue;
                }
                return self.directory(job, *opened, listed).map(Some);
            }
            let most = self.sender.links_max(&job, opened.identity);
            let links = self.links(&job, &opened, most);
            let look = Look {
                entry: &opened.entry,
                identity: opened.identity,
                ctime: opened.ctime,
                has_holes: opened.has_holes,
                is_linked: opened.links > 1,
                links: &links,
            };
            let (content, links) = match self.sender.content_for(&job, &look) {
                Travel::As(content, links) => (content, links),
                Travel::Inline(links) => {
                    let last = attempt == READ_ATTEMPTS_MAX;
                    self.trace.has_content = true;
                    if self.inline(&job, &opened, &links, last)? {
                        let mut done = BatchJob::used(job);
                        done.links = links;
                        return Ok(Some(done));
                    }
                    self.reader.forget();
                    continue;
                }
                Travel::Digest(links) => {
                    let (digest, _) = opened.digest()?;
                    (Content::Compare { digest: Some(digest) }, links)
                }
                Travel::Stage(stage) => {
                    let file = opened.into_stage()?;
                    let (size, path) = (file.size(), job.path.clone());
                    self.push(&Item::StageOpen { stage, size, path });
                    self.stages.insert(stage, file);
                    // The stage was opened whatever becomes of the path.
                    self.trace.ranges.clear();
                    return Ok(Some(BatchJob { outcome: Outcome::Staged, ..BatchJob::used(job) }));
                }
                Travel::Absorbed => {
                    return Ok(Some(BatchJob { sent: None, ..BatchJob::used(job) }));
                }
                Travel::Later => return Ok(None),
            };
            self.state(&job, &opened, content, links.clone())?;
            let mut done = BatchJob::used(job);
            match content {
                // Only that it is there, and one file with others.
                Content::Linked => done.sent = Some(What::NAME),
                Content::Keep => {}
                _ => done.links = links,
            }
            return Ok(Some(done));
        }
        Ok(None)
    }

    /// Returns other names of the file at a job's path, `most` at most.
    fn links(&mut self, job: &Job, opened: &Opened, most: usize) -> Vec<TreePath> {
        if opened.links <= 1 || most == 0 {
            return Vec::new();
        }
        self.feed.links(opened.identity, opened.links, &job.path, most)
    }

    fn absent(&mut self, job: Job, path: TreePath, holder: Option<Holder>) -> BatchJob {
        if let Origin::Commit(stage) = job.origin {
            self.abandon(stage);
        }
        let Some(holder) = holder else { return BatchJob::used(job) };
        self.read_in(&path, holder.identity);
        self.push(&Item::Absent { path, parent_mtime: Some(holder.mtime) });
        BatchJob::used(job)
    }

    /// Sends a small file with its content. Returns `false` if it changed while it was read.
    fn inline(
        &mut self,
        job: &Job,
        opened: &Opened,
        links: &[TreePath],
        last_attempt: bool,
    ) -> io::Result<bool> {
        let Kind::Regular { size } = opened.entry.kind else { return Ok(true) };
        let content = Content::Inline { length: size as u32 };
        let rest = self.state_with(job, opened, content, links.to_vec())?;
        let index = self.batch.frames.len() - 1;
        let unchanged = opened.read_whole(self.batch.frames[index].buffer(size as usize))?;
        let (_, range) = self.trace.ranges.last_mut().expect("the state was just pushed");
        range.end = self.batch.frames[index].len();
        if !unchanged && !last_attempt {
            let (_, range) = self.trace.ranges.pop().expect("the state was just pushed");
            self.batch.frames[index].truncate(range.start);
            return Ok(false);
        }
        self.linked(job, opened, rest);
        Ok(true)
    }

    fn directory(
        &mut self,
        job: Job,
        opened: Opened,
        listed: Option<Vec<(Name, bool)>>,
    ) -> io::Result<BatchJob> {
        // A directory that the feed does not know, or knows as another, is not the tree's.
        self.trace.places.push((job.path.as_bytes().to_vec(), opened.identity));
        self.state(&job, &opened, Content::Keep, Vec::new())?;
        let done = BatchJob::used(job);
        let Some(mut listed) = listed else { return Ok(done) };
        let path = done.job.path.clone();
        if path.is_root() {
            listed.retain(|(name, _)| !path.join(name).is_reserved());
        }
        if matches!(done.job.origin, Origin::Walk(_)) {
            let (mut files, mut directories) = (Vec::new(), Vec::new());
            for (name, is_directory) in &listed {
                let kind = if *is_directory { &mut directories } else { &mut files };
                kind.push(path.join(name));
            }
            self.sender.visit(&done.job, files, directories);
        }
        self.names(&path, listed.into_iter().map(|(name, _)| name));
        Ok(done)
    }

    fn names(&mut self, path: &TreePath, names: impl Iterator<Item = Name>) {
        let mut names = names.peekable();
        let mut after = Name::new();
        loop {
            let (mut part, mut bytes) = (Vec::new(), 0);
            while bytes < NAMES_BYTES_MAX
                && let Some(name) = names.next()
            {
                bytes += name.len() + 2;
                part.push(serde_bytes::ByteBuf::from(name));
            }
            let last = names.peek().is_none();
            let next = part.last().map(|name| name.to_vec()).unwrap_or_default();
            self.push(&Item::Names { path: path.clone(), after, names: part, last });
            if last {
                return;
            }
            after = next;
        }
    }

    /// Puts a staged file in place, or begins it anew if it changed while it was read.
    fn commit(&mut self, job: Job, stage: StageId, opened: Opened) -> io::Result<BatchJob> {
        let Some(file) = self.stages.get_mut(&stage) else {
            self.abandon(stage);
            return Ok(BatchJob::used(job));
        };
        if opened.stamp().identity() != file.stamp().identity() {
            self.abandon(stage);
            return Ok(BatchJob::used(job));
        }
        if opened.stamp() != file.stamp() {
            let same_content = opened.stamp().is_same_content(&file.stamp());
            if !same_content && self.sender.handle_stage_changed(stage) {
                file.restart()?;
                let (size, path) = (file.size(), job.path.clone());
                self.push(&Item::StageOpen { stage, size, path });
                self.trace.ranges.clear(); // Also if the path is touched: it begins anew.
                return Ok(BatchJob { outcome: Outcome::Staged, ..BatchJob::used(job) });
            }
        }
        let size = file.size();
        let digest = match file.digest()? {
            Some(digest) => digest,
            // Nobody has what it would be of.
            None if self.sender.is_given_up(stage) => [0; 32],
            None => {
                self.abandon(stage);
                return Ok(BatchJob::used(job));
            }
        };
        let links = self.links(&job, &opened, usize::MAX);
        let mut opened = opened;
        opened.entry.kind = Kind::Regular { size };
        let links = self.sender.commit_links(opened.identity, links);
        self.trace.has_content = true;
        self.state(&job, &opened, Content::Staged { stage, digest }, links.clone())?;
        Ok(BatchJob { links, ..BatchJob::used(job) })
    }

    /// Gives a stage up whose file is gone from its path, or is another one now.
    fn abandon(&mut self, stage: StageId) {
        self.sender.handle_stage_abandoned(stage);
        self.push(&Item::StageAbort { stage });
    }

    fn state(
        &mut self,
        job: &Job,
        opened: &Opened,
        content: Content,
        links: Vec<TreePath>,
    ) -> io::Result<()> {
        let rest = self.state_with(job, opened, content, links)?;
        self.linked(job, opened, rest);
        Ok(())
    }

    /// Appends a state with as many of its other names as it holds, and returns the rest of
    /// them, which must follow it and its content by [`Reading::linked`].
    fn state_with(
        &mut self,
        job: &Job,
        opened: &Opened,
        content: Content,
        mut links: Vec<TreePath>,
    ) -> io::Result<Vec<TreePath>> {
        let xattrs = &opened.entry.metadata.xattrs;
        let xattr_bytes: usize = xattrs.iter().map(|xattr| xattr.value.len() + 300).sum();
        if xattr_bytes > XATTRS_BYTES_MAX {
            return Err(rustix::io::Errno::TOOBIG.into());
        }
        let mut bytes = 0;
        let fitting = links.iter().take_while(|link| {
            bytes += link.as_bytes().len() + 3;
            bytes <= LINKS_BYTES_MAX
        });
        let rest = links.split_off(fitting.count());
        self.push(&Item::State {
            path: job.path.clone(),
            entry: opened.entry.clone(),
            content,
            links,
            parent_mtime: opened.holder.map(|holder| holder.mtime),
        });
        Ok(rest)
    }

    /// Appends names of the file at a job's path, one by one.
    fn linked(&mut self, job: &Job, opened: &Opened, links: Vec<TreePath>) {
        for link in links {
            self.push(&Item::State {
                path: link,
                entry: opened.entry.clone(),
                content: Content::Linked,
                links: vec![job.path.clone()],
                parent_mtime: None,
            });
        }
    }

    fn push(&mut self, item: &Item) {
        let range = self.batch.push(item);
        self.trace.ranges.push(range);
    }

    fn read_in(&mut self, path: &TreePath, identity: Identity) {
        if let Some((parent, _)) = path.split_bytes() {
            self.trace.places.push((parent.to_vec(), identity));
        }
    }
}
