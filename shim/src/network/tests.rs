//! Against the kernel, in namespaces that the tests make. They need root, and /dev/net/tun.

use std::io::{Read, Write};
use std::process::Command;

use super::*;

fn ip(words: &str) -> String {
    let output = Command::new("ip").args(words.split(' ')).output().unwrap();
    assert!(output.status.success(), "ip {words}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).unwrap()
}

/// Something in the pod's namespace, by a program that inherits it.
async fn inside(pod: &PodNetwork, words: &'static [&'static str]) -> Vec<String> {
    let work = move |_: &Socket| Ok(words.iter().map(|words| ip(words)).collect());
    pod.namespace().run(work).await.unwrap()
}

/// A pod with one end of a veth pair; the other is in a namespace of the test's, which is returned.
async fn pod() -> (PodNetwork, Arc<Namespace>) {
    let pod =
        PodNetwork::open(&NetworkChoice::Own, NetworkLimits::default(), Vhost::Never).await.unwrap().unwrap();
    let world = Arc::new(Namespace::fresh().await.unwrap());
    inside(&pod, &["link add eth0 address 02:00:00:00:00:01 mtu 1400 type veth peer name world"]).await;
    let target = Arc::clone(&world);
    let moved = pod.namespace().run(move |_| {
        use std::os::fd::{AsFd, AsRawFd};
        ip(&format!("link set world netns /proc/{}/fd/{}", std::process::id(), target.as_fd().as_raw_fd()));
        Ok(())
    });
    moved.await.unwrap();
    inside(&pod, &["link set eth0 up", "addr add 10.4.0.2/24 dev eth0", "route add default via 10.4.0.1"])
        .await;
    let raise = |_: &Socket| {
        ip("link set world address 02:00:00:00:00:02 up");
        ip("addr add 10.4.0.1/24 dev world");
        ip("neigh add 10.4.0.2 lladdr 02:00:00:00:00:01 dev world");
        Ok(())
    };
    world.run(raise).await.unwrap();
    pod.namespace().run(|_| until_up("eth0")).await.unwrap();
    world.run(|_| until_up("world")).await.unwrap();
    (pod, world)
}

