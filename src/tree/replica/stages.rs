//! Big files on their way: they are assembled in `.mirror/stage` from chunks.
//!
//! What no chunk covers stays a hole. The digest is computed as the chunks come, so that nothing
//! is read back, however big the file is.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;

use rustix::fs::{Mode, OFlags, SeekFrom};
use rustix::io::Errno;

use super::Replica;
use super::error::{ApplyError, At};
use super::links::Trust;
use super::place::{Stage, is_other_mount};
use super::regular::settle_file;
use crate::model::limits::TRANSFERS_MAX;
use crate::model::{Entry, Kind, StageDigest, Timestamp, TreePath};
use crate::wire::StageId;

/// A big file that is not in place yet.
#[derive(Debug)]
pub(super) struct StagedFile {
    file: File,
    temporary: String,
    size: u64,
    /// Where it was to go when it began.
    path: TreePath,
    digest: StageDigest,
}

impl StagedFile {
    /// Takes `raw` for `offset`.
    fn write(&mut self, offset: u64, raw: &[u8]) -> io::Result<()> {
        self.file.write_all_at(raw, offset)?;
        self.digest.update(offset, raw);
        Ok(())
    }

    /// Has every write fail.
    #[cfg(test)]
    pub(super) fn make_read_only(&mut self) {
        self.file = File::open("/dev/null").expect("it is always there");
    }
}

impl Replica {
    /// Begins a file of `size` bytes.
    pub(super) fn stage_open(
        &mut self,
        stage: StageId,
        size: u64,
        path: &TreePath,
    ) -> Result<(), ApplyError> {
        self.stage_abort(stage);
        if self.stages.len() >= TRANSFERS_MAX {
            return Err(ApplyError::protocol(path, "stage", "too many files at the same time"));
        }
        let temporary = self.stage_name();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let mode = Mode::RUSR | Mode::WUSR;
        let fd = rustix::fs::openat(&self.stage, &temporary, flags, mode).at(path, "stage")?;
        if let Err(error) = rustix::fs::ftruncate(&fd, size) {
            self.discard(&temporary);
            return Err(error).at(path, "stage");
        }
        let (file, path, digest) = (File::from(fd), path.clone(), StageDigest::default());
        let staged = StagedFile { file, temporary, size, path, digest };
        self.stages.insert(stage, staged);
        Ok(())
    }

    /// Takes a chunk; one of a file that was given up here is let go. A file that cannot be
    /// written is given up, so that it does not hold the room that others need.
    pub(super) fn stage_data(
        &mut self,
        stage: StageId,
        offset: u64,
        raw: &[u8],
    ) -> Result<(), ApplyError> {
        let Some(staged) = self.stages.get_mut(&stage) else { return Ok(()) };
        if offset.checked_add(raw.len() as u64).is_none_or(|end| end > staged.size) {
            let why = "a chunk beyond the file's end";
            return Err(ApplyError::protocol(&staged.path, "stage", why));
        }
        let written = staged.write(offset, raw).at(&staged.path, "write the stage of");
        if written.is_err() {
            self.stage_abort(stage);
        }
        written
    }

    /// Gives a file up.
    pub(super) fn stage_abort(&mut self, stage: StageId) {
        if let Some(staged) = self.stages.remove(&stage) {
            self.discard(&staged.temporary);
        }
    }

    /// Removes all files on their way: the connection that they came by is lost. The staged
    /// directory, which is made of whole items, is kept and published by the next flush.
    pub fn drop_stages(&mut self) {
        for (_, staged) in std::mem::take(&mut self.stages) {
            self.discard(&staged.temporary);
        }
    }

    /// Makes `path` the file that was assembled as `stage`, and all of `links` names of it.
    ///
    /// One that was given up here, or is not what was sent, is a failure as any other: it is
    /// asked for after a pause, for all of it travels again.
    pub(super) fn put_staged(
        &mut self,
        path: &TreePath,
        entry: &Entry,
        (stage, digest): (StageId, [u8; 32]),
        links: &[TreePath],
        parent_mtime: Option<Timestamp>,
    ) -> Result<(), ApplyError> {
        let failed = |why| Err(ApplyError::because(path, "put into place", why));
        let Some(staged) = self.stages.remove(&stage) else {
            return failed("its stage was given up");
        };
        let whole = entry.kind == Kind::Regular { size: staged.size };
        if !whole || staged.digest.finish(staged.size) != digest {
            self.discard(&staged.temporary);
            return failed("what was staged is not what was sent");
        }
        let mut placed = self.place_staged(path, entry, &staged, parent_mtime);
        if placed.as_ref().is_err_and(|error| !self.privileged && error.is_denied())
            && self.lift(path).is_ok_and(|lifted| lifted)
        {
            placed = self.place_staged(path, entry, &staged, parent_mtime);
        }
        if placed.is_err() {
            // It comes again; until then others need the room.
            self.discard(&staged.temporary);
        }
        placed.and_then(|()| self.unite(path, entry, links, Trust::New))
    }

    fn place_staged(
        &mut self,
        path: &TreePath,
        entry: &Entry,
        staged: &StagedFile,
        parent_mtime: Option<Timestamp>,
    ) -> Result<(), ApplyError> {
        let (wanted, made) = (&entry.metadata, self.made(0o600));
        self.refused +=
            settle_file(staged.file.as_fd(), wanted, made, false).at(path, "set attributes of")?;
        let parent = self.parent(path)?;
        let name = path.name().unwrap_or_default();
        self.touch(&parent, parent_mtime).at(path, "keep the time of the directory of")?;
        match self.place(Stage::Own, &staged.temporary, &parent, name) {
            Err(error) if is_other_mount(&error) => {}
            placed => return placed.at(path, "put into place"),
        }
        parent.set_foreign();
        let mut refused = 0;
        self.produce(&parent, name, |directory, temporary, _| {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
            let fd = rustix::fs::openat(directory, temporary, flags, Mode::RUSR | Mode::WUSR)?;
            let target = copy_sparse(&staged.file, fd, staged.size)?;
            refused += settle_file(target.as_fd(), wanted, made, true)?;
            Ok(())
        })
        .at(path, "copy to another mount")?;
        self.refused += refused;
        self.discard(&staged.temporary);
        Ok(())
    }
}

/// Copies what is data and leaves holes as they are.
fn copy_sparse(source: &File, target: OwnedFd, size: u64) -> io::Result<File> {
    let target = File::from(target);
    rustix::fs::ftruncate(&target, size)?;
    let mut buffer = vec![0; 256 << 10];
    let mut at = 0;
    while at < size {
        let data = match rustix::fs::seek(source, SeekFrom::Data(at)) {
            Ok(data) => data,
            // Nothing but a hole up to the end.
            Err(Errno::NXIO) => break,
            Err(error) => return Err(error.into()),
        };
        let hole = rustix::fs::seek(source, SeekFrom::Hole(data))?;
        at = data;
        while at < hole {
            let want = buffer.len().min(usize::try_from(hole - at).unwrap_or(usize::MAX));
            let got = source.read_at(&mut buffer[..want], at)?;
            if got == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
            target.write_all_at(&buffer[..got], at)?;
            at += got as u64;
        }
    }
    Ok(target)
}
