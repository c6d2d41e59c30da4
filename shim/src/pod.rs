//! One pod: the table of its containers and the VM they run in.
//!
//! [`Pod`] owns which ids exist and when the shim may end. What happens inside a container is
//! [`Container`](crate::container::Container)'s, what happens to the VM is [`Vm`]'s.

mod abandon;
mod agent;
mod artifacts;
mod broker;
mod cgroup;
mod console;
mod create;
mod debug;
mod devices;
mod figures;
mod forward;
mod hotplug;
mod jail;
mod journal;
mod monitor;
mod network;
mod news;
mod relay;
mod resize;
mod resolver;
mod rootfs;
#[cfg(test)]
mod rounds;
mod sandbox;
mod update;
mod usage;
mod vm;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use containerd_shim_protos::events::task::TaskDelete;
use tokio::sync::watch;

pub use abandon::{Abandon, Abandoned};
pub use agent::{Agent, AgentError};
pub use artifacts::{ArtifactError, Artifacts, Found};
pub use broker::{Broker, BrokerError, Export};
pub use devices::DeviceError;
pub use hotplug::{Attachments, Needs, PlugError};
pub use journal::Journal;
pub use monitor::{Monitor, MonitorError, VmEnd, VmEnded};
pub use resize::{Host, ResizeError, Size, room};
pub use rootfs::{Disk, OpenRootfs, RootfsError, RootfsNames, RootfsPlan};
pub use usage::process_usage;
pub use vm::{Booting, Ports, PowerOff, StartError, Vm, VmSpec};

use crate::config::Config;
use crate::container::{Container, Ending, Kind, vm_died};
use crate::error::TaskError;
use crate::events::{Event, Events};
use crate::paths::PodSockets;
use crate::process::{Exit, Phase};
use crate::record::Lifecycle;
use crate::trace::Tracer;

/// 128 + SIGKILL.
const KILLED: u32 = 137;
/// How long a sandbox's exit waits for those of its containers, which end with the VM.
const MEMBERS_DEADLINE: Duration = Duration::from_secs(15);

/// The longest text of a guest that is repeated to a client, in characters.
const GUEST_TEXT_MAX: usize = 1024;

/// Text from the guest, fit for logs, errors and terminals: bounded, without control characters.
pub fn printable(text: &str) -> String {
    text.chars().take(GUEST_TEXT_MAX).map(|c| if c.is_control() { ' ' } else { c }).collect()
}

enum Slot {
    /// Being created, until that is given up.
    Creating(Abandon),
    Ready(Arc<Container>),
    Deleting(Arc<Container>),
}

/// What the table holds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Occupancy {
    /// Nothing.
    Empty,
    /// Containers that exist.
    Settled,
    /// At least one that is on its way.
    Creating,
}

impl Occupancy {
    fn of(table: &BTreeMap<String, Slot>) -> Self {
        if table.values().any(|slot| matches!(slot, Slot::Creating(_))) {
            Self::Creating
        } else if table.is_empty() {
            Self::Empty
        } else {
            Self::Settled
        }
    }
}

/// What a Shutdown may end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ShutdownMode {
    /// Nothing that still exists.
    WhenEmpty,
    /// Everything.
    Now,
}

/// Whether the shim has more to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PodState {
    /// It has.
    Open,
    /// Everything in it is being ended.
    Closing,
    /// It may end.
    Finished,
}

/// A pod.
pub struct Pod {
    config: Config,
    events: Mutex<Events>,
    sockets: PodSockets,
    namespace: String,
    tracer: Option<Arc<Tracer>>,
    table: Mutex<BTreeMap<String, Slot>>,
    /// Held by the one update that is under way: each looks at the limits that the others have left.
    updating: tokio::sync::Mutex<()>,
    occupancy: watch::Sender<Occupancy>,
    state: watch::Sender<PodState>,
}

