//! Links: the interfaces of a namespace.

use crate::message::{Message, attributes, text, u16_at, u32_at, u64_at};
use crate::{Error, Mac, Socket};

/// `ARPHRD_ETHER`: a link that carries Ethernet frames.
pub const ETHERNET: u16 = 1;

/// The longest name, in bytes (`IFNAMSIZ` without its NUL).
pub const NAME_MAX: usize = 15;

const SKIP_STATISTICS: u32 = 1 << 3;
const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_LINKINFO: u16 = 18;
const IFLA_STATS64: u16 = 23;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_INFO_KIND: u16 = 1;
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
/// `struct ifinfomsg`, in bytes.
const FIXED: usize = 16;

/// A link.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number in the namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its address, where that is an Ethernet one.
    pub mac: Option<Mac>,
    /// The largest packet in bytes.
    pub mtu: u32,
    /// `IFF_*`.
    pub flags: u32,
    /// `ARPHRD_*`.
    pub hardware: u16,
    /// What it is: veth, tun, and so on; empty for hardware, and for virtio devices.
    pub kind: String,
    /// What went through it, where it was asked for.
    pub counters: Counters,
}

/// What went through a link since it exists.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs, reason = "the kernel's names in struct rtnl_link_stats64")]
pub struct Counters {
    pub rx_packets: u64,
    pub tx_packets: u64,
    pub rx_bytes: u64,
    pub tx_bytes: u64,
    pub rx_errors: u64,
    pub tx_errors: u64,
    pub rx_dropped: u64,
    pub tx_dropped: u64,
}

/// Whether a list of links is to have their counters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Statistics {
    /// It is.
    With,
    /// It is not, which is faster.
    Without,
}

/// Whether a link may be used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// It may.
    Up,
    /// It may not.
    Down,
}

/// What of a link is to be changed; what is absent stays.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Change<'a> {
    /// Another name; the link must be down.
    pub name: Option<&'a str>,
    /// The largest packet in bytes.
    pub mtu: Option<u32>,
    /// Up or down.
    pub state: Option<State>,
    /// Who makes the link's own IPv6 address.
    pub link_local: Option<LinkLocal>,
}

/// Who makes a link's own IPv6 address, the one of fe80::/64.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LinkLocal {
    /// The kernel, of the link's Ethernet address.
    Kernel,
    /// Nobody but who calls.
    ByHand,
}

impl Link {
    /// Whether it is up.
    pub fn is_up(&self) -> bool {
        self.flags & libc::IFF_UP.cast_unsigned() != 0
    }

    /// Whether it is the namespace's loopback.
    pub fn is_loopback(&self) -> bool {
        self.flags & libc::IFF_LOOPBACK.cast_unsigned() != 0
    }

    fn parse(body: &[u8]) -> Option<Self> {
        let mut link = Self {
            index: u32_at(body, 4)?,
            name: String::new(),
            mac: None,
            mtu: 0,
            flags: u32_at(body, 8)?,
            hardware: u16_at(body, 2)?,
            kind: String::new(),
            counters: Counters::default(),
        };
        for (kind, value) in attributes(body.get(FIXED..)?) {
            match kind {
                IFLA_ADDRESS => link.mac = value.try_into().ok().map(Mac),
                IFLA_IFNAME => link.name = text(value),
                IFLA_MTU => link.mtu = u32_at(value, 0)?,
                IFLA_LINKINFO => {
                    let found = attributes(value).find(|(kind, _)| *kind == IFLA_INFO_KIND);
                    link.kind = found.map(|(_, kind)| text(kind)).unwrap_or_default();
                }
                IFLA_STATS64 => link.counters = Counters::parse(value)?,
                _ => {}
            }
        }
        Some(link)
    }
}

impl Counters {
    fn parse(value: &[u8]) -> Option<Self> {
        let at = |number: usize| u64_at(value, number * 8);
        Some(Self {
            rx_packets: at(0)?,
            tx_packets: at(1)?,
            rx_bytes: at(2)?,
            tx_bytes: at(3)?,
            rx_errors: at(4)?,
            tx_errors: at(5)?,
            rx_dropped: at(6)?,
            tx_dropped: at(7)?,
        })
    }
}

/// `struct ifinfomsg`.
fn fixed(index: u32, flags: u32, changed: u32) -> [u8; FIXED] {
    let mut bytes = [0; FIXED];
    bytes[4..8].copy_from_slice(&index.to_ne_bytes());
    bytes[8..12].copy_from_slice(&flags.to_ne_bytes());
    bytes[12..16].copy_from_slice(&changed.to_ne_bytes());
    bytes
}

/// All links, in the order of their numbers.
pub fn list(socket: &Socket, statistics: Statistics) -> Result<Vec<Link>, Error> {
    let mut message = Message::new(libc::RTM_GETLINK, libc::NLM_F_DUMP, &fixed(0, 0, 0));
    if statistics == Statistics::Without {
        message.add_u32(IFLA_EXT_MASK, SKIP_STATISTICS);
    }
    socket.list(&message, Link::parse)
}

/// Changes a link.
pub fn change(socket: &Socket, index: u32, change: &Change<'_>) -> Result<(), Error> {
    let up = libc::IFF_UP.cast_unsigned();
    let (flags, changed) = match change.state {
        Some(State::Up) => (up, up),
        Some(State::Down) => (0, up),
        None => (0, 0),
    };
    // In a message of its own: the kernel brings a link up before it looks at this.
    if let Some(link_local) = change.link_local {
        // IN6_ADDR_GEN_MODE_EUI64 and IN6_ADDR_GEN_MODE_NONE.
        let mode = match link_local {
            LinkLocal::Kernel => 0,
            LinkLocal::ByHand => 1,
        };
        let mut message = Message::new(libc::RTM_NEWLINK, libc::NLM_F_ACK, &fixed(index, 0, 0));
        message.nest(IFLA_AF_SPEC, |families| {
            families.nest(crate::family_number(libc::AF_INET6).into(), |inet6| {
                inet6.add(IFLA_INET6_ADDR_GEN_MODE, &[mode]);
            });
        });
        socket.request(message)?;
    }
    let mut message = Message::new(libc::RTM_NEWLINK, libc::NLM_F_ACK, &fixed(index, flags, changed));
    if let Some(name) = change.name {
        message.add_text(IFLA_IFNAME, name);
    }
    if let Some(mtu) = change.mtu {
        message.add_u32(IFLA_MTU, mtu);
    }
    socket.request(message)
}

/// Whether the kernel takes this for a link's name (`dev_valid_name`): 1 to 15 printable characters without slash and colon.
pub fn is_valid_name(name: &str) -> bool {
    (1..=NAME_MAX).contains(&name.len())
        && !matches!(name, "." | "..")
        && name.bytes().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':' | b'%'))
}
