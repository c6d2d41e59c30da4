//! `virtio_net_hdr` (virtio 1.3 §5.1.6): what is still to be done with a frame. It is copied out of guest memory before
//! it is looked at, and what is passed on are the fields that were checked.

use super::offload::Offloads;

/// Bytes of the header with `num_buffers`, which is there since virtio 1.0 whether or not buffers are merged.
pub const HEADER_LENGTH: usize = 12;
/// Bytes of the largest frame with its header (§5.1.6.3.1).
pub const FRAME_MAX: usize = 65_562;
/// Bytes of an Ethernet header: no frame is shorter.
pub const ETHERNET_LENGTH: usize = 14;

const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;

const GSO_NONE: u8 = 0;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_UDP_L4: u8 = 5;

/// The header without `num_buffers`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    flags: u8,
    gso_type: u8,
    header_length: u16,
    gso_size: u16,
    checksum_start: u16,
    checksum_offset: u16,
}

/// Why a frame is not passed on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HeaderError {
    /// Too short for an Ethernet header, or longer than [`FRAME_MAX`].
    #[error("a frame of {0} bytes")]
    Length(usize),
    /// Work that the other side has not agreed to do, or that does not exist.
    #[error("segmentation of type {0:#x} was not negotiated")]
    Segmentation(u8),
    /// Segments of no bytes, or without checksums to fill in.
    #[error("segments without size or without checksum")]
    Segments,
    /// A checksum that the other side has not agreed to fill in.
    #[error("a checksum was left open, which was not negotiated")]
    Checksum,
    /// The checksum would be outside of the frame.
    #[error("the checksum at {start} + {offset} is not in a frame of {length} bytes")]
    ChecksumOutside {
        /// Where what is summed up begins.
        start: u16,
        /// Where the sum is, from there.
        offset: u16,
        /// The frame's length.
        length: usize,
    },
}

impl Header {
    /// Reads the fields as they stand.
    pub fn parse(bytes: &[u8; HEADER_LENGTH]) -> Self {
        let word = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        Self {
            flags: bytes[0],
            gso_type: bytes[1],
            header_length: word(2),
            gso_size: word(4),
            checksum_start: word(6),
            checksum_offset: word(8),
        }
    }

    /// Without what only a device may say: that it has seen the checksum to be right (§5.1.6.2.1).
    pub fn without_promise(self) -> Self {
        Self { flags: self.flags & NEEDS_CSUM, ..self }
    }

    /// Checks the header of a frame of `length` bytes against what may be left undone. What is left are the fields that
    /// mean something: a field that a flag does not speak of is zero, and flags nobody knows are gone (§5.1.6.2.2).
    pub fn check(self, length: usize, allowed: Offloads) -> Result<Self, HeaderError> {
        if !(ETHERNET_LENGTH..=FRAME_MAX - HEADER_LENGTH).contains(&length) {
            return Err(HeaderError::Length(length));
        }
        let needed = match self.gso_type {
            GSO_NONE => Offloads::empty(),
            GSO_TCPV4 => Offloads::TCP4,
            GSO_TCPV6 => Offloads::TCP6,
            GSO_UDP_L4 => Offloads::UDP,
            other => return Err(HeaderError::Segmentation(other)),
        };
        if !allowed.contains(needed) {
            return Err(HeaderError::Segmentation(self.gso_type));
        }
        let mut checked = Self::default();
        if self.flags & NEEDS_CSUM != 0 {
            if !allowed.contains(Offloads::CHECKSUM) {
                return Err(HeaderError::Checksum);
            }
            let (start, offset) = (self.checksum_start, self.checksum_offset);
            if usize::from(start) + usize::from(offset) + 2 > length {
                return Err(HeaderError::ChecksumOutside { start, offset, length });
            }
            checked = Self { flags: NEEDS_CSUM, checksum_start: start, checksum_offset: offset, ..checked };
        } else if self.flags & DATA_VALID != 0 && allowed.contains(Offloads::CHECKSUM) {
            checked.flags = DATA_VALID;
        }
        if self.gso_type != GSO_NONE {
            if self.gso_size == 0 || checked.flags != NEEDS_CSUM {
                return Err(HeaderError::Segments);
            }
            // A hint only: as much as there is.
            let header_length = usize::from(self.header_length).min(length);
            checked.header_length = u16::try_from(header_length).unwrap_or(u16::MAX);
            checked.gso_type = self.gso_type;
            checked.gso_size = self.gso_size;
        }
        Ok(checked)
    }

