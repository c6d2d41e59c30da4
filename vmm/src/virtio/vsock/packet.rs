//! Packets of the socket device (virtio 1.3 §5.10.6): the header in front of every payload.

/// Bytes of a header.
pub const HEADER_LENGTH: usize = 44;

/// `VIRTIO_VSOCK_TYPE_STREAM`, the only type this device speaks.
pub const TYPE_STREAM: u16 = 1;

/// The host's context id (§5.10.4).
pub const HOST_CID: u64 = 2;

/// What a packet is about (§5.10.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Connect.
    Request,
    /// The connection is accepted.
    Response,
    /// The connection does not exist, or not any more.
    Reset,
    /// The sender will not receive, or send, any more.
    Shutdown,
    /// Payload.
    Data,
    /// Here is my credit.
    CreditUpdate,
    /// Tell me your credit.
    CreditRequest,
}

impl Operation {
    /// From `op`.
    pub fn from_code(code: u16) -> Option<Self> {
        Some(match code {
            1 => Self::Request,
            2 => Self::Response,
            3 => Self::Reset,
            4 => Self::Shutdown,
            5 => Self::Data,
            6 => Self::CreditUpdate,
            7 => Self::CreditRequest,
            _ => return None,
        })
    }

    /// To `op`.
    pub fn code(self) -> u16 {
        match self {
            Self::Request => 1,
            Self::Response => 2,
            Self::Reset => 3,
            Self::Shutdown => 4,
            Self::Data => 5,
            Self::CreditUpdate => 6,
            Self::CreditRequest => 7,
        }
    }
}

/// `VIRTIO_VSOCK_SHUTDOWN_F_RECEIVE`: the sender of the packet receives no more.
pub const SHUTDOWN_RECEIVE: u32 = 1;
/// `VIRTIO_VSOCK_SHUTDOWN_F_SEND`: the sender of the packet sends no more.
pub const SHUTDOWN_SEND: u32 = 2;

/// `struct virtio_vsock_hdr`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[allow(missing_docs)] // The names are the specification's.
pub struct Header {
    pub src_cid: u64,
    pub dst_cid: u64,
    pub src_port: u32,
    pub dst_port: u32,
    pub len: u32,
    pub kind: u16,
    pub op: u16,
    pub flags: u32,
    pub buf_alloc: u32,
    pub fwd_cnt: u32,
}

impl Header {
    /// From the wire.
    pub fn parse(bytes: &[u8; HEADER_LENGTH]) -> Self {
        let mut fields = Fields(bytes);
        Self {
            src_cid: u64::from_le_bytes(fields.next()),
            dst_cid: u64::from_le_bytes(fields.next()),
            src_port: u32::from_le_bytes(fields.next()),
            dst_port: u32::from_le_bytes(fields.next()),
            len: u32::from_le_bytes(fields.next()),
            kind: u16::from_le_bytes(fields.next()),
            op: u16::from_le_bytes(fields.next()),
            flags: u32::from_le_bytes(fields.next()),
            buf_alloc: u32::from_le_bytes(fields.next()),
            fwd_cnt: u32::from_le_bytes(fields.next()),
        }
    }

    /// To the wire.
    pub fn to_bytes(self) -> [u8; HEADER_LENGTH] {
        let mut bytes = [0; HEADER_LENGTH];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// The answer that tears down what this packet belongs to. No credit: there is no connection.
    pub fn reset(self) -> Self {
        Self {
            src_cid: self.dst_cid,
            dst_cid: self.src_cid,
            src_port: self.dst_port,
            dst_port: self.src_port,
            kind: self.kind,
            op: Operation::Reset.code(),
            ..Self::default()
        }
    }
}

/// Little-endian fields, one after the other.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn next<const N: usize>(&mut self) -> [u8; N] {
        // The header's fields add up to its length, so that there is always another.
        let Some((field, rest)) = self.0.split_first_chunk() else { return [0; N] };
        self.0 = rest;
        *field
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn headers_survive_the_wire(bytes: [u8; HEADER_LENGTH - 22], tail: [u8; 22]) {
            let mut wire = [0; HEADER_LENGTH];
            wire[..22].copy_from_slice(&bytes);
            wire[22..].copy_from_slice(&tail);
            prop_assert_eq!(Header::parse(&wire).to_bytes(), wire);
        }
    }

    #[test]
    fn the_layout_is_the_specifications() {
        let header = Header {
            src_cid: 1,
            dst_cid: 2,
            src_port: 3,
            dst_port: 4,
            len: 5,
            kind: 6,
            op: 7,
            flags: 8,
            buf_alloc: 9,
            fwd_cnt: 10,
        };
        let bytes = header.to_bytes();
        let places =
            [(0, 1), (8, 2), (16, 3), (20, 4), (24, 5), (28, 6), (30, 7), (32, 8), (36, 9), (40, 10)];
        for (place, value) in places {
            assert_eq!(bytes[place], value);
        }
        assert_eq!(bytes.iter().filter(|byte| **byte != 0).count(), places.len());
    }

    #[test]
    fn operations_are_their_codes() {
        for code in 0..=u16::MAX {
            assert_eq!(
                Operation::from_code(code).map(Operation::code),
                (1..=7).contains(&code).then_some(code)
            );
        }
    }
}
