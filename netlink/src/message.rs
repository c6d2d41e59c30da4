//! Bytes: a request that grows attribute by attribute, and the attributes of what the kernel says (netlink(7)).

/// `struct nlmsghdr`, in bytes.
pub const HEADER: usize = 16;
/// `struct nlattr`, in bytes.
const ATTRIBUTE_HEADER: usize = 4;
/// Bits of an attribute's type that are not its number (`NLA_F_NESTED`, `NLA_F_NET_BYTEORDER`).
const TYPE_FLAGS: u16 = 0xc000;

/// A request without its final length and sequence number.
#[derive(Clone, Debug)]
pub struct Message(Vec<u8>);

impl Message {
    /// A request of this type with `NLM_F_*` flags and the fixed part of its family.
    pub fn new(kind: u16, flags: libc::c_int, fixed: &[u8]) -> Self {
        let mut bytes = vec![0; HEADER];
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        let flags = u16::try_from(flags | libc::NLM_F_REQUEST).unwrap_or_default();
        bytes[6..8].copy_from_slice(&flags.to_ne_bytes());
        bytes.extend_from_slice(fixed);
        Self(bytes)
    }

    /// Adds an attribute.
    pub fn add(&mut self, kind: u16, value: &[u8]) -> &mut Self {
        self.nest(kind, |inner| inner.0.extend_from_slice(value))
    }

    /// Adds an attribute with a number.
    pub fn add_u32(&mut self, kind: u16, value: u32) -> &mut Self {
        self.add(kind, &value.to_ne_bytes())
    }

    /// Adds an attribute with a text, which ends with NUL.
    pub fn add_text(&mut self, kind: u16, value: &str) -> &mut Self {
        self.nest(kind, |inner| {
            inner.0.extend_from_slice(value.as_bytes());
            inner.0.push(0);
        })
    }

    /// Adds an attribute whose value `fill` writes.
    pub fn nest(&mut self, kind: u16, fill: impl FnOnce(&mut Self)) -> &mut Self {
        let start = self.0.len();
        self.0.extend_from_slice(&[0; ATTRIBUTE_HEADER]);
        fill(self);
        // Requests of ours are far shorter than what the field can say.
        let length = u16::try_from(self.0.len() - start).unwrap_or(u16::MAX);
        self.0[start..start + 2].copy_from_slice(&length.to_ne_bytes());
        self.0[start + 2..start + 4].copy_from_slice(&kind.to_ne_bytes());
        self.0.resize(self.0.len().next_multiple_of(4), 0);
        self
    }

    /// The request with its length and a sequence number.
    pub fn finish(mut self, sequence: u32) -> Vec<u8> {
        let length = u32::try_from(self.0.len()).unwrap_or(u32::MAX);
        self.0[..4].copy_from_slice(&length.to_ne_bytes());
        self.0[8..12].copy_from_slice(&sequence.to_ne_bytes());
        self.0
    }
}

/// What the kernel says, one message after the other.
pub struct Reply<'a> {
    /// `NLMSG_*` or `RTM_*`.
    pub kind: u16,
    /// `NLM_F_*`.
    pub flags: u16,
    /// Of the request that it answers.
    pub sequence: u32,
    /// What follows the header.
    pub body: &'a [u8],
}

/// The messages in a datagram; the rest of a damaged one is left out.
pub fn replies(datagram: &[u8]) -> impl Iterator<Item = Reply<'_>> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let length = usize::try_from(u32_at(rest, 0)?).ok()?;
        if length < HEADER {
            return None;
        }
        let whole = rest.get(..length)?;
        let reply = Reply {
            kind: u16_at(whole, 4)?,
            flags: u16_at(whole, 6)?,
            sequence: u32_at(whole, 8)?,
            body: &whole[HEADER..],
        };
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(reply)
    })
}

/// The attributes in `bytes`, by number; the rest of a damaged list is left out.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, &[u8])> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let length = usize::from(u16_at(rest, 0)?);
        let kind = u16_at(rest, 2)? & !TYPE_FLAGS;
        let value = rest.get(ATTRIBUTE_HEADER..length)?;
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some((kind, value))
    })
}

/// A number at an offset.
pub fn u16_at(bytes: &[u8], offset: usize) -> Option<u16> {
    Some(u16::from_ne_bytes(bytes.get(offset..offset + 2)?.try_into().ok()?))
}

/// A number at an offset.
pub fn u32_at(bytes: &[u8], offset: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(offset..offset + 4)?.try_into().ok()?))
}

/// A number at an offset.
pub fn u64_at(bytes: &[u8], offset: usize) -> Option<u64> {
    Some(u64::from_ne_bytes(bytes.get(offset..offset + 8)?.try_into().ok()?))
}

/// A text up to its NUL.
pub fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes.split(|byte| *byte == 0).next().unwrap_or_default()).into_owned()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn attributes_nest_and_are_padded() {
        let mut message = Message::new(16, libc::NLM_F_ACK, &[7; 4]);
        message.add_text(3, "eth0").nest(18, |inner| {
            inner.add_u32(1, 5);
        });
        let bytes = message.finish(9);
        assert_eq!(bytes.len() % 4, 0);
        let reply = replies(&bytes).next().unwrap();
        assert_eq!((reply.kind, reply.sequence), (16, 9));
        let found: Vec<_> = attributes(&reply.body[4..]).collect();
        assert_eq!(text(found[0].1), "eth0");
        assert_eq!(attributes(found[1].1).next().unwrap(), (1, &5u32.to_ne_bytes()[..]));
    }

    proptest! {
        #[test]
        fn no_bytes_are_too_strange(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for reply in replies(&bytes) {
                prop_assert!(attributes(reply.body).count() <= bytes.len());
            }
            prop_assert!(attributes(&bytes).map(|(_, value)| value.len()).sum::<usize>() <= bytes.len());
        }
    }
}
