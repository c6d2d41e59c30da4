//! What connecting a device to a VM that runs needs.

use super::{Rule, always, is, request, when};

/// `_IOW(KVMIO, 0x46, struct kvm_userspace_memory_region)`.
const KVM_SET_USER_MEMORY_REGION: u32 = 0x4020_ae46;
/// `_IOW(KVMIO, 0x76, struct kvm_irqfd)`.
const KVM_IRQFD: u32 = 0x4020_ae76;
/// `_IOW(KVMIO, 0x79, struct kvm_ioeventfd)`.
const KVM_IOEVENTFD: u32 = 0x4040_ae79;

pub(super) const RULES: &[Rule] = &[
    when(libc::SYS_ioctl, &[request(KVM_IOEVENTFD)], "a plugged device: its notifications"),
    when(libc::SYS_ioctl, &[request(KVM_IRQFD)], "a plugged device: its interrupt"),
    when(libc::SYS_ioctl, &[request(KVM_SET_USER_MEMORY_REGION)], "plugged memory"),
    always(libc::SYS_eventfd2, "a plugged device: its events"),
    when(libc::SYS_fcntl, &[is(1, libc::F_DUPFD_CLOEXEC)], "a plugged device: events that two owners have"),
    when(
        libc::SYS_getsockopt,
        &[is(1, libc::SOL_SOCKET)],
        "a plugged device: what kind of socket it was given",
    ),
    always(libc::SYS_fstat, "a plugged disk: what kind of file it was given"),
    always(libc::SYS_statx, "the same, as Rust's library asks; there is no path to name"),
    always(libc::SYS_lseek, "a plugged disk: the size of a block device"),
    always(libc::SYS_timerfd_create, "a plugged device: its rate limit"),
];
