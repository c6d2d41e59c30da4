//! A described network, checked: every number in its range, every name known.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use hull_netlink::link::{LinkLocal, is_valid_name};
use hull_netlink::{Gateway, Mac, Prefix, RouteKind, address_of};
use hull_protocol::agent::api::agent as api;

use super::NetworkError;

const INTERFACES_MAX: usize = 32;
const ADDRESSES_MAX: usize = 256;
const ROUTES_MAX: usize = 4096;
const NEIGHBOURS_MAX: usize = 4096;
const MTU: std::ops::RangeInclusive<u32> = 68..=65535;

/// What the network shall be.
#[derive(Debug, PartialEq, Eq)]
pub struct Plan {
    /// Its links.
    pub interfaces: Vec<Interface>,
    /// Its routes, by the place of their interface in `interfaces`.
    pub routes: Vec<Route>,
    /// Neighbours that are known for ever.
    pub neighbours: Vec<Neighbour>,
}

/// A link.
#[derive(Debug, PartialEq, Eq)]
pub struct Interface {
    /// How it is found.
    pub mac: Mac,
    /// What it is called.
    pub name: String,
    /// The largest packet in bytes.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: Vec<Address>,
    /// Who makes its own IPv6 address.
    pub link_local: LinkLocal,
}

/// An address of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The address and its network.
    pub prefix: Prefix,
    /// The other end's, on a link with two ends.
    pub peer: Option<IpAddr>,
    /// The network's broadcast address.
    pub broadcast: Option<Ipv4Addr>,
    /// `RT_SCOPE_*`.
    pub scope: u8,
}

/// A route.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "as in the API")]
pub struct Route {
    pub destination: Prefix,
    pub kind: RouteKind,
    pub interface: Option<usize>,
    pub gateway: Option<Gateway>,
    pub source: Option<IpAddr>,
    pub scope: u8,
    pub metric: u32,
    pub mtu: u32,
    pub protocol: u8,
}

/// A neighbour.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "as in the API")]
pub struct Neighbour {
    pub interface: usize,
    pub address: IpAddr,
    pub mac: Mac,
}

fn invalid(field: &'static str, reason: impl Into<String>) -> NetworkError {
    NetworkError::Invalid { field, reason: reason.into() }
}

impl Plan {
    /// Checks a description.
    pub fn parse(request: &api::ConfigureNetworkRequest) -> Result<Self, NetworkError> {
        let counts = [
            ("interfaces", request.interfaces.len(), INTERFACES_MAX),
            ("routes", request.routes.len(), ROUTES_MAX),
            ("neighbours", request.neighbours.len(), NEIGHBOURS_MAX),
        ];
        for (field, count, most) in counts {
            if count > most {
                return Err(invalid(field, format!("{count} of them, and {most} are the most")));
            }
        }
        let interfaces: Vec<Interface> =
            request.interfaces.iter().map(Interface::parse).collect::<Result<_, _>>()?;
        let names: BTreeSet<_> = interfaces.iter().map(|interface| &interface.name).collect();
        let macs: BTreeSet<_> = interfaces.iter().map(|interface| interface.mac).collect();
        if names.len() < interfaces.len() || macs.len() < interfaces.len() {
            return Err(invalid("interfaces", "two have the same name or the same address"));
        }
        let routes = request.routes.iter().map(|route| Route::parse(route, &interfaces));
        let neighbours = request.neighbours.iter().map(|neighbour| Neighbour::parse(neighbour, &interfaces));
        Ok(Self {
            routes: routes.collect::<Result<_, _>>()?,
            neighbours: neighbours.collect::<Result<_, _>>()?,
            interfaces,
        })
    }
}

impl Interface {
    fn parse(interface: &api::NetworkInterface) -> Result<Self, NetworkError> {
        let mac = mac("interfaces", &interface.mac)?;
        let name = &interface.name;
        if !is_valid_name(name) || name == "lo" {
            return Err(invalid("interfaces", format!("{name:?} is no name for one")));
        }
        if !MTU.contains(&interface.mtu) {
            return Err(invalid("interfaces", format!("{name}: an MTU of {} bytes", interface.mtu)));
        }
        if interface.addresses.len() > ADDRESSES_MAX {
            return Err(invalid("interfaces", format!("{name}: more than {ADDRESSES_MAX} addresses")));
        }
        Ok(Self {
            mac,
            name: name.clone(),
            mtu: interface.mtu,
            addresses: interface.addresses.iter().map(Address::parse).collect::<Result<_, _>>()?,
            link_local: if interface.link_local_ipv6 { LinkLocal::Kernel } else { LinkLocal::ByHand },
        })
    }
}