impl Pod {
    /// A pod without containers, of this namespace of containers' ids.
    pub fn new(
        config: Config,
        sockets: PodSockets,
        namespace: String,
        events: Events,
        tracer: Option<Tracer>,
    ) -> Self {
        Self {
            config,
            tracer: tracer.map(Arc::new),
            events: Mutex::new(events),
            sockets,
            namespace,
            table: Mutex::default(),
            updating: tokio::sync::Mutex::default(),
            occupancy: watch::Sender::new(Occupancy::Empty),
            state: watch::Sender::new(PodState::Open),
        }
    }

    /// Who writes the spans of its requests, where there are any.
    pub fn tracer(&self) -> Option<Arc<Tracer>> {
        self.tracer.clone()
    }

    /// Waits until the shim may end.
    pub async fn finished(&self) {
        // The sender is ours: it cannot be gone.
        let _ = self.state.subscribe().wait_for(|state| *state == PodState::Finished).await;
    }

    /// Waits until there has been no container for so long.
    pub async fn idle(&self, pause: Duration) {
        let mut occupancy = self.occupancy.subscribe();
        loop {
            // The sender is ours: it cannot be gone.
            let _ = occupancy.wait_for(|now| *now == Occupancy::Empty).await;
            tokio::select! {
                () = tokio::time::sleep(pause) => return,
                _ = occupancy.wait_for(|now| *now != Occupancy::Empty) => {}
            }
        }
    }

    /// Lets the publisher end once it has published everything.
    pub fn close_events(&self) {
        *self.events.lock().unwrap_or_else(PoisonError::into_inner) = Events::nowhere();
    }

