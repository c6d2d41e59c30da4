//! A container's file system tree, built in its own mount namespace before its root is entered.
//!
//! Every path of the image is resolved below a descriptor of the container's root (openat2 `RESOLVE_IN_ROOT`) and every
//! mount is attached to a descriptor: a symbolic link in an image cannot lead a mount elsewhere. Allocates nothing.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use super::channel::{Failure, Step, at};
use super::usher::Provisions;
use super::{InitPlan, child, copy_up};
use crate::spec::{Console, Content, DeviceNode, Filesystem, MountSpec, Source};
use crate::sys::mount::{self, Depth, MountAttr};
use crate::sys::path::{self, Resolve};

/// Default devices (OCI runtime-spec, config-linux.md "Default Devices"): name, major, minor.
pub const DEVICES: [(&CStr, u32, u32); 6] = [
    (c"null", 1, 3),
    (c"zero", 1, 5),
    (c"full", 1, 7),
    (c"random", 1, 8),
    (c"urandom", 1, 9),
    (c"tty", 5, 0),
];

/// Default symbolic links: name, target.
const LINKS: [(&CStr, &CStr); 5] = [
    (c"fd", c"/proc/self/fd"),
    (c"stdin", c"/proc/self/fd/0"),
    (c"stdout", c"/proc/self/fd/1"),
    (c"stderr", c"/proc/self/fd/2"),
    (c"ptmx", c"pts/ptmx"),
];

/// What a tree is built from: opened while the process is still the guest's root, which alone may reach all of it.
pub struct Base {
    root: OwnedFd,
    /// The null device.
    mask_file: OwnedFd,
    /// Empty.
    mask_directory: OwnedFd,
}

/// In a mount namespace that is new.
pub fn open(plan: &mut InitPlan<'_>) -> Result<Base, Failure> {
    // Nothing done here may reach the agent's mounts.
    mount::mount(c"none", c"/", None, libc::MS_REC | libc::MS_PRIVATE).map_err(at(Step::Root, 0))?;
    let mut root = path::open(plan.root, libc::O_PATH | libc::O_DIRECTORY).map_err(at(Step::Root, 0))?;
    if let Some(provided) = plan.provisions.root.take() {
        // The mount that is there came along from a user namespace with more rights, and cannot become a root directory.
        mount::attach(provided.as_fd(), root.as_fd()).map_err(at(Step::Root, 1))?;
        root = provided;
    }
    let cover = |path| path::open(path, libc::O_PATH).map_err(at(Step::Root, 2));
    let (mask_file, mask_directory) = (cover(plan.mask_file)?, cover(plan.mask_directory)?);
    let stat = |fd: &OwnedFd| path::stat(fd.as_fd()).map_err(at(Step::Root, 3));
    let is_null = path::is_char_device(&stat(&mask_file)?, 1, 3);
    if !is_null || path::kind(&stat(&mask_directory)?) != libc::S_IFDIR {
        return Err(at(Step::Root, 3)(Errno::EINVAL));
    }
    Ok(Base { root, mask_file, mask_directory })
}