impl Address {
    fn parse(address: &api::NetworkAddress) -> Result<Self, NetworkError> {
        const FIELD: &str = "addresses";
        let prefix = prefix(FIELD, &address.address, address.prefix_length)?;
        let broadcast = optional(FIELD, &address.broadcast)?.map(|broadcast| match broadcast {
            IpAddr::V4(broadcast) if prefix.address.is_ipv4() => Ok(broadcast),
            _ => Err(invalid(FIELD, format!("{prefix}: IPv6 has no broadcast address"))),
        });
        Ok(Self {
            prefix,
            peer: optional(FIELD, &address.peer)?
                .map(|peer| same_family(FIELD, peer, prefix.address))
                .transpose()?,
            broadcast: broadcast.transpose()?,
            scope: byte(FIELD, "scope", address.scope)?,
        })
    }
}

impl Route {
    fn parse(route: &api::NetworkRoute, interfaces: &[Interface]) -> Result<Self, NetworkError> {
        const FIELD: &str = "routes";
        let destination = prefix(FIELD, &route.destination, route.prefix_length)?;
        let kind = match route.kind.enum_value() {
            Ok(api::NetworkRouteKind::UNICAST) => RouteKind::Unicast,
            Ok(api::NetworkRouteKind::BLACKHOLE) => RouteKind::Blackhole,
            Ok(api::NetworkRouteKind::UNREACHABLE) => RouteKind::Unreachable,
            Ok(api::NetworkRouteKind::PROHIBIT) => RouteKind::Prohibit,
            Err(number) => return Err(invalid(FIELD, format!("{destination}: kind {number} is not known"))),
        };
        let interface = match route.interface.as_str() {
            "" if kind != RouteKind::Unicast => None,
            name => Some(place(FIELD, name, interfaces)?),
        };
        let gateway = optional(FIELD, &route.gateway)?;
        if gateway.is_some() && kind != RouteKind::Unicast {
            return Err(invalid(FIELD, format!("{destination}: a gateway to nowhere")));
        }
        let source = optional(FIELD, &route.source)?;
        Ok(Self {
            destination,
            kind,
            interface,
            gateway: gateway.map(|address| Gateway { address, on_link: route.on_link }),
            source: source.map(|source| same_family(FIELD, source, destination.address)).transpose()?,
            scope: byte(FIELD, "scope", route.scope)?,
            metric: route.metric,
            mtu: route.mtu,
            protocol: byte(FIELD, "protocol", route.protocol)?,
        })
    }
}

impl Neighbour {
    fn parse(neighbour: &api::NetworkNeighbour, interfaces: &[Interface]) -> Result<Self, NetworkError> {
        const FIELD: &str = "neighbours";
        Ok(Self {
            interface: place(FIELD, &neighbour.interface, interfaces)?,
            address: address(FIELD, &neighbour.address)?,
            mac: mac(FIELD, &neighbour.mac)?,
        })
    }
}

fn mac(field: &'static str, bytes: &[u8]) -> Result<Mac, NetworkError> {
    bytes
        .try_into()
        .ok()
        .map(Mac)
        .filter(|mac| mac.is_unicast())
        .ok_or_else(|| invalid(field, format!("{bytes:?} is not the Ethernet address of one interface")))
}

fn address(field: &'static str, bytes: &[u8]) -> Result<IpAddr, NetworkError> {
    address_of(bytes).ok_or_else(|| invalid(field, format!("an address of {} bytes", bytes.len())))
}

fn optional(field: &'static str, bytes: &[u8]) -> Result<Option<IpAddr>, NetworkError> {
    if bytes.is_empty() { Ok(None) } else { address(field, bytes).map(Some) }
}

fn prefix(field: &'static str, bytes: &[u8], length: u32) -> Result<Prefix, NetworkError> {
    let address = address(field, bytes)?;
    u8::try_from(length)
        .ok()
        .and_then(|length| Prefix::new(address, length))
        .ok_or_else(|| invalid(field, format!("{address}/{length} is longer than an address")))
}