/// Waits until the kernel has noticed that a link has a carrier: what is sent over it before is lost.
fn until_up(link: &str) -> Result<(), NetworkError> {
    let up = || ip(&format!("link show {link}")).contains("state UP");
    for _ in 0..1000 {
        if up() {
            return Ok(());
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    panic!("{link} does not come up");
}

fn run<F: Future<Output = ()>>(test: F) {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

#[test]
fn the_guest_is_in_the_interfaces_place() {
    run(async {
        let (mut pod, world) = pod().await;
        let Look { devices, description, .. } = pod.settle().await.unwrap();
        assert_eq!(devices.len(), 1);
        let config = &devices[0].config;
        assert_eq!((config.name.as_str(), config.mac, config.mtu), ("net0", [2, 0, 0, 0, 0, 1], 1400));
        let eth0 = &description.interfaces[0];
        assert_eq!((eth0.name.as_str(), eth0.mtu), ("eth0", 1400));
        assert_eq!(eth0.addresses[0].address, [10, 4, 0, 2]);
        assert!(eth0.link_local_ipv6);
        let routes: Vec<_> =
            description.routes.iter().map(|route| (route.prefix_length, &route.gateway[..])).collect();
        assert_eq!(routes, [(0, &[10, 4, 0, 1][..]), (24, &[])]);
        // Nothing is new when nothing has changed, and our own tap is no interface.
        let Look { devices: none, description: same, .. } = pod.settle().await.unwrap();
        assert!(none.is_empty());
        assert_eq!(same, description);

        // What the world sends to the interface, the monitor reads.
        let sent = |_: &Socket| {
            std::net::UdpSocket::bind("10.4.0.1:0").unwrap().send_to(b"hello guest", "10.4.0.2:9").unwrap();
            Ok(())
        };
        world.run(sent).await.unwrap();
        let mut tap = std::fs::File::from(devices.into_iter().next().unwrap().tap);
        let frame = frame_with(&mut tap, b"hello guest").await;
        // And the other way round: the same frame with the addresses exchanged.
        let listen = |_: &Socket| Ok(std::net::UdpSocket::bind("10.4.0.1:7").unwrap());
        let listener = world.run(listen).await.unwrap();
        listener.set_read_timeout(Some(std::time::Duration::from_secs(20))).unwrap();
        tap.write_all(&reply(&frame, 7)).unwrap();
        let mut text = [0; 64];
        let (length, from) = listener.recv_from(&mut text).unwrap();
        assert_eq!(&text[..length], b"hello guest");
        assert_eq!(from.to_string(), "10.4.0.2:9");
    });
}

/// Reads frames until one contains `text`; others, of the kernel's own making, may come before it.
async fn frame_with(tap: &mut std::fs::File, text: &[u8]) -> Vec<u8> {
    for _ in 0..2000 {
        let mut frame = vec![0; 65536];
        match tap.read(&mut frame) {
            Ok(length) => {
                frame.truncate(length);
                if frame.windows(text.len()).any(|window| window == text) {
                    return frame;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
            Err(error) => panic!("{error}"),
        }
    }
    panic!("the frame did not come");
}

/// virtio's header, then Ethernet, IPv4 and UDP: source and destination change places, and the ports become 9 and `port`.
fn reply(frame: &[u8], port: u16) -> Vec<u8> {
    const NET: usize = 10;
    let mut reply = frame.to_vec();
    reply[..NET].fill(0);
    let (ethernet, ip, udp) = (NET, NET + 14, NET + 34);
    reply[ethernet..ethernet + 6].copy_from_slice(&frame[ethernet + 6..ethernet + 12]);
    reply[ethernet + 6..ethernet + 12].copy_from_slice(&frame[ethernet..ethernet + 6]);
    reply[ip + 12..ip + 16].copy_from_slice(&frame[ip + 16..ip + 20]);
    reply[ip + 16..ip + 20].copy_from_slice(&frame[ip + 12..ip + 16]);
    reply[udp..udp + 2].copy_from_slice(&9u16.to_be_bytes());
    reply[udp + 2..udp + 4].copy_from_slice(&port.to_be_bytes());
    // No checksum.
    reply[udp + 6..udp + 8].fill(0);
    reply
}

#[test]
fn nothing_is_left_in_the_namespace() {
    run(async {
        let (mut pod, _world) = pod().await;
        // A carrier may come and go meanwhile: names are what counts.
        let names = |_: &Socket| {
            let links = ip("-o link");
            Ok(links.lines().map(|line| line.split(": ").nth(1).unwrap().to_owned()).collect::<Vec<_>>())
        };
        let before = pod.namespace().run(names).await.unwrap();
        let Look { devices, .. } = pod.settle().await.unwrap();
        assert!(pod.namespace().run(names).await.unwrap().contains(&"hull0".to_owned()));
        // The monitor is gone, then the redirections go.
        drop(devices);
        pod.redirections().remove(Arc::clone(pod.namespace())).await.unwrap();
        assert_eq!(pod.namespace().run(names).await.unwrap(), before);
        let has_queue = |socket: &Socket| Ok(!redirect::queues(socket).unwrap().is_empty());
        assert!(!pod.namespace().run(has_queue).await.unwrap());
        pod.redirections().remove(Arc::clone(pod.namespace())).await.unwrap();
    });
}

#[test]
fn an_interface_that_comes_again_gets_its_tap_back() {
    run(async {
        let (mut pod, _world) = pod().await;
        let Look { devices: _devices, description: first, .. } = pod.settle().await.unwrap();
        inside(&pod, &["link del eth0"]).await;
        let Look { devices, description, .. } = pod.settle().await.unwrap();
        assert!(devices.is_empty() && description.interfaces.is_empty());
        inside(
            &pod,
            &[
                "link add eth0 address 02:00:00:00:00:01 mtu 1400 type veth peer name other",
                "link set eth0 up",
            ],
        )
        .await;
        inside(&pod, &["addr add 10.4.0.2/24 dev eth0", "route add default via 10.4.0.1"]).await;
        // The other end is down: only its carrier is missing.
        let Look { devices, description, .. } = pod.settle().await.unwrap();
        assert!(devices.is_empty());
        assert_eq!(description.interfaces[0].addresses, first.interfaces[0].addresses);
        // A further interface gets a further device.
        inside(&pod, &["link set other up"]).await;
        let Look { devices, description, .. } = pod.settle().await.unwrap();
        assert_eq!(devices.len(), 1);
        assert_eq!(devices[0].config.name, "net1");
        assert_eq!(description.interfaces.len(), 2);
    });
}

#[test]
fn what_cannot_be_is_said() {
    run(async {
        let mut pod = PodNetwork::open(&NetworkChoice::Own, NetworkLimits::default(), Vhost::Never)
            .await
            .unwrap()
            .unwrap();
        inside(
            &pod,
            &["link add one address 02:00:00:00:00:01 type veth peer name two address 02:00:00:00:00:01"],
        )
        .await;
        inside(&pod, &["link set one up", "link set two up"]).await;
        let error = pod.settle().await.unwrap_err().to_string();
        assert!(error.contains("the same Ethernet address, 02:00:00:00:00:01"), "{error}");

        let error = PodNetwork::open(
            &NetworkChoice::At("/nowhere/netns".into()),
            NetworkLimits::default(),
            Vhost::Never,
        )
        .await
        .unwrap_err()
        .to_string();
        assert!(error.starts_with("cannot open the network namespace /nowhere/netns: "), "{error}");
        let error = PodNetwork::open(
            &NetworkChoice::At("/proc/self/ns/uts".into()),
            NetworkLimits::default(),
            Vhost::Never,
        )
        .await
        .unwrap_err()
        .to_string();
        assert!(error.starts_with("cannot enter the network namespace: "), "{error}");
    });
}

#[test]
fn every_port_of_the_loopback_is_listened_on_and_then_none() {
    run(async {
        let namespace = Arc::new(Namespace::fresh().await.unwrap());
        let connect = |address: &'static str| {
            namespace.run(move |_| Ok(std::net::TcpStream::connect(address).map_err(|error| error.kind())))
        };
        // Docker's name server would be here.
        let other = |_: &Socket| Ok(std::net::TcpListener::bind("127.0.0.11:53").unwrap());
        let other = namespace.run(other).await.unwrap();
        let before = namespace.run(|_| Ok(std::net::TcpListener::bind("127.0.0.1:80").unwrap()));
        let before = before.await.unwrap();

        let loopback = Loopback::listen(&namespace).await.unwrap();
        assert_eq!(loopback.len(), 2);
        for (listener, address) in
            [(0, "127.0.0.1:80"), (0, "127.0.0.1:1"), (0, "127.0.0.1:65535"), (1, "[::1]:8080")]
        {
            let mut client = connect(address).await.unwrap().unwrap();
            let (mut server, _) = loopback[listener].listener.accept().unwrap();
            assert_eq!(server.local_addr().unwrap().to_string(), address);
            client.write_all(b"x").unwrap();
            server.read_exact(&mut [0]).unwrap();
        }
        connect("127.0.0.11:53").await.unwrap().unwrap();
        other.accept().unwrap();
        assert_eq!(connect("127.0.0.2:80").await.unwrap().unwrap_err(), io::ErrorKind::ConnectionRefused);

        drop(loopback);
        assert_eq!(connect("[::1]:8080").await.unwrap().unwrap_err(), io::ErrorKind::ConnectionRefused);
        connect("127.0.0.1:80").await.unwrap().unwrap();
        before.accept().unwrap();
    });
}
