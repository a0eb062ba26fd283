//! What a replica is after a power cut at any instant: its checkpoint is never ahead of its data
//! (I5), and from there it becomes equal.
//!
//! The replica is on a file system in an image, ext4 with its default journal and xfs. At a random
//! instant, while the sink works, the file system is told to let nothing more through to the image
//! (`XFS_IOC_GOINGDOWN` without a flush of the log, as xfstests cut power). So the image holds, of
//! one instant, what the kernel had written back by then, and lacks what was in memory only: pages
//! not written back, and the transactions that the journal had not committed. A copy of the image's
//! file while all goes on would be of many instants, which no disk ever holds; freezing the file
//! system before would write everything out, and stopping the sink would not stop the writeback.
//! The image is mounted again, which replays the journal, and the sink is started on it under its
//! living source. As after a real cut, the machine has another boot id then than the checkpoint.
//!
//! Not shown by this is a disk that lies, or that loses what it had acknowledged and was not told
//! to flush: that needs a device mapper or a disk of our own.
//!
//! `MIRROR_TEST_CUTS` sets how many cuts there are on each file system (6), `MIRROR_SEED` replays
//! their moments as far as the scheduler lets it.

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use common::judge::wait_equal;
use common::machine::{Mount, need_root, need_tool};
use common::operations::Operations;
use common::pair::{Pair, wait_until};
use mirror::journal::Journal;
use mirror::journal::checkpoint::Checkpoint;
use mirror::journal::state_file::Directory;
use mirror::model::{Change, Sequence, Watermarks};

/// Files by number: each is written once, and perhaps removed later.
const NUMBERED: &str = "numbered";

/// Few files, replaced and rewritten all the time.
const HOT: &str = "hot";

/// Anything, so with renames.
const ANY: &str = "any";

struct World {
    pair: Pair,
    mount: Mount,
    rng: fastrand::Rng,
    operations: Operations,
    /// How many numbered files there were.
    written: u64,
    /// How many paths were found as a checkpoint said.
    proved: usize,
    /// What was done since the trees were equal.
    told: Vec<String>,
}

impl World {
    fn new(mount: Mount, seed: u64) -> World {
        let mut pair = Pair::new();
        pair.dst = mount.path.join("replica");
        fs::create_dir(&pair.dst).unwrap();
        // That there is a directory is none of the sink's doing.
        rustix::fs::syncfs(fs::File::open(&mount.path).unwrap()).unwrap();
        for name in [NUMBERED, HOT, ANY] {
            fs::create_dir(pair.src.join(name)).unwrap();
        }
        pair.sink_args = vec!["--checkpoint-interval".into(), "40ms".into()];
        let operations = Operations::new(pair.src.join(ANY), &pair.outside, seed);
        let rng = fastrand::Rng::with_seed(seed);
        World { pair, mount, rng, operations, written: 0, proved: 0, told: Vec::new() }
    }

    /// Changes the source's tree for so long; `moves` says whether something is renamed too.
    fn work(&mut self, duration: Duration, moves: bool) {
        let until = Instant::now() + duration;
        let at = |name: &str| self.pair.src.join(name);
        let (numbered, hot) = (at(NUMBERED), at(HOT));
        while Instant::now() < until {
            let size = match self.rng.u8(..10) {
                0 => 0,
                1..8 => self.rng.usize(..9_000),
                // Too big for one frame: staged.
                _ => self.rng.usize(9_000..600_000),
            };
            let content = vec![self.rng.u8(..); size];
            match self.rng.u8(..10) {
                0..6 => {
                    self.written += 1;
                    fs::write(numbered.join(self.written.to_string()), content).unwrap();
                }
                6 if self.written > 0 => {
                    let number = self.rng.u64(1..=self.written);
                    let _ = fs::remove_file(numbered.join(number.to_string()));
                }
                _ => fs::write(hot.join(self.rng.u8(..10).to_string()), content).unwrap(),
            }
            if moves {
                let told = self.operations.step();
                self.told.push(told);
            }
            std::thread::sleep(Duration::from_micros(self.rng.u64(..1500)));
        }
    }

    /// Cuts the power, and returns what the disk has then, mounted.
    fn cut(&mut self) {
        self.mount.cut_power().unwrap();
        self.pair.sink().kill9();
        self.mount.unmount().unwrap();
        self.mount.mount().unwrap();
    }

