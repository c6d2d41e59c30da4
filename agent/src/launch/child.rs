//! The new process between clone and exec. Nothing here allocates, locks or returns to the agent's code.

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use nix::errno::Errno;

use super::channel::{Failure, Step, at, child as channel};
use super::{ExecPlan, InitPlan, ProcessPlan, Stream, Users, credentials, rootfs};
use crate::spec::{Console, Origin};
use crate::sys::{path, process, socket, terminal};

/// The kernel's number of the ptmx device.
const PTMX: (u32, u32) = (5, 2);

/// Becomes the init process of a container, or says why not and ends.
pub fn init(plan: &mut InitPlan<'_>) -> ! {
    let Err(failure) = run_init(plan);
    end(&plan.process, failure)
}

/// Becomes a further process of a container, or says why not and ends.
pub fn exec(plan: &ExecPlan<'_>) -> ! {
    let Err(failure) = run_exec(plan);
    end(&plan.process, failure)
}

/// Tells the agent what failed, and ends.
pub fn end(plan: &ProcessPlan<'_>, failure: Failure) -> ! {
    // The agent that would want to know is gone if this fails.
    let _ = channel::failed(plan.channel, failure);
    process::exit(1)
}

fn run_init(plan: &mut InitPlan<'_>) -> Result<Infallible, Failure> {
    match plan.process.user {
        // The usher has given it its streams, and joined for it.
        Users::Mapped => channel::wait(plan.process.channel).map_err(at(Step::Gate, 1))?,
        Users::Guests => {
            own_streams(&plan.process).map_err(at(Step::Stdio, 0))?;
            join(plan).map_err(at(Step::JoinNamespaces, 0))?;
        }
    }
    isolate(plan.process.ignored_signals).map_err(at(Step::Isolate, 0))?;
    // Only now, in the container's cgroup, is that cgroup the root of a new namespace.
    process::unshare(libc::CLONE_NEWCGROUP).map_err(at(Step::CgroupNamespace, 0))?;
    let spec = plan.spec;
    if let Some(offsets) = &spec.time {
        enter_time_namespace(&plan.process, offsets).map_err(at(Step::TimeNamespace, 0))?;
    }
    let base = rootfs::open(plan)?;
    if plan.process.user == Users::Mapped {
        process::set_ids(0, 0, &[]).map_err(at(Step::Credentials, 1))?;
    }
    let slave = rootfs::build(plan, &base)?;
    if let Some(name) = &spec.hostname {
        process::set_hostname(name).map_err(at(Step::Hostname, 0))?;
    }
    if let Some(name) = &spec.domainname {
        process::set_domainname(name).map_err(at(Step::Hostname, 1))?;
    }
    if spec.namespaces.network == Origin::Own {
        socket::loopback_up().map_err(at(Step::Loopback, 0))?;
    }
    finish(&plan.process, slave, Gate::Closed(plan))
}

/// In namespaces of others, but for that of process ids, in which it is born.
fn join(plan: &InitPlan<'_>) -> nix::Result<()> {
    for (of, kind) in [(&plan.joined.ipc, libc::CLONE_NEWIPC), (&plan.joined.uts, libc::CLONE_NEWUTS)] {
        if let Some(of) = of {
            process::join_namespaces(of.as_fd(), kind)?;
        }
    }
    Ok(())
}

fn run_exec(plan: &ExecPlan<'_>) -> Result<Infallible, Failure> {
    isolate(plan.process.ignored_signals).map_err(at(Step::Isolate, 0))?;
    own_streams(&plan.process).map_err(at(Step::Stdio, 0))?;
    process::join_namespaces(plan.container, plan.namespaces).map_err(at(Step::JoinNamespaces, 0))?;
    if plan.process.user == Users::Mapped {
        process::set_ids(0, 0, &[]).map_err(at(Step::Credentials, 1))?;
    }
    let slave = match plan.process.spec.console {
        Console::Pipes => None,
        Console::Terminal(_) => {
            let root = path::open(c"/", libc::O_PATH | libc::O_DIRECTORY).map_err(at(Step::Terminal, 0))?;
            Some(open_terminal(&plan.process, &root).map_err(at(Step::Terminal, 0))?)
        }
    };
    let gate = match plan.process.user {
        Users::Guests => Gate::Open,
        // The agent opens it when it has granted what the process cannot give itself.
        Users::Mapped => Gate::Agents,
    };
    finish(&plan.process, slave, gate)
}

/// A new time namespace is for children first; its clocks can be set until somebody is in it.
fn enter_time_namespace(plan: &ProcessPlan<'_>, offsets: &[u8]) -> nix::Result<()> {
    process::unshare(libc::CLONE_NEWTIME)?;
    if !offsets.is_empty() {
        let file = path::open_at(plan.proc, c"self/timens_offsets", libc::O_WRONLY)?;
        path::write_control(file.as_fd(), offsets)?;
    }
    let namespace = path::open_at(plan.proc, c"self/ns/time_for_children", libc::O_RDONLY)?;
    process::join_namespaces(namespace.as_fd(), libc::CLONE_NEWTIME)
}

