//! A process between its clone and its program, as the agent sees it: what it reports, what it is granted, what its failures
//! mean in words.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd, RawFd};
use std::sync::Arc;

use nix::errno::Errno;

use super::channel::{self, AgentEnd, Failure, Message, Step};
use super::{LaunchError, ProcessPlan, Users, credentials};
use crate::environment::Environment;
use crate::reap::Children;
use crate::spec::{ContainerSpec, ProcessSpec, Rlimit, Scheduling, Source};
use crate::sys::path;
use crate::sys::process::{self, Ended};

/// A process that was cloned and has not run its program yet.
#[derive(Debug)]
pub struct Launched {
    /// As the agent's pid namespace numbers it.
    pub pid: libc::pid_t,
    /// Names the process for ever, unlike its pid.
    pub pidfd: Arc<OwnedFd>,
    channel: AgentEnd,
    subjects: Subjects,
    grants: Option<Grants>,
}

/// What the agent does for a process that could not do it itself: the guest's root alone may.
#[derive(Debug)]
pub struct Grants {
    rlimits: Vec<Rlimit>,
    oom_score_adj: String,
    scheduling: Scheduling,
}

/// What the numbers in a [`Failure`] refer to, for its message.
#[derive(Debug, Default)]
pub struct Subjects {
    program: String,
    cwd: String,
    container: Option<ContainerSpec>,
}

impl ProcessPlan<'_> {
    /// What the process leaves to the agent.
    pub fn grants(&self) -> Option<Grants> {
        (self.user == Users::Mapped).then(|| Grants {
            rlimits: self.rlimits.to_vec(),
            oom_score_adj: self.oom_score_adj.clone(),
            scheduling: self.spec.scheduling.clone(),
        })
    }
}

impl Launched {
    pub fn new(
        pid: libc::pid_t,
        pidfd: OwnedFd,
        channel: OwnedFd,
        subjects: Subjects,
        grants: Option<Grants>,
    ) -> Result<Self, LaunchError> {
        let channel = AgentEnd::new(channel)
            .map_err(|source| LaunchError::Agent { what: "watch a channel", source })?;
        Ok(Self { pid, pidfd: Arc::new(pidfd), channel, subjects, grants })
    }

    /// An init that another process cloned, which stands before its start gate; `channel` is a copy of the end that it
    /// inherited.
    pub fn adopt(
        pid: libc::pid_t,
        pidfd: OwnedFd,
        channel: OwnedFd,
        spec: &ContainerSpec,
    ) -> Result<Self, LaunchError> {
        Self::new(pid, pidfd, channel, Subjects::new(&spec.process, Some(spec.clone())), None)
    }

    /// The number of the channel's end here, which is its number in the new process too until that runs its program.
    pub fn gate(&self) -> RawFd {
        self.channel.number()
    }

    /// Waits until an init stands before its start gate. Returns its terminal's master, if it has a terminal.
    pub async fn ready(&mut self, environment: &Environment) -> Result<Option<OwnedFd>, LaunchError> {
        let mut master = None;
        loop {
            match self.next().await? {
                Message::Cloned(pid, pidfd) => {
                    environment.children.add(pid);
                    (self.pid, self.pidfd) = (pid, Arc::new(pidfd));
                    self.release()?;
                }
                Message::Terminal(fd) => master = Some(fd),
                Message::Ready => {
                    self.grant(environment)?;
                    return Ok(master);
                }
                Message::Failed(failure) => return Err(self.subjects.explain(failure)),
                Message::Closed => return Err(LaunchError::Died(self.reap(&environment.children).await?)),
            }
        }
    }

