//! Reading a batch of jobs into frames: the first half of "read, drain, use".

use std::collections::{HashMap, HashSet};
use std::io;
use std::ops::Range;
use std::time::{Duration, Instant};

use super::problems::Problems;
use super::{Confirmation, Feed, Progress};
use crate::model::limits::*;
use crate::model::{Identity, Name, RenameIndex, TreePath, What};
use crate::session::sender::{BatchJob, Outcome, Travel};
use crate::session::{Job, Look, Origin, Sender};
use crate::tree::{Holder, Opened, Reader, Seen, StageReader};
use crate::wire::frame::HEADER_BYTES;
use crate::wire::{Content, Item, ItemsFrame, StageId};

/// Longest time for one batch, so that others get their turn.
const BATCH_TIME_MAX: Duration = Duration::from_millis(10);

/// Most jobs in one batch.
const BATCH_JOBS_MAX: usize = 512;

/// Most bytes of extended attributes of one entry. No file system in common use holds more for
/// one, and a state must fit in a frame.
const XATTRS_BYTES_MAX: usize = 512 << 10;

/// Most bytes of other names in one state.
const LINKS_BYTES_MAX: usize = 128 << 10;

// The largest state, with the content behind it, is one frame.
const _: () = assert!(
    XATTRS_BYTES_MAX + LINKS_BYTES_MAX + INLINE_BYTES_MAX + PATH_BYTES_MAX + 4096
        <= FRAME_BYTES_MAX
);

/// Times that a small file is read anew at once when it changed while it was read.
const READ_ATTEMPTS_MAX: u32 = 3;

/// Jobs that were read, in frames that were not sent yet.
#[derive(Debug, Default)]
pub(super) struct Batch {
    frames: Vec<ItemsFrame>,
    jobs: Vec<BatchJob>,
    /// For each job, its bytes in each frame.
    ranges: Vec<Vec<(usize, Range<usize>)>>,
    /// What was confirmed as the place of each job: the directories that were read in.
    places: Vec<Vec<(Vec<u8>, Identity)>>,
    /// Which jobs brought a file's content.
    has_content: Vec<bool>,
}

impl Batch {
    /// Returns the frame that is filled at present.
    pub fn frame(&mut self) -> &mut ItemsFrame {
        if self.frames.is_empty() {
            self.frames.push(ItemsFrame::default());
        }
        self.frames.last_mut().expect("there is one")
    }

    pub fn has_jobs(&self) -> bool {
        !self.jobs.is_empty()
    }

    /// Reads jobs until a frame is full or there are no more.
    pub fn read(
        &mut self,
        sender: &mut Sender,
        stages: &mut HashMap<StageId, StageReader>,
        reader: &mut Reader,
        feed: &mut impl Feed,
        renames: &RenameIndex,
        problems: &mut Problems,
    ) {
        reader.forget();
        let deadline = Instant::now() + BATCH_TIME_MAX;
        while self.frames.len() <= 1
            && self.frame().len() < FRAME_BYTES_TARGET
            && self.jobs.len() < BATCH_JOBS_MAX
            && (!self.jobs.len().is_multiple_of(16)
                || self.jobs.is_empty()
                || Instant::now() < deadline)
        {
            let Some(job) = sender.next_job(renames) else { break };
            let mut reading = Reading {
                batch: self,
                sender,
                stages,
                reader,
                feed,
                ranges: Vec::new(),
                places: Vec::new(),
                has_content: false,
            };
            let path = job.path.clone();
            let outcome = reading.job(job.clone());
            let (ranges, places) = (reading.ranges, reading.places);
            let has_content = reading.has_content;
            match outcome {
                Ok(Some(done)) => {
                    problems.cure(&path);
                    self.jobs.push(done);
                    self.ranges.push(ranges);
                    self.places.push(places);
                    self.has_content.push(has_content);
                }
                Ok(None) => sender.defer(job),
                Err(error) => {
                    self.take_back(&ranges);
                    let mut done = BatchJob::used(job);
                    if error.raw_os_error() == Some(rustix::io::Errno::AGAIN.raw_os_error()) {
                        done.outcome = Outcome::Again; // It came or went this moment.
                    } else {
                        done.outcome = Outcome::Dropped;
                        problems.note(path, &error, Instant::now());
                    }
                    self.jobs.push(done);
                    self.ranges.push(Vec::new());
                    self.places.push(Vec::new());
                    self.has_content.push(false);
                }
            }
        }
    }

