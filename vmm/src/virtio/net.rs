//! The network device (virtio 1.3 §5.1) over a tap that somebody else opened.
//!
//! Frames carry the virtio header both ways (`IFF_VNET_HDR`): large segments and checksums that are not filled in yet go
//! through as they are, as far as driver and kernel have agreed on it. Nothing here waits: the tap is watched
//! edge-triggered, and [`rx`] and [`tx`] remember what they could not do yet. Where there are limits, each way has its
//! own, and an alarm; what the limits hold up to the guest waits in the tap, which drops what it has no room for.
//!
//! [`vhost`] is the same interface where the host's kernel moves the frames.

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::time::Instant;

use hull_protocol::vmm::{NetworkBackend, NetworkConfig, RateLimits};

use super::device::{Activated, DeviceError, VirtioDevice};
use super::interrupt::{CONFIGURATION_CHANGE, Interrupt};
use super::queue::RunningQueue;
use super::vhost::VhostError;
use crate::rate_limiter::{Clock, Throttle};

mod header;
mod interface;
mod offload;
mod rx;
mod tap;
#[cfg(test)]
mod tests;
mod tx;
mod vhost;

use interface::{Interface, Link, MTU_MIN, NAME_MAX};
use offload::{Direction, Offloads};
use rx::Receiver;
pub use tap::TapError;
use tap::{Attached, Readiness, Tap};
use tx::Transmitter;
pub use vhost::VhostNet;

/// Virtio device id (§5.1.1).
const DEVICE_TYPE: u32 = 1;
/// Queues (§5.1.2), by index: to the guest, from the guest.
const RX: usize = 0;
const TX: usize = 1;
const QUEUE_SIZES: [u16; 2] = [256, 256];

const FEATURE_MTU: u64 = 1 << 3;
const FEATURE_MAC: u64 = 1 << 5;
const FEATURE_MRG_RXBUF: u64 = 1 << 15;
const FEATURE_STATUS: u64 = 1 << 16;

/// A network interface.
#[derive(Debug)]
pub struct Net {
    interface: Interface,
    tap: Tap,
    receiver: Receiver,
    transmitter: Transmitter,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    rx: RunningQueue,
    tx: RunningQueue,
    interrupt: Interrupt,
    agreed: Agreed,
}

/// What driver and device have agreed on.
#[derive(Clone, Copy, Debug)]
struct Agreed {
    to_guest: Offloads,
    from_guest: Offloads,
    buffers: Buffers,
}

/// How a frame lies in the driver's buffers (§5.1.6.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Buffers {
    /// In one chain, or not at all.
    Single,
    /// In as many chains as it takes (`VIRTIO_NET_F_MRG_RXBUF`).
    Mergeable,
}

/// The tap does not exist any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Gone;

/// Why a network interface cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum NetError {
    /// Not exactly one descriptor.
    #[error("a network takes one file descriptor, its tap, but came with {0}")]
    DescriptorCount(usize),
    /// Not exactly two descriptors.
    #[error("a network with vhost takes two file descriptors, its tap and /dev/vhost-net, but came with {0}")]
    VhostDescriptorCount(usize),
    /// Nobody would hold the frames up.
    #[error("network {0} has limits, which vhost does not know")]
    VhostLimits(String),
    /// The kernel does not serve it.
    #[error("the kernel cannot serve network {name}")]
    Vhost {
        /// The network.
        name: String,
        /// Why.
        source: VhostError,
    },
    /// Not 1 to 20 letters, digits, dots, dashes and underscores.
    #[error("the network name {0:?} is not 1 to {NAME_MAX} letters, digits, '.', '-' or '_'")]
    Name(String),
    /// A group address, or none at all.
    #[error("the MAC address of network {0} is not that of a single interface")]
    Mac(String),
    /// Less than every network must carry.
    #[error("the MTU of network {name} is {mtu}; the least is {MTU_MIN}")]
    Mtu {
        /// The network.
        name: String,
        /// Its MTU.
        mtu: u16,
    },
    /// The descriptor is of no use.
    #[error("the tap of network {name} cannot be used")]
    Tap {
        /// The network.
        name: String,
        /// Why.
        source: TapError,
    },
    /// The host gives no timer for the limits.
    #[error("cannot set up the limits of network {name}")]
    Limits {
        /// The network.
        name: String,
        /// Why.
        source: io::Error,
    },
}

/// A descriptor that the device watches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Source {
    Tap,
    /// The alarm of the limits on the way in.
    ToGuest,
    /// The alarm of the limits on the way out.
    FromGuest,
}

/// The device for an interface, of the kind that its configuration asks for.
pub fn device(config: &NetworkConfig, fds: Vec<OwnedFd>) -> Result<Box<dyn VirtioDevice>, NetError> {
    Ok(match config.backend {
        NetworkBackend::Userspace => Box::new(Net::new(config, fds)?),
        NetworkBackend::Vhost => Box::new(VhostNet::new(config, fds)?),
    })
}

impl Net {
    /// An interface whose other end is a tap: `IFF_TAP`, `IFF_NO_PI` and `IFF_VNET_HDR`. It becomes non-blocking.
    pub fn new(config: &NetworkConfig, fds: Vec<OwnedFd>) -> Result<Self, NetError> {
        let count = fds.len();
        let Ok([tap]) = <[OwnedFd; 1]>::try_from(fds) else { return Err(NetError::DescriptorCount(count)) };
        Interface::new(config)?;
        let tap = Tap::new(tap).map_err(|source| NetError::Tap { name: config.name.clone(), source })?;
        Self::over(config, tap, || Box::new(Instant::now))
    }

