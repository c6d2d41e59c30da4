//! What a driver is told of an interface: its address, its MTU, and whether its cable is plugged.

use hull_protocol::vmm::NetworkConfig;

use super::NetError;
use crate::virtio::device::copy_config;

/// The longest name of a network.
pub const NAME_MAX: usize = 20;
/// The least MTU (RFC 791).
pub const MTU_MIN: u16 = 68;

/// `virtio_net_config` up to the MTU (§5.1.4).
const CONFIG_LENGTH: usize = 12;
const CONFIG_STATUS: usize = 6;
const CONFIG_MTU: usize = 10;
/// `VIRTIO_NET_S_LINK_UP`.
const LINK_UP: u16 = 1;

/// An interface as its driver sees it.
#[derive(Debug)]
pub struct Interface {
    /// Its device's label.
    pub name: String,
    /// Its cable.
    pub link: Link,
    mac: [u8; 6],
    mtu: u16,
}

/// Whether there is a tap at the other end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Link {
    Up,
    /// It was deleted; nothing brings it back.
    Down,
}

impl Interface {
    /// Checks a configuration. The cable is plugged.
    pub fn new(config: &NetworkConfig) -> Result<Self, NetError> {
        let name = config.name.as_str();
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'-' | b'_');
        if name.is_empty() || name.len() > NAME_MAX || !name.bytes().all(plain) {
            return Err(NetError::Name(name.into()));
        }
        if config.mac[0] & 1 != 0 || config.mac == [0; 6] {
            return Err(NetError::Mac(name.into()));
        }
        if config.mtu < MTU_MIN {
            return Err(NetError::Mtu { name: name.into(), mtu: config.mtu });
        }
        Ok(Self { name: format!("net-{name}"), link: Link::Up, mac: config.mac, mtu: config.mtu })
    }

    /// Reads the configuration space.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        let mut config = [0; CONFIG_LENGTH];
        config[..6].copy_from_slice(&self.mac);
        let status = match self.link {
            Link::Up => LINK_UP,
            Link::Down => 0,
        };
        config[CONFIG_STATUS..CONFIG_STATUS + 2].copy_from_slice(&status.to_le_bytes());
        config[CONFIG_MTU..].copy_from_slice(&self.mtu.to_le_bytes());
        copy_config(&config, offset, data);
    }

    /// The link changes once.
    pub fn generation(&self) -> u32 {
        match self.link {
            Link::Up => 0,
            Link::Down => 1,
        }
    }
}
