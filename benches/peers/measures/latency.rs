//! Latency, of an idle system and beside a big file.

use super::*;

/// Small files written at the source, and a thread that sees them arrive.
pub(super) struct Latencies {
    src: PathBuf,
    arrivals: Receiver<(OsString, Instant)>,
}

impl Latencies {
    pub(super) fn start(src: &Path, dst: &Path, name: &str) -> Result<Latencies, String> {
        let src = src.join(name);
        fs::create_dir(&src).map_err(|error| error.to_string())?;
        fs::write(src.join("first"), "first").map_err(|error| error.to_string())?;
        let replica = dst.join(name);
        await_condition(Duration::from_secs(60), "the directory to write into", || {
            replica.join("first").exists()
        })?;
        let mut inotify = Inotify::init().map_err(|error| error.to_string())?;
        let mask = WatchMask::MOVED_TO | WatchMask::CREATE | WatchMask::DELETE_SELF;
        inotify.watches().add(&replica, mask).map_err(|error| error.to_string())?;
        let (sender, arrivals) = channel();
        std::thread::spawn(move || {
            let mut buffer = [0; 16384];
            while let Ok(events) = inotify.read_events_blocking(&mut buffer) {
                let now = Instant::now();
                for event in events {
                    let sent = match event.name {
                        Some(name) => sender.send((name.to_owned(), now)),
                        None => return,
                    };
                    if sent.is_err() {
                        return;
                    }
                }
            }
        });
        Ok(Latencies { src, arrivals })
    }

    /// Writes files one after the other until `enough`; returns milliseconds from just before
    /// each close until it was seen.
    pub(super) fn measure(
        &self,
        mut enough: impl FnMut(usize) -> bool,
    ) -> Result<Vec<f64>, String> {
        let mut rng = fastrand::Rng::with_seed(4);
        let mut milliseconds = Vec::new();
        let mut content = vec![0; 4096];
        while !enough(milliseconds.len()) {
            rng.fill(&mut content);
            let name = OsString::from(format!("file-{}", milliseconds.len()));
            let mut file = File::create(self.src.join(&name)).map_err(|error| error.to_string())?;
            file.write_all(&content).map_err(|error| error.to_string())?;
            let closing = Instant::now();
            drop(file);
            loop {
                match self.arrivals.recv_timeout(Duration::from_secs(30)) {
                    Ok((arrived, at)) if arrived == name => {
                        milliseconds.push((at - closing).as_secs_f64() * 1e3);
                        break;
                    }
                    Ok(_) => {}
                    Err(_) => return Err("a small file did not arrive within 30 s".to_owned()),
                }
            }
            std::thread::sleep(Duration::from_micros(rng.u64(500..1500)));
        }
        Ok(milliseconds)
    }

    /// Removes the files, which ends the thread as well once the replica follows.
    pub(super) fn remove(self) {
        let _ = fs::remove_dir_all(&self.src);
    }
}

pub(super) fn percentile(values: &[f64], part: f64) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    let index = ((values.len() as f64 * part).ceil() as usize).clamp(1, values.len().max(1));
    values.get(index - 1).copied().unwrap_or(f64::NAN)
}

pub(super) fn big(
    run: u64,
    ground: &Ground,
    dst: &Path,
    options: &Options,
    table: &mut Table,
) -> Result<(), String> {
    let latencies = Latencies::start(&ground.src(), dst, &format!("beside-{run}"))?;
    // Written outside and moved in: what is measured is the transfer, not the writing.
    let outside = ground.outside().join("big");
    let mut rng = fastrand::Rng::with_seed(run);
    let mut chunk = vec![0; 1 << 20];
    let mut file = File::create(&outside).map_err(|error| error.to_string())?;
    for _ in 0..options.big_bytes >> 20 {
        rng.fill(&mut chunk[..4096]);
        file.write_all(&chunk).map_err(|error| format!("writing the big file: {error}"))?;
        // Zeros would be sent as what they are; a rotation keeps the rest from repeating.
        chunk.rotate_right(4096);
    }
    drop(file);
    let name = format!("big-{run}");
    let (src, replica) = (ground.src().join(&name), dst.join(&name));
    let started = Instant::now();
    fs::rename(&outside, &src).map_err(|error| error.to_string())?;
    let mut arrived = None;
    let times = latencies.measure(|_| {
        if arrived.is_none() && fs::metadata(&replica).is_ok_and(|it| it.len() == options.big_bytes)
        {
            arrived = Some(started.elapsed());
        }
        arrived.is_some() || started.elapsed() > Duration::from_secs(120)
    })?;
    let Some(arrived) = arrived else {
        return Err("the big file did not arrive within 120 s".to_owned());
    };
    eprintln!("  {} small files beside {} MiB", times.len(), options.big_bytes >> 20);
    table.add(Row::BigSeconds, Tool::Mirror, arrived.as_secs_f64());
    if !times.is_empty() {
        table.add(Row::BigP50, Tool::Mirror, percentile(&times, 0.50));
        table.add(Row::BigP99, Tool::Mirror, percentile(&times, 0.99));
    }
    latencies.remove();
    fs::remove_file(&src).map_err(|error| error.to_string())?;
    await_condition(Duration::from_secs(60), "the big file's removal", || !replica.exists())
}