    /// An interface whose other end is a socket that keeps frames apart.
    #[cfg(feature = "testing")]
    #[allow(clippy::unwrap_used, reason = "tests only")]
    pub fn stand_in(config: &NetworkConfig, socket: OwnedFd) -> Self {
        Self::over(config, Tap::stand_in(socket), || Box::new(Instant::now)).unwrap()
    }

    fn over(config: &NetworkConfig, tap: Tap, clock: impl Fn() -> Clock) -> Result<Self, NetError> {
        let throttle = |limits: &RateLimits| {
            Throttle::new(limits, clock())
                .map_err(|source| NetError::Limits { name: config.name.clone(), source })
        };
        Ok(Self {
            interface: Interface::new(config)?,
            tap,
            receiver: Receiver::new(throttle(&config.limits.to_guest)?),
            transmitter: Transmitter::new(throttle(&config.limits.from_guest)?),
            running: None,
        })
    }

    /// What is watched, in the order of [`poll_fds`](VirtioDevice::poll_fds).
    fn sources(&self) -> impl Iterator<Item = (RawFd, Source)> {
        let alarm = |throttle: Option<&Throttle>, source| throttle.map(|throttle| (throttle.fd(), source));
        let to_guest = alarm(self.receiver.throttle(), Source::ToGuest);
        let from_guest = alarm(self.transmitter.throttle(), Source::FromGuest);
        [(self.tap.poll_fd(), Source::Tap)].into_iter().chain(to_guest).chain(from_guest)
    }

    fn tap_ready(&mut self) -> Result<(), DeviceError> {
        let Readiness { readable, writable } = self.tap.poll()?;
        if readable {
            self.receiver.tap_readable();
            self.receive()?;
        }
        if writable && self.transmitter.tap_writable() {
            self.transmit()?;
        }
        Ok(())
    }

    fn receive(&mut self) -> Result<(), DeviceError> {
        let Some(running) = &mut self.running else { return Ok(()) };
        match self.interface.link {
            Link::Down => Ok(()),
            Link::Up => match self.receiver.fill(&mut running.rx, &self.tap, running.agreed)? {
                Some(Gone) => self.pull_cable(),
                None => Ok(()),
            },
        }
    }

    fn transmit(&mut self) -> Result<(), DeviceError> {
        let Some(running) = &mut self.running else { return Ok(()) };
        let tap = match self.interface.link {
            Link::Up => Some(&self.tap),
            Link::Down => None,
        };
        match self.transmitter.drain(&mut running.tx, tap, running.agreed.from_guest)? {
            Some(Gone) => self.pull_cable(),
            None => Ok(()),
        }
    }

    /// The tap is gone: the driver sees its cable pulled, and what it sends, or has queued to be sent, is lost.
    fn pull_cable(&mut self) -> Result<(), DeviceError> {
        log::warn!("{}: the tap is gone", self.interface.name);
        self.interface.link = Link::Down;
        self.tap.forget();
        self.transmitter.reset();
        if let Some(running) = &self.running {
            running.interrupt.raise(CONFIGURATION_CHANGE);
        }
        self.transmit()
    }
}

/// What is offered to the driver of an interface over this tap, whoever moves its frames.
fn features_over(tap: &Attached) -> u64 {
    let plain = FEATURE_MTU | FEATURE_MAC | FEATURE_MRG_RXBUF | FEATURE_STATUS;
    let offloads = tap.offloads();
    plain | offloads.features(Direction::ToGuest) | offloads.features(Direction::FromGuest)
}

impl VirtioDevice for Net {
    fn name(&self) -> &str {
        &self.interface.name
    }

    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn max_queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        features_over(self.tap.attached())
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.interface.read(offset, data);
    }

    fn config_generation(&self) -> u32 {
        self.interface.generation()
    }

    fn activate(&mut self, activated: Activated) {
        let features = activated.features;
        let agreed = Agreed {
            to_guest: Offloads::agreed(features, Direction::ToGuest),
            from_guest: Offloads::agreed(features, Direction::FromGuest),
            buffers: if features & FEATURE_MRG_RXBUF != 0 { Buffers::Mergeable } else { Buffers::Single },
        };
        // Where that fails, frames the driver cannot take are dropped one by one.
        if self.interface.link == Link::Up
            && let Err(error) = self.tap.attached().set_offloads(agreed.to_guest)
        {
            log::warn!("{}: cannot agree with the tap on offloads: {error}", self.interface.name);
        }
        let mut queues = activated.queues.into_iter();
        let (rx, tx) = (queues.next().flatten(), queues.next().flatten());
        let interrupt = activated.interrupt;
        self.running = rx.zip(tx).map(|(rx, tx)| Running { rx, tx, interrupt, agreed });
    }

    fn reset(&mut self) {
        self.running = None;
        self.receiver.reset();
        self.transmitter.reset();
    }

    fn queue_notified(&mut self, queue: usize) -> Result<(), DeviceError> {
        if self.running.is_none() {
            return Err(DeviceError::MissingQueue(queue));
        }
        match queue {
            RX => self.receive(),
            _ => self.transmit(),
        }
    }

    fn poll_fds(&self) -> Vec<RawFd> {
        self.sources().map(|(fd, _)| fd).collect()
    }

    fn fd_ready(&mut self, index: usize) -> Result<(), DeviceError> {
        let source = self.sources().nth(index).map(|(_, source)| source);
        match source {
            Some(Source::Tap) => self.tap_ready(),
            Some(Source::ToGuest) => {
                self.receiver.throttle().map_or(Ok(()), Throttle::acknowledge)?;
                self.receive()
            }
            Some(Source::FromGuest) => {
                self.transmitter.throttle().map_or(Ok(()), Throttle::acknowledge)?;
                self.transmit()
            }
            None => Ok(()),
        }
    }

    fn bytes_moved(&self) -> (u64, u64) {
        (self.receiver.bytes(), self.transmitter.bytes())
    }
}
