//! A container's network, end to end: CNI's bridge on the host, tap and tc beside it, virtio-net and the agent in a real guest.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::Once;
use std::thread::JoinHandle;
use std::time::Duration;

use hull_tests::bridge::GATEWAY;
use hull_tests::hull::{Hull, image};
use sha2::{Digest, Sha256};

/// The bridge and its chains stay when the last container goes, as docker's do: they must be there before anything is compared.
fn bridged() -> Hull {
    static WARM: Once = Once::new();
    WARM.call_once(|| {
        Hull::new().ok([
            "run",
            "--rm",
            "--network",
            "bridge",
            "-p",
            "127.0.0.1:18081:80",
            &image("busybox"),
            "true",
        ]);
    });
    Hull::new()
}

fn busybox<'a>(options: &[&'a str], image: &'a str, script: &'a str) -> Vec<&'a str> {
    [&["run", "--rm", "--network", "bridge"], options, &[image, "sh", "-euc", script]].concat()
}

/// What a web server says.
fn get(address: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(address)?;
    stream.set_read_timeout(Some(Duration::from_secs(60)))?;
    stream.write_all(b"GET /index.html HTTP/1.0\r\n\r\n")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

/// A server on the bridge for one client; it is told what `serve` returned.
fn once<T: Send + 'static>(serve: impl FnOnce(TcpStream) -> T + Send + 'static) -> (u16, JoinHandle<T>) {
    let listener = TcpListener::bind((GATEWAY, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    (port, std::thread::spawn(move || serve(listener.accept().unwrap().0)))
}

#[test]
fn containers_the_host_and_each_other() {
    let hull = bridged();
    let serve = "mkdir /www; echo hello from $(hostname) >/www/index.html; exec httpd -f -p 80 -h /www";
    let options = ["--network", "bridge", "-p", "127.0.0.1:18080:80", "-h", "web"];
    let web = hull.detached(&options, "busybox", &["sh", "-euc", serve]);
    let settings = hull.inspect(&web)["NetworkSettings"].clone();
    let address = settings["IPAddress"].as_str().unwrap().to_owned();
    let address6 = settings["GlobalIPv6Address"].as_str().unwrap().to_owned();
    assert_eq!(settings["Ports"]["80/tcp"][0]["HostPort"], "18080");
    assert!(hull.ok(["ps"]).contains("127.0.0.1:18080->80/tcp"));

    // The host by the container's address, and by the published port.
    for at in [format!("{address}:80"), "127.0.0.1:18080".to_owned()] {
        let answer =
            hull_tests::eventually("the server answers", || get(&at).ok().filter(|text| !text.is_empty()));
        assert!(answer.ends_with("hello from web\n"), "{at}: {answer:?}");
    }
    // Another container, by a name, over IPv4 and IPv6; and what it sees of its own network.
    let script = format!(
        "wget -qO- http://web/index.html; wget -qO- 'http://[{address6}]/index.html'; cat /sys/class/net/eth0/mtu; \
         ip -o -4 addr show dev eth0 | grep -c 10.87; cat /etc/hostname; grep -c $(hostname) /etc/hosts; \
         grep nameserver /etc/resolv.conf; ping -c1 -W5 {GATEWAY} >/dev/null && echo pong"
    );
    let host = format!("web:{address}");
    let busybox_image = image("busybox");
    let said =
        hull.ok(busybox(&["--add-host", &host, "-h", "box", "--dns", "192.0.2.53"], &busybox_image, &script));
    let wanted = "hello from web\nhello from web\n1500\n1\nbox\n2\nnameserver 192.0.2.53\npong\n";
    assert_eq!(said, wanted);
    hull.ok(["rm", "-f", &web]);
    assert!(get("127.0.0.1:18080").is_err(), "the port is free again");
    hull.left_nothing();
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[test]
fn megabytes_each_way() {
    const LENGTH: usize = 20_000_000;
    let hull = bridged();
    // Not the same from packet to packet, and fast to make.
    let mut state = 1u64;
    let mut data = Vec::with_capacity(LENGTH + 8);
    while data.len() < LENGTH {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        data.extend_from_slice(&state.to_le_bytes());
    }
    data.truncate(LENGTH);
    let digest = hex(&Sha256::digest(&data));
    let (from, sent) = once(move |mut stream| {
        assert!(stream.read(&mut [0; 1024]).unwrap() > 0);
        write!(stream, "HTTP/1.0 200 OK\r\nContent-Length: {LENGTH}\r\n\r\n").unwrap();
        stream.write_all(&data).unwrap();
    });
    let (to, received) = once(|mut stream| {
        let mut hash = Sha256::new();
        let mut piece = vec![0; 1 << 20];
        // It is we who hang up: not every nc says that its input has ended.
        let mut left = LENGTH;
        while left > 0 {
            let length = stream.read(&mut piece).unwrap();
            assert!(length > 0, "{left} bytes are missing");
            hash.update(&piece[..length]);
            left = left.saturating_sub(length);
        }
        hex(&hash.finalize())
    });
    let script = format!(
        "wget -qO /tmp/data http://{GATEWAY}:{from}/; sha256sum </tmp/data | cut -c1-64; nc {GATEWAY} {to} </tmp/data"
    );
    let busybox_image = image("busybox");
    let said = hull.ok(busybox(&["-m", "384m"], &busybox_image, &script));
    sent.join().unwrap();
    assert_eq!(said.trim(), digest);
    assert_eq!(received.join().unwrap(), digest);
    hull.left_nothing();
}

#[test]
fn what_is_not_to_be_had_is_said_and_left_alone() {
    let hull = bridged();
    let busybox_image = image("busybox");
    let said = hull.ok(["run", "--rm", "--network", "none", &busybox_image, "ls", "/sys/class/net"]);
    assert_eq!(said.trim(), "lo");
    hull.run(["run", "--network", "host", &busybox_image, "true"]).failed(125, &["host's network", "bridge"]);
    hull.run(["run", "--network", "none", "-p", "80:80", &busybox_image, "true"])
        .failed(125, &["-p", "bridge"]);
    hull.run(["run", "--network", "ns:/nowhere", &busybox_image, "true"]).failed(125, &["/nowhere"]);
    // Who is killed in the middle leaves a container that can be removed with its network.
    let id = hull.detached(&["--network", "bridge"], "busybox", &["sleep", "1000"]);
    let shim = hull.shim_record(&id)["shim_pid"].as_i64().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(shim.try_into().unwrap()), nix::sys::signal::SIGKILL)
        .unwrap();
    hull.ok(["rm", "-f", &id]);
    hull.left_nothing();
}