/// Out of reach of a container's processes while this one still is a copy of the agent, which ignores some signals, and out of the
/// agent's session.
pub fn isolate(ignored_signals: u64) -> nix::Result<()> {
    process::control(libc::PR_SET_DUMPABLE, 0, 0)?;
    process::reset_signals(ignored_signals)?;
    process::set_umask(0);
    process::new_session()?;
    process::new_session_keyring()
}

/// A new terminal of the container's own devpts: the master goes to the agent, the slave is returned.
pub fn open_terminal(plan: &ProcessPlan<'_>, root: &OwnedFd) -> nix::Result<OwnedFd> {
    let flags = libc::O_RDWR | libc::O_NOCTTY;
    let master = path::open_in(root.as_fd(), c"dev/pts/ptmx", flags, path::Resolve::InRoot)?;
    let is_devpts = path::filesystem_magic(master.as_fd())? == 0x1cd1;
    if !is_devpts || !path::is_char_device(&path::stat(master.as_fd())?, PTMX.0, PTMX.1) {
        return Err(Errno::ENOTTY);
    }
    let slave = terminal::open_slave(master.as_fd())?;
    if let Console::Terminal(Some(size)) = plan.spec.console {
        terminal::set_size(master.as_fd(), size)?;
    }
    channel::terminal(plan.channel, master.as_fd())?;
    Ok(slave)
}

/// Whether the program may run as soon as it can.
#[derive(Clone, Copy)]
enum Gate<'a> {
    Open,
    /// When the agent has done its part.
    Agents,
    /// When the container is started; then its hooks come first.
    Closed(&'a InitPlan<'a>),
}

fn finish(plan: &ProcessPlan<'_>, slave: Option<OwnedFd>, gate: Gate<'_>) -> Result<Infallible, Failure> {
    set_stdio(plan, slave).map_err(at(Step::Stdio, 0))?;
    credentials::apply(plan)?;
    let program = plan.program.find()?;
    process::close_on_exec_from_3().map_err(at(Step::Stdio, 1))?;
    if !matches!(gate, Gate::Open) {
        channel::wait_for_start(plan.channel).map_err(at(Step::Gate, 0))?;
    }
    if let Gate::Closed(init) = gate {
        init.hooks.before_program(plan.proc, init.null)?;
    }
    credentials::confine(plan)?;
    // SAFETY: the plan's lists end with null and point into the spec, which outlives it.
    let errno = unsafe { process::execute(program, &plan.argv, &plan.envp) };
    Err(at(Step::Exec, 0)(errno))
}

/// The user gets to own the streams, so that it can reopen them by name (/dev/stdout).
pub fn own_streams(plan: &ProcessPlan<'_>) -> nix::Result<()> {
    if plan.spec.console != Console::Pipes {
        return Ok(());
    }
    for stream in plan.stdio {
        if let Stream::Own(stream) = stream {
            give(stream, plan.owner)?;
        }
    }
    Ok(())
}

/// What is passed on from outside can be on a file system that says no; runc takes no notice either.
fn give(stream: BorrowedFd<'_>, uid: libc::uid_t) -> nix::Result<()> {
    match path::change_owner(stream, c"", uid, None) {
        Err(Errno::EPERM | Errno::EINVAL | Errno::EROFS) => Ok(()),
        result => result,
    }
}

fn set_stdio(plan: &ProcessPlan<'_>, slave: Option<OwnedFd>) -> nix::Result<()> {
    if let Some(slave) = slave {
        give(slave.as_fd(), plan.spec.credentials.uid)?;
        for number in 0..3 {
            path::duplicate_to(slave.as_fd(), number)?;
        }
        return terminal::make_controlling(slave.as_fd());
    }
    let has_null = plan.stdio.iter().any(|stream| matches!(stream, Stream::Null(_)));
    let null = if has_null { own_null() } else { None };
    for (stream, number) in plan.stdio.iter().zip(0..) {
        let stream = match stream {
            // The agent's is as good, but its name means nothing in the container.
            Stream::Null(agents) => null.as_ref().map_or(*agents, AsFd::as_fd),
            Stream::Own(stream) => *stream,
        };
        path::duplicate_to(stream, number)?;
    }
    Ok(())
}

/// The container's /dev/null, if that is what it claims to be.
fn own_null() -> Option<OwnedFd> {
    let flags = libc::O_PATH | libc::O_NOFOLLOW;
    let found = path::open(c"/dev/null", flags).ok()?;
    // Opened only after this check: other devices act on being opened.
    if !path::is_char_device(&path::stat(found.as_fd()).ok()?, 1, 3) {
        return None;
    }
    let null = path::open(c"/dev/null", libc::O_RDWR | libc::O_NOFOLLOW).ok()?;
    path::is_char_device(&path::stat(null.as_fd()).ok()?, 1, 3).then_some(null)
}