    /// Appends the next chunk of a big file. Returns whether there was one to be read.
    pub fn read_chunk(
        &mut self,
        sender: &mut Sender,
        stages: &mut HashMap<StageId, StageReader>,
        problems: &mut Problems,
    ) -> bool {
        let Some(stage) = sender.next_chunk() else { return false };
        let Some(file) = stages.get_mut(&stage) else {
            sender.handle_stage_abandoned(stage);
            sender.handle_stage_gone(stage);
            return true;
        };
        let result = match file.next_chunk(CHUNK_BYTES_MAX) {
            Ok(Some((offset, length))) => {
                // In a frame of its own, whose memory is just enough.
                self.frames.push(ItemsFrame::with_room(length));
                let item = Item::StageData { stage, offset, length: length as u32 };
                let (frame, range) = self.push(&item);
                let read = file.read_chunk(length, self.frame().buffer(length));
                // What was read may be neither the old content nor the new: from the beginning.
                if read.is_err()
                    || file.is_unchanged().is_ok_and(|unchanged| !unchanged)
                        && sender.handle_stage_changed(stage)
                {
                    self.frames[frame].truncate(range.start);
                    read.and_then(|()| file.restart()).map(|()| {
                        let size = file.size();
                        let path = sender.stage_path(stage).cloned().unwrap_or_default();
                        self.push(&Item::StageOpen { stage, size, path });
                    })
                } else {
                    Ok(())
                }
            }
            Ok(None) => {
                sender.handle_stage_read(stage);
                Ok(())
            }
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            let path = sender.stage_path(stage).cloned().unwrap_or_default();
            problems.note(path, &error, Instant::now());
            self.push(&Item::StageAbort { stage });
            stages.remove(&stage);
            sender.handle_stage_gone(stage);
        }
        true
    }

    /// Throws away what must not be used, after the feed was drained.
    /// `changed` are the files whose content was found to change by that.
    pub fn use_confirmed(
        &mut self,
        sender: &mut Sender,
        stages: &mut HashMap<StageId, StageReader>,
        feed: &mut impl Feed,
        is_drained: bool,
        changed: &HashSet<TreePath>,
        renames: &RenameIndex,
    ) {
        let mut jobs = std::mem::take(&mut self.jobs);
        let mut unfinished = Vec::new();
        let mut confirmed = None;
        for (index, done) in jobs.iter_mut().enumerate() {
            let path = &done.job.path;
            // Where it is not known, it is told anew when it is found there.
            let mut known = true;
            for place in &self.places[index] {
                if confirmed == Some(place) {
                    continue; // Most files are in the directory of the one before.
                }
                let (path, identity) = place;
                match feed.confirm(path, *identity) {
                    Confirmation::Known => confirmed = Some(place),
                    Confirmation::Held | Confirmation::Unknown => known = false,
                }
            }
            if self.has_content[index] {
                let is_commit = matches!(done.job.origin, Origin::Commit(_));
                match feed.progress(path) {
                    // It comes again when it rests; a big file is sent as it is, or it never
                    // would be.
                    Progress::Writing if !is_commit => known = false,
                    // What was read may be a part of what is written since.
                    Progress::Finished if !changed.contains(path) => {}
                    _ => unfinished.push((index, path.clone())),
                }
            }
            if !known && done.outcome == Outcome::Used {
                done.outcome = Outcome::Dropped;
                done.links.clear();
                if let Origin::Commit(stage) = done.job.origin {
                    sender.handle_stage_abandoned(stage);
                }
            }
        }
        // To confirm may have found something out.
        let settled = is_drained && feed.is_settled();
        let origins: Vec<Origin> = jobs.iter().map(|done| done.job.origin.clone()).collect();
        let outcomes = sender.finish_batch(jobs, settled, renames);
        let mut unused: HashMap<usize, Vec<Range<usize>>> = HashMap::new();
        let mut aborted = Vec::new();
        for (index, outcome) in outcomes.iter().enumerate() {
            if matches!(outcome, Outcome::Again | Outcome::Dropped) {
                for (frame, range) in &self.ranges[index] {
                    unused.entry(*frame).or_default().push(range.clone());
                }
            }
            // What comes again keeps its stage.
            if let (Outcome::Used | Outcome::Dropped, Origin::Commit(stage)) =
                (outcome, &origins[index])
            {
                stages.remove(stage);
                aborted.extend((*outcome == Outcome::Dropped).then_some(*stage));
            }
        }
        for (frame, ranges) in unused {
            self.frames[frame].remove(&ranges);
        }
        for (index, path) in unfinished {
            if outcomes[index] == Outcome::Used {
                self.push(&Item::Unfinished { path });
            }
        }
        for stage in aborted {
            self.push(&Item::StageAbort { stage });
        }
    }

