//! What the agent mounts and sets before it serves.
//!
//! The initramfs is the kernel's own root mount, which pivot_root(2) cannot leave: containers could not change their root.
//! So the agent first moves itself onto a tmpfs (as switch_root(8) does), read-only except for /run.

use std::ffi::CStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::errno::Errno;

use crate::cgroup::{CgroupError, CgroupParent};
use crate::debug::Console;
use crate::environment::{Environment, EnvironmentError};
use crate::logger::{self, Destination};
use crate::memory::Share;
use crate::rootfs::Disks;
use crate::sys::{self, mount};

const NOSUID: u64 = libc::MS_NOSUID;
const NOEXEC: u64 = libc::MS_NOEXEC;
const NODEV: u64 = libc::MS_NODEV;
/// Open files of the agent; containers' own limits come from their specs.
const FILES: u64 = 1 << 20;
/// The agent's cgroup, and that of containers.
const AGENT_CGROUP: &str = "hull";
const CONTAINERS_CGROUP: &str = "containers";
/// Memory that the kernel leaves to the agent under pressure, in bytes.
const AGENT_MEMORY: &str = "16777216";

/// Why the guest cannot start.
#[derive(Debug, thiserror::Error)]
pub enum BootError {
    /// A mount or a setting failed.
    #[error("boot: cannot {what}: {}", source.desc())]
    Step {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: Errno,
    },
    /// The cgroup hierarchy is not usable.
    #[error("boot: {0}")]
    Cgroup(#[from] CgroupError),
    /// The agent's own directories could not be made.
    #[error("boot: {0}")]
    Environment(#[from] EnvironmentError),
}

fn step<E: Into<std::io::Error>>(what: &'static str) -> impl FnOnce(E) -> BootError {
    move |error| {
        let error: std::io::Error = error.into();
        BootError::Step { what, source: Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)) }
    }
}

/// From the kernel's hands to an agent that can serve.
pub fn prepare() -> Result<Environment, BootError> {
    leave_initramfs()?;
    let filesystems: [(&CStr, &CStr, u64, Option<&CStr>); 4] = [
        (c"proc", c"/proc", NOSUID | NOEXEC | NODEV, None),
        (c"sysfs", c"/sys", NOSUID | NOEXEC | NODEV, None),
        (c"tmpfs", c"/run", NOSUID, None),
        // A container that may write to its cgroup, a privileged one, does not change the limits of that cgroup itself.
        (c"cgroup2", c"/sys/fs/cgroup", NOSUID | NOEXEC | NODEV, Some(c"nsdelegate")),
    ];
    for (kind, target, flags, options) in filesystems {
        mount::mount_with(kind, target, Some(kind), flags, options)
            .map_err(step("mount the guest's file systems"))?;
    }
    mount::mount(c"none", c"/", None, libc::MS_REMOUNT | libc::MS_BIND | libc::MS_RDONLY)
        .map_err(step("make the root read-only"))?;
    open_standard_streams()?;
    logger::start(Destination::Kernel);
    fs::write("/proc/self/oom_score_adj", "-1000").map_err(step("protect the agent from the OOM killer"))?;
    sys::process::set_limit(libc::RLIMIT_NOFILE, FILES, FILES)
        .map_err(step("raise the limit of open files"))?;
    if let Err(error) = sys::socket::loopback_up() {
        // A kernel without a network is a pod without one.
        log::warn!("cannot bring the loopback interface up: {error}");
    }
    rest();
    let cgroups = prepare_cgroups()?;
    let memory = Share::begin(&cgroups)?;
    let environment = Environment::prepare(Path::new("/run/hull"), cgroups, Disks::Virtio)?;
    Ok(Environment { memory, console: Console::of_kernel(), ..environment })
}

/// Ends what an idle kernel wakes up for: twice a second it looks whether its memory lies in pieces too small for large pages. Who
/// asks for a large page still has one made.
fn rest() {
    if let Err(error) = fs::write("/proc/sys/vm/compaction_proactiveness", "0") {
        log::warn!("an idle guest goes on to wake up: vm.compaction_proactiveness: {error}");
    }
}

/// Moves the agent onto a tmpfs that becomes the root mount.
fn leave_initramfs() -> Result<(), BootError> {
    const WHAT: &str = "move to the root file system";
    fs::create_dir_all("/newroot").map_err(step(WHAT))?;
    mount::mount(c"root", c"/newroot", Some(c"tmpfs"), NOSUID).map_err(step(WHAT))?;
    for directory in ["proc", "sys", "dev", "run"] {
        fs::create_dir(format!("/newroot/{directory}")).map_err(step(WHAT))?;
    }
    fs::set_permissions("/newroot", fs::Permissions::from_mode(0o755)).map_err(step(WHAT))?;
    mount::mount(c"devtmpfs", c"/newroot/dev", Some(c"devtmpfs"), NOSUID | NOEXEC)
        .map_err(step("mount /dev"))?;
    sys::process::change_directory(c"/newroot").map_err(step(WHAT))?;
    mount::mount(c".", c"/", None, libc::MS_MOVE).map_err(step(WHAT))?;
    nix::unistd::chroot(".").map_err(step(WHAT))?;
    sys::process::change_directory(c"/").map_err(step(WHAT))
}

/// The kernel opens /dev/console for PID 1 only where the initramfs has that node. Later descriptors must not become 0, 1 or 2:
/// the child of a clone puts a container's streams there.
fn open_standard_streams() -> Result<(), BootError> {
    use std::os::fd::{AsFd, AsRawFd};
    const WHAT: &str = "open the console";
    let console = match sys::path::open(c"/dev/console", libc::O_RDWR | libc::O_NOCTTY) {
        // A guest without a serial port has no console.
        Err(_) => sys::path::open(c"/dev/null", libc::O_RDWR).map_err(step(WHAT))?,
        Ok(console) => console,
    };
    for number in 0..3 {
        if console.as_raw_fd() != number {
            sys::path::duplicate_to(console.as_fd(), number).map_err(step(WHAT))?;
        }
    }
    if console.as_raw_fd() < 3 {
        // It is one of the three now and stays open for ever.
        std::mem::forget(console);
    }
    Ok(())
}

fn prepare_cgroups() -> Result<CgroupParent, BootError> {
    let root = Path::new("/sys/fs/cgroup");
    let own = root.join(AGENT_CGROUP);
    fs::create_dir(&own).map_err(step("make the agent's cgroup"))?;
    fs::write(own.join("cgroup.procs"), "1").map_err(step("enter the agent's cgroup"))?;
    let containers = CgroupParent::prepare(root, &root.join(CONTAINERS_CGROUP))?;
    if let Err(error) = fs::write(own.join("memory.min"), AGENT_MEMORY) {
        log::warn!("cannot reserve memory for the agent: {error}");
    }
    Ok(containers)
}
