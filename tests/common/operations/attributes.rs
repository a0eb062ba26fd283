//! Modes, owners, times and extended attributes.

use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use rustix::fs::{AtFlags, CWD, FileType, Gid, Timespec, Timestamps, Uid, XattrFlags};

use super::{Done, Operations, acl};

impl Operations {
    pub(super) fn chmod(&mut self) -> Done {
        let Some(path) = self.any() else { return Ok(None) };
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.is_symlink() {
            return Ok(None);
        }
        // Without root, directories must stay readable and writable to go on.
        let directory = metadata.is_dir();
        let modes: &[u32] = match (directory, self.privileged) {
            (true, true) => &[0o755, 0o700, 0o777, 0o1777, 0o2775, 0o500, 0],
            (true, false) => &[0o755, 0o700, 0o777, 0o1777],
            (false, true) => &[0o644, 0o600, 0o755, 0o4755, 0o2755, 0o400, 0],
            (false, false) => &[0o644, 0o600, 0o755, 0o664],
        };
        let mode = modes[self.rng.usize(..modes.len())];
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        Ok(Some(format!("{} {mode:o}", self.tell(&path))))
    }

    pub(super) fn chown(&mut self) -> Done {
        let Some(path) = self.any() else { return Ok(None) };
        if !self.privileged {
            return Ok(None);
        }
        let (uid, gid) = (self.rng.u32(..3) * 1000, self.rng.u32(..3) * 1000);
        let (owner, group) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        rustix::fs::chownat(CWD, &path, owner, group, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(Some(format!("{} {uid}:{gid}", self.tell(&path))))
    }

    pub(super) fn utimes(&mut self) -> Done {
        let Some(path) = self.any() else { return Ok(None) };
        let time = Timespec {
            tv_sec: self.rng.i64(0..2_000_000_000),
            tv_nsec: self.rng.i64(0..1_000_000_000) as _,
        };
        let times = Timestamps { last_access: time, last_modification: time };
        rustix::fs::utimensat(CWD, &path, &times, AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(Some(format!("{} {}.{:09}", self.tell(&path), time.tv_sec, time.tv_nsec)))
    }

    pub(super) fn set_xattr(&mut self) -> Done {
        let Some(path) = self.any() else { return Ok(None) };
        let kind = FileType::from_raw_mode(fs::symlink_metadata(&path)?.mode());
        let user = matches!(kind, FileType::RegularFile | FileType::Directory);
        let names: &[&str] = match (user, self.privileged) {
            (true, true) => &["user.one", "user.two", "trusted.one"],
            (true, false) => &["user.one", "user.two"],
            (false, true) => &["trusted.one"],
            (false, false) => return Ok(None),
        };
        let name = names[self.rng.usize(..names.len())];
        let length = self.rng.usize(..200);
        let value = self.bytes(length);
        rustix::fs::lsetxattr(&path, name, &value, XattrFlags::empty())?;
        Ok(Some(format!("{} {name}", self.tell(&path))))
    }

    pub(super) fn remove_xattr(&mut self) -> Done {
        let with = self.entries().into_iter().filter_map(|(path, _)| {
            let mut list = [0u8; 1024];
            let length = rustix::fs::llistxattr(&path, &mut list[..]).ok()?;
            let name = list[..length].split(|&byte| byte == 0).find(|name| {
                name.starts_with(b"user.")
                    || name.starts_with(b"trusted.")
                    || name.starts_with(b"system.posix_acl")
            })?;
            Some((path, name.to_vec()))
        });
        let Some((path, name)) = self.rng.choice(with.collect::<Vec<_>>()) else {
            return Ok(None);
        };
        rustix::fs::lremovexattr(&path, OsStr::from_bytes(&name))?;
        Ok(Some(format!("{} {}", self.tell(&path), name.escape_ascii())))
    }

    pub(super) fn set_acl(&mut self) -> Done {
        let Some(path) = self.any() else { return Ok(None) };
        let metadata = fs::symlink_metadata(&path)?;
        if metadata.is_symlink() {
            return Ok(None);
        }
        let default = metadata.is_dir() && self.rng.bool();
        let name = if default { "system.posix_acl_default" } else { "system.posix_acl_access" };
        let value = acl(self.rng.u32(1000..1003), self.rng.u16(..8));
        rustix::fs::lsetxattr(&path, name, &value, XattrFlags::empty())?;
        Ok(Some(format!("{} {name}", self.tell(&path))))
    }
}
