//! The host's end of standard input.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::path::Path;

use tokio::io::unix::AsyncFd;

use super::StdioError;
use super::output::open_fifo;

/// A fifo to read from. Our own write end keeps it open while writers come and go.
pub struct FifoInput {
    reader: AsyncFd<File>,
    hold: Option<File>,
}

impl FifoInput {
    /// Opens both ends. Never blocks.
    pub fn open(path: &Path) -> Result<Self, StdioError> {
        let reader = open_fifo(path, OpenOptions::new().read(true))?;
        let hold = open_fifo(path, OpenOptions::new().write(true))?;
        let reader = crate::readiness::watch(reader)
            .map_err(|source| StdioError::Open { path: path.to_owned(), source })?;
        Ok(Self { reader, hold: Some(hold) })
    }

    /// Lets go of the write end: the input ends when the last other writer has closed and all is read.
    pub fn release(&mut self) {
        self.hold = None;
    }

    /// Reads what is there; 0 at the end.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            let mut guard = self.reader.readable().await?;
            match guard.try_io(|reader| reader.get_ref().read(buffer)) {
                Ok(Err(error)) if error.kind() == io::ErrorKind::Interrupted => {}
                Ok(result) => return result,
                Err(_would_block) => {}
            }
        }
    }
}
