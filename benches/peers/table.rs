//! Results, their medians, and the bars they are held against.

use std::collections::BTreeMap;

use crate::tools::Tool;

/// Rows of the table, in its order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Row {
    Initial,
    InitialCpu,
    InitialWire,
    Reconcile,
    ReconcileCpu,
    ReconcileWire,
    MemorySource,
    MemorySourcePeak,
    MemorySink,
    MemorySinkPeak,
    MemorySourceTenfold,
    MemorySinkTenfold,
    IdleCpu,
    IdleWakeups,
    LatencyP50,
    LatencyP99,
    Changes,
    ChangesCpu,
    ChangesWire,
    Rename,
    RenameWire,
    BigSeconds,
    BigP50,
    BigP99,
    Reconnect,
    ReconnectWire,
    ReconnectRestarted,
    Relay1P50,
    Relay1P99,
    Relay2P50,
    Relay2P99,
    RestartBoth,
    RestartBothWire,
    Moved,
    MovedWire,
    MovedNew,
    FanOutOneCpu,
    FanOutCpu,
    FanOut,
    FanOutStoppedCpu,
    FanOutStopped,
    Offline,
    OfflineWire,
    OfflineMemory,
    OfflinePeak,
    Million,
    MillionRate,
    MillionSource,
    MillionSink,
    MillionStop,
    MillionRestart,
}

impl Row {
    fn title(self) -> &'static str {
        match self {
            Row::Initial => "initial sync, s",
            Row::InitialCpu => "  CPU, s",
            Row::InitialWire => "  on the wire, MB",
            Row::Reconcile => "reconcile of equal trees, s",
            Row::ReconcileCpu => "  CPU of the sink, s",
            Row::ReconcileWire => "  on the wire, KiB",
            Row::MemorySource => "memory of the source, MB",
            Row::MemorySourcePeak => "  peak",
            Row::MemorySink => "memory of the sink, MB",
            Row::MemorySinkPeak => "  peak",
            Row::MemorySourceTenfold => "source, 10× the files, MB",
            Row::MemorySinkTenfold => "sink, 10× the files, MB",
            Row::IdleCpu => "idle, % CPU",
            Row::IdleWakeups => "  wake-ups per s",
            Row::LatencyP50 => "close to presence, p50, ms",
            Row::LatencyP99 => "  p99, ms",
            Row::Changes => "equal after last change, s",
            Row::ChangesCpu => "  CPU, s",
            Row::ChangesWire => "  on the wire, MB",
            Row::Rename => "rename of a directory, ms",
            Row::RenameWire => "  on the wire, KiB",
            Row::BigSeconds => "big file moved in, s",
            Row::BigP50 => "  small files meanwhile, p50, ms",
            Row::BigP99 => "  p99, ms",
            Row::Reconnect => "resumed after connect, ms",
            Row::ReconnectWire => "  on the wire, KiB",
            Row::ReconnectRestarted => "  sink restarted, ms",
            Row::Relay1P50 => "through a relay, p50, ms",
            Row::Relay1P99 => "  p99, ms",
            Row::Relay2P50 => "through two relays, p50, ms",
            Row::Relay2P99 => "  p99, ms",
            Row::RestartBoth => "100 changes, both restarted, s",
            Row::RestartBothWire => "  on the wire, KiB",
            Row::Moved => "10,000 moves, source restarted, s",
            Row::MovedWire => "  on the wire, bytes each",
            Row::MovedNew => "  files made anew",
            Row::FanOutOneCpu => "10,000 changes, CPU of source, s",
            Row::FanOutCpu => "  50 sinks, × CPU of one",
            Row::FanOut => "  50 sinks, s",
            Row::FanOutStoppedCpu => "  one of them stopped, × CPU",
            Row::FanOutStopped => "  one of them stopped, × time",
            Row::Offline => "catch-up of 10,000 files, s",
            Row::OfflineWire => "  bytes on the wire ÷ of contents",
            Row::OfflineMemory => "  more memory of the source, MB",
            Row::OfflinePeak => "  more peak with the catch-up, MB",
            Row::Million => "initial sync, 10⁶ files, s",
            Row::MillionRate => "  rate ÷ that of 10⁵ files",
            Row::MillionSource => "  peak of the source, MB",
            Row::MillionSink => "  peak of the sink, MB",
            Row::MillionStop => "  end of both, s",
            Row::MillionRestart => "  restart of both, s",
        }
    }
}

