//! What an interface needs whose frames the host's kernel moves. `/dev/vhost-net` is opened by the shim. What concerns logs of
//! written pages, workers and other devices of vhost is on no list.

use super::{Rule, request, when};
use crate::virtio::vhost::requests::*;

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
