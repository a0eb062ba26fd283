//! What is written into files.

use std::fs::{self, File};
use std::io::{self, Seek as _, SeekFrom, Write as _};
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use super::{Done, Operations, TRUNCATED_OPEN_MAX, open, truncate_by_path};

impl Operations {
    pub(super) fn create(&mut self) -> Done {
        let (path, content) = (self.place(), self.content());
        write(&path, &content)?;
        Ok(Some(format!("{} ({} bytes)", self.tell(&path), content.len())))
    }

    pub(super) fn rewrite(&mut self) -> Done {
        let Some(path) = self.file() else { return Ok(None) };
        let content = self.content();
        write(&path, &content)?;
        Ok(Some(format!("{} ({} bytes)", self.tell(&path), content.len())))
    }

    pub(super) fn rewrite_in_the_middle(&mut self) -> Done {
        let Some(path) = self.file() else { return Ok(None) };
        let file = File::options().write(true).open(&path)?;
        let offset = self.rng.u64(..file.metadata()?.len().max(1));
        file.write_all_at(&self.bytes(10), offset)?;
        Ok(Some(format!("{} at {offset}", self.tell(&path))))
    }

    pub(super) fn append(&mut self) -> Done {
        let Some(path) = self.file() else { return Ok(None) };
        let content = self.content();
        File::options().append(true).open(&path)?.write_all(&content)?;
        Ok(Some(format!("{} ({} bytes)", self.tell(&path), content.len())))
    }

    pub(super) fn truncate(&mut self) -> Done {
        let Some(path) = self.file() else { return Ok(None) };
        let length = self.rng.u64(..2 * fs::metadata(&path)?.len().max(10));
        let file = truncate_by_path(&path, length)?;
        self.truncated.push(file);
        if self.truncated.len() > TRUNCATED_OPEN_MAX {
            self.truncated.clear();
        }
        Ok(Some(format!("{} to {length}", self.tell(&path))))
    }

    pub(super) fn same_size_same_time(&mut self) -> Done {
        let Some(path) = self.file() else { return Ok(None) };
        let before = fs::metadata(&path)?;
        let content = self.bytes(before.len() as usize);
        let file = File::options().write(true).open(&path)?;
        file.write_all_at(&content[..before.len() as usize], 0)?;
        file.set_modified(before.modified()?)?;
        Ok(Some(self.tell(&path)))
    }

    pub(super) fn replace(&mut self) -> Done {
        let (path, content) = (self.place(), self.content());
        let temporary = self.temporary(path.parent().expect("below the root"));
        write(&temporary, content)?;
        fs::rename(&temporary, &path).inspect_err(|_| {
            let _ = fs::remove_file(&temporary);
        })?;
        Ok(Some(self.tell(&path)))
    }

    pub(super) fn replace_same_size_and_time(&mut self) -> Done {
        let Some(path) = self.file() else { return Ok(None) };
        let before = fs::metadata(&path)?;
        let temporary = self.temporary(path.parent().expect("below the root"));
        let content = self.bytes(before.len() as usize);
        write(&temporary, &content[..before.len() as usize])?;
        File::options().write(true).open(&temporary)?.set_modified(before.modified()?)?;
        fs::rename(&temporary, &path)?;
        Ok(Some(self.tell(&path)))
    }

    pub(super) fn big(&mut self) -> Done {
        let path = self.place();
        let length = self.rng.usize(300_000..2_000_000);
        write(&path, self.bytes(length))?;
        Ok(Some(format!("{} ({length} bytes)", self.tell(&path))))
    }

    pub(super) fn sparse(&mut self) -> Done {
        let path = self.place();
        let file = open(&path, File::options().create(true).write(true).truncate(true))?;
        let length = self.rng.u64(100_000..3_000_000);
        file.set_len(length)?;
        for _ in 0..self.rng.u32(..3) {
            let offset = self.rng.u64(..length - 5000);
            file.write_all_at(&self.bytes(5000), offset)?;
        }
        Ok(Some(format!("{} ({length} bytes)", self.tell(&path))))
    }

    pub(super) fn open_long(&mut self) -> Done {
        if self.open.take().is_some() && self.rng.bool() {
            return Ok(Some("closed".to_owned()));
        }
        let path = self.place();
        self.open = Some(open(&path, File::options().create(true).append(true))?);
        Ok(Some(format!("{} opened", self.tell(&path))))
    }

    pub(super) fn write_to_open(&mut self) -> Done {
        let Some(mut file) = self.open.take() else { return Ok(None) };
        let content = self.bytes(100);
        file.write_all(&content)?;
        let length = file.seek(SeekFrom::End(0))?;
        self.open = Some(file);
        Ok(Some(format!("now {length} bytes")))
    }
}

/// Writes a regular file in place, or a new one.
pub(super) fn write(path: impl AsRef<Path>, content: impl AsRef<[u8]>) -> io::Result<()> {
    let mut options = File::options();
    options.create(true).write(true).truncate(true);
    open(path.as_ref(), &mut options)?.write_all(content.as_ref())
}
