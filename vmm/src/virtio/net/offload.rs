//! Work on frames that one side leaves to the other: checksums and segmentation.

use bitflags::bitflags;

bitflags! {
    /// What may be left undone in a frame.
    #[derive(Clone, Copy, Debug, PartialEq, Eq)]
    pub struct Offloads: u8 {
        /// The checksum of the payload.
        const CHECKSUM = 1;
        /// Cutting TCP over IPv4 into segments.
        const TCP4 = 2;
        /// Cutting TCP over IPv6 into segments.
        const TCP6 = 4;
        /// Cutting UDP, over IPv4 and IPv6, into datagrams.
        const UDP = 8;
    }
}

/// The way of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the tap: the guest must agree to do the work.
    ToGuest,
    /// From the guest: the kernel does it.
    FromGuest,
}

/// Feature bits (§5.1.3): those of the guest, and those of the host.
const BITS: [(Offloads, u64, u64); 4] = [
    (Offloads::CHECKSUM, 1 << 1, 1 << 0),
    (Offloads::TCP4, 1 << 7, 1 << 11),
    (Offloads::TCP6, 1 << 8, 1 << 12),
    // VIRTIO_NET_F_GUEST_USO4 and _USO6, of which a tap knows both or none.
    (Offloads::UDP, 1 << 54 | 1 << 55, 1 << 56),
];

/// Flags of `TUNSETOFFLOAD`.
const TAP_BITS: [(Offloads, libc::c_uint); 4] = [
    (Offloads::CHECKSUM, libc::TUN_F_CSUM),
    (Offloads::TCP4, libc::TUN_F_TSO4),
    (Offloads::TCP6, libc::TUN_F_TSO6),
    (Offloads::UDP, libc::TUN_F_USO4 | libc::TUN_F_USO6),
];

fn bits(direction: Direction) -> impl Iterator<Item = (Offloads, u64)> {
    BITS.into_iter().map(move |(offload, guest, host)| match direction {
        Direction::ToGuest => (offload, guest),
        Direction::FromGuest => (offload, host),
    })
}

impl Offloads {
    /// The feature bits that offer these.
    pub fn features(self, direction: Direction) -> u64 {
        let offered = bits(direction).filter(|(offload, _)| self.contains(*offload));
        offered.fold(0, |features, (_, bits)| features | bits)
    }

    /// What was negotiated. Segmentation without checksums makes no sense (§5.1.3.1) and counts for nothing.
    pub fn agreed(features: u64, direction: Direction) -> Self {
        let agreed = bits(direction).filter(|(_, bits)| features & bits == *bits);
        let agreed = agreed.fold(Self::empty(), |all, (offload, _)| all | offload);
        if agreed.contains(Self::CHECKSUM) { agreed } else { Self::empty() }
    }

    /// The argument of `TUNSETOFFLOAD`.
    pub fn tap_flags(self) -> libc::c_uint {
        let flags = TAP_BITS.into_iter().filter(|(offload, _)| self.contains(*offload));
        flags.fold(0, |all, (_, flag)| all | flag)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn features_and_offloads_are_each_others_inverse() {
        for direction in [Direction::ToGuest, Direction::FromGuest] {
            for offloads in (0..16).filter_map(Offloads::from_bits) {
                let agreed = Offloads::agreed(offloads.features(direction), direction);
                let expected =
                    if offloads.contains(Offloads::CHECKSUM) { offloads } else { Offloads::empty() };
                assert_eq!(agreed, expected);
            }
        }
        assert_eq!(Offloads::agreed(1 << 1 | 1 << 54, Direction::ToGuest), Offloads::CHECKSUM);
        assert_eq!(Offloads::all().tap_flags(), 0x67);
    }
}
