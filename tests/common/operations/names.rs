//! Links, removals, new directories, special files, and kinds that change.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{AtFlags, CWD, FileType, Mode};

use super::{Done, Operations, contents::write, remove};

impl Operations {
    pub(super) fn link(&mut self) -> Done {
        let Some(from) = self.any() else { return Ok(None) };
        if fs::symlink_metadata(&from)?.is_dir() {
            return Ok(None);
        }
        let to = self.place();
        rustix::fs::linkat(CWD, &from, CWD, &to, AtFlags::empty())?;
        self.tell_two(&from, &to)
    }

    /// Writes through one of several names; the others change silently.
    pub(super) fn write_by_link(&mut self) -> Done {
        let linked = self.entries().into_iter().filter(|(path, kind)| {
            *kind == FileType::RegularFile
                && fs::symlink_metadata(path).is_ok_and(|metadata| metadata.nlink() > 1)
        });
        let Some((path, _)) = self.rng.choice(linked.collect::<Vec<_>>()) else {
            return Ok(None);
        };
        let content = self.content();
        write(&path, &content)?;
        Ok(Some(format!("{} ({} bytes)", self.tell(&path), content.len())))
    }

    pub(super) fn unlink(&mut self) -> Done {
        let Some(path) = self.any() else { return Ok(None) };
        fs::remove_file(&path)?;
        Ok(Some(self.tell(&path)))
    }

    pub(super) fn unlink_and_create(&mut self) -> Done {
        let Some(path) = self.file() else { return Ok(None) };
        fs::remove_file(&path)?;
        write(&path, self.content())?;
        Ok(Some(self.tell(&path)))
    }

    pub(super) fn remove_tree(&mut self) -> Done {
        let Some(path) = self.directory().or_else(|| self.any()) else { return Ok(None) };
        remove(&path)?;
        Ok(Some(self.tell(&path)))
    }

    pub(super) fn remove_tree_and_create(&mut self) -> Done {
        let Some(path) = self.directory() else { return Ok(None) };
        remove(&path)?;
        fs::create_dir(&path)?;
        write(path.join(self.name()), self.content())?;
        Ok(Some(self.tell(&path)))
    }

    pub(super) fn make_directories(&mut self) -> Done {
        let mut path = self.place();
        let mut left = (self.root.components().count() + self.depth_max)
            .saturating_sub(path.components().count());
        fs::create_dir(&path)?;
        for _ in 0..self.rng.u32(..4) {
            if self.rng.u32(..3) > 0 {
                write(path.join(self.name()), self.content())?;
            }
            if left == 0 {
                break;
            }
            left -= 1;
            let _ = fs::create_dir(path.join("b"));
            if !path.join("b").is_dir() {
                break;
            }
            path.push("b");
        }
        let _ = write(path.join(self.name()), self.content());
        Ok(Some(self.tell(&path)))
    }

    pub(super) fn symlink(&mut self) -> Done {
        let path = self.place();
        let targets = ["a", "../b", "/nowhere", ".", "..", "c/d/a"];
        let target = targets[self.rng.usize(..targets.len())];
        std::os::unix::fs::symlink(target, &path)?;
        Ok(Some(format!("{} → {target}", self.tell(&path))))
    }

    pub(super) fn replace_symlink(&mut self) -> Done {
        let Some(path) = self.existing(FileType::Symlink) else { return Ok(None) };
        self.serial += 1;
        let temporary = self.temporary(path.parent().expect("below the root"));
        std::os::unix::fs::symlink(format!("t{}", self.serial % 7), &temporary)?;
        fs::rename(&temporary, &path)?;
        Ok(Some(self.tell(&path)))
    }

    pub(super) fn special(&mut self) -> Done {
        let path = self.place();
        let kinds =
            [FileType::Fifo, FileType::Socket, FileType::CharacterDevice, FileType::BlockDevice];
        let kind = kinds[self.rng.usize(..if self.privileged { 4 } else { 2 })];
        self.make_special(&path, kind)?;
        Ok(Some(format!("{} {kind:?}", self.tell(&path))))
    }

    pub(super) fn make_special(&mut self, path: &Path, kind: FileType) -> io::Result<()> {
        let device = rustix::fs::makedev(self.rng.u32(200..240), self.rng.u32(..4));
        let mode = Mode::from_raw_mode(self.rng.choice([0o600, 0o644, 0o666]).expect("some"));
        Ok(rustix::fs::mknodat(CWD, path, kind, mode, device)?)
    }

    /// What is there becomes something of another kind, under the same name.
    pub(super) fn change_kind(&mut self) -> Done {
        let Some(path) = self.any() else { return Ok(None) };
        let before = FileType::from_raw_mode(fs::symlink_metadata(&path)?.mode());
        remove(&path)?;
        let after = match self.rng.u32(..5) {
            0 | 1 if before != FileType::Directory => {
                fs::create_dir(&path)?;
                write(path.join(self.name()), self.content())?;
                "directory"
            }
            2 if before != FileType::Symlink => {
                std::os::unix::fs::symlink("a", &path)?;
                "symlink"
            }
            3 if before != FileType::Fifo => {
                self.make_special(&path, FileType::Fifo)?;
                "fifo"
            }
            _ => {
                write(&path, self.content())?;
                "file"
            }
        };
        Ok(Some(format!("{} {before:?} → {after}", self.tell(&path))))
    }
}
