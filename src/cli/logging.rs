//! Logs on standard error.
//!
//! A log that nobody takes any more (a closed pipe, a full disk) is lost, and nothing else: it
//! must not end a role that does its work.

use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::time::SystemTime;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use super::args::{LogArgs, LogFormat};
use super::progress::ProgressLine;

/// Begins to log as the arguments say, or as `MIRROR_LOG` does, which knows more levels. Returns
/// the line that shows progress past it, if there is somebody to see it.
pub(super) fn start(args: &LogArgs) -> Option<ProgressLine> {
    let is_seen = args.log_format == LogFormat::Text && io::stderr().is_terminal();
    let progress = is_seen.then(ProgressLine::default);
    let lines = progress.clone();
    let level = match (args.verbose, args.quiet) {
        (0, 0) => "info",
        (0, 1) => "warn",
        (0, _) => "error",
        (1, _) => "debug",
        _ => "trace",
    };
    let filter = std::env::var("MIRROR_LOG").ok().filter(|filter| !filter.is_empty());
    let parsed = EnvFilter::try_new(filter.as_deref().unwrap_or(level));
    let (filter, error) = match parsed {
        Ok(filter) => (filter, None),
        Err(error) => (EnvFilter::new(level), Some(error)),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || Forgiving(Aside { progress: lines.clone(), to: io::stderr() }))
        // Its own words about a failed write would go the same way, by a call that panics.
        .log_internal_errors(false)
        .with_target(false);
    match args.log_format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Text => {
            let colours = io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
            let builder = builder.compact().with_ansi(colours);
            if std::env::var_os("JOURNAL_STREAM").is_some() {
                // The journal has its own clock.
                builder.without_time().init();
            } else {
                builder.with_timer(Seconds).init();
            }
        }
    }
    if let Some(error) = error {
        tracing::warn!("MIRROR_LOG is not a filter: {error}; write it like info or mirror=debug");
    }
    progress
}

/// Says the last thing, one line whatever a message or a name in it has in it.
pub(super) fn say(line: &str) {
    let line: String = line.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    // Who cannot be told has the exit status.
    let _ = writeln!(io::stderr(), "mirror: {line}");
}

/// A writer to which all is well.
struct Forgiving<W>(W);

impl<W: Write> Write for Forgiving<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self.0.write(bytes) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => Err(error),
            Ok(count) if count > 0 => Ok(count),
            _ => Ok(bytes.len()),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        let _ = self.0.flush();
        Ok(())
    }
}

/// A writer past the line that shows progress. The log writes each line at once.
struct Aside<W> {
    progress: Option<ProgressLine>,
    to: W,
}

impl<W: Write> Write for Aside<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match &self.progress {
            Some(progress) => progress.aside(|| self.to.write(bytes)),
            None => self.to.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

/// The time of day to the second, with the date: enough for people, short enough for a terminal.
struct Seconds;

impl FormatTime for Seconds {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        write!(writer, "{}", humantime::format_rfc3339_seconds(SystemTime::now()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_written_is_written_as_far_as_anybody_knows() {
        let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
        Forgiving(full).write_all(b"a line").unwrap();
        let (_, pipe) = io::pipe().unwrap();
        Forgiving(pipe).write_all(b"a line").unwrap();
        let mut taken = Vec::new();
        Forgiving(&mut taken).write_all(b"a line").unwrap();
        assert_eq!(taken, b"a line");
    }
}
