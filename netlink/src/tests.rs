//! Against the kernel, in network namespaces that the tests make. They need root.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use nix::errno::Errno;
use nix::sched::{CloneFlags, unshare};

use super::*;
use crate::link::{Change, LinkLocal, State, Statistics};
use crate::redirect::Queue;
use crate::route::{BY_KERNEL, Entry, MAIN_TABLE};
use crate::socket::Watcher;

/// Runs a test in a namespace of its own, which ends with its thread.
fn in_namespace(test: impl FnOnce(&Socket) + Send + 'static) {
    std::thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).unwrap();
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

fn named(socket: &Socket, name: &str) -> Link {
    link::list(socket, Statistics::With).unwrap().into_iter().find(|link| link.name == name).unwrap()
}

fn prefix(text: &str) -> Prefix {
    let (address, length) = text.split_once('/').unwrap();
    Prefix::new(address.parse().unwrap(), length.parse().unwrap()).unwrap()
}

fn up(socket: &Socket, link: u32) {
    link::change(socket, link, &Change { state: Some(State::Up), ..Change::default() }).unwrap();
}

fn unicast(destination: &str, link: u32) -> Route {
    Route {
        destination: prefix(destination),
        kind: RouteKind::Unicast,
        link,
        gateway: None,
        source: None,
        scope: 0,
        metric: 0,
        mtu: 0,
        protocol: libc::RTPROT_STATIC,
        table: MAIN_TABLE,
    }
}

fn routes(socket: &Socket) -> Vec<Route> {
    let entries = route::list(socket, MAIN_TABLE).unwrap();
    entries
        .into_iter()
        .filter_map(|entry| if let Entry::Route(route) = entry { Some(route) } else { None })
        .collect()
}

#[test]
fn links_are_listed_and_changed() {
    in_namespace(|socket| {
        assert_eq!(link::list(socket, Statistics::Without).unwrap().len(), 1);
        ip("link add one address 02:00:00:00:00:01 type veth peer name two");
        let one = named(socket, "one");
        assert_eq!(one.mac, Some(Mac([2, 0, 0, 0, 0, 1])));
        assert_eq!((one.mtu, one.kind.as_str(), one.hardware), (1500, "veth", link::ETHERNET));
        assert!(!one.is_up() && !one.is_loopback() && named(socket, "lo").is_loopback());
        let change = Change {
            name: Some("eth0"),
            mtu: Some(1400),
            state: Some(State::Up),
            link_local: Some(LinkLocal::ByHand),
        };
        link::change(socket, one.index, &change).unwrap();
        up(socket, named(socket, "two").index);
        let eth0 = named(socket, "eth0");
        assert!(eth0.is_up() && eth0.mtu == 1400 && eth0.index == one.index);
        assert!(!address::list(socket).unwrap().iter().any(|address| address.link == eth0.index));
        let error = link::change(socket, 4711, &change).unwrap_err();
        assert_eq!(error.errno, Errno::ENODEV);
        let error =
            link::change(socket, one.index, &Change { mtu: Some(1), ..Change::default() }).unwrap_err();
        assert_eq!(error.errno, Errno::EINVAL);
        assert!(error.text.is_some(), "the kernel says why: {error}");
    });
}

