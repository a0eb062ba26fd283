//! Renames, exchanges, and moves across the border of the tree.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::{Done, Operations, contents::write, exchange, remove};

impl Operations {
    pub(super) fn rename(&mut self) -> Done {
        let Some(from) = self.any() else { return Ok(None) };
        self.rename_to_place(from)
    }

    pub(super) fn rename_directory(&mut self) -> Done {
        let Some(from) = self.directory() else { return Ok(None) };
        self.rename_to_place(from)
    }

    pub(super) fn rename_to_place(&mut self, from: PathBuf) -> Done {
        let to = self.place();
        if from == to || self.too_deep(&from, &to) {
            return Ok(None);
        }
        fs::rename(&from, &to)?;
        self.tell_two(&from, &to)
    }

    /// Renames a directory over an existing one after emptying it, in two calls.
    pub(super) fn rename_over_directory(&mut self) -> Done {
        let (Some(from), Some(to)) = (self.directory(), self.directory()) else {
            return Ok(None);
        };
        if from.starts_with(&to) || to.starts_with(&from) || self.too_deep(&from, &to) {
            return Ok(None);
        }
        fs::remove_dir_all(&to)?;
        if self.rng.bool() {
            fs::create_dir(&to)?;
        }
        fs::rename(&from, &to)?;
        self.tell_two(&from, &to)
    }

    pub(super) fn rename_file_over(&mut self) -> Done {
        let (Some(from), Some(to)) = (self.file(), self.file()) else { return Ok(None) };
        fs::rename(&from, &to)?;
        self.tell_two(&from, &to)
    }

    pub(super) fn exchange(&mut self) -> Done {
        let (Some(a), Some(b)) = (self.any(), self.any()) else { return Ok(None) };
        if a == b || self.too_deep(&a, &b) || self.too_deep(&b, &a) {
            return Ok(None);
        }
        exchange(&a, &b)?;
        self.tell_two(&a, &b)
    }

    pub(super) fn move_there_and_back(&mut self) -> Done {
        let (Some(from), to) = (self.any(), self.place()) else { return Ok(None) };
        if fs::symlink_metadata(&to).is_ok() {
            return Ok(None);
        }
        fs::rename(&from, &to)?;
        if self.rng.bool() {
            let _ = write(if self.rng.bool() { &from } else { &to }, self.content());
        }
        let _ = fs::rename(&to, &from);
        self.tell_two(&from, &to)
    }

    /// f (v1) becomes g, then g is written again, or f comes again.
    pub(super) fn write_rename_write(&mut self) -> Done {
        let (from, to) = (self.place(), self.place());
        write(&from, self.bytes(24))?;
        fs::rename(&from, &to)?;
        write(&to, self.bytes(24))?;
        if self.rng.bool() {
            write(&from, self.bytes(24))?;
        }
        self.tell_two(&from, &to)
    }

    /// d/x is written, then d becomes e, and sometimes a new d comes.
    pub(super) fn write_below_and_rename(&mut self) -> Done {
        let (Some(from), to) = (self.directory(), self.place()) else { return Ok(None) };
        if from == to || self.too_deep(&from, &to) {
            return Ok(None);
        }
        write(from.join(self.name()), self.bytes(24))?;
        fs::rename(&from, &to)?;
        if self.rng.bool() {
            fs::create_dir(&from)?;
            write(from.join(self.name()), self.bytes(24))?;
        }
        self.tell_two(&from, &to)
    }

    /// What was worked on a moment ago goes elsewhere, and something else comes in its place.
    pub(super) fn displace(&mut self) -> Done {
        let (Some(from), to) = (self.recent(), self.place()) else { return Ok(None) };
        if from == to || self.too_deep(&from, &to) {
            return Ok(None);
        }
        fs::rename(&from, &to)?;
        match self.any() {
            Some(other) if self.rng.bool() && !self.too_deep(&other, &from) => {
                let _ = fs::rename(other, &from);
            }
            _ => write(&from, self.bytes(24))?,
        }
        self.tell_two(&from, &to)
    }

