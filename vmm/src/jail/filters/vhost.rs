//! What an interface needs whose frames the host's kernel moves. `/dev/vhost-net` is opened by the shim. What concerns logs of
//! written pages, workers and other devices of vhost is on no list.

use super::{Rule, request, when};

/// `VHOST_GET_FEATURES`, `_IOR(0xaf, 0x00, u64)`.
const GET_FEATURES: u32 = 0x8008_af00;
/// `VHOST_SET_FEATURES`, `_IOW(0xaf, 0x00, u64)`.
const SET_FEATURES: u32 = 0x4008_af00;
/// `VHOST_SET_OWNER`, `_IO(0xaf, 0x01)`.
const SET_OWNER: u32 = 0xaf01;
/// `VHOST_SET_MEM_TABLE`, `_IOW(0xaf, 0x03, struct vhost_memory)`.
const SET_MEM_TABLE: u32 = 0x4008_af03;
/// `VHOST_SET_VRING_NUM`, `_IOW(0xaf, 0x10, struct vhost_vring_state)`.
const SET_VRING_NUM: u32 = 0x4008_af10;
/// `VHOST_SET_VRING_ADDR`, `_IOW(0xaf, 0x11, struct vhost_vring_addr)`.
const SET_VRING_ADDR: u32 = 0x4028_af11;
/// `VHOST_SET_VRING_BASE`, `_IOW(0xaf, 0x12, struct vhost_vring_state)`.
const SET_VRING_BASE: u32 = 0x4008_af12;
/// `VHOST_SET_VRING_KICK`, `_IOW(0xaf, 0x20, struct vhost_vring_file)`.
const SET_VRING_KICK: u32 = 0x4008_af20;
/// `VHOST_SET_VRING_CALL`, `_IOW(0xaf, 0x21, struct vhost_vring_file)`.
const SET_VRING_CALL: u32 = 0x4008_af21;
/// `VHOST_SET_VRING_ERR`, `_IOW(0xaf, 0x22, struct vhost_vring_file)`.
const SET_VRING_ERR: u32 = 0x4008_af22;
/// `VHOST_NET_SET_BACKEND`, `_IOW(0xaf, 0x30, struct vhost_vring_file)`.
const NET_SET_BACKEND: u32 = 0x4008_af30;

/// A device that is plugged.
pub(super) const PREPARE: &[Rule] = &[
    when(libc::SYS_ioctl, &[request(GET_FEATURES)], "vhost: what the kernel can do"),
    when(libc::SYS_ioctl, &[request(SET_OWNER)], "vhost: whose memory the rings are in"),
    when(libc::SYS_ioctl, &[request(SET_VRING_ERR)], "vhost: how to hear of a broken ring"),
];

/// A driver that starts the device.
pub(super) const START: &[Rule] = &[
    when(libc::SYS_ioctl, &[request(SET_FEATURES)], "vhost: what the driver accepted"),
    when(libc::SYS_ioctl, &[request(SET_MEM_TABLE)], "vhost: where guest memory is"),
    when(libc::SYS_ioctl, &[request(SET_VRING_NUM)], "vhost: a ring's size"),
    when(libc::SYS_ioctl, &[request(SET_VRING_BASE)], "vhost: a ring from its beginning"),
    when(libc::SYS_ioctl, &[request(SET_VRING_ADDR)], "vhost: where a ring is"),
    when(libc::SYS_ioctl, &[request(SET_VRING_KICK)], "vhost: a ring's notifications"),
    when(libc::SYS_ioctl, &[request(SET_VRING_CALL)], "vhost: the device's interrupt"),
];

/// A device that stops, for a reset, a pause or its end, and goes on.
pub(super) const STOP: &[Rule] =
    &[when(libc::SYS_ioctl, &[request(NET_SET_BACKEND)], "vhost: the tap, or none")];
