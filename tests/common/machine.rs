//! The machine under the tests: scratch directories, mounts, kernel settings, ports.

use std::fs::{self, File};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::FlockOperation;

pub fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Returns whether `tool` is in PATH.
pub fn has_tool(tool: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).chain(["/usr/sbin".into()]).any(|dir| dir.join(tool).is_file())
}

/// Returns whether a test that needs `tool` may run; says so when not.
pub fn need_tool(tool: &str) -> bool {
    let found = has_tool(tool);
    if !found {
        super::skip(&format!("{tool} is not installed"));
    }
    found
}

/// Returns whether a test that needs root may run; says so when not.
pub fn need_root(test: &str) -> bool {
    if !is_root() {
        super::skip(&format!("{test} needs root"));
    }
    is_root()
}

/// Returns where scratch directories are made: `MIRROR_TEST_DIR`, else RAM, else the default.
pub fn scratch_base() -> PathBuf {
    if let Some(base) = std::env::var_os("MIRROR_TEST_DIR") {
        return base.into();
    }
    let ram = Path::new("/dev/shm");
    match tempfile::tempdir_in(ram) {
        Ok(_) => ram.to_owned(),
        Err(_) => std::env::temp_dir(),
    }
}

/// Makes a directory that goes away with the returned guard.
///
/// The name is short: a Unix socket's path holds 107 bytes.
pub fn scratch() -> tempfile::TempDir {
    let mut builder = tempfile::Builder::new();
    builder.prefix("mirror-").disable_cleanup(std::env::var_os("MIRROR_TEST_KEEP").is_some());
    builder.tempdir_in(scratch_base()).expect("a scratch directory")
}

/// Returns a TCP port that was free a moment ago.
pub fn free_port() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("its address").port()
}

/// Returns a small file system of its own for `test`; says why when there is none here.
pub fn need_ext4(test: &str, bytes: u64) -> Option<Mount> {
    if !need_root(test) || !need_tool("mkfs.ext4") {
        return None;
    }
    Mount::ext4(bytes, &[])
        .inspect_err(|error| super::skip(&format!("no loop mount: {error}")))
        .ok()
}

/// A file system in an image, unmounted with this guard.
pub struct Mount {
    pub path: PathBuf,
    kind: &'static str,
    image: PathBuf,
    _scratch: tempfile::TempDir,
}

impl Mount {
    /// Makes and mounts a journaled ext4 of `bytes`.
    pub fn ext4(bytes: u64, mkfs_args: &[&str]) -> Result<Mount, String> {
        Mount::new("ext4", bytes, mkfs_args)
    }

    /// Makes and mounts an xfs of the least size that its makers allow.
    pub fn xfs() -> Result<Mount, String> {
        Mount::new("xfs", 320 << 20, &[])
    }

    fn new(kind: &'static str, bytes: u64, mkfs_args: &[&str]) -> Result<Mount, String> {
        let scratch = scratch();
        let mount = Mount {
            path: scratch.path().join("mount"),
            kind,
            image: scratch.path().join("image"),
            _scratch: scratch,
        };
        let file = File::create(&mount.image).map_err(|error| error.to_string())?;
        file.set_len(bytes).map_err(|error| error.to_string())?;
        fs::create_dir(&mount.path).map_err(|error| error.to_string())?;
        mount.format(mkfs_args)?;
        Ok(mount)
    }

    /// Unmounts and makes a new file system in the same image, whose pages stay touched.
    pub fn renew(&self, mkfs_args: &[&str]) -> Result<(), String> {
        self.unmount()?;
        self.format(mkfs_args)
    }

    fn format(&self, mkfs_args: &[&str]) -> Result<(), String> {
        let mut mkfs = Command::new(format!("mkfs.{}", self.kind));
        if self.kind == "ext4" {
            // The journal and the inode tables are written now, not by a kernel thread later.
            mkfs.args(["-q", "-F", "-m", "0", "-E"]);
            mkfs.arg("nodiscard,lazy_itable_init=0,lazy_journal_init=0");
        } else {
            mkfs.args(["-q", "-f"]);
        }
        run(mkfs.args(mkfs_args).arg(&self.image))?;
        self.mount()?;
        let _ = fs::remove_dir(self.path.join("lost+found"));
        Ok(())
    }

    /// Mounts it again after [`Mount::unmount`].
    pub fn mount(&self) -> Result<(), String> {
        run(Command::new("mount").args(["-o", "loop"]).arg(&self.image).arg(&self.path))
    }

    /// Lets nothing that was not written yet reach the image any more, not by any later call
    /// either. What remains is to unmount it.
    pub fn cut_power(&self) -> Result<(), String> {
        // XFS_IOC_GOINGDOWN, which ext4 has as well, without writing the log out.
        let script = "open(F, '<', $ARGV[0]) or die $!; my $flags = pack('L', 2); \
                      ioctl(F, 0x8004587d, $flags) or die $!;";
        run(Command::new("perl").args(["-e", script]).arg(&self.path))
    }

    /// Changes mount options; fails with the reason, such as a file open for writing.
    pub fn remount(&self, options: &str) -> Result<(), String> {
        let options = format!("remount,{options}");
        run(Command::new("mount").args(["-o", &options]).arg(&self.path))
    }

    pub fn unmount(&self) -> Result<(), String> {
        run(Command::new("umount").arg(&self.path))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        for _ in 0..20 {
            match self.unmount() {
                Err(error) if !error.contains("not mounted") => {}
                _ => return,
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        let _ = run(Command::new("umount").arg("-l").arg(&self.path));
    }
}

/// A directory that is mounted a second time, unmounted with this guard.
pub struct Bind {
    path: PathBuf,
}

impl Bind {
    /// Mounts `of` at `path` as well.
    pub fn new(of: &Path, path: &Path) -> Result<Bind, String> {
        run(Command::new("mount").arg("--bind").arg(of).arg(path))?;
        Ok(Bind { path: path.to_owned() })
    }
}

impl Drop for Bind {
    fn drop(&mut self) {
        // Lazily, for a process may be reading there.
        let _ = run(Command::new("umount").arg("-l").arg(&self.path));
    }
}

/// A kernel setting, changed and put back; only one test at a time, over all processes.
pub struct Sysctl {
    path: PathBuf,
    before: String,
    _lock: File,
}

impl Sysctl {
    /// Sets e.g. `fs/inotify/max_queued_events`.
    pub fn set(name: &str, value: u64) -> std::io::Result<Sysctl> {
        let lock = exclusive("sysctl")?;
        let path = Path::new("/proc/sys").join(name);
        let before = fs::read_to_string(&path)?;
        fs::write(&path, value.to_string())?;
        Ok(Sysctl { path, before, _lock: lock })
    }
}

impl Drop for Sysctl {
    fn drop(&mut self) {
        let _ = fs::write(&self.path, self.before.trim());
    }
}

/// Waits for the machine-wide lock `name` and holds it until the file is dropped.
pub fn exclusive(name: &str) -> std::io::Result<File> {
    let file = File::create(std::env::temp_dir().join(format!("mirror-test-{name}.lock")))?;
    rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
    Ok(file)
}

/// Runs a command to its end; the error holds what it printed.
pub fn run(command: &mut Command) -> Result<(), String> {
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("{:?}: {error}", command.get_program()))?;
    if output.status.success() {
        return Ok(());
    }
    let stderr = String::from_utf8_lossy(&output.stderr);
    Err(format!("{:?}: {} {}", command.get_program(), output.status, stderr.trim()))
}
