//! What was seen in a namespace, in the agent's words.

use std::net::IpAddr;

use hull_netlink::{Address, Neighbour, Route, RouteKind};
use hull_protocol::agent::api::agent::{
    ConfigureNetworkRequest, NetworkAddress, NetworkInterface, NetworkNeighbour, NetworkRoute,
    NetworkRouteKind,
};

use super::scan::{Interface, Scan};

/// The guest's network: that of the namespace.
pub fn describe(scan: &Scan) -> ConfigureNetworkRequest {
    let name = |link: u32| {
        let found = scan.interfaces.iter().find(|interface| interface.link.index == link);
        found.map(|interface| interface.link.name.clone()).unwrap_or_default()
    };
    ConfigureNetworkRequest {
        interfaces: scan.interfaces.iter().map(interface).collect(),
        routes: scan.routes.iter().map(|one| route(one, name(one.link))).collect(),
        neighbours: scan.neighbours.iter().map(|one| neighbour(one, name(one.link))).collect(),
        ..ConfigureNetworkRequest::default()
    }
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().into(),
        IpAddr::V6(address) => address.octets().into(),
    }
}

fn optional(address: Option<IpAddr>) -> Vec<u8> {
    address.map(octets).unwrap_or_default()
}

fn interface(interface: &Interface) -> NetworkInterface {
    NetworkInterface {
        mac: interface.mac.0.into(),
        name: interface.link.name.clone(),
        mtu: interface.mtu(),
        addresses: interface.addresses.iter().map(address).collect(),
        link_local_ipv6: interface.link_local_ipv6,
        ..NetworkInterface::default()
    }
}

fn address(address: &Address) -> NetworkAddress {
    NetworkAddress {
        address: octets(address.prefix.address),
        prefix_length: address.prefix.length.into(),
        peer: optional(address.peer),
        broadcast: optional(address.broadcast.map(IpAddr::V4)),
        scope: address.scope.into(),
        ..NetworkAddress::default()
    }
}

fn route(route: &Route, interface: String) -> NetworkRoute {
    let kind = match route.kind {
        RouteKind::Unicast => NetworkRouteKind::UNICAST,
        RouteKind::Blackhole => NetworkRouteKind::BLACKHOLE,
        RouteKind::Unreachable => NetworkRouteKind::UNREACHABLE,
        RouteKind::Prohibit => NetworkRouteKind::PROHIBIT,
    };
    NetworkRoute {
        destination: octets(route.destination.address),
        prefix_length: route.destination.length.into(),
        kind: kind.into(),
        interface,
        gateway: optional(route.gateway.map(|gateway| gateway.address)),
        on_link: route.gateway.is_some_and(|gateway| gateway.on_link),
        source: optional(route.source),
        scope: route.scope.into(),
        metric: route.metric,
        mtu: route.mtu,
        protocol: route.protocol.into(),
        ..NetworkRoute::default()
    }
}

fn neighbour(neighbour: &Neighbour, interface: String) -> NetworkNeighbour {
    NetworkNeighbour {
        interface,
        address: octets(neighbour.address),
        mac: neighbour.mac.0.into(),
        ..NetworkNeighbour::default()
    }
}
