//! `hull logs`: what a container wrote, and with `--follow` what it goes on to write.
//!
//! stdout and stderr are two files; their lines are in order each, but not between the two.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use hull_shim::record::CONSOLE_FILE;
use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};

use super::DONE;
use crate::cli::{Global, LogsArgs, Tail};
use crate::engine::{self, ProcessHandle};
use crate::error::CliError;
use crate::paths;
use crate::state::{self, Container};

/// Bytes read at a time.
const CHUNK: usize = 64 * 1024;

/// Shows the logs.
pub fn logs(global: &Global, args: &LogsArgs) -> Result<u8, CliError> {
    let container = paths::state(global)?.find(&args.container)?;
    let files: Vec<(PathBuf, Sink)> = if args.boot {
        vec![(container.bundle.join(CONSOLE_FILE), Sink::Stdout)]
    } else {
        vec![
            (container.bundle.join(Container::STDOUT_LOG), Sink::Stdout),
            (container.bundle.join(Container::STDERR_LOG), Sink::Stderr),
        ]
    };
    let mut logs: Vec<Log> =
        files.into_iter().map(|(path, sink)| Log { path, sink, file: None, tail: args.tail }).collect();
    let result = if args.follow {
        engine::runtime()?.block_on(follow(&container, &mut logs))
    } else {
        logs.iter_mut().try_for_each(Log::show)
    };
    match result {
        // `hull logs -f | head -1`
        Err(CliError::Io { source, .. }) if source.kind() == io::ErrorKind::BrokenPipe => Ok(DONE),
        other => other.map(|()| DONE),
    }
}

/// Shows what is there, then what comes, until the container has ended and everything is shown.
async fn follow(container: &Container, logs: &mut [Log]) -> Result<(), CliError> {
    let failed = || CliError::io("cannot follow the logs");
    let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)
        .map_err(io::Error::from)
        .map_err(failed())?;
    // The folder, not the files: they may not be there yet, and the exit record appears in it too.
    let events = AddWatchFlags::IN_MODIFY
        | AddWatchFlags::IN_CREATE
        | AddWatchFlags::IN_MOVED_TO
        | AddWatchFlags::IN_DELETE_SELF;
    inotify.add_watch(&container.bundle, events).map_err(io::Error::from).map_err(failed())?;
    let watched = engine::watch(inotify.as_fd().try_clone_to_owned().map_err(failed())?).map_err(failed())?;
    let mut shim = ProcessHandle::shim(container)?;
    loop {
        // Asked before the logs are read: what is written before the end is then in what is read.
        let alive = state::observe(container).await?.is_some_and(|status| status.is_alive());
        logs.iter_mut().try_for_each(Log::show)?;
        if !alive {
            return Ok(());
        }
        if !shim.was_alive() {
            shim = ProcessHandle::shim(container)?;
        }
        loop {
            tokio::select! {
                ready = watched.readable() => {
                    let exit_came = drain(&inotify).map_err(failed())?;
                    ready.map_err(failed())?.clear_ready();
                    if exit_came { break }
                    logs.iter_mut().try_for_each(Log::show)?;
                }
                ended = shim.ended(), if shim.was_alive() => {
                    ended?;
                    break;
                }
            }
        }
    }
}

