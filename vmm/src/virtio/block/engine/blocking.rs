//! Plain `preadv(2)`, `pwritev(2)` and `fdatasync(2)`, on the thread that asks.

use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsFd, RawFd};
use std::sync::Arc;

use super::{Action, Engine, Finished, Step, Submitted};
use crate::virtio::block::extents::{Extents, file_offset};

/// Every step has finished when `start` returns.
#[derive(Debug)]
pub struct Blocking {
    extents: Arc<Extents>,
    finished: VecDeque<Finished>,
}

impl Blocking {
    /// An engine for these files.
    pub fn new(extents: Arc<Extents>) -> Self {
        Self { extents, finished: VecDeque::new() }
    }

    fn carry_out(&self, step: &Step) -> io::Result<usize> {
        let file = self.extents.file(step.file).ok_or(io::ErrorKind::InvalidInput)?;
        match &step.action {
            Action::Read { buffer, offset } => buffer.read_at(file.as_fd(), file_offset(*offset)?),
            Action::Write { buffer, offset } => buffer.write_at(file.as_fd(), file_offset(*offset)?),
            Action::Sync => file.sync_data().map(|()| 0),
        }
    }
}

impl Engine for Blocking {
    fn start(&mut self, token: u16, step: Step) {
        let result = self.carry_out(&step);
        self.finished.push_back(Finished { token, step, result });
    }

    fn submit(&mut self) -> io::Result<Submitted> {
        Ok(Submitted::All)
    }

    fn finished(&mut self) -> Option<Finished> {
        self.finished.pop_front()
    }

    fn wait(&mut self) {}

    fn event(&self) -> Option<RawFd> {
        None
    }

    fn acknowledge(&self) {}
}