/// Builds the tree and enters it. Returns the terminal, if the process is to have one.
pub fn build(plan: &mut InitPlan<'_>, base: &Base) -> Result<Option<OwnedFd>, Failure> {
    let spec = plan.spec;
    let root = &base.root;
    for (index, mount) in spec.mounts.iter().enumerate() {
        mount_one(plan, root, mount, index)?;
    }
    default_devices(root, &mut plan.provisions).map_err(at(Step::DefaultDevices, 0))?;
    for (index, device) in spec.devices.iter().enumerate() {
        let provided = plan.provisions.devices.get_mut(DEVICES.len() + index).and_then(Option::take);
        make_device(root, device, provided.as_ref()).map_err(at(Step::Device, index))?;
    }
    if let Some(cwd) = &plan.cwd {
        directory(root, &cwd.steps, Resolve::InRoot).map_err(at(Step::Cwd, 0))?;
    }
    let slave = match spec.process.console {
        Console::Pipes => None,
        Console::Terminal(_) => {
            let slave = child::open_terminal(&plan.process, root).map_err(at(Step::Terminal, 0))?;
            mount_console(root, &slave).map_err(at(Step::Console, 0))?;
            Some(slave)
        }
    };
    for (index, sysctl) in spec.sysctls.iter().enumerate() {
        // Through the agent's procfs: which namespace a parameter belongs to is decided by who opens it.
        path::open_at(plan.process.proc, &sysctl.path, libc::O_WRONLY)
            .and_then(|file| path::write_control(file.as_fd(), &sysctl.value))
            .map_err(at(Step::Sysctl, index))?;
    }
    for (index, path) in spec.readonly_paths.iter().enumerate() {
        make_readonly(root, path).map_err(at(Step::ReadOnly, index))?;
    }
    for (index, path) in spec.masked_paths.iter().enumerate() {
        mask(base, path).map_err(at(Step::Mask, index))?;
    }
    if spec.root_readonly {
        let attr = MountAttr { set: mount::ATTR_RDONLY, ..MountAttr::default() };
        mount::set_attributes(root.as_fd(), Depth::One, &attr).map_err(at(Step::Root, 0))?;
    }
    plan.hooks.before_pivot(plan.process.proc, plan.null)?;
    mount::pivot_into(root.as_fd()).map_err(at(Step::Pivot, 0))?;
    if spec.propagation != 0 {
        mount::mount(c"none", c"/", None, spec.propagation).map_err(at(Step::Pivot, 0))?;
    }
    Ok(slave)
}

fn mount_one(plan: &mut InitPlan<'_>, root: &OwnedFd, spec: &MountSpec, index: usize) -> Result<(), Failure> {
    let provided = plan.provisions.mounts.get_mut(index).and_then(Option::take);
    let (target, mounted) = match &spec.source {
        Source::New(filesystem) => {
            let resolve =
                if filesystem.needs_real_target() { Resolve::InRootNoSymlinks } else { Resolve::InRoot };
            let found = directory(root, &spec.target.steps, resolve).map_err(at(Step::MountPoint, index))?;
            let new = || new_filesystem(filesystem, spec, found.covered());
            let mounted = provided.map_or_else(new, Ok).map_err(at(Step::Mount, index))?;
            if let (Content::Copied, Some(covered)) = (filesystem.content, found.covered()) {
                fill(&mounted, covered, spec).map_err(at(Step::Mount, index))?;
            }
            (found.open(), mounted)
        }
        Source::Volume(_) | Source::Shared(_) | Source::File(_) => {
            let bind = || bound(plan, &shared(plan, &spec.source)?, index);
            let mounted = provided.map_or_else(bind, Ok).map_err(at(Step::Mount, index))?;
            let stat = path::stat(mounted.as_fd()).map_err(at(Step::Mount, index))?;
            let target = mount_point(root, &spec.target.steps, path::kind(&stat))
                .map_err(at(Step::MountPoint, index))?;
            (target, mounted)
        }
    };
    mount::attach(mounted.as_fd(), target.as_fd()).map_err(at(Step::Mount, index))?;
    if spec.propagation != 0 {
        let attr = MountAttr { propagation: spec.propagation & !libc::MS_REC, ..MountAttr::default() };
        let depth = if spec.propagation & libc::MS_REC == 0 { Depth::One } else { Depth::Recursive };
        mount::set_attributes(mounted.as_fd(), depth, &attr).map_err(at(Step::Mount, index))?;
    }
    Ok(())
}

/// A detached mount of a new file system. A tmpfs has the permissions of the directory that it covers, unless the spec gives others
/// or there was none, as runc has it.
pub fn new_filesystem(
    filesystem: &Filesystem,
    spec: &MountSpec,
    covered: Option<&OwnedFd>,
) -> nix::Result<OwnedFd> {
    let context = mount::fsopen(&filesystem.kind)?;
    let has_mode = filesystem.options.iter().any(|(key, _)| key.as_c_str() == c"mode");
    let takes_mode = filesystem.kind.as_c_str() == c"tmpfs" && !has_mode;
    if let Some(covered) = covered.filter(|_| takes_mode) {
        let mode = octal(path::stat(covered.as_fd())?.st_mode & 0o7777);
        let mode = CStr::from_bytes_until_nul(&mode).map_err(|_| Errno::EINVAL)?;
        mount::fsconfig(context.as_fd(), c"mode", Some(mode))?;
    }
    mount::fsconfig(context.as_fd(), c"source", Some(&filesystem.source))?;
    for (key, value) in &filesystem.options {
        mount::fsconfig(context.as_fd(), key, value.as_deref())?;
    }
    // It can be filled first, if it is to be.
    let later = if filesystem.content == Content::Copied { mount::ATTR_RDONLY } else { 0 };
    mount::fsmount(context.as_fd(), attributes_of_new(spec) & !later)
}

