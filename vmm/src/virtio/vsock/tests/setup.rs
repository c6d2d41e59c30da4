//! Configurations, limits and guests that do not follow the rules.

use super::*;

#[test]
fn what_cannot_be_a_device_is_refused() {
    let build = |guest_cid, ports: &[u32], channels: usize, listener: OwnedFd| {
        let config = VsockConfig { guest_cid, guest_to_host_ports: ports.to_vec() };
        let channels = (0..channels).map(|_| hull_protocol::vmm::Channel::pair().unwrap().0.into());
        Vsock::new(&config, listener, channels.collect()).map(|_| ()).unwrap_err().to_string()
    };
    let folder = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(folder.path().join("s")).unwrap();
    let listener = || OwnedFd::from(listener.try_clone().unwrap());
    for cid in [0, 1, 2, u32::MAX] {
        assert!(build(cid, &[], 0, listener()).contains("context id"));
    }
    assert!(build(3, &[1], 0, listener()).contains("1 guest-to-host ports came with 0"));
    assert!(build(3, &[], 1, listener()).contains("0 guest-to-host ports came with 1"));
    assert!(build(3, &[7, 7], 2, listener()).contains("twice"));
    let (stream, _other) = UnixStream::pair().unwrap();
    assert!(build(3, &[], 0, stream.into()).contains("listening"));
    assert!(build(3, &[], 0, std::fs::File::open("/dev/null").unwrap().into()).contains("listening"));
}

#[test]
fn the_configuration_space_is_the_context_id() {
    let (device, _host) = device(&[]);
    let mut driver = Driver::new(device, 0x40000);
    let mut config = [0xff; 12];
    driver.transport.read(0x100, &mut config);
    assert_eq!(config, [3, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    assert_eq!(driver.get(0x08), 19);
}

/// Both ends of 1024 connections are in this process.
fn allow_many_descriptors() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: reads into a local.
    assert_eq!(unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &raw mut limit) }, 0);
    limit.rlim_cur = limit.rlim_max.min(20_000);
    // SAFETY: reads from a local.
    assert_eq!(unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &raw const limit) }, 0);
}

#[test]
fn connections_are_limited_and_the_rest_is_closed_not_left_waiting() {
    allow_many_descriptors();
    let (mut guest, host) = Guest::new(&[1024]);
    guest.listening.insert(1);
    let mut streams = Vec::new();
    for _ in 0..1024 {
        streams.push(accepted(&mut guest, &host, 1).0);
        guest.packets.clear();
    }
    let mut stream = host.connect();
    guest.settle();
    assert!(matches!(stream.read(&mut [0]), Ok(0) | Err(_)));
    guest.connect((5, 1024));
    guest.run_until("the refusal", |guest| guest.socket((5, 1024)).was_reset);
    // Room comes back when one ends.
    drop(streams.pop());
    guest.run_until("the end", |guest| guest.sockets.values().any(|socket| socket.host_shutdown == BOTH));
    let ended =
        guest.sockets.iter().find(|(_, socket)| socket.host_shutdown == BOTH).map(|(ports, _)| *ports);
    guest.send_control(ended.unwrap(), Operation::Reset);
    guest.settle();
    accepted(&mut guest, &host, 1);
}

#[test]
fn hosts_that_never_say_where_they_want_to_go_do_not_lock_out_the_guest() {
    let (mut guest, host) = Guest::new(&[1024]);
    let silent: Vec<UnixStream> = (0..100).map(|_| host.connect()).collect();
    guest.settle();
    let more: Vec<UnixStream> = (0..100).map(|_| host.connect()).collect();
    guest.settle();
    let closed = |mut stream: UnixStream| usize::from(!is_quiet(&mut stream));
    offered(&mut guest, &host, (5, 1024));
    assert_eq!(silent.into_iter().map(closed).sum::<usize>(), 0);
    assert_eq!(more.into_iter().map(closed).sum::<usize>(), 72);
    guest.settle();
    accepted(&mut guest, &host, 1);
}

/// A guest's promise is not needed: what it sends beyond its credit ends the connection.
#[test]
fn more_than_the_credit_is_a_reset() {
    let (mut guest, host) = Guest::new(&[]);
    let (_stream, ports) = accepted(&mut guest, &host, 1);
    for _ in 0..100 {
        let header = Header { len: 16384, ..guest.header(ports, Operation::Data) };
        guest.send_raw(header, &[1; 16384]);
        guest.settle();
        if guest.socket(ports).was_reset {
            break;
        }
    }
    assert!(guest.socket(ports).was_reset);
}

