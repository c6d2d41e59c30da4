//! The 512-byte tar header (POSIX.1-1988 ustar, GNU and old V7 variants), field by field. Strict: a number that is
//! neither octal nor base-256 is an error, never zero.

use crate::layer::TarFault;

/// Bytes of a header and unit of padding.
pub(super) const BLOCK: usize = 512;

/// A header with a valid checksum.
#[derive(Debug, Clone)]
pub(super) struct Header {
    block: [u8; BLOCK],
}

/// The map of an old GNU sparse file, as far as the header holds it.
#[derive(Debug)]
pub(super) struct GnuSparse {
    /// Offsets and lengths.
    pub(super) segments: Vec<(u64, u64)>,
    /// Bytes of the whole file.
    pub(super) real_size: u64,
    /// Blocks with more segments follow.
    pub(super) more: bool,
}

/// Which fields the header has behind the first 257 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    V7,
    Ustar,
    /// Ustar with times at the end of the prefix field (Schilling's star).
    Star,
    Gnu,
}

impl Header {
    /// # Errors
    /// [`TarFault::Checksum`].
    pub(super) fn parse(block: [u8; BLOCK]) -> Result<Header, TarFault> {
        let header = Header { block };
        let stated = header.number(148..156, "checksum")?;
        let bytes = || {
            header
                .block
                .iter()
                .enumerate()
                .map(|(at, byte)| if (148..156).contains(&at) { b' ' } else { *byte })
        };
        // Some old programs summed signed bytes.
        let unsigned: i64 = bytes().map(i64::from).sum();
        let signed: i64 = bytes().map(|byte| i64::from(byte.cast_signed())).sum();
        if stated == unsigned || stated == signed { Ok(header) } else { Err(TarFault::Checksum) }
    }

    pub(super) fn type_flag(&self) -> u8 {
        self.block[156]
    }

    /// The name, with the prefix where the format has one.
    pub(super) fn name(&self) -> Vec<u8> {
        let name = self.text(0..100);
        let prefix = match self.format() {
            Format::Ustar => self.text(345..500),
            Format::Star => self.text(345..476),
            Format::V7 | Format::Gnu => b"",
        };
        if prefix.is_empty() { name.to_vec() } else { [prefix, b"/", name].concat() }
    }

    pub(super) fn link_name(&self) -> &[u8] {
        self.text(157..257)
    }

    pub(super) fn mode(&self) -> Result<u16, TarFault> {
        let mode = self.number(100..108, "mode")?;
        Ok((mode & 0o7777) as u16)
    }

    pub(super) fn uid(&self) -> Result<i64, TarFault> {
        self.number(108..116, "uid")
    }

    pub(super) fn gid(&self) -> Result<i64, TarFault> {
        self.number(116..124, "gid")
    }

    pub(super) fn size(&self) -> Result<u64, TarFault> {
        self.unsigned(124..136, "size")
    }

    /// Whole seconds since 1970.
    pub(super) fn mtime(&self) -> Result<i64, TarFault> {
        self.number(136..148, "mtime")
    }

    /// Major and minor number of a device.
    pub(super) fn device(&self) -> Result<(u64, u64), TarFault> {
        match self.format() {
            Format::V7 => Err(TarFault::Number("device")),
            Format::Ustar | Format::Star | Format::Gnu => {
                Ok((self.unsigned(329..337, "device major")?, self.unsigned(337..345, "device minor")?))
            }
        }
    }

    /// What is particular to an old GNU sparse file.
    pub(super) fn gnu_sparse(&self) -> Result<GnuSparse, TarFault> {
        if self.format() != Format::Gnu {
            return Err(TarFault::Sparse);
        }
        Ok(GnuSparse {
            segments: sparse_slots(&self.block[386..482])?,
            real_size: self.unsigned(483..495, "real size")?,
            more: self.block[482] != 0,
        })
    }

    fn format(&self) -> Format {
        match &self.block[257..265] {
            b"ustar  \0" => Format::Gnu,
            [b'u', b's', b't', b'a', b'r', 0, ..] if &self.block[508..512] == b"tar\0" => Format::Star,
            [b'u', b's', b't', b'a', b'r', 0, ..] => Format::Ustar,
            _ => Format::V7,
        }
    }

    /// A text field up to its NUL.
    fn text(&self, range: std::ops::Range<usize>) -> &[u8] {
        until_nul(&self.block[range])
    }

    fn number(&self, range: std::ops::Range<usize>, field: &'static str) -> Result<i64, TarFault> {
        number(&self.block[range]).ok_or(TarFault::Number(field))
    }

    fn unsigned(&self, range: std::ops::Range<usize>, field: &'static str) -> Result<u64, TarFault> {
        u64::try_from(self.number(range, field)?).map_err(|_| TarFault::Number(field))
    }
}

/// Offset and length pairs of old GNU sparse headers; an empty slot ends them.
pub(super) fn sparse_slots(bytes: &[u8]) -> Result<Vec<(u64, u64)>, TarFault> {
    let mut segments = Vec::new();
    for slot in bytes.chunks_exact(24) {
        if slot[0] == 0 && slot[12] == 0 {
            break;
        }
        let value = |field| number(field).and_then(|value| u64::try_from(value).ok()).ok_or(TarFault::Sparse);
        segments.push((value(&slot[..12])?, value(&slot[12..])?));
    }
    Ok(segments)
}

pub(super) fn until_nul(bytes: &[u8]) -> &[u8] {
    &bytes[..bytes.iter().position(|byte| *byte == 0).unwrap_or(bytes.len())]
}

/// A numeric field: octal digits between blanks and NULs, or big-endian two's complement if the top bit is set.
fn number(field: &[u8]) -> Option<i64> {
    match field.first()? {
        0x80 | 0xff => base256(field),
        _ => {
            let field = until_nul(field).trim_ascii();
            if field.is_empty() {
                return Some(0);
            }
            field.iter().try_fold(0_i64, |value, digit| match digit {
                b'0'..=b'7' => value.checked_mul(8)?.checked_add(i64::from(digit - b'0')),
                _ => None,
            })
        }
    }
}

fn base256(field: &[u8]) -> Option<i64> {
    let (marker, rest) = field.split_first()?;
    let start = if *marker == 0xff { -1 } else { 0 };
    rest.iter().try_fold(start, |value: i64, byte| value.checked_mul(256)?.checked_add(i64::from(*byte)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base256_or_wrong() {
        assert_eq!(number(b"0000644\0"), Some(0o644));
        assert_eq!(number(b"   644 \0"), Some(0o644));
        assert_eq!(number(b"77777777777 "), Some(0o77_777_777_777));
        assert_eq!(number(b"\0\0\0\0\0\0\0\0"), Some(0));
        assert_eq!(number(b"000008\0\0"), None);
        assert_eq!(number(b"-000001\0"), None);
        assert_eq!(number(b"0x00001\0"), None);
        assert_eq!(number(&[0x80, 0, 0, 0, 0, 0, 1, 0]), Some(256));
        assert_eq!(number(&[0xff; 12]), Some(-1));
        assert_eq!(number(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xfe]), Some(-2));
        let mut huge = [0xff; 12];
        huge[0] = 0x80;
        assert_eq!(number(&huge), None);
    }
}
