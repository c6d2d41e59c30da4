//! From a parsed spec to a running process: clone, set-up in the child, start gate, exec.
//!
//! Everything that needs memory is prepared in the agent before the clone. The child makes system calls only, tells the agent
//! through a [`channel`] what it reached or which step failed, and ends in exec or `_exit`.

mod channel;
mod child;
mod credentials;
mod keeper;
mod look_up;
mod rootfs;

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;

use crate::cgroup::Cgroup;
use crate::environment::Environment;
use crate::reap::Children;
use crate::spec::{CapabilitySets, ContainerSpec, MountPoint, ProcessSpec, Rlimit, SeccompFilter, Source};
use crate::sys::process::{self, Cloned, Ended};

use channel::{AgentEnd, Failure, Message, Step};

pub use keeper::Keeper;

/// Why a process does not run.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// The program cannot be run; the text is the one that clients of container runtimes know.
    #[error("{0}")]
    Program(String),
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
    seccomp: Option<&'a SeccompFilter>,
    personality: Option<u64>,
    oom_score_adj: String,
    stdio: [BorrowedFd<'a>; 3],
    proc: BorrowedFd<'a>,
    channel: BorrowedFd<'a>,
}

struct InitPlan<'a> {
    process: ProcessPlan<'a>,
    spec: &'a ContainerSpec,
    joined: &'a Joined,
    root: &'a CStr,
    volumes: &'a CStr,
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

/// A list of pointers as execve(2) takes it.
fn pointers(strings: &[CString]) -> Vec<*const libc::c_char> {
    strings.iter().map(|string| string.as_ptr()).chain(std::iter::once(std::ptr::null())).collect()
}

impl<'a> ProcessPlan<'a> {
    fn new(
        environment: &'a Environment,
        spec: &'a ProcessSpec,
        container: &'a ContainerSpec,
        stdio: &'a ChildStdio,
        channel: BorrowedFd<'a>,
    ) -> Self {
        let defaults = &container.process;
        Self {
            spec,
            argv: pointers(&spec.args),
            envp: pointers(&spec.env),
            program: look_up::Program::new(spec),
            capabilities: spec.capabilities.or(defaults.capabilities).unwrap_or_default(),
            last_capability: environment.last_capability,
            rlimits: spec.rlimits.as_ref().or(defaults.rlimits.as_ref()).map_or(&[], Vec::as_slice),
            no_new_privileges: spec.no_new_privileges.or(defaults.no_new_privileges).unwrap_or(false),
            seccomp: container.seccomp.as_ref(),
            personality: container.personality,
            oom_score_adj: spec.oom_score_adj.or(defaults.oom_score_adj).unwrap_or(0).to_string(),
            stdio: [stdio[0].as_fd(), stdio[1].as_fd(), stdio[2].as_fd()],
            proc: environment.proc.as_fd(),
            channel,
        }
    }
}

/// A process that was cloned and has not run its program yet.
#[derive(Debug)]
pub struct Launched {
    /// As the agent's pid namespace numbers it.
    pub pid: libc::pid_t,
    /// Names the process for ever, unlike its pid.
    pub pidfd: Arc<OwnedFd>,
    channel: AgentEnd,
    subjects: Subjects,
}

/// For each kind of namespace that a container takes over from somebody: a pidfd of a process that is in it.
#[derive(Clone, Debug, Default)]
pub struct Joined {
    pub ipc: Option<Arc<OwnedFd>>,
    pub uts: Option<Arc<OwnedFd>>,
    pub pid: Option<Arc<OwnedFd>>,
}

/// What the numbers in a [`Failure`] refer to, for its message.
#[derive(Debug, Default)]
struct Subjects {
    program: String,
    cwd: String,
    container: Option<ContainerSpec>,
}

