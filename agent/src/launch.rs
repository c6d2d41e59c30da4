//! From a parsed spec to a running process: clone, set-up in the child, start gate, exec.
//!
//! Everything that needs memory is prepared in the agent before the clone. The child makes system calls only, tells the agent
//! through a [`channel`] what it reached or which step failed, and ends in exec or `_exit`.

mod channel;
mod child;
mod copy_up;
mod credentials;
mod hooks;
mod keeper;
mod launched;
mod look_up;
mod rootfs;
mod users;
mod usher;

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;

use crate::cgroup::Cgroup;
use crate::environment::Environment;
use crate::rootfs::Rootfs;
use crate::spec::{
    CapabilitySets, ContainerSpec, IdMap, MountPoint, Origin, ProcessSpec, Rlimit, SeccompFilter,
};
use crate::sys::path;
use crate::sys::process::{self, Cloned, Ended};

use hooks::PlannedHooks;
pub use keeper::{Keeper, Kept};
pub use launched::Launched;
use launched::Subjects;
pub use rootfs::DEVICES;
pub use users::UserNamespace;
use usher::Provisions;

/// Why a process does not run.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The program cannot be run; the text is the one that clients of container runtimes know.
    #[error("{0}")]
    Program(String),
    /// A hook failed.
    #[error("{0}")]
    Hook(String),
    /// A step of the set-up failed in the new process.
    #[error("{what}: {}", source.desc().to_lowercase())]
    SetUp {
        /// What was tried.
        what: String,
        /// Why it failed.
        source: Errno,
    },
    /// It ended before it could run the program.
    #[error("the process ended during its set-up ({0:?})")]
    Died(Ended),
    /// It was to join a container that has ended.
    #[error("the container's init process has ended")]
    ContainerEnded,
    /// It has given its controllers to cgroups below, or is threaded: no process can be in it.
    #[error("the cgroup is divided: no process can be in it, only in those below")]
    Divided,
    /// An id that the container's user namespace does not have.
    #[error("{what} {id} is not mapped in the container's user namespace")]
    Unmapped {
        /// Whose id.
        what: &'static str,
        /// Its number.
        id: u32,
    },
    /// The agent itself could not do its part.
    #[error("cannot {what}: {source}")]
    Agent {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        source: std::io::Error,
    },
}

impl LaunchError {
    fn agent(what: &'static str) -> impl Fn(Errno) -> Self {
        move |source| Self::Agent { what, source: source.into() }
    }

    fn clone(what: &'static str) -> impl Fn(Errno) -> Self {
        move |source| match source {
            // Of a clone into a cgroup (clone3(2)).
            Errno::EBUSY | Errno::EOPNOTSUPP => Self::Divided,
            source => Self::Agent { what, source: source.into() },
        }
    }
}

/// The three standard streams that a process without a terminal is given.
pub type ChildStdio = [Arc<OwnedFd>; 3];

/// What both an init and an exec are given.
struct ProcessPlan<'a> {
    spec: &'a ProcessSpec,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
    program: look_up::Program,
    capabilities: CapabilitySets,
    last_capability: u32,
    rlimits: &'a [Rlimit],
    no_new_privileges: bool,
    /// Who shall own the standard streams, as the guest numbers users.
    owner: u32,
    /// Whose user namespace the process is in.
    user: Users,
    seccomp: Option<&'a SeccompFilter>,
    personality: Option<u64>,
    oom_score_adj: String,
    stdio: [Stream<'a>; 3],
    /// What the agent ignores, and the process is not to: a bit for each signal.
    ignored_signals: u64,
    proc: BorrowedFd<'a>,
    channel: BorrowedFd<'a>,
}

