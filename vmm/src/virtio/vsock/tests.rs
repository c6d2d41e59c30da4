use std::io::{ErrorKind, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use hull_protocol::vmm::PortConnection;
use nix::poll::PollTimeout;
use proptest::prelude::*;

use super::packet::{HEADER_LENGTH, Header, Operation, SHUTDOWN_RECEIVE, SHUTDOWN_SEND};
use super::*;
use crate::virtio::testing::*;

mod guest;
mod setup;

use guest::{BOTH, Guest, Host, Ports, device, patient};

fn pattern(length: usize) -> Vec<u8> {
    let mut state = 0x1234_5678_u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state.to_be_bytes()[0]
    };
    (0..length).map(|_| next()).collect()
}

fn read_line(stream: &mut UnixStream) -> String {
    let mut line = Vec::new();
    let mut byte = [0];
    while stream.read(&mut byte).unwrap() == 1 && byte[0] != b'\n' {
        line.push(byte[0]);
    }
    String::from_utf8(line).unwrap()
}

/// A connection from the host to a guest port that accepts.
fn accepted(guest: &mut Guest, host: &Host, port: u32) -> (UnixStream, Ports) {
    guest.listening.insert(port);
    let mut stream = host.connect();
    writeln!(stream, "CONNECT {port}").unwrap();
    let before: Vec<Ports> = guest.sockets.keys().copied().collect();
    let mut ports = None;
    guest.run_until("the request", |guest| {
        ports = guest.sockets.keys().find(|ports| !before.contains(ports)).copied();
        ports.is_some()
    });
    guest.settle();
    let ports = ports.unwrap();
    assert_eq!(read_line(&mut stream), format!("OK {}", ports.1));
    (stream, ports)
}

/// A connection from the guest that the host was handed.
fn offered(guest: &mut Guest, host: &Host, ports: Ports) -> UnixStream {
    guest.connect(ports);
    guest.run_until("the response", |guest| guest.socket(ports).established);
    let received = host.channels[0].receive::<PortConnection>().unwrap().unwrap();
    assert_eq!(received.message, PortConnection { port: ports.1, guest_port: ports.0 });
    let [fd] = <[OwnedFd; 1]>::try_from(received.fds).unwrap();
    patient(UnixStream::from(fd))
}

