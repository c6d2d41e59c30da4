//! The part of rtnetlink (rtnetlink(7)) that Hull speaks, on both sides of the VM: the shim reads the pod's network and joins
//! taps to it, the agent gives the guest the same.
//!
//! Owns the wire format and one socket for each network namespace. Decides nothing. What it does not know in a message of
//! the kernel it passes over: a newer kernel's attribute is no reason to fail.
//!
//! | module | what it is for |
//! |---|---|
//! | [`link`], [`address`], [`route`], [`neighbour`] | what a network consists of |
//! | [`redirect`] | frames of one link sent out of another (tc) |
//! | [`socket`] | requests, acknowledgements, lists |
//! | `message` | bytes |

pub mod address;
pub mod link;
mod message;
pub mod neighbour;
pub mod redirect;
pub mod route;
pub mod socket;
#[cfg(test)]
mod tests;

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

pub use address::Address;
pub use link::{Counters, Link};
pub use neighbour::Neighbour;
pub use route::{Gateway, Route, RouteKind};
pub use socket::{Error, Socket};

/// An Ethernet address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// Whether it can be that of a single interface: neither of a group nor all zeroes.
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0 && self.0 != [0; 6]
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// An address and how many of its bits name the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix {
    /// The address.
    pub address: IpAddr,
    /// The number of bits, at most 32 or 128.
    pub length: u8,
}

impl Prefix {
    /// `None` where the length is more than the address has bits.
    pub fn new(address: IpAddr, length: u8) -> Option<Self> {
        (length <= bits(address)).then_some(Self { address, length })
    }

    /// All addresses of the family of `like`.
    pub fn everything(like: IpAddr) -> Self {
        let address = match like {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        Self { address, length: 0 }
    }
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// How many bits an address of this family has.
fn bits(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

/// The kernel's number of the address's family.
fn family(address: IpAddr) -> u8 {
    family_number(if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 })
}

/// Families are small numbers.
fn family_number(family: libc::c_int) -> u8 {
    u8::try_from(family).unwrap_or_default()
}

/// The address's bytes as they travel.
fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

/// An address from its bytes: 4 or 16 of them.
pub fn address_of(octets: &[u8]) -> Option<IpAddr> {
    if let Ok(octets) = <[u8; 4]>::try_from(octets) {
        return Some(IpAddr::V4(octets.into()));
    }
    <[u8; 16]>::try_from(octets).ok().map(|octets| IpAddr::V6(octets.into()))
}
