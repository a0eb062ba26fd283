//! The rename of a big directory, and many small changes.

use super::*;

pub(super) fn rename(
    live: &mut Live,
    run: u64,
    ground: &Ground,
    dst: &Path,
    table: &mut Table,
) -> Result<(), String> {
    /// drivers/ of Linux 6.1, which others' numbers are about.
    const ENTRIES_WANTED: usize = 33_616;
    settled_equal(live.tool, &ground.src(), dst)?;
    let src = ground.src();
    let tops = fs::read_dir(&src).map_err(|error| error.to_string())?.flatten();
    let (entries, from) = tops
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| (count(&entry.path(), false), entry.path()))
        .min_by_key(|(entries, _)| entries.abs_diff(ENTRIES_WANTED))
        .ok_or("no directory to rename")?;
    let name = format!("renamed-{run}-{}", live.tool.name());
    let (to, replica) = (src.join(&name), dst.join(&name));
    // The clock runs before the rename: followers may well be done when the call returns.
    let (wire_before, started) = (loopback_bytes(), Instant::now());
    fs::rename(&from, &to).map_err(|error| error.to_string())?;
    let elapsed = loop {
        if fs::symlink_metadata(&replica).is_ok() {
            // Counting takes long, so it does not count if all is there at first sight.
            let elapsed = started.elapsed();
            if count(&replica, false) == entries {
                break elapsed;
            }
        }
        if started.elapsed() > patience(live.tool) {
            return Err("the renamed directory did not arrive".to_owned());
        }
        std::thread::sleep(Duration::from_micros(100));
    };
    eprintln!("  renamed a directory of {entries} entries");
    table.add(Row::Rename, live.tool, elapsed.as_secs_f64() * 1e3);
    settled_equal(live.tool, &src, dst)?;
    table.add(Row::RenameWire, live.tool, (loopback_bytes() - wire_before) as f64 / 1024.0);
    fs::rename(&to, &from).map_err(|error| error.to_string())?;
    settled_equal(live.tool, &src, dst)
}

pub(super) fn changes(
    live: &mut Live,
    run: u64,
    ground: &Ground,
    dst: &Path,
    count: usize,
    table: &mut Table,
) -> Result<(), String> {
    let src = ground.src();
    let mut files = regular_files(&src)?;
    if files.is_empty() {
        return Err("no files to change".to_owned());
    }
    let (cpu_before, wire_before) = (live.cpu_s(), loopback_bytes());
    let mut rng = fastrand::Rng::with_seed(run);
    let mut touched = BTreeSet::new();
    let changing = Instant::now();
    for number in 0..count {
        let change = one_change(&src, &mut files, &mut rng, number, &mut touched);
        change.map_err(|error| format!("change {number}: {error}"))?;
    }
    let (last, applying) = (Instant::now(), changing.elapsed());
    // What is equal once stays so: nothing changes any more. Directories have to be, too.
    let parents: BTreeSet<PathBuf> =
        touched.iter().filter_map(|path| path.parent().map(Path::to_owned)).collect();
    let mut left: Vec<PathBuf> = touched.into_iter().chain(parents).collect();
    loop {
        left.retain(|path| !same(live.tool, &src.join(path), &dst.join(path)));
        if left.is_empty() {
            break;
        }
        if last.elapsed() > patience(live.tool) {
            return Err(format!("{} entries still differ, e.g. {:?}", left.len(), left[0]));
        }
        std::thread::sleep(Duration::from_millis(2));
    }
    eprintln!("  {count} changes in {:.2} s", applying.as_secs_f64());
    table.add(Row::Changes, live.tool, last.elapsed().as_secs_f64());
    table.add(Row::ChangesCpu, live.tool, live.cpu_s() - cpu_before);
    table.add(Row::ChangesWire, live.tool, (loopback_bytes() - wire_before) as f64 / 1e6);
    Ok(())
}

/// Changes one file at random; as many come as go.
fn one_change(
    src: &Path,
    files: &mut Vec<PathBuf>,
    rng: &mut fastrand::Rng,
    number: usize,
    touched: &mut BTreeSet<PathBuf>,
) -> std::io::Result<()> {
    let index = rng.usize(..files.len());
    let path = files[index].clone();
    let full = src.join(&path);
    let mut content = vec![0; rng.usize(1..4096)];
    rng.fill(&mut content);
    touched.insert(path.clone());
    match rng.u32(..100) {
        0..40 => fs::write(&full, content)?,
        40..55 => File::options().append(true).open(&full)?.write_all(&content[..1])?,
        55..70 => {
            let new = path.with_file_name(format!("new-{number}"));
            fs::write(src.join(&new), content)?;
            touched.insert(new.clone());
            files.push(new);
        }
        70..85 => {
            fs::remove_file(&full)?;
            files.swap_remove(index);
        }
        85..92 => {
            let new = path.with_file_name(format!("moved-{number}"));
            fs::rename(&full, src.join(&new))?;
            touched.insert(new.clone());
            files[index] = new;
        }
        _ => fs::set_permissions(
            &full,
            fs::Permissions::from_mode(rng.choice([0o600, 0o664]).unwrap_or(0o640)),
        )?,
    }
    Ok(())
}

/// Returns whether both are missing, or of the same kind, size, mode and time.
pub(super) fn same(tool: Tool, ours: &Path, theirs: &Path) -> bool {
    match (fs::symlink_metadata(ours), fs::symlink_metadata(theirs)) {
        (Ok(ours), Ok(theirs)) => {
            let timed = tool.keeps_directory_times() || !ours.is_dir();
            ours.mode() == theirs.mode()
                && (!timed || mtime(&ours) == mtime(&theirs))
                && (ours.is_dir() || ours.len() == theirs.len())
        }
        (Err(_), Err(_)) => true,
        _ => false,
    }
}

pub(super) fn mtime(metadata: &Metadata) -> (i64, i64) {
    (metadata.mtime(), metadata.mtime_nsec())
}
