//! Further processes in a container.

use std::sync::{Arc, PoisonError};

use containerd_shim_protos::events::task::{TaskExecAdded, TaskExecStarted};
use hull_protocol::agent::api::agent::CreateExecRequest;
use hull_protocol::agent::is_valid_id;

use super::{Container, Freezer, Terminal, supervise};
use crate::error::TaskError;
use crate::events::Event;
use crate::io::{ProcessIo, StdioSpec};
use crate::process::{Exit, GUEST_PID, Phase, Process};
use crate::spec;

/// An exec: registered here, known to the agent from its start.
pub struct Exec {
    /// The process.
    pub process: Arc<Process>,
    /// The OCI Process for the guest, JSON.
    spec: Vec<u8>,
}

impl Container {
    /// Registers an exec.
    pub fn add_exec(&self, id: &str, process: &[u8], stdio: StdioSpec) -> Result<(), TaskError> {
        if !is_valid_id(id) {
            return Err(TaskError::InvalidId(id.to_owned()));
        }
        if let Phase::Exited(_) = self.init.phase() {
            return Err(TaskError::WrongState { action: "exec in", state: "stopped" });
        }
        self.require_processes()?;
        if self.freezer() != Freezer::Thawed {
            return Err(TaskError::WrongState { action: "exec in", state: "paused" });
        }
        let terminal = if stdio.terminal { Terminal::Yes } else { Terminal::No };
        let spec = spec::exec_process(process, terminal)?;
        let process = Arc::new(Process::new(&self.id, Some(id), stdio));
        {
            let mut execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
            if execs.contains_key(id) {
                return Err(TaskError::Exists(format!("exec {id:?}")));
            }
            execs.insert(id.to_owned(), Arc::new(Exec { process, spec }));
        }
        let mut event = TaskExecAdded::new();
        event.container_id.clone_from(&self.id);
        event.exec_id = id.to_owned();
        self.events.send(Event::ExecAdded(event));
        Ok(())
    }

    /// An exec by its id.
    pub(super) fn exec(&self, id: &str) -> Result<Arc<Exec>, TaskError> {
        let execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        execs
            .get(id)
            .map(Arc::clone)
            .ok_or_else(|| TaskError::NoExec { container: self.id.clone(), exec: id.to_owned() })
    }

    /// Every exec.
    pub fn execs(&self) -> Vec<Arc<Process>> {
        let execs = self.execs.lock().unwrap_or_else(PoisonError::into_inner);
        execs.values().map(|exec| Arc::clone(&exec.process)).collect()
    }

    /// Runs an exec. Returns its pid.
    pub async fn start_exec(self: &Arc<Self>, id: &str) -> Result<u32, TaskError> {
        let exec = self.exec(id)?;
        if self.init.phase() != Phase::Running {
            let state = self.init.phase().word();
            return Err(TaskError::Precondition { action: "start an exec", subject: "container", state });
        }
        if self.freezer() != Freezer::Thawed {
            return Err(TaskError::WrongState { action: "start an exec in", state: "paused" });
        }
        let process = &exec.process;
        process.begin_start()?;
        match self.run_exec(&exec, id).await {
            Ok((pid, io)) => {
                process.set_pid(pid);
                let mut event = TaskExecStarted::new();
                event.container_id.clone_from(&self.id);
                event.exec_id = id.to_owned();
                event.pid = process.pid();
                self.events.send(Event::ExecStarted(event));
                process.end_start(Phase::Running);
                tokio::spawn(supervise::supervise_exec(Arc::clone(self), Arc::clone(process), io));
                Ok(process.pid())
            }
            Err(error) => {
                process.end_start(Phase::Created);
                Err(error)
            }
        }
    }

    async fn run_exec(&self, exec: &Exec, id: &str) -> Result<(u32, ProcessIo), TaskError> {
        let process = &exec.process;
        let request = CreateExecRequest {
            container_id: self.id.clone(),
            exec_id: id.to_owned(),
            process: exec.spec.clone(),
            stdio: Some(process.agent_stdio()).into(),
            ..CreateExecRequest::default()
        };
        let agent = &self.vm.agent;
        agent.create_exec(&request).await.map_err(crate::pod::AgentError::about_the_program)?;
        let started = async {
            let io = ProcessIo::attach(&process.stdio, &self.vm.streams, &self.id, Some(id)).await?;
            process.attached(io.control());
            if let Some(size) = process.take_size() {
                self.send_size(id, size).await?;
            }
            let pid = agent
                .start_process(&process.request())
                .await
                .map_err(crate::pod::AgentError::about_the_program)?;
            Ok((pid | GUEST_PID, io))
        };
        let started: Result<_, TaskError> = started.await;
        if started.is_err()
            && let Err(error) = agent.delete_exec(&process.request()).await
        {
            log::warn!(container:% = self.id, exec:% = id; "left behind in the guest: {error}");
        }
        started
    }

    /// Forgets an exec that is not running.
    pub async fn delete_exec(&self, id: &str) -> Result<(u32, Exit), TaskError> {
        let exec = self.exec(id)?;
        let exit = match exec.process.phase() {
            Phase::Exited(exit) => {
                // The VM may have ended with the container: then there is nothing to free.
                if self.vm.ended().now().is_none()
                    && let Err(error) = self.vm.agent.delete_exec(&exec.process.request()).await
                {
                    log::debug!(container:% = self.id, exec:% = id; "already gone in the guest: {error}");
                }
                exit
            }
            Phase::Created => supervise::never_started(),
            other => return Err(TaskError::WrongState { action: "delete", state: other.word() }),
        };
        exec.process.end_streams().await;
        self.execs.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
        Ok((exec.process.pid(), exit))
    }
}