fn same_family(field: &'static str, address: IpAddr, other: IpAddr) -> Result<IpAddr, NetworkError> {
    if address.is_ipv4() == other.is_ipv4() {
        return Ok(address);
    }
    Err(invalid(field, format!("{address} and {other} are of different families")))
}

fn byte(field: &'static str, what: &str, number: u32) -> Result<u8, NetworkError> {
    u8::try_from(number).map_err(|_| invalid(field, format!("{what} {number} is out of range")))
}

fn place(field: &'static str, name: &str, interfaces: &[Interface]) -> Result<usize, NetworkError> {
    interfaces
        .iter()
        .position(|interface| interface.name == name)
        .ok_or_else(|| invalid(field, format!("there is no interface {name:?}")))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use protobuf::Message;

    use super::*;

    fn interface() -> api::NetworkInterface {
        api::NetworkInterface {
            mac: vec![2, 0, 0, 0, 0, 1],
            name: "eth0".into(),
            mtu: 1500,
            addresses: vec![api::NetworkAddress {
                address: vec![10, 0, 0, 2],
                prefix_length: 24,
                ..Default::default()
            }],
            ..Default::default()
        }
    }

    fn parsed(change: impl FnOnce(&mut api::ConfigureNetworkRequest)) -> Result<Plan, String> {
        let mut request =
            api::ConfigureNetworkRequest { interfaces: vec![interface()], ..Default::default() };
        request.routes.push(api::NetworkRoute {
            destination: vec![0; 4],
            interface: "eth0".into(),
            gateway: vec![10, 0, 0, 1],
            ..Default::default()
        });
        request.neighbours.push(api::NetworkNeighbour {
            interface: "eth0".into(),
            address: vec![10, 0, 0, 1],
            mac: vec![2, 0, 0, 0, 0, 2],
            ..Default::default()
        });
        change(&mut request);
        Plan::parse(&request).map_err(|error| error.to_string())
    }

    #[test]
    fn what_fits_is_taken() {
        let plan = parsed(|_| {}).unwrap();
        assert_eq!(plan.interfaces[0].addresses[0].prefix.to_string(), "10.0.0.2/24");
        assert_eq!((plan.routes[0].interface, plan.neighbours[0].interface), (Some(0), 0));
        assert_eq!(parsed(|request| *request = Default::default()).unwrap().interfaces, []);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        type Change = fn(&mut api::ConfigureNetworkRequest);
        let wrong: [(&str, Change); 17] = [
            ("33 of them", |r| r.interfaces = vec![interface(); 33]),
            ("4097 of them", |r| r.routes = vec![Default::default(); 4097]),
            ("4097 of them", |r| r.neighbours = vec![Default::default(); 4097]),
            ("the same name", |r| r.interfaces.push(interface())),
            ("Ethernet address", |r| r.interfaces[0].mac = vec![1; 6]),
            ("Ethernet address", |r| r.interfaces[0].mac = vec![2; 7]),
            ("\"lo\"", |r| r.interfaces[0].name = "lo".into()),
            ("no name", |r| r.interfaces[0].name = "a/b".into()),
            ("MTU of 67", |r| r.interfaces[0].mtu = 67),
            ("more than 256", |r| r.interfaces[0].addresses = vec![Default::default(); 257]),
            ("10.0.0.2/33", |r| r.interfaces[0].addresses[0].prefix_length = 33),
            ("different families", |r| r.interfaces[0].addresses[0].peer = vec![0; 16]),
            ("broadcast", |r| r.interfaces[0].addresses[0].broadcast = vec![0; 16]),
            ("of 5 bytes", |r| r.routes[0].gateway = vec![0; 5]),
            ("no interface \"eth1\"", |r| r.routes[0].interface = "eth1".into()),
            ("gateway to nowhere", |r| r.routes[0].kind = api::NetworkRouteKind::BLACKHOLE.into()),
            ("scope 256", |r| r.routes[0].scope = 256),
        ];
        for (part, change) in wrong {
            let error = parsed(change).unwrap_err();
            assert!(error.contains(part), "{part}: {error}");
        }
    }

    proptest! {
        #[test]
        fn no_description_is_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            if let Ok(request) = api::ConfigureNetworkRequest::parse_from_bytes(&bytes) {
                let _ = Plan::parse(&request);
            }
        }
    }
}
