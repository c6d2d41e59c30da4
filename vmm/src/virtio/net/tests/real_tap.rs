//! A real tap, in a network namespace of its own. Needs root, as `make test` does.

use std::fs::File;
use std::io;

use nix::sched::{CloneFlags, unshare};

use super::*;

/// The tap's interface in the kernel, reached by a packet socket.
pub(super) struct Interface {
    packets: OwnedFd,
}

pub(super) fn tap_flags() -> libc::c_int {
    libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR
}

fn request(name: &str) -> libc::ifreq {
    // SAFETY: `ifreq` is plain data for which all zeroes is a valid value.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = from.cast_signed();
    }
    request
}

fn ioctl(fd: &impl AsRawFd, what: libc::c_ulong, request: &mut libc::ifreq) {
    // SAFETY: all requests used here read or write one `ifreq`.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), what, request) };
    assert_eq!(result, 0, "{}", io::Error::last_os_error());
}

/// A tap in a fresh namespace of this thread.
pub(super) fn tap(flags: libc::c_int) -> OwnedFd {
    unshare(CloneFlags::CLONE_NEWNET).expect("these tests need root");
    let tap = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    let mut create = request("tap0");
    create.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap();
    ioctl(&tap, libc::TUNSETIFF, &mut create);
    tap.into()
}

impl Interface {
    /// Brings `tap0` up.
    pub(super) fn up() -> Self {
        let all = u16::try_from(libc::ETH_P_ALL).unwrap().to_be();
        // SAFETY: creates a descriptor, which is checked.
        let raw =
            unsafe { libc::socket(libc::AF_PACKET, libc::SOCK_RAW | libc::SOCK_CLOEXEC, i32::from(all)) };
        assert!(raw >= 0, "{}", io::Error::last_os_error());
        // SAFETY: the descriptor was just made.
        let packets = unsafe { <OwnedFd as std::os::fd::FromRawFd>::from_raw_fd(raw) };
        let mut up = request("tap0");
        up.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP).unwrap();
        ioctl(&packets, libc::SIOCSIFFLAGS, &mut up);
        let mut index = request("tap0");
        ioctl(&packets, libc::SIOCGIFINDEX, &mut index);
        // SAFETY: the kernel has filled it.
        let index = unsafe { index.ifr_ifru.ifru_ifindex };
        // SAFETY: plain data for which all zeroes is a valid value.
        let mut address: libc::sockaddr_ll = unsafe { std::mem::zeroed() };
        address.sll_family = u16::try_from(libc::AF_PACKET).unwrap();
        address.sll_protocol = all;
        address.sll_ifindex = index;
        let length = u32::try_from(size_of::<libc::sockaddr_ll>()).unwrap();
        // SAFETY: the address lives through the call and has the length given.
        assert_eq!(unsafe { libc::bind(raw, (&raw const address).cast(), length) }, 0);
        setsockopt(&packets, sockopt::ReceiveTimeout, &nix::sys::time::TimeVal::new(10, 0)).unwrap();
        Self { packets }
    }

    pub(super) fn send(&self, frame: &[u8]) {
        assert_eq!(send(self.packets.as_raw_fd(), frame, MsgFlags::empty()), Ok(frame.len()));
    }

    /// The next frame of our own protocol.
    pub(super) fn receive(&self) -> Vec<u8> {
        let mut bytes = vec![0; 2 * FRAME_MAX];
        loop {
            let length = recv(self.packets.as_raw_fd(), &mut bytes, MsgFlags::empty()).unwrap();
            if is_ours(&bytes[..length]) {
                return bytes[..length].to_vec();
            }
        }
    }
}

/// A frame of a protocol for experiments (IEEE 802), with a number.
pub(super) fn numbered(number: u32, length: usize) -> Vec<u8> {
    let header = [0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 2, 0, 0, 0, 0, 9, 0x88, 0xb5];
    [&header[..], &number.to_le_bytes(), &frame(0, length)].concat()
}

pub(super) fn is_ours(frame: &[u8]) -> bool {
    frame.get(12..14) == Some(&[0x88, 0xb5])
}

/// Runs on a thread of its own, so that the namespace is of this test only.
pub(super) fn on_a_thread(test: fn()) {
    std::thread::spawn(test).join().unwrap();
}

