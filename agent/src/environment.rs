//! What the agent itself owns and every container needs: its own views of /proc and /dev/null, where it keeps mounts, its
//! cgroup and its disks.
//!
//! Made once at start. Nothing here is ever looked up through a path that a workload can change.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::errno::Errno;

use crate::cgroup::CgroupParent;
use crate::debug::Console;
use crate::launch::Keeper;
use crate::memory::Share;
use crate::reap::Children;
use crate::rootfs::Disks;
use crate::sys;
use crate::sys::mount::MountAttr;
use crate::volumes::{SharedTmpfs, Volumes};

/// Why the agent cannot prepare itself.
#[derive(Debug, thiserror::Error)]
#[error("cannot {what} {path}: {}", source.desc())]
pub struct EnvironmentError {
    what: &'static str,
    path: String,
    source: Errno,
}

/// The agent's own things.
#[derive(Debug)]
pub struct Environment {
    /// Where the mounts of containers are made, one directory each.
    pub run: PathBuf,
    /// The agent's own procfs.
    pub proc: OwnedFd,
    /// The null device, on a read-only file system: a process that is given it can change nothing of it.
    pub null: Arc<OwnedFd>,
    /// Path of a file to hide files behind: the null device on a read-only file system.
    pub mask_file: CString,
    /// Path of a directory to hide directories behind: empty and read-only.
    pub mask_directory: CString,
    /// Number of the last capability that this kernel knows.
    pub last_capability: u32,
    /// The signals that the agent ignores, a bit for each.
    pub ignored_signals: u64,
    /// Where containers' cgroups are.
    pub cgroups: CgroupParent,
    /// How much memory they may take together. Outside of a VM that is not the agent's to say.
    pub memory: Share,
    /// Where disks are.
    pub disks: Disks,
    /// The pod's volumes.
    pub volumes: Volumes,
    /// The tmpfs that the pod's containers share.
    pub shared: SharedTmpfs,
    /// The pod's shared namespaces.
    pub keeper: Keeper,
    /// Whether the host may ask about the guest.
    pub console: Console,
    /// The agent's children that somebody waits for.
    pub children: Children,
}

impl Environment {
    /// Makes the agent's directories below `run`, which must be on a private, writable mount.
    pub fn prepare(run: &Path, cgroups: CgroupParent, disks: Disks) -> Result<Self, EnvironmentError> {
        let mask = run.join("mask");
        let [volumes, shared] = ["volumes", "shared"].map(|name| run.join(name));
        for directory in [run, &mask, &volumes, &shared, &run.join("containers")] {
            std::fs::create_dir_all(directory).map_err(|error| EnvironmentError {
                what: "make",
                path: directory.display().to_string(),
                source: Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)),
            })?;
        }
        make_mask(&mask).map_err(|source| EnvironmentError {
            what: "make the read-only file system",
            path: mask.display().to_string(),
            source,
        })?;
        let mask_file = c_path(&mask.join("null"));
        Ok(Self {
            run: run.join("containers"),
            proc: open(c"/proc", libc::O_PATH | libc::O_DIRECTORY)?,
            null: Arc::new(open(&mask_file, libc::O_RDWR)?),
            mask_file,
            mask_directory: c_path(&mask.join("empty")),
            last_capability: last_capability()?,
            ignored_signals: ignored_signals()?,
            cgroups,
            volumes: Volumes::new(&volumes, &disks),
            shared: SharedTmpfs::new(&shared),
            keeper: Keeper::default(),
            memory: Share::default(),
            disks,
            console: Console::Off,
            children: Children::default(),
        })
    }

    /// What a further process in a container needs; nothing is made, and no container can be.
    pub fn for_exec() -> Result<Self, EnvironmentError> {
        let disks = Disks::Directories(PathBuf::new());
        Ok(Self {
            run: PathBuf::new(),
            proc: open(c"/proc", libc::O_PATH | libc::O_DIRECTORY)?,
            null: Arc::new(open(c"/dev/null", libc::O_RDWR)?),
            mask_file: CString::default(),
            mask_directory: CString::default(),
            last_capability: last_capability()?,
            ignored_signals: ignored_signals()?,
            cgroups: CgroupParent::existing(PathBuf::new()),
            volumes: Volumes::new(Path::new(""), &disks),
            shared: SharedTmpfs::new(Path::new("")),
            keeper: Keeper::default(),
            memory: Share::default(),
            disks,
            console: Console::Off,
            children: Children::default(),
        })
    }
}

fn open(path: &CStr, flags: libc::c_int) -> Result<OwnedFd, EnvironmentError> {
    sys::path::open(path, flags).map_err(|source| EnvironmentError {
        what: "open",
        path: path.to_string_lossy().into_owned(),
        source,
    })
}

fn last_capability() -> Result<u32, EnvironmentError> {
    const FILE: &str = "/proc/sys/kernel/cap_last_cap";
    std::fs::read_to_string(FILE)
        .ok()
        .and_then(|text| text.trim().parse().ok())
        .filter(|last| *last < 64)
        .ok_or_else(|| EnvironmentError { what: "read", path: FILE.to_owned(), source: Errno::EINVAL })
}

/// The runtime of the language ignores one, and who started the agent may have had it ignore others; nothing here changes that.
fn ignored_signals() -> Result<u64, EnvironmentError> {
    const FILE: &str = "/proc/self/status";
    std::fs::read_to_string(FILE)
        .ok()
        .and_then(|text| {
            let line = text.lines().find_map(|line| line.strip_prefix("SigIgn:"))?;
            u64::from_str_radix(line.trim(), 16).ok()
        })
        .ok_or_else(|| EnvironmentError { what: "read", path: FILE.to_owned(), source: Errno::EINVAL })
}

/// A path of the agent's own making: without NUL bytes.
fn c_path(path: &Path) -> CString {
    CString::new(path.as_os_str().as_bytes()).unwrap_or_default()
}

fn make_mask(at: &Path) -> nix::Result<()> {
    let context = sys::mount::fsopen(c"tmpfs")?;
    for (key, value) in [(c"source", c"hull"), (c"mode", c"755"), (c"size", c"64k")] {
        sys::mount::fsconfig(context.as_fd(), key, Some(value))?;
    }
    let mount = sys::mount::fsmount(context.as_fd(), sys::mount::ATTR_NOSUID | sys::mount::ATTR_NOEXEC)?;
    let root = sys::path::open_at(mount.as_fd(), c".", libc::O_PATH | libc::O_DIRECTORY)?;
    sys::path::make_node(root.as_fd(), c"null", libc::S_IFCHR | 0o666, libc::makedev(1, 3))?;
    let node = sys::path::open_at(root.as_fd(), c"null", libc::O_RDONLY)?;
    // The umask took bits away.
    sys::path::change_mode(node.as_fd(), 0o666)?;
    sys::path::make_dir(root.as_fd(), c"empty", 0o555)?;
    drop((node, root));
    let read_only = MountAttr { set: sys::mount::ATTR_RDONLY, ..MountAttr::default() };
    sys::mount::set_attributes(mount.as_fd(), sys::mount::Depth::One, &read_only)?;
    let target = sys::path::open(&c_path(at), libc::O_PATH | libc::O_DIRECTORY)?;
    sys::mount::attach(mount.as_fd(), target.as_fd())
}
