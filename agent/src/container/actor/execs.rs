//! Further processes of a container.

use std::os::fd::{AsFd, OwnedFd};

use hull_protocol::agent::api::agent as api;

use super::{Actor, EXECS_MAX, Event, Freezer, Removal, answer, not_run, report, running};
use crate::container::handle::{ProcessName, Reply};
use crate::container::process::{Process, State};
use crate::error::Error;
use crate::launch::{self, ExecCgroup, Init, Launched};
use crate::spec::ProcessSpec;
use crate::stdio::Prepared;

impl Actor {
    pub(super) fn create_exec(
        &mut self,
        id: String,
        spec: Box<ProcessSpec>,
        cgroup: Option<String>,
        stdio: &api::Stdio,
    ) -> Result<(), Error> {
        if self.execs.contains_key(&id) {
            return Err(Error::Exists { kind: "exec", id });
        }
        if self.execs.len() >= EXECS_MAX {
            return Err(Error::State { action: "create an exec", state: "too many are not deleted" });
        }
        if matches!(self.init.state, State::Exited) || !matches!(self.removal, Removal::NotAsked) {
            return Err(Error::State { action: "create an exec", state: "the container has ended" });
        }
        // It is looked for again when the process starts; who asks learns now that it is not there.
        if let Some(path) = &cgroup {
            self.cgroup("create an exec")?.below(path)?;
        }
        self.execs.insert(id, Process::exec(spec, cgroup, stdio));
        Ok(())
    }

    pub(super) fn start_exec(&mut self, id: String, reply: Reply<u32>) {
        match self.launch_exec(&id) {
            Err(error) => answer(reply, Err(error)),
            Ok((launched, stdio)) => {
                let mut launched = Box::new(launched);
                if let Some(exec) = self.execs.get_mut(&id) {
                    exec.starting = Some(reply);
                }
                let (environment, events) = (self.environment.clone(), self.events.clone());
                tokio::spawn(async move {
                    let result = running(&mut launched, &environment).await;
                    report(&events, Event::ExecRuns { id, launched, stdio, result });
                });
            }
        }
    }

    pub(super) fn launch_exec(&mut self, id: &str) -> Result<(Launched, Prepared), Error> {
        const ACTION: &str = "start an exec";
        let cgroup = self.cgroup(ACTION)?.clone();
        let user = self.user().cloned();
        let refuse = |state| Err(Error::State { action: ACTION, state });
        let State::Running(pid, pidfd) = &self.init.state else {
            return refuse("the container is not running");
        };
        if !matches!(self.freezer, Freezer::Thawed) {
            return refuse("the container is paused");
        }
        let exec = self.execs.get_mut(id).ok_or_else(|| Error::NoExec(id.to_owned()))?;
        if !matches!(exec.state, State::Prepared(..)) {
            return refuse("the process has been started");
        }
        let init = Init { pid: *pid, pidfd: pidfd.as_fd() };
        let State::Prepared(mut spec, expected) = std::mem::replace(&mut exec.state, State::Exited) else {
            return refuse("the process has been started");
        };
        spec.console = exec.console();
        let launched = Prepared::new(expected, spec.console, &self.environment.null)
            .map_err(Error::system("make pipes"))
            .and_then(|(stdio, child)| {
                let place = match &exec.cgroup {
                    None => ExecCgroup::Own(&cgroup),
                    Some(path) => ExecCgroup::Other(cgroup.below(path)?),
                };
                let launched = launch::exec(
                    &self.environment,
                    &spec,
                    &self.spec,
                    init,
                    user.as_deref(),
                    &place,
                    &child,
                )?;
                Ok((launched, stdio))
            });
        match launched {
            Ok((launched, stdio)) => {
                exec.state = State::Running(launched.pid, launched.pidfd.clone());
                Ok((launched, stdio))
            }
            Err(error) => {
                exec.finish(not_run());
                Err(error)
            }
        }
    }

    pub(super) fn exec_runs(
        &mut self,
        id: &str,
        launched: Box<Launched>,
        stdio: Prepared,
        result: Result<Option<OwnedFd>, Error>,
    ) {
        let cgroup = self.cgroup("start an exec").cloned();
        let Some(exec) = self.execs.get_mut(id) else { return };
        let streams = result.and_then(|terminal| {
            stdio
                .start(terminal, &exec.phase.subscribe())
                .map_err(Error::system("watch the standard streams"))
        });
        let reply = exec.starting.take();
        let pid = launched.pid;
        let result = match (streams, cgroup) {
            (Ok(streams), Ok(cgroup)) => {
                exec.set_terminal(streams.terminal.clone());
                self.supervise(
                    ProcessName::Exec(id.to_owned()),
                    &cgroup,
                    pid,
                    launched.pidfd.clone(),
                    streams,
                );
                Ok(pid.unsigned_abs())
            }
            (Err(error), _) | (_, Err(error)) => {
                let (children, events, name) = (
                    self.environment.children.clone(),
                    self.events.clone(),
                    ProcessName::Exec(id.to_owned()),
                );
                tokio::spawn(async move {
                    launched.abort(&children).await;
                    report(&events, Event::Exited(name, not_run()));
                });
                Err(error)
            }
        };
        if let Some(reply) = reply {
            answer(reply, result);
        }
    }

    pub(super) fn delete_exec(&mut self, id: &str) -> Result<(), Error> {
        let exec = self.execs.get(id).ok_or_else(|| Error::NoExec(id.to_owned()))?;
        if !exec.is_over() {
            return Err(Error::State { action: "delete an exec", state: "it is running" });
        }
        self.execs.remove(id);
        Ok(())
    }
}
