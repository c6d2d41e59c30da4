//! From the network that is there to the one that is planned.

use hull_netlink::link::{self, Change, LinkLocal, State, Statistics};
use hull_netlink::route::{self, BY_ADVERTISEMENT, Entry, MAIN_TABLE};
use hull_netlink::{Address, Link, Neighbour, Prefix, Route, Socket, address, neighbour};

use super::plan::{Interface, Plan};
use super::{NetworkError, kernel};

/// Makes the network of the socket's namespace the planned one.
pub fn apply(socket: &Socket, plan: &Plan) -> Result<(), NetworkError> {
    let links = links(socket)?;
    let found: Vec<u32> = plan
        .interfaces
        .iter()
        .map(|interface| find(&links, interface).map(|link| link.index))
        .collect::<Result<_, _>>()?;
    for link in &links {
        if link.is_loopback() {
            set_state(socket, link, State::Up)?;
        } else if link.kind.is_empty() && link.is_up() && !found.contains(&link.index) {
            set_state(socket, link, State::Down)?;
        }
    }
    name(socket, plan, &found, &links)?;
    for (interface, index) in plan.interfaces.iter().zip(&found) {
        let change = Change {
            mtu: Some(interface.mtu),
            state: Some(State::Up),
            link_local: Some(interface.link_local),
            ..Change::default()
        };
        link::change(socket, *index, &change)
            .map_err(kernel(|| format!("bring {} up with an MTU of {}", interface.name, interface.mtu)))?;
    }
    addresses(socket, plan, &found)?;
    routes(socket, plan, &found)?;
    neighbours(socket, plan, &found)
}

fn links(socket: &Socket) -> Result<Vec<Link>, NetworkError> {
    link::list(socket, Statistics::Without).map_err(kernel(|| "list the links".to_owned()))
}

/// The link of an interface: a device rather than what was made in the guest, which may have taken over its address, as
/// bridges do.
fn find<'a>(links: &'a [Link], interface: &Interface) -> Result<&'a Link, NetworkError> {
    links
        .iter()
        .filter(|link| link.mac == Some(interface.mac) && !link.is_loopback())
        .min_by_key(|link| (!link.kind.is_empty(), link.index))
        .ok_or(NetworkError::NoLink(interface.mac))
}

fn set_state(socket: &Socket, link: &Link, state: State) -> Result<(), NetworkError> {
    let change = Change { state: Some(state), ..Change::default() };
    link::change(socket, link.index, &change).map_err(kernel(|| format!("set {} {state:?}", link.name)))
}

/// Gives every interface its name. Who holds a name that another one gets is called something else first.
fn name(socket: &Socket, plan: &Plan, found: &[u32], links: &[Link]) -> Result<(), NetworkError> {
    let rename = |index: u32, name: &str| {
        let change = Change { name: Some(name), ..Change::default() };
        let down = Change { state: Some(State::Down), ..Change::default() };
        link::change(socket, index, &down)
            .and_then(|()| link::change(socket, index, &change))
            .map_err(kernel(|| format!("rename a link to {name}")))
    };
    let wanted =
        |index| found.iter().position(|found| *found == index).map(|place| &plan.interfaces[place].name);
    for link in links.iter().filter(|link| !link.is_loopback()) {
        let is_wanted = plan.interfaces.iter().any(|interface| interface.name == link.name);
        if is_wanted && wanted(link.index) != Some(&link.name) {
            rename(link.index, &format!("was-{}", link.index))?;
        }
    }
    for (interface, index) in plan.interfaces.iter().zip(found) {
        if !links.iter().any(|link| link.index == *index && link.name == interface.name) {
            rename(*index, &interface.name)?;
        }
    }
    Ok(())
}