#[test]
fn a_real_tap_carries_frames_both_ways_and_loses_none() {
    on_a_thread(|| {
        let net = Net::new(&config(), vec![tap(tap_flags())]).unwrap();
        let interface = Interface::up();
        let mut driver = Driver::running(Box::new(net), MEMORY);
        let mut number = 0_u32;
        let mut expected = 0_u32;
        let area = driver.allocate(64 * 4096);
        let mut free: Vec<u64> = (0..64).map(|index| area + 4096 * index).collect();
        let mut offered = vec![0; 256];
        let deadline = Instant::now() + Duration::from_secs(60);
        while expected < 5000 {
            assert!(Instant::now() < deadline, "stands still after {expected} frames");
            // No more than the interface's own queue takes: what is lost is lost by us.
            while number < 5000 && number - expected < 300 {
                interface.send(&numbered(number, 40 + usize::try_from(number % 1400).unwrap()));
                number += 1;
            }
            while let Some(address) = free.pop() {
                let head = driver.add(RX, &[writable(address, 4096)]);
                offered[usize::from(head)] = address;
            }
            driver.notify(RX);
            driver.turn(PollTimeout::from(1000_u16));
            for (head, length) in driver.used(RX) {
                let address = offered[usize::from(head)];
                let packet = driver.peek(address, usize::try_from(length).unwrap());
                free.push(address);
                if is_ours(&packet[12..]) {
                    let sent = numbered(expected, 40 + usize::try_from(expected % 1400).unwrap());
                    assert!(packet[12..] == sent, "frame {expected}");
                    expected += 1;
                }
            }
        }
        for number in 0..100 {
            transmit(&mut driver, &PLAIN, &numbered(number, 1000), 400);
            assert!(interface.receive() == numbered(number, 1000));
        }
    });
}

#[test]
fn a_real_tap_offers_checksums_and_segmentation() {
    on_a_thread(|| {
        let net = Net::new(&config(), vec![tap(tap_flags())]).unwrap();
        let mut driver = Driver::running(Box::new(net), MEMORY);
        // CSUM, GUEST_CSUM, GUEST_TSO4, GUEST_TSO6, HOST_TSO4, HOST_TSO6.
        assert_eq!(driver.offered() & 0x1983, 0x1983);
    });
}

#[test]
fn a_tap_that_is_down_or_deleted_does_not_hurt() {
    on_a_thread(|| {
        let fd = tap(tap_flags());
        let other = fd.try_clone().unwrap();
        let net = Net::new(&config(), vec![fd]).unwrap();
        let mut driver = Driver::running(Box::new(net), MEMORY);
        // Not up yet: EIO, and the frame is lost.
        transmit(&mut driver, &PLAIN, &numbered(1, 100), 4096);
        assert_eq!(link_status(&mut driver), 1);
        let interface = Interface::up();
        transmit(&mut driver, &PLAIN, &numbered(2, 100), 4096);
        assert!(interface.receive() == numbered(2, 100));
        offer(&mut driver, 2000);
        driver.notify(RX);
        driver.settle();
        delete_link(&interface);
        driver.settle();
        transmit(&mut driver, &PLAIN, &numbered(3, 100), 4096);
        assert_eq!(link_status(&mut driver), 0);
        assert_eq!(driver.get(STATUS), RUNNING);
        drop(other);
    });
}

/// `ip link delete tap0`
pub(super) fn delete_link(interface: &Interface) {
    let mut index = request("tap0");
    ioctl(&interface.packets, libc::SIOCGIFINDEX, &mut index);
    // SAFETY: the kernel has filled it.
    let index = unsafe { index.ifr_ifru.ifru_ifindex };
    let netlink = nix::sys::socket::socket(
        AddressFamily::Netlink,
        SockType::Raw,
        SockFlag::SOCK_CLOEXEC,
        nix::sys::socket::SockProtocol::NetlinkRoute,
    )
    .unwrap();
    // nlmsghdr { len, type RTM_DELLINK, flags REQUEST | ACK, seq, pid }, ifinfomsg { family, type, index, flags, change }
    let mut message = Vec::new();
    message.extend(32_u32.to_le_bytes());
    message.extend(17_u16.to_le_bytes());
    message.extend(5_u16.to_le_bytes());
    message.extend([0; 8]);
    message.extend([0; 4]);
    message.extend(index.to_le_bytes());
    message.extend([0; 8]);
    assert_eq!(send(netlink.as_raw_fd(), &message, MsgFlags::empty()), Ok(32));
    let mut answer = [0; 256];
    let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty()).unwrap();
    // nlmsgerr's error follows the header.
    assert!(length >= 20 && answer[16..20] == [0; 4], "{:?}", &answer[..length]);
}

#[test]
fn a_tap_of_the_wrong_kind_is_refused() {
    for wrong in [libc::IFF_TAP | libc::IFF_NO_PI, libc::IFF_TUN | libc::IFF_NO_PI | libc::IFF_VNET_HDR] {
        std::thread::spawn(move || {
            let error = Net::new(&config(), vec![tap(wrong)]).unwrap_err();
            assert!(matches!(error, NetError::Tap { source: TapError::Flags(_), .. }), "{error:?}");
        })
        .join()
        .unwrap();
    }
    let unattached = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    let error = Net::new(&config(), vec![unattached.into()]).unwrap_err();
    assert!(matches!(error, NetError::Tap { source: TapError::NotATap(_), .. }), "{error:?}");
}
