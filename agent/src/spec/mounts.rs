//! The `mounts` list and its options (OCI runtime-spec, config.md "Linux mount options").

use std::ffi::CString;

use hull_protocol::agent::{SHARED_TMPFS_MOUNT, VOLUME_MOUNT, is_valid_id};

use super::{SpecError, c_string, schema};
use crate::sys::mount::{
    ATTR_ATIME_MASK, ATTR_NOATIME, ATTR_NODEV, ATTR_NODIRATIME, ATTR_NOEXEC, ATTR_NOSUID, ATTR_NOSYMFOLLOW,
    ATTR_RDONLY, ATTR_STRICTATIME,
};

const FIELD: &str = "mounts";

/// One file system to mount in the container.
#[derive(Clone, Debug)]
pub struct MountSpec {
    /// Where.
    pub target: MountPoint,
    /// What.
    pub source: Source,
    /// `MOUNT_ATTR_*`.
    pub attributes: u64,
    /// `MS_PRIVATE` and so on for this mount, 0 for the default.
    pub propagation: u64,
}

/// What is mounted.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file system of its own.
    New(Filesystem),
    /// The pod's volume of this name, a directory or a file.
    Volume(CString),
    /// A tmpfs that the pod's containers share.
    Shared(SharedTmpfs),
}

/// A tmpfs of the pod.
#[derive(Clone, Debug)]
pub struct SharedTmpfs {
    /// A valid id.
    pub name: CString,
    /// Options of the file system, where it is not mounted yet.
    pub options: Vec<(CString, Option<CString>)>,
}

/// A new instance of a file system.
#[derive(Clone, Debug)]
pub struct Filesystem {
    /// As in /proc/filesystems.
    pub kind: CString,
    /// What mountinfo shows as the source.
    pub source: CString,
    /// Options of the file system itself; without a value they are flags.
    pub options: Vec<(CString, Option<CString>)>,
}

impl Filesystem {
    /// Whether a symbolic link as the mount point would let an image decide what /proc or /sys is.
    pub fn needs_real_target(&self) -> bool {
        matches!(self.kind.to_bytes(), b"proc" | b"sysfs")
    }
}

/// A directory inside the container's root, with the directories that lead to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MountPoint {
    /// Every ancestor and at last the directory itself, relative to the root: `a`, `a/b`, `a/b/c`. Never empty.
    pub steps: Vec<CString>,
}

impl MountPoint {
    /// From an absolute path; `.`, `..` and doubled slashes are resolved by their spelling.
    pub(super) fn parse(field: &'static str, path: &str) -> Result<Self, SpecError> {
        if !path.starts_with('/') {
            return Err(SpecError::invalid(field, format!("{path:?} is not an absolute path")));
        }
        let mut names: Vec<&str> = Vec::new();
        for name in path.split('/') {
            match name {
                "" | "." => {}
                ".." => {
                    names.pop();
                }
                name => names.push(name),
            }
        }
        if names.is_empty() {
            return Err(SpecError::invalid(field, format!("{path:?} is the root directory")));
        }
        let steps = (1..=names.len())
            .map(|end| c_string(field, &names[..end].join("/")))
            .collect::<Result<_, _>>()?;
        Ok(Self { steps })
    }

    /// Relative to the container's root.
    pub fn path(&self) -> &std::ffi::CStr {
        self.steps.last().map_or(c".", CString::as_c_str)
    }
}

