//! A source and a sink in one process that are equal, and what a test asks of them.

use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::judge::Judge;
use super::world::World;
use mirror::journal::checkpoint::Checkpoint;
use mirror::journal::state_file::Directory;
use mirror::model::Watermarks;
use mirror::role::Role as _;
use mirror::wire::Item;

/// A source and a sink that are equal, in one process.
pub struct Live {
    pub world: World,
    pub judge: Judge,
    pub src: PathBuf,
    pub dst: PathBuf,
    pub directory: tempfile::TempDir,
}

impl Live {
    pub fn new(prepare: impl FnOnce(&Path)) -> Live {
        let directory = super::machine::scratch();
        let mut world = World::quiet(directory.path());
        let [src, dst] = ["src", "dst"].map(|name| directory.path().join(name));
        prepare(&src);
        // Only what a test asks for is checkpointed, by ending the sink.
        world.sink_options.checkpoint_interval = Duration::from_secs(3600);
        let judge = Judge::new(&src, &dst);
        let mut live = Live { world, judge, src, dst, directory };
        live.settle();
        live
    }

    pub fn settle(&mut self) {
        let differences = self.world.settle(&self.judge, super::patience());
        assert!(differences.is_empty(), "{}", differences.join("\n"));
    }

    /// Lets the source send all that it has, and returns it, undelivered.
    pub fn sent(&mut self) -> Vec<Item> {
        let mut idle = 0;
        while idle < 3 {
            idle = if self.world.send() { 0 } else { idle + 1 };
            // A half of a rename may be waited for.
            std::thread::sleep(Duration::from_millis(2));
        }
        self.world.items()
    }

    /// Lets the sink have all that is on its way, and the source hear nothing of it.
    pub fn deliver(&mut self) {
        while self.world.deliver() {}
    }

    /// Ends the sink cleanly, with a checkpoint.
    pub fn shut_down_sink(&mut self) {
        self.world.sink.as_mut().unwrap().shut_down().unwrap();
        self.world.kill_sink();
    }

    pub fn watermarks(&self) -> Watermarks {
        self.world.sink.as_ref().unwrap().state().watermarks.unwrap()
    }

    pub fn checkpoint(&self) -> Checkpoint {
        let control = Directory::open(&self.dst.join(".mirror")).unwrap();
        Checkpoint::load(&control).unwrap().unwrap()
    }
}

/// Writes a file whose size and times do not tell its versions apart.
pub fn version(path: impl AsRef<Path>, version: u8) {
    let mut file = File::create(path).unwrap();
    file.write_all(&[b'0' + version; 100]).unwrap();
    file.set_modified(SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000)).unwrap();
}
