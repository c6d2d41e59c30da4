//! Against the kernel, in network namespaces that the tests make. They need root.

use std::process::Command;

use hull_protocol::agent::api::agent as api;
use nix::sched::{CloneFlags, unshare};

use super::super::NetworkError;
use super::*;

/// Runs a test in a namespace of its own with two links, whose other ends are up.
fn in_namespace(test: impl FnOnce(&Socket) + Send + 'static) {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
        for (number, name) in [(1, "one"), (2, "two")] {
            ip(&format!("link add {name} address 02:00:00:00:00:0{number} type veth peer name far{number}"));
            ip(&format!("link set far{number} up"));
        }
        test(&Socket::open().unwrap());
    })
    .join()
    .unwrap();
}

/// iproute2, as a second opinion.
fn ip(words: &str) -> String {
    let output = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

fn bytes(address: &str) -> Vec<u8> {
    match address {
        "" => Vec::new(),
        text => match text.parse().unwrap() {
            std::net::IpAddr::V4(address) => address.octets().into(),
            std::net::IpAddr::V6(address) => address.octets().into(),
        },
    }
}

fn split(prefix: &str) -> (Vec<u8>, u32) {
    let (address, length) = prefix.split_once('/').unwrap();
    (bytes(address), length.parse().unwrap())
}

fn interface(number: u8, name: &str, addresses: &[&str]) -> api::NetworkInterface {
    let addresses = addresses.iter().map(|text| {
        let (address, prefix_length) = split(text);
        api::NetworkAddress { address, prefix_length, ..Default::default() }
    });
    api::NetworkInterface {
        mac: vec![2, 0, 0, 0, 0, number],
        name: name.into(),
        mtu: 1400 + u32::from(number),
        addresses: addresses.collect(),
        ..Default::default()
    }
}

fn route(destination: &str, interface: &str, gateway: &str) -> api::NetworkRoute {
    let (destination, prefix_length) = split(destination);
    let link = if gateway.is_empty() { 253 } else { 0 };
    api::NetworkRoute {
        scope: if destination.len() == 4 { link } else { 0 },
        metric: if destination.len() == 4 { 0 } else { 256 },
        destination,
        prefix_length,
        interface: interface.into(),
        gateway: bytes(gateway),
        protocol: 3,
        ..Default::default()
    }
}

fn configure(socket: &Socket, request: &api::ConfigureNetworkRequest) -> Result<(), NetworkError> {
    apply(socket, &Plan::parse(request)?)
}

#[test]
fn the_described_network_is_there_and_nothing_else() {
    in_namespace(|socket| {
        let mut request = api::ConfigureNetworkRequest {
            interfaces: vec![
                interface(1, "eth0", &["10.1.0.2/24", "fd00::2/64"]),
                // The name of the other's link.
                interface(2, "one", &["10.2.0.2/24"]),
            ],
            routes: vec![
                // The gateway's own route comes after the one that needs it.
                route("0.0.0.0/0", "eth0", "10.1.0.1"),
                route("10.1.0.0/24", "eth0", ""),
                route("::/0", "eth0", "fd00::1"),
                route("fd00::/64", "eth0", ""),
            ],
            neighbours: vec![api::NetworkNeighbour {
                interface: "eth0".into(),
                address: bytes("10.1.0.1"),
                mac: vec![2, 0, 0, 0, 0, 9],
                ..Default::default()
            }],
            ..Default::default()
        };
        request.routes[3].protocol = 2;
        for _ in 0..2 {
            configure(socket, &request).unwrap();
            assert!(ip("link show dev eth0").contains("mtu 1401"));
            assert!(ip("link show dev one").contains("02:00:00:00:00:02"));
            assert!(ip("link show dev lo").contains("UP"));
            let routes = ip("-o route");
            assert_eq!(routes.lines().count(), 2, "10.2.0.0/24 is not described: {routes}");
            assert!(routes.contains("default via 10.1.0.1 dev eth0"));
            let routes = ip("-6 -o route");
            assert!(routes.contains("default via fd00::1 dev eth0"), "{routes}");
            assert!(!ip("-6 addr show dev eth0").contains("fe80"));
            assert!(ip("neigh").contains("10.1.0.1 dev eth0 lladdr 02:00:00:00:00:09 PERMANENT"));
        }

        // Everything changes, and what a workload did is undone.
        ip("addr add 192.0.2.1/24 dev eth0");
        ip("link set one down");
        request.interfaces[0].name = "one".into();
        request.interfaces[0].addresses[0].address = bytes("10.1.0.3");
        request.interfaces[0].link_local_ipv6 = true;
        request.interfaces[1].name = "eth0".into();
        request.routes = vec![route("10.1.0.0/24", "one", ""), route("10.2.0.0/24", "eth0", "")];
        request.neighbours.clear();
        configure(socket, &request).unwrap();
        let addresses = ip("-o addr show dev one");
        assert!(addresses.contains("10.1.0.3/24") && addresses.contains("fe80::"), "{addresses}");
        assert!(!addresses.contains("10.1.0.2") && !addresses.contains("192.0.2.1"), "{addresses}");
        assert!(ip("link show dev eth0").contains("02:00:00:00:00:02"));
        assert_eq!(ip("-o route").lines().count(), 2);
        assert!(!ip("-6 route").contains("default"));
        assert!(!ip("neigh").contains("PERMANENT"));
    });
}

#[test]
fn a_point_to_point_link_reaches_its_other_end_only() {
    in_namespace(|socket| {
        let mut request = api::ConfigureNetworkRequest {
            interfaces: vec![interface(1, "eth0", &["10.5.0.2/32"])],
            routes: vec![
                api::NetworkRoute { on_link: true, ..route("0.0.0.0/0", "eth0", "169.254.1.1") },
                api::NetworkRoute {
                    kind: api::NetworkRouteKind::UNREACHABLE.into(),
                    scope: 0,
                    ..route("192.168.0.0/16", "", "")
                },
            ],
            ..Default::default()
        };
        request.interfaces[0].addresses[0].peer = bytes("10.5.0.1");
        configure(socket, &request).unwrap();
        let routes = ip("route");
        assert!(routes.contains("default via 169.254.1.1 dev eth0 onlink"), "{routes}");
        assert!(routes.contains("unreachable 192.168.0.0/16"), "{routes}");
        assert!(!routes.contains("10.5.0.1"), "{routes}");
        assert!(ip("addr show dev eth0").contains("10.5.0.2 peer 10.5.0.1/32"));
    });
}

#[test]
fn what_cannot_be_done_is_said() {
    in_namespace(|socket| {
        let mut request = api::ConfigureNetworkRequest {
            interfaces: vec![interface(7, "eth0", &[])],
            ..Default::default()
        };
        let error = configure(socket, &request).unwrap_err();
        assert_eq!(error.to_string(), "no network device has the address 02:00:00:00:00:07");
        request.interfaces[0] = interface(1, "eth0", &["10.1.0.2/24"]);
        request.routes = vec![route("0.0.0.0/0", "eth0", "172.16.0.1")];
        let error = configure(socket, &request).unwrap_err().to_string();
        assert!(
            error.starts_with("cannot add a route to 0.0.0.0/0: ENETUNREACH")
                || error.contains("unreachable"),
            "{error}"
        );
        // The same network without what was wrong with it.
        request.routes.clear();
        configure(socket, &request).unwrap();
        assert_eq!(ip("route"), "");
    });
}