impl MountSpec {
    pub(super) fn parse(mount: &schema::Mount) -> Result<Self, SpecError> {
        let at = &mount.destination;
        let target = MountPoint::parse(FIELD, at)?;
        if !mount.uid_mappings.is_empty() || !mount.gid_mappings.is_empty() {
            return Err(SpecError::unsupported(
                FIELD,
                format!("{at}: id-mapped mounts are not supported by this agent"),
            ));
        }
        let is_bind =
            mount.kind == "bind" || mount.options.iter().any(|option| option == "bind" || option == "rbind");
        if is_bind {
            return Err(SpecError::unsupported(
                FIELD,
                format!(
                    "{at}: bind mounts need a volume, which this agent does not support; {:?} is not in the guest",
                    mount.source
                ),
            ));
        }
        let kind = match mount.kind.as_str() {
            VOLUME_MOUNT => return Self::volume(target, mount),
            SHARED_TMPFS_MOUNT => return Self::shared_tmpfs(target, mount),
            "" => return Err(SpecError::invalid(FIELD, format!("{at}: no type"))),
            // The guest has cgroup v2 only, so a container is given what runc gives it on such a host.
            "cgroup" => "cgroup2",
            kind @ ("proc" | "sysfs" | "tmpfs" | "devpts" | "mqueue" | "cgroup2" | "ramfs") => kind,
            other => {
                return Err(SpecError::unsupported(
                    FIELD,
                    format!("{at}: file system type {other:?} is not supported"),
                ));
            }
        };
        let Options { attributes, propagation, data } = Options::parse(mount)?;
        let source = if mount.source.is_empty() { kind } else { &mount.source };
        let filesystem =
            Filesystem { kind: c_string(FIELD, kind)?, source: c_string(FIELD, source)?, options: data };
        Ok(Self { target, source: Source::New(filesystem), attributes, propagation })
    }

    fn volume(target: MountPoint, mount: &schema::Mount) -> Result<Self, SpecError> {
        let name = mount.source.as_str();
        if matches!(name, "" | "." | "..") || name.contains('/') {
            return Err(SpecError::invalid(FIELD, format!("{name:?} is not the name of a volume")));
        }
        let Options { attributes, propagation, data } = Options::parse(mount)?;
        if let Some((option, _)) = data.first() {
            return Err(SpecError::unsupported(
                FIELD,
                format!("{}: option {option:?} is not supported for a volume", mount.destination),
            ));
        }
        let source = Source::Volume(c_string(FIELD, name)?);
        // A device of the host's is not the guest's device of the same number.
        Ok(Self { target, source, attributes: attributes | ATTR_NODEV, propagation })
    }
}

impl MountSpec {
    fn shared_tmpfs(target: MountPoint, mount: &schema::Mount) -> Result<Self, SpecError> {
        let name = mount.source.as_str();
        if !is_valid_id(name) {
            return Err(SpecError::invalid(FIELD, format!("{name:?} is not the name of a shared tmpfs")));
        }
        let Options { attributes, propagation, data } = Options::parse(mount)?;
        let known = [c"size", c"mode", c"nr_inodes", c"uid", c"gid"];
        let at = &mount.destination;
        if let Some((option, _)) = data.iter().find(|(key, _)| !known.contains(&key.as_c_str())) {
            return Err(SpecError::unsupported(
                FIELD,
                format!("{at}: option {option:?} is not supported for a shared tmpfs"),
            ));
        }
        if !data.iter().any(|(key, _)| key.as_c_str() == c"size") {
            return Err(SpecError::invalid(FIELD, format!("{at}: a shared tmpfs needs a size")));
        }
        let source = Source::Shared(SharedTmpfs { name: c_string(FIELD, name)?, options: data });
        Ok(Self { target, source, attributes, propagation })
    }
}

/// The `options` of a mount, sorted.
struct Options {
    attributes: u64,
    propagation: u64,
    /// For the file system.
    data: Vec<(CString, Option<CString>)>,
}

impl Options {
    fn parse(mount: &schema::Mount) -> Result<Self, SpecError> {
        let mut sorted = Self { attributes: 0, propagation: 0, data: Vec::new() };
        for option in &mount.options {
            match Meaning::of(option) {
                Meaning::Attribute { clear, set } => sorted.attributes = (sorted.attributes & !clear) | set,
                Meaning::Propagation(flags) => sorted.propagation = flags,
                Meaning::Default => {}
                Meaning::Unsupported => {
                    let at = &mount.destination;
                    return Err(SpecError::unsupported(
                        FIELD,
                        format!("{at}: option {option:?} is not supported"),
                    ));
                }
                Meaning::Data => sorted.data.push(match option.split_once('=') {
                    Some((key, value)) => (c_string(FIELD, key)?, Some(c_string(FIELD, value)?)),
                    None => (c_string(FIELD, option)?, None),
                }),
            }
        }
        Ok(sorted)
    }
}

