//! Routes.

use std::net::IpAddr;

use crate::message::{Message, attributes, u32_at};
use crate::{Error, Prefix, Socket, address_of, bits, family, octets};

/// The table that is looked into unless a rule says otherwise.
pub const MAIN_TABLE: u32 = 254;
/// `RTPROT_KERNEL`: made with an address.
pub const BY_KERNEL: u8 = libc::RTPROT_KERNEL;
/// `RTPROT_RA`: learnt from a router's advertisement.
pub const BY_ADVERTISEMENT: u8 = 9;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RTA_METRICS: u16 = 8;
const RTA_MULTIPATH: u16 = 9;
const RTA_TABLE: u16 = 15;
const RTA_VIA: u16 = 18;
const RTA_ENCAP: u16 = 22;
const RTAX_MTU: u16 = 2;
/// `RTNH_F_ONLINK`.
const ON_LINK: u32 = 4;
/// `RTM_F_CLONED`: an entry of a cache, not a route.
const CLONED: u32 = 0x200;
const FIXED: usize = 12;

/// What happens to packets for a destination.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RouteKind {
    /// They go to a neighbour.
    Unicast,
    /// They are dropped.
    Blackhole,
    /// They are refused as unreachable.
    Unreachable,
    /// They are refused as forbidden.
    Prohibit,
}

/// The next hop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gateway {
    /// Its address, which may be of another family than the destination.
    pub address: IpAddr,
    /// Whether it is on the link although no address says so.
    pub on_link: bool,
}

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Route {
    /// Where packets go.
    pub destination: Prefix,
    /// What happens to them.
    pub kind: RouteKind,
    /// The number of the link that they leave by; 0 for none.
    pub link: u32,
    /// The next hop, where it is not the destination.
    pub gateway: Option<Gateway>,
    /// The preferred source address.
    pub source: Option<IpAddr>,
    /// `RT_SCOPE_*`.
    pub scope: u8,
    /// The metric: of several routes the lowest wins. 0 for the kernel's default.
    pub metric: u32,
    /// The largest packet in bytes; 0 for the link's.
    pub mtu: u32,
    /// `RTPROT_*`: who made it.
    pub protocol: u8,
    /// Its table.
    pub table: u32,
}

/// An entry of a routing table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// A route.
    Route(Route),
    /// A route of a shape that Hull does not know, to this destination: several next hops, an encapsulation.
    Strange(Prefix),
}

impl RouteKind {
    fn number(self) -> u8 {
        match self {
            Self::Unicast => libc::RTN_UNICAST,
            Self::Blackhole => libc::RTN_BLACKHOLE,
            Self::Unreachable => libc::RTN_UNREACHABLE,
            Self::Prohibit => libc::RTN_PROHIBIT,
        }
    }

    fn of(number: u8) -> Option<Self> {
        [Self::Unicast, Self::Blackhole, Self::Unreachable, Self::Prohibit]
            .into_iter()
            .find(|kind| kind.number() == number)
    }
}

impl Route {
    /// Whether it is the same entry of the kernel's table, whatever else differs.
    pub fn is_at(&self, other: &Self) -> bool {
        let place = |route: &Self| {
            // Zero means 1024 for IPv6.
            let metric =
                if route.metric == 0 && route.destination.address.is_ipv6() { 1024 } else { route.metric };
            (route.destination, metric, route.table)
        };
        // IPv6 has a further entry for each next hop, IPv4 has one.
        place(self) == place(other)
            && (self.destination.address.is_ipv4()
                || (self.link, self.gateway.map(|gateway| gateway.address))
                    == (other.link, other.gateway.map(|gateway| gateway.address)))
    }

