//! Where the shim's log lines go: its standard error, which containerd's fifo or a bounded file in the bundle backs.
//!
//! A line is words for people (`msg`) and the names to search by: the pod's on each, the container's and exec's where it is
//! about one, and the program's (`of`) where it is not the shim that speaks. What a container is told (arguments, environment,
//! input) is never logged. A line that cannot be written at once is dropped: a log must never block or kill a pod.

use std::io::{self, Write};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::SystemTime;

use log::kv::{Error, Key, Value, VisitSource};
use log::{LevelFilter, Log, Metadata, Record};

/// The most bytes a shim writes to its log.
const LIMIT: u64 = 1 << 20;

struct Logger {
    /// ` namespace="..." pod="..."`, on each line.
    pod: String,
    written: AtomicU64,
}

/// Sends log lines up to `level` to standard error from now on, each with the pod's names.
pub fn start(level: LevelFilter, namespace: &str, pod: &str) {
    let mut names = String::new();
    append(&mut names, "namespace", namespace);
    append(&mut names, "pod", pod);
    if log::set_boxed_logger(Box::new(Logger { pod: names, written: AtomicU64::new(0) })).is_ok() {
        log::set_max_level(level);
    }
}

impl Logger {
    fn line(&self, record: &Record<'_>, at: SystemTime) -> String {
        let level = record.level().as_str().to_ascii_lowercase();
        let mut line = format!("time=\"{}\" level={level}", crate::time::rfc3339(at));
        append(&mut line, "msg", &record.args().to_string());
        line.push_str(&self.pod);
        // Only a visitor fails, and ours does not.
        let _ = record.key_values().visit(&mut Names(&mut line));
        line.push('\n');
        line
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
        let line = self.line(record, SystemTime::now());
        let length = u64::try_from(line.len()).unwrap_or(LIMIT);
        if self.written.fetch_add(length, Ordering::Relaxed) + length <= LIMIT {
            // Nobody to tell: the log is where errors are told.
            let _ = io::stderr().write_all(line.as_bytes());
        }
    }

    fn flush(&self) {}
}

/// Appends what a record is about to its line.
struct Names<'a>(&'a mut String);

impl<'kvs> VisitSource<'kvs> for Names<'_> {
    fn visit_pair(&mut self, key: Key<'kvs>, value: Value<'kvs>) -> Result<(), Error> {
        let value = value.to_string();
        if !value.is_empty() {
            append(self.0, key.as_str(), &value);
        }
        Ok(())
    }
}

fn append(line: &mut String, key: &str, value: &str) {
    // Text from guests and clients may hold terminal escapes.
    let value: String = value.chars().map(|c| if c.is_control() { ' ' } else { c }).collect();
    line.push_str(&format!(" {key}={value:?}"));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_says_whose_it_is_and_stays_one_line() {
        let mut pod = String::new();
        append(&mut pod, "pod", "p");
        let logger = Logger { pod, written: AtomicU64::new(0) };
        let names = [("container", "c"), ("of", ""), ("exec", "e\"\n\u{1b}[2J level=error")];
        let mut record = Record::builder();
        record.level(log::Level::Warn).key_values(&names);
        let line = logger.line(&record.args(format_args!("lost\n3")).build(), SystemTime::UNIX_EPOCH);
        assert_eq!(
            line,
            "time=\"1970-01-01T00:00:00.000000000Z\" level=warn msg=\"lost 3\" pod=\"p\" container=\"c\" exec=\"e\\\"  [2J level=error\"\n"
        );
    }
}
