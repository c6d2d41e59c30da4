//! The host's end of an output stream.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, OpenOptionsExt};
use std::path::Path;

use tokio::io::AsyncWriteExt;
use tokio::io::unix::AsyncFd;
use tokio::net::unix::pipe;

use super::{StdioError, Target};

/// Where output goes.
pub enum Output {
    /// Nowhere.
    Null,
    /// A fifo, both ends held.
    Fifo(FifoOutput),
    /// A file, appended to.
    File(tokio::fs::File),
    /// A logger's standard output or error.
    Logger(pipe::Sender),
}

/// Both ends of a fifo that somebody else reads. Our read end means that a reader may come late, or go and come back,
/// without a byte lost and without EPIPE; we never read from it.
pub struct FifoOutput {
    writer: AsyncFd<File>,
    hold: File,
}

/// A fifo's read end that outlives the writer because the fifo still holds output that nobody has read.
pub struct UnreadFifo {
    _hold: File,
}

impl Output {
    /// Opens a target. Never blocks, whoever is or is not at the other end. A logger's is made with the logger.
    pub fn open(target: &Target) -> Result<Self, StdioError> {
        match target {
            Target::Null | Target::Logger(_) => Ok(Self::Null),
            Target::Fifo(path) => FifoOutput::open(path).map(Self::Fifo),
            Target::File(path) => open_file(path).map(|file| Self::File(tokio::fs::File::from_std(file))),
        }
    }

    /// Writes all of it, waiting for room as long as it takes.
    pub async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Null => Ok(()),
            Self::Fifo(fifo) => fifo.write_all(bytes).await,
            Self::Logger(pipe) => pipe.write_all(bytes).await,
            Self::File(file) => {
                file.write_all(bytes).await?;
                file.flush().await
            }
        }
    }

    /// Closes it: readers see the end once they have read everything.
    pub fn close(self) -> Option<UnreadFifo> {
        match self {
            Self::Null | Self::File(_) | Self::Logger(_) => None,
            Self::Fifo(fifo) => unread_bytes(&fifo.hold).then_some(UnreadFifo { _hold: fifo.hold }),
        }
    }
}

impl FifoOutput {
    fn open(path: &Path) -> Result<Self, StdioError> {
        let failed = |source| StdioError::Open { path: path.to_owned(), source };
        let hold = open_fifo(path, OpenOptions::new().read(true))?;
        // Succeeds without blocking because we are a reader ourselves.
        let writer = open_fifo(path, OpenOptions::new().write(true))?;
        Ok(Self { writer: crate::readiness::watch(writer).map_err(failed)?, hold })
    }

    async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let mut guard = self.writer.writable().await?;
            match guard.try_io(|writer| writer.get_ref().write(bytes)) {
                Ok(Ok(count)) => bytes = &bytes[count..],
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(Err(error)) => return Err(error),
                Err(_would_block) => {}
            }
        }
        Ok(())
    }
}

/// Opens a fifo without blocking and without becoming its creator.
pub fn open_fifo(path: &Path, options: &mut OpenOptions) -> Result<File, StdioError> {
    let failed = |source| StdioError::Open { path: path.to_owned(), source };
    let file = options.custom_flags(libc::O_NONBLOCK).open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.file_type().is_fifo() {
        return Err(StdioError::Kind { path: path.to_owned(), wanted: "fifo" });
    }
    Ok(file)
}

fn open_file(path: &Path) -> Result<File, StdioError> {
    let failed = |source| StdioError::Open { path: path.to_owned(), source };
    if let Some(parent) = path.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o755).create(parent).map_err(failed)?;
    }
    let file = OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o644)
        .custom_flags(libc::O_NONBLOCK)
        .open(path)
        .map_err(failed)?;
    let kind = file.metadata().map_err(failed)?.file_type();
    if kind.is_file() || kind.is_char_device() {
        Ok(file)
    } else {
        Err(StdioError::Kind { path: path.to_owned(), wanted: "file" })
    }
}

fn unread_bytes(fifo: &File) -> bool {
    let mut count: libc::c_int = 0;
    // SAFETY: FIONREAD writes one int to the address, which outlives the call; the descriptor is open.
    let result = unsafe { libc::ioctl(fifo.as_raw_fd(), libc::FIONREAD, &raw mut count) };
    result == 0 && count > 0
}
