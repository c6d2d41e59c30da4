//! The host ports a guest may connect to, and the channels by which the host learns of it.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

use hull_protocol::vmm::{Channel, PortConnection};
use nix::fcntl::{FcntlArg, OFlag, fcntl};

/// Port channels that are still open.
#[derive(Debug)]
pub struct Ports {
    channels: HashMap<u32, Channel>,
}

impl Ports {
    /// Takes one channel for each port; `None` if a port is named twice.
    pub fn new(ports: &[u32], channels: Vec<OwnedFd>) -> io::Result<Option<Self>> {
        let mut open = HashMap::new();
        for (port, channel) in ports.iter().zip(channels) {
            let flags = OFlag::from_bits_retain(fcntl(&channel, FcntlArg::F_GETFL)?);
            fcntl(&channel, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
            match open.entry(*port) {
                Entry::Occupied(_) => return Ok(None),
                Entry::Vacant(entry) => entry.insert(Channel::from(channel)),
            };
        }
        Ok(Some(Self { channels: open }))
    }

    /// Offers the host a connection from the guest and answers our end of it, or `None` if there is no such port, its
    /// channel has closed, or the host lets offers pile up.
    pub fn connect(&mut self, port: u32, guest_port: u32) -> Option<UnixStream> {
        let channel = self.channels.get(&port)?;
        let (ours, theirs) = UnixStream::pair().ok()?;
        match channel.send(&PortConnection { port, guest_port }, &[theirs.as_fd()]) {
            Ok(()) => Some(ours),
            Err(error) if error.is_would_block() => {
                log::debug!("a connection to port {port} is refused: the host does not take any");
                None
            }
            Err(_) => {
                // The other end is closed, for good: a socket pair cannot be reconnected.
                self.channels.remove(&port);
                None
            }
        }
    }
}
