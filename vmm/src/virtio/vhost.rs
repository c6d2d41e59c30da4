//! vhost: the host's kernel serves a device's queues by itself. This is its interface, as far as a network device needs it.
//!
//! `/dev/vhost-net` is opened by somebody else. The kernel gets at guest memory through the process that becomes the device's
//! owner, with that process's rights and no others. Which thread may make which of the [`requests`] is in [`filters`](crate::jail::filters).

use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use vm_memory::{Address, GuestAddress, GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::ioctl::{ioctl, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref};

use super::queue::RunningQueue;
use crate::memory::GuestMemory;
use requests::*;

/// The requests (`linux/vhost.h`), for the device and for the filters of who may make them.
pub mod requests {
    /// `VHOST_GET_FEATURES`, `_IOR(0xaf, 0x00, u64)`.
    pub const GET_FEATURES: u32 = 0x8008_af00;
    /// `VHOST_SET_FEATURES`, `_IOW(0xaf, 0x00, u64)`.
    pub const SET_FEATURES: u32 = 0x4008_af00;
    /// `VHOST_SET_OWNER`, `_IO(0xaf, 0x01)`.
    pub const SET_OWNER: u32 = 0xaf01;
    /// `VHOST_SET_MEM_TABLE`, `_IOW(0xaf, 0x03, struct vhost_memory)`.
    pub const SET_MEM_TABLE: u32 = 0x4008_af03;
    /// `VHOST_SET_VRING_NUM`, `_IOW(0xaf, 0x10, struct vhost_vring_state)`.
    pub const SET_VRING_NUM: u32 = 0x4008_af10;
    /// `VHOST_SET_VRING_ADDR`, `_IOW(0xaf, 0x11, struct vhost_vring_addr)`.
    pub const SET_VRING_ADDR: u32 = 0x4028_af11;
    /// `VHOST_SET_VRING_BASE`, `_IOW(0xaf, 0x12, struct vhost_vring_state)`.
    pub const SET_VRING_BASE: u32 = 0x4008_af12;
    /// `VHOST_SET_VRING_KICK`, `_IOW(0xaf, 0x20, struct vhost_vring_file)`.
    pub const SET_VRING_KICK: u32 = 0x4008_af20;
    /// `VHOST_SET_VRING_CALL`, `_IOW(0xaf, 0x21, struct vhost_vring_file)`.
    pub const SET_VRING_CALL: u32 = 0x4008_af21;
    /// `VHOST_SET_VRING_ERR`, `_IOW(0xaf, 0x22, struct vhost_vring_file)`.
    pub const SET_VRING_ERR: u32 = 0x4008_af22;
    /// `VHOST_NET_SET_BACKEND`, `_IOW(0xaf, 0x30, struct vhost_vring_file)`.
    pub const NET_SET_BACKEND: u32 = 0x4008_af30;
}

/// The descriptor that means none.
const NONE: RawFd = -1;

/// Why the kernel does not serve a device.
#[derive(Debug, thiserror::Error)]
pub enum VhostError {
    /// It refused a step.
    #[error("vhost cannot {what}")]
    Refused {
        /// The step.
        what: &'static str,
        /// Its reason.
        source: io::Error,
    },
    /// It is older than what every driver of ours relies on, or serves another kind of device.
    #[error("the kernel's vhost lacks the features {0:#x}")]
    Features(u64),
    /// A part of a ring is not in one piece of memory.
    #[error("a ring does not lie in one piece of guest memory")]
    Ring,
}

/// `struct vhost_vring_state`
#[repr(C)]
struct VringState {
    index: u32,
    number: u32,
}

/// `struct vhost_vring_file`
#[repr(C)]
struct VringFile {
    index: u32,
    fd: RawFd,
}

/// `struct vhost_vring_addr`. Addresses are this process's, but for that of the log, which there is none of.
#[repr(C)]
struct VringAddress {
    index: u32,
    flags: u32,
    descriptors: u64,
    used: u64,
    available: u64,
    log: u64,
}

/// A device of the kernel's, whose owner is this process.
#[derive(Debug)]
pub struct Vhost {
    fd: OwnedFd,
}

impl Vhost {
    /// Becomes the device's owner: from here on the kernel has a thread for it, which is one of this process's and never
    /// leaves the kernel (before Linux 6.4 it is the kernel's own). The kernel must know all of `required`.
    pub fn new(fd: OwnedFd, required: u64) -> Result<Self, VhostError> {
        let mut known = 0_u64;
        // SAFETY: the request writes a `u64`, which lives through the call.
        done("tell its features", unsafe { ioctl_with_mut_ref(&fd, GET_FEATURES.into(), &mut known) })?;
        if required & !known != 0 {
            return Err(VhostError::Features(required & !known));
        }
        // SAFETY: the request has no argument.
        done("be owned", unsafe { ioctl(&fd, SET_OWNER.into()) })?;
        Ok(Self { fd })
    }

    /// Settles what the driver has agreed to and where guest memory is: all of it, parts that are not plugged included, as
    /// for every other device.
    pub fn start(&self, features: u64, memory: &GuestMemory) -> Result<(), VhostError> {
        // SAFETY: the request reads a `u64`, which lives through the call.
        done("take features", unsafe { ioctl_with_ref(&self.fd, SET_FEATURES.into(), &features) })?;
        // `struct vhost_memory`: the number of regions, as two 32-bit halves of which the second is zero; then the regions.
        let mut table = vec![memory.num_regions() as u64];
        for region in memory.iter() {
            let start = region.start_addr();
            let address = memory.get_host_address(start).map_err(|_| VhostError::Ring)?;
            table.extend([start.raw_value(), region.len(), address as u64, 0]);
        }
        // SAFETY: the request reads a header and as many regions as that says, which is what the table holds; it lives
        // through the call.
        done("take the guest's memory", unsafe {
            ioctl_with_ptr(&self.fd, SET_MEM_TABLE.into(), table.as_ptr())
        })
    }

    /// Describes a queue, from its beginning, with its notifications and the event for its used buffers.
    pub fn describe(&self, index: u32, queue: &RunningQueue, call: &EventFd) -> Result<(), VhostError> {
        let placement = queue.placement();
        let number = |number| VringState { index, number };
        let event = |event: &EventFd| VringFile { index, fd: event.as_raw_fd() };
        let [descriptors, available, used] = placement.lengths();
        let host = |at: GuestAddress, length| {
            let slice = queue.memory().get_slice(at, length).map_err(|_| VhostError::Ring)?;
            Ok(slice.ptr_guard().as_ptr() as u64)
        };
        let address = VringAddress {
            index,
            flags: 0,
            descriptors: host(placement.descriptors, descriptors)?,
            used: host(placement.used, used)?,
            available: host(placement.available, available)?,
            log: 0,
        };
        self.ask("take a ring's size", SET_VRING_NUM, &number(placement.size.into()))?;
        self.ask("begin with a ring", SET_VRING_BASE, &number(0))?;
        self.ask("take a ring", SET_VRING_ADDR, &address)?;
        self.ask("hear notifications", SET_VRING_KICK, &event(queue.notification()))?;
        self.ask("interrupt", SET_VRING_CALL, &event(call))
    }

    /// What is signalled when a queue's rings make no sense.
    pub fn report_to(&self, index: u32, broken: &EventFd) -> Result<(), VhostError> {
        let file = VringFile { index, fd: broken.as_raw_fd() };
        self.ask("report a broken ring", SET_VRING_ERR, &file)
    }

    /// Moves frames between a queue and a tap from here on; or no more, and nothing is under way when this returns. How far
    /// the queue has come the kernel remembers.
    pub fn connect(&self, index: u32, tap: Option<&OwnedFd>) -> Result<(), VhostError> {
        let file = VringFile { index, fd: tap.map_or(NONE, AsRawFd::as_raw_fd) };
        self.ask("take a tap", NET_SET_BACKEND, &file)
    }

    fn ask<T>(&self, what: &'static str, request: u32, argument: &T) -> Result<(), VhostError> {
        // SAFETY: each request that is made here reads the structure that it is given, which lives through the call. Rings
        // and memory that it names stay mapped: whoever describes them keeps them until the queue is disconnected.
        done(what, unsafe { ioctl_with_ref(&self.fd, request.into(), argument) })
    }
}

fn done(what: &'static str, result: libc::c_int) -> Result<(), VhostError> {
    if result < 0 { Err(VhostError::Refused { what, source: io::Error::last_os_error() }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn structures_are_as_large_as_the_requests_say() {
        let size = |request: u32| usize::try_from(request >> 16 & 0x3fff).unwrap();
        assert_eq!(size_of::<VringState>(), size(SET_VRING_NUM));
        assert_eq!(size_of::<VringFile>(), size(NET_SET_BACKEND));
        assert_eq!(size_of::<VringAddress>(), size(SET_VRING_ADDR));
    }

    #[test]
    fn what_is_not_vhost_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        let error = Vhost::new(file.into(), 0).unwrap_err();
        assert!(matches!(error, VhostError::Refused { what: "tell its features", .. }), "{error:?}");
    }
}
