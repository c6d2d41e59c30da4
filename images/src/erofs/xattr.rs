//! Extended attributes behind an inode: a header, then entries whose names are shortened by well-known prefixes.

#[cfg(test)]
use super::format::u16_at;
use super::format::{NAME_MAX, XATTR_ENTRY_SIZE, XATTR_HEADER_SIZE, low16};
use super::tree::Xattr;

/// The prefixes that the kernel knows, with their indexes. The ACL names are complete: nothing may follow them.
const PREFIXES: [(&[u8], u8); 5] = [
    (b"user.", 1),
    (b"system.posix_acl_access", 2),
    (b"system.posix_acl_default", 3),
    (b"trusted.", 4),
    (b"security.", 6),
];

/// The prefix index and the rest of `name`; `None` when EROFS cannot hold an attribute of this name.
pub(crate) fn split_name(name: &[u8]) -> Option<(u8, &[u8])> {
    PREFIXES.iter().find_map(|(prefix, index)| {
        let rest = name.strip_prefix(*prefix)?;
        let open_ended = prefix.ends_with(b".");
        (open_ended != rest.is_empty() && rest.len() <= NAME_MAX).then_some((*index, rest))
    })
}

/// Bytes that [`encode`] makes of these attributes; 0 for none.
pub(crate) fn encoded_size<'a>(xattrs: impl IntoIterator<Item = &'a Xattr>) -> usize {
    let entries: usize = xattrs.into_iter().map(entry_size).sum();
    if entries == 0 { 0 } else { XATTR_HEADER_SIZE + entries }
}

fn entry_size(xattr: &Xattr) -> usize {
    match split_name(&xattr.name) {
        Some((_, rest)) => (XATTR_ENTRY_SIZE + rest.len() + xattr.value.len()).next_multiple_of(4),
        None => 0,
    }
}

/// Appends the attribute area.
pub(crate) fn encode<'a>(xattrs: impl IntoIterator<Item = &'a Xattr>, out: &mut Vec<u8>) {
    let start = out.len();
    out.resize(start + XATTR_HEADER_SIZE, 0);
    for xattr in xattrs {
        let Some((index, rest)) = split_name(&xattr.name) else { continue };
        let entry = out.len();
        out.extend_from_slice(&[low16(rest.len() as u64).to_le_bytes()[0], index]);
        out.extend_from_slice(&low16(xattr.value.len() as u64).to_le_bytes());
        out.extend_from_slice(rest);
        out.extend_from_slice(&xattr.value);
        out.resize(entry + (out.len() - entry).next_multiple_of(4), 0);
    }
    if out.len() == start + XATTR_HEADER_SIZE {
        out.truncate(start);
    }
}

/// Reads an attribute area without shared attributes; `None` when it is malformed.
#[cfg(test)]
pub(crate) fn decode(area: &[u8]) -> Option<Vec<Xattr>> {
    let mut rest = match area {
        [] => return Some(Vec::new()),
        area => area.get(XATTR_HEADER_SIZE..)?,
    };
    let mut xattrs = Vec::new();
    while !rest.is_empty() {
        if rest.len() < XATTR_ENTRY_SIZE {
            return None;
        }
        let name_end = XATTR_ENTRY_SIZE + usize::from(rest[0]);
        let value_end = name_end + usize::from(u16_at(rest, 2));
        let (prefix, _) = PREFIXES.iter().find(|(_, index)| *index == rest[1])?;
        let name = [prefix, rest.get(XATTR_ENTRY_SIZE..name_end)?].concat();
        xattrs.push(Xattr { name: name.into(), value: rest.get(name_end..value_end)?.into() });
        rest = rest.get(value_end.next_multiple_of(4)..)?;
    }
    Some(xattrs)
}
