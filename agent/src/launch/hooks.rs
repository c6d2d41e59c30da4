//! Hooks: programs that a new process runs and waits for. Nothing here allocates after the clone.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

use nix::errno::Errno;

use super::channel::{Failure, Step, at};
use crate::spec::{ContainerSpec, Hook};
use crate::sys::path;
use crate::sys::process::{self, Cloned, Ended};

/// A hook, ready for execve(2).
pub struct PlannedHook<'a> {
    hook: &'a Hook,
    argv: Vec<*const libc::c_char>,
    envp: Vec<*const libc::c_char>,
}

/// The hooks of a container and what they are told.
pub struct PlannedHooks<'a> {
    create_container: Vec<PlannedHook<'a>>,
    start_container: Vec<PlannedHook<'a>>,
    /// The state that hooks read (OCI runtime-spec, runtime.md "State"), around the process's number.
    creating: State,
    created: State,
}

/// A state in JSON; between the two halves belongs the pid.
struct State(String, String);

impl State {
    fn new(spec: &ContainerSpec, id: &str, bundle: &Path, status: &str) -> Self {
        let head = serde_json::json!({"ociVersion": "1.2.0", "id": id, "status": status}).to_string();
        let rest = serde_json::json!({"bundle": bundle, "annotations": spec.annotations}).to_string();
        Self(format!("{},\"pid\":", head.trim_end_matches('}')), format!(",{}", rest.trim_start_matches('{')))
    }
}

impl<'a> PlannedHooks<'a> {
    /// Of container `id`, whose directory is `bundle`.
    pub fn new(spec: &'a ContainerSpec, id: &str, bundle: &Path) -> Self {
        let planned = |hook: &'a Hook| PlannedHook {
            hook,
            argv: process::pointers(&hook.args),
            envp: process::pointers(&hook.env),
        };
        let hooks = &spec.hooks;
        Self {
            create_container: hooks.create_container.iter().map(planned).collect(),
            start_container: hooks.start_container.iter().map(planned).collect(),
            creating: State::new(spec, id, bundle, "creating"),
            created: State::new(spec, id, bundle, "created"),
        }
    }

    /// Runs those that belong between the building of the tree and its entering.
    pub fn before_pivot(&self, proc: BorrowedFd<'_>, null: BorrowedFd<'_>) -> Result<(), Failure> {
        run_all(&self.create_container, Step::CreateHook, &self.creating, proc, null)
    }

    /// Runs those that belong between the start and the program.
    pub fn before_program(&self, proc: BorrowedFd<'_>, null: BorrowedFd<'_>) -> Result<(), Failure> {
        run_all(&self.start_container, Step::StartHook, &self.created, proc, null)
    }
}

fn run_all(
    hooks: &[PlannedHook<'_>],
    step: Step,
    state: &State,
    proc: BorrowedFd<'_>,
    null: BorrowedFd<'_>,
) -> Result<(), Failure> {
    for (index, hook) in hooks.iter().enumerate() {
        let failed = at(step, index);
        let input = input(state, proc).map_err(&failed)?;
        let ended = run(hook, &input, null).map_err(&failed)?;
        if ended != Ended::Exited(0) {
            // Its exit code takes the upper half of the index.
            let code = usize::try_from(ended.code()).unwrap_or(usize::from(u8::MAX));
            return Err(at(step, index | code << 8)(Errno::ECANCELED));
        }
    }
    Ok(())
}

/// A file with the state of the container.
fn input(state: &State, proc: BorrowedFd<'_>) -> nix::Result<OwnedFd> {
    let file = path::memory_file(c"state")?;
    let mut number = [0; 16];
    // The number by which the agent knows this process, whatever its own namespace calls it.
    let length = path::read_link(proc, c"self", &mut number)?;
    for part in [state.0.as_bytes(), &number[..length], state.1.as_bytes()] {
        path::write_control(file.as_fd(), part)?;
    }
    path::rewind(file.as_fd())?;
    Ok(file)
}

fn run(planned: &PlannedHook<'_>, input: &OwnedFd, null: BorrowedFd<'_>) -> nix::Result<Ended> {
    // SAFETY: the child's branch ends in exec or exit; a new process has one thread.
    match unsafe { process::clone(0, None) }? {
        Cloned::Child => {
            let streams = [input.as_fd(), null, null];
            let ready =
                streams.into_iter().zip(0..).try_for_each(|(fd, number)| path::duplicate_to(fd, number));
            if ready.and_then(|()| process::close_on_exec_from_3()).is_ok() {
                // SAFETY: the lists end with null and point into the spec.
                unsafe { process::execute(&planned.hook.path, &planned.argv, &planned.envp) };
            }
            process::exit(127)
        }
        Cloned::Parent(_, pidfd) => {
            let in_time = process::wait_until_ended(pidfd.as_fd(), planned.hook.timeout)?;
            if !in_time {
                process::send_signal(pidfd.as_fd(), libc::SIGKILL)?;
                process::wait_for(pidfd.as_fd())?;
                return Err(Errno::ETIMEDOUT);
            }
            process::wait_for(pidfd.as_fd())
        }
    }
}