#[test]
fn addresses_routes_and_neighbours() {
    in_namespace(|socket| {
        ip("link add one type veth peer name two");
        let (one, two) = (named(socket, "one").index, named(socket, "two").index);
        [one, two].iter().for_each(|link| up(socket, *link));
        let address = |text: &str| Address {
            link: one,
            prefix: prefix(text),
            peer: None,
            broadcast: None,
            scope: 0,
            flags: 0,
        };
        for text in ["10.1.0.2/24", "fd00::2/64"] {
            for _ in 0..2 {
                address::set(socket, &address(text)).unwrap();
            }
            let all = address::list(socket).unwrap();
            let found: Vec<_> = all.iter().filter(|found| found.prefix == prefix(text)).collect();
            assert_eq!(found.len(), 1);
            assert!(found[0].is_permanent() && found[0].link == one && !found[0].is_link_local_v6());
        }
        assert!(!ip("-6 addr show dev one").contains("tentative fd00"));
        let peer: IpAddr = Ipv4Addr::new(10, 9, 0, 1).into();
        let far = Address { peer: Some(peer), ..address("10.9.0.2/32") };
        address::set(socket, &far).unwrap();
        assert!(ip("addr show dev one").contains("inet 10.9.0.2 peer 10.9.0.1/32"));
        address::remove(socket, &far).unwrap();

        let gateway = |text: &str| Some(Gateway { address: text.parse().unwrap(), on_link: false });
        let wanted = [
            Route {
                gateway: gateway("10.1.0.1"),
                source: Some("10.1.0.2".parse().unwrap()),
                ..unicast("0.0.0.0/0", one)
            },
            Route { gateway: gateway("fd00::1"), metric: 7, mtu: 1300, ..unicast("::/0", one) },
            Route { scope: 253, ..unicast("192.0.2.0/24", one) },
            Route {
                gateway: Some(Gateway { address: "203.0.113.1".parse().unwrap(), on_link: true }),
                ..unicast("198.51.100.0/24", one)
            },
            Route { gateway: gateway("fd00::1"), ..unicast("198.18.0.0/15", one) },
            Route { kind: RouteKind::Unreachable, ..unicast("10.200.0.0/16", 0) },
        ];
        for route in &wanted {
            // Twice: the second is in place of the first.
            route::set(socket, route).unwrap();
            route::set(socket, route).unwrap();
        }
        let found = routes(socket);
        for route in &wanted {
            let at: Vec<_> = found.iter().filter(|found| found.is_at(route)).collect();
            assert_eq!(at, [route], "{found:#?}");
        }
        assert!(found.iter().any(|route| route.protocol == BY_KERNEL));
        assert!(ip("route").contains("198.18.0.0/15 via inet6 fd00::1"));
        for route in &wanted {
            route::remove(socket, route).unwrap();
        }
        assert!(routes(socket).iter().all(|route| route.protocol == BY_KERNEL));
        ip("route add 10.50.0.0/16 nexthop via 10.1.0.1 nexthop via 10.1.0.3");
        assert!(route::list(socket, MAIN_TABLE).unwrap().contains(&Entry::Strange(prefix("10.50.0.0/16"))));

        let neighbour = Neighbour {
            link: one,
            address: "10.1.0.1".parse().unwrap(),
            mac: Mac([2, 0, 0, 0, 0, 9]),
            state: libc::NUD_PERMANENT,
        };
        neighbour::set(socket, &neighbour).unwrap();
        assert!(neighbour::list(socket).unwrap().contains(&neighbour));
        assert!(ip("neigh").contains("10.1.0.1 dev one lladdr 02:00:00:00:00:09 PERMANENT"));
        neighbour::remove(socket, &neighbour).unwrap();
        assert!(!neighbour::list(socket).unwrap().iter().any(Neighbour::is_permanent));
    });
}

#[test]
fn frames_are_redirected() {
    in_namespace(|socket| {
        // What goes into `na` comes out of `nb`, and is sent on by `nc` to `nd`, which counts it.
        ip("link add na type veth peer name nb");
        ip("link add nc type veth peer name nd");
        let index = |name| named(socket, name).index;
        ["na", "nb", "nc", "nd"].iter().for_each(|name| up(socket, index(name)));
        let has_queue = |name| redirect::queues(socket).unwrap().contains(&index(name));
        assert!(!has_queue("nb"));
        assert_eq!(redirect::add(socket, index("nb"), index("nc")).unwrap(), Queue::Ours);
        assert!(has_queue("nb"));
        ip("addr add 10.3.0.1/24 dev na");
        ip("neigh add 10.3.0.2 dev na lladdr 02:00:00:00:00:07");
        let sender = std::net::UdpSocket::bind("10.3.0.1:0").unwrap();
        let before = named(socket, "nd").counters.rx_bytes;
        sender.send_to(&[0; 1000], "10.3.0.2:9").unwrap();
        let start = std::time::Instant::now();
        while named(socket, "nd").counters.rx_bytes < before + 1000 {
            assert!(start.elapsed().as_secs() < 20, "nothing came through");
            std::thread::yield_now();
        }
        redirect::remove(socket, index("nb"), Queue::Ours).unwrap();
        assert!(!has_queue("nb"));
        redirect::remove(socket, index("nb"), Queue::Ours).unwrap();
        redirect::remove(socket, 4711, Queue::Ours).unwrap();

        // A queue that was there before stays.
        let tc = Command::new("tc").args(["qdisc", "add", "dev", "nb", "ingress"]).status().unwrap();
        assert!(tc.success());
        assert_eq!(redirect::add(socket, index("nb"), index("nc")).unwrap(), Queue::Found);
        redirect::remove(socket, index("nb"), Queue::Found).unwrap();
        assert!(has_queue("nb"));
        let error = redirect::add(socket, index("na"), 4711).unwrap_err();
        assert_eq!(error.errno, Errno::ENODEV, "{error}");
        assert!(!has_queue("na"), "a failure leaves nothing");
    });
}