    /// Returns the last record of each path, by the source's journal: all that is in the tree is
    /// in the journal by then.
    fn records(&self) -> BTreeMap<PathBuf, Sequence> {
        let copy = tempfile::tempdir_in(self.pair.scratch.path()).unwrap();
        for entry in fs::read_dir(self.pair.source_state.join("journal")).unwrap().flatten() {
            let _ = fs::copy(entry.path(), copy.path().join(entry.file_name()));
        }
        let journal = Journal::open(copy.path(), 256 << 20).unwrap();
        let mut cursor = journal.cursor(Sequence(0)).expect("nothing is dropped yet");
        let mut records = Vec::new();
        journal.read(&mut cursor, usize::MAX, &mut records).unwrap();
        let mut last = BTreeMap::new();
        for record in records {
            if let Change::Dirty { path, .. } = record.change {
                let path = String::from_utf8_lossy(path.as_bytes()).into_owned();
                last.insert(PathBuf::from(path), record.sequence);
            }
        }
        last
    }

    /// Checks that everything is there that the checkpoint speaks for, and gives it the boot id
    /// of another life of the machine.
    fn prove(&mut self) -> Option<Watermarks> {
        let control = Directory::open(&self.pair.dst.join(".mirror")).ok()?;
        let checkpoint = Checkpoint::load(&control).expect("a checkpoint is whole or not there")?;
        // What was done last may not be journaled yet.
        let mut head = None;
        wait_until(common::patience(), || {
            let before = head;
            head = self.records().values().max().copied();
            std::thread::sleep(Duration::from_millis(100));
            head == before
        });
        let records = self.records();
        if let Some(marks) = checkpoint.watermarks {
            let mut names: Vec<PathBuf> = (1..=self.written)
                .map(|number| Path::new(NUMBERED).join(number.to_string()))
                .collect();
            names.extend((0..10).map(|number| Path::new(HOT).join(number.to_string())));
            for name in names {
                // What the first sync brought has no record.
                if records.get(&name).is_some_and(|last| *last > marks.applied) {
                    continue;
                }
                let read = |root: &Path| fs::read(root.join(&name)).ok();
                let (ours, theirs) = (read(&self.pair.src), read(&self.pair.dst));
                assert!(
                    ours == theirs,
                    "{}: {:?} bytes in place of {:?}, by record {:?} of a checkpoint through {}",
                    name.display(),
                    theirs.map(|content| content.len()),
                    ours.map(|content| content.len()),
                    records.get(&name),
                    marks.applied
                );
                self.proved += 1;
            }
        }
        Checkpoint { boot_id: 1, ..checkpoint.clone() }.save(&control).unwrap();
        checkpoint.watermarks
    }
}

/// Tells what was done when a test fails.
struct Told(Vec<String>);

impl Drop for Told {
    fn drop(&mut self) {
        if std::thread::panicking() {
            println!("since it was equal:\n{}", self.0.join("\n"));
        }
    }
}

fn cuts(mount: Result<Mount, String>) {
    let mount = match mount {
        Ok(mount) => mount,
        Err(error) => return common::skip(&format!("no loop mount: {error}")),
    };
    let seed = common::seed();
    let mut world = World::new(mount, seed);
    world.work(Duration::from_millis(300), true);
    world.pair.start();
    let (mut positions, mut resumed) = (0, 0);
    let count = common::number_from_env("MIRROR_TEST_CUTS", 6);
    for number in 1..=count {
        // Every other time there is nothing but what a position alone can speak for.
        let ms = if number == 1 { 10..150 } else { 30..900 };
        let duration = Duration::from_millis(world.rng.u64(ms));
        world.work(duration, number % 2 == 0);
        world.cut();
        let marks = world.prove();
        positions += usize::from(marks.is_some());
        println!("MIRROR_SEED={seed} cut {number} after {duration:?}: {marks:?}");
        let before = world.pair.sink().log().len();
        world.pair.start_sink();
        world.work(Duration::from_millis(100), false);
        world.operations.close();
        let guard = Told(std::mem::take(&mut world.told));
        wait_equal(&world.pair.src, &world.pair.dst, common::patience());
        drop(guard);
        let log = world.pair.sink().log();
        // The tree keeps to a size that the image has room for.
        while fs::read_dir(world.pair.src.join(NUMBERED)).unwrap().count() > 1000 {
            let number = world.rng.u64(1..=world.written);
            let _ = fs::remove_file(world.pair.src.join(NUMBERED).join(number.to_string()));
        }
        resumed += usize::from(log[before..].contains("resuming by position"));
    }
    println!("{} paths were as {positions} checkpoints said, {resumed} resumed", world.proved);
    assert!(world.proved > 0, "no checkpoint ever said anything");
    world.pair.finish();
    drop(world.pair);
}

fn may_run(tools: &[&str]) -> bool {
    need_root("a file system that can be cut off") && tools.iter().all(|tool| need_tool(tool))
}

#[test]
fn power_cuts_on_ext4() {
    if may_run(&["mkfs.ext4", "perl"]) {
        cuts(Mount::ext4(192 << 20, &[]));
    }
}

#[test]
fn power_cuts_on_xfs() {
    if may_run(&["mkfs.xfs", "perl"]) {
        cuts(Mount::xfs());
    }
}
