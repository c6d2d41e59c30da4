//! The standard streams of a process, carried between Hull's own and the fifos that the shim opens.
//!
//! One thread per stream copies with blocking calls, so the kernel's pipes give the back-pressure. A fifo is opened here for
//! reading *and* held open for writing until the shim has its end: only then does end of file mean that the shim is done.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use tokio::sync::oneshot;

use crate::error::CliError;

/// Bytes moved at a time: what a pipe holds.
const CHUNK: usize = 64 * 1024;

/// Which streams a process has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// stdin is forwarded.
    pub stdin: bool,
    /// One stream for output, as a terminal has it.
    pub terminal: bool,
}

/// The fifos of one process; removed when dropped.
#[derive(Debug)]
pub struct Fifos {
    stdin: Option<PathBuf>,
    stdout: PathBuf,
    stderr: Option<PathBuf>,
}

impl Fifos {
    /// Makes the fifos in `folder`, their names beginning with `prefix`.
    pub fn create(folder: &Path, prefix: &str, wanted: Wanted) -> Result<Self, CliError> {
        fs::create_dir_all(folder).map_err(CliError::io(format!("cannot create {}", folder.display())))?;
        let path = |name: &str| folder.join(format!("{prefix}{name}"));
        let fifos = Self {
            stdin: wanted.stdin.then(|| path("stdin")),
            stdout: path("stdout"),
            stderr: (!wanted.terminal).then(|| path("stderr")),
        };
        fifos.paths().try_for_each(|path| make(path))?;
        Ok(fifos)
    }

    fn paths(&self) -> impl Iterator<Item = &PathBuf> {
        self.stdin.iter().chain([&self.stdout]).chain(&self.stderr)
    }

    /// stdin, stdout and stderr as the task service takes them: a path, or nothing.
    pub fn addresses(&self) -> [String; 3] {
        let text =
            |path: Option<&PathBuf>| path.map(|path| path.to_string_lossy().into_owned()).unwrap_or_default();
        [text(self.stdin.as_ref()), text(Some(&self.stdout)), text(self.stderr.as_ref())]
    }
}

impl Drop for Fifos {
    fn drop(&mut self) {
        for path in self.paths() {
            // Gone with the bundle, or never made.
            let _ = fs::remove_file(path);
        }
    }
}

/// Makes a fifo for the stdin of a process that nobody is attached to.
pub fn stdin_fifo(folder: &Path) -> Result<PathBuf, CliError> {
    fs::create_dir_all(folder).map_err(CliError::io(format!("cannot create {}", folder.display())))?;
    let path = folder.join("stdin");
    make(&path).map(|()| path)
}

fn make(path: &Path) -> Result<(), CliError> {
    mkfifo(path, Mode::S_IRUSR | Mode::S_IWUSR)
        .map_err(io::Error::from)
        .map_err(CliError::io(format!("cannot create the fifo {}", path.display())))
}

/// Where the logs go while a process is attached.
#[derive(Debug, Default)]
pub struct Logs {
    /// A copy of stdout.
    pub stdout: Option<File>,
    /// A copy of stderr.
    pub stderr: Option<File>,
}

/// The copying threads of an attached process.
#[derive(Debug)]
pub struct Streams {
    holds: Vec<File>,
    copies: Vec<oneshot::Receiver<io::Result<()>>>,
    /// Resolves when nobody reads Hull's stdout or stderr any more.
    pub reader_gone: oneshot::Receiver<()>,
    /// Resolves when Hull's stdin has ended and all of it is in the fifo. Never without stdin.
    pub stdin_ended: oneshot::Receiver<()>,
    stdin: Option<(File, oneshot::Sender<()>)>,
}