/// What is held against what.
enum Bar {
    /// mirror at most so much.
    AtMost(Row, f64),
    /// mirror at least so many times the other's.
    AtLeast(Row, Tool, f64),
    /// mirror at most so many times the other's.
    Times(Row, Tool, f64),
    /// mirror's rate at least so much of the other's.
    Rate(Row, Tool, f64),
    /// The first row within a tenth of the second.
    Within(Row, Row),
}

pub struct Table {
    generated: bool,
    values: BTreeMap<(Row, Tool), Vec<f64>>,
    failures: Vec<(Tool, String)>,
}

impl Table {
    /// The bars for the initial sync depend on whether the tree was generated.
    pub fn new(generated: bool) -> Table {
        Table { generated, values: BTreeMap::new(), failures: Vec::new() }
    }

    pub fn add(&mut self, row: Row, tool: Tool, value: f64) {
        self.values.entry((row, tool)).or_default().push(value);
    }

    pub fn fail(&mut self, tool: Tool, error: &str) {
        eprintln!("FAILED: {}: {error}", tool.name());
        self.failures.push((tool, error.to_owned()));
    }

    fn median(&self, row: Row, tool: Tool) -> Option<f64> {
        let mut values = self.values.get(&(row, tool))?.clone();
        values.sort_by(f64::total_cmp);
        let middle = values.len() / 2;
        match values.len() % 2 {
            1 => Some(values[middle]),
            _ => Some((values[middle - 1] + values[middle]) / 2.0),
        }
    }

    /// Prints medians, ratios and bars; returns whether all bars that were measured hold.
    pub fn print(&self) -> bool {
        print!("\n{:<34}", "median");
        for tool in Tool::ALL {
            print!("{:>11}", tool.name());
        }
        println!("   mirror ÷ rsync, tar, lsyncd");
        let mut rows: Vec<Row> = self.values.keys().map(|&(row, _)| row).collect();
        rows.dedup();
        for row in rows {
            print!("{:<34}", row.title());
            for tool in Tool::ALL {
                match self.median(row, tool) {
                    Some(value) => print!("{:>11}", number(value)),
                    None => print!("{:>11}", "–"),
                }
            }
            print!("   ");
            for other in [Tool::Rsync, Tool::Tar, Tool::Lsyncd] {
                match (self.median(row, Tool::Mirror), self.median(row, other)) {
                    (Some(mirror), Some(other)) if other > 0.0 => {
                        print!("{:>8}", format!("{:.3}×", mirror / other));
                    }
                    _ => print!("{:>8}", "–"),
                }
            }
            println!();
        }
        println!();
        // Others' failures are told, but are not ours.
        let mut passed = self.failures.iter().all(|&(tool, _)| tool != Tool::Mirror);
        for bar in self.bars() {
            let Some((text, holds)) = self.judge(&bar) else { continue };
            println!("{}  {text}", if holds { "pass" } else { "FAIL" });
            passed &= holds;
        }
        for (tool, error) in &self.failures {
            println!(
                "{}  {}: {error}",
                if *tool == Tool::Mirror { "FAIL" } else { "note" },
                tool.name()
            );
        }
        passed
    }

