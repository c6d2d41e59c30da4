//! System calls that ask the kernel about this process.

use std::ffi::CStr;

use crate::json::{Json, list, number, object};

pub fn session() -> i32 {
    // SAFETY: an integer.
    unsafe { libc::getsid(0) }
}

pub fn machine() -> String {
    // SAFETY: all-zero bytes are a valid `utsname`, which uname fills with NUL-terminated strings.
    unsafe {
        let mut name = std::mem::zeroed::<libc::utsname>();
        libc::uname(&raw mut name);
        CStr::from_ptr(name.machine.as_ptr()).to_string_lossy().into_owned()
    }
}

pub fn umask() -> String {
    // SAFETY: integers; this program has one thread.
    let mask = unsafe {
        let mask = libc::umask(0);
        libc::umask(mask);
        mask
    };
    format!("{mask:04o}")
}

pub fn limit(resource: libc::__rlimit_resource_t) -> (u64, u64) {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the structure outlives the call.
    unsafe { libc::getrlimit(resource, &raw mut limit) };
    (limit.rlim_cur, limit.rlim_max)
}

/// sched_getattr(2).
#[repr(C)]
#[derive(Default)]
struct SchedulerAttributes {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    runtime: u64,
    deadline: u64,
    period: u64,
}

pub fn scheduler() -> Json {
    let mut attributes = SchedulerAttributes::default();
    // SAFETY: the structure is of the size that is named, and outlives the call.
    unsafe {
        libc::syscall(libc::SYS_sched_getattr, 0, &raw mut attributes, size_of::<SchedulerAttributes>(), 0)
    };
    object([
        ("policy".to_owned(), number(attributes.policy)),
        ("nice".to_owned(), number(attributes.nice)),
        ("priority".to_owned(), number(attributes.priority)),
        ("flags".to_owned(), number(attributes.flags)),
    ])
}

/// ioprio_get(2) of this process.
pub fn io_priority() -> i64 {
    // SAFETY: integers.
    unsafe { libc::syscall(libc::SYS_ioprio_get, 1, 0) }
}

pub fn personality() -> i32 {
    // SAFETY: the argument that only asks.
    unsafe { libc::personality(0xffff_ffff) }
}

/// get_mempolicy(2): the mode and the first 64 nodes.
pub fn memory_policy() -> Json {
    let (mut mode, mut nodes) = (0i32, [0u64; 16]);
    // SAFETY: room for one mode and for the named number of bits.
    let result =
        unsafe { libc::syscall(libc::SYS_get_mempolicy, &raw mut mode, nodes.as_mut_ptr(), 1024, 0usize, 0) };
    if result < 0 { Json("null".to_owned()) } else { list([number(mode), number(nodes[0])]) }
}

/// Size of the terminal on standard output as columns, rows; null where there is none.
pub fn terminal() -> Json {
    // SAFETY: all-zero bytes are a valid `winsize`, which TIOCGWINSZ fills.
    let (result, size) = unsafe {
        let mut size = std::mem::zeroed::<libc::winsize>();
        (libc::ioctl(1, libc::TIOCGWINSZ, &raw mut size), size)
    };
    if result < 0 { Json("null".to_owned()) } else { list([number(size.ws_col), number(size.ws_row)]) }
}

/// The user that a standard stream belongs to.
pub fn stream_owner(stream: i32) -> Json {
    // SAFETY: all-zero bytes are a valid `stat`, which fstat fills.
    unsafe {
        let mut stat = std::mem::zeroed::<libc::stat>();
        if libc::fstat(stream, &raw mut stat) < 0 { Json("null".to_owned()) } else { number(stat.st_uid) }
    }
}