#[test]
fn operations_out_of_place_are_a_reset() {
    use Operation::{CreditUpdate, Data, Request, Response, Shutdown};
    for operation in [Request, Response] {
        let (mut guest, host) = Guest::new(&[]);
        let (mut stream, ports) = accepted(&mut guest, &host, 1);
        guest.send_control(ports, operation);
        guest.settle();
        assert!(guest.socket(ports).was_reset, "{operation:?}");
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
    // Before the guest has accepted.
    for operation in [Request, Data, CreditUpdate, Shutdown] {
        let (mut guest, host) = Guest::new(&[]);
        let mut stream = host.connect();
        stream.write_all(b"CONNECT 1\n").unwrap();
        guest.driver.settle();
        guest.driver.interrupted();
        let header = guest.header((1, 1 << 30), operation);
        guest.send_raw(header, &[]);
        guest.run_until("the reset", |guest| guest.packets.iter().any(|packet| packet.op == 3));
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
    // After the guest has said that it sends no more.
    let (mut guest, host) = Guest::new(&[]);
    let (_stream, ports) = accepted(&mut guest, &host, 1);
    guest.shutdown(ports, SHUTDOWN_SEND);
    guest.socket(ports).outbox.extend(b"and yet");
    guest.run_until("the reset", |guest| guest.socket(ports).was_reset);
}

#[test]
fn a_payload_shorter_than_its_header_says_is_a_reset() {
    let (mut guest, host) = Guest::new(&[]);
    for length in [2, 4097, u32::MAX] {
        let (_stream, ports) = accepted(&mut guest, &host, 1);
        let header = Header { len: length, ..guest.header(ports, Operation::Data) };
        guest.send_raw(header, b"x");
        guest.run_until("the reset", |guest| guest.socket(ports).was_reset);
        guest.sockets.clear();
    }
}

#[test]
fn buffers_too_small_for_a_packet_are_given_back_empty() {
    let (device, host) = device(&[]);
    let mut driver = Driver::running(device, 0x40000);
    let _waiting = {
        let mut stream = host.connect();
        stream.write_all(b"CONNECT 1\n").unwrap();
        stream
    };
    driver.settle();
    let address = driver.allocate(4096);
    for length in [0, 1, 43, 44] {
        let head = driver.submit(RX, &[writable(address, length)]);
        assert_eq!(driver.used(RX), [(head, 0)]);
    }
    let head = driver.submit(RX, &[readable(address, 4096)]);
    assert_eq!(driver.used(RX), [(head, 0)]);
    let head = driver.submit(RX, &[writable(address, 45)]);
    assert_eq!(driver.used(RX), [(head, 44)]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(100))]
    /// Packets of a guest gone mad, mixed with a host that connects, writes and leaves: no panic, and afterwards
    /// everything works.
    #[test]
    fn arbitrary_packets_are_survived(
        packets in prop::collection::vec(
            (
                (prop_oneof![4 => Just(3_u64), 1 => any::<u64>()], prop_oneof![8 => Just(2_u64), 1 => any::<u64>()]),
                (0..3_u32, prop_oneof![Just(1024_u32), (1 << 30)..(1 << 30) + 3_u32]),
                prop_oneof![8 => Just(1_u16), 1 => any::<u16>()],
                prop_oneof![8 => 0..9_u16, 1 => any::<u16>()],
                prop_oneof![0..4_u32, any::<u32>()],
                (prop_oneof![Just(0_u32), Just(65536), any::<u32>()], prop_oneof![Just(0_u32), any::<u32>()]),
                prop_oneof![Just(None), (0..9000_u32).prop_map(Some)],
                0..9000_usize,
            ),
            1..60,
        ),
        host_acts in prop::collection::vec(0..6_u8, 60),
    ) {
        let (mut guest, host) = Guest::new(&[1024]);
        let mut streams = Vec::new();
        for (packet, act) in packets.into_iter().zip(host_acts) {
            let ((src_cid, dst_cid), (src_port, dst_port), kind, op, flags, credit, lie, length) = packet;
            let len = lie.unwrap_or(u32::try_from(length).unwrap());
            let (buf_alloc, fwd_cnt) = credit;
            let header =
                Header { src_cid, dst_cid, src_port, dst_port, len, kind, op, flags, buf_alloc, fwd_cnt };
            guest.send_raw(header, &vec![0x5a; length]);
            match act {
                0 => {
                    let mut stream = host.connect();
                    writeln!(stream, "CONNECT {}", streams.len() % 3).unwrap();
                    streams.push(stream);
                }
                1 => drop(streams.pop()),
                2 => {
                    if let Some(stream) = streams.last() {
                        stream.set_nonblocking(true).unwrap();
                        let mut stream = stream;
                        // Whether it still can be written to is not the question.
                        let _written = stream.write(&[1; 5000]);
                    }
                }
                _ => {}
            }
            guest.settle();
        }
        guest.start();
        let (mut stream, ports) = accepted(&mut guest, &host, 77);
        guest.socket(ports).outbox.extend(b"alive\n");
        guest.settle();
        prop_assert_eq!(read_line(&mut stream), "alive");
    }
}
