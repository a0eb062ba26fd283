//! Attributes and kinds of entries.

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{CWD, FileType, Mode, XattrFlags};

use crate::common;
use crate::common::machine::{Mount, is_root, need_root, need_tool};
use crate::common::operations::{acl, exchange};
use crate::common::pair::{Pair, inode};
use crate::{live, write};

#[test]
fn attributes_alone_keep_the_inode() {
    let pair = live(|src| {
        write(src.join("f"), vec![3; 300_000]);
        fs::create_dir(src.join("d")).unwrap();
        write(src.join("d/g"), "g");
    });
    let kept = ["f", "d", "d/g"].map(|name| (name, inode(&pair.dst.join(name))));
    fs::set_permissions(pair.src.join("f"), fs::Permissions::from_mode(0o4711)).unwrap();
    fs::set_permissions(pair.src.join("d"), fs::Permissions::from_mode(0o1750)).unwrap();
    pair.converge();
    let time = std::time::UNIX_EPOCH + Duration::new(1_234_567_890, 123_456_789);
    // Both times: for the modification time alone the kernel reports a write, not a change of
    // attributes.
    let times = fs::FileTimes::new().set_modified(time).set_accessed(time);
    File::open(pair.src.join("f")).unwrap().set_times(times).unwrap();
    File::open(pair.src.join("d")).unwrap().set_times(times).unwrap();
    pair.converge();
    let flags = XattrFlags::empty();
    rustix::fs::setxattr(pair.src.join("f"), "user.x", b"value", flags).unwrap();
    let list = acl(1001, 6);
    rustix::fs::setxattr(pair.src.join("d/g"), "system.posix_acl_access", &list, flags).unwrap();
    rustix::fs::setxattr(pair.src.join("d"), "system.posix_acl_default", &list, flags).unwrap();
    pair.converge();
    rustix::fs::removexattr(pair.src.join("f"), "user.x").unwrap();
    pair.converge();
    if is_root() {
        std::os::unix::fs::chown(pair.src.join("f"), Some(1234), Some(4321)).unwrap();
        rustix::fs::setxattr(pair.src.join("f"), "trusted.x", b"value", flags).unwrap();
        pair.converge();
    }
    for (name, before) in kept {
        assert_eq!(inode(&pair.dst.join(name)), before, "{name} was made anew");
    }
    // New entries below a default ACL get what the source has, not what they inherit.
    write(pair.src.join("d/new"), "new");
    fs::create_dir(pair.src.join("d/e")).unwrap();
    pair.converge();
}

/// What the host's own security modules know of its files is theirs, which is said, and once.
#[test]
fn attributes_that_are_not_mirrored_are_named_once() {
    if !need_root("attributes_that_are_not_mirrored_are_named_once") {
        return;
    }
    let mut pair = live(|_| ());
    for name in ["f", "g", "h"] {
        write(pair.src.join(name), name);
        let flags = XattrFlags::empty();
        rustix::fs::setxattr(pair.src.join(name), "user.kept", b"1", flags).unwrap();
        let set = rustix::fs::setxattr(pair.src.join(name), "security.mirror", b"1", flags);
        if let Err(error) = set {
            return common::skip(&format!("no security attributes: {error}"));
        }
    }
    assert!(pair.source().wait_log("security.mirror is not mirrored", common::patience()));
    let attribute = |name: &str, attribute: &str| {
        let mut value = [0; 8];
        rustix::fs::getxattr(pair.dst.join(name), attribute, &mut value).is_ok()
    };
    for name in ["f", "g", "h"] {
        pair.wait_for("the attribute", || attribute(name, "user.kept"));
        assert!(!attribute(name, "security.mirror"));
    }
    let log = pair.source.as_ref().unwrap().log();
    assert_eq!(log.matches("security.mirror").count(), 1, "{log}");
}

