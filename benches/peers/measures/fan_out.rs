//! What a source spends on many sinks, and on one of them that does not move.

use super::*;

pub(super) fn fan_out(_: &Ground, _: u64, _: &Options, table: &mut Table) -> Outcome {
    let ground = small_ground(SINKS, DIRECTORIES, FILES)?;
    let mut fan = Fan::start(&ground, 1)?;
    let mut one_cpu_s = Vec::new();
    for round in 0..ONE_SINK_ROUNDS {
        one_cpu_s.push(fan.change(round, None)?.0);
    }
    let one_cpu_s = percentile(&one_cpu_s, 0.5);
    drop(fan);
    let mut fan = Fan::start(&ground, SINKS)?;
    let (cpu_s, seconds) = fan.change(ONE_SINK_ROUNDS, None)?;
    let (stopped_cpu_s, stopped_seconds) = fan.change(ONE_SINK_ROUNDS + 1, Some(0))?;
    table.add(Row::FanOutOneCpu, Tool::Mirror, one_cpu_s);
    table.add(Row::FanOutCpu, Tool::Mirror, cpu_s / one_cpu_s);
    table.add(Row::FanOut, Tool::Mirror, seconds);
    table.add(Row::FanOutStoppedCpu, Tool::Mirror, stopped_cpu_s / cpu_s);
    table.add(Row::FanOutStopped, Tool::Mirror, stopped_seconds / seconds);
    Ok(())
}

/// A source with sinks of a small tree.
struct Fan {
    src: PathBuf,
    site: Site,
    replicas: Vec<(usize, PathBuf)>,
}

impl Fan {
    fn start(ground: &Ground, sinks: usize) -> Result<Fan, String> {
        let (src, dst) = (ground.src(), ground.new_dst()?);
        let mut site = Site::new(&src)?;
        let mut replicas = Vec::new();
        for number in 0..sinks {
            let root = dst.join(format!("replica-{number}"));
            fs::create_dir(&root).map_err(|error| error.to_string())?;
            let upstream = site.node(SOURCE).url();
            replicas.push((site.add(NodeRole::Sink, upstream, &root), root));
        }
        let nodes: Vec<usize> = replicas.iter().map(|(node, _)| *node).collect();
        site.synchronise(&nodes)?;
        site.settle()?;
        Ok(Fan { src, site, replicas })
    }

    /// Writes each file anew once. Returns CPU seconds of the source, and seconds until the last
    /// sink has the last change, but for the one that is `stopped` until then.
    fn change(&mut self, round: u64, stopped: Option<usize>) -> Result<(f64, f64), String> {
        let mut rng = fastrand::Rng::with_seed(round);
        let mut files = regular_files(&self.src)?;
        rng.shuffle(&mut files);
        if let Some(stopped) = stopped {
            self.site.pause(self.replicas[stopped].0, true);
        }
        let (busy_ns, started) = (self.site.usage(SOURCE).busy_ns, Instant::now());
        let mut content = vec![0; FILE_BYTES];
        for path in &files {
            rng.fill(&mut content);
            fs::write(self.src.join(path), &content).map_err(|error| error.to_string())?;
        }
        let last = format!("last-{round}");
        fs::write(self.src.join(&last), &last).map_err(|error| error.to_string())?;
        let moving = |number: &usize| Some(*number) != stopped;
        let mut left: Vec<usize> = (0..self.replicas.len()).filter(moving).collect();
        await_condition(PATIENCE, "the last change at all sinks", || {
            left.retain(|number| !self.replicas[*number].1.join(&last).exists());
            left.is_empty()
        })?;
        let seconds = started.elapsed().as_secs_f64();
        let cpu_s = (self.site.usage(SOURCE).busy_ns - busy_ns) as f64 / 1e9;
        if let Some(stopped) = stopped {
            self.site.pause(self.replicas[stopped].0, false);
        }
        for (_, root) in &self.replicas {
            settled_equal(Tool::Mirror, &self.src, root)?;
        }
        eprintln!("  {} sinks: {cpu_s:.3} s of CPU, {seconds:.2} s", self.replicas.len());
        check_equal(Tool::Mirror, &self.src, &self.replicas[0].1, Depth::Full)?;
        Ok((cpu_s, seconds))
    }
}

const SINKS: usize = 50;
/// A second each, beside which one round of many is long.
const ONE_SINK_ROUNDS: u64 = 5;
const DIRECTORIES: usize = 100;
const FILES: usize = 100;