    /// Gives the process, which waits, what only the guest's root can give it.
    fn grant(&self, environment: &Environment) -> Result<(), LaunchError> {
        let Some(grants) = &self.grants else { return Ok(()) };
        let failed = |step| move |errno| self.subjects.explain(channel::at(step, 0)(errno));
        let name = CString::new(format!("{}/oom_score_adj", self.pid)).unwrap_or_default();
        path::open_at(environment.proc.as_fd(), &name, libc::O_WRONLY)
            .and_then(|file| path::write_control(file.as_fd(), grants.oom_score_adj.as_bytes()))
            .map_err(failed(Step::OomScore))?;
        for limit in &grants.rlimits {
            process::set_limit_of(self.pid, limit.resource, limit.soft, limit.hard)
                .map_err(failed(Step::Rlimit))?;
        }
        credentials::set_scheduling(&grants.scheduling, self.pid)
            .map_err(|failure| self.subjects.explain(failure))
    }

    /// Opens the start gate of an init that is ready.
    pub fn release(&self) -> Result<(), LaunchError> {
        self.channel.release().map_err(LaunchError::agent("start the process"))
    }

    /// Waits until the program runs. Returns the terminal's master, if the process made one just now.
    ///
    /// A process that was killed before its exec looks like one that ran: its exit status tells.
    pub async fn running(&mut self, environment: &Environment) -> Result<Option<OwnedFd>, LaunchError> {
        let mut master = None;
        loop {
            match self.next().await? {
                Message::Terminal(fd) => master = Some(fd),
                Message::Ready => {
                    self.grant(environment)?;
                    self.release()?;
                }
                Message::Cloned(..) => {}
                Message::Failed(failure) => return Err(self.subjects.explain(failure)),
                Message::Closed => return Ok(master),
            }
        }
    }

    /// Kills it; who waits for it reaps it.
    pub fn kill(&self) {
        match process::send_signal(self.pidfd.as_fd(), libc::SIGKILL) {
            Ok(()) | Err(Errno::ESRCH) => {}
            Err(error) => log::error!("cannot kill process {}: {error}", self.pid),
        }
    }

    /// Kills and reaps a process that will not be used.
    pub async fn abort(&self, children: &Children) {
        self.kill();
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
    pub fn new(process: &ProcessSpec, container: Option<ContainerSpec>) -> Self {
        let text = |string: &CString| string.to_string_lossy().into_owned();
        Self {
            program: process.args.first().map(text).unwrap_or_default(),
            cwd: text(&process.cwd),
            container,
        }
    }

    pub fn explain(&self, failure: Failure) -> LaunchError {
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
            Step::CreateHook | Step::StartHook => return self.explain_hook(failure),
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

    /// A hook's index comes with its exit code.
    fn explain_hook(&self, failure: Failure) -> LaunchError {
        let [index, code] = failure.index.to_le_bytes();
        let hooks = self.container.as_ref().map(|container| &container.hooks);
        let list = hooks.map(|hooks| match failure.step {
            Step::CreateHook => &hooks.create_container,
            _ => &hooks.start_container,
        });
        let hook = list.and_then(|list| list.get(usize::from(index)));
        let path = hook.map(|hook| hook.path.to_string_lossy().into_owned()).unwrap_or_default();
        let what = failure.step.describe();
        LaunchError::Hook(match (failure.errno, code) {
            (Errno::ETIMEDOUT, _) => {
                let seconds = hook.map(|hook| hook.timeout.as_secs()).unwrap_or_default();
                format!("{what} {path} did not end within {seconds} s")
            }
            (Errno::ECANCELED, 127) => {
                format!("{what} {path} is not in the guest, cannot be run, or exited with 127")
            }
            (Errno::ECANCELED, code) => format!("{what} {path} failed: exit code {code}"),
            (errno, _) => format!("{what} {path} cannot be run: {}", errno.desc().to_lowercase()),
        })
    }

    fn subject(&self, step: Step, index: usize) -> Option<String> {
        let spec = self.container.as_ref()?;
        let path = |path: &CStr| format!(" /{}", path.to_string_lossy());
        Some(match step {
            Step::MountPoint | Step::Mount => {
                let mount = spec.mounts.get(index)?;
                let what = match &mount.source {
                    Source::New(filesystem) => filesystem.kind.to_string_lossy(),
                    Source::Volume(name) | Source::File(name) => name.to_string_lossy(),
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