/// Clones the init process of a container into its cgroup and new namespaces.
///
/// `root` is the mount point of its root file system in the agent's mount namespace.
pub fn init(
    environment: &Environment,
    spec: &ContainerSpec,
    joined: &Joined,
    root: &CStr,
    cgroup: &Cgroup,
    stdio: &ChildStdio,
) -> Result<Launched, LaunchError> {
    let (agent_end, child_end) = channel::pair().map_err(LaunchError::agent("make a channel"))?;
    let plan = InitPlan {
        process: ProcessPlan::new(environment, &spec.process, spec, stdio, child_end.as_fd()),
        spec,
        joined,
        root,
        volumes: environment.volumes.directory(),
        shared: environment.shared.directory(),
        cwd: MountPoint::of_directory(&spec.process.cwd),
        mask_file: &environment.mask_file,
        mask_directory: &environment.mask_directory,
    };
    let from = &spec.namespaces;
    let namespaces = libc::CLONE_NEWNS
        | from.pid.clone_flag(libc::CLONE_NEWPID)
        | from.uts.clone_flag(libc::CLONE_NEWUTS)
        | from.ipc.clone_flag(libc::CLONE_NEWIPC)
        | from.network.clone_flag(libc::CLONE_NEWNET);
    let pid_namespace = joined.pid.as_ref().map(|pidfd| pidfd.as_fd());
    // SAFETY: `child::init` never returns.
    let cloned = unsafe { clone_into(environment, pid_namespace, namespaces, cgroup) };
    let subjects = Subjects::new(&spec.process, Some(spec.clone()));
    match cloned? {
        Cloned::Child => child::init(&plan),
        Cloned::Parent(pid, pidfd) => Launched::new(&environment.children, pid, pidfd, agent_end, subjects),
    }
}

/// Clones a further process into the cgroup and the namespaces of the container whose init is `container`.
pub fn exec(
    environment: &Environment,
    spec: &ProcessSpec,
    container_spec: &ContainerSpec,
    container: BorrowedFd<'_>,
    cgroup: &Cgroup,
    stdio: &ChildStdio,
) -> Result<Launched, LaunchError> {
    let (agent_end, child_end) = channel::pair().map_err(LaunchError::agent("make a channel"))?;
    let process = ProcessPlan::new(environment, spec, container_spec, stdio, child_end.as_fd());
    let time = if container_spec.time.is_some() { libc::CLONE_NEWTIME } else { 0 };
    let namespaces = libc::CLONE_NEWNS
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWCGROUP
        | time;
    let plan = ExecPlan { process, container, namespaces };
    // SAFETY: `child::exec` never returns.
    match unsafe { clone_into(environment, Some(container), 0, cgroup) }? {
        Cloned::Child => child::exec(&plan),
        Cloned::Parent(pid, pidfd) => {
            Launched::new(&environment.children, pid, pidfd, agent_end, Subjects::new(spec, None))
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
            .map_err(LaunchError::agent("clone the init process"));
    };
    let own = crate::sys::path::open_at(environment.proc.as_fd(), c"self/ns/pid", libc::O_RDONLY)
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
        cloned => cloned.map_err(LaunchError::agent("clone a process into a pid namespace")),
    }
}

/// A clone of a process with threads would copy locks that nobody in the child can release.
fn assert_single_threaded() {
    debug_assert!(
        std::fs::read_dir("/proc/self/task").is_ok_and(|tasks| tasks.count() == 1),
        "the agent must have one thread"
    );
}

impl Launched {
    fn new(
        children: &Children,
        pid: libc::pid_t,
        pidfd: OwnedFd,
        channel: OwnedFd,
        subjects: Subjects,
    ) -> Result<Self, LaunchError> {
        children.add(pid);
        let channel = AgentEnd::new(channel)
            .map_err(|source| LaunchError::Agent { what: "watch a channel", source })?;
        Ok(Self { pid, pidfd: Arc::new(pidfd), channel, subjects })
    }

    /// Waits until an init stands before its start gate. Returns its terminal's master, if it has a terminal.
    pub async fn ready(&mut self, children: &Children) -> Result<Option<OwnedFd>, LaunchError> {
        let mut master = None;
        loop {
            match self.next().await? {
                Message::Terminal(fd) => master = Some(fd),
                Message::Ready => return Ok(master),
                Message::Failed(failure) => return Err(self.subjects.explain(failure)),
                Message::Closed => return Err(LaunchError::Died(self.reap(children).await?)),
            }
        }
    }