    fn events(&self) -> Events {
        self.events.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes the table, and tells who waits for what is in it.
    fn with_table<T>(&self, change: impl FnOnce(&mut BTreeMap<String, Slot>) -> T) -> T {
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let result = change(&mut table);
        let now = Occupancy::of(&table);
        self.occupancy.send_if_modified(|before| std::mem::replace(before, now) != now);
        result
    }

    /// Whether there is no container, nor one on its way.
    pub fn is_empty(&self) -> bool {
        self.table.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }

    /// A container that exists, be it on its way out. A sandbox that was not made as one is none.
    pub fn container(&self, id: &str) -> Result<Arc<Container>, TaskError> {
        match self.table.lock().unwrap_or_else(PoisonError::into_inner).get(id) {
            Some(Slot::Ready(container) | Slot::Deleting(container)) if container.api.is_none() => {
                Ok(Arc::clone(container))
            }
            Some(Slot::Ready(_) | Slot::Deleting(_)) => Err(TaskError::NoContainer(id.to_owned())),
            Some(Slot::Creating(_)) => Err(TaskError::Precondition {
                action: "use the container",
                subject: "container",
                state: "still being created",
            }),
            None => Err(TaskError::NoContainer(id.to_owned())),
        }
    }

    /// The pid that stands for a container on the host; 0 for none.
    pub fn task_pid(&self, id: &str) -> u32 {
        self.container(id).map(|container| container.init.pid()).unwrap_or_default()
    }

    /// Forgets a container that is not running, and ends the VM with it if that is its own. Returns pid and exit of its
    /// init.
    pub async fn delete(&self, id: &str) -> Result<(u32, Exit), TaskError> {
        let container = self.begin_delete(id)?;
        match &container.kind {
            // A container that was never started ends with the VM, which has no other.
            Kind::Alone => stop(&container.vm, container.power_off).await,
            Kind::Sandbox(end) => end.ask(KILLED),
            Kind::Member { .. } => container.kill_unstarted().await,
        }
        let exit = container.init.exited().await;
        container.end_streams().await;
        if let Kind::Member { attachments, .. } = &container.kind {
            container.forget_in_guest().await;
            let attached = attachments.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(attached) = attached {
                container.vm.detach(attached).await;
            }
        }
        crate::hooks::poststop(&container.bundle, &container.id).await;
        let pid = container.init.pid();
        self.with_table(|table| table.remove(id));
        let mut event = TaskDelete::new();
        event.container_id = id.to_owned();
        event.pid = pid;
        event.exit_status = exit.status;
        event.exited_at = crate::time::timestamp(exit.at);
        self.events().send(Event::Delete(event));
        Ok((pid, exit))
    }

    fn begin_delete(&self, id: &str) -> Result<Arc<Container>, TaskError> {
        let container = self.container(id)?;
        match container.init.phase() {
            Phase::Exited(_) | Phase::Created => {}
            running => return Err(TaskError::WrongState { action: "delete", state: running.word() }),
        }
        let mut table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        match table.get(id) {
            Some(Slot::Ready(_)) => {
                table.insert(id.to_owned(), Slot::Deleting(Arc::clone(&container)));
                Ok(container)
            }
            Some(Slot::Creating(_) | Slot::Deleting(_)) => Err(TaskError::Precondition {
                action: "delete",
                subject: "container",
                state: "already being deleted",
            }),
            None => Err(TaskError::NoContainer(id.to_owned())),
        }
    }

    /// Every container that exists.
    fn containers(&self) -> Vec<Arc<Container>> {
        let table = self.table.lock().unwrap_or_else(PoisonError::into_inner);
        let existing = table.values().filter_map(|slot| match slot {
            Slot::Creating(_) => None,
            Slot::Ready(container) | Slot::Deleting(container) => Some(Arc::clone(container)),
        });
        existing.collect()
    }

    /// Lets the shim end: if nothing exists any more, or in any case.
    pub async fn shut_down(&self, mode: ShutdownMode) {
        if mode == ShutdownMode::WhenEmpty && !self.is_empty() {
            return;
        }
        self.state.send_if_modified(|state| {
            let open = *state == PodState::Open;
            if open {
                *state = PodState::Closing;
            }
            open
        });
        for slot in self.table.lock().unwrap_or_else(PoisonError::into_inner).values() {
            if let Slot::Creating(abandon) = slot {
                abandon.now();
            }
        }
        self.stop_all().await;
        // The sender is ours: it cannot be gone.
        let _ = self.occupancy.subscribe().wait_for(|now| *now != Occupancy::Creating).await;
        // One may have come to be all the same.
        self.stop_all().await;
        self.finish();
    }

    async fn stop_all(&self) {
        for container in self.containers() {
            stop(&container.vm, PowerOff::Now).await;
            container.init.exited().await;
        }
    }

    /// Sees a sandbox to its end, and with it the VM and every container in it.
    async fn supervise_sandbox(&self, sandbox: &Container, end: Ending) {
        let ended = sandbox.vm.ended();
        let exit = tokio::select! {
            status = end.asked() => {
                let orderly = self.containers().iter().any(|member| member.power_off == PowerOff::Orderly);
                stop(&sandbox.vm, if orderly { PowerOff::Orderly } else { PowerOff::Now }).await;
                Exit { status, at: SystemTime::now(), oom_killed: false, reason: String::new() }
            }
            how = ended.wait() => {
                // What it has left is removed.
                stop(&sandbox.vm, PowerOff::Now).await;
                vm_died(&how)
            }
        };
        let members = async {
            for member in self.containers().iter().filter(|member| member.id != sandbox.id) {
                member.init.exited().await;
            }
        };
        if tokio::time::timeout(MEMBERS_DEADLINE, members).await.is_err() {
            log::warn!("containers outlive their VM");
        }
        sandbox.end_sandbox(exit).await;
    }

    /// Ends what a client would have ended, where none will.
    async fn after_exit(&self, container: &Container) {
        if !matches!(container.kind, Kind::Alone) {
            return;
        }
        stop(&container.vm, container.power_off).await;
        if container.lifecycle == Lifecycle::Managed {
            return;
        }
        container.end_streams().await;
        crate::hooks::poststop(&container.bundle, &container.id).await;
        match container.lifecycle {
            Lifecycle::Managed | Lifecycle::Keep => {}
            Lifecycle::Remove => {
                if let Err(error) = std::fs::remove_dir_all(&container.bundle) {
                    log::error!(container:% = container.id; "cannot remove {}: {error}", container.bundle.display());
                }
            }
        }
        self.finish();
    }

    fn finish(&self) {
        self.state.send_replace(PodState::Finished);
    }
}

async fn stop(vm: &Vm, how: PowerOff) {
    if let Err(error) = vm.stop(how).await {
        log::error!("{error}");
    }
}
