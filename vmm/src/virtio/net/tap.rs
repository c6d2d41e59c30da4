//! The tap: one descriptor, watched edge-triggered, read and written a frame at a time.

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::epoll::{Epoll, EpollCreateFlags, EpollEvent, EpollFlags, EpollTimeout};
use nix::sys::uio::writev;

use super::header::HEADER_LENGTH;
use super::offload::Offloads;
use crate::virtio::segments::Segments;

/// What the descriptor must be.
const KIND: libc::c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// Why a descriptor cannot be used as a tap.
#[derive(Debug, thiserror::Error)]
pub enum TapError {
    /// Not a tap device, or one without an interface.
    #[error("the descriptor is not an attached tap")]
    NotATap(#[source] io::Error),
    /// The interface was made with other flags.
    #[error("the interface was not made with IFF_TAP, IFF_NO_PI and IFF_VNET_HDR: its flags are {0:#x}")]
    Flags(i32),
    /// The kernel refused.
    #[error("cannot set up the tap")]
    Io(#[from] io::Error),
}

/// A tap with an interface.
#[derive(Debug)]
pub struct Attached {
    fd: OwnedFd,
    offloads: Offloads,
}

/// One whose frames are moved here. Non-blocking.
#[derive(Debug)]
pub struct Tap {
    tap: Attached,
    epoll: Epoll,
}

/// What has changed since it was last asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Readiness {
    /// There may be a frame, or an error that reading will tell.
    pub readable: bool,
    /// There may be room again.
    pub writable: bool,
}

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transfer {
    /// A frame of so many bytes, its header included, was moved.
    Frame(usize),
    /// Not now: the tap is empty, or full.
    Later,
    /// This frame cannot be moved; others may.
    Refused,
    /// There is no tap any more.
    Gone,
}

impl Attached {
    /// Takes an attached tap and finds out what its kernel can do.
    pub fn new(fd: OwnedFd) -> Result<Self, TapError> {
        let flags = interface_flags(&fd).map_err(TapError::NotATap)?;
        if flags & KIND != KIND {
            return Err(TapError::Flags(flags));
        }
        let size = libc::c_int::try_from(HEADER_LENGTH).unwrap_or(0);
        // SAFETY: the request reads one int, which lives through the call.
        check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size) })?;
        let mut tap = Self { fd, offloads: Offloads::all() };
        // Kernels before 6.2 do not know UDP segmentation, and say so.
        if tap.set_offloads(Offloads::all()).is_err() {
            tap.offloads = Offloads::all() - Offloads::UDP;
        }
        tap.set_offloads(Offloads::empty())?;
        Ok(tap)
    }

    /// What the kernel can be asked to do, and to leave undone.
    pub fn offloads(&self) -> Offloads {
        self.offloads
    }

    /// Tells the kernel what it may leave undone in frames for the guest (`TUNSETOFFLOAD`).
    pub fn set_offloads(&self, offloads: Offloads) -> io::Result<()> {
        let flags = libc::c_ulong::from(offloads.tap_flags());
        // SAFETY: the request takes its argument by value.
        check(unsafe { libc::ioctl(self.fd.as_raw_fd(), libc::TUNSETOFFLOAD, flags) })
    }

    /// Its descriptor.
    pub fn fd(&self) -> &OwnedFd {
        &self.fd
    }
}

impl Tap {
    /// Takes an attached tap.
    pub fn new(fd: OwnedFd) -> Result<Self, TapError> {
        Ok(Self::watched(Attached::new(fd)?)?)
    }

    fn watched(tap: Attached) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(fcntl(&tap.fd, FcntlArg::F_GETFL)?);
        fcntl(&tap.fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let epoll = Epoll::new(EpollCreateFlags::EPOLL_CLOEXEC)?;
        let events = EpollFlags::EPOLLIN | EpollFlags::EPOLLOUT | EpollFlags::EPOLLET;
        epoll.add(&tap.fd, EpollEvent::new(events, 0))?;
        Ok(Self { tap, epoll })
    }

    /// What its kernel does of a frame's work.
    pub fn attached(&self) -> &Attached {
        &self.tap
    }

    /// The descriptor to watch, level-triggered; after it was ready, [`poll`](Self::poll) says for what.
    pub fn poll_fd(&self) -> RawFd {
        self.epoll.0.as_raw_fd()
    }

    /// What has become possible since the last call.
    pub fn poll(&self) -> io::Result<Readiness> {
        let mut events = [EpollEvent::empty()];
        let count = match self.epoll.wait(&mut events, EpollTimeout::ZERO) {
            Err(Errno::EINTR) => 0,
            other => other?,
        };
        let seen = events[..count].iter().fold(EpollFlags::empty(), |all, event| all | event.events());
        let broken = seen.intersects(EpollFlags::EPOLLERR | EpollFlags::EPOLLHUP);
        Ok(Readiness {
            readable: broken || seen.contains(EpollFlags::EPOLLIN),
            writable: broken || seen.contains(EpollFlags::EPOLLOUT),
        })
    }

    /// Stops watching a tap that is gone: it would be ready for ever.
    pub fn forget(&self) {
        if let Err(error) = self.epoll.delete(&self.tap.fd) {
            log::error!("cannot stop watching a tap: {error}");
        }
    }

    /// Reads a frame with its header. One that is longer than the buffer is cut to the buffer's length.
    pub fn read(&self, frame: &mut [u8]) -> Transfer {
        loop {
            match nix::unistd::read(&self.tap.fd, frame) {
                // No frame is empty: the end of what is not a tap.
                Ok(0) => return Transfer::Gone,
                Ok(length) => return Transfer::Frame(length),
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) => return Transfer::Later,
                Err(error) => {
                    log::debug!("reading from a tap: {error}");
                    return Transfer::Gone;
                }
            }
        }
    }

    /// Writes a frame straight from guest memory, after a header of ours.
    pub fn write(&self, header: &[u8; HEADER_LENGTH], frame: Segments<'_, '_>) -> Transfer {
        let result = frame.write_after(header, self.tap.fd.as_fd()).unwrap_or_else(|| {
            // In more pieces than one call takes, which no driver does for speed.
            let mut whole = vec![0; frame.len()];
            frame.copy_to(&mut whole);
            Ok(writev(&self.tap.fd, &[IoSlice::new(header), IoSlice::new(&whole)])?)
        });
        match result {
            Ok(length) => Transfer::Frame(length),
            Err(error) => match error.raw_os_error() {
                Some(libc::EAGAIN) => Transfer::Later,
                Some(libc::EBADFD | libc::EPIPE | libc::ECONNRESET) => Transfer::Gone,
                // EIO: the interface is down. EINVAL: the kernel understands the frame better than we do.
                _ => Transfer::Refused,
            },
        }
    }
}

/// The flags of the tap's interface (`TUNGETIFF`).
fn interface_flags(fd: &OwnedFd) -> io::Result<libc::c_int> {
    // SAFETY: `ifreq` is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    // SAFETY: the request writes one `ifreq`, which lives through the call.
    check(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
    // SAFETY: the kernel has filled the flags; every bit pattern is a valid number.
    Ok(libc::c_int::from(unsafe { request.ifr_ifru.ifru_flags }))
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(any(test, feature = "testing"))]
impl Tap {
    /// A socket that keeps frames apart, in place of a tap.
    #[allow(clippy::unwrap_used, reason = "tests only")]
    pub fn stand_in(socket: OwnedFd) -> Self {
        Self::watched(Attached { fd: socket, offloads: Offloads::all() }).unwrap()
    }
}
