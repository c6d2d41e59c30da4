//! What device code needs on both kinds of thread: the guest's register writes run it on vCPU threads (a driver that
//! starts, stops or resets a device), its notifications on the event loop.

use super::{Rule, always, is, when};

pub(super) const RULES: &[Rule] = &[
    always(libc::SYS_poll, "console: whether its log takes a line now"),
    always(libc::SYS_ppoll, "console, where the C library has poll by this name"),
    always(libc::SYS_epoll_wait, "the event loop; vsock, net: which of their descriptors are ready"),
    always(libc::SYS_epoll_pwait, "the same, where the C library has epoll_wait by this name"),
    always(libc::SYS_epoll_ctl, "vsock: listens while there is a driver, forgets connections at a reset"),
    always(libc::SYS_shutdown, "vsock: half-close, and reset of a connection"),
    always(libc::SYS_sendmsg, "vsock: data for the host; control socket: answers"),
    when(libc::SYS_recvfrom, &[is(4, 0)], "vsock: reads from connected sockets"),
    always(libc::SYS_writev, "net: frames from the guest, out of its buffers"),
    always(libc::SYS_timerfd_settime, "rate limits: when to go on"),
];