/// Reads all events that are there; `true` if something else than a log changed.
fn drain(inotify: &Inotify) -> io::Result<bool> {
    let mut other = false;
    loop {
        match inotify.read_events() {
            Ok(events) => {
                other |= events.iter().any(|event| {
                    event.name.as_deref().is_none_or(|name| {
                        name != Container::STDOUT_LOG && name != Container::STDERR_LOG && name != CONSOLE_FILE
                    })
                });
            }
            Err(Errno::EAGAIN) => return Ok(other),
            Err(Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Sink {
    Stdout,
    Stderr,
}

/// A log file and how far it was shown.
#[derive(Debug)]
struct Log {
    path: PathBuf,
    sink: Sink,
    file: Option<File>,
    tail: Tail,
}

impl Log {
    /// Shows what is new.
    fn show(&mut self) -> Result<(), CliError> {
        if self.file.is_none() {
            self.file = open(&self.path, self.tail)
                .map_err(CliError::io(format!("cannot read {}", self.path.display())))?;
        }
        let Some(file) = &mut self.file else { return Ok(()) };
        let mut chunk = vec![0; CHUNK];
        loop {
            let length = file
                .read(&mut chunk)
                .map_err(CliError::io(format!("cannot read {}", self.path.display())))?;
            if length == 0 {
                return Ok(());
            }
            match self.sink {
                Sink::Stdout => write(io::stdout().lock(), &chunk[..length]),
                Sink::Stderr => write(io::stderr().lock(), &chunk[..length]),
            }
            .map_err(CliError::io("cannot write the log"))?;
        }
    }
}

fn write(mut sink: impl Write, bytes: &[u8]) -> io::Result<()> {
    sink.write_all(bytes)?;
    sink.flush()
}

/// Opens the log where its last lines begin. `None` if there is no log.
fn open(path: &Path, tail: Tail) -> io::Result<Option<File>> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error),
    };
    if let Tail::Lines(lines) = tail {
        let start = start_of_tail(&mut file, lines)?;
        file.seek(SeekFrom::Start(start))?;
    }
    Ok(Some(file))
}

/// Where the last `lines` lines begin. A last line without a line break counts as one.
fn start_of_tail(file: &mut (impl Read + Seek), lines: usize) -> io::Result<u64> {
    let end = file.seek(SeekFrom::End(0))?;
    if lines == 0 {
        return Ok(end);
    }
    let mut remaining = lines;
    let mut position = end;
    let mut chunk = vec![0; CHUNK];
    while position > 0 {
        let length = usize::try_from(position).unwrap_or(CHUNK).min(CHUNK);
        position -= length as u64;
        file.seek(SeekFrom::Start(position))?;
        file.read_exact(&mut chunk[..length])?;
        for (index, byte) in chunk[..length].iter().enumerate().rev() {
            let at = position + index as u64;
            // The break at the very end closes the last line; it does not begin another.
            if *byte == b'\n' && at + 1 != end {
                remaining -= 1;
                if remaining == 0 {
                    return Ok(at + 1);
                }
            }
        }
    }
    Ok(0)
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;

    use proptest::prelude::*;

    use super::*;

    fn tail(text: &str, lines: usize) -> &str {
        let start = start_of_tail(&mut Cursor::new(text.as_bytes()), lines).unwrap();
        &text[usize::try_from(start).unwrap()..]
    }

    #[test]
    fn tails() {
        for (text, lines, expected) in [
            ("a\nb\nc\n", 2, "b\nc\n"),
            ("a\nb\nc", 2, "b\nc"),
            ("a\nb\nc\n", 9, "a\nb\nc\n"),
            ("a\nb\n", 0, ""),
            ("", 3, ""),
            ("\n\n\n", 2, "\n\n"),
        ] {
            assert_eq!(tail(text, lines), expected, "{text:?} {lines}");
        }
        let long = format!("{}\nlast\n", "x".repeat(3 * CHUNK));
        assert_eq!(tail(&long, 1), "last\n");
        assert_eq!(tail(&long, 2), long);
    }

    proptest! {
        #[test]
        fn a_tail_is_what_counting_lines_gives(text in "[ab\n]{0,60}", lines in 0_usize..8) {
            let all: Vec<&str> = text.split_inclusive('\n').collect();
            let expected = all[all.len().saturating_sub(lines)..].concat();
            prop_assert_eq!(tail(&text, lines), expected);
        }
    }

    #[test]
    fn a_log_that_appears_later_is_shown_from_its_start() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("stdout.log");
        assert!(open(&path, Tail::All).unwrap().is_none());
        std::fs::write(&path, "x\n").unwrap();
        assert!(open(&path, Tail::All).unwrap().is_some());
    }
}