    fn message(&self, kind: u16, flags: libc::c_int) -> Message {
        let destination = self.destination;
        let mut fixed = [0; FIXED];
        fixed[0] = family(destination.address);
        fixed[1] = destination.length;
        fixed[5] = self.protocol;
        fixed[6] = self.scope;
        fixed[7] = self.kind.number();
        if self.gateway.is_some_and(|gateway| gateway.on_link) {
            fixed[8..12].copy_from_slice(&ON_LINK.to_ne_bytes());
        }
        let mut message = Message::new(kind, flags | libc::NLM_F_ACK, &fixed);
        message.add_u32(RTA_TABLE, self.table);
        if destination.length > 0 {
            message.add(RTA_DST, &octets(destination.address));
        }
        if self.link != 0 {
            message.add_u32(RTA_OIF, self.link);
        }
        if let Some(Gateway { address, .. }) = self.gateway {
            if family(address) == family(destination.address) {
                message.add(RTA_GATEWAY, &octets(address));
            } else {
                let mut via = u16::from(family(address)).to_ne_bytes().to_vec();
                via.extend(octets(address));
                message.add(RTA_VIA, &via);
            }
        }
        if let Some(source) = self.source {
            message.add(RTA_PREFSRC, &octets(source));
        }
        if self.metric != 0 {
            message.add_u32(RTA_PRIORITY, self.metric);
        }
        if self.mtu != 0 {
            message.nest(RTA_METRICS, |metrics| {
                metrics.add_u32(RTAX_MTU, self.mtu);
            });
        }
        message
    }
}

/// Passes over what is no route to a neighbour: the host's own addresses, broadcasts, caches.
fn parse(body: &[u8]) -> Option<Entry> {
    let v4 = *body.first()? == crate::family_number(libc::AF_INET);
    let v6 = *body.first()? == crate::family_number(libc::AF_INET6);
    let flags = u32_at(body, 8)?;
    let kind = RouteKind::of(*body.get(7)?)?;
    if !(v4 || v6) || flags & CLONED != 0 {
        return None;
    }
    let none = if v4 { IpAddr::from([0; 4]) } else { IpAddr::from([0; 16]) };
    let mut route = Route {
        destination: Prefix::new(none, *body.get(1)?)?,
        kind,
        link: 0,
        gateway: None,
        source: None,
        scope: *body.get(6)?,
        metric: 0,
        mtu: 0,
        protocol: *body.get(5)?,
        table: u32::from(*body.get(4)?),
    };
    let mut strange = *body.get(2)? != 0 || *body.get(3)? != 0;
    let mut gateway = None;
    for (kind, value) in attributes(body.get(FIXED..)?) {
        match kind {
            RTA_DST => route.destination.address = address_of(value).filter(|a| bits(*a) == bits(none))?,
            RTA_OIF => route.link = u32_at(value, 0)?,
            RTA_GATEWAY => gateway = address_of(value),
            RTA_VIA => gateway = address_of(value.get(2..)?),
            RTA_PRIORITY => route.metric = u32_at(value, 0)?,
            RTA_PREFSRC => route.source = address_of(value),
            RTA_TABLE => route.table = u32_at(value, 0)?,
            RTA_METRICS => {
                let found = attributes(value).find(|(kind, _)| *kind == RTAX_MTU);
                route.mtu = found.and_then(|(_, mtu)| u32_at(mtu, 0)).unwrap_or(0);
            }
            RTA_MULTIPATH | RTA_ENCAP => strange = true,
            _ => {}
        }
    }
    route.gateway = gateway.map(|address| Gateway { address, on_link: flags & ON_LINK != 0 });
    Some(if strange { Entry::Strange(route.destination) } else { Entry::Route(route) })
}

/// The routes of a table.
pub fn list(socket: &Socket, table: u32) -> Result<Vec<Entry>, Error> {
    let message = Message::new(libc::RTM_GETROUTE, libc::NLM_F_DUMP, &[0; FIXED]);
    socket.list(&message, |body| {
        let entry = parse(body)?;
        match entry {
            Entry::Route(route) if route.table != table => None,
            entry => Some(entry),
        }
    })
}

/// Makes a route, in place of one for the same destination with the same metric.
pub fn set(socket: &Socket, route: &Route) -> Result<(), Error> {
    socket.request(route.message(libc::RTM_NEWROUTE, libc::NLM_F_CREATE | libc::NLM_F_REPLACE))
}

/// Removes a route.
pub fn remove(socket: &Socket, route: &Route) -> Result<(), Error> {
    socket.request(route.message(libc::RTM_DELROUTE, 0))
}
