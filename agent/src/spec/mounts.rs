//! The `mounts` list and its options (OCI runtime-spec, config.md "Linux mount options").

use std::ffi::CString;

use hull_protocol::agent::{FILE_MOUNT, SHARED_TMPFS_MOUNT, VOLUME_MOUNT, is_valid_id};

use super::users::IdMappings;
use super::{SpecError, c_string, schema};
use crate::sys::mount::{
    ATTR_ATIME_MASK, ATTR_NOATIME, ATTR_NODEV, ATTR_NODIRATIME, ATTR_NOEXEC, ATTR_NOSUID, ATTR_NOSYMFOLLOW,
    ATTR_RDONLY, ATTR_STRICTATIME, Depth,
};

const FIELD: &str = "mounts";

/// One file system to mount in the container.
#[derive(Clone, Debug)]
pub struct MountSpec {
    /// Where.
    pub target: MountPoint,
    /// What.
    pub source: Source,
    /// Of this mount.
    pub attributes: Attributes,
    /// Of this mount and those below it.
    pub deep_attributes: Attributes,
    /// `MS_PRIVATE` and so on for this mount, 0 for the default; with `MS_REC`, also for those below it.
    pub propagation: u64,
    /// For what is bound: with what is mounted below it, or without.
    pub depth: Depth,
    /// For what is bound: whose files they are shown to be.
    pub ids: Option<IdMapped>,
}

/// A change of `MOUNT_ATTR_*`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Attributes {
    /// What is raised, after `clear` is lowered.
    pub set: u64,
    /// What is lowered first.
    pub clear: u64,
}

impl Attributes {
    fn change(&mut self, clear: u64, set: u64) {
        self.set = (self.set & !clear) | set;
        self.clear = (self.clear & !set) | clear;
    }

    /// Whether nothing is changed.
    pub fn is_empty(self) -> bool {
        self == Self::default()
    }

    /// Whether all of these are raised.
    pub fn all_set(self, attributes: u64) -> bool {
        self.set & attributes == attributes
    }
}

/// The ids of a mount that differ from those of the file system (mount_setattr(2), ID-mapped mounts).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IdMapped {
    /// `None`: those of the container's user namespace.
    pub mappings: Option<IdMappings>,
    /// Whether also of the mounts below.
    pub depth: Depth,
}

/// What is mounted.
#[derive(Clone, Debug)]
pub enum Source {
    /// A file system of its own.
    New(Filesystem),
    /// The pod's volume of this name, a directory or a file.
    Volume(CString),
    /// The container's own file of this name, which came with the request.
    File(CString),
    /// A tmpfs that the pod's containers share.
    Shared(SharedTmpfs),
}

/// What a new file system has in it at first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// What it has by itself.
    Own,
    /// A copy of what the image has where it is mounted.
    Copied,
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
    /// What is in it at first.
    pub content: Content,
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
        let is_bind = mount.options.iter().any(|option| option == "bind" || option == "rbind");
        let is_shared = matches!(mount.kind.as_str(), VOLUME_MOUNT | SHARED_TMPFS_MOUNT);
        if mount.kind == "bind" || (is_bind && !is_shared) {
            return Err(SpecError::unsupported(
                FIELD,
                format!(
                    "{at}: bind mounts need a volume, which this agent does not support; {:?} is not in the guest",
                    mount.source
                ),
            ));
        }
        let kind = match mount.kind.as_str() {
            VOLUME_MOUNT => return Self::bound(target, mount, Source::Volume),
            FILE_MOUNT => return Self::bound(target, mount, Source::File),
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
        let options = Options::parse(mount)?;
        if options.ids.is_some() {
            return Err(SpecError::invalid(FIELD, format!("{at}: only bind mounts can map ids")));
        }
        let source = if mount.source.is_empty() { kind } else { &mount.source };
        let (kind, source) = (c_string(FIELD, kind)?, c_string(FIELD, source)?);
        if options.content == Content::Copied && kind.as_c_str() != c"tmpfs" {
            return Err(SpecError::invalid(FIELD, format!("{at}: tmpcopyup is for a tmpfs")));
        }
        let content = options.content;
        Ok(options.of(target, |data| Source::New(Filesystem { kind, source, options: data, content })))
    }

    /// A mount of something that is there and is known by a name.
    fn bound(
        target: MountPoint,
        mount: &schema::Mount,
        source: fn(CString) -> Source,
    ) -> Result<Self, SpecError> {
        let name = mount.source.as_str();
        if matches!(name, "" | "." | "..") || name.contains('/') {
            return Err(SpecError::invalid(FIELD, format!("{name:?} is not the name of a volume or a file")));
        }
        let mut options = Options::parse(mount)?;
        if let Some((option, _)) = options.data.first() {
            return Err(SpecError::unsupported(
                FIELD,
                format!("{}: option {option:?} is not supported for a volume", mount.destination),
            ));
        }
        // A device of the host's is not the guest's device of the same number.
        options.attributes.change(0, ATTR_NODEV);
        options.deep_attributes.clear &= !ATTR_NODEV;
        let name = c_string(FIELD, name)?;
        Ok(options.of(target, |_| source(name)))
    }
}

impl MountSpec {
    fn shared_tmpfs(target: MountPoint, mount: &schema::Mount) -> Result<Self, SpecError> {
        let name = mount.source.as_str();
        if !is_valid_id(name) {
            return Err(SpecError::invalid(FIELD, format!("{name:?} is not the name of a shared tmpfs")));
        }
        let options = Options::parse(mount)?;
        let known = [c"size", c"mode", c"nr_inodes", c"uid", c"gid"];
        let at = &mount.destination;
        if let Some((option, _)) = options.data.iter().find(|(key, _)| !known.contains(&key.as_c_str())) {
            return Err(SpecError::unsupported(
                FIELD,
                format!("{at}: option {option:?} is not supported for a shared tmpfs"),
            ));
        }
        if !options.data.iter().any(|(key, _)| key.as_c_str() == c"size") {
            return Err(SpecError::invalid(FIELD, format!("{at}: a shared tmpfs needs a size")));
        }
        let name = c_string(FIELD, name)?;
        Ok(options.of(target, |data| Source::Shared(SharedTmpfs { name, options: data })))
    }
}

