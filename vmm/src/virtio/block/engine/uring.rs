//! `io_uring(7)`: steps are worked on by the kernel while this thread does other things.
//!
//! The ring is fenced in when it is made: it reads, writes and syncs the disk's own files, which are registered, and
//! nothing else, whoever gets hold of its descriptor or its memory. After that it needs no system call but
//! `io_uring_enter`.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Arc;

use io_uring::register::Restriction;
use io_uring::squeue::Flags;
use io_uring::types::{Fixed, FsyncFlags};
use io_uring::{IoUring, opcode, squeue};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::{Action, Engine, Finished, STEPS_MAX, Step, Submitted};
use crate::virtio::block::extents::Extents;

/// `IOSQE_FIXED_FILE`: the descriptor is an index into the registered files.
const FIXED_FILE: Flags = Flags::FIXED_FILE;

/// A ring and the steps it has.
pub struct Uring {
    ring: IoUring,
    event: EventFd,
    /// By token: what the kernel works on. Nothing leaves before the kernel has said that it is done.
    steps: Vec<Option<Step>>,
    /// How many those are.
    in_flight: u16,
    /// Steps that found no place, to be given back. There are none as long as tokens are used as they should be.
    refused: Vec<Finished>,
}

impl std::fmt::Debug for Uring {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Uring").field("in_flight", &self.in_flight).finish_non_exhaustive()
    }
}

impl Uring {
    /// A ring for these files.
    pub fn new(extents: &Arc<Extents>) -> io::Result<Self> {
        // Disabled until it is fenced in.
        let ring = IoUring::builder().dontfork().setup_r_disabled().build(u32::from(STEPS_MAX))?;
        let event = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)?;
        let files: Vec<RawFd> = extents.files().map(AsRawFd::as_raw_fd).collect();
        let submitter = ring.submitter();
        submitter.register_files(&files)?;
        submitter.register_eventfd(event.as_raw_fd())?;
        submitter.register_restrictions(&mut [
            Restriction::sqe_op(opcode::Readv::CODE),
            Restriction::sqe_op(opcode::Writev::CODE),
            Restriction::sqe_op(opcode::Fsync::CODE),
            Restriction::sqe_flags_required(FIXED_FILE.bits()),
        ])?;
        submitter.register_enable_rings()?;
        Ok(Self {
            ring,
            event,
            steps: (0..STEPS_MAX).map(|_| None).collect(),
            in_flight: 0,
            refused: Vec::new(),
        })
    }
}

/// What the kernel is told.
fn entry(token: u16, step: &Step) -> squeue::Entry {
    let file = Fixed(u32::from(step.file));
    let entry = match &step.action {
        Action::Read { buffer, offset } => {
            let iovecs = buffer.iovecs();
            opcode::Readv::new(file, iovecs.as_ptr(), length(iovecs)).offset(*offset).build()
        }
        Action::Write { buffer, offset } => {
            let iovecs = buffer.iovecs();
            opcode::Writev::new(file, iovecs.as_ptr(), length(iovecs)).offset(*offset).build()
        }
        Action::Sync => opcode::Fsync::new(file).flags(FsyncFlags::DATASYNC).build(),
    };
    entry.user_data(u64::from(token))
}

fn refused(token: u16, step: Step) -> Finished {
    Finished { token, step, result: Err(io::ErrorKind::ResourceBusy.into()) }
}

/// The kernel cannot take more just now.
fn is_lack(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY | libc::ENOMEM))
}

/// `IOV_MAX` at most.
fn length(iovecs: &[libc::iovec]) -> u32 {
    u32::try_from(iovecs.len()).unwrap_or(0)
}

