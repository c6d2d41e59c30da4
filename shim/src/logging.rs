//! Where the shim's log lines go: its standard error, which containerd's fifo or a bounded file in the bundle backs.
//!
//! A line that cannot be written at once is dropped: a log must never block or kill a pod.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use log::{LevelFilter, Log, Metadata, Record};

/// The most bytes a shim writes to its log.
const LIMIT: u64 = 1 << 20;

struct Logger {
    written: AtomicU64,
}

static LOGGER: Logger = Logger { written: AtomicU64::new(0) };

/// Sends log lines up to `level` to standard error from now on.
pub fn start(level: LevelFilter) {
    if log::set_logger(&LOGGER).is_ok() {
        log::set_max_level(level);
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // ttrpc logs every closed connection as an error; those are not errors of the pod.
        metadata.target().starts_with("hull") || metadata.level() <= log::max_level().min(LevelFilter::Warn)
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let text: String = record.args().to_string().chars().map(printable).collect();
        let level = record.level().as_str().to_ascii_lowercase();
        let line =
            format!("time=\"{}\" level={level} msg={text:?}\n", crate::time::rfc3339(SystemTime::now()));
        let length = u64::try_from(line.len()).unwrap_or(LIMIT);
        if self.written.fetch_add(length, Ordering::Relaxed) + length <= LIMIT {
            // Nobody to tell: the log is where errors are told.
            let _ = io::stderr().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// Text from guests and clients may hold terminal escapes.
fn printable(character: char) -> char {
    if character.is_control() { ' ' } else { character }
}