    /// Two names swap by way of a third.
    pub(super) fn swap_by_third(&mut self) -> Done {
        let (Some(a), Some(b)) = (self.any(), self.any()) else { return Ok(None) };
        if a.starts_with(&b) || b.starts_with(&a) {
            return Ok(None);
        }
        if self.too_deep(&a, &b) || self.too_deep(&b, &a) {
            return Ok(None);
        }
        let third = self.temporary(&self.root.clone());
        fs::rename(&a, &third)?;
        fs::rename(&b, &a)?;
        fs::rename(&third, &b)?;
        self.tell_two(&a, &b)
    }

    pub(super) fn move_out(&mut self) -> Done {
        let Some(path) = self.any() else { return Ok(None) };
        let to = self.temporary(&self.outside.clone());
        fs::rename(&path, &to)?;
        // Sometimes it goes on changing out there, where nobody should care. A file that has
        // another name in the tree would change there with no event: that is for the rescan.
        let inside = to.join("a");
        let is_linked = fs::symlink_metadata(&inside).is_ok_and(|metadata| metadata.nlink() > 1);
        if to.is_dir() && !is_linked && self.rng.bool() {
            write(inside, self.bytes(24))?;
        }
        self.trim_outside();
        self.tell_two(&path, &to)
    }

    pub(super) fn move_in(&mut self) -> Done {
        let from = match self.rng.bool() {
            true => self.build_outside()?,
            false => match self.rng.choice(self.outside_entries()) {
                Some(path) => path,
                None => self.build_outside()?,
            },
        };
        let to = self.place();
        if self.too_deep(&from, &to) {
            return Ok(None);
        }
        fs::rename(&from, &to)?;
        self.tell_two(&from, &to)
    }

    /// d goes outside, and another d comes in its place.
    pub(super) fn move_out_and_in(&mut self) -> Done {
        let Some(path) = self.directory() else { return Ok(None) };
        let to = self.temporary(&self.outside.clone());
        let other = self.build_outside()?;
        fs::rename(&path, &to)?;
        if !self.too_deep(&other, &path) {
            fs::rename(&other, &path)?;
        }
        self.trim_outside();
        Ok(Some(self.tell(&path)))
    }

    pub(super) fn outside_entries(&self) -> Vec<PathBuf> {
        let list = fs::read_dir(&self.outside).into_iter().flatten().flatten();
        let mut paths: Vec<_> = list.map(|entry| entry.path()).collect();
        paths.sort();
        paths
    }

    pub(super) fn build_outside(&mut self) -> io::Result<PathBuf> {
        let path = self.temporary(&self.outside.clone());
        fs::create_dir(&path)?;
        for _ in 0..self.rng.u32(..4) {
            let _ = write(path.join(self.name()), self.content());
        }
        let below = path.join(self.name());
        if fs::create_dir(&below).is_ok() {
            write(below.join(self.name()), self.content())?;
        }
        // A tree that moves in has old times.
        let old = std::time::UNIX_EPOCH + std::time::Duration::from_secs(1_000_000_000);
        File::open(&path)?.set_modified(old)?;
        Ok(path)
    }

    pub(super) fn trim_outside(&mut self) {
        let entries = self.outside_entries();
        if entries.len() > 4 {
            let index = self.rng.usize(..entries.len());
            let _ = remove(&entries[index]);
        }
    }

    pub(super) fn too_deep(&self, from: &Path, to: &Path) -> bool {
        fn height(path: &Path) -> usize {
            match fs::symlink_metadata(path) {
                Ok(metadata) if metadata.is_dir() => {
                    let list = fs::read_dir(path).into_iter().flatten().flatten();
                    1 + list.map(|entry| height(&entry.path())).max().unwrap_or(0)
                }
                _ => 1,
            }
        }
        let parents = to.components().count() - 1 - self.root.components().count();
        parents + height(from) > self.depth_max + 1
    }
}
