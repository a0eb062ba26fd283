//! A tree of a million files in 50,000 directories: rate, memory, restart.

use super::*;

pub fn million(table: &mut Table) -> Outcome {
    let entries = DIRECTORIES * (FILES + 1) + DIRECTORIES / 100 + 100_000;
    let blocks = DIRECTORIES * (1 + FILES.div_ceil(PART));
    let size = (blocks as u64 * 4096 + entries as u64 * 256) * 5 / 4 + (400 << 20);
    let ground = Ground::empty(size, size / 2, &["-N", &entries.to_string()])?;
    let src = ground.src();
    let io = |error: std::io::Error| error.to_string();
    fill(&src, 0..DIRECTORIES / 10, FILES, FILE_BYTES, PART).map_err(io)?;
    let small_own = own(&ground)?;
    let (site, _, small) = initial(&ground)?;
    drop(site);
    fill(&src, DIRECTORIES / 10..DIRECTORIES, FILES, FILE_BYTES, PART).map_err(io)?;
    let own = own(&ground)?;
    let (mut site, dst, seconds) = initial(&ground)?;
    table.add(Row::Million, Tool::Own, own);
    table.add(Row::Million, Tool::Mirror, seconds);
    // What the system writes back meanwhile slows both down, and comes with the greater one only.
    table.add(Row::MillionRate, Tool::Own, 10.0 * small_own / own);
    table.add(Row::MillionRate, Tool::Mirror, 10.0 * small / seconds);
    let mut peaks = peaks(&site);
    check_equal(Tool::Mirror, &src, &dst, Depth::Metadata)?;
    std::thread::sleep(CHECKPOINT_TIME);
    let started = Instant::now();
    site.terminate(&[SINK, SOURCE])?;
    table.add(Row::MillionStop, Tool::Mirror, started.elapsed().as_secs_f64());
    let started = Instant::now();
    site.start(SOURCE);
    site.start(SINK);
    site.wait_said(SINK, RESUMING)?;
    table.add(Row::MillionRestart, Tool::Mirror, started.elapsed().as_secs_f64());
    // It does follow again.
    Latencies::start(&src, &dst, "restarted")?.remove();
    let again = self::peaks(&site);
    eprintln!(
        "  peaks of source and sink: {:.1} and {:.1} MB, restarted {:.1} and {:.1}",
        peaks[0], peaks[1], again[0], again[1]
    );
    peaks.iter_mut().zip(again).for_each(|(peak, again)| *peak = peak.max(again));
    table.add(Row::MillionSource, Tool::Mirror, peaks[0]);
    table.add(Row::MillionSink, Tool::Mirror, peaks[1]);
    settled_equal(Tool::Mirror, &src, &dst)
}

/// Returns the seconds that one thread takes to build the tree.
fn own(ground: &Ground) -> Result<f64, String> {
    let expected = Expected::of(&ground.src()).map_err(|error| error.to_string())?;
    let dst = ground.new_dst()?;
    let started = Instant::now();
    build(&dst, &expected).map_err(|error| error.to_string())?;
    Ok(started.elapsed().as_secs_f64())
}

/// Returns a site with a sink whose first synchronisation has taken the seconds.
fn initial(ground: &Ground) -> Result<(Site, PathBuf, f64), String> {
    let dst = ground.new_dst()?;
    let mut site = Site::new(&ground.src())?;
    let upstream = site.node(SOURCE).url();
    let sink = site.add(NodeRole::Sink, upstream, &dst);
    let started = Instant::now();
    site.synchronise(&[sink])?;
    let seconds = started.elapsed().as_secs_f64();
    let [source_s, sink_s] = [SOURCE, sink].map(|node| site.usage(node).cpu_s);
    eprintln!("  {seconds:.2} s, CPU of the source {source_s:.2}, of the sink {sink_s:.2} s");
    Ok((site, dst, seconds))
}

/// Returns the most memory that source and sink have had, in megabytes.
fn peaks(site: &Site) -> [f64; 2] {
    [SOURCE, SINK].map(|node| megabytes(site.usage(node).resident_bytes_max))
}

const SINK: usize = SOURCE + 1;
const DIRECTORIES: usize = 50_000;
const FILES: usize = 20;
const FILE_BYTES: usize = 200;
/// One of so many files has a content: each takes a page of memory on both sides, and where the
/// system has to give pages up, what is measured is how fast it reads them again.
const PART: usize = 4;