/// What one word of `options` means.
#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    Attribute {
        clear: u64,
        set: u64,
    },
    Propagation(u64),
    /// What a new mount is anyway.
    Default,
    /// For the file system.
    Data,
    Unsupported,
}

impl Meaning {
    fn of(option: &str) -> Self {
        let set = |attribute| Self::Attribute { clear: 0, set: attribute };
        let clear = |attribute| Self::Attribute { clear: attribute, set: 0 };
        let atime = |mode| Self::Attribute { clear: ATTR_ATIME_MASK, set: mode };
        match option {
            // A new file system has nothing mounted below it, so the recursive forms mean the same.
            "ro" | "rro" => set(ATTR_RDONLY),
            "rw" | "rrw" => clear(ATTR_RDONLY),
            "nosuid" | "rnosuid" => set(ATTR_NOSUID),
            "suid" | "rsuid" => clear(ATTR_NOSUID),
            "nodev" | "rnodev" => set(ATTR_NODEV),
            "dev" | "rdev" => clear(ATTR_NODEV),
            "noexec" | "rnoexec" => set(ATTR_NOEXEC),
            "exec" | "rexec" => clear(ATTR_NOEXEC),
            "nodiratime" | "rnodiratime" => set(ATTR_NODIRATIME),
            "diratime" | "rdiratime" => clear(ATTR_NODIRATIME),
            "nosymfollow" | "rnosymfollow" => set(ATTR_NOSYMFOLLOW),
            "symfollow" | "rsymfollow" => clear(ATTR_NOSYMFOLLOW),
            "noatime" | "rnoatime" => atime(ATTR_NOATIME),
            "strictatime" | "rstrictatime" => atime(ATTR_STRICTATIME),
            "relatime" | "rrelatime" | "atime" | "ratime" | "nostrictatime" | "rnostrictatime"
            | "norelatime" | "rnorelatime" => atime(0),
            "private" => Self::Propagation(libc::MS_PRIVATE),
            "rprivate" => Self::Propagation(libc::MS_PRIVATE | libc::MS_REC),
            "shared" => Self::Propagation(libc::MS_SHARED),
            "rshared" => Self::Propagation(libc::MS_SHARED | libc::MS_REC),
            "slave" => Self::Propagation(libc::MS_SLAVE),
            "rslave" => Self::Propagation(libc::MS_SLAVE | libc::MS_REC),
            "unbindable" => Self::Propagation(libc::MS_UNBINDABLE),
            "runbindable" => Self::Propagation(libc::MS_UNBINDABLE | libc::MS_REC),
            "defaults" | "async" | "loud" | "nomand" | "noiversion" => Self::Default,
            "remount" | "tmpcopyup" | "idmap" | "ridmap" | "mand" | "iversion" | "acl" | "noacl" => {
                Self::Unsupported
            }
            _ => Self::Data,
        }
    }
}

/// Propagation of the whole tree, from `linux.rootfsPropagation`.
pub(super) fn root_propagation(name: &str) -> Result<u64, SpecError> {
    let flags = match name {
        "" | "rslave" => libc::MS_SLAVE | libc::MS_REC,
        "slave" => libc::MS_SLAVE,
        "private" => libc::MS_PRIVATE,
        "rprivate" => libc::MS_PRIVATE | libc::MS_REC,
        "shared" => libc::MS_SHARED,
        "rshared" => libc::MS_SHARED | libc::MS_REC,
        "unbindable" => libc::MS_UNBINDABLE,
        "runbindable" => libc::MS_UNBINDABLE | libc::MS_REC,
        other => {
            return Err(SpecError::invalid(
                "linux.rootfsPropagation",
                format!("{other:?} is not a propagation type"),
            ));
        }
    };
    Ok(flags)
}

impl MountPoint {
    /// From a path that is known to be absolute; `None` for the root directory itself.
    pub fn of_directory(path: &std::ffi::CStr) -> Option<Self> {
        Self::parse("process.cwd", &path.to_string_lossy()).ok()
    }
}
