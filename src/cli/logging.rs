//! Logs on standard error.

use std::fmt;
use std::io::IsTerminal;
use std::time::SystemTime;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::time::FormatTime;

use super::args::{LogArgs, LogFormat};

/// Begins to log as the arguments say, or as `MIRROR_LOG` does, which knows more levels.
pub(super) fn start(args: &LogArgs) {
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
        .with_writer(std::io::stderr)
        .with_target(false);
    match args.log_format {
        LogFormat::Json => builder.json().flatten_event(true).init(),
        LogFormat::Text => {
            let colours = std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none();
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
}

/// The time of day to the second, with the date: enough for people, short enough for a terminal.
struct Seconds;

impl FormatTime for Seconds {
    fn format_time(&self, writer: &mut Writer<'_>) -> fmt::Result {
        write!(writer, "{}", humantime::format_rfc3339_seconds(SystemTime::now()))
    }
}