/// Nothing is mounted below a new file system.
fn attributes_of_new(spec: &MountSpec) -> u64 {
    spec.attributes.set | spec.deep_attributes.set
}

/// Copies what a new file system covers into it, and then makes it read-only, if it is to be.
fn fill(mounted: &OwnedFd, covered: &OwnedFd, spec: &MountSpec) -> nix::Result<()> {
    copy_up::copy(covered.as_fd(), mounted.as_fd())?;
    let set = attributes_of_new(spec) & mount::ATTR_RDONLY;
    if set == 0 {
        return Ok(());
    }
    mount::set_attributes(mounted.as_fd(), Depth::One, &MountAttr { set, ..MountAttr::default() })
}

/// Permissions as text.
fn octal(mode: libc::mode_t) -> [u8; 5] {
    [9, 6, 3, 0, 32].map(|shift| {
        let digit = mode.checked_shr(shift).map(|mode| (mode & 7) as u8);
        digit.map_or(0, |digit| b'0' + digit)
    })
}

/// The root of what the pod shares, a directory or a file, or a file that came with the request; never a link.
pub fn shared(plan: &InitPlan<'_>, source: &Source) -> nix::Result<OwnedFd> {
    let (parent, name) = match source {
        Source::Volume(name) => (plan.volumes, name),
        Source::Shared(tmpfs) => (plan.shared, &tmpfs.name),
        Source::File(name) => (plan.files, name),
        Source::New(_) => return Err(Errno::EINVAL),
    };
    let parent = path::open(parent, libc::O_PATH | libc::O_DIRECTORY)?;
    path::open_in(parent.as_fd(), name, libc::O_PATH | libc::O_NOFOLLOW, Resolve::InRootNoSymlinks)
}

/// A detached mount of what `source` is, for the mount of this index.
pub fn bound(plan: &InitPlan<'_>, source: &OwnedFd, index: usize) -> nix::Result<OwnedFd> {
    let spec = &plan.spec.mounts[index];
    let copy = mount::clone_tree(source.as_fd(), spec.depth)?;
    let private = MountAttr { propagation: libc::MS_PRIVATE, ..MountAttr::default() };
    mount::set_attributes(copy.as_fd(), Depth::Recursive, &private)?;
    for (depth, change) in [(Depth::One, spec.attributes), (Depth::Recursive, spec.deep_attributes)] {
        if !change.is_empty() {
            let attr = MountAttr { set: change.set, clear: change.clear, ..MountAttr::default() };
            mount::set_attributes(copy.as_fd(), depth, &attr)?;
        }
    }
    if let (Some(ids), Some(user)) = (&spec.ids, plan.joined.mounts.get(index).and_then(Option::as_ref)) {
        mount::map_ids(copy.as_fd(), ids.depth, user.fd())?;
    }
    Ok(copy)
}

/// A new file system for device nodes, mounted where its maker alone sees it.
pub fn device_tree(at: &CStr) -> nix::Result<OwnedFd> {
    let context = mount::fsopen(c"tmpfs")?;
    mount::fsconfig(context.as_fd(), c"mode", Some(c"755"))?;
    let tree = mount::fsmount(context.as_fd(), mount::ATTR_NOSUID | mount::ATTR_NOEXEC)?;
    let target = path::open(at, libc::O_PATH | libc::O_DIRECTORY)?;
    mount::attach(tree.as_fd(), target.as_fd())?;
    Ok(tree)
}

