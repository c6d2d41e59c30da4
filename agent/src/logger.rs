//! Log lines, one write each, to the kernel's log in the guest and to stderr outside.
//!
//! Environment values and arguments of containers never get here.

use std::fs::File;
use std::io::{self, Write};
use std::sync::OnceLock;

use log::{Level, LevelFilter, Log, Metadata, Record};

struct Logger {
    kernel: Option<File>,
}

/// The kernel's log level digits (syslog(2)).
fn priority(level: Level) -> u8 {
    match level {
        Level::Error => 3,
        Level::Warn => 4,
        Level::Info => 6,
        Level::Debug | Level::Trace => 7,
    }
}

impl Log for Logger {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        // Libraries log every broken connection as an error; only what the agent itself says is for people.
        metadata.target().starts_with("hull_agent") && metadata.level() <= Level::Info
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        // A newline in a name from outside must not look like a line of ours.
        let text = record.args().to_string().replace(['\n', '\r'], " ");
        // There is nowhere to report that logging failed.
        let _ = match &self.kernel {
            Some(kernel) => {
                (&*kernel).write_all(format!("<{}>hull-agent: {text}\n", priority(record.level())).as_bytes())
            }
            None => io::stderr().write_all(format!("hull-agent: {text}\n").as_bytes()),
        };
    }

    fn flush(&self) {}
}

/// Where log lines go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Destination {
    /// /dev/kmsg, and from there the console.
    Kernel,
    /// The standard error stream.
    Stderr,
}

/// Starts logging. Without a kernel log, stderr is used.
pub fn start(destination: Destination) {
    let kernel = match destination {
        Destination::Kernel => File::options().write(true).open("/dev/kmsg").ok(),
        Destination::Stderr => None,
    };
    static LOGGER: OnceLock<Logger> = OnceLock::new();
    // Called once; a second logger would change nothing.
    if log::set_logger(LOGGER.get_or_init(|| Logger { kernel })).is_ok() {
        log::set_max_level(LevelFilter::Info);
    }
}
