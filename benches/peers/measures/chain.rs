//! Latency through relays.

use super::*;

pub(super) fn chain(_: &Ground, run: u64, options: &Options, table: &mut Table) -> Outcome {
    let ground = small_ground(4, 10, 100)?;
    let (src, dst) = (ground.src(), ground.new_dst()?);
    let mut site = Site::new(&src)?;
    let source = site.node(SOURCE).url();
    let mut place = |name: &str, role, upstream: &str| {
        let root = dst.join(name);
        fs::create_dir(&root).map_err(|error| error.to_string())?;
        let node = site.add(role, upstream.to_owned(), &root);
        site.synchronise(&[node])?;
        Ok::<_, String>((root, site.node(node).url()))
    };
    let (_, first) = place("first", NodeRole::Relay, &source)?;
    let (near, _) = place("near", NodeRole::Sink, &first)?;
    let (_, second) = place("second", NodeRole::Relay, &first)?;
    let (far, _) = place("far", NodeRole::Sink, &second)?;
    let rows =
        [(near, Row::Relay1P50, Row::Relay1P99, 1), (far, Row::Relay2P50, Row::Relay2P99, 2)];
    for (replica, p50, p99, relays) in rows {
        let latencies = Latencies::start(&src, &replica, &format!("through-{relays}-{run}"))?;
        let times = latencies.measure(|done| done >= options.latencies)?;
        table.add(p50, Tool::Mirror, percentile(&times, 0.50));
        table.add(p99, Tool::Mirror, percentile(&times, 0.99));
        latencies.remove();
        settled_equal(Tool::Mirror, &src, &replica)?;
    }
    Ok(())
}
