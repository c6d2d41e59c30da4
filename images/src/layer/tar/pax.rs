//! PAX extended headers (POSIX.1-2001 pax, "pax Extended Header"): records `length key=value\n` that override what the
//! header after them says. Malformed records are errors, never skipped: two programs that disagree about a header see
//! two different images.

use base64::Engine;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};

use crate::erofs::{Time, Xattr};
use crate::layer::TarFault;

/// libarchive leaves out the padding.
const BASE64: GeneralPurpose = GeneralPurpose::new(
    &base64::alphabet::STANDARD,
    GeneralPurposeConfig::new()
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(true),
);

/// What an extended header says about the next entry.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct Pax {
    pub(super) path: Option<Vec<u8>>,
    pub(super) link_path: Option<Vec<u8>>,
    pub(super) size: Option<u64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) mtime: Option<Time>,
    /// Sorted by name, without duplicates.
    pub(super) xattrs: Vec<Xattr>,
    pub(super) sparse: PaxSparse,
}

/// The `GNU.sparse.*` records of formats 0.0, 0.1 and 1.0.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(super) struct PaxSparse {
    pub(super) version: Option<(u64, u64)>,
    pub(super) name: Option<Vec<u8>>,
    pub(super) real_size: Option<u64>,
    /// Offsets and lengths, alternating.
    pub(super) numbers: Vec<u64>,
    pub(super) has_map: bool,
}

/// Reads the content of an `x` header.
pub(super) fn parse(content: &[u8]) -> Result<Pax, TarFault> {
    let mut pax = Pax::default();
    let mut libarchive = Vec::new();
    for record in records(content) {
        let (key, value) = record?;
        match key {
            b"path" => pax.path = text(value)?,
            b"linkpath" => pax.link_path = text(value)?,
            b"size" => pax.size = unsigned(value)?,
            b"uid" => pax.uid = integer(value)?,
            b"gid" => pax.gid = integer(value)?,
            b"mtime" => pax.mtime = time(value)?,
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    set_xattr(&mut pax.xattrs, name, value);
                } else if let Some(name) = key.strip_prefix(b"LIBARCHIVE.xattr.") {
                    let name = url_decode(name).ok_or(TarFault::Pax("attribute name"))?;
                    let value = BASE64.decode(value).map_err(|_| TarFault::Pax("base64"))?;
                    set_xattr(&mut libarchive, &name, &value);
                } else if let Some(key) = key.strip_prefix(b"GNU.sparse.") {
                    pax.sparse.set(key, value)?;
                }
            }
        }
    }
    for xattr in libarchive {
        if let Err(at) = pax.xattrs.binary_search_by(|known| known.name.cmp(&xattr.name)) {
            pax.xattrs.insert(at, xattr);
        }
    }
    Ok(pax)
}

/// Checks a `g` header: it may carry comments, but nothing that would change entries, since the programs that unpack
/// image layers ignore global headers and those that unpack archives do not.
pub(super) fn check_global(content: &[u8]) -> Result<(), TarFault> {
    for record in records(content) {
        let (key, _) = record?;
        let harmless = key == b"comment" || key.first().is_some_and(u8::is_ascii_uppercase);
        if !harmless
            || key.starts_with(b"GNU.sparse.")
            || key.starts_with(b"SCHILY.")
            || key.starts_with(b"LIBARCHIVE.")
        {
            return Err(TarFault::GlobalPax);
        }
    }
    Ok(())
}

impl PaxSparse {
    fn set(&mut self, key: &[u8], value: &[u8]) -> Result<(), TarFault> {
        let number = || unsigned(value)?.ok_or(TarFault::Sparse);
        match key {
            b"major" => self.version = Some((number()?, self.version.map_or(0, |(_, minor)| minor))),
            b"minor" => self.version = Some((self.version.map_or(0, |(major, _)| major), number()?)),
            b"name" => self.name = text(value)?,
            b"realsize" | b"size" => self.real_size = Some(number()?),
            b"numblocks" => self.has_map = true,
            b"offset" if self.numbers.len().is_multiple_of(2) => self.numbers.push(number()?),
            b"numbytes" if !self.numbers.len().is_multiple_of(2) => self.numbers.push(number()?),
            b"map" => {
                self.has_map = true;
                self.numbers.clear();
                if !value.is_empty() {
                    for value in value.split(|byte| *byte == b',') {
                        self.numbers.push(unsigned(value)?.ok_or(TarFault::Sparse)?);
                    }
                }
            }
            _ => return Err(TarFault::Sparse),
        }
        Ok(())
    }
}

/// The records of an extended header.
fn records(mut content: &[u8]) -> impl Iterator<Item = Result<(&[u8], &[u8]), TarFault>> {
    std::iter::from_fn(move || {
        if content.is_empty() {
            return None;
        }
        let record = record(content);
        content = match &record {
            Some((_, _, rest)) => rest,
            None => &[],
        };
        Some(record.map(|(key, value, _)| (key, value)).ok_or(TarFault::Pax("record")))
    })
}

/// The first record and what follows it.
fn record(content: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = content.iter().take(20).position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&content[..space])?).ok()?;
    let body = content.get(space + 1..length)?.strip_suffix(b"\n")?;
    let equals = body.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (&body[..equals], &body[equals + 1..]);
    (!key.is_empty() && !key.contains(&0)).then_some((key, value, &content[length..]))
}

