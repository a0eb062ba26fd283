//! Reading a batch of jobs into frames: the first half of "read, drain, use".

mod digests;
mod reading;

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::time::{Duration, Instant};

pub(super) use digests::NumberedSurvey;
use reading::Reading;

use super::problems::Problems;
use super::{Confirmation, Feed, Progress};
use crate::model::limits::*;
use crate::model::{Identity, RenameIndex, TreePath};
use crate::session::sender::{BatchJob, Outcome};
use crate::session::{Origin, Sender};
use crate::tree::{Reader, StageReader};
use crate::wire::frame::HEADER_BYTES;
use crate::wire::{Item, ItemsFrame, StageId};

/// Longest time for one batch, so that others get their turn.
const BATCH_TIME_MAX: Duration = Duration::from_millis(10);

/// Most jobs in one batch.
pub(super) const BATCH_JOBS_MAX: usize = 512;

/// Jobs that were read, in frames that were not sent yet.
#[derive(Debug, Default)]
pub(super) struct Batch {
    /// Most jobs that are read.
    jobs_max: usize,
    frames: Vec<ItemsFrame>,
    jobs: Vec<(BatchJob, Trace)>,
}

/// What the reading of a job left in the frames, and what that rests on.
#[derive(Debug, Default)]
struct Trace {
    /// Its bytes in each frame.
    ranges: Vec<(usize, Range<usize>)>,
    /// The directories that were read in, by which its place is confirmed.
    places: Vec<(Vec<u8>, Identity)>,
    /// Whether it brought a file's content.
    has_content: bool,
}

impl Batch {
    /// Returns a batch of so many jobs at most.
    pub fn new(jobs_max: usize) -> Self {
        Batch { jobs_max, ..Batch::default() }
    }

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

    /// Reads jobs until a frame is full, there are enough, or there are no more.
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
            && self.jobs.len() < self.jobs_max
            && (!self.jobs.len().is_multiple_of(16)
                || self.jobs.is_empty()
                || Instant::now() < deadline)
        {
            let Some(job) = sender.next_job(renames) else { break };
            let mut reading =
                Reading { batch: self, sender, stages, reader, feed, trace: Trace::default() };
            let path = job.path.clone();
            let read = reading.job(job.clone());
            let trace = reading.trace;
            match read {
                Ok(Some(done)) => {
                    problems.cure(&path);
                    self.jobs.push((done, trace));
                }
                Ok(None) => sender.defer(job),
                Err(error) => {
                    self.take_back(&trace);
                    problems.note(path, &error, Instant::now());
                    let outcome = Outcome::Dropped;
                    let dropped = BatchJob { outcome, ..BatchJob::used(job) };
                    self.jobs.push((dropped, Trace::default()));
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
        for (index, (done, trace)) in jobs.iter_mut().enumerate() {
            let path = &done.job.path;
            // Where it is not known, it is told anew when it is found there.
            let mut known = true;
            for place in &trace.places {
                if confirmed == Some(place) {
                    continue; // Most files are in the directory of the one before.
                }
                let (path, identity) = place;
                match feed.confirm(path, *identity) {
                    Confirmation::Known => confirmed = Some(place),
                    Confirmation::Held | Confirmation::Unknown => known = false,
                }
            }
            if trace.has_content {
                let is_commit = matches!(done.job.origin, Origin::Commit(_));
                let progress = feed.progress(path);
                if let Origin::Commit(stage) = done.job.origin
                    && matches!(progress, Progress::Restless | Progress::Writing)
                {
                    sender.handle_stage_restless(stage);
                }
                match progress {
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
        let origins: Vec<Origin> = jobs.iter().map(|(done, _)| done.job.origin.clone()).collect();
        let (jobs, traces): (Vec<_>, Vec<_>) = jobs.into_iter().unzip();
        let outcomes = sender.finish_batch(jobs, settled, renames);
        let mut unused: HashMap<usize, Vec<Range<usize>>> = HashMap::new();
        let mut aborted = Vec::new();
        for ((outcome, origin), trace) in outcomes.iter().zip(origins).zip(traces) {
            if matches!(outcome, Outcome::Again | Outcome::Dropped) {
                for (frame, range) in trace.ranges {
                    unused.entry(frame).or_default().push(range);
                }
            }
            // What comes again keeps its stage.
            if let (Outcome::Used | Outcome::Dropped, Origin::Commit(stage)) = (outcome, origin) {
                stages.remove(&stage);
                aborted.extend((*outcome == Outcome::Dropped).then_some(stage));
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

    fn take_back(&mut self, trace: &Trace) {
        for (frame, range) in trace.ranges.iter().rev() {
            self.frames[*frame].truncate(range.start);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::reading::XATTRS_BYTES_MAX;
    use super::*;
    use crate::model::{Entry, Kind, Metadata, Timestamp, Xattr};
    use crate::wire::Content;

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