impl Engine for Uring {
    fn start(&mut self, token: u16, step: Step) {
        let entry = entry(token, &step);
        match self.steps.get_mut(usize::from(token)) {
            Some(place @ None) => *place = Some(step),
            // The caller has broken the rules.
            _ => return self.refused.push(refused(token, step)),
        }
        self.in_flight += 1;
        // SAFETY: the entry points to the iovecs of the step and through them to guest memory. The step stays in its
        // place, which keeps both where they are, until the kernel has completed this entry.
        let pushed = unsafe { self.ring.submission().push(&entry) };
        if pushed.is_err()
            && let Some(step) = self.steps[usize::from(token)].take()
        {
            self.in_flight -= 1;
            self.refused.push(refused(token, step));
        }
    }

    fn submit(&mut self) -> io::Result<Submitted> {
        while !self.ring.submission().is_empty() {
            match self.ring.submit() {
                Ok(0) => return Ok(Submitted::NotYet),
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_lack(&error) => return Ok(Submitted::NotYet),
                Err(error) => return Err(error),
            }
        }
        Ok(Submitted::All)
    }

    fn finished(&mut self) -> Option<Finished> {
        if let Some(refused) = self.refused.pop() {
            return Some(refused);
        }
        let completion = self.ring.completion().next()?;
        let token = u16::try_from(completion.user_data()).ok()?;
        let step = self.steps.get_mut(usize::from(token))?.take()?;
        self.in_flight -= 1;
        let result = usize::try_from(completion.result())
            .map_err(|_| io::Error::from_raw_os_error(completion.result().wrapping_neg()));
        Some(Finished { token, step, result })
    }

    fn wait(&mut self) {
        while self.in_flight > 0 && self.refused.is_empty() && self.ring.completion().is_empty() {
            match self.ring.submit_and_wait(1) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // What the kernel lacks comes back as it finishes what it has.
                Err(error) if is_lack(&error) => {}
                Err(error) => {
                    // The kernel has guest memory and does not say when it is done with it: neither the guest nor
                    // anybody else may have that memory again.
                    log::error!("cannot wait for the disk: {error}");
                    std::process::abort();
                }
            }
        }
    }

    fn event(&self) -> Option<RawFd> {
        Some(self.event.as_raw_fd())
    }

    fn acknowledge(&self) {
        // It fails only if nothing was signalled.
        let _ = self.event.read();
    }
}

impl Drop for Uring {
    fn drop(&mut self) {
        while self.in_flight > 0 {
            self.wait();
            self.finished();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::testing::file_with;

    /// Whoever gets hold of the ring cannot open, send, or touch another file with it.
    #[test]
    fn the_ring_is_fenced_in() {
        let mut extents = Extents::new();
        let file = file_with(&[0; 512]);
        let extent = hull_protocol::vmm::DiskExtent { offset: 0, length: 512 };
        extents.push(file.into(), extent, hull_protocol::vmm::DiskAccess::ReadWrite).unwrap();
        let mut uring = match Uring::new(&Arc::new(extents)) {
            Err(error) if matches!(error.raw_os_error(), Some(libc::EPERM | libc::ENOSYS)) => return,
            uring => uring.unwrap(),
        };
        let other = io_uring::types::Fd(uring.event.as_raw_fd());
        let path = c"/dev/null";
        let mut results = Vec::new();
        for entry in [
            opcode::Fsync::new(Fixed(0)).build(),
            opcode::Nop::new().build(),
            opcode::OpenAt::new(io_uring::types::Fd(libc::AT_FDCWD), path.as_ptr()).build(),
            opcode::Fsync::new(other).build(),
            opcode::Fsync::new(Fixed(1)).build(),
            opcode::Fsync::new(Fixed(0)).build().flags(Flags::ASYNC),
        ] {
            // SAFETY: the only pointer leads to a static string.
            unsafe { uring.ring.submission().push(&entry) }.unwrap();
            uring.ring.submit_and_wait(1).unwrap();
            results.push(uring.ring.completion().next().unwrap().result());
        }
        assert_eq!(results, [0, -libc::EACCES, -libc::EACCES, -libc::EACCES, -libc::EBADF, -libc::EACCES]);
        assert!(uring.ring.submitter().unregister_files().is_err());
    }
}
