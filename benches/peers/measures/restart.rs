//! Starts after which little is different: of both ends, and of a source whose files moved.

use super::*;

/// Both ends restarted, some files changed meanwhile.
pub(super) fn both(ground: &Ground, run: u64, _: &Options, table: &mut Table) -> Outcome {
    let (src, dst) = (ground.src(), ground.new_dst()?);
    let (mut site, proxy, sink) = followed(&src, &dst)?;
    site.terminate(&[sink, SOURCE])?;
    let mut rng = fastrand::Rng::with_seed(run);
    let mut files = regular_files(&src)?;
    rng.shuffle(&mut files);
    files.retain(|path| {
        let metadata = fs::symlink_metadata(src.join(path));
        metadata.is_ok_and(|metadata| metadata.len() <= CHANGED_BYTES_MAX)
    });
    files.truncate(CHANGED);
    for (number, path) in files.iter().enumerate() {
        let content = format!("{run} {number}: {}\n", rng.u64(..));
        let file = File::options().append(true).open(src.join(path));
        let written = file.and_then(|mut file| file.write_all(content.as_bytes()));
        written.map_err(|error| format!("{}: {error}", path.display()))?;
    }
    let (bytes, started) = (total_bytes(&proxy), Instant::now());
    site.start(SOURCE);
    site.start(sink);
    await_condition(PATIENCE, "the files that changed", || {
        files.retain(|path| !same(Tool::Mirror, &src.join(path), &dst.join(path)));
        files.is_empty()
    })?;
    table.add(Row::RestartBoth, Tool::Mirror, started.elapsed().as_secs_f64());
    settled_equal(Tool::Mirror, &src, &dst)?;
    if site.count_said(sink, RESUMING) == 0 {
        return Err("the replica did not go on by its position".to_owned());
    }
    let kib = (total_bytes(&proxy) - bytes) as f64 / 1024.0;
    table.add(Row::RestartBothWire, Tool::Mirror, kib);
    Ok(())
}

/// Files that were moved one by one while the source was down.
pub(super) fn moved(ground: &Ground, _: u64, _: &Options, table: &mut Table) -> Outcome {
    let (src, dst) = (ground.src(), ground.new_dst()?);
    let (before, after) = ("moved-from", "moved-to");
    let io = |error: std::io::Error| error.to_string();
    fill(&src.join(before), 0..10, MOVED / 10, 4096, 1).map_err(io)?;
    let (mut site, proxy, _) = followed(&src, &dst)?;
    let inodes = |root: &Path| {
        let mut inodes = BTreeMap::new();
        for path in regular_files(root)? {
            let metadata = fs::symlink_metadata(root.join(&path)).map_err(io)?;
            inodes.insert(path, metadata.ino());
        }
        Ok::<_, String>(inodes)
    };
    let inodes_before = inodes(&dst.join(before))?;
    site.terminate(&[SOURCE])?;
    for path in inodes_before.keys() {
        let to = src.join(after).join(path);
        fs::create_dir_all(to.parent().ok_or("a file has a directory")?).map_err(io)?;
        fs::rename(src.join(before).join(path), to).map_err(io)?;
    }
    fs::remove_dir_all(src.join(before)).map_err(io)?;
    let (bytes, started) = (total_bytes(&proxy), Instant::now());
    site.start(SOURCE);
    await_condition(PATIENCE, "the files that moved", || {
        !dst.join(before).exists() && count(&dst.join(after), false) == MOVED + 11
    })?;
    table.add(Row::Moved, Tool::Mirror, started.elapsed().as_secs_f64());
    settled_equal(Tool::Mirror, &src, &dst)?;
    let each = (total_bytes(&proxy) - bytes) as f64 / MOVED as f64;
    table.add(Row::MovedWire, Tool::Mirror, each);
    let inodes_after = inodes(&dst.join(after))?;
    let is_new = |(path, inode): &(&PathBuf, &u64)| inodes_before.get(*path) != Some(*inode);
    let new = inodes_after.iter().filter(is_new).count();
    table.add(Row::MovedNew, Tool::Mirror, new as f64);
    fs::remove_dir_all(src.join(after)).map_err(io)?;
    settled_equal(Tool::Mirror, &src, &dst)
}

/// Starts a source and a sink with a proxy between, and waits until files are trusted by size and
/// time and a checkpoint says so.
fn followed(src: &Path, dst: &Path) -> Result<(Site, Proxy, usize), String> {
    let mut site = Site::new(src)?;
    let proxy = Proxy::start(site.node(SOURCE).port);
    let sink = site.add(NodeRole::Sink, format!("tcp://127.0.0.1:{}", proxy.port()), dst);
    site.synchronise(&[sink])?;
    std::thread::sleep(CHECKPOINT_TIME);
    Ok((site, proxy, sink))
}

const CHANGED: usize = 100;

/// Files that change are no larger, as nine in ten of a kernel's are: what else travels besides
/// their contents is measured, and one file of megabytes among them would hide it.
const CHANGED_BYTES_MAX: u64 = 32 << 10;

const MOVED: usize = 10_000;