    /// The header as it stands before the frame, which lies in so many buffers.
    pub fn to_bytes(self, buffers: u16) -> [u8; HEADER_LENGTH] {
        let mut bytes = [0; HEADER_LENGTH];
        bytes[0] = self.flags;
        bytes[1] = self.gso_type;
        let words = [self.header_length, self.gso_size, self.checksum_start, self.checksum_offset, buffers];
        for (to, word) in bytes[2..].chunks_exact_mut(2).zip(words) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tso() -> Header {
        Header {
            flags: NEEDS_CSUM,
            gso_type: GSO_TCPV4,
            header_length: 54,
            gso_size: 1448,
            checksum_start: 34,
            checksum_offset: 16,
        }
    }

    #[test]
    fn what_was_agreed_passes_unchanged() {
        assert_eq!(tso().check(9000, Offloads::all()), Ok(tso()));
        let bytes = tso().to_bytes(3);
        assert_eq!(bytes, [1, 1, 54, 0, 0xa8, 5, 34, 0, 16, 0, 3, 0]);
        assert_eq!(Header::parse(&bytes), tso());
        let plain =
            Header { flags: 0xf0, header_length: 9, gso_size: 9, checksum_start: 9, ..Header::default() };
        assert_eq!(plain.check(60, Offloads::empty()), Ok(Header::default()));
    }

    #[test]
    fn what_was_not_agreed_is_refused() {
        let all = Offloads::all();
        let segmentation = |gso_type, allowed| Header { gso_type, ..tso() }.check(9000, allowed);
        assert_eq!(segmentation(GSO_TCPV4, Offloads::CHECKSUM), Err(HeaderError::Segmentation(1)));
        assert_eq!(segmentation(GSO_TCPV6, all - Offloads::TCP6), Err(HeaderError::Segmentation(4)));
        assert_eq!(segmentation(GSO_UDP_L4, all - Offloads::UDP), Err(HeaderError::Segmentation(5)));
        // UFO, and congestion notification, which are never offered.
        for never in [3, 0x81] {
            assert_eq!(segmentation(never, all), Err(HeaderError::Segmentation(never)));
        }
        assert_eq!(
            Header { gso_type: GSO_NONE, ..tso() }.check(9000, Offloads::empty()),
            Err(HeaderError::Checksum)
        );
        assert_eq!(Header { gso_size: 0, ..tso() }.check(9000, all), Err(HeaderError::Segments));
        assert_eq!(Header { flags: DATA_VALID, ..tso() }.check(9000, all), Err(HeaderError::Segments));
    }

    #[test]
    fn lengths_are_exact() {
        let plain = Header::default();
        for (length, fits) in [(13, false), (14, true), (65_550, true), (65_551, false)] {
            assert_eq!(plain.check(length, Offloads::all()).is_ok(), fits, "{length}");
        }
        assert!(tso().check(52, Offloads::all()).is_ok());
        assert!(matches!(tso().check(51, Offloads::all()), Err(HeaderError::ChecksumOutside { .. })));
    }

    proptest! {
        /// Whatever a guest writes: what is passed on stays inside the frame and inside what was agreed.
        #[test]
        fn what_passes_is_sound(bytes: [u8; HEADER_LENGTH], length in 0..70_000_usize, allowed in 0..16_u8) {
            let allowed = Offloads::from_bits(allowed).unwrap();
            if let Ok(header) = Header::parse(&bytes).check(length, allowed) {
                let end = usize::from(header.checksum_start) + usize::from(header.checksum_offset) + 2;
                prop_assert!(end <= length);
                prop_assert!(usize::from(header.header_length) <= length);
                prop_assert!(header.flags == 0 || allowed.contains(Offloads::CHECKSUM));
                prop_assert!(header.gso_type == 0 || (header.gso_size > 0 && header.flags == NEEDS_CSUM));
                prop_assert_eq!(header.check(length, allowed), Ok(header));
            }
        }
    }
}
