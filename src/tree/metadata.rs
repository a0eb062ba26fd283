//! stub
use crate::model::{Kind, Timestamp, Xattr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
/// x
pub fn read_xattrs(_fd: impl AsFd) -> io::Result<Vec<Xattr>> {
    Ok(vec![])
}
/// x
pub fn read_xattrs_at(_d: BorrowedFd<'_>, _n: &[u8]) -> io::Result<Vec<Xattr>> {
    Ok(vec![])
}
/// x
pub fn timestamp(t: rustix::fs::StatxTimestamp) -> Timestamp {
    Timestamp { seconds: t.tv_sec, nanoseconds: t.tv_nsec }
}
/// x
pub fn entry_kind(s: &rustix::fs::Statx, target: Vec<u8>) -> io::Result<Kind> {
    use rustix::fs::FileType as F;
    Ok(match F::from_raw_mode(s.stx_mode.into()) {
        F::RegularFile => Kind::Regular { size: s.stx_size },
        F::Directory => Kind::Directory,
        F::Symlink => Kind::Symlink { target },
        F::Fifo => Kind::Fifo,
        F::Socket => Kind::Socket,
        F::CharacterDevice => Kind::CharDevice { major: s.stx_rdev_major, minor: s.stx_rdev_minor },
        F::BlockDevice => Kind::BlockDevice { major: s.stx_rdev_major, minor: s.stx_rdev_minor },
        _ => return Err(io::ErrorKind::InvalidData.into()),
    })
}
