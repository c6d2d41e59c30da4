//! One container: its init, its execs, and what clients may ask of them while it exists.

mod exec;
mod sandbox;
mod supervise;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::events::task::{TaskOOM, TaskPaused, TaskResumed, TaskStart};
use hull_protocol::agent::api::agent::{
    ContainerRequest, ContainerStatsResponse, ResizeTerminalRequest, SignalProcessRequest,
    UpdateContainerRequest,
};
use ttrpc::proto::Code;

pub use sandbox::{ApiSandbox, Ending, SandboxEnd};
pub use supervise::{supervise_init, vm_died};

use crate::error::TaskError;
use crate::events::{Event, Events};
use crate::pod::{AgentError, Attachments, PowerOff, Vm, process_usage};
use crate::proc_stat::start_ticks;
use crate::process::{Phase, Process, WindowSize};
use crate::record::{Lifecycle, Record, ShimRecord};
use crate::spec::Limits;

/// How long an init may take to be gone after SIGKILL, its output delivered. docker gives ten seconds to all of it, and then
/// kills what it takes for the process by itself.
const KILL_DEADLINE: Duration = Duration::from_secs(8);
/// The same where other containers share the VM, which they would lose.
const KILL_DEADLINE_SHARED: Duration = Duration::from_secs(30);

/// Whether a process has a terminal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Terminal {
    /// It has.
    Yes,
    /// It has pipes.
    No,
}

/// Whether a container is frozen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Freezer {
    /// It runs.
    Thawed,
    /// On the way to be frozen.
    Freezing,
    /// It is frozen.
    Frozen,
}

/// Whom a signal reaches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reach {
    /// The one process.
    Process,
    /// Every process of the container.
    Container,
}

/// What a container is to its VM.
pub enum Kind {
    /// The VM is its own, and ends with it.
    Alone,
    /// It shares the VM, and takes along what was added for it.
    Member {
        /// The id of the pod's sandbox.
        sandbox: String,
        /// What was added, until it is taken away.
        attachments: Mutex<Option<Attachments>>,
    },
    /// It stands for the VM, and runs nothing.
    Sandbox(SandboxEnd),
}

/// A container that was created.
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// What it is to its VM.
    pub kind: Kind,
    /// Who ends the pod after it.
    pub lifecycle: Lifecycle,
    /// The VM it runs in.
    pub vm: Arc<Vm>,
    /// How the VM is ended when nothing runs in it any more.
    pub power_off: PowerOff,
    /// Its init process.
    pub init: Arc<Process>,
    /// Where events go.
    pub events: Events,
    /// Of a sandbox that was made through the sandbox API, and is no container to its client.
    pub api: Option<ApiSandbox>,
    /// What the size of its VM depends on.
    limits: Mutex<Limits>,
    execs: Mutex<BTreeMap<String, Arc<exec::Exec>>>,
    freezer: Mutex<Freezer>,
    oom_told: AtomicBool,
}

impl Container {
    /// A container whose init process is created. Its client ends the pod, and nothing in the VM is worth keeping, unless
    /// said otherwise.
    pub fn new(
        id: &str,
        bundle: PathBuf,
        kind: Kind,
        vm: Arc<Vm>,
        init: Arc<Process>,
        events: Events,
    ) -> Self {
        Self {
            id: id.to_owned(),
            bundle,
            kind,
            lifecycle: Lifecycle::Managed,
            vm,
            power_off: PowerOff::Now,
            init,
            events,
            api: None,
            limits: Mutex::default(),
            execs: Mutex::default(),
            freezer: Mutex::new(Freezer::Thawed),
            oom_told: AtomicBool::new(false),
        }
    }

    /// The same, with another answer to who ends the pod after it.
    #[must_use]
    pub fn with_lifecycle(self, lifecycle: Lifecycle) -> Self {
        Self { lifecycle, ..self }
    }

    /// The same, with another way to end the VM.
    #[must_use]
    pub fn with_power_off(self, power_off: PowerOff) -> Self {
        Self { power_off, ..self }
    }

    /// The same, made through the sandbox API.
    #[must_use]
    pub fn with_api(self, api: ApiSandbox) -> Self {
        Self { api: Some(api), ..self }
    }