    fn bars(&self) -> Vec<Bar> {
        let mut bars = match self.generated {
            true => vec![
                Bar::Times(Row::Initial, Tool::Rsync, 0.65),
                Bar::Rate(Row::Initial, Tool::Own, 0.75),
            ],
            false => vec![
                Bar::Times(Row::Initial, Tool::Rsync, 0.5),
                Bar::Times(Row::Initial, Tool::Tar, 0.85),
            ],
        };
        bars.extend([
            Bar::Times(Row::Reconcile, Tool::Rsync, 0.25),
            Bar::AtMost(Row::ReconcileWire, 64.0),
            Bar::AtMost(Row::LatencyP50, 0.5),
            Bar::AtMost(Row::LatencyP99, 2.0),
            Bar::AtMost(Row::Changes, 2.0),
            Bar::AtMost(Row::Rename, 50.0),
            Bar::AtMost(Row::RenameWire, 64.0),
            Bar::AtMost(Row::BigP99, 50.0),
            Bar::AtMost(Row::MemorySource, 24.0),
            Bar::AtMost(Row::MemorySink, 16.0),
            Bar::Within(Row::MemorySourceTenfold, Row::MemorySource),
            Bar::Within(Row::MemorySinkTenfold, Row::MemorySink),
            Bar::AtMost(Row::IdleCpu, 0.1),
            Bar::AtMost(Row::Reconnect, 30.0),
            Bar::AtMost(Row::ReconnectWire, 4.0),
            Bar::AtMost(Row::ReconnectRestarted, 30.0),
            Bar::AtMost(Row::Relay1P50, 1.0),
            Bar::AtMost(Row::Relay2P50, 1.5),
            Bar::AtMost(Row::RestartBoth, 0.5),
            Bar::AtMost(Row::RestartBothWire, 1024.0),
            // Both paths twice, attributes, a digest; no content, which has 4 KiB.
            Bar::AtMost(Row::MovedWire, 400.0),
            Bar::AtMost(Row::MovedNew, 0.0),
            Bar::AtMost(Row::FanOutCpu, 5.0),
            Bar::AtMost(Row::FanOutStoppedCpu, 1.1),
            Bar::AtMost(Row::FanOutStopped, 1.1),
            Bar::AtMost(Row::OfflineWire, 1.25),
            // A tenth of what the records of a million changes would take.
            Bar::AtMost(Row::OfflineMemory, 4.0),
            Bar::AtLeast(Row::MillionRate, Tool::Own, 0.8),
            Bar::AtMost(Row::MillionSource, 96.0),
            Bar::AtMost(Row::MillionSink, 32.0),
            Bar::AtMost(Row::MillionRestart, 8.0),
        ]);
        bars
    }

    /// Returns a line about a bar and whether it holds, `None` when it was not measured.
    fn judge(&self, bar: &Bar) -> Option<(String, bool)> {
        match *bar {
            Bar::AtMost(row, limit) => {
                let value = self.median(row, Tool::Mirror)?;
                let text = format!("{}: {} ≤ {limit}", title(row), number(value));
                Some((text, value <= limit))
            }
            Bar::AtLeast(row, other, limit) => {
                let ratio = self.median(row, Tool::Mirror)? / self.median(row, other)?;
                let text = format!("{}: {ratio:.3} × {} ≥ {limit}", title(row), other.name());
                Some((text, ratio >= limit))
            }
            Bar::Times(row, other, limit) => {
                let ratio = self.median(row, Tool::Mirror)? / self.median(row, other)?;
                let text = format!("{}: {ratio:.3} × {} ≤ {limit}", title(row), other.name());
                Some((text, ratio <= limit))
            }
            Bar::Rate(row, other, limit) => {
                let rate = self.median(row, other)? / self.median(row, Tool::Mirror)?;
                let text = format!("{}: rate {rate:.3} of {} ≥ {limit}", title(row), other.name());
                Some((text, rate >= limit))
            }
            Bar::Within(row, base) => {
                let ratio = self.median(row, Tool::Mirror)? / self.median(base, Tool::Mirror)?;
                let text = format!("{}: {ratio:.3} × the simple ≤ 1.1", title(row));
                Some((text, ratio <= 1.1))
            }
        }
    }
}

/// Returns a row's title on its own: those set in need the one above.
fn title(row: Row) -> String {
    let above = match row {
        Row::LatencyP99 => "close to presence,",
        Row::ReconcileWire => "reconcile of equal trees,",
        Row::RenameWire => "rename of a directory,",
        Row::BigP99 => "big file, small files meanwhile,",
        Row::ReconnectWire | Row::ReconnectRestarted => "reconnect,",
        Row::RestartBothWire => "100 changes, both restarted,",
        Row::MovedWire | Row::MovedNew => "10,000 moves,",
        Row::FanOutCpu | Row::FanOutStoppedCpu | Row::FanOutStopped => "10,000 changes,",
        Row::OfflineWire | Row::OfflineMemory => "catch-up,",
        Row::MillionRate | Row::MillionSource | Row::MillionSink | Row::MillionRestart => {
            "a million files,"
        }
        _ => "",
    };
    format!("{above} {}", row.title().trim()).trim().to_owned()
}

fn number(value: f64) -> String {
    match value {
        value if value >= 1000.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        value => format!("{value:.3}"),
    }
}
