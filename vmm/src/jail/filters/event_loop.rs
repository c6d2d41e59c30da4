//! What the main thread needs while the VM runs and when it ends.

use super::{Argument, Rule, Test, always, is, is_this_process, request, when};

/// `SIGRTMIN` of both C libraries' applications: 34 with glibc, 35 with musl.
const KICK: i32 = if cfg!(target_env = "musl") { 35 } else { 34 };
/// The kind of a socket without its flags.
const SOCKET_FLAGS: u32 = !(libc::SOCK_CLOEXEC | libc::SOCK_NONBLOCK).cast_unsigned();

const STREAM: &[Argument] = &[
    is(0, libc::AF_UNIX),
    Argument { index: 1, test: Test::Lacks(SOCKET_FLAGS & !libc::SOCK_STREAM.cast_unsigned()) },
];

pub(super) const RULES: &[Rule] = &[
    // The loop.
    always(libc::SYS_epoll_create1, "the loop's own epoll"),
    // The control socket.
    always(libc::SYS_recvmsg, "control socket: requests with descriptors"),
    when(libc::SYS_fcntl, &[is(1, libc::F_GETFL)], "control socket: made non-blocking"),
    when(libc::SYS_fcntl, &[is(1, libc::F_SETFL)], "control socket: made non-blocking"),
    // vsock.
    always(libc::SYS_accept4, "vsock: connections from the host"),
    when(libc::SYS_socketpair, STREAM, "vsock: connections from the guest"),
    when(libc::SYS_ioctl, &[request(FIONBIO)], "vsock: sockets made non-blocking"),
    // The end.
    when(libc::SYS_tgkill, &[is_this_process(0), is(2, KICK)], "kicks vCPU threads out of the guest"),
];

/// `FIONBIO`.
const FIONBIO: u32 = 0x5421;