    /// The same, with these limits.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        self.set_limits(limits);
        self
    }

    /// What the size of its VM depends on.
    pub fn limits(&self) -> Limits {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps in mind what it is limited to.
    pub fn set_limits(&self, limits: Limits) {
        *self.limits.lock().unwrap_or_else(PoisonError::into_inner) = limits;
    }

    /// A process by its exec id; empty for the init.
    pub fn process(&self, exec: &str) -> Result<Arc<Process>, TaskError> {
        if exec.is_empty() { Ok(Arc::clone(&self.init)) } else { Ok(Arc::clone(&self.exec(exec)?.process)) }
    }

    /// Whether it is frozen.
    pub fn freezer(&self) -> Freezer {
        *self.freezer.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets the init process run. Returns its pid.
    pub async fn start_init(&self) -> Result<u32, TaskError> {
        self.init.begin_start()?;
        // A client may have put something into the pod's network since the creation.
        if let Err(error) = self.vm.settle_network().await {
            self.init.end_start(Phase::Created);
            return Err(error.into());
        }
        if !self.is_sandbox()
            && let Err(error) = self.vm.agent.start_process(&self.init.request()).await
        {
            self.init.end_start(Phase::Created);
            return Err(error.about_the_program().into());
        }
        let pid = self.init.pid();
        let mut event = TaskStart::new();
        event.container_id.clone_from(&self.id);
        event.pid = pid;
        self.events.send(Event::Start(event));
        if let Err(error) = self.started_record().write(&self.bundle) {
            log::error!(container:% = self.id; "{error}");
        }
        self.init.end_start(Phase::Running);
        crate::hooks::poststart(&self.bundle, &self.id, self.vm.pid()).await;
        Ok(pid)
    }

    /// The record for the bundle of a container that has just been started.
    fn started_record(&self) -> ShimRecord {
        let sandbox = match &self.kind {
            Kind::Member { sandbox, .. } => Some(sandbox.as_str()),
            Kind::Alone | Kind::Sandbox(_) => None,
        };
        ShimRecord {
            container_pid: Some(self.init.pid()),
            started_at: Some(crate::time::rfc3339(SystemTime::now())),
            ..shim_record(&self.vm, sandbox)
        }
    }

    /// Whether further containers can be made in its VM.
    pub fn is_running_sandbox(&self) -> bool {
        self.is_sandbox() && !matches!(self.init.phase(), Phase::Exited(_)) && self.vm.ended().now().is_none()
    }

    /// Whether it stands for a pod.
    pub fn is_sandbox(&self) -> bool {
        matches!(self.kind, Kind::Sandbox(_))
    }

    /// A sandbox runs nothing that could be asked.
    fn require_processes(&self) -> Result<(), TaskError> {
        if self.is_sandbox() {
            return Err(TaskError::Unsupported(
                "a pod's sandbox has no processes: use one of its containers",
            ));
        }
        Ok(())
    }

    /// Sends a signal.
    pub async fn kill(&self, exec: &str, signal: u32, reach: Reach) -> Result<(), TaskError> {
        if signal > 64 {
            return Err(TaskError::Invalid(format!("there is no signal {signal}")));
        }
        let process = self.process(exec)?;
        match process.phase() {
            Phase::Exited(_) => return Err(TaskError::Finished),
            Phase::Created if process.exec.is_some() => {
                return Err(TaskError::Precondition {
                    action: "kill",
                    subject: "exec",
                    state: "not started",
                });
            }
            Phase::Created | Phase::Starting | Phase::Running => {}
        }
        if signal == 0 {
            return Ok(());
        }
        if let Kind::Sandbox(end) = &self.kind {
            end.signal(signal);
            return Ok(());
        }
        if signal == libc::SIGKILL.unsigned_abs() && process.exec.is_none() {
            let alone = matches!(self.kind, Kind::Alone);
            let deadline = if alone { KILL_DEADLINE } else { KILL_DEADLINE_SHARED };
            tokio::spawn(insist(Arc::clone(&process), Arc::clone(&self.vm), deadline));
        }
        let request = SignalProcessRequest {
            container_id: self.id.clone(),
            exec_id: exec.to_owned(),
            signal,
            all: reach == Reach::Container,
            ..SignalProcessRequest::default()
        };
        match self.vm.agent.signal_process(&request).await {
            Ok(()) => {
                if signal == libc::SIGKILL.unsigned_abs() {
                    process.give_up_stalled_output();
                }
                Ok(())
            }
            // What is gone needs no signal, and NOT_FOUND is what clients tolerate.
            Err(AgentError::VmEnded(_)) => Err(TaskError::Finished),
            Err(AgentError::Refused { code: Code::NOT_FOUND, .. }) => Err(TaskError::Finished),
            Err(error) => Err(error.into()),
        }
    }

    /// Sets the size of a process's terminal. Nothing happens where there is none.
    pub async fn resize(&self, exec: &str, size: WindowSize) -> Result<(), TaskError> {
        let process = self.process(exec)?;
        match process.phase() {
            Phase::Exited(_) => return Err(TaskError::WrongState { action: "resize", state: "stopped" }),
            _ if !process.stdio.terminal || self.is_sandbox() => return Ok(()),
            // The agent does not know an exec before its start.
            Phase::Created | Phase::Starting if process.exec.is_some() => {
                process.keep_size(size);
                return Ok(());
            }
            Phase::Created | Phase::Starting | Phase::Running => {}
        }
        self.send_size(exec, size).await
    }

    async fn send_size(&self, exec: &str, size: WindowSize) -> Result<(), TaskError> {
        let request = ResizeTerminalRequest {
            container_id: self.id.clone(),
            exec_id: exec.to_owned(),
            columns: size.columns.min(u32::from(u16::MAX)),
            rows: size.rows.min(u32::from(u16::MAX)),
            ..ResizeTerminalRequest::default()
        };
        Ok(self.vm.agent.resize_terminal(&request).await?)
    }

    /// Freezes every process.
    pub async fn pause(&self) -> Result<(), TaskError> {
        self.require_processes()?;
        self.require_running("pause")?;
        self.freeze_step("pause", Freezer::Thawed, Freezer::Freezing)?;
        let result = self.vm.agent.pause_container(&self.agent_request()).await;
        self.set_freezer(if result.is_ok() { Freezer::Frozen } else { Freezer::Thawed });
        result?;
        let mut event = TaskPaused::new();
        event.container_id.clone_from(&self.id);
        self.events.send(Event::Paused(event));
        Ok(())
    }

    /// Lets every process go on.
    pub async fn resume(&self) -> Result<(), TaskError> {
        self.require_processes()?;
        self.require_running("resume")?;
        self.freeze_step("resume", Freezer::Frozen, Freezer::Freezing)?;
        let result = self.vm.agent.resume_container(&self.agent_request()).await;
        self.set_freezer(if result.is_ok() { Freezer::Thawed } else { Freezer::Frozen });
        result?;
        let mut event = TaskResumed::new();
        event.container_id.clone_from(&self.id);
        self.events.send(Event::Resumed(event));
        Ok(())
    }

    /// Whether its limits can be changed now.
    pub fn require_updatable(&self) -> Result<(), TaskError> {
        if matches!(self.init.phase(), Phase::Exited(_)) {
            return Err(TaskError::WrongState { action: "update", state: "stopped" });
        }
        self.require_processes()
    }

    /// Changes limits in the guest; JSON as that gets it.
    pub async fn update(&self, resources: Vec<u8>) -> Result<(), TaskError> {
        let request = UpdateContainerRequest {
            container_id: self.id.clone(),
            resources,
            ..UpdateContainerRequest::default()
        };
        Ok(self.vm.agent.update_container(&request).await?)
    }

    /// Gives it back in the guest what limits it had before the last change.
    pub async fn revert_update(&self) -> Result<(), TaskError> {
        Ok(self.vm.agent.revert_update(&self.agent_request()).await?)
    }

    /// Tells everybody that the OOM killer was at work in it.
    pub fn tell_oom(&self) {
        self.oom_told.store(true, Ordering::Relaxed);
        let mut event = TaskOOM::new();
        event.container_id.clone_from(&self.id);
        self.events.send(Event::Oom(event));
    }

    /// What it uses.
    pub async fn stats(&self) -> Result<ContainerStatsResponse, TaskError> {
        let gone = || TaskError::NoUsage(self.id.clone());
        if matches!(self.init.phase(), Phase::Exited(_)) {
            return Err(gone());
        }
        if self.is_sandbox() {
            return process_usage(self.vm.pid()).map(sandbox::host_stats).map_err(|error| {
                log::warn!(container:% = self.id; "{error}");
                gone()
            });
        }
        match self.vm.agent.container_stats(&self.agent_request()).await {
            Err(AgentError::VmEnded(_)) => Err(gone()),
            other => Ok(other?),
        }
    }

    /// Ends an init that waits to be started, so that it has an exit.
    pub async fn kill_unstarted(&self) {
        if self.init.phase() != Phase::Created {
            return;
        }
        match self.kill("", libc::SIGKILL.unsigned_abs(), Reach::Process).await {
            Ok(()) | Err(TaskError::Finished) => {}
            Err(error) => log::warn!(container:% = self.id; "cannot be ended before its start: {error}"),
        }
    }

    /// Lets go of what is left of its processes' streams, all at once.
    pub async fn end_streams(&self) {
        let execs = self.execs();
        let processes = execs.iter().chain([&self.init]);
        futures::future::join_all(processes.map(|process| process.end_streams())).await;
    }

    /// Removes what the guest still has of it.
    pub async fn forget_in_guest(&self) {
        match self.vm.agent.delete_container(&self.agent_request()).await {
            Ok(()) | Err(AgentError::VmEnded(_) | AgentError::Refused { code: Code::NOT_FOUND, .. }) => {}
            Err(error) => log::warn!(container:% = self.id; "left behind in the guest: {error}"),
        }
    }

    fn require_running(&self, action: &'static str) -> Result<(), TaskError> {
        match self.init.phase() {
            Phase::Running => Ok(()),
            other => Err(TaskError::WrongState { action, state: other.word() }),
        }
    }

    fn freeze_step(&self, action: &'static str, from: Freezer, to: Freezer) -> Result<(), TaskError> {
        let mut freezer = self.freezer.lock().unwrap_or_else(PoisonError::into_inner);
        if *freezer == from {
            *freezer = to;
            return Ok(());
        }
        let state = match *freezer {
            Freezer::Thawed => "running",
            Freezer::Freezing => "being paused or resumed",
            Freezer::Frozen => "paused",
        };
        Err(TaskError::WrongState { action, state })
    }

    fn set_freezer(&self, to: Freezer) {
        *self.freezer.lock().unwrap_or_else(PoisonError::into_inner) = to;
    }

    fn agent_request(&self) -> ContainerRequest {
        ContainerRequest { container_id: self.id.clone(), ..ContainerRequest::default() }
    }
}

/// Sees to it that a SIGKILL is the end of a container also where its guest does not answer: then the VM's end is.
async fn insist(init: Arc<Process>, vm: Arc<Vm>, deadline: Duration) {
    if tokio::time::timeout(deadline, init.exited()).await.is_ok() {
        return;
    }
    log::warn!(container:% = init.container; "outlives SIGKILL: its VM is ended");
    if let Err(error) = vm.stop(PowerOff::Now).await {
        log::error!("{error}");
    }
}

/// The record of a VM's processes for a container; `sandbox` is the pod's where that is another container. The pod's network
/// and cgroup are then the sandbox's to give back.
pub fn shim_record(vm: &Vm, sandbox: Option<&str>) -> ShimRecord {
    ShimRecord {
        vmm_pid: Some(vm.pid()),
        vmm_start_ticks: start_ticks(vm.pid()),
        sandbox: sandbox.map(str::to_owned),
        boot: vm.boot,
        network: if sandbox.is_some() { None } else { vm.network_record() },
        cgroup: if sandbox.is_some() { None } else { vm.cgroup_record() },
        ..own_record(vec![vm.stream_socket().to_owned()])
    }
}

/// The record of this shim alone.
pub fn own_record(sockets: Vec<PathBuf>) -> ShimRecord {
    let pid = std::process::id();
    ShimRecord {
        shim_pid: pid,
        shim_start_ticks: start_ticks(pid).unwrap_or_default(),
        sockets,
        ..ShimRecord::default()
    }
}