fn set_xattr(xattrs: &mut Vec<Xattr>, name: &[u8], value: &[u8]) {
    let xattr = Xattr { name: name.into(), value: value.into() };
    match xattrs.binary_search_by(|known| (*known.name).cmp(name)) {
        Ok(at) => xattrs[at] = xattr,
        Err(at) => xattrs.insert(at, xattr),
    }
}

/// A path; an empty value takes back an earlier one.
fn text(value: &[u8]) -> Result<Option<Vec<u8>>, TarFault> {
    if value.contains(&0) {
        return Err(TarFault::Pax("NUL in a path"));
    }
    Ok(if value.is_empty() { None } else { Some(value.to_vec()) })
}

fn unsigned(value: &[u8]) -> Result<Option<u64>, TarFault> {
    if value.is_empty() { Ok(None) } else { decimal(value).map(Some).ok_or(TarFault::Pax("number")) }
}

fn integer(value: &[u8]) -> Result<Option<i64>, TarFault> {
    let Some(value) = unsigned(value)? else { return Ok(None) };
    i64::try_from(value).map(Some).map_err(|_| TarFault::Pax("number"))
}

/// Digits and nothing else.
fn decimal(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() {
        return None;
    }
    digits.iter().try_fold(0_u64, |value, digit| match digit {
        b'0'..=b'9' => value.checked_mul(10)?.checked_add(u64::from(digit - b'0')),
        _ => None,
    })
}

/// Seconds with an optional sign and fraction; digits below a nanosecond are dropped.
fn time(value: &[u8]) -> Result<Option<Time>, TarFault> {
    if value.is_empty() {
        return Ok(None);
    }
    parse_time(value).map(Some).ok_or(TarFault::Pax("time"))
}

fn parse_time(value: &[u8]) -> Option<Time> {
    let (negative, digits) = match value.strip_prefix(b"-") {
        Some(digits) => (true, digits),
        None => (false, value),
    };
    let (whole, fraction) = match digits.iter().position(|byte| *byte == b'.') {
        Some(dot) => (&digits[..dot], &digits[dot + 1..]),
        None => (digits, &b""[..]),
    };
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let seconds = i64::try_from(decimal(whole)?).ok()?;
    let nanoseconds =
        (0..9).fold(0, |value, at| value * 10 + u32::from(fraction.get(at).map_or(0, |digit| digit - b'0')));
    Some(match (negative, nanoseconds) {
        (false, _) => Time { seconds, nanoseconds },
        (true, 0) => Time { seconds: -seconds, nanoseconds: 0 },
        (true, _) => Time { seconds: -seconds - 1, nanoseconds: 1_000_000_000 - nanoseconds },
    })
}

fn url_decode(text: &[u8]) -> Option<Vec<u8>> {
    let mut out = Vec::with_capacity(text.len());
    let mut bytes = text.iter();
    while let Some(&byte) = bytes.next() {
        if byte == b'%' {
            let mut digit = || u8::try_from(char::from(*bytes.next()?).to_digit(16)?).ok();
            let (high, low) = (digit()?, digit()?);
            out.push(high << 4 | low);
        } else {
            out.push(byte);
        }
    }
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_override_and_carry_attributes() {
        let records: [(&str, &[u8]); 4] =
            [("path", b"a/b"), ("uid", b"70000"), ("mtime", b"-1.5"), ("SCHILY.xattr.user.a", b"")];
        let pax = parse(&crate::layer::testing::pax_records(&records)).unwrap();
        assert_eq!(pax.path.as_deref(), Some(&b"a/b"[..]));
        assert_eq!(pax.uid, Some(70_000));
        assert_eq!(pax.mtime, Some(Time { seconds: -2, nanoseconds: 500_000_000 }));
        assert_eq!(&*pax.xattrs[0].name, b"user.a");
    }

    #[test]
    fn malformed_records_are_errors() {
        for bad in [
            &b"12 path=a/b"[..],
            b"99 path=a/b\n",
            b"11 path=a/b\n",
            b"x path=a/b\n",
            b"6 =ab\n",
            b"-1 path=a\n",
            b"8 patha\n",
            b"14 size=0x123\n",
            b"12 mtime=1.x\n",
            b"11 size=-1\n",
            b"10 path=\0\n",
        ] {
            assert!(parse(bad).is_err(), "{}", bad.escape_ascii());
        }
    }

    #[test]
    fn base64_and_url_escapes_of_libarchive() {
        let pax = parse(b"34 LIBARCHIVE.xattr.user.a%3D=AQI\n").unwrap();
        assert_eq!((&*pax.xattrs[0].name, &*pax.xattrs[0].value), (&b"user.a="[..], &[1, 2][..]));
        assert!(parse(b"30 LIBARCHIVE.xattr.user.a=A*\n").is_err());
        assert_eq!(url_decode(b"user.a%3Db").unwrap(), b"user.a=b");
        assert_eq!(url_decode(b"user.%3"), None);
    }

    #[test]
    fn global_headers_may_only_comment() {
        check_global(b"16 comment=1234\n").unwrap();
        assert_eq!(check_global(b"9 size=1\n"), Err(TarFault::GlobalPax));
        assert_eq!(check_global(b"12 path=a/b\n"), Err(TarFault::GlobalPax));
    }
}
