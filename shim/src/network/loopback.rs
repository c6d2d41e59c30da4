//! Listening on every port of a namespace's loopback, with one socket for each family.
//!
//! A program at the kernel's socket look-up (`BPF_PROG_TYPE_SK_LOOKUP`, Linux 5.9) gives each TCP connection to 127.0.0.1 or
//! ::1 to our listener, whatever its port; the connection's own address still says which. Other addresses of the loopback are
//! left alone: docker's name server has one. Program and listener exist as long as their descriptors, so that nothing is left
//! by whoever is killed.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use super::bpf::{self, Instruction};
use super::{Namespace, NetworkError};

/// The listener of one family.
#[derive(Debug)]
pub struct Loopback {
    /// Who connects to the family's loopback address. Not blocking.
    pub listener: TcpListener,
    /// While it is held, connections come to the listener.
    pub steering: OwnedFd,
}

impl Loopback {
    /// Listens in the namespace, for IPv4, and for IPv6 where there is any. An error is what the kernel refuses: before Linux
    /// 5.9, or without the right to load the program.
    pub async fn listen(namespace: &Arc<Namespace>) -> Result<Vec<Self>, NetworkError> {
        let target = Arc::clone(namespace);
        let listen = move || {
            let mut all = vec![Self::at(Ipv4Addr::LOCALHOST.into(), &target)?];
            match Self::at(Ipv6Addr::LOCALHOST.into(), &target) {
                Ok(ipv6) => all.push(ipv6),
                Err(error) => log::debug!("no listener on ::1: {error}"),
            }
            Ok(all)
        };
        let what = || "listen on the loopback of the pod's network".to_owned();
        namespace
            .run(move |_| listen().map_err(|source| NetworkError::Namespace { what: what(), source }))
            .await
    }

    /// In the namespace, which the calling thread has entered.
    fn at(address: IpAddr, namespace: &Namespace) -> io::Result<Self> {
        let listener = TcpListener::bind((address, 0))?;
        listener.set_nonblocking(true)?;
        let table = bpf::socket_table()?;
        bpf::put_socket(table.as_fd(), listener.as_fd())?;
        let program = bpf::load_look_up(&program(address, table.as_raw_fd()))?;
        let steering = bpf::attach_look_up(program.as_fd(), namespace.as_fd())?;
        Ok(Self { listener, steering })
    }
}

const MOVE: u8 = 0xb7;
const MOVE_REGISTER: u8 = 0xbf;
const ADD: u8 = 0x07;
const LOAD_WORD: u8 = 0x61;
const STORE_WORD: u8 = 0x62;
const LOAD_IMMEDIATE: u8 = 0x18;
const JUMP_EQUAL: u8 = 0x15;
const JUMP_NOT_EQUAL: u8 = 0x55;
const CALL: u8 = 0x85;
const EXIT: u8 = 0x95;

/// What a call returns, and the answer.
const RESULT: u8 = 0;
const FIRST: u8 = 1;
const SECOND: u8 = 2;
const THIRD: u8 = 3;
/// Kept over calls: the context, and the socket.
const CONTEXT: u8 = 6;
const SOCKET: u8 = 7;
const FRAME: u8 = 10;

/// Offsets in `struct bpf_sk_lookup`. Addresses are as in the packet.
const FAMILY: i16 = 8;
const PROTOCOL: i16 = 12;
const LOCAL_IPV4: i16 = 40;
const LOCAL_IPV6: i16 = 44;

const MAP_LOOK_UP: i32 = 1;
const SOCKET_RELEASE: i32 = 86;
const SOCKET_ASSIGN: i32 = 124;
/// The look-up goes on, with the socket that was assigned if one was.
const PASS: i32 = 1;
/// In place of a source register: the immediate is the descriptor of a map.
const MAP_DESCRIPTOR: u8 = 1;

fn with(code: u8, register: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: register, offset, immediate }
}

fn between(code: u8, to: u8, from: u8, offset: i16) -> Instruction {
    Instruction { code, registers: from << 4 | to, offset, immediate: 0 }
}

/// The program that assigns the table's only socket to TCP connections to this address.
fn program(address: IpAddr, table: i32) -> Vec<Instruction> {
    let mut conditions = vec![(PROTOCOL, libc::IPPROTO_TCP)];
    match address {
        IpAddr::V4(address) => {
            conditions.extend([(FAMILY, libc::AF_INET), (LOCAL_IPV4, i32::from_ne_bytes(address.octets()))]);
        }
        IpAddr::V6(address) => {
            conditions.push((FAMILY, libc::AF_INET6));
            let octets = address.octets();
            let (words, _) = octets.as_chunks::<4>();
            let words = words.iter().map(|word| i32::from_ne_bytes(*word));
            conditions.extend((LOCAL_IPV6..).step_by(4).zip(words));
        }
    }
    let steer = [
        with(STORE_WORD, FRAME, -4, 0),
        Instruction { immediate: table, ..between(LOAD_IMMEDIATE, FIRST, MAP_DESCRIPTOR, 0) },
        // The upper half of the immediate.
        with(0, 0, 0, 0),
        between(MOVE_REGISTER, SECOND, FRAME, 0),
        with(ADD, SECOND, 0, -4),
        with(CALL, 0, 0, MAP_LOOK_UP),
        // The listener is gone: over what needs it.
        with(JUMP_EQUAL, RESULT, 7, 0),
        between(MOVE_REGISTER, SOCKET, RESULT, 0),
        between(MOVE_REGISTER, FIRST, CONTEXT, 0),
        between(MOVE_REGISTER, SECOND, SOCKET, 0),
        with(MOVE, THIRD, 0, 0),
        with(CALL, 0, 0, SOCKET_ASSIGN),
        between(MOVE_REGISTER, FIRST, SOCKET, 0),
        with(CALL, 0, 0, SOCKET_RELEASE),
    ];
    let mut program = vec![between(MOVE_REGISTER, CONTEXT, FIRST, 0)];
    for (left, (offset, value)) in (0..conditions.len()).rev().zip(conditions) {
        program.push(between(LOAD_WORD, SECOND, CONTEXT, offset));
        // Over the other conditions, of two instructions each, and the steering.
        let skip = i16::try_from(2 * left + steer.len()).unwrap_or(i16::MAX);
        program.push(with(JUMP_NOT_EQUAL, SECOND, skip, value));
    }
    program.extend(steer);
    program.extend([with(MOVE, RESULT, 0, PASS), with(EXIT, 0, 0, 0)]);
    program
}