/// A standard stream.
#[derive(Clone, Copy, Debug)]
enum Stream<'a> {
    /// The null device: the container's own is as good.
    Null(BorrowedFd<'a>),
    /// Anything else.
    Own(BorrowedFd<'a>),
}

impl<'a> Stream<'a> {
    fn new(fd: BorrowedFd<'a>) -> nix::Result<Self> {
        let is_null = path::is_char_device(&path::stat(fd)?, 1, 3);
        Ok(if is_null { Self::Null(fd) } else { Self::Own(fd) })
    }

    /// Looks once at those that are the same.
    fn all(stdio: &'a ChildStdio) -> nix::Result<[Self; 3]> {
        let [input, output, errors] = stdio;
        let first = Self::new(input.as_fd())?;
        let second = if Arc::ptr_eq(input, output) { first } else { Self::new(output.as_fd())? };
        let third = if Arc::ptr_eq(output, errors) { second } else { Self::new(errors.as_fd())? };
        Ok([first, second, third])
    }
}

/// Whose users a process has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Users {
    /// Those of the guest.
    Guests,
    /// Those of a user namespace. What only the guest's root may grant, the agent grants when the process is ready.
    Mapped,
}

/// A device node that is made for a container with users of its own.
struct PlannedNode {
    /// Unique among them.
    name: CString,
    /// User and group as the guest numbers them.
    owner: (u32, u32),
}

struct InitPlan<'a> {
    process: ProcessPlan<'a>,
    spec: &'a ContainerSpec,
    joined: &'a Joined,
    /// `CLONE_NEW*` of those that are new.
    namespaces: libc::c_int,
    cgroup: BorrowedFd<'a>,
    user: Option<BorrowedFd<'a>>,
    nodes: Vec<PlannedNode>,
    provisions: Provisions,
    hooks: PlannedHooks<'a>,
    null: BorrowedFd<'a>,
    root: &'a CStr,
    volumes: &'a CStr,
    files: &'a CStr,
    shared: &'a CStr,
    cwd: Option<MountPoint>,
    mask_file: &'a CStr,
    mask_directory: &'a CStr,
}

struct ExecPlan<'a> {
    process: ProcessPlan<'a>,
    container: BorrowedFd<'a>,
    /// `CLONE_NEW*` of those that the process joins by itself.
    namespaces: libc::c_int,
}

impl<'a> ProcessPlan<'a> {
    fn new(
        environment: &'a Environment,
        spec: &'a ProcessSpec,
        container: &'a ContainerSpec,
        user: Option<&UserNamespace>,
        stdio: &'a ChildStdio,
        channel: BorrowedFd<'a>,
    ) -> Result<Self, LaunchError> {
        let defaults = &container.process;
        let uid = spec.credentials.uid;
        let unmapped = LaunchError::Unmapped { what: "user", id: uid };
        let owner = user.map_or(Some(uid), |user| user.mappings.users.outside(uid)).ok_or(unmapped)?;
        Ok(Self {
            owner,
            user: if user.is_some() { Users::Mapped } else { Users::Guests },
            spec,
            argv: process::pointers(&spec.args),
            envp: process::pointers(&spec.env),
            program: look_up::Program::new(spec),
            capabilities: spec.capabilities.or(defaults.capabilities).unwrap_or_default(),
            last_capability: environment.last_capability,
            rlimits: spec.rlimits.as_ref().or(defaults.rlimits.as_ref()).map_or(&[], Vec::as_slice),
            no_new_privileges: spec.no_new_privileges.or(defaults.no_new_privileges).unwrap_or(false),
            seccomp: container.seccomp.as_ref(),
            personality: container.personality,
            oom_score_adj: spec.oom_score_adj.or(defaults.oom_score_adj).unwrap_or(0).to_string(),
            stdio: Stream::all(stdio).map_err(LaunchError::agent("look at a standard stream"))?,
            ignored_signals: environment.ignored_signals,
            proc: environment.proc.as_fd(),
            channel,
        })
    }
}

/// For each kind of namespace that a container takes over from somebody: a pidfd of a process that is in it.
#[derive(Clone, Debug, Default)]
pub struct Joined {
    pub ipc: Option<Arc<OwnedFd>>,
    pub uts: Option<Arc<OwnedFd>>,
    pub pid: Option<Arc<OwnedFd>>,
    /// The user namespace, if it is not the guest's.
    pub user: Option<Arc<UserNamespace>>,
    /// For each mount whose ids are mapped: a user namespace that has them.
    pub mounts: Vec<Option<Arc<UserNamespace>>>,
}