#[test]
fn what_leads_nowhere_is_swept_away() {
    let tc = |words: &str| {
        let output = Command::new("tc").args(words.split(' ')).output().unwrap();
        assert!(output.status.success(), "tc {words}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    in_namespace(move |socket| {
        ip("link add na type veth peer name nb");
        ip("link add nc type veth peer name nd");
        let index = |name| named(socket, name).index;
        let (from, to) = (index("na"), index("nc"));
        let has_queue = || redirect::queues(socket).unwrap().contains(&from);
        assert_eq!(redirect::add(socket, from, to).unwrap(), Queue::Ours);
        let others =
            "filter add dev na parent ffff: prio 7 u32 match u32 0 0 action mirred egress redirect dev lo";
        tc(others);
        // What is in use stays, also beside what is not.
        ip("link add ne type veth peer name nf");
        assert_eq!(redirect::add(socket, from, index("ne")).unwrap(), Queue::Found);
        ip("link del ne");
        redirect::sweep(socket, from, Queue::Ours).unwrap();
        let filters = tc("filter show dev na parent ffff:");
        assert!(filters.contains("pref 18517 ") && filters.contains("Redirect to device nc"), "{filters}");
        assert!(!filters.contains("Redirect to device *"), "{filters}");
        ip("link del nc");
        redirect::sweep(socket, from, Queue::Ours).unwrap();
        let filters = tc("filter show dev na parent ffff:");
        assert!(filters.contains("pref 7 ") && !filters.contains("pref 18517 "), "{filters}");
        assert!(has_queue(), "it is in use by others");

        tc("filter del dev na parent ffff: prio 7");
        redirect::sweep(socket, from, Queue::Found).unwrap();
        assert!(has_queue(), "it was there before");
        // Broken off before the filter was there.
        redirect::sweep(socket, from, Queue::Ours).unwrap();
        assert!(!has_queue());
        redirect::sweep(socket, from, Queue::Ours).unwrap();
        redirect::sweep(socket, 4711, Queue::Ours).unwrap();
    });
}

#[test]
fn a_watcher_sees_changes() {
    in_namespace(|socket| {
        let watcher = Watcher::open().unwrap();
        let readable = || {
            let mut poll = libc::pollfd {
                fd: std::os::fd::AsRawFd::as_raw_fd(&watcher),
                events: libc::POLLIN,
                revents: 0,
            };
            // SAFETY: one entry, which outlives the call.
            unsafe { libc::poll(&raw mut poll, 1, 0) == 1 }
        };
        assert!(!readable());
        up(socket, named(socket, "lo").index);
        assert!(readable());
        watcher.drain().unwrap();
        assert!(!readable());
    });
}

#[test]
fn names() {
    for name in ["eth0", "a", "vlan-1.2_x", "123456789012345"] {
        assert!(link::is_valid_name(name), "{name}");
    }
    for name in ["", ".", "..", "a/b", "a:b", "a b", "a\n", "1234567890123456", "eth%d", "\u{e4}"] {
        assert!(!link::is_valid_name(name), "{name}");
    }
    assert!(Mac([2, 0, 0, 0, 0, 0]).is_unicast() && !Mac([1, 0, 0, 0, 0, 1]).is_unicast());
    assert_eq!(Mac([0xa, 0, 0, 0, 0, 0xff]).to_string(), "0a:00:00:00:00:ff");
    assert_eq!(Prefix::new("10.0.0.1".parse().unwrap(), 33), None);
}