impl Streams {
    /// Opens the fifos and starts to copy the output. stdin waits for [`forward_stdin`](Self::forward_stdin).
    pub fn attach(fifos: &Fifos, logs: Logs) -> Result<Self, CliError> {
        let (reader_gone_sender, reader_gone) = oneshot::channel();
        let (stdin_sender, stdin_ended) = oneshot::channel();
        let gone = std::sync::Arc::new(std::sync::Mutex::new(Some(reader_gone_sender)));
        let mut streams =
            Self { holds: Vec::new(), copies: Vec::new(), reader_gone, stdin_ended, stdin: None };
        let output = (Some(&fifos.stdout), io::stdout().as_fd().try_clone_to_owned(), logs.stdout);
        let errors = (fifos.stderr.as_ref(), io::stderr().as_fd().try_clone_to_owned(), logs.stderr);
        for (path, sink, log) in [output, errors] {
            let Some(path) = path else { continue };
            let sink = Unbuffered(sink.map_err(opening())?.into());
            let (source, hold) = open_for_reading(path).map_err(opening())?;
            streams.holds.push(hold);
            let (done, ended) = oneshot::channel();
            streams.copies.push(ended);
            let gone = gone.clone();
            spawn("output", move || {
                let tell = || {
                    if let Some(sender) = gone.lock().ok().and_then(|mut slot| slot.take()) {
                        // The receiver is dropped when the process has ended already.
                        let _ = sender.send(());
                    }
                };
                let result = copy_output(source, sink, log, tell);
                let _ = done.send(result);
            })?;
        }
        if let Some(path) = &fifos.stdin {
            // Opened for both, so that it does not wait for the shim.
            let fifo = OpenOptions::new().read(true).write(true).open(path).map_err(opening())?;
            streams.stdin = Some((fifo, stdin_sender));
        } else {
            // Kept alive: a dropped sender would read as the end of stdin.
            std::mem::forget(stdin_sender);
        }
        Ok(streams)
    }

    /// Begins to read Hull's stdin.
    pub fn forward_stdin(&mut self) -> Result<(), CliError> {
        let Some((fifo, ended)) = self.stdin.take() else { return Ok(()) };
        let source: File = io::stdin().as_fd().try_clone_to_owned().map_err(opening())?.into();
        spawn("input", move || {
            copy_input(source, fifo);
            // The receiver is dropped when the process has ended before its input.
            let _ = ended.send(());
        })
    }

    /// The shim has opened its ends: from now on end of file is the end.
    pub fn shim_is_attached(&mut self) {
        self.holds.clear();
    }

    /// Waits until all output is copied. Reports the first stream that failed.
    pub async fn drained(self) -> Result<(), CliError> {
        drop(self.holds);
        for copy in self.copies {
            copy.await.unwrap_or(Ok(())).map_err(CliError::io("cannot copy the container's output"))?;
        }
        Ok(())
    }
}

