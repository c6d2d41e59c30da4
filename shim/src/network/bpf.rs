//! bpf(2), for the one kind of program that the shim loads: a socket look-up with the socket that it may find.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// Operation.
    pub code: u8,
    /// Destination register, and source register in the upper half.
    pub registers: u8,
    /// Of a jump or a memory access.
    pub offset: i16,
    /// The operand.
    pub immediate: i32,
}

const MAP_CREATE: libc::c_int = 0;
const MAP_UPDATE: libc::c_int = 2;
const PROG_LOAD: libc::c_int = 5;
const LINK_CREATE: libc::c_int = 28;
/// How often a load is begun that signals end.
const ATTEMPTS: usize = 16;
const MAP_OF_SOCKETS: u32 = 15;
const PROGRAM_LOOK_UP: u32 = 30;
const ATTACH_LOOK_UP: u32 = 36;

// The heads of `union bpf_attr`; the kernel takes what follows as zero.

#[repr(C)]
struct MapCreate {
    kind: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
}

#[repr(C)]
struct MapUpdate {
    map: u64,
    key: u64,
    value: u64,
    flags: u64,
}

#[repr(C)]
struct ProgLoad {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log: [u64; 2],
    version_and_flags: u64,
    name: [u8; 16],
    interface: u32,
    attach: u32,
}

#[repr(C)]
struct LinkCreate {
    program: u32,
    target: u32,
    attach: u32,
    flags: u32,
}

/// The kernel's answer, which is a descriptor for all commands but [`MAP_UPDATE`].
fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_int> {
    // SAFETY: the kernel reads as many bytes as it is told; what the attributes point to outlives the call.
    let answer =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_ref(attributes), size_of::<T>()) };
    if answer < 0 {
        return Err(io::Error::last_os_error());
    }
    libc::c_int::try_from(answer).map_err(|_| io::ErrorKind::InvalidData.into())
}

fn made<T>(command: libc::c_int, attributes: &T) -> io::Result<OwnedFd> {
    let fd = bpf(command, attributes)?;
    // SAFETY: the kernel made this descriptor just now, close-on-exec, and nobody else knows it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    fd.as_raw_fd().cast_unsigned()
}

/// A map that holds one socket.
pub fn socket_table() -> io::Result<OwnedFd> {
    made(MAP_CREATE, &MapCreate { kind: MAP_OF_SOCKETS, key_bytes: 4, value_bytes: 8, entries: 1 })
}

/// Puts the socket into the map. It is taken out when it is closed.
pub fn put_socket(table: BorrowedFd<'_>, socket: BorrowedFd<'_>) -> io::Result<()> {
    let (key, value) = (0u32, u64::from(number(socket)));
    let pointer = |to: *const u8| to as u64;
    let update = MapUpdate {
        map: number(table).into(),
        key: pointer((&raw const key).cast()),
        value: pointer((&raw const value).cast()),
        flags: 0,
    };
    bpf(MAP_UPDATE, &update).map(drop)
}

/// Loads a program for the look-up of sockets; what it names must be open.
pub fn load_look_up(program: &[Instruction]) -> io::Result<OwnedFd> {
    let mut name = [0; 16];
    name[..13].copy_from_slice(b"hull_loopback");
    let load = ProgLoad {
        kind: PROGRAM_LOOK_UP,
        count: u32::try_from(program.len()).unwrap_or(u32::MAX),
        instructions: program.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log: [0; 2],
        version_and_flags: 0,
        name,
        interface: 0,
        attach: ATTACH_LOOK_UP,
    };
    for _ in 1..ATTEMPTS {
        match made(PROG_LOAD, &load) {
            // A signal has come, and the kernel has given up checking the program.
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            result => return result,
        }
    }
    made(PROG_LOAD, &load)
}

/// Has the network namespace ask the program, as long as the descriptor that is returned is open.
pub fn attach_look_up(program: BorrowedFd<'_>, namespace: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let link =
        LinkCreate { program: number(program), target: number(namespace), attach: ATTACH_LOOK_UP, flags: 0 };
    made(LINK_CREATE, &link)
}
