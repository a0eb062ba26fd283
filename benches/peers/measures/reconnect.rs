//! Going on after a cut while nothing changed: how long, and how many bytes.

use super::*;

pub(super) fn reconnect(ground: &Ground, _: u64, _: &Options, table: &mut Table) -> Outcome {
    let dst = ground.new_dst()?;
    let mut site = Site::new(&ground.src())?;
    let proxy = Proxy::start(site.node(SOURCE).port);
    let sink = site.add(NodeRole::Sink, format!("tcp://127.0.0.1:{}", proxy.port()), &dst);
    site.synchronise(&[sink])?;
    std::thread::sleep(CHECKPOINT_TIME);
    // From when the proxy accepted the connection, to when the sink is seen to have said so.
    let resumed_after = |site: &Site, connections: u64, said: usize| {
        let is_resumed =
            || proxy.connections() > connections && site.count_said(sink, RESUMING) > said;
        await_condition(PATIENCE, "the replica to go on", is_resumed)?;
        let connected = proxy.accepted().ok_or("nobody connected")?;
        Ok::<_, String>(connected.elapsed().as_secs_f64() * 1e3)
    };
    for _ in 0..CUTS {
        let (connections, bytes) = (proxy.connections(), total_bytes(&proxy));
        let said = site.count_said(sink, RESUMING);
        proxy.cut();
        let ms = resumed_after(&site, connections, said)?;
        table.add(Row::Reconnect, Tool::Mirror, ms);
        // What comes after, heartbeats among it.
        std::thread::sleep(Duration::from_secs(1));
        let kib = (total_bytes(&proxy) - bytes) as f64 / 1024.0;
        table.add(Row::ReconnectWire, Tool::Mirror, kib);
    }
    for _ in 0..CUTS {
        site.terminate(&[sink])?;
        let connections = proxy.connections();
        site.start(sink);
        let ms = resumed_after(&site, connections, 0)?;
        table.add(Row::ReconnectRestarted, Tool::Mirror, ms);
    }
    // It does follow again.
    Latencies::start(&ground.src(), &dst, "reconnected")?.remove();
    settled_equal(Tool::Mirror, &ground.src(), &dst)
}

const CUTS: usize = 5;