    /// Appends an item and returns where it is. There is room behind it for its raw bytes: what
    /// does not fit begins a frame.
    pub fn push(&mut self, item: &Item) -> (usize, Range<usize>) {
        let frame = self.frame();
        let mut start = frame.len();
        frame.push(item);
        if frame.len() + item.raw_bytes() > FRAME_BYTES_MAX && start > HEADER_BYTES {
            let next = frame.split_off(start);
            start = HEADER_BYTES;
            self.frames.push(next);
        }
        (self.frames.len() - 1, start..self.frame().len())
    }

    /// Returns the frames that hold something.
    pub fn into_frames(self) -> impl Iterator<Item = ItemsFrame> {
        self.frames.into_iter().filter(|frame| !frame.is_empty())
    }

    fn take_back(&mut self, ranges: &[(usize, Range<usize>)]) {
        for (frame, range) in ranges.iter().rev() {
            self.frames[*frame].truncate(range.start);
        }
    }
}

/// One job while it is read.
struct Reading<'a, F: Feed> {
    batch: &'a mut Batch,
    sender: &'a mut Sender,
    stages: &'a mut HashMap<StageId, StageReader>,
    reader: &'a mut Reader,
    feed: &'a mut F,
    ranges: Vec<(usize, Range<usize>)>,
    places: Vec<(Vec<u8>, Identity)>,
    has_content: bool,
}