/// Where a file system shows ACLs as attributes of its own as well, they are neither sent nor
/// removed as such: to remove them would be to remove the ACLs.
#[test]
fn acls_of_xfs_are_no_attributes_of_their_own() {
    if !need_root("a file system of its own") || !need_tool("mkfs.xfs") {
        return;
    }
    for is_source in [true, false] {
        let mount = match Mount::xfs() {
            Ok(mount) => mount,
            Err(error) => return common::skip(&format!("no loop mount: {error}")),
        };
        let mut pair = Pair::new();
        let on_xfs = if is_source { &mut pair.src } else { &mut pair.dst };
        *on_xfs = mount.path.join("tree");
        fs::create_dir(on_xfs).unwrap();
        let (flags, access) = (XattrFlags::empty(), "system.posix_acl_access");
        let f = pair.src.join("f");
        let set = |uid| rustix::fs::setxattr(&f, access, &acl(uid, 6), flags).unwrap();
        write(&f, "f");
        fs::create_dir(pair.src.join("d")).unwrap();
        let default = "system.posix_acl_default";
        rustix::fs::setxattr(pair.src.join("d"), default, &acl(1001, 6), flags).unwrap();
        set(1001);
        pair.start();
        pair.wait_equal();
        set(1002);
        fs::set_permissions(&f, fs::Permissions::from_mode(0o770)).unwrap();
        write(pair.src.join("d/inherits"), "g");
        pair.wait_equal();
        let mut list = [0; 4096];
        if is_source {
            let length = rustix::fs::listxattr(pair.dst.join("f"), &mut list).unwrap();
            let list = String::from_utf8_lossy(&list[..length]).into_owned();
            assert!(!list.contains("SGI"), "{list}");
        }
        drop(pair);
    }
}

/// An exchange on xfs changes the times of the very directories that it moves.
#[test]
fn times_of_directories_that_change_places_on_xfs() {
    if !need_root("a file system of its own") || !need_tool("mkfs.xfs") {
        return;
    }
    let mount = match Mount::xfs() {
        Ok(mount) => mount,
        Err(error) => return common::skip(&format!("no loop mount: {error}")),
    };
    let mut pair = Pair::new();
    pair.dst = mount.path.join("replica");
    fs::create_dir(&pair.dst).unwrap();
    write(pair.src.join("becomes"), "a directory");
    for path in ["one/d/e", "other/d"] {
        fs::create_dir_all(pair.src.join(path)).unwrap();
        write(pair.src.join(path).join("f"), path);
    }
    pair.start();
    pair.wait_equal();
    fs::create_dir(pair.outside.join("new")).unwrap();
    fs::remove_file(pair.src.join("becomes")).unwrap();
    fs::rename(pair.outside.join("new"), pair.src.join("becomes")).unwrap();
    pair.wait_equal();
    exchange(&pair.src.join("one/d"), &pair.src.join("other/d")).unwrap();
    pair.wait_equal();
    exchange(&pair.src.join("other/d/e"), &pair.src.join("becomes")).unwrap();
    pair.wait_equal();
    drop(pair);
}

#[test]
fn fifos_sockets_and_devices() {
    let node = |path: &Path, kind, device| {
        rustix::fs::mknodat(CWD, path, kind, Mode::from(0o640), device).unwrap();
    };
    let pair = live(|src| {
        node(&src.join("fifo"), FileType::Fifo, 0);
        node(&src.join("socket"), FileType::Socket, 0);
    });
    node(&pair.src.join("fifo2"), FileType::Fifo, 0);
    fs::rename(pair.src.join("fifo"), pair.src.join("fifo3")).unwrap();
    pair.converge();
    if need_root("fifos_sockets_and_devices, its devices,") {
        let device = rustix::fs::makedev(240, 7);
        node(&pair.src.join("character"), FileType::CharacterDevice, device);
        node(&pair.src.join("block"), FileType::BlockDevice, rustix::fs::makedev(241, 300));
        pair.converge();
        // The same name, another number.
        fs::remove_file(pair.src.join("character")).unwrap();
        let device = rustix::fs::makedev(240, 8);
        node(&pair.src.join("character"), FileType::CharacterDevice, device);
        pair.converge();
    }
}

#[test]
fn kinds_change_under_one_name() {
    let pair = live(|src| write(src.join("x"), "file"));
    let path = pair.src.join("x");
    let makers: [(&str, &dyn Fn()); 4] = [
        ("directory", &|| {
            fs::create_dir(&path).unwrap();
            write(path.join("f"), "f");
        }),
        ("symlink", &|| std::os::unix::fs::symlink("nowhere", &path).unwrap()),
        ("fifo", &|| {
            rustix::fs::mknodat(CWD, &path, FileType::Fifo, Mode::from(0o600), 0).unwrap();
        }),
        ("file", &|| write(&path, "file")),
    ];
    for (_, first) in &makers {
        for (name, second) in &makers {
            common::operations::remove(&path).unwrap();
            first();
            common::operations::remove(&path).unwrap();
            second();
            println!("to {name}");
            pair.wait_equal();
        }
    }
    pair.converge();
}