/// A detached mount of a new node below `tree`.
pub fn bound_node(
    tree: &OwnedFd,
    name: &CStr,
    mode: libc::mode_t,
    device: libc::dev_t,
    owner: Option<(u32, u32)>,
) -> nix::Result<OwnedFd> {
    path::make_node(tree.as_fd(), name, mode, device)?;
    if let Some((uid, gid)) = owner {
        path::change_owner(tree.as_fd(), name, uid, Some(gid))?;
    }
    let node = path::open_at(tree.as_fd(), name, libc::O_PATH | libc::O_NOFOLLOW)?;
    mount::clone_tree(node.as_fd(), Depth::One)
}

/// Where something of this kind can be mounted: a directory on a directory, a file on a file, made if it is missing.
fn mount_point(root: &OwnedFd, steps: &[CString], kind: libc::mode_t) -> nix::Result<OwnedFd> {
    if kind == libc::S_IFDIR {
        return directory(root, steps, Resolve::InRoot).map(Found::open);
    }
    let Some((step, parents)) = steps.split_last() else { return Err(Errno::EINVAL) };
    let open = || path::open_in(root.as_fd(), step, libc::O_PATH, Resolve::InRoot);
    match open() {
        Err(Errno::ENOENT) => {
            in_parent(root, parents, Resolve::InRoot, |parent| {
                let make = || path::make_node(parent, base_name(step), libc::S_IFREG | 0o644, 0);
                match make() {
                    // A link to nowhere, as images have it for /etc/resolv.conf: the mount takes its place.
                    Err(Errno::EEXIST) => {
                        nix::unistd::unlinkat(
                            parent,
                            base_name(step),
                            nix::unistd::UnlinkatFlags::NoRemoveDir,
                        )?;
                        make()
                    }
                    made => made,
                }
            })?;
            open()
        }
        opened => opened,
    }
}

/// A directory of the container's tree.
enum Found {
    /// It was there.
    There(OwnedFd),
    /// It was missing.
    Made(OwnedFd),
}

impl Found {
    /// What a mount covers there, if there was something.
    fn covered(&self) -> Option<&OwnedFd> {
        match self {
            Self::There(directory) => Some(directory),
            Self::Made(_) => None,
        }
    }

    fn open(self) -> OwnedFd {
        match self {
            Self::There(directory) | Self::Made(directory) => directory,
        }
    }
}

/// The last of `steps`, made if it is missing, as is every directory on the way.
fn directory(root: &OwnedFd, steps: &[CString], resolve: Resolve) -> nix::Result<Found> {
    let (step, parents) = match steps.split_last() {
        Some((step, parents)) => (step.as_c_str(), parents),
        None => (c".", steps),
    };
    let open = || path::open_in(root.as_fd(), step, libc::O_PATH | libc::O_DIRECTORY, resolve);
    match open() {
        Err(Errno::ENOENT) => {
            in_parent(root, parents, resolve, |parent| path::make_dir(parent, base_name(step), 0o755))?;
            open().map(Found::Made)
        }
        opened => opened.map(Found::There),
    }
}

