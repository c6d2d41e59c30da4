//! Neighbours: the Ethernet addresses of those on the same link.

use std::net::IpAddr;

use crate::message::{Message, attributes, u16_at, u32_at};
use crate::{Error, Mac, Socket, address_of, family, octets};

const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
/// `NTF_PROXY`: an answer given for somebody else.
const PROXY: u8 = 8;
const FIXED: usize = 12;

/// A neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// The number of the link that it is on.
    pub link: u32,
    /// Its address.
    pub address: IpAddr,
    /// Its Ethernet address.
    pub mac: Mac,
    /// `NUD_*`.
    pub state: u16,
}

impl Neighbour {
    /// The state of a neighbour that is never forgotten (`NUD_PERMANENT`).
    pub const PERMANENT: u16 = libc::NUD_PERMANENT;

    /// Whether somebody has made it to stay; others are learnt and forgotten.
    pub fn is_permanent(&self) -> bool {
        self.state & Self::PERMANENT != 0
    }

    fn parse(body: &[u8]) -> Option<Self> {
        if *body.get(10)? & PROXY != 0 {
            return None;
        }
        let (mut address, mut mac) = (None, None);
        for (kind, value) in attributes(body.get(FIXED..)?) {
            match kind {
                NDA_DST => address = address_of(value),
                NDA_LLADDR => mac = value.try_into().ok().map(Mac),
                _ => {}
            }
        }
        Some(Self { link: u32_at(body, 4)?, address: address?, mac: mac?, state: u16_at(body, 8)? })
    }

    fn message(&self, kind: u16, flags: libc::c_int) -> Message {
        let mut fixed = [0; FIXED];
        fixed[0] = family(self.address);
        fixed[4..8].copy_from_slice(&self.link.to_ne_bytes());
        fixed[8..10].copy_from_slice(&self.state.to_ne_bytes());
        let mut message = Message::new(kind, flags | libc::NLM_F_ACK, &fixed);
        message.add(NDA_DST, &octets(self.address)).add(NDA_LLADDR, &self.mac.0);
        message
    }
}

/// The neighbours on all links.
pub fn list(socket: &Socket) -> Result<Vec<Neighbour>, Error> {
    let message = Message::new(libc::RTM_GETNEIGH, libc::NLM_F_DUMP, &[0; FIXED]);
    socket.list(&message, Neighbour::parse)
}

/// Makes a neighbour known, in place of what was known of it.
pub fn set(socket: &Socket, neighbour: &Neighbour) -> Result<(), Error> {
    socket.request(neighbour.message(libc::RTM_NEWNEIGH, libc::NLM_F_CREATE | libc::NLM_F_REPLACE))
}

/// Forgets a neighbour.
pub fn remove(socket: &Socket, neighbour: &Neighbour) -> Result<(), Error> {
    socket.request(neighbour.message(libc::RTM_DELNEIGH, 0))
}
