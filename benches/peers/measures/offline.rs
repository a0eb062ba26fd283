//! A sink that is away while the same files change again and again.

use super::*;

pub(super) fn offline(_: &Ground, run: u64, options: &Options, table: &mut Table) -> Outcome {
    let ground = small_ground(1, DIRECTORIES, FILES)?;
    let (src, dst) = (ground.src(), ground.new_dst()?);
    let mut site = Site::new(&src)?;
    let proxy = Proxy::start(site.node(SOURCE).port);
    let sink = site.add(NodeRole::Sink, format!("tcp://127.0.0.1:{}", proxy.port()), &dst);
    site.synchronise(&[sink])?;
    let files = regular_files(&src)?;
    let mut rng = fastrand::Rng::with_seed(run);
    let mut content = vec![0; FILE_BYTES];
    let mut change = |number: usize| {
        rng.fill(&mut content[..64]);
        let path = src.join(&files[number % files.len()]);
        fs::write(path, &content).map_err(|error| error.to_string())
    };
    // Whatever memory a time with changes takes, the one with a sink has taken as well.
    (0..files.len()).try_for_each(&mut change)?;
    settled_equal(Tool::Mirror, &src, &dst)?;
    std::thread::sleep(CHECKPOINT_TIME);
    let before = site.usage(SOURCE);
    site.terminate(&[sink])?;
    let started = Instant::now();
    (0..options.offline).try_for_each(&mut change)?;
    eprintln!("  {} changes in {:.1} s", options.offline, started.elapsed().as_secs_f64());
    site.settle()?;
    let after = site.usage(SOURCE);
    eprintln!(
        "  source: {:.1} MB, then {:.1}; at most {:.1}, then {:.1}",
        megabytes(before.resident_bytes),
        megabytes(after.resident_bytes),
        megabytes(before.resident_bytes_max),
        megabytes(after.resident_bytes_max),
    );
    let more = |after: u64, before: u64| megabytes(after) - megabytes(before);
    let resident = more(after.resident_bytes, before.resident_bytes);
    table.add(Row::OfflineMemory, Tool::Mirror, resident);
    let (bytes, started) = (total_bytes(&proxy), Instant::now());
    site.start(sink);
    let mut left = files.clone();
    await_condition(PATIENCE, "the files that changed", || {
        left.retain(|path| !same(Tool::Mirror, &src.join(path), &dst.join(path)));
        left.is_empty()
    })?;
    table.add(Row::Offline, Tool::Mirror, started.elapsed().as_secs_f64());
    check_equal(Tool::Mirror, &src, &dst, Depth::Full)?;
    let contents = files.len().min(options.offline) * FILE_BYTES;
    let times = (total_bytes(&proxy) - bytes) as f64 / contents as f64;
    table.add(Row::OfflineWire, Tool::Mirror, times);
    let peak = more(site.usage(SOURCE).resident_bytes_max, before.resident_bytes_max);
    table.add(Row::OfflinePeak, Tool::Mirror, peak);
    if site.count_said(sink, RESUMING) == 0 {
        return Err("the replica did not go on by its position".to_owned());
    }
    Ok(())
}

const DIRECTORIES: usize = 100;
const FILES: usize = 100;
