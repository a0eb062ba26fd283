//! The line that a terminal sees while a whole tree is received.
//!
//! It is there or not, and whatever else goes to standard error goes past it: log lines are
//! written by [`ProgressLine::aside`].

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytesize::ByteSize;
use indicatif::{HumanCount, ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::role::Received;

/// Most times a second that the line is drawn.
const DRAWS_PER_SECOND_MAX: u8 = 10;

/// The line; clones are of the same one.
#[derive(Clone, Default)]
pub(super) struct ProgressLine(Arc<Mutex<Option<Shown>>>);

struct Shown {
    bar: ProgressBar,
    since: Instant,
}

impl ProgressLine {
    /// Shows how far the receiving is, or nothing if nothing is received.
    pub(super) fn show(&self, received: Option<Received>) {
        let mut line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match received {
            Some(received) => {
                let Shown { bar, since } = line.get_or_insert_with(Shown::new);
                bar.set_message(message(received, since.elapsed().as_secs_f64()));
            }
            None => {
                if let Some(Shown { bar, .. }) = line.take() {
                    bar.finish_and_clear();
                }
            }
        }
    }

    /// Calls what writes to standard error while the line is out of its way.
    pub(super) fn aside<R>(&self, write: impl FnOnce() -> R) -> R {
        let line = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &*line {
            Some(Shown { bar, .. }) => bar.suspend(write),
            None => write(),
        }
    }
}

impl Shown {
    fn new() -> Shown {
        let target = ProgressDrawTarget::stderr_with_hz(DRAWS_PER_SECOND_MAX);
        let bar = ProgressBar::with_draw_target(None, target);
        // Cut where the terminal ends: a second line would stay behind.
        let style = ProgressStyle::with_template("{wide_msg}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
        Shown { bar, since: Instant::now() }
    }
}

/// There is no total: the source finds out what there is while it sends.
fn message(received: Received, seconds: f64) -> String {
    let rate = |count: u64| (count as f64 / seconds.max(1.0)) as u64;
    let Received { entries, bytes } = received;
    format!(
        "receiving: {} entries ({}/s), {} ({}/s)",
        HumanCount(entries),
        HumanCount(rate(entries)),
        ByteSize(bytes),
        ByteSize(rate(bytes))
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_says_how_many_and_how_fast() {
        let received = Received { entries: 12_345, bytes: 3 << 20 };
        assert_eq!(
            message(received, 10.0),
            "receiving: 12,345 entries (1,234/s), 3.0 MiB (307.2 KiB/s)"
        );
        // Not a rate of millions from the first moment.
        assert!(message(received, 0.0).contains("(12,345/s)"));
    }
}
