//! Addresses of links.

use std::net::{IpAddr, Ipv4Addr};

use crate::message::{Message, attributes, u32_at};
use crate::{Error, Prefix, Socket, address_of, family, octets};

/// The address was made by the kernel, from the link's own, and not by somebody who said for how long.
const PERMANENT: u32 = libc::IFA_F_PERMANENT;
/// Nobody needs to be asked whether the address is free (RFC 4862 duplicate address detection).
const NO_DETECTION: u32 = libc::IFA_F_NODAD;
const FIXED: usize = 8;

/// An address of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The link's number.
    pub link: u32,
    /// The address with its network.
    pub prefix: Prefix,
    /// The address at the other end, where the link has two ends and no network.
    pub peer: Option<IpAddr>,
    /// The network's broadcast address.
    pub broadcast: Option<Ipv4Addr>,
    /// `RT_SCOPE_*`.
    pub scope: u8,
    /// `IFA_F_*`.
    pub flags: u32,
}

impl Address {
    /// Whether it is an IPv6 address that holds on its link only: every link makes one for itself.
    pub fn is_link_local_v6(&self) -> bool {
        matches!(self.prefix.address, IpAddr::V6(address) if address.segments()[0] & 0xffc0 == 0xfe80)
    }

    /// Whether it stays until it is taken away.
    pub fn is_permanent(&self) -> bool {
        self.flags & PERMANENT != 0
    }

    fn parse(body: &[u8]) -> Option<Self> {
        let (length, mut flags) = (*body.get(1)?, u32::from(*body.get(2)?));
        let (scope, link) = (*body.get(3)?, u32_at(body, 4)?);
        let (mut address, mut local, mut broadcast) = (None, None, None);
        for (kind, value) in attributes(body.get(FIXED..)?) {
            match kind {
                libc::IFA_ADDRESS => address = address_of(value),
                libc::IFA_LOCAL => local = address_of(value),
                libc::IFA_BROADCAST => broadcast = <[u8; 4]>::try_from(value).ok().map(Ipv4Addr::from),
                libc::IFA_FLAGS => flags = u32_at(value, 0)?,
                _ => {}
            }
        }
        let own = local.or(address)?;
        let peer = address.filter(|address| *address != own);
        Some(Self { link, prefix: Prefix::new(own, length)?, peer, broadcast, scope, flags })
    }

    fn message(&self, kind: u16, flags: libc::c_int) -> Message {
        let own = self.prefix.address;
        let mut fixed = [0; FIXED];
        fixed[0] = family(own);
        fixed[1] = self.prefix.length;
        fixed[3] = self.scope;
        fixed[4..8].copy_from_slice(&self.link.to_ne_bytes());
        let mut message = Message::new(kind, flags | libc::NLM_F_ACK, &fixed);
        message.add(libc::IFA_LOCAL, &octets(own));
        message.add(libc::IFA_ADDRESS, &octets(self.peer.unwrap_or(own)));
        if let Some(broadcast) = self.broadcast {
            message.add(libc::IFA_BROADCAST, &broadcast.octets());
        }
        message.add_u32(libc::IFA_FLAGS, if own.is_ipv6() { NO_DETECTION } else { 0 });
        message
    }
}

/// The addresses of all links.
pub fn list(socket: &Socket) -> Result<Vec<Address>, Error> {
    let message = Message::new(libc::RTM_GETADDR, libc::NLM_F_DUMP, &[0; FIXED]);
    socket.list(&message, Address::parse)
}

/// Gives a link an address; one that it has already is as good. An IPv6 address can be used at once.
pub fn set(socket: &Socket, address: &Address) -> Result<(), Error> {
    socket.request(address.message(libc::RTM_NEWADDR, libc::NLM_F_CREATE | libc::NLM_F_REPLACE))
}

/// Takes an address away from its link.
pub fn remove(socket: &Socket, address: &Address) -> Result<(), Error> {
    socket.request(address.message(libc::RTM_DELADDR, 0))
}
