//! What a tap needs while it runs, besides reads and writes. It is opened and attached by the shim.

use super::{Rule, request, when};

/// `TUNSETOFFLOAD`, `_IOW('T', 208, unsigned int)`.
const TUNSETOFFLOAD: u32 = 0x4004_54d0;
/// `TUNSETVNETHDRSZ`, `_IOW('T', 216, int)`.
const TUNSETVNETHDRSZ: u32 = 0x4004_54d8;
/// `TUNGETIFF`, `_IOR('T', 210, unsigned int)`.
const TUNGETIFF: u32 = 0x8004_54d2;

pub(super) const RULES: &[Rule] = &[
    when(libc::SYS_ioctl, &[request(TUNGETIFF)], "net: what kind of interface was given"),
    when(libc::SYS_ioctl, &[request(TUNSETOFFLOAD)], "net: the offloads that the driver accepted"),
    when(libc::SYS_ioctl, &[request(TUNSETVNETHDRSZ)], "net: the header that the driver accepted"),
];