    /// Opens the start gate of an init that is ready.
    pub fn release(&self) -> Result<(), LaunchError> {
        self.channel.release().map_err(LaunchError::agent("start the process"))
    }

    /// Waits until the program runs. Returns the terminal's master, if the process made one just now.
    ///
    /// A process that was killed before its exec looks like one that ran: its exit status tells.
    pub async fn running(&mut self) -> Result<Option<OwnedFd>, LaunchError> {
        let mut master = None;
        loop {
            match self.next().await? {
                Message::Terminal(fd) => master = Some(fd),
                Message::Ready => {}
                Message::Failed(failure) => return Err(self.subjects.explain(failure)),
                Message::Closed => return Ok(master),
            }
        }
    }

    /// Kills and reaps a process that will not be used.
    pub async fn abort(&self, children: &Children) {
        match process::send_signal(self.pidfd.as_fd(), libc::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => log::error!("cannot kill process {}: {error}", self.pid),
        }
        if let Err(error) = self.reap(children).await {
            log::error!("cannot reap process {}: {error}", self.pid);
        }
    }

    async fn reap(&self, children: &Children) -> Result<Ended, LaunchError> {
        let ended = children.wait(self.pid, &self.pidfd).await;
        match ended {
            // Reaped before.
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => Ok(Ended::Exited(0)),
            ended => ended.map_err(|source| LaunchError::Agent { what: "reap a process", source }),
        }
    }

    async fn next(&self) -> Result<Message, LaunchError> {
        self.channel
            .receive()
            .await
            .map_err(|source| LaunchError::Agent { what: "hear from the process", source })
    }
}

impl Subjects {
    fn new(process: &ProcessSpec, container: Option<ContainerSpec>) -> Self {
        let text = |string: &CString| string.to_string_lossy().into_owned();
        Self {
            program: process.args.first().map(text).unwrap_or_default(),
            cwd: text(&process.cwd),
            container,
        }
    }

    fn explain(&self, failure: Failure) -> LaunchError {
        let Failure { step, index, errno } = failure;
        let program = &self.program;
        let reason = errno.desc().to_lowercase();
        match step {
            Step::Search => {
                return LaunchError::Program(format!(
                    "exec: {program:?}: executable file not found in $PATH"
                ));
            }
            Step::Stat => {
                return LaunchError::Program(format!("exec: {program:?}: stat {program}: {reason}"));
            }
            Step::Access => return LaunchError::Program(format!("exec: {program:?}: {reason}")),
            Step::Exec => return LaunchError::Program(format!("exec {program}: {reason}")),
            Step::JoinNamespaces if errno == Errno::ESRCH => return LaunchError::ContainerEnded,
            _ => {}
        }
        let subject = self.subject(step, usize::from(index)).unwrap_or_default();
        let what = match step {
            Step::Cwd => format!("chdir to cwd ({:?}) failed", self.cwd),
            step => format!("{}{subject}", step.describe()),
        };
        LaunchError::SetUp { what, source: errno }
    }

    fn subject(&self, step: Step, index: usize) -> Option<String> {
        let spec = self.container.as_ref()?;
        let path = |path: &CStr| format!(" /{}", path.to_string_lossy());
        Some(match step {
            Step::MountPoint | Step::Mount => {
                let mount = spec.mounts.get(index)?;
                let what = match &mount.source {
                    Source::New(filesystem) => filesystem.kind.to_string_lossy(),
                    Source::Volume(name) => name.to_string_lossy(),
                    Source::Shared(shared) => shared.name.to_string_lossy(),
                };
                format!("{} ({what})", path(mount.target.path()))
            }
            Step::Device => path(spec.devices.get(index)?.path.path()),
            Step::Mask => path(spec.masked_paths.get(index)?),
            Step::ReadOnly => path(spec.readonly_paths.get(index)?),
            Step::Sysctl => path(&spec.sysctls.get(index)?.path),
            _ => return None,
        })
    }
}
