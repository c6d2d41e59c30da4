//! The ways into an x86-64 kernel and what each calls its system calls by.

use std::str::FromStr;

/// The bit that tells an x32 call from a 64-bit one; `AUDIT_ARCH` is the same for both.
pub const X32_BIT: u32 = 0x4000_0000;
/// `AUDIT_ARCH_X86_64`.
pub const AUDIT_X86_64: u32 = 0xc000_003e;
/// `AUDIT_ARCH_I386`.
pub const AUDIT_X86: u32 = 0x4000_0003;

/// A system call interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Architecture {
    /// 64-bit.
    X86_64,
    /// 32-bit programs, by `int 0x80` and `sysenter`.
    X86,
    /// 64-bit registers, 32-bit pointers.
    X32,
}

/// Calls whose x32 version is another one (arch/x86/entry/syscalls/syscall_64.tbl, "x32" lines), from number 512 on.
const X32_OWN: [&str; 36] = [
    "rt_sigaction",
    "rt_sigreturn",
    "ioctl",
    "readv",
    "writev",
    "recvfrom",
    "sendmsg",
    "recvmsg",
    "execve",
    "ptrace",
    "rt_sigpending",
    "rt_sigtimedwait",
    "rt_sigqueueinfo",
    "sigaltstack",
    "timer_create",
    "mq_notify",
    "kexec_load",
    "waitid",
    "set_robust_list",
    "get_robust_list",
    "vmsplice",
    "move_pages",
    "preadv",
    "pwritev",
    "rt_tgsigqueueinfo",
    "recvmmsg",
    "sendmmsg",
    "process_vm_readv",
    "process_vm_writev",
    "setsockopt",
    "getsockopt",
    "io_setup",
    "io_submit",
    "execveat",
    "preadv2",
    "pwritev2",
];

/// Calls that 64-bit programs have and x32 ones do not (the same table, "64" lines without an x32 one).
const X32_ABSENT: [&str; 14] = [
    "map_shadow_stack",
    "uselib",
    "_sysctl",
    "create_module",
    "get_kernel_syms",
    "query_module",
    "nfsservctl",
    "set_thread_area",
    "get_thread_area",
    "epoll_ctl_old",
    "epoll_wait_old",
    "vserver",
    "uretprobe",
    "uprobe",
];

/// Calls that 32-bit programs may also reach through one number, with the call's name as the first argument: name, number and
/// first argument (linux/net.h, linux/ipc.h).
const MULTIPLEXED: [(&str, &str, u64); 32] = [
    ("socket", "socketcall", 1),
    ("bind", "socketcall", 2),
    ("connect", "socketcall", 3),
    ("listen", "socketcall", 4),
    ("accept", "socketcall", 5),
    ("getsockname", "socketcall", 6),
    ("getpeername", "socketcall", 7),
    ("socketpair", "socketcall", 8),
    ("send", "socketcall", 9),
    ("recv", "socketcall", 10),
    ("sendto", "socketcall", 11),
    ("recvfrom", "socketcall", 12),
    ("shutdown", "socketcall", 13),
    ("setsockopt", "socketcall", 14),
    ("getsockopt", "socketcall", 15),
    ("sendmsg", "socketcall", 16),
    ("recvmsg", "socketcall", 17),
    ("accept4", "socketcall", 18),
    ("recvmmsg", "socketcall", 19),
    ("sendmmsg", "socketcall", 20),
    ("semop", "ipc", 1),
    ("semget", "ipc", 2),
    ("semctl", "ipc", 3),
    ("semtimedop", "ipc", 4),
    ("msgsnd", "ipc", 11),
    ("msgrcv", "ipc", 12),
    ("msgget", "ipc", 13),
    ("msgctl", "ipc", 14),
    ("shmat", "ipc", 21),
    ("shmdt", "ipc", 22),
    ("shmget", "ipc", 23),
    ("shmctl", "ipc", 24),
];

impl Architecture {
    /// The number of call `name`, with the x32 bit where that applies.
    pub fn number(self, name: &str) -> Option<u32> {
        let of_64 = |name| syscalls::x86_64::Sysno::from_str(name).ok().map(|call| call.id().unsigned_abs());
        match self {
            Self::X86_64 => of_64(name),
            Self::X86 => syscalls::x86::Sysno::from_str(name).ok().map(|call| call.id().unsigned_abs()),
            Self::X32 => match (512u32..).zip(X32_OWN).find(|(_, own)| *own == name) {
                Some((number, _)) => Some(number | X32_BIT),
                None if X32_ABSENT.contains(&name) => None,
                None => of_64(name).map(|number| number | X32_BIT),
            },
        }
    }

    /// The other way to reach `name`, if there is one: the multiplexer's number and its first argument.
    pub fn multiplexed(self, name: &str) -> Option<(u32, u64)> {
        if self != Self::X86 {
            return None;
        }
        let (_, by, argument) = MULTIPLEXED.iter().find(|(call, ..)| *call == name)?;
        Some((self.number(by)?, *argument))
    }

    /// Whether arguments are compared as 32 bits, as libseccomp does.
    pub fn has_short_arguments(self) -> bool {
        self != Self::X86_64
    }
}
