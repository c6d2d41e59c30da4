//! Names of entries: cleaned by their text alone, as paths relative to the root of the image.

use super::{ConvertError, EntryName, LimitKind, Limits};

/// The longest component that Linux allows.
const NAME_MAX: usize = 255;

/// The components of a name, none of them empty, `.` or `..`; nothing for the root itself.
///
/// # Errors
/// For a name that is empty, has a NUL byte, climbs above the root, or exceeds a limit.
pub(super) fn components<'a>(name: &'a [u8], limits: &Limits) -> Result<Vec<&'a [u8]>, ConvertError> {
    if name.is_empty() || name.contains(&0) {
        return Err(ConvertError::InvalidName(EntryName::new(name)));
    }
    let limit = |limit| Err(ConvertError::Limit { entry: EntryName::new(name), limit });
    if name.len() > limits.path_bytes {
        return limit(LimitKind::Path(limits.path_bytes));
    }
    let mut components = Vec::new();
    for component in name.split(|byte| *byte == b'/') {
        match component {
            b"" | b"." => {}
            b".." => {
                if components.pop().is_none() {
                    return Err(ConvertError::EscapesRoot(EntryName::new(name)));
                }
            }
            _ if component.len() > NAME_MAX => return limit(LimitKind::Name(NAME_MAX)),
            _ => components.push(component),
        }
    }
    Ok(components)
}

/// What a name means in a layer (image-spec, layer.md, "Whiteouts").
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Meaning<'a> {
    /// The root directory.
    Root,
    /// This name in this directory.
    Entry(&'a [&'a [u8]], &'a [u8]),
    /// This name is deleted from the layers below this directory.
    Whiteout(&'a [&'a [u8]], &'a [u8]),
    /// Everything in this directory is deleted from the layers below.
    Opaque(&'a [&'a [u8]]),
    /// Bookkeeping of aufs: nothing.
    Ignored,
}

const WHITEOUT: &[u8] = b".wh.";
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Tells whiteouts from entries; `None` for a whiteout that makes no sense.
pub(super) fn meaning<'a>(components: &'a [&'a [u8]]) -> Option<Meaning<'a>> {
    let Some((last, parents)) = components.split_last() else { return Some(Meaning::Root) };
    if parents.iter().any(|parent| parent.starts_with(AUFS)) {
        return Some(Meaning::Ignored);
    }
    if parents.iter().any(|parent| parent.starts_with(WHITEOUT)) {
        return None;
    }
    if *last == OPAQUE {
        return Some(Meaning::Opaque(parents));
    }
    match last.strip_prefix(WHITEOUT) {
        None => Some(Meaning::Entry(parents, last)),
        Some(_) if last.starts_with(AUFS) => Some(Meaning::Ignored),
        Some(b"" | b"." | b"..") => None,
        Some(hidden) => Some(Meaning::Whiteout(parents, hidden)),
    }
}