impl<F: Feed> Reading<'_, F> {
    /// Reads one job. `None`: not now.
    fn job(&mut self, job: Job) -> io::Result<Option<BatchJob>> {
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
                return self.directory(job, *opened).map(Some);
            }
            let links = if opened.links > 1 {
                self.feed.links(opened.identity, opened.links, &job.path)
            } else {
                Vec::new()
            };
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
                    self.has_content = true;
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
                    self.ranges.clear();
                    return Ok(Some(BatchJob { outcome: Outcome::Staged, ..BatchJob::used(job) }));
                }
                Travel::Absorbed => return Ok(Some(BatchJob::used(job))),
                Travel::Later => return Ok(None),
            };
            self.state(&job, &opened, content, links.clone())?;
            let mut done = BatchJob::used(job);
            if !matches!(content, Content::Keep) {
                done.links = links;
            }
            return Ok(Some(done));
        }
        Ok(None)
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
        let crate::model::Kind::Regular { size } = opened.entry.kind else { return Ok(true) };
        let content = Content::Inline { length: size as u32 };
        let rest = self.state_with(job, opened, content, links.to_vec())?;
        let index = self.batch.frames.len() - 1;
        let unchanged = opened.read_whole(self.batch.frames[index].buffer(size as usize))?;
        let (_, range) = self.ranges.last_mut().expect("the state was just pushed");
        range.end = self.batch.frames[index].len();
        if !unchanged && !last_attempt {
            let (_, range) = self.ranges.pop().expect("the state was just pushed");
            self.batch.frames[index].truncate(range.start);
            return Ok(false);
        }
        self.linked(job, opened, rest);
        Ok(true)
    }

    fn directory(&mut self, job: Job, opened: Opened) -> io::Result<BatchJob> {
        // A directory that the feed does not know, or knows as another, is not the tree's.
        self.places.push((job.path.as_bytes().to_vec(), opened.identity));
        self.state(&job, &opened, Content::Keep, Vec::new())?;
        let done = BatchJob::used(job);
        if !done.job.what.covers(What::CONTENT) {
            return Ok(done);
        }
        let path = done.job.path.clone();
        let mut listed = self.reader.list(&opened)?;
        if path.is_root() {
            listed.retain(|(name, _)| !path.join(name).is_reserved());
        }
        if matches!(done.job.origin, Origin::Walk(_)) {
            // Files first: the receiver builds a directory before it goes on to the next.
            let files = listed.iter().filter(|(_, is_directory)| !is_directory);
            let directories = listed.iter().filter(|(_, is_directory)| *is_directory);
            let children = files.chain(directories).map(|(name, _)| path.join(name)).collect();
            self.sender.visit(&done.job.origin, children);
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
                self.ranges.clear(); // Also if the path is touched: it begins anew.
                return Ok(BatchJob { outcome: Outcome::Staged, ..BatchJob::used(job) });
            }
        }
        let size = file.size();
        let Some(digest) = file.digest()? else {
            self.abandon(stage);
            return Ok(BatchJob::used(job));
        };
        let links = if opened.links > 1 {
            self.feed.links(opened.identity, opened.links, &job.path)
        } else {
            Vec::new()
        };
        let mut opened = opened;
        opened.entry.kind = crate::model::Kind::Regular { size };
        let links = self.sender.commit_links(opened.identity, links);
        self.has_content = true;
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
        self.ranges.push(range);
    }

    fn read_in(&mut self, path: &TreePath, identity: Identity) {
        if let Some((parent, _)) = path.split_bytes() {
            self.places.push((parent.to_vec(), identity));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::{Entry, Kind, Metadata, Timestamp, Xattr};

    /// Whatever comes together, no frame is too big, and nothing is lost or out of order.
    #[test]
    fn no_frame_exceeds_its_limit() {
        let path = |bytes: usize| TreePath::new("x/".repeat(bytes / 2) + "x").unwrap();
        let mut random = fastrand::Rng::with_seed(7);
        for _ in 0..40 {
            let (mut batch, mut pushed) = (Batch::default(), Vec::new());
            for _ in 0..random.usize(1..40) {
                let length = random.u32(..=INLINE_BYTES_MAX as u32);
                let value = vec![1; random.usize(..XATTRS_BYTES_MAX)];
                let item = match random.u8(..4) {
                    0 => Item::State {
                        path: path(random.usize(..PATH_BYTES_MAX)),
                        entry: Entry {
                            kind: Kind::Regular { size: length.into() },
                            metadata: Metadata {
                                mode: 0,
                                uid: 0,
                                gid: 0,
                                mtime: Timestamp::default(),
                                xattrs: vec![Xattr { name: b"user.x".into(), value }],
                            },
                        },
                        content: Content::Inline { length },
                        links: vec![path(PATH_BYTES_MAX - 2), path(PATH_BYTES_MAX - 2)],
                        parent_mtime: None,
                    },
                    1 => Item::StageData {
                        stage: StageId(0),
                        offset: 0,
                        length: random.u32(..=CHUNK_BYTES_MAX as u32),
                    },
                    2 => Item::Unfinished { path: path(random.usize(..PATH_BYTES_MAX)) },
                    _ => Item::Answered { id: random.u64(..) },
                };
                let (frame, range) = batch.push(&item);
                assert_eq!((frame, range.end), (batch.frames.len() - 1, batch.frame().len()));
                let raw = batch.frame().len() + item.raw_bytes();
                batch.frame().buffer(item.raw_bytes()).resize(raw, 7);
                pushed.push(item);
            }
            let mut decoder = crate::wire::FrameDecoder::default();
            let mut decoded = Vec::new();
            for frame in batch.into_frames() {
                decoder.receive(&frame.finish());
                let (frame, _) = decoder.next_frame().unwrap().unwrap();
                decoded.extend(frame.items().map(|item| item.unwrap().0));
            }
            assert_eq!(decoded, pushed);
        }
    }
}