fn opening() -> impl FnOnce(io::Error) -> CliError {
    CliError::io("cannot attach to the container's streams")
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Result<(), CliError> {
    let thread = std::thread::Builder::new().name(name.to_owned()).spawn(work);
    thread.map(drop).map_err(CliError::io("cannot start a thread"))
}

/// A descriptor written to directly: what a container writes must not wait in a buffer for a line's end.
struct Unbuffered(File);

impl Write for Unbuffered {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.0.write(bytes) {
                // Somebody else made our terminal or pipe non-blocking: wait until it takes more.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
                    poll(&mut [PollFd::new(self.0.as_fd(), PollFlags::POLLOUT)], PollTimeout::NONE)?;
                }
                other => return other,
            }
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The reading end, blocking, and a writing end that keeps it from ending.
fn open_for_reading(path: &Path) -> io::Result<(File, File)> {
    // Non-blocking, or the open would wait for a writer.
    let source = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let hold = OpenOptions::new().write(true).open(path)?;
    let flags = OFlag::from_bits_retain(fcntl(&source, FcntlArg::F_GETFL)?);
    fcntl(&source, FcntlArg::F_SETFL(flags - OFlag::O_NONBLOCK))?;
    Ok((source, hold))
}

/// Copies until the end of `source`. When nobody reads `sink` any more it says so once and goes on reading, so that the
/// process is not stuck in a write while it is being ended.
fn copy_output(
    mut source: impl Read,
    mut sink: impl Write,
    mut log: Option<File>,
    reader_gone: impl FnOnce(),
) -> io::Result<()> {
    let mut reader_gone = Some(reader_gone);
    let mut failure = Ok(());
    let mut chunk = vec![0; CHUNK];
    loop {
        let length = match source.read(&mut chunk) {
            Ok(0) => return failure,
            Ok(length) => length,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(error),
        };
        if let Some(file) = &mut log
            && let Err(error) = file.write_all(&chunk[..length])
        {
            crate::error::say(&format!("cannot write the container's log, it ends here: {error}"));
            log = None;
        }
        if reader_gone.is_some()
            && let Err(error) = sink.write_all(&chunk[..length])
        {
            if error.kind() != io::ErrorKind::BrokenPipe {
                failure = Err(error);
            }
            if let Some(tell) = reader_gone.take() {
                tell();
            }
        }
    }
}

/// Copies until either side ends: a process that does not read its stdin is no error.
fn copy_input(mut source: impl Read, mut fifo: impl Write) {
    let mut chunk = vec![0; CHUNK];
    loop {
        match source.read(&mut chunk) {
            Ok(0) => return,
            Ok(length) => {
                if fifo.write_all(&chunk[..length]).is_err() {
                    return;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(_) => return,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Gone;

    impl Write for Gone {
        fn write(&mut self, _: &[u8]) -> io::Result<usize> {
            Err(io::ErrorKind::BrokenPipe.into())
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn output_reaches_the_sink_and_the_log() {
        let data: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
        let mut sink = Vec::new();
        let mut log = tempfile::tempfile().unwrap();
        copy_output(&data[..], &mut sink, Some(log.try_clone().unwrap()), || panic!("nobody is gone"))
            .unwrap();
        let mut logged = Vec::new();
        io::Seek::rewind(&mut log).unwrap();
        log.read_to_end(&mut logged).unwrap();
        assert!(sink == data && logged == data);
    }

    #[test]
    fn a_reader_that_is_gone_is_told_once_and_the_source_is_drained() {
        let mut told = 0;
        let mut source = io::repeat(7).take(1_000_000);
        copy_output(&mut source, Gone, None, || told += 1).unwrap();
        assert_eq!((told, source.limit()), (1, 0));
    }

    #[test]
    fn a_fifo_ends_only_when_the_last_writer_is_gone() {
        let folder = tempfile::tempdir().unwrap();
        let fifos = Fifos::create(folder.path(), "x-", Wanted { stdin: true, terminal: false }).unwrap();
        let [stdin, stdout, stderr] = fifos.addresses();
        assert!(
            stdin.ends_with("/x-stdin") && stdout.ends_with("/x-stdout") && stderr.ends_with("/x-stderr")
        );
        let (mut source, hold) = open_for_reading(&fifos.stdout).unwrap();
        let writer = OpenOptions::new().write(true).open(&stdout).unwrap();
        drop(hold);
        let reader = std::thread::spawn(move || {
            let mut text = String::new();
            source.read_to_string(&mut text).map(|_| text)
        });
        (&writer).write_all(b"late").unwrap();
        drop(writer);
        assert_eq!(reader.join().unwrap().unwrap(), "late");
        drop(fifos);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_terminal_has_one_output() {
        let folder = tempfile::tempdir().unwrap();
        let fifos = Fifos::create(folder.path(), "", Wanted { stdin: false, terminal: true }).unwrap();
        let [stdin, stdout, stderr] = fifos.addresses();
        assert!(stdin.is_empty() && stderr.is_empty() && !stdout.is_empty());
    }
}
