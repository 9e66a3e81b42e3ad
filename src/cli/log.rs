//! Where a running site's log goes: standard error, from a thread of its own, so that no reactor waits for a terminal.

use tracing_appender::non_blocking::{NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;

use crate::node::config::{Log, LogFormat};

/// Lines kept while standard error takes none; then lines are dropped, never waited for.
const LINES_MAX: usize = 10_000;

/// Logs until the guard is dropped, which writes what is left.
pub fn start(log: &Log) -> WorkerGuard {
    let builder = NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LINES_MAX);
    let (writer, guard) = builder.thread_name("log").finish(std::io::stderr());
    let filter = EnvFilter::builder().parse_lossy(&log.level);
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(writer).with_ansi(false);
    match log.format {
        LogFormat::Text => subscriber.with_target(false).init(),
        LogFormat::Json => subscriber.json().init(),
    }
    guard
}
