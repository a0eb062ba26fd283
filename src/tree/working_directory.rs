//! A working directory of a thread's own, for the system calls that take no directory.
//!
//! The attributes of an entry that is not opened can only be asked for by a path. From `/proc` that
//! path is five names long and takes three times as long as a name in the working directory. (Linux
//! 6.13 has `listxattrat`; older ones are to be as fast.) The working directory belongs to the
//! process, where another thread or a later relative path would be misled: so the thread takes one
//! of its own first, and goes back at once.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::process::fchdir;
use rustix::thread::UnshareFlags;

thread_local! {
    /// Where this thread is at home. `None` if it may not have a working directory of its own, as
    /// where a container's filter forbids it.
    static HOME: Option<OwnedFd> = own_home();
}

fn own_home() -> Option<OwnedFd> {
    let home = rustix::fs::openat(CWD, ".", OFlags::PATH | OFlags::CLOEXEC, Mode::empty()).ok()?;
    #[expect(deprecated, reason = "what is unsafe there is a table of descriptors of one's own")]
    rustix::thread::unshare(UnshareFlags::FS).ok()?;
    Some(home)
}

/// A stay in a directory. Relative paths of this thread begin there until it ends.
#[derive(Debug)]
pub(super) struct Stay(());

impl Stay {
    /// Enters a directory; `None` if that cannot be done, and nothing has changed then.
    pub fn begin(directory: impl AsFd) -> Option<Stay> {
        HOME.with(|home| home.as_ref().and_then(|_| fchdir(directory).ok())).map(|()| Stay(()))
    }
}

impl Drop for Stay {
    fn drop(&mut self) {
        HOME.with(|home| {
            // Who was at home in a directory may have lost the right to enter it. Nothing relies on
            // it then: the paths of the command line are absolute.
            home.as_ref().map(fchdir)
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stay_is_the_threads_own_and_ends() {
        let before = std::env::current_dir().unwrap();
        let directory = tempfile::tempdir().unwrap();
        let real = directory.path().canonicalize().unwrap();
        let fd = std::fs::File::open(&real).unwrap();
        let (ask, asked) = std::sync::mpsc::channel();
        let other = std::thread::spawn(move || {
            asked.recv().unwrap();
            std::env::current_dir().unwrap()
        });
        let stay = Stay::begin(&fd).expect("nothing forbids the tests to do this");
        assert_eq!(std::env::current_dir().unwrap(), real);
        ask.send(()).unwrap();
        assert_eq!(other.join().unwrap(), before);
        drop(stay);
        assert_eq!(std::env::current_dir().unwrap(), before);
    }
}
