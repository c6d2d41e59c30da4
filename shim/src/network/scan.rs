//! What a namespace has that a guest should have in its place.

use hull_netlink::link::{self, ETHERNET, Statistics};
use hull_netlink::route::{Entry, MAIN_TABLE};
use hull_netlink::{Address, Link, Mac, Neighbour, Route, RouteKind, Socket, address, neighbour, route};

use super::{NetworkError, kernel};

/// The largest packet that the guest's device can be told of, in bytes.
const MTU_MAX: u32 = 65535;

/// An interface of the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its link.
    pub link: Link,
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its addresses, but those that the guest's kernel makes by itself.
    pub addresses: Vec<Address>,
    /// Whether it has an IPv6 address for its link, so that the guest's should too.
    pub link_local_ipv6: bool,
}

impl Interface {
    /// The largest packet, as far as a guest can have it.
    pub fn mtu(&self) -> u32 {
        self.link.mtu.min(MTU_MAX)
    }
}

/// What a namespace has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Scan {
    /// Its interfaces, in the order of their numbers.
    pub interfaces: Vec<Interface>,
    /// Routes of the main tables that lead by them, or nowhere.
    pub routes: Vec<Route>,
    /// Neighbours on them that are known for ever.
    pub neighbours: Vec<Neighbour>,
}

impl Scan {
    /// Looks at a namespace; `taps` are ours.
    pub fn take(socket: &Socket, taps: &[u32]) -> Result<Self, NetworkError> {
        let list = |what: &'static str| kernel(move || format!("list the pod's {what}"));
        let links = link::list(socket, Statistics::Without).map_err(list("interfaces"))?;
        let addresses = address::list(socket).map_err(list("addresses"))?;
        let entries = route::list(socket, MAIN_TABLE).map_err(list("routes"))?;
        let neighbours = neighbour::list(socket).map_err(list("neighbours"))?;

        let interfaces: Vec<_> = links
            .into_iter()
            .filter(|link| !taps.contains(&link.index))
            .filter_map(|link| Interface::of(link, &addresses))
            .collect();
        let is_ours = |index: u32| interfaces.iter().any(|interface| interface.link.index == index);
        let mut routes = Vec::new();
        for entry in entries {
            match entry {
                // What links' own addresses need, every kernel makes for itself.
                Entry::Route(route) if is_link_local(&route) => {}
                Entry::Route(route) if is_ours(route.link) => routes.push(route),
                Entry::Route(route) if route.link == 0 && route.kind != RouteKind::Unicast => {
                    routes.push(route);
                }
                Entry::Route(_) => {}
                Entry::Strange(destination) => {
                    log::warn!(
                        "the pod's route to {destination} is left out: it has several next hops, or an encapsulation"
                    );
                }
            }
        }
        let neighbours =
            neighbours.into_iter().filter(|one| one.is_permanent() && is_ours(one.link)).collect();
        Ok(Self { interfaces, routes, neighbours })
    }
}

impl Interface {
    /// `None` for what does not carry the pod's Ethernet frames: the loopback, what is down, tunnels, somebody's taps.
    fn of(link: Link, addresses: &[Address]) -> Option<Self> {
        let mac = link.mac.filter(|mac| mac.is_unicast())?;
        if link.is_loopback() || !link.is_up() || link.hardware != ETHERNET || link.kind == "tun" {
            return None;
        }
        let own = |address: &&Address| address.link == link.index;
        let link_local_ipv6 = addresses.iter().filter(own).any(Address::is_link_local_v6);
        // What a router advertised, the guest's kernel hears of too.
        let stays = |address: &&Address| address.prefix.address.is_ipv4() || address.is_permanent();
        let addresses = addresses
            .iter()
            .filter(own)
            .filter(|address| !address.is_link_local_v6())
            .filter(stays)
            .copied()
            .collect();
        Some(Self { link, mac, addresses, link_local_ipv6 })
    }
}

/// fe80::/10.
fn is_link_local(route: &Route) -> bool {
    matches!(route.destination.address, std::net::IpAddr::V6(address) if address.segments()[0] & 0xffc0 == 0xfe80)
}
