//! A reconcile of equal trees without any position, beside an rsync that has nothing to change.

use super::*;

pub(super) fn reconcile(tool: Tool, ground: &Ground, table: &mut Table) -> Result<(), String> {
    let (src, dst) = (ground.src(), ground.new_dst()?);
    if tool == Tool::Rsync {
        let daemon = Daemon::start(&dst)?;
        let rsync = || {
            let mut from = src.clone().into_os_string();
            from.push("/");
            let mut command = Command::new("rsync");
            run_command(command.args(["-aHAX", "--delete"]).arg(from).arg(&daemon.url))
        };
        rsync()?;
        let (wire_before, started) = (loopback_bytes(), Instant::now());
        rsync()?;
        return add(tool, started, wire_before, table);
    }
    let mut live = initial_live(tool, ground, &dst, None)?;
    std::thread::sleep(CHECKPOINT_TIME);
    // The source begins a new epoch, and the sink has no position in it.
    let url = live.restart_mirror_source(&src)?;
    let (wire_before, started) = (loopback_bytes(), Instant::now());
    live.mirror_sink(&url, &dst)?;
    let is_done = || live.processes[1].log().contains("it is as its upstream's");
    await_condition(patience(tool), "the reconcile", is_done)?;
    add(tool, started, wire_before, table)?;
    table.add(Row::ReconcileCpu, tool, live.processes[1].usage().all_cpu_s());
    live.stop();
    check_equal(tool, &src, &dst, Depth::Metadata)
}

fn add(tool: Tool, started: Instant, wire_before: u64, table: &mut Table) -> Result<(), String> {
    table.add(Row::Reconcile, tool, started.elapsed().as_secs_f64());
    table.add(Row::ReconcileWire, tool, (loopback_bytes() - wire_before) as f64 / 1024.0);
    Ok(())
}
