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
        }
    }
}

/// What is held against what.
enum Bar {
    /// mirror at most so much.
    AtMost(Row, f64),
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
