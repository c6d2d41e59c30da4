//! How data moves between files and guest memory: one trait, two small implementations.
//!
//! An engine carries out [`Step`]s: one read, write or sync of one file. It owns a step, and with it the guest memory
//! that it concerns, from the start until it has given it back. What a request is, and what comes after a step that
//! was cut short, is not its business.

use std::io;
use std::os::fd::RawFd;
use std::sync::Arc;

use super::extents::Extents;
use crate::virtio::pinned::Pinned;

mod blocking;
mod uring;

use blocking::Blocking;
use uring::Uring;

/// The most steps in the hands of an engine.
pub const STEPS_MAX: u16 = 128;

/// Something to do with one file of the disk.
#[derive(Debug)]
pub struct Step {
    /// Which extent's file.
    pub file: u16,
    /// What.
    pub action: Action,
}

/// What to do with a file. Offsets are in bytes in the file, and have been checked to fit an `i64`.
#[derive(Debug)]
pub enum Action {
    /// Fill the buffer from the file.
    Read { buffer: Pinned, offset: u64 },
    /// Write the buffer to the file.
    Write { buffer: Pinned, offset: u64 },
    /// Make what was written durable.
    Sync,
}

/// A step that nobody works on any more.
#[derive(Debug)]
pub struct Finished {
    /// As it was started with.
    pub token: u16,
    /// The step, unchanged.
    pub step: Step,
    /// How many bytes were moved, fewer than wanted perhaps; 0 for a sync.
    pub result: io::Result<usize>,
}

/// What became of the steps that were started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Submitted {
    /// All are being worked on.
    All,
    /// The host lacks the means for some of them. They stay where they are; it is worth another call later.
    NotYet,
}

/// Carries out steps.
pub trait Engine: Send + std::fmt::Debug {
    /// Takes a step. Tokens are below [`STEPS_MAX`] and name one step at a time.
    fn start(&mut self, token: u16, step: Step);

    /// Sees to it that what was started is worked on. To be called after the last of a number of starts.
    fn submit(&mut self) -> io::Result<Submitted>;

    /// A step that has finished, in any order.
    fn finished(&mut self) -> Option<Finished>;

    /// Waits until there is a step that has finished, if any was started.
    fn wait(&mut self);

    /// Readable when steps have finished; `None` if all do before they are asked for.
    fn event(&self) -> Option<RawFd>;

    /// Makes the event unreadable until the next step finishes.
    fn acknowledge(&self);
}

/// The best engine that this host allows: `io_uring`, or plain system calls where it is refused, be it by age, by
/// `io_uring_disabled`, by a seccomp filter or by an emulator.
pub fn best(extents: &Arc<Extents>) -> Box<dyn Engine> {
    match Uring::new(extents) {
        Ok(engine) => Box::new(engine),
        Err(error) => {
            log::info!("disks are served without io_uring: {error}");
            blocking(extents)
        }
    }
}

/// Plain system calls.
pub fn blocking(extents: &Arc<Extents>) -> Box<dyn Engine> {
    Box::new(Blocking::new(Arc::clone(extents)))
}

/// `io_uring` or an error.
#[cfg(test)]
pub fn uring(extents: &Arc<Extents>) -> io::Result<Box<dyn Engine>> {
    Ok(Box::new(Uring::new(extents)?))
}