fn is_quiet(stream: &mut UnixStream) -> bool {
    stream.set_nonblocking(true).unwrap();
    let result = stream.read(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    matches!(result, Err(error) if error.kind() == ErrorKind::WouldBlock)
}

#[test]
fn the_host_connects_to_the_guest() {
    let (mut guest, host) = Guest::new(&[]);
    let (mut stream, ports) = accepted(&mut guest, &host, 1025);
    assert_eq!(ports.0, 1025);
    stream.write_all(b"to the guest").unwrap();
    guest.run_until("data", |guest| guest.socket(ports).received == b"to the guest");
    guest.socket(ports).outbox.extend(b"to the host\n");
    guest.settle();
    assert_eq!(read_line(&mut stream), "to the host");
    let counters = guest.driver.transport.counters();
    assert_eq!((counters.bytes_to_guest, counters.bytes_from_guest), (12, 12));
}

#[test]
fn what_the_host_sends_behind_its_first_line_is_not_lost() {
    let (mut guest, host) = Guest::new(&[]);
    guest.listening.insert(7);
    let mut stream = host.connect();
    stream.write_all(b"CONNECT 7\nalready here").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    guest.run_until("the request", |guest| !guest.sockets.is_empty());
    let ports = guest.only();
    guest.run_until("the end", |guest| guest.socket(ports).host_shutdown == SHUTDOWN_SEND);
    assert_eq!(guest.socket(ports).received, b"already here");
    assert_eq!(read_line(&mut stream), format!("OK {}", ports.1));
}

#[test]
fn a_port_that_the_guest_refuses_is_an_end_without_ok() {
    let (mut guest, host) = Guest::new(&[]);
    let mut stream = host.connect();
    stream.write_all(b"CONNECT 9\n").unwrap();
    guest.run_until("the request", |guest| guest.connections == 1);
    guest.settle();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
}

#[test]
fn a_first_line_that_is_not_the_protocols_closes_the_connection() {
    let (mut guest, host) = Guest::new(&[]);
    for line in ["HELLO\n", "CONNECT\n", "CONNECT 99999999999\n", &"C".repeat(100)] {
        let mut stream = host.connect();
        stream.write_all(line.as_bytes()).unwrap();
        guest.settle();
        let end = stream.read(&mut [0]);
        // A connection that is closed with bytes unread resets.
        assert!(matches!(&end, Ok(0)) || end.unwrap_err().kind() == ErrorKind::ConnectionReset, "{line:?}");
    }
    assert_eq!(guest.connections, 0);
}

#[test]
fn the_guest_connects_to_the_ports_it_may_and_no_others() {
    let (mut guest, host) = Guest::new(&[1024]);
    let mut stream = offered(&mut guest, &host, (5000, 1024));
    stream.write_all(b"hello").unwrap();
    guest.run_until("data", |guest| guest.socket((5000, 1024)).received == b"hello");
    for port in [0, 22, 1023, 1025, u32::MAX] {
        guest.connect((5001, port));
        guest.run_until("the refusal", |guest| guest.socket((5001, port)).was_reset);
    }
    drop(host);
    guest.connect((5002, 1024));
    guest.run_until("the refusal", |guest| guest.socket((5002, 1024)).was_reset);
    // What was connected before stays.
    stream.write_all(b"!").unwrap();
    guest.run_until("data", |guest| guest.socket((5000, 1024)).received == b"hello!");
}

#[test]
fn a_host_that_does_not_take_connections_lets_them_be_refused() {
    let (mut guest, _host) = Guest::new(&[1024]);
    let mut refused = 0;
    for port in 0..2000 {
        guest.connect((port, 1024));
        guest.run_until("an answer", |guest| {
            let socket = guest.socket((port, 1024));
            socket.established || socket.was_reset
        });
        refused += usize::from(guest.socket((port, 1024)).was_reset);
        guest.packets.clear();
    }
    assert!((976..2000).contains(&refused), "{refused}");
}

#[test]
fn other_context_ids_and_types_are_not_served() {
    let (mut guest, _host) = Guest::new(&[1024]);
    let request = guest.header((1, 1024), Operation::Request);
    // To another than the host, or of another type: refused.
    for header in
        [Header { dst_cid: 1, ..request }, Header { dst_cid: 5, ..request }, Header { kind: 2, ..request }]
    {
        guest.packets.clear();
        guest.send_raw(header, &[]);
        guest.settle();
        let [answer] = guest.packets[..] else { panic!("{:?}", guest.packets) };
        assert_eq!((answer.op, answer.src_cid, answer.kind), (3, header.dst_cid, header.kind));
        assert_eq!((answer.src_port, answer.dst_port), (1024, 1));
    }
    // From another than the guest: as if it were not there.
    guest.packets.clear();
    for src_cid in [0, 1, 2, 4, 1 << 32 | 3] {
        guest.send_raw(Header { src_cid, ..request }, &[]);
    }
    guest.settle();
    assert_eq!(guest.packets, []);
}

/// Both sides send 10 MB at once and both get theirs back.
#[test]
fn ten_megabytes_are_echoed_intact() {
    let (mut guest, host) = Guest::new(&[]);
    guest.echo = true;
    let (stream, ports) = accepted(&mut guest, &host, 1);
    let data = pattern(10 << 20);
    let mut writer = stream.try_clone().unwrap();
    let mut reader = stream;
    thread::scope(|scope| {
        scope.spawn(|| {
            writer.write_all(&data).unwrap();
            writer.shutdown(Shutdown::Write).unwrap();
        });
        let echoed = scope.spawn(|| {
            let mut echoed = Vec::new();
            reader.read_to_end(&mut echoed).unwrap();
            echoed
        });
        guest.run_until("the echo", |_| echoed.is_finished());
        assert!(echoed.join().unwrap() == data);
    });
    guest.run_until("the end", |guest| guest.socket(ports).was_reset);
}

#[test]
fn ten_megabytes_each_way_over_many_connections_at_once() {
    let (mut guest, host) = Guest::new(&[1024]);
    guest.echo = true;
    let data = pattern(1 << 20);
    let mut streams: Vec<UnixStream> = (0..10).map(|port| accepted(&mut guest, &host, port).0).collect();
    for port in 100..110 {
        streams.push(offered(&mut guest, &host, (port, 1024)));
        guest.socket((port, 1024)).echoing = true;
    }
    let (data, done) = (&data, &AtomicUsize::new(0));
    thread::scope(|scope| {
        for stream in &streams {
            scope.spawn(move || {
                let mut writer = stream;
                writer.write_all(data).unwrap();
                writer.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(move || {
                let mut echoed = Vec::new();
                let mut reader = stream;
                reader.read_to_end(&mut echoed).unwrap();
                assert!(echoed == *data);
                done.fetch_add(1, Ordering::SeqCst);
            });
        }
        guest.run_until("all echoes", |_| done.load(Ordering::SeqCst) == 20);
    });
    guest.run_until("the ends", |guest| guest.sockets.values().all(|socket| socket.was_reset));
}

#[test]
fn buffers_of_the_guest_are_filled_whole() {
    let (mut guest, host) = Guest::new(&[]);
    let (mut stream, ports) = accepted(&mut guest, &host, 1);
    guest.packets.clear();
    stream.write_all(&[7; 100_000]).unwrap();
    guest.run_until("all", |guest| guest.socket(ports).received.len() == 100_000);
    let data = guest.packets.iter().filter(|packet| packet.op == Operation::Data.code()).count();
    assert_eq!(data, 100_000_usize.div_ceil(4096 - HEADER_LENGTH));
}

#[test]
fn connections_take_turns() {
    let (mut guest, host) = Guest::new(&[]);
    let (mut first, _) = accepted(&mut guest, &host, 1);
    let (mut second, _) = accepted(&mut guest, &host, 2);
    guest.packets.clear();
    first.write_all(&[1; 100_000]).unwrap();
    second.write_all(&[2; 100_000]).unwrap();
    guest.run_until("all", |guest| guest.sockets.values().all(|socket| socket.received.len() == 100_000));
    let data = guest.packets.iter().filter(|packet| packet.op == Operation::Data.code());
    let turns: Vec<u32> = data.map(|packet| packet.dst_port).take(40).collect();
    assert!(turns.windows(2).all(|pair| pair[0] != pair[1]), "{turns:?}");
}

#[test]
fn the_host_may_end_while_the_guest_goes_on() {
    let (mut guest, host) = Guest::new(&[]);
    let (mut stream, ports) = accepted(&mut guest, &host, 1);
    stream.write_all(b"last words").unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    guest.run_until("the end", |guest| guest.socket(ports).host_shutdown == SHUTDOWN_SEND);
    assert_eq!(guest.socket(ports).received, b"last words");
    guest.socket(ports).outbox.extend(b"I am still here");
    guest.socket(ports).close_after = Some(BOTH);
    guest.run_until("the reset", |guest| guest.socket(ports).was_reset);
    let mut rest = String::new();
    stream.read_to_string(&mut rest).unwrap();
    assert_eq!(rest, "I am still here");
}

#[test]
fn the_guest_may_end_while_the_host_goes_on() {
    let (mut guest, host) = Guest::new(&[1024]);
    let ports = (9, 1024);
    let mut stream = offered(&mut guest, &host, ports);
    guest.socket(ports).outbox.extend(b"last words");
    guest.socket(ports).close_after = Some(SHUTDOWN_SEND);
    guest.settle();
    let mut words = String::new();
    stream.read_to_string(&mut words).unwrap();
    assert_eq!(words, "last words");
    stream.write_all(b"I am still here").unwrap();
    guest.run_until("data", |guest| guest.socket(ports).received == b"I am still here");
    assert!(!guest.socket(ports).was_reset);
    drop(stream);
    guest.run_until("the end", |guest| guest.socket(ports).host_shutdown & SHUTDOWN_SEND != 0);
    guest.shutdown(ports, BOTH);
    guest.run_until("the reset", |guest| guest.socket(ports).was_reset);
}

#[test]
fn a_guest_that_receives_no_more_makes_the_hosts_writes_fail() {
    let (mut guest, host) = Guest::new(&[]);
    let (mut stream, ports) = accepted(&mut guest, &host, 1);
    guest.shutdown(ports, SHUTDOWN_RECEIVE);
    guest.settle();
    assert_eq!(stream.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
    guest.socket(ports).outbox.extend(b"but it sends\n");
    guest.settle();
    assert_eq!(read_line(&mut stream), "but it sends");
}

#[test]
fn a_host_that_closes_is_gone_in_both_directions() {
    let (mut guest, host) = Guest::new(&[]);
    let (mut stream, ports) = accepted(&mut guest, &host, 1);
    stream.write_all(&pattern(100_000)).unwrap();
    drop(stream);
    guest.run_until("the end", |guest| guest.socket(ports).host_shutdown == BOTH);
    assert!(guest.socket(ports).received == pattern(100_000));
    // What the guest still sends goes nowhere, but does not stall it.
    guest.socket(ports).outbox.extend(vec![0; 1 << 20]);
    guest.run_until("all sent", |guest| guest.socket(ports).outbox.is_empty());
    guest.send_control(ports, Operation::Reset);
    guest.settle();
    assert!(!guest.socket(ports).was_reset);
}

#[test]
fn a_guest_that_resets_ends_the_hosts_connection() {
    let (mut guest, host) = Guest::new(&[]);
    let (mut stream, ports) = accepted(&mut guest, &host, 1);
    guest.send_control(ports, Operation::Reset);
    guest.settle();
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert_eq!(stream.write(b"x").unwrap_err().kind(), ErrorKind::BrokenPipe);
}

/// Closing, or even forgetting, a connection does not take back what was sent on it.
#[test]
fn what_the_guest_sent_before_it_closed_reaches_a_slow_host() {
    for reset in [false, true] {
        let (mut guest, host) = Guest::new(&[]);
        let (mut stream, ports) = accepted(&mut guest, &host, 1);
        let data = pattern(400_000);
        guest.socket(ports).outbox.extend(&data);
        guest.settle();
        assert!(guest.socket(ports).outbox.is_empty(), "socket and backlog together take this much");
        if reset {
            guest.send_control(ports, Operation::Reset);
        } else {
            guest.shutdown(ports, BOTH);
        }
        guest.settle();
        assert!(!guest.socket(ports).was_reset, "there is still data under way");
        let reader = thread::spawn(move || {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            all
        });
        guest.run_until("the data", |_| reader.is_finished());
        assert!(reader.join().unwrap() == data);
        if !reset {
            guest.run_until("the reset", |guest| guest.socket(ports).was_reset);
        }
    }
}

#[test]
fn a_host_that_never_reads_is_bounded_and_hurts_nobody_else() {
    let (mut guest, host) = Guest::new(&[]);
    let (stuck, ports) = accepted(&mut guest, &host, 1);
    guest.socket(ports).outbox.extend(vec![1; 4 << 20]);
    guest.settle();
    let held = guest.socket(ports).sent;
    // The connection's own buffer and the kernel's for the socket.
    assert!((256 << 10..1 << 20).contains(&held), "{held}");
    let (mut other, others) = accepted(&mut guest, &host, 2);
    guest.socket(others).outbox.extend(b"fine\n");
    guest.settle();
    assert_eq!(read_line(&mut other), "fine");
    // Once it reads, everything comes.
    let mut stuck = stuck;
    let reader = thread::spawn(move || {
        let mut all = vec![0; 4 << 20];
        stuck.read_exact(&mut all).unwrap();
        (stuck, all)
    });
    guest.run_until("the rest", |_| reader.is_finished());
    assert!(reader.join().unwrap().1 == vec![1; 4 << 20]);
}

#[test]
fn a_guest_that_never_reads_gets_no_more_than_it_has_room_for() {
    let (mut guest, host) = Guest::new(&[]);
    let (mut stuck, ports) = accepted(&mut guest, &host, 1);
    guest.socket(ports).reading = false;
    stuck.set_nonblocking(true).unwrap();
    let mut written = 0;
    while let Ok(count) = stuck.write(&[2; 65536]) {
        written += count;
        guest.settle();
    }
    assert_eq!(guest.socket(ports).received.len(), 256 << 10);
    assert!(written < 1 << 20, "{written}");
    let requests = guest.packets.iter().filter(|packet| packet.op == Operation::CreditRequest.code()).count();
    assert!((1..=2).contains(&requests), "{requests}");
    let (mut other, others) = accepted(&mut guest, &host, 2);
    other.write_all(b"fine").unwrap();
    guest.run_until("the other's data", |guest| guest.socket(others).received == b"fine");
    // Once it reads, the rest comes.
    guest.socket(ports).reading = true;
    guest.take(ports);
    guest.run_until("the rest", |guest| guest.socket(ports).received.len() == written);
}

/// CVE-2020-16843 and its kin: both sides full, then neither was ever woken.
#[test]
fn cve_2020_16843_a_guest_without_buffers_neither_spins_nor_freezes_the_device() {
    let (mut guest, host) = Guest::new(&[]);
    let (mut stream, ports) = accepted(&mut guest, &host, 1);
    guest.rx_buffers = 0;
    let data = pattern(3 << 20);
    let sender = thread::spawn({
        let data = data.clone();
        move || {
            stream.write_all(&data).unwrap();
            stream
        }
    });
    // The guest takes in what it still has buffers for; then the device rests although the socket is full.
    guest.run_until("the buffers are used up", |guest| guest.socket(ports).received.len() >= 60 * 4052);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let mut idle = 0;
    while idle < 20 {
        assert!(std::time::Instant::now() < deadline, "the device spins");
        idle = if guest.step(PollTimeout::from(10_u8)) { 0 } else { idle + 1 };
    }
    for buffers in [1, 0, 2, 64] {
        guest.rx_buffers = buffers;
        guest.settle();
    }
    guest.run_until("all data", |guest| guest.socket(ports).received.len() == data.len());
    assert!(guest.socket(ports).received == data);
    sender.join().unwrap();
}

#[test]
fn packets_that_need_answers_wait_while_the_guest_takes_none() {
    let (mut guest, _host) = Guest::new(&[]);
    guest.rx_buffers = 0;
    guest.settle();
    guest.packets.clear();
    for port in 0..5000 {
        let header = guest.header((port, 1), Operation::Data);
        guest.send_raw(header, &[]);
        guest.step(PollTimeout::ZERO);
    }
    guest.settle();
    // 64 answers are in the buffers that were posted, 256 wait in the device, and the rest was not taken.
    assert_eq!(guest.packets.len(), 64);
    assert_eq!(guest.unsent(), 5000 - 64 - 256);
    guest.rx_buffers = 64;
    guest.run_until("all answers", |guest| guest.packets.len() == 5000);
    assert!(guest.packets.iter().all(|packet| packet.op == Operation::Reset.code()));
}

#[test]
fn two_thousand_short_connections() {
    let (mut guest, host) = Guest::new(&[]);
    guest.echo = true;
    guest.listening.insert(1);
    let left = AtomicUsize::new(2000);
    let finished = AtomicUsize::new(0);
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                while left
                    .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1))
                    .is_ok()
                {
                    let mut stream = host.connect();
                    stream.write_all(b"CONNECT 1\nping").unwrap();
                    stream.shutdown(Shutdown::Write).unwrap();
                    let mut answer = String::new();
                    stream.read_to_string(&mut answer).unwrap();
                    assert!(answer.starts_with("OK ") && answer.ends_with("\nping"), "{answer:?}");
                    finished.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
        guest.run_until("all connections", |guest| {
            guest.packets.clear();
            guest.sockets.retain(|_, socket| !socket.was_reset);
            finished.load(Ordering::SeqCst) == 2000
        });
    });
    guest.settle();
    guest.sockets.retain(|_, socket| !socket.was_reset);
    assert!(guest.sockets.is_empty(), "{}", guest.sockets.len());
    assert_eq!(guest.connections, 2000);
}

#[test]
fn a_guest_that_breaks_a_queue_or_gives_up_loses_its_connections() {
    for failed in [false, true] {
        let (mut guest, host) = Guest::new(&[]);
        let (mut stream, _) = accepted(&mut guest, &host, 1);
        if failed {
            guest.driver.set(STATUS, RUNNING | 128);
        } else {
            guest.driver.add_raw(TX, u16::MAX);
            guest.driver.kick(TX);
            guest.driver.settle();
            assert_eq!(guest.driver.get(STATUS), RUNNING | NEEDS_RESET);
        }
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        assert_eq!(guest.driver.transport.counters().failures, u64::from(!failed));
    }
}

#[test]
fn a_reset_of_the_device_closes_everything_and_it_works_again() {
    let (mut guest, host) = Guest::new(&[1024]);
    let (mut first, _) = accepted(&mut guest, &host, 1);
    let mut second = offered(&mut guest, &host, (5, 1024));
    let mut waiting = host.connect();
    waiting.write_all(b"CONN").unwrap();
    guest.settle();
    guest.driver.set(STATUS, 0);
    for stream in [&mut first, &mut second] {
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    }
    assert!(matches!(waiting.read(&mut [0]), Ok(0) | Err(_)));
    // A connection made while there is no driver waits for it, and nothing spins meanwhile.
    let mut early = host.connect();
    early.write_all(b"CONNECT 1\n").unwrap();
    guest.driver.settle();
    assert!(is_quiet(&mut early));
    guest.start();
    guest.run_until("the request", |guest| !guest.sockets.is_empty());
    guest.settle();
    assert!(read_line(&mut early).starts_with("OK "));
    offered(&mut guest, &host, (5, 1024));
}
