//! Where a pod's cgroup is: `linux.cgroupsPath`, in the forms of the two drivers that engines have.
//!
//! | driver | written | below the root of each hierarchy |
//! |---|---|---|
//! | cgroupfs | `/kubepods/pod1/ID` | the same |
//! | systemd | `kubepods-pod1.slice:cri-containerd:ID` | `kubepods.slice/kubepods-pod1.slice/cri-containerd-ID.scope` |

use std::path::{Path, PathBuf};

/// Where systemd puts what names no slice.
const DEFAULT_SLICE: &str = "system.slice";
const SLICE: &str = ".slice";

/// A path below the root of a hierarchy: one name at least, none of them special.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CgroupPath(PathBuf);

/// Why a text names no cgroup that a pod can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CgroupPathError {
    /// No text at all.
    #[error("it is not UTF-8")]
    NotText,
    /// It would leave the place that it begins in.
    #[error("it must not have the part \"..\"")]
    Escapes,
    /// Every process of the host would share it.
    #[error("it is the root of all cgroups")]
    Root,
    /// Neither of the forms.
    #[error("it is neither a path nor systemd's SLICE:PREFIX:NAME")]
    Form,
    /// systemd knows no such slice.
    #[error("its slice is none of systemd's: words joined by single dashes, then .slice")]
    Slice,
    /// Not one name.
    #[error("prefix and name of a scope must not be empty or have a slash")]
    Scope,
}

impl CgroupPath {
    /// Reads what an engine has written.
    pub fn parse(written: &Path) -> Result<Self, CgroupPathError> {
        let text = written.to_str().ok_or(CgroupPathError::NotText)?;
        let path =
            if text.starts_with('/') || !text.contains(':') { plain(text)? } else { of_systemd(text)? };
        if path.as_os_str().is_empty() { Err(CgroupPathError::Root) } else { Ok(Self(path)) }
    }

    /// The path, which is relative.
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

fn plain(text: &str) -> Result<PathBuf, CgroupPathError> {
    let parts = text.split('/').filter(|part| !part.is_empty() && *part != ".");
    parts.map(|part| if part == ".." { Err(CgroupPathError::Escapes) } else { Ok(part) }).collect()
}

fn of_systemd(text: &str) -> Result<PathBuf, CgroupPathError> {
    let parts: Vec<&str> = text.split(':').collect();
    let [slice, prefix, name] = parts[..] else { return Err(CgroupPathError::Form) };
    if name.is_empty() || name == ".." || name == "." || [name, prefix].iter().any(|part| part.contains('/'))
    {
        return Err(CgroupPathError::Scope);
    }
    let mut path = expanded(if slice.is_empty() { DEFAULT_SLICE } else { slice })?;
    path.push(match prefix {
        _ if name.ends_with(SLICE) => name.to_owned(),
        "" => format!("{name}.scope"),
        prefix => format!("{prefix}-{name}.scope"),
    });
    Ok(path)
}

/// Where systemd has a slice: inside of those whose names its own begins with (systemd.slice(5)).
fn expanded(slice: &str) -> Result<PathBuf, CgroupPathError> {
    let stem = slice.strip_suffix(SLICE).ok_or(CgroupPathError::Slice)?;
    if stem == "-" {
        return Ok(PathBuf::new());
    }
    if stem.contains('/') || stem.split('-').any(str::is_empty) {
        return Err(CgroupPathError::Slice);
    }
    let ends = stem.match_indices('-').map(|(end, _)| end).chain([stem.len()]);
    Ok(ends.map(|end| format!("{}{SLICE}", &stem[..end])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parsed(text: &str) -> Result<String, CgroupPathError> {
        CgroupPath::parse(Path::new(text)).map(|path| path.as_path().to_str().unwrap().to_owned())
    }

    #[test]
    fn both_drivers_forms_name_a_directory() {
        for (written, expected) in [
            ("/default/web", "default/web"),
            ("/docker/0123", "docker/0123"),
            ("/kubepods/burstable/pod1/abc", "kubepods/burstable/pod1/abc"),
            ("relative/web", "relative/web"),
            ("//a/./b/", "a/b"),
            // Colons are letters like others where a path begins with a slash.
            ("/a:b:c/d", "a:b:c/d"),
            ("system.slice:docker:0123", "system.slice/docker-0123.scope"),
            (":docker:0123", "system.slice/docker-0123.scope"),
            ("-.slice:docker:0123", "docker-0123.scope"),
            ("user.slice::web", "user.slice/web.scope"),
            ("system.slice:x:web.slice", "system.slice/web.slice"),
            (
                "kubepods-burstable-pod1_2.slice:cri-containerd:abc",
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice/cri-containerd-abc.scope",
            ),
        ] {
            assert_eq!(parsed(written).as_deref(), Ok(expected), "{written}");
        }
    }

    #[test]
    fn what_no_pod_can_have_is_refused() {
        use CgroupPathError::{Escapes, Form, Root, Scope, Slice};
        for (written, expected) in [
            ("/../a", Escapes),
            ("/a/../../b", Escapes),
            ("..", Escapes),
            ("/", Root),
            ("", Root),
            ("/./", Root),
            ("a:b", Form),
            ("a.slice:b:c:d", Form),
            ("a:b:c", Slice),
            (".slice:b:c", Slice),
            ("a--b.slice:b:c", Slice),
            ("-a.slice:b:c", Slice),
            ("a-.slice:b:c", Slice),
            ("../a.slice:b:c", Slice),
            ("a.slice:b:", Scope),
            ("a.slice:b:..", Scope),
            ("a.slice::../c", Scope),
            ("a.slice:../b:c", Scope),
        ] {
            assert_eq!(parsed(written), Err(expected), "{written}");
        }
    }
}
