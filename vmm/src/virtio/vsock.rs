//! The socket device (virtio 1.3 §5.10): stream sockets between the guest and unix sockets on the host.
//!
//! No vhost and no host-wide context ids: the device is private to its VM. A process on the host connects to the
//! listening socket and says `CONNECT <port>\n`; a connection from the guest is handed to the host over the channel of
//! its port, with one end of a socket pair. Nothing here waits, and no timer runs.

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::os::unix::net::UnixListener;

use hull_protocol::vmm::VsockConfig;
use nix::sys::socket::{SockType, getsockopt, sockopt};

use super::device::{Activated, DeviceError, VirtioDevice, copy_config};
use super::queue::{Handled, RunningQueue};

mod connection;
mod credit;
mod handshake;
mod muxer;
pub mod packet;
mod ports;
#[cfg(test)]
mod tests;

use muxer::Muxer;
use packet::HEADER_LENGTH;
use ports::Ports;

/// Virtio device id (§5.10.1).
const DEVICE_TYPE: u32 = 19;
/// Queues (§5.10.2), by index: to the guest, from the guest, events.
const RX: usize = 0;
const TX: usize = 1;
const QUEUE_SIZES: [u16; 3] = [256, 256, 16];

/// Stream sockets between the guest and the host.
#[derive(Debug)]
pub struct Vsock {
    guest_cid: u32,
    muxer: Muxer,
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    rx: RunningQueue,
    tx: RunningQueue,
    intake: Intake,
}

/// Whether packets from the guest are taken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Intake {
    Open,
    /// Too many answers wait for buffers of the guest.
    Stalled,
}

/// Why the socket device cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum VsockError {
    /// Not as many port channels as ports.
    #[error("{ports} guest-to-host ports came with {channels} port channels")]
    ChannelCount {
        /// Ports in the configuration.
        ports: usize,
        /// Descriptors received.
        channels: usize,
    },
    /// 0 to 2 have a meaning of their own (§5.10.4), the highest is the wildcard.
    #[error("{0} cannot be a guest's context id")]
    Cid(u32),
    /// A port is named twice.
    #[error("a guest-to-host port is named twice")]
    DuplicatePort,
    /// The first descriptor is not a listening stream socket.
    #[error("the listener is not a listening unix stream socket")]
    NotListening,
    /// A descriptor cannot be used.
    #[error("cannot set up the vsock device's descriptors")]
    Io(#[from] io::Error),
}

impl Vsock {
    /// A device with the guest's context id. `listener` is a listening unix stream socket; channel `i` belongs to
    /// port `i` of the configuration. All become non-blocking.
    pub fn new(
        config: &VsockConfig,
        listener: OwnedFd,
        port_channels: Vec<OwnedFd>,
    ) -> Result<Self, VsockError> {
        let ports = &config.guest_to_host_ports;
        if ports.len() != port_channels.len() {
            return Err(VsockError::ChannelCount { ports: ports.len(), channels: port_channels.len() });
        }
        if (0..=2).contains(&config.guest_cid) || config.guest_cid == u32::MAX {
            return Err(VsockError::Cid(config.guest_cid));
        }
        let listening = getsockopt(&listener, sockopt::AcceptConn) == Ok(true);
        if !listening || getsockopt(&listener, sockopt::SockType) != Ok(SockType::Stream) {
            return Err(VsockError::NotListening);
        }
        let listener = UnixListener::from(listener);
        listener.set_nonblocking(true)?;
        let ports = Ports::new(ports, port_channels)?.ok_or(VsockError::DuplicatePort)?;
        let muxer = Muxer::new(config.guest_cid, listener, ports)?;
        Ok(Self { guest_cid: config.guest_cid, muxer, running: None })
    }
}

/// Takes packets from the guest.
fn drain(running: &mut Running, muxer: &mut Muxer) -> Result<(), DeviceError> {
    let Running { tx, intake, .. } = running;
    tx.process(|chain| {
        if !muxer.has_room() {
            *intake = Intake::Stalled;
            return Handled::Stop;
        }
        muxer.accept(chain.readable);
        Handled::Done(0)
    })
    .map_err(|source| DeviceError::Queue { queue: TX, source })
}

/// Gives packets to the guest, as many as it has buffers for.
fn fill(running: &mut Running, muxer: &mut Muxer) -> Result<(), DeviceError> {
    let Running { rx, tx, intake } = running;
    if muxer.has_output() {
        rx.process(|chain| {
            if chain.writable.len() <= HEADER_LENGTH {
                // Too small for any payload: useless, but the driver's own.
                return Handled::Done(0);
            }
            muxer.produce(chain.writable).map_or(Handled::Stop, Handled::Done)
        })
        .map_err(|source| DeviceError::Queue { queue: RX, source })?;
    }
    if *intake == Intake::Stalled && muxer.has_room() {
        *intake = Intake::Open;
        tx.notify_self();
    }
    Ok(())
}

impl VirtioDevice for Vsock {
    fn name(&self) -> &str {
        "vsock"
    }

    fn device_type(&self) -> u32 {
        DEVICE_TYPE
    }

    fn max_queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// Without any feature bit the device has stream sockets (§5.10.3).
    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = u64::from(self.guest_cid).to_le_bytes();
        copy_config(&config, offset, data);
    }

    fn activate(&mut self, activated: Activated) {
        let mut queues = activated.queues.into_iter();
        let (rx, tx) = (queues.next().flatten(), queues.next().flatten());
        self.running = rx.zip(tx).map(|(rx, tx)| Running { rx, tx, intake: Intake::Open });
        if self.running.is_some()
            && let Err(error) = self.muxer.listen()
        {
            log::error!("no connection from the host can be accepted: {error}");
        }
    }

    fn reset(&mut self) {
        self.running = None;
        self.muxer.clear();
    }

    fn queue_notified(&mut self, queue: usize) -> Result<(), DeviceError> {
        let Some(running) = &mut self.running else { return Err(DeviceError::MissingQueue(queue)) };
        if queue == TX {
            drain(running, &mut self.muxer)?;
        }
        fill(running, &mut self.muxer)
    }

    fn poll_fds(&self) -> Vec<RawFd> {
        vec![self.muxer.poll_fd()]
    }

    fn fd_ready(&mut self, _index: usize) -> Result<(), DeviceError> {
        self.muxer.poll()?;
        self.running.as_mut().map_or(Ok(()), |running| fill(running, &mut self.muxer))
    }

    fn bytes_moved(&self) -> (u64, u64) {
        let moved = self.muxer.moved();
        (moved.to_guest, moved.from_guest)
    }
}