/// Makes something in the last of `steps`, which is the root if there are none.
fn in_parent(
    root: &OwnedFd,
    steps: &[CString],
    resolve: Resolve,
    make: impl FnOnce(BorrowedFd<'_>) -> nix::Result<()>,
) -> nix::Result<()> {
    if steps.is_empty() {
        return make(root.as_fd());
    }
    make(directory(root, steps, resolve)?.open().as_fd())
}

/// What follows the last slash.
fn base_name(path: &CStr) -> &CStr {
    let bytes = path.to_bytes_with_nul();
    let start = bytes.iter().rposition(|byte| *byte == b'/').map_or(0, |slash| slash + 1);
    CStr::from_bytes_with_nul(&bytes[start..]).unwrap_or(path)
}

fn default_devices(root: &OwnedFd, provisions: &mut Provisions) -> nix::Result<()> {
    let dev = directory_of(root, c"dev")?;
    for (index, (name, major, minor)) in DEVICES.into_iter().enumerate() {
        match provisions.devices.get_mut(index).and_then(Option::take) {
            Some(provided) => attach_node(dev.as_fd(), name, &provided)?,
            None => node(dev.as_fd(), name, libc::S_IFCHR | 0o666, libc::makedev(major, minor))?,
        }
    }
    for (name, target) in LINKS {
        match path::make_symlink(target, dev.as_fd(), name) {
            Err(Errno::EEXIST) => {}
            result => result?,
        }
    }
    Ok(())
}

fn directory_of(root: &OwnedFd, name: &CStr) -> nix::Result<OwnedFd> {
    let open = || path::open_in(root.as_fd(), name, libc::O_PATH | libc::O_DIRECTORY, Resolve::InRoot);
    match open() {
        Err(Errno::ENOENT) => {
            path::make_dir(root.as_fd(), name, 0o755)?;
            open()
        }
        opened => opened,
    }
}

/// A device node; one that is there already must be the same device.
fn node(parent: BorrowedFd<'_>, name: &CStr, mode: libc::mode_t, device: libc::dev_t) -> nix::Result<()> {
    match path::make_node(parent, name, mode, device) {
        Err(Errno::EEXIST) => {
            let found = path::open_at(parent, name, libc::O_PATH | libc::O_NOFOLLOW)?;
            let stat = path::stat(found.as_fd())?;
            if path::kind(&stat) == mode & libc::S_IFMT && stat.st_rdev == device {
                Ok(())
            } else {
                Err(Errno::EEXIST)
            }
        }
        result => result,
    }
}

/// Covers a file, made if it is missing, with a device node.
fn attach_node(parent: BorrowedFd<'_>, name: &CStr, provided: &OwnedFd) -> nix::Result<()> {
    match path::make_node(parent, name, libc::S_IFREG, 0) {
        Err(Errno::EEXIST) => {}
        result => result?,
    }
    let target = path::open_at(parent, name, libc::O_PATH | libc::O_NOFOLLOW)?;
    mount::attach(provided.as_fd(), target.as_fd())
}

fn make_device(root: &OwnedFd, device: &DeviceNode, provided: Option<&OwnedFd>) -> nix::Result<()> {
    let steps = &device.path.steps;
    let parents = &steps[..steps.len().saturating_sub(1)];
    let name = base_name(device.path.path());
    in_parent(root, parents, Resolve::InRoot, |parent| {
        if let Some(provided) = provided {
            return attach_node(parent, name, provided);
        }
        node(parent, name, device.mode, device.device)?;
        path::change_owner(parent, name, device.uid, Some(device.gid))
    })
}

fn mount_console(root: &OwnedFd, slave: &OwnedFd) -> nix::Result<()> {
    let dev = directory_of(root, c"dev")?;
    match path::make_node(dev.as_fd(), c"console", libc::S_IFREG | 0o600, 0) {
        Err(Errno::EEXIST) => {}
        result => result?,
    }
    let target = path::open_at(dev.as_fd(), c"console", libc::O_PATH | libc::O_NOFOLLOW)?;
    let copy = mount::clone_tree(slave.as_fd(), Depth::One)?;
    mount::attach(copy.as_fd(), target.as_fd())
}

/// `None` where the container has no such path: then there is nothing to protect.
fn existing(root: &OwnedFd, name: &CStr) -> nix::Result<Option<OwnedFd>> {
    match path::open_in(root.as_fd(), name, libc::O_PATH, Resolve::InRoot) {
        Err(Errno::ENOENT | Errno::ENOTDIR) => Ok(None),
        opened => opened.map(Some),
    }
}

fn make_readonly(root: &OwnedFd, name: &CStr) -> nix::Result<()> {
    let Some(target) = existing(root, name)? else { return Ok(()) };
    let copy = mount::clone_tree(target.as_fd(), Depth::Recursive)?;
    let attr = MountAttr { set: mount::ATTR_RDONLY, ..MountAttr::default() };
    mount::set_attributes(copy.as_fd(), Depth::Recursive, &attr)?;
    mount::attach(copy.as_fd(), target.as_fd())
}

/// Hides a file behind the agent's null device, a directory behind its empty directory.
fn mask(base: &Base, name: &CStr) -> nix::Result<()> {
    let Some(target) = existing(&base.root, name)? else { return Ok(()) };
    let is_directory = path::kind(&path::stat(target.as_fd())?) == libc::S_IFDIR;
    let cover = if is_directory { &base.mask_directory } else { &base.mask_file };
    let copy = mount::clone_tree(cover.as_fd(), Depth::One)?;
    mount::attach(copy.as_fd(), target.as_fd())
}
