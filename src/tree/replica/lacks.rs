//! What a replica cannot hold, found out by trying: no table of file systems and capabilities
//! would be right for long.

use std::io;

use rustix::fs::{Gid, Mode, OFlags, Uid, XattrFlags};
use rustix::io::Errno;

use super::Replica;
use crate::model::Lacks;

impl Replica {
    /// Returns what neither this process nor the file system of ROOT lets entries have.
    ///
    /// # Errors
    ///
    /// What keeps a file from being made to try it on.
    pub fn lacks(&self) -> io::Result<Lacks> {
        let name = self.stage_name();
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
        let fd = rustix::fs::openat(&self.stage, &name, flags, Mode::RUSR | Mode::WUSR)?;
        let set =
            |name: &str, value: &[u8]| rustix::fs::fsetxattr(&fd, name, value, XattrFlags::empty());
        // Another owner than that of the file: to give it its own one says nothing.
        let (uid, gid) = (Uid::from_raw(self.owner.0 ^ 1), Gid::from_raw(self.owner.1 ^ 1));
        let tries = [
            (Lacks::USER_XATTRS, set("user.mirror", b"1")),
            (Lacks::PRIVILEGED_XATTRS, set("trusted.mirror", b"1")),
            (Lacks::ACLS, set("system.posix_acl_access", MINIMAL_ACL)),
            (Lacks::OWNERS, rustix::fs::fchown(&fd, Some(uid), Some(gid))),
        ];
        self.discard(&name);
        let is_refused = |tried: rustix::io::Result<()>| {
            matches!(tried, Err(Errno::PERM | Errno::OPNOTSUPP | Errno::INVAL | Errno::ACCESS))
        };
        let lacks = tries.into_iter().filter(|(_, tried)| is_refused(*tried));
        Ok(lacks.fold(Lacks::NOTHING, |all, (lack, _)| all.with(lack)))
    }
}

/// An ACL that says what a mode does: version 2, then owner, group and others, with a tag, the
/// permissions and no id each.
const MINIMAL_ACL: &[u8] = &[
    2, 0, 0, 0, //
    0x01, 0, 6, 0, 0xff, 0xff, 0xff, 0xff, //
    0x04, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, //
    0x20, 0, 0, 0, 0xff, 0xff, 0xff, 0xff, //
];
