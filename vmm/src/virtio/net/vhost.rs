//! The network device where the host's kernel moves the frames, by vhost-net: it reads the driver's rings itself, hears its
//! notifications from KVM and interrupts it through KVM. Here is what is left: what the driver is told, and when the kernel
//! begins and ends.
//!
//! `InterruptStatus` always says that buffers were used, as the kernel cannot write to it. Handing on the kernel's signal from
//! here would say it in time, at the price of waking a thread for every interrupt.

use std::os::fd::{AsRawFd, OwnedFd, RawFd};

use hull_protocol::vmm::{NetworkConfig, NetworkLimits};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use super::interface::{Interface, Link};
use super::offload::{Direction, Offloads};
use super::tap::Attached;
use super::{DEVICE_TYPE, FEATURE_MRG_RXBUF, NetError, QUEUE_SIZES, RX, TX, features_over};
use crate::virtio::device::{Activated, DeviceError, Listener, Quiet, VirtioDevice};
use crate::virtio::interrupt::{Interrupt, USED_BUFFER};
use crate::virtio::mmio::TRANSPORT_FEATURES;
use crate::virtio::queue::RunningQueue;
use crate::virtio::vhost::{Vhost, VhostError};

/// What the kernel has to know of, as it reads the rings: other features are the tap's, or only told.
const KERNELS_FEATURES: u64 = TRANSPORT_FEATURES | FEATURE_MRG_RXBUF;

/// A network interface whose frames the host's kernel moves.
#[derive(Debug)]
pub struct VhostNet {
    interface: Interface,
    tap: Attached,
    vhost: Vhost,
    /// Signalled by the kernel when a ring makes no sense, or the tap it sends to is gone; and by us when it cannot begin.
    broken: EventFd,
    /// Why it cannot.
    refusal: Option<DeviceError>,
    running: Option<Running>,
}

/// What the kernel uses, kept until it does not.
#[derive(Debug)]
struct Running {
    _queues: [RunningQueue; 2],
    interrupt: Interrupt,
}

impl VhostNet {
    /// An interface whose other end is a tap: `IFF_TAP`, `IFF_NO_PI` and `IFF_VNET_HDR`; the second descriptor is
    /// `/dev/vhost-net`, opened for this interface.
    pub fn new(config: &NetworkConfig, fds: Vec<OwnedFd>) -> Result<Self, NetError> {
        let count = fds.len();
        let Ok([tap, vhost]) = <[OwnedFd; 2]>::try_from(fds) else {
            return Err(NetError::VhostDescriptorCount(count));
        };
        let interface = Interface::new(config)?;
        let name = || config.name.clone();
        if config.limits != NetworkLimits::default() {
            return Err(NetError::VhostLimits(name()));
        }
        let tap = Attached::new(tap).map_err(|source| NetError::Tap { name: name(), source })?;
        let refused = |source| NetError::Vhost { name: name(), source };
        let vhost = Vhost::new(vhost, KERNELS_FEATURES).map_err(refused)?;
        let broken = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC)
            .map_err(|source| refused(VhostError::Refused { what: "report a broken ring", source }))?;
        for index in [RX, TX] {
            vhost.report_to(number(index), &broken).map_err(refused)?;
        }
        Ok(Self { interface, tap, vhost, broken, refusal: None, running: None })
    }

    fn start(&mut self, activated: Activated) -> Result<(), DeviceError> {
        let Activated { queues, features, interrupt } = activated;
        let mut queues = queues.into_iter();
        let mut next = |index| queues.next().flatten().ok_or(DeviceError::MissingQueue(index));
        let queues = [next(RX)?, next(TX)?];
        // Where that fails, frames the driver cannot take are dropped one by one.
        if let Err(error) = self.tap.set_offloads(Offloads::agreed(features, Direction::ToGuest)) {
            log::warn!("{}: cannot agree with the tap on offloads: {error}", self.interface.name);
        }
        self.vhost.start(features & KERNELS_FEATURES, queues[RX].memory())?;
        for (index, queue) in queues.iter().enumerate() {
            self.vhost.describe(number(index), queue, interrupt.event())?;
        }
        interrupt.set_standing(USED_BUFFER);
        self.running = Some(Running { _queues: queues, interrupt });
        self.connect()
    }

    fn connect(&self) -> Result<(), DeviceError> {
        for index in [RX, TX] {
            self.vhost.connect(number(index), Some(self.tap.fd()))?;
        }
        Ok(())
    }

    /// Nothing is under way when this returns.
    fn disconnect(&self) {
        for index in [RX, TX] {
            // The kernel has no reason to refuse that.
            if let Err(error) = self.vhost.connect(number(index), None) {
                log::error!("{}: {error}", self.interface.name);
            }
        }
    }
}

/// A queue's number as the kernel takes it.
fn number(index: usize) -> u32 {
    u32::try_from(index).unwrap_or(u32::MAX)
}

impl VirtioDevice for VhostNet {
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
        features_over(&self.tap)
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        self.interface.read(offset, data);
    }

    fn config_generation(&self) -> u32 {
        self.interface.generation()
    }

    fn activate(&mut self, activated: Activated) {
        let Err(error) = self.start(activated) else { return };
        // As a tap that is gone is.
        if matches!(error, DeviceError::Vhost(VhostError::Refused { .. })) {
            self.interface.link = Link::Down;
        }
        self.refusal = Some(error);
        if let Err(error) = self.broken.write(1) {
            log::error!("{}: cannot report a failure: {error}", self.interface.name);
        }
    }

    fn reset(&mut self) {
        self.disconnect();
        if let Some(running) = self.running.take() {
            running.interrupt.set_standing(0);
        }
        self.refusal = None;
        // What was signalled belongs to the past. It fails only if nothing was.
        let _ = self.broken.read();
    }

    fn quiesce(&mut self) -> Result<Quiet, DeviceError> {
        self.disconnect();
        Ok(Quiet::Yes)
    }

    fn resume(&mut self) -> Result<(), DeviceError> {
        if self.running.is_some() { self.connect() } else { Ok(()) }
    }

    fn listener(&self) -> Listener {
        Listener::Kernel
    }

    fn queue_notified(&mut self, _queue: usize) -> Result<(), DeviceError> {
        Ok(())
    }

    fn poll_fds(&self) -> Vec<RawFd> {
        vec![self.broken.as_raw_fd()]
    }

    fn fd_ready(&mut self, _index: usize) -> Result<(), DeviceError> {
        // An event that a reset has overtaken is none.
        if self.broken.read().is_err() {
            return Ok(());
        }
        Err(self.refusal.take().unwrap_or(DeviceError::Kernel))
    }
}
