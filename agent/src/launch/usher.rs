//! The usher: a short-lived process that sees a container into its user namespace.
//!
//! In a user namespace of its own, a process can no longer do what only the guest's root may: take a piece of the pod's volumes,
//! make device nodes, mount the guest's sysfs. So the usher does this first, then enters the namespaces that are joined, and
//! there clones the container's init, a child of the agent's, which inherits all that was made as open descriptors. Allocates
//! nothing.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;

use super::channel::{self, Failure, Step, at};
use super::{InitPlan, PlannedNode, child, rootfs};
use crate::spec::{ContainerSpec, Origin, Source};
use crate::sys::mount::{self, Depth};
use crate::sys::path;
use crate::sys::process::{self, Cloned};

/// What is made for a process that could not make it itself. The lists are as long as those of the spec.
#[derive(Debug, Default)]
pub struct Provisions {
    /// A detached mount of the root file system.
    pub root: Option<OwnedFd>,
    /// For each mount that needs it, a detached mount.
    pub mounts: Vec<Option<OwnedFd>>,
    /// Detached mounts of device nodes: the default ones, then those of the spec.
    pub devices: Vec<Option<OwnedFd>>,
}

impl Provisions {
    /// Room for what `spec` needs.
    pub fn new(spec: &ContainerSpec) -> Self {
        let room = |count| std::iter::repeat_with(|| None).take(count).collect();
        Self {
            root: None,
            mounts: room(spec.mounts.len()),
            devices: room(rootfs::DEVICES.len() + spec.devices.len()),
        }
    }
}

/// Becomes the usher, and its child the container's init.
pub fn run(plan: &mut InitPlan<'_>) -> ! {
    match usher(plan) {
        Ok(Cloned::Child) => child::init(plan),
        Ok(Cloned::Parent(pid, pidfd)) => {
            // Without the message the agent takes the end of the channel for the end of the init, and that waits for
            // the agent's word: it ends too.
            let told = channel::child::cloned(plan.process.channel, pid, pidfd.as_fd());
            process::exit(i32::from(told.is_err()))
        }
        Err(failure) => child::end(&plan.process, failure),
    }
}

fn usher(plan: &mut InitPlan<'_>) -> Result<Cloned, Failure> {
    let Some(user) = plan.user else { return Err(at(Step::JoinNamespaces, 0)(Errno::EINVAL)) };
    process::control(libc::PR_SET_DUMPABLE, 0, 0).map_err(at(Step::Isolate, 0))?;
    process::set_umask(0);
    child::own_streams(&plan.process).map_err(at(Step::Stdio, 0))?;
    provide(plan)?;
    let join = |of, flags| process::join_namespaces(of, flags).map_err(at(Step::JoinNamespaces, 0));
    let joined = plan.joined;
    for (of, kind) in [
        (&joined.ipc, libc::CLONE_NEWIPC),
        (&joined.uts, libc::CLONE_NEWUTS),
        (&joined.pid, libc::CLONE_NEWPID),
    ] {
        if let Some(of) = of {
            join(of.as_fd(), kind)?;
        }
    }
    // Last: a process in there may not look at those that hold the others.
    join(user, libc::CLONE_NEWUSER)?;
    // SAFETY: the child ends in `child::init`; the usher has one thread.
    unsafe { process::clone(plan.namespaces | libc::CLONE_PARENT, Some(plan.cgroup)) }
        .map_err(at(Step::Clone, 0))
}

/// Takes and makes what the guest's root alone can, in a mount namespace where it does not show.
fn provide(plan: &mut InitPlan<'_>) -> Result<(), Failure> {
    let spec = plan.spec;
    process::unshare(libc::CLONE_NEWNS).map_err(at(Step::Root, 0))?;
    mount::mount(c"none", c"/", None, libc::MS_REC | libc::MS_PRIVATE).map_err(at(Step::Root, 0))?;
    let root = path::open(plan.root, libc::O_PATH | libc::O_DIRECTORY).map_err(at(Step::Root, 0))?;
    plan.provisions.root = Some(mount::clone_tree(root.as_fd(), Depth::One).map_err(at(Step::Root, 0))?);
    for (index, mount) in spec.mounts.iter().enumerate() {
        let made = match &mount.source {
            Source::New(filesystem) if is_the_guests(spec, filesystem.kind.to_bytes()) => {
                rootfs::new_filesystem(filesystem, mount, None)
            }
            Source::New(_) => continue,
            Source::Volume(_) | Source::Shared(_) | Source::File(_) => {
                rootfs::shared(plan, &mount.source).and_then(|source| rootfs::bound(plan, &source, index))
            }
        };
        let made = made.map_err(at(Step::Mount, index))?;
        plan.provisions.mounts[index] = Some(made);
    }
    devices(plan)
}

/// Whether such a file system shows a namespace of the guest's, so that the container may not mount it.
fn is_the_guests(spec: &ContainerSpec, kind: &[u8]) -> bool {
    let from = &spec.namespaces;
    match kind {
        b"sysfs" => from.network == Origin::Guest,
        b"mqueue" => from.ipc == Origin::Guest,
        _ => false,
    }
}

/// Device nodes on a file system that may have them: none that is mounted in a user namespace may.
fn devices(plan: &mut InitPlan<'_>) -> Result<(), Failure> {
    let spec = plan.spec;
    let nodes = rootfs::device_tree(plan.mask_directory).map_err(at(Step::DefaultDevices, 0))?;
    for (index, &(name, major, minor)) in rootfs::DEVICES.iter().enumerate() {
        let device = libc::makedev(major, minor);
        let made = rootfs::bound_node(&nodes, name, libc::S_IFCHR | 0o666, device, None)
            .map_err(at(Step::DefaultDevices, 0))?;
        plan.provisions.devices[index] = Some(made);
    }
    for (index, device) in spec.devices.iter().enumerate() {
        if device.mode & libc::S_IFMT == libc::S_IFIFO {
            continue;
        }
        let PlannedNode { name, owner } = &plan.nodes[index];
        let made = rootfs::bound_node(&nodes, name, device.mode, device.device, Some(*owner))
            .map_err(at(Step::Device, index))?;
        plan.provisions.devices[rootfs::DEVICES.len() + index] = Some(made);
    }
    // The container's mount namespace begins as a copy of this one, and needs what is below.
    mount::unmount(plan.mask_directory, libc::MNT_DETACH).map_err(at(Step::DefaultDevices, 1))
}