/// The `options` of a mount, sorted.
struct Options {
    attributes: Attributes,
    deep_attributes: Attributes,
    propagation: u64,
    depth: Depth,
    ids: Option<IdMapped>,
    content: Content,
    /// For the file system.
    data: Vec<(CString, Option<CString>)>,
}

impl Options {
    fn parse(mount: &schema::Mount) -> Result<Self, SpecError> {
        let none = Attributes::default();
        let mappings = IdMappings::parse(FIELD, &mount.uid_mappings, &mount.gid_mappings)?;
        let mut sorted = Self {
            attributes: none,
            deep_attributes: none,
            propagation: 0,
            depth: Depth::One,
            ids: mappings
                .as_ref()
                .map(|mappings| IdMapped { mappings: Some(mappings.clone()), depth: Depth::One }),
            content: Content::Own,
            data: Vec::new(),
        };
        for option in &mount.options {
            match Meaning::of(option) {
                Meaning::Attribute { clear, set } => sorted.attributes.change(clear, set),
                Meaning::DeepAttribute { clear, set } => sorted.deep_attributes.change(clear, set),
                Meaning::Bind(depth) => sorted.depth = depth,
                Meaning::CopyUp => sorted.content = Content::Copied,
                Meaning::IdMapped(depth) => {
                    sorted.ids = Some(IdMapped { mappings: mappings.clone(), depth });
                }
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

    fn of(
        self,
        target: MountPoint,
        source: impl FnOnce(Vec<(CString, Option<CString>)>) -> Source,
    ) -> MountSpec {
        let Self { attributes, deep_attributes, propagation, depth, ids, data, content: _ } = self;
        MountSpec { target, source: source(data), attributes, deep_attributes, propagation, depth, ids }
    }
}

/// What one word of `options` means.
#[derive(Debug, PartialEq, Eq)]
enum Meaning {
    Attribute {
        clear: u64,
        set: u64,
    },
    DeepAttribute {
        clear: u64,
        set: u64,
    },
    Propagation(u64),
    Bind(Depth),
    CopyUp,
    IdMapped(Depth),
    /// What a new mount is anyway.
    Default,
    /// For the file system.
    Data,
    Unsupported,
}

impl Meaning {
    fn of(option: &str) -> Self {
        let attribute = |word: &str| {
            Some(match word {
                "ro" => (0, ATTR_RDONLY),
                "rw" => (ATTR_RDONLY, 0),
                "nosuid" => (0, ATTR_NOSUID),
                "suid" => (ATTR_NOSUID, 0),
                "nodev" => (0, ATTR_NODEV),
                "dev" => (ATTR_NODEV, 0),
                "noexec" => (0, ATTR_NOEXEC),
                "exec" => (ATTR_NOEXEC, 0),
                "nodiratime" => (0, ATTR_NODIRATIME),
                "diratime" => (ATTR_NODIRATIME, 0),
                "nosymfollow" => (0, ATTR_NOSYMFOLLOW),
                "symfollow" => (ATTR_NOSYMFOLLOW, 0),
                "noatime" => (ATTR_ATIME_MASK, ATTR_NOATIME),
                "strictatime" => (ATTR_ATIME_MASK, ATTR_STRICTATIME),
                "relatime" | "atime" | "nostrictatime" | "norelatime" => (ATTR_ATIME_MASK, 0),
                _ => return None,
            })
        };
        if let Some((clear, set)) = attribute(option) {
            return Self::Attribute { clear, set };
        }
        // Each of them exists with an `r` before it, for the mounts below too.
        if let Some((clear, set)) = option.strip_prefix('r').and_then(attribute) {
            return Self::DeepAttribute { clear, set };
        }
        match option {
            "bind" => Self::Bind(Depth::One),
            "rbind" => Self::Bind(Depth::Recursive),
            "tmpcopyup" => Self::CopyUp,
            "idmap" => Self::IdMapped(Depth::One),
            "ridmap" => Self::IdMapped(Depth::Recursive),
            "private" => Self::Propagation(libc::MS_PRIVATE),
            "rprivate" => Self::Propagation(libc::MS_PRIVATE | libc::MS_REC),
            "shared" => Self::Propagation(libc::MS_SHARED),
            "rshared" => Self::Propagation(libc::MS_SHARED | libc::MS_REC),
            "slave" => Self::Propagation(libc::MS_SLAVE),
            "rslave" => Self::Propagation(libc::MS_SLAVE | libc::MS_REC),
            "unbindable" => Self::Propagation(libc::MS_UNBINDABLE),
            "runbindable" => Self::Propagation(libc::MS_UNBINDABLE | libc::MS_REC),
            "defaults" | "async" | "loud" | "silent" | "nomand" | "noiversion" => Self::Default,
            "remount" | "mand" | "iversion" | "acl" | "noacl" => Self::Unsupported,
            _ => Self::Data,
        }
    }
}

/// Propagation of the root or of the whole tree, from `linux.rootfsPropagation`. Where that says nothing, nothing is changed: the
/// tree is the container's own, and no mount of it propagates but where a mount's own options say so.
pub(super) fn root_propagation(name: &str) -> Result<u64, SpecError> {
    let flags = match name {
        "" => 0,
        "rslave" => libc::MS_SLAVE | libc::MS_REC,
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
