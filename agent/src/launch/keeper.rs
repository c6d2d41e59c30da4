//! The keeper: a process of the agent's own that holds the namespaces which a pod's containers share, and is process 1 of the
//! shared pid namespace, where it reaps.
//!
//! Containers see it and must gain nothing by it: signals from inside its namespace do not reach it, it cannot be traced, and it has no
//! capability, no open file, and an empty read-only root.

use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use nix::errno::Errno;
use tokio::sync::OnceCell;

use super::channel::{self, AgentEnd, Failure, Message, Step, at};
use super::{LaunchError, Subjects, UserNamespace, assert_single_threaded, child};
use crate::environment::Environment;
use crate::spec::IdMappings;
use crate::sys::mount::{self, Depth};
use crate::sys::path;
use crate::sys::process::{self, Cloned, Ended};

/// The pod's shared namespaces, made when they are first asked for.
#[derive(Debug, Default)]
pub struct Keeper {
    kept: OnceCell<Kept>,
}

/// The namespaces that are kept.
#[derive(Clone, Debug)]
pub struct Kept {
    /// A pidfd of the process that is in all of them.
    pub process: Arc<OwnedFd>,
    /// To which user namespace they belong, if it is not the guest's.
    pub user: Option<Arc<UserNamespace>>,
}

impl Keeper {
    /// The pod's namespaces. If they are not there yet they are made, in a user namespace of their own if `users` are given.
    pub async fn namespaces(
        &self,
        environment: &Environment,
        users: Option<&IdMappings>,
    ) -> Result<Kept, LaunchError> {
        self.kept.get_or_try_init(|| start(environment, users)).await.cloned()
    }
}

/// What the process is given.
struct Plan<'a> {
    root: &'a std::ffi::CStr,
    channel: BorrowedFd<'a>,
    last_capability: u32,
    ignored_signals: u64,
}

/// The process waits at its gate until the agent has it, and ends if the agent goes away before.
async fn start(environment: &Environment, users: Option<&IdMappings>) -> Result<Kept, LaunchError> {
    let (agent_end, child_end) = channel::pair().map_err(LaunchError::agent("make a channel"))?;
    let plan = Plan {
        root: &environment.mask_directory,
        channel: child_end.as_fd(),
        last_capability: environment.last_capability,
        ignored_signals: environment.ignored_signals,
    };
    let user_flag = if users.is_some() { libc::CLONE_NEWUSER } else { 0 };
    let namespaces =
        user_flag | libc::CLONE_NEWPID | libc::CLONE_NEWNS | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS;
    assert_single_threaded();
    // SAFETY: `keep` never returns, and the agent has one thread.
    let cloned = unsafe { process::clone(namespaces, None) };
    // Nobody waits for its end: should it ever end, it is reaped as an orphan is.
    let (pid, pidfd) = match cloned.map_err(LaunchError::agent("clone the keeper of the pod's namespaces"))? {
        Cloned::Child => keep(&plan),
        Cloned::Parent(pid, pidfd) => (pid, pidfd),
    };
    drop(child_end);
    let failed = |source| LaunchError::Agent { what: "hear from the keeper of the pod's namespaces", source };
    let channel = AgentEnd::new(agent_end).map_err(failed)?;
    match channel.receive().await.map_err(failed)? {
        Message::Ready => {}
        Message::Failed(failure) => return Err(Subjects::default().explain(failure)),
        Message::Closed | Message::Terminal(_) | Message::Cloned(..) => {
            return Err(LaunchError::Died(Ended::Exited(1)));
        }
    }
    // It waits, so its number is still its own.
    let user = users.map(|users| UserNamespace::of(environment, pid, users)).transpose()?.map(Arc::new);
    channel.release().map_err(LaunchError::agent("start the keeper of the pod's namespaces"))?;
    Ok(Kept { process: Arc::new(pidfd), user })
}

fn keep(plan: &Plan<'_>) -> ! {
    let Err(failure) = run(plan);
    // The agent that would want to know is gone if this fails.
    let _ = channel::child::failed(plan.channel, failure);
    process::exit(1)
}

fn run(plan: &Plan<'_>) -> Result<Infallible, Failure> {
    child::isolate(plan.ignored_signals).map_err(at(Step::Isolate, 0))?;
    enter_empty_root(plan).map_err(at(Step::Pivot, 0))?;
    for capability in 0..=plan.last_capability {
        process::control(libc::PR_CAPBSET_DROP, libc::c_ulong::from(capability), 0)
            .map_err(at(Step::Capabilities, 0))?;
    }
    process::set_capabilities(0, 0, 0).map_err(at(Step::Capabilities, 1))?;
    process::control(libc::PR_SET_NO_NEW_PRIVS, 1, 0).map_err(at(Step::NoNewPrivileges, 0))?;
    process::set_name(c"hull-pod").map_err(at(Step::Isolate, 1))?;
    process::block_child_signal().map_err(at(Step::Isolate, 2))?;
    channel::child::wait_for_start(plan.channel).map_err(at(Step::Gate, 0))?;
    process::close_all().map_err(at(Step::Stdio, 0))?;
    loop {
        // In this order: a child that ends in between leaves its signal pending.
        while matches!(process::wait(process::Children::TakeAny), Ok(Some(_))) {}
        match process::wait_for_child_signal() {
            Ok(()) | Err(Errno::EINTR | Errno::EAGAIN) => {}
            Err(errno) => return Err(at(Step::Gate, 1)(errno)),
        }
    }
}

fn enter_empty_root(plan: &Plan<'_>) -> nix::Result<()> {
    mount::mount(c"none", c"/", None, libc::MS_REC | libc::MS_PRIVATE)?;
    let directory = path::open(plan.root, libc::O_PATH | libc::O_DIRECTORY)?;
    let root = mount::clone_tree(directory.as_fd(), Depth::One)?;
    mount::attach(root.as_fd(), directory.as_fd())?;
    mount::pivot_into(root.as_fd())
}