/// Clones the init process of a container into its cgroup and new namespaces.
///
/// `rootfs` is its root file system in the agent's mount namespace.
pub fn init(
    environment: &Environment,
    id: &str,
    spec: &ContainerSpec,
    joined: &Joined,
    rootfs: &Rootfs,
    cgroup: &Cgroup,
    stdio: &ChildStdio,
) -> Result<Launched, LaunchError> {
    let (agent_end, child_end) = channel::pair().map_err(LaunchError::agent("make a channel"))?;
    let user = joined.user.as_deref();
    let process = ProcessPlan::new(environment, &spec.process, spec, user, stdio, child_end.as_fd())?;
    let grants = process.grants();
    let from = &spec.namespaces;
    let mut plan = InitPlan {
        process,
        spec,
        joined,
        namespaces: libc::CLONE_NEWNS
            | from.pid.clone_flag(libc::CLONE_NEWPID)
            | from.uts.clone_flag(libc::CLONE_NEWUTS)
            | from.ipc.clone_flag(libc::CLONE_NEWIPC)
            | from.network.clone_flag(libc::CLONE_NEWNET),
        cgroup: cgroup.directory(),
        user: user.map(UserNamespace::fd),
        nodes: user.map(|user| planned_nodes(spec, user)).transpose()?.unwrap_or_default(),
        provisions: user.map(|_| Provisions::new(spec)).unwrap_or_default(),
        hooks: PlannedHooks::new(spec, id, &environment.run.join(id)),
        null: environment.null.as_fd(),
        root: rootfs.root(),
        volumes: environment.volumes.directory(),
        files: rootfs.files(),
        shared: environment.shared.directory(),
        cwd: MountPoint::of_directory(&spec.process.cwd),
        mask_file: &environment.mask_file,
        mask_directory: &environment.mask_directory,
    };
    let subjects = Subjects::new(&spec.process, Some(spec.clone()));
    if user.is_some() {
        assert_single_threaded();
        // SAFETY: `usher::run` never returns, and the agent has one thread.
        let cloned = unsafe { process::clone(0, None) };
        return match cloned.map_err(LaunchError::agent("clone the init process"))? {
            Cloned::Child => usher::run(&mut plan),
            // The usher itself is waited for by nobody; the init, once the usher has told of it.
            Cloned::Parent(pid, pidfd) => Launched::new(pid, pidfd, agent_end, subjects, grants),
        };
    }
    let pid_namespace = joined.pid.as_ref().map(|pidfd| pidfd.as_fd());
    // SAFETY: `child::init` never returns.
    let cloned = unsafe { clone_into(environment, pid_namespace, plan.namespaces, cgroup) };
    match cloned? {
        Cloned::Child => child::init(&mut plan),
        Cloned::Parent(pid, pidfd) => {
            environment.children.add(pid);
            Launched::new(pid, pidfd, agent_end, subjects, grants)
        }
    }
}

fn planned_nodes(spec: &ContainerSpec, user: &UserNamespace) -> Result<Vec<PlannedNode>, LaunchError> {
    let mapped = |what, map: &IdMap, id| map.outside(id).ok_or(LaunchError::Unmapped { what, id });
    spec.devices
        .iter()
        .enumerate()
        .map(|(index, device)| {
            let owner = (
                mapped("the owner of a device, user", &user.mappings.users, device.uid)?,
                mapped("the owner of a device, group", &user.mappings.groups, device.gid)?,
            );
            Ok(PlannedNode { name: CString::new(format!("device{index}")).unwrap_or_default(), owner })
        })
        .collect()
}

/// The cgroup in which a further process begins.
#[derive(Debug)]
pub enum ExecCgroup<'a> {
    /// The container's, or where that is divided, the one that its init is in.
    Own(&'a Cgroup),
    /// Another.
    Other(Cgroup),
}

/// A container's init: its number here, and what names it for ever.
#[derive(Clone, Copy, Debug)]
pub struct Init<'a> {
    pub pid: libc::pid_t,
    pub pidfd: BorrowedFd<'a>,
}