fn addresses(socket: &Socket, plan: &Plan, found: &[u32]) -> Result<(), NetworkError> {
    let mut wanted = Vec::new();
    for (interface, link) in plan.interfaces.iter().zip(found) {
        wanted.extend(interface.addresses.iter().map(|address| Address {
            link: *link,
            prefix: address.prefix,
            peer: address.peer,
            broadcast: address.broadcast,
            scope: address.scope,
            flags: 0,
        }));
    }
    let same = |a: &Address, b: &Address| {
        (a.link, a.prefix, a.peer, a.broadcast) == (b.link, b.prefix, b.peer, b.broadcast)
    };
    let makes_its_own = |link| {
        let mut interfaces = plan.interfaces.iter().zip(found);
        interfaces.any(|(interface, index)| *index == link && interface.link_local == LinkLocal::Kernel)
    };
    let there = address::list(socket).map_err(kernel(|| "list the addresses".to_owned()))?;
    for old in there.iter().filter(|old| found.contains(&old.link)) {
        let is_wanted = wanted.iter().any(|new| same(old, new));
        let is_own = old.is_link_local_v6() && makes_its_own(old.link);
        if !is_wanted && !is_own {
            address::remove(socket, old).map_err(kernel(|| format!("remove the address {}", old.prefix)))?;
        }
    }
    for new in &wanted {
        address::set(socket, new).map_err(kernel(|| format!("add the address {}", new.prefix)))?;
    }
    Ok(())
}

fn routes(socket: &Socket, plan: &Plan, found: &[u32]) -> Result<(), NetworkError> {
    let mut wanted: Vec<Route> = plan
        .routes
        .iter()
        .map(|route| Route {
            destination: route.destination,
            kind: route.kind,
            link: route.interface.map_or(0, |place| found[place]),
            gateway: route.gateway,
            source: route.source,
            scope: route.scope,
            metric: route.metric,
            mtu: route.mtu,
            protocol: route.protocol,
            table: MAIN_TABLE,
        })
        .collect();
    // A gateway must be reachable when its route is made.
    wanted.sort_by_key(|route| (route.gateway.is_some(), std::cmp::Reverse(route.destination.length)));
    for new in &wanted {
        route::set(socket, new).map_err(kernel(|| format!("add a route to {}", new.destination)))?;
    }
    let there = route::list(socket, MAIN_TABLE).map_err(kernel(|| "list the routes".to_owned()))?;
    for old in there {
        // A route of a shape that is never planned was made in the guest; what it leads over may be none of the plan's links.
        let Entry::Route(old) = old else { continue };
        let concerns = found.contains(&old.link) || old.link == 0;
        let stays = old.protocol == BY_ADVERTISEMENT || is_link_local(old.destination);
        if concerns && !stays && !wanted.iter().any(|new| new.is_at(&old)) {
            route::remove(socket, &old)
                .map_err(kernel(|| format!("remove the route to {}", old.destination)))?;
        }
    }
    Ok(())
}

/// fe80::/10, which goes with the kernel's own addresses.
fn is_link_local(destination: Prefix) -> bool {
    matches!(destination.address, std::net::IpAddr::V6(address) if address.segments()[0] & 0xffc0 == 0xfe80)
}

fn neighbours(socket: &Socket, plan: &Plan, found: &[u32]) -> Result<(), NetworkError> {
    let wanted: Vec<Neighbour> = plan
        .neighbours
        .iter()
        .map(|neighbour| Neighbour {
            link: found[neighbour.interface],
            address: neighbour.address,
            mac: neighbour.mac,
            state: Neighbour::PERMANENT,
        })
        .collect();
    let there = neighbour::list(socket).map_err(kernel(|| "list the neighbours".to_owned()))?;
    for old in there.iter().filter(|old| old.is_permanent() && found.contains(&old.link)) {
        if !wanted.iter().any(|new| (new.link, new.address) == (old.link, old.address)) {
            neighbour::remove(socket, old)
                .map_err(kernel(|| format!("forget the neighbour {}", old.address)))?;
        }
    }
    for new in &wanted {
        neighbour::set(socket, new).map_err(kernel(|| format!("add the neighbour {}", new.address)))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