/// Clones a further process into a cgroup and the namespaces of the container of `init`.
pub fn exec(
    environment: &Environment,
    spec: &ProcessSpec,
    container_spec: &ContainerSpec,
    init: Init<'_>,
    user: Option<&UserNamespace>,
    cgroup: &ExecCgroup<'_>,
    stdio: &ChildStdio,
) -> Result<Launched, LaunchError> {
    let container = init.pidfd;
    let (agent_end, child_end) = channel::pair().map_err(LaunchError::agent("make a channel"))?;
    let process = ProcessPlan::new(environment, spec, container_spec, user, stdio, child_end.as_fd())?;
    let grants = process.grants();
    let from = &container_spec.namespaces;
    // The agent is in the guest's own; and to join them again would take rights over them.
    let join = |origin: &Origin, flag| if *origin == Origin::Guest { 0 } else { flag };
    let namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWCGROUP
        | join(&from.uts, libc::CLONE_NEWUTS)
        | join(&from.ipc, libc::CLONE_NEWIPC)
        | join(&from.network, libc::CLONE_NEWNET)
        | join(&from.time, libc::CLONE_NEWTIME)
        | join(&from.user, libc::CLONE_NEWUSER);
    let plan = ExecPlan { process, container, namespaces };
    let place = match cgroup {
        ExecCgroup::Own(own) => own,
        ExecCgroup::Other(other) => other,
    };
    // SAFETY: `child::exec` never returns.
    let mut cloned = unsafe { clone_into(environment, Some(container), 0, place) };
    if let (Err(LaunchError::Divided), ExecCgroup::Own(own)) = (&cloned, cgroup)
        && let Some(inits) = own.of_process(environment.proc.as_fd(), init.pid)
    {
        // SAFETY: as above.
        cloned = unsafe { clone_into(environment, Some(container), 0, &inits) };
    }
    match cloned? {
        Cloned::Child => child::exec(&plan),
        Cloned::Parent(pid, pidfd) => {
            environment.children.add(pid);
            Launched::new(pid, pidfd, agent_end, Subjects::new(spec, None), grants)
        }
    }
}

/// Clones a process into a cgroup, new namespaces, and the pid namespace of the process behind `pid_namespace`, if there is one.
///
/// # Safety
/// As of [`process::clone`]: the child must not return from the function that called this.
unsafe fn clone_into(
    environment: &Environment,
    pid_namespace: Option<BorrowedFd<'_>>,
    flags: libc::c_int,
    cgroup: &Cgroup,
) -> Result<Cloned, LaunchError> {
    assert_single_threaded();
    let Some(other) = pid_namespace else {
        // SAFETY: the caller's promise, and the agent has one thread.
        return unsafe { process::clone(flags, Some(cgroup.directory())) }
            .map_err(LaunchError::clone("clone the init process"));
    };
    let own = path::open_at(environment.proc.as_fd(), c"self/ns/pid", libc::O_RDONLY)
        .map_err(LaunchError::agent("open the agent's pid namespace"))?;
    // Changes where children are born, not where the agent is. Nothing else can run before it is changed back below.
    process::join_namespaces(other, libc::CLONE_NEWPID).map_err(|_| LaunchError::ContainerEnded)?;
    // SAFETY: the caller's promise, and the agent has one thread. The child leaves this function with a copy of `own` to close.
    let cloned = unsafe { process::clone(flags, Some(cgroup.directory())) };
    if let Ok(Cloned::Child) = cloned {
        return Ok(Cloned::Child);
    }
    if let Err(error) = process::join_namespaces(own.as_fd(), libc::CLONE_NEWPID) {
        // Every later child would be born in the wrong container.
        log::error!("cannot return to the agent's pid namespace: {error}");
        std::process::abort();
    }
    match cloned {
        // What the kernel says when the namespace's init is gone.
        Err(Errno::ENOMEM) => Err(LaunchError::ContainerEnded),
        cloned => cloned.map_err(LaunchError::clone("clone a process into a pid namespace")),
    }
}

/// A clone of a process with threads would copy locks that nobody in the child can release.
fn assert_single_threaded() {
    debug_assert!(
        std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1),
        "the agent must have one thread"
    );
}
